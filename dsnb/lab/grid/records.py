"""For use inside a notebook: `record` hands rows to whoever runs it, `once` keeps what is slow to load.

Every notebook of a grid imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType

from ... import checks

ROWS = "application/vnd.dsnb.rows+json"  # a type of our own, since viewers show plain JSON as a tree
_kept: dict[tuple, object] = {}


def record(rows: Sequence[dict] | dict | None = None, /, **values: object) -> None:
    """Hand rows of results out of a notebook, such as `record(psnr=21.3, side="left")`.

    Args:
        rows: rows as dictionaries, or one row; without it, `values` are the only row.
        values: columns that all rows get. A value is a number, a text, True, False or None. Scalars of torch and
            numpy are numbers.

    Raises:
        ValueError: for rows or a value of another type, or a text that is not valid Unicode.
    """
    from IPython.display import display

    rows = [values] if rows is None else [rows] if isinstance(rows, Mapping) else rows
    try:
        rows = [dict(row) | values for row in rows]
    except (TypeError, ValueError):
        raise ValueError(f"rows must be a dictionary or a list of dictionaries, got {rows!r:.80}") from None
    rows = [{str(name): _plain(name, value) for name, value in row.items()} for row in rows]
    text = f"{len(rows)} row{'s' * (len(rows) != 1)} recorded"
    display({ROWS: rows, "text/plain": text}, raw=True)


def _plain(name: str, value: object) -> object:
    with suppress(ValueError, RuntimeError):  # an array or tensor of several numbers
        value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such numbers
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{name} is {type(value).__name__}, expected one number, text, truth value or None")
    return checks.text(name, value) if isinstance(value, str) else value


def recorded(notebook) -> list[dict]:
    """Rows that an executed notebook (an nbformat node) handed out with `record`, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    rows = [row for output in outputs for row in output.get("data", {}).get(ROWS, [])]
    return [{k: float(v["float"]) if isinstance(v, dict) else v for k, v in row.items()} for row in rows]


def once(make: Callable, *args, **options):
    """Call `make(*args, **options)` the first time, and return the same object every later time.

    The object is kept until the process ends. A grid therefore loads a model once per kernel, not once per point.

    Args:
        make: a function, class or class method; its name, `args` and `options` identify the object.
        args, options: numbers, texts or paths, since they are compared by their `repr`.

    Raises:
        TypeError: for a lambda, a function inside a function, a method of an object, or an array among the arguments.
    """
    qualname, owner = getattr(make, "__qualname__", "<"), getattr(make, "__self__", None)
    # the names of lambdas and of functions inside functions have "<": "<lambda>", "outer.<locals>.inner"
    if "<" in qualname or not isinstance(owner, type | ModuleType | None):
        raise TypeError(
            f"make is {make!r}, which cannot be told from others by its name; expected a function or class "
            "that is not inside a function, or a class method"
        )
    for name, value in [*enumerate(args), *options.items()]:
        if _holds_array(value):
            raise TypeError(
                f"argument {name!r} of once is a {type(value).__name__} that is or holds an array; "
                "expected numbers, texts or paths, which their repr identifies"
            )
    key = (make.__module__, qualname, repr(owner), repr(args), repr(sorted(options.items())))
    if key not in _kept:
        _kept[key] = make(*args, **options)
    return _kept[key]


def _holds_array(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return any(map(_holds_array, value))
    return bool(getattr(value, "shape", ()))


def clear(folder: str, figures: str) -> None:
    """Clear this kernel for the next point; its modules and the objects of `once` stay.

    Args:
        folder: the folder that the notebook runs in.
        figures: the folder for figures that the notebook saves.
    """
    from IPython import get_ipython

    os.environ["DSNB_FIGURES"] = figures
    os.chdir(folder)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if "ipywidgets" in sys.modules:
        sys.modules["ipywidgets"].Widget.close_all()
    get_ipython().reset(new_session=True)
    gc.collect()  # a model may have been among the variables
