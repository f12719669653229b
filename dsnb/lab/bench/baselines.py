"""The models and loops of the bench, and the source project's way of computing the same.

For the epsilon mask, it computes the unconditional prediction once per style. For attention, it makes two UNet calls,
one after the other. Each attention computes its whole matrix of scores. The keys and values of the texts are computed
again at every step.
"""

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from ...attention import cross_attention_layers, replaced_processors, token_sizes
from ...families import Prompts
from ...inversion import Trajectory
from ...job import Job, decode_trajectory
from ...masks import Mask
from ...models import Model, predict
from ...sampling import Network

CONFIGS = {  # the published architectures
    "SD 1.5": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "SDXL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def random_model(config: dict, device: torch.device, dtype: torch.dtype, name: str = "random") -> Model:
    """A model that is only a UNet, with random weights, on which speed does not depend.

    A UNet with added conditions (SDXL) gets zeros for them at every call.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet = unet.to(dtype).to_empty(device=device).to(memory_format=torch.channels_last).eval()
    generator = torch.Generator(device).manual_seed(0)
    for weights in unet.requires_grad_(False).parameters():
        weights.normal_(0, 0.05, generator=generator)
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim

        def add_conditions(module, args, kwargs):
            zeros = partial(torch.zeros, device=device, dtype=dtype)
            added = {"text_embeds": zeros(len(args[0]), width), "time_ids": zeros(len(args[0]), 6)}
            return args, kwargs | {"added_cond_kwargs": added}

        unet.register_forward_pre_hook(add_conditions, with_kwargs=True)
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return Model(SimpleNamespace(unet=unet, scheduler=DDIMScheduler(**noise)), name=name)


@dataclass(frozen=True)
class Loop(Job):
    """A job without text encoder and autoencoder: what `methods` does between them, on given embeddings."""

    embeddings: Tensor = field(kw_only=True)  # (1 + N, L, D), the unconditional one first

    def contexts(self) -> Prompts:
        return Prompts(self.embeddings)

    def run(self, network: Network) -> Tensor:
        return decode_trajectory(self.model, self.trajectory, network, self.callback, self.progress)

    def decode(self, prompt: str, guidance: Tensor) -> Tensor:
        """Two samples per step: the unconditional one and the first style."""

        def eps(x_t, t, progress):
            uncond, cond = predict(self.model, x_t.repeat(2, 1, 1, 1), t, self.contexts()[:2]).chunk(2)
            return uncond + guidance * (cond - uncond)

        return self.run(eps)


def make_loop(model: Model, mask: Mask, steps: int) -> Loop:
    """A loop of `steps` steps over the random latents of one image, with random embeddings."""
    config, like = model.unet.config, {"device": model.device, "dtype": model.dtype}
    generator = torch.Generator().manual_seed(0)
    size = (1, config.in_channels, config.sample_size, config.sample_size)
    x_T, noises = torch.randn(size, generator=generator), torch.randn(steps, *size, generator=generator)
    embeddings = torch.randn(1 + mask.n, 77, config.cross_attention_dim, generator=generator).to(**like)
    return Loop(
        model=model,
        trajectory=Trajectory(x_T, noises, "dpm-encoder", model.name, "", steps, 0, 0.1, 1.0),
        prompts=["style"] * mask.n,
        mask=mask,
        guidance=torch.full((mask.n,), 5.0, device=model.device),
        negative_prompt="",
        one_prompt=None,
        switch=0.5,
        regional=True,
        passes=(1.0,),
        callback=None,
        progress=False,
        embeddings=embeddings,
    )


def source_epsilon(job: Job) -> Tensor:
    """A guided prediction per style, each with an unconditional one of its own: 2 N samples per step."""
    contexts, weights = job.contexts(), job.latent_weights()
    n = job.mask.n
    rows = contexts[[row for i in range(n) for row in (0, 1 + i)]]

    def eps(x_t, t, progress):
        pairs = predict(job.model, x_t.repeat(2 * n, 1, 1, 1), t, rows).unflatten(0, (n, 2))
        guided = pairs[:, :1] + job.guidance.view(n, 1, 1, 1, 1) * (pairs[:, 1:] - pairs[:, :1])
        return (weights(progress)[:, None, None] * guided).sum(0)

    with replaced_processors(job.model.unet, plain_processors(job.model.unet)):
        return job.run(eps)


def source_attention(job: Job) -> Tensor:
    """Two UNet calls in sequence, the second with every prompt's attention materialised and blended."""
    contexts, sizes = job.contexts(), token_sizes(*job.size())
    masks = {tokens: job.mask.weights(*hw).flatten(1).to(contexts.text) for tokens, hw in sizes.items()}
    guidance = job.guidance.mean()
    unet, blend = job.model.unet, MaterialisedBlend(contexts.text[1:], masks)

    def eps(x_t, t, progress):
        blend.on = False
        uncond = predict(job.model, x_t, t, contexts[:1])
        blend.on = True
        cond = predict(job.model, x_t, t, contexts[1:2])
        return uncond + guidance * (cond - uncond)

    blended = dict.fromkeys(cross_attention_layers(unet), blend)
    with replaced_processors(unet, plain_processors(unet) | blended):
        return job.run(eps)


def plain_processors(unet: UNet2DConditionModel) -> dict[str, AttnProcessor]:
    """A materialised softmax for every attention of a UNet, by name."""
    return {name.removesuffix(".processor"): AttnProcessor() for name in unet.attn_processors}


class MaterialisedBlend:
    """Blends the attentions of all prompts in plain products; projects their keys and values every time.

    While it is not `on`, it is plain attention, as the unconditional call needs it.
    """

    def __init__(self, contexts: Tensor, masks: dict[int, Tensor]):
        self.contexts, self.masks, self.on = contexts, masks, True

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if not self.on:
            return AttnProcessor()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))
        mixed = 0
        for context, weight in zip(self.contexts, self.masks[hidden_states.shape[1]], strict=True):
            k, v = (attn.head_to_batch_dim(project(context[None])) for project in (attn.to_k, attn.to_v))
            probabilities = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
            mixed = mixed + weight[:, None] * (probabilities @ v)
        return attn.to_out[0](attn.batch_to_head_dim(mixed)) / attn.rescale_output_factor
