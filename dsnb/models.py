"""A Stable Diffusion as the methods use it: encode and decode pictures and prompts, and call the UNet."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from . import checks


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' remarks on what is normal here: no torchvision, a small autoencoder."""
    before = [
        (library, library.get_verbosity(), library.is_progress_bar_enabled())
        for library in (diffusers_logging, transformers_logging)
    ]
    for library, *_ in before:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


with quietly():
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Settings:
    """Defaults of one model for inversion and decoding; these are the paper's, for Stable Diffusion 1.4.

    `guidance` decodes an inversion, `sampling_guidance` draws from noise.
    """

    steps: int = 99
    skip: int = 10
    eta: float = 0.1
    encoder_guidance: float = 1.0
    guidance: float = 20.0
    sampling_guidance: float = 7.5


@dataclass(frozen=True)
class Model:
    """A Stable Diffusion 1.x or 2.x pipeline with the settings it works well with."""

    pipe: StableDiffusionPipeline
    name: str = "pipeline"
    settings: Settings = field(default_factory=Settings)

    unet = property(lambda self: self.pipe.unet)
    vae = property(lambda self: self.pipe.vae)
    text_encoder = property(lambda self: self.pipe.text_encoder)
    tokenizer = property(lambda self: self.pipe.tokenizer)
    scheduler = property(lambda self: self.pipe.scheduler)
    device = property(lambda self: self.unet.device)
    dtype = property(lambda self: self.unet.dtype)
    latent_factor = property(lambda self: self.pipe.vae_scale_factor)
    image_size = property(lambda self: self.unet.config.sample_size * self.latent_factor)
    lock = property(lambda self: unet_lock(self.unet), doc="Held by whoever draws; see `unet_lock`.")


_locks = WeakKeyDictionary()
_making = threading.Lock()


def unet_lock(unet) -> threading.RLock:
    """The lock of a UNet: one thread draws at a time, because the hooks of one would change the image of another.

    The thread that holds it may take it again.
    """
    with _making:
        return _locks.setdefault(
            getattr(unet, "_orig_mod", unet), threading.RLock()
        )  # the same one if compiled


def encode_image(model: Model, image: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] -> latents (B, C, H/f, W/f), float32, on the model's device.

    Raises TypeError for something that is not a tensor, ValueError for other shapes and values, and unless H and W are
    multiples of the latent factor f.
    """
    checks.instance("image", image, Tensor, "dsnb.read_image makes one")
    factor = model.latent_factor
    if image.dim() != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"image must have the shape (B, 3, H, W), got {tuple(image.shape)}")
    if image.shape[2] % factor or image.shape[3] % factor:
        raise ValueError(
            f"image is {image.shape[2]} x {image.shape[3]}; height and width must be multiples of {factor}. "
            "dsnb.read_image(path, model) resizes and crops"
        )
    if not image.is_floating_point():
        raise ValueError(f"image must hold floating-point numbers in [0, 1], got {image.dtype}")
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 1):  # also for NaN
        raise ValueError(f"image must lie in [0, 1], got {low} to {high}")
    with torch.no_grad():
        pixels = (2 * image - 1).to(model.device, model.dtype)
        encoded = model.vae.encode(pixels)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return latents.float() * model.vae.config.scaling_factor


def decode_latents(model: Model, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> images (B, 3, H, W) in [0, 1], float32, on the CPU.

    Raises ValueError where the latents or the decoded image are not finite.
    """
    if not torch.isfinite(latents).all():
        raise ValueError(
            "latents must be finite, some are NaN or infinite: the guidance is too large, or the model's weights "
            f"or its dtype ({model.dtype}) are at fault"
        )
    with torch.no_grad():
        pixels = model.vae.decode((latents / model.vae.config.scaling_factor).to(model.dtype)).sample
    if not torch.isfinite(pixels).all():
        raise ValueError(
            f"the autoencoder of model {model.name!r} made NaN or infinite pixels: the latents (up to "
            f"{latents.abs().max():.3g}) or the guidance are too large, or its weights or its dtype ({model.dtype}) "
            "are at fault"
        )
    return (pixels.float() / 2 + 0.5).clamp(0, 1).cpu()


def encode_prompts(model: Model, prompts: Sequence[str]) -> Tensor:
    """Prompts -> text embeddings (P, L, C). Warns with the words that did not fit into the text encoder."""
    tokenizer = model.tokenizer
    prompts = list(prompts)
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        room = tokenizer.model_max_length - 2
        if len(ids) > room:
            cut = tokenizer.decode(ids[room:]).strip()
            warnings.warn(
                f"prompt {prompt[:40]!r}… has {len(ids)} tokens, the text encoder takes {room}; cut off: {cut!r}",
                stacklevel=2,
            )
    ids = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model.text_encoder(ids.input_ids.to(model.device))[0]


def refuse_blending(unet) -> None:
    """Raises RuntimeError inside a blend of cross-attention, whose hooks would change this image too."""
    if any(type(processor).__module__ == "dsnb.attention" for processor in unet.attn_processors.values()):
        raise RuntimeError("the model is in the middle of a blend; draw after it, not in its callback")


def refuse_ip_adapter(unet) -> None:
    """Raises NotImplementedError where the UNet waits for the image tokens of an IP-Adapter."""
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise NotImplementedError(
            "the UNet carries an IP-Adapter, whose image tokens have no mask; call pipe.unload_ip_adapter() first"
        )


def predict(model: Model, x_t: Tensor, timestep: Tensor | int, context: Tensor) -> Tensor:
    """One call of the UNet.

    Args:
        model: the model.
        x_t: noisy latents (B, C, h, w).
        timestep: of the schedule.
        context: text embeddings (B, L, D).

    Returns:
        What the network says, like x_t, float32: the noise, or whatever else its scheduler's prediction type is.
    """
    with torch.no_grad():
        return model.unet(x_t.to(model.dtype), timestep, encoder_hidden_states=context).sample.float()


@dataclass
class UNetCount:
    """How often a UNet was called, and with how many samples in all."""

    calls: int = 0
    samples: int = 0


@contextmanager
def count_unet_samples(unet) -> Iterator[UNetCount]:
    """Counts the UNet's evaluations while the block runs."""
    count = UNetCount()

    def hook(module, args, kwargs):
        count.calls += 1
        count.samples += len(args[0] if args else kwargs["sample"])

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
