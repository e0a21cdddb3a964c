# SPDX-License-Identifier: Apache-2.0
"""`aceg pretrain reloc3r`: the network on keypoints learns, a run is resumed, and its weights localize or reject."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aceg_ros.benchmarks.made_up_scenes import SEEN, cross_image_scene
from aceg_ros.benchmarks.relative_pairs import main as main_of_benchmark
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
from aceg_ros.pretraining.sacreg.scenes import CrossImageData

TINY = KeypointPoseConfig(width=32, blocks=1, heads=2, keypoints=64, frequencies=2, matched_rays=True, tokens=48)


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
    scene = SceneKeypoints.from_prepared(cross_image_scene(images=30), SEEN)
    assert scene.descriptors.shape == (30, SEEN, 128) and len(scene.pairs) == len(scene.overlap) > 100
    assert (np.diff(scene.pairs, axis=1) != 0).all() and scene.overlap.min() >= 0.1
    angles = []
    for progress in (0.0, 1.0):
        batch = draw_pairs([scene], 64, progress, np.random.default_rng(1))
        similarity = batch.first.descriptors @ batch.second.descriptors.mT
        same = similarity.amax(2) > 0.9
        first, second = (torch.cat([image.rays, torch.ones(64, SEEN, 1)], 2) for image in (batch.first, batch.second))
        other = second.gather(1, similarity.argmax(2)[..., None].expand(-1, -1, 3)) @ batch.rotation.mT
        normal = torch.linalg.cross(first, other)
        off = (normal @ batch.direction[:, :, None])[..., 0].abs()
        assert off[same].max() < 1e-2 and same.sum() > 1000
        angles.append(float(normal.norm(dim=2)[same].mean()))
    assert angles[1] > 1.5 * angles[0]


@pytest.fixture
def prepared(tmp_path):
    """A folder of prepared scenes, and the data that they are."""
    data = CrossImageData(scenes=(Path("one"), Path("two")), held_out=(Path("other"),), rooms=0, held_out_rooms=0)
    (tmp_path / "data").mkdir()
    files = [*data.files(tmp_path / "data", held_out=False), *data.files(tmp_path / "data", held_out=True)]
    for number, path in enumerate(files):
        cross_image_scene(seed=number).save(path)
    return tmp_path / "data", data


def options_for(prepared, folder, **given):
    return RelativePoseTraining(run=folder, folder=prepared[0], data=prepared[1], size=TINY, batch=8,
                                checkpoint_every=10, **given)


def test_training_learns_and_a_resumed_run_ends_the_same(prepared, tmp_path):
    whole = train(options_for(prepared, tmp_path / "whole", iterations=20))
    assert train(options_for(prepared, tmp_path / "parts", iterations=20), lambda: True) == \
        tmp_path / "parts" / "relative_pose.safetensors"                # stopped before its first step
    parts = train(options_for(prepared, tmp_path / "parts", iterations=20))
    first, second = (load_relative_pose(str(path)) for path in (whole, parts))
    assert first.identity == second.identity
    curve = [json.loads(line) for line in (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()]
    assert {"near_rotation_deg", "far_direction_deg"} <= set(curve[-1])
    with pytest.raises(UserError, match="other options"):
        train(options_for(prepared, tmp_path / "whole", iterations=30))


def test_the_command_trains_and_its_hardly_trained_weights_are_rejected_by_consensus(rendered_scene, tmp_path):
    run = tmp_path / "run"
    (file, *_) = CrossImageData(scenes=(Path("wall"),), rooms=0).files(tmp_path, held_out=False)
    cross_image_scene(count=4000, seen=600).save(file)
    assert main(["pretrain", "reloc3r", "--run", str(run), "--data", str(tmp_path), "--stage", "train", "--scenes",
                 "wall", "--rooms", "1", "--width", "32", "--blocks", "1", "--batch", "4", "--iterations", "2",
                 "--device", "cpu"]) == 0
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
    with pytest.raises(UserError, match="No scene is prepared"):
        train(RelativePoseTraining(run=tmp_path, folder=tmp_path, data=CrossImageData(rooms=0)))


def test_pairs_are_compared_by_overlap(tmp_path, capsys):
    """On a made-up wall, matches find the relative poses, and knowing nothing does not."""
    cross_image_scene(images=12).save(tmp_path / "wall.npz")
    assert main_of_benchmark([str(tmp_path / "wall.npz"), "--pairs", "4"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert {row[2] for row in rows} == {"matches", "nothing"} and rows[-1][0] == "0.10 to 1.00"
    best = next(row for row in rows if row[0] == "0.75 to 1.00" and row[2] == "matches")
    assert best[1] == best[3] == "4" and float(best[4]) < 1.0 and float(best[-1]) > 0.5
    assert float(rows[-1][-1]) < 0.2
