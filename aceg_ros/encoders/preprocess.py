# SPDX-License-Identifier: Apache-2.0
"""Prepares frames for an encoder (undistort, resample, convert to a tensor), and computes the pixels of its cells."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Camera, Frame
from aceg_ros.estimate import PoseEstimate, Status

MIN_SIDE_PX = 64
QUICK_FACTOR = 2.0          # by which an image can be made smaller without averaging and still has its keypoints

PreparedImage = tuple[np.ndarray, Camera, np.ndarray | None]        # image, pinhole camera, mask


def image_to_tensor(image: np.ndarray, device: str | torch.device) -> Tensor:
    """Convert an image (H, W, 3) uint8 RGB to the input of encoders: (1, 3, H, W) float32 in [0, 1], on the device."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float().div(255)


def valid_cells(mask: np.ndarray | None, height: int, width: int, stride: int) -> np.ndarray:
    """Return which cells (height, width) of a feature map are inside the mask with all their pixels; None: all are."""
    if mask is None:
        return np.ones((height, width), bool)
    blocks = mask[:height * stride, :width * stride].reshape(height, stride, width, stride)
    return np.all(blocks, axis=(1, 3))


def working_size(width: int, height: int, short_side: int, multiple: int) -> tuple[int, int]:
    """Return the image size (width, height) with about this short side, both sides multiples of `multiple`."""
    scale = short_side / min(width, height)
    new_width, new_height = (max(multiple, round(side * scale / multiple) * multiple) for side in (width, height))
    return new_width, new_height


def prepare(frame: Frame, short_side: int, multiple: int, *, is_quick: bool = False) -> PreparedImage:
    """Undistort and resample an image to the encoder's size: (image, pinhole camera, mask or None)."""
    image, mask = frame.camera.rectify(frame.image)
    return resample(image, frame.camera.rectified(), mask, short_side=short_side, multiple=multiple, is_quick=is_quick)


def resample(image: np.ndarray, camera: Camera, mask: np.ndarray | None, *, short_side: int, multiple: int,
             is_quick: bool = False) -> PreparedImage:
    """Resize an undistorted image with its camera and mask to the size given by `working_size`.

    is_quick: pixels are interpolated, not averaged, if the image becomes less than QUICK_FACTOR smaller, which takes a
    sixth of the time.
    """
    size = working_size(camera.width, camera.height, short_side, multiple)
    if size == (camera.width, camera.height):
        return image, camera, mask
    averages = size[0] * (QUICK_FACTOR if is_quick else 1.0) < camera.width
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if averages else cv2.INTER_LINEAR)
    if mask is not None:
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    return image, camera.resized(*size), mask


def patch_centres(columns: Tensor, rows: Tensor, stride: int) -> Tensor:
    """Return the centres (N, 2) of cells in pixels; that of cell (0, 0) is ((stride - 1) / 2, (stride - 1) / 2)."""
    return (torch.stack([columns, rows], -1).float() + 0.5) * stride - 0.5


def reject_image(frame: Frame) -> PoseEstimate | None:
    """Return a rejection if an image cannot be localized (wrong shape, type or size, or uniform), else None."""
    image, camera = frame.image, frame.camera
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        return PoseEstimate(status=Status.BAD_IMAGE, message="The image is not (height, width, 3) uint8 RGB.")
    if image.shape[:2] != (camera.height, camera.width):
        return PoseEstimate(
            status=Status.BAD_CAMERA,
            message=f"The image is {image.shape[1]}x{image.shape[0]}, but its camera says"
                    f" {camera.width}x{camera.height}: give the intrinsics of this image size.")
    if min(image.shape[:2]) < MIN_SIDE_PX:
        return PoseEstimate(
            status=Status.BAD_IMAGE,
            message=f"The image is {image.shape[1]}x{image.shape[0]}: at least {MIN_SIDE_PX} pixels a side are needed.")
    if image[::4, ::4].std() < 2.0:
        return PoseEstimate(status=Status.BAD_IMAGE,
                            message="The image is of one colour: is the lens covered or the light off?")
    return None
