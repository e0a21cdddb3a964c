# SPDX-License-Identifier: Apache-2.0
"""The parameters of the localizer node, except those of mapping (aceg_ros.ros.mapping.parameters)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aceg_ros.pose.odometry_gate import OdometryGateConfig
from aceg_ros.ros.common.parameters import not_empty, parameter

TF_POLICIES = ("auto", "map_to_odom", "map_to_base", "map_to_camera", "none")


def _existing_file_or_empty(path: str) -> str | None:
    return None if not path or os.path.isfile(path) else f"there is no file {path}."


def _distinct_names(names: Sequence[str]) -> str | None:
    given = [name for name in names if name]
    return "its names must be different." if len(set(given)) != len(given) else None


@dataclass(frozen=True, kw_only=True)
class LocalizerParameters:
    """Map, device and start of the node."""

    map_path: str = parameter(
        "", "Path of the map file to localize in, made by 'aceg map' or on the robot; it can be changed at run time, "
        "and empty means no map.", check_change=_existing_file_or_empty)
    save_path: str = parameter("", "Path of the file that ~/save_map copies the map in use to.")
    rerun: str = parameter(
        "", "Where the Rerun viewer (rerun-sdk) shows map, images and poses: the path of an .rrd file to record into, "
        "or 'window' to open the viewer; empty means no viewer.", read_only=True)
    coverage_resolution: float = parameter(
        0.0, "Side in metres of the cells of ~/coverage, a grid of the chance in percent that an image is localized, "
        "which is computed in the background after each load of a map; 0 means none.", minimum=0.0, maximum=100.0,
        read_only=True)
    autostart: bool = parameter(
        True, "Whether the node configures and activates itself at start; set it to false for a lifecycle manager such "
        "as Nav2's.", read_only=True)
    device: str = parameter("auto", "Device that inference runs on; auto takes the GPU if there is one.",
                            choices=("auto", "cpu", "cuda"), read_only=True)
    threads: int = parameter(
        0, "Number of CPU cores that inference may use; 0 means half of them, so that the robot's other programs have "
        "the rest.", minimum=0, maximum=1024, read_only=True)
    seed: int = parameter(
        0, "Seed of the random draws of the pose solver and of mapping; the same image, map and seed give the same "
        "pose.", minimum=0, maximum=2**31 - 1, read_only=True)


@dataclass(frozen=True, kw_only=True)
class ImageParameters:
    """The images that come in."""

    image_transport: str = parameter(
        "raw", "Form of the images: raw is sensor_msgs/Image on the topic image, compressed is "
        "sensor_msgs/CompressedImage (JPEG or PNG) on the topic image/compressed.", choices=("raw", "compressed"),
        read_only=True)
    image_rectified: bool = parameter(
        False, "Whether the images are free of distortion already; the camera is then taken from P of camera_info "
        "instead of K and D. Images on a topic named image_rect... are taken to be, and those whose camera_info has "
        "no distortion but another camera in P than in K.")
    max_rate: float = parameter(0.0, "Highest rate in Hz at which images are localized; 0 means no limit.",
                                minimum=0.0, maximum=1000.0)
    cameras: tuple[str, ...] = parameter(
        ("",), "Names of the cameras of a rig, whose images of one moment give one pose of base_frame; the topics of "
        "camera NAME are NAME/image and NAME/camera_info, and TF has its frame. An empty name means one camera, on "
        "image and camera_info.", read_only=True, check=_distinct_names)
    camera_tolerance: float = parameter(
        0.02, "Largest difference in seconds between the stamps of images that the cameras of a rig took at one "
        "moment.", minimum=0.0, maximum=10.0, read_only=True)

    @property
    def rig(self) -> tuple[str, ...]:
        """The names of a rig's cameras; none for one camera."""
        return tuple(name for name in self.cameras if name)


