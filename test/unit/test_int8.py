# SPDX-License-Identifier: Apache-2.0
"""The encoder in int8 finds nearly the same keypoints and descriptors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from aceg_ros.encoders import int8
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.synthetic.demo_room import demo_world, query_path
from aceg_ros.synthetic.render import EVENING

needs_int8 = pytest.mark.skipif(not int8.is_possible(), reason="this processor has no dot products of bytes")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    world = demo_world()
    return image_to_tensor(world.render_frame(query_path(3, world.room)[1], EVENING).image, "cpu")


@needs_int8
def test_keypoints_and_descriptors_are_nearly_those_of_float32(image: torch.Tensor, monkeypatch) -> None:
    monkeypatch.setattr(int8, "computes_in_bf16", lambda: False)
    encoder = load_encoder("compact4")
    found = encoder.detect(image)
    in_bytes = int8.in_int8(encoder).detect(image)
    assert not torch.equal(found.features, in_bytes.features)
    best = found.reliability.flatten().topk(500).indices
    moved = (found.keypoints - in_bytes.keypoints).norm(dim=1).flatten()[best]
    cosine = functional.cosine_similarity(found.features, in_bytes.features).flatten()[best]
    assert moved.median() < 0.05 and (moved < 1.0).float().mean() > 0.95
    assert cosine[moved < 1.0].median() > 0.999


@needs_int8
def test_the_network_itself_stays_as_it_was(image: torch.Tensor, monkeypatch) -> None:
    monkeypatch.setattr(int8, "computes_in_bf16", lambda: False)
    encoder = load_encoder("compact4")
    before = encoder.detect(image).features
    first, second = int8.in_int8(encoder), int8.in_int8(encoder)
    assert first.net is second.net is not encoder.net and first.identity == encoder.identity
    assert torch.equal(encoder.detect(image).features, before)
    assert torch.equal(first.detect(image).features, second.detect(image).features)


def test_other_networks_and_processors_keep_their_precision(monkeypatch) -> None:
    encoder, older = load_encoder("compact4"), load_encoder("compact")
    assert int8.in_int8(older) is older
    monkeypatch.setattr(int8, "computes_in_bf16", lambda: True)
    assert int8.in_int8(encoder) is encoder
    monkeypatch.setattr(int8, "computes_in_bf16", lambda: False)
    monkeypatch.setattr(int8, "is_possible", lambda: False)
    assert int8.in_int8(replace(encoder, name="same")).net is encoder.net
