"""Tiny Stable Diffusion models with random weights: the real classes, small enough for a CPU."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import dsnb
from dsnb import plotting

torch.set_num_threads(1)  # the models below are so small that a second thread only waits


@pytest.fixture(scope="session")
def scheduler():
    return make_scheduler()


def make_scheduler(prediction_type="epsilon"):
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def make_unet(version=1, seed=0):
    """A UNet of Stable Diffusion 1.x (convolutional projections) or 2.x (linear ones), three resolutions."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2 if version == 1 else (2, 4, 4),
        use_linear_projection=version == 2,
        norm_num_groups=16,
    ).eval()


def make_pipeline(folder, version=1):
    """Saves a tiny pipeline in its real folder layout; version 2 predicts v."""
    torch.manual_seed(version)
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir(parents=True)
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (vocabulary / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (vocabulary / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,  # keeps the latents near unit variance, as a trained model's are
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=make_unet(version, seed=version),
        scheduler=make_scheduler("epsilon" if version == 1 else "v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def slow(value):
    """A parameter that only the slow tests take."""
    return pytest.param(value, marks=pytest.mark.slow)


# every family has tests of its own in test_families, so the second model is left to the slow tests
@pytest.fixture(scope="session", params=[1, slow(2)], ids=["sd1", "sd2"])
def tiny_folder(request, tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp(f"sd{request.param}"), request.param)


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """A tiny model in float32 on the CPU, loaded from its folder."""
    return dsnb.load(tiny_folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def dynamo():
    """torch._dynamo with nothing compiled before the test, no counts, and nothing left behind."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo
    torch._dynamo.reset()


@pytest.fixture
def coarse(monkeypatch):
    """Figures of few pixels, which are drawn and saved in less time."""
    monkeypatch.setattr(plotting, "DPI", 50)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
