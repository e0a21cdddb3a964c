# SPDX-License-Identifier: Apache-2.0
"""`aceg play`: a recording on ROS 2 topics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import SCENE_HELP, add_scene_flags, add_verb
from aceg_ros.cli.ros_node import exec_ros_node


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "play", run, "publish a recording on ROS 2 topics: image, camera_info, true poses, /clock")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--speed", type=float, default=1.0, metavar="X", help="playback speed: recorded seconds per"
                      " second (default: %(default)s)")
    verb.add_argument("--rate", type=float, metavar="HZ", help="play at this rate instead, with stamps of the current"
                      " time and without /clock")
    verb.add_argument("--loop", action="store_true", help="start again at the end, until Ctrl-C")
    verb.add_argument("--wait-for", type=int, default=1, metavar="N", help="number of subscribers to wait for (default:"
                      " %(default)s)")
    add_scene_flags(verb)


def run(options: argparse.Namespace) -> int:
    parameters: dict[str, object] = {"scene": str(Path(options.scene).resolve()), "every": options.every}
    if options.rate is None:
        parameters |= {"clock": True, "speed": options.speed}
    else:
        parameters["rate"] = options.rate
    parameters |= {"loop": options.loop, "wait_for_subscribers": options.wait_for}
    chosen = {"bag_image": options.image, "bag_camera_info": options.camera_info,
              "bag_pose_topic": options.pose_topic, "bag_pose_of": options.pose_of,
              "bag_tf_map": options.tf and options.tf[0], "bag_tf_camera": options.tf and options.tf[1],
              "bag_start": options.start or None, "bag_end": options.end if options.end < 1e9 else None,
              "bag_tf_topic": options.tf_topic, "bag_rectified": options.rectified or None,
              "bag_distorted": options.rectified is False or None}
    parameters |= {name: value for name, value in chosen.items() if value}
    return exec_ros_node("scene_player", parameters)
