# SPDX-License-Identifier: Apache-2.0
"""Nav2's localization_launch.py with this localizer in place of AMCL.

ros2 launch examples/nav2/localization.launch.py grid:=hall.yaml map:=hall.map image:=/camera/image ...
"""

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

PARAMETERS = Path(__file__).resolve().parent / "localizer.yaml"
MANAGED = ["map_server", "localizer"]       # in the order in which they are activated

ARGUMENTS = (
    ("grid", "", "YAML file of the occupancy grid that Nav2 plans in."),
    ("map", "", "Map file to localize in, of the same frame as the grid."),
    ("params_file", str(PARAMETERS), "Parameters of the localizer."),
    ("namespace", "", "Namespace of the robot."),
    ("image", "image", "Image topic."),
    ("camera_info", "camera_info", "CameraInfo topic that belongs to the image topic."),
    ("use_sim_time", "false", "Take the time from /clock."),
)


def generate_launch_description() -> LaunchDescription:
    actions = [DeclareLaunchArgument(name, default_value=default, description=description)
               for name, default, description in ARGUMENTS]
    if "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ:       # without it Fast DDS loses nearly every image
        actions.append(SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", [
            FindPackageShare("aceg_ros"), "/config/fastdds_profile.xml"]))
    value = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    clock = {"use_sim_time": ParameterValue(value["use_sim_time"], value_type=bool)}
    common = {"namespace": value["namespace"], "output": "screen"}
    respawned = common | {"respawn": True, "respawn_delay": 2.0}        # the manager activates them again
    grid = Node(package="nav2_map_server", executable="map_server", name="map_server", **respawned, parameters=[
        clock, {"yaml_filename": ParameterValue(value["grid"], value_type=str)}])
    localizer = Node(package="aceg_ros", executable="localizer_node", name="localizer", **respawned, parameters=[
        value["params_file"], clock, {"map_path": ParameterValue(value["map"], value_type=str)}],
        remappings=[("image", value["image"]), ("camera_info", value["camera_info"]),
                    ("image/compressed", [value["image"], "/compressed"]), ("/tf", "tf"), ("/tf_static", "tf_static")])
    manager = Node(package="nav2_lifecycle_manager", executable="lifecycle_manager", **common,
                   name="lifecycle_manager_localization", parameters=[clock, {
                       "node_names": MANAGED, "autostart": True, "bond_timeout": 4.0, "service_timeout": 30.0,
                       "attempt_respawn_reconnection": True, "bond_respawn_max_duration": 30.0}])
    return LaunchDescription([*actions, grid, localizer, manager])
