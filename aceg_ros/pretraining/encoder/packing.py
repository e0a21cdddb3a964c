# SPDX-License-Identifier: Apache-2.0
"""Prepared chunks in few small files, which travel to another machine, such as a lent GPU.

    python -m aceg_ros.pretraining.encoder.packing pack cache/encoder/chunks packed --megabytes 46
    python -m aceg_ros.pretraining.encoder.packing unpack packed/part_0.npz cache/encoder/chunks --device cuda

Images are compressed again, with losses, and the teacher's descriptors are left out: unpacking computes them once more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder.chunks import Chunk, Match
from aceg_ros.pretraining.encoder.teacher import Detections, load_detector
from aceg_ros.utils.device import pick_device

PIXEL_STEPS = 64                               # positions are kept to 1/64 px
IMAGE_QUALITY = 86                             # of WebP


def pack(files: Iterable[Path], largest_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    """Pack chunks: yields the arrays of one part after the other, each of about `largest_bytes` at most."""
    part: dict[str, np.ndarray] = {}
    size = 0
    for path in files:
        arrays = {f"{path.stem}/{name}": value for name, value in _pack_chunk(Chunk.load(path)).items()}
        added = sum(value.nbytes for value in arrays.values())
        if part and size + added > largest_bytes:
            yield part
            part, size = {}, 0
        part |= arrays
        size += added
    if part:
        yield part


def _pack_chunk(chunk: Chunk) -> dict[str, np.ndarray]:
    encoded = [cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, IMAGE_QUALITY])[1][:, None].ravel()
               for image in chunk.images]
    found = chunk.detections
    return {"scene": np.array(chunk.scene),
            "images": np.concatenate(encoded), "image_sizes": np.array([len(one) for one in encoded]),
            "pixels": np.concatenate([(one.pixels * PIXEL_STEPS).round().astype(np.uint16) for one in found]),
            "scores": np.concatenate([(one.scores * 255).round().astype(np.uint8) for one in found]),
            "counts": np.array([(len(one.pixels), len(one.descriptors)) for one in found]),
            "sides": np.array([(match.a, match.b, len(match.indices)) for match in chunk.matches]).reshape(-1, 3),
            "matches": np.concatenate([np.empty((0, 2), np.uint16),
                                       *(match.indices.astype(np.uint16) for match in chunk.matches)])}


def unpack(part: Path, folder: Path, device: str) -> int:
    """Write the chunks of a part, with descriptors of the teacher. Returns their number.

    Raises UserError if the teacher is not installed.
    """
    detector = load_detector(device)
    with np.load(part) as arrays, ThreadPoolExecutor(8) as pool:
        names = sorted({name.split("/")[0] for name in arrays.files})
        content = {name: {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(f"{name}/")}
                   for name in names}
        for name, chunk in zip(names, pool.map(_unpack_chunk, content.values()), strict=True):
            described = [Detections(pixels=one.pixels, scores=one.scores,
                                    descriptors=detector.describe(image, one.pixels[:int(count)]))
                         for image, one, count in zip(chunk.images, chunk.detections, content[name]["counts"][:, 1],
                                                      strict=True)]
            Chunk(scene=chunk.scene, images=chunk.images, detections=described,
                  matches=chunk.matches).save(folder / f"{name}.npz")
    return len(names)


def _unpack_chunk(arrays: dict[str, np.ndarray]) -> Chunk:
    """Return a chunk without descriptors."""
    encoded = np.split(arrays["images"], np.cumsum(arrays["image_sizes"])[:-1])
    places = np.cumsum(arrays["counts"][:, 0])[:-1]
    pixels = np.split(arrays["pixels"].astype(np.float32) / PIXEL_STEPS, places)
    scores = np.split(arrays["scores"].astype(np.float32) / 255, places)
    matched = np.split(arrays["matches"].astype(np.int64), np.cumsum(arrays["sides"][:, 2])[:-1])
    return Chunk(scene=str(arrays["scene"]),
                 images=[np.asarray(cv2.imdecode(one, cv2.IMREAD_COLOR)) for one in encoded],
                 detections=[Detections(pixels=one, scores=score, descriptors=np.empty((0, 128), np.float16))
                             for one, score in zip(pixels, scores, strict=True)],
                 matches=[Match(a=int(a), b=int(b), indices=indices)
                          for (a, b, _), indices in zip(arrays["sides"], matched, strict=False)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("chunks", type=Path)
    packing.add_argument("output", type=Path)
    packing.add_argument("--megabytes", type=float, default=46)
    unpacking = verbs.add_parser("unpack")
    unpacking.add_argument("part", type=Path)
    unpacking.add_argument("chunks", type=Path)
    unpacking.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    if options.verb == "pack":
        for number, arrays in enumerate(pack(sorted(options.chunks.glob("*.npz")), int(options.megabytes * 1e6))):
            write_arrays(options.output / f"part_{number}.npz", arrays)
    else:
        print(f"{unpack(options.part, options.chunks, pick_device(options.device))} chunks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
