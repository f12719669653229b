import dataclasses
import warnings

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import save_file

import dsnb
from dsnb import inversion, methods, models, sampling
from dsnb.epsilon import Predictions
from dsnb.inversion import Trajectory, ddim_inversion, dpm_encoder, edit_friendly, guided_eps


def noise(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def latents_again(model, trajectory):
    eps = guided_eps(model, trajectory.caption, trajectory.guidance)
    return methods.decode_trajectory(model, trajectory, eps, progress=False)


@pytest.mark.parametrize(
    ("steps", "skip", "size"),
    [
        (1, 0, (32, 32)),
        (2, 1, (32, 48)),
        (7, 0, (24, 40)),
        (12, 3, (32, 48)),
        (12, 11, (32, 32)),
        (99, 10, (32, 32)),
    ],
)
def test_decoding_with_the_encoders_prompt_gives_the_latent_back(tiny, size, steps, skip, generator):
    image = noise((1, 3, *size))
    x_0 = models.encode_image(tiny, image)
    trajectory = dsnb.invert(
        tiny, image, "a bear", steps=steps, skip=skip, generator=generator, progress=False
    )
    assert len(trajectory.noises) == steps - skip
    assert (latents_again(tiny, trajectory) - x_0).abs().max() <= 1e-4


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_also_with_guidance_and_for_a_batch(tiny, guidance, generator):
    image = noise((2, 3, 32, 32))
    x_0 = models.encode_image(tiny, image)
    options = {"steps": 10, "skip": 2, "guidance": guidance, "generator": generator, "progress": False}
    for method in ("dpm-encoder", "edit-friendly"):
        trajectory = dsnb.invert(tiny, image, "a bear", method=method, **options)
        assert (latents_again(tiny, trajectory) - x_0).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_ddim_inversion_comes_back_approximately_and_better_with_more_steps(scheduler, kind):
    eps = lambda x, t, progress: torch.tanh(0.7 * x + 0.1)
    x_0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (10, 100):
        schedule = sampling.make_schedule(scheduler, steps) if kind == "diffusion" else flow_schedule(steps)
        x_T = ddim_inversion(eps, x_0, schedule)
        errors.append((sampling.denoise(eps, x_T, schedule, progress=False) - x_0).abs().max().item())
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.1, errors


@pytest.mark.parametrize(
    "config",
    [
        {"timestep_spacing": "linspace", "steps_offset": 0},
        {"timestep_spacing": "trailing"},
        {"set_alpha_to_one": True, "steps_offset": 0},
        {"set_alpha_to_one": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ],
)
@pytest.mark.parametrize("steps", [1, 20, 61, 99, 500])  # 61: of "trailing" diffusers makes 62
def test_every_step_of_every_scheduler_adds_noise(scheduler, config, steps):
    schedule = sampling.make_schedule(type(scheduler).from_config(scheduler.config, **config), steps)
    assert len(schedule) == steps and (schedule.sigma(0.1) > 0).all()
    assert torch.isfinite(schedule.sigma(1.0)).all() and (schedule.timesteps.diff() < 0).all()


@pytest.mark.parametrize(
    ("prediction", "a", "s"),
    [
        ("epsilon", 1.0, 0.0),
        ("epsilon", 0.6, 0.8),
        ("v_prediction", 0.6, 0.8),
        ("v_prediction", 0.0, 1.0),
        ("flow", 0.3, 0.7),
        ("flow", 0.0, 1.0),
    ],
)
def test_every_kind_of_output_gives_x_0_and_the_noise(prediction, a, s, generator):
    a, s = torch.tensor(a), torch.tensor(s)
    x_0, e = (torch.randn(5, generator=generator) for _ in range(2))
    output = {"epsilon": e, "v_prediction": a * e - s * x_0, "flow": e - x_0}[prediction]
    x_t, rows = a * x_0 + s * e, sampling.clean_and_noise(prediction, a, s)
    for (of_x, of_output), expected in zip(rows, (x_0, e), strict=True):
        torch.testing.assert_close(of_x * x_t + of_output * output, expected, atol=1e-6, rtol=0)


def flow_schedule(steps, skip=0):
    return sampling.make_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), steps, skip)


