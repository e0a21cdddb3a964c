# SPDX-License-Identifier: Apache-2.0
"""The parameters of mapping on the robot."""

from __future__ import annotations

from dataclasses import dataclass

from aceg_ros.mapping.keyframes import KeyframeConfig
from aceg_ros.methods import registry
from aceg_ros.ros.common.parameters import parameter
from aceg_ros.ros.mapping.pose_source import SOURCES


@dataclass(frozen=True, kw_only=True)
class MappingParameters:
    data_folder: str = parameter(
        "", "Folder for recordings, maps and the last pose; empty means aceg_ros/<node name> in ROS_HOME or ~/.ros.",
        read_only=True)
    mapping_pose_source: str = parameter(
        "tf", "Where the poses of the camera come from while mapping: tf looks up map_frame -> camera, localization "
        "takes those that this node estimates in the map in use, the others are the type of the "
        "messages on the topic mapping_pose.", choices=SOURCES)
    mapping_extends: bool = parameter(
        False, "Whether mapping extends the map in use, if there is one, by what is recorded; the extended map is a "
        "new file, and the old one stays. The poses must be in the frame of the map.")
    mapping_child_frame: str = parameter(
        "", "TF frame whose pose the topic mapping_pose gives; empty means the camera, and odometry messages name the "
        "frame themselves.")
    mapping_pose_timeout: float = parameter(
        0.5, "Time in seconds to wait for the pose at the stamp of an image.", minimum=0.0, maximum=10.0)
    mapping_min_distance: float = parameter(
        0.1, "Distance in metres from the last keyframe at which an image becomes the next one; 0 takes every image.",
        minimum=0.0, maximum=100.0)
    mapping_min_angle: float = parameter(
        8.0, "Rotation in degrees from the last keyframe at which an image becomes the next one, even if it is closer "
        "than mapping_min_distance; 0 takes every image.", minimum=0.0, maximum=360.0)
    mapping_min_interval: float = parameter(0.1, "Shortest time in seconds between two keyframes.",
                                            minimum=0.0, maximum=3600.0)
    mapping_min_sharpness: float = parameter(
        0.5, "Sharpness, as a fraction of the median of the recent images, below which an image is left out as "
        "blurred; 0 leaves out none.", minimum=0.0, maximum=1.0)
    mapping_max_keyframes: int = parameter(1000, "Largest number of keyframes in a recording.",
                                           minimum=5, maximum=100000)
    mapping_use_depth: bool = parameter(
        False, "Whether the aligned depth images on the topic depth/image (16UC1 in mm or 32FC1 in m; NAME/depth/image "
        "of each camera of a rig) are recorded and used to make the map.")
    mapping_method: str = parameter("", "Method of the new map; empty means the default method.",
                                    choices=("", *registry.names()))
    mapping_budget: float = parameter(300.0, "Longest time in seconds that the training of a map may take.",
                                      minimum=5.0, maximum=86400.0)

    @property
    def keyframes(self) -> KeyframeConfig:
        return KeyframeConfig(min_distance_m=self.mapping_min_distance, min_angle_deg=self.mapping_min_angle,
                              min_interval_s=self.mapping_min_interval, min_sharpness=self.mapping_min_sharpness)
