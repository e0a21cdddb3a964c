"""The two protocols that every method implements, and the options that all of them take.

Loads neither torch nor a method: the command line and the registry read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from aceg_ros.camera import Frame
    from aceg_ros.estimate import PoseEstimate
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.maps.scene_map import SceneMap


@dataclass(frozen=True, kw_only=True)
class MappingOptions:
    """What a user may choose about a mapping run, whatever the method, besides its budget (`mapping.budget`).

    encoder: a shipped one or a file. use_depth: learn from the depth images of the frames as well.
    """

    encoder: str = "compact"
    seed: int = 0
    device: str = "auto"
    use_depth: bool = False


class Mapper(Protocol):
    """Builds a map from posed frames."""

    def add(self, frame: Frame) -> None:
        """Take one posed frame. Raises UserError if it cannot be used."""

    def build(self, budget: MappingBudget) -> SceneMap:
        """Return the map within the budget; when the budget says stop, the best so far, marked incomplete.

        Raises UserError if the frames make no map.
        """


class Localizer(Protocol):
    """Estimates the pose of a camera in the map from one image."""

    def localize(self, frame: Frame, prior: np.ndarray | None = None) -> PoseEstimate:
        """Return the pose of the camera, or a rejection with its reason. Never raises on bad images or cameras.

        prior: map_from_camera (4, 4), as far as the caller knows it; a method that needs none ignores it.
        """
