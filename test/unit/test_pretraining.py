# SPDX-License-Identifier: Apache-2.0
"""Training of the encoder and of both regressors: losses, and that an interrupted run ends as an uninterrupted one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_scenes import (
    InterruptedAt,
    StopAt,
    map_code_options,
)
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from aceg_ros.benchmarks.gpu.methods import SMALL_HEAD
from aceg_ros.benchmarks.made_up_scenes import encoder_batch, landmark_scene, landmark_split
from aceg_ros.datasets import write_ace_scene
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import CompactNet
from aceg_ros.errors import UserError
from aceg_ros.mapping.losses import reproject
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead
from aceg_ros.networks.regressor import load_regressor
from aceg_ros.pretraining.ace_g import landmarks, map_codes
from aceg_ros.pretraining.ace_g.code_pool import RADIUS_M, with_random_similarity
from aceg_ros.pretraining.ace_g.code_steps import CodeFit, fit_code, query_loss, training_step
from aceg_ros.pretraining.ace_g.landmarks import LandmarkTraining
from aceg_ros.pretraining.ace_g.scenes import TrainingScene, TrainingSceneData, make_training_scene
from aceg_ros.pretraining.common.loop import LoopOptions
from aceg_ros.pretraining.encoder.data import EncoderData
from aceg_ros.pretraining.encoder.losses import coordinate_loss, encoder_losses, sample_at
from aceg_ros.pretraining.encoder.train import EncoderTraining, train
from aceg_ros.synthetic.demo_room import demo_world, mapping_path
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.room import random_room
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas


def test_features_are_sampled_at_the_pixel():
    """The grid holds its own pixel coordinates: sampling gives them back, between cell centres too."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    grid = (torch.stack([columns, rows]) + 0.5) * 8 - 0.5
    points = torch.tensor([[3.5, 3.5], [30.0, 21.0], [55.0, 40.0]])
    assert torch.allclose(sample_at(grid, points, 64, 48), points, atol=1e-3)


def test_coordinate_loss_rewards_features_that_tell_the_position_of_a_point():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator)
    telling = torch.nn.functional.normalize(torch.sin(points @ torch.randn(3, 64, generator=generator) * 2), dim=1)
    mute = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator), dim=1)
    assert coordinate_loss(telling, telling, points).item() < 0.25 * coordinate_loss(mute, mute, points).item()


