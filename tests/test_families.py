"""Every family on tiny random models of the real classes, saved and opened in their real layout."""

import copy
import dataclasses
import shutil

import diffusers
import pytest
import torch
from conftest import make_pipeline, make_scheduler
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_chat_models import make_flux2, make_qwen_image, make_z_image
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import dsnb
from dsnb import masks, methods, models
from dsnb.attention_maps import record_attention
from dsnb.guider import MaskGuider
from dsnb.joint import joint_bias
from dsnb.lab.trials import Trial, draw_trial

LEFT, RIGHT, MIDDLE = "a mosaic", "a sketch", "in oil"
KINDS = [
    "sd1",
    "sd2",
    "sdxl",
    "sd3",
    "flux-dev",
    "flux-schnell",
    "flux2-klein",
    "flux2-distilled",
    "flux2-dev",
    "qwen-image",
    "z-image",
]
STEPS = 2


def make_vae(channels, **config):
    torch.manual_seed(7)
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=32,
        **{"scaling_factor": 1.3, **config},
    )


def make_clip(pipe, seed, width):
    torch.manual_seed(seed)
    config = pipe.text_encoder.config.to_dict()
    config |= {"hidden_size": width, "projection_dim": width, "num_attention_heads": 2}
    return CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()


def make_t5(width):
    torch.manual_seed(9)
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz ,"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(tokenizer_models.Unigram([(word, -1.0) for word in words], unk_id=2)),
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512,
    )  # fmt: skip
    config = T5Config(
        vocab_size=len(words),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return tokenizer, T5EncoderModel(config).eval()


def save(kind, folder):
    """A tiny pipeline of one family, in its real folder layout; sd2 predicts v."""
    if kind in ("sd1", "sd2"):
        return make_pipeline(folder, int(kind[-1]))
    sd = diffusers.StableDiffusionPipeline.from_pretrained(make_pipeline(folder / "sd", 1))
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    if kind == "sdxl":
        torch.manual_seed(1)
        unet = diffusers.UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32 + 48, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
            use_linear_projection=True, norm_num_groups=8, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
        )  # fmt: skip
        pipe = diffusers.StableDiffusionXLPipeline(
            vae=make_vae(4), text_encoder=sd.text_encoder, text_encoder_2=make_clip(sd, 2, 48),
            tokenizer=sd.tokenizer, tokenizer_2=sd.tokenizer, unet=unet, scheduler=make_scheduler(),
            add_watermarker=False,
        )  # fmt: skip
    elif kind == "sd3":
        tokenizer, t5 = make_t5(32 + 48)
        clip_l, clip_g = make_clip(sd, 2, 32), make_clip(sd, 3, 48)
        vae = make_vae(4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)
        torch.nn.init.eye_(clip_l.text_projection.weight)  # as in the trained model
        torch.manual_seed(1)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32 + 48, pooled_projection_dim=32 + 48,
            caption_projection_dim=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip
        pipe = diffusers.StableDiffusion3Pipeline(
            vae=vae, text_encoder=clip_l, text_encoder_2=clip_g, text_encoder_3=t5, tokenizer=sd.tokenizer,
            tokenizer_2=sd.tokenizer, tokenizer_3=tokenizer, transformer=transformer,
            scheduler=flow(shift=3.0),
        )  # fmt: skip
    elif kind.startswith("flux2"):
        pipe = make_flux2(kind)
    elif kind == "qwen-image":
        pipe = make_qwen_image()
    elif kind == "z-image":
        pipe = make_z_image(make_vae(4, shift_factor=0.1))
    else:
        tokenizer, t5 = make_t5(32)
        torch.manual_seed(1)
        transformer = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
            guidance_embeds=kind == "flux-dev",
        )  # fmt: skip
        pipe = diffusers.FluxPipeline(
            vae=make_vae(4, shift_factor=0.1), text_encoder=sd.text_encoder, tokenizer=sd.tokenizer, text_encoder_2=t5,
            tokenizer_2=tokenizer, transformer=transformer,
            scheduler=flow(shift=3.0, use_dynamic_shifting=kind == "flux-dev"),
        )  # fmt: skip
    pipe.save_pretrained(folder / kind)
    return folder / kind


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    return dsnb.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def noise(model):
    """A batch of two images that are not square, from noise."""
    return dsnb.from_noise(model, (16, 24), seed=3, batch=2, steps=STEPS, eta=0)


