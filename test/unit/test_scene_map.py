# SPDX-License-Identifier: Apache-2.0
"""The map file: what goes in comes out; sections are read when asked for; damage, foreign files and other versions are
rejected with a sentence."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aceg_ros.camera import Camera
from aceg_ros.cli import main
from aceg_ros.errors import UserError
from aceg_ros.maps.describe import describe
from aceg_ros.maps.header import FORMAT_VERSION, MappingStatistics, NetworkReference
from aceg_ros.maps.scene_map import SceneMap, display_sections

CAMERA = Camera(width=640, height=480, fx=500.0, fy=501.0, cx=320.0, cy=240.0, model="plumb_bob",
                distortion=(0.1, 0.0, 0.0, 0.0))


def small_map() -> SceneMap:
    trajectory = np.tile(np.eye(4), (3, 1, 1))
    trajectory[:, 0, 3] = (0, 1, 2)
    shown = display_sections(np.ones((5, 3)), np.full((5, 3), 7, np.uint8), trajectory)
    return SceneMap(method="ace", networks={"encoder": NetworkReference(source="compact", identity="compact:0123")},
                    settings={"patch_offset_px": 0.5}, statistics=MappingStatistics(frames=3, reprojection_px=2.5),
                    cameras=(CAMERA,), sections={"head": {"weight": torch.arange(12.0).reshape(3, 4).half()}, **shown},
                    covariance_scale=1.5)


def flip(path: Path, pattern: bytes) -> None:
    """Change one bit of a file, at the only position that holds these bytes."""
    content = path.read_bytes()
    assert content.count(pattern) == 1
    position = content.index(pattern)
    path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1:])


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.map"
    size = small_map().save(path)
    assert size == path.stat().st_size
    found, saved = SceneMap.load(path), small_map()
    assert (found.method, found.networks, found.settings) == ("ace", saved.networks, {"patch_offset_px": 0.5})
    assert torch.equal(found.sections["head"]["weight"], saved.sections["head"]["weight"])
    assert found.statistics == saved.statistics and found.cameras == saved.cameras
    assert found.covariance_scale == 1.5 and found.created
    assert np.array_equal(found.cloud_xyz, saved.cloud_xyz) and np.array_equal(found.cloud_rgb, saved.cloud_rgb)
    assert np.array_equal(found.trajectory, saved.trajectory)
    assert set(found.sections) == {"head", "cloud", "trajectory"} and "code" not in found.sections
    assert os.listdir(path.parent) == ["a.map"], "no temporary file may stay"
    found.save(path)                                                  # over the file that it is still read from
    assert SceneMap.load(path).created == found.created


def test_a_map_without_training_error_is_standard_json(tmp_path):
    SceneMap(method="ace").save(tmp_path / "a.map")
    with safe_open(str(tmp_path / "a.map"), framework="pt") as file:
        json.loads(file.metadata()["aceg_ros"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert np.isnan(SceneMap.load(tmp_path / "a.map").statistics.reprojection_px)


def test_missing(tmp_path):
    with pytest.raises(UserError, match="no map file .*aceg map"):
        SceneMap.load(tmp_path / "none.map")
    with pytest.raises(UserError, match="is a folder, not a map file"):
        SceneMap.load(tmp_path)


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
            SceneMap.load(path).verify()


def test_a_damaged_section_is_found_when_it_is_read_and_by_verify(tmp_path, capsys):
    path = tmp_path / "a.map"
    small_map().save(path)
    assert main(["info", "--verify", str(path)]) == 0 and "verified" in capsys.readouterr().out
    flip(path, bytes([7] * 15))                                       # the colours of the cloud
    found = SceneMap.load(path)
    assert found.sections["head"]["weight"].shape == (3, 4) and len(found.trajectory) == 3
    with pytest.raises(UserError, match=f"Section 'cloud' of map {path} is damaged.*map the scene again"):
        _ = found.cloud_xyz
    with pytest.raises(UserError, match="Section 'cloud'"):
        found.verify()
    assert main(["info", str(path)]) == 0
    assert main(["info", "--verify", str(path)]) == 2 and "Section 'cloud'" in capsys.readouterr().err


def test_a_damaged_header_is_found_at_once(tmp_path):
    path = tmp_path / "a.map"
    small_map().save(path)
    flip(path, b"compact:0123")
    for read in (SceneMap.load, describe):
        with pytest.raises(UserError, match="header of map .* is damaged"):
            read(path)


def test_a_file_that_is_replaced_or_overwritten_does_not_mix(tmp_path):
    path = tmp_path / "a.map"
    small_map().save(path)
    found = SceneMap.load(path)
    head = found.sections["head"]["weight"]
    SceneMap(method="ace", sections={"head": {"weight": torch.zeros(3, 4).half()}}).save(path)
    assert np.array_equal(found.cloud_xyz, small_map().cloud_xyz), "read from the old file"
    small_map().save(path)
    found = SceneMap.load(path)
    head = found.sections["head"]["weight"]
    path.write_bytes(b"x" * path.stat().st_size)                      # as `cp` does
    assert torch.equal(head, small_map().sections["head"]["weight"])
    with pytest.raises(UserError, match="Section 'cloud'"):
        _ = found.cloud_xyz


def test_a_large_map_is_described_and_opened_without_reading_it(tmp_path):
    """200 MB: what is resident does not grow by more than 10 MB, and describing loads no torch."""
    path = tmp_path / "large.map"
    SceneMap(method="ace", sections={"keyframes": {"descriptors": torch.zeros(50_000_000)}}).save(path)
    program = ("import sys, resource\n"
               "from aceg_ros.maps.describe import describe\n"
               "from aceg_ros.maps.header import open_map\n"
               "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
               "before = peak()\n"
               "assert '50,000,000 numbers' in describe(sys.argv[1])['holds']\n"
               "assert 'torch' not in sys.modules\n"
               "assert peak() - before < 10_000, peak() - before\n"
               "from aceg_ros.maps.scene_map import SceneMap\n"
               "before = peak()\n"
               "scene_map = SceneMap.load(sys.argv[1])\n"
               "assert peak() - before < 10_000, peak() - before\n"
               "scene_map.verify()\n"
               "assert scene_map.sections['keyframes']['descriptors'].shape == (50_000_000,)\n")
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


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
    with pytest.raises(UserError, match=f"version {FORMAT_VERSION + 1}.*reads versions 1 to {FORMAT_VERSION}"):
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


def test_bounds_leave_out_stray_points_and_are_stored(tmp_path):
    cloud = np.random.default_rng(0).uniform(0, 1, (1000, 3))
    cloud[0] = 1e4
    shown = display_sections(cloud, np.zeros((1000, 3), np.uint8), small_map().trajectory)
    scene_map = SceneMap(method="ace", sections=shown)
    low, high = scene_map.bounds
    assert max(high) < 3 and min(low) >= 0
    scene_map.save(tmp_path / "a.map")
    assert SceneMap.load(tmp_path / "a.map").bounds == (low, high)


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int
    offset_px: float = 0.0
    name: str | None = None
    scales: tuple[float, ...] = ()


def test_settings_are_typed(tmp_path):
    def stored(**settings) -> SceneMap:
        SceneMap(method="ace", settings=settings).save(tmp_path / "a.map")
        return SceneMap.load(tmp_path / "a.map")

    assert stored(count=3).settings_as(Settings) == Settings(count=3)
    assert stored(count=3, offset_px=1, name="a", scales=[1, 2.5]).settings_as(Settings) == \
        Settings(count=3, offset_px=1.0, name="a", scales=(1.0, 2.5))
    for settings, problem in (({}, "missing: count"), ({"count": 3, "colour": 1}, "unknown: colour"),
                              ({"count": 3.5}, "count = 3.5 is not of type"), ({"count": True}, "count = True"),
                              ({"count": 3, "name": 4}, "name = 4"), ({"count": 3, "scales": ["a"]}, "scales")):
        with pytest.raises(UserError, match=f"settings do not fit .*{problem}.*map the scene again"):
            stored(**settings).settings_as(Settings)


def test_sections_may_share_memory(tmp_path):
    points = torch.rand(50, 3)
    shown = display_sections(points.numpy(), np.zeros((50, 3), np.uint8), np.eye(4)[None])
    scene_map = SceneMap(method="ace_g", sections={"landmarks": {"points": points, "some": points[10:20]}, **shown})
    scene_map.save(tmp_path / "shared.map")
    found = SceneMap.load(tmp_path / "shared.map").sections
    assert torch.equal(found["landmarks"]["points"], points) and torch.equal(found["cloud"]["xyz"], points)
    assert torch.equal(found["landmarks"]["some"], points[10:20])
