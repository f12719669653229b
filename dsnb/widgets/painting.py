"""A mask that is painted with the mouse on an image; its weights are (N, H, W).

    mask = paint(image, n=2)      # last line of a cell; paint with the mouse
    masks.from_weights(mask.value)

The strokes are stored in units of the image. So a painted mask has any resolution, and strokes can be undone and saved:
`paint(image, strokes=mask.strokes)` gives the same mask. The canvas comes from ipycanvas.
"""

import base64
import html
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from ipycanvas import Canvas, MultiCanvas, hold_canvas
from PIL import Image, ImageDraw, ImageFilter

from .. import checks, plotting
from ..images import LARGEST_SIDE
from .controls import is_interactive


@dataclass(frozen=True)
class Stroke:
    """One stroke of the brush.

    Args:
        style: the painted style, from 0.
        points: (x, y) in [0, 1], from the upper left corner.
        radius: of the brush, in widths of the image, above 0.
        softness: of the edge; 0 is sharp, 1 is as wide as the brush.
    """

    style: int
    points: tuple[tuple[float, float], ...] = ()
    radius: float = 0.1
    softness: float = 0.3


def weights_of(strokes: Iterable[Stroke], height: int, width: int, n: int = 2) -> np.ndarray:
    """The weights of a painted mask. Each stroke covers the ones before: w <- (1 - a) w + a e_style.

    a in [0, 1] is the trace of the stroke with its soft edge; e_style is 1 for the stroke's style and 0 for the others.

    Args:
        strokes: in the order of painting.
        height, width: of the result.
        n: the number of styles.

    Returns:
        (n, height, width), float32, summing to 1.

    Raises:
        ValueError, TypeError: a parameter is out of range or of a wrong type.
    """
    height = checks.integer("height", height, 1, LARGEST_SIDE)
    width = checks.integer("width", width, 1, LARGEST_SIDE)
    weights = np.zeros((checks.integer("n", n, 1), height, width), np.float32)
    weights[0] = 1
    for stroke in (_checked(each, n) for each in strokes):
        trace = _trace(stroke, height, width)
        weights *= 1 - trace
        weights[stroke.style] += trace
    return weights / weights.sum(0)


def _trace(stroke: Stroke, height: int, width: int) -> np.ndarray:
    fine = 4 if max(height, width) <= 256 else 2
    size = (width * fine, height * fine)
    radius = max(stroke.radius * size[0], 0.5)
    points = [(x * size[0], y * size[1]) for x, y in stroke.points]
    picture = Image.new("L", size)
    pen = ImageDraw.Draw(picture)
    if len(points) > 1:
        pen.line(points, fill=255, width=max(1, round(2 * radius)), joint="curve")
    for x, y in (points[0], points[-1]) if points else ():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    if stroke.softness > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(stroke.softness * radius / 2))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def paint(
    image: plotting.Picture,
    n: int = 2,
    *,
    strokes: Sequence[Stroke | dict[str, Any]] | None = None,
    labels: Sequence[str] | None = None,
    brush: float = 0.12,
    softness: float = 0.3,
    width: int = 400,
    interactive: bool | None = None,
) -> "Painter":
    """An image on which a mask is painted with the mouse.

    Args:
        image: the image, as `plotting.to_array` takes it.
        n: the number of styles, at least 2.
        strokes: what is painted already: `Stroke`s, or dictionaries as in `Painter.strokes`. The default is empty, or
            one stroke of the second style across the middle if painting is not possible.
        labels: names of the styles; default "style 1" to "style N".
        brush: radius of the brush in widths of the image, from 0.01 to 0.4.
        softness: of the edge, from 0 (sharp) to 1 (as wide as the brush).
        width: of the canvas, in CSS pixels.
        interactive: whether a user can paint; default `is_interactive()`.

    Returns:
        A painter, whose `value` has the weights (n, H, W).

    Raises:
        ValueError: a number out of range, a wrong stroke, or a wrong number of labels.
        TypeError: a parameter of a wrong type.
    """
    n = checks.integer("n", n, 2, 100)
    width = checks.integer("width", width, 16, 4096)
    brush, softness = checks.number("brush", brush, 0.01, 0.4), checks.number("softness", softness, 0, 1)
    interactive = is_interactive() if interactive is None else interactive
    if strokes is None:
        line = tuple((0.25 + 0.5 * i / 16, 0.5 + 0.12 * np.sin(i / 16 * 2 * np.pi)) for i in range(17))
        strokes = [] if interactive else [Stroke(1, line, brush, softness)]
    if not isinstance(strokes, Iterable):
        raise TypeError(f"strokes must be a list of strokes, got {strokes!r}")
    painted = [_checked(stroke, n) for stroke in strokes]
    labels = [f"style {i + 1}" for i in range(n)] if labels is None else checks.texts("labels", labels)
    if len(labels) != n:
        raise ValueError(f"labels has {len(labels)} entries; expected {n}, one per style")
    painter = Painter(image, n, painted, width)
    if interactive:
        painter.build(labels, brush, softness)
    return painter


