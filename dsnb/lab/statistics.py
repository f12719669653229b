"""How sure a number is: standard errors and confidence intervals over images, for every table of the laboratory."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import stats

Values = TypeVar("Values", float, pd.Series)
LEAST = 6  # with fewer images, no difference is decided
RATE = (0.0, 0.0, 1.0, 1.0)  # added to the values of a rate: Agresti & Coull 1998
DIFFERENCE = (0.5**0.5, -(0.5**0.5))  # added to differences of rates: Agresti & Min 2005


def standard_error(values: Sequence[float], extra: Sequence[float] = ()) -> float:
    """Standard error of a mean.

    Args:
        values: one per image; NaN are left out.
        extra: `RATE` for values between 0 and 1 that are rates, `DIFFERENCE` for differences of such. Without them,
            a few values that happen to be equal would have an error of 0.

    Returns:
        The error; NaN for fewer than two values.
    """
    kept = pd.Series(values, dtype=float).dropna()
    return float(pd.Series([*kept, *extra]).sem()) if len(kept) > 1 else math.nan


def interval(
    values: Sequence[float], level: float = 0.95, extra: Sequence[float] = ()
) -> tuple[float, float]:
    """Student's confidence interval of a mean.

    Args:
        values: one per image; NaN are left out.
        level: of confidence, in (0, 1).
        extra: as in `standard_error`.

    Returns:
        Lower and upper end; (NaN, NaN) for fewer than two values.
    """
    kept = pd.Series([*pd.Series(values, dtype=float).dropna(), *extra])
    low, high = student(kept.mean(), standard_error(values, extra), len(kept) - 1, level)
    return float(low), float(high)


def student(mean: Values, error: Values, freedom: float, level: float = 0.95) -> tuple[Values, Values]:
    """Student's interval around a mean, or around several, of this standard error and degrees of freedom."""
    reach = stats.t.ppf((1 + level) / 2, freedom) * error
    return mean - reach, mean + reach


def bootstrap(statistic: Callable, *columns: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic (Efron 1979).

    Args:
        statistic: of as many arrays as there are columns, and `axis`.
        columns: the values, one per image. All columns have the same images, which are resampled together.

    Returns:
        Lower and upper end; (NaN, NaN) for fewer than two images.
    """
    if len(columns[0]) < 2:
        return math.nan, math.nan
    options = {"n_resamples": 2000, "confidence_level": 0.95, "rng": np.random.default_rng(0)}
    with np.errstate(divide="ignore", invalid="ignore"):  # a resampled denominator can be 0
        found = stats.bootstrap(columns, statistic, paired=True, method="percentile", **options)
    return tuple(float(end) for end in found.confidence_interval)


def together(questions: int) -> float:
    """The level of each interval, so that all `questions` intervals together hold at 95 % (Bonferroni)."""
    return 1 - 0.05 / questions


def sign(low: float, high: float, images: int = LEAST) -> int:
    """1 or -1 if the interval of a difference excludes 0, else 0. Fewer than `LEAST` images decide nothing."""
    return int(low > 0) - int(high < 0) if images >= LEAST else 0


def median_and_spread(values: object) -> tuple[float, float]:
    """The median, and half the distance between the quartiles (0 for a single value)."""
    low, median, high = np.percentile(np.atleast_1d(values), (25, 50, 75))
    return float(median), float(high - low) / 2
