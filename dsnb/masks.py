"""Where each style goes: one continuous definition, turned into weights (N, H, W) at any resolution.

Coordinates: x runs from 0 (left edge) to 1 (right edge), y from 0 (top edge) to 1 (bottom edge). A field maps
(x, y, progress) to N non-negative numbers; `Mask.weights` averages it over each cell and makes the sum 1.
"""

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import read_grey

Field = Callable[[Tensor, Tensor, float], Tensor]
SUPERSAMPLE = 8  # points per cell and axis when a cell is averaged


@dataclass(frozen=True)
class Mask:
    """N weights over the picture. `field(x, y, progress)` -> (n, *x.shape), any non-negative numbers."""

    n: int
    field: Field
    timed: bool = False  # whether the weights change over the denoising steps

    def weights(self, height: int, width: int, progress: float = 0.0, sampling: str = "area") -> Tensor:
        """Weights (n, height, width), float32, each pixel summing to 1.

        sampling: "area" averages the field over each cell; "endpoints" reads it at linspace(0, 1, size), as the
        reference numbers do. progress: 0 at the first denoising step, 1 at the end.
        Raises ValueError for negative or non-finite weights, or a place where every style has weight 0.
        """
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1, got {height} x {width}")
        if sampling == "endpoints":
            y, x = _grid(torch.linspace(0, 1, height), torch.linspace(0, 1, width))
            raw = self._field(x, y, progress)
        elif sampling == "area":
            k = SUPERSAMPLE
            y, x = _grid(_centres(height * k), _centres(width * k))
            raw = self._field(x, y, progress)
            raw = raw.reshape(self.n, height, k, width, k).mean((2, 4))
        else:
            raise ValueError(f"sampling must be 'area' or 'endpoints', got {sampling!r}")
        return (raw / raw.sum(0, keepdim=True)).float()

    def _field(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        raw = self.field(x, y, progress).double()
        if raw.shape != (self.n, *x.shape):
            raise ValueError(
                f"the mask's field must return {(self.n, *x.shape)} numbers, got {tuple(raw.shape)}"
            )
        if not torch.isfinite(raw).all() or (raw < 0).any():
            raise ValueError(
                "mask weights must be finite and not negative; some are NaN, infinite or below 0"
            )
        total = raw.sum(0, keepdim=True)
        if (total <= 0).any():
            raise ValueError("mask weights must not all be 0 at one place: there no style would be drawn")
        return raw / total

    def flip(self) -> "Mask":
        """The same mask with the order of the styles reversed."""
        return replace(self, field=lambda x, y, p: self.field(x, y, p).flip(0))

    def active(self, starts: Sequence[float], ends: Sequence[float]) -> "Mask":
        """Style i takes part only while starts[i] <= progress < ends[i]; elsewhere the others fill in.

        starts, ends: n numbers in [0, 1]. Where no active style has weight the active ones share equally.
        """
        if len(starts) != self.n or len(ends) != self.n:
            raise ValueError(f"starts and ends need {self.n} numbers each, got {len(starts)} and {len(ends)}")
        edges = sorted({0.0, *(float(v) for v in (*starts, *ends) if 0 <= v < 1)})
        for edge in edges:
            if not any(s <= edge < e for s, e in zip(starts, ends, strict=True)):
                raise ValueError(f"starts={list(starts)}, ends={list(ends)}: no style is active at {edge:g}")

        def field(x, y, progress):
            progress = min(progress, 1 - 1e-9)
            on = torch.tensor([float(s <= progress < e) for s, e in zip(starts, ends, strict=True)])
            on = on.to(x).reshape(-1, *[1] * x.dim())
            raw = self.field(x, y, progress) * on
            return torch.where(raw.sum(0, keepdim=True) > 0, raw, on)

        return replace(self, field=field, timed=True)


def linear(n: int = 2, angle: float = 0.0, center: Sequence[float] = (0.5, 0.5)) -> Mask:
    """Straight ramps from style to style, style 0 first along the direction `angle`.

    angle: degrees; 0 goes left to right, 90 top to bottom. center: (x, y) of the ramp's middle, in [0, 1].
    With two styles the weight of style 0 falls linearly from 1 to 0 across the picture.
    """
    _check_styles(n)
    u = _axis(angle, center)

    def field(x, y, progress):
        position = u(x, y).clamp(0, 1) * (n - 1)
        return torch.stack([(1 - (position - i).abs()).clamp(min=0) for i in range(n)])

    return Mask(n, field)


def logistic(
    sharpness: float = 20.0, n: int = 2, angle: float = 0.0, center: Sequence[float] = (0.5, 0.5)
) -> Mask:
    """Logistic transitions: with two styles the weight of style 1 is 1 / (1 + exp(-sharpness (u - 1/2))).

    u runs from 0 to 1 across the picture along `angle` (degrees; 0 left to right, 90 top to bottom). N styles meet
    at u = k/N. sharpness > 0: 20 blends over a fifth of the picture, 200 is almost a cut.
    """
    _check_styles(n)
    _positive("sharpness", sharpness)
    u = _axis(angle, center)
    return Mask(n, lambda x, y, progress: _bands(u(x, y), n, sharpness))


def sharpen(
    first: float, last: float, n: int = 2, angle: float = 0.0, center: Sequence[float] = (0.5, 0.5)
) -> Mask:
    """A logistic mask whose sharpness goes geometrically from `first` to `last` over the denoising steps."""
    _check_styles(n)
    _positive("first", first)
    _positive("last", last)
    u = _axis(angle, center)
    return Mask(n, lambda x, y, t: _bands(u(x, y), n, first * (last / first) ** t), timed=first != last)


def radial(
    n: int = 2, sharpness: float = 20.0, radius: float = 0.3, center: Sequence[float] = (0.5, 0.5)
) -> Mask:
    """Rings around `center`: style 0 inside `radius`, one further ring of the same width per style.

    radius: in picture widths (the picture counts as a unit square). Edges are logistic with `sharpness`.
    """
    _check_styles(n)
    _positive("sharpness", sharpness)
    _positive("radius", radius)

    def field(x, y, progress):
        distance = torch.hypot(x - center[0], y - center[1]) / (radius * n)
        return _bands(distance, n, sharpness * radius * n)

    return Mask(n, field)


def stripes(count: int = 6, n: int = 2, sharpness: float = 100.0, angle: float = 0.0) -> Mask:
    """`count` equal stripes across the picture, the styles taking turns, with logistic edges."""
    _check_styles(n)
    _positive("sharpness", sharpness)
    if count < n:
        raise ValueError(f"count must be at least the number of styles ({n}), got {count}")
    u = _axis(angle, (0.5, 0.5))

    def field(x, y, progress):
        bands = _bands(u(x, y), count, sharpness)
        return torch.stack([bands[i::n].sum(0) for i in range(n)])

    return Mask(n, field)


def _bands(u: Tensor, count: int, sharpness: float) -> Tensor:
    """`count` neighbouring bands along u, meeting at k/count with logistic edges; they sum to 1."""
    rising = [torch.sigmoid(sharpness * (u - k / count)) for k in range(1, count)]
    steps = torch.stack([torch.ones_like(u), *rising, torch.zeros_like(u)])
    return steps[:-1] - steps[1:]


def from_weights(weights: np.ndarray | Tensor) -> Mask:
    """A mask from an array (N, H, W) of non-negative weights, read bilinearly at any other resolution."""
    array = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
    if array.dim() != 3 or array.shape[0] < 2 or 0 in array.shape:
        raise ValueError(f"weights must have the shape (N >= 2, H, W), got {tuple(array.shape)}")
    if not torch.isfinite(array).all() or (array < 0).any():
        raise ValueError("weights must be finite and not negative; some are NaN, infinite or below 0")

    def field(x, y, progress):
        where = torch.stack([2 * x - 1, 2 * y - 1], -1)[None]
        return torch.nn.functional.grid_sample(
            array[None], where, mode="bilinear", padding_mode="border", align_corners=False
        )[0]

    return Mask(len(array), field)


def image(source: str | Path | np.ndarray | Image.Image) -> Mask:
    """Two styles from a grey picture or array (H, W): white (1) is style 0, black (0) is style 1.

    A picture file may have any size and mode; one with transparency gives its alpha. See `images.read_grey`.
    """
    first = np.asarray(source if isinstance(source, np.ndarray) else read_grey(source), dtype=np.float64)
    if first.ndim != 2 or first.size == 0:
        raise ValueError(f"a mask picture needs the shape (H, W), got {first.shape}")
    if not np.isfinite(first).all() or first.min() < 0 or first.max() > 1:
        raise ValueError("a mask array must hold numbers in [0, 1]")
    return from_weights(np.stack([first, 1 - first]))


def formula(expression: str | Sequence[str]) -> Mask:
    """Weights from formulas in x, y, r (distance from the middle), a (angle, radians) and t (progress).

    One formula is the weight of style 0, clipped to [0, 1], and style 1 takes the rest; several formulas are one
    weight per style, clipped below at 0. Allowed: + - * / ** % comparisons `and` `or` `not` `a if b else c`, pi,
    and sin cos tan exp log sqrt abs floor min max. Raises ValueError for anything else.
    """
    single = isinstance(expression, str)
    trees = [_parse(text) for text in ([expression] if single else expression)]
    if not single and len(trees) < 2:
        raise ValueError(f"formula needs one text or at least two, got {len(trees)}")

    def field(x, y, progress):
        dx, dy = x - 0.5, y - 0.5
        names = {
            "x": x,
            "y": y,
            "r": torch.hypot(dx, dy),
            "a": torch.atan2(dy, dx),
            "t": progress,
            "pi": math.pi,
        }
        values = [torch.as_tensor(_evaluate(tree, names)).to(x).expand(x.shape) for tree in trees]
        if single:
            first = values[0].clamp(0, 1)
            return torch.stack([first, 1 - first])
        return torch.stack(values).clamp(min=0)

    timed = any(isinstance(node, ast.Name) and node.id == "t" for tree in trees for node in ast.walk(tree))
    mask = Mask(max(2, len(trees)), field, timed)
    mask.weights(4, 4)  # says now, not at the first denoising step, what is wrong
    return mask


_FUNCTIONS = {
    "sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "exp": torch.exp, "log": torch.log,
    "sqrt": torch.sqrt, "abs": torch.abs, "floor": torch.floor, "min": torch.minimum, "max": torch.maximum,
}  # fmt: skip
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.And: torch.logical_and, ast.Or: torch.logical_or, ast.Not: torch.logical_not,
}  # fmt: skip


