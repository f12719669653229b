"""Regional context: its two formulas, and its hooks on the UNets of Stable Diffusion 1.x, 2.x and XL."""

import pytest
import torch
import torch.nn.functional as F
from conftest import slow
from peft import LoraConfig
from test_hooks import SIZE, UNETS, call, close

from dsnb import masks
from dsnb.regional import region_bias, regional_context, regional_group_norm

EVERYWHERE = masks.from_weights(torch.tensor([[[1.0]], [[0.0]]]))
HALVES = masks.formula("x < 0.5")


@pytest.fixture(params=UNETS)
def unet(request):
    return UNETS[request.param]()


@pytest.fixture
def inputs(generator):
    return torch.randn(2, 4, *SIZE, generator=generator), torch.randn(2, 77, 32, generator=generator)


def regional(unet, inputs, mask, progress=0.0, size=SIZE, **options):
    with regional_context(unet, mask, size, **options) as regions:
        regions.at(progress)
        return call(unet, *inputs)


def test_hard_halves_are_normalised_apart(generator):
    x = 3 + torch.randn(2, 8, 6, 10, generator=generator)
    gamma, beta = torch.randn(2, 8, generator=generator)
    y = regional_group_norm(x, HALVES.weights(6, 10), 4, gamma, beta, 1e-5)
    apart = [F.group_norm(half, 4, gamma, beta, 1e-5) for half in x.chunk(2, -1)]
    torch.testing.assert_close(y, torch.cat(apart, -1), atol=1e-4, rtol=0)


def test_soft_weights_mix_the_results_of_each_style(generator):
    """The formula, written out for one group of one channel."""
    x, M = torch.randn(1, 1, 2, 3, generator=generator), masks.linear(3).weights(2, 3)
    expected = torch.zeros_like(x)
    for weight in M:
        mean = (weight * x).sum() / weight.sum()
        variance = (weight * (x - mean) ** 2).sum() / weight.sum()
        expected += weight * (x - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(regional_group_norm(x, M, 1, None, None, 1e-5), expected)


def test_the_bias_falls_across_the_border_and_cuts_nothing():
    bias = region_bias(HALVES.weights(1, 2), strength=2.0)
    assert torch.isfinite(bias).all()
    same, other = bias.diagonal(), bias[0, 1]
    torch.testing.assert_close(same, torch.full((2,), 2 * torch.tensor(1.001).log().item()))
    assert other == pytest.approx(2 * torch.tensor(0.001).log().item())


def test_one_style_everywhere_is_the_plain_unet(unet, inputs):
    assert close(regional(unet, inputs, EVERYWHERE), call(unet, *inputs))


@pytest.mark.parametrize("part", [{"strength": 0.0}, {"layers": lambda name: "attn1" in name}])
def test_each_part_alone_changes_the_prediction(unet, inputs, part):
    plain = call(unet, *inputs)
    assert not torch.allclose(regional(unet, inputs, HALVES, **part), plain, atol=1e-3)
    assert torch.equal(call(unet, *inputs), plain)


def test_three_styles_and_each_image_of_a_batch_alone(unet, inputs):
    mask = masks.radial(3)
    together = regional(unet, inputs, mask)
    alone = [regional(unet, [part[i : i + 1] for part in inputs], mask) for i in (0, 1)]
    assert close(together, torch.cat(alone))


def test_a_timed_mask_is_read_at_each_progress(unet, inputs):
    moving = masks.formula("x < t")
    late = masks.formula("x < 0.75")
    assert close(regional(unet, inputs, moving, progress=0.75), regional(unet, inputs, late))


def test_the_context_can_be_left_out_of_a_call(unet, inputs):
    plain = call(unet, *inputs)
    with regional_context(unet, HALVES, SIZE) as regions:
        regions.at(0.0, on=False)
        assert torch.equal(call(unet, *inputs), plain)


@pytest.mark.parametrize("unet", ["sd1", slow("sd2"), slow("xl")], indirect=True)
def test_the_compiled_unet_is_one_graph(unet, inputs, dynamo):
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    for mask in (HALVES, masks.sharpen(4, 40)):
        with regional_context(compiled, mask, SIZE) as regions:
            for progress in (0.0, 0.5):
                regions.at(progress)
                assert close(call(compiled, *inputs), call(unet, *inputs))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_lora_layers_are_supported(unet, inputs):
    unet.add_adapter(
        LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    assert close(regional(unet, inputs, EVERYWHERE), call(unet, *inputs))


def test_the_layers_come_back_after_an_error(unet, inputs):
    modules, processors = dict(unet.named_modules()), dict(unet.attn_processors)
    with pytest.raises(
        ValueError, match="size must be the height and width of the latents, 12 x 20; got 16 x 16"
    ):
        regional(unet, inputs, HALVES, size=(16, 16))
    with regional_context(unet, HALVES, SIZE):
        with pytest.raises(RuntimeError, match="hooked already"):
            regional(unet, inputs, HALVES)
    assert dict(unet.named_modules()) == modules and unet.attn_processors == processors


def test_a_size_with_height_and_width_exchanged_is_refused(unet, inputs):
    for layers in (None, lambda name: "attn1" in name):  # the number of positions is the same
        with pytest.raises(ValueError, match="size must be .* 12 x 20; got 20 x 12"):
            regional(unet, inputs, HALVES, size=SIZE[::-1], layers=layers)


def test_bad_calls_are_refused(unet, inputs):
    with pytest.raises(TypeError, match="mask must be a dsnb.masks.Mask, got"):
        regional(unet, inputs, torch.ones(2, 4, 4))
    with pytest.raises(TypeError, match="layers must be a function or None, got 'mid_block'"):
        regional(unet, inputs, HALVES, layers="mid_block")
    with pytest.raises(ValueError, match="layers chooses no"):
        regional(unet, inputs, HALVES, layers=lambda name: False)
    with pytest.raises(ValueError, match="strength must be"):
        regional(unet, inputs, HALVES, strength=-1)


def test_a_unet_with_weights_stored_in_eight_bits(unet, inputs):
    unet.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert close(regional(unet, inputs, EVERYWHERE), call(unet, *inputs))
