# SPDX-License-Identifier: Apache-2.0
"""Map a new scene while driving; the node localizes in it when the map is done.

ros2 launch aceg_ros mapping.launch.py image:=/camera/image camera_info:=/camera/camera_info
ros2 service call /localizer/start_mapping std_srvs/srv/Trigger
    ... drive ...
ros2 service call /localizer/stop_mapping std_srvs/srv/Trigger
ros2 topic echo /localizer/mapping_status

It includes localization.launch.py, with the same arguments and one more for the source of the poses.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

HERE = Path(__file__).resolve().parent


def generate_launch_description() -> LaunchDescription:
    poses = DeclareLaunchArgument(
        "mapping_pose_source", default_value="tf", choices=["tf", "pose", "pose_with_covariance", "odometry"],
        description="Source of the poses while mapping: tf (map -> camera), or the type of the topic mapping_pose.")
    return LaunchDescription([
        poses, IncludeLaunchDescription(PythonLaunchDescriptionSource(str(HERE / "localization.launch.py")))])
