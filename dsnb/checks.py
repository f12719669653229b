"""Checks of what a user passes. Each returns the value in its plain type, or raises an error that says what is right.

In every check, `name` is the parameter that the error names, and `value` is what the user passed. The checks belong in
public functions, in what reads files, and in the command line. Internal code trusts its caller.
"""

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Set
from difflib import get_close_matches
from typing import Any


def number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> float:
    """A finite number, also from a numpy or torch scalar.

    Args:
        name: the parameter that the error names.
        value: what the user passed.
        low, high: the range, both ends included.
        above: a lower end that is itself not allowed.

    Returns:
        The number.

    Raises:
        TypeError: for something that is not a number.
        ValueError: for NaN, infinity, or a number outside the range.
    """
    wanted = f"{name} must be a finite number{_range(low, high, above)}, got {_short(value)}"
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        result = float(value)
    except OverflowError:
        raise ValueError(wanted) from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(wanted) from None
    if not (math.isfinite(result) and low <= result <= high and (above is None or result > above)):
        raise ValueError(wanted)
    return result


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """A whole number in a range, both ends included. Raises as `number`."""
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    wanted = f"{name} must be a whole number{_range(*ends, None)}, got {_short(value)}"
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except (TypeError, RuntimeError):
        raise TypeError(wanted) from None
    if not ends[0] <= result <= ends[1]:
        raise ValueError(wanted)
    return result


def numbers(
    name: str, value: Any, n: int | None = None, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """n numbers, from one number or from a list, array or tensor of n; without n, any count. Raises as `number`."""
    given = value.reshape(-1).tolist() if hasattr(value, "reshape") else value
    # A mapping or a set does not say which number is the first.
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | Set)
    given = list(given) if several else [given]
    if n is not None and len(given) not in (1, n):
        raise ValueError(f"{name} must be one number or {n} numbers, got {len(given)} of them")
    values = [number(name, each, low, high) for each in given]
    return values * n if n is not None and len(values) == 1 else values


def size(name: str, value: Any, multiple: int = 1, high: int | None = None) -> tuple[int, int]:
    """(height, width) from a pair, or from one number for a square; multiples of `multiple`. Raises as `number`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be one number, or height and width; got {_short(value)}")
    height, width = (integer(name, side, multiple, high) for side in both)
    if height % multiple or width % multiple:
        raise ValueError(f"{name} must be multiples of {multiple}, got {height} x {width}")
    return height, width


def text(name: str, value: Any) -> str:
    """One text. Raises TypeError for anything else, ValueError for a text that is not valid Unicode."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be valid Unicode, got {_short(value)}") from None
    return value


def texts(name: str, value: Any) -> list[str]:
    """A list of texts. Raises TypeError for a single text, which Python would read as a list of letters."""
    if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of texts, got {_short(value)}")
    return [text(f"{name}[{i}]", each) for i, each in enumerate(value)]


def one_or_each(name: str, value: Any, n: int) -> str | tuple[str, ...]:
    """One text for all n images, or a list with one text for each. Raises as `texts`, and ValueError."""
    if isinstance(value, str):
        return text(name, value)
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be one text, or a list of texts; got {_short(value)}")
    each = tuple(texts(name, value))
    if len(each) != n:
        raise ValueError(f"{name} must be one text, or one for each of the {n} images; got {len(each)} texts")
    return each


def one_of(name: str, value: Any, known: Collection[str]) -> str:
    """One of the known names. Raises ValueError that suggests the most similar one."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}; got {_short(value)}{did_you_mean(value, known)}"
        )
    return value


def instance(name: str, value: Any, kind: type, hint: str) -> Any:
    """An object of a class; `hint` says how to get one. Raises TypeError."""
    if not isinstance(value, kind):
        module = kind.__module__.removesuffix("._C")  # torch defines its classes in this module
        full = f"{module}.{kind.__name__}".removeprefix("builtins.")
        raise TypeError(f"{name} must be a {full}, got {_short(value)}; {hint}")
    return value


def dense(name: str, value: Any, kind: type, hint: str) -> Any:
    """A tensor that is neither sparse nor on the meta device. Raises TypeError."""
    instance(name, value, kind, hint)
    if value.is_meta or str(value.layout) != "torch.strided":
        raise TypeError(
            f"{name} must be a dense tensor with values, got one of layout {value.layout} on device {value.device}"
        )
    return value


def flag(name: str, value: Any) -> bool:
    """True or False. Raises TypeError for anything else, because Python takes any text for True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_short(value)}")
    return value


def function(name: str, value: Any) -> Any:
    """A callable or None. Raises TypeError."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function or None, got {_short(value)}")
    return value


def did_you_mean(value: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message, "; did you mean 'x'?", or "" if no known name is as similar as `cutoff`, from 0 to 1."""
    plain = {"".join(c for c in name.lower() if c.isalnum()): name for name in known}
    near = get_close_matches("".join(c for c in str(value).lower() if c.isalnum()), plain, 1, cutoff)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def _range(low: float, high: float, above: float | None) -> str:
    parts = []
    if above is not None:
        parts.append(f"above {_digits(above)}")
    elif low > -math.inf and high < math.inf:
        return f" from {_digits(low)} to {_digits(high)}"
    elif low > -math.inf:
        parts.append(f"of at least {_digits(low)}")
    if high < math.inf:
        parts.append(f"at most {_digits(high)}")
    return f" {' and '.join(parts)}" if parts else ""


def _digits(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _short(value: Any) -> str:
    """The value as an error shows it: class and shape of a tensor or array, the start of a long text."""
    if len(getattr(value, "shape", ())):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    try:
        shown = repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        return f"a {type(value).__name__} too large to be shown"
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
