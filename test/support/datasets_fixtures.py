# SPDX-License-Identifier: Apache-2.0
"""Writes one small recording, known exactly, in every format that a reader reads."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import Scene
from aceg_ros.geometry import invert, look_at, rotation_to_quaternion

CAMERA = Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25)       # of images of that size


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What every written scene holds: distinct images (N, H, W, 3), poses (N, 4, 4), depths in millimetres."""

    images: np.ndarray
    poses: np.ndarray
    depths_mm: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.images.shape[2], self.images.shape[1]


def make_recording(count: int = 12, width: int = 64, height: int = 48, seed: int = 0) -> Recording:
    rng = np.random.default_rng(seed)
    poses = np.array([look_at(rng.uniform(-2, 2, 3), rng.uniform(3, 6, 3)) for _ in range(count)])
    depths_mm = rng.integers(500, 6000, (count, height, width)).astype(np.uint16)
    depths_mm[:, 0, 0], depths_mm[:, 0, 1] = 0, 65535       # both stand for "unknown"
    return Recording(images=rng.integers(0, 256, (count, height, width, 3), np.uint8), poses=poses, depths_mm=depths_mm)


def assert_is_recording(scene: Scene, recording: Recording) -> list[Frame]:
    """Check that the scene has exactly the images and poses that were written, in order; returns its frames."""
    frames = list(scene)
    assert not scene.skipped
    assert len(scene) == len(frames) == len(recording)
    for frame, image, pose in zip(frames, recording.images, recording.poses, strict=True):
        np.testing.assert_array_equal(frame.image, image)
        np.testing.assert_allclose(frame.map_from_camera, pose, atol=1e-12)
    assert np.all(np.diff([frame.stamp_s for frame in frames]) > 0)
    return frames


def save_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix, fmt="%.17g")


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def write_ace(path: Path, recording: Recording, camera: Camera, depth: bool = False) -> None:
    for index, (image, pose) in enumerate(zip(recording.images, recording.poses, strict=True)):
        save_png(path / "rgb" / f"{index}.png", image)      # not zero-padded: 10 must come after 9
        save_matrix(path / "poses" / f"{index}.txt", pose)
        save_matrix(path / "calibration" / f"{index}.txt", camera.K)
        if depth:
            save_png(path / "depth" / f"{index}.png", recording.depths_mm[index])


def write_seven_scenes(path: Path, recording: Recording) -> None:
    """One sequence folder."""
    for index, (image, pose) in enumerate(zip(recording.images, recording.poses, strict=True)):
        save_png(path / f"frame-{index:06d}.color.png", image)
        save_png(path / f"frame-{index:06d}.depth.png", recording.depths_mm[index])
        save_matrix(path / f"frame-{index:06d}.pose.txt", pose)


def write_tum(path: Path, recording: Recording, start_s: float = 1305031910.25) -> np.ndarray:
    """Returns the stamps. Poses are sampled exactly at the images and, so that all lie in time, 10 ms around them."""
    stamps_s = start_s + 0.125 * np.arange(len(recording))  # exact in binary
    rgb, depth, truth = (["# a comment\n"] for _ in range(3))
    for index, (stamp_s, pose) in enumerate(zip(stamps_s, recording.poses, strict=True)):
        save_png(path / "rgb" / f"{stamp_s:.6f}.png", recording.images[index])
        save_png(path / "depth" / f"{stamp_s:.6f}.png", recording.depths_mm[index])
        rgb.append(f"{stamp_s:.6f} rgb/{stamp_s:.6f}.png\n")
        depth.append(f"{stamp_s + 0.015:.6f} depth/{stamp_s:.6f}.png\n")
        truth.append(tum_line(stamp_s, pose))
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", truth)):
        save_text(path / f"{name}.txt", "".join(lines))
    return stamps_s


def tum_line(stamp_s: float, pose: np.ndarray) -> str:
    numbers = (*pose[:3, 3], *rotation_to_quaternion(pose[:3, :3]))
    return f"{stamp_s:.6f} " + " ".join(f"{number:.17g}" for number in numbers) + "\n"


@dataclass(frozen=True, kw_only=True)
class ColmapCamera:
    """A camera as COLMAP stores it: its own parameters, first pixel centre at (0.5, 0.5)."""

    model_id: int
    model: str
    width: int
    height: int
    parameters: Sequence[float]


def colmap_names(recording: Recording) -> list[str]:
    return [f"walk 1/{index}.png" for index in range(len(recording))]      # folder and space, not zero-padded


def write_colmap_text(model: Path, recording: Recording, camera: ColmapCamera) -> None:
    parameters = " ".join(f"{value:.17g}" for value in camera.parameters)
    save_text(model / "cameras.txt", f"# cameras\n7 {camera.model} {camera.width} {camera.height} {parameters}\n")
    lines = ["# images\n", "# two lines each\n"]
    for index, (quaternion_wxyz, translation) in enumerate(_colmap_poses(recording)):
        numbers = " ".join(f"{value:.17g}" for value in (*quaternion_wxyz, *translation))
        lines.append(f"{index + 1} {numbers} 7 {colmap_names(recording)[index]}\n")
        lines.append("" if index % 2 else "12.5 30.25 -1 40.0 2.0 17")      # images without points exist
        lines.append("\n")
    save_text(model / "images.txt", "".join(lines))


def write_colmap_binary(model: Path, recording: Recording, camera: ColmapCamera) -> None:
    model.mkdir(parents=True, exist_ok=True)
    parameters = struct.pack(f"<{len(camera.parameters)}d", *camera.parameters)
    (model / "cameras.bin").write_bytes(
        struct.pack("<QiiQQ", 1, 7, camera.model_id, camera.width, camera.height) + parameters)
    data = [struct.pack("<Q", len(recording))]
    for index, (quaternion_wxyz, translation) in enumerate(_colmap_poses(recording)):
        data.append(struct.pack("<i7di", index + 1, *quaternion_wxyz, *translation, 7))
        data.append(colmap_names(recording)[index].encode() + b"\0")
        points = [] if index % 2 else [(12.5, 30.25, -1), (40.0, 2.0, 17)]
        data.append(struct.pack("<Q", len(points)) + b"".join(struct.pack("<ddq", *point) for point in points))
    (model / "images.bin").write_bytes(b"".join(data))


def write_colmap(path: Path, recording: Recording, camera: ColmapCamera,
                 write_model: Callable[[Path, Recording, ColmapCamera], None], model: str = "sparse/0") -> None:
    write_model(path / model, recording, camera)
    for name, image in zip(colmap_names(recording), recording.images, strict=True):
        save_png(path / "images" / name, image)


def _colmap_poses(recording: Recording) -> list[tuple[np.ndarray, np.ndarray]]:
    """(quaternion w x y z, translation) of camera_from_world."""
    poses = invert(recording.poses)
    return [(rotation_to_quaternion(pose[:3, :3])[[3, 0, 1, 2]], pose[:3, 3]) for pose in poses]


def write_transforms(path: Path, recording: Recording, intrinsics: dict, suffix_in_json: bool = True) -> None:
    frames = []
    for index, (image, pose) in enumerate(zip(recording.images, recording.poses, strict=True)):
        save_png(path / "images" / f"{index}.png", image)
        right, down, forward, position = pose.T
        opengl = np.column_stack([right, -down, -forward, position])       # OpenGL: y up, z backward
        frames.append({"file_path": f"./images/{index}" + (".png" if suffix_in_json else ""),
                       "transform_matrix": opengl.tolist()})
    save_text(path / "transforms.json", json.dumps({**intrinsics, "frames": frames[::-1]}))     # order must not matter
