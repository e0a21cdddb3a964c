# SPDX-License-Identifier: Apache-2.0
"""Reloc3r (Dong et al., CVPR 2025): relative poses to retrieved keyframes, averaged to one pose.

A map is a handful of posed keyframes, made in seconds. Relative poses come from matches of the encoder's keypoints, or
from a network: a small one of our own, which is shipped and rates these matches, or the published one (`aceg import
reloc3r`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aceg_ros.methods.base import Localizer, Mapper, MappingOptions
from aceg_ros.methods.options import option
from aceg_ros.methods.registry import ImporterSpec, MethodSpec

if TYPE_CHECKING:
    from aceg_ros.maps.scene_map import SceneMap

MATCHES, NETWORK = "matches", "network"          # where relative poses come from
TOKENS_SECTION, ROLE = "tokens", "relative_pose"
SHIPPED = ("reloc3r_compact4", "reloc3r")       # networks, each for an encoder, the newest first


@dataclass(frozen=True, kw_only=True)
class Reloc3rOptions:
    """What a user may choose about mapping by Reloc3r.

    relative_pose: where relative poses come from; None: from the network if one is given; from the shipped one if it
    fits the encoder, unless all matches localize clearly more keyframes of the map by the others; else from matches.
    network: file of the network; None: the shipped one. keyframes: largest number; of more images, those farthest from
    each other are taken.
    """

    relative_pose: str | None = option(None, "relative poses from matches of keypoints and an essential matrix, or from"
                                       " a network (default: what the keyframes of the map are localized by,"
                                       " the network unless matches find clearly more of them; matches with an"
                                       " encoder that no network is shipped for)",
                                       choices=(MATCHES, NETWORK))
    network: str | None = option(None, "network for relative poses: a file from 'aceg import reloc3r' or"
                                " 'aceg pretrain reloc3r' (with --relative-pose network, default: the shipped one)",
                                metavar="FILE")
    keyframes: int = option(400, "largest number of keyframes; of more images, those farthest from each other are"
                            " taken", metavar="N", minimum=1)


@dataclass(frozen=True, kw_only=True)
class Reloc3rMapSettings:
    """Settings of a map of this method.

    relative_pose: MATCHES or NETWORK. shortlist: keyframes that an image is compared with. spread_factor: for the
    covariances, and min_keyframes: that must confirm a pose from matches; both measured on the keyframes themselves,
    each localized by the others.
    """

    relative_pose: str = MATCHES
    shortlist: int = 10
    spread_factor: float = 1.0
    min_keyframes: int = 2


def make_mapper(options: MappingOptions, method_options: Reloc3rOptions) -> Mapper:
    from aceg_ros.methods.reloc3r_mapper import Reloc3rMapper  # localizing must not load what mapping needs
    return Reloc3rMapper(options, method_options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> Localizer:
    from aceg_ros.methods.reloc3r_localizer import Reloc3rLocalizer
    return Reloc3rLocalizer.from_map(scene_map, device=device, seed=seed)


SPEC = MethodSpec(
    name="reloc3r",
    summary="a few posed keyframes, relative poses to which are averaged",
    options=Reloc3rOptions,
    map_settings=Reloc3rMapSettings,
    make_mapper=make_mapper,
    make_localizer=make_localizer,
    importers=(
        ImporterSpec(kind="reloc3r", description="model.safetensors of the Reloc3r release, 512 or 224",
                     function="aceg_ros.importers.reloc3r:import_network"),
    ),
)
