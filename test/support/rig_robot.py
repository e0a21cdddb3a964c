# SPDX-License-Identifier: Apache-2.0
"""A rig of cameras in the process of the test that shows the moments of a drive, with TF."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.qos import qos_profile_sensor_data
from ros_graph import RosGraph
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from aceg_ros.rig import RigFrame
from aceg_ros.ros.common.messages import depth_message, image_message, info_message, pose_to_message, pose_to_transform


class RigRobot:
    """Shows moments one by one. depth: of the first camera, which comes with its image."""

    def __init__(self, graph: RosGraph, moments: Sequence[RigFrame], depth: bool = False) -> None:
        self.graph, self.moments, self._shown = graph, moments, 0
        node, names = graph.node, list(moments[0].rig.rig_from_camera)
        self._images = {name: node.create_publisher(Image, f"{name}/image", qos_profile_sensor_data) for name in names}
        self._infos = {name: node.create_publisher(CameraInfo, f"{name}/camera_info", qos_profile_sensor_data)
                       for name in names}
        self._depth = None if not depth else node.create_publisher(Image, f"{names[0]}/depth/image",
                                                                   qos_profile_sensor_data)
        self._tf, self._static_tf = TransformBroadcaster(node), StaticTransformBroadcaster(node)
        self._static_tf.sendTransform([
            pose_to_transform(pose_to_message(mount), Header(frame_id="base_link"), f"{name}_cam")
            for name, mount in moments[0].rig.rig_from_camera.items()])

    def connected(self) -> bool:
        return all(publisher.get_subscription_count() for publisher in (*self._images.values(), *self._infos.values()))

    def show(self, count: int, period_s: float = 0.1) -> None:
        """Show the next moments, as many and at this period."""
        for _ in range(count):
            moment = self.moments[self._shown % len(self.moments)]
            self._shown += 1
            stamp = self.graph.node.get_clock().now().to_msg()
            self._tf.sendTransform(pose_to_transform(pose_to_message(moment.map_from_rig),
                                                     Header(stamp=stamp, frame_id="map"), "base_link"))
            for number, (name, frame) in enumerate(moment.frames.items()):
                header = Header(stamp=stamp, frame_id=f"{name}_cam")
                self._infos[name].publish(info_message(frame.camera, header))
                if number == 0 and self._depth is not None:
                    self._depth.publish(depth_message(frame.depth_m, header))
                self._images[name].publish(image_message(frame.image, header))
            self.graph.spin(period_s)
