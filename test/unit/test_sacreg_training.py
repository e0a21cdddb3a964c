# SPDX-License-Identifier: Apache-2.0
"""SACReg's training data and training, on made-up scenes and on a rendered room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_scenes import StopAt

from aceg_ros.benchmarks.made_up_scenes import IMAGES, cross_image_scene
from aceg_ros.camera import Camera, project_map_points
from aceg_ros.cli import main
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.keypoints import spread_over_image
from aceg_ros.errors import UserError
from aceg_ros.networks.cross_image_fusion import load_cross_image
from aceg_ros.networks.cross_image_regressor import CrossImageConfig, CrossImageRegressor
from aceg_ros.networks.weights_file import read_weights
from aceg_ros.pretraining.sacreg.samples import CrossImageSample, SampleSize, depth_of, draw_sample, nearest_keyframes
from aceg_ros.pretraining.sacreg.scenes import (
    KEYFRAME,
    KEYPOINTS,
    QUERY,
    VARIANT,
    CrossImageData,
    CrossImageScene,
    make_scene,
)
from aceg_ros.pretraining.sacreg.scores import evaluate
from aceg_ros.pretraining.sacreg.train import CrossImageTraining, sample_loss, train
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas

SMALL = CrossImageConfig(width=128, mixer_blocks=1, decoder_blocks=1)


def drawn(scene: CrossImageScene, rng: np.random.Generator, size: SampleSize | None = None) -> CrossImageSample:
    """A sample: some draws show too little of the scene."""
    found = (draw_sample(scene, rng, size or SampleSize(), SMALL) for _ in range(100))
    return next(sample for sample in found if sample is not None)


def options(folder: Path, **changes) -> CrossImageTraining:
    data = CrossImageData(rooms=2, held_out_rooms=1)
    usual = CrossImageTraining(run=folder / "run", folder=folder / "data", data=data, network=SMALL, iterations=12,
                               sample_size=SampleSize(keyframes=3, keypoints=60, tokens=60), checkpoint_every=6)
    return replace(usual, **changes)


def with_scenes(training: CrossImageTraining) -> CrossImageTraining:
    """Write made-up scenes where prepared ones would be."""
    for number, path in enumerate((*training.data.files(training.folder, True),
                                   *training.data.files(training.folder, False))):
        cross_image_scene(number).save(path)
    return training


@pytest.mark.slow
def test_a_rendered_room_becomes_a_scene():
    mapping, query = render_room_sessions(1, load_atlas(None), mapping=6, query=1, viewpoints=1)
    scene = make_scene(list(mapping), list(query), load_encoder("compact"))
    assert scene.roles.tolist() == [KEYFRAME] * 6 + [QUERY] + [VARIANT] * 7
    assert scene.source.tolist() == [*range(7), *range(7)] and np.diff(scene.first).max() <= KEYPOINTS
    observed = np.flatnonzero(scene.track >= 0)
    assert len(observed) > 300 and observed.max() < scene.first[6], "landmarks are of the mapping session alone"
    error = np.linalg.norm(scene.points[scene.track[observed]] - scene.truth[observed], axis=1)
    assert np.median(error) < 0.05, "triangulated points are near those of the depth images"
    for image in (3, 6):
        rows = scene.keypoints_of(image)
        fx, fy, cx, cy = scene.intrinsics[image]
        local = (scene.truth[rows] - scene.poses[image][:3, 3]) @ scene.poses[image][:3, :3]
        assert np.abs(local[:, :2] / local[:, 2:] * (fx, fy) + (cx, cy) - scene.pixels[rows]).max() < 0.1
    changed = scene.keypoints_of(7)
    assert np.isfinite(scene.truth[changed]).all() and len(changed) > 50
    assert depth_of(scene) == pytest.approx(np.median(local[:, 2]), rel=0.5)


def test_samples_are_consistent_in_their_random_coordinates():
    """A sample's truths and landmarks went through one similarity transform, except for the noisy landmarks."""
    scene, rng = cross_image_scene(), np.random.default_rng(0)
    sample = drawn(scene, rng)
    points, truth = sample.points[sample.valid], torch.cat([query.truth for query in sample.queries])
    nearest = (truth[:, None] - points).norm(dim=-1).amin(1)
    assert float((nearest < 1e-6).float().mean()) > 0.7 and float(truth.abs().max()) < 1050
    spread = (truth - truth.mean(0)).norm(dim=1).median() / depth_of(scene)
    assert 0.05 < float(spread) < 5.0
    assert torch.allclose(sample.queries[0].descriptors.norm(dim=1), torch.ones(len(sample.queries[0].truth)))


