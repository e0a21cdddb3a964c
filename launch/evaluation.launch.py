# SPDX-License-Identifier: Apache-2.0
"""Replay a recording through the localizer over real topics, evaluate it, and compare with `aceg evaluate`; then end.

ros2 launch aceg_ros evaluation.launch.py map:=lab.map scene:=/path/to/bag_or_folder output:=lab_evaluation
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from aceg_ros.ros.common.launch_arguments import number, require_executables
from launch import LaunchContext, LaunchDescription

HERE = Path(__file__).resolve().parent

ARGUMENTS = (
    ("scene", "", "Recording to play: a ROS bag, or any folder that a reader recognises."),
    ("output", "evaluation", "Folder for evaluation.json and report.html."),
    ("speed", "1.0", "Playback speed in recorded seconds per second; choose less than 1 on a slow machine."),
    ("every", "1", "Play every n-th frame only."),
    ("bag_image", "", "Topic of the images in the bag; empty: the only one."),
    ("bag_camera_info", "", "Topic of their camera_info; empty: the one beside the images, else the only one."),
    ("bag_pose_topic", "", "Topic of the true poses in the bag; empty: the only one."),
    ("bag_pose_of", "", "Frame whose pose that topic gives; empty: the camera."),
    ("bag_tf_map", "", "Frame of the map, if the true poses are taken from TF; empty: from the topic."),
    ("bag_tf_camera", "", "Frame of the camera, if the true poses are taken from TF; empty: frame_id of the images."),
    ("bag_tf_topic", "", "Topic of the transforms; empty: that in the nearest namespace around the images."),
    ("result_timeout", "15.0", "Seconds without a result of the localizer after which the evaluation ends."),
    ("silence", "", "Old name of result_timeout."),
)


def numbers(context: LaunchContext) -> tuple[int, float, float]:
    """Return every, speed and result_timeout."""
    value = context.launch_configurations
    return (int(number("every", value["every"], int)), number("speed", value["speed"]),
            number("result_timeout", value["silence"] or value["result_timeout"]))


def check(context: LaunchContext) -> None:
    """Check what the replay needs before the localizer is started."""
    numbers(context)
    require_executables("aceg_ros", "scene_player", "evaluation_node")


def replay(context: LaunchContext) -> list[Node]:
    value = {name: context.launch_configurations[name] for name, _, _ in ARGUMENTS}
    every, speed, result_timeout = numbers(context)
    # As strings: a folder named 5 would become a number.
    scene = {name: ParameterValue(text, value_type=str) for name, text in value.items()
             if name.startswith(("scene", "bag_")) and text} | {"every": every}
    namespace = LaunchConfiguration("namespace")
    return [
        Node(package="aceg_ros", executable="scene_player", name="camera", namespace=namespace, output="screen",
             parameters=[scene, {"clock": True, "speed": speed,
                                 "wait_for_subscribers": 2, "start_delay": 2.0}],
             remappings=[(name, LaunchConfiguration(name)) for name in ("image", "camera_info")]),
        Node(package="aceg_ros", executable="evaluation_node", name="evaluation", namespace=namespace, output="screen",
             parameters=[scene, {"map": ParameterValue(LaunchConfiguration("map"), value_type=str),
                                 "output": ParameterValue(value["output"], value_type=str),
                                 "result_timeout": result_timeout, "speed": speed}],
             remappings=[("image", LaunchConfiguration("image"))],
             on_exit=Shutdown(reason="the evaluation is done"))]


def generate_launch_description() -> LaunchDescription:
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, default, description in ARGUMENTS]
    localization = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(HERE / "localization.launch.py")),
                                            launch_arguments={"use_sim_time": "true"}.items())
    return LaunchDescription([*arguments, OpaqueFunction(function=check), localization,
                              OpaqueFunction(function=replay)])
