# SPDX-License-Identifier: Apache-2.0
"""The sections of a map file: groups of tensors, each read and verified when it is first accessed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.maps.header import MapFile

# Sections up to this size are copied from the file, so that they stay as they were verified even if the file is
# overwritten; larger ones stay memory-mapped.
MAX_COPIED_BYTES = 64_000_000
# The large tensors of a section with this one have a checksum for each block, in that tensor, instead of one for all:
# they are compared when a block is used (`maps.keyframe_index`).
BLOCK_CHECKSUMS = "index_checksums"
BLOCK_TENSORS = ("descriptors", "landmarks", "pixels", "words", "points")


class LazySections(Mapping[str, Mapping[str, Tensor]]):
    """Sections of an open map file by name, each read at its first access.

    Accessing one that does not match its checksum raises UserError.
    """

    def __init__(self, file: MapFile):
        self._file = file
        self._read: dict[str, dict[str, Tensor]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.checksums)

    def __len__(self) -> int:
        return len(self._file.checksums)

    def __contains__(self, name: object) -> bool:
        return name in self._file.checksums

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self._read:
            self._read[name] = self._verified(name, self._file.checksums[name])
        return self._read[name]

    def _verified(self, name: str, expected: str) -> dict[str, Tensor]:
        handle = self._file.handle
        tensors: dict[str, Tensor] = {key.removeprefix(f"{name}."): handle.get_tensor(key) for key in handle.keys()
                                      if key.startswith(f"{name}.")}
        if sum(tensor.nbytes for tensor in tensors.values()) <= MAX_COPIED_BYTES:
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        if section_checksum(tensors) != expected:
            raise UserError(f"Section '{name}' of map {self._file.path} is damaged (its checksum does not match): map"
                            " the scene again or restore the file from a backup.")
        return tensors


def section_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a section: keys, types, shapes and values; without the values of BLOCK_TENSORS in a section
    that has checksums of its blocks."""
    digest = hashlib.sha256()
    if BLOCK_CHECKSUMS in tensors:
        shapes = {key: tuple(tensors[key].shape) for key in BLOCK_TENSORS if key in tensors}
        digest.update(repr(shapes).encode())
        tensors = {key: tensor for key, tensor in tensors.items() if key not in BLOCK_TENSORS}
    hash_tensors(digest, tensors)
    return digest.hexdigest()


def hash_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add CPU tensors to a hashlib digest, in the order of their names."""
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
