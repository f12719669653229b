"""Recorded attention maps: what they hold, what they cost, and that recording changes nothing."""

import copy

import pytest
import torch

import dsnb
from dsnb import inversion, masks, models
from dsnb.attention import blend_cross_attention, cross_attention_layers
from dsnb.attention_maps import _equal_groups, record_attention

SIZE = (12, 20)  # halves are 6 x 10 and 3 x 5: no token count is a square
LEFT, RIGHT = "a red bear", "an ink sketch of a bear"


@pytest.fixture
def x(generator):
    return torch.randn(1, 4, *SIZE, generator=generator)


@pytest.fixture(scope="module")
def trajectory(tiny):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    return dsnb.invert(
        tiny, image, "a bear", steps=10, skip=2, generator=torch.Generator().manual_seed(4), progress=False
    )


def test_a_size_with_height_and_width_exchanged_is_refused(tiny, x):
    with record_attention(tiny, LEFT, SIZE[::-1]):
        with pytest.raises(
            ValueError, match="size must be the height and width of the latents, 12 x 20; got 20 x 12"
        ):
            call(tiny, x)
    call(tiny, x)


def call(tiny, x, prompts=(LEFT,), t=500):
    context = models.encode_prompts(tiny, prompts)
    return models.predict(tiny, x.repeat(len(prompts), 1, 1, 1), t, context)


def probabilities(tiny, x, prompt, name):
    """The attention of one layer the long way: (heads, T, L), from a hook on its inputs."""
    attn, seen = tiny.unet.get_submodule(name), {}
    handle = attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(hidden=args[0], **kwargs), with_kwargs=True
    )
    call(tiny, x, [prompt])
    handle.remove()
    with torch.no_grad():
        query, key = attn.to_q(seen["hidden"]), attn.to_k(seen["encoder_hidden_states"])
        query, key = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)[0] for part in (query, key))
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)


def test_a_map_is_the_attention_of_the_layer_on_latents_that_are_not_square(tiny, x):
    with record_attention(tiny, LEFT, SIZE) as maps:
        call(tiny, x)
    assert list(maps.layers) == cross_attention_layers(tiny.unet)
    assert set(maps.layers.values()) == {(12, 20), (6, 10), (3, 5)}
    for name, (height, width) in maps.layers.items():
        expected = probabilities(tiny, x, LEFT, name).mean(0)
        for index in range(len(maps.tokens())):
            heat = maps.heat(index, layers=[name])
            torch.testing.assert_close(heat, expected[:, index].reshape(height, width), atol=1e-5, rtol=0)


def test_head_groups_are_parts_of_the_mean(tiny, x):
    name = cross_attention_layers(tiny.unet)[0]
    with record_attention(tiny, LEFT, SIZE, groups=2) as maps:
        call(tiny, x)
    heads = probabilities(tiny, x, LEFT, name)
    half = len(heads) // 2
    for group, part in enumerate((heads[:half], heads[half:])):
        heat = maps.heat(1, layers=[name], group=group)
        torch.testing.assert_close(heat, part[..., 1].mean(0).reshape(12, 20), atol=1e-5, rtol=0)
    both = (maps.heat(1, group=0) + maps.heat(1, group=1)) / 2
    torch.testing.assert_close(maps.heat(1), both, atol=1e-6, rtol=0)


def test_recording_leaves_the_prediction_as_it_is(tiny, x):
    expected = call(tiny, x, ["", LEFT, RIGHT])
    before = dict(tiny.unet.attn_processors)
    with record_attention(tiny, LEFT, SIZE):
        torch.testing.assert_close(call(tiny, x, ["", LEFT, RIGHT]), expected, atol=1e-5, rtol=0)
    assert tiny.unet.attn_processors == before and not tiny.unet._forward_pre_hooks


@pytest.mark.slow
def test_a_compiled_unet_is_recorded_with_a_break_in_every_layer(tiny, x, dynamo):
    contexts, t = models.encode_prompts(tiny, ["", LEFT, RIGHT]), torch.tensor(500)
    found = {}
    for name, unet in (("plain", tiny.unet), ("compiled", torch.compile(tiny.unet, backend="eager"))):
        with torch.no_grad(), record_attention(tiny, [LEFT, RIGHT], SIZE) as maps:
            unet(x, t, encoder_hidden_states=contexts.text[1:2])
            with blend_cross_attention(tiny.unet, contexts.text, masks.linear(2), SIZE) as blend:
                blend.at(0.0, [1])
                unet(x, t, encoder_hidden_states=contexts.text[:1])
        found[name] = [maps.heat("bear", prompt=prompt) for prompt in (0, 1)]
    torch.testing.assert_close(found["compiled"], found["plain"], atol=1e-6, rtol=0)
    breaks = dynamo.utils.counters["graph_break"]
    assert sum(breaks.values()) == 2 * len(cross_attention_layers(tiny.unet))


