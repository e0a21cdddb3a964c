# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of a batch on this machine, or on a Ray cluster. What is done already is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from aceg_ros.errors import UserError
from aceg_ros.evaluation.batch import BatchJob, JobFailedError, run_job

Results = dict[str, dict[str, Any]]
Report = Callable[[BatchJob, dict[str, Any]], None]


def run_batch(jobs: Sequence[BatchJob], *, workers: int, tries: int, report: Report, ray_address: str | None = None
              ) -> Results:
    """Run the jobs that are not done yet.

    Args:
        jobs: of a batch.
        workers: jobs that run at the same time on this machine.
        tries: how often a job is begun at most, if it crashes.
        report: called with each job and its result as it ends.
        ray_address: of a Ray cluster that sees the same files; None for this machine.

    Returns:
        The results by name. A job that failed in the end has a key "error" there, and is tried again next time.
    """
    results = {job.name: found for job in jobs if (found := job.result()) is not None and "error" not in found}
    missing = [job for job in jobs if job.name not in results]

    def ended(job: BatchJob, result: dict[str, Any]) -> None:
        results[job.name] = result
        report(job, result)

    if missing and ray_address is None:
        _run_here(missing, workers, tries, ended)
    elif missing and ray_address is not None:
        _run_on_ray(missing, ray_address, tries, ended)
    return results


def _run_here(jobs: Sequence[BatchJob], workers: int, tries: int, ended: Report) -> None:
    """Each job is a process of its own; the threads only wait for these."""
    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        pending = {pool.submit(run_job, job): (job, 1) for job in jobs}
        try:
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    job, tried = pending.pop(future)
                    result = _result_of(future)
                    if result is None and tried < tries:
                        pending[pool.submit(run_job, job)] = job, tried + 1
                    else:
                        ended(job, result or _failed(job, future.exception()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result_of(future: Future[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the result; None if the job crashed. Raises any other error."""
    try:
        return future.result()
    except JobFailedError:
        return None


def _failed(job: BatchJob, error: BaseException | None) -> dict[str, Any]:
    return {"name": job.name, "error": str(error)}


def _run_on_ray(jobs: Sequence[BatchJob], address: str, tries: int, ended: Report) -> None:
    """A task for each job; Ray begins one again on another machine if that which had it is gone."""
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: 'pip install aceg_ros[ray]', or leave --ray out.") from None
    from ray.exceptions import RayError
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise UserError(f"The Ray cluster {address} cannot be reached: {error}.") from None
    try:
        task = ray.remote(num_cpus=1, max_retries=tries - 1, retry_exceptions=[JobFailedError])(run_job)
        pending = {task.remote(job): job for job in jobs}
        while pending:
            ready, _ = ray.wait(list(pending))
            for reference in ready:
                job = pending.pop(reference)
                try:
                    ended(job, ray.get(reference))
                except (RayError, JobFailedError) as error:
                    ended(job, _failed(job, RuntimeError(str(error).strip().splitlines()[-1])))
    finally:
        ray.shutdown()
