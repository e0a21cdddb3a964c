"""ACE-G's query pre-training as published (Bruns et al., ICCV 2025, section 3.3): codes are learned from noise.

A pool of places is mapped at a time, each again and again from scratch, under a similarity transform of its own.
Mapping steps fit a place's code, and the regressor, to landmarks of the mapping visit; query steps fit the regressor
alone, codes frozen, to patches of a later visit.

Other than published: what is mapped are triangulated landmarks, not exact points of rendered pictures, so that codes
learn from what a real mapping run has; features are of unit length; a code's rate follows this package's `one_cycle`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.losses import laplace_loss, laplace_reprojection_loss
from aceg_ros.mapping.train_head import one_cycle
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead, TransformerHeadConfig
from aceg_ros.networks.regressor import save_regressor
from aceg_ros.pretraining.ace_g.scenes import Place, PlaceData, open_places
from aceg_ros.pretraining.common.distributed import Ranks, join
from aceg_ros.pretraining.common.run import claim, log_figures, resume, save_checkpoint, warm_cosine
from aceg_ros.pretraining.common.scores import located
from aceg_ros.utils.device import training_precision

RADIUS_M = (1.0, 10.0)                 # of a transformed place: median distance of its landmarks from their mean


@dataclass(frozen=True)
class CodePretraining:
    """One training run. codes: of a place; active: places that are mapped at a time; lifetime: steps that a code is
    mapped for before it is thrown away; query_share: query steps for a mapping step, once a code is a fifth of its
    lifetime old (before, it says nothing); step_every: steps for one of the regressor's."""

    run: Path
    data: PlaceData
    iterations: int = 20_000
    size: TransformerHeadConfig = field(default_factory=lambda: TransformerHeadConfig(
        dim_in=128, num_blocks=4, num_attention_heads=4, dim_emb=128, mlp_ratio=2.0, unit_features=True))
    codes: int = 256
    active: int = 8
    lifetime: int = 300
    query_share: float = 1.0
    step_every: int = 10
    batch: int = 1024
    code_rate: float = 2e-3
    peak_rate: float = 1e-3
    feature_dropout: float = 0.1
    seed: int = 0
    device: str = "cpu"
    keep_every: int = 2000


def train(options: CodePretraining) -> Path:
    """Run or resume the training; returns the file of the exported weights. With torchrun, every process has a pool of
    its own and gradients are averaged. Raises UserError on scenes that cannot be read, or sizes that do not fit."""
    if options.size.dim_emb % options.size.num_attention_heads:
        raise UserError(f"A width of {options.size.dim_emb} cannot be split among {options.size.num_attention_heads}"
                        " heads: give a multiple.")
    ranks = join(options.device)
    if ranks.first:
        claim(options.run, options)
    options = replace(options, device=ranks.device(options.device),
                      data=replace(options.data, device=ranks.device(options.data.device)))
    if not ranks.first:                                 # the first makes what is missing
        ranks.wait()
    places, held_out = open_places(options.data, options.run / "places")
    if ranks.first:
        ranks.wait()
    torch.manual_seed(options.seed)
    net = TransformerHead(options.size).to(options.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.peak_rate, weight_decay=0.01)
    result = options.run / "ace_g.safetensors"
    done = resume(options.run, net, optimizer, options.device)
    pool = _Pool(places, options, ranks, done)
    started, first = time.monotonic(), done
    recent: dict[str, list[Tensor]] = {"mapping_loss": [], "query_loss": []}
    while done < options.iterations:
        rng = np.random.default_rng((options.seed, ranks.rank, done))
        torch.manual_seed(int(rng.integers(2**62)))                      # of dropout
        for name, loss in _step(net, pool.slot(done), rng, options):
            recent[name] = [*recent[name][-99:], loss]
        done += 1
        if done % options.step_every == 0:
            for group in optimizer.param_groups:
                group["lr"] = options.peak_rate * warm_cosine(done / options.iterations)
            ranks.average_gradients(net)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if done % 500 == 0 and ranks.first:
            log_figures(options.run, iteration=done, per_iteration=(time.monotonic() - started) / (done - first),
                        **{name: float(torch.stack(losses).mean()) for name, losses in recent.items() if losses})
        if done % options.keep_every == 0 or done == options.iterations:
            if ranks.first:
                log_figures(options.run, iteration=done, **evaluate(net, held_out, options))
            ranks.wait()                            # pools and checkpoint belong together: written at the same moment
            pool.save(done)
            if ranks.first:
                save_regressor(net, load_encoder(options.data.encoder).identity, result, codes=options.codes)
                save_checkpoint(options.run, net, optimizer, done)
    return result


