# SPDX-License-Identifier: Apache-2.0
"""Scale and direction of gravity of a structure, which images alone do not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.datasets.bag.messages import pose_matrix, stamp_ns
from aceg_ros.datasets.bag.reader import read_messages
from aceg_ros.datasets.files import load_image
from aceg_ros.errors import UserError
from aceg_ros.reconstruction.bag_depth import depth_ratios
from aceg_ros.reconstruction.sources import ImageSource
from aceg_ros.reconstruction.structure import Structure
from aceg_ros.utils.stamps import ns_to_s

KINDS = "tag=METRES, distance=IMAGE,IMAGE,METRES, topic=TOPIC or depth=TOPIC"
DEPTH_WITHOUT_SCALE = 3.0           # median depth that is chosen if nothing tells the scale
DICTIONARIES = ("DICT_APRILTAG_36h11", "DICT_4X4_50", "DICT_5X5_100", "DICT_6X6_250", "DICT_ARUCO_ORIGINAL")
MIN_TAG_VIEWS, MAX_TAG_SPREAD = 2, 0.2
MIN_TRAVEL_M, MAX_STAMP_GAP_S = 0.5, 0.2


@dataclass(frozen=True, kw_only=True)
class Scale:
    """metres_per_unit, and a sentence that says where it is from. known: whether anything told it."""

    metres_per_unit: float
    sentence: str
    known: bool = True


@dataclass(frozen=True, kw_only=True)
class ScaleSource:
    """What tells the scale. kind: tag (its side in metres), distance (two images and metres), topic (poses of a bag),
    depth (depth images of a bag)."""

    kind: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ScaleSource:
        """Parse KIND=VALUE,... Raises UserError if it is none of `KINDS`."""
        kind, _, rest = text.partition("=")
        values = tuple(rest.split(","))
        counts = {"tag": 1, "distance": 3, "topic": 1, "depth": 1}
        good = kind in counts and len(values) == counts[kind] and all(values)
        if good and kind in ("tag", "distance"):
            try:
                good = float(values[-1]) > 0
            except ValueError:
                good = False
        if not good:
            raise UserError(f"'{text}' does not tell a scale: give {KINDS}.")
        return cls(kind=kind, values=values)


def find_scale(structure: Structure, source: ScaleSource | None, *, images: Path, stamps: Mapping[str, float],
               bag: ImageSource | None) -> Scale:
    """Find the scale of a structure.

    Args:
        structure: the posed images.
        source: what tells the scale; None: nothing does.
        images: folder of the images.
        stamps: stamp of each image by name, seconds.
        bag: the bag that the images are from, if they are.

    Raises:
        UserError: if the source does not tell it: no tag is seen, an image has no pose, the topic has too few poses or
            depth images at the images' stamps.
    """
    if source is None:
        depth = float(np.nanmedian(list(structure.depths.values())))
        return Scale(metres_per_unit=DEPTH_WITHOUT_SCALE / depth, known=False,
                     sentence=f"the scale is unknown: the median depth was set to {DEPTH_WITHOUT_SCALE:g}")
    if source.kind == "tag":
        return _scale_of_tag(structure, float(source.values[0]), images)
    if source.kind == "distance":
        return _scale_of_distance(structure, source.values)
    if bag is None:
        raise UserError("A topic tells the scale of bags only: give tag=METRES or distance=IMAGE,IMAGE,METRES.")
    if source.kind == "depth":
        return _scale_of_depth(structure, source.values[0], bag, stamps)
    return _scale_of_topic(structure, source.values[0], bag.path, stamps)


def _scale_of_depth(structure: Structure, topic: str, bag: ImageSource, stamps: Mapping[str, float]) -> Scale:
    ratios = depth_ratios(structure, topic, bag, stamps)
    return Scale(metres_per_unit=float(np.median(ratios)),
                 sentence=f"scale from {len(ratios)} depths on {topic}, within {_spread(ratios):.0%}")


def _spread(ratios: Any) -> float:
    """Return how much ratios differ: their interquartile range as a share of the median."""
    return float(np.subtract(*np.percentile(ratios, (75, 25))) / np.median(ratios))


def _scale_of_distance(structure: Structure, values: Sequence[str]) -> Scale:
    positions = []
    for wanted in values[:2]:
        found = [name for name in structure.poses if wanted in (name, Path(name).stem)]
        if not found:
            raise UserError(f"The image {wanted} has no pose: name two that have one, of"
                            f" {', '.join(sorted(structure.poses)[:5])}, ...")
        positions.append(structure.poses[found[0]][:3, 3])
    distance = float(np.linalg.norm(positions[0] - positions[1]))
    if distance < 1e-9:
        raise UserError(f"The images {values[0]} and {values[1]} were taken at the same place.")
    return Scale(metres_per_unit=float(values[2]) / distance,
                 sentence=f"scale from {values[2]} m between {values[0]} and {values[1]}")


def _scale_of_topic(structure: Structure, topic: str, bag: Path, stamps: Mapping[str, float]) -> Scale:
    """Compare distances between images with those between the topic's positions, 2D or 3D, whose frames are not
    aligned: the median of the ratios of many pairs."""
    given = []
    for _, message in read_messages(bag, [topic]):
        pose = getattr(message, "pose", None)
        pose = pose if pose is None or hasattr(pose, "position") else pose.pose
        if pose is None:
            raise UserError(f"The topic {topic} holds no poses: give PoseStamped, PoseWithCovarianceStamped or"
                            " Odometry.")
        given.append((ns_to_s(stamp_ns(message)), pose_matrix(pose.position, pose.orientation)[:3, 3]))
    if not given:
        raise UserError(f"The bag has no poses on {topic}.")
    times, positions = np.array([stamp for stamp, _ in given]), np.stack([position for _, position in given])
    own, theirs = [], []
    for name, pose in structure.poses.items():
        nearest = int(np.argmin(np.abs(times - stamps[name])))
        if abs(times[nearest] - stamps[name]) < MAX_STAMP_GAP_S:
            own.append(pose[:3, 3])
            theirs.append(positions[nearest])
    pairs = [(np.linalg.norm(theirs[a] - theirs[b]), np.linalg.norm(own[a] - own[b]))
             for a, b in combinations(range(len(own)), 2)]
    ratios = [metres / units for metres, units in pairs if metres > MIN_TRAVEL_M and units > 1e-9]
    if len(ratios) < 5:
        raise UserError(f"The poses on {topic} do not tell the scale: they are beside the images' stamps, or the camera"
                        f" moved by less than {MIN_TRAVEL_M} m.")
    return Scale(metres_per_unit=float(np.median(ratios)),
                 sentence=f"scale from {topic}, within {_spread(ratios):.0%}")


def _scale_of_tag(structure: Structure, side_m: float, images: Path) -> Scale:
    """Triangulate the corners of printed markers, and compare their sides with the known one."""
    seen = {name: cv2.cvtColor(load_image(images / name), cv2.COLOR_RGB2GRAY) for name in structure.poses}
    corners: dict[tuple[str, int], list[tuple[str, np.ndarray]]] = {}
    for kind in DICTIONARIES:
        detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, kind)))
        for name, grey in seen.items():
            found, numbers, _ = detector.detectMarkers(grey)
            for quad, number in zip(found, [] if numbers is None else numbers.ravel(), strict=True):
                corners.setdefault((kind, int(number)), []).append((name, quad.reshape(4, 2)))
    sides = []
    for views in corners.values():
        if len(views) < MIN_TAG_VIEWS:
            continue
        square = np.array([triangulate([(structure.cameras[name], structure.poses[name], quad[corner])
                                        for name, quad in views]) for corner in range(4)])
        lengths = np.linalg.norm(square - np.roll(square, 1, axis=0), axis=1)
        if np.ptp(lengths) < MAX_TAG_SPREAD * lengths.mean():       # else a false detection
            sides.append(float(lengths.mean()))
    if not sides:
        raise UserError("No tag is seen well in two images: show one (AprilTag 36h11 or ArUco) from several sides.")
    return Scale(metres_per_unit=side_m / float(np.median(sides)),
                 sentence=f"scale from {len(sides)} {'tag' if len(sides) == 1 else 'tags'} of {side_m:g} m")


def triangulate(rays: Sequence[tuple[Camera, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the point (3,) nearest to the rays of pixels: each a camera, its pose (4, 4) and a pixel (2,)."""
    normal, target = np.zeros((3, 3)), np.zeros(3)
    for camera, pose, pixel in rays:
        direction = pose[:3, :3] @ camera.unproject(pixel[None])[0]
        direction = direction / np.linalg.norm(direction)
        across = np.eye(3) - np.outer(direction, direction)
        normal += across
        target += across @ pose[:3, 3]
    return np.linalg.lstsq(normal, target, rcond=None)[0]


