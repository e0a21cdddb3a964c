# SPDX-License-Identifier: Apache-2.0
"""Stand-in for sensor_msgs_py with the calls that aceg_ros uses, for where ROS 2 is not installed."""
