# SPDX-License-Identifier: Apache-2.0
"""Mapping on the robot. controller.py implements the states idle, collecting and training; keyframe_recorder.py writes
images with poses (pose_source.py) to disk while collecting; training_process.py runs `aceg map` on them."""
