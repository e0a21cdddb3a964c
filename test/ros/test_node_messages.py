# SPDX-License-Identifier: Apache-2.0
"""Messages to core types and back."""

import cv2
import numpy as np
import pytest
from bag_writer import BagStyle, write_bag
from cv_bridge import CvBridge
from geometry_msgs.msg import Pose
from rclpy.serialization import deserialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene
from aceg_ros.datasets.bag.reader import read_messages
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.image_decoder import decode_depth, decode_image
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_from_quaternion
from aceg_ros.ros.common.messages import (
    cloud_message,
    depth_message,
    frame_from_messages,
    image_message,
    info_message,
    pose_from_message,
    pose_to_message,
    pose_with_covariance,
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
    np.testing.assert_array_equal(decode_image(message(np.ascontiguousarray(pixels), encoding, padding)), RGB)


@pytest.mark.parametrize(("encoding", "pixels"),
                         [("mono8", RGB[..., 0]), ("mono16", RGB[..., 0].astype(np.uint16) * 257)])
def test_grey_becomes_three_equal_channels(encoding, pixels):
    rgb = decode_image(message(np.ascontiguousarray(pixels), encoding))
    np.testing.assert_array_equal(rgb, np.repeat(RGB[..., :1], 3, axis=2))


def test_an_image_survives_the_round_trip():
    sent = image_message(RGB, Header(frame_id="cam"))
    assert (sent.encoding, sent.step, sent.header.frame_id) == ("rgb8", 30, "cam")
    np.testing.assert_array_equal(decode_image(sent), RGB)


def test_unknown_depth_is_nan():
    depth = np.array([[1.5, 0.0], [np.nan, 2.5]], np.float32)
    sent = depth_message(depth, Header())
    np.testing.assert_array_equal(np.frombuffer(sent.data, np.float32).reshape(2, 2),
                                  np.array([[1.5, np.nan], [np.nan, 2.5]], np.float32))
    assert (sent.encoding, sent.step) == ("32FC1", 8)


@pytest.mark.parametrize("camera", [
    Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0),
    Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0, model="plumb_bob",
           distortion=(0.1, -0.2, 0.01, 0.02, 0.03)),
    Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0, model="rational_polynomial",
           distortion=(0.1, -0.2, 0.01, 0.02, 0.03, 0.1, 0.2, 0.3)),
    Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0, model="equidistant",
           distortion=(0.1, -0.2, 0.01, 0.02))])
def test_a_camera_survives_the_round_trip(camera):
    assert camera_from_info(info_message(camera, Header())) == camera


def test_an_uncalibrated_camera_is_named():
    with pytest.raises(UserError, match="zero K"):
        camera_from_info(CameraInfo(width=640, height=480))


def test_a_pose_survives_the_round_trip():
    matrix = pose_from_quaternion(np.array([1.0, -2.0, 3.0]), np.array([0.5, -0.5, 0.1, 0.7]))
    np.testing.assert_allclose(pose_from_message(pose_to_message(matrix)), matrix, atol=1e-12)


def test_what_is_no_pose_is_rejected():
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


def test_covariance_keeps_its_order():
    message = pose_with_covariance(np.eye(4), np.arange(36.0).reshape(6, 6), Header())
    np.testing.assert_array_equal(message.pose.covariance, np.arange(36.0))


def test_region_of_interest_and_binning_belong_to_the_image():
    """The sensor's K, the image's pixels: a point is where the full image has it, cropped and then binned."""
    full = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0)
    info = info_message(full, Header())
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 100, 60, 400, 300
    info.binning_x = info.binning_y = 2
    camera = camera_from_info(info)
    assert (camera.width, camera.height) == (200, 150)
    points = np.array([[0.1, -0.05, 1.0], [-0.2, 0.1, 2.0]])
    expected = (full.project(points) - (100, 60) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(camera.project(points), expected, atol=1e-9)
    info.roi.x_offset = 300
    with pytest.raises(UserError, match="beyond the sensor"):
        camera_from_info(info)


def test_a_rectified_image_has_the_camera_of_p():
    info = info_message(Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0, model="plumb_bob",
                               distortion=(0.1, 0.0, 0.0, 0.0, 0.0)), Header())
    info.p = np.array([[400.0, 0, 310, 0], [0, 410, 230, 0], [0, 0, 1, 0]]).ravel()
    expected = Camera(width=640, height=480, fx=400.0, fy=410.0, cx=310.0, cy=230.0)
    assert camera_from_info(info, rectified=True) == expected
    assert camera_from_info(info).distortion[0] == 0.1
    info.p = np.zeros(12)
    with pytest.raises(UserError, match="zero P"):
        camera_from_info(info, rectified=True)


