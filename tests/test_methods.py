import copy
from threading import Thread

import pytest
import torch
from conftest import make_unet
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import dsnb
from dsnb import masks, models
from dsnb.attention import blend_cross_attention, cross_attention_layers, token_sizes

LEFT, RIGHT, MIDDLE = "a mosaic of a bear", "a sketch of a bear", "a bear in oil"


@pytest.fixture(scope="module")
def trajectory(tiny):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    return dsnb.invert(tiny, image, "a bear", steps=10, skip=6, generator=generator, progress=False)


def run(tiny, trajectory, prompts=(LEFT, RIGHT), mask=None, method="epsilon", **options):
    mask = masks.logistic(20) if mask is None else mask
    return dsnb.blend(tiny, trajectory, prompts, mask, method=method, guidance=2, progress=False, **options)


def single(tiny, trajectory, prompt):
    return dsnb.decode(tiny, trajectory, prompt, guidance=2, progress=False)


def only(style, n=2):
    return masks.from_weights(
        torch.nn.functional.one_hot(torch.tensor([[style]]), n).permute(2, 0, 1).double()
    )


BLENDING = ["epsilon", "attention", "regional", "combined", "pixel"]


@pytest.mark.parametrize("method", BLENDING)
@pytest.mark.parametrize("style", [0, 1])
def test_a_mask_of_one_style_is_that_style_alone(tiny, trajectory, method, style):
    expected = single(tiny, trajectory, (LEFT, RIGHT)[style])
    mixed = run(tiny, trajectory, mask=only(style), method=method)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["prompt", *BLENDING])
def test_a_single_style_is_its_prompt(tiny, trajectory, method):
    mask = masks.Mask(1, lambda x, y, progress: torch.ones(1, *x.shape))
    image = run(tiny, trajectory, [LEFT], mask, method)
    torch.testing.assert_close(image, single(tiny, trajectory, LEFT), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [method for method in BLENDING if method not in ("regional", "combined")])
