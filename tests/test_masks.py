import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsnb import masks

SIDES = st.integers(1, 67)
MASKS = {
    "linear": lambda n, angle: masks.linear(n, angle),
    "logistic": lambda n, angle: masks.logistic(20, n, angle),
    "radial": lambda n, angle: masks.radial(n),
    "stripes": lambda n, angle: masks.stripes(2 * n + 1, n, angle=angle),
    "sharpen": lambda n, angle: masks.sharpen(2, 200, n, angle),
    "active": lambda n, angle: masks.linear(n, angle).active([0.0] * n, [1.0] * n),
    "painted": lambda n, angle: masks.from_weights(np.random.default_rng(n).uniform(size=(n, 9, 5))),
}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MASKS)),
    st.integers(2, 5),
    st.floats(-360, 360),
    SIDES,
    SIDES,
    st.floats(0, 1),
    st.sampled_from(["area", "endpoints"]),
)
def test_weights_sum_to_one_at_every_resolution(name, n, angle, height, width, progress, sampling):
    weights = MASKS[name](n, angle).weights(height, width, progress, sampling)
    assert weights.shape == (n, height, width) and weights.dtype == torch.float32
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(0), torch.ones(height, width), atol=1e-6, rtol=0)


def test_endpoint_sampling_is_the_reference_definition():
    x = torch.linspace(0, 1, 8)
    weights = masks.logistic(30).weights(8, 8, sampling="endpoints")
    torch.testing.assert_close(weights[1], torch.sigmoid(30 * (x - 0.5)).expand(8, 8))
    linear = masks.linear().weights(3, 5, sampling="endpoints")
    torch.testing.assert_close(linear[0], torch.linspace(1, 0, 5).expand(3, 5))


def test_coarse_weights_are_the_means_of_fine_ones():
    mask = masks.logistic(20, angle=30)
    fine = mask.weights(64, 64).reshape(2, 16, 4, 16, 4).mean((2, 4))
    torch.testing.assert_close(mask.weights(16, 16), fine, atol=2e-3, rtol=0)


def test_a_large_mask_is_made_in_parts_that_fit_together():
    largest = []

    def field(x, y, progress):
        largest.append(x.numel())
        return torch.stack([x + y, 2 - x - y])

    weights = masks.Mask(2, field).weights(600, 200)
    assert len(largest) > 1 and max(largest) <= masks.MOST_POINTS
    y, x = (torch.arange(600) + 0.5) / 600, (torch.arange(200) + 0.5) / 200
    torch.testing.assert_close(weights[0], (x[None] + y[:, None]) / 2)


def test_angle_turns_the_ramp():
    across, down = masks.linear(angle=0).weights(16, 16), masks.linear(angle=90).weights(16, 16)
    torch.testing.assert_close(down, across.transpose(1, 2))
    assert across[0, 0, 0] > 0.9 and across[0, 0, -1] < 0.1, "style 0 is on the left"
    assert down[0, 0, 0] > 0.9 and down[0, -1, 0] < 0.1, "at 90 degrees style 0 is on top"


def test_center_moves_the_transition():
    weights = masks.logistic(100, center=(0.25, 0.5)).weights(4, 64)
    assert weights[0, 0, 8] > 0.95 and weights[1, 0, 24] > 0.95


def test_three_styles_follow_each_other():
    weights = masks.logistic(200, n=3).weights(1, 30)[:, 0]
    assert weights[:, [5, 15, 25]].argmax(0).tolist() == [0, 1, 2]


def test_radial_puts_the_first_style_in_the_middle():
    weights = masks.radial(3, sharpness=100, radius=0.2).weights(50, 50)[:, 25]
    assert weights[:, [25, 10, 0]].argmax(0).tolist() == [0, 1, 2]


def test_stripes_take_turns():
    weights = masks.stripes(6, 3, sharpness=500).weights(1, 60)[:, 0]
    assert weights[:, 5::10].argmax(0).tolist() == [0, 1, 2, 0, 1, 2]


def test_weigh_multiplies_the_weights():
    mask = masks.logistic(20)
    plain, weighed = (m.weights(1, 64, sampling="endpoints")[:, 0] for m in (mask, mask.weigh((3, 1))))
    expected = plain * torch.tensor([[3.0], [1.0]])
    torch.testing.assert_close(weighed, expected / expected.sum(0))
    assert (weighed[0] > 0.5).sum() > (plain[0] > 0.5).sum()
    for factor in (2, 1e39, 1e-46):
        torch.testing.assert_close(mask.weigh(factor).weights(4, 4), mask.weights(4, 4))
    with pytest.raises(ValueError, match="factors must be one number or 2 numbers, got 3"):
        mask.weigh((1, 2, 3))
    with pytest.raises(ValueError, match="factors must not all be 0"):
        mask.weigh(0)


