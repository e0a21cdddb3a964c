# SPDX-License-Identifier: Apache-2.0
"""Files of the Reloc3r release: the relative pose network, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from aceg_ros.errors import UserError
from aceg_ros.maps.scene_map import check_writable
from aceg_ros.networks.relative_pose import config_from_release
from aceg_ros.networks.relative_pose_file import PUBLISHED
from aceg_ros.networks.weights_file import read_weights, write_weights

IMAGE_SIZES = (512, 224)             # of the two published networks, whose layers are the same


def import_network(source: Path, target: Path) -> str:
    """Import model.safetensors of reloc3r-512 or reloc3r-224; weights are stored in fp16, as it is used on a GPU.

    The weights do not tell the size of their images: config.json beside them does, or the name of file or folder.
    """
    weights = read_weights(source, "Reloc3r")
    try:
        config = config_from_release(weights.tensors, _image_size(source))
    except ValueError as error:
        raise UserError(f"{source} is not the network of the Reloc3r release: {error}.") from None
    check_writable(target)
    write_weights(target, {key: value.half() for key, value in weights.tensors.items()}, kind=PUBLISHED, config=config)
    parameters = sum(value.numel() for value in weights.tensors.values())
    return (f"{target}: Reloc3r network of {parameters / 1e6:.1f} million parameters for images"
            f" {config.img_size} pixels wide; use it with 'aceg map SCENE --method reloc3r --network {target} -o MAP'.")


def _image_size(source: Path) -> int:
    """Return the width of the images that a file's network was trained on, 512 if nothing tells it."""
    described = source.parent / "config.json"
    if described.is_file():
        try:
            size = json.loads(described.read_text()).get("img_size", IMAGE_SIZES[0])
        except (ValueError, AttributeError, OSError) as error:
            raise UserError(f"{described} cannot be read ({error}): remove it, or restore it.") from None
        if size not in IMAGE_SIZES:
            raise UserError(f"{described} has img_size = {size}: only the published {IMAGE_SIZES} are supported.")
        return int(size)
    named = source.resolve()
    return next((size for size in IMAGE_SIZES if str(size) in named.name or str(size) in named.parent.name),
                IMAGE_SIZES[0])
