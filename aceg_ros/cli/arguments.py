# SPDX-License-Identifier: Apache-2.0
"""Flags that several verbs share, and functions that check and convert their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aceg_ros.errors import UserError
from aceg_ros.methods.registry import names

if TYPE_CHECKING:
    from aceg_ros.datasets import BagOptions
    from aceg_ros.datasets.bag.rig import RigOptions
    from aceg_ros.datasets.scene import PosedFrames

DEVICES = ("auto", "cpu", "cuda")
SCENE_HELP = ("a folder of posed images: ACE (rgb/ poses/ calibration/), 7-Scenes, TUM RGB-D, COLMAP model or"
              " transforms.json; or a ROS bag (mcap, sqlite3, ROS 1); the format is recognised")


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """Add a verb that runs a function. text: one phrase, for the list of verbs and for the verb's own help."""
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    return verb


def add_scene_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of verbs that read a scene: which frames, and what to read from a bag."""
    verb.add_argument("--every", type=positive, default=1, metavar="N", help="take every N-th frame only")
    bag = verb.add_argument_group("ROS bags", "What to read from a bag; by default, the only topic of a suitable type.")
    bag.add_argument("--image", metavar="TOPIC", help="images, raw or compressed")
    bag.add_argument("--camera-info", metavar="TOPIC", help="intrinsics of the camera")
    poses = bag.add_mutually_exclusive_group()
    poses.add_argument("--pose-topic", metavar="TOPIC", help="PoseStamped, PoseWithCovarianceStamped or Odometry")
    poses.add_argument("--tf", nargs=2, metavar=("MAP", "CAMERA"), help="poses from TF; CAMERA '' is the frame_id"
                       " of the images")
    bag.add_argument("--tf-topic", metavar="TOPIC", help="transforms (default: /tf, or that of the images' namespace)")
    bag.add_argument("--pose-of", metavar="FRAME", help="frame whose pose is on the pose topic (default: the camera,"
                     " or the child frame of odometry)")
    bag.add_argument("--start", type=float, default=0.0, metavar="S", help="skip the first S seconds")
    bag.add_argument("--end", type=float, default=float("inf"), metavar="S", help="skip what is after S seconds")
    bag.add_argument("--rectified", action=argparse.BooleanOptionalAction, help="the images are already rectified, so"
                     " that P describes their camera (default: if their topic is named image_rect...)")


def add_rig_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of verbs that read rigs of cameras."""
    rig = verb.add_argument_group("Rigs of cameras in ROS bags")
    rig.add_argument("--cameras", nargs="+", metavar="TOPIC", help="images of the cameras of a rig: those of one moment"
                     " give one pose, that of --base")
    rig.add_argument("--base", metavar="FRAME", default="base_link", help="TF frame that the cameras are mounted on"
                     " (default: %(default)s)")
    rig.add_argument("--tolerance", type=float, metavar="S", default=0.02, help="largest difference of the stamps of"
                     " images of one moment (default: %(default)s)")


def rig_options(options: argparse.Namespace) -> RigOptions | None:
    """Return the options for reading a rig, None if no cameras were given."""
    from aceg_ros.datasets.bag.rig import RigOptions, camera_names

    if not options.cameras:
        return None
    if options.image or options.camera_info:
        raise UserError("--image and --camera-info are for one camera: with --cameras, each camera_info is found beside"
                        " its images.")
    return RigOptions(topics=camera_names(options.cameras), base=options.base, tolerance_s=options.tolerance)


def open_recording(options: argparse.Namespace, path: str) -> PosedFrames:
    """Open the recording of one camera or of a rig, as the flags say. Raises UserError if it cannot be read."""
    from aceg_ros.datasets import open_scene
    from aceg_ros.datasets.bag.rig import open_rig

    rig = rig_options(options)
    if rig is None:
        return open_scene(path, options.every, bag_options(options))
    return open_rig(path, rig, options.every, bag_options(options)).images()


def add_method_flag(verb: argparse.ArgumentParser) -> None:
    """Add --method to a verb that localizes: another method than that of the map."""
    verb.add_argument("--method", choices=names(), help="localize by another method that can use what the map has"
                      " (default: the one that made it)")


def add_mapping_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of verbs that map recordings."""
    verb.add_argument("--trust-poses", action="store_true", help="do not check on a few pairs of images whether the"
                      " poses agree with them, nor whether they are in metres")
    verb.add_argument("--json-progress", action="store_true", help="print progress as one JSON object per line on"
                      " stdout")


def add_computing_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of verbs that compute: seed and device."""
    verb.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of random choices (default: %(default)s)")
    add_device_flag(verb)


def add_device_flag(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", default="auto", choices=DEVICES, help="(default: %(default)s)")


def bag_options(options: argparse.Namespace) -> BagOptions | None:
    """Return the options for reading a bag, None if no flag was given."""
    from aceg_ros.datasets import BagOptions

    chosen = BagOptions(image=options.image or "", camera_info=options.camera_info or "",
                        pose_topic=options.pose_topic or "", pose_of=options.pose_of or "",
                        tf=None if options.tf is None else tuple(options.tf), start_s=options.start, end_s=options.end,
                        rectified=options.rectified, tf_topic=options.tf_topic or "")
    return None if chosen == BagOptions() else chosen


def check_outputs(options: argparse.Namespace) -> None:
    """Raise UserError if --json or --report cannot be written, so that this is known before the work."""
    from aceg_ros.maps.scene_map import check_writable

    for target in filter(None, (options.json, options.report and f"{options.report}/summary.json")):
        check_writable(target)


def parsed_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make an argparse type of a function that raises UserError."""
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def seconds(text: str) -> float:
    """Parse a number of seconds, at least 5."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 5 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds, 5 or more")
    return value


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return value


def seed(text: str) -> int:
    """Parse the seed of a random generator."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def whole_number(text: str) -> int:
    """Parse a whole number, at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)
