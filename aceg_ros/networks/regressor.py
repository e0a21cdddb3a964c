# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the frozen regressors of method ace_g: ours (shipped, trained by `aceg pretrain ace-g`) and the
published one (`aceg import ace-g`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aceg_ros.errors import UserError
from aceg_ros.networks.landmark_regressor import LandmarkConfig, LandmarkRegressor
from aceg_ros.networks.map_code_transformer import TransformerHead, TransformerHeadConfig
from aceg_ros.networks.weights_file import find_weights, identity_of, read_weights, write_weights

LANDMARKS, PUBLISHED = "ace-g-landmarks", "ace-g"
_KINDS: dict[str, tuple[Any, Any]] = {LANDMARKS: (LandmarkRegressor, LandmarkConfig),
                                      PUBLISHED: (TransformerHead, TransformerHeadConfig)}


@dataclass(frozen=True, kw_only=True)
class Regressor:
    """A frozen regressor.

    identity: kind and content hash. encoder: identity of the encoder that it was trained with, "" if unknown. source:
    the argument of `load_regressor` that loads it again. codes: number of codes for new maps, 0 if unknown.
    """

    net: LandmarkRegressor | TransformerHead
    identity: str
    encoder: str
    source: str
    codes: int = 0

    @property
    def dim_in(self) -> int:
        return self.net.config.dim_in


def save_regressor(net: LandmarkRegressor | TransformerHead, encoder: str, path: Path,
                   half: bool = True, codes: int = 0) -> None:
    """Write the weights, in fp16 if `half`, and the configuration. encoder, codes: see `Regressor`."""
    kind = LANDMARKS if isinstance(net, LandmarkRegressor) else PUBLISHED
    state = {key: value.half() if half else value for key, value in net.state_dict().items()}
    write_weights(path, state, kind=kind, config=net.config, encoder=encoder, codes=str(codes))


def load_regressor(source: str, device: str = "cpu") -> Regressor:
    """Load a regressor by the name of a shipped one ("ace_g") or the path of a file.

    Raises UserError if there is no such regressor, or the file is not one of ours.
    """
    found = find_weights(source)
    if found is None:
        raise UserError(f"No regressor '{source}': give 'ace_g' or a file made by 'aceg import ace-g'.")
    path, source = found
    weights = read_weights(path, "regressor")
    try:
        net_class, config_class = _KINDS[weights.kind]
        stores_config = weights.config is not None
        if not stores_config:                          # the first release: sizes alone
            weights = replace(weights, config=json.loads(weights.metadata["size"]))
        net = net_class(weights.config_as(config_class))
        net.load_state_dict({key: value.float() for key, value in weights.tensors.items()})
        codes = int(weights.metadata.get("codes", 0))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable regressor file ({error!r}).") from None
    identity = identity_of(weights.kind, weights.tensors, net.config if stores_config else None)
    return Regressor(net=net.eval().requires_grad_(False).to(device), identity=identity,
                     encoder=weights.metadata.get("encoder", ""), source=source, codes=codes)
