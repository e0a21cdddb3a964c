# SPDX-License-Identifier: Apache-2.0
"""Poses from three correspondences, compiled, and what they cost over all: the inner loop of RANSAC.

Three points and the rays to them leave the distances to solve a quartic (Grunert 1841; Haralick et al., Review and
Analysis of Solutions of the Three Point Perspective Pose Estimation Problem, IJCV 1994).
"""

from __future__ import annotations

import math

import numpy as np

from aceg_ros.utils.compiled import compiled

Vector = tuple[float, float, float]
MIN_DEPTH_M = 0.1


@compiled
def next_better_pose(points: np.ndarray, rays: np.ndarray, samples: np.ndarray, threshold: float, greatest_cost: float
                     ) -> tuple[int, float, np.ndarray]:
    """Try samples of three correspondences until a pose costs less than one that is known.

    Args:
        points: (3, N) in the map.
        rays: (2, N) x / z and y / z of their pixels.
        samples: (S, 3), correspondences to try poses of in turn.
        threshold: distance from the projection, in units of the rays, from which a correspondence costs no more.
        greatest_cost: the cost of the pose that is known; see `pose_cost`.

    Returns:
        The number of samples tried, and the cost and camera_from_map (3, 4) of the better pose; where none was found,
        the known cost and zeros.
    """
    best, cost = np.zeros((3, 4)), greatest_cost
    for number in range(len(samples)):
        poses, count = three_point_poses(points, rays, samples[number])
        for found in range(count):
            other = pose_cost(points, rays, poses[found], threshold)
            if other < cost:
                cost, best = other, poses[found].copy()
        if cost < greatest_cost:
            return number + 1, cost, best
    return len(samples), cost, best


@compiled
def pose_cost(points: np.ndarray, rays: np.ndarray, pose: np.ndarray, threshold: float) -> float:
    """Return the sum of squared distances from projections, each at most the threshold's (MSAC, Torr and Zisserman
    2000), over that: the effective number of correspondences that do not agree."""
    a, b, c = (pose[0, 0], pose[0, 1], pose[0, 2], pose[0, 3]), (pose[1, 0], pose[1, 1], pose[1, 2], pose[1, 3]), (
        pose[2, 0], pose[2, 1], pose[2, 2], pose[2, 3])
    total, limit = 0.0, threshold * threshold
    for i in range(points.shape[1]):
        x, y, z = points[0, i], points[1, i], points[2, i]
        depth = c[0] * x + c[1] * y + c[2] * z + c[3]
        inverse = 1.0 / max(depth, MIN_DEPTH_M)
        u = (a[0] * x + a[1] * y + a[2] * z + a[3]) * inverse - rays[0, i]
        v = (b[0] * x + b[1] * y + b[2] * z + b[3]) * inverse - rays[1, i]
        total += min(u * u + v * v, limit) if depth > MIN_DEPTH_M else limit
    return total / limit


@compiled
def three_point_poses(points: np.ndarray, rays: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, int]:
    """Return up to four camera_from_map (4, 3, 4) of which a sample (3,) of correspondences is projected exactly, and
    their number."""
    poses, count = np.empty((4, 3, 4)), 0
    i, j, k = sample[0], sample[1], sample[2]
    first, second, third = _point(points, i), _point(points, j), _point(points, k)
    ray_1, ray_2, ray_3 = _direction(rays, i), _direction(rays, j), _direction(rays, k)
    aa, bb, cc = _square(_minus(second, third)), _square(_minus(first, third)), _square(_minus(first, second))
    if _square(_cross(_minus(second, first), _minus(third, first))) <= 1e-12 * aa * cc:     # on a line
        return poses, 0
    alpha, beta, gamma = _dot(ray_2, ray_3), _dot(ray_1, ray_3), _dot(ray_1, ray_2)
    p, q, r, s = (aa - cc) / bb, (aa + cc) / bb, aa / bb, cc / bb
    roots, real = quartic_roots((
        (p - 1.0) ** 2 - 4.0 * s * alpha**2,
        4.0 * (p * (1.0 - p) * beta - (1.0 - q) * alpha * gamma + 2.0 * s * alpha**2 * beta),
        2.0 * (p * p - 1.0 + 2.0 * p * p * beta**2 + 2.0 * (1.0 - s) * alpha**2 - 4.0 * q * alpha * beta * gamma
               + 2.0 * (1.0 - r) * gamma**2),
        4.0 * (-p * (1.0 + p) * beta + 2.0 * r * gamma**2 * beta - (1.0 - q) * alpha * gamma),
        (1.0 + p) ** 2 - 4.0 * r * gamma**2))
    map_axes = _axes(first, second, third)
    for number in range(real):
        # Distances as shares of the first one.
        v = roots[number]
        divisor = 2.0 * (gamma - v * alpha)
        if v <= 0.0 or abs(divisor) < 1e-9:
            continue
        u = ((p - 1.0) * v * v - 2.0 * p * beta * v + 1.0 + p) / divisor
        if u <= 0.0:
            continue
        distance = math.sqrt(bb / (1.0 + v * v - 2.0 * v * beta))
        seen = _times(ray_1, distance)
        axes = _axes(seen, _times(ray_2, u * distance), _times(ray_3, v * distance))
        for row in range(3):
            shift = seen[row]
            for column in range(3):
                value = (axes[0][row] * map_axes[0][column] + axes[1][row] * map_axes[1][column]
                         + axes[2][row] * map_axes[2][column])
                poses[count, row, column] = value
                shift -= value * first[column]
            poses[count, row, 3] = shift
        count += 1
    return poses, count