def test_equal_prompts_are_one_prompt_whatever_the_mask(tiny, trajectory, method):
    mixed = run(tiny, trajectory, (LEFT,) * 3, masks.radial(3), method)
    torch.testing.assert_close(mixed, single(tiny, trajectory, LEFT), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", BLENDING)
def test_swapping_prompts_and_mask_changes_nothing(tiny, trajectory, method):
    mask = masks.logistic(10, angle=20)
    here = run(tiny, trajectory, (LEFT, RIGHT), mask, method)
    there = run(tiny, trajectory, (RIGHT, LEFT), mask.flip(), method)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    assert not torch.allclose(here, run(tiny, trajectory, (RIGHT, LEFT), mask, method), atol=1e-3)


@pytest.mark.parametrize("method", BLENDING)
def test_three_styles(tiny, trajectory, method):
    image = run(tiny, trajectory, (LEFT, MIDDLE, RIGHT), masks.logistic(20, n=3), method)
    assert image.shape == (1, 3, 32, 48) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1


@pytest.mark.parametrize(
    ("method", "n", "samples", "calls"),
    [("epsilon", 2, 3, 1), ("epsilon", 4, 5, 1), ("attention", 2, 2, 1), ("attention", 4, 2, 1), ("regional", 3, 2, 1),
     ("prompt", 2, 2, 1),
     ("pixel", 2, 4, 2)],
)  # fmt: skip
def test_unet_samples_per_step(tiny, trajectory, method, n, samples, calls):
    with models.count_unet_samples(tiny.unet) as count:
        run(tiny, trajectory, (LEFT,) * n, masks.linear(n), method)
    assert (count.samples, count.calls) == (samples * 4, calls * 4)


def test_inversion_costs_one_sample_per_step_in_one_call(tiny):
    with models.count_unet_samples(tiny.unet) as count:
        dsnb.invert(tiny, torch.rand(1, 3, 32, 32), "a bear", steps=6, skip=2, progress=False)
    assert (count.samples, count.calls) == (4, 1)


def test_text_is_projected_once_per_prompt(tiny, trajectory):
    seen = []
    module = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    handle = module.to_k.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    run(tiny, trajectory, method="attention")
    handle.remove()
    assert seen == [3], "the empty prompt and both styles, in one call"


@pytest.mark.parametrize("method", ["prompt", *BLENDING])
def test_same_seed_same_bytes(tiny, trajectory, method):
    assert torch.equal(run(tiny, trajectory, method=method), run(tiny, trajectory, method=method))


def test_the_callback_sees_every_step(tiny, trajectory):
    steps = []
    image = run(tiny, trajectory, callback=steps.append)
    assert [s.index for s in steps] == list(range(4)) and all(s.total == 4 for s in steps)
    assert all(torch.equal(a.x_prev, b.x_t) for a, b in zip(steps, steps[1:], strict=False))
    last = models.decode_latents(tiny, steps[-1].x_prev)
    torch.testing.assert_close(last, image)
    assert steps[-1].x_0.shape == steps[-1].x_t.shape == trajectory.x_T.shape


def test_a_guidance_for_each_style(tiny, trajectory):
    options = {"mask": only(0), "progress": False}
    for method in ("epsilon", "attention"):
        image = dsnb.blend(tiny, trajectory, [LEFT, RIGHT], method=method, guidance=[2, 9], **options)
        torch.testing.assert_close(image, single(tiny, trajectory, LEFT), atol=1e-5, rtol=0)


def test_combined_is_epsilon_at_one_end_and_attention_at_the_other(tiny, trajectory):
    for switch, method, regional in (
        (1.0, "epsilon", True),
        (0.0, "attention", False),
        (0.0, "regional", True),
    ):
        combined = run(tiny, trajectory, method="combined", switch=switch, regional=regional)
        torch.testing.assert_close(combined, run(tiny, trajectory, method=method), atol=1e-5, rtol=0)


def test_the_default_is_combined_with_regional_attention(tiny, trajectory):
    usual = run(tiny, trajectory, method=None)
    expected = run(tiny, trajectory, method="combined", switch=0.5, regional=True)
    torch.testing.assert_close(usual, expected, atol=1e-5, rtol=0)


def test_a_timed_mask_reaches_both_methods(tiny, trajectory):
    late = masks.linear().active([0.0, 0.99], [1.0, 1.0])
    for method in ("epsilon", "attention", "regional"):
        image = run(tiny, trajectory, mask=late, method=method)
        torch.testing.assert_close(image, single(tiny, trajectory, LEFT), atol=1e-5, rtol=0)


def test_finished_pictures_take_no_timed_mask(tiny, trajectory):
    with pytest.raises(ValueError, match="the mask changes over the steps"):
        run(tiny, trajectory, mask=masks.linear().active([0.0, 0.5], [1.0, 1.0]), method="pixel")


def test_a_batch_of_pictures(tiny):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    pair = dsnb.invert(tiny, image, "a bear", steps=8, skip=4, generator=torch.Generator().manual_seed(6))
    for method in ("epsilon", "attention", "regional", "combined"):
        both = run(tiny, pair, method=method)
        first = type(pair)(**{**vars(pair), "x_T": pair.x_T[:1], "noises": pair.noises[:, :1]})
        torch.testing.assert_close(both[:1], run(tiny, first, method=method), atol=1e-5, rtol=0)


def test_the_one_prompt_baseline_takes_its_text(tiny, trajectory):
    named = run(tiny, trajectory, method="prompt", one_prompt=LEFT)
    torch.testing.assert_close(named, single(tiny, trajectory, LEFT))
    assert not torch.allclose(named, run(tiny, trajectory, method="prompt"), atol=1e-3)
    empty = run(tiny, trajectory, method="prompt", one_prompt="")
    torch.testing.assert_close(empty, single(tiny, trajectory, ""))


@pytest.mark.parametrize("method", ["prompt", *BLENDING])
def test_every_method_draws_from_noise_and_away_from_a_negative_prompt(tiny, method):
    trajectory = dsnb.from_noise(tiny, (32, 48), batch=2, steps=4)
    image = run(tiny, trajectory, method=method)
    assert image.shape == (2, 3, 32, 48)
    assert not torch.allclose(image, run(tiny, trajectory, method=method, negative_prompt=RIGHT), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "option"),
    [("epsilon", {"switch": 0.5}), ("pixel", {"passes": (1,)}), ("attention", {"one_prompt": LEFT})],
)
def test_an_option_of_another_method_is_refused(tiny, trajectory, method, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is for method .*, not for '{method}'"):
        run(tiny, trajectory, method=method, **option)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "epsilom"}, "did you mean 'epsilon'"),
        ({"method": ["epsilon"]}, r"method must be one of .*; got \['epsilon'\]"),
        ({"prompts": [LEFT]}, "2 prompts are needed; got 1"),
        ({"prompts": [LEFT, RIGHT, LEFT]}, "2 prompts are needed; got 3"),
        ({"method": "combined", "switch": 2}, "switch must be a finite number from 0 to 1, got 2"),
    ],
)
def test_bad_calls_are_refused(tiny, trajectory, change, words):
    with pytest.raises(ValueError, match=words):
        run(tiny, trajectory, **change)
    with pytest.raises(ValueError, match="guidance must be one number or 2 numbers, got 3"):
        dsnb.blend(tiny, trajectory, [LEFT, RIGHT], masks.linear(), guidance=[1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        dsnb.blend(tiny, trajectory, [LEFT, RIGHT], masks.linear(), guidance=float("nan"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": "ab"}, "prompts must be a list of texts, got 'ab'"),
        ({"prompts": {"left": LEFT, "right": RIGHT}}, "prompts must be a list of texts"),
        ({"prompts": {LEFT, RIGHT}}, "prompts must be a list of texts"),
        ({"passes": ["once"], "method": "attention"}, "passes must be a finite number from 0 to 1"),
        ({"prompts": [None, None], "method": "prompt"}, r"prompts\[0\] must be a text"),
        ({"mask": torch.rand(2, 4, 4)}, "mask must be a dsnb.masks.Mask, .*from_weights"),
        ({"one_prompt": 3, "method": "prompt"}, "one_prompt must be a text"),
        ({"switch": "late", "method": "combined"}, "switch must be a finite number"),
        ({"callback": 5}, "callback must be a function"),
        ({"regional": "no", "method": "combined"}, "regional must be True or False, got 'no'"),
    ],
)
def test_wrong_types_are_refused_by_name(tiny, trajectory, change, words):
    with pytest.raises(TypeError, match=words):
        run(tiny, trajectory, **change)
    with pytest.raises(TypeError, match="prompt must be one text, or a list of texts; got 3"):
        dsnb.decode(tiny, trajectory, 3)
    with pytest.raises(ValueError, match="prompt must be one text, or one for each of the 1 images"):
        dsnb.decode(tiny, trajectory, ["x", "y"])
    with pytest.raises(TypeError, match="trajectory must be a dsnb.inversion.Trajectory"):
        dsnb.decode(tiny, "bear.safetensors", "x")


@pytest.mark.parametrize("method", ["prompt", *BLENDING])
def test_what_is_not_finite_is_no_image(tiny, trajectory, method, monkeypatch):
    for guidance, words in ((1e38, "the guidance is too large"), (float("nan"), "guidance must be a finite")):
        with pytest.raises(ValueError, match=words):
            dsnb.blend(
                tiny,
                trajectory,
                [LEFT, RIGHT],
                masks.linear(),
                method=method,
                guidance=guidance,
                progress=False,
            )
    weights = tiny.vae.decoder.conv_out.weight
    monkeypatch.setattr(weights, "data", torch.full_like(weights, torch.nan))
    with pytest.raises(ValueError, match="the autoencoder of model .* made NaN"):
        run(tiny, trajectory, method=method)


def test_a_timed_formula_is_checked_before_the_first_step(tiny, trajectory):
    steps, mask = [], masks.formula("sqrt(abs(t - 0.75) - 0.01)")  # NaN at the last of four steps only
    with pytest.raises(ValueError, match="mask weights must be finite"):
        run(tiny, trajectory, mask=mask, callback=steps.append)
    assert not steps


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 1, 3, 8, 8)])
def test_only_as_many_finished_images_as_styles_are_blended(shape):
    with pytest.raises(ValueError, match=r"images must be .* of shape \(2, B, 3, H, W\)"):
        dsnb.methods.blend_pixels(torch.rand(shape), masks.linear())
    with pytest.raises(ValueError, match="got torch.uint8"):
        dsnb.methods.blend_pixels(torch.ones(2, 1, 3, 8, 8, dtype=torch.uint8), masks.linear())


