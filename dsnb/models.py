"""A model for the methods: it encodes and decodes images, encodes prompts, and calls the UNet or transformer."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from . import checks
from .families import FAMILIES, Family, Prompts, Settings
from .sampling import Schedule, make_schedule

_quiet = threading.Lock()
_before: list[list[tuple]] = []  # what each thread inside `quietly` found; the last to leave takes the first


@contextmanager
def quietly() -> Iterator[None]:
    """Hides unimportant messages of diffusers and transformers, such as a missing torchvision.

    The settings belong to the process. The first thread that enters stores them, and the last one restores them.
    """
    with _quiet:
        found = [
            (library, library.get_verbosity(), library.is_progress_bar_enabled())
            for library in (diffusers_logging, transformers_logging)
        ]
        _before.append(found)
        for library, *_ in found:
            library.set_verbosity_error()
            library.disable_progress_bar()
    try:
        yield
    finally:
        with _quiet:
            before = _before.pop()
            for library, verbosity, bars in () if _before else before:
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()


with quietly():
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Model:
    """A diffusers pipeline, with its family and its default settings."""

    pipe: DiffusionPipeline
    name: str = "pipeline"
    settings: Settings = field(default_factory=Settings)
    family: Family = FAMILIES[0]

    network = property(lambda self: getattr(self.pipe, self.family.network), doc="The UNet or transformer.")
    vae = property(lambda self: self.pipe.vae)
    text_encoder = property(lambda self: self.pipe.text_encoder)
    tokenizer = property(lambda self: self.pipe.tokenizer)
    scheduler = property(lambda self: self.pipe.scheduler)
    dtype = property(lambda self: self.network.dtype)
    guided = property(
        lambda self: self.family.guided(self.pipe), doc="Whether guidance uses an unconditional row."
    )
    channels = property(lambda self: self.family.channels(self.pipe), doc="Channels of the latents.")
    latent_factor = property(lambda self: self.pipe.vae_scale_factor)
    image_size = property(lambda self: self.family.image_size(self.pipe))
    lock = property(lambda self: network_lock(self.network), doc="Only its holder draws; see `network_lock`.")

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet, for code that needs its cross-attentions. Raises NotImplementedError for a transformer."""
        if self.family.network != "unet":
            raise NotImplementedError(
                f"model {self.name!r} is of the family {self.family.name}, which has no UNet and no cross-attentions"
            )
        return self.pipe.unet

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline computes, also while its parts are offloaded."""
        return getattr(self.pipe, "_execution_device", self.network.device)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


def network_lock(network: nn.Module) -> threading.RLock:
    """The lock of a network: only one thread at a time draws, because its hooks would change the images of others.

    Args:
        network: the UNet or transformer, perhaps compiled.

    Returns:
        A lock that its thread may take again.
    """
    plain = getattr(network, "_orig_mod", network)  # a compiled network has the same lock
    with _making:
        return _locks.setdefault(plain, threading.RLock())


@contextmanager
def drawing(model: Model) -> Iterator[None]:
    """Holds the model's lock. At the end an offloaded pipeline sends its last part back, as its own calls do."""
    with model.lock:
        try:
            yield
        finally:
            model.pipe.maybe_free_model_hooks()


def schedule_of(model: Model, steps: int, skip: int, size: tuple[int, int]) -> Schedule:
    """The model's schedule.

    Args:
        model: the model.
        steps, skip: as for `sampling.make_schedule`.
        size: height and width of the latents.

    Returns:
        The schedule, on the CPU.

    Raises:
        ValueError: as `sampling.make_schedule`; or the pipeline's scheduler, which may be another one than at loading,
            does not suit the family.
    """
    model.family.check_scheduler(model.scheduler)
    return make_schedule(model.scheduler, steps, skip, **model.family.timing(model.pipe, steps, size))


def encode_image(model: Model, image: Tensor) -> Tensor:
    """Encodes images as latents.

    Args:
        model: the model, with latent factor f.
        image: (B, 3, H, W) in [0, 1], H and W multiples of f times the family's patch size.

    Returns:
        (B, C, H/f, W/f), float32, on the model's device.

    Raises:
        TypeError: something that is not a dense tensor.
        ValueError: another shape, dtype or range.
    """
    check_image(model, image)
    with model.lock, torch.no_grad(), model.family.autoencoder(model.pipe) as vae:
        pixels = (2 * image - 1).to(model.device, vae.dtype)
        latents = model.family.encode_image(model.pipe, pixels)
    shift, scale = _latent_scale(model, latents)
    return (latents.float() - shift) * scale


def check_image(model: Model, image: Tensor) -> None:
    """Raises what `encode_image` raises for an image that it cannot encode."""
    checks.dense("image", image, Tensor, "dsnb.read_image makes one")
    factor = model.latent_factor * model.family.patch
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


def _latent_scale(model: Model, latents: Tensor) -> tuple[Tensor, Tensor]:
    """`Family.latent_scale` on the device of the latents; an offloaded autoencoder may be on another one."""
    shift, scale = model.family.latent_scale(model.pipe, *latents.shape[-2:])
    return torch.as_tensor(shift, device=latents.device), torch.as_tensor(scale, device=latents.device)


