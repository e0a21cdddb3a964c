"""What every encoder offers, and how one is found: by name (shipped) or by the path of an imported file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.aliked import AlikedNet
from aceg_ros.encoders.compact import CompactNet, fuse_batch_norm
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.sift import SiftNet
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import SHIPPED, digest
from aceg_ros.utils.device import half_precision, on_device


@dataclass(frozen=True)
class Encoder:
    """A frozen network: images (B, 3, H, W) in [0, 1] RGB -> features (B, dim, H / stride, W / stride).

    identity: name and content hash; a map is only usable with the encoder that made it. short_side_px: the picture
    size that the network expects.
    """

    name: str
    identity: str
    source: str
    stride: int
    dim: int
    short_side_px: int
    net: nn.Module

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.net.parameters()), torch.device("cpu"))

    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images).features

    @torch.inference_mode()
    def extract(self, images: Tensor) -> FeatureMap:
        """Features with the reliability of each, where the network gives one; float32."""
        images = images.to(memory_format=torch.channels_last)
        with half_precision(images.device.type):
            features, reliability = self.net(images)
        return FeatureMap(features.float(), None if reliability is None else reliability.float())


def load_encoder(source: str, device: str = "cpu") -> Encoder:
    """Load an encoder: "compact", which is shipped, "sift" (no weights, for comparisons), "dinov2:" and a folder or
    name of the model hub, or the path of a file made by `aceg import`.

    Raises UserError where there is none or the file is not one of ours.
    """
    if source == "sift":
        return Encoder("sift", f"sift:opencv-{cv2.__version__}", "sift", 8, SiftNet.dim, 480, SiftNet())
    if source.startswith("dinov2:"):
        return _load_dinov2(source, device)
    shipped_file = SHIPPED / f"{source}.safetensors"
    path = shipped_file if shipped_file.exists() else Path(source).resolve()
    if not path.is_file():
        raise UserError(f"No encoder '{source}': give 'compact', which is shipped, or a file made by 'aceg import'.")
    state = path.stat()
    return _load(path, source if path == shipped_file else str(path), device, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _load(path: Path, source: str, device: str, _version: tuple[int, int]) -> Encoder:
    """`_version` makes a file that changed another one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            kind = (file.metadata() or {}).get("kind", "")
            state = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable encoder file ({error}).") from None
    identity = f"{kind}:{digest(state)}"
    state = {key: value.float() for key, value in state.items()}
    net = _build(kind, state, path)
    net = on_device(net.eval().requires_grad_(False), device)
    return Encoder(kind, identity, source, 8, net.dim, 480, net)


@lru_cache(maxsize=1)
def _load_dinov2(source: str, device: str) -> Encoder:
    from aceg_ros.encoders.dinov2 import content, load_dinov2
    net = load_dinov2(source.removeprefix("dinov2:"))
    identity = f"dinov2:{digest(content(net))}"
    return Encoder("dinov2", identity, source, net.stride, net.dim, 480,
                   on_device(net.eval().requires_grad_(False), device))


def _build(kind: str, state: dict[str, Tensor], path: Path) -> AceNet | AlikedNet | CompactNet:
    try:
        if kind == "compact":
            net = CompactNet()
            counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
            net.load_state_dict(state | counters)
            return fuse_batch_norm(net)
        if kind == "ace":
            return AceNet.from_state(state)
        if kind == "aliked":
            return AlikedNet.from_state(state)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{path} does not hold the weights of a '{kind}' encoder ({error}).") from None
    raise UserError(f"{path} holds an encoder of unknown kind '{kind}': import it again with this version.")
