"""Mapping for marepo: builds the map that its scene coordinates come from, with the mapper of that method."""

from __future__ import annotations

from aceg_ros.camera import Frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods import ace, ace_g
from aceg_ros.methods.base import Mapper, MappingOptions
from aceg_ros.methods.marepo import MarepoOptions, as_marepo_map, load_shipped
from aceg_ros.networks.pose_regressor import load_pose_regressor
from aceg_ros.utils.device import pick_device


class MarepoMapper:
    """Passes posed frames on to the mapper of the scene coordinates, and adds the pose transformer to its map."""

    def __init__(self, options: MappingOptions, method_options: MarepoOptions):
        self._options, self._method_options = options, method_options
        device = pick_device(options.device)
        source = method_options.regressor
        self._regressor = load_shipped(device) if source is None else load_pose_regressor(source, device)
        self._coordinates = _make_mapper(options, method_options)

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self._coordinates.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Build the map of the scene coordinates within the budget."""
        return as_marepo_map(self._coordinates.build(budget), self._regressor, refine=self._method_options.refine)


def _make_mapper(options: MappingOptions, method_options: MarepoOptions) -> Mapper:
    if method_options.codes is None:
        return ace.SPEC.make_mapper(options, ace.AceOptions())
    return ace_g.SPEC.make_mapper(options, ace_g.AceGOptions(codes=method_options.codes))
