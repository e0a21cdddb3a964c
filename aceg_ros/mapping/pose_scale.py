# SPDX-License-Identifier: Apache-2.0
"""Checks that poses are in metres, by the depths that are triangulated with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aceg_ros.geometry import invert
from aceg_ros.mapping.image_pairs import ImagePair

MIN_PARALLAX_RAD = np.radians(1.5)
MIN_POINTS, MIN_PAIRS = 10, 3
FAR_M = 250.0                   # median depth above which metres are unlikely: streets and drone flights are below
# Largest ratio of triangulated to measured depths. There is no lower limit: if a camera hardly moves, errors of the
# poses look like parallax, and triangulated depths are too small.
MAX_FACTOR = 5.0
_UNITS = ((1000.0, "millimetres"), (100.0, "centimetres"))
_UNIT_TOLERANCE = 1.8


def depths_by_poses(pairs: Sequence[ImagePair], poses: np.ndarray) -> dict[int, float]:
    """Triangulate the median depth of images from pairs with parallax, in the unit of the poses (F, 4, 4), by index."""
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
    """Return a sentence if measured depths show that the poses are not in metres, else None.

    by_poses: triangulated median depths, see `depths_by_poses`. measured_m: median measured depth of each image, None
    if it has none.
    """
    ratios = [depth / known for index, depth in by_poses.items() if (known := measured_m[index])]
    if len(ratios) < MIN_PAIRS:
        return None
    ratio = float(np.median(ratios))
    if ratio < MAX_FACTOR:
        return None
    for factor, unit in _UNITS:
        if factor / _UNIT_TOLERANCE < ratio < factor * _UNIT_TOLERANCE:
            return (f"The poses look like {unit}, not metres (triangulated depths are {ratio:.0f} times those of the"
                    f" depth images): divide their translations by {factor:.0f}.")
    return (f"Depths triangulated with the poses are {ratio:.0f} times those of the depth images: check that positions"
            " are in metres, and depth files in millimetres (16 bits).")


def scale_hint(by_poses: dict[int, float], positions: np.ndarray) -> str | None:
    """Return a warning if the scene is so large that the poses are probably not in metres, else None.

    by_poses: triangulated median depths. positions (F, 3): of the cameras.
    """
    if len(by_poses) < MIN_PAIRS:
        return None
    depth = float(np.median(list(by_poses.values())))
    if depth < FAR_M:
        return None
    return (f"Triangulated with the poses, the scene is about {depth:.0f} m away, and the camera positions span"
            f" {np.ptp(positions, axis=0).max():.0f} m: if the poses are in millimetres, divide their translations by"
            " 1000, since positions have to be in metres.")
