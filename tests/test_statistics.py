"""Standard errors and intervals against scipy and numbers computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from dsnb.lab import statistics
from dsnb.lab.statistics import bootstrap, interval, median_and_spread, sign, standard_error


def test_students_interval_leaves_out_what_is_missing():
    values = [0.5, 1.0, 0.3]
    expected = stats.t.interval(0.9, 2, 0.6, stats.sem(values))
    assert interval([*values, math.nan], 0.9) == pytest.approx(expected)
    assert interval([2.0, 2.0, 2.0]) == (2, 2)
    assert all(
        math.isnan(end) for end in (*interval([1.0]), *bootstrap(np.mean, [1.0]), standard_error([1.0]))
    )


def test_equal_answers_of_a_rate_are_no_certainty():
    error = standard_error([1.0] * 16, statistics.RATE)  # as if 18 of 20 images were right
    assert error == pytest.approx((0.9 * 0.1 / 19) ** 0.5)
    low, high = interval([0.0] * 8, extra=statistics.DIFFERENCE)  # ten values, of a deviation of 1/3
    assert high == -low == pytest.approx(stats.t.ppf(0.975, 9) / 3 / math.sqrt(10))


def test_the_bootstrap_resamples_images_of_all_columns_together():
    values = np.random.default_rng(0).normal(3, 1, 200)
    assert bootstrap(np.mean, values) == pytest.approx(interval(values), abs=0.02)
    ratio = lambda one, two, axis: one.mean(axis) / two.mean(axis)
    assert bootstrap(ratio, values, 2 * values) == pytest.approx((0.5, 0.5))


def test_an_interval_decides_if_it_excludes_zero_on_enough_images():
    assert [sign(*ends) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0, 0), (math.nan,) * 2)] == [
        1, -1, 0, 0, 0,
    ]  # fmt: skip
    assert sign(0.1, 0.2, statistics.LEAST - 1) == 0


def test_the_median_and_half_the_distance_between_the_quartiles():
    assert median_and_spread(5) == (5.0, 0.0)
    assert median_and_spread([4.0, 1.0, 2.0, 3.0, 100.0]) == (3.0, 1.0)
