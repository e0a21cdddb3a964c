# SPDX-License-Identifier: Apache-2.0
"""Make a map of a video: find the poses of its images by structure from motion, and map them.

    pip install 'aceg_ros[colmap]'
    python examples/video_to_map.py VIDEO RECORDING MAP [SCALE]

A video alone tells no scale. SCALE is what does: tag=0.16 (the side of an AprilTag or ArUco marker in it, in metres),
or distance=first,last,2.5 (metres between the places of two images).
"""

import sys
from pathlib import Path

import aceg_ros as ag
from aceg_ros.reconstruction.metric import ScaleSource
from aceg_ros.reconstruction.reconstruct import ReconstructionOptions, reconstruct
from aceg_ros.reconstruction.sources import open_images


def main(video: str, recording: str, map_file: str, scale: str = "") -> None:
    options = ReconstructionOptions(scale=ScaleSource.parse(scale) if scale else None)
    quality = reconstruct(open_images(video), Path(recording), options, progress=lambda *_: None)
    print(quality)
    for warning in quality.warnings:
        print("Beware:", warning)

    scene_map = ag.build_map(recording)             # the poses are in a folder: look at them, and map again
    size = scene_map.save(map_file)
    print(f"{map_file}: {scene_map.statistics.frames} images, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
