"""The ROS 2 shell: everything that touches rclpy."""