def test_one_thread_draws_at_a_time(tiny, trajectory):
    expected = {method: run(tiny, trajectory, method=method) for method in ("pixel", "attention", "epsilon")}
    drawn = {method: [] for method in expected}
    threads = [
        Thread(target=lambda m=method: drawn[m].append(run(tiny, trajectory, method=m)))
        for method in expected
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for method, images in drawn.items():
        assert len(images) == 2 and all(torch.equal(image, expected[method]) for image in images)


def test_a_single_call_of_the_network_waits_for_whoever_draws(tiny, trajectory):
    prompts, seen = models.encode_prompts(tiny, [LEFT]), []
    thread = Thread(target=lambda: seen.append(models.predict(tiny, trajectory.x_T, 500, prompts)))
    with tiny.lock:
        thread.start()
        thread.join(1)
        assert not seen
    thread.join()
    assert len(seen) == 1


def test_a_callback_may_change_what_it_sees_but_not_the_trajectory(tiny, trajectory):
    expected = run(tiny, trajectory)
    run(tiny, trajectory, callback=lambda step: step.x_t.zero_())
    assert torch.equal(run(tiny, trajectory), expected)


def test_drawing_inside_the_callback_of_a_blend_is_refused_where_it_would_be_blended(tiny, trajectory):
    alone, nested = single(tiny, trajectory, LEFT), []
    draw = lambda step: nested.append(single(tiny, trajectory, LEFT))
    run(tiny, trajectory, callback=draw)
    assert all(torch.equal(image, alone) for image in nested)
    with pytest.raises(RuntimeError, match="in the middle of a blend"):
        run(tiny, trajectory, method="attention", callback=draw)
    assert torch.equal(single(tiny, trajectory, LEFT), alone)


def test_passes_ask_a_layer_again_with_its_own_answer(generator):
    unet, contexts = make_unet(), torch.randn(3, 77, 32, generator=generator)
    layer, mask, seen = cross_attention_layers(unet)[0], masks.linear(), {}
    attn = unet.get_submodule(layer)
    hook = attn.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    chosen = {"layers": lambda name: name == layer, "passes": (1, 0.3)}
    with torch.no_grad(), blend_cross_attention(unet, contexts, mask, (16, 16), **chosen) as blend:
        blend.at(0.0, [1])
        unet(torch.randn(1, 4, 16, 16, generator=generator), 500, encoder_hidden_states=contexts[:1])
        split = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        K, V = split(attn.to_k(contexts[1:])), split(attn.to_v(contexts[1:]))
        height, width = token_sizes(16, 16)[seen["x"].shape[1]]
        M, h = mask.weights(height, width).flatten(1)[:, None, :, None], seen["x"]
        for f in (1, 0.3):
            Q = split(attn.to_q(h))
            A = (Q @ K.transpose(-1, -2) / Q.shape[-1] ** 0.5).softmax(-1)
            h = f * (M * (A @ V)).sum(0, keepdim=True).transpose(1, 2).flatten(2) + (1 - f) * h
        expected = attn.to_out[0](h)
    hook.remove()
    assert torch.allclose(seen["out"], expected, atol=1e-5)


@pytest.mark.parametrize("passes", [(), (1, 2), (-0.1,)])
def test_passes_that_are_no_weights_are_refused(passes):
    with pytest.raises(ValueError, match="passes must be"):
        with blend_cross_attention(
            make_unet(), torch.zeros(3, 77, 32), masks.linear(), (16, 16), passes=passes
        ):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("method", ("epsilon", "attention", "regional", "combined"))
def test_a_compiled_unet_draws_the_same(tiny, trajectory, method, monkeypatch, dynamo):
    expected = run(tiny, trajectory, method=method)
    compiled = torch.compile(tiny.unet, backend="eager", fullgraph=True)
    monkeypatch.setattr(tiny.pipe, "unet", compiled)
    torch.testing.assert_close(run(tiny, trajectory, method=method), expected, atol=1e-6, rtol=0)


def test_an_ip_adapter_is_refused_before_anything_is_drawn(tiny, trajectory, monkeypatch):
    monkeypatch.setattr(tiny.unet, "encoder_hid_proj", torch.nn.Identity())
    image = torch.rand(1, 3, 32, 48)
    with pytest.raises(NotImplementedError, match="IP-Adapter.*unload_ip_adapter"):
        dsnb.invert(tiny, image, "a bear", steps=4, progress=False)
    for method in ("prompt", *BLENDING):
        with pytest.raises(NotImplementedError, match="IP-Adapter.*unload_ip_adapter"):
            run(tiny, trajectory, method=method)


@pytest.mark.parametrize("method", BLENDING)
def test_lora_weights_from_a_file_are_drawn_with(tiny, trajectory, method, tmp_path):
    plain = single(tiny, trajectory, LEFT)
    tiny.unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(tiny.unet))
    tiny.unet.delete_adapters("default")
    tiny.pipe.save_lora_weights(tmp_path, unet_lora_layers=weights)
    tiny.pipe.load_lora_weights(tmp_path)
    try:
        tuned = single(tiny, trajectory, LEFT)
        assert not torch.allclose(tuned, plain, atol=1e-3)
        mixed = run(tiny, trajectory, mask=only(0), method=method)
        torch.testing.assert_close(mixed, tuned, atol=1e-5, rtol=0)
    finally:
        tiny.pipe.unload_lora_weights()
    torch.testing.assert_close(single(tiny, trajectory, LEFT), plain, atol=1e-6, rtol=0)


