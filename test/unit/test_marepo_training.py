# SPDX-License-Identifier: Apache-2.0
"""Pre-training and fine-tuning of the pose transformer."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from aceg_ros.benchmarks.made_up_scenes import coordinate_images, cross_image_scene
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.pose_tuning import (
    PoseBatch,
    TokenImage,
    TuningOptions,
    pose_losses,
    random_rolls,
    tune_pose_regressor,
    weighing_losses,
)
from aceg_ros.networks.pose_regressor import load_pose_regressor
from aceg_ros.networks.pose_transformer import PoseTransformer, PoseTransformerConfig
from aceg_ros.networks.weighing_transformer import WeighingConfig, WeighingTransformer
from aceg_ros.pretraining.marepo.coordinates import load_coordinates, match_images
from aceg_ros.pretraining.marepo.samples import Geometry, PoseSampler, SampleOptions, cast_geometry
from aceg_ros.pretraining.marepo.train import PoseTask, PoseTraining, is_held_out, train

TINY = WeighingConfig(width=32, heads=4, layers=2, group=1)
EXACT = SampleOptions(batch=6, tokens=64, real_share=0.0, outliers=0.0, log_noise_px=(1e-4, 2e-4),
                      log_depth_noise=(1e-6, 2e-6))


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    return cast_geometry(12, 3)


def reprojected(batch: PoseBatch) -> torch.Tensor:
    in_camera = (batch.points - batch.translation[:, None]) @ batch.rotation
    return in_camera[..., :2] / in_camera[..., 2:]


# --- samples --------------------------------------------------------------------------------------------------------


def test_simulated_points_are_seen_along_their_rays(geometry):
    batch = PoseSampler([], geometry, EXACT).draw((0, 1))
    assert batch.points.shape == (6, 64, 3) and batch.rays.shape == (6, 64, 2)
    assert (reprojected(batch) - batch.rays).abs().max() < 1e-3
    spread = batch.points.flatten(0, 1).std(0)
    assert (spread > 0.1).all(), "maps lie in any direction"


def test_outliers_and_noise_have_the_size_that_is_asked_for(geometry):
    noisy = replace(EXACT, batch=40, outliers=0.5, log_noise_px=(4.0, 4.001))
    error = (reprojected(PoseSampler([], geometry, noisy).draw((0, 2))) - PoseSampler([], geometry, noisy).draw(
        (0, 2)).rays).norm(dim=-1) * 525
    right = error < 20
    assert 0.6 < right.float().mean() < 0.9
    assert 4.0 < error[right].square().mean().sqrt() < 8.0, "4 px in each direction"


def test_samples_of_maps_are_their_tokens_and_outliers_are_labelled(geometry):
    images = coordinate_images()
    options = replace(EXACT, batch=8, real_share=1.0, spoilt_share=0.0, dropped_regions=1.0)
    batch = PoseSampler([images], geometry, options).draw((0, 3))
    assert (reprojected(batch) - batch.rays).abs().max() < 1e-3 and (batch.right == 1).all()
    assert torch.equal(batch.points, PoseSampler([images], geometry, options).draw((0, 3)).points)
    spoilt = PoseSampler([images], geometry, replace(options, spoilt_share=1.0, unknown_confidence=1.0)).draw((0, 4))
    far = (reprojected(spoilt) - spoilt.rays).norm(dim=-1) > 0.05
    assert 0.1 < far.float().mean() < 0.8 and (spoilt.right[far] == 0).all() and spoilt.confidence.isnan().all()


def test_keypoints_are_matched_with_other_images_of_their_scene():
    images = list(match_images(cross_image_scene(images=12)))
    assert 20 <= len(images) <= 24 and min(len(image.points) for image in images) >= 24
    for image in images:
        error = image.points_in_camera[:, :2] / image.points_in_camera[:, 2:] - image.rays
        right = np.linalg.norm(error, axis=1) < 0.01
        assert right.mean() > 0.9 and image.confidence[right].mean() > 0.9


def test_rolls_turn_rays_and_camera_alike(geometry):
    batch = PoseSampler([], geometry, EXACT).draw((0, 4))
    turn = random_rolls(6, 0.3, torch.Generator().manual_seed(0))
    turned = PoseBatch(points=batch.points, rays=batch.rays @ turn[:, :2, :2], rotation=batch.rotation @ turn,
                       translation=batch.translation, confidence=batch.confidence, right=batch.right)
    assert (turned.rays - batch.rays).abs().max() > 0.01
    assert (reprojected(turned) - turned.rays).abs().max() < 1e-3


# --- training -------------------------------------------------------------------------------------------------------


def test_training_learns_and_is_resumed(tmp_path, geometry):
    data = tmp_path / "data"
    data.mkdir()
    for number in (0, 7):
        cross_image_scene(number, images=8).save(data / f"room_{number:05d}_abc.npz")
    assert set(load_coordinates(data)) == {"room_00000", "room_00007"}
    options = PoseTraining(run=tmp_path / "run", data=data, iterations=60, size=TINY, views=12, checkpoint_every=20,
                           samples=replace(EXACT, real_share=0.5, outliers=0.5))
    calls = iter(range(1000))
    train(options, should_stop=lambda: next(calls) >= 30)
    stopped = load_pose_regressor(str(tmp_path / "run" / "marepo.safetensors"))
    path = train(options)
    trained = load_pose_regressor(str(path))
    assert trained.net.config == TINY and trained.identity != stopped.identity
    straight = train(replace(options, run=tmp_path / "straight"))
    assert load_pose_regressor(str(straight)).identity == trained.identity
    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert {"simulated_deg", "room_0%_deg", "room_60%_within"} <= set(curve[-1])
    batch = PoseSampler([], geometry, replace(EXACT, batch=32, outliers=0.5)).draw((7, 7))
    torch.manual_seed(0)
    untrained = WeighingTransformer(TINY)
    before, after = (float(weighing_losses(net, batch, 0.5)["trust"].detach()) for net in (untrained, trained.net))
    assert after < 0.8 * before
    with pytest.raises(UserError, match="other options"):
        train(replace(options, peak_rate=2e-3))


def test_a_run_ends_with_its_time_and_its_rate_falls_until_then(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    cross_image_scene(0, images=8).save(data / "room_00009_abc.npz")
    options = PoseTraining(run=tmp_path / "run", data=data, iterations=10**9, minutes=0.05, size=TINY, views=12,
                           samples=EXACT)
    started = time.monotonic()
    train(options)
    assert time.monotonic() - started < 60
    task = PoseTask(options, load_coordinates(data))
    task.load_state(1)
    assert task.time_share() >= 1.0 and task.learning_rate(100) < 0.02 * options.peak_rate


def test_the_published_network_trains_on_the_same_samples(geometry):
    batch = PoseSampler([], geometry, EXACT).draw((0, 1))
    torch.manual_seed(0)
    net = PoseTransformer(PoseTransformerConfig(width=32, heads=4, layers=2, group=1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = pose_losses(net, batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_rooms_and_recordings_are_held_out_by_name():
    names = ["room_00000", "room_00003", "room_00004", "scene_a", "scene_b"]
    assert [is_held_out(name, ("a",)) for name in names] == [True, True, False, True, False]


def test_without_coordinates_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="no prepared scenes"):
        load_coordinates(tmp_path)


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def test_fine_tuning_improves_on_the_images_of_the_scene():
    torch.manual_seed(0)
    net = WeighingTransformer(TINY)
    tokens = [TokenImage(**vars(image)) for image in coordinate_images(frames=12)]
    options = TuningOptions(tokens=64, repeats=32, rate=3e-3)
    tuned, steps = tune_pose_regressor(net, tokens, options, MappingBudget.start())
    assert steps == 96 and not any(value.requires_grad for value in tuned.parameters())
    sampler = PoseSampler([coordinate_images(frames=12)], Geometry(depth=np.ones((1, 30, 40), np.float32),
                                                                   focal=np.ones(1, np.float32)),
                          SampleOptions(real_share=1.0, spoilt_share=1.0, batch=32))
    before, after = (float(weighing_losses(each, sampler.draw((0, 1)), 0.0)["trust"].detach()) for each in (net, tuned))
    assert after < 0.8 * before


def test_fine_tuning_ends_with_its_budget():
    images = coordinate_images()
    tokens = [TokenImage(**vars(images[0]))]
    net = WeighingTransformer(TINY)
    tuned, steps = tune_pose_regressor(net, tokens, TuningOptions(), MappingBudget.start(0.0))
    assert steps == 0 and torch.equal(tuned.head[1].weight, net.head[1].weight)
