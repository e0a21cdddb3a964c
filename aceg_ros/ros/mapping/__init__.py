"""Mapping on the robot."""
