# SPDX-License-Identifier: Apache-2.0
"""Images are looked at smaller and turned if they are rejected as they are."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.image_views import ImageView
from aceg_ros.encoders.preprocess import prepare
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, PriorPose, Status
from aceg_ros.geometry import pose_error
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig
from aceg_ros.methods.other_views import OtherViews, ViewsInTurn
from aceg_ros.methods.scene_coordinates import encoder_of

CAMERA = Camera(width=720, height=480, fx=500.0, fy=520.0, cx=341.0, cy=247.5)
VIEWS = [ImageView(scale=0.5), *(ImageView(roll_deg=roll) for roll in (45.0, -90.0, 90.0, 180.0, 20.0)),
         ImageView(scale=0.5, roll_deg=-45.0)]


class BrightestPixels(nn.Module):
    """Has a keypoint at the brightest pixel of each cell, as reliable as it is bright."""

    def forward(self, images: torch.Tensor) -> FeatureMap:
        _, _, height, width = images.shape
        values, index = nn.functional.max_pool2d(images[:, :1], 8, return_indices=True)
        keypoints = torch.cat([index % width, index // width], 1).float()
        return FeatureMap(torch.ones(1, 4, height // 8, width // 8), values[:, 0], keypoints)


def turned_by(frame: Frame, quarters: int) -> Frame:
    """The frame as a camera takes it that is turned by quarters about its axis, counter-clockwise."""
    camera, image, pose = frame.camera, frame.image, frame.map_from_camera
    for _ in range(quarters):
        image = np.rot90(image)
        camera = replace(camera, width=camera.height, height=camera.width, fx=camera.fy, fy=camera.fx, cx=camera.cy,
                         cy=camera.width - 1 - camera.cx)
        pose = pose @ np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return Frame(image=np.ascontiguousarray(image), camera=camera, map_from_camera=pose)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_things_are_where_the_camera_of_the_view_sees_them(view):
    pixels = np.array([[361.0, 240.0], [300.0, 180.0], [420.0, 310.0], [290.0, 300.0]])
    y, x = np.mgrid[:CAMERA.height, :CAMERA.width]
    image = sum(220.0 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 32.0) for u, v in pixels)
    encoder = Encoder(name="dots", identity="dots", source="dots", stride=8, dim=4, short_side_px=480,
                      net=BrightestPixels())
    frame = Frame(image=np.repeat(image[..., None], 3, 2).astype(np.uint8), camera=CAMERA)
    seen = view.extract(prepare(frame, encoder.short_side_px, encoder.stride), encoder, 200)
    rays = np.linalg.solve(CAMERA.K, np.column_stack([pixels, np.ones(4)]).T)
    in_view = seen.camera.K @ view.view_from_camera @ rays
    distance = np.linalg.norm(seen.pixels[:, None] - (in_view[:2] / in_view[2]).T, axis=2)
    assert distance.min(0).max() < 0.8          # whole pixels are found

    points = view.view_from_camera @ rays       # of a map in whose origin the view's camera is
    shown = ImageCorrespondences(pixels=(in_view[:2] / in_view[2]).T, points=points.T, camera=seen.camera)
    estimate = view.to_image(PoseEstimate(status=Status.ACCEPTED, message="", map_from_camera=np.eye(4),
                                          covariance=np.eye(6), correspondences=shown), CAMERA)
    assert np.allclose(estimate.correspondences.pixels, pixels)
    assert np.allclose(np.linalg.inv(estimate.map_from_camera)[:3, :3] @ points, rays)


@pytest.fixture(scope="module")
def localizers(rendered_map) -> tuple[KeyframeLocalizer, KeyframeLocalizer]:
    """Of the rendered map: as it is by default, and one that looks at images only as they are."""
    scene_map = SceneMap.load(rendered_map)
    one, other = (KeyframeLocalizer(
        encoder=encoder_of(scene_map, "cpu"), database=KeyframeDatabase.from_section(scene_map.sections[SECTION]),
        config=KeyframeLocalizerConfig(other_views=other_views)) for other_views in (True, False))
    return one, other


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_camera_on_its_side_is_localized(localizers, rendered_scene, quarters):
    frames = [turned_by(frame, quarters) for frame in list(open_scene(rendered_scene / "query"))[::4]]
    for frame in frames:
        estimate = localizers[0].localize(frame)
        assert estimate.accepted and "turned by" in estimate.message
        assert pose_error(estimate.map_from_camera, frame.map_from_camera)[0] < 0.02
        assert "other views" in estimate.stage_ms
        shown = estimate.correspondences
        points = (shown.points - estimate.map_from_camera[:3, 3]) @ estimate.map_from_camera[:3, :3]
        error = np.linalg.norm(shown.camera.project(points) - shown.pixels, axis=1)[estimate.inlier_indices]
        assert shown.camera == frame.camera and np.median(error) < 1.5
    assert not any(localizers[1].localize(frame).accepted for frame in frames)


def test_a_stream_tries_one_view_of_each_rejected_image(localizers, rendered_scene):
    upright = list(open_scene(rendered_scene / "query"))[::4]
    turned = [turned_by(frame, 1) for frame in upright]
    stream, again = localizers[0].for_stream(), localizers[0].for_stream()
    found = [stream.localize(frame) for frame in [*turned, upright[0], turned[0]]]
    # Smaller, then turns by 45 deg are compared, others, and from then on the one that was accepted.
    first = next(number for number, estimate in enumerate(found) if estimate.accepted)
    assert first in (2, 3, 4) and all(estimate.accepted for estimate in found[first:])
    assert all("turned by" in estimate.message for estimate in found[first:-2])
    assert "turned by" not in found[-2].message and "turned by" in found[-1].message
    for estimate, frame in zip(found[first:-2], turned[first:], strict=True):
        assert pose_error(estimate.map_from_camera, frame.map_from_camera)[0] < 0.02
    assert [again.localize(frame).message for frame in turned] == [estimate.message for estimate in found[:-2]]
    assert localizers[0].localize(turned[0]).accepted           # by all views


def test_views_come_in_turn_if_none_is_accepted(localizers, rendered_scene, rendered_map):
    tried = []

    def localize(query, view):
        tried.append(view)
        return PoseEstimate(status=Status.NO_CONSENSUS, message="")

    frame = turned_by(next(iter(open_scene(rendered_scene / "query"))), 2)
    views = OtherViews(encoder=encoder_of(SceneMap.load(rendered_map), "cpu"), keypoints=1500, compared_keypoints=600,
                       similarity=localizers[0].greatest_similarity)
    turns = ViewsInTurn(views)
    assert not any(turns.localize(frame, localize) for _ in range(12))
    half, other = tried[0], [view for view in tried if view.roll_deg in (0.0, 180.0)]
    assert half == ImageView(scale=0.5) and other[:4] == 2 * [half, ImageView(roll_deg=180.0)]
    tried.clear()
    assert views.localize(frame, localize) is None and tried == other[:2]


def zoomed(frame: Frame, factor: int) -> Frame:
    """The frame through a lens of so many times the focal length, out of focus."""
    width, height = frame.camera.width // factor, frame.camera.height // factor
    left, top = (frame.camera.width - width) // 2, (frame.camera.height - height) // 2
    image = cv2.resize(frame.image[top:top + height, left:left + width], (factor * width, factor * height))
    camera = frame.camera.cropped(left, top, width, height).resized(factor * width, factor * height)
    return Frame(image=image, camera=camera, map_from_camera=frame.map_from_camera)


def test_a_tele_lens_is_localized(localizers, rendered_scene):
    frames = [zoomed(frame, 5) for frame in open_scene(rendered_scene / "query")]
    found = [[localizer.localize(frame) for frame in frames] for localizer in localizers]
    accepted = [[estimate.accepted for estimate in estimates] for estimates in found]
    assert sum(accepted[0]) > sum(accepted[1])
    for estimate, frame in zip(found[0], frames, strict=True):
        if estimate.accepted:
            error_m, error_deg = pose_error(estimate.map_from_camera, frame.map_from_camera)
            assert error_m < 0.5 and error_deg < 5.0            # such a lens hardly tells how far away it is


def test_with_a_prior_or_without_contents_no_other_view_is_tried(localizers, rendered_scene):
    frame = turned_by(next(iter(open_scene(rendered_scene / "query"))), 2)
    prior = PriorPose(map_from_camera=frame.map_from_camera, covariance=0.01 * np.eye(6))
    assert "other views" not in localizers[0].localize(frame, prior).stage_ms
    blank = replace(frame, image=np.full_like(frame.image, 90))
    assert localizers[0].localize(blank).status is Status.BAD_IMAGE


def test_blurred_noise_is_still_rejected(localizers):
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8), (0, 0), 3.0)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
    image = np.clip((noise.astype(float) - 128) * 4 + 128, 0, 255).astype(np.uint8)
    assert not localizers[0].localize(Frame(image=image, camera=camera)).accepted
