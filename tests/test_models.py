import dataclasses
import json
import shutil
import socket
import threading
import warnings
from hashlib import sha256

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import (
    DiffusionPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file

import dsnb
from dsnb import checkpoints, masks, models, weights
from dsnb.regional import regional_context


def test_the_bundled_model_opens_with_its_own_settings():
    model = dsnb.load(device="cpu", dtype=torch.float32)
    folder = dsnb.data_path("models", checkpoints.BUNDLED)
    assert model.settings == models.Settings(**json.loads((folder / "dsnb.json").read_text()))
    assert model.image_size % model.latent_factor == 0
    picture = dsnb.prompts.pictures()[0]
    image = dsnb.read_image(picture.file, model)
    again = models.decode_latents(model, models.encode_image(model, image))
    assert again.shape == image.shape and (again - image).abs().mean() < 0.1
    assert len(model.tokenizer(dsnb.prompts.prompt("minecraft", picture.caption)).input_ids) <= 77


def test_other_weights_are_another_version():
    """Tables and texts name the bundled model by the version, so other weights need another one."""
    digest = sha256()
    for file in sorted(dsnb.data_path("models").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    assert (dsnb.__version__, digest.hexdigest()[:16]) == ("0.5.0", "a5daedf1ec07e93a")


def test_a_folder_without_settings_gets_the_papers(tiny):
    assert tiny.settings == models.Settings(99, 10, 0.1, 1.0, 20.0, 7.5)


@pytest.mark.parametrize("sharded", [False, True])
def test_half_precision_alone_is_found(tiny_folder, tmp_path, sharded):
    expected = dsnb.load(tiny_folder, device="cpu", dtype=torch.float32).unet.state_dict()
    folder = shutil.copytree(tiny_folder, tmp_path / "half")
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    if sharded:
        unet = dsnb.load(tiny_folder, device="cpu", dtype=torch.float32).unet
        shutil.rmtree(folder / "unet")
        unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="1MB")
        assert list(folder.glob("unet/*.fp16-00001-of-*.safetensors"))
    model = dsnb.load(folder, device="cpu", dtype=torch.float32)
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("unet/config.json", {"cross_attention_dim": 48}, "width 48 and the text encoder gives 32"),
    ],
)
def test_what_would_be_drawn_wrongly_is_refused(tiny, tiny_folder, tmp_path, part, change, words):
    folder = shutil.copytree(tiny_folder, tmp_path / "changed")
    if part.startswith("unet"):
        unet = type(tiny.unet).from_config({**tiny.unet.config, **change})
        unet.save_pretrained(folder / "unet")
    else:
        config = json.loads((folder / part).read_text())
        (folder / part).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words):
        dsnb.load(folder, device="cpu")


def test_a_single_file_that_holds_no_weights(tiny_folder, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be opened: it holds no readable weights"):
        dsnb.load(file, config=tiny_folder)


def test_prompts_and_predictions_have_the_promised_shapes(tiny):
    context = models.encode_prompts(tiny, ["", "a bear"])
    assert context.text.shape == (2, 77, 32)
    x = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    eps = models.predict(tiny, x, torch.tensor(500), context)
    assert eps.shape == x.shape and eps.dtype == torch.float32


def test_a_long_prompt_warns_with_what_was_cut(tiny):
    words = "bear " * 30 + "in front of the very last castle"
    with pytest.warns(UserWarning, match="castle"):
        models.encode_prompts(tiny, [words])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models.encode_prompts(tiny, ["a bear"])


def test_one_text_is_no_list_of_prompts(tiny):
    with pytest.raises(TypeError, match="prompts must be a list of texts, got 'a bear'"):
        models.encode_prompts(tiny, "a bear")


def test_a_text_encoder_of_another_dtype_is_read_in_the_networks(tiny_folder):
    model = dsnb.load(tiny_folder, device="cpu", dtype=torch.float32)
    model.unet.to(torch.bfloat16)
    assert models.encode_prompts(model, ["a bear"]).text.dtype == torch.bfloat16
    trajectory = dsnb.from_noise(model, 16, steps=2)
    assert dsnb.decode(model, trajectory, "a bear", progress=False).isfinite().all()


def test_device_and_dtype_are_chosen_and_can_be_overridden(tiny_folder):
    assert checkpoints.choose_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
    model = dsnb.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tiny_folder):
    with pytest.raises(ValueError, match="no CUDA GPU is available"):
        dsnb.load(tiny_folder, device="cuda")