def test_flip_reverses_the_styles():
    mask = masks.logistic(20, n=3, angle=10)
    torch.testing.assert_close(mask.flip().weights(9, 7), mask.weights(9, 7).flip(0))


def test_sharpen_changes_over_the_steps():
    mask = masks.sharpen(2, 200)
    torch.testing.assert_close(mask.weights(4, 32, 0.0), masks.logistic(2).weights(4, 32))
    torch.testing.assert_close(mask.weights(4, 32, 1.0), masks.logistic(200).weights(4, 32))


def test_a_style_acts_between_its_start_and_its_end():
    mask = masks.linear().active([0.0, 0.5], [1.0, 1.0])
    assert mask.timed
    assert (mask.weights(4, 4, 0.2)[0] == 1).all(), "style 1 has not begun: style 0 fills in"
    torch.testing.assert_close(mask.weights(4, 4, 0.7), masks.linear().weights(4, 4))
    for wrong in (-1.0, math.nan):
        field = lambda x, y, p, wrong=wrong: torch.full((2, *x.shape), wrong)
        with pytest.raises(ValueError, match="mask weights must be finite and not negative"):
            masks.Mask(2, field).active(0, 1).weights(2, 2)


def test_image_white_is_the_first_style():
    grey = np.zeros((8, 8))
    grey[:, :4] = 1
    weights = masks.image(grey).weights(8, 8)
    assert weights[0, 0, 0] == 1 and weights[1, 0, -1] == 1


