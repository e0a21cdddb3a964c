"""What the robot hears of an accepted estimate: pose, path and TF; or the reason why it hears nothing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from rclpy.time import Time as RosTime
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster

from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.pose.odometry_gate import GatedPose, OdometryGate, OdometryGateConfig, Verdict, transport_covariance
from aceg_ros.ros.common.frames import Frames, clean
from aceg_ros.ros.common.messages import pose_to_message, pose_to_transform, pose_with_covariance, stamp_ns
from aceg_ros.ros.common.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.localizer.worker import BAD_STAMP, NO_TRANSFORM, UNCONFIRMED, Answer

TF_POLICIES = ("auto", "map_to_odom", "map_to_base", "map_to_camera", "none")
FUTURE_NS = 1_000_000_000        # an image from further ahead than this has a wrong clock
BACKWARDS_S = 5.0                # stamps that jump back by more: a bag began again
LIVE_NS = 10_000_000_000         # images older than this are a replay without clock: nothing is stamped with now
PATH_POSES = 2000


@dataclass(frozen=True)
class PoseParameters:
    map_frame: str = parameter("map", "Frame of the poses.", read_only=True, check=not_empty)
    odom_frame: str = parameter("", "Frame of the odometry in TF. Where given, fixes are checked against odometry and "
                                "map_to_odom can be published.")
    base_frame: str = parameter("", "Frame of the robot in TF: ~/pose is its pose; empty: that of the camera.")
    camera_frame: str = parameter("", "Optical frame of the camera; empty: frame_id of the image.", read_only=True)
    tf_policy: str = parameter("auto", "Which transform to publish; auto: to the odometry where odom_frame is given, "
                               "else to the base where base_frame is given, else to the camera.", choices=TF_POLICIES)
    transform_tolerance: float = parameter(0.1, "Seconds by which transforms are post-dated.",
                                           minimum=0.0, maximum=10.0)
    tf_rate: float = parameter(20.0, "How often a second the transform is published again between fixes.",
                               minimum=0.1, maximum=200.0, read_only=True)
    tf_hold: float = parameter(1.0, "Seconds for which map_to_base and map_to_camera are published again after a fix: "
                               "no odometry carries them. map_to_odom is published for ever.",
                               minimum=0.0, maximum=3600.0)
    tf_timeout: float = parameter(0.3, "Seconds to wait for TF to know odometry and extrinsics at the image's stamp.",
                                  minimum=0.0, maximum=10.0)
    covariance: str = parameter("full", "full, or diagonal for readers that reject negative off-diagonals.",
                                choices=("full", "diagonal"))
    gate_sigmas: float = parameter(4.0, "With odometry: a fix this many standard deviations from the prediction is a "
                                   "jump; it takes several that agree to believe it.", minimum=1.0, maximum=100.0)
    gate_agreeing_fixes: int = parameter(3, "So many, the first fix after start included; 1 believes every fix.",
                                         minimum=1, maximum=100)
    gate_floor_m: float = parameter(0.05, "Standard deviation that is always granted to a fix, metres.",
                                    minimum=0.0, maximum=100.0)
    gate_floor_deg: float = parameter(2.0, "The same for its rotation, degrees.", minimum=0.0, maximum=180.0)
    odometry_drift: float = parameter(0.1, "Error of the odometry as a share of way and turn.",
                                      minimum=0.0, maximum=10.0)

    def refusal(self) -> str | None:
        if self.tf_policy == "map_to_odom" and not self.odom_frame:
            return "tf_policy map_to_odom needs odom_frame, the frame of the odometry in TF."
        if self.tf_policy == "map_to_base" and not self.base_frame:
            return "tf_policy map_to_base needs base_frame, the frame of the robot in TF."
        if self.tf_policy == "map_to_camera" and (self.odom_frame or self.base_frame):
            return ("tf_policy map_to_camera does not go with odom_frame or base_frame: the camera has a parent in TF"
                    " there and can have only one.")
        return None

    @property
    def published(self) -> str:
        """The policy that is in force: `tf_policy`, decided where it is auto."""
        if self.tf_policy != "auto":
            return self.tf_policy
        return "map_to_odom" if self.odom_frame else "map_to_base" if self.base_frame else "map_to_camera"

    @property
    def odometry_gate(self) -> OdometryGateConfig:
        return OdometryGateConfig(sigmas=self.gate_sigmas, floor_m=self.gate_floor_m,
                                  floor_rad=np.radians(self.gate_floor_deg), agreeing_fixes=self.gate_agreeing_fixes,
                                  drift=self.odometry_drift)


@dataclass(frozen=True)
class Prior:
    """Where the robot is likely to be: pose (4, 4) of the camera in the map, or of the base where is_base."""

    pose: np.ndarray
    covariance: np.ndarray
    is_base: bool = False


class PoseOutput:
    """Feed it each accepted answer from one thread; republish() and the rest may be called from another."""

    last_camera: tuple[np.ndarray, np.ndarray] | None       # the last published pose of the camera, and its covariance
    _path: deque[PoseStamped]
    _transform: tuple[np.ndarray, str] | None               # from the map to this child frame
    _is_live: bool                                          # images are about as old as the clock says
    _held_ns: int                                           # stamp of the fix behind the transform
    _sent_ns: int                                           # stamp of the transform that was sent last
    _last_stamp_s: float

    def __init__(self, node: Node, frames: Frames) -> None:
        self._node, self._frames = node, frames
        self._settings = ParameterGroup(node, PoseParameters, self._changed)
        self._lock = threading.Lock()
        self._poses = node.create_publisher(PoseWithCovarianceStamped, "~/pose", 10)
        self._paths = node.create_publisher(Path, "~/path", 1)
        self._broadcaster = TransformBroadcaster(node)
        self._gate = OdometryGate(self._settings.value.odometry_gate)
        self._prior: Prior | None = None
        self.is_suspended: Callable[[], bool] = lambda: False       # another one publishes the transform from the map
        self._forget()

    @property
    def settings(self) -> PoseParameters:
        return self._settings.value

    def reset(self) -> None:
        """Forget all poses: nothing is published before the next fix."""
        with self._lock:
            self._forget()

    def change_map(self) -> None:
        """Forget all poses, and hints as well: they mean nothing in another map."""
        with self._lock:
            self._prior = None
            self._forget()

    def expect(self, prior: Prior) -> None:
        """A hint for the next fix."""
        with self._lock:
            self._prior = prior

    def take(self, answer: Answer) -> Answer:
        """Publish what an accepted answer says. Returns it, or a refusal where it cannot be believed or placed."""
        assert answer.estimate is not None and answer.estimate.map_from_camera is not None
        assert answer.estimate.covariance is not None
        settings, stamp = self.settings, answer.header.stamp
        camera_frame = clean(settings.camera_frame or answer.header.frame_id)
        if settings.published == "map_to_camera" and not camera_frame:
            self._node.get_logger().warning("No TF: the image has no frame_id; set camera_frame.", once=True)
        try:        # outside the lock: it may wait
            base_from_camera = odom_from_camera = None
            if settings.base_frame:
                base_from_camera = self._frames.lookup(clean(settings.base_frame), camera_frame, stamp,
                                                       settings.tf_timeout)
            if settings.odom_frame:
                odom_from_camera = self._frames.lookup(clean(settings.odom_frame), camera_frame, stamp,
                                                       settings.tf_timeout)
        except UserError as error:
            return answer.refused(NO_TRANSFORM, str(error))
        with self._lock:
            now_ns = self._node.get_clock().now().nanoseconds
            if stamp_ns(stamp) > now_ns + FUTURE_NS:      # the clock went back while it was at work
                return answer.refused(BAD_STAMP, "The clock was set back while this image was being localized.")
            stamp_s = stamp_ns(stamp) * 1e-9
            if stamp_s < self._last_stamp_s - BACKWARDS_S:
                self._forget()
            fix = GatedPose(map_from_camera=answer.estimate.map_from_camera,
                            odom_from_camera=np.eye(4) if odom_from_camera is None else odom_from_camera,
                            covariance=answer.estimate.covariance, stamp_s=stamp_s)
            late = stamp_s < self._last_stamp_s
            if odom_from_camera is not None:
                verdict = self._check_odometry(fix, base_from_camera)
                if verdict is Verdict.PENDING:
                    return answer.refused(UNCONFIRMED, "The pose lies elsewhere than odometry and earlier poses say:"
                                          f" {settings.gate_agreeing_fixes} that agree are needed.")
                late = verdict is Verdict.LATE
            self._publish_pose(fix, base_from_camera, stamp)
            if not late:
                self._last_stamp_s = stamp_s
                self._is_live = abs(now_ns - stamp_ns(stamp)) < LIVE_NS
                self._held_ns = stamp_ns(stamp)
                self.last_camera = fix.map_from_camera, fix.covariance
                self._transform = self._new_transform(fix, base_from_camera, camera_frame)
                self._send(stamp_ns(stamp))
        return answer

    def republish(self) -> None:
        """The transform once more, dated now, while it holds."""
        with self._lock:
            now_ns = self._node.get_clock().now().nanoseconds
            held = self.settings.published == "map_to_odom" or now_ns - self._held_ns <= self.settings.tf_hold * 1e9
            if self._transform is not None and self._is_live and held:
                self._send(now_ns)

    def _check_odometry(self, fix: GatedPose, base_from_camera: np.ndarray | None) -> Verdict:
        if self._prior is not None:
            pose = self._prior.pose
            if self._prior.is_base:
                pose = pose @ (CAMERA_AHEAD if base_from_camera is None else base_from_camera)
            self._gate.set_prior(GatedPose(map_from_camera=pose, odom_from_camera=fix.odom_from_camera,
                                           covariance=self._prior.covariance, stamp_s=fix.stamp_s))
            self._prior = None
        return self._gate.update(fix)

    def _publish_pose(self, fix: GatedPose, base_from_camera: np.ndarray | None, stamp: Time) -> None:
        pose, covariance = fix.map_from_camera, fix.covariance
        if base_from_camera is not None:
            pose = pose @ invert(base_from_camera)
            covariance = transport_covariance(covariance, pose[:3, 3] - fix.map_from_camera[:3, 3])
        if self.settings.covariance == "diagonal":
            covariance = np.diag(np.diag(covariance))
        header = Header(stamp=stamp, frame_id=self.settings.map_frame)
        message = pose_with_covariance(pose, covariance, header)
        self._poses.publish(message)
        self._path.append(PoseStamped(header=header, pose=message.pose.pose))
        if self._paths.get_subscription_count():
            self._paths.publish(Path(header=header, poses=list(self._path)))

    def _new_transform(self, fix: GatedPose, base_from_camera: np.ndarray | None,
                       camera_frame: str) -> tuple[np.ndarray, str] | None:
        """The transform from the map, and its child frame."""
        policy, gated = self.settings.published, self._gate.pose
        pose = fix.map_from_camera if gated is None else gated.map_from_camera
        if policy == "map_to_odom" and gated is not None:
            return gated.map_from_odom, clean(self.settings.odom_frame)
        if policy == "map_to_base" and base_from_camera is not None:
            return pose @ invert(base_from_camera), clean(self.settings.base_frame)
        if policy == "map_to_camera" and camera_frame:
            return pose, camera_frame
        return None

    def _send(self, stamp_now_ns: int) -> None:
        """Stamps never go back: what was said of a moment stays said."""
        if self._transform is None or self.is_suspended():
            return
        matrix, child = self._transform
        tolerance_ns = int(self.settings.transform_tolerance * 1e9)
        self._sent_ns = max(stamp_now_ns + tolerance_ns, self._sent_ns + 1000)
        header = Header(stamp=RosTime(nanoseconds=self._sent_ns).to_msg(), frame_id=self.settings.map_frame)
        self._broadcaster.sendTransform(pose_to_transform(pose_to_message(matrix), header, child))

    def _changed(self, old: PoseParameters, new: PoseParameters) -> None:
        with self._lock:
            self._gate.config = new.odometry_gate
            if (old.published, old.odom_frame, old.base_frame) != (new.published, new.odom_frame, new.base_frame):
                self._forget()

    def _forget(self) -> None:
        self._gate.reset()
        self._path = deque(maxlen=PATH_POSES)
        self.last_camera = self._transform = None
        self._is_live = False
        self._held_ns = self._sent_ns = 0
        self._last_stamp_s = -np.inf


# base_from_camera where none is known: an optical frame that looks ahead.
CAMERA_AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
