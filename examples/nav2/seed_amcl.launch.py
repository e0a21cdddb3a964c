# SPDX-License-Identifier: Apache-2.0
"""Tell AMCL where the robot is: at the start, and when it is lost. AMCL publishes map -> odom, the localizer no TF.

ros2 launch examples/nav2/seed_amcl.launch.py map:=hall.map image:=/camera/image camera_info:=/camera/camera_info
"""

import os
import sys
from pathlib import Path

from launch.actions import DeclareLaunchArgument, ExecuteProcess, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

HERE = Path(__file__).resolve().parent

ARGUMENTS = (
    ("map", "", "Map file to localize in, of the same frame as the grid of AMCL."),
    ("image", "image", "Image topic."),
    ("camera_info", "camera_info", "CameraInfo topic that belongs to the image topic."),
    ("odom_frame", "odom", "Frame of the odometry, with which poses are checked."),
    ("base_frame", "base_link", "Frame of the robot, whose pose AMCL wants."),
    ("use_sim_time", "false", "Take the time from /clock."),
)


def generate_launch_description() -> LaunchDescription:
    actions = [DeclareLaunchArgument(name, default_value=default, description=description)
               for name, default, description in ARGUMENTS]
    if "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ:       # without it Fast DDS loses nearly every image
        actions.append(SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", [
            FindPackageShare("aceg_ros"), "/config/fastdds_profile.xml"]))
    value = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    localizer = Node(package="aceg_ros", executable="localizer_node", name="localizer", output="screen", parameters=[{
        "map_path": ParameterValue(value["map"], value_type=str), "odom_frame": value["odom_frame"],
        "base_frame": value["base_frame"], "tf_policy": "none", "covariance": "diagonal", "bond_heartbeat_period": 0.0,
        "use_sim_time": ParameterValue(value["use_sim_time"], value_type=bool)}],
        remappings=[("image", value["image"]), ("camera_info", value["camera_info"]),
                    ("image/compressed", [value["image"], "/compressed"]),
                    ("initialpose", "localizer/initialpose")])      # /initialpose is for AMCL
    seeder = ExecuteProcess(cmd=[sys.executable, str(HERE / "seed_amcl.py")], output="screen")
    return LaunchDescription([*actions, localizer, seeder])
