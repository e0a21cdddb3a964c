# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: each target takes one strange input and passes if the package reads it or raises UserError.

Anything else that is raised, and whatever takes longer than LONGEST_S, is a finding.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bag_writer import BagStyle, write_bag
from datasets_fixtures import (
    CAMERA,
    ColmapCamera,
    make_recording,
    write_ace,
    write_colmap,
    write_colmap_binary,
    write_colmap_text,
    write_transforms,
    write_tum,
)
from fuzz_inputs import FORMATS, camera_infos, changed_json, damaged, encoded_images, images, json_values
from hypothesis import strategies as st
from safetensors.torch import save_file

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import load_camera_file, open_scene
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.image_decoder import decode_depth, decode_image
from aceg_ros.errors import UserError
from aceg_ros.geometry import is_pose
from aceg_ros.maps.describe import describe
from aceg_ros.maps.header import header_metadata, open_map
from aceg_ros.maps.scene_map import SceneMap, display_sections
from aceg_ros.methods.registry import make_localizer

LONGEST_S = 30
FIXTURES = Path(__file__).resolve().parents[1] / "data" / "fixtures"


@dataclass(frozen=True, kw_only=True)
class Target:
    """inputs(folder): a strategy, with files of its own in the folder. check(folder, input): passes or raises."""

    inputs: Callable[[Path], st.SearchStrategy[Any]]
    check: Callable[[Path, Any], None]

    def run(self, folder: Path, value: Any) -> None:
        with _time_limit():
            try:
                self.check(folder, value)
            except UserError as error:
                assert str(error).strip(), "a rejection without a reason"


@contextmanager
def _time_limit() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise TimeoutError(f"longer than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- messages -------------------------------------------------------------------------------------------------------


def check_camera(camera: Camera) -> None:
    """Use a camera as the localizer does, if its images are small enough to make one."""
    assert camera.width > 0 and camera.height > 0 and np.isfinite(camera.K).all()
    if camera.width * camera.height <= 10_000:
        image = np.zeros((camera.height, camera.width, 3), np.uint8)
        rectified, _ = Frame(image=image, camera=camera).rectified()
        assert rectified.image.shape == image.shape and rectified.camera.is_pinhole


def check_camera_info(_: Path, message: SimpleNamespace) -> None:
    check_camera(camera_from_info(message, rectified=message.roi.do_rectify))


def check_image(_: Path, message: SimpleNamespace) -> None:
    image = decode_image(message)
    assert image.shape == (message.height, message.width, 3) and image.dtype == np.uint8 and image.flags.writeable


def check_depth(_: Path, message: SimpleNamespace) -> None:
    depth_m = decode_depth(message)
    assert depth_m.shape == (message.height, message.width) and np.isfinite(depth_m).all()


def compressed_images(_: Path) -> st.SearchStrategy[SimpleNamespace]:
    data = st.sampled_from(encoded_images()).flatmap(damaged) | st.binary(max_size=100)
    return st.builds(SimpleNamespace, format=FORMATS, data=data)


def check_compressed(_: Path, message: SimpleNamespace) -> None:
    image = decode_image(message)
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size


# --- maps -----------------------------------------------------------------------------------------------------------


def small_map(folder: Path) -> Path:
    path = folder / "good.map"
    trajectory = np.tile(np.eye(4), (3, 1, 1))
    SceneMap.load(FIXTURES / "format_1_ace_g.map").save(folder / "ace_g.map")
    SceneMap(method="ace", sections=display_sections(np.ones((5, 3)), np.zeros((5, 3)), trajectory),
             cameras=(CAMERA,), settings={"patch_offset_px": 0.5}).save(path)
    return path


def map_files(folder: Path) -> st.SearchStrategy[bytes]:
    path = small_map(folder)
    format_1 = (FIXTURES / "format_1_ace_g.map").read_bytes()
    return st.sampled_from([path.read_bytes(), (folder / "ace_g.map").read_bytes(), format_1]).flatmap(damaged)


def read_map(path: Path) -> SceneMap:
    """Read all that a map holds, as the node and `aceg info` do."""
    described = describe(path)
    assert all(isinstance(value, str) for value in described.values())
    scene_map = SceneMap.load(path)
    scene_map.verify()
    low, high = scene_map.bounds
    assert len(low) == len(high) == 3
    assert scene_map.cloud_xyz.shape[1:] == scene_map.cloud_rgb.shape[1:] == (3,)
    assert scene_map.trajectory.shape[1:] == (4, 4)
    return scene_map


def check_map(folder: Path, content: bytes) -> None:
    path = folder / "damaged.map"
    path.unlink(missing_ok=True)            # a map that is still open stays what it is
    path.write_bytes(content)
    read_map(path)


def map_headers(folder: Path) -> st.SearchStrategy[Any]:
    small_map(folder)
    header = SceneMap.load(folder / "ace_g.map")
    text = header_metadata(header, open_map(folder / "ace_g.map").checksums)["aceg_ros"]
    return changed_json(json.loads(text))


def check_map_header(folder: Path, content: Any) -> None:
    """A header that says strange things under a right checksum; a map that can be used localizes nothing in noise."""
    import hashlib

    good, path = SceneMap.load(folder / "ace_g.map"), folder / "strange.map"
    try:
        text = json.dumps(content)
    except ValueError:                      # an integer of more digits than Python prints
        return
    path.unlink(missing_ok=True)
    tensors = {f"{name}.{key}": value for name in good.sections for key, value in good.sections[name].items()}
    save_file(tensors, path, {"aceg_ros": text, "checksum": hashlib.sha256(text.encode()).hexdigest()})
    localizer = make_localizer(read_map(path), "cpu", 0)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    camera = Camera(width=160, height=120, fx=125.0, fy=125.0, cx=79.5, cy=59.5)
    assert localizer.localize(Frame(image=noise, camera=camera)).map_from_camera is None


# --- recordings -----------------------------------------------------------------------------------------------------


def check_scene(path: Path) -> None:
    for frame in open_scene(path):
        assert frame.image.dtype == np.uint8 and frame.image.shape == (frame.camera.height, frame.camera.width, 3)
        assert frame.map_from_camera is not None and is_pose(frame.map_from_camera) and np.isfinite(frame.stamp_s)
        check_camera(frame.camera)


def scene_target(write: Callable[[Path], object], *names: str) -> Target:
    """A scene of which one file, matching one of the names, is damaged."""

    def inputs(folder: Path) -> st.SearchStrategy[tuple[str, bytes]]:
        write(folder / "good")
        files = sorted(path.relative_to(folder / "good") for name in names for path in (folder / "good").glob(name))
        assert files
        return st.sampled_from(files).flatmap(
            lambda name: st.tuples(st.just(str(name)), damaged((folder / "good" / name).read_bytes())))

    def check(folder: Path, value: tuple[str, bytes]) -> None:
        name, content = value
        shutil.rmtree(folder / "bad", ignore_errors=True)
        shutil.copytree(folder / "good", folder / "bad", copy_function=os.link)
        (folder / "bad" / name).unlink()
        (folder / "bad" / name).write_bytes(content)
        check_scene(folder / "bad")

    return Target(inputs=inputs, check=check)


@cache
def recording():
    return make_recording(3)


def write_small_bag(storage: str, **style: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        frames = [Frame(image=image, camera=CAMERA, map_from_camera=pose, stamp_s=0.1 * index)
                  for index, (image, pose) in enumerate(zip(recording().images, recording().poses, strict=True))]
        if storage == "ros1":
            path.mkdir()
            path /= "one.bag"
        write_bag(path, frames, BagStyle(storage=storage, compressed=True, **style))

    return write


def check_transforms(folder: Path, content: Any) -> None:
    write_transforms_file(folder)
    try:
        (folder / "transforms.json").write_text(json.dumps(content), errors="surrogatepass")
    except ValueError:
        return
    check_scene(folder)


def write_transforms_file(folder: Path) -> Any:
    if not (folder / "images").exists():
        write_transforms(folder, recording(), {"fl_x": 60.0, "fl_y": 62.0, "cx": 31.0, "cy": 22.75, "w": 64, "h": 48,
                                               "k1": 0.01, "camera_angle_x": 1.0, "camera_model": "OPENCV"})
    return json.loads((folder / "transforms.json").read_text())


CAMERA_YAML = ("image_width: 64\nimage_height: 48\ndistortion_model: plumb_bob\ncamera_matrix:\n  rows: 3\n  cols: 3\n"
               "  data: [60, 0, 31, 0, 60, 23, 0, 0, 1]\ndistortion_coefficients:\n  data: [0.1, 0, 0, 0, 0]\n")
CAMERA_JSON = {"width": 64, "height": 48, "fx": 60.0, "fy": 60.0, "cx": 31.0, "cy": 23.0, "model": "plumb_bob",
               "distortion": [0.1, 0.0, 0.0, 0.0]}


def camera_files(_: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    as_json = st.tuples(st.just(".json"), changed_json(CAMERA_JSON) | json_values()).map(
        lambda pair: (pair[0], _dumped(pair[1])))
    texts = [(".yaml", CAMERA_YAML), (".json", json.dumps(CAMERA_JSON)), (".txt", "60 0 31\n0 60 23\n0 0 1\n")]
    return as_json | st.sampled_from(texts).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), damaged(pair[1].encode())))


