"""The localizer node: images in; pose, TF and status out; services beside them.

The way of an image, and the thread that does each step:

    image_input.py      executor        pairs the image with its camera_info
    pipeline.py         executor        skips or rejects it, hands it to the worker, and returns at once
    worker.py           localization    always takes the newest image: decodes it, runs the localizer of the map
    pose_output.py      localization    waits for TF, checks the pose against odometry, publishes ~/pose and ~/path
    transform_publisher.py              sends the transform from the map; a timer of the executor sends it again
    status_publisher.py localization    publishes on ~/status what became of the image

map_loader.py loads maps in a thread of its own while the old map stays in use; services.py waits in a thread for each
service; aceg_ros.ros.mapping records keyframes in one thread and follows the training process in another. node.py puts
all this together and has the lifecycle. The executor never waits for any of them.
"""
