"""Stable Diffusion XL: two CLIP texts side by side and a pooled vector, a UNet with cross-attention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .base import Prompts, Settings
from .stable_diffusion import UNetFamily


class StableDiffusionXL(UNetFamily):
    name = "Stable Diffusion XL"
    pipelines = ("StableDiffusionXLPipeline",)
    settings = Settings(steps=50, skip=5, guidance=7.5, sampling_guidance=5.0)

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if pipe.unet.config.addition_embed_type != "text_time":
            raise ValueError(
                f"the UNet's addition_embed_type is {pipe.unet.config.addition_embed_type!r}; Stable Diffusion XL "
                "has 'text_time'"
            )

    @contextmanager
    def autoencoder(self, pipe: Any) -> Iterator[Any]:
        """The autoencoder; in float32 while the block runs, if its config says that it overflows in float16."""
        before = pipe.vae.dtype
        overflows = before == torch.float16 and pipe.vae.config.get("force_upcast")
        try:
            if overflows:
                pipe.vae.to(torch.float32)
            yield pipe.vae
        finally:
            if overflows:
                pipe.vae.to(before)

    def latent_scale(self, pipe: Any, height: int, width: int) -> tuple[Any, Any]:
        """Some of this family's autoencoders have a mean and a deviation for each channel."""
        mean, deviation = pipe.vae.config.get("latents_mean"), pipe.vae.config.get("latents_std")
        if mean is None or deviation is None:
            return super().latent_scale(pipe, height, width)
        mean, deviation = (torch.tensor(part)[None, :, None, None] for part in (mean, deviation))
        return mean, pipe.vae.config.scaling_factor / deviation

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        """An empty prompt becomes zeros if the model was trained with zeros, as in the pipeline itself."""
        text, _, pooled, _ = pipe.encode_prompt(list(prompts), None, pipe._execution_device, 1, False)
        if pipe.config.get("force_zeros_for_empty_prompt"):
            said = torch.tensor([prompt != "" for prompt in prompts]).to(text)
            text, pooled = text * said[:, None, None], pooled * said[:, None]
        return Prompts(text, pooled)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        """The size inputs of the network are those of an image of this size without a crop."""
        height, width = (side * pipe.vae_scale_factor for side in x_t.shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]] * len(x_t)).to(x_t)
        added = {"text_embeds": prompts.pooled, "time_ids": ids}
        return pipe.unet(x_t, timestep, encoder_hidden_states=prompts.text, added_cond_kwargs=added).sample