def test_flow_steps_are_the_schedulers_own():
    scheduler, schedule = FlowMatchEulerDiscreteScheduler(shift=3.0), flow_schedule(9)
    scheduler.set_timesteps(9)
    network = lambda x, t, progress: torch.tanh(0.7 * x + t / 1000)
    x = x_T = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t, 0), t, x).prev_sample
    assert schedule.a[0] == 0 and schedule.s_next[-1] == 0
    torch.testing.assert_close(sampling.denoise(network, x_T, schedule, progress=False), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("record", [dpm_encoder, edit_friendly])
def test_flow_records_what_gives_the_latent_back(record, skip, generator):
    network = lambda x, t, progress: torch.tanh(0.7 * x + t / 1000)
    x_0, schedule = torch.randn(2, 4, 6, 8, generator=generator), flow_schedule(12, skip)
    eta = 1.0 if record is edit_friendly else 0.1
    x_T, noises = record(network, x_0, schedule, eta, lambda: torch.randn(x_0.shape, generator=generator))
    assert len(noises) == 12 - skip and torch.isfinite(noises).all()
    again = sampling.denoise(network, x_T, schedule, eta=eta, noises=noises, progress=False)
    assert (again - x_0).abs().max() <= 1e-4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_dpm_encoder_asks_for_as_many_steps_at_once_as_a_call_may_have(tiny, guidance, monkeypatch):
    image, captions = noise((2, 3, 32, 32)), ["a bear", "an owl"]
    side = 32 // tiny.latent_factor

    def record(steps_in_one_call):
        monkeypatch.setattr(inversion, "LARGEST_CALL", steps_in_one_call * 2 * side * side)
        generator = torch.Generator().manual_seed(0)
        options = {"steps": 8, "skip": 1, "guidance": guidance, "generator": generator, "progress": False}
        with models.count_unet_samples(tiny.unet) as count:
            return dsnb.invert(tiny, image, captions, **options), count

    (alone, seven), (some, three), (all_, one) = record(0), record(3), record(100)
    assert [count.calls for count in (seven, three, one)] == [7, 3, 1]
    assert seven.samples == three.samples == one.samples == 7 * 2 * (1 if guidance == 1 else 2)
    for trajectory in (some, all_):
        torch.testing.assert_close(trajectory.noises, alone.noises, atol=1e-3, rtol=0)


def test_schedules_that_cannot_be_recorded_are_refused(scheduler):
    make = lambda **config: type(scheduler).from_config(scheduler.config, **config)
    for steps in (600, 1000):
        with pytest.raises(ValueError, match="steps must be a whole number from 1 to 500"):
            sampling.make_schedule(scheduler, steps)
    silent = make(timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="skip must be at least 1"):
        sampling.make_schedule(silent, 20)
    assert len(sampling.make_schedule(silent, 20, skip=1)) == 19
    v = make(timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert sampling.make_schedule(v, 20).a[0] == 0, "an output v tells x_0 even without any signal"


def test_the_usual_skip_leaves_one_step(tiny):
    late = dataclasses.replace(tiny, settings=dataclasses.replace(tiny.settings, steps=20, skip=12))
    trajectory = dsnb.invert(late, noise((1, 3, 32, 32)), "a bear", steps=1, progress=False)
    assert trajectory.skip == 0 and len(trajectory.noises) == 1


def test_a_trajectory_in_half_precision_is_decoded_in_float32(tiny):
    whole = dsnb.invert(tiny, noise((1, 3, 32, 32)), "a bear", steps=8, progress=False)
    x_T, noises = whole.x_T.bfloat16(), whole.noises.bfloat16()
    half = dataclasses.replace(whole, x_T=x_T, noises=noises)
    same = dataclasses.replace(whole, x_T=x_T.float(), noises=noises.float())
    assert torch.equal(*(dsnb.decode(tiny, each, "a cat", progress=False) for each in (half, same)))


def test_other_steps_skip_the_same_fraction(tiny):
    fraction = tiny.settings.skip / tiny.settings.steps
    for steps in (3, 20):
        trajectory = dsnb.invert(tiny, noise((1, 3, 32, 32)), "a bear", steps=steps, progress=False)
        assert (
            trajectory.skip == round(fraction * steps) and len(trajectory.noises) == steps - trajectory.skip
        )


def test_a_trajectory_of_another_model_is_refused_or_warned_of(tiny):
    trajectory = dsnb.invert(tiny, noise((1, 3, 32, 32)), "a bear", steps=2, skip=0, progress=False)
    other = dataclasses.replace(trajectory, model="another")
    with pytest.warns(UserWarning, match="the trajectory is of 'another'"):
        dsnb.decode(tiny, other, "a bear", progress=False)
    wide = dataclasses.replace(other, x_T=torch.zeros(1, 12, 16, 16), noises=torch.zeros(2, 1, 12, 16, 16))
    with pytest.raises(ValueError, match="'another' with 12 latent channels, but .* has 4"):
        dsnb.decode(tiny, wide, "a bear", progress=False)


def test_a_scheduler_replaced_after_the_inversion_is_warned_of(tiny, tmp_path, monkeypatch):
    trajectory = dsnb.invert(tiny, noise((1, 3, 32, 32)), "a bear", steps=4, skip=0, progress=False)
    trajectory = dsnb.Trajectory.load(trajectory.save(tmp_path / "kept.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dsnb.decode(tiny, trajectory, "a bear", progress=False)
    another = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[tiny.scheduler.config.prediction_type]
    for change in (
        {"timestep_spacing": "trailing"},
        {"beta_schedule": "linear"},
        {"prediction_type": another},
    ):
        other = type(tiny.scheduler).from_config(tiny.scheduler.config, **change)
        with (
            monkeypatch.context() as patched,
            pytest.warns(UserWarning, match="recorded with another scheduler"),
        ):
            patched.setattr(tiny.pipe, "scheduler", other)
            dsnb.decode(tiny, trajectory, "a bear", progress=False)


def test_ddim_inversion_records_no_noise(tiny):
    trajectory = dsnb.invert(
        tiny, noise((1, 3, 32, 32)), "a bear", method="ddim", steps=4, skip=0, progress=False
    )
    assert trajectory.eta == 0 and not trajectory.noises.any()


def test_x_T_and_its_noise_follow_the_generator(tiny):
    image = noise((1, 3, 32, 32))
    draw = lambda seed: dsnb.invert(
        tiny, image, "a bear", steps=4, skip=1, generator=torch.Generator().manual_seed(seed), progress=False
    )
    assert torch.equal(draw(1).noises, draw(1).noises)
    assert not torch.equal(draw(1).x_T, draw(2).x_T)


def test_a_list_of_generators_has_one_for_each_image(tiny):
    image, options = noise((1, 3, 32, 48)), {"steps": 4, "skip": 1, "progress": False}
    seeded = lambda *seeds: [torch.Generator().manual_seed(seed) for seed in seeds]
    both = dsnb.invert(tiny, image.repeat(2, 1, 1, 1), "a bear", generator=seeded(3, 5), **options)
    for k, one in enumerate(seeded(3, 5)):
        alone = dsnb.invert(tiny, image, "a bear", generator=one, **options)
        torch.testing.assert_close(both.x_T[[k]], alone.x_T)
        torch.testing.assert_close(
            both.noises[:, [k]], alone.noises, atol=1e-2, rtol=1e-2
        )  # rounding, over n
    with pytest.raises(ValueError, match="generator has 2 entries; expected 1, one for each image"):
        dsnb.invert(tiny, image, "a bear", generator=seeded(3, 5), **options)


def test_saved_and_loaded(tiny, tmp_path, generator):
    options = {"steps": np.int64(5), "skip": 1, "guidance": torch.tensor(1.5), "eta": np.float32(0.5)}
    captions = ["ein Bär", '["a"]']
    trajectory = dsnb.invert(
        tiny, noise((2, 3, 32, 32)), captions, generator=generator, progress=False, **options
    )
    again = Trajectory.load(trajectory.save(tmp_path / "new" / "bear.safetensors"))
    assert (type(trajectory.guidance), type(trajectory.eta), type(trajectory.steps)) == (float, float, int)
    for name, value in vars(trajectory).items():
        loaded = getattr(again, name)
        assert torch.equal(value, loaded) if isinstance(value, torch.Tensor) else value == loaded, name
    assert not list(tmp_path.rglob("*.tmp"))


def test_tensors_that_share_memory_are_saved(tmp_path, generator):
    x_T = torch.randn(1, 4, 8, 8, generator=generator)
    trajectory = Trajectory(x_T, x_T[None], "dpm-encoder", "m", "a bear", 1, 0, 0.1, 1.0)
    again = Trajectory.load(trajectory.save(tmp_path / "bear.safetensors"))
    assert torch.equal(again.noises, x_T[None])


def test_bad_files_and_folders(tiny, tmp_path, generator):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Trajectory.load(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is not a trajectory")
    with pytest.raises(ValueError, match="not a saved trajectory"):
        Trajectory.load(tmp_path / "text.safetensors")
    trajectory = dsnb.invert(
        tiny, noise((1, 3, 32, 32)), "a bear", steps=2, skip=0, generator=generator, progress=False
    )
    with pytest.raises(OSError, match="cannot be written"):
        trajectory.save(tmp_path / "text.safetensors" / "below-a-file.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": "2"}, "noises must have the shape"),
        ({"skip": "2"}, "noises must have the shape"),
        ({"steps": "6", "skip": "6"}, "skip must be a whole number from 0 to 5"),
        ({"eta": "5"}, "eta must be a finite number from 0 to 1"),
        ({"guidance": "nan"}, "guidance must be a finite number"),
        ({"captions": '["a", "b"]'}, "caption must be one text, or one for each of the 1 images"),
        ({"noises": torch.zeros(8, 1, 4, 16, 16)}, "noises must have the shape"),
        ({"noises": torch.zeros(3, 1, 4, 16, 16)}, "noises must have the shape"),
        ({"noises": torch.zeros(4, 1, 4, 8, 8)}, "noises must have the shape"),
        ({"noises": torch.full((4, 1, 4, 16, 16), torch.nan)}, "noises must be finite"),
        ({"x_T": torch.full((1, 4, 16, 16), torch.inf)}, "x_T must be finite"),
        ({"x_T": torch.zeros(4, 16, 16)}, "x_T must have the shape"),
    ],
)
def test_an_edited_file_is_refused(tiny, tmp_path, change, words):
    image = noise((1, 3, 32, 32))
    path = dsnb.invert(tiny, image, "a bear", steps=5, skip=1, progress=False).save(
        tmp_path / "t.safetensors"
    )
    with safe_open(path, framework="pt") as file:
        tensors, settings = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    for name, value in change.items():
        (settings if isinstance(value, str) else tensors)[name] = value
    save_file(tensors, path, metadata=settings)
    with pytest.raises(ValueError, match=f"is not a saved trajectory: {words}"):
        Trajectory.load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": 0}, "eta of method 'dpm-encoder' must be a finite number above 0 and at most 1, got 0"),
        ({"eta": 1.0000001}, "at most 1, got 1.0000001"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"method": "edit-frendly"}, "did you mean 'edit-friendly'"),
        (
            {"caption": ["a bear", "a cat"]},
            "caption must be one text, or one for each of the 1 images; got 2",
        ),
        ({"guidance": 1e38, "steps": 4}, "the guidance is too large"),
        ({"method": "ddim", "eta": 0.5}, "eta must be 0"),
        ({"method": "dpm"}, "method must be one of"),
        ({"steps": 5, "skip": 5}, "skip must be a whole number from 0 to 4, got 5"),
        ({"steps": 5, "skip": -1}, "skip must be"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 501}, "steps must be a whole number from 1 to 500"),
    ],
)
def test_bad_settings_are_refused(tiny, options, words):
    with pytest.raises(ValueError, match=words):
        dsnb.invert(tiny, noise((1, 3, 32, 32)), **{"caption": "a bear", "progress": False} | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": None}, "image must be a file"),
        ({"caption": None}, "caption must be one text, or a list of texts; got None"),
        ({"caption": 7}, "caption must be"),
        ({"caption": [None]}, r"caption\[0\] must be a text"),
        ({"generator": 42}, "generator must be a .*got 42; torch.Generator"),
        ({"eta": "0.1"}, "eta .* must be a finite number"),
        ({"steps": "3"}, "steps must be a whole number"),
        ({"skip": 1.5}, "skip must be a whole number"),
        ({"guidance": "high"}, "guidance must be a finite number"),
        ({"model": "drawn-world"}, "model must be a dsnb.models.Model"),
    ],
)
def test_wrong_types_are_refused_by_name(tiny, options, words):
    with pytest.raises(TypeError, match=words):
        dsnb.invert(**{"model": tiny, "image": noise((1, 3, 32, 32)), "caption": "a bear"} | options)


