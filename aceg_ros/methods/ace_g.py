"""ACE-G (Bruns et al., ICCV 2025): one frozen regressor for all places, and a code per place that it reads.

With the shipped regressor the code is made of landmarks, found by triangulation in seconds. With the published one
(`aceg import ace-g`) it is optimised by reprojection, as in the paper.
"""

from __future__ import annotations

from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Mapper, MappingOptions
from aceg_ros.methods.scene_coordinates import MOST_RELIABLE, Regress, RegressionLocalizer, localizer_of
from aceg_ros.networks.landmark_regressor import LandmarkCode, LandmarkRegressor, surest
from aceg_ros.networks.map_code_transformer import MapCode, Regressed, surer
from aceg_ros.networks.weights_file import load_regressor
from aceg_ros.utils.device import pick_device


def make_mapper(options: MappingOptions) -> Mapper:
    from aceg_ros.methods.ace_g_mapper import AceGMapper  # localizing must not load what mapping needs
    return AceGMapper(options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> RegressionLocalizer:
    device = pick_device(device)
    return localizer_of(scene_map, make_regression(scene_map, device), device, seed, MOST_RELIABLE[device])


def make_regression(scene_map: SceneMap, device: str) -> Regress:
    """The map's code with the regressor that it was made for. Raises UserError where that is another one now."""
    regressor = load_regressor(scene_map.settings.get("regressor_source", ""), device)
    wanted = scene_map.settings.get("regressor")
    if regressor.identity != wanted:
        raise UserError(f"The map was made with regressor {wanted}, but '{regressor.source}' is now"
                        f" {regressor.identity}: map the place again, or restore that regressor.")
    net, tensors = regressor.net, scene_map.tensors
    try:
        if isinstance(net, LandmarkRegressor):
            landmark_code = LandmarkCode(tensors["keys"].float(), tensors["points"]).to(device)
            return lambda features: _surest(net(features, landmark_code))
        map_code = MapCode(tensors["embeddings"].float(), tensors["mean"]).to(device)
        return lambda features: _sure(net(features, map_code))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"The map's code cannot be used ({error}): map the place again.") from None


def _sure(found: Regressed) -> tuple[Tensor, Tensor]:
    return found.coordinates.float(), surer(found.sigma.float())


def _surest(found: Regressed) -> tuple[Tensor, Tensor]:
    return found.coordinates, surest(found.sigma)


