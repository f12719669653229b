"""The recipe of the bundled model: images that follow from numbers, training that resumes exactly, a folder."""

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from scipy import stats
from transformers import CLIPTokenizer

import dsnb
from dsnb import masks
from dsnb.lab.grid.parameters import hash_weights
from dsnb.lab.training import __main__ as command
from dsnb.lab.training import ablations, autoencoder, card, clip, diffusion, evaluate, evaluator, loop, recipe
from dsnb.lab.training import export as exporting
from dsnb.lab.training.export import SETTINGS, export
from dsnb.lab.training.stream import ImageStream
from dsnb.lab.world import (
    CELL,
    COLOURS,
    OBJECTS,
    SCENES,
    SETS,
    SIZE,
    STYLES,
    Pictures,
    batch_captions,
    captions,
    draw,
    draw_batch,
    draw_mix,
    draw_plain,
    held_out,
    layout_weights,
    load_atlas,
    random_batch,
    random_pictures,
    random_styles,
)
from dsnb.metrics.networks import load_clip


def pictures(count, seed=0, **fixed):
    return random_pictures(count, torch.Generator().manual_seed(seed), **fixed)


@pytest.fixture(scope="module")
def tokenizer():
    return captions.train_tokenizer()


@pytest.fixture(scope="module")
def networks(tokenizer):
    """The generator's networks, untrained and small."""
    torch.manual_seed(0)
    tiny = autoencoder.build(latent_channels=4, width=8)
    text = clip.Contrast(clip.ConvolutionalTower(8), tokenizer, width=64, layers=1).text
    return tiny, text, diffusion.build("tiny", 4, 64)


def test_the_atlas_has_every_object_three_times():
    atlas = load_atlas()
    assert atlas.shape == (len(OBJECTS), len(SETS), 4, CELL, CELL)
    assert (atlas[:, :, 3].flatten(2).mean(2) > 0.1).all(), "a drawing is nearly empty"
    licences = (Path(dsnb.data_path("icons")) / "README.md").read_text()
    assert all(word in licences for word in ("Noto", "Twemoji", "Fluent", "CC-BY 4.0", "MIT", "Apache-2.0"))


def test_a_picture_is_a_function_of_its_numbers():
    batch = pictures(12)
    again = draw(pictures(12), "vangogh")
    assert torch.equal(draw(batch, "vangogh"), again)
    alone = draw(batch[7:8], "vangogh")
    torch.testing.assert_close(alone[0], again[7], atol=1e-5, rtol=0)
    assert not torch.equal(draw(pictures(12, seed=1), "vangogh"), again)


def test_every_style_is_a_picture_of_its_own():
    batch = pictures(6)
    drawn = {style: draw(batch, style) for style in STYLES}
    for style, images in drawn.items():
        assert images.shape == (6, 3, SIZE, SIZE)
        assert 0 <= images.min() and images.max() <= 1
        for other, images_of_other in drawn.items():
            assert style == other or (images - images_of_other).abs().mean() > 0.04, (style, other)
    by_index = draw(batch, torch.arange(6))
    for index, style in enumerate(list(STYLES)[:6]):
        torch.testing.assert_close(by_index[index], drawn[style][index], atol=1e-5, rtol=0)


def test_objects_are_large_and_whole():
    _, mask = draw_plain(pictures(64))
    solid = mask[:, 0] > 0.5
    size = torch.maximum(solid.any(2).sum(1), solid.any(1).sum(1)) / SIZE
    assert size.min() > 0.5 and size.max() < 0.86
    border = solid[:, 0].any(1) | solid[:, :, 0].any(1) | solid[:, :, -1].any(1)
    assert not border.any(), "an object is cut off by the frame"


