"""Weights as safetensors files: the tensors, and in the metadata the kind of network and its configuration.

The configuration is a frozen dataclass of the network: sizes, and the constants that change what the weights compute.
Files of the first release store none; the defaults of these dataclasses are the constants of that release and must
stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import atomic_replacement

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SHIPPED = Path(__file__).parent.parent / "weights"
Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a file holds. kind: of network; config: None if the file stores none; tensors: as they are stored;
    metadata: all of it."""

    kind: str
    config: dict[str, Any] | None
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def config_as(self, config_type: type[Config]) -> Config:
        """The configuration as the network's dataclass; its defaults if the file stores none.

        Raises TypeError if the file stores other fields.
        """
        stored = {name: tuple(value) if isinstance(value, list) else value
                  for name, value in (self.config or {}).items()}
        return config_type(**stored)


def find_weights(source: str) -> tuple[Path, str] | None:
    """Path of a weights file and what a map remembers as its source: the name of a shipped file, or an absolute path;
    None if there is neither."""
    shipped = SHIPPED / f"{source}.safetensors"
    if shipped.exists():
        return shipped, source
    path = Path(source).resolve()
    return (path, str(path)) if path.is_file() else None


def read_weights(path: Path, role: str) -> WeightsFile:
    """Read a file of weights; role, such as "encoder", is for the message. Raises UserError if it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable {role} file ({error}).") from None
    return WeightsFile(kind=metadata.get("kind", ""), config=config, tensors=tensors, metadata=metadata)


def write_weights(path: Path, tensors: Mapping[str, Tensor], *, kind: str, config: DataclassInstance,
                  **metadata: str) -> None:
    """Write a file of weights with its configuration; an existing file is replaced by a complete one."""
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_replacement(path) as temporary:
        save_file(stored, temporary, {"kind": kind, "config": json.dumps(asdict(config)), **metadata})


def identity_of(kind: str, tensors: Mapping[str, Tensor], config: DataclassInstance | None = None) -> str:
    """The identity of a network: its kind, and a hash of its weights and configuration.

    Values that are the defaults of the configuration are left out of the hash, so that maps which name a network of the
    first release, whose hash was of the weights alone, still find it.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    known = () if config is None else fields(config)
    changed = {entry.name: getattr(config, entry.name) for entry in known
               if getattr(config, entry.name) != entry.default}
    if changed:
        digest.update(json.dumps(changed, sort_keys=True).encode())
    return f"{kind}:{digest.hexdigest()[:16]}"
