# SPDX-License-Identifier: Apache-2.0
"""SACReg (Revaud et al., CVPRW 2024): a network, trained once for all scenes, regresses the scene coordinates of an
image from retrieved keyframes with their landmarks.

The map is the keyframe database of method ace_g, so any map with one can be localized in. No implementation of the
paper has been published; the network is ours (`networks.cross_image_regressor`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from aceg_ros.errors import UserError
from aceg_ros.methods.base import Localizer, Mapper, MappingOptions
from aceg_ros.methods.options import option
from aceg_ros.methods.registry import MethodSpec

if TYPE_CHECKING:
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.networks.cross_image_fusion import CrossImageWeights

ROLE = "cross_image_regressor"
SHIPPED = ("sacreg_compact4", "sacreg_compact3", "sacreg")     # shipped networks, each for an encoder, the newest first
DATABASE = "database"               # section of maps with a keyframe database (`maps.keyframe_database`)
FUSIONS = ("early", "late")


@dataclass(frozen=True, kw_only=True)
class SacregOptions:
    """What a user may choose about mapping by SACReg.

    regressor: file of the network; None for the shipped one of the encoder. fusion: how several keyframes are fused.
    keep_poses, compact: as for ace_g; a compact map stores its tokens product-quantised.
    """

    regressor: str | None = option(None, "the cross-image regressor: a file from 'aceg pretrain sacreg'",
                                   metavar="FILE")
    fusion: str = option("early", "several keyframes at once, or each alone, which is slower", choices=FUSIONS)
    keep_poses: bool = option(False, "take the given poses as they are; otherwise they are refined together with the"
                              " landmarks, where held-out keypoints then agree better")
    compact: bool = option(False, "a smaller map: fewer observations, descriptors of 32 and tokens of 16 bytes")


@dataclass(frozen=True, kw_only=True)
class SacregMapSettings:
    """Settings of a map of this method. fusion: one of FUSIONS."""

    fusion: str = "early"


def make_mapper(options: MappingOptions, method_options: SacregOptions) -> Mapper:
    from aceg_ros.methods.sacreg_mapper import SacregMapper  # localizing must not load what mapping needs
    return SacregMapper(options, method_options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> Localizer:
    """Return a localizer for a map of this method, or for any other with a keyframe database."""
    from aceg_ros.methods.cross_image_localizer import CrossImageLocalizer
    check_database(scene_map)
    own = scene_map.method == SPEC.name
    settings = scene_map.settings_as(SacregMapSettings) if own else SacregMapSettings()
    return CrossImageLocalizer.from_map(scene_map, load_regressor(scene_map, device), fusion=settings.fusion,
                                        device=device, seed=seed)


def with_tokens_mixed_again(scene_map: SceneMap, device: str, seed: int) -> SceneMap:
    from aceg_ros.methods.sacreg_mapper import TOKENS, with_tokens
    tokens = scene_map.sections.get(TOKENS, {})
    return with_tokens(scene_map, load_regressor(scene_map, device), compact="codebook" in tokens, seed=seed)


def as_sacreg_map(scene_map: SceneMap, weights: CrossImageWeights, *, fusion: str = "early") -> SceneMap:
    """Make a map of this method from any map with a keyframe database. Its tokens are mixed when it is loaded.

    Raises UserError if the map has no database, or the network was trained for another encoder.
    """
    from aceg_ros.maps.header import NetworkReference
    check_database(scene_map)
    check_encoder(weights, scene_map.network("encoder").identity)
    return replace(scene_map, method=SPEC.name, settings=asdict(SacregMapSettings(fusion=fusion)),
                   networks={**scene_map.networks, ROLE: NetworkReference.from_network(weights)})


def check_database(scene_map: SceneMap) -> None:
    """Raise UserError unless a map has a keyframe database."""
    if DATABASE not in scene_map.sections:
        raise UserError(f"Method sacreg needs a keyframe database, which this map of method '{scene_map.method}' does"
                        " not have: map the scene with --method ace_g or sacreg.")


def load_regressor(scene_map: SceneMap, device: str) -> CrossImageWeights:
    """Return the network of a map, for maps of other methods the shipped one of the map's encoder.

    Raises UserError if there is none, it has changed since mapping, or it was trained for another encoder.
    """
    from aceg_ros.networks.cross_image_fusion import load_cross_image
    from aceg_ros.utils.device import pick_device
    reference = scene_map.networks.get(ROLE)
    encoder = scene_map.network("encoder").identity
    weights = load_cross_image(shipped_regressor(encoder) if reference is None else reference.source,
                               pick_device(device))
    if reference is not None:
        reference.check(weights, role="regressor", restore="file")
    check_encoder(weights, encoder)
    return weights


def shipped_regressor(encoder: str) -> str:
    """Return the name of the shipped network for the encoder of this identity; if there is none, that of the newest."""
    from aceg_ros.networks.weights_file import shipped_for
    return shipped_for(encoder, SHIPPED)


def check_encoder(weights: CrossImageWeights, encoder: str) -> None:
    """Raise UserError unless a network was trained for the encoder of this identity."""
    if weights.encoder != encoder:
        raise UserError(f"Regressor '{weights.source}' was trained for encoder {weights.encoder}, not for {encoder}:"
                        " map the scene with that encoder, or train a regressor for this one with 'aceg pretrain"
                        " sacreg --encoder'.")


SPEC = MethodSpec(
    name="sacreg",
    summary="a pretrained network regresses scene coordinates from retrieved keyframes",
    options=SacregOptions,
    map_settings=SacregMapSettings,
    make_mapper=make_mapper,
    make_localizer=make_localizer,
    after_growth=with_tokens_mixed_again,
)