def test_a_bag_and_a_node_decode_the_same_message_alike(tmp_path):
    """Bit by bit, camera and stamp too: raw and compressed images, as the bag has them and as a topic brings them."""
    frames = [Frame(image=np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8),
                    camera=Camera(width=64, height=48, fx=60.0, fy=61.0, cx=31.5, cy=23.5, model="plumb_bob",
                                  distortion=(0.1, -0.2, 0.01, 0.02, 0.0)),
                    stamp_s=0.1 * seed, map_from_camera=np.eye(4)) for seed in range(3)]
    for style in (BagStyle(), BagStyle(compressed=True)):
        bag = write_bag(tmp_path / f"bag_{style.compressed}", frames, style)
        messages = list(read_messages(bag, {"/camera/image", "/camera/image/compressed", "/camera/camera_info"}))
        images = [as_rclpy(message) for topic, message in messages if not topic.endswith("info")]
        infos = [as_rclpy(message) for topic, message in messages if topic.endswith("info")]
        assert {type(image) for image in images} == {CompressedImage if style.compressed else Image}
        for read, image, info in zip(open_scene(bag), images, infos, strict=True):
            received = frame_from_messages(image, info)
            np.testing.assert_array_equal(received.image, read.image)
            assert (received.camera, received.stamp_s) == (read.camera, read.stamp_s)


def as_rclpy(message):
    """The message of rosbags in rclpy's type, through its serialized form."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    kind = {"Image": Image, "CompressedImage": CompressedImage, "CameraInfo": CameraInfo}
    name = message.__msgtype__
    return deserialize_message(bytes(store.serialize_cdr(message, name)), kind[name.split("/")[-1]])


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_compressed_images_are_read(form):
    bgr = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8), (9, 9), 3)
    message = CompressedImage(format=form, data=cv2.imencode(f".{form}", bgr)[1].tobytes())
    assert np.abs(decode_image(message).astype(int) - bgr[..., ::-1]).max() < (1 if form == "png" else 25)
    for data in (b"", b"no image", bytes(message.data)[:20]):
        with pytest.raises(UserError, match="compressed image"):
            decode_image(CompressedImage(format=form, data=data))


def test_depth_is_metres_whatever_its_encoding():
    depth_m = np.array([[0.0, 1.234], [2.5, np.nan]], np.float32)
    np.testing.assert_allclose(decode_depth(depth_message(depth_m, Header())), [[0, 1.234], [2.5, 0]], rtol=1e-6)
    millimetres = CvBridge().cv2_to_imgmsg(np.array([[0, 1234], [2500, 0]], np.uint16), "16UC1")
    np.testing.assert_allclose(decode_depth(millimetres), [[0, 1.234], [2.5, 0]], rtol=1e-6)
    with pytest.raises(UserError, match="rgb8"):
        decode_depth(image_message(np.zeros((2, 2, 3), np.uint8), Header()))


def test_a_cloud_keeps_positions_and_colours():
    xyz = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.5]], np.float32)
    rgb = np.array([[255, 128, 1], [0, 20, 30]], np.uint8)
    points = point_cloud2.read_points(cloud_message(xyz, rgb, Header(frame_id="map")))
    np.testing.assert_array_equal(np.stack([points["x"], points["y"], points["z"]], 1), xyz)
    packed = np.ascontiguousarray(points["rgb"]).view(np.uint32)
    np.testing.assert_array_equal(np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1), rgb)