@pytest.fixture
def adapters(tiny):
    """Two random LoRAs, "one" at half strength and on."""
    before = copy.deepcopy(tiny.unet.state_dict())
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
        tiny.unet.add_adapter(config, name)
    tiny.pipe.set_adapters(["one", "two"], [0.5, 1.0])
    tiny.pipe.set_adapters("one", 0.5)
    yield
    tiny.pipe.unload_lora_weights()
    tiny.unet.load_state_dict(before)  # weights that were fused and unfused are only nearly the same


def test_a_lora_for_each_style(tiny, trajectory, adapters):
    on = single(tiny, trajectory, LEFT)
    tiny.pipe.disable_lora()
    plain = single(tiny, trajectory, RIGHT)
    tiny.pipe.enable_lora()
    tiny.pipe.set_adapters("two")
    other = single(tiny, trajectory, RIGHT)
    tiny.pipe.set_adapters("one", 0.5)
    assert (plain - other).abs().max() > 1e-3
    for style, loras, expected in (
        (0, ["one", "two"], on),
        (1, ["one", "two"], other),
        (1, ["one", None], plain),
    ):
        drawn = run(tiny, trajectory, mask=only(style), loras=loras)
        torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    with models.count_unet_samples(tiny.unet) as count:
        run(tiny, trajectory, loras=["one", None])
    assert (count.calls, count.samples) == (4 * 2, 4 * 2 * 2)
    torch.testing.assert_close(single(tiny, trajectory, LEFT), on)