def test_a_query_is_never_its_own_keyframe():
    scene = cross_image_scene()
    for image in range(IMAGES - 1):
        near = nearest_keyframes(scene, image)
        assert image not in near and set(near) == set(range(IMAGES - 1)) - {image}
        assert abs(int(near[0]) - image) == 1
    assert nearest_keyframes(scene, IMAGES - 1)[0] == IMAGES - 2


def test_keypoints_are_spread_before_they_are_dense():
    pixels = np.array([[1, 1], [2, 2], [3, 3], [40, 1], [41, 1], [1, 40]], float)
    assert spread_over_image(pixels, 3, 16).tolist() == [0, 3, 5]
    assert spread_over_image(pixels, 4, 16).tolist() == [0, 1, 3, 5]
    assert spread_over_image(pixels, 9, 16).tolist() == list(range(6))
    assert len(spread_over_image(np.zeros((0, 2)), 3, 16)) == 0


def test_loss_falls_with_training():
    torch.manual_seed(0)
    net, scene, rng = CrossImageRegressor(SMALL), cross_image_scene(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    losses = []
    for _ in range(40):
        sample = drawn(scene, rng, SampleSize(keyframes=3, keypoints=60, tokens=60))
        loss, _ = sample_loss(net, sample, "cpu")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5


def test_keypoints_without_known_points_do_not_count():
    net, scene = CrossImageRegressor(SMALL), cross_image_scene()
    sample = drawn(scene, np.random.default_rng(0))
    query = sample.queries[0]
    even = torch.arange(len(query.truth))[:, None] % 2 == 0
    half = replace(sample, queries=(replace(query, truth=torch.where(even, query.truth, torch.nan)),))
    loss, error = sample_loss(net, half, "cpu")
    assert torch.isfinite(loss) and torch.isfinite(error)
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in net.parameters() if each.grad is not None)


def test_a_run_is_resumed_and_its_weights_can_be_loaded(tmp_path):
    training = with_scenes(options(tmp_path))
    train(training, StopAt(4))
    assert not (tmp_path / "run" / "curve.jsonl").read_text().count('"iteration": 12')
    path = train(training)
    assert (tmp_path / "run" / "curve.jsonl").read_text().count('"iteration": 12') >= 1
    loaded = load_cross_image(str(path))
    assert loaded.net.config == SMALL and loaded.encoder == load_encoder("compact4").identity
    whole = with_scenes(options(tmp_path / "other"))
    train(whole)
    assert all(torch.equal(value, read_weights(path, "").tensors[name]) for name, value in
               read_weights(whole.run / "sacreg.safetensors", "").tensors.items()), "as if it had not been interrupted"


@pytest.mark.slow
def test_it_is_trained_on_the_command_line(tmp_path, capsys):
    with_scenes(options(tmp_path, data=CrossImageData(rooms=2, held_out_rooms=4)))
    command = ["pretrain", "sacreg", "--run", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--stage",
               "train", "--rooms", "2", "--iterations", "2"]
    assert main(command) == 0
    path = tmp_path / "run" / "sacreg.safetensors"
    assert f"weights: {path}" in capsys.readouterr().out
    assert load_cross_image(str(path)).net.config == CrossImageConfig()
    assert main([*command[:-1], "3"]) == 2, "a run goes on with the options that it began with"


def test_without_prepared_scenes_it_says_so(tmp_path):
    with pytest.raises(UserError, match="No training scene is prepared"):
        train(options(tmp_path))


def test_scores_of_a_new_network_are_those_of_a_matcher():
    scores = evaluate(CrossImageRegressor(CrossImageConfig()).eval(), [cross_image_scene()], "cpu")
    assert scores["nearest_within_5px"] > 0.9 and scores["within_5px"] > 0.8
    assert scores["poses"] == 1.0 and scores["nearest_poses"] == 1.0
    assert 0.0 <= scores["confident_within_5px"] <= 1.0


def test_the_camera_of_the_made_up_scene_sees_what_it_says():
    scene = cross_image_scene()
    rows = scene.keypoints_of(2)
    camera = Camera(width=640, height=480, fx=400.0, fy=400.0, cx=319.5, cy=239.5)
    pixels, _ = project_map_points(scene.truth[rows].astype(float), camera, scene.poses[2])
    assert np.abs(pixels - scene.pixels[rows]).max() < 1e-3
