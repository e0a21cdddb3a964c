# SPDX-License-Identifier: Apache-2.0
"""Maps and evaluates many recordings: the jobs, how one of them is run, and the table of their results.

A job runs `aceg map` and `aceg evaluate` as processes of their own, so that one that crashes costs no other. Its result
is a file that is written when it is done: a batch that is run again goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.child_process import die_with_parent
from aceg_ros.utils.yaml_list import read_yaml_list

USAGE_ERROR = 2                     # exit code of `aceg`: the same command fails again
RECALL_KEYS = ("0.05m_5deg", "0.25m_5deg")
KEYS = {"name", "map", "evaluate", "flags"}


class JobFailedError(Exception):
    """A command of a job failed in a way that another try may not."""


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One map, and recordings to evaluate it on.

    name: of its files in the folder `output`. recordings: of the map. queries: to evaluate it on. flags: of `aceg map`.
    """

    name: str
    output: str
    recordings: tuple[str, ...]
    queries: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The hash of what the job is: a result of another job of this name does not count."""
        content = [self.name, self.recordings, self.queries, self.flags]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def map_path(self) -> Path:
        return Path(self.output) / f"{self.name}.map"

    @property
    def result_path(self) -> Path:
        return Path(self.output) / f"{self.name}.json"

    def result(self) -> dict[str, Any] | None:
        """Return the result of this job if it is done, else None."""
        try:
            content = json.loads(self.result_path.read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and content.get("job") == self.identity else None


def read_jobs(path: Path) -> list[BatchJob]:
    """Read a file of jobs; paths in it are relative to its folder. Raises UserError with the job that is wrong."""
    content = read_yaml_list(path, "jobs", "give a name and a recording to map for each")
    unknown = set(content) - {"output", "flags", "jobs"}
    if unknown:
        raise UserError(f"{path} has unknown keys: {', '.join(sorted(map(str, unknown)))}.")
    jobs = [_job(entry, content, path, number) for number, entry in enumerate(content["jobs"], 1)]
    names = [job.name for job in jobs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has several jobs named {', '.join(repeated)}: their files would be the same.")
    return jobs


def _job(entry: Any, content: Mapping[str, Any], path: Path, number: int) -> BatchJob:
    where = f"Job {number} of {path}"
    if not isinstance(entry, dict) or not {"name", "map"} <= set(entry) <= KEYS:
        raise UserError(f"{where} is not a mapping with name and map, and perhaps evaluate and flags.")
    name = str(entry["name"])
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{where} has the name '{name}', which cannot be that of a file.")

    def texts(value: Any) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, dict | list) or one is None for one in values):
            raise UserError(f"{where} ({name}) has a value that is neither a text nor a list of texts: {value}.")
        return tuple(str(one) for one in values)

    folder = path.resolve().parent
    recordings, queries = (tuple(str(folder / one) for one in texts(entry.get(key, []))) for key in ("map", "evaluate"))
    if not recordings:
        raise UserError(f"{where} ({name}) names no recording to map.")
    return BatchJob(name=name, output=str(folder / str(content.get("output", "."))), recordings=recordings,
                    queries=queries, flags=(*texts(content.get("flags", [])), *texts(entry.get("flags", []))))


def run_job(job: BatchJob) -> dict[str, Any]:
    """Run a job and write its result.

    Returns its result; with a key "error" if it can never succeed. Raises JobFailedError if another try may succeed.
    """
    Path(job.output).mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"job": job.identity, "name": job.name}
    error = _run(["map", *job.recordings, "-o", str(job.map_path), *job.flags])
    if error is None:
        result["map_mb"] = job.map_path.stat().st_size / 1e6
        result["queries"] = {}
    for number, query in enumerate(job.queries if error is None else ()):
        file = Path(job.output) / f"{job.name}.query_{number}.json"
        error = error or _run(["evaluate", str(job.map_path), query, "--json", str(file)])
        if error is None:
            result["queries"][query] = json.loads(file.read_text())
    result |= {} if error is None else {"error": error}
    write_json(result, job.result_path)
    return result


def _run(arguments: Sequence[str]) -> str | None:
    """Run `aceg` on one core. Returns why this cannot succeed, or None. Raises JobFailedError if it crashed."""
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    done = subprocess.run([sys.executable, "-m", "aceg_ros.cli", *arguments], env=environment, capture_output=True,
                          text=True, preexec_fn=partial(die_with_parent))
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("aceg: ")
    if done.returncode == USAGE_ERROR:
        return last
    raise JobFailedError(f"aceg {arguments[0]} ended with {done.returncode}: {last}")


def table(jobs: Sequence[BatchJob], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of all jobs, a row for each query. It has no times, so that it is the same whoever ran
    the jobs."""
    lines = ["| job | query | images | localized | median m | " + " | ".join(RECALL_KEYS) + " | MB |",
             "|---" * (6 + len(RECALL_KEYS)) + "|"]
    for job in jobs:
        result = results.get(job.name, {"error": "not run"})
        if "error" in result:
            lines.append(f"| {job.name} | {result['error']} |" + " |" * (4 + len(RECALL_KEYS)))
            continue
        for query, found in result["queries"].items() or [("", None)]:
            lines.append(f"| {job.name} | {'/'.join(Path(query).parts[-2:])} | {_cells(found)} |"
                         f" {result['map_mb']:.1f} |")
    return "\n".join(lines)


def _cells(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return " | ".join([""] * (3 + len(RECALL_KEYS)))
    median = found["median_translation_m"]
    recall = " | ".join(f"{found['recall'][key]:.2f}" for key in RECALL_KEYS)
    return f"{found['frames']} | {found['localized']} | {'-' if median is None else f'{median:.3f}'} | {recall}"
