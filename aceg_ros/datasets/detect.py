# SPDX-License-Identifier: Apache-2.0
"""Opens a path as a `Scene`, with the first format that can read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from aceg_ros.datasets import ace, bag, colmap, seven_scenes, transforms_json, tum_rgbd
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.scene import Entry, Scene, SceneGroup
from aceg_ros.errors import UserError


class Format(Protocol):
    """The interface of a format's module."""

    NAME: str
    EXPECTED_FILES: str

    def can_read(self, path: Path) -> bool:
        """Return whether the path looks like this format, judging by file names alone."""

    def list_entries(self, path: Path) -> Sequence[Entry]:
        """List the frames in the order in which they were taken. Raises UserError if they cannot be listed."""


MAX_SUGGESTED_FROM = 20         # folders
FORMATS = cast(tuple[Format, ...], (ace, seven_scenes, tum_rgbd, colmap, transforms_json, bag))


def open_scene(path: Path | str, every: int = 1, bag_options: BagOptions | None = None) -> Scene:
    """Open a recording.

    Args:
        path: A folder or file of one of the known formats.
        every: Take every n-th frame only.
        bag_options: Topics, frames and times to read from a bag; None takes the only topics that fit.

    Returns:
        The scene; its frames are decoded when they are accessed.

    Raises:
        UserError: If the format is not recognised, or there are no frames.
    """
    path = Path(path)
    if every < 1:
        raise UserError(f"Every {every}th frame cannot be taken: give a number of at least 1.")
    if not path.exists():
        raise UserError(f"Scene {path} does not exist.")
    found = next((candidate for candidate in FORMATS if candidate.can_read(path)), None)
    if found is None:
        known = "; ".join(f"{candidate.EXPECTED_FILES} ({candidate.NAME})" for candidate in FORMATS)
        raise UserError(f"{path} is not a scene that can be read: expected {known}."
                        f"{_suggestion(path)}")
    if bag_options is not None and found is not bag:
        raise UserError(f"{path} is {found.NAME}, not a ROS bag: topics, frames and times are for bags.")
    entries = bag.list_entries(path, bag_options) if found is bag else found.list_entries(path)
    if not entries:
        raise UserError(f"Scene {path} ({found.NAME}) lists no frames.")
    name = "/".join(path.resolve().parts[-2:])      # two parts: the last alone is often just "mapping" or "query"
    return Scene(name, found.NAME, entries[::every])


def open_scenes(paths: Sequence[Path | str], every: int = 1, bag_options: BagOptions | None = None
                ) -> Scene | SceneGroup:
    """Open one or several recordings with poses in one map frame; arguments and errors as for `open_scene`."""
    scenes = [open_scene(path, every, bag_options) for path in paths]
    return scenes[0] if len(scenes) == 1 else SceneGroup(scenes)


def _suggestion(path: Path) -> str:
    """Return the question whether a folder in this one, or the one around it, was meant; empty if none can be read."""
    if not path.is_dir():
        return ""
    folders = [*sorted(entry for entry in path.iterdir() if entry.is_dir())[:MAX_SUGGESTED_FROM], path.resolve().parent]
    readable = [str(folder) for folder in folders if any(candidate.can_read(folder) for candidate in FORMATS)]
    return f" Did you mean {' or '.join(readable[:3])}?" if readable else ""
