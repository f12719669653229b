"""All measures at once, on true images against their mirrors."""

import pytest
import torch

from dsnb import masks, metrics
from dsnb.lab import compare
from dsnb.lab.compare import tables
from dsnb.lab.world import draw, draw_mix, faulty_images, split
from dsnb.metrics.classifiers import style_shown
from dsnb.metrics.networks import load_lpips

PAIRS = [("minecraft", "vangogh"), ("mosaic", "warhol")]


@pytest.fixture(scope="module")
def nets():
    return compare.open_networks({style for pair in PAIRS for style in pair})


@pytest.mark.parametrize("pair", PAIRS, ids=" / ".join)
def test_ground_truth_beats_its_mirror_by_every_measure_of_sides(nets, pair):
    pictures, weights, gains = split("validation", 3), masks.logistic(20).weights(128, 128), []
    for k, task in enumerate(compare.drawn_tasks(pictures, [pair], 128)):
        target = compare.prepare(nets, task, weights)
        mixes = [draw_mix(pictures[k : k + 1], order, weights) for order in (pair, pair[::-1])]
        right, wrong = (compare.measure(nets, mix, target, task.layers) for mix in mixes)
        assert right["truth"] == pytest.approx(0, abs=1e-6)
        assert set(right) == set(tables.MEASURES) - {"samples"}
        assert all(value == value for value in right.values())
        gains.append({name: right[name] - wrong[name] for name in right})
    # a classifier may be wrong about one image, so the mean of three is asked about
    mean = {name: sum(gain[name] for gain in gains) / len(gains) for name in gains[0]}
    assert all(mean[name] < 0 for name in ("gram_left", "gram_right", "truth")), mean
    names = ["style_left", "style_right", "both", "balance", "monotonicity", "second_left", "second_right"]
    names += ["clip_left", "clip_right", "direction_left", "direction_right"]
    assert all(mean[name] > 0 for name in names), mean


def test_the_object_is_read_in_true_images_and_not_in_others(nets):
    pictures, weights = split("validation", 4), masks.logistic(20).weights(128, 128)
    tasks = compare.drawn_tasks(pictures, PAIRS[:1], 128)
    read = []
    for k, task in enumerate(tasks):
        target = compare.prepare(nets, task, weights)
        other = tasks[(k + 1) % 4]
        assert other.shows.object != task.shows.object
        read.append([compare.measure(nets, t.image, target)["object"] for t in (task, other)])
    right, wrong = map(sum, zip(*read, strict=True))
    assert right >= 3 and wrong == 0


def test_the_unchanged_image_and_what_is_left_out(nets):
    (task,) = compare.drawn_tasks(split("test", 1), PAIRS[:1], 128)
    weights = masks.linear().weights(128, 128)
    values = compare.measure(nets, task.image, compare.prepare(nets, task, weights))
    assert values["l2"] == 0 and values["lpips"] == 0 and values["structure"] == 0
    assert values["direction"] == 0 and values["direction_left"] == 0 and values["both"] == 0

    source = {"l2", "psnr", "ssim", "lpips", "layout", "structure", "truth"}
    source |= {name for name in values if name.startswith("direction")}
    from_noise = compare.prepare(nets, task, weights, from_noise=True)
    assert set(compare.measure(nets, task.image, from_noise)) == set(values) - source

    bare = compare.Task("own", task.image, "a", ("b", "c"), "d")
    fewer = compare.Networks(load_lpips())
    values = compare.measure(fewer, task.image, compare.prepare(fewer, bare, weights))
    assert set(values) == (source - {"truth"}) & set(values) | {"smoothness", "smoothness_per_pixel", "seam"}
    assert bare.pair == "own prompts"


def test_every_fault_is_seen_by_a_measure(nets):
    pair, weights = PAIRS[0], masks.logistic(20).weights(128, 128)
    pictures, generator = split("validation", 2), torch.Generator().manual_seed(1)
    images = faulty_images(pictures, pair, weights, generator)
    source, singles = draw(pictures, "plain"), torch.stack([draw(pictures, style) for style in pair], 1)
    shown = {
        name: style_shown(nets.classifier, batch, weights, pair)["both"] for name, batch in images.items()
    }
    seams = {name: metrics.seam(batch, weights, singles=singles) for name, batch in images.items()}
    layouts = {name: metrics.layout(batch, source) for name, batch in images.items()}
    for name in ("mirror", "one style", "untouched", "ghost"):
        assert shown[name].sum() == 0 and shown["ground truth"].all()
    assert (seams["smeared"] < 0.5 * seams["ground truth"]).all()
    for name in ("misfit", "stranger"):
        assert (layouts[name] < layouts["ground truth"] - 0.05).all()
