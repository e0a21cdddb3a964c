# SPDX-License-Identifier: Apache-2.0
"""DINOv2 with registers (Oquab et al., TMLR 2024; Darcet et al., ICLR 2024): the encoder of ACE-G's release.

Loaded in the format of the Hugging Face hub through `transformers`, an optional dependency.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.errors import UserError

MEAN, STD = 0.4, 0.25                  # of every channel, as ACE-G normalises


class Dinov2Net(nn.Module):
    """Images (B, 3, H, W) in [0, 1], sides multiples of the patch size -> normalised patch tokens (B, dim, h, w)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.stride, self.dim = int(model.config.patch_size), int(model.config.hidden_size)
        self.prefix_tokens = 1 + int(getattr(model.config, "num_register_tokens", 0))     # class token and registers

    def forward(self, images: Tensor) -> FeatureMap:
        tokens = self.model(pixel_values=(images - MEAN) / STD).last_hidden_state[:, self.prefix_tokens:]
        height, width = (side // self.stride for side in images.shape[2:])
        return FeatureMap(tokens.transpose(1, 2).unflatten(2, (height, width)), None)


def load_dinov2(source: str) -> Dinov2Net:
    """Load a model from a folder in the format of the Hugging Face hub, or by a name there.

    source: for example "facebook/dinov2-with-registers-large". Raises UserError if `transformers` is not installed or
    there is no such model.
    """
    try:
        from transformers import AutoModel
    except ImportError:
        raise UserError("DINOv2 needs the package transformers: pip install transformers.") from None
    try:
        model = AutoModel.from_pretrained(str(Path(source)) if Path(source).is_dir() else source)
    except (OSError, ValueError) as error:
        raise UserError(f"No DINOv2 model '{source}' ({str(error).splitlines()[0]}).") from None
    if not str(model.config.model_type).startswith("dinov2"):
        raise UserError(f"'{source}' is a {model.config.model_type} model, not DINOv2.")
    return Dinov2Net(model)


def content(net: Dinov2Net) -> dict[str, Tensor]:
    """Return the weights in fp16, of which the encoder's identity is computed."""
    return {key: value.detach().cpu().to(torch.float16) for key, value in net.state_dict().items()}
