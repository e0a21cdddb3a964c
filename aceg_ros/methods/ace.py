"""ACE (Brachmann et al., CVPR 2023): a frozen encoder, and a small head per scene that is trained by reprojection."""

from __future__ import annotations

from aceg_ros.errors import UserError
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Mapper, MappingOptions
from aceg_ros.methods.scene_coordinates import MOST_RELIABLE, Regress, RegressionLocalizer, localizer_of
from aceg_ros.networks.ace_head import head_from_state
from aceg_ros.utils.device import pick_device


def make_mapper(options: MappingOptions) -> Mapper:
    from aceg_ros.methods.ace_mapper import AceMapper  # localizing must not load what mapping needs
    return AceMapper(options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> RegressionLocalizer:
    device = pick_device(device)
    return localizer_of(scene_map, make_regression(scene_map, device), device, seed, MOST_RELIABLE[device])


def make_regression(scene_map: SceneMap, device: str) -> Regress:
    """The map's head. Raises UserError where it cannot be used."""
    try:
        state = {key.removeprefix("head."): value for key, value in scene_map.tensors.items()}
        head = head_from_state(state).eval().requires_grad_(False).to(device)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"The map's head cannot be used ({error}): map the place again.") from None
    return lambda features: (head(features), None)
