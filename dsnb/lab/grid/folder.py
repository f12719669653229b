"""The output folder of a grid:

    grid.json              the notebook, parameters and versions that the folder belongs to
    points/<name>/         notebook.ipynb as executed, 00.png, 01.png, … and, written last, rows.json
    table.csv, .parquet    all rows: parameters, what was recorded, status, error, versions

Only one process writes to it, and each file appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from ...files import write_all_whole, write_whole
from .kernels import Outcome
from .parameters import Grid, GridError

RESERVED = ("point", "status", "error", "seconds", "worker", "notebook")  # the table's own columns
DIFFERENCES = {  # part of the identity → what another one means
    "notebook": "another notebook",
    "source": "an earlier version of this notebook's code",
    "fixed": "other fixed parameters",
    "grid": "a grid over other parameters",
    "dsnb": "another version of dsnb",
    "weights": "other model weights or another input file",
}


@contextmanager
def claim(path: Path, grid: Grid) -> Iterator[None]:
    """Hold the folder for one run of this grid.

    Raises:
        GridError: if another run works in the folder, it holds the results of another grid, or is not writable.
    """
    lock = FileLock(path / ".lock")
    with _writing(path):
        (path / "points").mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise GridError(
                f"output folder {str(path)!r} is in use by another run; wait for it, or choose another --output"
            ) from None
    try:
        _check_identity(path, grid)
        yield
    finally:
        lock.release()


def _check_identity(path: Path, grid: Grid) -> None:
    """Check that the folder belongs to this grid, or make it so."""
    file, ours = path / "grid.json", grid.identity
    used = file.exists() or any(path.glob("table.*")) or any(path.glob("points/[!.]*"))
    theirs = _read_json(file) if used else ours
    if not (
        isinstance(theirs, dict) and ours.keys() <= theirs.keys() and isinstance(theirs["weights"], dict)
    ):
        raise GridError(f"{str(file)!r} does not describe a grid; choose another --output")
    # the same models have the same weights; another model may be added
    ours = ours | {"weights": theirs["weights"] | ours["weights"]}
    theirs = theirs | {"weights": ours["weights"] | theirs["weights"]}
    for key, what in DIFFERENCES.items():
        if theirs[key] != ours[key]:
            raise GridError(
                f"output folder {str(path)!r} holds a table from another grid: {what} "
                f"({_short(theirs[key])} there, {_short(ours[key])} now); choose another --output"
            )
    found = {p.name for p in path.glob("points/[!.]*")}  # not macOS's .DS_Store
    extra = sorted(found - set(grid.points))
    if extra:
        raise GridError(
            f"output folder {str(path)!r} holds a table from another grid: {len(extra)} points that "
            f"this one does not have, such as {extra[0]!r}; add their values, or choose another --output"
        )
    with _writing(path):
        write_whole(file, json.dumps(ours, indent=1).encode())


def read_points(path: Path, grid: Grid) -> dict[str, list[dict]]:
    """The rows of each point that is finished or failed.

    Raises:
        GridError: for a file that holds something else, because somebody edited it.
    """
    found = {}
    for name in grid.points:
        file = path / "points" / name / "rows.json"
        if file.is_file():
            rows = found[name] = _read_json(file)
            if not (isinstance(rows, list) and rows and all(map(_is_row, rows))):
                raise GridError(
                    f"{str(file)!r} does not hold rows of this grid; delete it, and the point runs again"
                )
    return found


def write_point(path: Path, grid: Grid, name: str, outcome: Outcome) -> list[dict]:
    """Keep what came of a point; returns its rows. GridError if the folder is not writable."""
    place = path / "points" / name
    rows = _rows(grid, name, outcome)
    with _writing(path):
        shutil.rmtree(place, ignore_errors=True)  # an earlier attempt
        place.mkdir()
        files = {f"{index:02d}.png": image for index, image in enumerate(outcome.images)}
        files |= {
            "notebook.ipynb": outcome.notebook.encode(),
            "rows.json": json.dumps(rows, indent=1).encode(),
        }
        write_all_whole({place / file: data for file, data in files.items()})
    return rows


def write_table(path: Path, grid: Grid, points: dict[str, list[dict]]) -> None:
    """Write table.csv and table.parquet, in the order of the grid; nothing if no point has rows yet."""
    rows = [row for name in grid.points if name in points for row in points[name]]
    given = pd.DataFrame(rows, dtype=object)
    if given.empty:
        return
    table = given.infer_objects()
    for name, values in given.items():
        known = values.dropna()
        kinds = set(known.map(type))
        if kinds == {int} and -(2**63) <= known.min() and known.max() < 2**63:
            table[name] = values.astype("Int64" if values.hasnans else "int64")  # no digit is lost to float64
        elif kinds == {int} or len(kinds) > 1 and table[name].dtype == object:
            table[name] = values.map(str, na_action="ignore")  # Parquet has no other type for them
    with _writing(path):
        csv, parquet = table.to_csv(index=False).encode(), table.to_parquet(index=False)
        write_all_whole({path / "table.csv": csv, path / "table.parquet": parquet})


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table.parquet or table.csv. ValueError for another kind of file."""
    path = Path(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        return pd.read_csv(path, keep_default_na=False, na_values=[""])  # "NA" and "None" are texts
    raise ValueError(f"table is {str(path)!r}, expected a .csv or .parquet file")


def _rows(grid: Grid, name: str, outcome: Outcome) -> list[dict]:
    """A point's rows of the table: parameters, what was recorded, and what is known of the run."""
    parameters = {
        f"parameter_{key}" if key in RESERVED else key: _plain(value)
        for key, value in (grid.defaults | grid.fixed | grid.points[name]).items()
    }
    head = {"point": name} | parameters
    tail = {"status": "failed" if outcome.error else "done", "error": outcome.error}
    tail |= {"seconds": outcome.seconds, "worker": outcome.worker}
    tail["notebook"] = f"points/{name}/notebook.ipynb"
    tail |= {f"version_{package}": number for package, number in outcome.versions.items()}
    rows = []
    for recorded in outcome.rows or [{}]:
        row = head.copy()
        for key, value in recorded.items():
            while key in row or key in tail:  # a recorded value never hides a parameter or another value
                key = f"recorded_{key}"
            row[key] = value
        rows.append(row | tail)
    return rows


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and row.get("status") in ("done", "failed") and "error" in row


def _plain(value: object) -> object:
    """A value as the table holds it: a number, a text, or the text of anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GridError(
            f"{str(file)!r} cannot be read: {why}; correct it, or choose another --output"
        ) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GridError(
            f"output folder {str(path)!r} cannot be written: {error.strerror or error}; what is finished "
            "there stays, and the same command goes on from it"
        ) from None


def _short(value: object) -> str:
    text = value[:8] if isinstance(value, str) and len(value) == 64 else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
