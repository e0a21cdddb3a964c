# SPDX-License-Identifier: Apache-2.0
"""Corners as keypoints: they stay on the same point of the scene when the image moves by a fraction of a pixel."""

import cv2
import numpy as np
import torch

from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.corners import find_corners, sample, with_corners

STRIDE = 8


def blobs(shift: tuple[float, float] = (0.0, 0.0), textured: int = 128) -> np.ndarray:
    """A grey image (96, 128) with smooth random texture on the first `textured` columns, moved by `shift` pixels."""
    rng = np.random.default_rng(0)
    large = cv2.GaussianBlur(rng.random((96 * 4, 128 * 4), np.float32), (0, 0), 6.0)
    large = (large - large.min()) / np.ptp(large)
    large[:, textured * 4:] = 0.5
    move = np.float32([[1, 0, shift[0] * 4], [0, 1, shift[1] * 4]])
    moved = cv2.warpAffine(large, move, large.shape[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return cv2.resize(moved, (128, 96), interpolation=cv2.INTER_AREA)


def test_corners_move_with_the_image():
    still, quality = find_corners(blobs(), STRIDE)
    moved, _ = find_corners(blobs((0.4, -0.3)), STRIDE)
    offset = (moved - still)[quality > 0.6]
    same = np.abs(offset).max(1) < 2.0            # else another corner has become the strongest one of the cell
    assert same.sum() >= 40
    assert same.mean() > 0.8
    assert np.abs(np.median(offset[same], 0) - (0.4, -0.3)).max() < 0.1
    assert (np.abs(offset[same] - (0.4, -0.3)).max(1) < 0.6).mean() > 0.7


def test_cells_without_texture_have_no_quality():
    _, quality = find_corners(blobs(textured=96), STRIDE)
    assert quality[:, 13:].max() < 0.05
    assert quality[:, :11].max() > 0.7


def test_keypoints_lie_in_their_cells():
    positions, _ = find_corners(np.random.default_rng(0).random((96, 128), np.float32), STRIDE)
    rows, columns = np.mgrid[:12, :16]
    offset = positions - np.stack([columns, rows], -1) * STRIDE
    assert offset.min() >= -0.5
    assert offset.max() <= STRIDE - 0.5


def test_sampling_at_the_centres_of_cells_returns_the_descriptors():
    features = torch.nn.functional.normalize(torch.randn(1, 16, 5, 7), dim=1) * 4.0
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    centres = torch.stack([columns, rows], -1)[None] * STRIDE + (STRIDE - 1) / 2
    torch.testing.assert_close(sample(features, centres, STRIDE), features)


def test_the_shipped_encoder_with_corners():
    encoder = load_encoder("compact")
    image = torch.from_numpy(blobs())[None, None].expand(1, 3, 96, 128)
    found = with_corners(image, encoder.extract(image), encoder.stride)
    assert found.keypoints.shape == (1, 2, 12, 16)
    assert found.reliability.shape == (1, 12, 16)
    lengths = found.features.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, encoder.dim ** 0.5), rtol=1e-3, atol=0.0)
