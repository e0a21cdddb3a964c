# SPDX-License-Identifier: Apache-2.0
"""Localize images played from a scene or rendered, and show the true poses as well. Ends with the drive.

ros2 launch aceg_ros demo.launch.py map:=demo_output/scene.map                                  the rendered room
ros2 launch aceg_ros demo.launch.py map:=kitchen.map scene:=/path/to/kitchen/query rviz:=true   real images
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from aceg_ros.ros.common.launch_arguments import BOOLEANS, is_true, number, require_executables
from launch import LaunchContext, LaunchDescription

HERE = Path(__file__).resolve().parent

ARGUMENTS = (
    ("scene", "", "Scene to play (any folder that a reader recognises); empty: drive through the rendered room."),
    ("path", "query", "Drive in the rendered room: mapping or query."),
    ("light", "evening", "Light in the rendered room: day or evening."),
    ("rate", "5.0", "Images per second."),
    ("loop", "false", "Start again at the end, until the launch is stopped."),
    ("odometry", "false", "Play a robot whose odometry drifts (frames odom, base_link), and publish map -> odom."),
)
CHOICES = {"path": ["mapping", "query"], "light": ["day", "evening"], "loop": BOOLEANS, "odometry": BOOLEANS}


def prepare(context: LaunchContext) -> None:
    """Check the arguments before anything is started; set the localizer's frames if odometry is simulated."""
    value = context.launch_configurations
    require_executables("aceg_ros", "scene_player" if value["scene"] else "sim_camera")
    number("rate", value["rate"])
    if is_true(value["odometry"]):
        value.update(odom_frame="odom", base_frame="base_link")


def camera(context: LaunchContext) -> list[Node]:
    value = context.launch_configurations
    parameters = {"rate": number("rate", value["rate"]), "loop": is_true(value["loop"]),
                  "odometry": is_true(value["odometry"])}
    if value["scene"]:
        executable, parameters = "scene_player", parameters | {"scene": value["scene"]}
    else:
        executable, parameters = "sim_camera", parameters | {"path": value["path"], "light": value["light"],
                                                              "prerender": True}
    # It publishes on the topics that the localizer subscribes to.
    return [Node(package="aceg_ros", executable=executable, name="camera", output="screen",
                 namespace=LaunchConfiguration("namespace"), parameters=[parameters],
                 remappings=[(name, LaunchConfiguration(name)) for name in ("image", "camera_info")],
                 on_exit=Shutdown(reason="the drive is over"))]


def generate_launch_description() -> LaunchDescription:
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
                 for name, default, description in ARGUMENTS]
    localization = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(HERE / "localization.launch.py")))
    return LaunchDescription([*arguments, OpaqueFunction(function=prepare), localization,
                              OpaqueFunction(function=camera)])
