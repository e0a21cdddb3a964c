# SPDX-License-Identifier: Apache-2.0
"""Map a recording, save the map, load it again and localize images in it.

    python examples/map_and_localize.py RECORDING MAP IMAGE...
"""

import sys

import aceg_ros as ag


def main(recording: str, map_file: str, images: list[str]) -> None:
    scene_map = ag.build_map(recording)
    scene_map.save(map_file)

    localizer = ag.Localizer.load(map_file)
    for image in images:
        estimate = localizer.localize(image)
        if estimate.accepted:
            print(image, "is at", estimate.map_from_camera[:3, 3].round(3), "m,", estimate.inliers, "inliers")
        else:
            print(image, "is not localized:", estimate.message)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
