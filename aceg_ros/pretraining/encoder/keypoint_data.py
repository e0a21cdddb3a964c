# SPDX-License-Identifier: Apache-2.0
"""The training data of the keypoint encoder: chunks of real images and rendered rooms, in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aceg_ros.errors import UserError
from aceg_ros.pretraining.encoder.chunks import prepare_chunks
from aceg_ros.pretraining.encoder.data import EncoderData, rendered_files

CHUNKS, ROOMS = "chunks", "rendered"             # folders


@dataclass(frozen=True, kw_only=True)
class KeypointData:
    """What to prepare.

    scenes: recordings, mapping parts alone. images: folders of images without poses. textures: folder of additional
    tiles for the rendered rooms, or None. rooms: their number. device: that the teacher computes on.
    """

    scenes: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 320
    device: str = "cpu"


def prepare_data(data: KeypointData, folder: Path) -> None:
    """Prepare what is missing of the data in a folder. Can be interrupted at any time.

    Raises:
        UserError: some of the data cannot be used, or the teacher is not installed.
    """
    if not data.scenes and not data.images:
        raise UserError("Give scenes or folders of images to train on.")
    rooms = EncoderData(images=data.images, textures=data.textures, rooms=data.rooms, scenes=data.scenes)
    rooms.check()
    rendered_files(rooms, folder)
    prepare_chunks(data.scenes, data.images, folder / CHUNKS, data.device)