def guidance_of(model):
    return 1.0 if model.settings.guidance == 1 else 3.0


def blending(model):
    return [name for name in methods.methods_of(model) if name != "prompt"]


def run(model, trajectory, prompts, mask, method="epsilon", **options):
    options = {"guidance": guidance_of(model), "progress": False} | options
    return dsnb.blend(model, trajectory, prompts, mask, method=method, **options)


def single(model, trajectory, prompt, **options):
    return dsnb.decode(
        model, trajectory, prompt, **{"guidance": guidance_of(model), "progress": False} | options
    )


def only(style, n=2):
    return masks.from_weights(
        torch.nn.functional.one_hot(torch.tensor([[style]]), n).permute(2, 0, 1).double()
    )


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def stock_image(model, noise, prompt=LEFT):
    """What diffusers' own pipeline makes of this noise."""
    pipe, latents = model.pipe, noise.x_T
    options = {"guidance_scale": guidance_of(model), "num_inference_steps": STEPS, "height": 16, "width": 24}
    if model.family.name in ("FLUX.1", "Qwen-Image"):
        latents = pipe._pack_latents(latents, *latents.shape)
    if model.family.name == "Qwen-Image":
        options |= {"true_cfg_scale": options.pop("guidance_scale"), "negative_prompt": [""] * 2}
    if model.family.name == "FLUX.2":
        latents = pipe._patchify_latents(latents)
    if model.family.name == "Z-Image":  # its pipeline calls p + g (p - u) a guidance of g
        options["guidance_scale"] -= 1
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt=[prompt] * 2, latents=latents, output_type="pt", **options).images


def test_one_prompt_from_noise_is_the_stock_pipelines_own_image(model, noise):
    stock = stock_image(model, noise)
    close(single(model, noise, LEFT), stock, 1e-4)
    close(run(model, noise, [LEFT, RIGHT], only(0)), stock, 1e-4)


@pytest.mark.parametrize("record", ["dpm-encoder", "edit-friendly"])
def test_decoding_with_the_encoders_prompt_gives_the_latent_back(model, record, generator):
    image = torch.rand(2, 3, 16, 24, generator=generator)
    trajectory = dsnb.invert(
        model, image, LEFT, method=record, steps=6, skip=1, generator=generator, progress=False
    )
    network = dsnb.inversion.guided_eps(model, LEFT, trajectory.guidance)
    again = methods.decode_trajectory(model, trajectory, network, progress=False)
    assert (again - models.encode_image(model, image)).abs().max() <= 1e-4


def test_ddim_inversion_records_no_noise_and_decodes(model, generator):
    """How near it comes is for smooth networks, in test_inversion.py; random ones are not smooth."""
    image = torch.rand(2, 3, 16, 24, generator=generator)
    trajectory = dsnb.invert(model, image, LEFT, method="ddim", steps=STEPS, skip=0, progress=False)
    assert trajectory.eta == 0 and not trajectory.noises.any()
    assert single(model, trajectory, RIGHT, guidance=1).shape == image.shape


def test_the_mask_obeys_in_every_method(model, noise):
    """One style alone, equal prompts, swapped prompts, three styles."""
    alone, mask = single(model, noise, RIGHT), masks.logistic(10, angle=20)
    for method in blending(model):
        close(run(model, noise, [LEFT, RIGHT], only(1), method), alone)
        if method not in ("regional", "combined"):  # its layers follow the mask, whatever the prompts
            close(run(model, noise, [RIGHT] * 3, masks.radial(3), method), alone)
        here = run(model, noise, [LEFT, RIGHT], mask, method)
        close(here, run(model, noise, [RIGHT, LEFT], mask.flip(), method))
        assert (here - run(model, noise, [RIGHT, LEFT], mask, method)).abs().max() > 1e-4, method
        three = run(model, noise, [LEFT, MIDDLE, RIGHT], masks.logistic(20, n=3), method)
        assert three.shape == (2, 3, 16, 24)


def test_each_image_of_a_batch_is_what_it_is_alone(model, noise):
    first = dataclasses.replace(noise, x_T=noise.x_T[:1], noises=noise.noises[:, :1])
    for method in blending(model):
        pair = run(model, noise, [LEFT, RIGHT], masks.linear(), method)
        close(pair[:1], run(model, first, [LEFT, RIGHT], masks.linear(), method))