def test_one_caption_for_each_image(tiny):
    image, captions = noise((2, 3, 32, 32)), ["a bear", "two cats"]
    options = {"steps": 4, "skip": 1, "guidance": 3, "method": "ddim", "progress": False}
    both = dsnb.invert(tiny, image, captions, **options)
    assert both.caption == ("a bear", "two cats")
    again = dsnb.decode(tiny, both, captions, guidance=2, progress=False)
    for i, caption in enumerate(captions):
        one = dsnb.invert(tiny, image[i : i + 1], caption, **options)
        torch.testing.assert_close(both.x_T[i : i + 1], one.x_T, atol=1e-4, rtol=0)
        alone = dsnb.decode(tiny, one, caption, guidance=2, progress=False)
        torch.testing.assert_close(again[i : i + 1], alone, atol=1e-4, rtol=0)


def test_pil_images_arrays_and_files_are_inverted_like_tensors(tiny, tmp_path):
    picture = dsnb.images.to_pil(noise((1, 3, tiny.image_size, tiny.image_size)))
    picture.save(tmp_path / "mine.png")
    invert = lambda image: dsnb.invert(tiny, image, "a bear", method="ddim", steps=2, progress=False).x_T
    expected = invert(dsnb.read_image(tmp_path / "mine.png"))
    for image in (picture, np.asarray(picture), tmp_path / "mine.png", str(tmp_path / "mine.png")):
        assert torch.equal(invert(image), expected)


