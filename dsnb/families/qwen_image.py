"""Qwen-Image: the text of a vision-language model, a transformer with joint attention over packed latents.

The network makes the positions and the padding mask of its text itself, so its attention takes no bias.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import FlowFamily, Prompts, Settings


class QwenImage(FlowFamily):
    name = "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    attention = "plain joint"
    linear = False
    time_unit = 1000
    settings = Settings(steps=50, skip=5, guidance=6.0, sampling_guidance=4.0)

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if pipe.transformer.config.guidance_embeds:
            raise NotImplementedError(
                "the transformer takes its guidance as an embedding (guidance_embeds), which is not supported for "
                "this family; use a model without it"
            )

    def channels(self, pipe: Any) -> int:
        return pipe.transformer.config.in_channels // 4

    def encode_image(self, pipe: Any, pixels: Tensor) -> Tensor:
        """The autoencoder is for videos; an image is one frame."""
        return pipe.vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]

    def decode_latents(self, pipe: Any, latents: Tensor) -> Tensor:
        return pipe.vae.decode(latents[:, :, None]).sample[:, :, 0]

    def latent_scale(self, pipe: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
        """A mean and a deviation for each channel."""
        config = pipe.vae.config
        mean, deviation = (
            torch.tensor(part)[None, :, None, None] for part in (config.latents_mean, config.latents_std)
        )
        return mean, 1 / deviation

    def text_room(self, pipe: Any) -> tuple[Any, int]:
        return pipe.tokenizer, pipe.tokenizer_max_length

    def text_length(self, pipe: Any) -> int:
        return pipe.tokenizer_max_length

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        """The longest row has no padding."""
        text, valid = pipe.encode_prompt(list(prompts), pipe._execution_device)
        length = torch.full((len(text),), text.shape[1]) if valid is None else valid.sum(1)
        return Prompts(text, length=length.to(text.device))

    def guide(self, uncond: Tensor, cond: Tensor, guidance: Tensor | float) -> Tensor:
        """Guidance; then each 2 x 2 patch gets the norm of the conditional prediction."""
        patches = lambda x: x.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (..., C, h / 2, 2, w / 2, 2)
        norm = lambda x: torch.linalg.vector_norm(x, dim=(-5, -3, -1), keepdim=True)
        guided, cond = patches(super().guide(uncond, cond, guidance)), patches(cond)
        return (guided * (norm(cond) / norm(guided))).flatten(-2).flatten(-3, -2)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        batch, channels, height, width = x_t.shape
        out = pipe.transformer(
            hidden_states=pipe._pack_latents(x_t, batch, channels, height, width),
            timestep=timestep.expand(batch) / 1000,
            encoder_hidden_states=prompts.text,
            encoder_hidden_states_mask=prompts.valid,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
        ).sample
        factor = pipe.vae_scale_factor
        return pipe._unpack_latents(out, height * factor, width * factor, factor)[:, :, 0]
