"""The real architectures on the meta device: all shapes, no weights. The sizes are the public configurations'."""

import diffusers
import pytest
import torch
from conftest import make_pipeline, make_scheduler
from tiny_chat_models import make_flux2, make_qwen_image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

import dsnb
from dsnb import masks, models
from dsnb.attention import blend_cross_attention, cross_attention_layers, layer_level
from dsnb.families import Prompts
from dsnb.joint import joint_bias, joint_rows
from dsnb.memory import memory_estimate
from dsnb.regional import regional_context

GIB, N, SIDE = 2**30, 2, 128  # latents of 1024 x 1024 pixels


def clip(width, layers, heads, kind=CLIPTextModelWithProjection):
    config = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return kind(CLIPTextConfig(num_hidden_layers=layers, num_attention_heads=heads, **config))


def large_clip():
    return clip(1280, 32, 20)


def t5():
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


def vae(channels, **config):
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        **config,
    )


def sdxl(tokenizer):
    unet = diffusers.UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048, attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4), text_encoder=clip(768, 12, 12, CLIPTextModel), text_encoder_2=large_clip(),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, scheduler=make_scheduler(), add_watermarker=False,
    )  # fmt: skip


def sd35_medium(tokenizer):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
        pooled_projection_dim=2048, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(16, use_quant_conv=False, use_post_quant_conv=False), text_encoder=clip(768, 12, 12),
        text_encoder_2=large_clip(), text_encoder_3=t5(), tokenizer=tokenizer, tokenizer_2=tokenizer,
        tokenizer_3=tokenizer, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux_dev(tokenizer):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128,
        num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        vae=vae(16, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(768, 12, 12, CLIPTextModel), text_encoder_2=t5(), tokenizer=tokenizer,
        tokenizer_2=tokenizer, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def klein_4b(tokenizer):
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128, num_layers=5, num_single_layers=20, attention_head_dim=128, num_attention_heads=24,
        joint_attention_dim=3 * 2560, guidance_embeds=False,
    )  # fmt: skip
    language = Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        vae=diffusers.AutoencoderKLFlux2(), text_encoder=Qwen3ForCausalLM(language), tokenizer=tokenizer,
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def flux2_dev(tokenizer):
    """With the text encoder of a tiny model, which the network does not see."""
    pipe = make_flux2("flux2-dev")
    parts = {"vae": diffusers.AutoencoderKLFlux2(), "transformer": diffusers.Flux2Transformer2DModel()}
    return type(pipe)(**{**pipe.components, **parts})


def qwen_image(tokenizer):
    """With the text encoder of a tiny model, which the network does not see."""
    pipe = make_qwen_image()
    parts = {
        "vae": diffusers.AutoencoderKLQwenImage(),
        "transformer": diffusers.QwenImageTransformer2DModel(),
    }
    return type(pipe)(**{**pipe.components, **parts})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = make_pipeline(tmp_path_factory.mktemp("tokenizer"))
    return diffusers.StableDiffusionPipeline.from_pretrained(folder).tokenizer


def on_meta(make, tokenizer):
    with torch.device("meta"):
        return dsnb.load(make(tokenizer).to(torch.bfloat16))


@pytest.fixture(scope="module")
def xl(tokenizer):
    return on_meta(sdxl, tokenizer)


@pytest.fixture(scope="module", params=[sd35_medium, flux_dev, klein_4b])
def joint(request, tokenizer):
    return on_meta(request.param, tokenizer)


def prompts(model, rows, width, pooled, **more):
    length = model.family.text_length(model.pipe)
    meta = {"device": "meta", "dtype": model.dtype}
    vectors = torch.empty(rows, pooled, **meta) if pooled else None
    return Prompts(torch.empty(rows, length, width, **meta), vectors, **more)


def latents(model, rows):
    return torch.empty(rows, model.channels, SIDE, SIDE, device="meta", dtype=model.dtype)


