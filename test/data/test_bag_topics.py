# SPDX-License-Identifier: Apache-2.0
"""What is said of camera_info and of topics that are not read; rectified images; cameras that nearly agree."""

from dataclasses import replace

import numpy as np
import pytest
from bag_writer import BagStyle, write_bag

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import BagOptions, open_scene
from aceg_ros.errors import UserError

CAMERA = Camera(width=32, height=24, fx=30.0, fy=30.0, cx=15.5, cy=11.5)
LENS = replace(CAMERA, model="plumb_bob", distortion=(-0.1, 0.01, 0.0, 0.0, 0.0))
P = np.array([25.0, 0, 15, 0, 0, 26, 11, 0, 0, 0, 1, 0])
RECTIFIED = Camera(width=32, height=24, fx=25.0, fy=26.0, cx=15.0, cy=11.0)


def frames(camera=CAMERA, count=3) -> list[Frame]:
    return [Frame(image=np.full((24, 32, 3), index % 200, np.uint8), camera=camera, stamp_s=0.1 * index,
                  map_from_camera=np.eye(4)) for index in range(count)]


def with_p(message):
    message.p[:] = P
    return message


@pytest.mark.parametrize(("camera", "namespace", "options", "expected"), [
    (LENS, "/camera/image_rect", None, RECTIFIED), (LENS, "/camera", None, LENS),
    (LENS, "/camera", BagOptions(rectified=True), RECTIFIED),
    (LENS, "/camera/image_rect", BagOptions(rectified=False), LENS),
    (CAMERA, "/camera", None, RECTIFIED), (CAMERA, "/camera", BagOptions(rectified=False), CAMERA)])
def test_rectified_images_have_the_camera_of_p(tmp_path, camera, namespace, options, expected):
    bag = write_bag(tmp_path / "bag", frames(camera), BagStyle(camera=namespace, camera_info=with_p))
    assert {frame.camera for frame in open_scene(bag, bag_options=options)} == {expected}


def zeros(message):
    message.k[:] = message.p[:] = 0.0
    return message


def skewed(message):
    message.k[1] = 4.26
    return message


def named(message):
    message.distortion_model, message.d[:] = "ftheta", 0.1
    return message


@pytest.mark.parametrize(("change", "reason"), [
    (zeros, "camera_info cannot be used: camera_info has a zero K: the camera is not calibrated"),
    (skewed, "skew of 4.26"), (named, "'ftheta' is not supported")])
def test_the_reason_is_that_of_the_camera_info(tmp_path, change, reason):
    bag = write_bag(tmp_path / "bag", frames(), BagStyle(camera_info=change))
    with pytest.raises(UserError, match=reason):
        list(open_scene(bag))


def test_cameras_that_nearly_agree_are_one(tmp_path):
    """Autofocus that jitters by a hundredth of a pixel is no reason for a rectification each; a zoom is."""
    jitter = [replace(frame, camera=replace(LENS, fx=30.0 + 0.001 * (index % 7), cx=15.5 + 0.001 * (index % 3)))
              for index, frame in enumerate(frames(LENS, 30))]
    zoom = [replace(frame, camera=replace(LENS, fx=40.0), stamp_s=5.0 + frame.stamp_s) for frame in frames()]
    read = list(open_scene(write_bag(tmp_path / "bag", jitter + zoom)))
    assert {frame.camera for frame in read} == {jitter[0].camera, zoom[0].camera} and len(read) == 33


def video(topic):
    """A topic of a type that carries video; what is in its messages is nobody's business."""
    from rosbags.typesys import get_types_from_msg

    def messages(writer):
        store = writer.typestore
        name = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
        if name not in store.types:
            store.register(get_types_from_msg("std_msgs/Header header\nuint8[] data", name))
        yield topic, 10**18, store.types[name](writer.header(10**18, "cam"), np.zeros(9, np.uint8))
    return messages


def test_video_streams_are_named_with_what_to_do(tmp_path):
    bag = write_bag(tmp_path / "bag", frames(), BagStyle(extra=video("/camera/image/ffmpeg")))
    assert len(list(open_scene(bag))) == 3, "beside images, they are in nobody's way"
    with pytest.raises(UserError, match=r"/camera/image/ffmpeg is of type .*FFMPEGPacket, a video stream.*republish"):
        open_scene(bag, bag_options=BagOptions(image="/camera/image/ffmpeg"))
    alone = write_bag(tmp_path / "alone", [], BagStyle(extra=video("/camera/image/ffmpeg")))
    with pytest.raises(UserError, match="video stream.*republish"):
        open_scene(alone)


def test_copies_by_other_transports_are_no_second_camera(tmp_path):
    def copies(writer):
        for transport in ("compressed", "compressedDepth", "zstd"):
            yield f"/camera/image/{transport}", 10**18, writer.compressed(b"1234", "x", 10**18)

    bag = write_bag(tmp_path / "bag", frames(), BagStyle(extra=copies))
    assert len(list(open_scene(bag))) == 3


def test_a_cut_jpeg_is_skipped_counted_and_named(tmp_path):
    import cv2

    def images(writer):
        for index in range(6):
            stamp_ns = 1_700_000_010 * 10**9 + index * 10**8
            image = np.random.default_rng(index).integers(0, 255, (24, 32, 3), np.uint8)
            data = cv2.imencode(".jpg", image)[1].tobytes()
            data = data[:len(data) // 2] if index == 2 else data
            yield "/jpeg/compressed", stamp_ns, writer.compressed(data, "jpeg", stamp_ns)
            yield writer.pose_topic(stamp_ns, np.eye(4))

    bag = write_bag(tmp_path / "bag", frames(), BagStyle(extra=images))
    scene = open_scene(bag, bag_options=BagOptions(image="/jpeg/compressed"))
    assert len(list(scene)) == 5 and len(scene) == 6
    (skipped,) = scene.skipped
    assert "truncated" in skipped.reason and "1700000010.2" in skipped.reason
