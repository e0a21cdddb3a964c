# SPDX-License-Identifier: Apache-2.0
"""Players, recorders and the bag as processes, over real topics."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from ros_graph import RosGraph, output, stop
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene, write_ace_scene
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.image_decoder import decode_image
from aceg_ros.geometry import pose_from_quaternion
from aceg_ros.ros.common.messages import pose_from_message
from aceg_ros.synthetic.demo_room import LIGHTS, demo_world, mapping_path, query_path
from aceg_ros.utils.stamps import stamp_to_ns

PLAYER, RECORDER, BAG = "aceg_ros.ros.scene_player", "aceg_ros.ros.scene_recorder", "aceg_ros.ros.bag_recorder"


def frames(count: int, size=(640, 480)) -> list[Frame]:
    """Noise that no two images share, so that a mix-up is found; every camera differs."""
    rng = np.random.default_rng(7)
    width, height = size
    return [Frame(image=rng.integers(0, 255, (height, width, 3), np.uint8),
                  camera=Camera(width=width, height=height, fx=500.0 + index, fy=510.0, cx=319.0, cy=239.5),
                  stamp_s=0.1 * index, map_from_camera=pose_from_quaternion(rng.normal(size=3), rng.normal(size=4)),
                  name=f"frame {index}")
            for index in range(count)]


@pytest.fixture
def graph(tmp_path):
    with RosGraph(tmp_path) as graph:
        yield graph


@pytest.fixture
def scene(tmp_path):
    """Twelve frames in an ACE folder."""
    write_ace_scene(tmp_path / "scene", frames(12))
    return tmp_path / "scene"


def test_every_frame_of_a_scene_is_played_with_its_camera_and_its_true_pose(graph, scene):
    images, infos, truths, transforms = [], {}, {}, []
    node = graph.node
    node.create_subscription(Image, "image", images.append, qos_profile_sensor_data)
    node.create_subscription(CameraInfo, "camera_info", lambda m: infos.update({stamp_to_ns(m.header.stamp): m}), 100)
    node.create_subscription(PoseStamped, "/scene_player/ground_truth",
                             lambda m: truths.update({stamp_to_ns(m.header.stamp): m}), 100)
    node.create_subscription(TFMessage, "/tf", lambda m: transforms.extend(m.transforms), 100)
    player = graph.start(PLAYER, scene=str(scene), rate=10.0, camera_frame="cam", map_frame="hall")
    assert graph.spin_until(lambda: player.poll() is not None)
    graph.spin(0.2)
    assert player.returncode == 0, output(player)

    assert len(images) == len(infos) == len(truths) == 12
    for image, expected in zip(images, open_scene(scene), strict=True):
        stamp = stamp_to_ns(image.header.stamp)
        np.testing.assert_array_equal(decode_image(image), expected.image)
        assert camera_from_info(infos[stamp]) == expected.camera
        np.testing.assert_allclose(pose_from_message(truths[stamp].pose), expected.map_from_camera, atol=1e-12)
        assert (image.header.frame_id, truths[stamp].header.frame_id) == ("cam", "hall")
    assert [(t.header.frame_id, t.child_frame_id) for t in transforms] == [("hall", "cam_ground_truth")] * 12
    assert [t.header.stamp for t in transforms] == [image.header.stamp for image in images]


def test_a_scene_can_be_looped_and_the_player_stopped(graph, scene):
    stamps = []
    graph.node.create_subscription(Image, "image", lambda m: stamps.append(stamp_to_ns(m.header.stamp)),
                                   qos_profile_sensor_data)
    player = graph.start(PLAYER, scene=str(scene), rate=50.0, loop=True, start_delay=0.0)
    assert graph.spin_until(lambda: len(stamps) > 30), output(player)
    assert stop(player) == 0
    assert "Traceback" not in output(player) and "frames of a loop of 12." in output(player)


@pytest.mark.parametrize(("parameters", "word"), [({}, "scene"), ({"scene": "/missing"}, "/missing"),
                                                  ({"scene": "/missing", "every": 0}, "every")])
def test_what_cannot_be_played_is_one_sentence(graph, parameters, word):
    player = graph.start(PLAYER, **parameters)
    assert player.wait(60) == 2
    errors = [line for line in output(player).splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and word in errors[0] and "Traceback" not in output(player)


def test_damaged_frames_are_named_and_left_out(graph, scene):
    (scene / "rgb" / "000003.png").write_bytes(b"no image")
    images = []
    graph.node.create_subscription(Image, "image", images.append, qos_profile_sensor_data)
    player = graph.start(PLAYER, scene=str(scene), rate=20.0)
    assert graph.spin_until(lambda: player.poll() is not None)
    assert player.returncode == 0 and len(images) == 11
    assert "000003.png" in output(player)


def test_a_recording_is_what_was_played(graph, scene, tmp_path):
    """Pixels, cameras and poses go through topics and files unchanged; the bag holds the same."""
    bag = graph.start(BAG, output=str(tmp_path / "bag"))
    recorder = graph.start(RECORDER, "ground_truth:=/scene_player/ground_truth", output=str(tmp_path / "recorded"))
    player = graph.start(PLAYER, scene=str(scene), rate=10.0, wait_for_subscribers=2)
    assert graph.spin_until(lambda: player.poll() is not None)
    assert player.returncode == 0, output(player)
    assert stop(recorder) == 0, output(recorder)
    assert stop(bag) == 0, output(bag)
    assert "Recorded 12 frames" in output(recorder)
    assert "Recording /image." in output(bag) and "12 of /image" in output(bag)

    recorded, played = list(open_scene(tmp_path / "recorded")), list(open_scene(scene))
    assert len(recorded) == 12
    for a, b in zip(recorded, played, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.camera == b.camera
        np.testing.assert_allclose(a.map_from_camera, b.map_from_camera, atol=1e-12)

    with AnyReader([tmp_path / "bag"]) as reader:
        counts = {topic: reader.topics[topic].msgcount for topic in reader.topics}
        images = [reader.deserialize(data, connection.msgtype)
                  for connection, _, data in reader.messages() if connection.topic == "/image"]
    for topic in ("/image", "/camera_info", "/scene_player/ground_truth", "/tf"):
        assert counts[topic] == 12, counts
    for image, expected in zip(images, played, strict=True):
        np.testing.assert_array_equal(image.data.reshape(480, 640, 3), expected.image)


def test_a_recorder_never_mixes_into_an_old_recording(graph, scene):
    recorder = graph.start(RECORDER, output=str(scene))
    assert recorder.wait(60) == 2
    assert "already holds a recording" in output(recorder)
    assert len(open_scene(scene)) == 12


@pytest.mark.parametrize(("path", "light", "prerender"), [("mapping", "day", False), ("query", "evening", True)])
def test_the_rendered_room_is_played_with_exact_poses(graph, path, light, prerender):
    images, truths, depths = [], {}, {}
    graph.node.create_subscription(Image, "image", images.append, qos_profile_sensor_data)
    graph.node.create_subscription(Image, "depth/image", lambda m: depths.update({stamp_to_ns(m.header.stamp): m}), 10)
    graph.node.create_subscription(PoseStamped, "/sim_camera/ground_truth",
                                   lambda m: truths.update({stamp_to_ns(m.header.stamp): m}), 10)
    camera = graph.start("aceg_ros.ros.sim_camera", path=path, light=light, frames=3, publish_depth=True,
                         prerender=prerender)
    assert graph.spin_until(lambda: camera.poll() is not None)
    assert camera.returncode == 0 and len(images) == len(truths) == len(depths) == 3, output(camera)
    world = demo_world()
    poses = {"mapping": mapping_path, "query": query_path}[path](3, world.room)
    for image, pose in zip(images, poses, strict=True):
        expected = world.render_frame(pose, LIGHTS[light])
        stamp = stamp_to_ns(image.header.stamp)
        np.testing.assert_array_equal(decode_image(image), expected.image)
        np.testing.assert_allclose(pose_from_message(truths[stamp].pose), pose, atol=1e-12)
        depth = np.frombuffer(depths[stamp].data, np.float32).reshape(480, 640)
        np.testing.assert_array_equal(depth, expected.depth_m)
