"""A panel of sliders around a function: a coarse preview while a slider moves, the full image when it rests.

    panel = explore(draw, preview=coarse, play="angle", save_as="00_mine", angle=(0, 360, 15, 0), seed=0)

`draw(**values)` returns an image (see `plotting`). It runs in the background, one image at a time for all panels of a
notebook. Where sliders cannot be moved (papermill, nbconvert, plain Python), the panel is one still image of its start
position, drawn by the same function. An error at the start is raised.
"""

import base64
import html
import inspect
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets
from matplotlib import pyplot
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from .. import checks, plotting
from .background import Superseded, worker
from .controls import is_interactive, make_control, read_control, tidy

Draw = Callable[..., plotting.Picture]
PATIENCE = 2.0  # seconds; a wait that will be longer gets a progress bar
FRAME = 0.1  # seconds; the shortest time between two images of a sweep
FRAMES = 24  # strides of a sweep, at most


def explore(
    draw: Draw,
    *,
    preview: Draw | None = None,
    rest: float = 0.4,
    play: str | None = None,
    save_as: str | None = None,
    settings: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    width: int = 400,
    progress: bool = True,
    interactive: bool | None = None,
    **controls: Any,
) -> "Panel":
    """A panel of controls around `draw(**values)`; make it the last line of a cell to see it.

    Args:
        draw: draws the full image. It may take `report`: call `report(done, total)`, or pass it on as the `callback` of
            a denoising loop. This moves the progress bar, and ends an image that a newer position has superseded.
        preview: a quick stand-in for `draw` while a control moves; may take `report`, too.
        rest: seconds without a change before `draw` runs.
        play: the name of the slider that the play button sweeps.
        save_as: how the names of the saved files begin; None for no save button.
        settings: what these files note besides the controls.
        labels: {name: text beside the control}.
        width: of the image, in CSS pixels.
        progress: whether a slow first image shows a progress bar.
        interactive: whether somebody can move a slider; default `is_interactive()`.
        controls: name=(low, high[, step[, start]]) for a slider, a list or {label: choice} for a menu, True or False
            for a box, a number or a text for a field, or an object with `value` and `observe`: a widget, or what
            `paint` returns. A start that is not given is `draw`'s default, else the first choice or the middle.

    Returns:
        The panel.

    Raises:
        ValueError: a value that makes no control, a start outside its control, or another parameter out of range.
        TypeError: `draw` is not a function, or a parameter has a wrong type.
    """
    if not callable(draw):
        raise TypeError(f"draw must be a function of the controls' values, got a {type(draw).__name__}")
    for name in set(labels or {}) - set(controls):
        raise ValueError(
            f"labels names {name!r}, which is no control; the controls are {', '.join(controls)}"
        )
    width, rest = checks.integer("width", width, 16, 4096), checks.number("rest", rest, 0)
    if save_as is not None and Path(checks.text("save_as", save_as)).name != save_as:
        raise ValueError(f"save_as must be the start of a file name, without a folder; got {save_as!r}")
    defaults = {name: parameter.default for name, parameter in inspect.signature(draw).parameters.items()}
    empty = inspect.Parameter.empty
    specs = {name: read_control(name, given, defaults.get(name, empty)) for name, given in controls.items()}
    sliders = [name for name, (_, options) in specs.items() if "step" in options]
    if play is not None and play not in sliders:
        raise ValueError(f"play is {play!r}; expected the name of a slider, one of {sliders}")
    panel = Panel(draw, preview, rest, save_as, settings, width)
    panel._draw_first({name: tidy(options["value"]) for name, (_, options) in specs.items()}, progress)
    if is_interactive() if interactive is None else interactive:
        texts = {name: name.replace("_", " ") for name in specs} | dict(labels or {})
        panel._build({name: make_control(*spec, texts[name]) for name, spec in specs.items()}, play)
    return panel


