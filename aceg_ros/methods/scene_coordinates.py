"""One picture to a pose, for every method that regresses scene coordinates: encode, regress, solve."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, prepare, reject_image, valid_cells
from aceg_ros.errors import UserError
from aceg_ros.estimate import Matches, PoseEstimate
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose

MAX_PATCHES = {"cpu": 2400, "cuda": 1_000_000}       # that a picture is localized by: beyond, one of each 2x2
MOST_RELIABLE = {"cpu": 600, "cuda": 4800}           # of these, where the encoder tells: the others are rarely right


class Regress(Protocol):
    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map points (N, 3) of features (N, C), and which of them (N,) are fit for the solver, None for all."""


@dataclass(frozen=True)
class SceneCoordinates:
    """What the network says of one picture: pixels (N, 2) and map points (N, 3) of the rectified, resampled camera.

    mask (N,): patches inside the undistorted picture, None for all. stage_ms: how long each step took.
    """

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera
    mask: np.ndarray | None
    stage_ms: dict[str, float]


class RegressionLocalizer:
    """Scene coordinates by an encoder and `regress`, pose by the solver. patch_offset_px: of imported maps, whose
    authors count pixels from another corner. most_patches: of those that `chosen_cells` gives, the most reliable.
    covariance_scale: of the map, see `mapping.calibration`."""

    def __init__(self, encoder: Encoder, regress: Regress, device: str, seed: int = 0, patch_offset_px: float = 0.0,
                 most_patches: int | None = None, covariance_scale: float = MIN_COVARIANCE_SCALE):
        self._most_patches, self._covariance_scale = most_patches, covariance_scale
        self._encoder, self._regress, self._device, self._seed = encoder, regress, device, seed
        self._patch_offset_px = patch_offset_px

    def localize(self, frame: Frame) -> PoseEstimate:
        """Pose of the camera in the map, or a refusal. Never raises on bad pictures or cameras."""
        refusal = reject_image(frame)
        if refusal is not None:
            return refusal
        seen = self.scene_coordinates(frame)
        started = time.perf_counter()
        correspondences = Correspondences(pixels=seen.pixels, points=seen.points, camera=seen.camera, mask=seen.mask)
        estimate = estimate_verified_pose(correspondences, seed=self._seed)
        seen.stage_ms["solve"] = 1e3 * (time.perf_counter() - started)
        covariance = None if estimate.covariance is None else self._covariance_scale * estimate.covariance
        return replace(estimate, covariance=covariance, stage_ms=estimate.stage_ms | seen.stage_ms,
                       matches=Matches(pixels=seen.pixels, points=seen.points, camera=seen.camera))

    @torch.inference_mode()
    def scene_coordinates(self, frame: Frame) -> SceneCoordinates:
        clock = time.perf_counter
        started = clock()
        stride = self._encoder.stride
        image, camera, mask = prepare(frame, self._encoder.short_side_px, stride)
        prepared = clock()
        tensor = image_to_tensor(image, self._device)
        grid = self._encoder.extract(tensor)
        features, reliability = grid.features[0], None if grid.reliability is None else grid.reliability[0]
        if features.is_cuda:
            torch.cuda.synchronize()
        encoded = clock()
        height, width = features.shape[1:]
        whole = valid_cells(mask, height, width, stride)
        if reliability is not None and mask is not None:
            reliability = torch.where(torch.from_numpy(whole).to(reliability.device), reliability, -1.0)
        rows, columns = chosen_cells(height, width, MAX_PATCHES[self._device], reliability)
        if self._most_patches is not None and reliability is not None and len(rows) > self._most_patches:
            best = reliability.cpu()[rows, columns].topk(self._most_patches, sorted=False).indices.sort().values
            rows, columns = rows[best], columns[best]
        points, usable = self._regress(features[:, rows, columns].T.contiguous())
        pixels = patch_centres(columns, rows, stride).numpy() + self._patch_offset_px
        cells = None if mask is None else whole[rows, columns]
        if usable is not None:
            sure = usable.cpu().numpy()
            cells = sure if cells is None else cells & sure
        regressed = clock()
        stage_ms = {"prepare": 1e3 * (prepared - started), "encode": 1e3 * (encoded - prepared),
                    "head": 1e3 * (regressed - encoded)}
        return SceneCoordinates(pixels, points.cpu().numpy(), camera, cells, stage_ms)


def localizer_of(scene_map: SceneMap, regress: Regress, *, device: str, seed: int, patch_offset_px: float = 0.0,
                 most_patches: int | None = None) -> RegressionLocalizer:
    """The localizer of a map, with the encoder that made it."""
    return RegressionLocalizer(encoder_of(scene_map, device), regress, device, seed, patch_offset_px=patch_offset_px,
                               most_patches=most_patches, covariance_scale=scene_map.covariance_scale)


def chosen_cells(height: int, width: int, most: int, reliability: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells to localize by: all, or where that is too many the most reliable of each 2x2.

    Without reliabilities, every n-th along each row, shifted from row to row.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    if height * width <= most:
        return rows.flatten(), columns.flatten()
    if reliability is None:
        step = -(-height * width // most)
        chosen = (columns + rows) % step == 0
        return rows[chosen], columns[chosen]
    _, index = torch.nn.functional.max_pool2d(reliability[None].cpu(), 2, ceil_mode=True, return_indices=True)
    return index.flatten() // width, index.flatten() % width


def encoder_of(scene_map: SceneMap, device: str) -> Encoder:
    """The encoder that a map was made with. Raises UserError where it is another one now."""
    reference = scene_map.network("encoder")
    encoder = load_encoder(reference.source, device)
    if encoder.identity != reference.identity:
        raise UserError(f"The map was made with encoder {reference.identity}, but '{reference.source}' is now"
                        f" {encoder.identity}: map the place again, or restore that encoder.")
    return encoder
