# SPDX-License-Identifier: Apache-2.0
"""Correspondences of several cameras that are mounted together, under one pose of their base.

They are used like those of one image: a pose is that of the base, image blocks are those of all images, and residuals
and Jacobians are computed with the mounts of the cameras. So refinement, significance, gates and covariance are the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.pose.correspondences import (
    BLOCK_COUNT,
    CameraFromMap,
    Consensus,
    Correspondences,
    UsableCorrespondences,
)
from aceg_ros.pose.gauss_newton import Observations

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


@dataclass(frozen=True, kw_only=True)
class RigCorrespondences(Correspondences):
    """Correspondences of several images. views: the cameras. view: (N,) number of each one's camera among these, in
    ascending order.

    `camera` is that of the first view; its size stands for that of all.
    """

    views: tuple[RigView, ...]
    view: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if (np.diff(self.view) < 0).any():
            raise ValueError("correspondences of a rig must be in the order of its cameras")

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

    @cached_property
    def observations(self) -> Observations:
        mounts = [view.camera_from_rig for view in self.views]
        return self._observations(np.searchsorted(self.view, np.arange(len(self.views) + 1)),
                                  [view.camera for view in self.views],
                                  [np.column_stack([mount.rotation, mount.translation]) for mount in mounts])

    def of_main_image(self, consensus: Consensus) -> Consensus | None:
        counts = np.bincount(self.view[consensus.inliers], minlength=len(self.views))
        main = int(np.argmax(counts))
        if counts[main] < MAIN_IMAGE_SHARE * max(int(counts.sum()), 1):
            return None
        return Consensus.from_pose(self.parts[main][1], self.views[main].pose(consensus.pose), consensus.threshold_px)
