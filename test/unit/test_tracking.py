# SPDX-License-Identifier: Apache-2.0
"""An image with a prior is tracked at a part of its size, and localized as without one if that does not succeed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.preprocess import resample
from aceg_ros.estimate import PriorPose, Status
from aceg_ros.geometry import pose_difference, pose_error
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods import keyframe_localizer
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.methods.tracking_schedule import TrackingSchedule

CONFIG = KeyframeLocalizerConfig(other_views=False)


@pytest.fixture(scope="module")
def scene_map(rendered_map) -> SceneMap:
    return SceneMap.load(rendered_map)


def localizer_of(scene_map: SceneMap, config: KeyframeLocalizerConfig = CONFIG) -> KeyframeLocalizer:
    return KeyframeLocalizer(encoder=encoder_of(scene_map, "cpu"), config=config,
                             database=KeyframeDatabase.from_section(scene_map.sections[SECTION]))


@pytest.fixture
def short_sides(monkeypatch) -> list[int | None]:
    """The short side of each image that features are extracted of; None: that which the encoder expects."""
    sides = []
    extract = keyframe_localizer.extract_frame_keypoints

    def noted(*arguments, short_side_px=None):
        sides.append(short_side_px)
        return extract(*arguments, short_side_px=short_side_px)

    monkeypatch.setattr(keyframe_localizer, "extract_frame_keypoints", noted)
    return sides


def frames_of(rendered_scene) -> list:
    return list(open_scene(rendered_scene / "query"))[::4]


def prior(pose: np.ndarray, aside_m: float = 0.0, turned_deg: float = 0.0, std: float = 0.03) -> PriorPose:
    moved = pose.copy()
    moved[0, 3] += aside_m
    moved[:3, :3] = Rotation.from_euler("z", turned_deg, degrees=True).as_matrix() @ pose[:3, :3]
    return PriorPose(map_from_camera=moved, covariance=np.diag([std**2] * 6))


def test_a_good_prior_takes_a_smaller_image_alone(scene_map, rendered_scene, short_sides):
    localizer = localizer_of(scene_map)
    small_px = round(CONFIG.tracked_scale * encoder_of(scene_map, "cpu").short_side_px)
    for frame in frames_of(rendered_scene):
        short_sides.clear()
        near = localizer.localize(frame, prior(frame.map_from_camera, 0.03, 1.0))
        assert near.accepted and "solve" not in near.stage_ms and short_sides == [small_px]
        assert list(near.stage_ms) == ["encode", "retrieve", "track"]
        distance_m, angle_deg = pose_error(near.map_from_camera, frame.map_from_camera)
        assert distance_m < 0.03 and angle_deg < 0.6
        error = pose_difference(near.map_from_camera, frame.map_from_camera)
        assert error @ np.linalg.solve(near.covariance, error) < 16.8           # 99 % of the poses of its covariance


@pytest.mark.parametrize("wrong", [{"aside_m": 3.0}, {"turned_deg": 40.0}, {"aside_m": 0.4}])
def test_after_a_wrong_prior_the_whole_image_answers_as_without(scene_map, rendered_scene, short_sides, wrong):
    localizer = localizer_of(scene_map)
    for frame in frames_of(rendered_scene)[:2]:
        short_sides.clear()
        misled = localizer.localize(frame, prior(frame.map_from_camera, **wrong))
        assert short_sides[-1] is None and len(short_sides) == 2
        assert "track" in misled.stage_ms and "solve" in misled.stage_ms
        assert np.array_equal(misled.map_from_camera, localizer.localize(frame).map_from_camera)


def test_a_vague_prior_takes_no_smaller_image(scene_map, rendered_scene, short_sides):
    frame = frames_of(rendered_scene)[0]
    vague = localizer_of(scene_map).localize(frame, prior(frame.map_from_camera, std=3.0))
    assert vague.accepted and short_sides == [None] and "track" not in vague.stage_ms


def test_an_uncertain_tracked_pose_does_not_count(scene_map, rendered_scene, short_sides):
    strict = localizer_of(scene_map, replace(CONFIG, max_tracked_std_depths=1e-6))
    frame = frames_of(rendered_scene)[0]
    estimate = strict.localize(frame, prior(frame.map_from_camera))
    assert len(short_sides) == 2
    assert np.array_equal(estimate.map_from_camera, strict.localize(frame).map_from_camera)


def test_an_unusable_image_is_rejected_with_a_prior_too(scene_map, rendered_scene, short_sides):
    frame = frames_of(rendered_scene)[0]
    blank = replace(frame, image=np.full_like(frame.image, 90))
    assert localizer_of(scene_map).localize(blank, prior(frame.map_from_camera)).status is Status.BAD_IMAGE
    assert not short_sides


def test_an_image_that_becomes_much_smaller_is_averaged_all_the_same():
    lines = np.zeros((960, 1280, 3), np.uint8)
    lines[:, ::2] = 255
    camera = Camera(width=1280, height=960, fx=900.0, fy=900.0, cx=639.5, cy=479.5)
    for short_side, is_quick, uniform in ((576, False, True), (576, True, False), (288, True, True)):
        image, resized, _ = resample(lines, camera, None, short_side=short_side, multiple=8, is_quick=is_quick)
        assert image.shape[:2] == (resized.height, resized.width) == (short_side, short_side * 4 // 3)
        assert (np.std(image) < 60) == uniform


def test_a_stream_does_not_track_all_images_where_that_is_not_enough(scene_map, rendered_scene, short_sides):
    stream, single = localizer_of(scene_map).for_stream(), localizer_of(scene_map)
    frame = frames_of(rendered_scene)[0]
    small_px = round(CONFIG.tracked_scale * encoder_of(scene_map, "cpu").short_side_px)
    alone = single.localize(frame).map_from_camera
    for expected in ([small_px, None], [small_px, None], [None], [small_px, None], [None], [None]):
        short_sides.clear()
        assert np.array_equal(stream.localize(frame, prior(frame.map_from_camera, 0.4)).map_from_camera, alone)
        assert short_sides == expected
    for expected in ([small_px], [small_px]):
        short_sides.clear()
        assert stream.localize(frame, prior(frame.map_from_camera, 0.03)).accepted
        assert short_sides == expected


def test_each_failure_doubles_the_wait_up_to_a_limit():
    schedule = TrackingSchedule()
    waits = []
    for _ in range(8):
        schedule.note(is_enough=False)
        waits.append(next(count for count in range(100) if schedule.next_is_tracked()))
    assert waits == [0, 1, 2, 4, 8, 8, 8, 8]
    schedule.note(is_enough=True)
    schedule.note(is_enough=False)
    assert schedule.next_is_tracked()
