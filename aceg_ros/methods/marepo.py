# SPDX-License-Identifier: Apache-2.0
"""marepo (Chen et al., CVPR 2024): a transformer, trained once for all scenes, regresses the pose from the scene
coordinates of an image; no RANSAC.

The coordinates come from a map of another method: the best matches in the keyframe database of ACE-G, the head that
ACE trains, or landmarks that ACE-G's small regressor reads. The shipped network is a small variant of our own: it
weighs the coordinates, and a closed form gives the pose (`networks.weighing_transformer`). The published one reads
whole grids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from aceg_ros.errors import UserError
from aceg_ros.methods import ace, ace_g
from aceg_ros.methods.base import Localizer, Mapper, MappingOptions
from aceg_ros.methods.options import option
from aceg_ros.methods.registry import ImporterSpec, MethodSpec

if TYPE_CHECKING:
    from torch import Tensor

    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.scene_coordinates import SceneCoordinateRegressor
    from aceg_ros.networks.pose_regressor import PoseRegressor

ROLE, SECTION = "pose_regressor", "pose_regressor"       # of the network, and of what a map keeps for it
TUNED_PREFIX = "net."                                    # of the keys of a fine-tuned network in that section
SHIPPED = "marepo"
DATABASE = ace_g.SECTION                                 # of maps whose coordinates are matches

# Methods whose maps give a point for each cell: how to load their regressor.
_COORDINATES: dict[str, Callable[[SceneMap, str], SceneCoordinateRegressor]] = {
    ace.SPEC.name: ace.load_head, ace_g.SPEC.name: ace_g.load_regressor_with_code}


@dataclass(frozen=True, kw_only=True)
class MarepoOptions:
    """What a user may choose about mapping by marepo.

    regressor: file of the pose transformer; None for the shipped one. codes: take the coordinates from at most this
    many landmarks, instead of from a keyframe database, or from a head that is trained if the transformer is one as
    published. refine: refine the poses. fine_tune: train the pose transformer further on the mapping images.
    """

    regressor: str | None = option(None, "the pose transformer: a file from 'aceg import marepo', which takes the"
                                   " coordinates of a head that is trained for the scene, or from 'aceg pretrain"
                                   " marepo' (default: the shipped one)", metavar="FILE")
    codes: int | None = option(None, "scene coordinates from at most this many landmarks of the shipped regressor of"
                               " ace_g, instead of from a keyframe database or a head", metavar="N", minimum=1)
    refine: bool = option(False, "refine regressed poses on the correspondences, one local step without RANSAC")
    fine_tune: bool = option(False, "train the pose transformer further on the mapping images, two passes over them;"
                             " the map then keeps it")


@dataclass(frozen=True, kw_only=True)
class MarepoMapSettings:
    """Settings of a map of this method. coordinates: method whose regressor gives the scene coordinates, or DATABASE.
    patch_offset_px: as in maps of that method. refine: whether poses are refined."""

    coordinates: str
    patch_offset_px: float = 0.0
    refine: bool = False


def make_mapper(options: MappingOptions, method_options: MarepoOptions) -> Mapper:
    from aceg_ros.methods.marepo_mapper import MarepoMapper  # localizing must not load what mapping needs
    return MarepoMapper(options, method_options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> Localizer:
    from aceg_ros.methods.marepo_localizer import MarepoLocalizer
    if scene_map.method != SPEC.name:                       # a map of another method, which this one is asked to read
        scene_map = as_marepo_map(scene_map, refine=True)
    return MarepoLocalizer.from_map(scene_map, device=device, seed=seed)


def load_coordinates(scene_map: SceneMap, device: str) -> SceneCoordinateRegressor:
    """Return the regressor of a map's scene coordinates; the map may also be of the method that these come from.

    Raises UserError if it cannot be used.
    """
    method = scene_map.settings_as(MarepoMapSettings).coordinates if scene_map.method == SPEC.name \
        else scene_map.method
    if method not in _COORDINATES:
        raise UserError(f"The map takes its scene coordinates from method '{method}', which this version cannot: map"
                        " the scene again.")
    return _COORDINATES[method](scene_map, device)


def load_transformer(scene_map: SceneMap, device: str) -> PoseRegressor:
    """Return the pose transformer of a map, the fine-tuned one if it has one. Raises UserError if it has changed."""
    from aceg_ros.networks.pose_regressor import load_pose_regressor, with_weights
    reference = scene_map.network(ROLE)
    loaded = load_pose_regressor(reference.source, device)
    reference.check(loaded, role="pose regressor", restore="file")
    section = scene_map.sections[SECTION]
    tuned = {key.removeprefix(TUNED_PREFIX): value for key, value in section.items() if key.startswith(TUNED_PREFIX)}
    return with_weights(loaded, tuned) if tuned else loaded


def as_marepo_map(scene_map: SceneMap, regressor: PoseRegressor | None = None, *, refine: bool = False) -> SceneMap:
    """Make a map of this method from one of a method with scene coordinates.

    Args:
        scene_map: a map with a keyframe database, of ACE, or of ACE-G with codes.
        regressor: the pose transformer; None for the shipped one.
        refine: whether poses are refined.

    Raises:
        UserError: the map gives no scene coordinates that the pose transformer reads.
    """
    from aceg_ros.maps.header import NetworkReference
    regressor = regressor or load_shipped()
    settings = replace(_coordinate_settings(scene_map, reads_grids(regressor)), refine=refine)
    networks = {**scene_map.networks, ROLE: NetworkReference.from_network(regressor)}
    return replace(scene_map, method=SPEC.name, networks=networks, settings=asdict(settings),
                   sections={**scene_map.sections, SECTION: {"centre": _mean_camera_centre(scene_map)}})


def reads_grids(regressor: PoseRegressor) -> bool:
    """Return whether a pose transformer reads a point for each cell of a grid, as the published one does; ours reads
    any."""
    from aceg_ros.networks.pose_transformer import PoseTransformer
    return isinstance(regressor.net, PoseTransformer)


def _coordinate_settings(scene_map: SceneMap, grid: bool) -> MarepoMapSettings:
    """Return the settings for a map's scene coordinates, of each cell of a grid if asked for. Raises UserError if it
    has none."""
    has_database = DATABASE in scene_map.sections
    if has_database and not grid:
        return MarepoMapSettings(coordinates=DATABASE)
    if has_database or scene_map.method not in _COORDINATES:
        has = "a keyframe database" if has_database else f"method '{scene_map.method}'"
        others = "" if grid else " with a keyframe database,"
        raise UserError(f"A map of {has} has no scene coordinates for each cell: take one{others} of"
                        f" {' or '.join(_COORDINATES)} (the latter made with --codes).")
    settings = (scene_map.settings_as(ace_g.AceGMapSettings) if scene_map.method == ace_g.SPEC.name
                else scene_map.settings_as(ace.AceMapSettings))
    return MarepoMapSettings(coordinates=scene_map.method, patch_offset_px=settings.patch_offset_px)


def load_shipped(device: str = "cpu") -> PoseRegressor:
    """Return the shipped pose transformer."""
    from aceg_ros.networks.pose_regressor import load_pose_regressor
    return load_pose_regressor(SHIPPED, device)


def _mean_camera_centre(scene_map: SceneMap) -> Tensor:
    """Return the mean camera centre (3,) of a map's mapping images, which heads and codes are centred at."""
    import torch
    for section in ("head", "code"):
        if section in scene_map.sections and "mean" in scene_map.sections[section]:
            return scene_map.sections[section]["mean"].reshape(3).float().clone()
    if len(scene_map.trajectory) == 0:
        raise UserError("The map knows no mean position of its mapping cameras: map the scene again.")
    return torch.from_numpy(scene_map.trajectory[:, :3, 3].mean(0)).float()


SPEC = MethodSpec(
    name="marepo",
    summary="a pretrained network regresses the pose from scene coordinates",
    options=MarepoOptions,
    map_settings=MarepoMapSettings,
    make_mapper=make_mapper,
    make_localizer=make_localizer,
    after_growth=lambda scene_map, device, seed: scene_map,
    importers=(
        ImporterSpec(kind="marepo", description="the pose transformer of the marepo release",
                     function="aceg_ros.importers.marepo:import_regressor"),
        ImporterSpec(kind="marepo-map", description="a map of this package with scene coordinates, to be localized in"
                     " by marepo", inputs=("regressor",), function="aceg_ros.importers.marepo:import_map"),
    ),
)
