"""Run all points of a grid that are not finished yet, on this machine or on a Dask cluster."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from uuid import uuid4

from tqdm.auto import tqdm

from . import folder
from .kernels import Job, Outcome, end_kernels, run_point, set_environment, versions
from .parameters import Grid, GridError, make_grid

POINT_TIMEOUT = 6 * 3600.0  # seconds
SAME_ERRORS = 3  # a new grid stops after so many points that all failed with the same error
TABLE_EVERY = 5.0  # seconds between two versions of the table while points come in


@dataclass(frozen=True)
class Report:
    """What came of a run: numbers of points, and where the table is."""

    table: Path
    done: int
    failed: int
    skipped: int  # finished in an earlier run
    seconds: float
    error: str = ""  # of the first point that failed


def run(
    notebook: str | Path,
    grid: Mapping[str, Sequence] | None = None,
    parameters: Mapping[str, object] | None = None,
    output: str | Path | None = None,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    timeout: float = 30.0,
    point_timeout: float = POINT_TIMEOUT,
    progress: bool = True,
) -> Report:
    """Run a notebook over a grid of parameters, and keep a table of what it records.

    Args:
        notebook: the file. Paths among its parameters are relative to the current folder.
        grid: parameter → values. One point is run for each combination.
        parameters: parameter → fixed value.
        output: the folder of the results; runs/<name of the notebook> if it is None.
        scheduler: address of a Dask cluster to use instead of this machine.
        workers: number of points at a time on this machine; by default one per GPU, or per core without a GPU.
        timeout: seconds that the scheduler has to answer.
        point_timeout: seconds that one point may take; then it counts as failed.
        progress: show a progress bar.

    Returns:
        The numbers of points, and the path of the table.

    Raises:
        GridError: if the grid cannot run or go on. What is finished stays in the folder.
    """
    begin = time.perf_counter()
    if workers is not None and workers < 1:
        raise GridError(f"workers is {workers}, expected at least 1")
    for name, seconds in (("timeout", timeout), ("point-timeout", point_timeout)):
        if not 0 < seconds < math.inf:
            raise GridError(f"{name} is {seconds:g}, expected a finite number of seconds above 0")
    checked = make_grid(notebook, grid or {}, parameters)
    path = Path("runs", Path(notebook).stem) if output is None else Path(output)
    job = Job(uuid4().hex, checked.source, os.getcwd(), point_timeout)
    with folder.claim(path, checked):
        points = folder.read_points(path, checked)
        missing = [name for name in checked.points if name not in points or points[name][0]["error"]]
        count = len(missing)
        pool = _threads(job, workers, count) if scheduler is None else _cluster(job, scheduler, timeout)
        try:
            if missing:
                with pool as executor:
                    _run(executor, job, checked, missing, path, points, progress)
        finally:
            folder.write_table(path, checked, points)
    errors = [rows[0]["error"] for rows in points.values() if rows[0]["error"]]
    seconds, skipped = time.perf_counter() - begin, len(points) - count
    return Report(path / "table.csv", count - len(errors), len(errors), skipped, seconds, *errors[:1])


def _run(
    executor: Executor,
    job: Job,
    grid: Grid,
    missing: Sequence[str],
    path: Path,
    points: dict[str, list[dict]],
    progress: bool,
) -> None:
    """Run the missing points, and keep each in `path` and in `points` as it comes back."""
    total, errors, written = len(grid.points), [], time.perf_counter()
    futures = {executor.submit(run_point, job, grid.fixed | grid.points[name]): name for name in missing}
    skipped = total - len(missing)
    bar = tqdm(as_completed(futures), total=total, initial=skipped, unit="point", disable=not progress)
    for future in bar:
        name, outcome = futures.pop(future), _outcome(future, job)  # its notebook need not stay in memory
        points[name] = folder.write_point(path, grid, name, outcome)
        errors.append(outcome.error)
        bar.set_postfix(failed=sum(map(bool, errors)))
        if not skipped and SAME_ERRORS == len(errors) < total and errors[0] and len(set(errors)) == 1:
            raise GridError(
                f"the first {SAME_ERRORS} points failed with the same error, so the grid stopped: {errors[0]}; "
                f"see {points[name][0]['notebook']!r} in {str(path)!r}"
            )
        if time.perf_counter() - written > TABLE_EVERY:
            folder.write_table(path, grid, points)
            written = time.perf_counter()


def _outcome(future: Future, job: Job) -> Outcome:
    """What came of a point. A point that a worker cannot run has failed; GridError if the scheduler is lost."""
    try:
        return future.result()
    except CancelledError:
        raise GridError(
            "the scheduler was lost before all points were done; what is finished stays, and the same command "
            "goes on from it once the scheduler answers again"
        ) from None
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
        return Outcome(text, [], job.notebook, [], math.nan, "", versions())


@contextmanager
def _threads(job: Job, workers: int | None, points: int) -> Iterator[Executor]:
    """Threads of this process. The kernel of each has a GPU, or its part of the cores."""
    gpus = visible_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(workers or len(gpus) or cores, points)
    environments = SimpleQueue()
    for index in range(count):
        variables = {name: str(max(1, cores // count)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # threads that wait for each other sleep, which is much faster on a busy machine
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        environments.put(variables)
    with ThreadPoolExecutor(count, "worker", set_environment, (environments,)) as executor:
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            end_kernels(job.run)  # a point that still runs ends with its kernel


@contextmanager
def _cluster(job: Job, address: str, timeout: float) -> Iterator[Executor]:
    """The workers of a Dask cluster. GridError if there are none."""
    try:
        from distributed import Client
    except ImportError:
        raise GridError("--scheduler needs Dask; install it with: pip install 'dsnb[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=timeout)
    except (OSError, ValueError) as error:
        raise GridError(
            f"scheduler {address!r} does not answer within {timeout:g} s ({type(error).__name__}); "
            "check the address (such as tcp://host:8786), or leave --scheduler out to run on this machine"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError:
            raise GridError(f"scheduler {address!r} has no worker after {timeout:g} s; start one") from None
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            if client.status == "running":
                with suppress(OSError):  # the scheduler was lost just now
                    executor.shutdown(wait=False)
                    client.run(end_kernels, job.run, on_error="ignore")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() and gpu.strip() != "-1"]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return found.stdout.split() if found.returncode == 0 else []
