"""The plots of the bench's rows."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...plotting import STYLE_COLORS, save_figure
from .harness import Row


def save_all(rows: Sequence[Row], folder: Path, suffix: str = "") -> list[Path]:
    """One plot per section that was measured -> the files."""
    plots = {"pictures": plot_pictures, "kernels": plot_kernels, "steps": plot_steps}
    measured = {row.section for row in rows}
    return [
        save_figure(plot(rows), str(folder / f"11_{name}{suffix}.png"))
        for name, plot in plots.items()
        if name in measured
    ]


def plot_pictures(rows: Sequence[Row]) -> Figure:
    """Seconds of every method's loop, the source project's way in a lighter tone; one panel per case."""
    found = [r for r in rows if r.section == "pictures" and r.metric == "loop per picture"]
    cases = list(dict.fromkeys(r.case for r in found))
    figure, panels = _panels(len(cases))
    for axes, case in zip(panels, cases, strict=True):
        bars = [r for r in found if r.case == case]
        colors = [STYLE_COLORS[1] if r.variant.startswith("source") else STYLE_COLORS[0] for r in bars]
        _bars(axes, bars, colors)
        axes.set_title(case)
        axes.set_xlabel("seconds of a picture's loop")
    return figure


def plot_kernels(rows: Sequence[Row]) -> Figure:
    """Time over the floor for each variant; one panel per case; the line is the floor."""
    found = [r for r in rows if r.section == "kernels" and r.metric == "time"]
    floors = {r.case: r.value for r in found if r.variant == "floor"}
    cases = list(floors)
    figure, panels = _panels(len(cases))
    for axes, case in zip(panels, cases, strict=True):
        bars = [r for r in found if r.case == case and r.variant != "floor"]
        _bars(axes, bars, [STYLE_COLORS[0 if r.variant == "dsnb" else 1] for r in bars], floors[case])
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(case, fontsize=8)
        axes.set_xlabel("time over the floor (1: as fast as memory)")
    return figure


def plot_steps(rows: Sequence[Row]) -> Figure:
    """Each measure against the number of steps, a line per method."""
    found = [r for r in rows if r.section == "steps"]
    metrics = list(dict.fromkeys(r.metric for r in found))
    figure, panels = _panels(len(metrics))
    for axes, metric in zip(panels, metrics, strict=True):
        for color, method in zip(STYLE_COLORS, ("epsilon", "attention"), strict=False):
            line = [r for r in found if r.metric == metric and r.variant.startswith(method)]
            steps = [int(r.variant.split(", ")[1].split()[0]) for r in line]
            axes.errorbar(
                steps,
                [r.value for r in line],
                [r.spread for r in line],
                marker="o",
                color=color,
                label=method,
            )
        axes.set_title(metric, fontsize=9)
        axes.set_xlabel("denoising steps")
        axes.legend(frameon=False)
    return figure


def _panels(count: int) -> tuple[Figure, list]:
    columns = min(2, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 2.4 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def digits(value: float, count: int = 3) -> str:
    """A number with `count` significant digits, large ones whole."""
    return f"{value:.0f}" if abs(value) >= 10**count - 0.5 else f"{value:.{count}g}"


def _bars(axes, bars: Sequence[Row], colors: Sequence[str], unit: float = 1.0) -> None:
    """Horizontal bars, the first on top, with their spread and their number."""
    y = range(len(bars))
    values = [r.value / unit for r in bars]
    axes.barh(y, values, xerr=[r.spread / unit for r in bars], color=colors, height=0.7)
    axes.set_yticks(y, [r.variant for r in bars], fontsize=8)
    axes.invert_yaxis()
    for i, (value, row) in enumerate(zip(values, bars, strict=True)):
        axes.annotate(f" {digits(value)}", (value + row.spread / unit, i), va="center", fontsize=8)
    axes.margins(x=0.15)