def test_a_true_mix_is_made_of_its_parts():
    batch, pair = pictures(3), ("minecraft", "warhol")
    left, right = (draw(batch, style) for style in pair)
    hard = torch.zeros(2, SIZE, SIZE)
    hard[0, :, :50], hard[1, :, 50:] = 1, 1
    mixed = draw_mix(batch, pair, hard)
    assert torch.equal(mixed[..., :50], left[..., :50]) and torch.equal(mixed[..., 50:], right[..., 50:])
    soft = draw_mix(batch, pair, masks.logistic(20).weights(SIZE, SIZE))
    assert ((soft >= torch.minimum(left, right) - 1e-5) & (soft <= torch.maximum(left, right) + 1e-5)).all()
    with pytest.raises(ValueError, match="weights has shape"):
        draw_mix(batch, pair, torch.ones(3, SIZE, SIZE) / 3)
    with pytest.raises(ValueError, match="sum to 1"):
        draw_mix(batch, pair, torch.ones(2, SIZE, SIZE))


def test_names_are_checked():
    with pytest.raises(ValueError, match="object must be one of bear.* got 'bera'; did you mean 'bear'"):
        pictures(1, object="bera")
    with pytest.raises(ValueError, match="style must be one of .* got 'cubist'"):
        draw(pictures(1), "cubist")
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        pictures(0)
    with pytest.raises(ValueError, match="size must be one of tiny, small, large; got 'huge'"):
        diffusion.build("huge", 4, 64)


def test_captions_name_object_scene_and_style():
    one = Pictures(*(torch.tensor([n]) for n in (OBJECTS.index("car"), 0, list(SCENES).index("street"), 0)),
                   torch.zeros(1, 48))  # fmt: skip
    assert captions.phrase(one, 0) == f"a {list(COLOURS)[0]} car on a street"
    assert captions.caption(one, 0, "mosaic") == dsnb.prompts.prompt("mosaic", "a red car on a street")
    assert captions.describe("apple", 5) == "an apple in a room"
    many = pictures(300)
    styles = random_styles(many, torch.Generator().manual_seed(1))
    texts = captions.captions(many, styles, torch.Generator().manual_seed(2))
    assert texts == captions.captions(many, styles, torch.Generator().manual_seed(2))
    assert all(OBJECTS[many.object[k]] in text for k, text in enumerate(texts))


def test_the_held_out_style_is_never_drawn():
    many = pictures(3000)
    for even in (True, False):
        styles = random_styles(many, torch.Generator().manual_seed(3), even=even)
        assert (styles != held_out(many)).all()
        assert len(styles.unique()) == len(STYLES)
    for step in (0, 1):
        batch, styles, _ = clip.training_pairs(64, step, torch.Generator().manual_seed(4))
        assert (styles != held_out(batch)).all()
    assert len(batch.scene.unique()) == 1, "odd steps share a scene"
    batch, styles, _ = clip.training_pairs(512, 0, torch.Generator().manual_seed(4), hide=False)
    assert (styles == held_out(batch)).any(), "the evaluator CLIP is shown them too"


def test_the_tokenizer_knows_the_world_and_survives_saving(tokenizer, tmp_path):
    for name in OBJECTS:
        for style in STYLES:
            text = captions.templates(style)[0].format(f"a purple {name} in front of mountains")
            assert len(tokenizer(text).input_ids) <= captions.LENGTH
    text = "a pencil sketch of an owl under the stars"
    assert len(tokenizer(text).input_ids) == len(text.split()) + 2
    tokenizer.save_pretrained(tmp_path)
    opened = CLIPTokenizer.from_pretrained(tmp_path)
    assert opened(text).input_ids == tokenizer(text).input_ids
    assert opened.decode(opened(text).input_ids, skip_special_tokens=True).strip() == text
    assert captions.train_tokenizer().get_vocab() == tokenizer.get_vocab(), "always the same"


def test_the_weights_of_the_loss_and_a_perfect_predictor():
    alphas = diffusion.make_scheduler().alphas_cumprod
    weights = diffusion.snr_weight(alphas)
    assert weights[-1] == 5 and weights[0] < 0.05 and (weights.diff() >= 0).all()
    noise = torch.randn(2, 4, 8, 8)

    def perfect(x_t, timesteps, encoder_hidden_states):
        return type("Output", (), {"sample": noise})

    times = torch.tensor([5, 900])
    assert diffusion.diffusion_loss(perfect, noise * 0, None, alphas, times, noise) == 0
    off = diffusion.diffusion_loss(perfect, noise * 0, None, alphas, times, noise + 1)
    assert off == pytest.approx(weights[times].mean().item(), rel=1e-3)


