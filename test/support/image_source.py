# SPDX-License-Identifier: Apache-2.0
"""Publishes 640x480 rgb8 images on /image, best effort, and leaves: the other process of test_standalone_transport.

The first four bytes of each image are its number. Starts when somebody listens; ends when nobody does any more.
"""

import array
import sys
import time

import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image


def main() -> None:
    count, rate_hz = int(sys.argv[1]), float(sys.argv[2])
    rclpy.init()
    node = rclpy.create_node("image_source")
    publisher = node.create_publisher(Image, "image", qos_profile_sensor_data)
    message = Image(height=480, width=640, step=1920, encoding="rgb8")
    while publisher.get_subscription_count() == 0:
        time.sleep(0.05)
    time.sleep(1)  # the listener has to find us as well
    for number in range(count):
        data = array.array("B")
        data.frombytes(number.to_bytes(4, "little") + bytes(480 * 1920 - 4))
        message.data = data
        publisher.publish(message)
        time.sleep(1 / rate_hz)
    while publisher.get_subscription_count():
        time.sleep(0.05)
    rclpy.shutdown()


main()
