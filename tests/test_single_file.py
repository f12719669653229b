"""A single file in the key layout of the original Stable Diffusion code, written here from a tiny diffusers folder."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import dsnb

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
LAYERS = 1  # per block of the tiny UNet


def unet_key(key):
    """One key of a diffusers UNet in the original layout, whose blocks are counted through."""
    for ours, theirs in ENDS.items():
        if key.startswith(ours + "."):
            return theirs + key.removeprefix(ours)
    part = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)|mid_block\.(\w+)\.(\d+)\.(.*)", key)
    way, block, kind, layer, rest, middle, which, tail = part.groups()
    if middle:
        index = 1 if middle == "attentions" else 2 * int(which)
        return f"middle_block.{index}.{resnet(tail) if middle == 'resnets' else tail}"
    block, layer = int(block), int(layer)
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (LAYERS + 1)}.0.op.{rest.removeprefix('conv.')}"
        place = f"input_blocks.{1 + block * (LAYERS + 1) + layer}"
    else:
        if kind == "upsamplers":  # after the attention, where the block has one
            return f"output_blocks.{block * (LAYERS + 1) + LAYERS}.{1 if block == 0 else 2}.{rest}"
        place = f"output_blocks.{block * (LAYERS + 1) + layer}"
    return f"{place}.0.{resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"


def resnet(key):
    name, rest = key.split(".", 1)
    return f"{RESNET[name]}.{rest}"


def vae_key(key, blocks=2):
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda f: f"up.{blocks - 1 - int(f[1])}.block.{f[2]}", key
    )
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda f: f"up.{blocks - 1 - int(f[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda f: f"mid.block_{int(f[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm").replace("to_out.0", "proj_out")
    return re.sub(r"mid_block\.attentions\.0\.(?:to_)?(\w+)", r"mid.attn_1.\1", key)


def write_original(folder, file):
    load = lambda part: load_file(next((folder / part).glob("*.safetensors")))
    tensors = {f"model.diffusion_model.{unet_key(key)}": value for key, value in load("unet").items()}
    for key, value in load("vae").items():
        attention = "mid_block.attentions" in key and key.endswith("weight") and "norm" not in key
        value = value[:, :, None, None] if attention else value  # 1 x 1 convolutions there
        tensors[f"first_stage_model.{vae_key(key)}"] = value
    for key, value in load("text_encoder").items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


@pytest.fixture(scope="module")
def original(tiny, tiny_folder, tmp_path_factory):
    if tiny.scheduler.config.prediction_type != "epsilon":
        pytest.skip("a file of version 1 is enough")
    return write_original(tiny_folder, tmp_path_factory.mktemp("original") / "model.safetensors")


def test_a_single_file_opens_bit_for_bit_like_the_folder(tiny, tiny_folder, original):
    model = dsnb.load(original, device="cpu", dtype="fp32", config=tiny_folder)
    for part in ("unet", "vae", "text_encoder"):
        opened, expected = (getattr(m, part).state_dict() for m in (model, tiny))
        assert set(opened) == set(expected)
        for name, value in expected.items():
            assert torch.equal(opened[name], value), f"{part}.{name}"


@pytest.mark.parametrize(
    "gone",
    [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_a_single_file_that_lacks_tensors_is_refused(tiny_folder, original, tmp_path, gone):
    tensors = load_file(original)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be opened"):
        dsnb.load(tmp_path / "model.safetensors", device="cpu", dtype="fp32", config=tiny_folder)


@pytest.mark.parametrize("key", ["single_stream_modulation.lin.weight", "layers.0.adaLN_modulation.0.weight"])
def test_a_single_file_with_a_transformer_alone_is_refused(tmp_path, key):
    """FLUX.2 and Z-Image; their original files have no text encoder and no autoencoder."""
    save_file({key: torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds only a transformer .*; open the folder or hub id"):
        dsnb.load(tmp_path / "model.safetensors", device="cpu")
