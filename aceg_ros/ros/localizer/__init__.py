# SPDX-License-Identifier: Apache-2.0
"""The localizer node: localizes images in a map and publishes pose, TF and status.

The steps from an image to its pose, and the thread of each:

    image_input.py      executor        pairs the image with its camera_info
    pipeline.py         executor        skips or rejects the image, or passes it to the worker
    worker.py           localization    takes the newest image, decodes it and runs the localizer of the map
    pose_output.py      localization    waits for TF, checks the pose against odometry, publishes ~/pose and ~/path
    transform_publisher.py              publishes the transform from the map; a timer of the executor repeats it
    status_publisher.py localization    publishes the result of the image on ~/status

map_loader.py loads maps in a thread of its own while the old map stays in use. services.py runs each service in its own
thread. aceg_ros.ros.mapping records keyframes in one thread and monitors the training process in another. bond.py sends
heartbeats to Nav2's lifecycle manager. node.py connects all parts and implements the lifecycle. The executor thread
never waits.
"""