def test_bad_images_are_refused(tiny):
    with pytest.raises(ValueError, match="multiples of 2"):
        dsnb.invert(tiny, noise((1, 3, 33, 32)), "a bear")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        dsnb.invert(tiny, 2 * noise((1, 3, 32, 32)), "a bear")
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)"):
        dsnb.invert(tiny, noise((3, 32, 32)), "a bear")


def test_denoise_needs_noise_for_eta(scheduler):
    schedule = sampling.make_schedule(scheduler, 5)
    with pytest.raises(ValueError, match="pass noises"):
        sampling.denoise(lambda x, t, p: x, torch.zeros(1, 4, 2, 2), schedule, eta=0.5)
    with pytest.raises(ValueError, match="eta must be a finite number from 0 to 1, got -0.5"):
        sampling.denoise(lambda x, t, p: x, torch.zeros(1, 4, 2, 2), schedule, eta=-0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"uncond": (2, 4, 3, 1)},
            r"^uncond of the network's predictions must have shape \(2, 4, 3, 3\), got",
        ),
        ({"cond": (2, 4, 3, 3)}, r"^cond .* \(2, 2, 4, 3, 3\), got \(2, 4, 3, 3\)"),
        ({"weights": (3, 3)}, r"^weights .* \(3, 3, 3\), got \(3, 3\)"),
        ({"guidance": (2,)}, r"^guidance .* \(3,\), got \(2,\)"),
        ({"output": (1, 4, 3, 3)}, r"^the network's output must have shape \(2, 4, 3, 3\), got \(1,"),
        ({"noises": (5, 1, 4, 3, 3)}, r"^noises must have shape \(5, 2, 4, 3, 3\), got \(5, 1,"),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused_in_the_first_step(scheduler, wrong, message):
    right = {"uncond": (2, 4, 3, 3), "cond": (3, 2, 4, 3, 3), "weights": (3, 3, 3), "guidance": (3,)}
    right |= {"noises": (5, 2, 4, 3, 3)}
    given = {name: torch.ones(shape) for name, shape in (right | wrong).items()}
    noises, output = given.pop("noises"), given.pop("output", None)
    network = lambda x, t, progress: Predictions(**given) if output is None else output
    schedule = sampling.make_schedule(scheduler, 5)
    with pytest.raises(ValueError, match=message):
        sampling.denoise(network, torch.zeros(2, 4, 3, 3), schedule, eta=0.5, noises=noises, progress=False)


