# SPDX-License-Identifier: Apache-2.0
"""Correspondences of several cameras that are mounted together, under one pose of their base.

They are used like those of one image: a pose is that of the base, image blocks are those of all images, and residuals
and Jacobians are put together from those of each image. So refinement, significance, gates and covariance are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.geometry import skew
from aceg_ros.pose.correspondences import (
    BLOCK_COUNT,
    CameraFromMap,
    Consensus,
    Correspondences,
    Residuals,
    UsableCorrespondences,
)

MAIN_IMAGE_SHARE = 0.95         # of the inliers in one image, from which the others do not help against ambiguity


@dataclass(frozen=True, kw_only=True)
class RigView:
    """A camera of a rig. camera: of the rectified image. camera_from_rig: maps points of the base into the camera."""

    camera: Camera
    camera_from_rig: CameraFromMap

    def pose(self, rig_from_map: CameraFromMap) -> CameraFromMap:
        """Return the pose of the camera, given that of the base."""
        mount = self.camera_from_rig
        return CameraFromMap(rotation=mount.rotation @ rig_from_map.rotation,
                             translation=mount.rotation @ rig_from_map.translation + mount.translation)

    def rig_pose(self, camera_from_map: CameraFromMap) -> CameraFromMap:
        """Return the pose of the base, given that of the camera."""
        back = self.camera_from_rig.rotation.T
        return CameraFromMap(rotation=back @ camera_from_map.rotation,
                             translation=back @ (camera_from_map.translation - self.camera_from_rig.translation))

    @cached_property
    def adjoint(self) -> np.ndarray:
        """(6, 6): what a change (d, w) of the pose of the base is for the camera; see `refinement`."""
        mount = self.camera_from_rig
        adjoint = np.kron(np.eye(2), mount.rotation)
        adjoint[:3, 3:] = skew(mount.translation) @ mount.rotation
        return adjoint.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class RigCorrespondences(Correspondences):
    """Correspondences of several images. views: the cameras. view: (N,) number of each one's camera among these.

    `camera` is that of the first view; its size stands for that of all.
    """

    views: tuple[RigView, ...]
    view: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[tuple[Correspondences, np.ndarray]]) -> RigCorrespondences:
        """Put the correspondences of images together, each given with its rig_from_camera (4, 4)."""
        views = tuple(RigView(camera=part.camera, camera_from_rig=CameraFromMap.from_pose(rig_from_camera))
                      for part, rig_from_camera in parts)
        return cls(pixels=np.concatenate([part.pixels for part, _ in parts]),
                   points=np.concatenate([part.points for part, _ in parts]), camera=views[0].camera, views=views,
                   view=np.repeat(np.arange(len(parts)), [len(part.pixels) for part, _ in parts]))

    def subset(self, chosen: np.ndarray) -> RigCorrespondences:
        return replace(self, pixels=self.pixels[chosen], points=self.points[chosen], view=self.view[chosen])

    def of_view(self, number: int) -> RigCorrespondences:
        """Return the correspondences of one view, still under the pose of the base."""
        return self.subset(self.view == number)

    def select_usable(self) -> UsableRigCorrespondences:
        found = super().select_usable()
        return UsableRigCorrespondences(
            pixels=found.pixels, points=found.points, weights=found.weights, camera=found.camera,
            indices=found.indices, total_count=found.total_count, views=self.views, view=self.view[found.indices])


@dataclass(frozen=True, kw_only=True)
class UsableRigCorrespondences(UsableCorrespondences):
    """Usable correspondences of several images, whose poses are those of the base."""

    views: tuple[RigView, ...]
    view: np.ndarray

    @cached_property
    def parts(self) -> tuple[tuple[np.ndarray, UsableCorrespondences], ...]:
        """The indices (M,) of the correspondences of each view, and these alone."""
        found = []
        for number, view in enumerate(self.views):
            rows = np.flatnonzero(self.view == number)
            found.append((rows, UsableCorrespondences(
                pixels=self.pixels[:, rows], points=self.points[:, rows], weights=self.weights[rows],
                camera=view.camera, indices=self.indices[rows], total_count=len(rows))))
        return tuple(found)

    @property
    def block_count(self) -> int:
        return BLOCK_COUNT * len(self.views)

    @cached_property
    def blocks(self) -> np.ndarray:
        blocks = np.zeros(self.count, int)
        for number, (rows, part) in enumerate(self.parts):
            blocks[rows] = part.blocks + BLOCK_COUNT * number
        return blocks

    def subset(self, chosen: np.ndarray) -> UsableRigCorrespondences:
        return replace(self, pixels=self.pixels[:, chosen], points=self.points[:, chosen],
                       weights=self.weights[chosen], indices=self.indices[chosen], view=self.view[chosen])

    def mirrored(self) -> UsableRigCorrespondences:
        principal = np.array([view.camera.cx for view in self.views])[self.view]
        return replace(self, pixels=np.stack([2.0 * principal - self.pixels[0], self.pixels[1]]))

    def residuals(self, pose: CameraFromMap) -> Residuals:
        pixels, depth_m, squared_px = np.zeros((2, self.count)), np.zeros(self.count), np.zeros(self.count)
        for (rows, part), view in zip(self.parts, self.views, strict=True):
            found = part.residuals(view.pose(pose))
            pixels[:, rows], depth_m[rows], squared_px[rows] = found.pixels, found.depth_m, found.squared_px
        return Residuals(pixels=pixels, depth_m=depth_m, squared_px=squared_px)

    def linearize(self, pose: CameraFromMap) -> tuple[Residuals, np.ndarray]:
        jacobian = np.zeros((6, 2, self.count), np.float32)
        for (rows, part), view in zip(self.parts, self.views, strict=True):
            of_camera = part.linearize(view.pose(pose))[1]
            jacobian[:, :, rows] = np.einsum("ij,ikn->jkn", view.adjoint, of_camera)
        return self.residuals(pose), jacobian

    def linearize_each(self, rotations: np.ndarray, translations: np.ndarray
                       ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = [self.linearize(CameraFromMap(rotation=rotation, translation=translation))
                 for rotation, translation in zip(rotations, translations, strict=True)]
        return (np.stack([residuals.pixels for residuals, _ in found]),
                np.stack([residuals.squared_px for residuals, _ in found]),
                np.stack([jacobian for _, jacobian in found]))

    def of_main_image(self, consensus: Consensus) -> Consensus | None:
        counts = np.bincount(self.view[consensus.inliers], minlength=len(self.views))
        main = int(np.argmax(counts))
        if counts[main] < MAIN_IMAGE_SHARE * max(int(counts.sum()), 1):
            return None
        return Consensus.from_pose(self.parts[main][1], self.views[main].pose(consensus.pose), consensus.threshold_px)
