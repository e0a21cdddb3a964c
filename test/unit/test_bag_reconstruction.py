# SPDX-License-Identifier: Apache-2.0
"""What a bag tells beside its images: scale from depth images, gravity from an accelerometer; and all with pycolmap."""

from __future__ import annotations

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from bag_writer import BagStyle, write_bag
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError
from aceg_ros.geometry import look_at
from aceg_ros.reconstruction.gravity import BY_IMAGES, find_up
from aceg_ros.reconstruction.metric import ScaleSource, find_scale, level
from aceg_ros.reconstruction.sources import ImageSource, open_images
from aceg_ros.reconstruction.structure import Structure
from aceg_ros.synthetic.demo_room import demo_world, mapping_path

CAMERA = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)
NS, PERIOD_S, GRAVITY = 10**9, 0.5, 9.81
CAM_FROM_IMU = np.eye(4)
CAM_FROM_IMU[:3, :3] = Rotation.from_euler("xyz", (70, -20, 130), degrees=True).as_matrix()
UNITS_A_METRE = 4.0
TURN = np.eye(4)                # of the frame of the structure, which is any
TURN[:3, :3] = Rotation.from_euler("xyz", (30, 50, -60), degrees=True).as_matrix()


def drive(count: int = 12, roll_deg: float = 20.0) -> list[np.ndarray]:
    """True poses, z up, of a camera that is held askew."""
    roll = np.eye(4)
    roll[:3, :3] = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
    return [look_at((0.1 * number, 0.0, 1.0), (3.0, 0.3 * np.sin(number), 1.0)) @ roll for number in range(count)]


def record(path: Path, frames: list[Frame], *, depth_lag_s: float = 0.01, imu: str = "good") -> ImageSource:
    """Write a bag with depth images of every second image, and an IMU of 50 Hz. imu: good, none, turning (its mounting
    in TF is wrong, and differs from image to image), or still (without gravity)."""
    def extra(messages):
        first_ns = int(BagStyle().first_s) * NS
        rng = np.random.default_rng(0)
        if imu != "none":
            yield "/tf_static", first_ns, messages.transform(first_ns, "cam", "imu_link", CAM_FROM_IMU)
        for number, frame in enumerate(frames):
            stamp_ns = first_ns + round(frame.stamp_s * NS)
            if frame.depth_m is not None and number % 2 == 0:
                lag_ns = round(depth_lag_s * NS)
                yield "/depth", stamp_ns + lag_ns, messages.depth(frame.depth_m, stamp_ns + lag_ns)
            yield "/gyro", stamp_ns, messages.acceleration((0, 0, 1), stamp_ns, "imu_link", unknown=-1.0)
            for tick in range(-5, 6) if imu != "none" else ():
                world = np.array([0, 0, 0.0 if imu == "still" else GRAVITY]) + rng.normal(0, 0.6, 3)
                world += 4.0 * np.sin(2 * np.pi * tick / 11) * np.array([1, 0, 0])          # it shakes
                turned = Rotation.random(random_state=number).as_matrix() if imu == "turning" else np.eye(3)
                value = turned @ CAM_FROM_IMU[:3, :3].T @ frame.map_from_camera[:3, :3].T @ world
                at_ns = stamp_ns + round(0.02 * tick * NS)
                yield "/imu", at_ns, messages.acceleration(value, at_ns, "imu_link")

    return open_images(write_bag(path, frames, BagStyle(extra=extra)))


