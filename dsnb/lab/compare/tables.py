"""From rows of measurements to tables that say how sure they are: mean ± error, paired differences.

Tables are pandas DataFrames with one row per picture and setting, one column per measure. `MEASURES` says
what each measure is called, and which direction is better, so that nobody has to guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student


@dataclass(frozen=True)
class Measure:
    """What a column means: `better` is "higher", "lower" or "one" (best at exactly 1).

    `by_mask`: the mask says where to look, so that under another mask it is another question. `share`: of
    pictures that are right, each 0 or 1.
    """

    title: str
    better: str
    digits: int = 3
    by_mask: bool = False
    share: bool = False

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "one": "→1"}[self.better]


LEAST = 6  # pictures below which no difference is called one

MEASURES = {
    "l2": Measure("L2", "lower", 1),
    "psnr": Measure("PSNR, dB", "higher", 2),
    "ssim": Measure("SSIM", "higher"),
    "lpips": Measure("LPIPS", "lower"),
    "layout": Measure("layout kept", "higher"),
    "structure": Measure("deep structure lost", "lower"),
    "truth": Measure("LPIPS to the true mix", "lower", by_mask=True),
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
    "both": Measure("both sides right", "higher", by_mask=True, share=True),
    "balance": Measure("weaker / stronger side", "higher", by_mask=True),
    "second_left": Measure("left shows left style, by CLIP", "higher", by_mask=True),
    "second_right": Measure("right shows right style, by CLIP", "higher", by_mask=True),
    "second_both": Measure("both sides right, by CLIP", "higher", by_mask=True, share=True),
    "second_balance": Measure("weaker / stronger side, by CLIP", "higher", by_mask=True),
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
}


def title(name: str) -> str:
    """A measure's title with its arrow, or the name itself where it is not a known measure."""
    return f"{MEASURES[name].title} {MEASURES[name].arrow}" if name in MEASURES else name


def present(table: pd.DataFrame) -> list[str]:
    """The known measures that a table has any value of, in the order of `MEASURES`."""
    return [name for name in MEASURES if name in table and table[name].notna().any()]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error s/√n (n − 1 in s; NaN for fewer than two values), missing values left out."""
    kept = np.asarray([v for v in values if v is not None and not math.isnan(v)], dtype=float)
    if not len(kept):
        return math.nan, math.nan
    error = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else math.nan
    return float(kept.mean()), error


def summary(table: pd.DataFrame, by: Sequence[str], measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean, standard error and count of each measure in each group: columns `by`, measure, mean, error, n.

    ValueError for a column that is not there.
    """
    by, measures = list(by), list(present(table) if measures is None else measures)
    _need(table, [*by, *measures])
    rows = []
    for key, group in table.groupby(by, sort=False):
        for name in measures:
            mean, error = mean_and_error(group[name])
            count = int(group[name].notna().sum())
            rows.append(
                {**dict(zip(by, key, strict=True)), "measure": name, "mean": mean, "error": error, "n": count}
            )
    return pd.DataFrame(rows)


def spread(summed: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A summary as a table to read: one row per measure, one column per group, "mean ± error"."""
    rows = {}
    for row in summed.to_dict("records"):
        digits = MEASURES[row["measure"]].digits if row["measure"] in MEASURES else 3
        text = "–" if math.isnan(row["mean"]) else f"{row['mean']:.{digits}f}"
        text += "" if math.isnan(row["error"]) else f" ± {row['error']:.{digits}f}"
        rows.setdefault(title(row["measure"]), {})[" · ".join(str(row[c]) for c in columns)] = text
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure").reset_index()


def paired(
    table: pd.DataFrame,
    column: str,
    first: str,
    second: str,
    measures: Sequence[str] | None = None,
    *,
    unit: str = "picture",
    level: float = 0.95,
    comparisons: int = 1,
) -> pd.DataFrame:
    """Mean difference of `column`'s values, first − second, on the same pictures, with its interval.

    Rows of one `unit` are averaged first, so that n counts pictures and not settings. The interval is
    Student's for paired differences, at `level` for all of `comparisons` together (Bonferroni). Columns:
    measure, first, second, difference, low, high, n, better (the one better beyond doubt, or ""; fewer than
    LEAST pictures decide nothing, however equal they happen to be). Values are made `comparable` first.
    ValueError for a column or value that is not there.
    """
    measures = list(present(table) if measures is None else measures)
    _need(table, [column, unit, *measures])
    for value in (first, second):
        if value not in set(table[column]):
            raise ValueError(f"{column} is never {value!r}, expected one of {sorted(set(table[column]))}")
    rows = []
    for name in measures:
        known = MEASURES.get(name)
        goal = known.better if known else None
        means = comparable(table, name).groupby([table[unit], table[column]]).mean().unstack()
        gap = (means[first] - means[second]).dropna()
        low, high = interval(gap, 1 - (1 - level) / comparisons, share=known is not None and known.share)
        better = ""
        if goal and len(gap) >= LEAST and (low > 0 or high < 0):
            better = first if (low > 0) == (goal == "higher") else second
        mean = gap.mean() if len(gap) else math.nan
        names = {"measure": name, "first": first, "second": second}
        rows.append(names | {"difference": mean, "low": low, "high": high, "n": len(gap), "better": better})
    return pd.DataFrame(rows)


def comparable(table: pd.DataFrame, name: str) -> pd.Series:
    """A measure's values, as |ln value| where it is best at 1: the distance from 1, which decides like any other."""
    if name in MEASURES and MEASURES[name].better == "one":
        return table[name].clip(lower=1e-9).map(math.log).abs()
    return table[name]


def interval(values: Sequence[float], level: float = 0.95, share: bool = False) -> tuple[float, float]:
    """Student's confidence interval of a mean; (NaN, NaN) for fewer than two values.

    share: the values are differences of shares of right and wrong, which agree exactly on many a small set of
    pictures without being the same. Half a picture is added to each of the four outcomes (Agresti & Min 2005,
    "Simple improved confidence intervals for comparing matched proportions").
    """
    kept = [v for v in values if not math.isnan(v)]
    if share and len(kept) > 1:
        kept += [0.5**0.5, -(0.5**0.5)]  # two more pictures, the squares of their differences adding up to 1
    mean, error = mean_and_error(kept)
    if math.isnan(error):
        return math.nan, math.nan
    reach = float(student.ppf((1 + level) / 2, len(kept) - 1)) * error
    return mean - reach, mean + reach


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table as GitHub Markdown; numbers to `digits` decimals, a dash where there is none."""
    text = lambda v: "–" if math.isnan(v) else f"{v:.{digits}f}"
    shown = [
        [text(v) if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)
    ]
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *shown]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def _need(table: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}"
        )
