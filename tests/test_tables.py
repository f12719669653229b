"""Means, errors and paired intervals against hand-computed numbers."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dsnb.lab.compare import tables


def measured():
    return pd.DataFrame(
        [
            {"picture": p, "pair": q, "method": m, "psnr": v, "seam": s}
            for p, q, m, v, s in [
                ("a", "x", "one", 10.0, 1.0), ("a", "y", "one", 14.0, 1.1), ("b", "x", "one", 20.0, 0.9),
                ("a", "x", "two", 11.0, 0.5), ("a", "y", "two", 15.0, 0.4), ("b", "x", "two", 23.0, 0.6),
            ]
        ]
    )  # fmt: skip


def test_mean_and_error_by_hand():
    assert tables.mean_and_error([1, 2, 3, math.nan, None]) == pytest.approx((2, 1 / math.sqrt(3)))
    mean, error = tables.mean_and_error([5.0])
    assert mean == 5 and math.isnan(error)
    assert all(map(math.isnan, tables.mean_and_error([])))


def test_summary_and_spread():
    summed = tables.summary(measured(), ["method"])
    first = summed.iloc[0]
    assert (first.method, first.measure, first["mean"], first.n) == ("one", "psnr", pytest.approx(44 / 3), 3)
    assert first.error == pytest.approx(np.std([10, 14, 20], ddof=1) / math.sqrt(3))
    read = tables.spread(summed, ["method"])
    assert read.columns.tolist() == ["measure", "one", "two"]
    assert read.iloc[0].tolist() == ["PSNR, dB ↑", "14.67 ± 2.91", "16.33 ± 3.53"]


def test_paired_differences_count_pictures_not_settings():
    row = tables.paired(measured(), "method", "two", "one", ["psnr"]).iloc[0]
    # picture a: (11 + 15)/2 − (10 + 14)/2 = 1; picture b: 23 − 20 = 3
    low, high = stats.t.interval(0.95, 1, loc=2, scale=1)
    assert (row.n, row.difference) == (2, 2) and (row.low, row.high) == pytest.approx((low, high))
    assert row.better == ""  # two pictures decide nothing


def test_better_goes_by_the_measure_s_direction():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            {"picture": k, "method": m, "psnr": v + n, "lpips": v + n, "seam": s + n / 100}
            for k, n in enumerate(rng.normal(size=30) / 10)
            for m, v, s in (("one", 1.0 + n, 0.9), ("two", 2.0, 0.4))
        ]
    )
    better = tables.paired(table, "method", "one", "two").set_index("measure").better
    assert better.to_dict() == {"psnr": "two", "lpips": "one", "seam": "one"}  # a seam is best at 1
    wide = tables.paired(table, "method", "one", "two", ["psnr"], comparisons=1000).iloc[0]
    narrow = tables.paired(table, "method", "one", "two", ["psnr"]).iloc[0]
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_equal_answers_on_a_few_pictures_are_no_certainty():
    table = pd.DataFrame([{"picture": k, "method": m, "both": 1.0} for k in range(8) for m in ("one", "two")])
    row = tables.paired(table, "method", "one", "two", ["both"]).iloc[0]
    # eight differences of 0 and two of ±√½: a deviation of 1/3, so an error of 1/3 / √10
    reach = stats.t.ppf(0.975, 9) / 3 / math.sqrt(10)
    assert row.difference == 0 and (row.low, row.high) == pytest.approx((-reach, reach))
    table.loc[table.method == "two", "both"] = 0.0
    row = tables.paired(table, "method", "one", "two", ["both"]).iloc[0]
    assert row.difference == 1 and 0.2 < row.low < 0.8 and row.better == "one"


def test_two_values_equally_far_from_one_are_not_told_apart():
    noise = np.random.default_rng(0).normal(size=(2, 30)) / 50
    far = {"one": 1.06 * np.exp(noise[0]), "two": np.exp(-noise[1]) / 1.06}
    table = pd.DataFrame([{"picture": k, "method": m, "seam": far[m][k]} for m in far for k in range(30)])
    row = tables.paired(table, "method", "one", "two", ["seam"]).iloc[0]
    assert row.low < 0 < row.high and row.better == ""
    assert (far["one"] > far["two"]).all()  # though one is the larger on every picture


def test_markdown_and_refusals():
    assert (
        tables.markdown(pd.DataFrame({"a|b": ["x"], "n": [0.12345]}))
        == "| a\\|b | n |\n| --- | --- |\n| x | 0.123 |\n"
    )
    assert tables.markdown(pd.DataFrame({"n": [math.nan]})).endswith("| – |\n")
    with pytest.raises(ValueError, match="no column 'speed'"):
        tables.summary(measured(), ["method"], ["speed"])
    with pytest.raises(ValueError, match="never 'three', expected one of"):
        tables.paired(measured(), "method", "three", "one")


def test_every_measure_says_its_direction():
    assert {m.better for m in tables.MEASURES.values()} <= {"higher", "lower", "one"}
    assert tables.title("psnr") == "PSNR, dB ↑" and tables.title("unknown") == "unknown"
    assert tables.present(measured()) == ["psnr", "seam"]
