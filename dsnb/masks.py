"""Masks: where each style goes, as one continuous definition that gives weights (N, H, W) at any resolution.

x runs from 0 (left edge) to 1 (right edge), y from 0 (top edge) to 1 (bottom edge). A field maps (x, y, progress) to N
non-negative numbers. `Mask.weights` averages it over each cell and scales the sum to 1. Styles count from 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import checks, formulas
from .images import LARGEST_SIDE, read_grey

Field = Callable[[Tensor, Tensor, float], Tensor]
SUPERSAMPLE = 8  # points per cell and axis when a cell is averaged
MOST_POINTS = 2**22  # at which a field is evaluated in one call
MOST = 1000  # styles, or stripes


@dataclass(frozen=True)
class Mask:
    """N weights over the image.

    Args:
        n: the number of styles, from 1 to `MOST`.
        field: (x, y, progress) -> non-negative numbers (n, *x.shape).
        timed: whether the weights change over the denoising steps.

    Raises:
        ValueError: `n` is out of range, or the field changes although `timed` is False.
        TypeError: a parameter of a wrong type.
    """

    n: int
    field: Field
    timed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checks.integer("n", self.n, 1, MOST))
        if not callable(self.field):
            raise TypeError(f"field must be a function of x, y and progress, got {self.field!r}")
        y, x = _grid(_centres(4), _centres(4))
        first, *later = (self._raw(x, y, tenth / 10).nan_to_num() for tenth in range(11))
        if not self.timed and not all(torch.equal(first, other) for other in later):
            raise ValueError("field must not change with progress, or from call to call, unless timed=True")

    def weights(self, height: int, width: int, progress: float = 0.0, sampling: str = "area") -> Tensor:
        """The weights at one resolution, which sum to 1 at each pixel.

        Args:
            height, width: pixels of the result.
            progress: 0 at the first denoising step, 1 at the end.
            sampling: "area" averages the field over each cell. "endpoints" evaluates it at linspace(0, 1, size), as
                the source project does.

        Returns:
            (n, height, width), float32.

        Raises:
            ValueError: a parameter out of range, negative or non-finite weights, or a position where every style has
                weight 0.
            TypeError: the field does not return a tensor of real numbers.
        """
        height, width = (
            checks.integer(name, side, 1, LARGEST_SIDE)
            for name, side in (("height", height), ("width", width))
        )
        progress = checks.number("progress", progress, 0, 1)
        if sampling == "endpoints":
            y, x = _grid(torch.linspace(0, 1, height), torch.linspace(0, 1, width))
            raw = self._field(x, y, progress)
        elif sampling == "area":
            k = SUPERSAMPLE
            rows = max(1, MOST_POINTS // (width * k * k))  # of cells in one call, to limit the memory
            parts = []
            for ys in _centres(height * k).split(rows * k):
                y, x = _grid(ys, _centres(width * k))
                raw = self._field(x, y, progress)
                parts.append(raw.reshape(self.n, -1, k, width, k).mean((2, 4)))
            raw = torch.cat(parts, 1)
        else:
            raise ValueError(f"sampling must be 'area' or 'endpoints', got {sampling!r}")
        return (raw / raw.sum(0, keepdim=True)).float()

    def _raw(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        raw = self.field(x, y, progress)
        if not isinstance(raw, Tensor) or raw.is_complex():
            raise TypeError(
                f"the mask's field must return a tensor of real numbers, got {type(raw).__name__}"
            )
        return raw

    def _field(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        raw = self._raw(x, y, progress).detach().double()  # gradients must not add a graph to the images
        if raw.shape != (self.n, *x.shape):
            raise ValueError(
                f"the mask's field must return {(self.n, *x.shape)} numbers, got {tuple(raw.shape)}"
            )
        if not torch.isfinite(raw).all() or (raw < 0).any():
            raise ValueError(
                "mask weights must be finite and not negative; some are NaN, infinite or below 0"
            )
        largest = raw.amax(0, keepdim=True)
        if (largest <= 0).any():
            raise ValueError("mask weights must not all be 0 at a position: no style would be drawn there")
        raw = raw / largest  # the sum of very large weights would be infinite
        return raw / raw.sum(0, keepdim=True)

    def flip(self) -> "Mask":
        """The mask with the order of the styles reversed."""
        return replace(self, field=lambda x, y, p: self.field(x, y, p).flip(0))

    def weigh(self, factors: float | Sequence[float]) -> "Mask":
        """The mask with each style's weight multiplied by a factor; the weights sum to 1 again.

        Two styles then meet where M_1 f_1 = M_2 f_2. So the style with the larger factor gets a larger region.

        Args:
            factors: n numbers of at least 0 and not all 0, or one for all styles. Only their ratios matter.

        Returns:
            The new mask.

        Raises:
            ValueError, TypeError: `factors` is wrong.
        """
        values = checks.numbers("factors", factors, self.n, 0)
        if max(values) == 0:
            raise ValueError(f"factors must not all be 0, got {values}")
        each_style = torch.tensor(values, dtype=torch.float64) / max(values)
        each = lambda x: each_style.to(x).reshape(-1, *[1] * x.dim())
        return replace(self, field=lambda x, y, p: self.field(x, y, p) * each(x))

    def active(self, starts: Sequence[float], ends: Sequence[float]) -> "Mask":
        """The mask in which style i has weight only while starts[i] <= progress < ends[i].

        Otherwise its weight goes to the active styles. At positions where all active styles have weight 0, they get
        equal weights.

        Args:
            starts, ends: n numbers in [0, 1], or one number for all styles.

        Returns:
            The new mask, which is timed.

        Raises:
            ValueError: no style is active at some progress, or a number is out of range.
            TypeError: something that is not a number.
        """
        starts = checks.numbers("starts", starts, self.n, 0, 1)
        ends = checks.numbers("ends", ends, self.n, 0, 1)
        edges = sorted({0.0, *(edge for edge in (*starts, *ends) if edge < 1)})
        for edge in edges:
            if not any(s <= edge < e for s, e in zip(starts, ends, strict=True)):
                raise ValueError(
                    f"starts={starts}, ends={ends}: no style is active at {edge:g}; at least one must be active at "
                    "every progress from 0 to 1"
                )

        def field(x: Tensor, y: Tensor, progress: float) -> Tensor:
            progress = min(progress, 1 - 1e-9)
            on = torch.tensor([float(s <= progress < e) for s, e in zip(starts, ends, strict=True)])
            on = on.to(x).reshape(-1, *[1] * x.dim())
            raw = self.field(x, y, progress) * on
            return torch.where((raw == 0).all(0, keepdim=True), on, raw)

        return replace(self, field=field, timed=True)


def linear(n: int = 2, angle: float = 0.0, center: Sequence[float] = (0.5, 0.5)) -> Mask:
    """Linear ramps from style to style. With two styles, the weight of style 0 falls linearly from 1 to 0.

    Args:
        n: the number of styles, from 2 to `MOST`.
        angle: the direction from the first style to the last, in degrees; 0 is left to right, 90 top to bottom.
        center: (x, y) of the middle of the ramp; the image is [0, 1] x [0, 1].

    Returns:
        The mask.

    Raises:
        ValueError, TypeError: a parameter is out of range or of a wrong type.
    """
    n = checks.integer("n", n, 2, MOST)
    u = _axis(angle, center)

    def field(x: Tensor, y: Tensor, progress: float) -> Tensor:
        position = u(x, y).clamp(0, 1) * (n - 1)
        return torch.stack([(1 - (position - i).abs()).clamp(min=0) for i in range(n)])

    return Mask(n, field)


def logistic(
    sharpness: float = 20.0, n: int = 2, angle: float = 0.0, center: Sequence[float] = (0.5, 0.5)
) -> Mask:
    """Logistic transitions. With two styles, the weight of style 1 is 1 / (1 + exp(-sharpness (u - 1/2))).

    u runs from 0 to 1 across the image along `angle`. N styles have their borders at u = 1/N, 2/N, ... (N - 1)/N.

    Args:
        sharpness: above 0; 20 blends over a fifth of the image, 200 gives almost a sharp edge.
        n, angle, center: as for `linear`.

    Returns:
        The mask.

    Raises:
        ValueError, TypeError: a parameter is out of range or of a wrong type.
    """
    n = checks.integer("n", n, 2, MOST)
    sharpness = checks.number("sharpness", sharpness, above=0)
    u = _axis(angle, center)
    return Mask(n, lambda x, y, progress: _bands(u(x, y), n, sharpness))


def sharpen(
    first: float, last: float, n: int = 2, angle: float = 0.0, center: Sequence[float] = (0.5, 0.5)
) -> Mask:
    """A logistic mask whose sharpness changes geometrically from `first` to `last` over the denoising steps.

    Args:
        first, last: the sharpness at the first step and at the end, above 0.
        n, angle, center: as for `linear`.

    Returns:
        The mask.

    Raises:
        ValueError, TypeError: a parameter is out of range or of a wrong type.
    """
    n = checks.integer("n", n, 2, MOST)
    first, last = checks.number("first", first, above=0), checks.number("last", last, above=0)
    u = _axis(angle, center)
    return Mask(n, lambda x, y, t: _bands(u(x, y), n, first * (last / first) ** t), timed=first != last)


def radial(
    n: int = 2, sharpness: float = 20.0, radius: float = 0.3, center: Sequence[float] = (0.5, 0.5)
) -> Mask:
    """Rings of width `radius` around `center`. Style 0 is the innermost; the last style also has all the rest.

    Args:
        n: the number of styles, from 2 to `MOST`.
        sharpness: of the logistic edges, above 0.
        radius: above 0; the image is a unit square.
        center: (x, y); the image is [0, 1] x [0, 1].

    Returns:
        The mask.

    Raises:
        ValueError, TypeError: a parameter is out of range or of a wrong type.
    """
    n = checks.integer("n", n, 2, MOST)
    sharpness = checks.number("sharpness", sharpness, above=0)
    radius = checks.number("radius", radius, above=0)
    left, top = checks.numbers("center", center, 2)

    def field(x: Tensor, y: Tensor, progress: float) -> Tensor:
        distance = torch.hypot(x - left, y - top) / (radius * n)
        return _bands(distance, n, sharpness * radius * n)

    return Mask(n, field)


def stripes(count: int = 6, n: int = 2, sharpness: float = 100.0, angle: float = 0.0) -> Mask:
    """Equal stripes across the image with logistic edges; the styles alternate.

    Args:
        count: the number of stripes, from `n` to `MOST`.
        n: the number of styles, from 2 to `MOST`.
        sharpness: of the edges, above 0.
        angle: as for `linear`.

    Returns:
        The mask.

    Raises:
        ValueError, TypeError: a parameter is out of range or of a wrong type.
    """
    n = checks.integer("n", n, 2, MOST)
    sharpness = checks.number("sharpness", sharpness, above=0)
    count = checks.integer("count", count, n, MOST)
    u = _axis(angle, (0.5, 0.5))

    def field(x: Tensor, y: Tensor, progress: float) -> Tensor:
        bands = _bands(u(x, y), count, sharpness)
        return torch.stack([bands[i::n].sum(0) for i in range(n)])

    return Mask(n, field)


def _bands(u: Tensor, count: int, sharpness: float) -> Tensor:
    """`count` neighbouring bands along u, meeting at k/count with logistic edges; they sum to 1."""
    rising = [torch.sigmoid(sharpness * (u - k / count)) for k in range(1, count)]
    steps = torch.stack([torch.ones_like(u), *rising, torch.zeros_like(u)])
    return steps[:-1] - steps[1:]


def from_weights(weights: np.ndarray | Tensor) -> Mask:
    """A mask from an array of weights, interpolated bilinearly, so a sharp edge becomes softer by about a pixel.

    Args:
        weights: (N, H, W), N >= 2, non-negative.

    Returns:
        The mask.

    Raises:
        TypeError: something that is not an array of real numbers.
        ValueError: another shape, or negative or non-finite weights.
    """
    if isinstance(weights, Tensor) and checks.dense("weights", weights, Tensor, "").is_complex():
        raise TypeError("weights must be an array of real numbers, got a complex tensor")
    try:
        if not isinstance(weights, Tensor):
            weights = torch.from_numpy(np.asarray(weights).astype(np.float64, casting="same_kind"))
        array = weights.detach().cpu().double().clone()  # later changes of the array must not change the mask
    except (TypeError, ValueError):
        raise TypeError(f"weights must be an array of real numbers, got a {type(weights).__name__}") from None
    if array.dim() != 3 or array.shape[0] < 2 or 0 in array.shape:
        raise ValueError(f"weights must have the shape (N >= 2, H, W), got {tuple(array.shape)}")
    if not torch.isfinite(array).all() or (array < 0).any():
        raise ValueError("weights must be finite and not negative; some are NaN, infinite or below 0")

    def field(x: Tensor, y: Tensor, progress: float) -> Tensor:
        where = torch.stack([2 * x - 1, 2 * y - 1], -1)[None]
        return torch.nn.functional.grid_sample(
            array[None], where, mode="bilinear", padding_mode="border", align_corners=False
        )[0]

    return Mask(len(array), field)


def image(source: str | Path | np.ndarray | Image.Image) -> Mask:
    """A mask of two styles from a grey image: white (1) is style 0, black (0) is style 1.

    Args:
        source: an image file of any size and mode, a PIL image, or an array (H, W) in [0, 1]. If an image has
            transparency, its alpha channel is used, see `images.read_grey`.

    Returns:
        The mask.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is not an image, or a wrong array.
        TypeError: another kind of source.
    """
    first = source if isinstance(source, np.ndarray) else read_grey(source)
    if first.ndim != 2 or first.size == 0:
        raise ValueError(f"source must be a mask array of shape (H, W), got {first.shape}")
    if first.dtype.kind not in "buif" or not (first.min() >= 0 and first.max() <= 1):  # also for NaN
        values = f" from {first.min()} to {first.max()}" if first.dtype.kind in "buif" else ""
        raise ValueError(
            f"source must be a mask array of numbers in [0, 1], got {first.dtype}{values}; divide an 8-bit array by 255"
        )
    first = first.astype(np.float64)
    return from_weights(np.stack([first, 1 - first]))


def formula(expression: str | Sequence[str]) -> Mask:
    """A mask from formulas in x, y, r (distance from the middle), a (angle in radians) and t (progress).

    Args:
        expression: one formula, or a list of one per style. One formula is the weight of style 0, clipped to [0, 1];
            style 1 has the rest. In a list, each formula is the weight of its style, clipped below at 0. Allowed are
            numbers, + - * / ** %, comparisons, `and`, `or`, `not`, `a if b else c`, pi, and the functions sin cos tan
            exp log sqrt abs floor min max.

    Returns:
        The mask. It is timed if a formula contains t.

    Raises:
        ValueError: a formula that is not allowed, or weights that are not finite, or all 0 at a position.
        TypeError: something that is not a text or a list of texts.
    """
    single = isinstance(expression, str)
    trees = [
        formulas.parse(text)
        for text in ([expression] if isinstance(expression, str) else checks.texts("expression", expression))
    ]
    if not single and len(trees) < 2:
        raise ValueError(
            f"expression must be one text, or a list of at least two; got a list of {len(trees)}"
        )

    def field(x: Tensor, y: Tensor, progress: float) -> Tensor:
        dx, dy = x - 0.5, y - 0.5
        names = {
            "x": x,
            "y": y,
            "r": torch.hypot(dx, dy),
            "a": torch.atan2(dy, dx),
            "t": progress,
            "pi": math.pi,
        }
        values = [torch.as_tensor(formulas.evaluate(tree, names)).to(x).expand(x.shape) for tree in trees]
        if single:
            first = values[0].clamp(0, 1)
            return torch.stack([first, 1 - first])
        return torch.stack(values).clamp(min=0)

    timed = any(map(formulas.uses_time, trees))
    mask = Mask(max(2, len(trees)), field, timed)
    for tenth in range(10 if timed else 1):  # raises errors now, and not at the first denoising step
        mask.weights(4, 4, tenth / 10)
    return mask


def _axis(angle: float, center: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Position along `angle`: 0 and 1 at the corners of the image that lie furthest along it, 1/2 at `center`."""
    angle = math.radians(checks.number("angle", angle))
    left, top = checks.numbers("center", center, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    span = abs(cos) + abs(sin)
    return lambda x, y: 0.5 + ((x - left) * cos + (y - top) * sin) / span


def _centres(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _grid(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(y.double(), x.double(), indexing="ij")
    return y, x
