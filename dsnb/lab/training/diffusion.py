"""The denoising network: diffusers' UNet2DConditionModel on 16 x 16 latents, and Stable Diffusion's objective."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ... import checks
from ...sampling import denoise, make_schedule
from ..world import OBJECTS, SCENES, STYLES, batch_captions, draw, random_pictures
from ..world.captions import caption, tokenize
from .autoencoder import encode
from .loop import Plan, autocast, fit, step_generator, upload
from .stream import ImageStream

log = logging.getLogger(__name__)

DROP = 0.1  # fraction of captions replaced by the empty one, for classifier-free guidance


@dataclass(frozen=True)
class Size:
    """Width of the UNet at 16 x 16, 8 x 8 and 4 x 4, and heads there."""

    channels: tuple[int, ...]
    heads: tuple[int, ...]


SIZES = {
    "tiny": Size((32, 64, 64), (2, 2, 2)),  # for tests and the notebook
    "small": Size((128, 256, 256), (4, 4, 4)),  # for hours on two CPU cores
    "large": Size((160, 288, 320), (5, 9, 5)),  # for half an hour on a GPU
}


def build(size: str, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """A new UNet with cross-attention at 16 x 16 and 8 x 8 (and 4 x 4 in its middle)."""
    chosen = SIZES[checks.one_of("size", size, SIZES)]
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=chosen.channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=chosen.heads,  # diffusers' name for the number of heads
        cross_attention_dim=text_width,
        norm_num_groups=16 if min(chosen.channels) < 64 else 32,
    ).to(memory_format=torch.channels_last)


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def snr_weight(alpha_bar: torch.Tensor, cap: float = 5.0) -> torch.Tensor:
    """Weights of the noise loss: 1 / √snr, at most `cap`.

    They lie between the weights of the noise, 1, which favour small noise, and those of the image, 1 / snr. One run
    each of 340 steps compared them with min(snr, 5) / snr (Hang et al. 2023). A caption with the wrong object raised
    the error by 0.26 % with these weights and by 0.20 % with those. A wrong scene raised it by 1.2 % and 0.8 %.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.rsqrt().clamp(max=cap)


def noise_errors(unet, x_0, context, alphas_cumprod, timesteps, noise) -> torch.Tensor:
    """The error of the predicted noise, |ε - ε_θ(√ᾱ_t x_0 + √(1 - ᾱ_t) ε, t, context)|², mean of each latent: (B,).

    Ho et al. 2020, equation 14. x_0 and noise (B,C,h,w), context (B,L,D), timesteps (B,).
    """
    alpha_bar = alphas_cumprod.to(x_0.device)[timesteps].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    with autocast(x_0.device):
        predicted = unet(x_t, timesteps, encoder_hidden_states=context).sample.float()
    return F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))


def diffusion_loss(unet, x_0, context, alphas_cumprod, timesteps, noise) -> torch.Tensor:
    """The mean of the noise errors, each with the weight of its time; arguments as for `noise_errors`."""
    weights = snr_weight(alphas_cumprod.to(x_0.device)[timesteps])
    return (weights * noise_errors(unet, x_0, context, alphas_cumprod, timesteps, noise)).mean()


