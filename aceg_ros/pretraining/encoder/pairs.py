"""Picture pairs with known point correspondences: what the encoder learns from.

Three sources, one form: views of rendered rooms (exact, from depth), one real picture against itself (the random warps
of `augment` make it a homography pair), and two real pictures of a mapping run (SIFT matches that agree with the
epipolar geometry of their poses).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.synthetic.camera_poses import pose_near, random_viewpoint
from aceg_ros.synthetic.render import random_light, render
from aceg_ros.synthetic.room import random_room
from aceg_ros.synthetic.textures import TextureAtlas

VIEWS_PER_ROOM = 6


@dataclass(frozen=True)
class Pair:
    """images: two (H, W, 3) uint8 RGB; points: two (N, 2) pixels that show the same surface points.

    place: pairs of one place may show the same surface, so they are no negatives for each other. map_points (N, 3):
    where the points are, if known. taught (N, D): what the teacher says of them, if it was asked.
    """

    images: tuple[np.ndarray, np.ndarray]
    points: tuple[np.ndarray, np.ndarray]
    place: str
    map_points: np.ndarray | None = None
    taught: np.ndarray | None = None


class PairSource(Protocol):
    def sample(self, rng: np.random.Generator) -> Pair: ...


def _seen_from(points: np.ndarray, camera: Camera, map_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and z-depths (N,) of map points in a camera."""
    local = (points - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
    depth = local[:, 2]
    safe = np.where(depth > 1e-3, depth, 1e-3)
    return local[:, :2] / safe[:, None] * (camera.fx, camera.fy) + (camera.cx, camera.cy), depth


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of one picture: descriptors (N, D) at pixels (N, 2)."""

    pixels: np.ndarray
    descriptors: np.ndarray


# --- rendered rooms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoomViews:
    """A room seen from near one spot: images (V, H, W, 3), depth_m (V, H, W), poses (V, 4, 4), focal_px."""

    images: np.ndarray
    depth_m: np.ndarray
    poses: np.ndarray
    focal_px: float

    @property
    def camera(self) -> Camera:
        height, width = self.depth_m.shape[1:]
        return Camera(width=width, height=height, fx=self.focal_px, fy=self.focal_px, cx=(width - 1) / 2,
                      cy=(height - 1) / 2)


def load_views(path: Path) -> RoomViews:
    with np.load(path) as data:
        return RoomViews(data["images"], data["depth_m"], data["poses"], float(data["focal_px"]))


def render_views(seed: int, atlas: TextureAtlas, width: int = 480, height: int = 384,
                 count: int = VIEWS_PER_ROOM) -> RoomViews:
    """Views of random room `seed` from near one spot, each under a light of its own."""
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(380, 620)
    camera = Camera(width=width, height=height, fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2)
    viewpoint = random_viewpoint(room, rng)
    views, poses = [], []
    for _ in range(count):
        pose = pose_near(room, viewpoint, rng, position_m=0.5, target_m=0.35, roll_rad=0.12)
        views.append(render(room, atlas, camera, pose, light=random_light(rng)))
        poses.append(pose)
    return RoomViews(np.stack([view.image for view in views]),
                     np.stack([view.depth_m for view in views]).astype(np.float16), np.stack(poses), focal)


def seen_in_both(room: RoomViews, a: int, b: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map points (N, 3) at pixels (N, 2) of view a, their pixels (N, 2) in view b, and whether b sees them (N,)."""
    camera = room.camera
    columns, rows = pixels.round().astype(int).T
    depth = room.depth_m[a][rows, columns].astype(float)
    rays = np.column_stack([(pixels - (camera.cx, camera.cy)) / camera.fx, np.ones(len(pixels))])
    points = (rays * depth[:, None]) @ room.poses[a][:3, :3].T + room.poses[a][:3, 3]
    seen, depth_b = _seen_from(points, camera, room.poses[b])
    inside = (seen > 1).all(1) & (seen < (camera.width - 2, camera.height - 2)).all(1) & (depth_b > 0.1)
    near = np.clip(seen.round().astype(int), 0, (camera.width - 1, camera.height - 1))
    measured = room.depth_m[b][near[:, 1], near[:, 0]].astype(float)
    return points, seen, inside & (np.abs(measured - depth_b) < 0.02 * depth_b + 0.01)


class RenderedPairs:
    """Pairs of views of rendered rooms. names and lessons: one for each room, a lesson for each of its views (None
    where the teacher was not asked)."""

    def __init__(self, rooms: list[RoomViews], names: list[str], lessons: list[list[Lesson | None]] | None = None):
        self._rooms, self._names, self._lessons = rooms, names, lessons

    def sample(self, rng: np.random.Generator) -> Pair:
        index = int(rng.integers(len(self._rooms)))
        room = self._rooms[index]
        a, b = rng.choice(len(room.images), 2, replace=False)
        camera = room.camera
        lesson = None if self._lessons is None else self._lessons[index][a]
        pixels = rng.uniform((2, 2), (camera.width - 3, camera.height - 3), (4000, 2)).round() if lesson is None \
            else lesson.pixels
        points, seen, visible = seen_in_both(room, a, b, pixels)
        return Pair((room.images[a], room.images[b]), (pixels[visible], seen[visible]), self._names[index],
                    points[visible], None if lesson is None else lesson.descriptors[visible])


# --- real pictures --------------------------------------------------------------------------------------------------


class SelfPairs:
    """A real picture and itself; the warps applied later make the difference.

    lessons: one for each picture, None where the teacher was not asked.
    """

    def __init__(self, images: list[np.ndarray], places: list[str], lessons: list[Lesson | None]):
        self._images, self._places, self._lessons = images, places, lessons

    def sample(self, rng: np.random.Generator) -> Pair:
        index = int(rng.integers(len(self._images)))
        image, lesson = self._images[index], self._lessons[index]
        if lesson is not None:
            return Pair((image, image), (lesson.pixels, lesson.pixels), self._places[index],
                        taught=lesson.descriptors)
        points = rng.uniform((2, 2), (image.shape[1] - 3, image.shape[0] - 3), (4000, 2))
        return Pair((image, image), (points, points), self._places[index])


@dataclass(frozen=True)
class Matches:
    """Matched points of pictures a and b (indices into the list of images)."""

    a: int
    b: int
    points_a: np.ndarray
    points_b: np.ndarray


class MatchedPairs:
    """Two real pictures of one place with verified matches."""

    def __init__(self, images: list[np.ndarray], places: list[str], matches: list[Matches]):
        self._images, self._places, self._matches = images, places, matches

    def sample(self, rng: np.random.Generator) -> Pair:
        match = self._matches[int(rng.integers(len(self._matches)))]
        images, points = (self._images[match.a], self._images[match.b]), (match.points_a, match.points_b)
        if rng.uniform() < 0.5:
            images, points = images[::-1], points[::-1]
        return Pair(images, points, self._places[match.a])


def match_frames(frames: list[Frame], seed: int, partners: int = 6) -> list[Matches]:
    """SIFT matches between each frame and some later ones, kept where they lie within 2 px of the epipolar line."""
    rng = np.random.default_rng(seed)
    sift = cv2.SIFT.create(1500)
    described = [sift.detectAndCompute(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), None) for frame in frames]
    poses = [np.asarray(frame.map_from_camera) for frame in frames]

    def fundamental(a: int, b: int) -> np.ndarray:
        b_from_a = np.linalg.inv(poses[b]) @ poses[a]
        tx, ty, tz = b_from_a[:3, 3]
        essential = np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]]) @ b_from_a[:3, :3]
        return np.linalg.inv(frames[b].camera.K).T @ essential @ np.linalg.inv(frames[a].camera.K)

    found = []
    for a in range(len(frames)):
        ahead = np.arange(a + 1, min(a + 80, len(frames)))
        if len(ahead) == 0:
            continue
        for b in rng.choice(ahead, min(partners, len(ahead)), replace=False):
            if poses[a][:3, 2] @ poses[b][:3, 2] < np.cos(np.radians(50)):
                continue
            points_a, points_b = _verified_matches(described[a], described[b], fundamental(a, int(b)))
            if len(points_a) >= 40:
                found.append(Matches(a, int(b), points_a, points_b))
    return found


def _verified_matches(described_a, described_b, fundamental: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (keypoints_a, vectors_a), (keypoints_b, vectors_b) = described_a, described_b
    if len(keypoints_a) < 2 or len(keypoints_b) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    knn = cv2.BFMatcher().knnMatch(vectors_a, vectors_b, k=2)
    good = [first for first, second in knn if first.distance < 0.85 * second.distance]
    points_a = np.array([keypoints_a[m.queryIdx].pt for m in good]).reshape(-1, 2)
    points_b = np.array([keypoints_b[m.trainIdx].pt for m in good]).reshape(-1, 2)
    homogeneous_a, homogeneous_b = (np.column_stack([p, np.ones(len(p))]) for p in (points_a, points_b))
    line = homogeneous_a @ fundamental.T
    distance = np.abs((line * homogeneous_b).sum(1)) / np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-12)
    return points_a[distance < 2], points_b[distance < 2]
