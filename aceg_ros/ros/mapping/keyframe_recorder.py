# SPDX-License-Identifier: Apache-2.0
"""Record keyframes (image, camera, pose and, if available, depth) to disk while the robot drives."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import Image

from aceg_ros.camera import Frame
from aceg_ros.datasets import write_ace_scene
from aceg_ros.datasets.image_decoder import decode_depth
from aceg_ros.errors import UserError
from aceg_ros.mapping.keyframes import KeyframeConfig, KeyframeSelector, has_parallax
from aceg_ros.ros.common.messages import frame_from_messages
from aceg_ros.ros.common.transform_lookup import normalize_frame_id
from aceg_ros.ros.localizer.results import LocalizationRequest
from aceg_ros.ros.mapping.pose_source import PoseSource
from aceg_ros.utils.stamps import stamp_to_ns, stamp_to_s

MIN_KEYFRAMES = 5
_QUEUED_IMAGES = 8              # images in memory until they are written
_QUEUED_DEPTHS = 16
_MAX_DEPTH_DIFFERENCE_NS = 20_000_000
_DEPTH_TIMEOUT_S = 0.2


@dataclass(frozen=True, kw_only=True)
class KeyframeRecorderConfig:
    """Options of a recording. max_keyframes: limit for disk and training. camera_frame: empty for the frame_id of the
    image."""

    keyframes: KeyframeConfig
    max_keyframes: int
    pose_timeout_s: float
    camera_frame: str = ""
    use_depth: bool = False


class KeyframeRecorder:
    """Writes one recording, an ACE folder, which can be read even if this process is killed.

    Attributes:
        outcomes: Number of images by outcome.
        problem: The latest reason why an image was left out.
        with_depth: Number of keyframes with depth.
    """

    def __init__(self, folder: Path, config: KeyframeRecorderConfig, poses: PoseSource, logger: RcutilsLogger) -> None:
        self.folder, self.config = folder, config
        self.outcomes: Counter[str] = Counter()
        self.problem = ""
        self.with_depth = 0
        self._poses, self._logger = poses, logger
        # By name of the camera: those of a rig look elsewhere, and their images of one moment come together.
        self._selectors: dict[str, KeyframeSelector] = {}
        self._positions: dict[str, list[np.ndarray]] = {}
        self._images: queue.Queue[LocalizationRequest | None] = queue.Queue(_QUEUED_IMAGES)
        self._depths: dict[str, deque[Image]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="keyframe recorder", daemon=True)
        self._thread.start()

    @property
    def keyframes(self) -> int:
        return sum(len(positions) for positions in list(self._positions.values()))

    @property
    def is_full(self) -> bool:
        return self.keyframes >= self.config.max_keyframes

    def submit(self, request: LocalizationRequest) -> None:
        """Consider this image, or those of a rig, as keyframes. Never blocks: if the disk is too slow, they are
        dropped."""
        if self._closed or self.is_full:
            return
        try:
            self._images.put_nowait(request)
        except queue.Full:
            self.outcomes["too_fast"] += len(request.images)

    def submit_depth(self, camera: str, depth: Image) -> None:
        """Keep this depth image for the camera's image with (about) the same stamp. camera: its name in a rig, or
        empty."""
        self._depths.setdefault(camera, deque(maxlen=_QUEUED_DEPTHS)).append(depth)

    def missing(self) -> str | None:
        """Return why this recording is not sufficient for a map yet, or None if it is."""
        if self.keyframes < MIN_KEYFRAMES:
            why = f" (last problem: {self.problem})" if self.problem else ""
            return f"There are {self.keyframes} keyframes, a map needs at least {MIN_KEYFRAMES}{why}: drive on."
        if not self.with_depth and not any(has_parallax(np.array(each)) for each in list(self._positions.values())):
            return ("The camera only rotated: without parallax, no depth can be triangulated. Drive a little, then stop"
                    " the mapping.")
        return None

    def close(self) -> None:
        """Write what is queued, then end."""
        self._closed = True
        if self._thread.is_alive():
            try:
                self._images.put(None, timeout=10.0)
            except queue.Full:
                self._logger.error(f"Writing to {self.folder} is too slow: the last images are left out.")
        self._thread.join(20.0)
        self._poses.close()

    def _write(self) -> None:
        try:
            write_ace_scene(self.folder, self._keyframes(), "jpg")
        except Exception as error:      # of any kind: the end of this thread must be reported
            self._closed = True
            self.problem = f"recording to {self.folder} failed: {error!r}"
            self._logger.error(f"Mapping stopped, {self.problem}")

    def _keyframes(self) -> Iterator[Frame]:
        while (request := self._images.get()) is not None:
            for camera, image in request.images.items():
                selector = self._selectors.setdefault(camera, KeyframeSelector(self.config.keyframes))
                try:
                    frame, outcome = self._keyframe(camera, image, selector)
                except UserError as error:
                    frame, outcome, self.problem = None, "refused", str(error)
                if frame is not None:
                    yield frame                             # it is on disk when the generator continues
                    assert frame.map_from_camera is not None
                    selector.set_last(frame.stamp_s, frame.map_from_camera)
                    self._positions.setdefault(camera, []).append(frame.map_from_camera[:3, 3])
                    self.with_depth += frame.depth_m is not None
                self.outcomes[outcome] += 1

    def _keyframe(self, camera: str, request: LocalizationRequest, selector: KeyframeSelector
                  ) -> tuple[Frame | None, str]:
        """Return the frame if it is a keyframe, and the outcome. Raises UserError if it cannot be decoded."""
        header = request.image.header
        try:
            pose = self._poses.lookup(header.stamp, normalize_frame_id(self.config.camera_frame or header.frame_id),
                                      self.config.pose_timeout_s)
        except UserError as error:
            self.problem = str(error)
            return None, "no_pose"
        motion = selector.motion(stamp_to_s(header.stamp), pose)
        if motion < 1.0:
            return None, "not_moved"
        frame = frame_from_messages(request.image, request.camera_info, request.rectified)
        if not selector.is_sharp(frame.image, motion):
            return None, "blurred"
        depth_m = self._depth(camera, stamp_to_ns(header.stamp), frame) if self.config.use_depth else None
        return replace(frame, map_from_camera=pose, depth_m=depth_m), "keyframe"

    def _depth(self, camera: str, stamp_ns: int, frame: Frame) -> np.ndarray | None:
        def difference_ns(depth: Image) -> int:
            return abs(stamp_to_ns(depth.header.stamp) - stamp_ns)

        deadline = time.monotonic() + _DEPTH_TIMEOUT_S
        while not (matching := [m for m in list(self._depths.get(camera, ()))
                               if difference_ns(m) <= _MAX_DEPTH_DIFFERENCE_NS]):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        depth_m = decode_depth(min(matching, key=difference_ns))
        if depth_m.shape != frame.image.shape[:2]:
            raise UserError("The depth image is not of the size of the image: it has to be aligned to it.")
        return depth_m
