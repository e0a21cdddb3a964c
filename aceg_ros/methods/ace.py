# SPDX-License-Identifier: Apache-2.0
"""ACE (Brachmann et al., CVPR 2023): a frozen encoder, and a small head per scene that is trained by reprojection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aceg_ros.errors import UserError
from aceg_ros.methods.base import Mapper, MappingOptions
from aceg_ros.methods.options import option
from aceg_ros.methods.registry import ImporterSpec, MethodSpec

if TYPE_CHECKING:
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.scene_coordinates import SceneCoordinateLocalizer, SceneCoordinateRegressor


@dataclass(frozen=True, kw_only=True)
class AceOptions:
    """What a user may choose about mapping by ACE.

    reprojection_only: train without triangulated depths (`mapping.triangulation`), as ACE was published.
    """

    reprojection_only: bool = option(False, "train as ACE was published: do not start from depths triangulated between"
                                     " the images", conflicts_with="use_depth")


@dataclass(frozen=True, kw_only=True)
class AceMapSettings:
    """Settings of a map of this method. patch_offset_px: added to the pixels of patches, for imported maps, whose
    authors define pixel coordinates differently."""

    patch_offset_px: float = 0.0


def make_mapper(options: MappingOptions, method_options: AceOptions) -> Mapper:
    from aceg_ros.methods.ace_mapper import AceMapper  # localizing must not load what mapping needs
    return AceMapper(options, method_options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> SceneCoordinateLocalizer:
    from aceg_ros.methods.scene_coordinates import SceneCoordinateLocalizer
    offset_px = scene_map.settings_as(AceMapSettings).patch_offset_px
    return SceneCoordinateLocalizer.from_map(scene_map, load_head, device=device, seed=seed, patch_offset_px=offset_px)


def load_head(scene_map: SceneMap, device: str) -> SceneCoordinateRegressor:
    """Return the map's head as a regressor. Raises UserError if it cannot be used."""
    from aceg_ros.networks.ace_head import head_from_state
    try:
        head = head_from_state(dict(scene_map.sections["head"])).eval().requires_grad_(False).to(device)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"The map's head cannot be used ({error}): map the scene again.") from None
    return lambda features: (head(features), None)


def untrained_map(device: str, encoder: str) -> SceneMap:
    """Return a map with a random head of the default size."""
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.maps.header import NetworkReference
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.ace_mapper import SETTINGS
    from aceg_ros.networks.ace_head import SceneHead
    loaded_encoder, settings = load_encoder(encoder, device), SETTINGS[device]
    head = SceneHead(loaded_encoder.dim, settings.width, settings.extra_blocks)
    return SceneMap(method=SPEC.name, networks={"encoder": NetworkReference.from_network(loaded_encoder)},
                    sections={"head": head.state_dict()})


SPEC = MethodSpec(
    name="ace",
    summary="a small network per scene, trained by reprojection",
    options=AceOptions,
    map_settings=AceMapSettings,
    make_mapper=make_mapper,
    make_localizer=make_localizer,
    untrained_map=untrained_map,
    priority=1,                                     # works with any encoder
    importers=(ImporterSpec(kind="ace-head", description="a scene's head of the ACE release", inputs=("encoder",),
                            function="aceg_ros.importers.ace:import_head"),),
)
