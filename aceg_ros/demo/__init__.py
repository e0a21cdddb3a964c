# SPDX-License-Identifier: Apache-2.0
"""`make demo`: map and localize end to end over real ROS 2 topics."""
