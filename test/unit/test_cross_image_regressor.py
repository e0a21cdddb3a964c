# SPDX-License-Identifier: Apache-2.0
"""The cross-image regressor: a new one is a matcher, and its attention knows keyframes and pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.networks.coordinate_encoding import coordinate_loss, decode_coordinates, encode_coordinates
from aceg_ros.networks.cross_image_regressor import CrossImageConfig, CrossImageRegressor, KeyframeTokens
from aceg_ros.networks.image_attention import ImageGeometry
from aceg_ros.networks.keyframe_mixer import existing, padded

KEYFRAMES, TOKENS, KEYPOINTS = 3, 40, 30
SMALL = CrossImageConfig(dim_in=32, width=32)


class World:
    """Landmarks in a room, seen by three keyframes, and an image whose first keypoints show those of keyframe 1."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.descriptors = functional.normalize(torch.randn(KEYFRAMES, TOKENS, 32, generator=generator), dim=-1)
        self.points = 6.0 * torch.rand(KEYFRAMES, TOKENS, 3, generator=generator) - 3.0
        self.positions = torch.rand(KEYFRAMES, TOKENS, 2, generator=generator)
        self.valid = torch.ones(KEYFRAMES, TOKENS, dtype=torch.bool)
        self.query = self.descriptors[1, :KEYPOINTS]
        self.pixels = torch.rand(KEYPOINTS, 2, generator=generator)

    def keyframes(self, net: CrossImageRegressor) -> KeyframeTokens:
        tokens = net.mix(self.descriptors, self.positions, self.points, self.valid)
        return KeyframeTokens(tokens[None], self.points[None], self.valid[None])


def disturbed(seed: int = 0) -> CrossImageRegressor:
    """A network whose layers all do something, unlike those of a new one."""
    torch.manual_seed(seed)
    net = CrossImageRegressor(SMALL)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return net.eval()


def decoded(encoding: Tensor) -> Tensor:
    return decode_coordinates(encoding[0], torch.full((3,), -3.0), torch.full((3,), 3.0))


@torch.inference_mode()
def test_a_new_network_returns_the_landmarks_with_the_same_descriptors():
    world, net = World(), CrossImageRegressor(SMALL)
    found = net(world.query, world.pixels, world.keyframes(net))
    assert found.encoding.shape == (1, KEYPOINTS, 3, 6, 2) and found.confidence.shape == (1, KEYPOINTS)
    error = (decoded(found.encoding) - world.points[1, :KEYPOINTS]).norm(dim=1)
    assert float(error.median()) < 0.02 and float(error.max()) < 0.3


@torch.inference_mode()
def test_a_new_mixer_changes_nothing():
    world, net = World(), CrossImageRegressor(SMALL)
    mixed = net.mix(world.descriptors, world.positions, world.points, world.valid)
    assert torch.allclose(mixed, world.descriptors, atol=1e-5)


@torch.inference_mode()
def test_neither_the_order_of_keyframes_nor_padding_matters():
    world, net = World(), disturbed()
    plain = net(world.query, world.pixels, world.keyframes(net))
    lists = [list(each[[2, 0, 1]]) for each in (world.descriptors, world.positions, world.points)]
    descriptors, positions, points = (padded(each, TOKENS + 9) for each in lists)
    valid = existing(lists[0], TOKENS + 9)
    descriptors[~valid] = functional.normalize(torch.ones(32), dim=0)         # what is stored there must not matter
    points[~valid] = 100.0
    tokens = net.mix(descriptors, positions, points, valid)
    other = net(world.query, world.pixels, KeyframeTokens(tokens[None], points[None], valid[None]))
    assert torch.allclose(plain.encoding, other.encoding, atol=1e-4)
    assert torch.allclose(plain.confidence, other.confidence, rtol=1e-3)


@torch.inference_mode()
def test_groups_are_independent():
    """Late fusion asks for many keyframes at once: each gets the answer that it gets alone."""
    world, net = World(), disturbed()
    tokens, points, valid = world.keyframes(net)
    together = net(world.query, world.pixels, KeyframeTokens(tokens[0][:, None], points[0][:, None], valid[0][:, None]))
    for index in range(KEYFRAMES):
        alone = net(world.query, world.pixels, KeyframeTokens(tokens[:, index:index + 1], points[:, index:index + 1],
                                                              valid[:, index:index + 1]))
        assert torch.allclose(together.encoding[index], alone.encoding[0], atol=1e-5)


@torch.inference_mode()
def test_points_move_with_the_map():
    """Matching moves with the origin of the map: training has to keep what a new network has."""
    world, net = World(), CrossImageRegressor(SMALL)
    tokens, points, valid = world.keyframes(net)
    moved = net(world.query, world.pixels, KeyframeTokens(tokens, points + 700.0, valid))
    back = decode_coordinates(moved.encoding[0], torch.full((3,), 697.0), torch.full((3,), 703.0)) - 700.0
    error = (back - world.points[1, :KEYPOINTS]).norm(dim=1)
    assert float(error.median()) < 0.02


@torch.inference_mode()
def test_a_neighbourhood_that_agrees_decides_between_equal_landmarks():
    """Two landmarks with one descriptor, far from each other: that of the keypoint's neighbours is right."""
    world, net = World(), CrossImageRegressor(SMALL)
    world.points[:] = torch.tensor([-2.0, -2.0, -2.0]) + 0.1 * world.points
    world.descriptors[2, 0] = world.descriptors[1, 0]
    world.points[2, 0] = torch.tensor([2.0, 2.0, 2.0])
    found = net(world.query, world.pixels, world.keyframes(net))
    assert float((decoded(found.encoding)[0] - world.points[1, 0]).norm()) < 0.2         # of 7 between the two


def test_training_reaches_every_parameter():
    world, net = World(), disturbed()
    found = net(world.query, world.pixels, world.keyframes(net))
    coordinate_loss(found.encoding, found.confidence, world.points[1:2, :KEYPOINTS]).mean().backward()
    unused = [name for name, parameter in net.named_parameters()
              if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)]
    # Softmax is the same for all keys of a query if their common part changes.
    assert [name for name in unused if not name.endswith("key_value.bias")] == []


def test_rotation_depends_on_differences_of_positions():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 5, 16, generator=generator)
    positions = torch.rand(1, 5, 2, generator=generator)
    products = []
    for shift in (0.0, 0.3):
        geometry = ImageGeometry.of(positions + shift, heads=1, dim=16)
        products.append(geometry.rotate(q) @ geometry.rotate(k).transpose(-1, -2))
    assert torch.allclose(products[0], products[1], atol=1e-4)
    assert not torch.allclose(products[0], q @ k.transpose(-1, -2), atol=0.1)


@pytest.mark.parametrize("heads, radius", [(1, 0.05), (2, 0.25)])
def test_heads_look_around_within_their_radius(heads: int, radius: float):
    geometry = ImageGeometry.of(torch.tensor([[[0.0, 0.0], [radius, 0.0]]]), heads=heads, dim=16)
    assert float(geometry.bias[0, heads - 1, 0, 1]) == pytest.approx(-0.5)


def test_encoding_of_many_points_has_their_shape():
    assert encode_coordinates(torch.zeros(2, 5, 3)).shape == (2, 5, 3, 6, 2)