def test_a_callback_draws_with_the_adapters_of_before(tiny, trajectory, adapters):
    seen = []
    before, plain = single(tiny, trajectory, LEFT), run(tiny, trajectory, loras=[None, "two"])
    drawn = run(
        tiny,
        trajectory,
        loras=[None, "two"],
        callback=lambda step: seen.append(single(tiny, trajectory, LEFT)),
    )
    assert len(seen) == 4 and all(torch.equal(image, before) for image in seen)
    assert torch.equal(drawn, plain)


def test_the_same_adapters_are_on_after_an_exception(tiny, trajectory, adapters):
    def fail(step):
        raise KeyError(step.index)

    before = single(tiny, trajectory, LEFT)
    learned = [p.requires_grad for p in tiny.unet.parameters()]
    with pytest.raises(KeyError):
        run(tiny, trajectory, loras=[None, "two"], callback=fail)
    assert tiny.pipe.get_active_adapters() == ["one"]
    assert [p.requires_grad for p in tiny.unet.parameters()] == learned
    torch.testing.assert_close(single(tiny, trajectory, LEFT), before)


@pytest.mark.parametrize(
    ("loras", "error", "words"),
    [
        ("one", TypeError, "loras must be a list with one name per style, got 'one'"),
        (["one"], ValueError, "one name for each of the 2 styles, got 1"),
        (["one", "three"], ValueError, r"loras\[1\] must be .* one of \['one', 'two'\]; got 'three'"),
    ],
)
def test_adapters_that_are_not_there(tiny, trajectory, adapters, loras, error, words):
    with pytest.raises(error, match=words):
        run(tiny, trajectory, loras=loras)
    with pytest.raises(ValueError, match="loras is for method 'epsilon', not for 'pixel'"):
        run(tiny, trajectory, loras=[None, None], method="pixel")
    tiny.pipe.fuse_lora(adapter_names=["one"])
    with pytest.raises(ValueError, match="loras cannot be switched while they are fused"):
        run(tiny, trajectory, loras=["one", None])
    tiny.pipe.unfuse_lora()


