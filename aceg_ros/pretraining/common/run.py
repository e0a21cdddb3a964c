# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run, with its options, training curve, checkpoint and prepared data."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import write_bytes, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MAY_CHANGE = {"run", "device", "workers", "checkpoint_every"}      # options that a resumed run may change


def lock_options(run: Path, options: DataclassInstance) -> None:
    """Write the options of a run into its folder, or check that it was started with the same ones.

    Raises:
        UserError: the run was started with other options.
    """
    def fixed(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in fields if name not in _MAY_CHANGE}

    content = json.dumps(asdict(options, dict_factory=fixed), indent=1, default=lambda path: str(path.resolve()))
    path = run / "options.json"
    if path.exists() and path.read_text() != content:
        raise UserError(f"{run} was started with other options (see {path}): give the same, or another run folder.")
    run.mkdir(parents=True, exist_ok=True)
    write_text(path, content)


def log_statistics(run: Path, **statistics: float) -> None:
    """Print statistics and add them to the curve (curve.jsonl) in the run folder."""
    line = json.dumps({key: round(value, 5) for key, value in statistics.items()})
    print(line, flush=True)
    with open(run / "curve.jsonl", "a") as log:
        log.write(line + "\n")


def save_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Save a checkpoint, from which an interrupted run is resumed after `iteration` iterations."""
    write_state(run / "checkpoint.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                                        "iteration": iteration})


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> int:
    """Load the run's checkpoint if there is one. Returns the number of iterations done so far."""
    checkpoint = run / "checkpoint.pt"
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"]


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a file with `torch.save`, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a file with `np.savez`, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())
