"""Reads the published weight files of other tools and writes them as files of this package."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.aliked import AlikedNet
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.errors import UserError
from aceg_ros.maps.header import NetworkReference
from aceg_ros.maps.scene_map import SceneMap, check_writable
from aceg_ros.methods.ace import AceMapSettings
from aceg_ros.methods.ace_g import AceGMapSettings
from aceg_ros.networks.ace_head import head_from_state
from aceg_ros.networks.map_code_transformer import TransformerHead, head_from_release
from aceg_ros.networks.weights_file import load_regressor, save_regressor

# The release takes 8 (j + 0.5) as a patch's pixel and K as it stands; ours is half a pixel less for the same patch.
RELEASE_PATCH_OFFSET_PX = 0.5

# What may be imported as an encoder: kind in our files, name of the release, network of a state dict.
_ENCODERS: dict[str, tuple[str, str, Callable[[dict[str, Tensor]], AceNet | AlikedNet]]] = {
    "ace-encoder": ("ace", "ACE", AceNet.from_state), "aliked": ("aliked", "ALIKED", AlikedNet.from_state)}


def import_file(kind: str, source: Path, target: Path, encoder: str | None, regressor: str | None = None) -> str:
    """Import one file; returns a sentence that says what was written. Raises UserError on a wrong or damaged file."""
    if kind == "ace-g":
        return _import_regressor(source, target)
    state = _read_state(source)
    if kind in _ENCODERS:
        return _import_encoder(kind, source, state, target)
    if encoder is None:
        raise UserError("A head or map belongs to the encoder it was trained on: give the imported encoder with"
                        " --encoder FILE (see 'aceg import ace-encoder').")
    if kind == "ace-g-map":
        return _import_code(source, state, target, load_encoder(encoder), regressor)
    return _import_head(source, state, target, encoder)


def _import_head(source: Path, state: dict[str, Tensor], target: Path, encoder: str) -> str:
    try:
        head = head_from_state(state)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{source} is not a scene head of the ACE release ({_first_line(error)}).") from None
    owner = load_encoder(encoder)
    if owner.dim != head.res3_conv1.in_features:
        raise UserError(f"The head takes {head.res3_conv1.in_features}-D features, encoder {encoder} gives {owner.dim}:"
                        " it belongs to another encoder.")
    size = SceneMap(method="ace", networks={"encoder": NetworkReference.to(owner)},
                    sections={"head": head.state_dict()},
                    settings=asdict(AceMapSettings(patch_offset_px=RELEASE_PATCH_OFFSET_PX))).save(target)
    return f"{target}: ACE map, {size / 1e6:.1f} MB, {head.extra_blocks} extra block(s); localize with --camera FILE."


def _import_regressor(source: Path, target: Path) -> str:
    """The release's regressor: a state dict that carries its configuration under _extra_state."""
    content = _read(source)
    extra = content.pop("_extra_state", {}) if isinstance(content, dict) else {}
    config = extra.get("_head_config_dict", {}) if isinstance(extra, dict) else {}
    try:
        head = head_from_release(_plain(content, source), int(config["num_attention_heads"]))
    except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{source} is not a regressor of the ACE-G release ({_first_line(error)}).") from None
    unsupported = {"use_homogeneous": True, "use_uncertainty": True, "dim_map_emb": None, "use_final_layer_norm": True,
                   "final_mlp_layers": 2}
    for name, published in unsupported.items():
        if config.get(name, published) != published:
            raise UserError(f"{source} has {name} = {config[name]}: only the published {published} is supported.")
    check_writable(target)
    save_regressor(head, "", target, half=False)
    size = head.size
    return (f"{target}: ACE-G regressor for {size.dim_in}-D features, {size.num_blocks} blocks of {size.dim_emb}; use"
            f" it with 'aceg map SCENE --method ace_g --regressor {target} --encoder ENCODER -o MAP'.")


def _import_code(source: Path, state: dict[str, Tensor], target: Path, owner: Encoder, regressor: str | None) -> str:
    if regressor is None:
        raise UserError("A map of ACE-G belongs to its regressor: give the imported one with --regressor FILE (see"
                        " 'aceg import ace-g').")
    reader = load_regressor(regressor)
    try:
        embeddings, mean = state["map_embeddings"], state["mean"].float().reshape(3)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{source} is not a map of the ACE-G release ({_first_line(error)}).") from None
    if not isinstance(reader.net, TransformerHead) or embeddings.shape[1:] != (reader.net.size.dim_emb,):
        raise UserError(f"The map's codes are {tuple(embeddings.shape)}: they do not fit regressor {regressor}.")
    if reader.dim_in != owner.dim:
        raise UserError(f"The regressor takes {reader.dim_in}-D features, the encoder gives {owner.dim}: it belongs to"
                        " another encoder.")
    networks = {"encoder": NetworkReference.to(owner), "regressor": NetworkReference.to(reader)}
    size = SceneMap(method="ace_g", networks=networks,
                    settings=asdict(AceGMapSettings(patch_offset_px=RELEASE_PATCH_OFFSET_PX)),
                    sections={"code": {"embeddings": embeddings.float(), "mean": mean}}).save(target)
    return f"{target}: ACE-G map, {size / 1e6:.1f} MB, {len(embeddings)} codes; localize with --camera FILE."


def _import_encoder(kind: str, source: Path, state: dict[str, Tensor], target: Path) -> str:
    name, label, net_of = _ENCODERS[kind]
    try:
        net = net_of({key: value.float() for key, value in state.items()})
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"{source} is not an encoder of the {label} release ({_first_line(error)}).") from None
    check_writable(target)
    temporary = target.with_name(f".{target.name}.tmp")
    tensors = {key: value.contiguous() for key, value in net.state_dict().items() if value.is_floating_point()}
    save_file(tensors, temporary, {"kind": name})
    temporary.replace(target)
    return f"{target}: {label} encoder, {net.dim}-D features; use it with 'aceg map SCENE --encoder {target} -o MAP'."


def _read_state(path: Path) -> dict[str, Tensor]:
    return _plain(_read(path), path)


def _read(path: Path) -> object:
    """What torch.save wrote, unpickled with tensors and plain values only."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError, struct.error):
        # torch's own text tells people to load it unsafely.
        raise UserError(f"{path} is not a weight file of tensors as torch.save writes it, or is damaged.") from None


def _plain(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor)
                                              for key, value in state.items()):
        raise UserError(f"{path} does not hold a plain state dict (names and tensors).")
    return state


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