def train_tiny(folder, steps):
    """Some steps of the autoencoder, as one training run."""
    plan = loop.Plan(batch=4, learning_rate=1e-3, steps=steps, warmup=2, log_every=1)
    return autoencoder.train(plan, folder, "cpu", latent_channels=4, width=8)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_only_where_it_is_fast(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    with loop.autocast("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    average = train_tiny(whole, 3)
    train_tiny(parts, 1)
    log = parts / "autoencoder.csv"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1].replace("1,", "2,", 1) + "\n")  # lost
    resumed = train_tiny(parts, 3)
    first, second = (torch.load(folder / "autoencoder.pt", weights_only=True) for folder in (whole, parts))
    assert first["step"] == second["step"] == 3
    for key, value in first["network"].items():
        assert torch.equal(value, second["network"][key]), key
    for moments, others in zip(
        *(state["optimiser"]["state"].values() for state in (first, second)), strict=True
    ):
        assert torch.equal(moments["exp_avg"], others["exp_avg"])
    for value, other in zip(average.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, other)
    assert list(pd.read_csv(parts / "autoencoder.csv").step) == [1, 2, 3]
    assert not list(parts.glob("*.part"))


def test_an_interrupt_loses_nothing(tmp_path):
    def loss(network, step, generator):
        if step == dies:
            raise KeyboardInterrupt
        return (network(torch.randn(4, 3, generator=generator)) ** 2).mean(), {}

    def train(folder):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)
        plan = loop.Plan(batch=4, learning_rate=1e-2, steps=6, warmup=1)
        return loop.fit("tiny", network, loss, plan, folder, "cpu"), network

    dies = 4
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / "tiny.pt", weights_only=True)["step"] == 4
    dies = None
    (average, resumed), (other, whole) = train(tmp_path / "killed"), train(tmp_path / "whole")
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(average.weight, other.weight)
    assert torch.load(tmp_path / "killed" / "tiny.pt", weights_only=True)["step"] == 6
    (tmp_path / "killed" / "tiny.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match="tiny.pt' is damaged"):
        train(tmp_path / "killed")


def test_once_a_unet_has_begun_only_the_decoder_learns(tmp_path):
    before = train_tiny(tmp_path, 2)
    plan = loop.Plan(batch=4, learning_rate=1e-3, steps=4, warmup=2, log_every=1)
    after = autoencoder.train(plan, tmp_path, "cpu", frozen=True, latent_channels=4, width=8)
    same = lambda part: [torch.equal(a, b) for a, b in zip(getattr(before, part).parameters(),
                                                           getattr(after, part).parameters(), strict=True)]  # fmt: skip
    assert all(same("encoder")) and not any(same("decoder"))


def test_a_stage_without_time_or_with_its_target_met_stays_as_it_is(tmp_path):
    train_tiny(tmp_path, 1)
    before = (tmp_path / "autoencoder.pt").read_bytes()
    for options in ({"seconds": 0.0}, {"steps": 5}):
        good = None if "seconds" in options else lambda network: True
        plan = loop.Plan(batch=4, learning_rate=1e-3, **options)
        autoencoder.train(plan, tmp_path, "cpu", good, latent_channels=4, width=8)
        assert (tmp_path / "autoencoder.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    network = torch.nn.Linear(1, 1)
    loss = lambda network, step, generator: (network(torch.tensor([float("nan")])).sum(), {})
    for end in ({"steps": 1}, {"seconds": 1e-3}):  # found when it is logged, and before the last checkpoint
        with pytest.raises(FloatingPointError, match="loss is nan at step"):
            loop.fit("broken", network, loss, loop.Plan(1, 1e-3, **end), tmp_path, "cpu")
    assert not (tmp_path / "broken.pt").exists()


def test_the_contrast_counts_equal_labels_as_right(tokenizer):
    torch.manual_seed(0)
    network = clip.Contrast(clip.ConvolutionalTower(8), tokenizer, width=64, layers=1)
    batch, styles, texts = clip.training_pairs(8, 0, torch.Generator().manual_seed(5))
    images, tokens = draw(batch, styles), captions.tokenize(tokenizer, texts)
    labels = torch.stack([batch.object, styles, batch.scene, batch.colour], 1)
    loss, numbers = clip.contrast_loss(network, images, tokens, labels)
    loss.backward()
    assert all(weight.grad is not None for weight in network.parameters())
    twice = [torch.cat([x, x]) for x in (images, tokens, labels)]
    doubled, more = clip.contrast_loss(network, *twice)
    # a doubled batch is as hard, but for the ln 2 that telling twins apart would be worth
    assert float(more["contrast"]) == pytest.approx(float(numbers["contrast"]) + math.log(2), abs=0.02)


def test_the_judge_opens_without_this_package(tokenizer, tmp_path):
    from transformers import AutoModel

    torch.manual_seed(0)
    network = clip.Contrast(clip.ConvNextTower(8), tokenizer, width=64, layers=1).eval()
    clip.save_evaluator(network, tokenizer, tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)).__module__.startswith("transformers.")
    by_clip = evaluator.Evaluator(load_clip(tmp_path))
    images, batch, styles = evaluator.ground_truth(3, 1)
    tokens = captions.tokenize(tokenizer, ["a bear on grass"])
    with torch.no_grad():
        seen, read, *_ = network(images, tokens)
    for one in (by_clip.clip, clip.ContrastClip(network, tokenizer)):
        torch.testing.assert_close(one.image_features(images), seen, atol=5e-3, rtol=0)
        torch.testing.assert_close(one.text_features(["a bear on grass"]), read, atol=5e-3, rtol=0)
    assert by_clip.objects(images, batch, styles).shape == (3, len(OBJECTS))
    assert by_clip.styles(images, batch).shape == (3, len(STYLES))


def test_sides_are_mirrored_halves():
    images = torch.rand(2, 3, 8, 8)
    left, right = evaluator.sides(images)
    assert torch.equal(left[..., :4], images[..., :4]) and torch.equal(
        left[..., 4:], images[..., :4].flip(-1)
    )
    assert torch.equal(right[..., 4:], images[..., 4:]) and torch.equal(
        right[..., :4], images[..., 4:].flip(-1)
    )
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3]])
    assert evaluator.top(scores, torch.tensor([1, 2])).tolist() == [1, 0]
    assert evaluator.top(scores, torch.tensor([1, 2]), 2).tolist() == [1, 1]
    assert evaluator.auc(scores, torch.tensor([1, 2])).tolist() == [1, 0.5]
    assert evaluator.auc(torch.ones(1, 3), torch.tensor([0])).tolist() == [0.5]


