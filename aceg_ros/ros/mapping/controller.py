# SPDX-License-Identifier: Apache-2.0
"""Mapping on the robot: collect keyframes, train a map from them, switch to the new map."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from aceg_ros.errors import UserError
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.services import Outcome
from aceg_ros.ros.common.transform_lookup import TransformLookup, normalize_frame_id
from aceg_ros.ros.localizer.results import LocalizationRequest, LocalizationResult
from aceg_ros.ros.mapping.keyframe_recorder import MIN_KEYFRAMES, KeyframeRecorder, KeyframeRecorderConfig
from aceg_ros.ros.mapping.parameters import MappingParameters
from aceg_ros.ros.mapping.pose_source import LOCALIZATION, LocalizedPoses, make_pose_source
from aceg_ros.ros.mapping.training_process import TrainingConfig, TrainingProcess
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.progress import Progress
from aceg_ros.utils.stamps import stamp_to_ns

IDLE, COLLECTING, TRAINING = "idle", "collecting", "training"
MAPPED_FILE = "mapped.json"         # in a recording: the path of its map


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """Values of node parameters. camera_frame: empty for the frame_id of the image."""

    device: str
    seed: int
    map_frame: str
    camera_frame: str


@dataclass(frozen=True, kw_only=True)
class MappingStatus:
    """The state of mapping.

    Attributes:
        state: idle, collecting or training.
        message: What happened last, as a sentence.
        failed: Whether `message` reports a failure.
        recording: Folder of the latest recording.
        map_path: Path of the latest map.
        progress: Progress of the training.
    """

    state: str = IDLE
    message: str = "Nothing was mapped yet."
    failed: bool = False
    recording: str = ""
    map_path: str = ""
    progress: Progress | None = None


class MappingController:
    """The state machine of mapping. start(), stop() and cancel() return success and a message.

    cameras() returns the names of those of a rig, none for one camera. map_in_use() returns the path of the map in use,
    empty if there is none. use_map(path) switches the node to a new
    map and returns None, or the reason why it could not. on_change() is called after each change of the status, from
    several threads.
    """

    def __init__(self, node: Node, transforms: TransformLookup, config: MappingConfig, *,
                 cameras: Callable[[], Sequence[str]], map_in_use: Callable[[], str],
                 use_map: Callable[[str], str | None], on_change: Callable[[], None]) -> None:
        self._node, self._transforms, self._config, self._cameras = node, transforms, config, cameras
        self._map_in_use, self._use_map, self._on_change = map_in_use, use_map, on_change
        self._extended: Path | None = None
        self._localized: LocalizedPoses | None = None
        self._parameters = ParameterGroup(node, MappingParameters)
        self._lock = threading.RLock()
        self._recorder: KeyframeRecorder | None = None
        self._closing = False
        self._training: TrainingProcess | None = None
        self._status = MappingStatus()
        self._warn_of_unmapped_recordings()

    @property
    def folder(self) -> Path:
        """Return the folder of recordings, maps and the last pose."""
        chosen = self._parameters.value.data_folder
        if chosen:
            return Path(chosen).expanduser()
        home = Path(os.environ.get("ROS_HOME") or "~/.ros").expanduser()
        return home / "aceg_ros" / self._node.get_fully_qualified_name().strip("/").replace("/", "_")

    @property
    def status(self) -> MappingStatus:
        return self._status

    @property
    def uses_map_tf(self) -> bool:
        """Whether mapping currently takes poses from TF, so that another node publishes the transform from the map."""
        return self._recorder is not None and self._parameters.value.mapping_pose_source == "tf"

    def values(self) -> dict[str, object]:
        """Return the state and statistics by their keys in messages."""
        status, recorder = self._status, self._recorder
        values: dict[str, object] = {"state": status.state, "recording": status.recording, "map": status.map_path}
        if recorder is not None:
            values |= {"keyframes": recorder.keyframes, "keyframes_with_depth": recorder.with_depth,
                       **{f"images.{name}": count for name, count in sorted(dict(recorder.outcomes).items())},
                       "last_problem": recorder.problem}
        if status.progress is not None:
            values |= {"stage": status.progress.stage, "progress": f"{status.progress.fraction:.3f}",
                       "remaining_s": f"{status.progress.remaining_s:.0f}",
                       "reprojection_px": f"{status.progress.reprojection_px:.2f}"}
        return values

    def submit(self, request: LocalizationRequest) -> None:
        """Consider this image, or those of a rig, as keyframes, if keyframes are being collected."""
        recorder = self._recorder
        if recorder is not None:
            recorder.submit(request)

    def note_result(self, result: LocalizationResult) -> None:
        """Consider the poses of the result's images as those of keyframes."""
        localized = self._localized
        if localized is not None:
            poses = result.camera_poses
            localized.note({(stamp_to_ns(header.stamp), self._camera_frame(header)): poses.get(name)
                            for name, header in result.image_headers.items()})

    def _camera_frame(self, header: Header) -> str:
        return normalize_frame_id(self._config.camera_frame or header.frame_id)

    def start(self) -> Outcome:
        """Begin to collect keyframes."""
        with self._lock:
            if self._recorder is not None:
                return False, (f"Keyframes are being collected already: {self._recorder.keyframes} in"
                               f" {self._recorder.folder}.")
            if self._closing:
                return False, "The last recording is still being closed: call ~/start_mapping again."
            if self._training is not None:
                return False, "A map is being trained: wait for it, or call ~/cancel_mapping."
            in_use, parameters = self._map_in_use(), self._parameters.value
            if parameters.mapping_pose_source == LOCALIZATION and not in_use:
                return False, ("mapping_pose_source is localization, but there is no map to localize in: load one, or"
                               " give poses from TF or a topic.")
            self._extended = Path(in_use) if parameters.mapping_extends and in_use else None
            folder = self.folder / "recordings" / datetime.now().strftime("%Y%m%d_%H%M%S_%f")[:-3]
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                return False, f"The folder {folder} cannot be made: {error.strerror or error}."
            self._recorder = self._start_recorder(folder)
            message = f"Collecting keyframes in {folder}{'' if self._extended is None else f' to extend {in_use}'}."
            self._change(MappingStatus(state=COLLECTING, message=message, recording=str(folder),
                                       map_path=self._status.map_path))
            return True, message

    def _start_recorder(self, folder: Path) -> KeyframeRecorder:
        parameters = self._parameters.value
        config = KeyframeRecorderConfig(
            keyframes=parameters.keyframes, max_keyframes=parameters.mapping_max_keyframes,
            pose_timeout_s=parameters.mapping_pose_timeout, camera_frame=self._config.camera_frame,
            use_depth=parameters.mapping_use_depth)
        poses = make_pose_source(self._node, self._transforms, parameters.mapping_pose_source,
                                 map_frame=self._config.map_frame, child_frame=parameters.mapping_child_frame)
        self._localized = poses if isinstance(poses, LocalizedPoses) else None
        recorder = KeyframeRecorder(folder, config, poses, self._node.get_logger())
        if config.use_depth:
            self._depths = [self._node.create_subscription(
                Image, f"{name}/depth/image" if name else "depth/image", partial(recorder.submit_depth, name),
                qos_profile_sensor_data) for name in self._cameras() or ("",)]
        return recorder

    def stop(self) -> Outcome:
        """Stop collecting, and start to train a map from the keyframes."""
        with self._lock:
            recorder = self._recorder
            if recorder is None:
                return False, "No keyframes are being collected: call ~/start_mapping first."
            missing = recorder.missing()
            if missing is not None:
                return False, missing
        if not self._close(recorder):       # outside the lock: it waits for the disk
            return False, "The mapping was stopped or cancelled meanwhile."
        with self._lock:
            self._closing = False
            parameters = self._parameters.value
            output = self.folder / "maps" / f"{recorder.folder.name}.map"
            message = f"Started to train a map from {recorder.keyframes} keyframes; it will be {output}."
            self._change(replace(self._status, state=TRAINING, message=message))
            config = TrainingConfig(recording=recorder.folder, output=output, method=parameters.mapping_method,
                                    budget_s=parameters.mapping_budget, device=self._config.device,
                                    seed=self._config.seed, use_depth=recorder.with_depth > 0, extended=self._extended)
            self._training = TrainingProcess(config, self._training_progressed, self._training_ended)
            return True, message

    def cancel(self) -> Outcome:
        """Stop collecting or training; the recording stays on disk."""
        with self._lock:
            recorder, training = self._recorder, self._training
        if recorder is not None:
            if not self._close(recorder):
                return False, "The mapping was stopped or cancelled meanwhile."
            message = f"Mapping cancelled; the {recorder.keyframes} keyframes stay in {recorder.folder}."
            with self._lock:
                self._closing = False
                self._change(replace(self._status, state=IDLE, message=message))
            return True, message
        if training is not None:
            training.cancel()
            return True, f"Training cancelled; the recording stays in {training.config.recording}."
        return False, "Nothing is being mapped."

    def _close(self, recorder: KeyframeRecorder) -> bool:
        """Close this recorder; none can start until the caller resets `_closing`. False if another call closes it."""
        with self._lock:
            if self._recorder is not recorder or self._closing:
                return False
            self._closing = True
        recorder.close()
        with self._lock:
            self._recorder = None
            if recorder.config.use_depth:
                for subscription in self._depths:
                    self._node.destroy_subscription(subscription)
        return True

    def _training_progressed(self, progress: Progress) -> None:
        self._change(replace(self._status, progress=progress))

    def _training_ended(self, error: str | None) -> None:
        with self._lock:                # `stop` holds the lock until `_training` is set
            training = self._training
        assert training is not None
        recording, path = training.config.recording, str(training.config.output)
        if error is None:
            try:
                error = self._use_map(path)
            except Exception as failure:        # of any kind: mapping must not stay in the state training forever
                error = f"{path} was made, but is not in use ({failure!r})."
        if error is None:
            message = f"Mapped: localizing in {path}."
            try:
                write_json({"map": path}, recording / MAPPED_FILE)
            except UserError as failure:
                self._node.get_logger().warning(str(failure))
        else:
            message = f"No new map: {error} The recording stays in {recording}."
            self._node.get_logger().error(message)
        with self._lock:
            self._training = None
        self._change(MappingStatus(state=IDLE, message=message, failed=error is not None, recording=str(recording),
                                   map_path=path if error is None else self._status.map_path))

    def _change(self, status: MappingStatus) -> None:
        with self._lock:
            self._status = status
        self._on_change()

    def _warn_of_unmapped_recordings(self) -> None:
        """Warn of recordings whose mapping was interrupted."""
        for recording in sorted((self.folder / "recordings").glob("*")):
            images = len(list((recording / "rgb").glob("*.jpg")))
            if images >= MIN_KEYFRAMES and not (recording / MAPPED_FILE).exists():
                self._node.get_logger().warning(
                    f"{recording} holds {images} keyframes that were never mapped: 'aceg map {recording} -o FILE'.")