def _parse(text: str) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"formula {text!r} cannot be read: {error.msg}") from None
    for node in ast.walk(tree):
        name = getattr(node.func, "id", "?") if isinstance(node, ast.Call) else None
        if name is not None and name not in _FUNCTIONS:
            raise ValueError(f"formula {text!r} calls {name!r}; allowed are {', '.join(sorted(_FUNCTIONS))}")
        if isinstance(node, ast.Name) and node.id not in {*"xyrat", "pi", *_FUNCTIONS}:
            raise ValueError(f"formula {text!r} uses {node.id!r}; allowed are x, y, r, a, t and pi")
    return tree


def _evaluate(node: ast.expr, names: dict):
    value = lambda child: torch.as_tensor(_evaluate(child, names), dtype=torch.float64)
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(left), value(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(operand))
        case ast.BoolOp(op=op, values=values):
            result = value(values[0])
            for other in values[1:]:
                result = _OPERATORS[type(op)](result, value(other))
            return result
        case ast.Compare(left=left, ops=ops, comparators=right) if all(type(op) in _OPERATORS for op in ops):
            chain = [value(left), *map(value, right)]
            result = torch.ones((), dtype=torch.bool)
            for a, op, b in zip(chain, ops, chain[1:], strict=False):
                result = torch.logical_and(result, _OPERATORS[type(op)](a, b))
            return result
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return torch.where(value(test) != 0, value(body), value(orelse))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            try:
                return _FUNCTIONS[name](*map(value, args))
            except TypeError:
                raise ValueError(f"formula: {ast.unparse(node)!r} has {len(args)} arguments") from None
    raise ValueError(f"formula: {ast.unparse(node)!r} is not allowed")


def _axis(angle: float, center: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Position along `angle`: 0 and 1 at the corners of the picture that lie furthest along it, 1/2 at `center`."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    span = abs(cos) + abs(sin)
    return lambda x, y: 0.5 + ((x - center[0]) * cos + (y - center[1]) * sin) / span


def _centres(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _grid(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.meshgrid(y.double(), x.double(), indexing="ij")


def _check_styles(n: int) -> None:
    if n < 2:
        raise ValueError(f"n, the number of styles, must be at least 2, got {n}")


def _positive(name: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise ValueError(f"{name} must be a positive number, got {value}")
