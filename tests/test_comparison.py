"""The comparison end to end: true pictures against their mirrors, and all methods on the bundled model."""

import json

import pytest
import torch

import dsnb
from dsnb import masks
from dsnb.images import to_pil
from dsnb.lab import compare
from dsnb.lab.compare import tables
from dsnb.lab.world import draw, draw_mix, phrase, random_pictures, templates
from dsnb.metrics import classifiers
from dsnb.metrics.networks import bundled_clip, load_clip, load_lpips

PAIR, OTHER = ("minecraft", "vangogh"), ("mosaic", "warhol")
STYLES = (*PAIR, *OTHER)


@pytest.fixture(scope="module")
def eyes():
    lpips = load_lpips()
    generator = torch.Generator().manual_seed(5)
    references = {style: draw(random_pictures(32, generator), style) for style in STYLES}
    grams = compare.gram_references(lpips, references)
    clip = load_clip(bundled_clip())
    texts = tuple(templates(style)[0].format("a picture") for style in STYLES)
    second = classifiers.ZeroShotClassifier(clip, STYLES, texts)
    return compare.Eyes(lpips, classifiers.load_probe(network=lpips), clip, grams, second=second)


def drawn_task(seed=3, layers=True, pair=PAIR):
    pictures = random_pictures(1, torch.Generator().manual_seed(seed))
    true = torch.cat([draw(pictures, style) for style in pair]) if layers else None
    caption = phrase(pictures, 0)
    prompts = tuple(dsnb.prompts.prompt(style, caption) for style in pair)
    one, image = dsnb.prompts.one_prompt(pair, caption), draw(pictures, "plain")
    return pictures, compare.Task("drawn", image, caption, prompts, one, pair, true)


@pytest.mark.parametrize("mask", ["linear", "logistic"])
@pytest.mark.parametrize("pair", [PAIR, OTHER], ids=" / ".join)
def test_true_mixes_beat_their_mirrors_by_every_measure_of_sides(eyes, mask, pair):
    weights = (masks.linear() if mask == "linear" else masks.logistic(20)).weights(128, 128)
    gains = []
    for seed in (3, 4, 5, 6):
        pictures, task = drawn_task(seed, pair=pair)
        gauge = compare.Gauge(eyes, task, weights, task.layers)
        right, wrong = (gauge(draw_mix(pictures, order, weights)) for order in (pair, pair[::-1]))
        assert right["truth"] == pytest.approx(0, abs=1e-6)
        assert 0.4 < right["seam_single"] < 1.5  # two textures faded into each other lose up to half
        assert set(right) <= set(tables.MEASURES) and len(right) >= 24
        assert all(value == value for value in right.values())
        gains.append({name: right[name] - wrong[name] for name in right})
    # single pictures may be misread, so four are asked about
    mean = {name: sum(gain[name] for gain in gains) / len(gains) for name in gains[0]}
    assert all(mean[name] < 0 for name in ("gram_left", "gram_right", "truth")), mean
    names = ["style_left", "style_right", "both", "balance", "monotonicity"]
    names += ["clip_left", "clip_right", "direction_left", "direction_right"]
    # mosaic faded into Warhol all the way across is too much for the CLIP reader
    if (mask, pair) != ("linear", OTHER):
        names += ["second_left", "second_right", "second_both", "second_balance"]
    assert all(mean[name] > 0 for name in names), mean


def test_the_unchanged_picture(eyes):
    _, task = drawn_task()
    values = compare.Gauge(eyes, task, masks.linear().weights(128, 128))(task.image)
    assert values["l2"] == 0 and values["lpips"] == 0 and values["structure"] == 0
    assert values["direction"] == 0 and values["direction_left"] == 0 and values["both"] == 0


def test_what_is_not_given_is_left_out():
    _, task = drawn_task(layers=False)
    bare = compare.Task("own", task.image, "a", ("b", "c"), "d")
    values = compare.Gauge(compare.Eyes(load_lpips()), bare, masks.linear().weights(128, 128))(task.image)
    assert set(values) == {
        "l2", "psnr", "ssim", "lpips", "structure", "layout", "smoothness", "smoothness_per_pixel", "seam",
    }  # fmt: skip
    assert bare.pair == "own prompts"


def test_methods_share_one_trajectory_and_pixel_is_the_blend_of_singles(eyes):
    model, (_, task) = dsnb.load(), drawn_task()
    maps = {"linear": masks.linear(), "logistic": masks.logistic(20)}
    methods = ["prompt", "pixel", "epsilon", "attention"]
    rows, pictures = compare.compare(model, [task], maps, methods, eyes, steps=4, skip=1, progress=False)
    measured = [*methods, compare.TRUE_MIX]
    assert [(row["mask"], row["method"]) for row in rows] == [(m, n) for m in maps for n in measured]
    assert all(row["truth"] == pytest.approx(0, abs=1e-6) for row in rows if row["method"] == measured[-1])
    assert torch.equal(
        pictures["drawn", task.pair, "linear", "prompt"], pictures["drawn", task.pair, "logistic", "prompt"]
    )
    trajectory = dsnb.invert(
        model,
        task.image,
        task.caption,
        steps=4,
        skip=1,
        generator=torch.Generator().manual_seed(compare.noise_seed(task, 0)),
        progress=False,
    )
    expected = dsnb.blend(model, trajectory, task.prompts, maps["logistic"], method="pixel", progress=False)
    assert torch.allclose(pictures["drawn", task.pair, "logistic", "pixel"], expected, atol=1e-5)
    few = {"steps": 4, "skip": 1, "progress": False}
    twice, _ = compare.compare(model, [task], maps, ["attention"], eyes, passes=[1, 1], **few)
    once = [row for row in rows if row["method"] == "attention"]
    assert [row["psnr"] for row in twice] != [row["psnr"] for row in once]
    with pytest.raises(ValueError, match="passes must be"):
        compare.compare(model, [task], maps, ["attention"], eyes, passes=[], **few)


def test_a_pairs_file(tmp_path):
    to_pil(torch.rand(1, 3, 64, 64)).save(tmp_path / "bear.png")
    entry = {
        "encode_text": "a bear",
        "decode_text": {"left_prompt": "a blocky bear", "right_prompt": "a painted bear"},
        "decode_text_total": "a bear, blocky on the left and painted on the right",
        "img_path": "bear.png",
    }
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([entry, entry]))
    tasks = compare.read_pairs(file)
    assert [task.name for task in tasks] == ["000 bear", "001 bear"]
    assert tasks[0].image.shape == (1, 3, 64, 64) and tasks[0].caption == "a bear"
    assert tasks[0].prompts == ("a blocky bear", "a painted bear") and "blocky on" in tasks[0].one_prompt

    example = compare.read_pairs(dsnb.data_path("pairs.json"))
    assert [task.caption for task in example] == ["a bear on grass", "a cat"]

    for broken, words in [
        ("{", "is not JSON"),
        ("{}", "holds a dict, expected a list"),
        ('[{"encode_text": "a"}]', "entry 0: 'decode_text' is missing"),
        ('["a.png"]', "entry 0 is 'a.png', expected an object"),
        (
            json.dumps([entry, entry | {"decode_text": {"left_prompt": "x"}}]),
            "entry 1: 'right_prompt' is missing",
        ),
    ]:
        file.write_text(broken)
        with pytest.raises(ValueError, match=words):
            compare.read_pairs(file)
    file.write_text(json.dumps([entry | {"img_path": "none.png"}]))
    with pytest.raises(FileNotFoundError, match="none.png"):
        compare.read_pairs(file)
