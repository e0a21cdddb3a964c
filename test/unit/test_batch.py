# SPDX-License-Identifier: Apache-2.0
"""Batches of jobs: what a file of jobs may say, retries, going on where it stopped, the table, and a Ray cluster."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import two_walls

from aceg_ros.cli import main
from aceg_ros.datasets import write_ace_scene
from aceg_ros.errors import UserError
from aceg_ros.evaluation import batch
from aceg_ros.evaluation.batch import BatchJob, JobFailedError, read_jobs, run_job, table
from aceg_ros.evaluation.batch_runners import run_batch

JOBS = """
output: results
flags: [--trust-poses]
jobs:
  - {name: first, map: first, evaluate: second}
  - {name: both, map: [first, second], evaluate: [first, second], flags: [--every, 2]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two recordings and a file of jobs."""
    folder = tmp_path_factory.mktemp("batch")
    frames = two_walls.frames(two_walls.drive(24))
    write_ace_scene(folder / "first", frames[::2])
    write_ace_scene(folder / "second", frames[1::2])
    (folder / "jobs.yaml").write_text(JOBS)
    return folder


def answer(job: BatchJob) -> dict[str, object]:
    return {"job": job.identity, "name": job.name, "map_mb": 1.0, "queries": {}}


def test_jobs_are_read_with_their_flags_and_paths(folder):
    first, both = read_jobs(folder / "jobs.yaml")
    assert (first.recordings, first.queries) == ((str(folder / "first"),), (str(folder / "second"),))
    assert len(both.recordings) == 2 and both.flags == ("--trust-poses", "--every", "2")
    assert first.identity != both.identity and first.map_path == folder / "results" / "first.map"


@pytest.mark.parametrize(("text", "says"), [
    ("jobs: []", "no list 'jobs'"), ("[1, 2]", "no list 'jobs'"), ("jobs: [{name: a}]", "not a mapping with name and"),
    ("jobs: [{name: a, map: b, colour: red}]", "not a mapping"), ("jobs: [{name: ../a, map: b}]", "cannot be that"),
    ("jobs: [{name: a, map: b}, {name: a, map: c}]", "several jobs named a"), ("jobs: [{name: a, map: []}]", "no rec"),
    ("jobs: [{name: a, map: {b: c}}]", "neither a text"), ("color: 1\njobs: [{name: a, map: b}]", "keys: color"),
    ("jobs: [", "cannot be read")])
def test_files_of_jobs_that_are_wrong(tmp_path, text, says):
    (tmp_path / "jobs.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        read_jobs(tmp_path / "jobs.yaml")


def test_a_batch_runs_and_goes_on_with_what_is_missing(folder, capsys, monkeypatch):
    batch_of = ["batch", str(folder / "jobs.yaml"), "--workers", "1", "-o", str(folder / "table.md")]
    assert main(batch_of) == 0
    text = capsys.readouterr().out
    assert (folder / "table.md").read_text() == text and text.count("\n") == 5
    assert "| both | " in text and f"| {folder.name}/second | 12 |" in text
    done = json.loads((folder / "results" / "first.json").read_text())
    assert done["queries"][str(folder / "second")]["localized"] > 6
    monkeypatch.setattr("aceg_ros.evaluation.batch_runners.run_job", lambda job: pytest.fail(job.name))
    assert main(batch_of) == 0
    assert capsys.readouterr().out == text


def test_what_crashes_is_tried_again_and_what_is_wrong_is_not(tmp_path, monkeypatch):
    jobs = [BatchJob(name=name, output=str(tmp_path), recordings=("x",)) for name in ("good", "flaky", "bad", "wrong")]
    begun: list[str] = []

    def run(job: BatchJob) -> dict[str, object]:
        begun.append(job.name)
        if job.name == "bad" or (job.name == "flaky" and begun.count("flaky") < 3):
            raise JobFailedError("killed")
        return answer(job) | ({"error": "there is no x"} if job.name == "wrong" else {})

    monkeypatch.setattr("aceg_ros.evaluation.batch_runners.run_job", run)
    results = run_batch(jobs, workers=2, tries=3, report=lambda job, result: None)
    assert [begun.count(job.name) for job in jobs] == [1, 3, 3, 1]
    text = table(jobs, results)
    assert "| bad | killed |" in text and "| wrong | there is no x |" in text and "| flaky |  |" in text


def test_a_command_that_is_killed_is_told_from_one_that_is_wrong(tmp_path, monkeypatch):
    job = BatchJob(name="a", output=str(tmp_path), recordings=(str(tmp_path / "nowhere"),))
    assert "does not exist" in run_job(job)["error"]
    assert job.result() is not None and BatchJob(name="a", output=str(tmp_path), recordings=("b",)).result() is None
    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(batch.subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(JobFailedError, match="ended with -9"):
        run_job(job)


def test_without_ray_a_sentence_says_what_to_install(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    job = BatchJob(name="a", output=str(tmp_path), recordings=("x",))
    with pytest.raises(UserError, match=r"aceg_ros\[ray\]"):
        run_batch([job], workers=1, tries=1, report=lambda job, result: None, ray_address="auto")


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_table_though_a_node_is_lost(folder, tmp_path):
    pytest.importorskip("ray", reason="needs ray: pip install aceg_ros[ray]")
    from ray.cluster_utils import Cluster

    text = JOBS.replace("output: results", f"output: {tmp_path / 'on_ray'}")
    (folder / "ray_jobs.yaml").write_text(text)
    jobs = read_jobs(folder / "ray_jobs.yaml")
    here = read_jobs(folder / "jobs.yaml")
    expected = run_batch(here, workers=1, tries=1, report=lambda job, result: None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost: list[str] = []
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def report(job: BatchJob, result: dict[str, object]) -> None:
            if not lost:
                lost.append(job.name)
                cluster.remove_node(second, allow_graceful=False)

        results = run_batch(jobs, workers=1, tries=3, report=report, ray_address=cluster.address)
    finally:
        cluster.shutdown()
    assert lost and table(jobs, results) == table(here, expected)