def test_a_device_that_is_none(tiny_folder):
    with pytest.raises(ValueError, match="device 'gpu' is unknown; use 'cuda'"):
        dsnb.load(tiny_folder, device="gpu")
    with pytest.raises(ValueError, match="device 'meta' holds no numbers"):
        dsnb.load(tiny_folder, device="meta")
    for known in ("hpu", "vulkan"):
        with pytest.raises(ValueError, match=f"device '{known}' was asked for, but it is not available"):
            dsnb.load(tiny_folder, device=known)


def test_the_libraries_progress_bars_are_left_as_they_were():
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        with models.quietly():
            pass
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()
    before, first, second = logging.get_verbosity(), models.quietly(), models.quietly()
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):  # two threads
        step()
        assert not logging.is_progress_bar_enabled() and logging.get_verbosity() == logging.ERROR
    second.__exit__(None, None, None)
    assert logging.is_progress_bar_enabled() and logging.get_verbosity() == before


def test_sources_that_are_no_models(tmp_path, tiny_folder, monkeypatch):
    with pytest.raises(ValueError, match="no readable model_index.json"):
        dsnb.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        dsnb.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        dsnb.load("model.safetensors")
    for source in (["a", "b"], b"drawn-world", 42):
        with pytest.raises(TypeError, match="source must be a folder, a file, a hub id"):
            dsnb.load(source)
    with pytest.raises(OSError, match="could not be fetched from the hub"):
        dsnb.load("a\0b")
    with pytest.raises(ValueError, match="config is for a single file"):
        dsnb.load(tiny_folder, config=tiny_folder)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionControlNetPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionControlNetPipeline; needed.*from_pipe"):
        dsnb.load(tmp_path)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="allow_pickle=True"):
        dsnb.load(pickle)


def test_pickled_weights_in_a_folder_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "unsafe")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="unet cannot be opened: it has only pickled.*allow_pickle=True"):
        dsnb.load(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match="unet cannot be opened: there are no weights") as error:
        dsnb.load(folder)
    assert "allow_pickle" not in str(error.value), "the hint stands only where there is a pickle"


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_that_lack_tensors_are_refused(tiny_folder, tmp_path, part):
    folder = shutil.copytree(tiny_folder, tmp_path / "incomplete")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    gone = sorted(tensors)[:2]
    save_file({name: tensors[name] for name in set(tensors) - set(gone)}, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=f"{part} cannot be opened: 2 tensors are missing.*{', '.join(gone)}"
    ):
        dsnb.load(folder)


def test_weights_in_several_files_that_lack_a_tensor_are_refused(tiny, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "incomplete", ignore=lambda *_: {"unet"})
    tiny.unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    file = max((folder / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    tensors.pop(gone := max(tensors))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=f"unet cannot be opened: 1 tensors are missing from its file: {gone}"
    ):
        dsnb.load(folder)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_git_lfs_pointers_are_named_as_such(tiny_folder, tmp_path, part):
    folder = shutil.copytree(tiny_folder, tmp_path / "pointers")
    (file,) = (folder / part).glob("*.safetensors")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for source in (folder, file):
        with pytest.raises(ValueError, match="is a Git LFS pointer.*git lfs pull"):
            dsnb.load(source)


def test_the_bundled_model_opens_by_its_name():
    assert dsnb.load("drawn-world", device="cpu", dtype="fp32").name == "drawn-world"


def test_any_tool_opens_the_bundled_model():
    pipe = DiffusionPipeline.from_pretrained(dsnb.data_path("models", "drawn-world"))
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a bear", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp16", torch.float16), ("torch.bfloat16", torch.bfloat16), ("float32", torch.float32)],
)
def test_a_dtype_may_be_a_name(tiny_folder, name, dtype):
    model = dsnb.load(tiny_folder, device="cpu", dtype=name)
    assert {model.unet.dtype, model.text_encoder.dtype, model.vae.dtype} == {dtype}


