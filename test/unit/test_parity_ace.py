# SPDX-License-Identifier: Apache-2.0
"""The ACE networks reproduce what their authors' implementation computes (../shared/parity)."""

import pytest
import torch
from parity import agrees, reference

from aceg_ros.encoders.ace import AceNet
from aceg_ros.networks.ace_head import head_from_state


def part(state: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["ace_homogeneous", "ace_euclidean"])
def test_reproduces_the_published_network(name):
    state, tensors, _ = reference(name)
    encoder = AceNet.from_state(part(state, "encoder."))
    head = head_from_state(part(state, "heads."))
    with torch.inference_mode():
        features = encoder.features(tensors["in.image"])
        coordinates = head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert agrees(features, tensors["out.features"])
    assert agrees(coordinates, tensors["out.scene_coordinates"])
