# SPDX-License-Identifier: Apache-2.0
"""A folder of maps, such as the floors of a building: which maps, and where they are in one frame, if that is known.

maps.yaml in the folder lists them:

    maps:
      - {file: ground.map, transform: [0, 0, 0, 0, 0, 0, 1]}      # common_from_map: x y z qx qy qz qw
      - {file: first.map, transform: [0.2, -0.1, 3.4, 0, 0, 0, 1]}

With a transform for each, all poses are in one frame. Without any, they are in the frame of the map, which `frame`
names (by default the name of its file). Without maps.yaml, all *.map of the folder have a frame each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_from_quaternion
from aceg_ros.utils.yaml_list import read_yaml_list

INDEX = "maps.yaml"


@dataclass(frozen=True, kw_only=True)
class ListedMap:
    """A map of a folder. frame: that of its poses; empty if common_from_map (4, 4) puts them into the common one."""

    path: Path
    frame: str = ""
    common_from_map: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.path.stem


def list_maps(folder: Path) -> list[ListedMap]:
    """List the maps of a folder. Raises UserError if there are none, or maps.yaml is wrong."""
    index = folder / INDEX
    if not index.is_file():
        maps = [ListedMap(path=path, frame=path.stem) for path in sorted(folder.glob("*.map"))]
        if not maps:
            raise UserError(f"{folder} is a folder with neither {INDEX} nor maps (*.map).")
        return maps
    maps = [_listed(entry, folder) for entry in read_yaml_list(index, "maps")["maps"]]
    if len({each.name for each in maps}) < len(maps):
        raise UserError(f"{index} lists a map twice.")
    known = sum(each.common_from_map is not None for each in maps)
    if known not in (0, len(maps)):
        raise UserError(f"{index} has a transform for {known} of {len(maps)} maps: give one for each, or none and a"
                        " frame for each.")
    return maps


def _listed(entry: Any, folder: Path) -> ListedMap:
    if not isinstance(entry, dict) or "file" not in entry or not set(entry) <= {"file", "frame", "transform"}:
        raise UserError(f"{folder / INDEX}: {entry} is not a mapping with file, and perhaps frame or transform.")
    path = folder / str(entry["file"])
    if "transform" not in entry:
        return ListedMap(path=path, frame=str(entry.get("frame") or path.stem))
    try:
        values = np.array(entry["transform"], np.float64)
        if values.shape != (7,) or not np.isfinite(values).all():
            raise ValueError("it is not seven numbers")
        pose = pose_from_quaternion(values[:3], values[3:])
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / INDEX}: the transform of {path.name} must be x y z qx qy qz qw ({error})."
                        ) from None
    return ListedMap(path=path, common_from_map=pose)
