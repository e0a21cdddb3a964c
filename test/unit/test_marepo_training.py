# SPDX-License-Identifier: Apache-2.0
"""Pre-training and fine-tuning of the pose transformer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aceg_ros.benchmarks.made_up_scenes import coordinate_images
from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import write_ace_scene
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.pose_tuning import (
    PoseBatch,
    TokenImage,
    TuningOptions,
    pose_losses,
    random_rolls,
    tune_pose_regressor,
)
from aceg_ros.networks.pose_regressor import load_pose_regressor, regress_pose
from aceg_ros.networks.pose_transformer import PoseTransformer
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.marepo.coordinates import (
    CoordinateData,
    load_coordinates,
    prepare_coordinates,
)
from aceg_ros.pretraining.marepo.samples import Geometry, PoseSampler, SampleOptions, cast_geometry
from aceg_ros.pretraining.marepo.train import SMALL, PoseTraining, held_out_scenes, rotation_error_deg, train

TINY = replace(SMALL, width=32, heads=4, layers=2, group=1)
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


def test_samples_of_maps_use_trusted_cells_of_images_that_were_not_mapped(geometry):
    images = coordinate_images()
    images.points[np.arange(len(images)), images.reliability.argmin(1)] = 1e3               # never trusted
    options = replace(EXACT, batch=8, real_share=1.0, seen_share=0.0, added_outliers=0.0, dropped_regions=1.0)
    batch = PoseSampler([images], geometry, options).draw((0, 3))
    assert (reprojected(batch) - batch.rays).abs().max() < 1e-3
    assert torch.equal(batch.points, PoseSampler([images], geometry, options).draw((0, 3)).points)


def test_rolls_turn_rays_and_camera_alike(geometry):
    batch = PoseSampler([], geometry, EXACT).draw((0, 4))
    turn = random_rolls(6, 0.3, torch.Generator().manual_seed(0))
    turned = PoseBatch(batch.points, batch.rays @ turn[:, :2, :2], batch.rotation @ turn, batch.translation)
    assert (turned.rays - batch.rays).abs().max() > 0.01
    assert (reprojected(turned) - turned.rays).abs().max() < 1e-3


# --- training -------------------------------------------------------------------------------------------------------


def test_training_learns_and_is_resumed(tmp_path, geometry):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        images = coordinate_images(seed=number)
        write_arrays(data / f"room_{number:04d}_codes.npz", vars(images))
    write_arrays(data / "scene_bad_head.npz", {})                            # one that could not be mapped
    assert set(load_coordinates(data)) == {"room_0000_codes", "room_0001_codes"}
    options = PoseTraining(run=tmp_path / "run", data=data, iterations=60, size=TINY, views=12, checkpoint_every=20,
                           samples=replace(EXACT, real_share=0.5))
    calls = iter(range(1000))
    train(options, should_stop=lambda: next(calls) >= 30)
    stopped = load_pose_regressor(str(tmp_path / "run" / "marepo.safetensors"))
    path = train(options)
    trained = load_pose_regressor(str(path))
    assert trained.net.config == TINY and trained.identity != stopped.identity
    straight = train(replace(options, run=tmp_path / "straight"))
    assert load_pose_regressor(str(straight)).identity == trained.identity
    batch = PoseSampler([], geometry, replace(EXACT, batch=32)).draw((7, 7))
    torch.manual_seed(0)
    untrained = PoseTransformer(TINY)
    before, after = (float(pose_losses(net, batch, 0.5).detach()[-1]) for net in (untrained, trained.net))
    assert after < 0.8 * before
    with pytest.raises(UserError, match="other options"):
        train(replace(options, iterations=61))


def test_held_out_scenes_do_not_depend_on_the_others():
    names = [f"room_{number:04d}_{source}" for number in range(40) for source in ("codes", "head")]
    chosen = held_out_scenes(names)
    assert 2 <= len(chosen) <= 30 and chosen == {name for name in names if name in held_out_scenes([name])}
    assert chosen == {name.replace("codes", "head") for name in chosen} | {name.replace("head", "codes")
                                                                           for name in chosen}


def test_recordings_of_the_same_name_have_files_of_their_own(tmp_path):
    """Recordings are often called mapping; these are too short to be mapped, and so prepared in no time."""
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    camera = Camera(width=128, height=96, fx=100.0, fy=100.0, cx=63.5, cy=47.5)
    for name in ("hall", "kitchen"):
        write_ace_scene(tmp_path / name / "mapping", [Frame(image=image, camera=camera, map_from_camera=np.eye(4))] * 2)
    scenes = tuple(tmp_path / name / "mapping" for name in ("hall", "kitchen"))
    prepare_coordinates(CoordinateData(scenes=scenes, rooms=0, head_every=10), tmp_path / "data")
    assert {path.stem.split("_")[1] for path in (tmp_path / "data").glob("*.npz")} == {"hall", "kitchen"}


def test_without_coordinates_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="no prepared scene coordinates"):
        load_coordinates(tmp_path)


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def test_fine_tuning_improves_on_the_images_of_the_scene():
    torch.manual_seed(0)
    net = PoseTransformer(TINY)
    images = coordinate_images(frames=12)
    tokens = [TokenImage(points=points, rays=rays, map_from_camera=pose) for points, rays, pose in
              zip(images.points, images.rays, images.map_from_camera, strict=True)]
    options = TuningOptions(tokens=64, repeats=16, rate=2e-3)
    tuned, steps = tune_pose_regressor(net, tokens, options, MappingBudget.start())
    assert steps == 48 and not any(value.requires_grad for value in tuned.parameters())

    def error(of: PoseTransformer) -> float:
        points, rays = torch.from_numpy(images.points), torch.from_numpy(images.rays)
        with torch.inference_mode():
            found = regress_pose(of, points, rays, centre=torch.zeros(3))
        return float(rotation_error_deg(found.rotation, torch.from_numpy(images.map_from_camera[:, :3, :3]).float())
                     .median())

    assert error(tuned) < 0.5 * error(net)


def test_fine_tuning_ends_with_its_budget():
    images = coordinate_images()
    tokens = [TokenImage(points=images.points[0], rays=images.rays[0], map_from_camera=images.map_from_camera[0])]
    net = PoseTransformer(TINY)
    tuned, steps = tune_pose_regressor(net, tokens, TuningOptions(), MappingBudget.start(0.0))
    assert steps == 0 and torch.equal(tuned.fc_t.weight, net.fc_t.weight)
