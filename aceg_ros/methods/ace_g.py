# SPDX-License-Identifier: Apache-2.0
"""ACE-G (Bruns et al., ICCV 2025): one frozen regressor for all scenes, and one code per scene as its input.

By default the code is a keyframe database: what the camera saw, with descriptors and 3D points. With a regressor that
reads landmarks it is these, clustered; with the published one (`aceg import ace-g`) it is optimised by reprojection, as
in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aceg_ros.encoders import SHIPPED_ENCODERS
from aceg_ros.errors import UserError
from aceg_ros.methods.base import Localizer, Mapper, MappingOptions
from aceg_ros.methods.options import option
from aceg_ros.methods.registry import ImporterSpec, MethodSpec

if TYPE_CHECKING:
    from torch import Tensor

    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.scene_coordinates import SceneCoordinateRegressor
    from aceg_ros.networks.landmark_regressor import LandmarkRegressor
    from aceg_ros.networks.map_code_transformer import PredictedPoints, TransformerHead

SECTION = "database"                # of maps with a keyframe database (`maps.keyframe_database`)
DATABASE_ENCODER = "compact4"       # for these, unless the user names another one
SHIPPED_REGRESSOR, SHIPPED_REGRESSOR_ENCODER = "ace_g", "compact"


@dataclass(frozen=True, kw_only=True)
class AceGOptions:
    """What a user may choose about mapping by ACE-G.

    keep_poses: build the database with the given poses as they are. compact: store the database in a quarter of the
    size. regressor: None for a keyframe database, which needs none; otherwise the shipped regressor or a file. codes:
    largest number of codes of a scene for the regressor; None: 8192 landmarks, or the number that the published
    regressor was trained with. With codes and no regressor, it is the shipped one.
    """

    keep_poses: bool = option(False, "take the given poses as they are; otherwise they are refined together with the"
                              " landmarks, where held-out keypoints then agree better")
    compact: bool = option(False, "a keyframe database of a quarter of the size: fewer observations, descriptors of 32"
                           " bytes")
    regressor: str | None = option(None, "instead of a keyframe database, a code for a regressor: 'ace_g' (shipped) or"
                                   " a file from 'aceg import ace-g' or 'aceg pretrain ace-g'", metavar="FILE")
    codes: int | None = option(None, "codes of a scene for the regressor; fewer make a smaller map and a faster, less"
                               " certain localizer (default: 8192 landmarks)", metavar="N", minimum=1)


@dataclass(frozen=True, kw_only=True)
class AceGMapSettings:
    """Settings of a map of this method. patch_offset_px: added to the pixels of patches, for imported maps, whose
    authors define pixel coordinates differently."""

    patch_offset_px: float = 0.0


def make_mapper(options: MappingOptions, method_options: AceGOptions) -> Mapper:
    from aceg_ros.methods.ace_g_mapper import AceGMapper  # localizing must not load what mapping needs
    return AceGMapper(options, method_options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> Localizer:
    if SECTION in scene_map.sections:
        from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
        return KeyframeLocalizer.from_map(scene_map, device=device, seed=seed)
    from aceg_ros.methods.scene_coordinates import SceneCoordinateLocalizer
    offset_px = scene_map.settings_as(AceGMapSettings).patch_offset_px
    return SceneCoordinateLocalizer.from_map(scene_map, load_regressor_with_code, device=device, seed=seed,
                                           patch_offset_px=offset_px)


def load_regressor_with_code(scene_map: SceneMap, device: str) -> SceneCoordinateRegressor:
    """Return the regressor with the map's code. Raises UserError if the regressor has changed since mapping."""
    from aceg_ros.networks.landmark_regressor import LandmarkCode, LandmarkRegressor
    from aceg_ros.networks.map_code_transformer import MapCode
    from aceg_ros.networks.regressor import load_regressor
    reference = scene_map.network("regressor")
    regressor = load_regressor(reference.source, device)
    reference.check(regressor, role="regressor")
    net, sections = regressor.net, scene_map.sections
    try:
        if isinstance(net, LandmarkRegressor):
            landmarks = sections["landmarks"]
            landmark_code = LandmarkCode(landmarks["keys"].float(), landmarks["points"], net.config).to(device)
            return lambda features: _confident(net, net(features, landmark_code))
        map_code = MapCode(sections["code"]["embeddings"].float(), sections["code"]["mean"]).to(device)
        return lambda features: _confident(net, net(features, map_code))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"The map's code cannot be used ({error}): map the scene again.") from None


def _confident(net: LandmarkRegressor | TransformerHead, found: PredictedPoints) -> tuple[Tensor, Tensor]:
    return found.coordinates.float(), net.select_confident(found.sigma.float())


SPEC = MethodSpec(
    name="ace_g",
    summary="a keyframe database, or a code that a pretrained network reads",
    options=AceGOptions,
    map_settings=AceGMapSettings,
    make_mapper=make_mapper,
    make_localizer=make_localizer,
    after_growth=lambda scene_map, device, seed: scene_map,
    priority=2,
    supports=lambda options: options.encoder in (None, *SHIPPED_ENCODERS),
    importers=(
        ImporterSpec(kind="ace-g", description="the regressor of the ACE-G release",
                     function="aceg_ros.importers.ace_g:import_regressor"),
        ImporterSpec(kind="ace-g-map", description="a map of the ACE-G release", inputs=("encoder", "regressor"),
                     function="aceg_ros.importers.ace_g:import_map"),
    ),
)