def test_the_layers_of_sdxl_and_their_pyramid(xl):
    names = cross_attention_layers(xl.unet)
    assert len(names) == 70
    assert names[0] == "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert names[-1] == "up_blocks.1.attentions.2.transformer_blocks.1.attn2"
    levels = [layer_level(name, 3) for name in names]
    assert [levels.count(level) for level in (0, 1, 2)] == [0, 10, 60]
    styles = prompts(xl, 1 + N, 2048, 1280)
    with (
        blend_cross_attention(xl.unet, styles.text, masks.linear(), (SIDE, SIDE)) as hook,
        regional_context(xl.unet, masks.linear(), (SIDE, SIDE)) as regions,
    ):
        hook.at(0.0, [0, 1])
        sizes = {tokens: hook.plan(2, tokens).weights.shape for tokens in (64 * 64, 32 * 32)}
        assert sizes == {tokens: (2 + N, 1 + N, tokens) for tokens in sizes}
        processors = [xl.unet.get_submodule(name).processor for name in names]
        kept = sum(p.keys.nbytes + p.values.nbytes for p in processors)
        bias = sum(regions.bias(tokens).nbytes for tokens in sizes)
        out = models.predict(xl, latents(xl, 2), 1.0, styles[:2])
    assert out.shape == (2, 4, SIDE, SIDE)
    needed = memory_estimate(xl, (1024, 1024), N, "regional")
    assert (needed["keys and values"], needed["bias"]) == (kept, bias)
    assert memory_estimate(xl, (1024, 1024), N, "combined")["bias"] == bias
    assert needed["latents"] == latents(xl, 2).nbytes


def test_one_call_of_a_joint_transformer(joint):
    config = joint.network.config
    pooled = config.get("pooled_projection_dim")
    styles = prompts(joint, N + int(joint.guided), config.joint_attention_dim, pooled)
    weights = masks.linear().weights(SIDE // 2, SIDE // 2).flatten(1).to("meta")
    if not joint.guided:
        styles = Prompts(styles.text, styles.pooled, torch.ones(N, device="meta"))
    rows = joint_rows(styles, weights)
    with joint.family.biased(joint.pipe):
        out = models.predict(joint, latents(joint, len(rows)), 1.0, rows)
    assert out.shape == (len(rows), joint.channels, SIDE, SIDE)
    needed = memory_estimate(joint, (1024, 1024), N, "joint")
    bias = joint_bias(weights, styles.text.shape[1])
    assert needed["bias"] == bias.nbytes + bias.to(joint.dtype).nbytes
    assert needed["latents"] == latents(joint, len(rows)).nbytes


@pytest.mark.parametrize(("make", "network"), [(flux2_dev, 60.0), (qwen_image, 38.1)])
def test_one_call_of_the_largest_transformers(tokenizer, make, network):
    model = on_meta(make, tokenizer)
    rows = 2 if model.guided else 1
    told = {} if model.guided else {"guidance": torch.ones(1, device="meta")}
    styles = prompts(model, rows, model.network.config.joint_attention_dim, None, **told)
    out = models.predict(model, latents(model, rows), 1.0, styles)
    assert out.shape == (rows, model.channels, SIDE, SIDE)
    needed = memory_estimate(model, (1024, 1024), N)
    assert needed["transformer"] / GIB == pytest.approx(network, abs=0.05)


@pytest.mark.parametrize(
    ("make", "network", "everything"),
    [(sdxl, 4.8, 6.5), (sd35_medium, 4.6, 15.15), (flux_dev, 22.2, 31.4), (klein_4b, 7.2, 14.9)],
)
def test_the_memory_of_the_weights(tokenizer, make, network, everything):
    """In bfloat16; 2 bytes for each of 2.6, 2.5, 11.9 and 3.9 billion numbers of the network."""
    model = on_meta(make, tokenizer)
    needed = memory_estimate(model, (1024, 1024), N)
    assert needed[model.family.network] / GIB == pytest.approx(network, abs=0.05)
    assert sum(needed.values()) / GIB == pytest.approx(everything, abs=0.05)


def test_the_memory_grows_with_styles_and_images(xl):
    more = memory_estimate(xl, (1024, 512), 3, batch=5)
    assert more["latents"] == (3 + 1) * 5 * 4 * 128 * 64 * 2
    assert set(more) == {"vae", "text_encoder", "text_encoder_2", "unet", "latents"}
    with pytest.raises(ValueError, match="method must be one of"):
        memory_estimate(xl, (1024, 1024), 2, "joint")
    with pytest.raises(ValueError, match="n must be"):
        memory_estimate(xl, (1024, 1024), 1)
