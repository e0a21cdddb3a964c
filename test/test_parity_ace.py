"""The ACE networks reproduce what their authors' implementation computes (../shared/parity)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aceg_ros.encoders.ace import AceNet
from aceg_ros.mapping.head import head_from_state

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"


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


def part(state: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", ["ace_homogeneous", "ace_euclidean"])
def test_reproduces_the_published_network(name):
    if not PARITY.is_dir():
        pytest.skip("../shared/parity is absent: parity with the published networks is not checked")
    spec = json.loads((PARITY / f"{name}.json").read_text())
    tensors = load_file(str(PARITY / f"{name}.safetensors"))
    state = filled_state(spec)
    encoder = AceNet.from_state(part(state, "encoder."))
    head = head_from_state(part(state, "heads."))
    with torch.inference_mode():
        features = encoder.features(tensors["in.image"])
        coordinates = head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for found, key in ((features, "out.features"), (coordinates, "out.scene_coordinates")):
        expected = tensors[key]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4 * expected.std()
