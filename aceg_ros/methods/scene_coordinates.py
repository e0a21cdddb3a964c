# SPDX-License-Identifier: Apache-2.0
"""The localizer that all methods with scene coordinate regression share.

Its steps: prepare the image, extract features, select cells, regress a map point for each, estimate the pose from these
correspondences, verify it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, prepare, reject_image, valid_cells
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, PriorPose
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.stopwatch import Stopwatch

MAX_CELLS = {"cpu": 2400, "cuda": 1_000_000}
MAX_RELIABLE_CELLS = {"cpu": 600, "cuda": 4800}


class SceneCoordinateRegressor(Protocol):
    """A regression network together with the map's data for it."""

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return map points (N, 3) for features (N, C), and which of them are confident, (N,) bool; None: all."""


@dataclass(frozen=True, kw_only=True)
class SceneCoordinateConfig:
    """Settings of the localizer.

    max_cells: if an image has more cells, one of each 2x2 is used. max_reliable_cells: of these, only this many of the
    most reliable are used, if the encoder predicts reliabilities; None: all. patch_offset_px: added to the pixels of
    the cells, for maps whose authors define pixel coordinates differently. covariance_scale: of the map, see
    `mapping.calibration`; applied to poses that have passed the gates. seed: of RANSAC.
    """

    max_cells: int
    max_reliable_cells: int | None = None
    patch_offset_px: float = 0.0
    covariance_scale: float = MIN_COVARIANCE_SCALE
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SceneCoordinates:
    """The map points that a regressor predicts for one image.

    pixels (N, 2) of the rectified, resampled `camera`, and their map points (N, 3) in metres. mask (N,) bool: usable
    ones, which are confident and inside the undistorted image; None: all. reliability (N,): of their descriptors, None
    if the encoder predicts none. confidence (N,): the more, the likelier a point is right, in any unit; None if nothing
    tells. stage_ms: duration of each step.
    """

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera
    mask: np.ndarray | None
    reliability: np.ndarray | None
    stage_ms: dict[str, float]
    confidence: np.ndarray | None = None


class Cells(NamedTuple):
    """Cells of a feature map: rows (N,) and columns (N,)."""

    rows: Tensor
    columns: Tensor


class SceneCoordinateLocalizer:
    """A `Localizer` that estimates the pose from scene coordinates."""

    def __init__(self, *, encoder: Encoder, regressor: SceneCoordinateRegressor, device: str,
                 config: SceneCoordinateConfig):
        self._encoder, self._regressor, self._device, self._config = encoder, regressor, device, config

    @classmethod
    def from_map(cls, scene_map: SceneMap, load_regressor: Callable[[SceneMap, str], SceneCoordinateRegressor], *,
               device: str, seed: int, patch_offset_px: float = 0.0) -> SceneCoordinateLocalizer:
        """Make the localizer of a map, with the encoder that it was made with and its regressor, on a device."""
        device = pick_device(device)
        config = SceneCoordinateConfig(max_cells=MAX_CELLS[device], max_reliable_cells=MAX_RELIABLE_CELLS[device],
                                       patch_offset_px=patch_offset_px, covariance_scale=scene_map.covariance_scale,
                                       seed=seed)
        regressor = load_regressor(scene_map, device)
        return cls(encoder=encoder_of(scene_map, device), regressor=regressor, device=device, config=config)

    @property
    def stride(self) -> int:
        """Pixels a cell of the encoder."""
        return self._encoder.stride

    @property
    def short_side_px(self) -> int:
        """Size of the images that the encoder takes."""
        return self._encoder.short_side_px

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera in the map, or reject the image; `prior` is not used."""
        rejection = reject_image(frame)
        if rejection is not None:
            return rejection
        found = self.scene_coordinates(frame)
        stopwatch = Stopwatch()
        correspondences = Correspondences(pixels=found.pixels, points=found.points, camera=found.camera,
                                          mask=found.mask)
        estimate = estimate_verified_pose(correspondences, seed=self._config.seed)
        stopwatch.lap("solve")
        stage_ms = estimate.stage_ms | found.stage_ms | stopwatch.laps_ms
        shown = ImageCorrespondences(pixels=found.pixels, points=found.points, camera=found.camera)
        return replace(estimate.with_covariance_times(self._config.covariance_scale), stage_ms=stage_ms,
                       correspondences=shown)

    @torch.inference_mode()
    def scene_coordinates(self, frame: Frame) -> SceneCoordinates:
        """Predict the map points of a frame, which must have passed `reject_image`."""
        stopwatch = Stopwatch()
        image, camera, image_mask = prepare(frame, self._encoder.short_side_px, self._encoder.stride)
        stopwatch.lap("prepare")
        features, valid = self._extract_features(image, image_mask)
        stopwatch.lap("encode")
        cells = select_cells(features, self._config.max_cells, self._config.max_reliable_cells)
        points, confident = self._regressor(features.features[0][:, cells.rows, cells.columns].T.contiguous())
        pixels = patch_centres(cells.columns, cells.rows, self._encoder.stride).numpy() + self._config.patch_offset_px
        mask = None if image_mask is None else valid[cells.rows, cells.columns]
        if confident is not None:
            usable = confident.cpu().numpy()
            mask = usable if mask is None else mask & usable
        points_on_cpu = points.cpu().numpy()
        reliability = None if features.reliability is None else \
            features.reliability[0].cpu()[cells.rows, cells.columns].numpy()
        stopwatch.lap("head")
        return SceneCoordinates(pixels=pixels, points=points_on_cpu, camera=camera, mask=mask, reliability=reliability,
                                stage_ms=stopwatch.laps_ms)

    def _extract_features(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[FeatureMap, np.ndarray]:
        """Extract the feature map of an image, and which cells are inside the mask; others get reliability -1."""
        found = self._encoder.extract(image_to_tensor(image, self._device))
        features, reliability = found.features, found.reliability
        if features.is_cuda:
            torch.cuda.synchronize()
        height, width = features.shape[2:]
        valid = valid_cells(mask, height, width, self._encoder.stride)
        if reliability is not None and mask is not None:
            reliability = torch.where(torch.from_numpy(valid).to(reliability.device), reliability, -1.0)
        return FeatureMap(features, reliability), valid


def select_cells(features: FeatureMap, max_cells: int, max_reliable_cells: int | None = None) -> Cells:
    """Select the cells of one image that are used to localize it, in row-major order.

    Up to max_cells cells are all used. If there are more, it is the most reliable one of each 2x2 or, without
    reliabilities, every n-th cell along diagonals. With reliabilities, only the max_reliable_cells best are kept.
    """
    height, width = features.features.shape[2:]
    reliability = None if features.reliability is None else features.reliability[0].cpu()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    if height * width <= max_cells:
        rows, columns = rows.flatten(), columns.flatten()
    elif reliability is None:
        step = -(-height * width // max_cells)
        chosen = (columns + rows) % step == 0
        rows, columns = rows[chosen], columns[chosen]
    else:
        _, index = torch.nn.functional.max_pool2d(reliability[None], 2, ceil_mode=True, return_indices=True)
        rows, columns = index.flatten() // width, index.flatten() % width
    if max_reliable_cells is not None and reliability is not None and len(rows) > max_reliable_cells:
        best = reliability[rows, columns].topk(max_reliable_cells, sorted=False).indices.sort().values
        rows, columns = rows[best], columns[best]
    return Cells(rows, columns)


def encoder_of(scene_map: SceneMap, device: str) -> Encoder:
    """Return the encoder that a map was made with. Raises UserError if it has changed since."""
    reference = scene_map.network("encoder")
    encoder = load_encoder(reference.source, device)
    reference.check(encoder, role="encoder")
    return encoder
