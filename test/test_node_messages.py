"""Messages to core types and back."""

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import Pose
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.geometry import pose_from_quaternion
from aceg_ros.ros.messages import (
    camera_from_info,
    depth_message,
    estimate_to_pose,
    image_message,
    image_to_rgb,
    info_message,
    pose_from_message,
    pose_to_message,
)

RGB = np.random.default_rng(0).integers(0, 255, (6, 10, 3), np.uint8)


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1],
                 data=rows.tobytes())


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(("encoding", "pixels"), [
    ("rgb8", RGB), ("bgr8", RGB[..., ::-1]), ("rgba8", cv2.cvtColor(RGB, cv2.COLOR_RGB2RGBA)),
    ("bgra8", cv2.cvtColor(RGB, cv2.COLOR_RGB2BGRA))])
def test_colours_and_padded_rows(encoding, pixels, padding):
    np.testing.assert_array_equal(image_to_rgb(message(np.ascontiguousarray(pixels), encoding, padding)), RGB)


@pytest.mark.parametrize(("encoding", "pixels"),
                         [("mono8", RGB[..., 0]), ("mono16", RGB[..., 0].astype(np.uint16) * 257)])
def test_grey_becomes_three_equal_channels(encoding, pixels):
    rgb = image_to_rgb(message(np.ascontiguousarray(pixels), encoding))
    np.testing.assert_array_equal(rgb, np.repeat(RGB[..., :1], 3, axis=2))


def test_an_image_survives_the_round_trip():
    sent = image_message(RGB, Header(frame_id="cam"))
    assert (sent.encoding, sent.step, sent.header.frame_id) == ("rgb8", 30, "cam")
    np.testing.assert_array_equal(image_to_rgb(sent), RGB)


def test_unknown_depth_is_nan():
    depth = np.array([[1.5, 0.0], [np.nan, 2.5]], np.float32)
    sent = depth_message(depth, Header())
    np.testing.assert_array_equal(np.frombuffer(sent.data, np.float32).reshape(2, 2),
                                  np.array([[1.5, np.nan], [np.nan, 2.5]], np.float32))
    assert (sent.encoding, sent.step) == ("32FC1", 8)


@pytest.mark.parametrize("camera", [
    Camera(640, 480, 500.0, 510.0, 320.0, 240.0),
    Camera(640, 480, 500.0, 510.0, 320.0, 240.0, "plumb_bob", (0.1, -0.2, 0.01, 0.02, 0.03)),
    Camera(640, 480, 500.0, 510.0, 320.0, 240.0, "rational_polynomial", (0.1, -0.2, 0.01, 0.02, 0.03, 0.1, 0.2, 0.3)),
    Camera(640, 480, 500.0, 510.0, 320.0, 240.0, "equidistant", (0.1, -0.2, 0.01, 0.02))])
def test_a_camera_survives_the_round_trip(camera):
    assert camera_from_info(info_message(camera, Header())) == camera


def test_an_uncalibrated_camera_is_named():
    with pytest.raises(UserError, match="zero K"):
        camera_from_info(CameraInfo(width=640, height=480))


def test_a_pose_survives_the_round_trip():
    matrix = pose_from_quaternion(np.array([1.0, -2.0, 3.0]), np.array([0.5, -0.5, 0.1, 0.7]))
    np.testing.assert_allclose(pose_from_message(pose_to_message(matrix)), matrix, atol=1e-12)


def test_what_is_no_pose_is_refused():
    pose = Pose()
    pose.orientation.w = 0.0
    with pytest.raises(UserError):
        pose_from_message(pose)
    pose.orientation.w = float("nan")
    with pytest.raises(UserError):
        pose_from_message(pose)
    pose.orientation.w, pose.position.y = 1.0, float("inf")
    with pytest.raises(UserError):
        pose_from_message(pose)


def test_covariance_keeps_its_order_and_a_refusal_cannot_be_published():
    covariance = np.arange(36.0).reshape(6, 6)
    estimate = PoseEstimate(Status.ACCEPTED, "", np.eye(4), covariance)
    np.testing.assert_array_equal(estimate_to_pose(estimate, Header()).pose.covariance, np.arange(36.0))
    with pytest.raises(ValueError, match="no_consensus"):
        estimate_to_pose(PoseEstimate(Status.NO_CONSENSUS, ""), Header())