@dataclass
class _Slot:
    """A place that is being mapped, under a transform of its own; age: steps that its code has had of `lifetime`."""

    generation: int
    place: Place
    code: MapCode
    optimizer: torch.optim.Optimizer
    age: int
    lifetime: int


class _Pool:
    """The places of this process that are mapped at a time, one step each in turn."""

    def __init__(self, places: list[Place], options: CodePretraining, ranks: Ranks, done: int):
        self._places, self._options, self._ranks = places[ranks.rank::ranks.count] or places, options, ranks
        self._made_for = [ranks.count, len(self._places), options.active, options.codes, options.lifetime]
        self._file = options.run / f"pool_{ranks.rank}.pt"
        # Lifetimes of the first generation differ, so that codes of all ages are in the pool from then on.
        self._slots = [self._new(number, options.lifetime * (number + 1) // options.active)
                       for number in range(options.active)]
        if done and self._file.exists():
            self._load(done)

    def slot(self, iteration: int) -> _Slot:
        """Whose turn it is; a code at the end of its life gives way to a place that begins from noise."""
        number = iteration % len(self._slots)
        slot = self._slots[number]
        if slot.age >= slot.lifetime:
            slot = self._new(slot.generation + len(self._slots), self._options.lifetime)
            self._slots[number] = slot
        return slot

    def _new(self, generation: int, lifetime: int) -> _Slot:
        options = self._options
        rng = np.random.default_rng((options.seed, self._ranks.rank, generation, 1))
        place = transformed(self._places[int(rng.integers(len(self._places)))], rng)
        code = new_code(place, options, int(rng.integers(2**62)))
        return _Slot(generation, place, code, code_optimizer(code, options), 0, max(lifetime, 1))

    def save(self, done: int) -> None:
        state = [{"generation": slot.generation, "age": slot.age, "lifetime": slot.lifetime,
                  "code": slot.code.state_dict(), "optimizer": slot.optimizer.state_dict()} for slot in self._slots]
        temporary = self._file.with_suffix(".tmp")
        torch.save({"iteration": done, "made_for": self._made_for, "slots": state}, temporary)
        temporary.rename(self._file)

    def _load(self, done: int) -> None:
        """A pool of another iteration than the network's, or of other places, is left: fresh codes do as well."""
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if state["iteration"] != done or state["made_for"] != self._made_for:
            return
        for number, kept in enumerate(state["slots"]):
            slot = self._new(kept["generation"], kept["lifetime"])
            slot.age = kept["age"]
            slot.code.load_state_dict(kept["code"])
            slot.optimizer.load_state_dict(kept["optimizer"])
            self._slots[number] = slot


def new_code(place: Place, options: CodePretraining, seed: int) -> MapCode:
    """A code of noise; its mean is that of the landmarks (the cameras of a place are not kept)."""
    generator = torch.Generator().manual_seed(seed)
    return MapCode.noise(options.codes, options.size.dim_emb, place.points.mean(0).cpu(), generator).to(options.device)


def code_optimizer(code: MapCode, options: CodePretraining) -> torch.optim.Optimizer:
    return torch.optim.AdamW(code.parameters(), lr=options.code_rate, weight_decay=0.01)


def transformed(place: Place, rng: np.random.Generator) -> Place:
    """The place turned, mirrored or not, and scaled to a radius within RADIUS_M, about the mean of its landmarks."""
    turn = Rotation.random(random_state=rng).as_matrix() * rng.choice((-1.0, 1.0))
    middle = place.points.mean(0)
    radius = float((place.points - middle).norm(dim=1).median().clamp(min=1e-6))
    scale = float(np.exp(rng.uniform(*np.log(RADIUS_M)))) / radius
    orthogonal = torch.tensor(turn, dtype=place.points.dtype, device=place.points.device)
    rotation, translation = place.camera_from_map[:, :, :3], place.camera_from_map[:, :, 3]
    return replace(place, points=scale * (place.points - middle) @ orthogonal.T, depth=scale * place.depth,
                   camera_from_map=torch.cat([rotation @ orthogonal.T,
                                              scale * (rotation @ middle + translation)[:, :, None]], 2))


def _step(net: TransformerHead, slot: _Slot, rng: np.random.Generator,
          options: CodePretraining) -> Iterator[tuple[str, Tensor]]:
    """A mapping step of a place, and query steps by their share; leaves their gradients in the regressor."""
    yield "mapping_loss", map_once(net, slot.code, slot.optimizer, slot.place, slot.age / slot.lifetime, rng, options)
    slot.age += 1
    if slot.age > slot.lifetime / 5 and rng.random() < options.query_share:
        index = torch.from_numpy(rng.integers(len(slot.place.features), size=options.batch)).to(options.device)
        loss = _query_loss(net, slot.code, slot.place, index)
        (loss / options.step_every).backward(inputs=list(net.parameters()))
        yield "query_loss", loss.detach()


def map_once(net: TransformerHead, code: MapCode, optimizer: torch.optim.Optimizer, place: Place, progress: float,
             rng: np.random.Generator, options: CodePretraining) -> Tensor:
    """One step of a code on a batch of landmarks; returns the loss (detached)."""
    index = torch.from_numpy(rng.integers(len(place.points), size=options.batch)).to(options.device)
    features = functional.dropout(place.keys[index].float(), options.feature_dropout)
    with training_precision(features.device.type):
        found = net(features, code)
    loss = laplace_loss(found.coordinates.float(), found.sigma.float(), place.points[index]).mean()
    (loss / options.step_every).backward()
    for group in optimizer.param_groups:
        group["lr"] = options.code_rate * one_cycle(progress)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _query_loss(net: TransformerHead, code: MapCode, place: Place, index: Tensor) -> Tensor:
    """Mean loss of patches of a later visit: by their points, or where those are unknown by reprojection."""
    with training_precision(place.points.device.type):
        found = net(place.features[index].float(), code)
    coordinates, sigma, truth = found.coordinates.float(), found.sigma.float(), place.truth(index)
    known = torch.isfinite(truth).all(1)
    loss = laplace_loss(coordinates, sigma, torch.where(known[:, None], truth, 0.0))
    if not bool(known.all()):
        loss = torch.where(known, loss, laplace_reprojection_loss(coordinates, sigma, place.view(index))[0])
    return loss.mean()


def evaluate(net: TransformerHead, places: list[Place], options: CodePretraining) -> dict[str, float]:
    """Of held-out rooms, mapped for a lifetime with the regressor frozen: median error in metres and share of later
    patches within 10 cm, share of later pictures within 10 cm and 5 degrees, by all patches and by the surest."""
    rows = []
    for number, place in enumerate(places):
        code = mapped(net, place, options, number)
        for picture in range(len(place.camera_from_map)):
            index = (place.picture == picture).nonzero()[:, 0]
            view, truth = place.view(index), place.truth(index)
            with torch.inference_mode():
                found = net(place.features[index].float(), code)
            apart = (found.coordinates - truth).norm(dim=1)
            rows.append([float(apart.median()), float((apart < 0.1).float().mean()),
                         located(found.coordinates, view, None),
                         located(found.coordinates, view, net.select_confident(found.sigma))])
    names = ("median_m", "patches_10cm", "recall", "sure_recall")
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) if rows else {}


def mapped(net: TransformerHead, place: Place, options: CodePretraining, seed: int) -> MapCode:
    """The place's code after a lifetime of mapping, with the regressor frozen."""
    code = new_code(place, options, seed)
    optimizer = code_optimizer(code, options)
    rng = np.random.default_rng(seed)
    net.requires_grad_(False)
    for step in range(options.lifetime):
        map_once(net, code, optimizer, place, step / options.lifetime, rng, options)
    net.requires_grad_(True)
    return code
