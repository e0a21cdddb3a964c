# SPDX-License-Identifier: Apache-2.0
"""Checks of the renderer and of the encoders on a device, against the CPU."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.benchmarks.gpu.session import Outcome, Results, Session
from aceg_ros.encoders import SHIPPED_ENCODERS
from aceg_ros.encoders.base import KEYPOINT_NETS, Encoder, load_encoder
from aceg_ros.encoders.corners import with_corners
from aceg_ros.encoders.cuda_graphs import capture
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.keypoints import extract_frame_keypoints
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.synthetic.demo_room import mapping_path
from aceg_ros.synthetic.render import render
from aceg_ros.utils.device import half_precision

KEYPOINTS = 1500                        # as the default method takes
MIN_COSINE, NEAR_PX, SAME_PX = 0.99, 0.1, 0.5
MIN_SAME_PIXELS = 0.995
MIN_SAME_SHARE = {"as used": 0.94, "fp32": 0.97}       # of keypoints; bf16 on a CPU gives 0.96


def check_renderer(session: Session) -> Outcome:
    """Render a view on the device and on the CPU."""
    pose, world = mapping_path(6, session.world.room)[1], session.world
    expected = render(world.room, world.atlas, world.camera, pose)

    def rendered():
        return render(world.room, session.device_world.atlas, world.camera, pose, device=session.device)

    found = rendered()
    depth_m = np.abs(found.depth_m - expected.depth_m)
    grey = np.abs(found.image.astype(float) - expected.image.astype(float)).max(2)
    same = [float((depth_m < 1e-3).mean()), float((grey <= 2).mean())]
    results = {"depth_within_1mm": same[0], "grey_within_2": same[1],
               "median_depth_difference_m": float(np.median(depth_m)), "ms": session.time(rendered, 10)}
    problems = [] if min(same) > MIN_SAME_PIXELS else ["the image is not that of the CPU"]
    return Outcome(results=results, problems=problems)


def check_encoders(session: Session) -> Outcome:
    """Compare features and keypoints with those that the CPU computes in fp32."""
    results: Results = {}
    problems = []
    image = session.mapping_frames[1].image
    for name in SHIPPED_ENCODERS:
        expected = _in_fp32(load_encoder(name, "cpu"), image_to_tensor(image, "cpu"))
        encoder = load_encoder(name, session.device)
        on_device = image_to_tensor(image, session.device)
        for precision, found in (("as used", encoder.detect(on_device)), ("fp32", _in_fp32(encoder, on_device))):
            compared = _compare(found, expected)
            results[f"{name}, {precision}"] = compared
            if (compared["median_cosine"] < MIN_COSINE
                    or compared["same_keypoints"] < MIN_SAME_SHARE[precision]):
                problems.append(f"{name} ({precision}) differs from the CPU")
    return Outcome(results=results, problems=problems)


@torch.inference_mode()
def _in_fp32(encoder: Encoder, images: Tensor) -> FeatureMap:
    """Extract with keypoints, without autocast."""
    images = images.to(memory_format=torch.channels_last)
    found = encoder.net(images)
    return found if isinstance(encoder.net, KEYPOINT_NETS) else with_corners(images, found, encoder.stride)


def _compare(found: FeatureMap, expected: FeatureMap) -> Results:
    features = functional.cosine_similarity(found.features.float().cpu(), expected.features.float(), dim=1)
    assert found.keypoints is not None and expected.keypoints is not None
    assert found.reliability is not None and expected.reliability is not None
    distance = (found.keypoints.float().cpu() - expected.keypoints).norm(dim=1)
    return {"median_cosine": float(features.median()), "cosine_of_worst_hundredth": float(features.quantile(0.01)),
            "median_px": float(distance.median()), "same_keypoints": float((distance < SAME_PX).float().mean()),
            "within_0.1_px": float((distance < NEAR_PX).float().mean()),
            "median_reliability_difference":
                float((found.reliability.float().cpu() - expected.reliability).abs().median())}


def check_encoder_speed(session: Session) -> Outcome:
    """Time the encoders at 640x480: as used, eagerly in both precisions, and as a CUDA graph."""
    results: Results = {}
    problems = []
    for name in SHIPPED_ENCODERS:
        encoder, frame = load_encoder(name, session.device), session.queries[0]
        results[f"{name}, image to keypoints, as used"] = session.time(
            partial(extract_frame_keypoints, frame, encoder, KEYPOINTS))
        images = image_to_tensor(frame.image, session.device).to(memory_format=torch.channels_last)
        results[f"{name}, upload alone"] = session.time(partial(image_to_tensor, frame.image, session.device))
        for setting, call in _network_calls(encoder.net, images, session.device).items():
            try:
                results[f"{name}, network, {setting}"] = session.time(call())
            except RuntimeError as error:
                problems.append(f"{name}, {setting}: {str(error).splitlines()[0]}")
    return Outcome(results=results, problems=problems)


def _network_calls(net: nn.Module, images: Tensor, device: str) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return what prepares each way to run a network."""
    half = deepcopy(net).half()
    calls = {"fp32": lambda: _eager(net, images, None), "autocast": lambda: _eager(net, images, device),
             "16-bit weights": lambda: _eager(half, images, device)}
    if device == "cuda":
        calls |= {"CUDA graph, autocast": lambda: _graphed(net, images, device),
                  "CUDA graph, 16-bit weights": lambda: _graphed(half, images, device)}
    return calls


def _eager(net: nn.Module, images: Tensor, autocast: str | None) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            if autocast is None:
                return net(images)
            with half_precision(autocast):
                return net(images)
    return call


def _graphed(net: nn.Module, images: Tensor, device: str) -> Callable[[], Any]:
    """Capture the network as a CUDA graph, which the call replays."""
    captured = capture(lambda given: _eager(net, given, device)(), images)
    return lambda: captured.replay()


def check_compiled_encoder(session: Session) -> Outcome:
    """Time the last encoder compiled by torch.compile (reduce-overhead), which takes long to compile."""
    encoder = load_encoder(SHIPPED_ENCODERS[-1], session.device)
    images = image_to_tensor(session.queries[0].image, session.device).to(memory_format=torch.channels_last)
    compiled = torch.compile(deepcopy(encoder.net), mode="reduce-overhead")
    with torch.no_grad(), half_precision(session.device):
        return Outcome(results={f"{SHIPPED_ENCODERS[-1]}, network": session.time(lambda: compiled(images))})
