"""The figures of the comparison, each from a table of `tables`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...plotting import Sheet
from .tables import MEASURES, comparable, title

HEADLINE = ("both", "second_both", "object", "layout", "seam_single", "truth")


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    figure = Sheet(width, height)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_means(summed: pd.DataFrame, measures: Sequence[str] = HEADLINE) -> Figure:
    """Each method's mean, its interval over images (bar) and the range of its seeds (thick bar), measure by measure.

    Args:
        summed: a `summary` by method.
        measures: which; those that are missing are left out.

    Returns:
        The figure, one panel per measure.
    """
    shown = [name for name in measures if name in set(summed.measure)]
    columns = min(3, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    methods = list(dict.fromkeys(summed.method))
    figure, axes = _figure(rows, columns, 3.4 * columns, 0.6 + rows * (0.7 + 0.24 * len(methods)))
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, shown, strict=False):
        part = summed[summed.measure == name].set_index("method").reindex(methods)
        y = np.arange(len(methods))
        panel.hlines(y, part.low, part.high, color="0.5", lw=1)
        panel.hlines(
            y, part[["worst", "best"]].min(axis=1), part[["worst", "best"]].max(axis=1), "C0", lw=4, alpha=0.5
        )
        panel.plot(part["mean"], y, "o", color="C0", ms=4)
        if name in MEASURES and MEASURES[name].better == "one":
            panel.axvline(1, color="0.7", lw=0.8)
        panel.set_yticks(y, methods, fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.invert_yaxis()
        panel.set_title(title(name), fontsize=8)
    return figure


def draw_differences(gaps: pd.DataFrame, table: pd.DataFrame, method: str) -> Figure:
    """One method against each other one: paired differences with their intervals, in standard deviations.

    Args:
        gaps: paired differences of methods, over all images.
        table: the rows, for the standard deviations.
        method: the method; right of the line speaks for it.

    Returns:
        The figure.
    """
    against = gaps[(gaps["first"] == method) | (gaps["second"] == method)]
    rivals = list(
        dict.fromkeys(m for pair in against[["first", "second"]].to_numpy() for m in pair if m != method)
    )
    measures = list(dict.fromkeys(against.measure))
    figure, axes = _figure(1, 1, 6.6, 1.2 + 0.27 * len(measures))
    panel = axes[0, 0]
    for k, rival in enumerate(rivals):
        part = against[(against["first"] == rival) | (against["second"] == rival)].set_index("measure")
        part = part.reindex(measures)
        higher = [MEASURES[name].better == "higher" for name in measures]
        sign = np.where((part["first"] == method) == higher, 1, -1)
        both = table[table.method.isin([method, rival])]
        size = np.array([comparable(both, name).std() for name in measures])
        middle, reach = sign * (part.low + part.high) / 2 / size, (part.high - part.low) / 2 / size
        y = np.arange(len(measures)) + 0.5 * ((k + 0.5) / len(rivals) - 0.5)
        panel.errorbar(middle, y, xerr=reach, fmt="o", ms=3, lw=1, label=f"against {rival}")
    panel.axvline(0, color="grey", lw=0.8)
    panel.set_yticks(range(len(measures)), [title(name) for name in measures], fontsize=7)
    panel.set_xlim(-3, 3)
    panel.invert_yaxis()
    panel.set_xlabel(f"{method} better →   (in standard deviations)", fontsize=8)
    if rivals:
        panel.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def draw_ranks(means: pd.DataFrame, unranked: Sequence[str] = ()) -> Figure:
    """A table of means as a map: green is the best of its row, red the worst.

    Args:
        means: one row per measure (its name is the index), one column per candidate.
        unranked: columns that are shown but do not compete.

    Returns:
        The figure.
    """
    worth = {
        name: {"higher": row, "lower": -row, "one": -(row - 1).abs()}[MEASURES[name].better]
        for name, row in means.drop(columns=list(unranked)).iterrows()
    }
    rank = pd.DataFrame(worth).rank(ascending=False, method="min").T.reindex(columns=means.columns)
    figure, axes = _figure(1, 1, 2.6 + 0.5 * means.shape[1], 1 + 0.22 * len(means))
    panel = axes[0, 0]
    panel.imshow(rank, cmap="RdYlGn_r", aspect="auto", alpha=0.7)
    for (y, x), value in np.ndenumerate(means.to_numpy()):
        panel.text(x, y, "–" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", fontsize=6)
    panel.set_xticks(range(means.shape[1]), means.columns, fontsize=7, rotation=30, ha="left")
    panel.xaxis.tick_top()
    panel.set_yticks(range(len(means)), [title(name) for name in means.index], fontsize=6)
    return figure


def draw_questions(
    summed: dict[str, pd.DataFrame], measures: Sequence[str] = ("both", "balance", "layout")
) -> Figure:
    """What varying one setting changes: mean ± standard error of each method at each setting.

    Args:
        summed: question -> `summary` by setting and method.
        measures: which; one column each.

    Returns:
        The figure, one row per question.
    """
    figure, axes = _figure(len(summed), len(measures), 3.2 * len(measures), 2.1 * len(summed))
    for row, table in zip(axes, summed.values(), strict=True):
        settings = list(dict.fromkeys(table.setting))
        words = [[word.split(" ") for word in setting.split(", ")] for setting in settings]
        ticks = ["\n".join(value for _, value in each) for each in words]
        line = "o-" if len(words[0]) == 1 else "o"  # a line through two varied settings would mean nothing
        for panel, name in zip(row, measures, strict=True):
            for method, part in table[table.measure == name].groupby("method", sort=False):
                part = part.set_index("setting").reindex(settings)
                panel.errorbar(
                    range(len(settings)), part["mean"], part.error, fmt=line, ms=3, lw=1, label=method
                )
            panel.set_xticks(range(len(settings)), ticks, fontsize=6)
            panel.set_xlabel(", ".join(varied for varied, _ in words[0]), fontsize=7)
            panel.tick_params(axis="y", labelsize=7)
            panel.set_title(title(name), fontsize=8)
        row[0].legend(fontsize=6)
    return figure
