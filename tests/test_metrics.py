"""Known values, symmetric cases, directions and refusals of the pixel measures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dsnb import metrics
from dsnb.metrics import measures

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
IMAGE = torch.from_numpy(GOLDEN["a.image"])[None]
OTHER = torch.from_numpy(GOLDEN["a.other"])[None]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def halves(height=32, width=32):
    right = (torch.arange(width) >= width // 2).float().expand(height, width)
    return torch.stack([1 - right, right])


def ramp(height=32, width=32):
    right = ((torch.arange(width) + 0.5) / width).expand(height, width)
    return torch.stack([1 - right, right])


@pytest.mark.parametrize(
    "name, measure",
    [
        ("psnr", lambda: metrics.psnr(IMAGE, OTHER)),
        ("l2", lambda: metrics.l2(IMAGE, OTHER)),
        ("ssim", lambda: metrics.ssim(IMAGE, OTHER)),
        ("tv_center", lambda: metrics.smoothness(IMAGE)),
    ],
)
def test_reference_numbers(name, measure):
    assert measure().item() == pytest.approx(float(GOLDEN[f"a.{name}"]), rel=1e-4)


def test_identity_and_symmetry():
    assert metrics.l2(IMAGE, IMAGE).item() == 0
    assert metrics.psnr(IMAGE, IMAGE).item() == math.inf
    assert metrics.ssim(IMAGE, IMAGE).item() == pytest.approx(1)
    for measure in (metrics.l2, metrics.psnr, metrics.ssim):
        assert measure(IMAGE, OTHER).item() == pytest.approx(measure(OTHER, IMAGE).item(), rel=1e-6)


def test_hand_computed_distances():
    grey, white = torch.full((2, 3, 16, 16), 0.5), torch.ones(2, 3, 16, 16)
    assert metrics.l2(grey, white).tolist() == pytest.approx([0.5 * math.sqrt(3 * 256)] * 2)
    assert metrics.psnr(grey, white).tolist() == pytest.approx([10 * math.log10(4)] * 2)
    # flat images have no variance: SSIM is the luminance term alone, (2ab + c) / (a² + b² + c)
    c = 0.01**2
    assert metrics.ssim(grey, white).tolist() == pytest.approx([(1 + c) / (1.25 + c)] * 2, rel=1e-4)


def test_a_worse_copy_is_farther_by_every_distance():
    near, far = (IMAGE + 0.02 * OTHER).clamp(0, 1), (IMAGE + 0.3 * OTHER).clamp(0, 1)
    assert metrics.l2(near, IMAGE) < metrics.l2(far, IMAGE)
    assert metrics.psnr(near, IMAGE) > metrics.psnr(far, IMAGE)
    assert metrics.ssim(near, IMAGE) > metrics.ssim(far, IMAGE)


def test_layout_by_hand_and_what_it_ignores():
    image = noise(3, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert metrics.layout(image, image).tolist() == pytest.approx([1] * 3)
    assert metrics.layout(1 - image, image).tolist() == pytest.approx([-1] * 3)
    assert metrics.layout(0.3 + 0.4 * image, image, grid=8).tolist() == pytest.approx([1] * 3, abs=1e-5)
    for grid in (8, 5):  # 64 pixels make 5 unequal blocks, so that rounding makes their means unequal
        plain = metrics.layout(torch.full_like(image, 0.337), image, grid=grid)
        assert plain.tolist() == pytest.approx([0] * 3, abs=1e-3)
    grain = (image * 0.8 + 0.1 + 0.1 * (noise(3, 3, 64, 64, seed=1) - 0.5)).clamp(0, 1)
    shifted, other = (
        grain.roll(13, 2),
        noise(3, 3, 8, 8, seed=2).repeat_interleave(8, 2).repeat_interleave(8, 3),
    )
    kept, moved, lost = (metrics.layout(x, image) for x in (grain, shifted, other))
    assert kept.min() > 0.95 > moved.max() and kept.min() > lost.max()


def test_smoothness_by_hand_and_per_pixel():
    steps = (torch.arange(10) % 2).float().expand(1, 3, 10, 10).clone()  # columns 0 1 0 1 …
    # strip = columns 4 and 5: one horizontal difference of 1 a row, nine vertical ones of sqrt(1e-6) a column
    expected = 3 * (10 * math.sqrt(1 + 1e-6) + 18 * 1e-3)
    assert metrics.smoothness(steps).item() == pytest.approx(expected, rel=1e-5)
    assert metrics.smoothness(steps, per_pixel=True).item() == pytest.approx(expected / 60, rel=1e-5)
    small, large = noise(1, 3, 40, 40), noise(1, 3, 120, 120, seed=1)
    assert metrics.smoothness(large) > 5 * metrics.smoothness(small)
    ratio = metrics.smoothness(large, per_pixel=True) / metrics.smoothness(small, per_pixel=True)
    assert ratio.item() == pytest.approx(1, abs=0.15)
    blurred = torch.nn.functional.avg_pool2d(large, 3, 1, 1)
    assert metrics.smoothness(blurred) < metrics.smoothness(large)


def test_gradient_energy_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[..., 1, 1] = 1
    expected = torch.zeros(4, 4)
    expected[1, 0] = expected[0, 1] = 1
    expected[1, 1] = 2
    assert torch.equal(metrics.gradient_energy(image)[0], expected)


def test_border_window_is_where_the_border_crosses_something():
    image = torch.zeros(1, 3, 16, 24)
    image[..., 9:12, 10:14] = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0))
    image[..., 0:4, 0:4] = torch.rand(3, 4, 4)  # more structure, away from the border
    rows, columns = metrics.border_window(image, halves(16, 24), 6)
    assert rows.start <= 9 and rows.stop >= 12
    assert abs((columns.start + columns.stop) / 2 - 12) <= 1
    with pytest.raises(ValueError, match="side must be a whole number from 1 to 16, got 17"):
        metrics.border_window(image, halves(16, 24), 17)


def test_border_distance_and_strip():
    distance = metrics.border_distance(halves(4, 8))
    assert distance[0].tolist() == [3.5, 2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 3.5]
    assert torch.equal(distance, metrics.border_distance(ramp(4, 8)))  # softness does not move the border
    assert metrics.transition_strip(halves(4, 10), 0.2)[0].nonzero().flatten().tolist() == [4, 5]
    with pytest.raises(ValueError, match="one leading style"):
        metrics.border_distance(torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]))


def test_seam_is_one_without_a_seam_and_tells_cut_from_wash():
    texture = 0.25 + 0.5 * noise(1, 3, 64, 64)
    weights = halves(64, 64)
    assert metrics.seam(texture, weights).item() == pytest.approx(1, abs=0.1)
    cut = (0.6 * texture + 0.4 * weights[1]).clamp(0, 1)
    assert metrics.seam(cut, weights, width=2 / 64).item() > 1.5
    singles = torch.stack([texture[0], (0.25 + 0.5 * noise(3, 64, 64, seed=1))])
    washed = (singles * 0.5).sum(0, keepdim=True)  # averaging two textures halves their energy
    assert metrics.seam(washed, weights, singles=singles).item() == pytest.approx(0.5, abs=0.08)
    joined = (singles * weights[:, None]).sum(0, keepdim=True)
    assert metrics.seam(joined, weights, singles=singles).item() == pytest.approx(1, abs=0.1)


def test_seam_by_hand():
    columns = lambda *values: torch.tensor(values).expand(3, 4, 4)
    image = columns(0.0, 0.1, 0.9, 1.0)[None]  # energies of its columns: 0.01, 0.64, 0.01, 0
    # the strip is columns 1 and 2, mean energy 0.325; that of the rest is 0.005
    assert metrics.seam(image, halves(4, 4)).item() == pytest.approx(65, rel=1e-4)
    # in the strip the left single has 0.04 on its side, the right one 0.25
    singles = torch.stack([columns(0.0, 0.1, 0.3, 0.3), columns(1.0, 0.5, 0.5, 0.0)])
    value = metrics.seam(image, halves(4, 4), singles=singles).item()
    assert value == pytest.approx(0.325 / 0.145, rel=1e-4)


def test_seam_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="no rest"):
        metrics.seam(noise(1, 3, 8, 8), halves(8, 8), width=1.0)
    with pytest.raises(ValueError, match="singles"):
        metrics.seam(noise(1, 3, 8, 8), halves(8, 8), singles=noise(3, 3, 8, 8))
    with pytest.raises(ValueError, match="pixels"):
        metrics.seam(noise(1, 3, 8, 8), halves(16, 16))


def test_seam_takes_images_and_singles_of_different_devices(monkeypatch):
    monkeypatch.setattr(measures, "check_images", lambda images, name="": images)
    images = torch.empty(1, 3, 8, 8, device="meta")  # stands for a GPU
    for singles in (noise(2, 3, 8, 8), noise(1, 2, 3, 8, 8)):
        assert metrics.seam(images, halves(8, 8), singles=singles).device.type == "meta"


def test_sides():
    assert torch.equal(metrics.side_weights(halves()), halves())
    side = metrics.side_weights(ramp(1, 4))
    assert side[:, 0].flatten().tolist() == pytest.approx([0.75, 0.25, 0, 0, 0, 0, 0.25, 0.75])
    three = torch.tensor([0.5, 0.3, 0.2])[:, None, None].repeat(1, 2, 2)
    with pytest.raises(ValueError, match="style 1 leads nowhere"):
        metrics.side_weights(three)


def test_strips_share_the_picture_in_order():
    parts = metrics.strips(ramp(6, 16), count=4)
    assert torch.equal(parts.sum(0), torch.ones(6, 16))
    assert parts.argmax(0)[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert torch.equal(parts, metrics.strips(halves(6, 16), count=4))
    with pytest.raises(ValueError, match="count"):
        metrics.strips(ramp(), count=1)
    for wrong, words in (
        ({"last": 0}, "two different styles"),
        ({"last": 2}, "last must be .* from 0 to 1, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            metrics.strips(ramp(), **wrong)
    with pytest.raises(ValueError, match="style 1 leads nowhere"):
        metrics.strips(torch.tensor([1.0, 0.0]).view(2, 1, 1).expand(2, 6, 12))
    thirds = torch.eye(3)[:, [0] * 4 + [1] * 4 + [2] * 4][:, None].expand(3, 6, 12)
    assert torch.equal(
        metrics.strips(thirds, count=4).argmax(0)[0, :8], torch.arange(8) // 2
    )  # not ordered by the border of the second with the third


def test_balance_by_hand():
    scores = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.9, -0.3], [0.0, 0.0]])
    assert metrics.balance(scores).tolist() == pytest.approx([1, 0.25, 0, 0])
    assert metrics.balance(scores.flip(1)).tolist() == pytest.approx([1, 0.25, 0, 0])


def test_monotonicity_by_hand():
    rows = torch.tensor([[0.0, 0.3, 1.0], [1.0, 0.4, 0.0], [0.5, 0.5, 0.5], [0.0, 1.0, 0.5]])
    assert metrics.monotonicity(rows).tolist() == pytest.approx([1, -1, 0, 1 / 3])
    with pytest.raises(ValueError, match="strips"):
        metrics.monotonicity(torch.zeros(2, 1))


def test_numbers_that_say_nothing_are_refused():
    image = torch.rand(1, 3, 16, 16)
    for measure, words in (
        (lambda: metrics.balance(torch.tensor([[0.5, math.nan]])), "scores must be finite"),
        (lambda: metrics.monotonicity(torch.tensor([[0.5, math.inf]])), "values must be finite"),
        (lambda: metrics.smoothness(image, width=0.01), "the strip has . of 16 columns"),
        (lambda: metrics.smoothness(image, width="0.2"), "width must be a finite number above 0"),
        (lambda: metrics.border_window(image.repeat(2, 1, 1, 1), halves(16, 16), 8), "expected one image"),
        (
            lambda: metrics.border_window(image, halves(16, 16), 8.5),
            "side must be a whole number from 1 to 16",
        ),
        (lambda: metrics.seam(image, halves(16, 16), singles=[image] * 2), "singles must be a torch.Tensor"),
        (lambda: metrics.balance([]), r"scores is \(0,\), expected \(B, N\)"),
        (lambda: metrics.monotonicity(1.0), r"values is \(\), expected \(B, K\)"),
        (
            lambda: metrics.gram(image, torch.ones(3, 8, 8)),
            r"weights is \(3, 8, 8\), expected \(H, W\) or \(1,",
        ),
        (
            lambda: metrics.gram_distance([image], [torch.eye(4)]),
            r"layers of \[\(4, 4\)\], expected \[\(3, 3\)\]",
        ),
        (lambda: metrics.gram(image, -torch.ones(16, 16)), "weights must not be negative"),
        (lambda: metrics.gram_distance([image] * 2, [torch.eye(3)] * 2, halves(16, 16)), "expected .H, W."),
        (lambda: metrics.psnr(image[:0], image[:0]), "expected at least one image"),
        (lambda: metrics.layout(image, image, grid=1), "grid must be a whole number of at least 2, got 1"),
        (
            lambda: metrics.seam(image, ramp(16, 16), width=math.nan),
            "width must be a finite number from 0 to 1",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            measure()


def test_gram_by_hand_whole_and_per_side():
    features = torch.tensor(
        [[[[1.0, 0.0]], [[0.0, 2.0]]]]
    )  # the left position has channel 0, the right one channel 1
    assert metrics.gram(features)[0].tolist() == [[0.5, 0], [0, 2]]
    left = metrics.gram(features, torch.tensor([[1.0, 0.0]]))[0]
    assert left.tolist() == [[1, 0], [0, 0]]
    assert torch.equal(metrics.gram(features, torch.ones(4, 8)), metrics.gram(features))
    with pytest.raises(ValueError, match="weights is 0"):
        metrics.gram(features, torch.zeros(1, 2))


def test_gram_distance_by_hand():
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # their Gram matrix is [[0.5, 0], [0, 2]]
    near, far = torch.tensor([[0.5, 0], [0, 1]]), torch.tensor([[0.5, 0], [0, 2]])
    assert metrics.gram_distance([features], [near]).item() == pytest.approx(1 / math.sqrt(1.25))
    both = metrics.gram_distance([features, features], [near, far]).item()
    assert both == pytest.approx(0.5 / math.sqrt(1.25))


def test_gram_distance_identity_direction_and_too_few_references():
    smooth, rough = noise(40, 4, 8, 8), noise(40, 4, 8, 8, seed=1) ** 4
    reference = metrics.gram_reference([smooth[:32]])
    assert metrics.gram_distance([smooth[:1] * 0 + 1.0], [torch.ones(4, 4)]).item() == 0
    own, other = (
        metrics.gram_distance([smooth[32:]], reference),
        metrics.gram_distance([rough[32:]], reference),
    )
    assert own.shape == (8,) and own.max() < other.min()
    with pytest.raises(ValueError, match="at least 32"):
        metrics.gram_reference([smooth[:3]])
    with pytest.raises(ValueError, match="layers"):
        metrics.gram_distance([smooth, smooth], reference)


def test_gram_per_side_prefers_the_true_mix_to_its_mirror():
    smooth, rough = noise(40, 4, 8, 8), noise(40, 4, 8, 8, seed=1) ** 4
    weights = halves(8, 8)
    references = [metrics.gram_reference([smooth[:32]]), metrics.gram_reference([rough[:32]])]
    mix = smooth[32:] * weights[0] + rough[32:] * weights[1]
    for mixed, better in ((mix, True), (mix.flip(3), False)):
        own = sum(metrics.gram_distance([mixed], references[i], weights[i]) for i in (0, 1))
        crossed = sum(metrics.gram_distance([mixed], references[1 - i], weights[i]) for i in (0, 1))
        assert ((own < crossed) == better).all()


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.zeros(3, 8, 8), "expected a tensor of shape"),
        (torch.zeros(1, 4, 8, 8), "expected a tensor of shape"),
        (torch.full((1, 3, 8, 8), 255.0), "spans"),
        (torch.full((1, 3, 8, 8), math.nan), "spans"),
        (np.zeros((1, 3, 8, 8)), "expected a tensor of shape"),
    ],
)
def test_refuses_what_is_not_an_image(image, words):
    with pytest.raises(ValueError, match=words):
        metrics.smoothness(image)


def test_refuses_pairs_and_weights_that_do_not_fit():
    with pytest.raises(ValueError, match="targets is"):
        metrics.l2(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
    with pytest.raises(ValueError, match="sum to 1"):
        metrics.side_weights(torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="N ≥ 2"):
        metrics.side_weights(torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match="width"):
        metrics.smoothness(torch.zeros(1, 3, 8, 8), width=0)