def test_the_rounding_of_edit_friendly_steps_does_not_add_up(scheduler):
    """A network that answers a small change with a large one would tear the encoder's and the decoder's paths apart."""
    network = lambda x, t, progress: torch.sin(1e3 * x)
    x_0 = noise((1, 4, 8, 8))
    generator = torch.Generator().manual_seed(1)
    schedule = sampling.make_schedule(scheduler, 15)
    draw = lambda: torch.randn(x_0.shape, generator=generator)
    x_T, noises = edit_friendly(network, x_0, schedule, 1.0, draw)
    again = sampling.denoise(network, x_T, schedule, eta=1.0, noises=noises, progress=False)
    assert (again - x_0).abs().max() <= 1e-5


def test_a_negative_prompt_is_part_of_the_recording(tiny, tmp_path, generator):
    image = noise((1, 3, 32, 32))
    options = {"steps": 4, "guidance": 3.0, "negative_prompt": "fog", "progress": False}
    trajectory = dsnb.invert(tiny, image, "a bear", generator=generator, **options)
    assert Trajectory.load(trajectory.save(tmp_path / "t.safetensors")).negative_prompt == "fog"
    decoded = lambda text: dsnb.decode(
        tiny, trajectory, "a bear", guidance=3.0, negative_prompt=text, progress=False
    )
    source = models.decode_latents(tiny, models.encode_image(tiny, image))
    torch.testing.assert_close(decoded("fog"), source, atol=1e-4, rtol=0)
    assert not torch.allclose(decoded(""), source, atol=1e-3)


