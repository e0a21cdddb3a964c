# SPDX-License-Identifier: Apache-2.0
"""The pose transformer reproduces what its authors' implementation computes (../shared/parity)."""

import pytest
import torch
from coordinate_grid import coordinates_of_cells
from parity import reference

from aceg_ros.methods.marepo_localizer import tokens_of
from aceg_ros.networks.pose_transformer import transformer_from_release

MAX_DIFFERENCE = 1e-4


def rays_of(points, intrinsics, net):
    """The rays (N, 2) of the cells of an image, as they are made for the network. In the release, the centre of the
    first pixel is (0.5, 0.5)."""
    fx, fy, cx, cy = (float(intrinsics[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    found = coordinates_of_cells(points, 8, (fx, fy, cx - 0.5, cy - 0.5))
    return torch.from_numpy(tokens_of(found, 8, net).rays)


def run(net, state, tensors, mask=None):
    """The poses (B, 4, 4) after each group for the reference inputs."""
    coordinates, matrix = tensors["in.scene_coordinates"], tensors["in.intrinsics"]
    mean = state["transformer_pose_mean"].reshape(3)
    rays = torch.stack([rays_of(points.permute(1, 2, 0).numpy(), intrinsics, net)
                        for points, intrinsics in zip(coordinates, matrix, strict=True)])
    points = coordinates.flatten(2).transpose(1, 2) - mean
    with torch.inference_mode():
        found = net.eval()(points, rays, None if mask is None else mask.flatten(1).bool())
    poses = torch.eye(4).repeat(len(found), len(points), 1, 1)
    for pose, regressed in zip(poses, found, strict=True):
        pose[:, :3, :3], pose[:, :3, 3] = regressed.rotation, regressed.translation + mean
    return poses


@pytest.mark.needs_data
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["marepo_6D", "marepo_9D"])
def test_reproduces_the_published_network(name, masked):
    state, tensors, _ = reference(name)
    net = transformer_from_release(state)
    poses = run(net, state, tensors, tensors["in.mask"] if masked else None)
    prefix = "out.pose_masked" if masked else "out.pose"
    expected = {prefix: poses[-1]} if name.endswith("6D") else {f"{prefix}_block{n}": poses[n] for n in range(3)}
    for key, found in expected.items():
        assert (found - tensors[key]).abs().max() <= MAX_DIFFERENCE, key
