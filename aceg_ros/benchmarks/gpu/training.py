# SPDX-License-Identifier: Apache-2.0
"""Checks of the pre-trainings on a device: a few steps on made-up data, with evaluation, checkpoint and export."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from aceg_ros.benchmarks.gpu.methods import SMALL_HEAD, SMALL_KEYPOINT_PAIR, SMALL_POSE
from aceg_ros.benchmarks.gpu.session import Outcome, Results, Session
from aceg_ros.benchmarks.made_up_scenes import (
    cross_image_scene,
    encoder_batch,
    landmark_split,
    write_encoder_data,
)
from aceg_ros.encoders.compact import CompactNet
from aceg_ros.networks.cross_image_regressor import CrossImageConfig
from aceg_ros.networks.weights_file import read_weights
from aceg_ros.pretraining.ace_g import landmarks, map_codes
from aceg_ros.pretraining.ace_g.code_steps import MapCodeTraining
from aceg_ros.pretraining.ace_g.landmarks import LandmarkTraining
from aceg_ros.pretraining.ace_g.scenes import TrainingSceneData
from aceg_ros.pretraining.encoder import keypoint_train
from aceg_ros.pretraining.encoder.losses import encoder_losses
from aceg_ros.pretraining.marepo.samples import SampleOptions
from aceg_ros.pretraining.marepo.train import PoseTraining
from aceg_ros.pretraining.marepo.train import train as train_pose_transformer
from aceg_ros.pretraining.reloc3r.train import RelativePoseTraining
from aceg_ros.pretraining.reloc3r.train import train as train_relative_pose
from aceg_ros.pretraining.sacreg.samples import SampleSize
from aceg_ros.pretraining.sacreg.scenes import CrossImageData
from aceg_ros.pretraining.sacreg.train import CrossImageTraining
from aceg_ros.pretraining.sacreg.train import train as train_cross_image

STEPS = 4


def check_encoder_training(session: Session) -> Outcome:
    """Train the encoder with keypoints, with processes that draw batches, and compute the losses of the first one."""
    def train(folder: Path) -> Path:
        write_encoder_data(folder / "data")
        return keypoint_train.train(keypoint_train.KeypointTraining(
            run=folder / "run", data=folder / "data", pairs=4, points=32, width=128, height=96, iterations=STEPS,
            checkpoint_every=STEPS, device=session.device))

    outcome = _trained(train)
    return replace(outcome, results={**outcome.results, "losses of compact": _compact_losses(session.device)})


def _compact_losses(device: str) -> Results:
    torch.manual_seed(0)
    batch = encoder_batch()
    losses = encoder_losses(CompactNet().to(device), batch, device, student=torch.nn.Linear(128, 16, device=device))
    losses.total.backward()
    return {name: float(value.detach()) for name, value in losses.terms.items()}


def check_regressor_training(session: Session) -> Outcome:
    """Train the regressor that reads landmarks, and the published one with its codes."""
    def train(folder: Path) -> Path:
        landmarks.train(LandmarkTraining(run=folder / "landmarks", data=TrainingSceneData(device=session.device),
                                         iterations=STEPS, batch=64, checkpoint_every=STEPS, device=session.device),
                        scenes=landmark_split(device=session.device))
        return map_codes.train(
            MapCodeTraining(run=folder / "codes", data=TrainingSceneData(device=session.device), iterations=20,
                            size=SMALL_HEAD, codes=16, active=3, lifetime=5, batch=64, checkpoint_every=20,
                            device=session.device), scenes=landmark_split(device=session.device))
    return _trained(train)


def check_pose_transformer_training(session: Session) -> Outcome:
    """Train a pose transformer."""
    def train(folder: Path) -> Path:
        (folder / "data").mkdir()
        for number in range(2):
            cross_image_scene(number).save(folder / "data" / f"room_{10 * number:05d}_made.npz")
        return train_pose_transformer(PoseTraining(
            run=folder / "run", data=folder / "data", iterations=STEPS, size=SMALL_POSE, views=12,
            checkpoint_every=STEPS, samples=SampleOptions(batch=6, tokens=64), device=session.device))
    return _trained(train)


def check_cross_image_training(session: Session) -> Outcome:
    """Train a cross-image regressor, and a network for relative poses on the same data."""
    data = CrossImageData(rooms=2, held_out_rooms=1, device=session.device)

    def train(folder: Path) -> Path:
        (folder / "data").mkdir()
        for number, path in enumerate((*data.files(folder / "data", True), *data.files(folder / "data", False))):
            cross_image_scene(number, images=30).save(path)
        train_cross_image(CrossImageTraining(
            run=folder / "run", folder=folder / "data", data=data, iterations=STEPS, checkpoint_every=STEPS,
            network=CrossImageConfig(width=128, mixer_blocks=1, decoder_blocks=1), device=session.device,
            sample_size=SampleSize(keyframes=3, keypoints=60, tokens=60)))
        return train_relative_pose(RelativePoseTraining(
            run=folder / "pairs", folder=folder / "data", data=data, size=SMALL_KEYPOINT_PAIR, batch=8,
            held_out_pairs=16, iterations=STEPS, checkpoint_every=STEPS, device=session.device))
    return _trained(train)


def _trained(train: Callable[[Path], Path]) -> Outcome:
    """Train in a temporary folder, and see whether the weights are finite."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tensors = read_weights(train(Path(folder)), "network").tensors
        seconds = time.perf_counter() - started
    finite = all(bool(torch.isfinite(value.float()).all()) for value in tensors.values())
    return Outcome(results={"seconds": seconds, "tensors": len(tensors)},
                   problems=[] if finite else ["weights are not finite after a few steps"])
