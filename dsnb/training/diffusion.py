"""The denoising network: diffusers' UNet2DConditionModel on 16 x 16 latents, and Stable Diffusion's
objective."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from .autoencoder import encode
from .captions import captions, tokenize
from .loop import Plan, autocast, fit, step_generator, upload
from .stream import PictureStream

DROP = 0.1  # share of captions replaced by the empty one, for classifier-free guidance


@dataclass(frozen=True)
class Size:
    """Width of the UNet at 16 x 16, 8 x 8 and 4 x 4, heads there, and blocks per resolution."""

    channels: tuple[int, ...] = (128, 256, 256)
    heads: tuple[int, ...] = (4, 4, 4)
    layers: int = 1


SIZES = {
    "tiny": Size((32, 64, 64), (2, 2, 2)),  # for tests and the notebook
    "small": Size(),  # for hours on two CPU cores
    "large": Size((160, 288, 320), (5, 9, 5)),  # for half an hour on a GPU
}


def build(size: str, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """A new UNet with cross-attention at 16 x 16 and 8 x 8 (and 4 x 4 in its middle)."""
    if size not in SIZES:
        raise ValueError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
    chosen = SIZES[size]
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=chosen.layers,
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
    """Min-SNR weights of the noise loss, min(snr, cap) / snr (Hang et al. 2023, section 3.4)."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=cap) / snr


def diffusion_loss(unet, x_0, context, alphas_cumprod, timesteps, noise) -> torch.Tensor:
    """The weighted error of the predicted noise, E w(t) |ε - ε_θ(√ᾱ_t x_0 + √(1 - ᾱ_t) ε, t, context)|².

    Ho et al. 2020, equation 14, with min-SNR weights. x_0 and noise (B,C,h,w), context (B,L,D), timesteps
    (B,).
    """
    alpha_bar = alphas_cumprod.to(x_0.device)[timesteps].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    with autocast(x_0.device):
        predicted = unet(x_t, timesteps, encoder_hidden_states=context).sample.float()
    error = F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
    return (snr_weight(alpha_bar).flatten() * error).mean()


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
) -> UNet2DConditionModel:
    """Train within the plan's budget, from the last checkpoint where there is one; the averaged network.

    `compiled` runs the UNet through torch.compile, which pays on a GPU after a minute or two.
    """
    torch.manual_seed(plan.seed)
    device = torch.device(device)
    unet = build(size, autoencoder.config.latent_channels, text_encoder.config.hidden_size).to(device)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow on a CPU
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    alphas = make_scheduler().alphas_cumprod.to(device)
    on_gpu = device.type != "cpu"
    stream = PictureStream(
        plan.batch,
        plan.seed,
        device,
        repeats=4 if on_gpu else 2,
        even=False,
        transform=lambda images: encode(autoencoder, images),
    )
    if compiled:
        unet.compile()

    def loss(network, step, generator):
        x_0, pictures, styles = stream(step)
        texts = captions(pictures, styles, generator)
        dropped = (torch.rand(len(texts), generator=generator) < DROP).tolist()
        context = embed(
            text_encoder, tokenizer, ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        )
        local = step_generator(plan.seed, "noise", step, device)  # on the device, so that nothing has to wait
        timesteps = torch.randint(len(alphas), (len(texts),), generator=local, device=device)
        noise = torch.randn(x_0.shape, generator=local, device=device)
        return diffusion_loss(network, x_0, context, alphas, timesteps, noise), {}

    fit("unet", unet, average, loss, plan, folder, device)
    return average


@torch.no_grad()
def sample(
    unet: nn.Module,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    texts: list[str],
    generator: torch.Generator,
    steps: int = 25,
    guidance: float = 5.0,
) -> torch.Tensor:
    """Latents (B,C,h,w) of pictures for the texts, from noise, by DDIM with classifier-free guidance."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    config, device = unet.config, next(unet.parameters()).device
    shape = (len(texts), config.in_channels, config.sample_size, config.sample_size)
    x_t = torch.randn(shape, generator=generator).to(device)
    context = embed(text_encoder, tokenizer, ["", *texts])
    context = torch.cat([context[:1].expand(len(texts), -1, -1), context[1:]])
    for t in scheduler.timesteps:
        with autocast(device):
            noise = unet(torch.cat([x_t, x_t]), t.to(device), encoder_hidden_states=context).sample.float()
        without, with_text = noise.chunk(2)
        x_t = scheduler.step(without + guidance * (with_text - without), t, x_t).prev_sample
    return x_t
