# SPDX-License-Identifier: Apache-2.0
"""The reference weights and outputs of ../shared/parity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"


def reference(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """State dict, inputs and outputs, and configuration of a published network."""
    if not PARITY.is_dir():
        pytest.skip("../shared/parity is absent: parity with the published networks is not checked")
    spec = json.loads((PARITY / f"{name}.json").read_text())
    return filled_state(spec), load_file(str(PARITY / f"{name}.safetensors")), spec["config"]


def filled_state(spec: dict) -> dict[str, torch.Tensor]:
    """The reference weights, by the rule of parity/README.md."""
    state = {}
    for key, entry in spec["state"].items():
        shape = entry["shape"]
        if "value" in entry:
            state[key] = torch.tensor(entry["value"], dtype=torch.float32).reshape(shape)
            continue
        g = np.random.RandomState(entry["seed"]).standard_normal(shape)
        if len(shape) >= 2:
            g = g * 1.2 / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("weight"):
            g = 1 + 0.1 * g
        else:
            g = 0.1 * g
        state[key] = torch.from_numpy(g.astype(np.float32))
    return state


def agrees(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * expected.std())
