"""The style classifiers: on textures with known labels, on the ground truth of the drawn world, and by hand."""

import pytest
import torch
from safetensors.torch import save_file

from dsnb.lab.world import STYLES, draw_mix, random_pictures, templates
from dsnb.masks import linear, logistic
from dsnb.metrics import classifiers
from dsnb.metrics.networks import Lpips, bundled_clip, load_clip, load_lpips

PAIRS = [("minecraft", "vangogh"), ("mosaic", "warhol")]


@pytest.fixture(scope="module")
def network():
    return load_lpips("st-alex")


def textures(count, seed):
    """Horizontal stripes, vertical stripes and noise, with random colours."""
    generator = torch.Generator().manual_seed(seed)
    stripes = ((torch.arange(64) // 4) % 2).float()
    pictures, labels = [], []
    for index in range(count):
        pattern = [
            stripes[:, None].expand(64, 64),
            stripes.expand(64, 64),
            torch.rand(64, 64, generator=generator),
        ]
        low, high = torch.rand(2, 3, 1, 1, generator=generator).sort(0).values
        pictures.append(low * 0.5 + (0.5 + 0.5 * high - low * 0.5) * pattern[index % 3])
        labels.append(index % 3)
    return torch.stack(pictures), torch.tensor(labels)


@pytest.fixture(scope="module")
def probe(network):
    return classifiers.fit_probe(network, *textures(30, 0), styles=("across", "down", "noise"), steps=30)


def test_probe_classifies_held_out_textures_whole_and_by_side(probe):
    images, labels = textures(12, 1)
    shown = probe(images, torch.ones(1, 64, 64))[:, 0]
    assert torch.allclose(shown.sum(1), torch.ones(12)) and (shown.argmax(1) == labels).all()
    weights = logistic(50).weights(64, 64)
    mix = images[0::3] * weights[0] + images[1::3] * weights[1]
    right = classifiers.style_shown(probe, mix, weights, ("across", "down"))
    wrong = classifiers.style_shown(probe, mix, weights, ("down", "across"))
    assert right["side"].shape == (4, 2) and right["side"].min() > 0.8 > 0.2 > wrong["side"].max()
    assert right["both"].tolist() == [1] * 4 and wrong["both"].tolist() == [0] * 4
    assert right["monotonicity"].min() > 0.8 and wrong["monotonicity"].max() < -0.8
    assert right["balance"].min() > 0.8


def test_balance_falls_when_one_style_takes_the_whole_picture(probe):
    images, _ = textures(3, 2)
    shown = classifiers.style_shown(probe, images[:1], linear().weights(64, 64), ("across", "down"))
    assert shown["balance"].item() < 0.2 and shown["both"].item() == 0


def test_probe_is_deterministic_and_survives_the_disk(probe, network, tmp_path):
    again = classifiers.fit_probe(network, *textures(30, 0), styles=("across", "down", "noise"), steps=30)
    assert torch.equal(again.weight, probe.weight)
    path = classifiers.save_probe(probe, tmp_path / "deep" / "probe.safetensors")
    loaded = classifiers.load_probe(path, network)
    assert loaded.styles == probe.styles and torch.equal(loaded.weight, probe.weight)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="network is 'st-vgg', but the probe was fitted on 'st-alex'"):
        classifiers.load_probe(path, Lpips("vgg"))
    with pytest.raises(FileNotFoundError, match="no style probe"):
        classifiers.load_probe(tmp_path / "none.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is no style probe"):
        classifiers.load_probe(tmp_path / "other.safetensors")
    tensors = dict.fromkeys(("weight", "bias", "centre", "spread"), torch.zeros(1))
    whole = {"size": "64", "network": "st-alex", "styles": "[]"}
    for note, kept in (
        ({"size": "64"}, tensors),
        (whole | {"size": "12x"}, tensors),
        (whole, {"a": torch.ones(1)}),
    ):
        save_file({name: tensor.clone() for name, tensor in kept.items()}, path, note)
        with pytest.raises(ValueError, match="is no style probe"):
            classifiers.load_probe(path, network)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_shipped_probe_classifies_true_two_style_pictures_and_not_their_mirrors(pair, network):
    """The ground truth scores better than its mirror image, for both masks of the paper."""
    probe = classifiers.load_probe(network=network)
    pictures = random_pictures(4, torch.Generator().manual_seed(77))
    for mask in (linear(), logistic(20)):
        weights = mask.weights(128, 128)
        mix = draw_mix(pictures, pair, weights)
        right = classifiers.style_shown(probe, mix, weights, pair)
        wrong = classifiers.style_shown(probe, mix.flip(3), weights, pair)
        assert (right["side"] > wrong["side"]).all() and wrong["both"].sum() == 0
        assert right["both"].mean() >= 0.75 and right["side"].mean() > 0.7
        assert right["monotonicity"].min() > 0 > wrong["monotonicity"].max()


def test_a_picture_of_another_size_is_read_at_the_probe_s_own(network):
    probe = classifiers.load_probe(network=network)
    assert probe.size == 128
    weights = logistic(20)
    mix = draw_mix(random_pictures(1, torch.Generator().manual_seed(5)), PAIRS[0], weights.weights(128, 128))
    large = torch.nn.functional.interpolate(mix, (256, 192), mode="bicubic").clamp(0, 1)
    read = classifiers.style_shown(probe, large, weights.weights(256, 192), PAIRS[0])
    assert read["both"].item() == 1 and read["side"].min() > 0.7


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_bundled_clip_classifies_true_pictures_better_than_their_mirrors(pair):
    texts = tuple(templates(style)[0].format("a picture") for style in STYLES)
    classifier = classifiers.ZeroShotClassifier(load_clip(bundled_clip()), tuple(STYLES), texts)
    weights = logistic(20).weights(128, 128)
    pictures = random_pictures(8, torch.Generator().manual_seed(78))
    right = classifiers.style_shown(classifier, draw_mix(pictures, pair, weights), weights, pair)
    wrong = classifiers.style_shown(classifier, draw_mix(pictures, pair[::-1], weights), weights, pair)
    for name in ("side", "both", "monotonicity"):
        assert (right[name].mean(0) > wrong[name].mean(0)).all(), name


def test_zero_shot_classifier_by_hand():
    class Clip:
        ground, scale = (0.5, 0.5, 0.5), 10.0

        def image_features(self, images):
            return torch.nn.functional.normalize(images.mean((2, 3)) - 0.499, dim=-1)

        def text_features(self, texts):
            return torch.tensor([[1.0, 0, 0] if text == "red" else [0, 0, 1.0] for text in texts])

    weights = logistic(20).weights(16, 16)
    red, blue = (torch.tensor(c).view(1, 3, 1, 1) for c in ((1.0, 0.5, 0.5), (0.5, 0.5, 1.0)))
    classifier = classifiers.ZeroShotClassifier(Clip(), ("r", "b"), ("red", "blue"))
    shown = classifiers.style_shown(classifier, red * weights[0] + blue * weights[1], weights, ("r", "b"))
    assert shown["side"].min() > 0.99 and shown["both"].item() == 1


def test_refusals(probe, network):
    images, labels = textures(6, 3)
    with pytest.raises(ValueError, match="regions is"):
        probe(images, torch.ones(1, 32, 32))
    with pytest.raises(ValueError, match="none of them empty"):
        probe(images, torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="none for \\['fourth'\\]"):
        classifiers.fit_probe(network, images, labels, styles=("a", "b", "c", "fourth"))
    with pytest.raises(ValueError, match="expected 2 of across"):
        classifiers.style_shown(probe, images, linear().weights(64, 64), ("across", "oil"))
    with pytest.raises(ValueError, match=r"weights is \(8, 8\) pixels, expected \(64, 64\)"):
        classifiers.style_shown(probe, images, linear().weights(8, 8), ("across", "down"))