def _checked(stroke: Stroke | dict[str, Any], n: int) -> Stroke:
    try:
        stroke = stroke if isinstance(stroke, Stroke) else Stroke(**stroke)
        points = np.asarray(stroke.points, float)
        if not (
            points.size and points.shape == (len(points), 2) and np.abs(points).max() <= 10
        ):  # also for NaN
            raise ValueError("points must be pairs of numbers, from 0 to 1 in the image")
        return replace(
            stroke,
            style=checks.integer("style", stroke.style, 0, n - 1),
            points=tuple((float(x), float(y)) for x, y in points),
            radius=checks.number("radius", stroke.radius, high=10, above=0),
            softness=checks.number("softness", stroke.softness, 0, 10),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"strokes holds {stroke}: {error}") from None


class Painter(traitlets.HasTraits):
    """What `paint` returns. `value` has the weights (n, H, W) and can be observed."""

    value = traitlets.Any()

    def __init__(self, image: plotting.Picture, n: int, strokes: list[Stroke], width: int):
        super().__init__()
        self._picture = plotting.to_array(image, "image")
        self.n, self._strokes, self.width = n, strokes, width
        self.box: ipywidgets.VBox | None = None
        self._open: Stroke | None = None  # the stroke that is being painted
        self._refresh()

    @property
    def strokes(self) -> list[dict[str, Any]]:
        """The strokes as plain dictionaries, which `paint(strokes=…)` takes."""
        return [asdict(stroke) for stroke in self._strokes]

    def describe(self) -> dict[str, Any]:
        """The value as a panel saves it with an image."""
        return {"n": self.n, "strokes": self.strokes}

    def add(self, stroke: Stroke | dict[str, Any]) -> None:
        """Paints one more stroke. Raises ValueError for a wrong one."""
        self._strokes = [*self._strokes, _checked(stroke, self.n)]
        self._refresh()

    def undo(self) -> None:
        """Removes the last stroke."""
        self._strokes = self._strokes[:-1]
        self._refresh()

    def clear(self) -> None:
        """Removes all strokes."""
        self._strokes = []
        self._refresh()

    def weights(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The mask (n, height, width); the default resolution is the image's own."""
        own = self._picture.shape
        height, width = own[0] if height is None else height, own[1] if width is None else width
        return weights_of(self._strokes, height, width, self.n)

    def _refresh(self) -> None:
        if self.box is not None:
            self._redraw()
        self.value = self.weights()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        colored = plotting.color_weights(self.weights(), self._picture, 0.45)
        seen = plotting.enlarge(colored, self.width)  # as large as the canvas shows it
        bundle = {"text/plain": f"Painter(n={self.n}, {len(self._strokes)} strokes)"}
        bundle["image/png"] = base64.b64encode(plotting.png_bytes(seen)).decode()
        return bundle if self.box is None else bundle | self.box._repr_mimebundle_()

    # The canvas

    def build(self, labels: Sequence[str], brush: float, softness: float) -> None:
        """Makes the canvas and its buttons, in `box`."""
        height, across = self._picture.shape[:2]
        # Two layers: the image with its mask, and the outline of the brush.
        size = {"width": self.width, "height": max(1, round(self.width * height / across))}
        self._canvas = MultiCanvas(2, **size)
        self._canvas.layout.width = f"{self.width}px"
        self._canvas.add_class("dsnb-canvas")
        narrow = {"style": {"description_width": "70px"}, "layout": {"width": "270px"}}
        options = list(zip(labels, range(self.n), strict=True))
        legend = "".join(
            f"<span style='color:{color}; margin-right:14px'>⬤ {html.escape(str(label))}</span>"
            for label, color in zip(labels, itertools.cycle(plotting.STYLE_COLORS), strict=False)
        )
        self.style = ipywidgets.Dropdown(description="paint", options=options, value=1, **narrow)
        self._brush = ipywidgets.FloatSlider(
            description="brush", min=0.01, max=0.4, step=0.01, value=brush, readout_format=".2f", **narrow
        )
        self._soft = ipywidgets.FloatSlider(
            description="soft edge", min=0, max=1, step=0.05, value=softness, readout_format=".2f", **narrow
        )
        undo = ipywidgets.Button(description="undo", icon="undo", layout={"width": "100px"})
        clear = ipywidgets.Button(description="clear", icon="trash", layout={"width": "100px"})
        undo.on_click(lambda _: self.undo())
        clear.on_click(lambda _: self.clear())
        buttons = ipywidgets.HBox([undo, clear])
        parts = [self.style, self._brush, self._soft, buttons, self._canvas, ipywidgets.HTML(legend)]
        self.box = ipywidgets.VBox(parts)
        self.box.add_class("dsnb-painter")
        for event, does in (("mouse_down", self.begin), ("mouse_move", self.move), ("mouse_up", self.end)):
            getattr(self._canvas, f"on_{event}")(does)
        self._canvas.on_mouse_out(self.leave)
        self._canvas.on_touch_start(lambda touches: self.begin(*touches[0]))
        self._canvas.on_touch_move(lambda touches: self.move(*touches[0]))
        self._canvas.on_touch_end(lambda _: self.end())
        self._canvas.on_touch_cancel(lambda _: self.end())
        self._canvas.on_client_ready(self._greet)
        self._redraw()

    def begin(self, x: float, y: float) -> None:
        """The mouse button goes down at (x, y), in pixels of the canvas."""
        self.end()  # a second finger, or a button that went up elsewhere
        self._open = Stroke(self.style.value, (self._place(x, y),), self._brush.value, self._soft.value)

    def move(self, x: float, y: float) -> None:
        """The mouse moves: the outline of the brush follows, and paints while a stroke is open."""
        outline, style = self._canvas[1], self.style.value if self._open is None else self._open.style
        color = plotting.STYLE_COLORS[style % len(plotting.STYLE_COLORS)]
        with hold_canvas():
            outline.clear()
            outline.stroke_style, outline.line_width = color, 2
            outline.stroke_circle(x, y, self._brush.value * outline.width)
        if self._open is None:
            return
        here, last = self._place(x, y), self._open.points[-1]
        self._open = replace(self._open, points=(*self._open.points, here))
        canvas = self._canvas[0]
        with hold_canvas():
            canvas.global_alpha, canvas.line_cap = 0.35, "round"
            canvas.stroke_style = color
            canvas.line_width = 2 * self._open.radius * canvas.width
            canvas.stroke_line(*(last[0] * canvas.width, last[1] * canvas.height, x, y))
            canvas.global_alpha = 1

    def leave(self, x: float = 0, y: float = 0) -> None:
        """The mouse leaves the canvas."""
        self._canvas[1].clear()
        self.end(x, y)

    def end(self, x: float = 0, y: float = 0) -> None:
        """The mouse button goes up: the open stroke becomes part of the mask."""
        stroke, self._open = self._open, None
        if stroke is not None:
            self.add(stroke)

    def _greet(self) -> None:
        # A page that connects late does not know the current canvas, and would fail at every drawing without a change.
        Canvas(width=1, height=1).clear()
        self._redraw()

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return x / self._canvas.width, y / self._canvas.height

    def _redraw(self) -> None:
        size = (self._canvas.height, self._canvas.width)
        picture = Image.fromarray(self._picture).resize(size[::-1])
        seen = plotting.color_weights(self.weights(*size), picture, 0.45 if self._strokes else 0.2)
        self._canvas[0].put_image_data(plotting.to_array(seen), 0, 0)
