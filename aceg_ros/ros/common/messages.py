# SPDX-License-Identifier: Apache-2.0
"""Conversions between ROS messages and core types. They raise UserError with the reason if a message is unusable."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.image_decoder import decode_image
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_from_quaternion, rotation_to_quaternion
from aceg_ros.utils.stamps import NS_PER_S, stamp_to_s

if TYPE_CHECKING:      # a node starts seconds sooner without torch
    from aceg_ros.maps.coverage import CoverageGrid

_BRIDGE = CvBridge()


def stamp_message(nanoseconds: int) -> Time:
    sec, nanosec = divmod(nanoseconds, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


class BadCameraError(UserError):
    """The camera_info is missing, unusable or not for this image."""


def frame_from_messages(image: Image | CompressedImage, camera_info: CameraInfo | None,
                        rectified: bool | None = None) -> Frame:
    """Make a frame (without pose) of an image and its camera_info.

    Raises:
        BadCameraError: if there is no camera_info that belongs to it.
        UserError: if the image cannot be decoded.
    """
    if camera_info is None:
        raise BadCameraError("No camera_info has been received yet.")
    try:
        camera = camera_from_info(camera_info, rectified)
    except UserError as error:
        raise BadCameraError(str(error)) from None
    rgb = decode_image(image)
    height, width = rgb.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise BadCameraError(f"The image has {width}x{height} pixels, but camera_info is for {camera.width}x"
                             f"{camera.height}: use the camera_info of this image.")
    return Frame(image=rgb, camera=camera, stamp_s=stamp_to_s(image.header.stamp))


def image_message(rgb: np.ndarray, header: Header) -> Image:
    return _image(rgb, "rgb8", header)


def compressed_message(rgb: np.ndarray, header: Header) -> CompressedImage:
    """Compress to a JPEG of quality 95, OpenCV's default."""
    message = _BRIDGE.cv2_to_compressed_imgmsg(np.ascontiguousarray(rgb[..., ::-1]), "jpg")
    message.header = header
    return message


def coverage_message(grid: CoverageGrid, header: Header) -> OccupancyGrid:
    """Return a grid of the mean chance of a pose over all headings, in percent."""
    rows, columns = grid.chances.shape[:2]
    message = OccupancyGrid(header=header)
    message.info.map_load_time = header.stamp
    message.info.resolution, message.info.width, message.info.height = float(grid.resolution_m), columns, rows
    message.info.origin = pose_to_message(grid.map_from_grid)
    message.data = array("b", np.round(100.0 * grid.chances.mean(2)).astype(np.int8).tobytes())
    return message


def depth_message(depth_m: np.ndarray, header: Header) -> Image:
    """Return a message of depths in metres according to REP-118: 32FC1, NaN if unknown."""
    return _image(np.where(depth_m > 0, depth_m, np.nan).astype(np.float32), "32FC1", header)


def _image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding)
    message.step = pixels.nbytes // height
    # array.frombytes copies the block; assigning an ndarray to `data` would convert it byte by byte.
    data = array("B")
    data.frombytes(np.ascontiguousarray(pixels).tobytes())
    message.data = data
    return message


def info_message(camera: Camera, header: Header) -> CameraInfo:
    info = CameraInfo(header=header, width=camera.width, height=camera.height)
    pinhole = camera.model == "pinhole"
    info.distortion_model = "plumb_bob" if pinhole else camera.model
    info.d = [0.0] * 5 if pinhole else list(camera.distortion)
    info.k = camera.K.ravel()
    info.r = np.eye(3).ravel()
    info.p = np.hstack([camera.K, np.zeros((3, 1))]).ravel()
    return info


def pose_to_message(matrix: np.ndarray) -> Pose:
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in matrix[:3, 3])
    q = pose.orientation
    q.x, q.y, q.z, q.w = (float(v) for v in rotation_to_quaternion(matrix[:3, :3]))
    return pose


def pose_from_message(pose: Pose) -> np.ndarray:
    """Return the pose (4, 4). Raises UserError if it is no rigid transform."""
    p, q = pose.position, pose.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w])
    if not np.isfinite([p.x, p.y, p.z]).all() or not abs(np.linalg.norm(quaternion) - 1.0) < 1e-3:
        raise UserError("The pose is not a rigid transform (not finite, or a quaternion that is not of length one).")
    return pose_from_quaternion(np.array([p.x, p.y, p.z]), quaternion)


def pose_from_transform(message: TransformStamped) -> np.ndarray:
    """Return parent_from_child (4, 4)."""
    t, q = message.transform.translation, message.transform.rotation
    return pose_from_quaternion(np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w]))


def pose_with_covariance(matrix: np.ndarray, covariance: np.ndarray, header: Header) -> PoseWithCovarianceStamped:
    """Return a message of a pose (4, 4) and its covariance (6, 6) in ROS order."""
    message = PoseWithCovarianceStamped(header=header)
    message.pose.pose = pose_to_message(matrix)
    message.pose.covariance = np.asarray(covariance, np.float64).ravel()
    return message


def pose_to_transform(pose: Pose, header: Header, child_frame: str) -> TransformStamped:
    message = TransformStamped(header=header, child_frame_id=child_frame)
    p, t = pose.position, message.transform.translation
    t.x, t.y, t.z = p.x, p.y, p.z
    message.transform.rotation = pose.orientation
    return message


def cloud_message(xyz: np.ndarray, rgb: np.ndarray, header: Header) -> PointCloud2:
    """Return a cloud of xyz (N, 3) in metres and rgb (N, 3) uint8, packed into a float field as RViz expects it."""
    fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
              for index, name in enumerate(("x", "y", "z", "rgb"))]
    red, green, blue = (rgb[:, channel].astype(np.uint32) for channel in range(3))
    points = np.zeros(len(xyz), point_cloud2.dtype_from_fields(fields))
    for column, name in enumerate("xyz"):
        points[name] = xyz[:, column]
    points["rgb"] = (red << 16 | green << 8 | blue).view(np.float32)
    return point_cloud2.create_cloud(header, fields, points)
