# SPDX-License-Identifier: Apache-2.0
"""The real localizer node around a localizer whose results a test can predict.

Its map is a JSON file with the fields of `FakeLocalizer`, and load_s, the seconds that loading takes.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, PriorPose, Status
from aceg_ros.geometry import pose_error, pose_from_quaternion
from aceg_ros.rig import RigEstimate, RigFrame, ViewShare
from aceg_ros.ros.common.run import run
from aceg_ros.ros.localizer.map_loader import LoadedMap
from aceg_ros.ros.localizer.node import LocalizerNode


@dataclass
class FakeLocalizer:
    """Finds a pose that depends on the image's mean colour and on the camera's focal length.

    Dark images are rejected; a red one makes it raise. delay_s: how long an image takes. reads_pose: the first bytes of
    the image are the pose, 16 float64; how far a prior is from it, in metres, is then told as the time of a stage.
    """

    offset_m: float
    delay_s: float = 0.0
    reads_pose: bool = False

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        time.sleep(self.delay_s)
        red, green, blue = frame.image.reshape(-1, 3).mean(0)
        if red > 250 and green + blue < 5:
            raise RuntimeError("a fault that no localizer should have")
        if red + green + blue < 30:
            return PoseEstimate(status=Status.NO_CONSENSUS, message="It is too dark.")
        if self.reads_pose:
            pose = np.frombuffer(frame.image.tobytes()[:128], np.float64).reshape(4, 4)
            covariance = np.diag(np.repeat([1e-4, 1e-5], 3))
            return PoseEstimate(status=Status.ACCEPTED, message="Localized.", map_from_camera=pose.copy(),
                                covariance=covariance, inliers=321, inlier_ratio=0.5, reprojection_rms_px=1.5,
                                stage_ms={} if prior is None else {
                                    "prior_off_m": pose_error(prior.map_from_camera, pose)[0]})
        position = np.array([self.offset_m + red, green, frame.camera.fx])
        pose = pose_from_quaternion(position, np.array([0.1, -0.2, blue / 255, 0.9]))
        covariance = np.diag([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        covariance[0, 5] = covariance[5, 0] = -0.5
        return PoseEstimate(status=Status.ACCEPTED, message="Localized.", map_from_camera=pose, covariance=covariance,
                            inliers=321, inlier_ratio=0.5, reprojection_rms_px=1.5, stage_ms={"solve": 1.0})


class FakeRigLocalizer:
    """Finds a position that is the number of images, the sum of the cameras' x in the base, and the z of the first."""

    def localize(self, frame: RigFrame) -> RigEstimate:
        mounts = list(frame.rig.rig_from_camera.values())
        pose = np.eye(4)
        pose[:3, 3] = len(frame.frames), sum(mount[0, 3] for mount in mounts), mounts[0][2, 3]
        return RigEstimate(base=PoseEstimate(status=Status.ACCEPTED, message="Localized", map_from_camera=pose,
                                             covariance=1e-4 * np.eye(6), inliers=30 * len(frame.frames)),
                           views={name: ViewShare(matches=50, inliers=30) for name in frame.frames})


def load(path: str, device: str, seed: int, threads: int) -> LoadedMap:
    try:
        with open(path) as file:
            content = json.load(file)
        time.sleep(content.pop("load_s", 0.0))
        return LoadedMap(localizer=FakeLocalizer(**content), rig_localizer=FakeRigLocalizer())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged.") from error


if __name__ == "__main__":
    sys.exit(run(lambda: LocalizerNode(load, load)))
