"""What every training run does: its learning rate, its curve, its checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MAY_CHANGE = {"run", "device", "workers", "keep_every"}


def claim(run: Path, options: DataclassInstance) -> None:
    """Write into a run folder what it is a run of. Raises UserError where it was begun with other options."""
    def told(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in fields if name not in _MAY_CHANGE}

    content = json.dumps(asdict(options, dict_factory=told), indent=1, default=lambda path: str(path.resolve()))
    path = run / "options.json"
    if path.exists() and path.read_text() != content:
        raise UserError(f"{run} was begun with other options (see {path}): give the same, or another run folder.")
    run.mkdir(parents=True, exist_ok=True)
    write_text(path, content)


def warm_cosine(t: float) -> float:
    """Share of the peak rate at t in [0, 1]: warm-up over the first 4 %, then a cosine to 1 % of the peak."""
    return t / 0.04 + 0.02 if t < 0.04 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (t - 0.04) / 0.96))


def log_figures(run: Path, **figures: float) -> None:
    """Print figures and add them to the curve in the run folder."""
    line = json.dumps({key: round(value, 5) for key, value in figures.items()})
    print(line, flush=True)
    with open(run / "curve.jsonl", "a") as log:
        log.write(line + "\n")


def resume(run: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> int:
    """Load the run's checkpoint, if it has one; returns the iterations done so far."""
    checkpoint = run / "checkpoint.pt"
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"]


def save_checkpoint(run: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """By way of a temporary file."""
    temporary = run / "checkpoint.tmp"
    torch.save({"trained": trained.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration},
               temporary)
    temporary.rename(run / "checkpoint.pt")
