"""A notebook's parameters and the values that a grid gives them, checked before anything runs."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ... import __version__, data_path
from ...checks import did_you_mean

MOST = 100_000  # points of a grid
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)  # of ast.literal_eval
HASHED = (".safetensors", ".json", ".txt")  # a model folder's files that decide what it draws
HISTORY = "training.json"  # beside the weights: one entry per stage and training, the oldest first; it decides nothing


class GridError(ValueError):
    """A grid cannot run or go on. The message says why and what to do."""


@dataclass(frozen=True)
class Grid:
    """A notebook with fixed parameters and varied ones."""

    notebook: Path
    source: str  # the notebook as text
    defaults: dict  # every parameter of the notebook
    fixed: dict
    varied: dict[str, list]

    @cached_property
    def identity(self) -> dict:
        """What must be equal in two runs that share a table."""
        models = self.varied.get("model", [(self.defaults | self.fixed).get("model")])
        paths = {"bundled": data_path("models")} | {
            m: Path(m).expanduser() for m in models if isinstance(m, str) and m
        }
        given = [*(self.defaults | self.fixed).values(), *itertools.chain(*self.varied.values())]
        paths |= {text: Path(text) for text in given if isinstance(text, str) and _is_file(text)}
        code = [text for c in _code_cells(self.source) if (text := without_comments(c.source))]
        return {
            "notebook": self.notebook.name,
            "source": hashlib.sha256(json.dumps(code).encode()).hexdigest(),
            "fixed": json.loads(json.dumps(self.fixed)),
            "grid": sorted(self.varied),
            "dsnb": __version__,
            "weights": {name: hash_weights(path) for name, path in paths.items() if path.exists()},
        }

    @cached_property
    def points(self) -> dict[str, dict]:
        """A name and the values of every combination. The last parameter varies fastest."""
        combinations = itertools.product(*self.varied.values())
        points = [dict(zip(self.varied, values, strict=True)) for values in combinations]
        return {point_name(values): values for values in points}


def make_grid(
    notebook: str | Path, varied: Mapping[str, Sequence], fixed: Mapping[str, object] | None = None
) -> Grid:
    """Check a notebook and the values for its parameters.

    Args:
        notebook: an .ipynb file. Its parameters are assigned in the cells with the tag `parameters`.
        varied: parameter → values. The grid is made of all combinations.
        fixed: parameter → value for all points. Values may be texts, which take the type of the default.

    Returns:
        The grid.

    Raises:
        GridError: if the file is not a notebook, a parameter does not exist, or a value has another type.
    """
    path, fixed = Path(notebook), dict(fixed or {})
    source, known = _read(path)
    for name in [*fixed, *varied]:
        if name not in known:
            ours = f"it has {', '.join(known)}" if known else "it has no cell tagged 'parameters'"
            raise GridError(
                f"notebook {path.name!r} has no parameter {name!r}; {ours}{did_you_mean(name, known)}"
            )
    if both := sorted(set(fixed) & set(varied)):
        raise GridError(f"parameter {both[0]!r} is both fixed (-p) and varied (--grid); choose one")
    for name, values in varied.items():
        if isinstance(values, str) or not len(values):
            raise GridError(f"grid {name!r} is {values!r}, expected a list of at least one value")
    if (count := math.prod(map(len, varied.values()))) > MOST:
        raise GridError(f"the grid has {count:,} points, expected at most {MOST:,}; vary fewer values")
    fixed = {name: convert(name, value, *known[name]) for name, value in fixed.items()}
    varied = {name: [convert(name, v, *known[name]) for v in values] for name, values in varied.items()}
    varied = {name: list({json.dumps(v): v for v in values}.values()) for name, values in varied.items()}
    return Grid(path, source, {name: default for name, (_, default) in known.items()}, fixed, varied)


def _read(path: Path) -> tuple[str, dict[str, tuple[type | None, object]]]:
    """A notebook as text, and its parameters; GridError if it is no notebook."""
    try:
        source = path.read_text(encoding="utf-8")
        cells = _code_cells(source)
    except OSError as error:
        raise GridError(f"notebook {str(path)!r} cannot be read: {error.strerror}") from None
    except Exception:  # it is not text, JSON or a notebook; nbformat raises many kinds
        raise GridError(f"notebook {str(path)!r} is not a Jupyter notebook (.ipynb)") from None
    code = "\n".join(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    try:
        return source, _parameters(code)
    except SyntaxError as error:
        raise GridError(
            f"notebook {path.name!r}: the cell tagged 'parameters' is not Python: {error}"
        ) from None


def _code_cells(source: str) -> list:
    """The code cells that a point runs: without the parameters that an earlier run has set."""
    import nbformat  # a slow import: Ctrl-C prints a message when this is called

    cells = [c for c in nbformat.reads(source, as_version=4).cells if c.cell_type == "code"]
    return [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]


def _parameters(source: str) -> dict[str, tuple[type | None, object]]:
    """Parameter → (type, default), from the code of the parameters cell; type None takes anything."""
    found = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.AnnAssign) and line.value is not None:
            target, annotation = line.target, ast.unparse(line.annotation).partition("[")[0]
        elif isinstance(line, ast.Assign):
            target, annotation = line.targets[0], ""
        else:
            continue
        try:
            default = ast.literal_eval(line.value)
            kind = TYPES.get(type(default).__name__)
        except (TypeError, ValueError):  # an expression, of which the table shows the text
            default, kind = ast.unparse(line.value), None
        found[ast.unparse(target)] = TYPES.get(annotation) or kind, default
    return found


def convert(name: str, value: object, kind: type | None, default: object = None) -> object:
    """A value in the parameter's type.

    Args:
        name: the parameter, for the message.
        value: a text, or a value of that type.
        kind: the type; None takes anything.
        default: the notebook's default, for the message.

    Returns:
        The value.

    Raises:
        GridError: for a value of another type, a number that is not finite, or a text that is not valid Unicode.
    """
    given = value
    value = value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch
    if isinstance(value, str) and kind is bool:
        value = TRUTHS.get(value.strip().lower(), value)
    elif isinstance(value, str) and kind is not str:
        try:
            value = ast.literal_eval(value)
        except UNREADABLE:
            pass  # a parameter of any type takes the text
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is not None and type(value) is not kind:
        raise GridError(
            f"parameter {name!r} is {given!r}, expected {kind.__name__} like the notebook's default {default!r}"
        )
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        wanted = "finite numbers, texts of valid Unicode, truth values, or lists or dictionaries of them"
        raise GridError(f"parameter {name!r} is {given!r}, expected {wanted}") from None
    return value


def parse_settings(settings: Sequence[str], option: str) -> dict[str, str]:
    """Turn ["name=value", …] into {name: value}; GridError for one without `=` or given twice."""
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
    """The values of `--grid name=…`: "a,b,c", a range of integers "0:96:8", or a list "['a, b', 'c']".

    Raises:
        GridError: a list that cannot be read, or too many values.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            return list(ast.literal_eval(text))
        except UNREADABLE:
            raise GridError(f"grid values {text!r} start like a list but cannot be read as one") from None
    if re.fullmatch(r"-?\d+:-?\d+(:-?0*[1-9]\d*)?", text):
        values = range(*map(int, text.split(":")))
        if values[MOST:]:
            raise GridError(f"grid values {text!r} are more than {MOST:,}, the most points of a grid")
        return list(map(str, values))
    return [part.strip() for part in text.split(",")] if text else []


