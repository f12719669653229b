"""The figures of the comparison, each from a table of `tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...plotting import Sheet
from .tables import MEASURES, comparable, present, summary, title
from .tasks import GROUND_TRUTH

HEADLINE = ("both", "second_both", "object", "layout", "seam_single", "truth")


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    figure = Sheet(width, height)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_means(summed: pd.DataFrame) -> Figure:
    """Each method's mean, its interval over images (bar) and the range of its seeds (thick bar), from a `summary`.

    There is one panel for each measure of `HEADLINE` that was measured.
    """
    shown = [name for name in HEADLINE if name in set(summed.measure)]
    methods = list(summed.method.unique())
    rows = -(-len(HEADLINE) // 3)
    figure, axes = _figure(rows, 3, 10.2, 0.6 + rows * (0.7 + 0.24 * len(methods)))
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, shown, strict=False):
        part = summed[summed.measure == name].set_index("method").reindex(methods)
        y = np.arange(len(methods))
        panel.hlines(y, part.low, part.high, color="0.5", lw=1)
        panel.hlines(y, part.worst, part.best, "C0", lw=4, alpha=0.5)
        panel.plot(part["mean"], y, "o", color="C0", ms=4)
        if MEASURES[name].better == "one":
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
        method: the method. Points to the right of the line mean that it is better.

    Returns:
        The figure.
    """
    against = gaps[(gaps["first"] == method) | (gaps.second == method)]
    rivals = against.second.where(against["first"] == method, against["first"])
    measures = list(against.measure.unique())
    figure, axes = _figure(1, 1, 7.5, 1.2 + 0.27 * len(measures))
    panel, far = axes[0, 0], 1.0
    for k, (rival, part) in enumerate(against.groupby(rivals, sort=False)):
        higher = np.array([MEASURES[name].better == "higher" for name in part.measure])
        sign = np.where((part["first"] == method) == higher, 1, -1)
        both = table[table.method.isin([method, rival])]
        deviation = np.array([comparable(both, name).std() for name in part.measure])
        middle, reach = sign * (part.low + part.high) / 2 / deviation, (part.high - part.low) / 2 / deviation
        far = np.nanmax([far, *(abs(middle) + reach)])
        y = np.arange(len(part)) + 0.5 * ((k + 0.5) / rivals.nunique() - 0.5)
        panel.errorbar(middle, y, xerr=reach, fmt="o", ms=3, lw=1, label=f"against {rival}")
    panel.axvline(0, color="grey", lw=0.8)
    panel.set_yticks(range(len(measures)), [title(name) for name in measures], fontsize=7)
    panel.set_xlim(-1.05 * far, 1.05 * far)
    panel.set_ylim(-0.7, len(measures) - 0.3)
    panel.invert_yaxis()
    panel.set_xlabel(f"{method} better →   (in standard deviations)", fontsize=8)
    if len(against):
        panel.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def draw_ranks(means: pd.DataFrame) -> Figure:
    """A table of means as a map: green is the best of its row, red the worst. The ground truth does not compete.

    Each measure has a row (its name is the index), each candidate a column.
    """
    ranked = means.drop(columns=GROUND_TRUTH, errors="ignore")
    worth = ranked.apply(lambda row: MEASURES[row.name].worth(row), axis=1)
    rank = worth.rank(axis=1, ascending=False, method="min").reindex(columns=means.columns)
    figure, axes = _figure(1, 1, 2.6 + 0.5 * means.shape[1], 1 + 0.22 * len(means))
    panel = axes[0, 0]
    panel.imshow(rank, cmap="RdYlGn_r", aspect="auto", alpha=0.7)
    for (y, x), value in np.ndenumerate(means.to_numpy()):
        panel.text(x, y, _short(value), ha="center", va="center", fontsize=6)
    panel.set_xticks(range(means.shape[1]), means.columns, fontsize=7, rotation=30, ha="left")
    panel.xaxis.tick_top()
    panel.set_yticks(range(len(means)), [title(name) for name in means.index], fontsize=6)
    return figure


def draw_questions(
    questions: Mapping[str, pd.DataFrame], measures: Sequence[str] = ("both", "balance", "layout")
) -> Figure:
    """What varying one setting changes: mean ± standard error of each method at each setting.

    Args:
        questions: question -> rows with the columns `setting` and `method`.
        measures: which; one column each.

    Returns:
        The figure, one row per question. A panel stays empty where a question's rows lack the measure.
    """
    figure, axes = _figure(len(questions), len(measures), 3.2 * len(measures), 2.1 * len(questions))
    for row, rows in zip(axes, questions.values(), strict=True):
        settings = list(rows.setting.unique())
        words = [[word.split(" ") for word in setting.split(", ")] for setting in settings]
        ticks = ["\n".join(value for _, value in each) for each in words]
        for panel, name in zip(row, measures, strict=True):
            panel.set_title(title(name), fontsize=8)
            if name not in present(rows):
                continue
            summed = summary(rows[rows.method != GROUND_TRUTH], ["setting", "method"], [name])
            for method, part in summed.groupby("method", sort=False):
                part = part.set_index("setting").reindex(settings)
                panel.errorbar(ticks, part["mean"], part.error, fmt="o:", ms=3, lw=1, label=method)
            varied = ", ".join(name for name, _ in words[0])
            panel.set_xlabel(f"{varied} (bars: standard error)", fontsize=7)
            panel.tick_params(labelsize=6)
        if row[0].has_data():
            row[0].legend(fontsize=6, loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2, frameon=False)
    return figure


def _short(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.3f}"
