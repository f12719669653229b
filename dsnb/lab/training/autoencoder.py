"""The autoencoder: diffusers' AutoencoderTiny, 128 x 128 pixels to 16 x 16 latents, trained on crops."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from ...metrics.networks import Lpips, load_lpips
from ..world import STYLES, draw, random_pictures
from .loop import Plan, autocast, fit, load_checkpoint, save_checkpoint, step_generator
from .stream import ImageStream

LATENT_CHANNELS = 12
CROP = 64  # pixels; a crop costs a quarter


def build(latent_channels: int = LATENT_CHANNELS, width: int = 64) -> AutoencoderTiny:
    """A new autoencoder of factor 8; most of its blocks work at the coarse resolutions, where they are cheap.

    Its decoder has one block at full resolution too, for sharp edges.
    """
    widths = (width,) * 4
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(0, 1, 3, 3),
        num_decoder_blocks=(3, 3, 2, 1),
    ).to(memory_format=torch.channels_last)


def crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One crop of every image (B,3,H,W), at the same position in all of them: (B,3,CROP,CROP)."""
    room = torch.tensor(images.shape[-2:]) - CROP + 1
    y, x = (torch.rand(2, generator=generator) * room).long().tolist()
    return images[:, :, y : y + CROP, x : x + CROP].contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def standardise(autoencoder: AutoencoderTiny, images: torch.Tensor) -> None:
    """Scale the encoder's last layer so that latents of `images` in [0, 1] have mean 0 and deviation 1."""
    latents, last = autoencoder.encode(images * 2 - 1).latents, autoencoder.encoder.layers[-1]
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last.weight.div_(deviation.view(-1, 1, 1, 1))
    last.bias.sub_(mean).div_(deviation)


def reconstruction_loss(
    autoencoder,
    images: torch.Tensor,
    generator: torch.Generator | None = None,
    perceptual: Lpips | None = None,
):
    """|x̂ - x| + 10 (x̂ - x)² + |∇x̂ - ∇x| / 2 + a pull of the latents to mean 0 and deviation 1.

    With a perceptual network also 0.3 of its distance, which keeps textures sharp. The decoder sees latents with a
    little random noise, like those that a sampler gives. Images (B,3,H,W) in [0, 1].
    """
    with autocast(images.device):
        latents = autoencoder.encode(images * 2 - 1).latents.float()
        jitter = torch.randn(latents.shape, generator=generator, device=latents.device)
        decoded = autoencoder.decode(latents + 0.05 * jitter).sample.float() / 2 + 0.5
    error = decoded - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    spread = mean.square().mean() + (deviation - 1).square().mean()
    square = error.square().mean()
    loss = error.abs().mean() + 10 * square + 0.5 * edges + 0.01 * spread
    numbers = {"psnr": -10 * torch.log10(square.detach()), "spread": spread.detach()}
    if perceptual is not None:
        with autocast(images.device):
            maps, wanted = perceptual.maps(decoded), perceptual.maps(images)
        each = ([part.float() for part in parts] for parts in (maps, wanted))
        distance = perceptual.distance(*each).mean().to(loss)
        loss = loss + 0.3 * distance
    return loss, numbers


def train(plan: Plan, folder: Path, device, good=None, frozen: bool = False, **sizes) -> AutoencoderTiny:
    """Train within the plan's budget, from the last checkpoint if there is one. Returns the averaged network.

    `frozen`: only the decoder, since a UNet has learnt these latents already, and with a perceptual loss.
    """
    torch.manual_seed(plan.seed)
    network = build(**sizes).to(device)
    stream = ImageStream(plan.batch, plan.seed, device, chunk=32, repeats=8)  # a crop is a quarter
    standardise(network, stream(0)[0])
    perceptual = None
    if frozen and plan.seconds > 0:
        perceptual = load_lpips(device=device)
        keep_encoder(Path(folder) / "autoencoder.pt")
        network.encoder.requires_grad_(False)

    def loss(network, step, generator):
        local = step_generator(plan.seed, "jitter", step, device)
        return reconstruction_loss(network, crop(stream(step)[0], generator), local, perceptual)

    return fit("autoencoder", network, loss, plan, folder, device, good)


def keep_encoder(path: Path) -> None:
    """Let the encoder of the checkpoint at `path` be its average from now on."""
    state = load_checkpoint(path)
    for name, value in state.get("average", {}).items():
        if name.startswith("encoder."):
            state["network"][name] = value
    save_checkpoint(path, state)


@torch.no_grad()
def encode(autoencoder: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """Latents (B,C,SIZE/8,SIZE/8) of images in [0, 1], already times the scaling factor, float32."""
    with autocast(images.device):
        pixels = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return autoencoder.encode(pixels).latents.float() * autoencoder.config.scaling_factor


@torch.no_grad()
def measure_scale(autoencoder: AutoencoderTiny, device, count: int = 512) -> float:
    """Set and return the factor that gives the latents of the world deviation 1."""
    generator = torch.Generator().manual_seed(5)
    autoencoder.register_to_config(scaling_factor=1.0)
    parts = []
    for _ in range(count // 32):
        pictures = random_pictures(32, generator).to(device)
        styles = torch.randint(len(STYLES), (32,), generator=generator).to(device)
        parts.append(encode(autoencoder, draw(pictures, styles)))
    scale = 1 / torch.cat(parts).std().item()
    autoencoder.register_to_config(scaling_factor=scale)
    return scale


@torch.no_grad()
def psnr(autoencoder: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each rebuilt image in dB, after clipping to [0, 1]: (B,)."""
    with autocast(images.device):
        latents = autoencoder.encode(images * 2 - 1).latents
        rebuilt = autoencoder.decode(latents).sample.float() / 2 + 0.5
    return -10 * torch.log10(F.mse_loss(rebuilt.clamp(0, 1), images, reduction="none").mean((1, 2, 3)))
