"""The attention hooks on the UNets of Stable Diffusion 1.x, 2.x and XL, and what they meet on a pipeline."""

import pytest
import torch
from conftest import make_unet, slow
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from dsnb import masks
from dsnb.attention import blend_cross_attention, layer_level

SIZE = (12, 20)  # latents whose halves are not square, and odd in the end
UNCONDITIONAL, MIXED, FIRST = 0, 1, 2


def make_xl(seed=0):
    """The blocks of Stable Diffusion XL: linear projections, several transformer layers, added conditions."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=32,
        norm_num_groups=16,
    ).eval()


UNETS = {"sd1": make_unet, "sd2": lambda: make_unet(2), "xl": make_xl}


@pytest.fixture(params=UNETS)
def unet(request):
    return UNETS[request.param]()


@pytest.fixture
def contexts(generator):
    """The embeddings of the empty prompt and of two styles."""
    return torch.randn(3, 77, 32, generator=generator)


@pytest.fixture
def x(generator):
    return torch.randn(4, 4, *SIZE, generator=generator)


def call(unet, x, contexts):
    added = {"text_embeds": torch.ones(len(x), 32), "time_ids": torch.ones(len(x), 6)}
    with torch.no_grad():
        return unet(x, torch.tensor(500), encoder_hidden_states=contexts, added_cond_kwargs=added).sample


def blended(unet, x, contexts, roles, mask=None):
    with blend_cross_attention(unet, contexts, mask or masks.linear(2), SIZE) as hook:
        hook.at(0.0, roles)
        return call(unet, x, contexts[[0] * len(x)])


def close(a, b):
    return torch.allclose(a, b, atol=1e-5)


def test_roles_of_one_prompt_are_the_unhooked_unet(unet, x, contexts):
    out = blended(unet, x, contexts, [UNCONDITIONAL, FIRST, FIRST + 1, UNCONDITIONAL])
    assert close(out, call(unet, x, contexts[[0, 1, 2, 0]]))


def test_each_picture_of_a_batch_is_what_it_is_alone(unet, x, contexts):
    together = blended(unet, x, contexts, [UNCONDITIONAL, UNCONDITIONAL, MIXED, MIXED])
    alone = torch.cat([blended(unet, x[i : i + 1], contexts, [r]) for i, r in enumerate([0, 0, 1, 1])])
    assert close(together, alone)
    assert not close(together[2:], call(unet, x, contexts[[0, 0, 1, 1]])[2:])


def test_the_mask_keeps_its_sides_on_latents_that_are_not_square(unet, x, contexts):
    """With hard halves, each side's far end leans to its own style."""
    hard = masks.formula("x < 0.5")
    out = blended(unet, x[:1], contexts, [MIXED], hard)
    left, right = (call(unet, x[:1], contexts[i : i + 1]) for i in (1, 2))
    distance = lambda a, columns: (out - a)[..., columns].square().mean()
    assert distance(left, slice(0, 4)) < distance(right, slice(0, 4))
    assert distance(right, slice(-4, None)) < distance(left, slice(-4, None))


def test_a_size_with_height_and_width_exchanged_is_refused(unet, x, contexts):
    with blend_cross_attention(unet, contexts, masks.linear(2), SIZE[::-1]) as hook:
        hook.at(0.0, [MIXED])
        with pytest.raises(
            ValueError, match="size must be the height and width of the latents, 12 x 20; got 20 x 12"
        ):
            call(unet, x[:1], contexts[:1])
    assert call(unet, x[:1], contexts[:1]).shape == x[:1].shape


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"contexts": [1]}, TypeError, "contexts must be a torch.Tensor"),
        ({"mask": torch.ones(2, 4, 4)}, TypeError, "mask must be a dsnb.masks.Mask, got"),
        ({"size": (12, 20, 3)}, ValueError, "size must be one number, or height and width"),
        ({"layers": "mid_block"}, TypeError, "layers must be a function or None, got 'mid_block'"),
    ],
)
@pytest.mark.parametrize("unet", ["sd1"], indirect=True)
def test_wrong_arguments_are_named(unet, contexts, wrong, error, words):
    usual = {"contexts": contexts, "mask": masks.linear(2), "size": SIZE}
    with pytest.raises(error, match=words):
        blend_cross_attention(unet, **usual | wrong).__enter__()