def point_name(values: Mapping) -> str:
    """A folder name for a point: readable, and unique by a hash of its values."""
    text = json.dumps(values, sort_keys=True)
    readable = re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{k}={v}" for k, v in values.items()))[:80].strip("._")
    return f"{readable or 'point'}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a text that no file can be named by
        return False


def hash_weights(path: Path) -> str:
    """A hash of a model file, or of all weights and settings in a folder; GridError if one cannot be read."""
    whole, files = hashlib.sha256(), [path]
    if path.is_dir():
        files = [f for f in sorted(path.rglob("*")) if f.suffix in HASHED and f.name != HISTORY]
    try:
        for file in files:
            with file.open("rb") as opened:
                whole.update(str(file.relative_to(path)).encode())
                whole.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise GridError(f"model {str(path)!r} cannot be read: {error.strerror} ({file})") from None
    return whole.hexdigest()


def without_comments(source: str) -> str:
    """A cell's code without comments and layout, or as it is if it is not plain Python (magics)."""
    try:
        return _plain(ast.parse(source).body)
    except (SyntaxError, ValueError):
        return source


def _plain(part: object) -> str:
    """A syntax tree as text, the same in all versions of Python: without positions, quotes and empty fields."""
    if isinstance(part, list):
        return " ".join(map(_plain, part))
    if not isinstance(part, ast.AST):
        return repr(part)
    kept = {
        name: value for name, value in ast.iter_fields(part) if value not in (None, []) and name != "kind"
    }
    return f"({type(part).__name__} {' '.join(f'{name}={_plain(value)}' for name, value in kept.items())})"
