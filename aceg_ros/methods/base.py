"""The two protocols every method implements, and the registry that finds them by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate
from aceg_ros.maps.scene_map import SceneMap

if TYPE_CHECKING:
    from aceg_ros.mapping.budget import MappingBudget  # localizing must not load what mapping needs


@dataclass(frozen=True, kw_only=True)
class MappingOptions:
    """What a user may choose about a mapping run, besides its budget (`mapping.budget`).

    triangulate: begin with depths from matched patches (`mapping.triangulation`); False trains by reprojection alone,
    as ACE was published. Of method ace_g: regressor, a shipped one or a file; codes, how many a place has (None: as
    many as the method finds right).
    """

    encoder: str = "compact"
    seed: int = 0
    device: str = "auto"
    use_depth: bool = False
    triangulate: bool = True
    regressor: str = "ace_g"
    codes: int | None = None


class Mapper(Protocol):
    """Builds a map from posed frames."""

    def add(self, frame: Frame) -> None:
        """Take one posed frame. Raises UserError where it cannot be used."""

    def build(self, budget: MappingBudget) -> SceneMap:
        """Return the map within the budget; when the budget says stop, the best so far, marked incomplete.

        Raises UserError if the frames make no map.
        """


class Localizer(Protocol):
    """Answers where a picture was taken."""

    def localize(self, frame: Frame) -> PoseEstimate:
        """Never raises on bad pictures or cameras: they are refusals."""


_MODULES = {"ace": "aceg_ros.methods.ace", "ace_g": "aceg_ros.methods.ace_g"}


def default_method(options: MappingOptions) -> str:
    """ace_g, where the shipped regressor can read the encoder and landmarks may be triangulated; else ace."""
    return "ace_g" if options.encoder == "compact" and options.triangulate else "ace"


def make_mapper(method: str, options: MappingOptions) -> Mapper:
    return _module(method).make_mapper(options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> Localizer:
    return _module(scene_map.method).make_localizer(scene_map, device, seed)


def check_method(method: str) -> None:
    """Raises UserError for a method that this version does not have."""
    if method not in _MODULES:
        raise UserError(f"Unknown method '{method}': this version has {', '.join(_MODULES)}.")


def _module(method: str):
    check_method(method)
    return import_module(_MODULES[method])