@torch.no_grad()
def embed(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Text embeddings (B,L,D), float32, as StableDiffusionPipeline hands them to the UNet."""
    tokens = upload(tokenize(tokenizer, texts), text_encoder.device)
    with autocast(tokens.device):
        return text_encoder(tokens)[0].float()


def train(
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    folder: Path,
    device,
    size: str = "small",
    compiled: bool = False,
    fraction: float = 0.0,
) -> UNet2DConditionModel:
    """Train within the plan's budget, from the last checkpoint if there is one -> the averaged network.

    `fraction` of the images show several styles. `compiled` uses torch.compile, which takes one or two minutes and is
    then faster on a GPU.
    """
    torch.manual_seed(plan.seed)
    device = torch.device(device)
    unet = build(size, autoencoder.config.latent_channels, text_encoder.config.hidden_size).to(device)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow on a CPU
    alphas = make_scheduler().alphas_cumprod.to(device)
    stream = ImageStream(
        plan.batch,
        plan.seed,
        device,
        chunk=8 if device.type != "cpu" else 32,
        repeats=4,
        fraction=fraction,
        even=False,
        transform=lambda images: encode(autoencoder, images),
    )
    if compiled:
        unet.compile()

    def loss(network, step, generator):
        x_0, batch = stream(step)
        texts = batch_captions(batch, generator)
        dropped = (torch.rand(len(texts), generator=generator) < DROP).tolist()
        texts = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        context = embed(text_encoder, tokenizer, texts)
        local = step_generator(plan.seed, "noise", step, device)  # on the device, so that nothing has to wait
        # one time from each part of the schedule, in random order, because a repeated batch has the same order
        parts = torch.randperm(len(texts), generator=local, device=device)
        spread = (parts + torch.rand(len(texts), generator=local, device=device)) / len(texts)
        timesteps = (spread * len(alphas)).long().clamp(max=len(alphas) - 1)
        noise = torch.randn(x_0.shape, generator=local, device=device)
        return diffusion_loss(network, x_0, context, alphas, timesteps, noise), {}

    def report(network) -> bool:
        excess = caption_sensitivity(network, text_encoder, tokenizer, stream.transform)
        told = ", ".join(f"{name} +{100 * more:.1f} %" for name, more in excess.items())
        log.info("error with a wrong caption: %s", told)
        return False

    return fit("unet", unet, loss, plan, folder, device, report)


@torch.no_grad()
def caption_sensitivity(
    unet: nn.Module,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    transform: Callable,
    count: int = 96,
) -> dict[str, float]:
    """How much larger the error of the predicted noise is with the wrong object, scene or style in the caption.

    A fraction: 0 where the network ignores that word. `transform` makes latents of images. The mean is over four times
    of the noisy part, where the caption matters most.
    """
    generator, alphas = torch.Generator().manual_seed(900_006), make_scheduler().alphas_cumprod
    pictures = random_pictures(count, generator)
    styles = torch.randint(len(STYLES), (count,), generator=generator)
    other = lambda values, n: (values + torch.randint(1, n, (count,), generator=generator)) % n
    texts = {"right": (pictures, styles)}
    texts["object"] = replace(pictures, object=other(pictures.object, len(OBJECTS))), styles
    texts["scene"] = replace(pictures, scene=other(pictures.scene, len(SCENES))), styles
    texts["style"] = pictures, other(styles, len(STYLES))
    device = next(unet.parameters()).device
    x_0 = transform(draw(pictures, styles).to(device)).cpu()
    noise = torch.randn(x_0.shape, generator=generator)
    times = torch.tensor([300, 500, 700, 900]).repeat(count // 4)
    errors = {}
    for name, (shown, drawn) in texts.items():
        words = [caption(shown, k, list(STYLES)[style]) for k, style in enumerate(drawn.tolist())]
        context = embed(text_encoder, tokenizer, words)
        parts = (x_0.to(device), context, alphas, times.to(device), noise.to(device))
        errors[name] = noise_errors(unet, *parts).view(-1, 4).mean(0)
    right = errors.pop("right")
    return {name: (error / right - 1).mean().item() for name, error in errors.items()}


@torch.no_grad()
def sample(
    unet: nn.Module,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    texts: list[str],
    generator: torch.Generator,
    steps: int,
    guidance: float = 5.0,
) -> torch.Tensor:
    """Latents (B, C, h, w) of images for the texts, from noise, by DDIM with classifier-free guidance."""
    config, device = unet.config, next(unet.parameters()).device
    shape = (len(texts), config.in_channels, config.sample_size, config.sample_size)
    x_T = torch.randn(shape, generator=generator).to(device)
    context = embed(text_encoder, tokenizer, ["", *texts])
    context = torch.cat([context[:1].expand(len(texts), -1, -1), context[1:]])

    def eps(x_t, t, progress):
        with autocast(device):
            both = unet(torch.cat([x_t, x_t]), t, encoder_hidden_states=context).sample.float()
        without, with_text = both.chunk(2)
        return without + guidance * (with_text - without)

    return denoise(eps, x_T, make_schedule(make_scheduler(), steps), progress=False)