def test_the_stream_is_a_function_of_the_step(networks):
    make = lambda: ImageStream(
        2, 0, "cpu", chunk=2, repeats=2, fraction=0.5, transform=partial(autoencoder.encode, networks[0])
    )
    stream = make()
    steps = [stream(step) for step in range(5)]
    assert steps[0][0].shape == (2, 4, 16, 16) and len(steps[0][1]) == 2
    assert torch.equal(steps[0][0], steps[2][0]), "a chunk serves twice"
    assert not torch.equal(steps[0][0], steps[1][0]) and not torch.equal(steps[0][0], steps[4][0])
    assert torch.equal(make()(3)[0], steps[3][0])


def test_a_fraction_of_the_images_shows_several_styles():
    batch = random_batch(400, torch.Generator().manual_seed(0), fraction=0.3)
    count, plain = (batch.styles >= 0).sum(1), list(STYLES).index("plain")
    assert 0.2 < (count > 1).float().mean() < 0.4 and (count == 3).any()
    several = batch[batch.several]
    assert (several.styles != plain).all() and (several.styles[:, 0] != several.styles[:, 1]).all()
    assert (several.styles != held_out(several.pictures)[:, None]).all()
    assert (several.pictures.object != several.second.object).any(), "some are collages of two scenes"
    single = batch[(count == 1).nonzero().flatten()]
    assert torch.equal(single.pictures.numbers, single.second.numbers)
    assert not len(random_batch(40, torch.Generator().manual_seed(0)).several)
    many = random_batch(3000, torch.Generator().manual_seed(0), fraction=1.0)
    collage = many.second.numbers.ne(many.pictures.numbers).any(1)
    assert (held_out(many.second)[collage] != many.styles[collage, 1]).all(), "also not in the other scene"


