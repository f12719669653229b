"""Stable Diffusion 1 and 2: one CLIP text, a UNet with cross-attention."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Family, Prompts


class StableDiffusion(Family):
    name = "Stable Diffusion 1/2"
    pipelines = ("StableDiffusionPipeline",)

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        check_unet(pipe)
        width, given = pipe.unet.config.cross_attention_dim, pipe.text_encoder.config.hidden_size
        if width != given:
            raise ValueError(
                f"the UNet takes texts of width {width} and the text encoder gives {given}; they must be equal"
            )

    def check_scheduler(self, scheduler: Any) -> None:
        check_diffusion(scheduler)

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        text, _ = pipe.encode_prompt(list(prompts), pipe._execution_device, 1, False)
        return Prompts(text)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        return pipe.unet(x_t, timestep, encoder_hidden_states=prompts.text).sample


def check_unet(pipe: Any) -> None:
    """Raises ValueError or NotImplementedError for a UNet that would silently give wrong images."""
    config = pipe.unet.config
    if config.time_cond_proj_dim is not None:
        raise NotImplementedError(
            "the UNet is distilled for latent consistency (time_cond_proj_dim) and takes its guidance as an "
            "embedding, which is not supported; use the model from which it was distilled"
        )
    if config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"the UNet takes {config.in_channels} channels and the autoencoder makes "
            f"{pipe.vae.config.latent_channels}; inpainting and depth models are not supported"
        )


def check_diffusion(scheduler: Any) -> None:
    """Raises ValueError for a scheduler that does not suit a UNet."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"the scheduler is a {type(scheduler).__name__}, for a network trained with other noise levels (EDM); "
            "only schedulers with alphas_cumprod are supported, such as DDIMScheduler"
        )
    kind = scheduler.config.get("prediction_type")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"the scheduler ({type(scheduler).__name__}) predicts {kind!r}; a UNet needs one whose "
            "configuration says 'epsilon' or 'v_prediction'"
        )
