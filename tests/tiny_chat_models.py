"""Tiny pipelines whose text encoder is a language model: real classes, random weights, tokenizers made on the spot."""

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZE = len(MARKS) + len(LETTERS)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
MISTRAL_CHAT = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}[SYS]{{ m.content[0].text }}[/SYS]"
    "{% else %}[INST]{{ m.content[0].text }}[/INST]{% endif %}{% endfor %}"
)


def qwen_tokenizer():
    """One token for each byte."""
    vocab = {token: i for i, token in enumerate([*MARKS, *LETTERS])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS[1:]})
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


def mistral_tokenizer():
    """One token for each byte. The real one is inside a PixtralProcessor, which needs torchvision."""
    marks = ["<pad>", "<s>", "</s>"]
    bytes_alone = Tokenizer(
        tokenizer_models.BPE({token: i for i, token in enumerate([*marks, *LETTERS])}, merges=[])
    )
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=2048,
    )
    tokenizer.chat_template = MISTRAL_CHAT
    return tokenizer


def language_model(layers):
    """The text part's configuration."""
    return {
        "vocab_size": SIZE,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.5,
    }


def make_flux2(kind):
    """Klein, which has an unconditional prediction, or dev, which is told its guidance."""
    torch.manual_seed(9)
    if kind != "flux2-dev":
        tokenizer = qwen_tokenizer()
        config = transformers.Qwen3Config(**language_model(27), tie_word_embeddings=True)
        text_encoder = transformers.Qwen3ForCausalLM(config).eval()
    else:
        tokenizer = mistral_tokenizer()
        vision = transformers.PixtralVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
        )
        text = transformers.MistralConfig(**language_model(30))
        config = transformers.Mistral3Config(vision_config=vision, text_config=text, image_token_index=0)
        text_encoder = transformers.Mistral3ForConditionalGeneration(config).eval()
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
    )  # fmt: skip
    vae.bn.running_mean.normal_(0, 0.1)
    vae.bn.running_var.uniform_(0.5, 1.5)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=kind == "flux2-dev",
    )  # fmt: skip
    pipe = diffusers.Flux2Pipeline if kind == "flux2-dev" else diffusers.Flux2KleinPipeline
    distilled = {"is_distilled": True} if kind == "flux2-distilled" else {}
    return pipe(
        **distilled,
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )  # fmt: skip


def make_qwen_image():
    torch.manual_seed(9)
    text = language_model(2) | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=16, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.8, 1.1, 0.9, 1.3],
    )  # fmt: skip
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    text_encoder = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    return diffusers.QwenImagePipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=qwen_tokenizer(), transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def make_z_image(vae):
    torch.manual_seed(9)
    text_encoder = transformers.Qwen3Model(transformers.Qwen3Config(**language_model(2))).eval()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
        axes_dims=[4, 4, 8], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=qwen_tokenizer(), transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )  # fmt: skip