def structure_of(frames: list[Frame]) -> Structure:
    """The structure that images without scale and up give, with exact points, and a tenth of them wrong."""
    rng = np.random.default_rng(1)
    poses, observations = {}, {}
    for number, frame in enumerate(frames):
        pose = TURN @ frame.map_from_camera
        pose[:3, 3] *= UNITS_A_METRE
        poses[f"{number:06d}.jpg"] = pose
        pixels = rng.uniform((0, 0), (319, 239), (60, 2))
        depth = 2.0 + 0.01 * pixels[:, 0]
        depth[:6] *= 3.0
        observations[f"{number:06d}.jpg"] = np.column_stack([pixels, UNITS_A_METRE * depth])
    return Structure(poses=poses, cameras=dict.fromkeys(poses, CAMERA), points=np.zeros((1, 3)), mean_error_px=0.5,
                     depths=dict.fromkeys(poses, 2.0), mean_track=3.0, models=1, observations=observations)


def recorded(**changes) -> list[Frame]:
    depth_m = np.tile(2.0 + 0.01 * np.arange(320.0), (240, 1)).astype(np.float32)
    depth_m[:, :40] = 0.0           # unknown
    return [Frame(image=np.full((240, 320, 3), 20 * number, np.uint8), camera=CAMERA, stamp_s=PERIOD_S * number,
                  map_from_camera=pose, depth_m=depth_m, name=str(number))
            for number, pose in enumerate(drive(**changes))]


def stamps_of(structure: Structure) -> dict[str, float]:
    return {name: BagStyle().first_s + PERIOD_S * int(name[:6]) for name in structure.poses}


def tilt_deg(pose: np.ndarray, true: np.ndarray) -> float:
    """The angle between z of the frames that two poses of a camera are given in."""
    return float(np.degrees(np.arccos(np.clip((pose[:3, :3] @ true[:3, :3].T)[2, 2], -1, 1))))


def test_depth_images_tell_the_scale(tmp_path):
    frames = recorded()
    structure, source = structure_of(frames), ScaleSource.parse("depth=/depth")
    bag = record(tmp_path / "bag", frames)
    found = find_scale(structure, source, images=tmp_path, stamps=stamps_of(structure), bag=bag)
    assert found.known and found.metres_per_unit == pytest.approx(1 / UNITS_A_METRE, rel=0.005)
    assert "on /depth, within" in found.sentence
    late = record(tmp_path / "late", frames, depth_lag_s=0.2)
    with pytest.raises(UserError, match="do not tell the scale: 0 images"):
        find_scale(structure, source, images=tmp_path, stamps=stamps_of(structure), bag=late)
    with pytest.raises(UserError, match="no depth images on /other"):
        find_scale(structure, ScaleSource.parse("depth=/other"), images=tmp_path, stamps=stamps_of(structure), bag=bag)
    with pytest.raises(UserError, match="no raw depth images"):
        find_scale(structure, ScaleSource.parse("depth=/gyro"), images=tmp_path, stamps=stamps_of(structure), bag=bag)
    with pytest.raises(UserError, match="scale of bags only"):
        find_scale(structure, source, images=tmp_path, stamps=stamps_of(structure), bag=None)


def test_depth_images_of_another_frame_or_shape_are_refused_and_smaller_ones_are_used(tmp_path):
    frames = recorded()
    structure = structure_of(frames)

    def with_depth(change, frame: str = "cam") -> ImageSource:
        def extra(messages):
            for each in frames:
                stamp_ns = int(BagStyle().first_s) * NS + round(each.stamp_s * NS)
                yield "/depth", stamp_ns, messages.depth(change(each.depth_m), stamp_ns, frame)
        return open_images(write_bag(tmp_path / f"{len(list(tmp_path.iterdir()))}", frames, BagStyle(extra=extra)))

    def scale(bag: ImageSource) -> float:
        return find_scale(structure, ScaleSource.parse("depth=/depth"), images=tmp_path,
                          stamps=stamps_of(structure), bag=bag).metres_per_unit

    assert scale(with_depth(lambda depth: depth[::2, ::2])) == pytest.approx(1 / UNITS_A_METRE, rel=0.01)
    with pytest.raises(UserError, match="200x240 pixels, the images 320x240"):
        scale(with_depth(lambda depth: depth[:, :200]))
    with pytest.raises(UserError, match=r"in the frame 'infra', the images in 'cam'.*aligned"):
        scale(with_depth(lambda depth: depth, "infra"))


