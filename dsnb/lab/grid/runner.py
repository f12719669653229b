"""A notebook × a grid of parameters → tidy rows: `python -m dsnb run NOTEBOOK --grid name=value,value …`.

The points of the grid run through papermill on Dask workers, on this machine or on a cluster that exists
already. Only this process writes to the output folder (see `results`), so workers need no common disk.
Starting the same command again runs what is missing or failed; a killed worker's points are done again by
another.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tqdm.auto import tqdm

from .grid import Grid, GridError, make_grid, parse_settings, parse_values
from .points import Outcome, Point, end_kernels, run_point, versions
from .results import Folder, FolderError

__all__ = ["ClusterError", "Report", "exit_status", "main", "run"]

QUIET = logging.CRITICAL
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C is for this process alone
HERE = "127.0.0.1"  # a cluster started here is not open to other machines
TABLE_EVERY = 5.0  # seconds between two versions of the table while points come in


class ClusterError(RuntimeError):
    """The workers cannot be had or were lost; the message says why and what to do."""


@dataclass(frozen=True)
class Report:
    """What a run came to: counts of points, and where the table is."""

    table: Path
    done: int
    failed: int
    skipped: int  # found finished from an earlier start
    seconds: float


def run(
    notebook: str | Path,
    grid: Mapping[str, Sequence] | None = None,
    parameters: Mapping | None = None,
    output: str | Path | None = None,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    timeout: float = 30.0,
    figures: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Run a notebook over a grid and keep the table; `output` is runs/<notebook's name> unless given.

    grid: name → values; parameters: name → fixed value; workers: processes on this machine, by default one
    per GPU, or per core without one; scheduler: address of a Dask cluster to use instead; timeout: seconds
    it has to answer; figures: folder for those the notebook saves (by default they are not kept,
    only what it shows). Raises GridError, FolderError or ClusterError with a sentence that says what to do.
    """
    begin = time.perf_counter()
    checked = make_grid(notebook, grid or {}, parameters)
    folder = Folder(Path("runs", Path(notebook).stem) if output is None else output, checked)
    points, failed = checked.points("" if figures is None else str(Path(figures).resolve())), 0
    with folder.alone():
        finished = {name for name, row in folder.read().items() if row["status"] == "done"}
        missing = [point for point in points if point.id not in finished]
        with tqdm(total=len(points), initial=len(finished), unit="point", disable=not progress) as bar:
            if missing:
                failed = _run_missing(checked, folder, missing, bar, scheduler, workers, timeout)
        folder.write_table()
    seconds = time.perf_counter() - begin
    return Report(folder.path / "table.csv", len(missing) - failed, failed, len(finished), seconds)


def _run_missing(
    grid: Grid, folder: Folder, missing: list[Point], bar: tqdm, scheduler: str | None, workers, timeout
) -> int:
    """Send the points out, keep each as it comes back; returns how many failed.

    ClusterError where the scheduler is lost midway.
    """
    from distributed import as_completed

    failed, written = 0, time.perf_counter()
    by_id = {point.id: point for point in missing}
    with _client(scheduler, workers, len(missing), timeout) as client:
        batch = uuid4().hex[:8]  # so that two runs on one scheduler never share a key
        keys = {point.id: f"dsnb-{batch}-{point.id}" for point in missing}
        futures = {client.submit(run_point, point, batch, key=keys[point.id]): point.id for point in missing}
        try:
            for future in as_completed(list(futures)):
                point = by_id[futures.pop(future)]
                outcome = _outcome(future, point, scheduler)
                folder.write(outcome, grid.parameters | point.parameters)
                failed += outcome.status == "failed"
                bar.update()
                if failed:
                    bar.set_postfix(failed=failed)
                if time.perf_counter() - written > TABLE_EVERY:
                    folder.write_table()
                    written = time.perf_counter()
        except BaseException as error:
            if client.status == "running":
                client.cancel(list(futures))
            if isinstance(error, KeyboardInterrupt | ClusterError):
                folder.write_table()
            raise
        finally:
            if client.status == "running":
                with suppress(OSError):  # lost just now
                    client.run(end_kernels, batch, on_error="ignore")
    return failed


def _outcome(future, point: Point, scheduler: str | None) -> Outcome:
    """A future's result; what a worker could not do is a failed outcome, a lost scheduler a ClusterError."""
    try:
        return future.result()
    except Exception as error:
        if isinstance(error, CancelledError) or future.client.status != "running":
            raise ClusterError(
                f"scheduler {scheduler!r} was lost before all points were done; what is finished stays, and "
                "the same command goes on from it once the scheduler answers again"
            ) from None
        text = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "KilledWorker":
            text = "KilledWorker: its workers died, one after the other; is there too little memory?"
        return Outcome(
            point.id, "failed", " ".join(text.split())[:2000], [], point.notebook, versions=versions()
        )


