# SPDX-License-Identifier: Apache-2.0
"""Weights files (safetensors): tensors, with the kind of network and its configuration in the metadata.

The configuration is a frozen dataclass of the network, with its sizes and all constants that change its outputs. Files
of the first release have no configuration: the defaults of these dataclasses are the constants of that release and must
not be changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import atomic_replacement

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SHIPPED = Path(__file__).parent.parent / "weights"
Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """The content of a weights file. kind: of the network. config: None if the file has none. tensors: as stored.
    metadata: all entries."""

    kind: str
    config: dict[str, Any] | None
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def config_as(self, config_type: type[Config]) -> Config:
        """Return the configuration as the dataclass of the network, with its defaults if the file has none.

        Raises TypeError if the file has other fields.
        """
        stored = {name: tuple(value) if isinstance(value, list) else value
                  for name, value in (self.config or {}).items()}
        return config_type(**stored)


def find_weights(source: str) -> tuple[Path, str] | None:
    """Find a weights file by the name of a shipped one, or by its path.

    Returns its path, and the source that maps store: the name of a shipped file, or an absolute path. None if there is
    no such file.
    """
    shipped = SHIPPED / f"{source}.safetensors"
    if shipped.exists():
        return shipped, source
    path = Path(source).resolve()
    return (path, str(path)) if path.is_file() else None


def read_weights(path: Path, role: str) -> WeightsFile:
    """Read a weights file. role: such as "encoder", for the error message. Raises UserError if it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable {role} file ({error}).") from None
    return WeightsFile(kind=metadata.get("kind", ""), config=config, tensors=tensors, metadata=metadata)


def stored_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a weights file, without its tensors."""
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})


def shipped_for(encoder: str, names: Sequence[str]) -> str:
    """Return the first of the shipped files with these names that was trained for the encoder of this identity, as its
    metadata say; if there is none, the first."""
    for name in names:
        found = find_weights(name)
        if found is not None and stored_metadata(found[0]).get("encoder") == encoder:
            return name
    return names[0]


def load_without_counters(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights that lack the counters of batch norms, which inference does not need. Raises RuntimeError if they
    are not those of the network."""
    counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
    net.load_state_dict({**state, **counters})


def write_weights(path: Path, tensors: Mapping[str, Tensor], *, kind: str, config: DataclassInstance,
                  **metadata: str) -> None:
    """Write a weights file with its configuration, atomically."""
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_replacement(path) as temporary:
        save_file(stored, temporary, {"kind": kind, "config": json.dumps(asdict(config)), **metadata})


def identity_of(kind: str, tensors: Mapping[str, Tensor], config: DataclassInstance | None = None) -> str:
    """Return the identity of a network: its kind, and a hash of its weights and configuration.

    The hash leaves out configuration values that are defaults. So a network of the first release, which hashed the
    weights alone, keeps the identity that maps of that release refer to.
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
