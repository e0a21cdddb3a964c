# SPDX-License-Identifier: Apache-2.0
# A robot: ROS 2 with this package, built by colcon.
#   docker build -f docker/robot.Dockerfile --build-arg ROS_DISTRO=jazzy -t aceg_ros:jazzy .
#   docker run --rm --network host --ipc host -v $PWD:/maps aceg_ros:jazzy \
#       ros2 launch aceg_ros localization.launch.py map:=/maps/lab.map image:=/camera/image_raw camera_info:=/camera/camera_info
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
WORKDIR /ws

# The dependencies first, so that a change of the code does not install them again. RViz stays outside.
COPY package.xml src/aceg_ros/package.xml
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip \
    && rosdep update --rosdistro "$ROS_DISTRO" \
    && rosdep install --from-paths src --ignore-src --dependency-types exec -y --skip-keys "python3-torch rviz2" \
    && rm -rf /var/lib/apt/lists/*
# Without CUDA. For a GPU leave out the index, and start the container with --gpus all.
RUN pip install --index-url https://download.pytorch.org/whl/cpu 'torch>=2.4' \
    && pip install --no-deps poselib safetensors \
    && pip install numba

COPY . src/aceg_ros
RUN . "/opt/ros/$ROS_DISTRO/setup.sh" && colcon build --packages-select aceg_ros \
    && sed -i 's#^source "/opt/ros/\$ROS_DISTRO/setup.bash".*#source /ws/install/setup.bash#' /ros_entrypoint.sh

CMD ["ros2", "launch", "aceg_ros", "localization.launch.py"]
