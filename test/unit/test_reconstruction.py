# SPDX-License-Identifier: Apache-2.0
"""Poses from images alone: selection, pairs, scale, level; and the whole on a rendered video, with pycolmap."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from aceg_ros.camera import Camera
from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert, look_at, pose_error
from aceg_ros.reconstruction.metric import ScaleSource, find_scale, level
from aceg_ros.reconstruction.selection import select_frames
from aceg_ros.reconstruction.sources import UnposedImage, is_unposed, open_images
from aceg_ros.reconstruction.structure import Structure, image_pairs
from aceg_ros.synthetic.demo_room import demo_world, mapping_path

CAMERA = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)


def structure(poses: dict[str, np.ndarray], depth: float = 2.0) -> Structure:
    return Structure(poses=poses, cameras=dict.fromkeys(poses, CAMERA), points=np.array([[0.0, 0.0, depth]]),
                     depths=dict.fromkeys(poses, depth), mean_error_px=0.5, mean_track=3.0, models=1)


def texture(shift_px: int, blur: float = 0.0) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 255, (240, 800), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2.0)[:, shift_px:shift_px + 320]
    image = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
    return np.repeat(image[..., None], 3, 2)


def test_frames_are_taken_when_the_image_has_moved_and_the_sharpest_of_those():
    blurred = {17}
    frames = [UnposedImage(image=texture(number, 3.0 if number in blurred else 0.0), name=str(number), stamp_s=0.0)
              for number in range(60)]
    chosen = [int(frame.name) for frame in select_frames(frames)]
    assert chosen[0] == 0 and 3 <= len(chosen) <= 7 and not blurred & set(chosen)
    assert all(8 <= b - a <= 22 for a, b in pairwise(chosen))
    still = [UnposedImage(image=texture(0), name=str(number), stamp_s=0.0) for number in range(30)]
    assert len(list(select_frames(still))) == 1


def test_pairs_are_neighbours_and_images_that_look_alike():
    generator = torch.Generator().manual_seed(0)
    # The last ten images show what the first ten did.
    kinds = [functional.normalize(torch.rand(60, 128, generator=generator), dim=1) for _ in range(70)]
    images = [*kinds, *kinds[:10]]
    pairs = image_pairs(images, in_order=True)
    assert len(pairs) == len(set(pairs)) and all(a < b for a, b in pairs)
    assert all((number, number + 1) in pairs for number in range(79))
    assert all((number, 70 + number) in pairs for number in range(10))
    assert len(pairs) < 0.6 * 80 * 79 / 2
    assert len(image_pairs(images[:6], in_order=False)) == 15


def test_a_distance_tells_the_scale(tmp_path):
    poses = {"a.jpg": np.eye(4), "b.jpg": look_at((0.5, 0, 0), (0.5, 1, 0))}
    source = ScaleSource.parse("distance=a,b.jpg,2.0")
    found = find_scale(structure(poses), source, images=tmp_path, stamps={}, bag=None)
    assert found.metres_per_unit == pytest.approx(4.0) and found.known
    with pytest.raises(UserError, match=r"image c has no pose"):
        find_scale(structure(poses), ScaleSource.parse("distance=a,c,2"), images=tmp_path, stamps={}, bag=None)
    unknown = find_scale(structure(poses), None, images=tmp_path, stamps={}, bag=None)
    assert not unknown.known and unknown.metres_per_unit == pytest.approx(1.5)


@pytest.mark.parametrize("text", ["tag", "tag=", "tag=-1", "tag=big", "distance=a,b", "metre=3", "topic="])
def test_what_tells_no_scale_is_refused(text):
    with pytest.raises(UserError, match="tag=METRES"):
        ScaleSource.parse(text)


def test_a_tag_tells_the_scale(tmp_path):
    """A tag of 0.4 units, seen from three sides, is 0.2 m."""
    marker = cv2.aruco.generateImageMarker(cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11), 5, 200)
    corners = np.array([[-0.2, 0.2, 0], [0.2, 0.2, 0], [0.2, -0.2, 0], [-0.2, -0.2, 0]])
    poses = {}
    for number, x in enumerate((-0.5, 0.0, 0.6)):
        pose = look_at((x, -0.2, 1.5), (0.0, 0.0, 0.0), up=(0, 1, 0))
        local = (corners - pose[:3, 3]) @ pose[:3, :3]
        warp = cv2.getPerspectiveTransform(np.float32([[0, 0], [199, 0], [199, 199], [0, 199]]),
                                           CAMERA.project(local).astype(np.float32))
        image = cv2.warpPerspective(marker, warp, (320, 240), borderValue=255)
        Image.fromarray(np.repeat(image[..., None], 3, 2)).save(tmp_path / f"{number}.png")
        poses[f"{number}.png"] = pose
    found = find_scale(structure(poses), ScaleSource.parse("tag=0.2"), images=tmp_path, stamps={}, bag=None)
    assert found.metres_per_unit == pytest.approx(0.5, rel=0.03) and "1 tag" in found.sentence
    with pytest.raises(UserError, match="No tag"):
        find_scale(structure({"0.png": poses["0.png"]}), ScaleSource.parse("tag=0.2"), images=tmp_path, stamps={},
                   bag=None)


def test_level_turns_up_and_keeps_what_cameras_see():
    tilt = look_at((0, 0, 0), (1, 2, 3), up=(0.3, -0.2, 0.9))
    poses = {f"{number}.jpg": tilt @ look_at((0.3 * number, 0.1, 1.0), (2.0, 0.5, 1.0)) for number in range(4)}
    before = structure(poses)
    after = level(before, 2.0)
    first = after.poses["0.jpg"]
    assert first[:3, 3] == pytest.approx(0) and -first[:3, 1] @ (0, 0, 1) == pytest.approx(1, abs=1e-6)
    assert first[:3, 2][1] == pytest.approx(0, abs=1e-9) and first[0, 2] > 0
    for name in poses:
        relative = invert(poses["0.jpg"]) @ poses[name]
        relative[:3, 3] *= 2.0
        assert invert(first) @ after.poses[name] == pytest.approx(relative, abs=1e-9)


def test_photographs_are_read_upright_with_the_focal_length_that_they_state(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (image,) = open_images(tmp_path)
    assert image.image.shape == (64, 48, 3) and image.focal_px == pytest.approx(28 / 36 * 64)
    assert is_unposed(tmp_path)
    (tmp_path / "poses").mkdir()
    assert not is_unposed(tmp_path)
    with pytest.raises(UserError, match="neither a video"):
        open_images(tmp_path / "poses")


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="needs pycolmap")
def test_a_video_is_reconstructed_and_mapped(tmp_path, capsys):
    world = demo_world(CAMERA)
    poses = mapping_path(160, world.room)[:40]
    writer = cv2.VideoWriter(str(tmp_path / "walk.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (320, 240))
    for pose in poses:
        writer.write(world.render_frame(pose).image[..., ::-1])
    writer.release()
    assert main(["reconstruct", str(tmp_path / "walk.mp4"), "-o", str(tmp_path / "walk"), "--images", "14"]) == 0
    assert "images have a pose" in capsys.readouterr().out
    summary = json.loads((tmp_path / "walk" / "reconstruction.json").read_text())
    assert summary["posed"] > 0.8 * summary["used"] >= 4 and not summary["scale_known"]
    assert summary["focal_px"] == pytest.approx(300, rel=0.08)
    frames = list(open_scene(tmp_path / "walk"))
    up = np.mean([-frame.map_from_camera[:3, 1] for frame in frames], axis=0)
    assert up[2] > 0.97
    assert main(["reconstruct", str(tmp_path / "walk.mp4"), "-o", str(tmp_path / "walk")]) == 2     # already there
    # No image is at a place of its own: the drive turns slowly.
    angles = [pose_error(a.map_from_camera, b.map_from_camera)[1] for a, b in pairwise(frames)]
    assert max(angles) < 25.0
