# SPDX-License-Identifier: Apache-2.0
"""Converts maps of format 1, which the first releases wrote, to format 2 when they are read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from aceg_ros.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from aceg_ros.maps.header import MapFile

_LANDMARKS = ("keys", "points")                     # tensors of landmarks; others of ace_g are a map code
_UNCALIBRATED_SCALE = 1.25                          # the scale of maps without one in the first releases


def upgrade_header(content: dict[str, Any]) -> dict[str, Any]:
    """Convert a header of format 1 to format 2, without checksums of sections."""
    settings = dict(content["settings"])
    networks = {"encoder": {"source": content["encoder_source"], "identity": content["encoder"]}}
    if "regressor" in settings:
        networks["regressor"] = {"source": settings.pop("regressor_source"), "identity": settings.pop("regressor")}
    covariance_scale = settings.pop("covariance_scale", _UNCALIBRATED_SCALE)
    kept = {name: content[name] for name in ("method", "cameras", "bounds", "created")}
    return kept | {"networks": networks, "settings": settings, "covariance_scale": covariance_scale,
                   "statistics": content["figures"], "sections": {}}


def sections_of_format_1(file: MapFile) -> dict[str, dict[str, Tensor]]:
    """Read and verify all tensors of a file of format 1, by section. Raises UserError if the file is damaged."""
    from aceg_ros.maps.sections import hash_tensors

    tensors = {key: file.handle.get_tensor(key).clone() for key in file.handle.keys()}
    digest = hashlib.sha256(file.metadata["aceg_ros"].encode())
    hash_tensors(digest, tensors)
    if file.metadata.get("checksum") != digest.hexdigest():
        raise UserError(f"Map {file.path} is damaged (its checksum does not match): map the scene again or restore the"
                        " file from a backup.")
    sections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        section, key = _section_and_key(name)
        sections.setdefault(section, {})[key] = tensor
    return sections


def _section_and_key(name: str) -> tuple[str, str]:
    if name == "trajectory":
        return "trajectory", "map_from_camera"
    if name.startswith("cloud."):
        return "cloud", name.removeprefix("cloud.")
    key = name.removeprefix("method.")
    if key.startswith("head."):
        return "head", key.removeprefix("head.")
    return ("landmarks" if key in _LANDMARKS else "code"), key
