"""Localize a camera in a map:

ros2 launch aceg_ros localization.launch.py map:=place.map image:=/camera/image camera_info:=/camera/camera_info
"""

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

CONFIG = Path(__file__).resolve().parent.parent / "config"      # beside launch/, in the source and installed alike

ARGUMENTS = (
    ("map", "", "Map file to localize in; empty: map_path of params_file."),
    ("params_file", str(CONFIG / "localizer.yaml"), "Parameters of the localizer node."),
    ("namespace", "", "Namespace of the node, one per camera."),
    ("image", "image", "Image topic."),
    ("camera_info", "camera_info", "CameraInfo topic that belongs to the image topic."),
    ("device", "", "auto, cpu or cuda; empty: device of params_file."),
    ("use_sim_time", "false", "Take the time from /clock: true with a simulator or a bag that publishes it."),
    ("log_level", "info", "debug, info, warn or error."),
)


def localizer(context: LaunchContext) -> list[Node]:
    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    given = {parameter: value[argument] for argument, parameter in (("map", "map_path"), ("device", "device"))
             if value[argument]}
    given["use_sim_time"] = value["use_sim_time"].lower() in ("true", "1", "yes", "on")
    return [Node(package="aceg_ros", executable="localizer_node", name="localizer", namespace=value["namespace"],
                 output="screen", parameters=[value["params_file"], given],
                 remappings=[("image", value["image"]), ("camera_info", value["camera_info"])],
                 arguments=["--ros-args", "--log-level", value["log_level"]])]


def generate_launch_description() -> LaunchDescription:
    actions = [DeclareLaunchArgument(name, default_value=default, description=description)
               for name, default, description in ARGUMENTS]
    if "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ:
        # Without it Fast DDS loses nearly every image. Publishers of images in other launch files need it too.
        actions.append(SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_profile.xml")))
    return LaunchDescription([*actions, OpaqueFunction(function=localizer)])