def decode_latents(model: Model, latents: Tensor) -> Tensor:
    """Decodes latents as images.

    Args:
        model: the model, with latent factor f.
        latents: (B, C, h, w).

    Returns:
        (B, 3, f h, f w) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: the latents or the images are not finite.
    """
    if not torch.isfinite(latents).all():
        raise ValueError(
            "latents must be finite, some are NaN or infinite: the guidance is too large, or the model's weights "
            f"or its dtype ({model.dtype}) are at fault"
        )
    with model.lock, torch.no_grad(), model.family.autoencoder(model.pipe) as vae:
        shift, scale = _latent_scale(model, latents)
        pixels = model.family.decode_latents(model.pipe, (latents / scale + shift).to(vae.dtype))
    if not torch.isfinite(pixels).all():
        raise ValueError(
            f"the autoencoder of model {model.name!r} made NaN or infinite pixels: the latents (up to "
            f"{latents.abs().max():.3g}) or the guidance are too large, or its weights or its dtype ({model.dtype}) "
            "are at fault"
        )
    return (pixels.float() / 2 + 0.5).clamp(0, 1).cpu()


def encode_prompts(
    model: Model,
    prompts: Sequence[str] | Prompts,
    guidance: Tensor | Sequence[float] | None = None,
    negative_prompt: str | None = None,
) -> Prompts:
    """Encodes prompts as the pipeline itself does. Warns of words that do not fit into the text encoder.

    Args:
        model: the model.
        prompts: P texts, or P rows that are encoded already.
        guidance: (P,), for a model with guidance as an input (`Model.guided` is False).
        negative_prompt: a text whose row comes first; None for no such row.

    Returns:
        P rows, or P + 1 with a negative prompt.

    Raises:
        ValueError: a guidance that the model cannot use, or rows of a wrong shape.
        TypeError: `prompts` is neither rows nor a list of texts.
    """
    told = None
    if guidance is not None and not model.guided:
        told = model.family.tell_guidance(model.pipe, torch.as_tensor(guidance, device=model.device))
    first = [] if negative_prompt is None else [negative_prompt]
    if not isinstance(prompts, Prompts):
        return replace(_encode_texts(model, [*first, *checks.texts("prompts", prompts)]), guidance=told)
    rows = prompts.after(_encode_texts(model, first or [""]))
    return replace(rows if first else rows[1:], guidance=told)


def _encode_texts(model: Model, prompts: Sequence[str]) -> Prompts:
    tokenizer, room = model.family.text_room(model.pipe)
    for prompt in prompts:
        ids = tokenizer(written_out(model.pipe, prompt, tokenizer), add_special_tokens=False).input_ids
        if len(ids) > room:
            cut = tokenizer.decode(ids[room:]).strip()
            warnings.warn(
                f"prompt {prompt[:40]!r}… has {len(ids)} tokens, the text encoder takes {room}; cut off: {cut!r}",
                stacklevel=2,
            )
    with model.lock, torch.no_grad(), quietly():
        rows = model.family.encode_prompts(model.pipe, prompts)
    pooled = None if rows.pooled is None else rows.pooled.to(model.dtype)
    return replace(rows, text=rows.text.to(model.dtype), pooled=pooled)


def written_out(pipe: DiffusionPipeline, prompt: str, tokenizer: Any) -> str:
    """The prompt as the pipeline reads it: a learned word of several vectors becomes as many words."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    return convert(prompt, tokenizer) if convert else prompt


def refuse_blending(network: ModelMixin) -> None:
    """Raises RuntimeError during a blend of attention, because its hooks would change this image, too."""
    processors = getattr(network, "attn_processors", {})  # Z-Image has none
    if any(type(p).__module__ == "dsnb.attention" for p in processors.values()):
        raise RuntimeError("the model is in the middle of a blend; draw after it, and not in its callback")


def refuse_ip_adapter(network: nn.Module) -> None:
    """Raises NotImplementedError for a network that expects the image tokens of an IP-Adapter."""
    if any(getattr(network, name, None) is not None for name in ("encoder_hid_proj", "image_proj")):
        raise NotImplementedError(
            "the network has an IP-Adapter, whose image tokens have no mask; call pipe.unload_ip_adapter() first"
        )


def check_negative_prompt(model: Model, negative_prompt: str) -> str:
    """`negative_prompt` itself. Raises ValueError if the model cannot use it, TypeError if it is not a text."""
    if checks.text("negative_prompt", negative_prompt) and not model.guided:
        raise ValueError(
            f"negative_prompt must be empty for {model.family.name}, whose network has no unconditional prediction; "
            f"got {negative_prompt!r}"
        )
    return negative_prompt


def predict(model: Model, x_t: Tensor, timestep: Tensor | float, prompts: Prompts) -> Tensor:
    """One call of the UNet or transformer.

    Args:
        model: the model.
        x_t: noisy latents (B, C, h, w).
        timestep: one of the schedule's, or n of them, where n divides B: row i has timestep i modulo n.
        prompts: B rows.

    Returns:
        The network's output (B, C, h, w), float32: the noise, or another of `sampling.PREDICTIONS`.
    """
    timestep = torch.as_tensor(timestep, device=x_t.device).flatten()
    timestep = timestep.repeat(len(x_t) // len(timestep))
    with model.lock, torch.no_grad():
        return model.family.predict(model.pipe, x_t.to(model.dtype), timestep, prompts).float()


@dataclass
class UNetCount:
    """How often a UNet was called, and with how many samples in total."""

    calls: int = 0
    samples: int = 0


@contextmanager
def count_unet_samples(unet: nn.Module) -> Iterator[UNetCount]:
    """Counts the calls of a network while the block runs.

    Args:
        unet: a UNet or transformer.

    Yields:
        The counts, which grow during the block.
    """
    count = UNetCount()

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        count.calls += 1
        count.samples += len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states", ())))

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