@pytest.mark.parametrize("dtype", ["foo", 16, torch.int8, ""])
def test_what_is_no_dtype_is_refused(tiny_folder, dtype):
    with pytest.raises(ValueError, match="dtype must be a torch.dtype or one of float32"):
        dsnb.load(tiny_folder, dtype=dtype)


def test_a_pipeline_is_used_as_it_is(tiny, tiny_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    model = dsnb.load(pipe)
    assert model.pipe is pipe and model.family is tiny.family and model.settings == tiny.settings
    with pytest.raises(ValueError, match="dtype is the pipeline's own"):
        dsnb.load(pipe, dtype="fp16")
    with pytest.raises(ValueError, match="holds a StableDiffusionImg2ImgPipeline.*from_pipe"):
        dsnb.load(StableDiffusionImg2ImgPipeline.from_pipe(pipe))


def test_an_offloaded_pipeline_draws_the_same(tiny, tiny_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert pipe.unet.device.type == "meta" and dsnb.load(pipe).device.type == "cpu"
    sequential = pipe
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = []
    for model in (dsnb.load(pipe), tiny):
        generator = torch.Generator().manual_seed(1)
        trajectory = dsnb.invert(model, image, "a", steps=2, skip=0, generator=generator, progress=False)
        trajectory = dataclasses.replace(trajectory, model=model.name)
        for method in ("epsilon", "attention"):
            draws.append(
                dsnb.blend(model, trajectory, ["a", "b"], masks.linear(), method=method, progress=False)
            )
    torch.testing.assert_close(draws[:2], draws[2:], atol=1e-3, rtol=0)  # another memory layout
    for offload in (pipe, sequential):
        with (
            pytest.raises(NotImplementedError, match="layer by layer.*enable_model_cpu_offload"),
            regional_context(offload.unet, masks.linear(), (8, 8)),
        ):
            pass


def test_weights_that_are_there_only_while_the_network_runs(tiny, tiny_folder, monkeypatch):
    """As after `enable_model_cpu_offload`: hooks must not read weights between the calls of the network."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    freed = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(1))
    weights = dict(pipe.unet.state_dict())
    hook = {"offload": True, "weights_map": weights, "place_submodules": True}
    add_hook_to_module(pipe.unet, AlignDevicesHook("cpu", **hook))
    assert pipe.unet.conv_in.weight.is_meta
    model, trajectory = dsnb.load(pipe), dsnb.from_noise(tiny, (32, 48), steps=4)
    for method in ("epsilon", "attention", "regional", "combined"):
        images = [
            dsnb.blend(which, dataclasses.replace(trajectory, model=which.name), ["a", "b"], masks.linear(),
                       method=method, progress=False)
            for which in (model, tiny)
        ]  # fmt: skip
        torch.testing.assert_close(*images, atol=1e-3, rtol=0)
    assert len(freed) == 4 and pipe.unet.conv_in.weight.is_meta


@pytest.mark.parametrize(
    ("component", "config", "error", "words"),
    [
        ("unet", {"time_cond_proj_dim": 8}, NotImplementedError, "distilled for latent consistency"),
        ("scheduler", FlowMatchEulerDiscreteScheduler(), ValueError, "FlowMatchEulerDiscreteScheduler"),
        ("scheduler", EDMEulerScheduler(), ValueError, "EDMEulerScheduler.*alphas_cumprod"),
    ],
)
def test_parts_that_would_be_ignored_without_a_word(tiny, component, config, error, words):
    if isinstance(config, dict):
        config = type(tiny.unet).from_config({**tiny.unet.config, **config})
    pipe = StableDiffusionPipeline(
        **{**tiny.pipe.components, component: config}, requires_safety_checker=False
    )
    with pytest.raises(error, match=words):
        dsnb.load(pipe)


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()])
def test_another_scheduler_after_loading_is_refused_too(tiny, scheduler):
    pipe = StableDiffusionPipeline(**tiny.pipe.components, requires_safety_checker=False)
    model = dsnb.load(pipe)
    trajectory = dsnb.from_noise(model, (16, 16), steps=2)
    pipe.scheduler = scheduler
    for draw in (
        lambda: dsnb.decode(model, trajectory, "a bear", progress=False),
        lambda: dsnb.from_noise(model, (16, 16), steps=2),
        lambda: dsnb.invert(model, torch.zeros(1, 3, 32, 32), "a bear", steps=2, progress=False),
    ):
        with pytest.raises(ValueError, match=type(scheduler).__name__):
            draw()


@pytest.mark.parametrize("scheduler", [LCMScheduler(), EulerDiscreteScheduler(timestep_spacing="trailing")])
def test_schedulers_of_distilled_models_are_warned_of(tiny, scheduler):
    pipe = StableDiffusionPipeline(
        **{**tiny.pipe.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    with pytest.warns(UserWarning, match="99 steps and guidance 20; such a model wants about 4"):
        dsnb.load(pipe)


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_truncated_weights(tiny_folder, tmp_path, part):
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    weights = folder / part
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be opened"):
        dsnb.load(folder)


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline.*bundled.*local folder"):
        dsnb.load("nobody/no-such-model")


@pytest.fixture
def hub(tiny_folder, monkeypatch):
    """`hub(download)` stands for the hub, whose models are downloaded by this function → the files asked for later."""

    def stand_in(download):
        index, asked = json.loads((tiny_folder / "model_index.json").read_text()), []
        monkeypatch.setattr(weights, "_ask_hub", lambda *file: None)
        monkeypatch.setattr(weights.DiffusionPipeline, "load_config", lambda name: index)
        monkeypatch.setattr(weights.DiffusionPipeline, "download", download)
        monkeypatch.setattr(weights, "hf_hub_download", lambda *file: asked.append(file))
        return asked

    return stand_in


def test_a_hub_model_in_half_precision_only(tiny_folder, hub):
    def download(name, variant, **options):
        if variant is None:
            raise OSError("no safetensors in full precision")
        return tiny_folder

    asked = hub(download)
    assert weights.fetch("somebody/half", False) == tiny_folder
    assert asked == [("somebody/half", "dsnb.json")]


def test_a_hub_model_with_pickled_weights_only(tiny_folder, tmp_path, hub):
    folder = shutil.copytree(tiny_folder, tmp_path / "pickled")
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".bin"))

    def download(name, variant, **options):
        if variant is not None:
            raise ValueError("no such modeling files are available")
        return folder

    hub(download)
    assert weights.fetch("somebody/pickled", True) == folder


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    import huggingface_hub.constants

    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                connection, _ = server.accept()
                asked.append(connection.recv(18))
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", here)
        template = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(OSError, match="offline.*bundled.*local folder"):
            dsnb.load("nobody/no-such-model")
    # One question. The hub's client may repeat it, since the connection was closed, and may also ask for its own list.
    about = [question for question in asked if not question.startswith(b"GET /api/agent-")]
    assert set(about) == {b"HEAD /nobody/no-su"} and len(about) <= 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 3}', "unknown settings.*step"),
        ("{", "dsnb.json"),
        ("[1]", "dsnb.json"),
        ('{"steps": "3"}', "steps must be a whole number.*'3'"),
        ('{"eta": 0}', "eta must be a finite number above 0.*got 0"),
        ('{"guidance": NaN}', "guidance must be a finite number.*nan"),
        ('{"method_guidance": 3}', "method_guidance must be a dict"),
        ('{"method_guidance": {"atention": 3}}', "method_guidance.*did you mean 'attention'"),
        ('{"method_guidance": {"attention": "3"}}', "method_guidance of attention must be a"),
        ('{"steps": 10}', r"skip must be below steps \(10\), got 10"),
    ],
)
def test_bad_settings_in_a_folder(tiny_folder, tmp_path, text, words):
    folder = shutil.copytree(tiny_folder, tmp_path / "settings")
    (folder / "dsnb.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        dsnb.load(folder)
