"""The trials draw what the methods draw, and their table counts what they found."""

import re

import pandas as pd
import pytest
import torch

import dsnb
from dsnb import masks
from dsnb.lab import trials
from dsnb.lab.trials import Trial, default_trials, differences, draw_trial, run_trials, show_rates, summarize

TEXTS = ["a mosaic of a bear", "a sketch of a bear"]


@pytest.mark.parametrize(
    ("method", "own", "trial"),
    [
        ("epsilon", {}, Trial("", "", switch=1.0)),
        ("attention", {}, Trial("", "")),
        ("regional", {}, Trial("", "", norm=True, strength=1.0)),
        ("combined", {"regional": False}, Trial("", "", switch=0.5)),
        (
            "combined",
            {"regional": True, "switch": 0.25},
            Trial("", "", switch=0.25, norm=True, strength=1.0, span=(0.25, 1.0)),
        ),
    ],
)
def test_a_trial_with_a_methods_settings_draws_its_image(tiny, method, own, trial):
    trajectory, mask = dsnb.from_noise(tiny, (32, 48), batch=2, steps=4), masks.logistic()
    options = {"method": method, "guidance": trial.guidance, "progress": False, **own}
    expected = dsnb.blend(tiny, trajectory, TEXTS, mask, **options)
    torch.testing.assert_close(draw_trial(tiny, trajectory, TEXTS, mask, trial), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--questions", "when,which swich"], "--questions must be one of .*when.*; got 'which swich'"),
        (["--seeds", "0"], "--seeds must be a whole number of at least 1, got 0"),
        (["--steps", "1000"], "--steps must be a whole number from 1 to 500, got 1000"),
    ],
)
def test_a_wrong_argument_is_named(words, said, tiny, monkeypatch, capsys):
    monkeypatch.setattr(trials, "load", lambda name: tiny)
    with pytest.raises(SystemExit):
        trials.main(words)
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.slow
def test_no_two_trials_of_a_question_draw_the_same(tiny):
    trajectory, mask = dsnb.from_noise(tiny, (32, 32), steps=8), masks.logistic()
    seen = []
    for trial in default_trials():
        image = draw_trial(tiny, trajectory, TEXTS, mask, trial)
        same = [
            name for question, name, other in seen if question == trial.question and torch.equal(image, other)
        ]
        assert not same, (trial.name, same)
        seen.append((trial.question, trial.name, image))


def test_rows_and_their_summary(tiny):
    styles = tuple(style for pair in dsnb.prompts.pairs() for style in pair)
    classifier = lambda images, regions: torch.rand(len(images), len(regions), len(styles)).softmax(-1)
    classifier.styles = styles
    trials, settings = default_trials()[:2], {"images": 2, "seeds": 2, "steps": 2}
    rows = pd.DataFrame(run_trials(tiny, trials, classifier=classifier, progress=False, **settings))
    assert len(rows) == 2 * 2 * 2 * len(dsnb.prompts.pairs())
    rows["both"] = (rows.image == 0).astype(float)
    table = summarize(rows)
    assert (table.both == 0.5).all() and (table.low == 0).all() and (table.high == 1).all()
    assert (table.worst == table.best).all()
    assert len(show_rates(table).axes[0].get_yticklabels()) == 2


def test_differences_are_within_images():
    rates = {"control": (0, 1, 0, 0, 0, 0), "better": (1,) * 6, "same": (0, 1, 0, 0, 0, 0)}
    rows = pd.DataFrame(
        {"question": name, "trial": name, "image": k, "both": float(rate)}
        for name, each in rates.items()
        for k, rate in enumerate(each)
    )
    table = differences(rows, "control").set_index("trial")
    assert table.difference.to_dict() == pytest.approx({"better": 5 / 6, "same": 0})
    assert table.verdict.to_dict() == {"better": "higher", "same": "not decided"}
    few = differences(rows[rows.image < 4], "control").set_index("trial")
    assert few.difference["better"] == 0.75 and few.verdict["better"] == "not decided"
    low, high = table.loc["same", ["low", "high"]]
    assert low == pytest.approx(-high) and low < -0.1  # six images that agree are no certainty
    with pytest.raises(ValueError, match="control must be one of .*got 'unknown'"):
        differences(rows, "unknown")
