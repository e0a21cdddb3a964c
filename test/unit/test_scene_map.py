"""The map file: what goes in comes out; damage, foreign files and other versions are refused with a sentence."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError
from aceg_ros.maps.scene_map import FORMAT_VERSION, MappingFigures, SceneMap


def small_map() -> SceneMap:
    trajectory = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    trajectory[:, 0, 3] = (0, 1, 2)
    return SceneMap("ace", "compact:0123", "compact", {"head.weight": torch.arange(12.0).reshape(3, 4).half()},
                    {"patch_offset_px": 0.5}, MappingFigures(frames=3, reprojection_px=2.5),
                    (Camera(width=640, height=480, fx=500.0, fy=501.0, cx=320.0, cy=240.0, model="plumb_bob",
                            distortion=(0.1, 0.0, 0.0, 0.0)),),
                    np.ones((5, 3), np.float32), np.full((5, 3), 7, np.uint8), trajectory)


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.map"
    size = small_map().save(path)
    assert size == path.stat().st_size
    found = SceneMap.load(path)
    assert (found.method, found.encoder, found.settings) == ("ace", "compact:0123", {"patch_offset_px": 0.5})
    assert torch.equal(found.tensors["head.weight"], small_map().tensors["head.weight"])
    assert found.figures == small_map().figures and found.cameras == small_map().cameras
    assert np.array_equal(found.cloud_rgb, small_map().cloud_rgb)
    assert np.array_equal(found.trajectory, small_map().trajectory)
    assert os.listdir(path.parent) == ["a.map"], "no temporary file may stay"


def test_missing(tmp_path):
    with pytest.raises(UserError, match="no map file .*aceg map"):
        SceneMap.load(tmp_path / "none.map")


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.map"
    small_map().save(path)
    content = path.read_bytes()
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="damaged|not a map"):
            SceneMap.load(path)
    for position in range(0, len(content), 61):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError):
            SceneMap.load(path)


def test_foreign_and_newer_files(tmp_path):
    path = tmp_path / "a.map"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not a map of aceg_ros"):
        SceneMap.load(path)
    small_map().save(path)
    with safe_open(str(path), framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    header = json.loads(metadata["aceg_ros"]) | {"version": FORMAT_VERSION + 1}
    save_file(tensors, path, metadata | {"aceg_ros": json.dumps(header)})
    with pytest.raises(UserError, match=f"version {FORMAT_VERSION + 1}.*reads version {FORMAT_VERSION}"):
        SceneMap.load(path)


def test_a_failed_save_leaves_the_old_map(tmp_path, monkeypatch):
    path = tmp_path / "a.map"
    small_map().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written.*No space left"):
        small_map().save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.map"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        small_map().save(tmp_path / "file" / "a.map")


def test_bounds_leave_out_stray_points():
    scene_map = small_map()
    cloud = np.random.default_rng(0).uniform(0, 1, (1000, 3)).astype(np.float32)
    cloud[0] = 1e4
    low, high = SceneMap("ace", "", "", {}, cloud_xyz=cloud, trajectory=scene_map.trajectory).bounds
    assert max(high) < 3 and min(low) >= 0


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    program = ("import sys; from pathlib import Path; from aceg_ros.utils.atomic_file import write_bytes\n"
               "while True:\n for b in (b'a', b'b'): write_bytes(Path(sys.argv[1]), b * 3_000_000)")
    rng = np.random.default_rng(0)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.3 + rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