def test_only_rows_with_the_prompt_are_recorded(tiny, x):
    with record_attention(tiny, [LEFT, RIGHT], SIZE) as alone:
        call(tiny, x, [LEFT])
        call(tiny, x, [RIGHT])
    with record_attention(tiny, [LEFT, RIGHT], SIZE) as together:
        call(tiny, x, [RIGHT, "", "a blue owl", LEFT])
    for prompt in (0, 1):
        here, there = (maps.heat("bear", prompt=prompt) for maps in (alone, together))
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    assert not torch.allclose(together.heat("bear"), together.heat("bear", prompt=1), atol=1e-4)


def test_steps_fall_into_buckets_and_average(tiny, x):
    with record_attention(tiny, LEFT, SIZE, buckets=4) as maps:
        for t in (999, 700, 600, 0):
            call(tiny, x, t=t)
    assert maps.steps == {0: (999, 999), 1: (700, 600), 3: (0, 0)}
    mean = (maps.heat("bear", steps=0) + 2 * maps.heat("bear", steps=1) + maps.heat("bear", steps=3)) / 4
    torch.testing.assert_close(maps.heat("bear"), mean, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"steps must be among \[0, 1, 3\], got 2"):
        maps.heat("bear", steps=2)


def test_an_inversion_that_computes_many_steps_in_one_call_has_the_same_maps(tiny, monkeypatch):
    found = []
    for largest in (0, inversion.LARGEST_CALL):
        monkeypatch.setattr(inversion, "LARGEST_CALL", largest)
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(2, 3, *(tiny.latent_factor * side for side in SIZE), generator=generator)
        with record_attention(tiny, LEFT, SIZE, buckets=4) as maps:
            dsnb.invert(tiny, image, LEFT, steps=8, skip=1, guidance=2.0, generator=generator, progress=False)
        found.append(maps)
    alone, together = found
    assert alone.steps == together.steps and len(alone.steps) == 4
    for bucket in alone.steps:
        expected = alone.heat("bear", steps=bucket)
        torch.testing.assert_close(together.heat("bear", steps=bucket), expected, atol=1e-5, rtol=0)


def test_memory_does_not_grow_with_the_steps(tiny, x):
    sizes = []
    with record_attention(tiny, LEFT, SIZE) as maps:
        for t in range(990, 0, -90):
            call(tiny, x, t=t)
            sizes.append(maps.nbytes)
    assert len(set(sizes)) == 1 and sizes[0] > 0


