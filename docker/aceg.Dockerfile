# SPDX-License-Identifier: Apache-2.0
# The command `aceg` alone, without ROS 2: map, localize, evaluate.
#   docker build -f docker/aceg.Dockerfile -t aceg .
#   docker run --rm -v $PWD:/data aceg map /data/recording -o /data/lab.map
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Without CUDA. For a GPU leave out this line, and start the container with --gpus all.
RUN pip install --index-url https://download.pytorch.org/whl/cpu 'torch>=2.4'
COPY . /source
RUN pip install /source && rm -rf /source

WORKDIR /data
ENTRYPOINT ["aceg"]
