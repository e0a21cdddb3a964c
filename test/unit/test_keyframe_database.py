"""The keyframe database without a network: random descriptors, exact projections."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from aceg_ros.camera import Camera
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.errors import UserError
from aceg_ros.geometry import look_at, pose_error
from aceg_ros.mapping.build_database import train_vocabulary
from aceg_ros.maps.descriptor_index import ObservationMatcher, match_projections
from aceg_ros.maps.keyframe_database import DESCRIPTOR_SCALE, PIXEL_SCALE, KeyframeDatabase
from aceg_ros.maps.retrieval import KeyframeRetrieval, assign_words
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer, KeyframeLocalizerConfig

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
STRIDE, DIM = 8, 64
PLACES, LANDMARKS = 4, 400          # groups of landmarks, each seen from its own side, and their number


class NoEncoder:
    device = "cpu"


def view(points: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (M, 2) and indices (M,) of the points in the image of a camera at a pose, one a cell."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    pixels = local[:, :2] / np.maximum(local[:, 2:], 1e-3) * 500.0 + (319.5, 239.5)
    inside = (local[:, 2] > 0.1) & (pixels > 0).all(1) & (pixels < (638, 478)).all(1)
    index = np.flatnonzero(inside)
    cells = (pixels[index] + 0.5) // STRIDE @ (1, 80)
    _, first = np.unique(cells, return_index=True)
    return pixels[index[first]], index[first]


class World:
    """Landmarks on four walls, keyframes that look at each, and descriptors with noise of their own in each image."""

    def __init__(self, seed: int = 0, same_walls: bool = False):
        self.rng = np.random.default_rng(seed)
        local = np.column_stack([self.rng.uniform(-3, 3, LANDMARKS), self.rng.uniform(3.5, 4.5, LANDMARKS),
                                 self.rng.uniform(-2, 2, LANDMARKS)])
        turns = [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
                 for a in np.arange(PLACES) * np.pi / 2]
        self.turns = turns
        walls = [local @ turn.T for turn in turns]
        self.points = np.concatenate(walls)
        count = LANDMARKS if same_walls else PLACES * LANDMARKS
        descriptors = functional.normalize(torch.from_numpy(self.rng.normal(size=(count, DIM))).float(), dim=1)
        self.descriptors = descriptors.repeat(PLACES, 1) if same_walls else descriptors

    def pose(self, place: int, aside_m: float = 0.0) -> np.ndarray:
        turn = self.turns[place]
        return look_at(turn @ np.array([aside_m, 0.0, 0.1 * aside_m]), turn @ np.array([0.5 * aside_m, 4.0, 0.0]))

    def keypoints(self, pose: np.ndarray, noise_px: float = 0.5, clutter: int = 0) -> tuple[Keypoints, np.ndarray]:
        """The image of the world at a pose, and the landmark of each keypoint; clutter: keypoints of no landmark."""
        pixels, index = view(self.points, pose)
        cells = ((pixels + 0.5) // STRIDE @ (1, 80)).astype(int)
        free = self.rng.permutation(np.setdiff1d(np.arange(80 * 60), cells))[:clutter]
        noise = torch.from_numpy(self.rng.normal(0, 0.08, (len(index) + len(free), DIM))).float()
        other = functional.normalize(torch.from_numpy(self.rng.normal(size=(len(free), DIM))).float(), dim=1)
        descriptors = functional.normalize(torch.cat([self.descriptors[index], other]) + noise, dim=1)
        pixels = np.concatenate([pixels + self.rng.normal(0, noise_px, pixels.shape),
                                 np.column_stack([free % 80, free // 80]) * STRIDE + 3.5])
        found = Keypoints(pixels=pixels.astype(np.float32), descriptors=descriptors, cells=np.r_[cells, free],
                          map_size=(60, 80), stride=STRIDE, camera=CAMERA)
        return found, np.r_[index, np.full(len(free), -1)]

    def database(self) -> KeyframeDatabase:
        poses = [self.pose(place, aside) for place in range(PLACES) for aside in (-0.6, -0.2, 0.2, 0.6)]
        images = [self.keypoints(pose) for pose in poses]
        descriptors = torch.cat([found.descriptors for found, _ in images])
        vocabulary = train_vocabulary(descriptors, 256, 0)
        return KeyframeDatabase(
            poses=torch.from_numpy(np.stack(poses)).float(),
            intrinsics=torch.tensor([[500.0, 500.0, 319.5, 239.5]] * 16),
            sizes=torch.tensor([[640, 480]] * 16, dtype=torch.int32),
            first=torch.from_numpy(np.cumsum([0] + [len(found) for found, _ in images])),
            landmarks=torch.from_numpy(np.concatenate([index for _, index in images]).astype(np.int32)),
            pixels=torch.from_numpy(np.concatenate([found.pixels for found, _ in images]) * PIXEL_SCALE).short(),
            descriptors=(descriptors * DESCRIPTOR_SCALE).round().to(torch.int8),
            words=assign_words(descriptors, vocabulary).to(torch.int16), points=torch.from_numpy(self.points).float(),
            vocabulary=(vocabulary * DESCRIPTOR_SCALE).round().to(torch.int8))


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def database(world):
    return world.database()


def test_retrieval_finds_the_keyframes_of_the_place(world, database):
    retrieval = KeyframeRetrieval(database)
    for place in range(PLACES):
        found, _ = world.keypoints(world.pose(place, 0.1), clutter=100)
        assert set(retrieval.find(found.descriptors, 4).keyframes) == set(range(4 * place, 4 * place + 4))


def test_matches_are_the_right_landmarks(world, database):
    found, truth = world.keypoints(world.pose(1, 0.1), clutter=200)
    matches = ObservationMatcher(found, database).match([4, 5, 6, 7])
    right = truth[matches.keypoints] == matches.landmarks
    assert right.sum() > 0.8 * (truth >= 0).sum()
    assert len(np.unique(matches.landmarks)) == len(matches)


def test_keyframes_compared_before_match_as_at_first(world, database):
    found, _ = world.keypoints(world.pose(1, 0.1), clutter=200)
    matcher = ObservationMatcher(found, database)
    matcher.match([6, 0, 4])
    again, alone = matcher.match([4, 5, 6, 7]), ObservationMatcher(found, database).match([4, 5, 6, 7])
    assert np.array_equal(again.keypoints, alone.keypoints) and np.array_equal(again.landmarks, alone.landmarks)
    assert len(matcher.match([])) == 0


def test_projections_are_matched_within_the_radius_only(world, database):
    pose = world.pose(2, 0.1)
    found, truth = world.keypoints(pose, clutter=200)
    rows = database.first_observations([8, 9, 10, 11])
    matches = match_projections(found, database, rows, pose, radius_px=12.0, max_count=9000)
    right = truth[matches.keypoints] == matches.landmarks
    assert right.mean() > 0.95
    assert len(np.unique(matches.keypoints)) == len(matches)
    elsewhere = match_projections(found, database, rows, world.pose(0), radius_px=12.0, max_count=9000)
    assert len(elsewhere) == 0


def localizer(database: KeyframeDatabase, **changes) -> KeyframeLocalizer:
    config = replace(KeyframeLocalizerConfig(), **changes)
    return KeyframeLocalizer(encoder=NoEncoder(), database=database, config=config)


def test_an_image_is_localized_to_a_centimetre(world, database):
    for place in range(PLACES):
        pose = world.pose(place, 0.3)
        found, _ = world.keypoints(pose, clutter=600)
        estimate = localizer(database).localize_keypoints(found)
        assert estimate.accepted, estimate.message
        distance, angle_deg = pose_error(estimate.map_from_camera, pose)
        assert distance < 0.01 and angle_deg < 0.2
        assert estimate.inlier_ratio > 0.5


def test_an_image_of_nothing_known_is_rejected(world, database):
    found, _ = world.keypoints(world.pose(0), clutter=900)
    nothing = replace(found, descriptors=functional.normalize(torch.randn(
        len(found), DIM, generator=torch.Generator().manual_seed(1)), dim=1))
    estimate = localizer(database).localize_keypoints(nothing)
    assert not estimate.accepted
    assert not localizer(database).localize_keypoints(found.best(5)).accepted


def test_four_equal_walls_are_told_to_be_ambiguous():
    world = World(same_walls=True)
    estimate = localizer(world.database()).localize_keypoints(world.keypoints(world.pose(1, 0.1), clutter=300)[0])
    assert not estimate.accepted
    assert estimate.status.value == "ambiguous_pose"


def test_a_compact_section_is_a_fifth_of_the_size_and_localizes(world, database):
    section = database.to_section(compact=True)
    size = {name: sum(value.nbytes for value in tensors.values() if len(value) == len(database.landmarks))
            for name, tensors in (("compact", section), ("full", database.to_section()))}
    assert size["compact"] < 0.22 * size["full"]
    found = KeyframeDatabase.from_section(section)
    pose = world.pose(2, 0.3)
    estimate = localizer(found).localize_keypoints(world.keypoints(pose, clutter=400)[0])
    assert estimate.accepted and pose_error(estimate.map_from_camera, pose)[0] < 0.02
    with pytest.raises(UserError, match="does not fit together"):
        KeyframeDatabase.from_section(section | {"descriptors": section["descriptors"][:, :-1]})


def test_a_database_that_does_not_fit_together_is_rejected(database):
    section = database.to_section()
    assert len(KeyframeDatabase.from_section(section)) == 16
    with pytest.raises(UserError, match="has no 'points'"):
        KeyframeDatabase.from_section({key: value for key, value in section.items() if key != "points"})
    for key, value in (("landmarks", section["landmarks"] + 10_000), ("first", section["first"] - 1),
                       ("words", section["words"] + 9_999), ("pixels", section["pixels"][:-1]),
                       ("poses", section["poses"][:, :3])):
        with pytest.raises(UserError, match="does not fit together"):
            KeyframeDatabase.from_section(section | {key: value})
