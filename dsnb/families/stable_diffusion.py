"""Stable Diffusion 1 and 2: one CLIP text, a UNet with cross-attention."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Family, Prompts


class UNetFamily(Family):
    """A UNet with cross-attention, trained by diffusion."""

    def check(self, pipe: Any) -> None:
        super().check(pipe)
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

    def check_scheduler(self, scheduler: Any) -> None:
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


class StableDiffusion(UNetFamily):
    name = "Stable Diffusion 1/2"
    pipelines = ("StableDiffusionPipeline",)

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        width, given = pipe.unet.config.cross_attention_dim, pipe.text_encoder.config.hidden_size
        if width != given:
            raise ValueError(
                f"the UNet takes texts of width {width} and the text encoder gives {given}; they must be equal"
            )

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        text, _ = pipe.encode_prompt(list(prompts), pipe._execution_device, 1, False)
        return Prompts(text)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        return pipe.unet(x_t, timestep, encoder_hidden_states=prompts.text).sample
