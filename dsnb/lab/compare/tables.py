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
from scipy.stats import bootstrap
from scipy.stats import t as student

from .running import GROUND_TRUTH


@dataclass(frozen=True)
class Measure:
    """What a column means.

    Attributes:
        title: as tables and figures show it.
        better: "higher", "lower" or "one" (best at exactly 1).
        digits: decimals to show.
        by_mask: the mask says where to look, so values under different masks do not compare.
        rate: each value is 0 or 1.
    """

    title: str
    better: str
    digits: int = 3
    by_mask: bool = False
    rate: bool = False

    @property
    def arrow(self) -> str:
        """Which direction is better, as one sign."""
        return {"higher": "↑", "lower": "↓", "one": "→1"}[self.better]


LEAST = 6  # with fewer images no difference is called one
RATE = (0.0, 0.0, 1.0, 1.0)  # added to rates for their interval: Agresti & Coull 1998
DIFFERENCE = (0.5**0.5, -(0.5**0.5))  # added to differences of rates: Agresti & Min 2005

MEASURES = {
    "l2": Measure("L2", "lower", 1),
    "psnr": Measure("PSNR, dB", "higher", 2),
    "ssim": Measure("SSIM", "higher"),
    "lpips": Measure("LPIPS", "lower"),
    "layout": Measure("layout kept", "higher"),
    "structure": Measure("deep structure lost", "lower"),
    "truth": Measure("LPIPS to the ground-truth blend", "lower", by_mask=True),
    "object": Measure("object read, by evaluator CLIP", "higher", rate=True),
    "smoothness": Measure("TV, central strip", "lower", 0),
    "smoothness_per_pixel": Measure("TV per pixel", "lower"),
    "seam": Measure("seam: strip / rest", "one", 2, by_mask=True),
    "seam_single": Measure("seam: strip / single styles", "one", 2, by_mask=True),
    "gram_left": Measure("Gram, left side", "lower", by_mask=True),
    "gram_right": Measure("Gram, right side", "lower", by_mask=True),
    "gram_whole_left": Measure("Gram, whole, left style", "lower"),
    "gram_whole_right": Measure("Gram, whole, right style", "lower"),
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
    "clip_whole_left": Measure("CLIP, whole, left prompt", "higher"),
    "clip_whole_right": Measure("CLIP, whole, right prompt", "higher"),
    "direction": Measure("directional, one prompt", "higher"),
    "direction_left": Measure("directional, left side", "higher", by_mask=True),
    "direction_right": Measure("directional, right side", "higher", by_mask=True),
    "direction_whole_left": Measure("directional, whole, left prompt", "higher"),
    "direction_whole_right": Measure("directional, whole, right prompt", "higher"),
    "samples": Measure("UNet samples per step", "lower", 2),
}


def title(name: str) -> str:
    """A measure's title with its arrow; the name itself if it is not a known measure."""
    return f"{MEASURES[name].title} {MEASURES[name].arrow}" if name in MEASURES else name


def present(table: pd.DataFrame) -> list[str]:
    """The known measures that a table has any finite value of, in the order of `MEASURES`."""
    return [name for name in MEASURES if name in table and np.isfinite(table[name].astype(float)).any()]


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def interval(
    values: Sequence[float], level: float = 0.95, extra: Sequence[float] = ()
) -> tuple[float, float]:
    """Student's confidence interval of a mean.

    Args:
        values: the values; NaN are left out.
        level: of confidence, in (0, 1).
        extra: `RATE` for values between 0 and 1 that are rates, `DIFFERENCE` for differences of such. Without them,
            a few values that happen to be equal would count as certainty.

    Returns:
        Lower and upper end; (NaN, NaN) for fewer than two values.
    """
    kept = pd.Series(values, dtype=float).dropna()
    if len(kept) < 2:
        return math.nan, math.nan
    kept = pd.Series([*kept, *extra])
    reach = student.ppf((1 + level) / 2, len(kept) - 1) * kept.sem()
    return float(kept.mean() - reach), float(kept.mean() + reach)


