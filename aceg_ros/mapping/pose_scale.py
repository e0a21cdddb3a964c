"""Whether poses are in metres, by how far away they make what two images see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aceg_ros.geometry import invert
from aceg_ros.mapping.image_pairs import ImagePair

MIN_PARALLAX_RAD = np.radians(1.5)
MIN_POINTS, MIN_PAIRS = 10, 3
FAR_M = 250.0                   # median depth of a recording: a street or a drone's flight stays below
# Of depths by the poses and measured ones. There is no lower limit: if a camera hardly moves, errors of the poses look
# like parallax, and everything seems near.
MAX_FACTOR = 5.0
_UNITS = ((1000.0, "millimetres"), (100.0, "centimetres"))
_UNIT_TOLERANCE = 1.8


def depths_by_poses(pairs: Sequence[ImagePair], poses: np.ndarray) -> dict[int, float]:
    """The median depth of what an image sees, by its index, by the poses (F, 4, 4) in their own unit; only of pairs
    with parallax."""
    depths = {}
    for pair in pairs:
        b_from_a = invert(poses[pair.b]) @ poses[pair.a]
        baseline = b_from_a[:3, 3]
        far = pair.rays_a @ b_from_a[:3, :3].T
        parallax = np.linalg.norm(np.cross(far, pair.rays_b), axis=1)               # a sine
        usable = parallax > np.sin(MIN_PARALLAX_RAD)
        if usable.sum() >= MIN_POINTS:
            ranges = np.linalg.norm(np.cross(baseline, pair.rays_b[usable]), axis=1) / parallax[usable]
            depths[pair.a] = float(np.median(ranges * pair.rays_a[usable, 2]))
    return depths


def scale_problem(by_poses: dict[int, float], measured_m: Sequence[float | None]) -> str | None:
    """A sentence if measured depths show that the poses are not in metres.

    measured_m: the median measured depth of each image, None if it has none.
    """
    ratios = [depth / known for index, depth in by_poses.items() if (known := measured_m[index])]
    if len(ratios) < MIN_PAIRS:
        return None
    ratio = float(np.median(ratios))
    if ratio < MAX_FACTOR:
        return None
    for factor, unit in _UNITS:
        if factor / _UNIT_TOLERANCE < ratio < factor * _UNIT_TOLERANCE:
            return (f"The poses look like {unit}, not metres (by them, everything is {ratio:.0f} times as far away as"
                    f" the depth images say): divide their translations by {factor:.0f}.")
    return (f"By the poses, everything is {ratio:.0f} times as far away as the depth images say: check that positions"
            " are in metres, and depth files in millimetres (16 bits).")


def scale_hint(by_poses: dict[int, float], positions: np.ndarray) -> str | None:
    """A sentence if the poses make a scene so large that they are hardly in metres. positions (F, 3) of the cameras."""
    if len(by_poses) < MIN_PAIRS:
        return None
    depth = float(np.median(list(by_poses.values())))
    if depth < FAR_M:
        return None
    return (f"By the poses, the images show what is about {depth:.0f} m away, from positions that span"
            f" {np.ptp(positions, axis=0).max():.0f} m: if the poses are in millimetres, divide their translations by"
            " 1000, since positions have to be in metres.")
