"""The output folder of a grid: one folder per finished point, and the table made from them.

    grid.json              which notebook, fixed values and names of parameters the folder belongs to
    points/<id>/           notebook.ipynb as executed, row.json, 00.png, 01.png, …
    table.csv, .parquet    all rows: parameters, seed, what was recorded, status, error, versions

Everything is written beside its place and then renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from ...files import write_down, write_whole
from .grid import Grid
from .points import Outcome

RESERVED = ("point", "status", "error", "seconds", "worker", "notebook")  # the table's own columns
OLD = 3600.0  # seconds after which a half-written folder is taken for abandoned


class FolderError(RuntimeError):
    """The output folder cannot be used; the message says why and what to do."""


class Folder:
    """Where a grid's results live. FolderError for a folder that cannot be written or is another grid's."""

    def __init__(self, path: str | Path, grid: Grid):
        self.path, self.grid = Path(path), grid
        self.points = self.path / "points"
        try:
            self.points.mkdir(parents=True, exist_ok=True)
            for left in self.points.glob(".tmp-*"):
                if time.time() - left.stat().st_mtime > OLD:
                    shutil.rmtree(left, ignore_errors=True)
            self._claim()
        except OSError as error:
            raise self._unwritable(error) from None

    def _claim(self) -> None:
        """Check that the folder is this grid's, or make it so."""
        file, identity = self.path / "grid.json", self.grid.identity
        if not file.is_file():
            strangers = [p.name for p in self.path.iterdir() if p.name.startswith("table.")]
            if strangers or any(self.points.iterdir()):
                raise FolderError(
                    f"output folder {str(self.path)!r} holds results but no grid.json, so whose they are "
                    "cannot be told; choose another --output"
                )
            write_whole(file, json.dumps(identity, indent=1).encode())
            return
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise FolderError(f"{str(file)!r} is not readable as JSON; choose another --output") from None
        for key, what in (
            ("notebook", "another notebook"),
            ("source", "an earlier version of this notebook's code"),
            ("fixed", "other fixed parameters"),
            ("grid", "a grid over other parameters"),
            ("dsnb", "another version of dsnb"),
        ):
            if theirs.get(key) != identity[key]:
                raise FolderError(
                    f"output folder {str(self.path)!r} holds a table from another grid: {what} "
                    f"({_short(theirs.get(key))} there, {_short(identity[key])} now); choose another --output"
                )
        wanted = {point.id for point in self.grid.points()}
        extra = sorted(p.name for p in self.points.iterdir() if p.name[0] != "." and p.name not in wanted)
        if extra:
            raise FolderError(
                f"output folder {str(self.path)!r} holds a table from another grid: {len(extra)} points that "
                f"this one does not have, such as {extra[0]!r}; add their values, or choose another --output"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out while the block runs. FolderError where one is working in the folder."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FolderError(
                f"output folder {str(self.path)!r} is in use by another run; wait for it, or choose another --output"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            yield
        finally:
            lock.release()

    def read(self) -> dict[str, dict]:
        """The finished points, id → contents of row.json; unreadable ones are as good as missing."""
        found = {}
        for file in sorted(self.points.glob("*/row.json")):
            if not file.parent.name.startswith("."):
                try:
                    found[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
                except ValueError:
                    continue
        return found

    def write(self, outcome: Outcome, parameters: dict) -> None:
        """Keep one point in a folder that appears at once; FolderError if it cannot be written."""
        temporary = None
        try:
            temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.points))
            write_down(temporary / "notebook.ipynb", outcome.notebook.encode())
            for index, picture in enumerate(outcome.pictures):
                write_down(temporary / f"{index:02d}.png", picture)
            row = {
                "parameters": parameters,
                "rows": outcome.rows,
                "status": outcome.status,
                "error": outcome.error,
                "seconds": outcome.seconds,
                "worker": outcome.worker,
                "versions": outcome.versions,
            }
            write_down(temporary / "row.json", json.dumps(row, indent=1).encode())
            temporary.chmod(0o755)
            place = self.points / outcome.id
            shutil.rmtree(place, ignore_errors=True)  # an earlier, failed attempt
            os.replace(temporary, place)
        except OSError as error:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise self._unwritable(error) from None

    def write_table(self) -> pd.DataFrame:
        """Make table.csv and table.parquet from the finished points, and return the table."""
        table = self.table()
        text = table.to_csv(index=False).encode()
        flat = table.apply(lambda column: column.map(_text) if _mixed(column) else column)
        try:
            write_whole(self.path / "table.csv", text)
            write_whole(self.path / "table.parquet", flat.to_parquet(index=False))
        except OSError as error:
            raise self._unwritable(error) from None
        return table

    def table(self) -> pd.DataFrame:
        """All rows, in the order of the grid."""
        found = self.read()
        parts = [self._parts(point.id, found[point.id]) for point in self.grid.points() if point.id in found]
        # a recorded name that is also a parameter's has a column of its own, unless it always says the same
        other = {
            name
            for head, rows, tail in parts
            for row in rows
            for name, value in row.items()
            if name in head | tail and (head | tail)[name] != value
        }
        name_of = lambda name: f"recorded_{name}" if name in other else name
        return pd.DataFrame(
            [
                head | {name_of(k): v for k, v in row.items()} | tail
                for head, rows, tail in parts
                for row in rows
            ]
        )

    def _parts(self, name: str, point: dict) -> tuple[dict, list[dict], dict]:
        """What stands before a point's rows in the table, the rows themselves, and what stands behind."""
        parameters = {
            f"parameter_{k}" if k in RESERVED else k: json.dumps(v) if isinstance(v, list | dict) else v
            for k, v in point["parameters"].items()
        }
        head = {"point": name} | parameters | {"seed": parameters.get("seed")}
        tail = {"status": point["status"], "error": point["error"], "seconds": point["seconds"]}
        tail |= {"worker": point["worker"], "notebook": f"points/{name}/notebook.ipynb"}
        tail |= {f"version_{package}": number for package, number in point["versions"].items()}
        return head, point["rows"] or [{}], tail

    def _unwritable(self, error: OSError) -> FolderError:
        return FolderError(
            f"output folder {str(self.path)!r} cannot be written: {error.strerror or error}; what is "
            "finished there stays, and the same command goes on from it"
        )


def _short(value: object) -> str:
    text = value[:8] if isinstance(value, str) and len(value) == 64 else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _mixed(column: pd.Series) -> bool:
    """Whether a column holds values of several types, which Parquet does not take."""
    return column.dtype == object and len({type(value) for value in column if not pd.isna(value)}) > 1


def _text(value: object) -> str | None:
    return None if pd.isna(value) else str(value)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read table.parquet or table.csv, or several (a list), as one; ValueError for another kind of file."""
    if isinstance(path, Sequence) and not isinstance(path, str):
        return pd.concat([read_table(part) for part in path], ignore_index=True)
    path = Path(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        return pd.read_csv(path)
    raise ValueError(f"table is {str(path)!r}, expected a .csv or .parquet file")
