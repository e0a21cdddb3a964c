# SPDX-License-Identifier: Apache-2.0
"""`aceg merge`: two maps become one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aceg_ros.cli.arguments import add_verb, seconds, seed
from aceg_ros.errors import UserError
from aceg_ros.utils.progress import MappingProgressBar

if TYPE_CHECKING:
    import numpy as np


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "merge", run, "merge two maps into one")
    verb.description = ("Merge two maps with keyframe databases into one, in the frame of the first. Where the second"
                        " is in the first is found by localizing its keyframes; at least three must agree.")
    verb.add_argument("first", metavar="MAP")
    verb.add_argument("second", metavar="OTHER")
    verb.add_argument("-o", "--output", metavar="MERGED", required=True, help="map file to write")
    verb.add_argument("--transform", nargs="+", metavar="T", help="the transform that maps points of OTHER into MAP, if"
                      " it is known: x y z in metres and the quaternion qx qy qz qw, or a text file with these seven"
                      " numbers or a 4x4 matrix")
    verb.add_argument("--budget", type=seconds, default=300.0, metavar="S", help="time limit in seconds (default:"
                      " %(default)s)")
    verb.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of random choices (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    from aceg_ros.geometry import rotation_to_quaternion
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.maps.keyframe_database import SECTION
    from aceg_ros.maps.scene_map import SceneMap, check_writable
    from aceg_ros.methods.merge_maps import merge_maps

    first, second = SceneMap.load(options.first), SceneMap.load(options.second)
    check_writable(options.output)
    a_from_b = None if options.transform is None else read_transform(options.transform)
    with MappingProgressBar() as bar:
        merged, found = merge_maps(first, second, a_from_b, seed=options.seed,
                                   budget=MappingBudget.start(options.budget, progress=bar.show))
    size = merged.save(options.output)
    numbers = [*found.a_from_b[:3, 3], *rotation_to_quaternion(found.a_from_b[:3, :3])]
    how = "as given" if options.transform else f"on which {found.agreeing} keyframes agree"
    print(f"{options.output}: {len(merged.sections[SECTION]['poses'])} keyframes, {size / 1e6:.1f} MB; transform "
          f"{' '.join(f'{number:.6g}' for number in numbers)}, {how}")
    return 0


def read_transform(given: list[str]) -> np.ndarray:
    """Read a transform (4, 4) from seven numbers, or from a file. Raises UserError if it is none."""
    import numpy as np

    from aceg_ros.geometry import is_pose, pose_from_quaternion
    try:
        if len(given) == 1 and not Path(given[0]).is_file():
            raise UserError(f"There is no file {given[0]} with a transform.")
        values = np.loadtxt(given[0]) if len(given) == 1 else np.array([float(text) for text in given])
    except (ValueError, OSError) as error:
        raise UserError(f"The transform cannot be read ({error}): give x y z qx qy qz qw, or a file with these or a 4x4"
                        " matrix.") from None
    transform = values
    if values.shape == (7,) and np.isfinite(values).all() and values[3:].any():
        transform = pose_from_quaternion(values[:3], values[3:])
    if transform.shape != (4, 4) or not is_pose(transform):
        raise UserError("The transform is no rigid one: give x y z qx qy qz qw, or a file with these or a 4x4 matrix.")
    return transform