def level(structure: Structure, metres_per_unit: float, up: np.ndarray | None = None) -> Structure:
    """Return the structure in metres, with z up and the first camera at the origin, looking along x.

    up: (3,) in the frame of the structure; None: that of the images on average, which people hold upright.
    """
    poses = {name: structure.poses[name] for name in sorted(structure.poses)}
    if up is None:
        up = -np.sum([pose[:3, 1] for pose in poses.values()], axis=0)
    z = up / np.linalg.norm(up)
    first = next(iter(poses.values()))
    ahead = first[:3, 2] - z * (first[:3, 2] @ z)
    if np.linalg.norm(ahead) < 1e-6:
        ahead = first[:3, 0]
    x = ahead / np.linalg.norm(ahead)
    new_from_old = np.eye(4)
    new_from_old[:3, :3] = np.stack([x, np.cross(z, x), z])
    new_from_old[:3, 3] = -new_from_old[:3, :3] @ first[:3, 3]

    def moved(pose: np.ndarray) -> np.ndarray:
        result = new_from_old @ pose
        result[:3, 3] *= metres_per_unit
        return result

    points = metres_per_unit * (structure.points @ new_from_old[:3, :3].T + new_from_old[:3, 3])
    return replace(structure, poses={name: moved(pose) for name, pose in poses.items()}, points=points,
                   depths={name: metres_per_unit * depth for name, depth in structure.depths.items()},
                   observations={name: seen * (1.0, 1.0, metres_per_unit)
                                 for name, seen in structure.observations.items()})