def summary(table: pd.DataFrame, by: Sequence[str], measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Each measure in each group, with its interval over images and its spread over seeds.

    Args:
        table: rows with the columns `by`, `image`, `seed` and the measures.
        by: the columns that make a group.
        measures: which; default: all that are present.

    Returns:
        One row per group and measure: `by`, measure, mean, error (standard error of the mean over images), low, high
        (95 % interval over images), worst, best (mean of the worst and the best seed), images, seeds.

    Raises:
        ValueError: a column is missing.
    """
    by, measures = list(by), list(present(table) if measures is None else measures)
    _need(table, [*by, "image", "seed", *measures])
    values = table.melt([*by, "image", "seed"], measures, "measure").dropna(subset="value")
    rows = []
    for key, group in values.groupby([*by, "measure"], sort=False):
        by_image = group.groupby("image").value.mean()
        by_seed = group.groupby("seed").value.mean()
        known = MEASURES.get(key[-1], Measure("", "higher"))
        low, high = interval(by_image, extra=RATE if known.rate else ())
        low, high = (max(low, 0.0), min(high, 1.0)) if known.rate else (low, high)
        order = by_seed.sort_values(key=lambda mean: -_worth(mean, known.better))
        rows.append(
            dict(zip([*by, "measure"], key, strict=True))
            | {"mean": by_image.mean(), "error": by_image.sem(), "low": low, "high": high}
            | {"worst": order.iloc[-1], "best": order.iloc[0], "images": len(by_image), "seeds": len(by_seed)}
        )
    columns = ["mean", "error", "low", "high", "worst", "best", "images", "seeds"]
    return pd.DataFrame(rows, columns=[*by, "measure", *columns])


def _worth(values: pd.Series, better: str) -> pd.Series:
    """The larger, the better."""
    return {"higher": values, "lower": -values, "one": -(values - 1).abs()}[better]


def wide(summed: pd.DataFrame, columns: str, cell: str = "error") -> pd.DataFrame:
    """A summary as a table to read: one row per measure, one column per group.

    Args:
        summed: from `summary`.
        columns: the column whose values become columns.
        cell: "error" for "mean ± standard error", "interval" for "mean (low to high; seeds worst to best)".

    Returns:
        A table of text with the column "measure" first.
    """
    text = summed.assign(measure=summed.measure.map(title), text=[_cell(row, cell) for row in _rows(summed)])
    order = list(dict.fromkeys(summed[columns]))
    found = text.pivot(index="measure", columns=columns, values="text")
    return (
        found.loc[list(dict.fromkeys(text.measure)), order]
        .fillna("–")
        .rename_axis(columns=None)
        .reset_index()
    )


def _cell(row: dict, cell: str) -> str:
    digits = MEASURES[row["measure"]].digits if row["measure"] in MEASURES else 3
    number = lambda name: f"{row[name]:.{digits}f}"
    if cell == "error":
        return number("mean") + ("" if math.isnan(row["error"]) else f" ± {number('error')}")
    notes = [f"{number('low')} to {number('high')}"] if row["high"] > row["low"] else []
    notes += [f"seeds {number('worst')} to {number('best')}"] if row["worst"] != row["best"] else []
    return number("mean") + (f" ({'; '.join(notes)})" if notes else "")


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def against_ground_truth(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure's mean as a fraction of the ground-truth blend's on the same images.

    Args:
        table: rows that hold `GROUND_TRUTH` among the methods.
        measure: which.

    Returns:
        One row per method: method, measure, fraction, low, high (95 %, bootstrap over images), worst (the worst
        seed's fraction), images. Empty without ground truth.
    """
    means = table.groupby(["image", "method"], sort=False)[measure].mean().unstack(sort=False)
    if GROUND_TRUTH not in means or not means[GROUND_TRUTH].mean() > 0:
        return pd.DataFrame(columns=["method", "measure", "fraction", "low", "high", "worst", "images"])
    truth, rows = means[GROUND_TRUTH].to_numpy(), []
    ratio = lambda a, b, axis=-1: a.mean(axis=axis) / b.mean(axis=axis)
    for method in means.columns.drop(GROUND_TRUTH):
        values, low, high = means[method].to_numpy(), math.nan, math.nan
        if len(means) >= LEAST:
            found = bootstrap(
                (values, truth), ratio, paired=True, n_resamples=2000, method="percentile", rng=0
            )
            low, high = found.confidence_interval
        by_seed = table[table.method == method].groupby("seed")[measure].mean()
        row = {
            "method": method,
            "measure": measure,
            "fraction": ratio(values, truth),
            "low": low,
            "high": high,
        }
        rows.append(row | {"worst": by_seed.min() / truth.mean(), "images": len(means)})
    return pd.DataFrame(rows)


def paired(
    table: pd.DataFrame,
    column: str,
    first: str,
    second: str,
    measures: Sequence[str] | None = None,
    *,
    level: float = 0.95,
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
        level: of confidence, for all of `comparisons` together.
        comparisons: how many are made (Bonferroni).

    Returns:
        One row per measure: measure, first, second, difference, low, high, n, better. `better` is the value whose
        advantage the interval shows, or ""; fewer than `LEAST` images show none.

    Raises:
        ValueError: a column or a value is missing.
    """
    measures = list(present(table) if measures is None else measures)
    _need(table, [column, "image", *measures])
    for value in (first, second):
        if value not in set(table[column]):
            raise ValueError(f"{column} is never {value!r}, expected one of {sorted(set(table[column]))}")
    rows = []
    for name in measures:
        known = MEASURES.get(name, Measure(name, ""))
        means = comparable(table, name).groupby([table["image"], table[column]]).mean().unstack()
        gap = (means[first] - means[second]).dropna()
        low, high = interval(gap, 1 - (1 - level) / comparisons, DIFFERENCE if known.rate else ())
        better = ""
        if known.better and len(gap) >= LEAST and (low > 0 or high < 0):
            better = first if (low > 0) == (known.better == "higher") else second
        row = {"measure": name, "first": first, "second": second, "difference": gap.mean()}
        rows.append(row | {"low": low, "high": high, "n": len(gap), "better": better})
    return pd.DataFrame(rows)


def comparable(table: pd.DataFrame, name: str) -> pd.Series:
    """A measure's values; for one that is best at 1 the distance |ln value|, of which less is better."""
    if name in MEASURES and MEASURES[name].better == "one":
        return table[name].clip(lower=1e-9).map(math.log).abs()
    return table[name]


def sentence(row: dict) -> str:
    """A paired difference in words, which claim a difference only if the interval shows it."""
    numbers = f"({row['difference']:+.3f}"
    numbers += ")" if math.isnan(row["low"]) else f", {row['low']:+.3f} to {row['high']:+.3f})"
    if not row["better"]:
        return f"{row['first']} and {row['second']} not told apart {numbers}"
    other = row["second"] if row["better"] == row["first"] else row["first"]
    return f"{row['better']} better than {other} {numbers}"


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown; numbers with three decimals, a dash where there is none."""
    known = table.astype(object).where(table.notna(), None)
    return known.to_markdown(index=False, floatfmt=".3f", missingval="–") + "\n"


def _need(table: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}"
        )
