# SPDX-License-Identifier: Apache-2.0
"""`aceg localize`: the poses of single images in a map."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aceg_ros.cli.arguments import add_computing_flags, add_method_flag, add_verb
from aceg_ros.errors import UserError

if TYPE_CHECKING:
    from aceg_ros.camera import Frame
    from aceg_ros.estimate import PoseEstimate
    from aceg_ros.maps.scene_map import SceneMap


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "localize", run, "localize images in a map")
    verb.description = ("Localize images in a map. Prints the pose of the camera in the map for each: x y z in metres"
                        " and the quaternion qx qy qz qw; or the reason why there is none.")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("images", metavar="IMAGE", nargs="+")
    verb.add_argument("--camera", metavar="FILE", help="intrinsics: ROS camera_info YAML, JSON or a 3x3 text file"
                      " (default: the mapping camera of the image's size)")
    verb.add_argument("-o", "--output", metavar="POSES.tum", help="write the poses in TUM format, image number as"
                      " stamp")
    verb.add_argument("--json", metavar="FILE", help="write all results, with covariance or reason for rejection")
    add_method_flag(verb)
    add_computing_flags(verb)


def run(options: argparse.Namespace) -> int:
    from aceg_ros.estimate import PoseEstimate, Status
    from aceg_ros.evaluation.evaluate import tum_line
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.registry import make_localizer
    from aceg_ros.utils.atomic_file import write_json, write_text

    scene_map = SceneMap.load(options.map)
    localizer = make_localizer(scene_map, options.device, options.seed, options.method)
    results, lines, unreadable = [], [], 0
    for number, path in enumerate(options.images):
        try:
            frame = _read_frame(path, number, scene_map, options.camera)
        except _UnreadableImageError as error:
            estimate = PoseEstimate(status=Status.BAD_IMAGE, message=str(error))
            unreadable += 1
        else:
            estimate = localizer.localize(frame)
        results.append(_as_json(path, estimate))
        if estimate.map_from_camera is not None:
            lines.append(tum_line(float(number), estimate.map_from_camera))
            print(f"{path}: {lines[-1].split(' ', 1)[1]}  ({estimate.inliers} inliers)")
        else:
            print(f"{path}: {estimate.status.value}: {estimate.message}")
    if options.output:
        write_text(Path(options.output), "".join(line + "\n" for line in lines))
    if options.json:
        write_json({"images": results}, Path(options.json))
    if unreadable:
        raise UserError(f"{unreadable} of {len(options.images)} images could not be read, see above.")
    return 0


class _UnreadableImageError(Exception):
    """An image cannot be read; the others are localized all the same."""


def _read_frame(path: str, number: int, scene_map: SceneMap, camera_file: str | None) -> Frame:
    """Read an image with its camera. Raises _UnreadableImageError, or UserError if its camera is not known."""
    from aceg_ros.camera import Frame
    from aceg_ros.datasets import load_camera_file, load_image

    try:
        image = load_image(path)
    except UserError as error:
        raise _UnreadableImageError(str(error)) from None
    height, width = image.shape[:2]
    camera = scene_map.camera_of_size(width, height) if camera_file is None else \
        load_camera_file(camera_file, width, height)
    return Frame(image=image, camera=camera, stamp_s=float(number), name=str(path))


def _as_json(path: str, estimate: PoseEstimate) -> dict[str, Any]:
    pose, covariance = estimate.map_from_camera, estimate.covariance
    return {"image": str(path), "status": estimate.status.value, "message": estimate.message,
            "map_from_camera": None if pose is None else pose.tolist(),
            "covariance": None if covariance is None else covariance.tolist(),
            "inliers": estimate.inliers, "inlier_ratio": estimate.inlier_ratio}
