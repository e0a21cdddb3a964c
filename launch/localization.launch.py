# SPDX-License-Identifier: Apache-2.0
"""Localize a camera in a map:

ros2 launch aceg_ros localization.launch.py map:=lab.map image:=/camera/image camera_info:=/camera/camera_info

On a robot with odometry, publish map -> odom:

ros2 launch aceg_ros localization.launch.py map:=lab.map odom_frame:=odom base_frame:=base_link ...
"""

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

from aceg_ros.ros.common.launch_arguments import (
    BOOLEANS,
    LOG_LEVELS,
    OPTIONAL_BOOLEANS,
    is_true,
    require_executables,
    require_file,
)
from launch import LaunchContext, LaunchDescription

SHARE = Path(__file__).resolve().parent.parent      # config/ and rviz/ are beside launch/, installed or not
CONFIG = SHARE / "config"

ARGUMENTS = (
    ("map", "", "Map file to localize in; empty: map_path of params_file."),
    ("params_file", str(CONFIG / "localizer.yaml"), "Parameters of the localizer node."),
    ("namespace", "", "Namespace of the node, one per camera."),
    ("image", "image", "Image topic; that of compressed images is this name with /compressed appended."),
    ("camera_info", "camera_info", "CameraInfo topic that belongs to the image topic."),
    ("depth", "depth/image", "Topic of aligned depth images, for mapping."),
    ("mapping_pose", "mapping_pose", "Topic of poses for mapping, if they do not come from TF."),
    ("odom_frame", "", "Frame of the odometry: publish map -> odom; empty: odom_frame of params_file."),
    ("base_frame", "", "Frame of the robot; empty: base_frame of params_file."),
    ("device", "", "auto, cpu or cuda; empty: device of params_file."),
    ("autostart", "", "false: wait for a lifecycle manager; empty: autostart of params_file."),
    ("use_sim_time", "false", "Take the time from /clock, which a simulator or a played bag publishes."),
    ("rviz", "false", "Open RViz with map, poses and images."),
    ("log_level", "info", "Lowest level of the messages that the node logs."),
)
CHOICES = {"device": ["", "auto", "cpu", "cuda"], "autostart": OPTIONAL_BOOLEANS, "use_sim_time": BOOLEANS,
           "rviz": BOOLEANS, "log_level": LOG_LEVELS}
OVERRIDES = {"map": "map_path", "odom_frame": "odom_frame", "base_frame": "base_frame", "device": "device",
             "autostart": "autostart", "mapping_pose_source": "mapping_pose_source"}      # argument: parameter
TOPICS = {"image": "image", "camera_info": "camera_info", "depth": "depth/image", "mapping_pose": "mapping_pose"}


def nodes(context: LaunchContext) -> list[Node]:
    """Check all, then return what is started."""
    value = context.launch_configurations
    require_file("params_file", value["params_file"])
    require_executables("aceg_ros", "localizer_node")
    if is_true(value["rviz"]):
        require_executables("rviz2", "rviz2")
    given = {parameter: value[name] for name, parameter in OVERRIDES.items() if value.get(name)}
    if "autostart" in given:
        given["autostart"] = is_true(given["autostart"])
    given["use_sim_time"] = is_true(value["use_sim_time"])
    remappings = [(topic, value[argument]) for argument, topic in TOPICS.items()]
    remappings.append(("image/compressed", f"{value['image']}/compressed"))
    localizer = Node(package="aceg_ros", executable="localizer_node", name="localizer", namespace=value["namespace"],
                     output="screen", parameters=[value["params_file"], given], remappings=remappings,
                     arguments=["--ros-args", "--log-level", value["log_level"]])
    rviz = Node(package="rviz2", executable="rviz2", arguments=["-d", str(SHARE / "rviz" / "aceg.rviz")])
    return [localizer, rviz] if is_true(value["rviz"]) else [localizer]


def generate_launch_description() -> LaunchDescription:
    actions = [DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
               for name, default, description in ARGUMENTS]
    if "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ:
        # Without it Fast DDS loses nearly every image. Publishers of images in other launch files need it too.
        actions.append(SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_profile.xml")))
    return LaunchDescription([*actions, OpaqueFunction(function=nodes)])
