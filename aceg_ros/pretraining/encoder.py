"""Trains the compact encoder by contrast: the same surface point must look alike in two pictures, and like no other.

`train` is resumable: it checkpoints into its run folder, and every iteration draws from a generator seeded with
(seed, iteration), so an interrupted run continues as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import on_device
from aceg_ros.encoders.compact import CompactNet
from aceg_ros.errors import UserError
from aceg_ros.heap import keep_heap
from aceg_ros.pretraining.augment import Sample, make_sample
from aceg_ros.pretraining.pairs import (
    MatchedPairs,
    Matches,
    PairSource,
    RenderedPairs,
    SelfPairs,
    match_frames,
    render_views,
)
from aceg_ros.synthetic.textures import TextureAtlas, load_tiles, make_atlas, paint_tiles

TEMPERATURE = 0.06
SAME_SPOT_PX = 7.0                    # points nearer than this in either picture are neither match nor contrast


@dataclass(frozen=True)
class EncoderTraining:
    """One training run. scenes: folders of posed pictures (mapping parts only); textures: folder of tiles or None."""

    run: Path
    scenes: tuple[Path, ...] = ()
    textures: Path | None = None
    iterations: int = 2300
    pairs: int = 8
    points: int = 256
    width: int = 320
    height: int = 256
    rooms: int = 220
    held_out_rooms: int = 12
    peak_rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"
    workers: int = 2


def train(options: EncoderTraining) -> Path:
    """Run or resume the training; returns the file of the exported weights (fp16 safetensors).

    Raises UserError on scenes or textures that cannot be read.
    """
    if options.rooms <= options.held_out_rooms:
        raise UserError(f"Give more rooms than the {options.held_out_rooms} that are held out, not {options.rooms}.")
    if options.textures is not None and not options.textures.is_dir():
        raise UserError(f"There is no texture folder {options.textures}.")
    for path in options.scenes:
        open_scene(path)
    options.run.mkdir(parents=True, exist_ok=True)
    sources, held_out = _sources(options)
    torch.manual_seed(options.seed)
    net = on_device(CompactNet(), options.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.peak_rate, weight_decay=1e-3)
    checkpoint = options.run / "checkpoint.pt"
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=options.device, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["iteration"]
    started = time.monotonic()
    first = done
    for iteration in range(done, options.iterations):
        batch = _draw(sources, np.random.default_rng((options.seed, iteration)), options)
        net.train()
        for group in optimizer.param_groups:
            group["lr"] = options.peak_rate * _schedule(iteration / options.iterations)
        loss, hit = contrast(net, batch, options.device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        done = iteration + 1
        if done % 25 == 0:
            _log(options.run, iteration=done, loss=loss.item(), hit=hit, seconds=time.monotonic() - started,
                 per_iteration=(time.monotonic() - started) / (done - first))
        if done % 250 == 0 or done == options.iterations:
            _log(options.run, iteration=done, held_out_hit=evaluate(net, held_out, options))
            _save(checkpoint, net, optimizer, done)
            export(net, options.run / "compact.safetensors")
    return options.run / "compact.safetensors"


def contrast(net: CompactNet, batch: list[Sample], device: str) -> tuple[Tensor, float]:
    """Symmetric InfoNCE over all points of the batch; also the share whose nearest feature is the right one."""
    images = torch.from_numpy(np.stack([sample.images for sample in batch])).to(device)
    size, _, height, width = images.shape[0], 2, images.shape[2], images.shape[3]
    flat = images.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float().div(255)
    features = net(flat.contiguous(memory_format=torch.channels_last))
    sides: list[list[Tensor]] = [[], []]
    pixels: list[list[Tensor]] = [[], []]
    for index in range(size):
        for side in (0, 1):
            points = torch.from_numpy(batch[index].points[side]).float().to(device)
            sides[side].append(sample_features(features[2 * index + side], points, width, height))
            pixels[side].append(points)
    a, b = torch.cat(sides[0]), torch.cat(sides[1])
    pair = torch.cat([torch.full((len(p),), i, device=device) for i, p in enumerate(pixels[0])])
    names = sorted({sample.place for sample in batch})
    place = torch.tensor([names.index(sample.place) for sample in batch], device=device)[pair]
    same_pair = pair[:, None] == pair[None]
    near = torch.minimum(torch.cdist(torch.cat(pixels[0]), torch.cat(pixels[0])),
                         torch.cdist(torch.cat(pixels[1]), torch.cat(pixels[1]))) < SAME_SPOT_PX
    ignored = (same_pair & near) | (~same_pair & (place[:, None] == place[None]))
    ignored.fill_diagonal_(False)
    similarity = (a @ b.T / TEMPERATURE).masked_fill(ignored, -1e4)
    target = torch.arange(len(a), device=device)
    loss = (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)) / 2
    return loss, (similarity.argmax(1) == target).float().mean().item()


def sample_features(features: Tensor, points: Tensor, width: int, height: int) -> Tensor:
    """Unit features (N, C) of one grid (C, h, w) at pixels (N, 2) of the picture it came from (bilinear)."""
    size = torch.tensor([width, height], device=points.device)
    grid = (points + 0.5) / size * 2 - 1
    found = functional.grid_sample(features[None], grid[None, None], align_corners=False, padding_mode="border")
    return functional.normalize(found[0, :, 0].T, dim=1)


@torch.inference_mode()
def evaluate(net: CompactNet, source: PairSource, options: EncoderTraining, batches: int = 12) -> float:
    """Share of right nearest features on rooms that no training batch shows, over fixed samples."""
    net.eval()
    hits = []
    for index in range(batches):
        batch = _draw([source], np.random.default_rng((7, index)), options)
        hits.append(contrast(net, batch, options.device)[1])
    return float(np.mean(hits))


def export(net: CompactNet, path: Path) -> None:
    """Write the weights in fp16, by way of a temporary file."""
    state = {key: value.detach().cpu().contiguous().half() for key, value in net.state_dict().items()
             if not key.endswith("num_batches_tracked")}
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary, {"kind": "compact"})
    temporary.rename(path)


def _schedule(t: float) -> float:
    """Warm-up over the first 4 %, then a cosine to 1 % of the peak."""
    return t / 0.04 + 0.02 if t < 0.04 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (t - 0.04) / 0.96))


def _sources(options: EncoderTraining) -> tuple[list[PairSource], PairSource]:
    rendered = _rendered_files(options)
    held_out = RenderedPairs(rendered[:options.held_out_rooms])
    sources: list[PairSource] = [RenderedPairs(rendered[options.held_out_rooms:])]
    images: list[np.ndarray] = []
    places: list[str] = []
    matches: list[Matches] = []
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        matched = pool.map(_match_scene, options.scenes, range(options.seed, options.seed + len(options.scenes)))
        for path, found in zip(options.scenes, matched, strict=True):
            first = len(images)
            images += [frame.rectified()[0].image for frame in open_scene(path)]
            places += [str(path)] * (len(images) - first)
            matches += [replace(match, a=match.a + first, b=match.b + first) for match in found]
            print(f"{path}: {len(images) - first} pictures, {len(found)} matched pairs", flush=True)
    if images:
        sources += [SelfPairs(images, places)]
    if matches:
        sources += [MatchedPairs(images, places, matches)]
    return sources, held_out


def _match_scene(path: Path, seed: int) -> list[Matches]:
    cv2.setNumThreads(1)
    return match_frames([frame.rectified()[0] for frame in open_scene(path)], seed)


def _rendered_files(options: EncoderTraining) -> list[Path]:
    """Render what is missing, in worker processes; the files stay in the run folder for the next start."""
    folder = options.run / "rendered"
    folder.mkdir(exist_ok=True)
    files = [folder / f"room_{number:05d}.npz" for number in range(options.rooms)]
    missing = [number for number, path in enumerate(files) if not path.exists()]
    if missing:
        print(f"rendering {len(missing)} rooms", flush=True)
        with ProcessPoolExecutor(options.workers, get_context("spawn"), _start_renderer, (options.textures,)) as pool:
            for count, _ in enumerate(pool.map(_render_room, [(n, files[n]) for n in missing], chunksize=4), 1):
                if count % 50 == 0:
                    print(f"  {count} of {len(missing)}", flush=True)
    return files


_atlas: TextureAtlas                   # of a worker process: every room it renders shares it


def _start_renderer(textures: Path | None) -> None:
    global _atlas
    keep_heap()
    torch.set_num_threads(1)
    tiles = paint_tiles(256, 1)
    _atlas = make_atlas(np.concatenate([tiles, load_tiles(textures)]) if textures else tiles)


def _render_room(job: tuple[int, Path]) -> None:
    number, path = job
    views = render_views(1_000_000 + number, _atlas)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, images=views.images, depth_m=views.depth_m, poses=views.poses, focal_px=views.focal_px)
    temporary.rename(path)


def _draw(sources: list[PairSource], rng: np.random.Generator, options: EncoderTraining) -> list[Sample]:
    """One batch: the sources take turns."""
    batch: list[Sample] = []
    for slot in range(options.pairs):
        source = sources[slot % len(sources)]
        for _ in range(50):
            sample = make_sample(source.sample(rng), rng, options.width, options.height, options.points)
            if sample is not None:
                batch.append(sample)
                break
    if not batch:
        raise UserError("No training pair with enough common points was found: give more scenes or rooms.")
    return batch


def _save(path: Path, net: CompactNet, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}, temporary)
    temporary.rename(path)


def _log(run: Path, **figures: float) -> None:
    line = json.dumps({key: round(value, 5) for key, value in figures.items()})
    print(line, flush=True)
    with open(run / "curve.jsonl", "a") as log:
        log.write(line + "\n")
