"""ROS messages to core types and back. What cannot be converted raises UserError with the reason."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped, TransformStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_from_quaternion, rotation_to_quaternion

_BRIDGE = CvBridge()


def stamp_ns(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


class BadCameraError(UserError):
    """The camera_info cannot be used, or not with this image."""


def frame_from_messages(image: Image | CompressedImage, info: CameraInfo | None, rectified: bool = False) -> Frame:
    """The picture with its camera and stamp. Raises BadCameraError, or UserError for the image, with the reason."""
    if info is None:
        raise BadCameraError("No camera_info has been received yet.")
    try:
        camera = camera_from_info(info, rectified)
    except UserError as error:
        raise BadCameraError(str(error)) from None
    rgb = compressed_to_rgb(image) if isinstance(image, CompressedImage) else image_to_rgb(image)
    check_same_size(rgb, camera)
    return Frame(image=rgb, camera=camera, stamp_s=stamp_ns(image.header.stamp) * 1e-9)


def image_to_rgb(message: Image) -> np.ndarray:
    """Any colour or grey picture to (H, W, 3) uint8 RGB. The size that the header claims is checked against the data
    before anything is converted."""
    height, width, step = message.height, message.width, message.step
    _check_data(message)
    try:
        rgb = _BRIDGE.imgmsg_to_cv2(message, desired_encoding="rgb8")
    except (CvBridgeError, ValueError, TypeError, KeyError, cv2.error) as error:
        raise UserError(f"The image encoding '{message.encoding}' cannot be converted to rgb8 ({error}).") from error
    if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
        raise UserError(f"The image's step of {step} bytes does not fit {width} pixels of {message.encoding}.")
    return rgb


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """A JPEG or PNG, colour or grey, to (H, W, 3) uint8 RGB."""
    if not len(message.data):
        raise UserError("The compressed image is empty.")
    try:
        return _BRIDGE.compressed_imgmsg_to_cv2(message, desired_encoding="rgb8")
    except (CvBridgeError, ValueError, TypeError, KeyError, cv2.error) as error:
        raise UserError(f"The compressed image of format '{message.format}' cannot be decoded ({error}).") from error


def image_to_depth(message: Image) -> np.ndarray:
    """Depth as REP-118 has it, 16UC1 in mm or 32FC1 in m, to (H, W) float32 metres, 0 where unknown."""
    if message.encoding not in ("16UC1", "mono16", "32FC1"):
        raise UserError(f"Depth images are 16UC1 (mm) or 32FC1 (m), this one is '{message.encoding}'.")
    _check_data(message)
    try:
        depth = _BRIDGE.imgmsg_to_cv2(message)
    except (CvBridgeError, ValueError, TypeError) as error:
        raise UserError(f"The depth image cannot be read ({error}).") from error
    scale = 1.0 if message.encoding == "32FC1" else 1e-3
    return np.nan_to_num(depth.astype(np.float32) * scale, nan=0.0, posinf=0.0, neginf=0.0)


def _check_data(message: Image) -> None:
    """That the data is as long as the header says."""
    height, width, step, length = message.height, message.width, message.step, len(message.data)
    if not height or not width:
        raise UserError(f"The image is empty ({width}x{height} pixels).")
    if step < width:
        raise UserError(f"The image's step of {step} bytes is too small for {width} pixels of {message.encoding}.")
    if length < step * height:
        raise UserError(f"The image data is truncated: {length} bytes instead of {step * height}.")


def check_same_size(image: np.ndarray, camera: Camera) -> None:
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise BadCameraError(f"The image has {width}x{height} pixels, but camera_info is for {camera.width}x"
                             f"{camera.height}: use the camera_info of this image.")


def image_message(rgb: np.ndarray, header: Header) -> Image:
    return _image(rgb, "rgb8", header)


def compressed_message(rgb: np.ndarray, header: Header) -> CompressedImage:
    """JPEG of quality 95, OpenCV's default."""
    message = _BRIDGE.cv2_to_compressed_imgmsg(np.ascontiguousarray(rgb[..., ::-1]), "jpg")
    message.header = header
    return message


def depth_message(depth_m: np.ndarray, header: Header) -> Image:
    """Depth in metres as REP-118 has it: 32FC1, NaN where unknown."""
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
    """Pose to 4x4. Raises UserError where it is no rigid transform."""
    p, q = pose.position, pose.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w])
    if not np.isfinite([p.x, p.y, p.z]).all() or not abs(np.linalg.norm(quaternion) - 1.0) < 1e-3:
        raise UserError("The pose is not a rigid transform (not finite, or a quaternion that is not of length one).")
    return pose_from_quaternion(np.array([p.x, p.y, p.z]), quaternion)


def pose_with_covariance(matrix: np.ndarray, covariance: np.ndarray, header: Header) -> PoseWithCovarianceStamped:
    """matrix (4, 4), covariance (6, 6) in ROS order."""
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
    """xyz (N, 3) metres, rgb (N, 3) uint8: as RViz shows it, the colour packed into a float field `rgb`."""
    fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
              for index, name in enumerate(("x", "y", "z", "rgb"))]
    red, green, blue = (rgb[:, channel].astype(np.uint32) for channel in range(3))
    points = np.zeros(len(xyz), point_cloud2.dtype_from_fields(fields))
    for column, name in enumerate("xyz"):
        points[name] = xyz[:, column]
    points["rgb"] = (red << 16 | green << 8 | blue).view(np.float32)
    return point_cloud2.create_cloud(header, fields, points)
