"""Controls from plain Python values, and whether the front end can use them."""

import os
from decimal import Decimal
from inspect import Parameter
from numbers import Integral, Number
from typing import Any

import ipywidgets

from .. import checks

LOOK = {"style": {"description_width": "130px"}, "layout": {"width": "360px"}}  # of every control of a panel


def is_interactive() -> bool:
    """Whether a user can move sliders.

    Returns:
        DSNB_INTERACTIVE (0 or 1) if it is set, else whether the front end can send inputs.
    """
    said = os.environ.get("DSNB_INTERACTIVE", "")
    if said:
        return said.lower() not in ("0", "false", "no", "off")
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    # Jupyter's front ends execute cells with allow_stdin; papermill and nbconvert without.
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def read_control(name: str, given: Any, default: Any) -> tuple[Any, dict[str, Any]]:
    """Finds the control for a plain value.

    Args:
        name: of the control, for errors.
        given: the value, as `explore` takes it.
        default: the start value if `given` has none; `Parameter.empty` if there is no default.

    Returns:
        The widget class, or the object given, and its options with the start `value`.

    Raises:
        ValueError: there is no control for `given`, or the start value is outside it.
    """
    if hasattr(given, "observe") and hasattr(given, "value"):
        return given, {"value": given.value}
    if isinstance(given, bool):
        return ipywidgets.Checkbox, {"value": given}
    if isinstance(given, str):
        return ipywidgets.Text, {"value": given, "continuous_update": False}
    if isinstance(given, Number):
        checks.number(name, given)
        kind = ipywidgets.IntText if isinstance(given, Integral) else ipywidgets.FloatText
        return kind, {"value": given}
    if isinstance(given, tuple) and 2 <= len(given) <= 4 and all(isinstance(part, Number) for part in given):
        for part in (*given, given[1] - given[0]):
            checks.number(name, part)
        low, high = given[:2]
        start = given[3] if len(given) > 3 else default if isinstance(default, Number) else None
        whole = all(isinstance(part, Integral) for part in (*given, start) if part is not None)
        step = given[2] if len(given) > 2 else (1 if whole else (high - low) / 100)
        if start is None:
            start = (low + high) // 2 if whole else (low + high) / 2
        if not (low < high and step > 0 and low <= start <= high):
            raise ValueError(
                f"{name} is {given} with start {start}; expected (low, high, step, start) with "
                "low <= start <= high and step > 0"
            )
        options = {"min": low, "max": high, "step": step, "value": start}
        if whole:
            return ipywidgets.IntSlider, options
        decimals = max(0, -int(Decimal(f"{step:g}").as_tuple().exponent))
        return ipywidgets.FloatSlider, options | {"readout_format": f".{decimals}f"}
    if isinstance(given, (list, dict)) and given:
        choices = list(given.items()) if isinstance(given, dict) else given
        values = [_value_of(choice) for choice in choices]
        if any(getattr(value, "ndim", 0) for value in values):
            raise ValueError(
                f"{name} has an array among its choices; offer the arrays' names or indices instead"
            )
        first = default is Parameter.empty or (default is None and None not in values)
        if not first and default not in values:
            raise ValueError(f"{name} starts at {default!r}; expected one of {values}")
        return ipywidgets.Dropdown, {"options": choices, "value": values[0] if first else default}
    raise ValueError(
        f"{name} is {given!r}; expected (low, high, step, start), a list or dictionary of choices, "
        "True/False, a number, a text or a widget"
    )


def _value_of(choice: Any) -> Any:
    """The value of a menu's choice, which may be a pair (label, value), as ipywidgets reads it."""
    return choice[1] if isinstance(choice, tuple) and len(choice) == 2 else choice


def make_control(kind: Any, options: dict[str, Any], text: str) -> Any:
    """Makes the widget that `read_control` found.

    Args:
        kind, options: from `read_control`.
        text: the label.

    Returns:
        The widget, or `kind` itself if it is an object of the caller.
    """
    if not isinstance(kind, type):
        return kind
    if kind is ipywidgets.Dropdown:  # by its index, because None as `value` would choose nothing
        values = [_value_of(choice) for choice in options["options"]]
        options = {"options": options["options"], "index": values.index(options["value"])}
    return kind(description=text, **LOOK, **options)


def tidy(value: Any) -> Any:
    """A control's value without rounding errors, such as 5.0 for 5.000000000000001."""
    if isinstance(value, tuple):
        return tuple(map(tidy, value))
    return float(f"{value:.12g}") if isinstance(value, float) else value