@compiled
def quartic_roots(coefficients: tuple[float, float, float, float, float]) -> tuple[np.ndarray, int]:
    """Return the real roots (4,) of a polynomial, its highest power first, and their number, by Ferrari's method and
    Newton's."""
    roots, count = np.empty(4), 0
    a, b, c, d, e = coefficients
    if abs(a) < 1e-14:
        return roots, 0
    b, c, d, e = b / a, c / a, d / a, e / a
    # Of x = y - b / 4: y^4 + p y^2 + q y + r = (y^2 + m)^2 - (n y - q / 2 n)^2, where m = p / 2 + t, n^2 = 2 t.
    p, q = c - 0.375 * b * b, d - 0.5 * b * c + 0.125 * b**3
    r = e - 0.25 * b * d + 0.0625 * b * b * c - 3.0 / 256.0 * b**4
    t = _greatest_cubic_root(p, 0.25 * p * p - r, -0.125 * q * q)
    n = math.sqrt(max(2.0 * t, 0.0))
    shift = 0.5 * q / n if n > 1e-9 else math.sqrt(max((0.5 * p) ** 2 - r, 0.0))
    for sign in (1.0, -1.0):
        # y^2 + sign n y + m - sign shift = 0
        inside = 0.25 * n * n - (0.5 * p + t - sign * shift)
        if inside < -1e-9 * (1.0 + abs(p)):
            continue
        for other in (1.0, -1.0):
            x = -0.5 * sign * n + other * math.sqrt(max(inside, 0.0)) - 0.25 * b
            for _ in range(2):
                slope = ((4.0 * x + 3.0 * b) * x + 2.0 * c) * x + d
                if slope != 0.0:
                    x -= ((((x + b) * x + c) * x + d) * x + e) / slope
            roots[count] = x
            count += 1
    return roots, count


@compiled
def _greatest_cubic_root(b: float, c: float, d: float) -> float:
    """Return the greatest real root of x^3 + b x^2 + c x + d."""
    p, q = c - b * b / 3.0, 2.0 * b**3 / 27.0 - b * c / 3.0 + d
    inside = 0.25 * q * q + p**3 / 27.0
    if inside > 0.0:
        # The larger one of the two cubes: the other would be a difference of nearly equal numbers.
        cube = -0.5 * q - math.copysign(math.sqrt(inside), q)
        u = math.copysign(abs(cube) ** (1.0 / 3.0), cube)
        return u - (p / (3.0 * u) if u != 0.0 else 0.0) - b / 3.0
    size = math.sqrt(max(-p / 3.0, 0.0))
    cosine = max(-1.0, min(1.0, -0.5 * q / size**3)) if size > 0.0 else 1.0
    return 2.0 * size * math.cos(math.acos(cosine) / 3.0) - b / 3.0


@compiled
def _point(points: np.ndarray, index: int) -> Vector:
    return points[0, index], points[1, index], points[2, index]


@compiled
def _direction(rays: np.ndarray, index: int) -> Vector:
    x, y = rays[0, index], rays[1, index]
    inverse = 1.0 / math.sqrt(x * x + y * y + 1.0)
    return x * inverse, y * inverse, inverse


@compiled
def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@compiled
def _times(a: Vector, factor: float) -> Vector:
    return a[0] * factor, a[1] * factor, a[2] * factor


@compiled
def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def _square(a: Vector) -> float:
    return a[0] * a[0] + a[1] * a[1] + a[2] * a[2]


@compiled
def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@compiled
def _axes(first: Vector, second: Vector, third: Vector) -> tuple[Vector, Vector, Vector]:
    """Return the axes of a triangle: along its first side, across it, and in its plane."""
    along = _minus(second, first)
    normal = _cross(along, _minus(third, first))
    along = _times(along, 1.0 / math.sqrt(_square(along)))
    normal = _times(normal, 1.0 / math.sqrt(_square(normal)))
    return along, normal, _cross(along, normal)
