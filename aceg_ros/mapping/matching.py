# SPDX-License-Identifier: Apache-2.0
"""Matches the patches of two mapping images along epipolar lines, since their poses are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import extract_keypoints
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, valid_cells
from aceg_ros.mapping.augmentation import PreparedFrame

MAX_ERROR_CELLS = 0.75                 # tolerance: patches are half a cell accurate in each direction
TEXTURE_WINDOW_PX = 5


@dataclass(frozen=True, kw_only=True)
class ExtractedFeatures:
    """The selected patches of an image, the most reliable first, and its camera.

    features (N, C) of unit length; cells (N,), flat indices into the feature map of height and width map_size; pixels
    (N, 2); rays (N, 3) in the map frame, with unit depth along the optical axis. centre (3,): of the camera in the map.
    camera_from_map (3, 4); intrinsics (4,) fx fy cx cy.
    """

    features: Tensor
    cells: Tensor
    pixels: Tensor
    rays: Tensor
    centre: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor
    map_size: tuple[int, int]

    def best(self, count: int) -> ExtractedFeatures:
        """Return the `count` most reliable patches."""
        return replace(self, features=self.features[:count], cells=self.cells[:count], pixels=self.pixels[:count],
                       rays=self.rays[:count])

    @property
    def axis(self) -> Tensor:
        """The optical axis (3,) in the map frame."""
        return self.camera_from_map[2, :3]


@torch.inference_mode()
def extract_features(frame: PreparedFrame, encoder: Encoder, max_patches: int) -> ExtractedFeatures:
    """Extract the most reliable patches of an image; without reliabilities, those with the most texture."""
    image = image_to_tensor(frame.image, encoder.device)
    found = encoder.extract(image)
    features, reliability = found.features, found.reliability
    height, width = features.shape[2:]
    device = features.device
    if reliability is None:
        score = torch.from_numpy(_texture(frame.image, encoder.stride)[:height, :width]).to(device)
    else:
        score = reliability[0]
    score = (score * torch.from_numpy(valid_cells(frame.mask, height, width, encoder.stride)).to(device)).flatten()
    cells = score.topk(min(max_patches, int((score > 0).sum()))).indices
    pixels = patch_centres(cells % width, cells // width, encoder.stride)
    chosen = torch.nn.functional.normalize(features[0].flatten(1).T[cells], dim=1)
    return _with_geometry(frame, chosen, cells, pixels, map_size=(height, width))


def extract_mapping_keypoints(frame: PreparedFrame, encoder: Encoder, max_count: int) -> ExtractedFeatures:
    """Extract the most reliable keypoints of a mapping image, sub-pixel where the encoder has or allows keypoints."""
    found = extract_keypoints(frame.image, frame.camera, encoder, mask=frame.mask, max_count=max_count)
    cells, pixels = (torch.from_numpy(array).to(found.descriptors.device) for array in (found.cells, found.pixels))
    return _with_geometry(frame, found.descriptors, cells, pixels, map_size=found.map_size)


def _with_geometry(frame: PreparedFrame, features: Tensor, cells: Tensor, pixels: Tensor, *,
                   map_size: tuple[int, int]) -> ExtractedFeatures:
    """Add what a posed camera says about features: rays, centre, pose and intrinsics."""
    camera, device = frame.camera, features.device
    intrinsics = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], device=device)
    pose = torch.from_numpy(frame.map_from_camera).float().to(device)
    local = torch.cat([(pixels - intrinsics[2:]) / intrinsics[:2], torch.ones_like(pixels[:, :1])], 1)
    return ExtractedFeatures(features=features, cells=cells, pixels=pixels, rays=local @ pose[:3, :3].T,
                             centre=pose[:3, 3], camera_from_map=torch.linalg.inv(pose)[:3], intrinsics=intrinsics,
                             map_size=map_size)


def measured_depths(frame: PreparedFrame, extracted: ExtractedFeatures, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Return the measured depths (N,) of an image at its extracted patches, NaN if unknown.

    offset: pixels (x, y) to go aside, as far as the image reaches.
    """
    pixels = extracted.pixels
    if frame.depth_m is None:
        return pixels.new_full((len(pixels),), float("nan"))
    column, row = (pixels.round().long().cpu() + torch.tensor(offset)).unbind(1)
    height, width = frame.depth_m.shape
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    depth = torch.from_numpy(frame.depth_m.astype(np.float32))[row, column].to(pixels.device)
    return torch.where(depth > 0, depth, float("nan"))


def _texture(image: np.ndarray, stride: int) -> np.ndarray:
    """Return the smaller eigenvalue (h, w) of each patch's structure tensor: how well it can be localized."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = (side // stride * stride for side in grey.shape)
    strength = cv2.cornerMinEigenVal(grey, TEXTURE_WINDOW_PX)[:height, :width]
    return strength.reshape(height // stride, stride, width // stride, stride).max((1, 3)) + 1e-9


def match_features(a: ExtractedFeatures, b: ExtractedFeatures, band_px: float) -> Tensor:
    """Match each patch of a: returns the indices (N,) of its matches in b, -1 for no match.

    Matches are mutual nearest neighbours among the pairs within band_px of the epipolar line.
    """
    lines = epipolar_lines(a.rays, a.centre, b.camera_from_map[None], b.intrinsics[None])[0]
    error = lines @ homogeneous_pixels(b.pixels, b.intrinsics).T
    similarity = torch.where(error.abs() < band_px, a.features @ b.features.T, -2.0)
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    mutual = backward[forward] == torch.arange(len(forward), device=forward.device)
    possible = similarity.gather(1, forward[:, None])[:, 0] > -2.0
    return torch.where(mutual & possible, forward, -1)


def epipolar_lines(rays: Tensor, centre: Tensor, camera_from_map: Tensor, intrinsics: Tensor) -> Tensor:
    """Compute the epipolar lines (V, N, 3) of N rays in V other images.

    rays (N, 3): in the map frame, from centre (3,). camera_from_map (V, 3, 4); intrinsics (V, 4). The dot product of a
    line and `homogeneous_pixels` is the distance in pixels.
    """
    directions = rays @ camera_from_map[:, :, :3].transpose(1, 2)
    origin = (camera_from_map[:, :, :3] @ centre + camera_from_map[:, :, 3])[:, None]
    normals = torch.linalg.cross(origin.expand_as(directions), directions)
    lines = normals / torch.cat([intrinsics[:, None, :2], torch.ones_like(intrinsics[:, None, :1])], -1)
    return lines / lines[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-12)


def homogeneous_pixels(pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """Return (u - cx, v - cy, 1), (..., N, 3), of pixels (u, v), (..., N, 2)."""
    return torch.cat([pixels - intrinsics[..., None, 2:], torch.ones_like(pixels[..., :1])], -1)
