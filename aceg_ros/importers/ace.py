# SPDX-License-Identifier: Apache-2.0
"""Files of the ACE release: the encoder, and the heads of scenes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.importers import encoders
from aceg_ros.importers.reading import first_line, read_state
from aceg_ros.maps.header import NetworkReference
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.ace import SPEC, AceMapSettings
from aceg_ros.networks.ace_head import head_from_state

# The release uses 8 (j + 0.5) as the pixel of a patch, with an unchanged K; ours is half a pixel less.
RELEASE_PATCH_OFFSET_PX = 0.5


def import_encoder(source: Path, target: Path) -> str:
    """Import ace_encoder_pretrained.pt."""
    return encoders.import_encoder(source, target, AceNet, kind="ace", label="ACE")


def import_head(source: Path, target: Path, *, encoder: str | None) -> str:
    """Import the head of a scene as a map. encoder: file of the imported encoder that it was trained on."""
    state = read_state(source)
    encoder = needed_encoder(encoder)
    try:
        head = head_from_state(state)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{source} is not a scene head of the ACE release ({first_line(error)}).") from None
    loaded_encoder = load_encoder(encoder)
    if loaded_encoder.dim != head.res3_conv1.in_features:
        raise UserError(f"The head takes {head.res3_conv1.in_features}-D features, encoder {encoder} gives"
                        f" {loaded_encoder.dim}: it belongs to another encoder.")
    size = SceneMap(method=SPEC.name, networks={"encoder": NetworkReference.from_network(loaded_encoder)},
                    sections={"head": head.state_dict()},
                    settings=asdict(AceMapSettings(patch_offset_px=RELEASE_PATCH_OFFSET_PX))).save(target)
    return f"{target}: ACE map, {size / 1e6:.1f} MB, {head.extra_blocks} extra block(s); localize with --camera FILE."


def needed_encoder(encoder: str | None) -> str:
    """Raise UserError if no encoder was given."""
    if encoder is None:
        raise UserError("A head or map belongs to the encoder it was trained on: give the imported encoder with"
                        " --encoder FILE (see 'aceg import ace-encoder').")
    return encoder