def test_words_are_found_by_their_tokens(tiny, x):
    with record_attention(tiny, "A red bear, a bear", SIZE) as maps:
        call(tiny, x, ["A red bear, a bear"])
    assert list(maps.words()) == ["a", "red", "bear"]
    assert "".join(maps.tokens()[i] for i in maps.words()["bear"]) == "bearbear"
    parts = sum(maps.heat(index) for index in maps.words()["bear"])
    torch.testing.assert_close(maps.heat("bear"), parts)
    red, bears = maps.words()["red"], maps.words()["bear"]
    torch.testing.assert_close(maps.heat("red bear"), maps.heat([*red, *bears[: len(bears) // 2]]))
    for word in ("owl", "ear", ""):
        with pytest.raises(ValueError, match=f"word must be one of a, red, bear; got '{word}'"):
            maps.heat(word)


def test_a_token_is_shown_by_its_characters(tiny):
    with record_attention(tiny, "A café, 熊", SIZE) as maps:
        pass
    assert set("".join(maps.tokens()[1:-1])) == set("Acafé,熊") and maps.tokens()[0] == "<|startoftext|>"


def test_prompts_with_the_same_tokens_are_refused(tiny):
    with pytest.raises(ValueError, match="prompts 'A bear' and 'a bear' have the same tokens"):
        with record_attention(tiny, ["A bear", "an owl", "a bear"], SIZE):
            pass


def test_equal_prompts_have_one_map(tiny, x):
    with record_attention(tiny, [LEFT, RIGHT, LEFT], SIZE) as maps:
        call(tiny, x, [LEFT, RIGHT])
    assert torch.equal(maps.heat("bear", prompt=2), maps.heat("bear", prompt=0))


def test_a_learned_word_of_several_vectors_moves_the_words_after_it(tiny, x, generator):
    parts = {name: copy.deepcopy(getattr(tiny.pipe, name)) for name in ("tokenizer", "text_encoder")}
    taught = dsnb.load(type(tiny.pipe)(**{**tiny.pipe.components, **parts}, requires_safety_checker=False))
    learned = {"<mine>": torch.randn(3, 32, generator=generator)}
    taught.pipe.load_textual_inversion(learned, "<mine>")
    with record_attention(taught, "a <mine> bear", SIZE) as maps:
        call(taught, x, ["a <mine> bear"])
    names = maps.tokens()
    assert [names[index] for index in maps.words()["bear"]] == list("bear")
    assert len(maps.words()["mine"]) == 3


def test_heat_is_a_share_at_any_size(tiny, x):
    with record_attention(tiny, LEFT, SIZE) as maps:
        call(tiny, x)
    everything = maps.heat(range(len(maps.tokens())), size=(31, 50))
    assert everything.shape == (31, 50) and everything.dtype == torch.float32
    assert 0 < everything.min() and everything.max() <= 1
    coarse = [name for name, size in maps.layers.items() if size == (6, 10)]
    assert maps.heat("bear", layers=coarse).shape == (6, 10)


@pytest.mark.parametrize("method", ["attention", "epsilon", "combined", "pixel"])
def test_blended_pictures_are_recorded_and_not_changed(tiny, trajectory, method):
    mask, size = masks.logistic(20), trajectory.x_T.shape[-2:]
    options = {"method": method, "guidance": 2, "progress": False}
    expected = dsnb.blend(tiny, trajectory, [LEFT, RIGHT], mask, **options)
    before = dict(tiny.unet.attn_processors)
    with record_attention(tiny, [LEFT, RIGHT], size) as maps:
        picture = dsnb.blend(tiny, trajectory, [LEFT, RIGHT], mask, **options)
    torch.testing.assert_close(picture, expected, atol=2e-4, rtol=0)
    assert tiny.unet.attn_processors == before
    assert all(maps.heat("bear", prompt=prompt).max() > 0 for prompt in (0, 1))


def test_blended_maps_carry_the_mask(tiny, x):
    """One UNet call with the mix of both prompts: prompt i's map is its own attention times its weight."""
    contexts, mask = models.encode_prompts(tiny, ["", LEFT, RIGHT]), masks.linear(2)
    name = cross_attention_layers(tiny.unet)[0]  # before it no text has been read: its queries are the same
    only = lambda other: other == name
    with record_attention(tiny, [LEFT, RIGHT], SIZE, layers=only) as maps:
        with blend_cross_attention(tiny.unet, contexts.text, mask, SIZE, layers=only) as blend:
            blend.at(0.0, [0, 1])
            models.predict(tiny, x.repeat(2, 1, 1, 1), 500, contexts[[0, 0]])
    weights = mask.weights(*SIZE)
    for prompt, text in enumerate((LEFT, RIGHT)):
        alone = probabilities(tiny, x, text, name).mean(0)[:, 1].reshape(SIZE)
        torch.testing.assert_close(maps.heat(1, prompt=prompt), weights[prompt] * alone, atol=1e-5, rtol=0)


def test_layers_that_never_saw_a_prompt_do_not_dilute_its_map(tiny, x):
    contexts, name = models.encode_prompts(tiny, ["", LEFT, RIGHT]), cross_attention_layers(tiny.unet)[0]
    with record_attention(tiny, [LEFT, RIGHT], SIZE) as maps:
        with blend_cross_attention(
            tiny.unet, contexts.text, masks.linear(2), SIZE, layers=[name].count
        ) as blend:
            blend.at(0.0, [1])
            models.predict(tiny, x, 500, contexts[[1]])  # the other layers see the left prompt alone
    torch.testing.assert_close(
        maps.heat(1, prompt=1, size=SIZE), maps.heat(1, prompt=1, layers=[name], size=SIZE), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match="nothing was recorded for prompt 1 in these layers"):
        maps.heat(1, prompt=1, layers=[other for other in maps.layers if other != name])


def test_a_map_becomes_a_mask(tiny, x):
    with record_attention(tiny, LEFT, SIZE) as maps:
        call(tiny, x)
    heat, weights = maps.heat("bear"), maps.mask("bear", sharpness=40).weights(*SIZE, sampling="area")
    assert weights.shape == (2, *SIZE)
    top, bottom = heat.flatten().argmax(), heat.flatten().argmin()
    assert weights[0].flatten()[top] > 0.8 and weights[0].flatten()[bottom] < 0.2
    tiny_share = maps.mask("bear", threshold=1.0).weights(*SIZE)[0].mean()
    assert tiny_share < weights[0].mean()


def test_processors_return_and_are_not_hooked_twice(tiny, x):
    before = dict(tiny.unet.attn_processors)
    contexts = models.encode_prompts(tiny, ["", LEFT, RIGHT])
    with pytest.raises(RuntimeError, match="stop"), record_attention(tiny, LEFT, SIZE):
        with pytest.raises(RuntimeError, match="hooked already"), record_attention(tiny, LEFT, SIZE):
            pass
        with blend_cross_attention(tiny.unet, contexts.text, masks.linear(2), SIZE):
            with pytest.raises(RuntimeError, match="hooked already"):
                with blend_cross_attention(tiny.unet, contexts.text, masks.linear(2), SIZE):
                    pass
        raise RuntimeError("stop")
    assert tiny.unet.attn_processors == before and not tiny.unet._forward_pre_hooks
    with blend_cross_attention(tiny.unet, contexts.text, masks.linear(2), SIZE):
        with pytest.raises(RuntimeError, match="hooked already"), record_attention(tiny, LEFT, SIZE):
            pass


def test_what_is_wrong_is_said(tiny, x):
    def record(*args, **options):
        with record_attention(tiny, *args, **options) as maps:
            call(tiny, x)
            return maps

    for message, options in {
        "groups must be a whole number from 1 to 2": {"groups": 3},
        "buckets must be a whole number of at least 1": {"buckets": 0},
        "layers has .'nowhere'.; expected names among": {"layers": ["nowhere"]},
        "layers chooses none of": {"layers": lambda name: False},
    }.items():
        with pytest.raises(ValueError, match=message):
            record(LEFT, SIZE, **options)
    with pytest.raises(ValueError, match="prompts is empty"):
        record([], SIZE)
    with pytest.raises(
        ValueError, match="size must be the height and width of the latents, 12 x 20; got 16 x 16"
    ):
        record(LEFT, (16, 16))
    with pytest.raises(ValueError, match="nothing was recorded for prompt 0, 'an owl'"):
        record("an owl", SIZE).heat("owl")
    maps = record(LEFT, SIZE)
    with pytest.raises(ValueError, match="prompt must be a whole number from 0 to 0, got 1"):
        maps.heat("bear", prompt=1)
    for word in (99, None, 1.5, [], ["bear"]):
        with pytest.raises(ValueError, match="indices of tokens from 0 to"):
            maps.heat(word)
    for size in ((0, 0), (4,), (4, 10**9), "12"):
        with pytest.raises((ValueError, TypeError), match="size must be"):
            maps.heat("bear", size=size)
    for threshold in (float("nan"), 50, -1):
        with pytest.raises(ValueError, match="threshold must be a finite number from 0 to 1"):
            maps.mask("bear", threshold=threshold)
    name, (bucket,) = next(iter(maps.layers)), maps.steps
    assert torch.equal(maps.heat([2, 2]), maps.heat(2))
    assert torch.equal(maps.heat(torch.tensor(2), steps=torch.tensor(bucket)), maps.heat(2))
    assert torch.equal(maps.heat(2, layers=name), maps.heat(2, layers=[name]))
    for message, options in {
        "group must be a whole number, got True": {"group": True},
        "layers must be names of layers, or a function of a name; got 3": {"layers": 3},
    }.items():
        with pytest.raises(TypeError, match=message):
            maps.heat(2, **options)
    with pytest.raises(ValueError, match=r"group must be among \[0\], got 1"):
        maps.heat("bear", group=1)


def test_groups_are_equal():
    assert _equal_groups(2, 4) == 2
    with pytest.raises(ValueError, match="groups must divide the 4 heads equally, got 3"):
        _equal_groups(3, 4)
