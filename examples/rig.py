# SPDX-License-Identifier: Apache-2.0
"""Map a drive of a robot with several cameras, and localize its base in another drive with all cameras at once.

    python examples/rig.py MAPPING_BAG QUERY_BAG MAP_FRAME BASE_FRAME IMAGE_TOPIC...

Both bags hold images and camera_info of each camera, and TF: where the cameras are on the base, and, to map and to
compare, where the base is in the map.
"""

import sys

import numpy as np

import aceg_ros as ag
from aceg_ros.datasets.bag.rig import RigOptions, camera_names, open_rig
from aceg_ros.methods.rig_localizer import RigLocalizer


def main(mapping: str, query: str, map_frame: str, base: str, topics: list[str]) -> None:
    rig, poses = RigOptions(topics=camera_names(topics), base=base), ag.BagOptions(tf=(map_frame, ""))
    scene_map = ag.build_map(open_rig(mapping, rig, bag_options=poses).images())

    localizer = RigLocalizer.from_map(scene_map)
    for frame in open_rig(query, rig, bag_options=poses):
        estimate = localizer.localize(frame)
        if estimate.accepted:
            off_m = np.linalg.norm(estimate.map_from_rig[:3, 3] - frame.map_from_rig[:3, 3])
            shares = ", ".join(f"{name} {share.inliers}" for name, share in estimate.views.items())
            print(f"{frame.name}: {base} is {100 * off_m:.1f} cm off; inliers: {shares}")
        else:
            print(f"{frame.name}: {estimate.base.status}, {estimate.base.message}")


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:5], sys.argv[5:])
