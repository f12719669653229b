"""FLUX.1: a T5 text and a pooled CLIP vector, a transformer with joint attention over packed latents.

In the dev model, guidance is an input of the network. The schnell model has none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .base import FlowFamily, Prompts, Settings

TEXT_LENGTH = 512  # tokens of T5, as in the pipeline itself


class Flux(FlowFamily):
    name = "FLUX.1"
    pipelines: tuple[str, ...] = ("FluxPipeline",)
    attention = "joint"
    text_first = True
    time_unit = 1000
    settings = Settings(steps=28, skip=3, encoder_guidance=1.0, guidance=5.5, sampling_guidance=3.5)

    def settings_of(self, pipe: Any) -> Settings:
        if pipe.transformer.config.guidance_embeds:
            return self.settings
        return replace(self.settings, steps=4, skip=0, guidance=1.0, sampling_guidance=1.0)

    def guided(self, pipe: Any) -> bool:
        return False

    def tell_guidance(self, pipe: Any, guidance: Tensor) -> Tensor | None:
        if pipe.transformer.config.guidance_embeds:
            return guidance.float()
        if (guidance != 1).any():
            raise ValueError(
                f"guidance must be 1 for this model, got {guidance.tolist()}: it is distilled, takes no guidance and "
                "has no unconditional prediction; it can only interpolate styles"
            )
        return None

    def channels(self, pipe: Any) -> int:
        return pipe.transformer.config.in_channels // 4

    def text_room(self, pipe: Any) -> tuple[Any, int]:
        return pipe.tokenizer_2, TEXT_LENGTH - 1

    def text_length(self, pipe: Any) -> int:
        return TEXT_LENGTH

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        text, pooled, _ = pipe.encode_prompt(
            list(prompts), None, pipe._execution_device, 1, max_sequence_length=TEXT_LENGTH
        )
        return Prompts(text, pooled)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        batch, channels, height, width = x_t.shape
        ids = pipe._prepare_latent_image_ids(batch, height // 2, width // 2, x_t.device, x_t.dtype)
        out = pipe.transformer(
            hidden_states=pipe._pack_latents(x_t, batch, channels, height, width),
            timestep=timestep.expand(batch) / 1000,
            guidance=prompts.guidance,
            encoder_hidden_states=prompts.text,
            pooled_projections=prompts.pooled,
            txt_ids=torch.zeros(prompts.text.shape[1], 3).to(x_t),
            img_ids=ids,
            joint_attention_kwargs=text_first(prompts, x_t.dtype),
        ).sample
        factor = pipe.vae_scale_factor
        return pipe._unpack_latents(out, height * factor, width * factor, factor)


def text_first(prompts: Prompts, dtype: torch.dtype) -> dict[str, Tensor]:
    """The bias of the sequence [image, text], reordered for a network with the sequence [text, image]."""
    if prompts.bias is None:
        return {}
    length = prompts.text.shape[1]
    return {"attention_mask": prompts.bias.roll((length, length), (0, 1)).to(dtype)}
