# SPDX-License-Identifier: Apache-2.0
"""Runs a network as CUDA graphs: launching its kernels one by one takes longer than computing them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aceg_ros.encoders.feature_map import FeatureMap

MAX_SIZES = 4                           # of images; those of further sizes are computed without a graph
WARM_UP = 3                             # runs before a graph is captured

Extract = Callable[[Tensor], FeatureMap]
_LOG = logging.getLogger("aceg_ros")


@dataclass(frozen=True, kw_only=True)
class CapturedRun:
    """A graph: images that it reads, its output, and what replays it."""

    images: Tensor
    output: FeatureMap
    replay: Callable[[], None]


def capture(extract: Extract, images: Tensor) -> CapturedRun:
    """Capture a network on images of one size as a CUDA graph."""
    kept, graph, stream = images.clone(memory_format=torch.channels_last), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            extract(kept)
    torch.cuda.current_stream().wait_stream(stream)
    # Other threads may go on with work of their own.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = extract(kept)
    return CapturedRun(images=kept, output=output, replay=graph.replay)


class CudaGraphs:
    """Graphs of one network, for each size of its images. Threads may share it, if they use the same stream."""

    def __init__(self, capture: Callable[[Extract, Tensor], CapturedRun] = capture):
        self._capture, self._lock = capture, threading.Lock()
        self._captured: dict[tuple[object, ...], CapturedRun | None] = {}

    def run(self, extract: Extract, images: Tensor) -> FeatureMap:
        """Return what `extract` computes of images; the first time for their size, a graph is captured. Where that is
        impossible, they are computed without one."""
        key = (getattr(extract, "__name__", type(extract).__name__), *images.shape)
        with self._lock:
            if key not in self._captured and len(self._captured) < MAX_SIZES:
                self._captured[key] = self._try_capture(extract, images)
            captured = self._captured.get(key)
            if captured is None:
                return extract(images)
            captured.images.copy_(images)
            captured.replay()
            features, reliability, keypoints = captured.output
            return FeatureMap(features.clone(), None if reliability is None else reliability.clone(),
                              None if keypoints is None else keypoints.clone())

    def _try_capture(self, extract: Extract, images: Tensor) -> CapturedRun | None:
        try:
            return self._capture(extract, images)
        except RuntimeError as error:
            _LOG.warning("no CUDA graph of the encoder, which makes it slower: %s", error)
            return None
