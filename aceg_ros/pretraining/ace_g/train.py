"""Trains our regressor: to say of patches of a later visit where they are, by the code of an earlier one.

ACE-G's query pre-training (Bruns et al., ICCV 2025, section 3.3) with codes that are landmarks: a place is mapped from
scratch at every step, by drawing other landmarks of it. Maps of any place, scale and direction are alike to the
network by construction, which takes the place of random similarity transforms.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.losses import MAX_ERROR_PX, MIN_DEPTH_M, View, reproject
from aceg_ros.networks.landmark_regressor import LandmarkCode, LandmarkConfig, LandmarkRegressor, Mixture
from aceg_ros.networks.regressor import save_regressor
from aceg_ros.pretraining.ace_g.scenes import Place, PlaceData, open_places
from aceg_ros.pretraining.common.distributed import join
from aceg_ros.pretraining.common.run import claim, log_figures, resume, save_checkpoint, warm_cosine
from aceg_ros.pretraining.common.scores import located
from aceg_ros.utils.device import training_precision

CODES = (600, 10_000)                  # least and most landmarks of a place that a step may see
NOWHERE, NOWHERE_PX = 30.0, 200.0      # code spacings, pixels: a patch that is further from all its codes is lost


@dataclass(frozen=True)
class RegressorTraining:
    """One training run. query_share: of the steps, those that ask about later pictures; the others ask about mapping
    pictures whose own landmarks are left out. feature_dropout: share of a patch's feature that is left out."""

    run: Path
    data: PlaceData
    iterations: int = 6000
    batch: int = 1024
    peak_rate: float = 1e-3
    query_share: float = 1.0
    feature_dropout: float = 0.0
    size: LandmarkConfig = field(default_factory=LandmarkConfig)
    seed: int = 0
    device: str = "cpu"
    keep_every: int = 500


def train(options: RegressorTraining) -> Path:
    """Run or resume the training; returns the file of the exported weights. Raises UserError on scenes that cannot be
    read, and where the run was begun with other options."""
    if join(options.device).count > 1:
        raise UserError("Landmarks are trained on by one process: start without torchrun, or with --codes-from noise.")
    claim(options.run, options)
    places, held_out = open_places(options.data, options.run / "places")
    torch.manual_seed(options.seed)
    net = LandmarkRegressor(options.size).to(options.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.peak_rate, weight_decay=0.01)
    result = options.run / "ace_g.safetensors"
    done = resume(options.run, net, optimizer, options.device)
    if done == 0:
        log_figures(options.run, iteration=0, **evaluate(net, held_out))
    started, first = time.monotonic(), done
    recent: list[Tensor] = []
    while done < options.iterations:
        rng = np.random.default_rng((options.seed, done))
        for group in optimizer.param_groups:
            group["lr"] = options.peak_rate * warm_cosine(done / options.iterations)
        loss = _step_loss(net, places[int(rng.integers(len(places)))], rng, options)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], loss.detach()]
        done += 1
        if done % 100 == 0:
            log_figures(options.run, iteration=done, loss=float(torch.stack(recent).mean()),
                        per_iteration=(time.monotonic() - started) / (done - first))
        if done % options.keep_every == 0 or done == options.iterations:
            log_figures(options.run, iteration=done, **evaluate(net, held_out))
            save_regressor(net, load_encoder(options.data.encoder).identity, result)
            save_checkpoint(options.run, net, optimizer, done)
    return result


def _step_loss(net: LandmarkRegressor, place: Place, rng: np.random.Generator, options: RegressorTraining) -> Tensor:
    """Mean loss of a batch of one place, as a fresh code of it explains them."""
    count = int(np.exp(rng.uniform(*np.log(CODES))))
    order = torch.from_numpy(rng.permutation(len(place.points))).to(place.points.device)
    if rng.random() < options.query_share:
        code = _code(place, order[:count], net.config)
        picture = int(rng.integers(len(place.camera_from_map)))
        index = _some((place.picture == picture).nonzero()[:, 0], options.batch, rng)
        features, view, truth = place.features[index].float(), place.view(index), place.truth(index)
    else:
        asked = place.source == place.source[int(rng.integers(len(place.source)))]
        code = _code(place, order[~asked[order]][:count], net.config)
        index = order[asked[order]][:options.batch]
        features, view, truth = place.keys[index].float(), None, place.points[index]
    if options.feature_dropout:
        torch.manual_seed(int(rng.integers(2**62)))
        features = functional.normalize(functional.dropout(features, options.feature_dropout), dim=1)
    with training_precision(features.device.type):
        found = net.mixture(features, code)
    known = torch.isfinite(truth).all(1)
    truth = torch.where(known[:, None], truth, 0.0)          # an unknown one must not reach a gradient
    distance = (found.points - truth[:, None]).norm(dim=2)
    loss = found.loss(distance / code.spacing, found.sigma / code.spacing, NOWHERE)
    if view is not None and not bool(known.all()):
        distance_px, sigma_px = _in_pixels(found, view)
        loss = torch.where(known, loss, found.loss(distance_px, sigma_px, NOWHERE_PX))
    return loss.mean()


def _in_pixels(found: Mixture, view: View) -> tuple[Tensor, Tensor]:
    """How far each candidate (B, k) is projected from its patch, and its sigma there."""
    count = found.points.shape[1]
    repeated = View(*(part.repeat_interleave(count, 0) for part in (view.camera_from_map, view.intrinsics,
                                                                     view.pixels)))
    seen = reproject(found.points.flatten(0, 1), repeated)
    depth = seen.in_camera[:, 2].clamp(min=MIN_DEPTH_M).unflatten(0, (-1, count))
    error = torch.where(seen.valid, seen.error_px, MAX_ERROR_PX).unflatten(0, (-1, count))
    return error, (found.sigma * view.intrinsics[:, :1] / depth).clamp(min=1.0)


def _some(index: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    return index[torch.from_numpy(rng.permutation(len(index))[:count]).to(index.device)]


def _code(place: Place, index: Tensor, config: LandmarkConfig) -> LandmarkCode:
    return LandmarkCode(place.keys[index], place.points[index], config)


@torch.inference_mode()
def evaluate(net: LandmarkRegressor, places: list[Place], codes: int = 3000) -> dict[str, float]:
    """Of held-out rooms: median error in metres and share of patches within 10 cm, share of pictures within 10 cm and
    5 degrees; the same shares of the nearest landmark alone."""
    rows = []
    for place in places:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(place.points))).to(place.points.device)
        code = _code(place, order[:codes], net.config)
        for picture in range(len(place.camera_from_map)):
            index = (place.picture == picture).nonzero()[:, 0]
            features, view, truth = place.features[index].float(), place.view(index), place.truth(index)
            found = net(features, code)
            nearest = code.points[(features @ code.keys.T).argmax(1)]
            sure = net.select_confident(found.sigma)
            apart = [(points - truth).norm(dim=1) for points in (found.coordinates, nearest)]
            recalls = [located(points, view, mask) for points, mask in
                       ((found.coordinates, None), (found.coordinates, sure), (nearest, None))]
            rows.append([float(apart[0].median()), float((apart[0] < 0.1).float().mean()),
                         float((apart[0][sure] < 0.1).float().mean()), float((apart[1] < 0.1).float().mean()),
                         *recalls])
    names = ("median_m", "patches_10cm", "sure_patches_10cm", "nearest_patches_10cm", "recall", "sure_recall",
             "nearest_recall")
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) if rows else {}