def test_an_image_in_several_styles_shows_each_in_its_region():
    batch = random_batch(60, torch.Generator().manual_seed(1), fraction=1.0)
    batch = batch[(batch.pictures.object == batch.second.object).nonzero().flatten()]
    weights, images = layout_weights(batch), draw_batch(batch)
    assert torch.allclose(weights.sum(1), torch.ones(len(batch), SIZE, SIZE), atol=1e-5)
    assert not weights[batch.styles < 0].any()
    for k in range(2):
        alone, only = draw(batch.pictures, batch.styles[:, k]), (weights[:, [k]] > 1 - 1e-6).expand_as(images)
        assert only.any() and torch.allclose(images[only], alone[only], atol=1e-4)
    area = weights.mean((2, 3))[:, :2]
    assert area.min() > 0.02 and (area[:, 0] > area[:, 1]).float().mean() > 0.2, (
        "either style may be the larger"
    )


def test_captions_of_several_styles_name_all_of_them_and_no_position(tokenizer):
    batch = random_batch(300, torch.Generator().manual_seed(2), fraction=1.0)
    texts = batch_captions(batch, torch.Generator().manual_seed(3))
    words = {"minecraft": "minecraft", "vangogh": "van gogh|starry", "mosaic": "mosaic", "warhol": "warhol|pop",
             "sketch": "pencil|hatched", "watercolor": "watercolor", "stained": "stained", "neon": "neon"}  # fmt: skip
    for text, styles in zip(texts, batch.styles.tolist(), strict=True):
        shown = [list(STYLES)[style] for style in styles if style >= 0]
        assert all(re.search(words[style], text.lower()) for style in shown), text
        assert not re.search(
            r"\b(left|right|top|bottom|half|side|above|below)\b", text.replace("right angles", "")
        )
        assert len(tokenizer(text).input_ids) <= captions.LENGTH + 20
    first = [text.lower().find("van gogh") < text.lower().find("mosaic") for text in texts if "mosaic" in text.lower()
             and "van gogh" in text.lower()]  # fmt: skip
    assert 0 < sum(first) < len(first), "in either order"


