"""`aceg pretrain reloc3r`: the network on keypoints learns, a run is resumed, and its weights localize or reject."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import make_localizer, make_method_options
from aceg_ros.networks.keypoint_relative_pose import KeypointPoseConfig, KeypointPoseNet, KeypointTokens
from aceg_ros.networks.relative_pose_file import load_relative_pose
from aceg_ros.pretraining.reloc3r.samples import SceneKeypoints, draw_pairs
from aceg_ros.pretraining.reloc3r.train import RelativePoseTraining, train

TINY = KeypointPoseConfig(width=32, blocks=1, heads=2, keypoints=64, frequencies=2)


def test_the_network_is_symmetric_in_what_it_reads():
    """Order of the keypoints does not matter, and both images go through the same weights."""
    torch.manual_seed(0)
    net = KeypointPoseNet(TINY).eval()
    tokens = [KeypointTokens(torch.nn.functional.normalize(torch.randn(2, 64, 128), dim=2), torch.randn(2, 64, 2))
              for _ in range(2)]
    order = torch.randperm(64)
    shuffled = KeypointTokens(*(part[:, order] for part in tokens[0]))
    with torch.inference_mode():
        found, again = net(*tokens), net(shuffled, tokens[1])
    assert torch.allclose(found.rotation, again.rotation, atol=1e-5)
    assert torch.allclose(found.direction.norm(dim=1), torch.ones(2)) and found.log_sigma.shape == (2,)


def test_pairs_become_farther_and_their_poses_fit_their_rays():
    """A point's rays in both images meet: turning the camera turns the rays along."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-3, -3, 4), (3, 3, 8), (64, 3))
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, 0, 3] = np.linspace(0.0, 4.0, 40)
    local = points[None] - poses[:, None, :3, 3]
    scene = SceneKeypoints(descriptors=rng.integers(-127, 127, (40, 64, 128), np.int8),
                           rays=(local[..., :2] / local[..., 2:]).astype(np.float32), poses=poses)
    angles = []
    for progress in (0.0, 1.0):
        batch = draw_pairs([scene], 64, progress, np.random.default_rng(1))
        ones = torch.ones(64, 64, 1)
        first, second = (torch.cat([image.rays, ones], 2) for image in (batch.first, batch.second))
        turned = second @ batch.rotation.mT
        normal = torch.linalg.cross(first, turned)
        assert ((normal @ batch.direction[:, :, None])[..., 0].abs() < 1e-3 * normal.norm(dim=2).clamp(min=1e-2)).all()
        angles.append(float(torch.linalg.cross(first, turned).norm(dim=2).mean()))
    assert angles[1] > 2.0 * angles[0]


def options_for(rendered_scene, folder, **given):
    return RelativePoseTraining(run=folder, scenes=(rendered_scene / "mapping",), size=TINY, batch=8,
                                held_out=(rendered_scene / "query",), checkpoint_every=10, **given)


def test_training_learns_and_a_resumed_run_ends_the_same(rendered_scene, tmp_path):
    whole = train(options_for(rendered_scene, tmp_path / "whole", iterations=20))
    assert train(options_for(rendered_scene, tmp_path / "parts", iterations=20), lambda: True) == \
        tmp_path / "parts" / "relative_pose.safetensors"                # stopped before its first step
    parts = train(options_for(rendered_scene, tmp_path / "parts", iterations=20))
    first, second = (load_relative_pose(str(path)) for path in (whole, parts))
    assert first.identity == second.identity
    curve = [json.loads(line) for line in (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()]
    assert {"near_rotation_deg", "far_direction_deg"} <= set(curve[-1])
    with pytest.raises(UserError, match="other options"):
        train(options_for(rendered_scene, tmp_path / "whole", iterations=30))


def test_the_command_trains_and_its_hardly_trained_weights_are_rejected_by_consensus(rendered_scene, tmp_path):
    run = tmp_path / "run"
    assert main(["pretrain", "reloc3r", "--run", str(run), "--scenes", str(rendered_scene / "mapping"), "--width", "32",
                 "--blocks", "1", "--batch", "4", "--iterations", "2", "--device", "cpu"]) == 0
    frames = list(open_scene(rendered_scene / "mapping"))
    given = make_method_options("reloc3r", {"network": str(run / "relative_pose.safetensors")})
    scene_map, _ = build_map("reloc3r", MappingOptions(device="cpu", encoder="compact", trust_poses=True), frames[::5],
                             MappingBudget.start(60.0), method_options=given)
    assert "tokens" not in scene_map.sections
    localizer = make_localizer(scene_map, "cpu")
    for frame in frames[2::15]:
        estimate = localizer.localize(replace(frame, map_from_camera=None))
        assert not estimate.accepted and estimate.map_from_camera is None


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        train(RelativePoseTraining(run=tmp_path, scenes=()))
