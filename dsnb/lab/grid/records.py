"""How a notebook hands results to whoever runs it: rows as JSON outputs, pictures as they are shown.

Light on purpose: every notebook of a grid imports it. `record` and `once` are for inside the notebook,
`recorded` and `pictures` read an executed one.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence

ROWS = "application/vnd.dsnb.rows+json"  # not plain JSON, which viewers would show as a tree
_kept: dict = {}


def record(rows: Sequence[dict] | None = None, /, **values) -> None:
    """Hand rows of results out of a notebook: `record(psnr=21.3, side="left")`, or a list of such rows.

    They become rows of the grid's table. Values are numbers, texts, truth values or None; a number with
    `.item()` (torch, numpy) is taken as that. Raises ValueError for anything else.
    """
    from IPython.display import display

    rows = [values] if rows is None else [dict(row) | values for row in rows]
    rows = [{str(name): _plain(name, value) for name, value in row.items()} for row in rows]
    text = f"{len(rows)} row{'s' * (len(rows) != 1)} recorded"
    display({ROWS: rows, "text/plain": text}, raw=True)


def _plain(name: str, value: object) -> object:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such numbers; nothing else is recorded as a dict
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{name} is {type(value).__name__}, expected one number, text, truth value or None")
    return value


def once(make: Callable, *args, **options):
    """`make(*args, **options)`, kept for this process, so that a worker loads a model once, not per point.

    What was made is found again by the name of `make` and the `repr` of the arguments. TypeError for a tensor or
    array among them, and for a lambda, which has no name.
    """
    if make.__name__ == "<lambda>":
        raise TypeError("make is a lambda, which cannot be told from others; expected a named function")
    for name, value in [*enumerate(args), *options.items()]:
        if _abbreviated(value):
            raise TypeError(
                f"argument {name!r} of once is a {type(value).__name__} that is or holds an array, which its repr "
                "does not tell from others; expected numbers, texts or paths"
            )
    key = (make.__module__, make.__qualname__, repr(args), repr(sorted(options.items())))
    if key not in _kept:
        _kept[key] = make(*args, **options)
    return _kept[key]


def _abbreviated(value: object) -> bool:
    """Whether a value is or holds a tensor or array (anything with a shape), whose `repr` leaves out most."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return any(map(_abbreviated, value))
    return bool(getattr(value, "shape", ()))


def recorded(notebook) -> list[dict]:
    """The rows that an executed notebook (an nbformat node) handed out with `record`, in order."""
    rows = []
    for output in _outputs(notebook):
        if output.output_type == "display_data":
            rows += [dict(row) for row in output.data.get(ROWS, [])]
    return [{k: float(v["float"]) if isinstance(v, dict) else v for k, v in row.items()} for row in rows]


def pictures(notebook) -> list[bytes]:
    """The PNG pictures among an executed notebook's outputs, in order."""
    coded = (
        output.data["image/png"] for output in _outputs(notebook) if "image/png" in output.get("data", {})
    )
    return [base64.b64decode("".join(code)) for code in coded]


def _outputs(notebook) -> Iterator:
    return (
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.get("outputs", [])
    )
