# SPDX-License-Identifier: Apache-2.0
"""`aceg batch`: maps and evaluates many recordings."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import add_verb, positive


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "batch", run, "map and evaluate many recordings")
    verb.description = ("Map and evaluate many recordings, on all cores of this machine or on a Ray cluster that sees"
                        " the same files. What is done already is not done again. The file of jobs has a folder"
                        " 'output', 'flags' of 'aceg map' for all jobs, and a list 'jobs', each with 'name', 'map' (one"
                        " or several recordings), and perhaps 'evaluate' (recordings) and 'flags'.")
    verb.add_argument("jobs", metavar="JOBS.yaml", type=Path)
    verb.add_argument("--workers", type=positive, metavar="N", help="jobs at the same time on this machine, each on one"
                      " core (default: as many as there are cores)")
    verb.add_argument("--tries", type=positive, default=3, metavar="N", help="how often a job is begun at most, if it"
                      " crashes or its machine is gone (default: %(default)s)")
    verb.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster ('auto': the one of this machine);"
                      " needs the extra 'ray'")
    verb.add_argument("-o", "--output", type=Path, metavar="TABLE.md", help="write the table to a file as well")


def run(options: argparse.Namespace) -> int:
    from aceg_ros.evaluation.batch import BatchJob, read_jobs, table
    from aceg_ros.evaluation.batch_runners import run_batch
    from aceg_ros.utils.atomic_file import write_text

    jobs = read_jobs(options.jobs)
    done = 0

    def report(job: BatchJob, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        print(f"{job.name}: {result.get('error', 'done')} ({done})", file=sys.stderr, flush=True)

    results = run_batch(jobs, workers=options.workers or os.cpu_count() or 1, tries=options.tries, report=report,
                        ray_address=options.ray)
    text = table(jobs, results)
    print(text)
    if options.output:
        write_text(options.output, text + "\n")
    return 2 if any("error" in result for result in results.values()) else 0