def _dumped(content: Any) -> bytes:
    try:
        return json.dumps(content).encode(errors="surrogatepass")
    except ValueError:
        return b"1"


def check_camera_file(folder: Path, value: tuple[str, bytes]) -> None:
    suffix, content = value
    (folder / f"camera{suffix}").write_bytes(content)
    check_camera(load_camera_file(folder / f"camera{suffix}", 64, 48))


COLMAP_CAMERA = ColmapCamera(model_id=4, model="OPENCV", width=64, height=48,
                             parameters=(60.0, 62.0, 31.0, 22.75, 0.01, 0.0, 0.0, 0.0))

TARGETS = {
    "camera_info": Target(inputs=lambda _: camera_infos(), check=check_camera_info),
    "image": Target(inputs=lambda _: images(), check=check_image),
    "depth image": Target(inputs=lambda _: images(), check=check_depth),
    "compressed image": Target(inputs=compressed_images, check=check_compressed),
    "map file": Target(inputs=map_files, check=check_map),
    "map header": Target(inputs=map_headers, check=check_map_header),
    "bag mcap": scene_target(write_small_bag("mcap"), "*"),
    "bag sqlite3": scene_target(write_small_bag("sqlite3", poses="tf"), "*"),
    "bag ros1": scene_target(write_small_bag("ros1"), "*"),
    "transforms.json": Target(check=check_transforms,
                              inputs=lambda folder: changed_json(write_transforms_file(folder))),
    "transforms.json bytes": scene_target(write_transforms_file, "transforms.json"),
    "colmap text": scene_target(lambda path: write_colmap(path, recording(), COLMAP_CAMERA, write_colmap_text),
                                "sparse/0/*"),
    "colmap binary": scene_target(lambda path: write_colmap(path, recording(), COLMAP_CAMERA, write_colmap_binary),
                                  "sparse/0/*"),
    "ace folder": scene_target(lambda path: write_ace(path, recording(), CAMERA, depth=True), "*/*"),
    "tum rgb-d": scene_target(lambda path: write_tum(path, recording()), "*.txt"),
    "camera file": Target(inputs=camera_files, check=check_camera_file),
}
