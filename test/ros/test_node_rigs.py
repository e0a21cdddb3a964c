# SPDX-License-Identifier: Apache-2.0
"""The localizer node with several cameras: one pose of the base for the images of one moment."""

from __future__ import annotations

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from localizer_listener import LocalizerListener
from node_bench import FAKE_NODE, good_info, noise_image
from rclpy.qos import qos_profile_sensor_data
from ros_graph import output
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster

from aceg_ros.ros.common.messages import image_message, pose_to_message, pose_to_transform
from aceg_ros.utils.stamps import stamp_to_ns

NAMES = ("front", "left", "rear")
MS = 1_000_000


class RigBench(LocalizerListener):
    """Publishes the images of three cameras, and TF of the first two and of `mounted`."""

    def __init__(self, graph, mounted=NAMES):
        super().__init__(graph)
        self.images = {name: graph.node.create_publisher(Image, f"{name}/image", qos_profile_sensor_data)
                       for name in NAMES}
        self.infos = {name: graph.node.create_publisher(CameraInfo, f"{name}/camera_info", qos_profile_sensor_data)
                      for name in NAMES}
        self._tf = StaticTransformBroadcaster(graph.node)
        transforms = []
        for number, name in enumerate(mounted):
            mount = np.eye(4)
            mount[:3, 3] = (number + 1.0, 0.5, 0.25)
            transforms.append(pose_to_transform(pose_to_message(mount), Header(frame_id="base_link"), f"{name}_cam"))
        self._tf.sendTransform(transforms)

    def connected(self) -> bool:
        return self.is_active and all(publisher.get_subscription_count()
                                      for publisher in (*self.images.values(), *self.infos.values()))

    def send(self, second: int, names=NAMES, lag_ns: int = 5 * MS, dark=()) -> int:
        """Send images of one moment, each a little later than the one before; returns the first stamp."""
        first = 0
        for number, name in enumerate(names):
            stamp = Time(sec=second, nanosec=number * lag_ns)
            header = Header(stamp=stamp, frame_id=f"{name}_cam")
            info = good_info()
            info.header = header
            self.infos[name].publish(info)
            rgb = noise_image(number) // (100 if name in dark else 1)
            self.images[name].publish(image_message(rgb, header))
            first = first or stamp_to_ns(stamp)
        return first


@pytest.fixture
def start(graph, map_file):
    def start_node(mounted=NAMES, **parameters):
        given = {"base_frame": "base_link", "cameras": list(NAMES)} | parameters
        process = graph.start(FAKE_NODE, map_path=str(map_file), **given)
        bench = RigBench(graph, mounted)
        assert graph.spin_until(lambda: bench.connected() or process.poll() is not None) and process.poll() is None, \
            output(process)
        graph.spin(0.5)             # TF
        return bench, process
    return start_node


def test_images_of_one_moment_give_one_pose_of_the_base(start):
    bench, _ = start()
    stamp = bench.send(1)
    status, values = bench.wait_for_status(stamp)
    assert values["status"] == "accepted" and "front" in status.message and "rear" in status.message
    # The fake localizer of rigs: number of images, sum of the mounts' x, height of the first.
    assert bench.pose(stamp)[:3, 3] == pytest.approx((3.0, 6.0, 0.25))
    assert bench.graph.spin_until(lambda: bool(bench.transforms))
    assert bench.transforms[-1].child_frame_id == "base_link"
    assert list(bench.statuses) == [stamp]


def test_a_camera_that_is_missing_is_left_out_and_not_waited_for(start):
    bench, _ = start()
    bench.send(1, ("front", "rear"))
    bench.graph.spin(0.5)                       # the node keeps the newest image of a camera alone
    second = bench.send(2, ("front", "rear"))   # ends the wait for the third camera, which is then not waited for
    bench.wait_for_status(second)
    assert bench.pose(second)[:2, 3] == pytest.approx((2.0, 4.0))
    bench.send(3, ("front", "rear", "left"))    # the third is back: too late for this moment, and waited for again
    bench.graph.spin(0.5)
    fourth = bench.send(4, ("front", "rear", "left"))
    bench.wait_for_status(fourth)
    assert bench.pose(fourth)[0, 3] == 3.0


def test_a_camera_without_tf_or_with_a_bad_image_is_named(start):
    bench, _ = start(mounted=("front", "left"), tf_timeout=0.1)
    stamp = bench.send(1)
    status, _ = bench.wait_for_status(stamp)
    assert bench.pose(stamp)[0, 3] == 2.0
    assert "Camera rear was left out" in status.message and "rear_cam" in status.message


def test_silent_cameras_are_named_in_the_status(start):
    bench, _ = start()
    seconds = iter(range(1, 1000))

    def is_told() -> bool:
        bench.send(next(seconds), ("front", "left"))
        bench.graph.spin(0.2)
        sentence = bench.node_statuses[-1][0].message
        return "/rear/camera_info" in sentence and "/front/" not in sentence and "/left/" not in sentence

    assert bench.graph.spin_until(is_told), bench.node_statuses[-1][0].message


@pytest.mark.parametrize(("parameters", "sentence"), [({"base_frame": ""}, "needs base_frame"),
                                                      ({"camera_frame": "cam"}, "camera_frame is for one camera"),
                                                      ({"cameras": ["front", "front"]}, "must be different")])
def test_parameters_that_do_not_go_together_are_refused(graph, map_file, parameters, sentence):
    given = {"base_frame": "base_link", "cameras": ["front", "rear"]} | parameters
    process = graph.start(FAKE_NODE, map_path=str(map_file), **given)
    assert graph.spin_until(lambda: process.poll() is not None, 120.0), output(process)
    assert sentence in output(process)