def test_samples_per_step(model, noise):
    extra = int(model.guided)
    first = dataclasses.replace(noise, x_T=noise.x_T[:1], noises=noise.noises[:, :1])
    expected = {
        "epsilon": 3 + extra,
        "pixel": 3 * (1 + extra),
        "attention": 2,
        "regional": 2,
        "joint": 1 + extra,
        "combined": 3,  # of its 2 steps, one as epsilon and one as attention
    }
    for method in blending(model):
        with models.count_unet_samples(model.network) as count:
            run(model, first, [LEFT, MIDDLE, RIGHT], masks.linear(3), method)
        assert count.samples == expected[method] * STEPS, method


def test_processors_come_back_after_an_exception(model, noise):
    processors = lambda: dict(getattr(model.network, "attn_processors", {}))  # Z-Image names none
    before = processors()

    def stop(step):
        raise KeyboardInterrupt

    for method in blending(model):
        with pytest.raises(KeyboardInterrupt):
            run(model, noise, [LEFT, RIGHT], masks.linear(), method, callback=stop)
        assert processors() == before


def test_what_a_family_cannot_do_is_said_before_any_work(model, noise):
    with models.count_unet_samples(model.network) as count:
        own = methods.methods_of(model)
        for method in {*methods.METHODS, "joint"} - set(own):
            with pytest.raises(NotImplementedError, match=f"'{method}' is not there.*{', '.join(own)}"):
                run(model, noise, [LEFT, RIGHT], masks.linear(), method)
        if model.family.attention != "cross":
            with pytest.raises(NotImplementedError, match="no UNet and no cross-attentions"):
                model.unet  # noqa: B018
        if model.family.attention == "plain joint":
            with pytest.raises(NotImplementedError, match="attention maps are not there"):
                with record_attention(model, LEFT, (8, 12)):
                    pass
            with pytest.raises(NotImplementedError, match="styles are padded"):
                MaskGuider(masks.linear(), models.encode_prompts(model, [LEFT, RIGHT]))
        if not model.guided:
            with pytest.raises(ValueError, match="negative_prompt must be empty"):
                run(model, noise, [LEFT, RIGHT], masks.linear(), negative_prompt="grey")
            with pytest.raises(ValueError, match="negative_prompt must be empty"):
                dsnb.invert(model, torch.rand(1, 3, 16, 24), LEFT, negative_prompt="grey")
        if model.settings.guidance == 1:
            with pytest.raises(ValueError, match="guidance must be 1.*distilled"):
                run(model, noise, [LEFT, RIGHT], masks.linear(), guidance=3)
    assert count.samples == 0


def test_a_negative_prompt_and_a_guidance_per_style(model, noise):
    if model.guided:
        grey = {"negative_prompt": "grey"}
        close(run(model, noise, [LEFT, RIGHT], only(0), **grey), single(model, noise, LEFT, **grey))
    if model.settings.guidance != 1:
        for method in blending(model):
            image = run(model, noise, [LEFT, RIGHT], only(0), method, guidance=[2, 9])
            close(image, single(model, noise, LEFT, guidance=2))


def test_the_length_of_an_encoded_prompt_is_known_before_it_is_encoded(model):
    rows, most = models.encode_prompts(model, [LEFT, "a"]), model.family.text_length(model.pipe)
    if rows.length is None:
        assert rows.text.shape[1] == most
    else:  # as many as the prompt has
        assert (
            rows.length[0] == rows.text.shape[1] <= most and rows.length[1] == rows.length[0] - len(LEFT) + 1
        )


def test_encoded_prompts_are_drawn_like_their_texts(model, noise):
    """Also those that are longer or shorter than the empty prompt."""
    rows = models.encode_prompts(model, [LEFT, RIGHT])
    expected = run(model, noise, [LEFT, RIGHT], masks.linear())
    close(run(model, noise, rows, masks.linear()), expected)


