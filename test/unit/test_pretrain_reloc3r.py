# SPDX-License-Identifier: Apache-2.0
"""`aceg pretrain reloc3r`: the network on keypoints learns, a run is resumed, and its weights localize or reject."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aceg_ros.benchmarks.made_up_scenes import cross_image_scene
from aceg_ros.benchmarks.relative_pairs import main as main_of_benchmark
from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import make_localizer, make_method_options
from aceg_ros.networks.keypoint_relative_pose import (
    KeypointPoseConfig,
    KeypointPoseNet,
    MatchTokens,
    homogeneous,
    match_keypoints,
)
from aceg_ros.networks.relative_pose_file import load_relative_pose
from aceg_ros.networks.rotations import skew
from aceg_ros.networks.weighted_essential import sampson_errors
from aceg_ros.pretraining.reloc3r.samples import SceneKeypoints, draw_pairs, label_matches
from aceg_ros.pretraining.reloc3r.train import RelativePoseTraining, train
from aceg_ros.pretraining.sacreg.scenes import CrossImageData

TINY = KeypointPoseConfig(width=32, blocks=1, heads=2, keypoints=400, matches=96, frequencies=2)


def drawn(progress: float = 0.5, count: int = 16):
    """Pairs of a made-up wall."""
    scene = SceneKeypoints.from_prepared(cross_image_scene(images=30))
    return draw_pairs([scene], count, progress, np.random.default_rng(1), matches=96)


def test_the_order_of_matches_and_of_the_images_does_not_matter():
    """Both images go through the same weights, so that exchanging them gives the inverse pose."""
    torch.manual_seed(0)
    net, matches = KeypointPoseNet(TINY).eval(), drawn().matches
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    exchanged = MatchTokens(first_rays=matches.second_rays, second_rays=matches.first_rays,
                            descriptors=matches.descriptors.flip(2), statistics=matches.statistics[..., [0, 2, 1]],
                            valid=matches.valid)
    order = torch.randperm(96)
    with torch.inference_mode():
        found, again = net(matches), net(exchanged)
        shuffled = net(MatchTokens(*(part[:, order] for part in matches)))
    assert torch.allclose(found.weights, again.weights, atol=1e-4)
    assert torch.allclose(found.weights[:, order], shuffled.weights, atol=1e-4)
    assert torch.allclose(found.rotation, again.rotation.mT, atol=1e-2)
    assert torch.allclose(found.rotation, shuffled.rotation, atol=1e-2)


def test_a_new_network_is_matching_and_a_weighted_essential_matrix():
    """Its weights are the shares of the similarities, enough where descriptors are distinct."""
    batch = drawn()
    with torch.inference_mode():
        found = KeypointPoseNet(TINY).eval()(batch.matches)
    shares = batch.matches.statistics[..., 1:].sum(2).exp().clamp(0.0025, 0.9975)
    assert torch.allclose(found.weights[batch.matches.valid], shares[batch.matches.valid], atol=1e-3)
    cosine = ((found.rotation.mT @ batch.rotation).diagonal(dim1=1, dim2=2).sum(1) - 1.0) / 2.0
    assert torch.acos(cosine.clamp(-1.0, 1.0)).rad2deg().median() < 1.0
    assert torch.allclose(found.direction.norm(dim=1), torch.ones(16, dtype=torch.float64))


def test_pairs_become_farther_and_their_matches_are_labelled():
    """A point's rays in both images meet: turning the camera turns the rays along."""
    turns = []
    for progress in (0.0, 1.0):
        batch = drawn(progress, 64)
        first, second = homogeneous(batch.matches.first_rays).double(), homogeneous(batch.matches.second_rays).double()
        error = sampson_errors(skew(batch.direction) @ batch.rotation, first, second).abs()
        assert (batch.right == 1).sum() > 1000 and (batch.right == 0).sum() > 20
        assert error[batch.right == 1].max() < 0.004 and (batch.right[~batch.matches.valid] == -1).all()
        between = torch.linalg.cross(first, second @ batch.rotation.mT).norm(dim=2)
        turns.append(float(between[batch.right == 1].mean()))
    assert turns[1] > 1.5 * turns[0]


