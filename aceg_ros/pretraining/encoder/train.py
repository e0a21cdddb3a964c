"""Trains the compact encoder: the same surface point must look alike in two pictures, and like no other.

`train` is resumable: it checkpoints into its run folder, and every iteration draws from a generator seeded with
(seed, iteration), so on a CPU an interrupted run continues as if it had not been.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import DIM, CompactNet
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import write_weights
from aceg_ros.pretraining.common.run import claim, log_figures, resume, save_checkpoint, warm_cosine
from aceg_ros.pretraining.encoder.augment import Sample, make_sample
from aceg_ros.pretraining.encoder.data import EncoderData, open_sources
from aceg_ros.pretraining.encoder.losses import encoder_losses
from aceg_ros.pretraining.encoder.pairs import PairSource
from aceg_ros.utils.device import on_device


@dataclass(frozen=True)
class EncoderTraining:
    """One training run. start: weights to begin with, of an earlier run, or None for random ones. keep_every:
    iterations between two checkpoints. without: losses to leave out, to see what they are worth."""

    run: Path
    data: EncoderData
    iterations: int = 6000
    pairs: int = 8
    points: int = 256
    width: int = 320
    height: int = 256
    peak_rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"
    start: Path | None = None
    keep_every: int = 250
    without: tuple[str, ...] = ()


def train(options: EncoderTraining) -> Path:
    """Run or resume the training; returns the file of the exported weights (fp16 safetensors).

    Raises UserError on scenes, textures or weights that cannot be read.
    """
    options.data.check()
    torch.manual_seed(options.seed)
    net = on_device(CompactNet(), options.device)
    if options.start is not None:
        _begin_with(net, options.start)
    teacher = options.data.teacher and load_encoder(options.data.teacher, options.device).identity    # what is in it
    claim(options.run, replace(options, data=replace(options.data, teacher=teacher)))
    sources, held_out, teacher_dim = open_sources(options.data, options.run)
    pupil = nn.Linear(DIM, teacher_dim, device=options.device) if teacher_dim else None
    trained = nn.ModuleDict({"net": net, **({"pupil": pupil} if pupil is not None else {})})
    optimizer = torch.optim.AdamW(trained.parameters(), lr=options.peak_rate, weight_decay=1e-3)
    done = resume(options.run, trained, optimizer, options.device)
    started, first = time.monotonic(), done
    for batch in _batches(sources, done, options):
        net.train()
        for group in optimizer.param_groups:
            group["lr"] = options.peak_rate * warm_cosine(done / options.iterations)
        losses = encoder_losses(net, batch, options.device, pupil, options.without)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        done += 1
        if done % 25 == 0:
            log_figures(options.run, iteration=done, hit=losses.hit,
                        **{name: term.item() for name, term in losses.terms.items()},
                        per_iteration=(time.monotonic() - started) / (done - first))
        if done % options.keep_every == 0 or done == options.iterations:
            log_figures(options.run, iteration=done, held_out_hit=evaluate(net, held_out, options))
            export(net, options.run / "compact.safetensors")
            save_checkpoint(options.run, trained, optimizer, done)
    return options.run / "compact.safetensors"


@torch.no_grad()
def evaluate(net: CompactNet, source: PairSource, options: EncoderTraining, batches: int = 12) -> float:
    """Share of right nearest features on rooms that no training batch shows, over fixed samples."""
    net.eval()
    return float(np.mean([encoder_losses(net, _draw([source], np.random.default_rng((7, index)), options),
                                         options.device).hit for index in range(batches)]))


def export(net: CompactNet, path: Path) -> None:
    """Write the weights in fp16 with the constants they were trained with."""
    state = {key: value.half() for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    write_weights(path, state, kind="compact", config=net.config)


def _begin_with(net: CompactNet, path: Path) -> None:
    try:
        missing, unexpected = net.load_state_dict(load_file(path), strict=False)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} does not hold weights of the compact encoder ({error}).") from None
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise UserError(f"{path} does not hold weights of this version of the compact encoder.")


def _batches(sources: list[PairSource], done: int, options: EncoderTraining) -> Iterator[list[Sample]]:
    """The batches from iteration `done` on, drawn ahead in threads; each from a generator of its own."""
    ahead = 2 if options.device == "cpu" else 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(max(1, ahead // 2)) as pool:
        waiting: list[Future[list[Sample]]] = []
        for iteration in range(done, options.iterations + ahead):
            if iteration < options.iterations:
                waiting.append(pool.submit(_draw, sources, np.random.default_rng((options.seed, iteration)), options))
            if iteration >= done + ahead:
                yield waiting.pop(0).result()


def _draw(sources: list[PairSource], rng: np.random.Generator, options: EncoderTraining) -> list[Sample]:
    """One batch: the sources take turns."""
    batch: list[Sample] = []
    for slot in range(options.pairs):
        for _ in range(20):
            source = sources[slot % len(sources)]
            sample = make_sample(source.sample(rng), rng, options.width, options.height, options.points)
            if sample is not None:
                batch.append(sample)
                break
    if not batch:
        raise UserError("No training pair with enough common points was found: give more scenes or rooms.")
    return batch