@pytest.mark.parametrize("unet", ["sd1", slow("sd2"), slow("xl")], indirect=True)
def test_the_compiled_unet_is_one_graph(unet, x, contexts, dynamo):
    """No graph break in any layer, and no new compilation for a new block, new texts or a mask that moves.

    Tracing alone shows this, so the backend is the one that runs the traced graph as it is.
    """
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    for texts, mask in ((contexts, masks.linear(2)), (contexts.flip(1), masks.sharpen(4, 40))):
        with blend_cross_attention(unet, texts, mask, SIZE) as hook:
            for progress in (0.0, 0.5):
                hook.at(progress, [UNCONDITIONAL, MIXED])
                rows = texts[[0, 0]]
                assert close(call(compiled, x[:2], rows), call(unet, x[:2], rows))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_lora_layers_are_supported(unet, x, contexts):
    plain = call(unet, x, contexts[[0, 1, 2, 0]])
    projections = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=projections))
    tuned = call(unet, x, contexts[[0, 1, 2, 0]])
    assert not close(plain, tuned)
    assert close(blended(unet, x, contexts, [UNCONDITIONAL, FIRST, FIRST + 1, UNCONDITIONAL]), tuned)


def test_attention_slicing_is_refused(unet, x, contexts):
    unet.set_attention_slice("auto")
    with pytest.raises(NotImplementedError, match="SlicedAttnProcessor.*set_default_attn_processor"):
        blended(unet, x, contexts, [MIXED] * 4)
    unet.set_default_attn_processor()
    assert blended(unet, x, contexts, [MIXED] * 4).shape == x.shape


def test_an_attention_mask_is_refused(unet, x, contexts):
    added = {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)}
    given = {"encoder_attention_mask": torch.ones(1, 77), "added_cond_kwargs": added}
    with blend_cross_attention(unet, contexts, masks.linear(2), SIZE) as hook:
        hook.at(0.0, [MIXED])
        with pytest.raises(NotImplementedError, match="attention mask, which cannot be blended"):
            unet(x[:1], torch.tensor(500), encoder_hidden_states=contexts[:1], **given)


def test_an_ip_adapter_is_refused(unet, x, contexts):
    width = unet.config.cross_attention_dim
    weights = {"image_proj": image_projection(width), "ip_adapter": {}}
    index = 1
    for name in unet.attn_processors:
        if not name.endswith("attn1.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for part in ("to_k_ip", "to_v_ip"):
                weights["ip_adapter"][f"{index}.{part}.weight"] = torch.randn(hidden, width)
            index += 2
    unet._load_ip_adapter_weights([weights])
    with pytest.raises(NotImplementedError, match="IP-Adapter.*unload_ip_adapter"):
        blended(unet, x, contexts, [MIXED] * 4)


def image_projection(width):
    """The image half of an IP-Adapter file: 4 tokens from an embedding of 16 numbers."""
    shapes = {
        "proj.weight": (4 * width, 16),
        "proj.bias": (4 * width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_processors_come_back_after_an_error(unet, x, contexts):
    before = dict(unet.attn_processors)
    with pytest.raises(ValueError, match="size must be .* 16 x 16; got 12 x 20"):
        blended(unet, torch.zeros(1, 4, 16, 16), contexts, [MIXED])
    assert unet.attn_processors == before
    with blend_cross_attention(unet, contexts, masks.linear(2), SIZE):
        with pytest.raises(RuntimeError, match="hooked already"):
            blended(unet, x, contexts, [MIXED] * 4)
    assert unet.attn_processors == before


def test_levels_follow_the_names():
    names = [
        "down_blocks.0.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.1",
        "up_blocks.3.x",
    ]
    assert [layer_level(name, 4) for name in names] == [0, 3, 3, 0]
