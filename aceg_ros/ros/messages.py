"""ROS messages to core types and back. What cannot be converted raises UserError with the reason."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped, TransformStamped
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from aceg_ros.camera import Camera
from aceg_ros.datasets.camera_file import camera_from_ros_numbers
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import pose_from_quaternion, rotation_to_quaternion

_BRIDGE = CvBridge()


def stamp_ns(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def image_to_rgb(message: Image) -> np.ndarray:
    """Any colour or grey picture to (H, W, 3) uint8 RGB. The size that the header claims is checked against the data
    before anything is converted."""
    height, width, step, length = message.height, message.width, message.step, len(message.data)
    if not height or not width:
        raise UserError(f"The image is empty ({width}x{height} pixels).")
    if step < width:
        raise UserError(f"The image's step of {step} bytes is too small for {width} pixels of {message.encoding}.")
    if length < step * height:
        raise UserError(f"The image data is truncated: {length} bytes instead of {step * height}.")
    try:
        rgb = _BRIDGE.imgmsg_to_cv2(message, desired_encoding="rgb8")
    except (CvBridgeError, ValueError, TypeError, KeyError, cv2.error) as error:
        raise UserError(f"The image encoding '{message.encoding}' cannot be converted to rgb8 ({error}).") from error
    if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
        raise UserError(f"The image's step of {step} bytes does not fit {width} pixels of {message.encoding}.")
    return rgb


def camera_from_info(info: CameraInfo) -> Camera:
    """CameraInfo (K and D, of the picture as it was taken) to Camera."""
    if not info.k[0] or not info.k[4]:
        raise UserError("camera_info has a zero K: the camera is not calibrated.")
    return camera_from_ros_numbers(info.width, info.height, info.k, info.distortion_model, info.d)


def check_same_size(image: np.ndarray, camera: Camera) -> None:
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise UserError(f"The image has {width}x{height} pixels, but camera_info is for {camera.width}x{camera.height}:"
                        " use the camera_info of this image.")


def image_message(rgb: np.ndarray, header: Header) -> Image:
    return _image(rgb, "rgb8", header)


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


def estimate_to_pose(estimate: PoseEstimate, header: Header) -> PoseWithCovarianceStamped:
    """An accepted estimate to the message. A refusal has no pose, so this raises ValueError."""
    if estimate.map_from_camera is None or estimate.covariance is None:
        raise ValueError(f"A refused estimate ({estimate.status.value}) has no pose to publish.")
    message = PoseWithCovarianceStamped(header=header)
    message.pose.pose = pose_to_message(estimate.map_from_camera)
    message.pose.covariance = np.asarray(estimate.covariance, np.float64).ravel()
    return message


def pose_to_transform(pose: Pose, header: Header, child_frame: str) -> TransformStamped:
    message = TransformStamped(header=header, child_frame_id=child_frame)
    p, t = pose.position, message.transform.translation
    t.x, t.y, t.z = p.x, p.y, p.z
    message.transform.rotation = pose.orientation
    return message