def test_formulas():
    half = masks.formula("x < 0.5").weights(4, 8)
    assert half[0, :, :4].min() == 1 and half[0, :, 4:].max() == 0
    checks = masks.formula("(floor(2 * x) + floor(2 * y)) % 2 == 0").weights(2, 2)
    assert checks[0].tolist() == [[1, 0], [0, 1]]
    thirds = masks.formula(["x", "y", "0.1 if r < 0.5 else 1"]).weights(5, 6)
    torch.testing.assert_close(thirds.sum(0), torch.ones(5, 6))
    moving = masks.formula("sin(8*x + t) ** 2")
    assert moving.timed and not torch.equal(moving.weights(4, 4, 0), moving.weights(4, 4, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.linear(1), "n must be a whole number from 2 to 1000"),
        (lambda: masks.logistic(0), "sharpness must be a finite number above 0, got 0"),
        (lambda: masks.logistic(float("nan")), "sharpness must be a finite number above 0"),
        (lambda: masks.stripes(1, 2), "count must be a whole number from 2 to 1000"),
        (lambda: masks.linear().weights(0, 4), "height must be"),
        (lambda: masks.linear().weights(4, 4, sampling="nearest"), "sampling must be"),
        (lambda: masks.linear().active([0] * 3, [1]), "starts must be one number or 2 numbers, got 3"),
        (lambda: masks.linear().active([0.2, 0.3], [1, 1]), "no style is active at 0"),
        (lambda: masks.from_weights(np.full((2, 4, 4), np.nan)), "NaN"),
        (lambda: masks.from_weights(-np.ones((2, 4, 4))), "not negative"),
        (lambda: masks.from_weights(np.ones((4, 4))), "N >= 2, H, W"),
        (lambda: masks.from_weights(np.zeros((2, 4, 4))).weights(4, 4), "all be 0"),
        (lambda: masks.image(np.full((4, 4), 2.0)), r"\[0, 1\]"),
        (lambda: masks.formula("__import__('os')"), "calls '__import__'"),
        (lambda: masks.formula("x.real"), "not allowed"),
        (lambda: masks.formula("z"), "uses 'z'"),
        (lambda: masks.formula("x +"), "cannot be read"),
        (lambda: masks.formula("0 / 0 * x"), "finite"),
        (lambda: masks.formula("sin(x, y)"), "has 2 arguments"),
        (lambda: masks.formula("min(x)"), "has 1 arguments"),
        (lambda: masks.formula("+".join(["x"] * 3000)), "nested at most 200"),
        (lambda: masks.formula("-" * 9000 + "x"), "nested at most 200"),
        (lambda: masks.formula("x" * 20000), "at most 10000 characters"),
        (lambda: masks.formula("x\0"), "cannot be read"),
        (lambda: masks.formula("9" * 400 + " * x"), "a number in a formula must be a finite"),
        (lambda: masks.formula("sqrt(0.55 - t)"), "finite"),  # NaN at the end of the steps only
        (lambda: masks.linear(angle=float("inf")), "angle must be a finite number, got inf"),
        (
            lambda: masks.linear().active([float("nan"), 0], [1, 1]),
            "starts must be a finite number from 0 to 1",
        ),
        (lambda: masks.linear().active([0, 0], [1.0000001, 1]), "ends must .* got 1.0000001"),
        (lambda: masks.linear(center=(0.5, float("nan"))), "center must be a finite"),
        (lambda: masks.image(np.full((4, 4), 255, np.uint8)), "divide an 8-bit array by 255"),
    ],
)
def test_bad_masks_are_refused_with_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.linear("3"), "n must be a whole number"),
        (lambda: masks.linear(2.5), "n must be a whole number"),
        (lambda: masks.logistic("20"), "sharpness must be a finite number"),
        (lambda: masks.logistic(True), "sharpness must be a finite number"),
        (lambda: masks.linear(angle="left"), "angle must be a finite number"),
        (lambda: masks.linear().active(None, 1), "starts must be a finite number"),
        (lambda: masks.formula(3), "expression must be a list of texts"),
        (lambda: masks.from_weights([["a"]]), "weights must be an array of real numbers"),
        (lambda: masks.from_weights([[[1, 2], [3]]] * 2), "weights must be an array of real numbers"),
        (lambda: masks.from_weights(np.ones((2, 4, 4), complex)), "weights must be an array of real numbers"),
        (lambda: masks.from_weights(torch.ones(2, 4, 4).to_sparse()), "weights must be a dense tensor"),
        (
            lambda: masks.from_weights(torch.ones(2, 4, 4, device="meta")),
            "dense tensor with values.* on device meta",
        ),
        (lambda: masks.image(None), "image must be a file"),
    ],
)
def test_wrong_types_are_refused_by_name(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_an_array_that_changes_later_leaves_its_mask_alone():
    for array in (np.ones((2, 4, 4)), torch.ones(2, 4, 4, dtype=torch.float64)):
        mask = masks.from_weights(array)
        array[0] = 0
        assert (mask.weights(4, 4) == 0.5).all()


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ((0, lambda x, y, p: x), ValueError, "n must be"),
        (("2", lambda x, y, p: x), TypeError, "n must be"),
        ((2, None), TypeError, "field must be a function"),
        ((2, lambda x, y, p: torch.stack([x + p, 2 - x])), ValueError, "field must not change with progress"),
        (
            (2, lambda x, y, p: torch.stack([x + (p > 0.8), 2 - x])),
            ValueError,
            "must not change with progress",
        ),
        ((2, lambda x, y, p: torch.rand(2, *x.shape)), ValueError, "from call to call"),
    ],
)
def test_a_mask_of_ones_own_is_checked_when_it_is_made(mask, error, words):
    with pytest.raises(error, match=words):
        masks.Mask(*mask)


def test_a_field_returns_a_real_tensor():
    for field in (
        lambda x, y, p: np.stack([x, x]),
        lambda x, y, p: torch.stack([x + 0j, x]),
        lambda x, y, p: (x, 1 - x),
    ):
        with pytest.raises(TypeError, match="must return a tensor of real numbers"):
            masks.Mask(2, field)


def test_learned_numbers_in_a_field_stay_out_of_the_image_s_graph():
    edge = torch.tensor(0.5, requires_grad=True)
    mask = masks.Mask(
        2, lambda x, y, p: torch.stack([torch.sigmoid(9 * (edge - x)), torch.sigmoid(9 * (x - edge))])
    )
    assert not mask.weights(4, 4).requires_grad


def test_very_large_weights_are_weights():
    weights = masks.from_weights(np.full((2, 4, 4), 1e308)).weights(4, 4)
    assert (weights == 0.5).all()


def test_scalars_of_numpy_and_torch_are_numbers():
    expected = masks.logistic(20, 3, 30).weights(4, 4)
    assert torch.equal(
        masks.logistic(torch.tensor(20.0), np.int64(3), np.float32(30)).weights(4, 4), expected
    )
