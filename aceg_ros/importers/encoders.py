# SPDX-License-Identifier: Apache-2.0
"""Imports of published encoders, which any method can use. torch is loaded only when one is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aceg_ros.errors import UserError
from aceg_ros.methods.registry import ImporterSpec

if TYPE_CHECKING:
    from aceg_ros.encoders.ace import AceNet
    from aceg_ros.encoders.aliked import AlikedNet

IMPORTERS = (
    ImporterSpec(kind="ace-encoder", description="ace_encoder_pretrained.pt of the ACE release",
                 function="aceg_ros.importers.ace:import_encoder"),
    ImporterSpec(kind="aliked", description="aliked-n16.pth or another ALIKED model",
                 function="aceg_ros.importers.aliked:import_encoder"),
)


def import_encoder(source: Path, target: Path, net_class: type[AceNet] | type[AlikedNet], *, kind: str,
                   label: str) -> str:
    """Write an encoder file of a kind that `load_encoder` knows. label: name of the release, for messages."""
    from aceg_ros.importers.reading import first_line, read_state
    from aceg_ros.maps.scene_map import check_writable
    from aceg_ros.networks.weights_file import write_weights

    state = read_state(source)
    try:
        net = net_class.from_state({key: value.float() for key, value in state.items()})
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"{source} is not an encoder of the {label} release ({first_line(error)}).") from None
    check_writable(target)
    tensors = {key: value for key, value in net.state_dict().items() if value.is_floating_point()}
    write_weights(target, tensors, kind=kind, config=net.config)
    return f"{target}: {label} encoder, {net.dim}-D features; use it with 'aceg map SCENE --encoder {target} -o MAP'."