def test_lora_weights_are_drawn_with_and_leave_without_a_trace(model, noise, tmp_path):
    plain, network = single(model, noise, LEFT), model.network
    network.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    network.delete_adapters("default")
    model.pipe.save_lora_weights(tmp_path, **{f"{model.family.network}_lora_layers": weights})
    model.pipe.load_lora_weights(tmp_path, adapter_name="one")
    try:
        model.pipe.set_adapters("one", 0.7)
        tuned = single(model, noise, LEFT)
        assert (tuned - plain).abs().max() > 1e-4
        close(tuned, stock_image(model, noise), 1e-4)
        for method in ("epsilon", blending(model)[-1]):  # the last has hooks
            close(run(model, noise, [LEFT, RIGHT], only(0), method), tuned)
    finally:
        model.pipe.unload_lora_weights()
    close(single(model, noise, LEFT), plain)


def test_a_lora_for_one_style_of_two(model, noise):
    plain = single(model, noise, LEFT)
    torch.manual_seed(0)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    model.network.add_adapter(config, "one")
    try:
        model.pipe.set_adapters("one", 0.7)
        tuned = single(model, noise, LEFT)
        assert (tuned - plain).abs().max() > 1e-3
        for style, expected in ((0, tuned), (1, plain)):
            drawn = run(model, noise, [LEFT, LEFT], only(style), loras=["one", None])
            close(drawn, expected)
        close(single(model, noise, LEFT), tuned)
    finally:
        model.pipe.unload_lora_weights()


@pytest.mark.parametrize("part", ["network", "text_encoder"])
@pytest.mark.parametrize("model", ["sdxl", "sd3"], indirect=True)
def test_the_strength_of_a_lora(model, noise, part):
    """As `set_adapters` sets it, for the whole model and for one style of two."""
    tuned = {"network": model.network, "text_encoder": model.pipe.text_encoder}[part]
    images = [single(model, noise, LEFT)]
    torch.manual_seed(0)
    projections = r".*\.(to_q|to_v|q_proj|v_proj)"
    tuned.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=projections), "one")
    try:
        for strength in (0.0, 0.5, 1.0):
            model.pipe.set_adapters("one", strength)
            images.append(single(model, noise, LEFT))
            close(images[-1], stock_image(model, noise), 1e-4)
            for style, expected in ((0, images[-1]), (1, images[0])):
                close(run(model, noise, [LEFT, LEFT], only(style), loras=["one", None]), expected)
    finally:
        model.pipe.unload_lora_weights()
    without, nothing, half, whole = images
    close(nothing, without)
    assert min((half - nothing).abs().max(), (whole - half).abs().max()) > 1e-3