def test_a_trajectory_from_noise_follows_its_seed_and_size(tiny):
    draw = lambda seed, **options: dsnb.from_noise(tiny, (32, 48), seed=seed, steps=3, **options)
    first = draw(1, batch=2)
    assert first.x_T.shape == (2, 4, 16, 24) and first.noises.shape == (3, 2, 4, 16, 24)
    assert torch.equal(first.x_T, draw(torch.Generator().manual_seed(1), batch=2).x_T)
    assert not torch.equal(first.x_T, draw(2, batch=2).x_T)
    assert (first.skip, first.eta) == (0, tiny.settings.eta)
    assert dsnb.from_noise(tiny).x_T.shape[-1] == tiny.image_size // tiny.latent_factor


def test_each_kind_of_trajectory_has_its_own_guidance(tiny, generator):
    inverted = dsnb.invert(
        tiny, noise((1, 3, 32, 32)), "a bear", steps=2, generator=generator, progress=False
    )
    settings = tiny.settings
    assert settings.guidance != settings.sampling_guidance
    for trajectory, guidance in (
        (inverted, settings.guidance),
        (dsnb.from_noise(tiny, 32, steps=2), settings.sampling_guidance),
    ):
        options = {"progress": False}
        usual = dsnb.decode(tiny, trajectory, "a bear", **options)
        assert torch.equal(usual, dsnb.decode(tiny, trajectory, "a bear", guidance=guidance, **options))


def test_a_method_may_have_a_guidance_of_its_own(tiny, generator):
    image, mask = noise((1, 3, 32, 32)), dsnb.masks.linear()
    options = {"progress": False}
    inverted = dsnb.invert(tiny, image, "a bear", steps=2, generator=generator, **options)
    own = dataclasses.replace(
        tiny, settings=dataclasses.replace(tiny.settings, method_guidance={"attention": 2.5})
    )
    for method, guidance in (("attention", 2.5), ("epsilon", tiny.settings.guidance)):
        asked = (inverted, ["a mosaic", "a sketch"], mask)
        usual = dsnb.blend(own, *asked, method=method, **options)
        assert torch.equal(usual, dsnb.blend(tiny, *asked, method=method, guidance=guidance, **options))


@pytest.mark.parametrize(
    "options", [{"size": 33}, {"size": (32, 32, 32)}, {"batch": 0}, {"steps": 0}, {"eta": 2}]
)
def test_bad_settings_of_noise_are_refused(tiny, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        dsnb.from_noise(tiny, **options)
