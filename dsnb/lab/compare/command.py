"""Notebook 10 in full, by one command: the comparison and its open questions as grids, then the tables.

Every grid goes on where it was stopped (see `grid`), so the command may be interrupted and started again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...plotting import figures_folder
from ..grid import GridError, run
from ..grid.command import exit_status
from ..grid.parameters import parse_settings

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "notebooks" / "10_compare_methods.ipynb"
PASSES = ["1", "1, 0.02", "1, 0.02, 0.02, 0.02", "1, 1"]  # weights of the passes in each cross-attention
PICTURES, FEWER = 96, 12  # what the tables in figures/ are made of
HOOKED = {"methods": "epsilon,attention", "masks": "logistic"}
# What the paper leaves open: name → (what is fixed, what varies); 0 and -1 stand for the model's own. The question
# of more guidance with a sharper mask is the paper's own, so it is asked over twice as many pictures.
QUESTIONS = {
    "guidance": (
        {"methods": "attention", "masks": "logistic"},
        {"guidance": [3.0, 5.0, 20.0, 30.0], "sharpness": [20.0, 70.0]},
    ),
    "eta": (HOOKED, {"eta": [0.05, 0.1, 0.3, 1.0]}),
    "steps": (HOOKED, {"steps": [12, 25, 50, 99]}),
    "skip": (HOOKED | {"steps": 50}, {"skip": [0, 5, 10, 20, 30]}),
    "passes": ({"methods": "attention", "masks": "logistic"}, {"passes": PASSES}),
}


def compare_all(
    output: str | Path,
    *,
    pictures: int = PICTURES,
    chunk: int = 8,
    fewer: int = FEWER,
    parameters: dict | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> int:
    """Compare over `pictures`, ask each question over `fewer` (that of guidance over twice as many), draw the tables.

    A grid point takes `chunk` pictures; `pictures` is rounded up to whole chunks. Returns the number of points that
    failed; the tables are drawn from those that did not, into `tables_folder`.
    """
    if not (pictures >= 1 and chunk >= 1 and fewer >= 1):
        raise GridError(
            f"pictures, chunk and fewer are {pictures}, {chunk}, {fewer}; expected at least 1 each"
        )
    output, fixed = Path(output), {"steps": 0, **(parameters or {})}
    figures = tables_folder(output, pictures, fewer, parameters)
    taken = sorted({"first", "pictures", "tables"} & set(parameters or {}))
    if taken:
        raise GridError(f"{', '.join(taken)} cannot be set, as the command itself does; use --pictures")
    if fixed.get("pairs_file"):
        pictures = min(pictures, count_pairs(fixed["pairs_file"]))
    options = {"scheduler": scheduler, "workers": workers, "progress": progress}
    chunk = min(chunk, pictures)
    firsts = list(range(0, pictures, chunk))  # the last chunk is a whole one too
    failed = run(
        NOTEBOOK, {"first": firsts}, fixed | {"pictures": chunk}, output / "compare", **options
    ).failed
    for name, (held, varied) in QUESTIONS.items():
        own = {key: value for key, value in (fixed | held).items() if key not in varied}
        count = min(pictures, 2 * fewer if name == "guidance" else fewer)
        failed += run(NOTEBOOK, varied, own | {"pictures": count}, output / name, **options).failed
    shutil.rmtree(output / "tables", ignore_errors=True)  # always drawn anew
    last = fixed | {"tables": str(output.resolve()), "pictures": 3}
    drawn = run(NOTEBOOK, {}, last, output / "tables", progress=progress, workers=1, figures=figures)
    return failed + drawn.failed


def tables_folder(output: Path, pictures: int, fewer: int, parameters: dict | None) -> Path:
    """Where the tables go: figures/ for the whole comparison; a part, or one of other settings, never replaces it."""
    whole = pictures >= PICTURES and fewer >= FEWER and not parameters
    return figures_folder() if whole else output / "figures"


def count_pairs(path: str | Path) -> int:
    """How many entries a pairs file has. Raises GridError where it is missing or no list of entries."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GridError(f"pairs_file {str(path)!r} cannot be read: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise GridError(f"pairs_file {str(path)!r} is no list of entries; see `compare.read_pairs`")
    return len(entries)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m dsnb compare`: 0 all done, 1 some points failed, 2 it could not run, 130 it was stopped."""
    p = argparse.ArgumentParser("python -m dsnb compare", description="The comparison of methods, in full.")
    p.add_argument(
        "--pictures",
        type=int,
        default=PICTURES,
        help=f"how many pictures are compared, in whole chunks (default: {PICTURES})",
    )
    p.add_argument("--chunk", type=int, default=8, help="pictures per point of the grid (default: 8)")
    p.add_argument(
        "--fewer",
        type=int,
        default=FEWER,
        help=f"pictures per setting of an open question, of guidance twice as many (default: {FEWER})",
    )
    p.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="set a parameter of the notebook, e.g. pairs_file=my_pairs.json or model=FOLDER",
    )  # fmt: skip
    p.add_argument("--output", type=Path, default=ROOT / "runs" / "compare", help="folder of all results")
    p.add_argument("--workers", type=int, help="processes here (default: one per GPU, else one per core)")
    p.add_argument("--scheduler", metavar="ADDRESS", help="use the Dask cluster at this address")
    given = p.parse_args(argv)
    return exit_status(lambda: _compare_given(given))


def _compare_given(given: argparse.Namespace) -> int:
    parameters = parse_settings(given.parameter, "-p")
    failed = compare_all(
        given.output,
        pictures=given.pictures,
        chunk=given.chunk,
        fewer=given.fewer,
        parameters=parameters,
        scheduler=given.scheduler,
        workers=given.workers,
    )
    place = tables_folder(given.output, given.pictures, given.fewer, parameters)
    print(f"all results are in {given.output}, the tables in {place}/10_*; {failed} points failed")
    return 1 if failed else 0
