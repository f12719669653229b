"""Means, intervals and paired differences against numbers computed by hand; the files made of them."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dsnb.lab import compare
from dsnb.lab.compare import report, tables

KEPT = Path(__file__).parents[1] / "figures"
SOME = ("layout", "truth", "object", "seam_single", "both", "second_both", "balance", "samples")


def measured():
    return pd.DataFrame(
        [
            {"image": i, "pair": q, "method": m, "seed": 0, "psnr": v, "seam": s}
            for i, q, m, v, s in [
                ("a", "x", "one", 10.0, 1.0), ("a", "y", "one", 14.0, 1.1), ("b", "x", "one", 20.0, 0.9),
                ("a", "x", "two", 11.0, 0.5), ("a", "y", "two", 15.0, 0.4), ("b", "x", "two", 23.0, 0.6),
            ]
        ]
    )  # fmt: skip


def random_rows(
    images=7, seeds=2, methods=("epsilon", "attention", "pixel", compare.GROUND_TRUTH), **columns
):
    draws = np.random.default_rng(0)
    head = {"version_dsnb": "0.3.0", "setting": "", "usual": True} | columns
    return pd.DataFrame(
        [
            {"image": str(k), "pair": pair, "mask": mask, "method": method, "seed": seed, **head}
            | {
                n: float(draws.random() < 0.5) if m.rate else draws.random()
                for n, m in tables.MEASURES.items()
            }
            for k, pair, mask, method, seed in product(
                range(images), ("a / b", "c / d"), ("linear", "logistic"), methods, range(seeds)
            )
        ]
    )


def test_seeds_are_averaged_within_an_image_first():
    rows = [("a", 0, 0.0), ("a", 1, 1.0), ("b", 0, 1.0), ("b", 1, 1.0), ("c", 0, 0.2), ("c", 1, 0.4)]
    table = pd.DataFrame([{"image": i, "seed": s, "method": "one", "layout": v} for i, s, v in rows])
    row = tables.summary(table, ["method"]).iloc[0]
    by_image = [0.5, 1.0, 0.3]
    assert row["mean"] == pytest.approx(0.6) and row.error == pytest.approx(stats.sem(by_image))
    assert (row.low, row.high) == pytest.approx(stats.t.interval(0.95, 2, 0.6, stats.sem(by_image)))
    assert (row.worst, row.best) == pytest.approx((0.4, 0.8)) and (row.images, row.seeds) == (3, 2)
    table = table.rename(columns={"layout": "lpips"})  # lower is better, so the worst seed is the other one
    row = tables.summary(table, ["method"]).iloc[0]
    assert (row.worst, row.best) == pytest.approx((0.8, 0.4))


def test_images_with_more_rows_count_once():
    rows = [("a", 1.0)] * 3 + [("b", 0.0)]
    table = pd.DataFrame(
        [{"image": i, "seed": s, "method": "one", "layout": v} for s in (0, 1) for i, v in rows]
    )
    row = tables.summary(table, ["method"]).iloc[0]
    assert (row["mean"], row.worst, row.best) == (0.5, 0.5, 0.5)


def test_the_interval_of_a_rate_is_no_certainty():
    table = pd.DataFrame([{"image": k, "seed": 0, "method": "one", "both": 1.0} for k in range(8)])
    row = tables.summary(table, ["method"]).iloc[0]
    low, _ = stats.t.interval(0.95, 11, 10 / 12, stats.sem([1] * 10 + [0] * 2))
    assert (row["mean"], row.low, row.high) == pytest.approx((1, low, 1))
    assert row.error == pytest.approx(stats.sem([1] * 10 + [0] * 2))


def test_a_summary_as_a_table_to_read():
    summed = tables.summary(measured(), ["method"])
    read = tables.wide(summed)
    assert read.columns.tolist() == ["measure", "one", "two"]
    # seam of image a: (1.0 + 1.1) / 2; psnr of a: (10 + 14) / 2
    assert read.iloc[0].tolist() == ["PSNR, dB ↑", "16.00 ± 4.00", "18.00 ± 5.00"]
    one = tables.summary(measured()[:2], ["method"])
    assert tables.wide(one).iloc[0].tolist() == ["PSNR, dB ↑", "12.00"]  # no error of one image
    assert tables.wide(one, "interval").iloc[0].tolist() == ["PSNR, dB ↑", "12.00"]


def test_paired_differences_count_images_not_settings():
    row = tables.paired(measured(), "method", "two", "one", ["psnr"]).iloc[0]
    # image a: (11 + 15)/2 − (10 + 14)/2 = 1; image b: 23 − 20 = 3
    low, high = stats.t.interval(0.95, 1, loc=2, scale=1)
    assert (row.n, row.difference) == (2, 2) and (row.low, row.high) == pytest.approx((low, high))
    assert row.better == ""  # two images decide nothing


def test_better_goes_by_the_measure_s_direction():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            {"image": k, "method": m, "psnr": v + n, "lpips": v + n, "seam": s + n / 100}
            for k, n in enumerate(rng.normal(size=30) / 10)
            for m, v, s in (("one", 1.0 + n, 0.9), ("two", 2.0, 0.4))
        ]
    )
    gaps = tables.paired(table, "method", "one", "two")
    assert gaps.set_index("measure").better.to_dict() == {"psnr": "two", "lpips": "one", "seam": "one"}
    said = [tables.sentence(row) for row in gaps.to_dict("records")]
    assert said[0].startswith("two better than one (+1.") and said[1].startswith("one better than two (-1.")
    wide = tables.paired(table, "method", "one", "two", ["psnr"], 1000).iloc[0]
    assert wide.high - wide.low > 1.5 * (gaps.high - gaps.low)[0]


def test_equal_answers_on_a_few_images_are_no_certainty():
    table = pd.DataFrame([{"image": k, "method": m, "both": 1.0} for k in range(8) for m in ("one", "two")])
    row = tables.paired(table, "method", "one", "two", ["both"]).iloc[0]
    assert row.difference == 0 and row.low < 0 < row.high
    assert tables.sentence(row.to_dict()).startswith("one and two not told apart (+0.000")
    table.loc[table.method == "two", "both"] = 0.0
    row = tables.paired(table, "method", "one", "two", ["both"]).iloc[0]
    assert row.difference == 1 and 0.2 < row.low < 0.8 and row.better == "one"


def test_two_values_equally_far_from_one_are_not_told_apart():
    noise = np.random.default_rng(0).normal(size=(2, 30)) / 50
    far = pd.DataFrame({"one": np.exp(0.5 + noise[0]), "two": np.exp(-0.5 + noise[1])}).rename_axis("image")
    table = far.melt(ignore_index=False, var_name="method", value_name="seam").reset_index()
    row = tables.paired(table, "method", "one", "two", ["seam"]).iloc[0]
    assert row.low < 0 < row.high and row.better == ""
    assert (far["one"] > far["two"]).all()  # though one is the larger on every image


def test_a_fraction_of_the_ground_truth():
    rows = [
        {"image": k, "seed": seed, "method": method, "second_both": value}
        for k in range(8)
        for seed in (0, 1)
        for method, value in (("one", float(k < 4 + seed)), (compare.GROUND_TRUTH, float(k < 6)))
    ]
    row = tables.against_ground_truth(pd.DataFrame(rows), "second_both").iloc[0]
    assert (row.method, row.images) == ("one", 8)
    assert row.fraction == pytest.approx(4.5 / 6) and row.worst == pytest.approx(4 / 6)
    assert 0.3 < row.low < row.fraction < row.high <= 1
    without = pd.DataFrame(rows).query("method == 'one'")
    assert tables.against_ground_truth(without, "second_both").empty


def test_a_table_as_markdown():
    text = tables.markdown(pd.DataFrame({"name": ["x", "y"], "n": [0.12345, math.nan]}))
    assert text.splitlines()[2:] == ["| x      | 0.123 |", "| y      | –     |"]


def test_every_measure_says_its_direction():
    assert {m.better for m in tables.MEASURES.values()} <= {"higher", "lower", "one"}
    assert tables.title("psnr") == "PSNR, dB ↑"
    assert tables.present(measured()) == ["psnr", "seam"]


def test_a_report_of_both_parts_and_of_questions(tmp_path, coarse):
    steps = [random_rows(methods=("epsilon",), setting=f"steps {n}", usual=n == 50) for n in (12, 50)]
    noise = random_rows().drop(columns=["layout", "truth"])
    report.write_report({"compare": random_rows(), "noise": noise, "steps": pd.concat(steps)}, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    for stem in ("14", "14_noise"):
        kinds = product(("table", "overview", "differences"), ("csv", "md"))
        assert {f"{stem}_{name}.{end}" for name, end in kinds} <= names
        assert {f"{stem}_overview.png", f"{stem}_differences.png"} <= names
    assert {"14_questions.csv", "14_questions.md", "14_questions.png", "14_rows"} <= names
    assert "### c / d, linear mask" in (tmp_path / "14_table.md").read_text()
    assert len(compare.read_rows(tmp_path / "14_rows")["compare"]) == 7 * 2 * 2 * 4 * 2
    answers = pd.read_csv(tmp_path / "14_questions.csv")
    assert set(answers["first"]) == {"steps 12"} and set(answers.second) == {"steps 50"}


def test_the_kept_tables_are_those_of_the_kept_rows():
    table = compare.read_rows(KEPT / "14_rows")["compare"]
    kept = pd.read_csv(KEPT / "14_overview.csv")
    pd.testing.assert_frame_equal(kept, report.overview(table), check_dtype=False, rtol=1e-5)
