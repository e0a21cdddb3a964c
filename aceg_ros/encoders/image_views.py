# SPDX-License-Identifier: Apache-2.0
"""Other views of an image: smaller, or as a camera that is rolled about its optical axis would see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import Keypoints, extract_keypoints
from aceg_ros.encoders.preprocess import PreparedImage, resample
from aceg_ros.estimate import PoseEstimate
from aceg_ros.pose.correspondences import CameraFromMap


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """A view of an image. scale: of its sides. roll_deg: how far the image is turned clockwise about its middle, from
    -180 to 180; past 45 deg its sides are exchanged until 135."""

    scale: float = 1.0
    roll_deg: float = 0.0

    def __str__(self) -> str:
        parts = [f"turned by {self.roll_deg:g} deg"] * (self.roll_deg != 0) + [f"at {self.scale:g} of its size"] * (
            self.scale != 1)
        return ", ".join(parts) or "as it is"

    @property
    def view_from_camera(self) -> np.ndarray:
        """Rotation (3, 3) from the camera's frame into that of the view."""
        cos, sin = np.cos(np.radians(self.roll_deg)), np.sin(np.radians(self.roll_deg))
        return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

    def pose_of(self, pose: CameraFromMap) -> CameraFromMap:
        """Return the pose of the camera of this view, given that of the camera."""
        return CameraFromMap(rotation=self.view_from_camera @ pose.rotation,
                             translation=self.view_from_camera @ pose.translation)

    def extract(self, prepared: PreparedImage, encoder: Encoder, max_count: int) -> Keypoints:
        """Extract the keypoints of an image in this view, whose camera they have. `to_image` takes what is found with
        them back. prepared: the image, camera and mask that `prepare` returns for the encoder."""
        image, camera, mask = prepared
        image, camera, mask = resample(image, camera, mask, multiple=encoder.stride,
                                       short_side=round(self.scale * min(camera.width, camera.height)))
        if self.roll_deg:
            image, camera, mask = self._turned(image, camera, mask)
        return extract_keypoints(image, camera, encoder, mask=mask, max_count=max_count)

    def to_image(self, estimate: PoseEstimate, camera: Camera) -> PoseEstimate:
        """Return what was found with the keypoints of this view as an estimate for the image itself, as `camera` took
        it, without distortion and in any size.

        The covariance stays as it is: it is that of the position and of a rotation of the map's frame.
        """
        shown, pose = estimate.correspondences, estimate.map_from_camera
        if shown is not None:
            image_from_view = camera.K @ self.view_from_camera.T @ np.linalg.inv(shown.camera.K)
            pixels = cv2.perspectiveTransform(shown.pixels[:, None].astype(np.float64), image_from_view)[:, 0]
            shown = replace(shown, pixels=pixels, camera=camera)
        if pose is not None:
            pose = pose.copy()
            pose[:3, :3] = pose[:3, :3] @ self.view_from_camera
        return replace(estimate, map_from_camera=pose, correspondences=shown)

    def _turned(self, image: np.ndarray, camera: Camera, mask: np.ndarray | None
                ) -> tuple[np.ndarray, Camera, np.ndarray]:
        turned = self._turned_camera(camera)
        homography, size = turned.K @ self.view_from_camera @ np.linalg.inv(camera.K), (turned.width, turned.height)
        seen = np.full(image.shape[:2], 255, np.uint8) if mask is None else mask.astype(np.uint8) * 255
        return (cv2.warpPerspective(image, homography, size, flags=cv2.INTER_LINEAR), turned,
                cv2.warpPerspective(seen, homography, size, flags=cv2.INTER_LINEAR) == 255)

    def _turned_camera(self, camera: Camera) -> Camera:
        """Return the camera of the view: the middle of the image stays in the middle."""
        width, height = camera.width, camera.height
        if 45.0 < abs(self.roll_deg) < 135.0:
            width, height = height, width
        focal = float(np.sqrt(camera.fx * camera.fy))
        middle = np.array([(camera.cx - (camera.width - 1) / 2) / camera.fx,
                           (camera.cy - (camera.height - 1) / 2) / camera.fy])
        cx, cy = focal * self.view_from_camera[:2, :2] @ middle
        return replace(camera, width=width, height=height, fx=focal, fy=focal, cx=(width - 1) / 2 + cx,
                       cy=(height - 1) / 2 + cy)
