# SPDX-License-Identifier: Apache-2.0
"""Publish accepted poses: check them against odometry, then ~/pose, ~/path and the transform from the map."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from std_msgs.msg import Header

from aceg_ros.errors import UserError
from aceg_ros.estimate import PriorPose, Status
from aceg_ros.geometry import invert
from aceg_ros.pose.odometry_gate import GatedPose, OdometryGate, Verdict, transport_covariance
from aceg_ros.pose.prior_schedule import PriorSchedule
from aceg_ros.ros.common.messages import pose_with_covariance
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.transform_lookup import TransformLookup, normalize_frame_id
from aceg_ros.ros.localizer.parameters import PoseParameters
from aceg_ros.ros.localizer.prior import Prior
from aceg_ros.ros.localizer.results import BAD_STAMP, NO_TRANSFORM, UNCONFIRMED, LocalizationResult
from aceg_ros.ros.localizer.transform_publisher import TransformPublisher
from aceg_ros.utils.stamps import ns_to_s, stamp_to_ns

FUTURE_NS = 1_000_000_000        # stamps further in the future mean that clocks are not synchronized
_BACKWARDS_S = 5.0               # stamps that jump back further mean that a bag is played again
_PATH_POSES = 2000
_PRIOR_TIMEOUT_S = 0.02          # to wait for odometry before an image is localized: a prior is worth no more
# base_from_camera if it is not known: an optical frame that looks ahead.
_FORWARD_CAMERA = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@dataclass(frozen=True, kw_only=True)
class RobotFrames:
    """Transforms (4, 4) of the camera at the stamp of an image; None if base_frame or odom_frame is not set."""

    camera_frame: str
    base_from_camera: np.ndarray | None
    odom_from_camera: np.ndarray | None


class PoseOutput:
    """Publishes accepted results. publish() is called from one thread, all other methods from any thread.

    is_suspended() returns whether another node currently publishes the transform from the map.
    """

    last_camera_pose: tuple[np.ndarray, np.ndarray] | None       # map_from_camera (4, 4), and its covariance
    _path: deque[PoseStamped]
    _last_stamp_s: float

    def __init__(self, node: Node, transforms: TransformLookup, is_suspended: Callable[[], bool]) -> None:
        self._node, self._transforms = node, transforms
        self._group = ParameterGroup(node, PoseParameters, self._parameters_changed)
        self._lock = threading.Lock()
        self._poses = node.create_publisher(PoseWithCovarianceStamped, "~/pose", 10)
        self._paths = node.create_publisher(Path, "~/path", 1)
        self._tf = TransformPublisher(node, transforms, is_suspended)
        self._gate = OdometryGate(self.parameters.odometry_gate)
        self._schedule = PriorSchedule(self.parameters.prior_check_every, self.parameters.prior_check_seconds)
        self._prior: Prior | None = None
        self._map_frame = ""
        self._found: tuple[Header, PoseParameters, RobotFrames] | None = None      # what was asked TF for last
        self._reset()

    @property
    def parameters(self) -> PoseParameters:
        return self._group.value

    @property
    def _parameters_in_frame(self) -> PoseParameters:
        """The parameters, with the frame of the map in use if several maps have one each."""
        return replace(self.parameters, map_frame=self._map_frame) if self._map_frame else self.parameters

    @property
    def transform_problem(self) -> str:
        """Return the sentence that says why the transform is not published, or an empty string."""
        return self._tf.problem

    def publish(self, result: LocalizationResult) -> LocalizationResult:
        """Publish an accepted result. Returns it, or its rejection (stamp, TF, odometry)."""
        try:
            frames = self._look_up_frames(result.header, self.parameters.tf_timeout)    # outside the lock: it may wait
        except UserError as error:
            return result.rejected(NO_TRANSFORM, str(error))
        with self._lock:
            return self._check_and_publish(result, frames)

    def base_from_camera(self, camera_frame: str, stamp: Time) -> np.ndarray:
        """Look up where a camera of a rig is on the base (4, 4). Raises UserError if TF does not tell in time."""
        parameters = self.parameters
        if not parameters.base_frame:
            raise UserError("base_frame is not set, which the cameras of a rig are mounted on.")
        return self._transforms.lookup(normalize_frame_id(parameters.base_frame), camera_frame, stamp,
                                       parameters.tf_timeout)

    def prior(self, header: Header) -> PriorPose | None:
        """Return where the camera probably was at the stamp of an image: where it was told to be, or the last accepted
        pose carried on by odometry. None if that is unknown, or the image is to be localized without.

        Waits for odometry, but not long.
        """
        parameters = self.parameters
        with self._lock:
            is_known = self._prior is not None or self._gate.pose is not None
            if not (parameters.use_prior and parameters.odom_frame and is_known
                    and self._schedule.next_has_prior(ns_to_s(stamp_to_ns(header.stamp)))):
                return None
        try:
            frames = self._look_up_frames(header, min(_PRIOR_TIMEOUT_S, parameters.tf_timeout))
        except UserError:
            return None
        with self._lock:
            if self._prior is not None:
                return PriorPose(map_from_camera=_camera_pose(self._prior, frames.base_from_camera),
                                 covariance=self._prior.covariance)
            return None if frames.odom_from_camera is None else self._gate.prior(frames.odom_from_camera)

    def note_rejection(self, result: LocalizationResult) -> None:
        """Note that an image was rejected: if its place looks like another one, the prior may be at the wrong one."""
        if result.status == Status.AMBIGUOUS_POSE.value:
            with self._lock:
                self._schedule.note(agrees=False, had_prior=result.had_prior)

    def republish(self) -> None:
        """Publish the last transform again with the current time, as long as it is valid."""
        with self._lock:
            self._tf.republish(self._parameters_in_frame)

    def set_prior(self, prior: Prior) -> None:
        """Check the next pose against this prior."""
        with self._lock:
            self._prior = prior

    def reset(self) -> None:
        """Discard all poses: nothing is published before the next one."""
        with self._lock:
            self._reset()

    def change_map(self) -> None:
        """Discard all poses and the prior, which are not valid in another map."""
        with self._lock:
            self._prior = None
            self._map_frame = ""
            self._reset()

    def _look_up_frames(self, header: Header, timeout_s: float) -> RobotFrames:
        """Look up odometry and extrinsics at the image's stamp, once for its prior and its pose. Raises UserError if TF
        does not have them in time."""
        parameters = self.parameters
        if self._found is not None and self._found[:2] == (header, parameters):
            return self._found[2]
        is_base = bool(parameters.base_frame) and header.frame_id == parameters.base_frame       # the pose of a rig
        camera_frame = normalize_frame_id(header.frame_id if is_base else parameters.camera_frame or header.frame_id)
        if parameters.published_transform == "map_to_camera" and not camera_frame:
            self._node.get_logger().warning("No TF: the image has no frame_id; set camera_frame.", once=True)

        def frame_from_camera(frame: str) -> np.ndarray | None:
            return self._transforms.lookup(normalize_frame_id(frame), camera_frame, header.stamp,
                                           timeout_s) if frame else None

        frames = RobotFrames(camera_frame=camera_frame, base_from_camera=frame_from_camera(parameters.base_frame),
                             odom_from_camera=frame_from_camera(parameters.odom_frame))
        self._found = header, parameters, frames
        return frames

    def _check_and_publish(self, result: LocalizationResult, frames: RobotFrames) -> LocalizationResult:
        estimate, stamp_ns = result.estimate, stamp_to_ns(result.header.stamp)
        assert estimate is not None and estimate.map_from_camera is not None and estimate.covariance is not None
        if stamp_ns > self._node.get_clock().now().nanoseconds + FUTURE_NS:
            return result.rejected(BAD_STAMP, "The clock was set back while this image was being localized.")
        if estimate.map_frame != self._map_frame:           # another one of several maps
            self._reset()
            self._transforms.clear()
            self._map_frame = estimate.map_frame
        stamp_s = ns_to_s(stamp_ns)
        if stamp_s < self._last_stamp_s - _BACKWARDS_S:
            self._reset()
        odom_from_camera = np.eye(4) if frames.odom_from_camera is None else frames.odom_from_camera
        fix = GatedPose(map_from_camera=estimate.map_from_camera, odom_from_camera=odom_from_camera,
                        covariance=estimate.covariance, stamp_s=stamp_s)
        is_late = stamp_s < self._last_stamp_s
        if frames.odom_from_camera is not None:
            verdict = self._check_against_odometry(fix, frames.base_from_camera)
            self._schedule.note(agrees=verdict is not Verdict.PENDING, had_prior=result.had_prior)
            if verdict is Verdict.PENDING:
                return result.rejected(
                    UNCONFIRMED, "The pose is the first, or contradicts odometry and earlier poses: it is accepted once"
                    f" {self.parameters.gate_agreeing_fixes} consecutive poses agree.")
            is_late = verdict is Verdict.LATE
        self._publish_pose(fix, frames.base_from_camera, result.header.stamp)
        if not is_late:
            self._last_stamp_s = stamp_s
            self.last_camera_pose = fix.map_from_camera, fix.covariance
            self._tf.publish(self._transform_from_map(fix, frames), stamp_ns, self._parameters_in_frame)
        return result

    def _check_against_odometry(self, fix: GatedPose, base_from_camera: np.ndarray | None) -> Verdict:
        if self._prior is not None:
            self._gate.set_prior(GatedPose(map_from_camera=_camera_pose(self._prior, base_from_camera),
                                           odom_from_camera=fix.odom_from_camera,
                                           covariance=self._prior.covariance, stamp_s=fix.stamp_s))
            self._prior = None
        return self._gate.update(fix)

    def _publish_pose(self, fix: GatedPose, base_from_camera: np.ndarray | None, stamp: Time) -> None:
        pose, covariance = fix.map_from_camera, fix.covariance
        if base_from_camera is not None:
            pose = pose @ invert(base_from_camera)
            covariance = transport_covariance(covariance, pose[:3, 3] - fix.map_from_camera[:3, 3])
        if self.parameters.covariance == "diagonal":
            covariance = np.diag(np.diag(covariance))
        header = Header(stamp=stamp, frame_id=self._parameters_in_frame.map_frame)
        message = pose_with_covariance(pose, covariance, header)
        self._poses.publish(message)
        self._path.append(PoseStamped(header=header, pose=message.pose.pose))
        if self._paths.get_subscription_count():
            self._paths.publish(Path(header=header, poses=list(self._path)))

    def _transform_from_map(self, fix: GatedPose, frames: RobotFrames) -> tuple[np.ndarray, str] | None:
        """Return the transform to publish, map_from_child (4, 4), and its child frame."""
        policy, gated = self.parameters.published_transform, self._gate.pose
        pose = fix.map_from_camera if gated is None else gated.map_from_camera
        if policy == "map_to_odom" and gated is not None:
            return gated.map_from_odom, normalize_frame_id(self.parameters.odom_frame)
        if policy == "map_to_base" and frames.base_from_camera is not None:
            return pose @ invert(frames.base_from_camera), normalize_frame_id(self.parameters.base_frame)
        if policy == "map_to_camera" and frames.camera_frame:
            return pose, frames.camera_frame
        return None

    def _parameters_changed(self, old: PoseParameters, new: PoseParameters) -> None:
        with self._lock:
            self._gate.config = new.odometry_gate
            self._schedule.period, self._schedule.period_s = new.prior_check_every, new.prior_check_seconds
            if (old.published_transform, old.odom_frame, old.base_frame) != (
                    new.published_transform, new.odom_frame, new.base_frame):
                self._reset()

    def _reset(self) -> None:
        self._found = None
        self._gate.reset()
        self._schedule.reset()
        self._tf.reset()
        self._path = deque(maxlen=_PATH_POSES)
        self.last_camera_pose = None
        self._last_stamp_s = -np.inf


def _camera_pose(prior: Prior, base_from_camera: np.ndarray | None) -> np.ndarray:
    """Return the pose (4, 4) of the camera of a prior, which may be that of the base."""
    if not prior.is_base:
        return prior.pose
    return prior.pose @ (_FORWARD_CAMERA if base_from_camera is None else base_from_camera)
