# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D: rgb.txt, groundtruth.txt and optionally depth.txt (16 bit, 5000 units per metre, registered to colour).

Poses are interpolated between motion-capture samples to the stamps of the colour images; each colour image gets the
depth image nearest in time. Intrinsics: camera.json, camera.yaml or camera.txt in the folder, otherwise the published
colour calibration that the folder name indicates (freiburg1, fr1, ...; images of freiburg3 are already undistorted).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_file import load_camera_file, scaled_camera
from aceg_ros.datasets.files import checked_pose, load_image, load_registered_depth, read_text
from aceg_ros.errors import UserError
from aceg_ros.geometry import interpolate_poses, pose_from_quaternion

NAME = "TUM RGB-D"
EXPECTED_FILES = "rgb.txt and groundtruth.txt"

DEPTH_UNITS_PER_M = 5000.0
MAX_POSE_GAP_S = 0.1        # between the two samples that a pose is interpolated from (sampled at 100 Hz)
MAX_DEPTH_OFFSET_S = 0.02   # between a colour and its depth image (both at 30 Hz)

FREIBURG = {
    "1": Camera(width=640, height=480, fx=517.306408, fy=516.469215, cx=318.643040, cy=255.313989, model="plumb_bob",
                distortion=(0.262383, -0.953104, -0.005358, 0.002628, 1.163314)),
    "2": Camera(width=640, height=480, fx=520.908620, fy=521.007327, cx=325.141442, cy=249.701764, model="plumb_bob",
                distortion=(0.231222, -0.784899, -0.003257, -0.000105, 0.917205)),
    "3": Camera(width=640, height=480, fx=535.4, fy=539.2, cx=320.1, cy=247.6),
}


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The samples of groundtruth.txt: ascending stamps_s (N,), rows (N, 7) of x y z qx qy qz qw."""

    file: Path
    stamps_s: np.ndarray
    rows: np.ndarray

    def pose_at(self, stamp_s: float) -> np.ndarray:
        after = int(np.searchsorted(self.stamps_s, stamp_s))
        if after < len(self.stamps_s) and self.stamps_s[after] == stamp_s:
            near = slice(after, after + 1)
        else:
            near = slice(max(after - 1, 0), after + 1)
        stamps_s = self.stamps_s[near]
        if not len(stamps_s) or not stamps_s[0] <= stamp_s <= stamps_s[-1] or np.ptp(stamps_s) > MAX_POSE_GAP_S:
            raise UserError(f"File {self.file} has no poses around the time {stamp_s:.6f}.")
        source = f"Pose at {stamp_s:.6f} in {self.file}"
        try:
            poses = np.array([pose_from_quaternion(row[:3], row[3:]) for row in self.rows[near]])
        except ValueError:
            raise UserError(f"{source} has a quaternion that is not finite or zero.") from None
        return checked_pose(interpolate_poses(stamp_s, stamps_s, poses), source)


@dataclass(frozen=True, kw_only=True)
class TumEntry:
    """One colour image. depth: the depth image nearest in time, None if none is near enough."""

    image: Path
    depth: Path | None
    stamp_s: float
    trajectory: Trajectory

    @property
    def name(self) -> str:
        return self.image.name

    def load(self) -> Frame:
        pose = self.trajectory.pose_at(self.stamp_s)
        image = load_image(self.image)
        height, width = image.shape[:2]
        camera = _camera(self.trajectory.file.parent, width, height)
        depth_m, problem = None, ""
        if self.depth is not None:
            depth_m, problem = load_registered_depth(self.depth, width, height, DEPTH_UNITS_PER_M)
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name,
                     depth_m=depth_m, depth_problem=problem)


def can_read(path: Path) -> bool:
    return (path / "rgb.txt").is_file() and (path / "groundtruth.txt").is_file()


def list_entries(path: Path) -> list[TumEntry]:
    trajectory = _read_trajectory(path / "groundtruth.txt")
    images = _read_list(path / "rgb.txt")
    depths = _read_list(path / "depth.txt") if (path / "depth.txt").is_file() else []
    return [TumEntry(image=image, depth=_nearest(depths, stamp_s), stamp_s=stamp_s, trajectory=trajectory)
            for stamp_s, image in images]


def _read_trajectory(file: Path) -> Trajectory:
    lines = _stamped_lines(file)
    rows = np.array([[_number(word) for word in [*words, *7 * ["nan"]][:7]] for _, words in lines]).reshape(-1, 7)
    return Trajectory(file=file, stamps_s=np.array([stamp_s for stamp_s, _ in lines]), rows=rows)


def _read_list(file: Path) -> list[tuple[float, Path]]:
    """Read a list file: (stamp, image) in time order."""
    return [(stamp_s, file.parent / " ".join(words)) for stamp_s, words in _stamped_lines(file)]


def _stamped_lines(file: Path) -> list[tuple[float, list[str]]]:
    """Read the stamp and the other words of each line, in time order."""
    lines = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        stamp_s = _number(words[0])
        if not np.isfinite(stamp_s) or len(words) < 2:
            raise UserError(f"Line {number} of {file} does not start with a time and a value: {line[:60]!r}.")
        lines.append((stamp_s, words[1:]))
    return sorted(lines, key=lambda line: line[0])


def _number(word: str) -> float:
    """Parse a number; NaN if it is damaged, so that only the frames near it are unusable."""
    try:
        return float(word)
    except ValueError:
        return float("nan")


def _nearest(depths: list[tuple[float, Path]], stamp_s: float) -> Path | None:
    after = bisect_left(depths, stamp_s, key=lambda pair: pair[0])
    near = depths[max(after - 1, 0):after + 1]
    offset_s, depth = min(((abs(other_s - stamp_s), depth) for other_s, depth in near), default=(np.inf, None))
    return depth if offset_s <= MAX_DEPTH_OFFSET_S else None


def _camera(folder: Path, width: int, height: int) -> Camera:
    for name in ("camera.json", "camera.yaml", "camera.txt"):
        if (folder / name).is_file():
            return load_camera_file(folder / name, width, height)
    for part in reversed(folder.resolve().parts):
        if match := re.search(r"(?:freiburg|(?<![a-z])fr)([123])", part.lower()):
            return scaled_camera(FREIBURG[match[1]], width, height, f"The freiburg{match[1]} calibration")
    raise UserError(f"The camera of {folder} is not known: give the folder a name with freiburg1, freiburg2 or "
                    "freiburg3, or put a camera.json, camera.yaml or camera.txt into it.")
