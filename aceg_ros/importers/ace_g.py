# SPDX-License-Identifier: Apache-2.0
"""Files of the ACE-G release: the regressor and its maps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.importers.ace import RELEASE_PATCH_OFFSET_PX, needed_encoder
from aceg_ros.importers.reading import first_line, plain_state, read_pickle, read_state
from aceg_ros.maps.header import NetworkReference
from aceg_ros.maps.scene_map import SceneMap, check_writable
from aceg_ros.methods.ace_g import SPEC, AceGMapSettings
from aceg_ros.networks.map_code_transformer import TransformerHead, head_from_release
from aceg_ros.networks.regressor import load_regressor, save_regressor

# Configuration of the published network, the only one that is supported.
PUBLISHED_CONFIG = {"use_homogeneous": True, "use_uncertainty": True, "dim_map_emb": None,
                    "use_final_layer_norm": True, "final_mlp_layers": 2}


def import_regressor(source: Path, target: Path) -> str:
    """Import the regressor: a state dict with its configuration under _extra_state."""
    content = read_pickle(source)
    extra = content.pop("_extra_state", {}) if isinstance(content, dict) else {}
    config = extra.get("_head_config_dict", {}) if isinstance(extra, dict) else {}
    try:
        head = head_from_release(plain_state(content, source), int(config["num_attention_heads"]))
    except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{source} is not a regressor of the ACE-G release ({first_line(error)}).") from None
    for name, published in PUBLISHED_CONFIG.items():
        if config.get(name, published) != published:
            raise UserError(f"{source} has {name} = {config[name]}: only the published {published} is supported.")
    check_writable(target)
    save_regressor(head, "", target, half=False)
    size = head.config
    return (f"{target}: ACE-G regressor for {size.dim_in}-D features, {size.num_blocks} blocks of {size.dim_emb}; use"
            f" it with 'aceg map SCENE --method {SPEC.name} --regressor {target} --encoder ENCODER -o MAP'.")


def import_map(source: Path, target: Path, *, encoder: str | None, regressor: str | None) -> str:
    """Import a map. encoder, regressor: files of the imported networks that it belongs to."""
    state = read_state(source)
    loaded_encoder = load_encoder(needed_encoder(encoder))
    if regressor is None:
        raise UserError("A map of ACE-G belongs to its regressor: give the imported one with --regressor FILE (see"
                        " 'aceg import ace-g').")
    loaded_regressor = load_regressor(regressor)
    try:
        embeddings, mean = state["map_embeddings"], state["mean"].float().reshape(3)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{source} is not a map of the ACE-G release ({first_line(error)}).") from None
    net = loaded_regressor.net
    if not isinstance(net, TransformerHead) or embeddings.shape[1:] != (net.config.dim_emb,):
        raise UserError(f"The map's codes are {tuple(embeddings.shape)}: they do not fit regressor {regressor}.")
    if loaded_regressor.dim_in != loaded_encoder.dim:
        raise UserError(f"The regressor takes {loaded_regressor.dim_in}-D features, the encoder gives"
                        f" {loaded_encoder.dim}: it belongs to another encoder.")
    networks = {"encoder": NetworkReference.from_network(loaded_encoder),
                "regressor": NetworkReference.from_network(loaded_regressor)}
    size = SceneMap(method=SPEC.name, networks=networks,
                    settings=asdict(AceGMapSettings(patch_offset_px=RELEASE_PATCH_OFFSET_PX)),
                    sections={"code": {"embeddings": embeddings.float(), "mean": mean}}).save(target)
    return f"{target}: ACE-G map, {size / 1e6:.1f} MB, {len(embeddings)} codes; localize with --camera FILE."
