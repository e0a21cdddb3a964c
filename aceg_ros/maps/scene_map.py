# SPDX-License-Identifier: Apache-2.0
"""`SceneMap`: the result of a mapping run, one safetensors file.

The metadata contain a header (JSON, see `maps.header`), with checksums of itself and of each section. A section is a
group of tensors, named "section.key" in the file: "head", "code" or "landmarks" of the method, and "cloud" and
"trajectory" for display.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.maps.header import Bounds, MapHeader, header_metadata, open_map
from aceg_ros.maps.keyframe_index import verify_all
from aceg_ros.maps.migrate import sections_of_format_1
from aceg_ros.maps.sections import BLOCK_CHECKSUMS, LazySections, section_checksum
from aceg_ros.utils.atomic_file import atomic_replacement

MAX_CLOUD_POINTS = 50_000


@dataclass(frozen=True, kw_only=True)
class SceneMap(MapHeader):
    """A map of one scene. sections: tensors by section and key; those of a loaded map are read from the file, which
    stays open, when they are first accessed."""

    sections: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def cloud_xyz(self) -> np.ndarray:
        """Points (N, 3) float32 of the scene in the map frame, metres."""
        return self._array("cloud", "xyz", np.zeros((0, 3), np.float32))

    @property
    def cloud_rgb(self) -> np.ndarray:
        """Their colours (N, 3) uint8."""
        return self._array("cloud", "rgb", np.zeros((0, 3), np.uint8))

    @property
    def trajectory(self) -> np.ndarray:
        """map_from_camera (F, 4, 4) float32 of the mapping frames."""
        return self._array("trajectory", "map_from_camera", np.zeros((0, 4, 4), np.float32))

    @property
    def bounds(self) -> Bounds:
        """Lower and upper corner (x, y, z) of trajectory and cloud, without the outer 1 % of points on each side."""
        if self.stored_bounds is not None:
            return self.stored_bounds
        points = np.concatenate([self.trajectory[:, :3, 3], self.cloud_xyz])
        if len(points) == 0:
            return [0.0] * 3, [0.0] * 3
        low, high = np.percentile(points, 1, axis=0), np.percentile(points, 99, axis=0)
        return low.tolist(), high.tolist()

    def verify(self) -> None:
        """Read every section and compare it with its checksum. Raises UserError, naming the first damaged one."""
        for name in self.sections:
            if BLOCK_CHECKSUMS in self.sections[name]:
                verify_all(self.sections[name])

    def save(self, path: Path | str) -> int:
        """Write the map atomically. Returns its size in bytes.

        Raises UserError if the file cannot be written.
        """
        path = Path(path)
        sections = {name: {key: value.detach().cpu().contiguous() for key, value in section.items()}
                    for name, section in self.sections.items()}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        header = replace(self, created=self.created or now, stored_bounds=self.bounds)
        metadata = header_metadata(header, {name: section_checksum(section) for name, section in sections.items()})
        tensors = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
        try:
            with atomic_replacement(path) as temporary:
                save_file(_without_shared_memory(tensors), temporary, metadata)
                size = temporary.stat().st_size
        except OSError as error:
            raise UserError(f"The map cannot be written to {path}: {error.strerror or error}.") from None
        return size

    @classmethod
    def load(cls, path: Path | str) -> SceneMap:
        """Open a map and verify its header; sections are read and verified when they are first accessed.

        Raises UserError if the file is missing, damaged, not a map or of a newer format.
        """
        file = open_map(path, "pt")
        sections = sections_of_format_1(file) if file.version == 1 else LazySections(file)
        return cls(**vars(file.header), sections=sections)

    def _array(self, section: str, key: str, absent: np.ndarray) -> np.ndarray:
        return self.sections[section][key].numpy() if section in self.sections else absent


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with others (landmarks may also be the cloud), which safetensors rejects."""
    result: dict[str, Tensor] = {}
    taken: list[tuple[int, int]] = []
    for key, tensor in tensors.items():
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        result[key] = tensor.clone() if any(start < last and first < end for first, last in taken) else tensor
        taken.append((start, end))
    return result


def display_sections(cloud_xyz: np.ndarray, cloud_rgb: np.ndarray, trajectory: np.ndarray,
                     ) -> dict[str, dict[str, Tensor]]:
    """Make the sections "cloud" and "trajectory" from points (N, 3), colours (N, 3) uint8 and poses (F, 4, 4)."""
    xyz, rgb, poses = (torch.from_numpy(np.ascontiguousarray(array, kind)) for array, kind in
                       ((cloud_xyz, np.float32), (cloud_rgb, np.uint8), (trajectory, np.float32)))
    return {"cloud": {"xyz": xyz, "rgb": rgb}, "trajectory": {"map_from_camera": poses}}


def check_writable(path: Path | str) -> None:
    """Raise UserError if a file cannot be written, so that this is known before the work."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file name, such as {path / 'scene.map'}.")
