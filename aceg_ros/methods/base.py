# SPDX-License-Identifier: Apache-2.0
"""The two protocols that every method implements, and the options that all of them have.

This module loads neither torch nor a method, so that the command line starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from aceg_ros.camera import Frame
    from aceg_ros.estimate import PoseEstimate, PriorPose
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.maps.scene_map import SceneMap


@dataclass(frozen=True, kw_only=True)
class MappingOptions:
    """Options of a mapping run that every method has. Its budget is in `mapping.budget`.

    encoder: a shipped one or a file; None: the one that suits the method best. use_depth: use the depth images of
    the frames as well. trust_poses: do not check whether the poses agree with the images.
    """

    encoder: str | None = None
    seed: int = 0
    device: str = "auto"
    use_depth: bool = False
    trust_poses: bool = False


class Mapper(Protocol):
    """Builds a map from posed frames."""

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if it cannot be used."""

    def build(self, budget: MappingBudget) -> SceneMap:
        """Build the map within the budget; if the user stops it, the best map so far, marked incomplete.

        Raises UserError if no map can be built from the frames.
        """


class Localizer(Protocol):
    """Estimates the pose of a camera in the map from one image."""

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera, or reject the image with a reason. Never raises on bad images or cameras.

        prior: where the camera probably is, if the caller knows; methods may ignore it. A wrong one must not make a
        wrong pose more likely.
        """


@runtime_checkable
class StreamLocalizer(Localizer, Protocol):
    """A localizer whose images may take longer than the next one takes to come."""

    def for_stream(self) -> Localizer:
        """Return a localizer for the images of one stream, in their order: what would make the images after one late
        is spread over them. What it returns for an image may depend on those before."""


@runtime_checkable
class CompiledLocalizer(Localizer, Protocol):
    """A localizer with functions that are compiled, or read, when they are first used, which takes a second or more."""

    def warm_up(self) -> None:
        """Use all of them."""