class Panel:
    """What `explore` returns. `picture` is the last full image, `error` what went wrong with it, or None.

    With sliders, `box` holds `controls`, `view` (the image shown), `progress_bar`, `status`, `play_button` and
    `save_button`.
    """

    def __init__(
        self,
        draw: Draw,
        preview: Draw | None,
        rest: float,
        save_as: str | None,
        settings: Mapping[str, Any] | None,
        width: int,
    ):
        self.draw, self.preview, self.rest, self.width = draw, preview, rest, width
        self.save_as, self.settings = save_as, dict(settings or {})
        self.picture: Any = None
        self.error: BaseException | None = None
        self.box: Any = None
        self.controls: dict[str, Any] = {}
        self._start: dict[str, Any] = {}
        self._sweep = ""  # the name of the slider that plays
        self._frames: Iterator[float] | None = None
        self.play_button: Any = None
        self.save_button: Any = None
        self._position = self._previewed = self._drawn = 0  # counts of changes, and which of them was drawn
        self._changed = self._shown = 0.0
        self._working = False

    # For notebooks and tests

    def values(self) -> dict[str, Any]:
        """The present position: {name: value}."""
        return self._start | {name: tidy(control.value) for name, control in self.controls.items()}

    def parameters(self) -> dict[str, Any]:
        """Settings and position as plain JSON values, enough to draw the image again."""
        told = {name: c.describe() for name, c in self.controls.items() if hasattr(c, "describe")}
        menus = {name: c for name, c in self.controls.items() if isinstance(c, ipywidgets.Dropdown)}
        told |= {name: menu.label for name, menu in menus.items() if not _is_json(menu.value)}
        values = json.dumps(self.settings | self.values() | told, default=_plain)
        return json.loads(values, parse_constant=str)  # JSON has no NaN and no infinity: they become texts

    def set(self, **values: Any) -> None:
        """Move controls, as a user would; all or none. Raises ValueError for a value that a control cannot have."""
        for name, value in values.items():
            if name not in self.controls:
                there = (
                    f"expected one of {list(self.controls)}" if self.controls else "it has no controls here"
                )
                raise ValueError(f"{name!r} is no control of this panel; {there}")
            control = self.controls[name]
            if isinstance(value, Number) and hasattr(control, "min"):
                checks.number(name, value, control.min, control.max)
        before = {name: self.controls[name].value for name in values}
        for name, value in values.items():
            try:
                self.controls[name].value = value
            except traitlets.TraitError as error:
                for moved, old in before.items():
                    self.controls[moved].value = old
                raise ValueError(f"{name} cannot be {value!r}: {error}") from None

    def settle(self, timeout: float = 60.0) -> plotting.Picture:
        """Wait until the full image of the present position is there.

        Args:
            timeout: seconds.

        Returns:
            The image.

        Raises:
            TimeoutError: if it takes longer.
            Exception: what `draw` raised.
        """
        if self.box is not None and not worker().wait_for(self._is_settled, timeout):
            raise TimeoutError(f"the image was not finished within timeout = {timeout} seconds")
        if self.error is not None:
            raise self.error
        return self.picture

    def save(self) -> Path:
        """Saves the present image as SAVE_AS_NN.png, and its parameters as .json, in `plotting.figures_folder()`.

        Returns:
            The path of the PNG.

        Raises:
            RuntimeError: while there is no finished image.
            OSError: if the folder cannot be written to.
        """
        if not self._is_settled() or self.error is not None:
            raise RuntimeError("there is no finished image of the present position to save; wait for it")
        stem, number = self.save_as or "picture", 1
        while (plotting.figures_folder() / f"{stem}_{number:02d}.png").exists():
            number += 1
        return plotting.save_figure(
            self.picture, f"{stem}_{number:02d}", self.parameters(), True, largest=None
        )

    def play(self, on: bool = True) -> None:
        """Starts or stops the sweep: once through the slider's range, and back to where it was.

        Args:
            on: whether to start it.

        Raises:
            ValueError: the panel has no play button.
        """
        if self.play_button is None:
            raise ValueError("play needs a slider and a front end; name one in explore(play=…)")
        self.play_button.value = on

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        still = plotting.enlarge(self.picture, self.width)  # as large as the panel shows it
        bundle = {"text/plain": f"Panel({self.parameters()})"}
        bundle["image/png"] = base64.b64encode(plotting.png_bytes(still)).decode()
        return bundle if self.box is None else bundle | self.box._repr_mimebundle_()

    # The parts

    def _build(self, controls: dict[str, Any], play: str | None) -> None:
        self.controls, self._sweep, width = controls, play or "", self.width
        across = {"width": f"{width}px"}
        height, wide = plotting.to_array(self.picture).shape[:2]
        area = across | {
            "height": f"{round(width * height / wide)}px"
        }  # stays when a preview has another shape
        self.view = ipywidgets.Image(format="png", layout=area | {"object_fit": "contain"})
        self.progress_bar = ipywidgets.IntProgress(layout=across | {"visibility": "hidden"})
        self.status = ipywidgets.HTML(layout=across | {"min_height": "32px"})
        buttons = []
        if play is not None:
            self.play_button = ipywidgets.ToggleButton(description=f"▶ {play.replace('_', ' ')}")
            self.play_button.observe(self._toggled_play, names="value")
            buttons.append(self.play_button)
        if self.save_as is not None:
            self.save_button = ipywidgets.Button(description="save", icon="save")
            self.save_button.on_click(self._clicked_save)
            buttons.append(self.save_button)
        column = [c if isinstance(c, ipywidgets.Widget) else c.box for c in controls.values()]
        # a painter that is not interactive has no box
        left = ipywidgets.VBox([*filter(None, column), ipywidgets.HBox(buttons)])
        self.box = ipywidgets.HBox([left, ipywidgets.VBox([self.view, self.progress_bar, self.status])])
        for part, name in ((self.box, "panel"), (self.view, "picture"), (self.status, "status")):
            part.add_class(f"dsnb-{name}")
        self._show(self.picture, "")
        for control in controls.values():
            control.observe(self._moved, names="value")
        worker().watch_cells()

    def _show(self, picture: plotting.Picture, note: str) -> None:
        data = plotting.png_bytes(picture)
        self.status.value = note  # before the image, so that no preview is ever taken for the full one
        self.view.value = data
        self._shown = time.monotonic()

    def _tell(self, error: BaseException) -> None:
        lines = html.escape("".join(traceback.format_exception(error)))
        self.status.value = (
            f"<div class='dsnb-error' style='color:#b00020'>{html.escape(f'{type(error).__name__}: {error}')}"
            f"<details><summary>traceback</summary><pre>{lines}</pre></details></div>"
        )

    def _clicked_save(self, _: Any) -> None:
        try:
            path = self.save()
        except Exception as error:  # a button has no caller that could handle it
            self._tell(error)
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            self.status.value = (
                f"{html.escape(f'saved as {path.parent.name}/{path.name}')} · <a class='dsnb-download' "
                f"download='{html.escape(path.name)}' href='data:image/png;base64,{data}'>download</a>"
            )

    # The work

    def _moved(self, _: Any) -> None:
        with worker().condition:
            self._position += 1
            self._changed = time.monotonic()
            if self.save_button is not None:
                self.save_button.disabled = True
        worker().wake(self)

    def _is_settled(self) -> bool:
        return self._drawn == self._position and self._frames is None

    def due(self) -> tuple[float, str] | None:
        """(when, what) is to be done next, or None; the worker asks, with its lock held."""
        next_frame = self._shown + FRAME
        if self.preview is not None and self._previewed < self._position:
            return (next_frame if self._frames else 0.0), "preview"
        if self._drawn < self._position:
            return (next_frame if self._frames else self._changed + self.rest), "full"
        return None

    def _toggled_play(self, change: dict[str, Any]) -> None:
        with worker().condition:
            if change["new"] and self._frames is None:
                slider = self.controls[self._sweep]
                span = slider.max - slider.min
                stride = slider.step * max(1, -(-span // (slider.step * FRAMES)))
                frames = [slider.min + stride * i for i in range(int(span / stride + 1e-6) + 1)]
                self._frames = iter([*(frame for frame in frames if frame != slider.value), slider.value])
                self._next_frame()
            elif not change["new"]:
                self._frames = None
        worker().wake(self)

    def _next_frame(self) -> None:
        slider, frames = self.controls[self._sweep], self._frames or iter(())
        value = next(frames, None)
        while value is not None and min(value, slider.max) == slider.value:  # no change would be noticed
            value = next(frames, None)
        if value is None:
            self._frames, self.play_button.value = None, False
        else:
            slider.value = value

    def _draw_first(self, values: dict[str, Any], progress: bool) -> None:
        bar = tqdm(desc="drawing", delay=PATIENCE, leave=False, disable=not progress)
        with worker().paused(), bar:

            def report(done: Any, total: int | None = None) -> None:
                done, bar.total = _progress(done, total)
                bar.update(done - bar.n)

            self._start = values
            self.picture = _call(self.draw, values, report)
        plotting.to_array(self.picture, "what draw returned")

    def work(self, what: str) -> None:
        """Draw the preview or the full image of the present position, in the worker's thread."""
        position, started = self._position, time.monotonic()

        def report(done: Any, total: int | None = None) -> None:
            # A preview is short and is finished, since a user who keeps moving a slider would never see one otherwise.
            if worker().held or (what == "full" and self._position != position):
                raise Superseded
            done, total = _progress(done, total)
            spent = time.monotonic() - started
            if spent > 0.3 and spent * total > PATIENCE * done:
                self.progress_bar.max, self.progress_bar.value, self.progress_bar.layout.visibility = (
                    total,
                    done,
                    "visible",
                )

        self._working = True
        alarm = threading.Timer(PATIENCE, self._still_working)  # for callables that report nothing
        alarm.start()
        error = None
        try:
            function = self.preview if what == "preview" and self.preview else self.draw
            picture = _call(function, self.values(), report)
            if what == "preview" or self._position == position:
                self._show(picture, "preview" if what == "preview" else "")
        except Superseded:
            return
        except BaseException as caught:  # the panel shows every error, and none may end the thread
            error = caught
            self._tell(error)
        finally:
            self._working = False
            alarm.cancel()
            self.progress_bar.layout.visibility = "hidden"
        with worker().condition:
            self.error, self._previewed = error, position
            if what == "full" or error is not None:
                self._drawn = position
            if what == "full" and error is None and self._position == position:
                self.picture = picture
                if self.save_button is not None:
                    self.save_button.disabled = False
            if self._frames is not None:
                self._next_frame() if error is None else self.play(False)

    def _still_working(self) -> None:
        if self._working:
            self.progress_bar.layout.visibility = "visible"


def _call(function: Draw, values: dict[str, Any], report: Callable[..., None]) -> plotting.Picture:
    takes = inspect.signature(function).parameters
    reports = "report" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
    picture = function(**values, **({"report": report} if reports else {}))
    if isinstance(picture, Figure):
        pyplot.close(picture)  # pyplot keeps its figures, and a notebook would show them again below the cell
    return picture


def _is_json(value: Any) -> bool:
    try:
        return bool(json.dumps(value))
    except TypeError:
        return False


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _progress(done: Any, total: int | None) -> tuple[int, int]:
    """(done, total) from `report(done, total)`, or from `report(step)` of a denoising loop."""
    return (done.index + 1, done.total) if total is None else (done, total)
