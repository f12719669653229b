"""`dsnb run`: the command line of a grid."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from .parameters import GridError, parse_settings, parse_values


def exit_status(work: Callable[[], int], *errors: type[Exception]) -> int:
    """The exit status of a command: that of `work`, 2 after one of the errors, 130 if it was stopped.

    SIGTERM, which batch systems send, stops it as Ctrl-C does.
    """
    with suppress(ValueError):  # only the main thread can handle signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """`dsnb run`: 0 all points done, 1 some failed, 2 it could not run, 130 it was stopped."""
    return exit_status(lambda: _main(argv), GridError)


def _main(argv: Sequence[str] | None) -> int:
    given = vars(_parser().parse_args(argv))
    fixed = parse_settings(given.pop("parameter"), "-p")
    varied = {name: parse_values(text) for name, text in parse_settings(given.pop("grid"), "--grid").items()}

    try:
        from .runner import run  # a slow import: Ctrl-C prints a message from here on
    except ModuleNotFoundError as error:
        raise GridError(f"{error.name} is missing; install it with: pip install 'dsnb[grid]'") from None
    report = run(given.pop("notebook"), varied, fixed, **given)
    counts = f"{report.done} done, {report.failed} failed, {report.skipped} from before"
    print(f"{counts}, {report.seconds:.1f} s: {report.table}")
    if report.failed:
        told = f"failed points are rows of the table with their error; the first: {report.error}"
        print(told, file=sys.stderr)
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "dsnb run",
        description="Run a notebook over a grid of parameters.",
        argument_default=argparse.SUPPRESS,  # the defaults are those of `run`
    )
    add = p.add_argument
    add("notebook", type=Path)
    add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="fix a parameter")
    values = "vary one: a,b,c or 0:96:8 or ['a','b']"
    add("--grid", action="append", default=[], metavar="NAME=V1,V2", help=values)
    add("--output", type=Path, help="folder of the results (default: runs/<notebook>)")
    add("--workers", type=int, help="points at a time (default: one per GPU, else one per core)")
    add("--scheduler", metavar="ADDRESS", help="use the Dask cluster at this address")
    add("--timeout", type=float, help="seconds the scheduler has to answer (default: 30)")
    limit = (
        "seconds one point may take before its kernel is ended and it has failed (default: 21600, 6 hours)"
    )
    add("--point-timeout", type=float, metavar="SECONDS", help=limit)
    return p
