# SPDX-License-Identifier: Apache-2.0
"""The scale that depth images of a bag tell: the depths of a structure's points beside the measured ones."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from aceg_ros.datasets.bag.messages import frame_name, stamp_ns
from aceg_ros.datasets.bag.reader import BagEntry, list_entries, read_messages
from aceg_ros.datasets.image_decoder import decode_depth
from aceg_ros.errors import UserError
from aceg_ros.reconstruction.sources import ImageSource
from aceg_ros.reconstruction.structure import Structure
from aceg_ros.utils.stamps import NS_PER_S, ns_to_s, s_to_ns

MAX_STAMP_DIFFERENCE_S = 0.05       # between an image and its depth image
MIN_IMAGES, MIN_POINTS = 3, 50      # that have both depths
MAX_ASPECT_DIFFERENCE = 0.02        # of a depth image of another size, which is then taken to be aligned all the same


def depth_ratios(structure: Structure, topic: str, bag: ImageSource, stamps: Mapping[str, float]) -> np.ndarray:
    """Compare the depth of each point in each image with that of the depth image of the same moment.

    Args:
        structure: the posed images, with what they see of the points.
        topic: of depth images that are aligned to the images, 16UC1 in millimetres or 32FC1 in metres.
        bag: the bag that the images are from.
        stamps: stamp of each image by name, seconds.

    Returns:
        Metres a unit, (N,), of all points that both know the depth of.

    Raises:
        UserError: the topic holds no depth images of the images' frame and shape, or too few are at their stamps.
    """
    entries = sorted(list_entries(bag.path, bag.bag_options), key=lambda entry: entry.header.stamp_ns)
    entry_ns = [entry.header.stamp_ns for entry in entries]
    names = sorted(structure.poses, key=lambda name: stamps[name])
    times_ns = [s_to_ns(stamps[name]) for name in names]
    found: dict[str, tuple[int, np.ndarray]] = {}           # by image: difference of the stamps, and ratios
    heard = False
    for _, message in read_messages(bag.path, [topic]):
        heard = True
        if not hasattr(message, "encoding"):
            raise UserError(f"The topic {topic} holds no raw depth images: give one of sensor_msgs/Image.")
        index = nearest(times_ns, stamp_ns(message))
        difference_ns = abs(times_ns[index] - stamp_ns(message))
        name = names[index]
        if difference_ns <= MAX_STAMP_DIFFERENCE_S * NS_PER_S and (
                name not in found or difference_ns < found[name][0]):
            entry = entries[nearest(entry_ns, times_ns[index])]
            found[name] = difference_ns, _ratios(structure.observations[name], message, entry, topic)
    if not heard:
        raise UserError(f"The bag has no depth images on {topic}.")
    known = [ratios for _, ratios in found.values() if len(ratios)]
    if len(known) < MIN_IMAGES or sum(map(len, known)) < MIN_POINTS:
        raise UserError(f"The depth images on {topic} do not tell the scale: {len(known)} images have one within"
                        f" {MAX_STAMP_DIFFERENCE_S:g} s of their stamps that knows the depth of points.")
    return np.concatenate(known)


def nearest(sorted_ns: Sequence[int], wanted_ns: int) -> int:
    """Return the index of the stamp nearest to the wanted one. There must be a stamp."""
    after = bisect_left(sorted_ns, wanted_ns)
    around = range(max(after - 1, 0), min(after + 1, len(sorted_ns)))
    return min(around, key=lambda index: abs(sorted_ns[index] - wanted_ns))


def _ratios(observed: np.ndarray, message: Any, entry: BagEntry, topic: str) -> np.ndarray:
    """Return the ratios of one image. observed: (N, 3), pixels of the undistorted image and depths in units."""
    frame = frame_name(message.header.frame_id)
    if frame and entry.header.frame_id and frame != entry.header.frame_id:
        raise UserError(f"The depth images on {topic} are in the frame '{frame}', the images in"
                        f" '{entry.header.frame_id}': give depth that is aligned to the images, as depth_image_proc's"
                        " register node makes it.")
    camera = entry.camera
    if isinstance(camera, str):
        raise UserError(camera)
    depth_m = decode_depth(message)
    if depth_m.shape != (camera.height, camera.width):
        aspect = depth_m.shape[1] / depth_m.shape[0] / (camera.width / camera.height)
        if abs(aspect - 1.0) > MAX_ASPECT_DIFFERENCE:
            raise UserError(f"The depth images on {topic} at {ns_to_s(stamp_ns(message)):.3f} s have"
                            f" {depth_m.shape[1]}x{depth_m.shape[0]} pixels, the images {camera.width}x{camera.height}:"
                            " give depth that is aligned to the images.")
        depth_m = cv2.resize(depth_m, (camera.width, camera.height), interpolation=cv2.INTER_NEAREST)
    depth_m, _ = camera.rectify(depth_m, cv2.INTER_NEAREST)
    columns, rows = np.round(observed[:, 0]).astype(int), np.round(observed[:, 1]).astype(int)
    inside = (columns >= 0) & (rows >= 0) & (columns < camera.width) & (rows < camera.height) & (observed[:, 2] > 0)
    measured = depth_m[rows[inside], columns[inside]]
    return (measured / observed[inside, 2])[measured > 0]
