"""A notebook's parameters and a grid of values for them, checked before anything runs."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

import nbformat
import papermill

from ... import __version__
from .points import Point

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class GridError(ValueError):
    """A parameter or value that the notebook cannot take."""


@dataclass(frozen=True)
class Grid:
    """A notebook, what is fixed, what varies, and the points this makes."""

    notebook: Path
    source: str  # the notebook as text
    parameters: dict  # every parameter, with its default or its fixed value
    fixed: dict
    varied: dict[str, list]

    @property
    def identity(self) -> dict:
        """What two runs that share a table agree on: the notebook's code, fixed values, names varied, dsnb."""
        cells = nbformat.reads(self.source, as_version=4).cells
        code = [text for c in cells if c.cell_type == "code" and (text := _without_comments(c.source))]
        return {
            "notebook": self.notebook.name,
            "source": sha256(json.dumps(code).encode()).hexdigest(),
            "fixed": json.loads(json.dumps(self.fixed, sort_keys=True)),
            "grid": sorted(self.varied),
            "dsnb": __version__,
        }

    def points(self, figures: str = "") -> list[Point]:
        """One point per combination, the last name varying fastest; paths are relative to where we are."""
        combinations = itertools.product(*self.varied.values())
        varied = [dict(zip(self.varied, values, strict=True)) for values in combinations]
        return [
            Point(point_id(values), self.source, self.fixed | values, os.getcwd(), figures)
            for values in varied
        ]


def _without_comments(source: str) -> str:
    """A cell's code without comments and layout; as it is where it is not plain Python, as with magics."""
    try:
        return ast.unparse(ast.parse(source))  # its text changes less between Pythons than `ast.dump`'s
    except (SyntaxError, ValueError):
        return source


def point_id(values: Mapping) -> str:
    """A folder name for a point: readable, and unique through a hash of its values."""
    text = json.dumps(values, sort_keys=True)
    readable = re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{k}={v}" for k, v in values.items()))[:80].strip("._")
    return f"{readable or 'point'}-{sha256(text.encode()).hexdigest()[:8]}"


def make_grid(notebook: str | Path, varied: Mapping[str, Sequence], fixed: Mapping | None = None) -> Grid:
    """Check a notebook, fixed parameters and varied ones (name → values, as text or as they are).

    GridError names a file that is not a notebook, a parameter that it does not have (and near ones), a
    value of another type than the notebook's default, an empty list, or a name that is both fixed and
    varied.
    """
    path, fixed = Path(notebook), dict(fixed or {})
    try:
        source = path.read_text(encoding="utf-8")
        nbformat.reads(source, as_version=4)
    except OSError as error:
        raise GridError(f"notebook {str(path)!r} cannot be read: {error.strerror}") from None
    except Exception:
        raise GridError(f"notebook {str(path)!r} is not a Jupyter notebook (.ipynb)") from None
    known = notebook_parameters(path)
    for name in [*fixed, *varied]:
        if name not in known:
            raise GridError(_unknown(name, known, path))
    both = sorted(set(fixed) & set(varied))
    if both:
        raise GridError(f"parameter {both[0]!r} is both fixed (-p) and varied (--grid); choose one")
    fixed = {name: convert(name, value, *known[name]) for name, value in fixed.items()}
    values = {}
    for name, given in varied.items():
        if isinstance(given, str):
            raise GridError(f"grid {name!r} is {given!r}, expected a list of values")
        if not given:
            raise GridError(f"grid {name!r} has no values, expected at least one")
        converted = [convert(name, value, *known[name]) for value in given]
        values[name] = list({json.dumps(v): v for v in converted}.values())  # each once
    defaults = {name: default for name, (_, default) in known.items()}
    return Grid(path, source, defaults | fixed, fixed, values)


def notebook_parameters(path: Path) -> dict[str, tuple[type | None, object]]:
    """A notebook's parameters → (type, default), from its `parameters` cell; type None takes anything."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = papermill.inspect_notebook(str(path))
    known = {}
    for name, entry in found.items():
        try:
            default = ast.literal_eval(entry["default"])
        except (ValueError, SyntaxError):
            default = None
        kind = TYPES.get(re.match(r"\w*", entry["inferred_type_name"] or "").group())
        known[name] = (kind or (type(default) if type(default) in TYPES.values() else None), default)
    return known


def _unknown(name: str, known: Mapping, path: Path) -> str:
    if not known:
        return f"notebook {path.name!r} has no cell tagged 'parameters', so it takes no parameter {name!r}"
    near = get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(known)}"
    return f"notebook {path.name!r} has no parameter {name!r}; {hint}"


def convert(name: str, value, kind: type | None, default=None):
    """A value, given as text or as it is, in the parameter's type; GridError where it is of another type."""
    wanted = f"expected {kind.__name__ if kind else 'a value'} like the notebook's default {default!r}"
    if isinstance(value, str) and kind is not str:
        try:
            value = _read(value, kind)
        except (ValueError, SyntaxError, KeyError):
            raise GridError(f"parameter {name!r} is {value!r}, {wanted}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise GridError(f"parameter {name!r} is {value!r} ({type(value).__name__}), {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise GridError(f"parameter {name!r} is {value!r}, expected a finite number")
    return value


def _read(text: str, kind: type | None):
    if kind is bool:
        return TRUTHS[text.strip().lower()]
    if kind in (int, float):
        return kind(text)
    if kind is None:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return ast.literal_eval(text)


def parse_settings(settings: Sequence[str], option: str) -> dict[str, str]:
    """["name=value", …] → {name: value as text}; GridError for one without `=` or given twice."""
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise GridError(f"{option} {setting!r}: expected {option} name=value")
        if name in parsed:
            raise GridError(f"{option} {name!r} is given twice")
        parsed[name] = value
    return parsed


def parse_values(text: str) -> list:
    """The values of `--grid name=…`: "a,b,c", a range of integers "0:96:8", or a list "['a, b', 'c']"."""
    text = text.strip()
    if text.startswith("["):
        try:
            return list(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            raise GridError(f"grid values {text!r} start like a list but cannot be read as one") from None
    if re.fullmatch(r"-?\d+:-?\d+(:-?[1-9]\d*)?", text):
        return [str(k) for k in range(*map(int, text.split(":")))]
    return [part.strip() for part in text.split(",")] if text else []