@dataclass(frozen=True, kw_only=True)
class PoseParameters:
    """Frames, TF, and the check of each pose against odometry."""

    map_frame: str = parameter("map", "TF frame that poses are given in.", read_only=True, check=not_empty)
    odom_frame: str = parameter(
        "", "TF frame of the odometry; if it is set, each pose is checked against odometry before it is published, and "
        "map_to_odom can be published.")
    base_frame: str = parameter(
        "", "TF frame of the robot's base, whose pose is published on ~/pose; empty means that ~/pose is the pose of "
        "the camera.")
    camera_frame: str = parameter("", "Optical TF frame of the camera; empty means the frame_id of the image.",
                                  read_only=True)
    tf_policy: str = parameter(
        "auto", "Transform that is published; auto means map_to_odom if odom_frame is set, else map_to_base if "
        "base_frame is set, else map_to_camera.", choices=TF_POLICIES)
    transform_tolerance: float = parameter(
        0.1, "Time in seconds by which transforms are post-dated, so that TF lookups succeed until the next one.",
        minimum=0.0, maximum=10.0)
    tf_rate: float = parameter(20.0, "Rate in Hz at which the transform is published again between two poses.",
                               minimum=0.1, maximum=200.0, read_only=True)
    tf_hold: float = parameter(
        1.0, "Time in seconds for which map_to_base and map_to_camera are published again after a pose, because no "
        "odometry propagates them; map_to_odom is published without a time limit.", minimum=0.0, maximum=3600.0)
    tf_timeout: float = parameter(
        0.3, "Time in seconds to wait for odometry and extrinsics in TF at the stamp of the image.",
        minimum=0.0, maximum=10.0)
    covariance: str = parameter(
        "full", "Form of the published covariance; diagonal is for subscribers that reject negative off-diagonal "
        "entries, such as parts of Nav2.", choices=("full", "diagonal"))
    gate_sigmas: float = parameter(
        4.0, "Number of standard deviations from the pose predicted by odometry beyond which a pose is rejected until "
        "gate_agreeing_fixes poses agree.", minimum=1.0, maximum=100.0)
    gate_agreeing_fixes: int = parameter(
        3, "Number of consecutive poses that must agree before one far from the prediction, or the first one after "
        "start, is accepted; 1 accepts every pose.", minimum=1, maximum=100)
    gate_floor_m: float = parameter(
        0.05, "Smallest standard deviation of the position, in metres, that the check against odometry assumes; it "
        "covers errors of the map and of the extrinsics.", minimum=0.0, maximum=100.0)
    gate_floor_deg: float = parameter(
        2.0, "Smallest standard deviation of the rotation, in degrees, that the check against odometry assumes.",
        minimum=0.0, maximum=180.0)
    odometry_drift: float = parameter(
        0.1, "Error of the odometry as a fraction of the distance and of the angle travelled.",
        minimum=0.0, maximum=10.0)
    use_prior: bool = parameter(
        True, "Whether images are first localized near the last accepted pose, carried on by odometry, which takes "
        "less time; it needs odom_frame and a map with a keyframe database.")
    prior_check_every: int = parameter(
        10, "Number of images of which one is localized without the last pose, to check that both agree.",
        minimum=1, maximum=1000)
    prior_check_seconds: float = parameter(
        1.0, "Shortest time in seconds between two such images.", minimum=0.0, maximum=1000.0)

    def rejection(self) -> str | None:
        if self.tf_policy == "map_to_odom" and not self.odom_frame:
            return "tf_policy map_to_odom needs odom_frame, the frame of the odometry in TF."
        if self.tf_policy == "map_to_base" and not self.base_frame:
            return "tf_policy map_to_base needs base_frame, the frame of the robot in TF."
        if self.tf_policy == "map_to_camera" and (self.odom_frame or self.base_frame):
            return ("tf_policy map_to_camera cannot be combined with odom_frame or base_frame: the camera then has a"
                    " parent in TF already, and can have only one.")
        return None

    @property
    def published_transform(self) -> str:
        """The effective policy: `tf_policy`, resolved if it is auto."""
        if self.tf_policy != "auto":
            return self.tf_policy
        return "map_to_odom" if self.odom_frame else "map_to_base" if self.base_frame else "map_to_camera"

    @property
    def odometry_gate(self) -> OdometryGateConfig:
        return OdometryGateConfig(sigmas=self.gate_sigmas, floor_m=self.gate_floor_m,
                                  floor_rad=np.radians(self.gate_floor_deg), agreeing_fixes=self.gate_agreeing_fixes,
                                  drift=self.odometry_drift)