def test_matches_of_different_points_are_wrong_even_on_their_lines():
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 1.0
    first, second = torch.tensor([[0.2, 0.1]] * 3), torch.tensor([[0.1, 0.1], [0.1, 0.1], [0.1, 0.3]])
    assert label_matches(pose, first, second, torch.tensor([torch.nan, 0.2, torch.nan])).tolist() == [1, 0, 0]


def test_mutual_nearest_neighbours_are_matched_the_most_confident_first():
    first = torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    found = match_keypoints(first, first[torch.arange(19, -1, -1)], 12)
    assert (found.rows + found.columns == 19).all() and len(found.rows) == 12
    shares = found.statistics[:, 1:].sum(1)
    assert (shares[1:] <= shares[:-1]).all() and torch.allclose(found.statistics[:, 0], torch.ones(12))


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
    return RelativePoseTraining(run=folder, folder=prepared[0], data=prepared[1], size=TINY, batch=8, held_out_pairs=16,
                                checkpoint_every=10, **given)


def test_training_learns_and_a_resumed_run_ends_the_same(prepared, tmp_path):
    whole = train(options_for(prepared, tmp_path / "whole", iterations=20))
    assert train(options_for(prepared, tmp_path / "parts", iterations=20), lambda: True) == \
        tmp_path / "parts" / "reloc3r.safetensors"                # stopped before its first step
    parts = train(options_for(prepared, tmp_path / "parts", iterations=20))
    first, second = (load_relative_pose(str(path)) for path in (whole, parts))
    assert first.identity == second.identity
    curve = [json.loads(line) for line in (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()]
    assert {"near_rotation_deg", "far_direction_deg"} <= set(curve[-1])
    with pytest.raises(UserError, match="other options"):
        train(options_for(prepared, tmp_path / "whole", iterations=30))


def test_a_run_begins_with_given_weights_of_its_own_sizes(prepared, tmp_path):
    given = train(options_for(prepared, tmp_path / "first", iterations=2))
    begun = train(options_for(prepared, tmp_path / "second", start=str(given)), lambda: True)       # no step is taken
    assert load_relative_pose(str(begun)).identity == load_relative_pose(str(given)).identity
    with pytest.raises(UserError, match="does not hold weights to begin with"):
        train(options_for(prepared, tmp_path / "third", start="reloc3r"), lambda: True)


def test_the_command_trains_and_its_hardly_trained_weights_localize_as_matches_do(rendered_scene, tmp_path):
    run = tmp_path / "run"
    (file, *_) = CrossImageData(scenes=(Path("wall"),), rooms=0).files(tmp_path, held_out=False)
    cross_image_scene(count=4000, seen=600).save(file)
    assert main(["pretrain", "reloc3r", "--run", str(run), "--data", str(tmp_path), "--stage", "train", "--scenes",
                 "wall", "--rooms", "1", "--width", "32", "--blocks", "1", "--batch", "4", "--iterations", "2",
                 "--device", "cpu"]) == 0
    frames = list(open_scene(rendered_scene / "mapping"))
    given = make_method_options("reloc3r", {"network": str(run / "reloc3r.safetensors")})
    scene_map, _ = build_map("reloc3r", MappingOptions(device="cpu", trust_poses=True), frames[::5],
                             MappingBudget.start(60.0), method_options=given)
    assert "tokens" not in scene_map.sections
    localizer = make_localizer(scene_map, "cpu")
    errors = []
    for frame in frames[2::6]:
        estimate = localizer.localize(replace(frame, map_from_camera=None, depth_m=None))
        if estimate.accepted:
            errors.append(pose_error(estimate.map_from_camera, frame.map_from_camera))
    assert len(errors) >= 5 and max(metres for metres, _ in errors) < 0.2


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