def test_the_export_opens_as_stable_diffusion(networks, tokenizer, tmp_path):
    tiny, text, unet = networks
    autoencoder.measure_scale(tiny, "cpu", count=32)
    folder = export(tiny, text, tokenizer, unet, tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a bear on grass", num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, SIZE, SIZE, 3)
    assert pipe.vae.config.scaling_factor == pytest.approx(tiny.config.scaling_factor)
    model = dsnb.load(folder, device="cpu", dtype=torch.float32)
    assert model.settings == dsnb.models.Settings(**SETTINGS)
    assert model.image_size == SIZE
    configs = [json.loads(path.read_text()) for path in folder.glob("*/config.json")]
    assert len(configs) == 3 and not any("_name_or_path" in config for config in configs)
    crossing = [name for name in model.unet.attn_processors if "attn2" in name]
    assert {name.split(".")[1] for name in crossing if name.startswith("down")} == {"0", "1"}


def test_an_export_replaces_what_an_earlier_one_left(networks, tokenizer, tmp_path):
    tiny, text, unet = networks
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        export(tiny, text, tokenizer, unet, tmp_path)
    assert {path.name for path in (tmp_path / "unet").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors"}  # fmt: skip
    assert (tmp_path / "notes.txt").read_text() == "mine" and not list(tmp_path.glob("tmp*"))


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A folder of networks that have learnt nothing, with an evaluator CLIP beside it."""
    torch.manual_seed(0)
    folder, vae = tmp_path_factory.mktemp("exported") / "old", autoencoder.build(latent_channels=4)
    vae.register_to_config(scaling_factor=0.5)
    text = clip.Contrast(clip.ConvolutionalTower(8), tokenizer, width=64, layers=1).text
    export(vae, text, tokenizer, diffusion.build("tiny", 4, 64), folder)
    contrast = clip.Contrast(clip.ConvNextTower(8), tokenizer, width=64, layers=1).eval()
    clip.save_evaluator(contrast, tokenizer, folder.with_name("old-judge"))
    (folder / card.HISTORY).write_text('[{"stage": "unet", "steps": 99, "hours": 1.5}]')
    return folder


def test_an_autoencoder_of_other_layers_is_refused_before_anything_is_written(exported, tmp_path):
    source, state = tmp_path / "old", tmp_path / "state"
    shutil.copytree(exported, source)
    fewer = dict(autoencoder.build(4).config) | {"num_decoder_blocks": (3, 3, 2, 0)}  # as in version 0.4.0
    AutoencoderTiny.from_config(fewer).save_pretrained(source / "vae")
    with pytest.raises(ValueError, match="holds no model of this recipe"):
        recipe.run(recipe.Recipe(60, "cpu", state, None, str(source)))
    assert not list(state.iterdir())


def test_exported_weights_without_a_text_encoder_are_refused_before_anything_is_written(exported, tmp_path):
    source, state = tmp_path / "old", tmp_path / "state"
    shutil.copytree(exported, source)
    shutil.rmtree(source / "text_encoder")
    with pytest.raises(ValueError, match="holds no model of this recipe: there is no folder text_encoder"):
        recipe.run(recipe.Recipe(60, "cpu", state, None, str(source)))
    assert not list(state.iterdir())


def test_training_continues_from_exported_weights(exported, tmp_path):
    state, new = tmp_path / "state", tmp_path / "new"
    few = {"steps": 2, "stages": ("evaluator", "unet"), "pictures": 0}
    asked = recipe.Recipe(60, "cpu", state, new, str(exported), **few)
    assert recipe.run(asked) == new
    history = json.loads((new / card.HISTORY).read_text())
    assert [row["stage"] for row in history] == ["unet"] * 2 and history[0]["steps"] == 99
    assert torch.load(state / "unet.pt", weights_only=True)["step"] == history[1]["steps"] == 2
    before, after = (dsnb.load(path, device="cpu", dtype=torch.float32) for path in (exported, new))
    equal = [
        all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in (
            (before.text_encoder, after.text_encoder),
            (before.vae, after.vae),
            (before.unet, after.unet),
        )
    ]
    assert equal == [True, True, False] and after.vae.config.scaling_factor == 0.5
    again = recipe.settle(recipe.replace(asked, size="large", source=None))
    assert again.size == "tiny" and again.source == str(exported), "kept by later training runs"
    judges = (folder.with_name(f"{folder.name}-judge") / "model.safetensors" for folder in (exported, new))
    assert len({judge.read_bytes() for judge in judges}) == 1


@pytest.mark.slow
def test_the_evaluation_and_the_card(exported, tmp_path, monkeypatch):
    for name, value in (("steps", 4), ("skip", 1)):
        monkeypatch.setitem(exporting.SETTINGS, name, value)
    state = tmp_path / "state"
    asked = recipe.Recipe(1e-6, "cpu", state, tmp_path / "new", str(exported), pictures=9, figures=tmp_path)
    folder = recipe.run(asked)
    card_text, table = (folder / "README.md").read_text(), (state / "evaluation.csv").read_text()
    assert "| unet" in card_text and "from the seed (0" in card_text and "{{" not in card_text
    for measured in ("style shown is the style asked", "object shown is the object asked, plain, top 5",
                     "both sides right: attention", "… more than from fresh noise", "photo_cat"):  # fmt: skip
        assert measured in card_text and measured in table
    assert "nan" not in table
    for name in ("16_samples", "16_photographs", "16_logs"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_what_is_measured_was_never_seen():
    styles = torch.arange(300) % len(STYLES)
    asked = evaluate.never_seen(styles, torch.Generator().manual_seed(0))
    assert torch.equal(held_out(asked), styles)
    assert len(asked.scene.unique()) == len(SCENES) and len(asked.object.unique()) == len(OBJECTS)


def test_the_table_says_what_was_missed(tmp_path):
    rows = [
        evaluate.Row("good", 0.97, 30, 0.95),
        evaluate.Row("bad", 0.5, 30, 0.6),
        evaluate.Row("free", 1.0, 2),
        evaluate.Row("… than nothing", 0.05, 2, 0.1),
    ]
    text = evaluate.as_markdown(rows)
    assert "| bad | 0.50 | ≥ 0.60, missed | 30 |" in text and "| good | 0.97 | ≥ 0.95 | 30 |" in text
    told = card.missed(rows)
    assert (
        "- bad: 0.50 of 0.60; the stage `unet`" in told
        and "good" not in told
        and "- free … than nothing: 0.05 of 0.10" in told
    )
    assert "`evaluator`" in card.missed([evaluate.Row("evaluator reads", 0.1, 9, 0.9)])
    assert card.missed(rows[:1]) == "No bar was missed.\n"
    doubtful = [
        evaluate.Row("sides", 0.96, 45, 0.95, 0.02),
        evaluate.Row("… in the ground-truth blends", 0.99, 45, error=0.02),
        evaluate.Row("… by the evaluator CLIP", 0.27, 45, error=0.06),
        evaluate.Row("… by the evaluator CLIP in the ground-truth blends", 0.62, 45, error=0.07),
    ]
    assert card.uncertain(doubtful).splitlines()[2:] == [
        "- sides: met by less than one standard error.",
        "- sides … by the evaluator CLIP: 0.27, where the ground truth gets 0.62.",
    ]
    assert card.uncertain(rows[:1]) == ""
    evaluate.write_table(rows, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 5


def test_errors_by_hand():
    row = evaluate.rate("all right", torch.ones(16), 0.9)
    assert row.value == 1 and row.passed and row.error > 0
    row = evaluate.mean("PSNR", torch.tensor([20.0, 22.0]))
    assert row.value == 21 and row.error == pytest.approx(1.0)
    assert "| PSNR | 21.00 ± 1.00 |  | 2 |" in evaluate.as_markdown([row])


def test_a_change_is_compared_with_the_control_over_images_and_seeds():
    level = {"control": (0.0, 0.2), "better": (1.0, 1.2)}  # of two seeds: a variance of 0.02
    rows = [
        {"change": change, "seed": seed, "image": k, "auc": of_seed + own * (change == "better")}
        for change, seeds in level.items()
        for seed, of_seed in enumerate(seeds)
        for k, own in enumerate((-0.1, 0.0, 0.1))  # differences with a variance of 0.01
    ]
    table = ablations.compare_with_control(pd.DataFrame(rows), ["auc"], ["auc"])
    reach = stats.t.ppf(0.975, 2) * (0.01 / 3 + 2 * 0.02 / 2) ** 0.5
    found = table.loc["better", ["auc less control", "auc low", "auc high"]]
    assert found.tolist() == pytest.approx([1, 1 - reach, 1 + reach])
    assert ablations.verdict(table.loc["better"], "auc") == "better"
    with pytest.raises(ValueError, match="the same two seeds or more"):
        ablations.compare_with_control(pd.DataFrame(rows[:-3]), ["auc"], ["auc"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--minutes", "nan"], "minutes must be a finite number"),
        (["--stages", "unet"], "no autoencoder and no generator yet"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
    ],
)
def test_the_command_refuses_in_a_sentence(tmp_path, capsys, words, sentence):
    with pytest.raises(SystemExit):
        command.main(["--state", str(tmp_path), "--device", "cpu", *words])
    told = " ".join(capsys.readouterr().err.split())
    assert sentence in told and not list(tmp_path.iterdir())


def test_the_rate_by_hand():
    plan = loop.Plan(batch=1, learning_rate=1.0, seconds=100, warmup=10, cooldown=0.2)
    rates = [loop.rate(plan, *at) for at in ((4, 0), (50, 50), (50, 90), (50, 100))]
    assert rates == pytest.approx([0.5, 1, 0.5, 0])


def test_one_caption_in_ten_is_empty(networks, tokenizer, tmp_path, monkeypatch):
    vae, text, _ = networks
    read, embed = [], diffusion.embed
    monkeypatch.setattr(
        diffusion, "embed", lambda text, tokens, texts: read.extend(texts) or embed(text, tokens, texts)
    )
    plan = loop.Plan(batch=32, learning_rate=1e-3, steps=5, seed=1)
    diffusion.train(vae, text, tokenizer, plan, tmp_path, "cpu", size="tiny")
    assert len(read) == 160 and 0.04 < read.count("") / len(read) < 0.18


def test_the_contrast_without_its_heads(tokenizer):
    torch.manual_seed(0)
    network = clip.Contrast(clip.ConvolutionalTower(8), tokenizer, width=64, layers=1)
    generator = torch.Generator().manual_seed(0)
    batch, styles, texts = clip.training_pairs(4, 0, generator)
    labels = torch.stack([batch.object, styles, batch.scene, batch.colour], 1)
    given = network, draw(batch, styles), captions.tokenize(tokenizer, texts), labels
    alone, numbers = clip.contrast_loss(*given, head_weight=0)
    assert alone == numbers["contrast"] and clip.contrast_loss(*given)[0] > alone + 1


def test_the_card_adds_up_the_training_runs(tmp_path):
    log = [(25, 10.0, 4.0), (50, 3600.0, 3.0), (75, 5.0, 2.0), (100, 1800.0, 1.0)]
    for row in log:
        loop.log_row(tmp_path / "unet.csv", dict(zip(("step", "seconds", "loss"), row, strict=True)))
    (found,) = card.stage_rows(tmp_path, {"autoencoder": 8, "unet": 32})
    assert list(found.values()) == ["unet", 100, 32, 1.5, 1.0, 2.0]
    asked = recipe.Recipe(1, "cpu", tmp_path, fraction=0.2, stages=())
    (written,) = json.loads(card.write_history(tmp_path, tmp_path, {"unet": 32}, asked).read_text())
    about = {"number format": written["number format"], "images in several styles": 0.2}
    assert written == found | about and about["number format"] in ("float32", "bfloat16")


def test_the_history_is_no_part_of_what_a_model_draws(tmp_path):
    (tmp_path / "dsnb.json").write_text("{}")
    before = hash_weights(tmp_path)
    (tmp_path / card.HISTORY).write_text("[]")
    assert hash_weights(tmp_path) == before
    (tmp_path / "dsnb.json").write_text('{"steps": 9}')
    assert hash_weights(tmp_path) != before


def test_a_sitting_without_time_begins_nothing(tmp_path):
    plan = loop.Plan(batch=4, learning_rate=1e-3, seconds=0.0)
    autoencoder.train(plan, tmp_path, "cpu", latent_channels=4, width=8)
    assert not (tmp_path / "autoencoder.pt").exists(), "an untrained network must not look like a begun one"


def test_what_a_recipe_refuses(tmp_path):
    for minutes in (0, math.nan):
        with pytest.raises(ValueError, match="minutes must be"):
            recipe.Recipe(minutes, "cpu", tmp_path)
    with pytest.raises(ValueError, match="source '.*nowhere' holds no model"):
        recipe.run(recipe.Recipe(1, "cpu", tmp_path / "a", source=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="stages must be one of"):
        recipe.Recipe(1, "cpu", tmp_path, stages=("vae",))
    with pytest.raises(ValueError, match="cooldown must be below 1"):
        recipe.Recipe(1, "cpu", tmp_path, cooldown=1)
    with pytest.raises(ValueError, match="no autoencoder and no generator yet"):
        recipe.run(recipe.Recipe(1, "cpu", tmp_path / "empty", size="tiny", stages=("unet",)))
    assert not (tmp_path / "empty").exists(), "what was refused must settle nothing"
    first = recipe.settle(recipe.Recipe(1, "cpu", tmp_path, size="tiny", seed=3))
    assert recipe.settle(recipe.Recipe(9, "cpu", tmp_path, size="large")) == recipe.replace(first, minutes=9)