@pytest.mark.parametrize("method", ["prompt", *BLENDING])
def test_encoded_prompts_are_drawn_like_their_texts(tiny, trajectory, method):
    rows, options = models.encode_prompts(tiny, [LEFT, RIGHT]), {}
    if method == "prompt":
        options = {"one_prompt": MIDDLE}
    expected = run(tiny, trajectory, method=method, **options)
    torch.testing.assert_close(run(tiny, trajectory, rows, method=method, **options), expected)
    torch.testing.assert_close(single(tiny, trajectory, rows[:1]), single(tiny, trajectory, LEFT))


def test_encoded_prompts_must_fit(tiny, trajectory):
    rows = models.encode_prompts(tiny, [LEFT, RIGHT])
    with pytest.raises(ValueError, match="one_prompt must be a text where prompts are encoded"):
        run(tiny, trajectory, rows, method="prompt")
    with pytest.raises(
        ValueError,
        match=r"text vectors of shape \(P, 77, 32\) for this model, got some of shape \(P, 76, 32\)",
    ):
        run(tiny, trajectory, models.Prompts(rows.text[:, 1:]))
    with pytest.raises(ValueError, match="prompt must have 1 row, or one for each image .1.; got 2"):
        single(tiny, trajectory, rows)


def test_every_encoded_prompt_has_one_pooled_vector():
    first = models.Prompts(torch.ones(1, 4, 8), torch.ones(1, 6))
    with pytest.raises(ValueError, match="prompts has 2 rows of text and 1 pooled vectors"):
        models.Prompts(torch.ones(2, 4, 8), torch.ones(1, 6)).after(first)


def test_words_weighted_by_compel(tiny, trajectory):
    compel = pytest.importorskip("compel").Compel(tokenizer=tiny.tokenizer, text_encoder=tiny.text_encoder)
    plain, heavy = (models.Prompts(compel([LEFT, text]).detach()) for text in (RIGHT, f"({RIGHT})1.5"))
    expected = run(tiny, trajectory)
    torch.testing.assert_close(run(tiny, trajectory, plain), expected, atol=1e-5, rtol=0)
    assert (run(tiny, trajectory, heavy) - expected).abs().max() > 1e-3
