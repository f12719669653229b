import json
import shutil
import warnings
from hashlib import sha256

import pytest
import torch

import dsnb
from dsnb import checkpoints, models


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
    """Grids refuse rows of another version; so rows of other weights are refused only if the version changes too."""
    digest = sha256()
    for file in sorted(dsnb.data_path("models").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    assert (dsnb.__version__, digest.hexdigest()[:16]) == ("0.3.0", "72dbf1d27e3dfa90")


def test_a_folder_without_settings_gets_the_papers(tiny):
    assert tiny.settings == models.Settings(99, 10, 0.1, 1.0, 20.0, 7.5)


def test_half_precision_alone_is_found(tiny_folder, tiny, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "half")
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    model = dsnb.load(folder, device="cpu", dtype=torch.float32)
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, tiny.unet.state_dict()[name]), name


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


def test_single_file_needs_only_a_configuration(tiny, tiny_folder, tmp_path):
    if tiny.scheduler.config.prediction_type != "epsilon":
        pytest.skip("one version is enough")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be opened.*config='FOLDER'"):
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


def test_the_libraries_progress_bars_are_left_as_they_were():
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        with models.quietly():
            pass
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()
    with models.quietly():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_sources_that_are_no_models(tmp_path, tiny_folder, monkeypatch):
    with pytest.raises(ValueError, match="no readable model_index.json"):
        dsnb.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        dsnb.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        dsnb.load("model.safetensors")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionXLPipeline"):
        dsnb.load(tmp_path)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="allow_pickle=True"):
        dsnb.load(pickle)


def test_pickled_weights_in_a_folder_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="cannot be opened"):
        dsnb.load(folder)


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


def test_unknown_settings_in_a_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "settings")
    (folder / "dsnb.json").write_text('{"step": 3}')
    with pytest.raises(ValueError, match="unknown settings.*step"):
        dsnb.load(folder)
