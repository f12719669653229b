"""From rows of measurements to tables that say how sure they are: means, intervals, paired differences.

A table of rows is a DataFrame with one row per image, seed and setting, and one column per measure. Seeds are averaged
within an image before anything else, so that intervals are over images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..statistics import DIFFERENCE, RATE, bootstrap, interval, sign, standard_error, together
from .tasks import GROUND_TRUTH


@dataclass(frozen=True)
class Measure:
    """What a column means.

    Attributes:
        title: as tables and figures show it.
        better: "higher", "lower" or "one" (best at exactly 1).
        digits: decimals to show.
        by_mask: the mask says where to look, so values under different masks cannot be compared.
        rate: each value is 0 or 1.
    """

    title: str
    better: str
    digits: int = 3
    by_mask: bool = False
    rate: bool = False

    def worth(self, values: pd.Series) -> pd.Series:
        """The values turned so that the largest is the best."""
        return {"higher": values, "lower": -values, "one": -abs(values - 1)}[self.better]


MEASURES = {
    "l2": Measure("L2", "lower", 1),
    "psnr": Measure("PSNR, dB", "higher", 2),
    "ssim": Measure("SSIM", "higher"),
    "lpips": Measure("LPIPS", "lower"),
    "layout": Measure("layout kept", "higher"),
    "structure": Measure("deep structure lost", "lower"),
    "truth": Measure("LPIPS to the ground-truth blend", "lower", by_mask=True),
    "object": Measure("object found, by evaluator CLIP", "higher", rate=True),
    "smoothness": Measure("TV, central strip", "lower", 0),
    "smoothness_per_pixel": Measure("TV per pixel", "lower"),
    "seam": Measure("seam: strip / rest", "one", 2, by_mask=True),
    "seam_single": Measure("seam: strip / single styles", "one", 2, by_mask=True),
    "gram_left": Measure("Gram, left side", "lower", by_mask=True),
    "gram_right": Measure("Gram, right side", "lower", by_mask=True),
    "style_left": Measure("left shows left style", "higher", by_mask=True),
    "style_right": Measure("right shows right style", "higher", by_mask=True),
    "both": Measure("both sides right", "higher", by_mask=True, rate=True),
    "balance": Measure("weaker / stronger side", "higher", by_mask=True),
    "second_left": Measure("left shows left style, by evaluator CLIP", "higher", by_mask=True),
    "second_right": Measure("right shows right style, by evaluator CLIP", "higher", by_mask=True),
    "second_both": Measure("both sides right, by evaluator CLIP", "higher", by_mask=True, rate=True),
    "second_balance": Measure("weaker / stronger side, by evaluator CLIP", "higher", by_mask=True),
    "monotonicity": Measure("monotonicity", "higher", 2, by_mask=True),
    "clip": Measure("CLIP, one prompt", "higher"),
    "clip_left": Measure("CLIP, left side", "higher", by_mask=True),
    "clip_right": Measure("CLIP, right side", "higher", by_mask=True),
    "direction": Measure("directional, one prompt", "higher"),
    "direction_left": Measure("directional, left side", "higher", by_mask=True),
    "direction_right": Measure("directional, right side", "higher", by_mask=True),
    "samples": Measure("UNet samples per step", "lower", 2),
}


SHOWN = ("mean", "error", "low", "high", "worst", "best")  # the numbers of a summary
ARROWS = {"higher": "↑", "lower": "↓", "one": "→1"}


def title(name: str) -> str:
    """A measure's title with an arrow that says which direction is better."""
    return f"{MEASURES[name].title} {ARROWS[MEASURES[name].better]}"


def present(table: pd.DataFrame) -> list[str]:
    """The measures that a table has any finite value of, in the order of `MEASURES`."""
    return [name for name in MEASURES if name in table and np.isfinite(table[name].astype(float)).any()]