@contextmanager
def _client(scheduler: str | None, workers: int | None, points: int, timeout: float) -> Iterator:
    """A Dask client: of the cluster at `scheduler`, or of one started here and ended afterwards."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(QUIET)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=timeout)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"scheduler {scheduler!r} does not answer within {timeout:g} s ({type(error).__name__}); "
                "check the address (such as tcp://host:8786), or leave --scheduler out to run on this machine"
            ) from None
        with client:
            try:
                client.wait_for_workers(1, timeout=timeout)
            except TimeoutError:
                raise ClusterError(
                    f"scheduler {scheduler!r} has no worker after {timeout:g} s; start one"
                ) from None
            _warn_of_threads(client)
            yield client
        return
    with _local_cluster(workers, points) as cluster, Client(cluster) as client:
        yield client


def _warn_of_threads(client) -> None:
    threads = max(client.nthreads().values())
    if threads > 1:
        warnings.warn(
            f"a worker has {threads} threads, and each will load models of its own; start workers with --nthreads 1, "
            "and with --nworkers as many of them as models fit",
            stacklevel=2,
        )


def _local_cluster(workers: int | None, points: int):
    """Worker processes of one thread each: one per GPU, which is all it sees, or one per core."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    gpus, cores = (
        visible_gpus(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    count = min(workers or len(gpus) or cores, points)
    if workers is not None and workers < 1:
        raise ClusterError(f"workers is {workers}, expected at least 1")
    # Dask has workers give memory back at once, and a network that asks for it again at each step takes twice as long.
    dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None})
    spec = {}
    for index in range(count):
        env = {name: str(max(1, cores // count)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        env["OMP_WAIT_POLICY"] = os.environ.get(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # on a busy machine: much faster
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        options = {"nthreads": 1, "memory_limit": None, "env": env, "preload": [DEAF]}
        options |= {"silence_logs": QUIET, "host": HERE}
        spec[index] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": HERE, "dashboard_address": f"{HERE}:0"}}
    return SpecCluster(workers=spec, scheduler=scheduler, silence_logs=QUIET)


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() and gpu.strip() != "-1"]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return found.stdout.split() if found.returncode == 0 else []


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m dsnb run`."""
    p = argparse.ArgumentParser("python -m dsnb run", description="Run a notebook over a grid of parameters.")
    p.add_argument("notebook", type=Path)
    p.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="fix a parameter"
    )
    p.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=V1,V2",
        help="vary one: a,b,c or 0:96:8 or ['a','b']",
    )
    p.add_argument("--output", type=Path, help="folder of the results (default: runs/<notebook>)")
    p.add_argument(
        "--figures", type=Path, help="folder for the figures that the notebook saves (default: none)"
    )
    p.add_argument("--workers", type=int, help="processes here (default: one per GPU, else one per core)")
    p.add_argument("--scheduler", metavar="ADDRESS", help="use the Dask cluster at this address")
    p.add_argument(
        "--timeout", type=float, default=30.0, help="seconds the scheduler has to answer (default: 30)"
    )
    return p


def exit_status(work: Callable[[], int]) -> int:
    """The status of a command: what `work` returns, 2 with a sentence if it could not run, 130 if stopped.

    Asked to end (SIGTERM, as batch systems do), it stops as at Ctrl-C.
    """
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except (GridError, FolderError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m dsnb run`: 0 all points done, 1 some failed, 2 it could not run, 130 it was stopped."""
    given = parser().parse_args(argv)
    return exit_status(lambda: _run_given(given))


def _run_given(given: argparse.Namespace) -> int:
    fixed = parse_settings(given.parameter, "-p")
    varied = {name: parse_values(text) for name, text in parse_settings(given.grid, "--grid").items()}
    options = {"scheduler": given.scheduler, "workers": given.workers, "timeout": given.timeout}
    options["figures"] = given.figures
    report = run(given.notebook, varied, fixed, given.output, **options)
    counts = f"{report.done} done, {report.failed} failed, {report.skipped} from before"
    print(f"{counts}, {report.seconds:.1f} s: {report.table}")
    if report.failed:
        print(f"failed points are rows with an error and their notebook in {report.table}", file=sys.stderr)
    return 1 if report.failed else 0