def test_an_accelerometer_tells_up_however_the_camera_is_held(tmp_path):
    frames = recorded()
    structure = structure_of(frames)
    up = find_up(structure, record(tmp_path / "bag", frames), stamps_of(structure))
    true = TURN[:3, :3] @ (0, 0, 1)
    assert up.direction @ true > np.cos(np.radians(1.5)) and "/imu" in up.sentence and not up.warning
    levelled = level(structure, 1 / UNITS_A_METRE, up.direction)
    assert all(tilt_deg(pose, frame.map_from_camera) < 1.5
               for pose, frame in zip(levelled.poses.values(), frames, strict=True))
    assert tilt_deg(level(structure, 1.0).poses["000000.jpg"], frames[0].map_from_camera) > 15


@pytest.mark.parametrize(("imu", "words"), [("turning", "directions differ"), ("still", "gravity had been taken out")])
def test_accelerations_that_are_not_those_of_gravity_are_not_used(tmp_path, imu, words):
    frames = recorded()
    structure = structure_of(frames)
    up = find_up(structure, record(tmp_path / "bag", frames, imu=imu), stamps_of(structure))
    assert up.direction is None and up.sentence == BY_IMAGES and words in up.warning and "/imu" in up.warning


def test_without_accelerations_or_their_place_on_the_robot_up_is_that_of_the_images(tmp_path):
    frames = recorded()
    structure = structure_of(frames)
    bag = record(tmp_path / "bag", frames, imu="none")
    assert find_up(structure, bag, stamps_of(structure)).sentence == BY_IMAGES
    assert find_up(structure, None, {}).direction is None
    with pytest.raises(UserError, match="no accelerations on /gyro"):
        find_up(structure, bag, stamps_of(structure), "/gyro")

    def unmounted(messages):
        for frame in frames:
            stamp_ns = int(BagStyle().first_s) * NS + round(frame.stamp_s * NS)
            yield "/imu", stamp_ns, messages.acceleration((0, 0, GRAVITY), stamp_ns, "imu_link")
    lone = open_images(write_bag(tmp_path / "lone", frames, BagStyle(extra=unmounted)))
    up = find_up(structure, lone, stamps_of(structure))
    assert up.direction is None and "imu_link" in up.warning


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="needs pycolmap")
def test_a_bag_is_reconstructed_in_metres_with_z_up(tmp_path, capsys):
    """A camera that is held askew in a rendered room: its recording has the true distances and the true up."""
    world = demo_world(CAMERA)
    roll = np.eye(4)
    roll[:3, :3] = Rotation.from_euler("z", 25, degrees=True).as_matrix()
    frames = [world.render_frame(pose @ roll, stamp_s=PERIOD_S * number, name=str(number))
              for number, pose in enumerate(mapping_path(80, world.room)[:20])]
    record(tmp_path / "bag", frames)
    assert main(["reconstruct", str(tmp_path / "bag"), "-o", str(tmp_path / "out"), "--scale-from",
                 "depth=/depth"]) == 0
    printed = capsys.readouterr().out
    assert "depths on /depth" in printed and "z is up by /imu" in printed
    summary = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert summary["scale_known"] and summary["posed"] >= 10
    pairs = [(found.map_from_camera, min(frames, key=lambda true: np.abs(
        true.image.astype(int) - found.image).mean()).map_from_camera) for found in open_scene(tmp_path / "out")]
    assert all(tilt_deg(pose, true) < 2.0 for pose, true in pairs)
    metres, true_m = (np.array([np.linalg.norm(a[side][:3, 3] - b[side][:3, 3]) for a, b in combinations(pairs, 2)])
                      for side in (0, 1))
    assert np.median(metres[true_m > 0.3] / true_m[true_m > 0.3]) == pytest.approx(1.0, abs=0.02)