def test_attention_maps_are_what_the_image_reads_of_the_text(model, noise, monkeypatch):
    if model.family.attention == "plain joint":
        pytest.skip("this family has none")
    size, plain = tuple(noise.x_T.shape[-2:]), single(model, noise, LEFT)
    with record_attention(model, LEFT, size) as maps:
        close(single(model, noise, LEFT), plain)
    assert "".join(maps.tokens()[i] for i in maps.words()["mosaic"]) == "mosaic"
    height, width = (side // model.family.patch for side in size)
    assert maps.heat("mosaic", size=(height, width)).isfinite().all() and len(maps.steps) == STEPS

    if (
        model.family.attention == "cross"
    ):  # test_attention_maps.py compares those with the layer's own attention
        return
    (name, *_), seen, attend = maps.layers, [], torch.nn.functional.scaled_dot_product_attention
    rows = models.encode_prompts(model, [LEFT], [guidance_of(model)])
    with monkeypatch.context() as patch, record_attention(model, LEFT, size) as maps:
        see = lambda query, key, value, **rest: seen.append((query, key)) or attend(query, key, value, **rest)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", see)
        models.predict(model, noise.x_T[:1], 500, rows)
    query, key = seen[0]
    scores = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[0].mean(0)  # (S, S)
    length, positions = rows.text.shape[1], height * width
    image, text = (length, 0) if model.family.text_first else (0, positions)
    read = models.encode_prompts(model, [LEFT, "b"]).text
    before = int(((read[0] - read[1]).abs() > 1e-3).any(1).nonzero()[0])  # tokens of a chat template
    first = text + (77 if model.family.name.startswith("Stable Diffusion 3") else before)
    for index in maps.words()["mosaic"]:
        expected = scores[image : image + positions, first + index].reshape(height, width)
        close(maps.heat(index, layers=[name]), expected)
    with pytest.raises(NotImplementedError, match="method 'joint' .* cannot be recorded; use 'epsilon'"):
        with record_attention(model, [LEFT, RIGHT], size):
            run(model, noise, [LEFT, RIGHT], masks.linear(), "joint")


def test_images_must_fit_the_patches(model):
    factor = model.latent_factor * model.family.patch
    with pytest.raises(ValueError, match=f"multiples of {factor}"):
        dsnb.invert(model, torch.rand(1, 3, 16, 16 + factor // 2), LEFT, steps=2, skip=0)


def test_a_text_encoder_that_lacks_tensors_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model.name, tmp_path / "incomplete")
    part = "text_encoder_2" if (folder / "text_encoder_2").is_dir() else "text_encoder"
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    norms = ("layer_norm", "layernorm", "SelfAttention.q")
    gone = next(name for name in sorted(tensors) if any(norm in name for norm in norms))
    save_file({name: tensors[name] for name in tensors if name != gone}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} cannot be opened: 1 tensors are missing"):
        dsnb.load(folder)


def test_a_scheduler_of_the_other_kind_is_refused(model):
    other = (
        diffusers.FlowMatchEulerDiscreteScheduler()
        if model.guided and model.family.network == "unet"
        else None
    )
    pipe = type(model.pipe)(**{**model.pipe.components, "scheduler": other or make_scheduler()})
    with pytest.raises(ValueError, match="scheduler"):
        dsnb.load(pipe)


@pytest.mark.parametrize("model", ["sd3"], indirect=True)
def test_a_shift_that_depends_on_the_size(model, noise):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    shifted = dsnb.load(
        diffusers.StableDiffusion3Pipeline(**{**model.pipe.components, "scheduler": scheduler})
    )
    noise = dataclasses.replace(noise, model=shifted.name)
    close(single(shifted, noise, LEFT), stock_image(shifted, noise), 1e-4)
    assert (single(shifted, noise, LEFT) - single(model, noise, LEFT)).abs().max() > 1e-4


def test_a_pipeline_without_one_of_its_parts_is_refused(model):
    parts = model.pipe.components
    kept = ("image_encoder", "feature_extractor", "safety_checker", "text_encoder_3", "tokenizer_3")
    for absent in parts.keys() - kept:
        pipe = type(model.pipe)(**parts)
        pipe.register_modules(**{absent: None})
        with pytest.raises(ValueError, match=f"has no {absent}; open the pipeline with all of its parts"):
            dsnb.load(pipe)


@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
@pytest.mark.parametrize("method, switch", [("epsilon", 1.0), ("attention", 0.0)])
def test_a_trial_gives_each_row_its_pooled_vector(model, noise, method, switch):
    drawn = draw_trial(model, noise, [LEFT, RIGHT], masks.linear(), Trial("", "", switch=switch))
    expected = run(model, noise, [LEFT, RIGHT], masks.linear(), method, guidance=5)
    close(drawn, expected)


@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
def test_an_autoencoder_that_overflows_is_in_float32_only_while_it_computes(model):
    parts = {name: copy.deepcopy(part) for name, part in model.pipe.components.items()}
    parts["vae"].register_to_config(force_upcast=True)
    half = dsnb.load(type(model.pipe)(**parts, add_watermarker=False).to(torch.float16))
    seen = []
    half.vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    image = models.decode_latents(half, models.encode_image(half, torch.rand(1, 3, 16, 16)))
    assert image.isfinite().all() and seen == [torch.float32]
    assert half.vae.dtype == torch.float16, "as the pipeline itself expects it"


@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
def test_an_autoencoder_with_a_mean_and_a_deviation_per_channel(model, noise):
    vae = make_vae(4, latents_mean=[0.5, -0.5, 0.1, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5])
    pipe = diffusers.StableDiffusionXLPipeline(**{**model.pipe.components, "vae": vae}, add_watermarker=False)
    other = dsnb.load(pipe)
    noise = dataclasses.replace(noise, model=other.name)
    close(single(other, noise, LEFT), stock_image(other, noise), 1e-4)
    assert (single(other, noise, LEFT) - single(model, noise, LEFT)).abs().max() > 1e-3
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        own = vae.decode(vae.encode(image * 2 - 1).latent_dist.mode()).sample
    close(models.decode_latents(other, models.encode_image(other, image)), (own / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("model", ["qwen-image"], indirect=True)
def test_a_qwen_image_with_embedded_guidance_is_refused(model):
    config = {**model.network.config, "guidance_embeds": True}
    pipe = type(model.pipe)(
        **{**model.pipe.components, "transformer": type(model.network).from_config(config)}
    )
    with pytest.raises(NotImplementedError, match="guidance_embeds"):
        dsnb.load(pipe)


@pytest.mark.parametrize("model", ["sd1", "sd2", "sdxl", "flux-dev", "flux-schnell"], indirect=True)
def test_a_learned_word_is_read(model, noise, generator):
    """Textual inversion, loaded by diffusers into each text encoder, of two vectors for one word."""
    parts = {
        name: copy.deepcopy(part)
        for name, part in model.pipe.components.items()
        if name[:4] in ("text", "toke")
    }
    pipe = type(model.pipe)(**{**model.pipe.components, **parts})
    encoders = {name: part for name, part in parts.items() if name.startswith("text_encoder")}
    for name, encoder in encoders.items():
        learned = {"<mine>": torch.randn(2, encoder.config.hidden_size, generator=generator)}
        tokenizer = parts[name.replace("text_encoder", "tokenizer")]
        pipe.load_textual_inversion(learned, "<mine>", text_encoder=encoder, tokenizer=tokenizer)
    taught = dsnb.load(pipe)
    noise = dataclasses.replace(noise, model=taught.name)
    image = single(taught, noise, "a <mine>")
    close(image, stock_image(taught, noise, "a <mine>"), 1e-4)
    for encoder in encoders.values():
        encoder.get_input_embeddings().weight.data[-2:] = 0
        other = single(taught, noise, "a <mine>")
        assert (other - image).abs().max() > 1e-4
        image = other


@pytest.mark.parametrize("model", ["flux2-distilled"], indirect=True)
def test_a_distilled_klein_takes_no_guidance(model, noise):
    assert not model.guided and (model.settings.steps, model.settings.guidance) == (4, 1)
    with pytest.raises(ValueError, match="guidance must be 1.*distilled"):
        single(model, noise, LEFT, guidance=3)


def test_the_bias_is_the_softmax_of_all_texts_by_their_weights(generator):
    T, L, n = 5, 3, 2
    weights = torch.rand(n, T, generator=generator).softmax(0)
    scores = torch.randn(T + n * L, T + n * L, generator=generator)
    got = (scores + joint_bias(weights, L)).softmax(-1)
    factor = torch.cat([torch.ones(T, T), weights.T.repeat_interleave(L, 1)], 1)
    expected = scores[:T].exp() * factor
    close(got[:T], expected / expected.sum(-1, keepdim=True))
    assert (got[T : T + L, T + L :] == 0).all() and (got[T : T + L, : T + L] > 0).all()


def test_the_mask_guider_blends_in_a_modular_pipeline(model, noise):
    if model.family.name not in ("Stable Diffusion XL", "Stable Diffusion 3/3.5"):
        pytest.skip("diffusers has no modular pipeline with a guider for this family")
    kind = diffusers.modular_pipelines
    blocks = (
        kind.StableDiffusionXLAutoBlocks
        if model.family.network == "unet"
        else kind.StableDiffusion3AutoBlocks
    )
    pipe = blocks().init_pipeline()
    pipe.update_components(**model.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    styles = models.encode_prompts(model, [LEFT, RIGHT])

    def draw(guider, prompt):
        pipe.update_components(guider=guider)
        return pipe(
            prompt=[prompt] * 2, negative_prompt=[""] * 2, latents=noise.x_T.clone(), num_inference_steps=STEPS,
            height=16, width=24, output_type="pt", output="images",
        )  # fmt: skip

    expected = draw(diffusers.ClassifierFreeGuidance(guidance_scale=3.0), LEFT)
    close(draw(MaskGuider(only(0), styles, 3.0), RIGHT), expected, 1e-4)
    assert (draw(MaskGuider(masks.linear(), styles, 3.0), RIGHT) - expected).abs().max() > 1e-4
    with pytest.raises(ValueError, match="the mask has 3 styles, so styles needs 3 rows; got 2"):
        MaskGuider(masks.linear(3), styles)
    with pytest.raises(TypeError, match="styles must be a .*Prompts.* dsnb.models.encode_prompts"):
        MaskGuider(masks.linear(), [LEFT, RIGHT])
    packed = torch.zeros(1, 6, 4)
    with pytest.raises(NotImplementedError, match="packed latents"):
        MaskGuider(masks.linear(), styles).forward(packed, style_0=packed, style_1=packed)
