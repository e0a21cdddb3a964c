"""The poses of a recording's images: from TF, or from a topic of poses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from aceg_ros.datasets.bag.messages import frame_name, pose_matrix, stamp_ns
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.errors import UserError

_WORLD, _POSED = "the pose topic's frame", "the posed frame"        # names that no recording uses


class Poses(Protocol):
    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        """map_from_camera (4, 4) of the frame `camera`. Raises UserError if it is not known at that moment."""


@dataclass(frozen=True, kw_only=True)
class TfPoses:
    """Poses from TF. camera_frame: empty for the frame_id of the image."""

    tree: TransformTree
    map_frame: str
    camera_frame: str

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        return self.tree.lookup(self.map_frame, self.camera_frame or camera, stamp_ns)


@dataclass(frozen=True, kw_only=True)
class TopicPoses:
    """Poses from a topic. child: the frame whose pose it gives, joined to the camera by TF; empty: the camera's own."""

    tree: TransformTree
    child: str

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        try:
            pose = self.tree.lookup(_WORLD, _POSED, stamp_ns)
        except UserError:
            raise UserError("there is no pose around its stamp.") from None
        return pose if self.child in ("", camera) else pose @ self.tree.lookup(self.child, camera, stamp_ns)


def add_pose(tree: TransformTree, message: Any) -> None:
    """Add a message of the pose topic, of any of its types."""
    pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
    _add(tree, (_WORLD, _POSED), stamp_ns(message), (pose.position, pose.orientation))


def add_transforms(tree: TransformTree, message: Any, static: bool) -> None:
    """Add a message of /tf or /tf_static."""
    for stamped in message.transforms:
        frames = frame_name(stamped.header.frame_id), frame_name(stamped.child_frame_id)
        fields = stamped.transform.translation, stamped.transform.rotation
        _add(tree, frames, stamp_ns(stamped), fields, static=static)


def _add(tree: TransformTree, frames: tuple[str, str], stamp_ns: int, fields: tuple[Any, Any], *,
         static: bool = False) -> None:
    """Add a transform, unless it is not rigid: then it counts as not recorded."""
    try:
        pose = pose_matrix(*fields)
    except ValueError:
        return
    if np.isfinite(pose).all():
        parent, child = frames
        tree.add(parent, child, stamp_ns, pose, static=static)
