# SPDX-License-Identifier: Apache-2.0
"""Map the drives of a fleet, and evaluate each map on the robot's other drive: on this machine, or on a Ray cluster.

    python examples/fleet.py FLEET [RAY_ADDRESS]

FLEET holds a folder for each robot, with the recordings mapping/ and query/ (folders or bags). Maps and results go to
FLEET/maps; what is there already is not made again, so that a nightly run takes up new robots only. For Ray:
pip install 'aceg_ros[ray]', an address such as auto, and FLEET on a disk that all machines see.
"""

import os
import sys
from pathlib import Path

from aceg_ros.evaluation.batch import BatchJob, table
from aceg_ros.evaluation.batch_runners import run_batch


def jobs_of(fleet: Path) -> list[BatchJob]:
    """Return a job for each robot that has both drives."""
    return [BatchJob(name=robot.name, output=str(fleet / "maps"), recordings=(str(robot / "mapping"),),
                     queries=(str(robot / "query"),))
            for robot in sorted(fleet.iterdir()) if (robot / "mapping").exists() and (robot / "query").exists()]


def main(fleet: str, ray_address: str | None = None) -> None:
    jobs = jobs_of(Path(fleet).resolve())
    results = run_batch(jobs, workers=os.cpu_count() or 1, tries=2, ray_address=ray_address,
                        report=lambda job, result: print(f"{job.name}: {result.get('error', 'done')}", flush=True))
    print(table(jobs, results))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
