# SPDX-License-Identifier: Apache-2.0
"""The interface of all encoders, and loading one by its name (shipped) or by the path of an imported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders import SHIPPED_ENCODERS
from aceg_ros.encoders.ace import AceEncoderConfig, AceNet
from aceg_ros.encoders.aliked import AlikedConfig, AlikedNet
from aceg_ros.encoders.compact import CompactConfig, CompactNet, fuse_batch_norm
from aceg_ros.encoders.compact2 import Compact2Net
from aceg_ros.encoders.compact3 import Compact3Net
from aceg_ros.encoders.corners import with_corners
from aceg_ros.encoders.cuda_graphs import CudaGraphs
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.sift import STRIDE as SIFT_STRIDE
from aceg_ros.encoders.sift import SiftNet
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import WeightsFile, find_weights, identity_of, load_without_counters, read_weights
from aceg_ros.utils.device import half_precision, to_device

DEFAULT_ENCODER = "compact"
KEYPOINT_NETS = (Compact2Net, Compact3Net)      # encoders with keypoints of their own
OWN_NETS: dict[str, type[CompactNet | Compact3Net]] = {"compact": CompactNet, "compact2": Compact2Net,
                                                       "compact3": Compact3Net}
SHORT_SIDE_PX = 480                     # of input images, for encoders without a weights file of ours


@dataclass(frozen=True, kw_only=True)
class BestKeypoints:
    """N keypoints of an image: cells (N,), flat indices into a map of height and width map_size; pixels (N, 2);
    descriptors (N, C) of unit length."""

    cells: Tensor
    pixels: Tensor
    descriptors: Tensor
    map_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen network: images (B, 3, H, W) in [0, 1] RGB -> features (B, dim, H / stride, W / stride).

    identity: name and content hash; a map can only be used with the encoder that it was made with. source: the argument
    of `load_encoder` that loads it again. short_side_px: the image size that the network expects. corners: whether its
    descriptors may be moved from the centres of cells to corners (`detect`). graphs: if given, single images are
    computed as CUDA graphs.
    """

    name: str
    identity: str
    source: str
    stride: int
    dim: int
    short_side_px: int
    net: nn.Module
    corners: bool = False
    graphs: CudaGraphs | None = None

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.net.parameters()), torch.device("cpu"))

    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images).features

    @torch.inference_mode()
    def extract(self, images: Tensor) -> FeatureMap:
        """Extract float32 features at the centres of cells, with reliabilities if the network predicts them."""
        return self._run(self.net.at_centres if isinstance(self.net, KEYPOINT_NETS) else self.net, images)

    @torch.inference_mode()
    def detect(self, images: Tensor) -> FeatureMap:
        """Extract features at keypoints: those that the network predicts, else corners, if `corners` allows it."""
        if isinstance(self.net, KEYPOINT_NETS):
            return self._run(self.net, images)
        found = self.extract(images)
        return with_corners(images, found, self.stride) if self.corners else found

    @torch.inference_mode()
    def detect_best(self, images: Tensor, choose: Callable[[Tensor], Tensor]) -> BestKeypoints | None:
        """Describe some keypoints of one image alone, which is faster; None if the network describes all at once.

        choose: returns the cells to describe (N,), given the reliabilities (h, w).
        """
        if not isinstance(self.net, Compact3Net) or self.graphs is not None:
            return None
        with half_precision(images.device.type):
            raw = self.net.raw_output(images.to(memory_format=torch.channels_last))
            keypoints, reliability = self.net.find(raw)
            cells = choose(reliability[0])
            pixels = keypoints[0].flatten(1).T[cells]
            described = self.net.describe_pixels(raw, pixels[None])[0].float()
        return BestKeypoints(cells=cells, pixels=pixels, descriptors=functional.normalize(described, dim=1),
                             map_size=(keypoints.shape[2], keypoints.shape[3]))

    def _run(self, extract: Callable[[Tensor], FeatureMap], images: Tensor) -> FeatureMap:
        images = images.to(memory_format=torch.channels_last)
        with half_precision(images.device.type):
            found = extract(images) if self.graphs is None or len(images) > 1 else self.graphs.run(extract, images)
        return FeatureMap(found.features.float(), None if found.reliability is None else found.reliability.float(),
                          None if found.keypoints is None else found.keypoints.float())


def load_encoder(source: str | None = None, device: str = "cpu") -> Encoder:
    """Load an encoder.

    Args:
        source: one of SHIPPED_ENCODERS, "sift" (no weights, for comparisons), "dinov2:" followed by a folder or a name
            of the Hugging Face hub, or the path of a file written by `aceg import`. None: DEFAULT_ENCODER.
        device: "cpu" or "cuda".

    Raises:
        UserError: there is no such encoder, or the file is not one of ours.
    """
    source = DEFAULT_ENCODER if source is None else source
    if source == "sift":
        return Encoder(name="sift", identity=f"sift:opencv-{cv2.__version__}", source="sift", stride=SIFT_STRIDE,
                       dim=SiftNet.dim, short_side_px=SHORT_SIDE_PX, net=SiftNet())
    if source.startswith("dinov2:"):
        return _load_dinov2(source, device)
    found = find_weights(source)
    if found is None:
        raise UserError(f"No encoder '{source}': give one of {', '.join(SHIPPED_ENCODERS)}, which are shipped, or a"
                        " file made by 'aceg import'.")
    path, source = found
    state = path.stat()
    return _load(path, source, device, (state.st_mtime_ns, state.st_size))


def shipped_encoder(identity: str) -> str | None:
    """Return the name of the shipped encoder with this identity; None if it is another one's."""
    return next((name for name in reversed(SHIPPED_ENCODERS) if load_encoder(name).identity == identity), None)


@lru_cache(maxsize=4)
def _load(path: Path, source: str, device: str, _version: tuple[int, int]) -> Encoder:
    """Load a file. _version: modification time and size, so that the cache does not return an outdated file."""
    weights = read_weights(path, "encoder")
    net = _build(weights, path)
    identity = identity_of(weights.kind, weights.tensors, net.config)
    return Encoder(name=weights.kind, identity=identity, source=source, stride=net.stride, dim=net.dim,
                   short_side_px=net.config.short_side_px, corners=isinstance(net, CompactNet),
                   net=to_device(net.eval().requires_grad_(False), device))


@lru_cache(maxsize=1)
def _load_dinov2(source: str, device: str) -> Encoder:
    from aceg_ros.encoders.dinov2 import content, load_dinov2
    net = load_dinov2(source.removeprefix("dinov2:"))
    return Encoder(name="dinov2", identity=identity_of("dinov2", content(net)), source=source, stride=net.stride,
                   dim=net.dim, short_side_px=SHORT_SIDE_PX, net=to_device(net.eval().requires_grad_(False), device))


def _build(weights: WeightsFile, path: Path) -> AceNet | AlikedNet | CompactNet | Compact3Net:
    kind, state = weights.kind, {key: value.float() for key, value in weights.tensors.items()}
    try:
        if kind in OWN_NETS:
            net = OWN_NETS[kind](weights.config_as(CompactConfig))
            load_without_counters(net, state)
            return fuse_batch_norm(net)
        if kind == "ace":
            return AceNet.from_state(state, weights.config_as(AceEncoderConfig))
        if kind == "aliked":
            return AlikedNet.from_state(state, weights.config_as(AlikedConfig))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not hold the weights of a '{kind}' encoder ({error}).") from None
    raise UserError(f"{path} holds an encoder of unknown kind '{kind}': import it again with this version.")