def test_losses_fall_when_a_batch_is_learned():
    """A few steps on one batch, with every kind of loss in it."""
    torch.manual_seed(0)
    batch = encoder_batch()
    net, student = CompactNet(), torch.nn.Linear(128, 16)
    optimizer = torch.optim.AdamW([*net.parameters(), *student.parameters()], lr=2e-3)
    totals = []
    for _ in range(12):
        losses = encoder_losses(net, batch, "cpu", student=student)
        assert set(losses.terms) == {"contrast", "reliability", "coordinates", "teacher"}
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.8 * totals[0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    world = demo_world()
    write_ace_scene(folder, (world.render_frame(pose, name=f"{index:06d}")
                             for index, pose in enumerate(mapping_path(60, world.room)[:3])))
    return folder


def curve_of(run):
    return [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(scene, tmp_path):
    data = EncoderData(scenes=(scene,), rooms=3, held_out_rooms=1, teacher="sift", teacher_every=1)

    def options(run):
        return EncoderTraining(run=run, data=data, iterations=4, pairs=2, points=48, width=160, height=128,
                               checkpoint_every=2)

    whole = load_file(train(options(tmp_path / "whole")))
    shutil.copytree(tmp_path / "whole" / "rendered", tmp_path / "halves" / "rendered")
    with pytest.raises(KeyboardInterrupt):
        train(options(tmp_path / "halves"), should_stop=InterruptedAt(3))            # after two steps and a checkpoint
    halves = load_file(train(options(tmp_path / "halves")))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    with pytest.raises(UserError, match="started with other options"):
        train(replace(options(tmp_path / "halves"), without=("teacher",)))
    assert [entry["iteration"] for entry in curve_of(tmp_path / "halves") if "held_out_hit" in entry] == [2, 4]


def test_what_cannot_be_used_is_said_before_anything_is_computed(tmp_path):
    for data, word in ((EncoderData(rooms=5), "held out"), (EncoderData(textures=tmp_path / "none"), "none"),
                       (EncoderData(scenes=(tmp_path / "missing",)), "missing"),
                       (EncoderData(teacher="nobody"), "nobody")):
        with pytest.raises(UserError, match=word):
            train(EncoderTraining(run=tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


# --- the regressor of ace_g -----------------------------------------------------------------------------------------


def landmark_options(run, **changes):
    return LandmarkTraining(run=run, data=TrainingSceneData(), **changes)


@pytest.mark.parametrize("query_share", [1.0, 0.0])
def test_regressor_run_resumes_and_ends_as_one_that_was_not_interrupted(tmp_path, query_share):
    options = landmark_options(tmp_path / "whole", iterations=8, batch=64, checkpoint_every=4, query_share=query_share)
    whole = load_file(landmarks.train(options, scenes=landmark_split()))
    parts = replace(options, run=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        landmarks.train(parts, scenes=landmark_split(), should_stop=InterruptedAt(7))
    resumed = load_file(landmarks.train(parts, scenes=landmark_split()))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    last = curve_of(tmp_path / "whole")[-1]
    assert last["iteration"] == 8 and last["recall"] == last["nearest_recall"] == 1.0


def test_a_run_that_is_asked_to_stop_keeps_what_it_has_and_goes_on_from_there(tmp_path):
    options = landmark_options(tmp_path / "whole", iterations=8, batch=64, checkpoint_every=8)
    whole = load_file(landmarks.train(options, scenes=landmark_split()))
    parts = replace(options, run=tmp_path / "parts")
    stopped = load_file(landmarks.train(parts, scenes=landmark_split(), should_stop=StopAt(6)))
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["iteration"] == 5
    assert any(not torch.equal(whole[key], stopped[key]) for key in whole)
    resumed = load_file(landmarks.train(parts, scenes=landmark_split()))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_regressor_learns_what_the_nearest_landmark_gets_wrong(tmp_path):
    options = landmark_options(tmp_path, iterations=120, batch=128, checkpoint_every=120, peak_rate=3e-3)
    landmarks.train(options, scenes=landmark_split())
    curve = curve_of(tmp_path)
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    before, after = (entry for entry in curve if "median_m" in entry)
    assert after["median_m"] <= before["median_m"] + 0.01 and losses


def test_a_training_scene_is_a_mapping_and_a_query_session_of_one_room():
    """Points of the query patches, by their depths, are at the landmarks that they resemble."""
    mapping, query = render_room_sessions(2_000_003, load_atlas(None), mapping=8, query=2, viewpoints=1)
    scene = make_training_scene(list(mapping), list(query), load_encoder("compact"))
    assert len(scene.points) > 500 and scene.images == 2
    points = scene.truth(torch.arange(len(scene.features)))
    similarity, nearest = (scene.features.float() @ scene.keys.float().T).max(1)
    distance = (scene.points[nearest] - points).norm(dim=1)
    assert distance[similarity > similarity.quantile(0.9)].median() < 0.2


def test_rooms_with_objects_moved_keep_their_walls():
    room = random_room(5, 100)
    changed = with_objects_moved(room, np.random.default_rng(0), moved=0.3, removed=0.3)
    assert np.array_equal(changed.centre[0], room.centre[0]) and np.array_equal(changed.half[0], room.half[0])
    assert len(changed) < len(room)
    kept = [np.flatnonzero((room.half == half).all(1))[0] for half in changed.half]
    moved = np.abs(changed.centre - room.centre[kept]).max(1) > 1e-6
    assert 0.1 < moved.mean() < 0.7
    same = with_objects_moved(room, np.random.default_rng(0), moved=0.0, removed=0.0)
    assert np.array_equal(same.centre, room.centre)


# --- the published pre-training: codes from noise -------------------------------------------------------------------


@pytest.mark.parametrize("interrupted", [InterruptedAt(5), StopAt(5)])       # asked every tenth iteration
def test_code_pretraining_resumes_and_ends_as_one_that_was_not_interrupted(tmp_path, interrupted):
    whole = load_file(map_codes.train(map_code_options(tmp_path / "whole"), scenes=landmark_split()))
    try:
        map_codes.train(map_code_options(tmp_path / "parts"), scenes=landmark_split(), should_stop=interrupted)
    except KeyboardInterrupt:
        assert isinstance(interrupted, InterruptedAt)
    kept = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["iteration"]
    assert kept == (30 if isinstance(interrupted, InterruptedAt) else 40)
    parts = load_file(map_codes.train(map_code_options(tmp_path / "parts"), scenes=landmark_split()))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    last = curve_of(tmp_path / "parts")[-1]
    assert last["iteration"] == 60 and np.isfinite(last["median_m"])
    regressor = load_regressor(str(tmp_path / "whole" / "ace_g.safetensors"))
    assert regressor.codes == 16
    features, code = torch.rand(5, 128), torch.rand(16, 32)           # of any length: mapping's are not of unit length
    predicted = [regressor.net(scale * features, MapCode(code, torch.zeros(3))).coordinates for scale in (1.0, 11.3)]
    assert torch.allclose(*predicted, atol=1e-4)


def test_checkpoints_between_two_steps_are_rejected(tmp_path):
    """Gradients that no step has used yet are not kept."""
    with pytest.raises(UserError, match="multiple"):
        map_codes.train(map_code_options(tmp_path, checkpoint_every=25), scenes=landmark_split())
    with pytest.raises(ValueError, match="multiple"):
        LoopOptions(run=tmp_path, iterations=10, peak_rate=1e-3, step_every=2, checkpoint_every=5)


def test_similarity_transforms_move_a_scene_but_not_what_its_images_see():
    scene = elsewhere(landmark_scene(0))
    index = torch.arange(len(scene.features))
    mirrored = set()
    for seed in range(6):
        moved = with_random_similarity(scene, np.random.default_rng(seed))
        mirrored.add(bool(torch.linalg.det(moved.camera_from_map[0, :, :3]) < 0))
        truth = moved.truth(index)
        assert torch.allclose(reproject(truth, moved.view(index)).error_px, torch.zeros(len(index)), atol=0.05)
        nearest = torch.cdist(truth, moved.points).min(1).values     # its patches are some of its landmarks
        assert nearest.max() < 0.02                                  # cdist rounds
        radius = (moved.points - moved.points.mean(0)).norm(dim=1).median()
        assert RADIUS_M[0] * 0.99 < radius < RADIUS_M[1] * 1.01
    assert mirrored == {False, True}


def elsewhere(scene: TrainingScene) -> TrainingScene:
    """The scene with its map rotated and moved: cameras are not at its origin."""
    rotation = torch.from_numpy(Rotation.from_euler("xyz", (0.4, -0.8, 1.1)).as_matrix()).float()
    shift = torch.tensor([3.0, -1.0, 2.0])
    camera_rotation, translation = scene.camera_from_map[:, :, :3], scene.camera_from_map[:, :, 3]
    rotated = camera_rotation @ rotation.T
    return replace(scene, points=scene.points @ rotation.T + shift,
                   camera_from_map=torch.cat([rotated, (translation - rotated @ shift)[:, :, None]], 2))


def test_query_steps_train_the_regressor_and_leave_the_code_alone():
    embeddings, gradients = [], []
    for share in (0.0, 1.0):
        options = map_code_options(Path(), lifetime=60, batch=256, query_share=share, feature_dropout=0.0)
        torch.manual_seed(0)
        net = TransformerHead(SMALL_HEAD)
        fit = replace(CodeFit.start(landmark_scene(0), options, seed=0, lifetime=60), age=30)
        for step in range(3):
            losses = training_step(net, fit, np.random.default_rng(step), options)
            assert ("query_loss" in losses) == (share > 0) and fit.code.embeddings.grad is None
        embeddings.append(fit.code.embeddings.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert torch.equal(*embeddings) and not torch.allclose(*gradients)


def test_a_code_can_be_fitted_to_a_scene():
    options = map_code_options(Path(), lifetime=60, batch=256)
    torch.manual_seed(0)
    net, scene = TransformerHead(SMALL_HEAD), with_random_similarity(landmark_scene(0), np.random.default_rng(0))
    start = CodeFit.start(scene, options, seed=0, lifetime=60).code
    fitted = fit_code(net, scene, options, 0)
    with torch.no_grad():
        losses = [query_loss(net, code, scene, torch.arange(len(scene.features))) for code in (start, fitted)]
    assert losses[1] < losses[0]                                     # even an untrained regressor's code can learn


TRAIN_IN_PROCESS = """
import sys
from pathlib import Path
from pretraining_scenes import map_code_options
from aceg_ros.benchmarks.made_up_scenes import landmark_split
from aceg_ros.pretraining.ace_g import map_codes
from aceg_ros.pretraining.common.loop import run_training
run = Path(sys.argv[1])
task = map_codes.prepare(map_code_options(run), landmark_split(4, 0))
run_training(task, task.options.loop_options(), task.group)
total = sum(float(parameter.double().sum()) for parameter in task.model.parameters())
Path(run, f"sum_{task.group.rank}").write_text(repr(total))
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    """Started by torchrun: both end with the same weights, though each has seen other scenes."""
    script, run = tmp_path / "train.py", tmp_path / "run"
    script.write_text(TRAIN_IN_PROCESS)
    run.mkdir()
    paths = [str(Path(map_code_options.__code__.co_filename).parent), *sys.path]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(script), str(run)], check=True, timeout=300, capture_output=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)})
    sums = [(run / f"sum_{rank}").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]
    assert (run / "pool_0.pt").exists() and (run / "pool_1.pt").exists() and (run / "ace_g.safetensors").exists()
