"""Mapping on the robot: collect, train, switch to the new map."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from aceg_ros.errors import UserError
from aceg_ros.mapping.keyframes import KeyframeConfig
from aceg_ros.methods import registry
from aceg_ros.ros.common.frames import Frames
from aceg_ros.ros.common.parameters import ParameterGroup, parameter
from aceg_ros.ros.localizer.worker import Request
from aceg_ros.ros.mapping.pose_source import SOURCES, make_pose_source
from aceg_ros.ros.mapping.session import MIN_KEYFRAMES, MappingSession, SessionConfig
from aceg_ros.ros.mapping.training import Training, TrainingConfig
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.progress import Progress

IDLE, COLLECTING, TRAINING = "idle", "collecting", "training"
MAPPED = "mapped.json"          # in a recording: which map was made of it


@dataclass(frozen=True)
class MappingParameters:
    data_folder: str = parameter("", "Folder for recordings, maps and the last pose; empty: aceg_ros/<node name> in "
                                 "ROS_HOME or ~/.ros.", read_only=True)
    mapping_pose_source: str = parameter("tf", "Where poses come from while mapping: tf (map_frame -> camera), or the "
                                         "topic mapping_pose of that type.", choices=SOURCES)
    mapping_child_frame: str = parameter("", "Whose pose the topic mapping_pose gives; empty: the camera. Odometry "
                                         "names it itself.")
    mapping_pose_timeout: float = parameter(0.5, "Seconds to wait for the pose at an image's stamp.",
                                            minimum=0.0, maximum=10.0)
    mapping_min_distance: float = parameter(0.1, "A keyframe after this way in metres,", minimum=0.0, maximum=100.0)
    mapping_min_angle: float = parameter(8.0, "or this turn in degrees,", minimum=0.0, maximum=360.0)
    mapping_min_interval: float = parameter(0.1, "but not before this time in seconds.", minimum=0.0, maximum=3600.0)
    mapping_min_sharpness: float = parameter(0.5, "Images blurred below this share of the usual sharpness are left "
                                             "out; 0: none.", minimum=0.0, maximum=1.0)
    mapping_max_keyframes: int = parameter(1000, "Collect no more than these.", minimum=5, maximum=100000)
    mapping_use_depth: bool = parameter(False, "Learn from the aligned depth images on depth/image, too.")
    mapping_method: str = parameter("", "Method of the map; empty: the default.", choices=("", *registry.names()))
    mapping_budget: float = parameter(300.0, "Seconds that training may take at most.", minimum=5.0, maximum=86400.0)


@dataclass(frozen=True)
class MappingStatus:
    """What there is to know. state: idle, collecting or training. message: what happened last. map_path: the newest map
    that was made."""

    state: str = IDLE
    message: str = "Nothing was mapped yet."
    failed: bool = False
    recording: str = ""
    map_path: str = ""
    progress: Progress | None = None


class Mapping:
    """start(), stop(), cancel(): each returns whether it did so, and a sentence. serve(path) switches the node to a new
    map and returns the sentence of its refusal, or None. on_change is called from several threads."""

    def __init__(self, node: Node, frames: Frames, device: str, seed: int, map_frame: str, camera_frame: str,
                 serve: Callable[[str], str | None], on_change: Callable[[], None]) -> None:
        self._node, self._frames, self._device, self._seed = node, frames, device, seed
        self._map_frame, self._camera_frame = map_frame, camera_frame
        self._serve, self._on_change = serve, on_change
        self._settings = ParameterGroup(node, MappingParameters)
        self._lock = threading.RLock()
        self._session: MappingSession | None = None
        self._closing = False
        self._training: Training | None = None
        self._status = MappingStatus()
        self._warn_of_orphans()

    @property
    def folder(self) -> Path:
        """Where everything is kept."""
        chosen = self._settings.value.data_folder
        if chosen:
            return Path(chosen).expanduser()
        home = Path(os.environ.get("ROS_HOME") or "~/.ros").expanduser()
        return home / "aceg_ros" / self._node.get_fully_qualified_name().strip("/").replace("/", "_")

    @property
    def status(self) -> MappingStatus:
        return self._status

    @property
    def collects_from_tf(self) -> bool:
        """Whether the transform from the map is somebody else's at present."""
        return self._session is not None and self._settings.value.mapping_pose_source == "tf"

    def values(self) -> dict[str, object]:
        """Flat figures by the names that users see."""
        status, session = self._status, self._session
        values: dict[str, object] = {"state": status.state, "recording": status.recording, "map": status.map_path}
        if session is not None:
            values |= {"keyframes": session.keyframes, "keyframes_with_depth": session.with_depth,
                       **{f"images.{name}": count for name, count in sorted(dict(session.outcomes).items())},
                       "last_problem": session.problem}
        if status.progress is not None:
            values |= {"stage": status.progress.stage, "progress": f"{status.progress.fraction:.3f}",
                       "remaining_s": f"{status.progress.remaining_s:.0f}",
                       "reprojection_px": f"{status.progress.reprojection_px:.2f}"}
        return values

    def offer(self, request: Request) -> None:
        session = self._session
        if session is not None:
            session.offer(request)

    def start(self) -> tuple[bool, str]:
        with self._lock:
            if self._session is not None:
                return False, f"Mapping is on already: {self._session.keyframes} keyframes in {self._session.folder}."
            if self._closing:
                return False, "The last mapping is just ending: call ~/start_mapping again."
            if self._training is not None:
                return False, "A map is being trained: wait for it, or call ~/cancel_mapping."
            settings = self._settings.value
            folder = self.folder / "recordings" / _new_name()
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                return False, f"The folder {folder} cannot be made: {error.strerror or error}."
            config = SessionConfig(
                KeyframeConfig(settings.mapping_min_distance, settings.mapping_min_angle,
                               settings.mapping_min_interval, settings.mapping_min_sharpness),
                settings.mapping_max_keyframes, settings.mapping_pose_timeout, self._camera_frame,
                settings.mapping_use_depth)
            poses = make_pose_source(self._node, self._frames, settings.mapping_pose_source, self._map_frame,
                                     settings.mapping_child_frame)
            self._session = session = MappingSession(folder, config, poses, self._node.get_logger())
            if settings.mapping_use_depth:
                self._depth = self._node.create_subscription(Image, "depth/image", session.offer_depth,
                                                             qos_profile_sensor_data)
            message = f"Collecting keyframes in {folder}."
            self._change(MappingStatus(COLLECTING, message, recording=str(folder), map_path=self._status.map_path))
            return True, message

    def stop(self) -> tuple[bool, str]:
        with self._lock:
            session = self._session
            if session is None:
                return False, "No mapping is on: call ~/start_mapping first."
            missing = session.missing()
            if missing is not None:
                return False, missing
        if not self._close(session):    # outside the lock: it waits for the disk
            return False, "The mapping was stopped or cancelled meanwhile."
        with self._lock:
            self._closing = False
            settings = self._settings.value
            output = self.folder / "maps" / f"{session.folder.name}.map"
            message = f"Started to train a map of {session.keyframes} keyframes; it will be {output}."
            self._change(replace(self._status, state=TRAINING, message=message))
            self._training = Training(
                TrainingConfig(session.folder, output, settings.mapping_method, settings.mapping_budget, self._device,
                               self._seed, session.with_depth > 0), self._progressed, self._ended)
            return True, message

    def cancel(self) -> tuple[bool, str]:
        with self._lock:
            session, training = self._session, self._training
        if session is not None:
            if not self._close(session):
                return False, "The mapping was stopped or cancelled meanwhile."
            message = f"Mapping cancelled; the {session.keyframes} keyframes stay in {session.folder}."
            with self._lock:
                self._closing = False
                self._change(replace(self._status, state=IDLE, message=message))
            return True, message
        if training is not None:
            training.cancel()
            return True, f"Training cancelled; the recording stays in {training.config.recording}."
        return False, "Nothing is being mapped."

    def shutdown(self) -> None:
        self.cancel()

    def _close(self, session: MappingSession) -> bool:
        """End this session; until the caller resets `_closing`, none can begin. False where another call ends it."""
        with self._lock:
            if self._session is not session or self._closing:
                return False
            self._closing = True
        session.close()
        with self._lock:
            self._session = None
            if session.config.use_depth:
                self._node.destroy_subscription(self._depth)
        return True

    def _progressed(self, progress: Progress) -> None:
        self._change(replace(self._status, progress=progress))

    def _ended(self, error: str | None) -> None:
        with self._lock:                # `stop` holds it until it has stored the training
            training = self._training
        assert training is not None
        recording, path = training.config.recording, str(training.config.output)
        if error is None:
            try:
                error = self._serve(path)
            except Exception as failure:        # of any kind: mapping must not stay in this state for ever
                error = f"{path} was made, but is not in use ({failure!r})."
        if error is None:
            message = f"Mapped: localizing in {path}."
            try:
                write_json({"map": path}, recording / MAPPED)
            except UserError as failure:
                self._node.get_logger().warning(str(failure))
        else:
            message = f"No new map: {error} The recording stays in {recording}."
            self._node.get_logger().error(message)
        with self._lock:
            self._training = None
        self._change(MappingStatus(IDLE, message, error is not None, str(recording),
                                   path if error is None else self._status.map_path))

    def _change(self, status: MappingStatus) -> None:
        with self._lock:
            self._status = status
        self._on_change()

    def _warn_of_orphans(self) -> None:
        """Recordings whose mapping was cut off are never lost silently."""
        for recording in sorted((self.folder / "recordings").glob("*")):
            pictures = len(list((recording / "rgb").glob("*.jpg")))
            if pictures >= MIN_KEYFRAMES and not (recording / MAPPED).exists():
                self._node.get_logger().warning(
                    f"{recording} holds {pictures} keyframes that were never mapped: 'aceg map {recording} -o FILE'.")


def _new_name() -> str:
    return datetime.now().strftime("%Y%m%d_%H%M%S_%f")[:-3]

