# SPDX-License-Identifier: Apache-2.0
"""`aceg reconstruct`: a video, a folder of images or a bag to a recording with poses."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aceg_ros.cli.arguments import add_scene_flags, add_verb, bag_options, positive
from aceg_ros.errors import UserError

if TYPE_CHECKING:
    from aceg_ros.reconstruction.reconstruct import Reconstruction


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "reconstruct", run, "find the poses of the images of a video, a folder or a bag, by"
                    " pycolmap")
    verb.add_argument("source", metavar="VIDEO|FOLDER|BAG")
    verb.add_argument("-o", "--output", metavar="RECORDING", required=True, help="folder to write, for 'aceg map'")
    add_reconstruction_flags(verb)
    add_scene_flags(verb)


def add_reconstruction_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags that say how poses are found for images that have none."""
    group = verb.add_argument_group("Poses from images alone")
    group.add_argument("--images", type=positive, default=200, metavar="N", help="use at most N images"
                       " (default: %(default)s)")
    group.add_argument("--camera", metavar="FILE", help="known intrinsics: camera_info YAML, JSON, or a text file with"
                       " K or a focal length; by default, those of the bag, or estimated, beginning with EXIF")
    group.add_argument("--scale-from", metavar="KIND", help="what tells the scale: tag=METRES (side of an AprilTag"
                       " 36h11 or ArUco marker), distance=IMAGE,IMAGE,METRES (between where two were taken),"
                       " topic=TOPIC (poses or odometry of the bag) or depth=TOPIC (its depth images, aligned to the"
                       " images); by default, the scale is arbitrary")
    group.add_argument("--imu", metavar="TOPIC", default="", help="topic of the bag's IMU whose accelerometer tells"
                       " which way is up (default: the one with the most accelerations; without any, up is that of"
                       " the images)")


def run(options: argparse.Namespace) -> int:
    found = reconstruct_to(Path(options.source), Path(options.output), options)
    print(f"{options.output}: {found}")
    return 0


def reconstruct_to(source: Path, output: Path, options: argparse.Namespace) -> Reconstruction:
    """Reconstruct with a progress line on stderr, print warnings there, and return the quality."""
    from aceg_ros.datasets import load_camera_file
    from aceg_ros.reconstruction.metric import ScaleSource
    from aceg_ros.reconstruction.reconstruct import ReconstructionOptions, reconstruct
    from aceg_ros.reconstruction.sources import open_images

    scale = None if options.scale_from is None else ScaleSource.parse(options.scale_from)
    images = open_images(source, options.every, bag_options(options))
    camera = None
    if options.camera:
        first = next(iter(images), None)
        if first is None:
            raise UserError(f"No image of {source} can be read.")
        height, width = first.image.shape[:2]
        camera = load_camera_file(options.camera, width, height)
    with _ProgressLine() as line:
        known = ReconstructionOptions(max_images=options.images, camera=camera, scale=scale,
                                      imu=options.imu)
        found = reconstruct(images, output, known, line.show)
    for warning in found.warnings:
        print(f"aceg: {warning}", file=sys.stderr)
    return found


class _ProgressLine:
    """What is done at present, on one line of a terminal."""

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)

    def show(self, text: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}: {done} of {total}", end="", file=sys.stderr, flush=True)
