# SPDX-License-Identifier: Apache-2.0
"""The poses of a recording's images, from TF or from a pose topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from aceg_ros.datasets.bag.messages import frame_name, pose_matrix, stamp_ns
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.errors import UserError

# Frames of the pose topic in the transform tree; no recorded frame has such a name.
_WORLD, _POSED = "the pose topic's frame", "the posed frame"


class Poses(Protocol):
    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        """Return map_from_camera (4, 4) of the frame `camera` at a stamp. Raises UserError if it is not known then."""


@dataclass(frozen=True, kw_only=True)
class TfPoses:
    """Poses from TF. camera_frame: TF frame of the camera; empty for the frame_id of the image.

    hint: A sentence that is added to the reason why a pose is not known.
    """

    tree: TransformTree
    map_frame: str
    camera_frame: str
    hint: str = ""

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        try:
            return self.tree.lookup(self.map_frame, self.camera_frame or camera, stamp_ns)
        except UserError as error:
            raise UserError(f"{error}{self.hint}") from None


@dataclass(frozen=True, kw_only=True)
class TopicPoses:
    """Poses from a topic. child: the frame that they are poses of, from which TF leads to the camera; empty: camera."""

    tree: TransformTree
    child: str

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        try:
            pose = self.tree.lookup(_WORLD, _POSED, stamp_ns)
        except UserError:
            raise UserError("there is no pose around its stamp: of the poses,"
                            f" {self.tree.missing(_POSED, stamp_ns)}.") from None
        return pose if self.child in ("", camera) else pose @ self.tree.lookup(self.child, camera, stamp_ns)


def add_pose(tree: TransformTree, message: Any) -> None:
    """Add a message of the pose topic (PoseStamped, PoseWithCovarianceStamped or Odometry) to the tree."""
    pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
    _add(tree, (_WORLD, _POSED), stamp_ns(message), (pose.position, pose.orientation))


def add_transforms(tree: TransformTree, message: Any, static: bool) -> None:
    """Add a message of /tf or /tf_static to the tree."""
    for stamped in message.transforms:
        frames = frame_name(stamped.header.frame_id), frame_name(stamped.child_frame_id)
        fields = stamped.transform.translation, stamped.transform.rotation
        _add(tree, frames, stamp_ns(stamped), fields, static=static)


def _add(tree: TransformTree, frames: tuple[str, str], stamp_ns: int, fields: tuple[Any, Any], *,
         static: bool = False) -> None:
    """Add a transform; one that is not rigid is ignored."""
    try:
        pose = pose_matrix(*fields)
    except ValueError:
        return
    if np.isfinite(pose).all():
        parent, child = frames
        tree.add(parent, child, stamp_ns, pose, static=static)