def summary(table: pd.DataFrame, by: Sequence[str], measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Each measure in each group, with its interval over images and its spread over seeds.

    Args:
        table: rows with the columns `by`, `image`, `seed` and the measures.
        by: the columns that make a group.
        measures: which; default: all that are present.

    Returns:
        One row per group and measure: `by`, measure, mean, error (standard error of the mean over images), low, high
        (95 % interval over images), worst, best (mean of the worst and the best seed), images, seeds.
    """
    keys = [*by, "measure"]
    values = table.melt([*by, "image", "seed"], measures or present(table), "measure").dropna(subset="value")
    rows = []
    for key, group in values.groupby(keys, sort=False):
        known = MEASURES[key[-1]]
        by_image = group.groupby("image").value.mean()
        by_seed = group.groupby(["seed", "image"]).value.mean().groupby("seed").mean()
        by_seed = by_seed.sort_values(key=known.worth)
        extra = RATE if known.rate else ()
        low, high = interval(by_image, extra=extra)
        if known.rate:
            low, high = max(low, 0.0), min(high, 1.0)
        row = {"mean": by_image.mean(), "error": standard_error(by_image, extra), "low": low, "high": high}
        row |= {"worst": by_seed.iloc[0], "best": by_seed.iloc[-1]}
        row |= {"images": len(by_image), "seeds": len(by_seed)}
        rows.append(dict(zip(keys, key, strict=True)) | row)
    return pd.DataFrame(rows)


def wide(summed: pd.DataFrame, cell: str = "error") -> pd.DataFrame:
    """A summary as a table to read: one row per measure, one column per method.

    Args:
        summed: from `summary`.
        cell: "error" for "mean ± standard error", "interval" for "mean (low to high; seeds worst to best)".

    Returns:
        A table of text with the column "measure" first.
    """
    cells = [_cell(row, cell) for row in summed.to_dict("records")]
    text = summed.assign(measure=summed.measure.map(title), cell=cells)
    found = text.pivot_table(index="measure", columns="method", values="cell", aggfunc="first", sort=False)
    return found.fillna("–").rename_axis(columns=None).reset_index()


def _cell(row: dict, cell: str) -> str:
    text = {name: f"{row[name]:.{MEASURES[row['measure']].digits}f}" for name in SHOWN}
    if cell == "error":
        return text["mean"] if math.isnan(row["error"]) else "{mean} ± {error}".format(**text)
    notes = ["{low} to {high}"] if row["high"] > row["low"] else []
    notes += ["seeds {worst} to {best}"] if row["worst"] != row["best"] else []
    return "{mean}".format(**text) + (f" ({'; '.join(notes)})".format(**text) if notes else "")


def against_ground_truth(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure's mean as a fraction of the ground-truth blend's on the same images.

    Args:
        table: rows of methods and of `GROUND_TRUTH`.
        measure: which.

    Returns:
        One row per method: method, fraction, low, high (95 %, bootstrap over images), worst (the worst seed's
        fraction), images. Empty without ground truth.
    """
    means = table.pivot_table(index="image", columns="method", values=measure, sort=False)
    if GROUND_TRUTH not in means:
        return pd.DataFrame()
    over = means[GROUND_TRUTH]
    by_image = table.groupby(["method", "seed", "image"])[measure].mean()
    worst = by_image.groupby(["method", "seed"]).mean().groupby("method").min()
    rows = []
    for method, values in means.drop(columns=GROUND_TRUTH).items():
        low, high = bootstrap(_ratio_of_means, values, over)
        row = {"method": method, "fraction": values.mean() / over.mean(), "low": low, "high": high}
        rows.append(row | {"worst": worst[method] / over.mean(), "images": len(means)})
    return pd.DataFrame(rows)


def _ratio_of_means(values: np.ndarray, over: np.ndarray, axis: int) -> np.ndarray:
    return values.mean(axis) / over.mean(axis)


def paired(
    table: pd.DataFrame,
    column: str,
    first: str,
    second: str,
    measures: Sequence[str] | None = None,
    comparisons: int = 1,
) -> pd.DataFrame:
    """Mean difference of two values of a column on the same images, first − second, with its interval.

    Rows of one image (seeds, masks, pairs of styles) are averaged first, so that n counts images. A measure that is
    best at one is made `comparable` first.

    Args:
        table: rows.
        column: such as "method".
        first, second: two of its values.
        measures: which; default: all that are present.
        comparisons: how many are made; all their intervals together hold at 95 % (Bonferroni).

    Returns:
        One row per measure: measure, first, second, difference, low, high, n, better. `better` is the value whose
        advantage the interval shows, or ""; fewer than `statistics.LEAST` images show none.
    """
    measures = list(measures or present(table))
    values = pd.DataFrame({name: comparable(table, name) for name in measures})
    means = values.groupby([table[column], table.image]).mean()
    gaps = means.loc[first] - means.loc[second]
    rows = []
    for name in measures:
        gap = gaps[name].dropna()
        low, high = interval(gap, together(comparisons), DIFFERENCE if MEASURES[name].rate else ())
        if MEASURES[name].rate:
            low, high = max(low, -1.0), min(high, 1.0)
        ahead = sign(low, high, len(gap)) * (1 if MEASURES[name].better == "higher" else -1)
        better = {1: first, -1: second, 0: ""}[ahead]
        row = {"measure": name, "first": first, "second": second, "difference": gap.mean()}
        rows.append(row | {"low": low, "high": high, "n": len(gap), "better": better})
    return pd.DataFrame(rows)


def comparable(table: pd.DataFrame, name: str) -> pd.Series:
    """A measure's values. For a measure that is best at 1: the distance |ln value|, where lower is better."""
    if MEASURES[name].better == "one":
        return np.log(table[name].clip(lower=1e-9)).abs()
    return table[name]


def sentence(row: dict) -> str:
    """A paired difference in words, which claim a difference only if the interval shows it."""
    first, second, gap, low, high = (row[key] for key in ("first", "second", "difference", "low", "high"))
    if row["better"] == second:
        first, second, gap, low, high = second, first, -gap, -high, -low
    ends = "" if math.isnan(low) else f", {low:+.3f} to {high:+.3f}"
    verdict = f"{first} better than {second}" if row["better"] else f"{first} and {second} not told apart"
    return f"{verdict} ({gap:+.3f}{ends})"


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown; numbers with three decimals, a dash where there is none."""
    known = table.astype(object).where(table.notna(), None)
    return known.to_markdown(index=False, floatfmt=".3f", missingval="–") + "\n"
