"""The bench's rows as CSV, as Markdown and as figures."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ...files import write_whole
from ...plotting import STYLE_COLORS, save_figure

KINDS = {"cpu": "CPU", "cuda": "GPU"}


def write_csv(path: Path, head: dict[str, str], rows: pd.DataFrame) -> None:
    """The header as comment lines, then the rows."""
    comments = "".join(f"# {key}: {value}\n" for key, value in head.items())
    write_whole(path, f"{comments}{rows.to_csv(index=False)}".encode())


def read_csv(path: Path) -> tuple[dict[str, str], pd.DataFrame]:
    """What `write_csv` wrote."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return head, pd.read_csv(path, comment="#", keep_default_na=False)


def table(rows: pd.DataFrame, section: str) -> pd.DataFrame:
    """One section as texts: a line per case and variant, a column per metric."""
    rows = rows[rows.section == section]
    texts = [text(*row) for row in zip(rows.value, rows.spread, rows.unit, strict=True)]
    wide = rows.assign(text=texts).pivot_table("text", ["case", "variant"], "metric", "first", sort=False)
    return wide.fillna("").rename_axis(columns=None)


def text(value: float, spread: float, unit: str) -> str:
    """A value and its spread, in the unit that reads best."""
    if unit == "s" and value < 1:
        scale, unit = (1e6, "µs") if value < 1e-3 else (1e3, "ms")
        value, spread = value * scale, spread * scale
    return f"{digits(value)}{f' ± {digits(spread, 2)}' if spread else ''} {unit}".strip()


def digits(value: float, count: int = 3) -> str:
    """A number with `count` significant digits, large ones whole."""
    return f"{value:.0f}" if abs(value) >= 10**count - 0.5 else f"{value:.{count}g}"


def markdown(folder: Path) -> str:
    """The tables of the CSV files in a folder, one per section and kind of device."""
    parts = ["# What everything costs"]
    for kind, name in KINDS.items():
        file = csv_path(folder, kind)
        if not file.is_file():
            parts.append(f"**{name}**: not measured")
            continue
        head, rows = read_csv(file)
        parts.append(f"**{name}**: " + "; ".join(f"{key} {value}" for key, value in head.items()))
        for section in rows.section.unique():
            lines = table(rows, section).reset_index()
            parts += [f"## {section}, {name}", lines.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def csv_path(folder: Path, kind: str) -> Path:
    """Where the rows of this kind of device, "cpu" or "cuda", are kept."""
    return Path(folder) / f"15_cost_{KINDS[kind].lower()}.csv"


def write_report(folder: Path) -> list[Path]:
    """Writes 15_cost.md and the figures from the CSV files in a folder -> the files."""
    written = [Path(folder) / "15_cost.md"]
    write_whole(written[0], markdown(folder).encode())
    figures = {"pictures": plot_pictures, "kernels": plot_kernels}
    for kind in KINDS:
        if csv_path(folder, kind).is_file():
            rows, suffix = read_csv(csv_path(folder, kind))[1], "" if kind == "cpu" else "_gpu"
            for section, plot in figures.items():
                path = Path(folder) / f"15_{section}{suffix}.png"
                if (rows.section == section).any():
                    written.append(save_figure(plot(rows), str(path)))
                else:  # one of an earlier run
                    path.unlink(missing_ok=True)
    return written


def plot_pictures(rows: pd.DataFrame) -> Figure:
    """Seconds of every method's loop, one panel per case; the source project's way in another color."""
    found = rows[(rows.section == "pictures") & (rows.metric == "loop per image")]
    figure, panels = _panels(found.case.nunique())
    for axes, (case, bars) in zip(panels, found.groupby("case", sort=False), strict=True):
        _bars(axes, bars, bars.variant.str.startswith("source"))
        axes.set(title=case, xlabel="seconds per image")
    return figure


def plot_kernels(rows: pd.DataFrame) -> Figure:
    """Time over the lower bound for each variant, one panel per case."""
    found = rows[(rows.section == "kernels") & (rows.metric == "time")]
    figure, panels = _panels(found.case.nunique())
    for axes, (case, times) in zip(panels, found.groupby("case", sort=False), strict=True):
        is_bound = times.variant == "lower bound"
        bound, bars = times[is_bound].value.item(), times[~is_bound]
        _bars(axes, bars, bars.variant != "dsnb", bound)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(case, fontsize=8)
        axes.set_xlabel("time / lower bound (1: as fast as memory allows)")
    return figure


def _panels(count: int) -> tuple[Figure, list]:
    columns = min(2, count)
    figure = Figure(figsize=(5 * columns, 2.4 * -(-count // columns)), layout="constrained")
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _bars(axes, bars: pd.DataFrame, second: Sequence[bool], unit: float = 1.0) -> None:
    """Horizontal bars, the first on top, with their spread and their number; the `second` in another color."""
    values, spreads = bars.value / unit, bars.spread / unit
    colors = [STYLE_COLORS[int(other)] for other in second]
    axes.barh(range(len(bars)), values, xerr=spreads, color=colors, height=0.7)
    axes.set_yticks(range(len(bars)), bars.variant, fontsize=8)
    axes.invert_yaxis()
    for i, (value, spread) in enumerate(zip(values, spreads, strict=True)):
        axes.annotate(f" {digits(value)}", (value + spread, i), va="center", fontsize=8)
    axes.margins(x=0.15)
