# SPDX-License-Identifier: Apache-2.0
"""Dense RootSIFT (Lowe 2004; Arandjelovic & Zisserman 2012) with OpenCV: a baseline that needs no training."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from aceg_ros.encoders.feature_map import FeatureMap

STRIDE, DIM, KEYPOINT_SIZE_PX = 8, 128, 16.0


class SiftNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> upright descriptors at the patch centres, unit vectors times sqrt(128)."""

    dim = DIM

    def forward(self, images: Tensor) -> FeatureMap:
        arrays = (images.permute(0, 2, 3, 1).cpu().numpy() * 255).astype(np.uint8)
        descriptors = [self._describe(array) for array in arrays]
        return FeatureMap(torch.stack(descriptors).to(images.device), None)

    @staticmethod
    def _describe(image: np.ndarray) -> Tensor:
        height, width = (side // STRIDE for side in image.shape[:2])
        centres = [((column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5)
                   for row in range(height) for column in range(width)]
        keypoints = [cv2.KeyPoint(x, y, KEYPOINT_SIZE_PX, 0.0) for x, y in centres]
        _, found = cv2.SIFT.create().compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), keypoints)
        return torch.from_numpy(root_sift(found).T.reshape(DIM, height, width).copy()) * DIM**0.5


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """Return RootSIFT descriptors (N, 128), of unit length, of those of SIFT, which have no negative entries."""
    return np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6))
