# SPDX-License-Identifier: Apache-2.0
"""Maps of format 1, written by the first release (test/data/fixtures), are still read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aceg_ros.cli import main
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.maps.header import NetworkReference, open_map
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.ace import AceMapSettings
from aceg_ros.methods.ace_g import AceGMapSettings
from aceg_ros.methods.registry import make_localizer
from aceg_ros.synthetic.demo_room import demo_world, query_path
from aceg_ros.synthetic.render import EVENING

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
ENCODER = NetworkReference(source="compact", identity="compact:da5b226bce111657")
REGRESSOR = NetworkReference(source="ace_g", identity="ace-g-landmarks:78016a5526c349b1")


def test_a_map_of_ace_g_means_the_same():
    found = SceneMap.load(FIXTURES / "format_1_ace_g.map")
    assert (found.method, found.created) == ("ace_g", "2026-11-26T12:00:00+00:00")
    assert found.networks == {"encoder": ENCODER, "regressor": REGRESSOR}
    assert found.settings_as(AceGMapSettings) == AceGMapSettings() and found.covariance_scale == 1.75
    assert (found.statistics.frames, found.statistics.patches, found.statistics.device) == (48, 57749, "cpu")
    assert set(found.sections) == {"landmarks", "cloud", "trajectory"}
    assert {key: (value.dtype, value.shape) for key, value in found.sections["landmarks"].items()} == {
        "keys": (torch.int8, (900, 128)), "points": (torch.float32, (900, 3))}
    assert found.cloud_xyz.shape == found.cloud_rgb.shape == (150, 3) and found.trajectory.shape == (48, 4, 4)


def test_a_map_of_ace_means_the_same():
    found = SceneMap.load(FIXTURES / "format_1_ace.map")
    assert (found.method, found.networks, found.covariance_scale) == ("ace", {"encoder": ENCODER}, 1.25)
    assert found.settings_as(AceMapSettings) == AceMapSettings(patch_offset_px=0.5)
    assert (found.statistics.iterations, found.statistics.reprojection_px) == (7, 2.5)
    assert [(camera.model, camera.distortion) for camera in found.cameras] == [("plumb_bob", (0.1, 0.0, 0.0, 0.0))]
    assert found.sections["head"]["mean"].tolist() == [1.0, 2.0, 3.0]
    assert found.sections["head"]["res3_conv1.weight"].shape == (16, 128)
    make_localizer(found, "cpu")


def test_it_localizes_and_so_does_the_same_map_saved_in_format_2(tmp_path):
    world = demo_world()
    pose = query_path(12, world.room)[9]
    frame = world.render_frame(pose, EVENING)
    old = SceneMap.load(FIXTURES / "format_1_ace_g.map")
    old.save(tmp_path / "new.map")
    assert (open_map(FIXTURES / "format_1_ace_g.map").version, open_map(tmp_path / "new.map").version) == (1, 2)
    new = SceneMap.load(tmp_path / "new.map")
    assert (new.networks, new.settings, new.cameras, new.bounds, new.created, new.covariance_scale) == \
        (old.networks, old.settings, old.cameras, old.bounds, old.created, old.covariance_scale)
    first, second = (make_localizer(scene_map, "cpu").localize(frame) for scene_map in (old, new))
    assert first.map_from_camera is not None
    assert pose_error(first.map_from_camera, pose)[0] < 0.05, "0.02 m with the release that made it"
    assert np.array_equal(first.map_from_camera, second.map_from_camera)
    assert np.array_equal(first.covariance, second.covariance)


@pytest.mark.parametrize("name", ["format_1_ace.map", "format_1_ace_g.map"])
def test_it_is_described_and_verified(name, capsys):
    assert main(["info", "--verify", str(FIXTURES / name)]) == 0
    shown = capsys.readouterr().out
    assert "format: 1" in shown and "encoder: compact, as compact:da5b226bce111657" in shown and "verified" in shown


def test_damage_is_found_when_it_is_loaded(tmp_path):
    content = bytearray((FIXTURES / "format_1_ace.map").read_bytes())
    content[-100] ^= 1
    (tmp_path / "a.map").write_bytes(content)
    with pytest.raises(UserError, match="damaged .its checksum does not match"):
        SceneMap.load(tmp_path / "a.map")
