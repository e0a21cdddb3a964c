# SPDX-License-Identifier: Apache-2.0
"""Predicts the coloured point cloud of a trained map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aceg_ros.mapping.losses import reproject
from aceg_ros.mapping.patch_buffer import PatchBuffer

MAX_ERROR_PX = 4.0
CANDIDATES_PER_POINT = 3
BATCH = 8192


@torch.inference_mode()
def predict_point_cloud(predict: Callable[[Tensor], Tensor], buffer: PatchBuffer, max_points: int,
                        seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predict the points of random patches and keep those with a small reprojection error.

    predict: features (B, C) -> coordinates (B, 3). Returns points (N, 3) float32 and colours (N, 3) uint8.
    """
    order = torch.randperm(buffer.size, generator=torch.Generator().manual_seed(seed))
    points, colours = [], []
    for part in order[:CANDIDATES_PER_POINT * max_points].split(BATCH):
        patches = buffer.patches(part.to(buffer.device))
        coordinates = predict(patches.features)
        reprojection = reproject(coordinates, patches.view)
        good = reprojection.valid & (reprojection.error_px < MAX_ERROR_PX)
        points.append(coordinates[good].float().cpu().numpy())
        colours.append(patches.colours[good].cpu().numpy())
    return np.concatenate(points)[:max_points].astype(np.float32), np.concatenate(colours)[:max_points]
