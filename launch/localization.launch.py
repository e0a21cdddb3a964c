"""Localize a camera in a map:

ros2 launch aceg_ros localization.launch.py map:=lab.map image:=/camera/image camera_info:=/camera/camera_info

On a robot with odometry, publish map -> odom:

ros2 launch aceg_ros localization.launch.py map:=lab.map odom_frame:=odom base_frame:=base_link ...
"""

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

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
    ("log_level", "info", "debug, info, warn or error."),
)
OVERRIDES = {"map": "map_path", "odom_frame": "odom_frame", "base_frame": "base_frame", "device": "device",
             "autostart": "autostart", "mapping_pose_source": "mapping_pose_source"}      # argument: parameter
TOPICS = {"image": "image", "camera_info": "camera_info", "depth": "depth/image", "mapping_pose": "mapping_pose"}


def is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes", "on")


def localizer(context: LaunchContext) -> list[Node]:
    value = context.launch_configurations
    given = {parameter: value[name] for name, parameter in OVERRIDES.items() if value.get(name)}
    if "autostart" in given:
        given["autostart"] = is_true(given["autostart"])
    given["use_sim_time"] = is_true(value["use_sim_time"])
    remappings = [(topic, value[argument]) for argument, topic in TOPICS.items()]
    remappings.append(("image/compressed", f"{value['image']}/compressed"))
    return [Node(package="aceg_ros", executable="localizer_node", name="localizer", namespace=value["namespace"],
                 output="screen", parameters=[value["params_file"], given], remappings=remappings,
                 arguments=["--ros-args", "--log-level", value["log_level"]])]


def generate_launch_description() -> LaunchDescription:
    actions = [DeclareLaunchArgument(name, default_value=default, description=description)
               for name, default, description in ARGUMENTS]
    if "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ:
        # Without it Fast DDS loses nearly every image. Publishers of images in other launch files need it too.
        actions.append(SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_profile.xml")))
    rviz = Node(package="rviz2", executable="rviz2", arguments=["-d", str(SHARE / "rviz" / "aceg.rviz")],
                condition=IfCondition(LaunchConfiguration("rviz")))
    return LaunchDescription([*actions, OpaqueFunction(function=localizer), rviz])
