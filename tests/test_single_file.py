"""Single files in the key layouts of the original code, written here from tiny diffusers folders."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import save

import dsnb

CPU = {"device": "cpu", "dtype": "fp32"}

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = {  # of two blocks, which both halves count from the image
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "down_blocks": "down", "up_blocks.0": "up.1", "up_blocks.1": "up.0",
    "resnets": "block", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
}  # fmt: skip
OPEN_CLIP = {
    "text_model.": "", "embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final",
    "embeddings.position_embedding.weight": "positional_embedding", "encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_", "self_attn": "attn", "fc1": "c_fc", "fc2": "c_proj",
    "text_projection.weight": "text_projection",
}  # fmt: skip
JOINT = {  # the transformer of Stable Diffusion 3; half of a block is for the image, x, and half for the text
    "pos_embed.proj": "x_embedder.proj", "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
    "transformer_blocks": "joint_blocks", "net.0.proj": "fc1", "net.2": "fc2",
    ".norm1.linear": ".x_block.adaLN_modulation.1", ".ff.": ".x_block.mlp.",
    ".norm1_context.linear": ".context_block.adaLN_modulation.1", ".ff_context.": ".context_block.mlp.",
    ".attn.qkv": ".x_block.attn.qkv", ".attn.to_out.0": ".x_block.attn.proj",
    ".attn.add_qkv": ".context_block.attn.qkv", ".attn.to_add_out": ".context_block.attn.proj",
    ".attn.norm_added_": ".context_block.attn.ln_", ".attn.norm_": ".x_block.attn.ln_",
    ".attn2.qkv": ".x_block.attn2.qkv", ".attn2.to_out.0": ".x_block.attn2.proj",
    ".attn2.norm_": ".x_block.attn2.ln_",
}  # fmt: skip
SWAPPED = ("norm_out.", "transformer_blocks.1.norm1_context.")  # of two blocks


def rename(key, names):
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def fuse(tensors, projection, whole):
    """The projections q, k and v as one tensor."""
    q, k, v = names = [projection.format(letter) for letter in "qkv"]
    fused = {key: value for key, value in tensors.items() if not any(name in key for name in names)}
    for key in tensors:
        if q in key:
            three = [tensors[key], tensors[key.replace(q, k)], tensors[key.replace(q, v)]]
            fused[key.replace(q, whole)] = torch.cat(three)
    return fused


def unet(tensors):
    """Its blocks are counted through. Each of them has one layer on the way down and two on the way up."""
    names = dict(UNET)
    for block in range(3):
        down, up = 2 * block + 1, 2 * block
        attends = any(key.startswith(f"up_blocks.{block}.attentions") for key in tensors)
        names |= {
            f"down_blocks.{block}.resnets.0": f"input_blocks.{down}.0",
            f"down_blocks.{block}.attentions.0": f"input_blocks.{down}.1",
            f"down_blocks.{block}.downsamplers.0.conv": f"input_blocks.{down + 1}.0.op",
            f"up_blocks.{block}.resnets.0": f"output_blocks.{up}.0",
            f"up_blocks.{block}.attentions.0": f"output_blocks.{up}.1",
            f"up_blocks.{block}.resnets.1": f"output_blocks.{up + 1}.0",
            f"up_blocks.{block}.attentions.1": f"output_blocks.{up + 1}.1",
            f"up_blocks.{block}.upsamplers.0": f"output_blocks.{up + 1}.{2 if attends else 1}",
        }
    return {
        rename(rename(key, RESNET) if "resnets" in key else key, names): value
        for key, value in tensors.items()
    }


def vae(tensors):
    """The projections of its attention are 1 x 1 convolutions."""
    return {
        rename(key, VAE): value[:, :, None, None] if value.dim() == 2 else value
        for key, value in tensors.items()
    }


def clip(tensors):
    return {key if key.startswith("text_") else f"text_model.{key}": value for key, value in tensors.items()}


def clip_alone(tensors):
    """CLIP without its projection, which is the identity."""
    return {key: value for key, value in clip(tensors).items() if "text_projection" not in key}


def open_clip(tensors):
    """Its projection multiplies from the other side."""
    tensors = fuse(tensors, "{}_proj.", "in_proj_")
    return {
        rename(key, OPEN_CLIP): value.T if "text_projection" in key else value
        for key, value in tensors.items()
    }


def t5(tensors):
    """Its embedding is there twice."""
    return tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


def joint(tensors):
    """Its last two modulations have the shift before the scale."""
    tensors = fuse(fuse(tensors, "to_{}.", "qkv."), "add_{}_proj.", "add_qkv.")
    return {
        rename(key, JOINT): torch.cat(value.chunk(2)[::-1]) if key.startswith(SWAPPED) else value
        for key, value in tensors.items()
    }


UNET_AND_VAE = {"unet": ("model.diffusion_model.", unet), "vae": ("first_stage_model.", vae)}
LAYOUTS = {  # of each part: its prefix in the file, and its tensors there
    "sd1": {**UNET_AND_VAE, "text_encoder": ("cond_stage_model.transformer.", clip)},
    "sd2": {**UNET_AND_VAE, "text_encoder": ("cond_stage_model.model.", open_clip)},
    "sdxl": {
        **UNET_AND_VAE,
        "text_encoder": ("conditioner.embedders.0.transformer.", clip),
        "text_encoder_2": ("conditioner.embedders.1.model.", open_clip),
    },
    "sd3": {
        "transformer": ("model.diffusion_model.", joint),
        "vae": ("first_stage_model.", vae),
        "text_encoder": ("text_encoders.clip_l.transformer.", clip_alone),
        "text_encoder_2": ("text_encoders.clip_g.transformer.", clip),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.", t5),
    },
}
UNREAD = {  # shapes of further tensors in such a file; Stable Diffusion 2 does not read CLIP's last layer
    "sd1": {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
        "alphas_cumprod": (1000,),
    },
    "sd2": {
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight": (96, 32),
        "cond_stage_model.model.transformer.resblocks.23.ln_1.bias": (32,),
        "cond_stage_model.model.text_projection": (32, 32),
        "cond_stage_model.model.logit_scale": (),
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.logit_scale": (),
    },
    "sd3": {},
}


def vary(folder):
    """Norms and biases begin as ones and zeros, among which a mistake would not show."""
    for file in folder.glob("*/*.safetensors"):
        tensors = load_file(file)
        tensors |= {key: torch.rand_like(value) for key, value in tensors.items() if value.dim() == 1}
        save_file(tensors, file, {"format": "pt"})


def write_original(kind, folder, file):
    tensors = {key: torch.zeros(shape) for key, shape in UNREAD[kind].items()}
    for part, (prefix, layout) in LAYOUTS[kind].items():
        weights = load_file(next((folder / part).glob("*.safetensors")))
        tensors |= {prefix + key: value.contiguous() for key, value in layout(weights).items()}
    save_file(tensors, file)
    return file


@pytest.fixture(scope="module", params=LAYOUTS)
def original(request, tmp_path_factory):
    """A family, its tiny folder, and a file with the same weights."""
    kind = request.param
    folder = save(kind, tmp_path_factory.mktemp(kind))
    vary(folder)
    return kind, folder, write_original(kind, folder, folder.parent / "model.safetensors")


def test_a_single_file_opens_bit_for_bit_like_the_folder(original):
    kind, folder, file = original
    model, expected = dsnb.load(file, **CPU, config=folder), dsnb.load(folder, **CPU)
    assert model.family.name == expected.family.name
    assert dict(model.pipe.scheduler.config) == dict(expected.pipe.scheduler.config)
    for part in LAYOUTS[kind]:
        opened, wanted = (getattr(each.pipe, part).state_dict() for each in (model, expected))
        assert set(opened) == set(wanted)
        for name, value in wanted.items():
            assert torch.equal(opened[name], value), f"{part}.{name}"
    draw = lambda model: dsnb.decode(
        model, dsnb.from_noise(model, (16, 24), seed=1, steps=2), "a", progress=False
    )
    assert torch.equal(draw(model), draw(expected))


def test_a_single_file_that_lacks_tensors_is_refused(original, tmp_path):
    """One tensor of a part, or a whole part; some files of Stable Diffusion 3 have no text encoders."""
    kind, folder, file = original
    tensors = load_file(file)
    for prefix, _ in LAYOUTS[kind].values():
        keys = sorted(key for key in tensors if key.startswith(prefix) and key not in UNREAD[kind])
        for gone in (keys[-1:], keys):
            kept = {key: value for key, value in tensors.items() if key not in gone}
            save_file(kept, tmp_path / "model.safetensors")
            with pytest.raises(ValueError, match="cannot be opened"):
                dsnb.load(tmp_path / "model.safetensors", **CPU, config=folder)


@pytest.mark.parametrize("original", ["sd3"], indirect=True)
def test_a_single_file_may_name_the_embedding_of_t5_once(original, tmp_path):
    _, folder, file = original
    tensors = load_file(file)
    embedding = tensors.pop("text_encoders.t5xxl.transformer.encoder.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    t5 = dsnb.load(tmp_path / "model.safetensors", **CPU, config=folder).pipe.text_encoder_3
    assert torch.equal(t5.encoder.embed_tokens.weight, embedding)


@pytest.mark.parametrize("key", ["single_stream_modulation.lin.weight", "layers.0.adaLN_modulation.0.weight"])
def test_a_single_file_with_a_transformer_alone_is_refused(tmp_path, key):
    """FLUX.2 and Z-Image; their original files have no text encoder and no autoencoder."""
    save_file({key: torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds only a transformer .*; open the folder or hub id"):
        dsnb.load(tmp_path / "model.safetensors", device="cpu")
