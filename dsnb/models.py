"""Open a Stable Diffusion checkpoint, the bundled one or a real one; encode and decode pictures and prompts.

Devices and dtypes are chosen here and nowhere else.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from . import data_path


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

BUNDLED = "drawn-world"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


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


def load(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    config: str | Path | None = None,
) -> Model:
    """Open a model: nothing for the bundled one, a diffusers folder, a hub id, or a single .safetensors file.

    Stable Diffusion 1.x and 2.x; of a folder or hub id that holds half precision only, the variant fp16.

    device: default cuda, then mps, then cpu. dtype: default bf16 where the hardware multiplies it fast (fp16 on
    older GPUs), else float32. allow_pickle: also read .ckpt and .bin weights, which can run code of whoever made
    them. config: for a single file, a folder or hub id with the same architecture and scheduler; needed without
    network, for Stable Diffusion 2.x (whose own configuration left the hub), and for v-prediction, which no file tells.
    Raises FileNotFoundError, ValueError or OSError with what would be right.
    """
    device = choose_device(device)
    dtype = dtype or choose_dtype(device)
    options = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    path = data_path("models", BUNDLED) if source is None else Path(source).expanduser()
    if path.is_dir():
        pipe = _open(path, options, allow_pickle)
    elif path.is_file():
        if path.suffix.lower() != ".safetensors" and not allow_pickle:
            raise ValueError(
                f"model {str(path)!r} is not a .safetensors file; such weights can run code when they are "
                "opened. Convert it, or pass allow_pickle=True if you trust whoever made it"
            )
        if config is not None:
            options["config"] = str(config)
        pipe = _open_file(path, options)
    elif _looks_like_file(source):
        raise FileNotFoundError(f"model {str(source)!r}: there is no such file or folder")
    else:
        pipe = _open(str(source), options, allow_pickle)
    _check_pipeline(pipe, source)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.to(device)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.eval().requires_grad_(False)
    return Model(pipe, name=BUNDLED if source is None else str(source), settings=_settings(path))


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or cuda, mps, cpu in this order. Raises ValueError for one that is not there."""
    if device is None:
        backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((name for name, there in backends.items() if there), "cpu"))
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown; use 'cuda', 'cuda:1', 'mps' or 'cpu'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but no CUDA GPU is available; use 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r}: there are only {torch.cuda.device_count()} GPUs, from cuda:0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' was asked for, but it is not available; use 'cpu'")
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float16 on other GPUs, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    features = torch.cpu.get_capabilities()
    native = features.get("amx_bf16") or features.get("amx_tile") or features.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def encode_image(model: Model, image: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] -> latents (B, C, H/f, W/f), float32, on the model's device.

    Raises ValueError unless H and W are multiples of the latent factor f.
    """
    factor = model.latent_factor
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"image must have the shape (B, 3, H, W), got {tuple(image.shape)}")
    if image.shape[2] % factor or image.shape[3] % factor:
        raise ValueError(
            f"image is {image.shape[2]} x {image.shape[3]}; height and width must be multiples of {factor}. "
            "dsnb.read_image(path, model) resizes and crops"
        )
    if not torch.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ValueError(f"image must lie in [0, 1], got {image.min():.3g} to {image.max():.3g}")
    with torch.no_grad():
        pixels = (2 * image - 1).to(model.device, model.dtype)
        encoded = model.vae.encode(pixels)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return latents.float() * model.vae.config.scaling_factor


def decode_latents(model: Model, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1], float32, on the CPU."""
    with torch.no_grad():
        pixels = model.vae.decode((latents / model.vae.config.scaling_factor).to(model.dtype)).sample
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


def refuse_ip_adapter(unet) -> None:
    """Raises NotImplementedError where the UNet waits for the image tokens of an IP-Adapter."""
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise NotImplementedError(
            "the UNet carries an IP-Adapter, whose image tokens have no mask; call pipe.unload_ip_adapter() first"
        )


def unet_eps(model: Model, x_t: Tensor, timestep: Tensor | int, context: Tensor) -> Tensor:
    """The noise prediction of one UNet call: x_t (B, C, h, w), context (B, L, D) -> eps like x_t, float32.

    A v-prediction model is converted: eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t
    (Salimans & Ho 2022, "Progressive distillation", appendix D).
    """
    with torch.no_grad():
        out = model.unet(x_t.to(model.dtype), timestep, encoder_hidden_states=context).sample.float()
    if model.scheduler.config.prediction_type == "v_prediction":
        alpha_bar = model.scheduler.alphas_cumprod[int(timestep)]
        out = alpha_bar.sqrt() * out + (1 - alpha_bar).sqrt() * x_t
    return out


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


def _open(source: str | Path, options: dict, allow_pickle: bool) -> StableDiffusionPipeline:
    """A folder or hub id -> pipeline; pickled weights only when allowed."""
    _check_kind(source)
    try:
        with quietly():
            return _from_pretrained(source, options | {"use_safetensors": None if allow_pickle else True})
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        hint = (
            "" if allow_pickle else "; only safetensors are read, allow_pickle=True also reads .bin weights"
        )
        fetched = isinstance(error, OSError) and not isinstance(source, Path)
        kind = OSError if fetched else ValueError
        raise kind(f"model {str(source)!r} cannot be opened{hint}: {error}") from error


def _from_pretrained(source: str | Path, options: dict) -> StableDiffusionPipeline:
    """The full weights, or those in half precision where there are no others."""
    try:
        return StableDiffusionPipeline.from_pretrained(source, **options)
    except OSError:
        with suppress(OSError, ValueError):
            return StableDiffusionPipeline.from_pretrained(source, variant="fp16", **options)
        raise


def _open_file(path: Path, options: dict) -> StableDiffusionPipeline:
    try:
        with quietly():
            return StableDiffusionPipeline.from_single_file(str(path), **options)
    except Exception as error:
        raise ValueError(
            f"model file {str(path)!r} cannot be opened: {error}. Without network, pass config='FOLDER' with the "
            "configuration of the same architecture"
        ) from error


def _check_kind(source: str | Path) -> None:
    """Raises before any weights are fetched, where a folder or hub id holds something else."""
    try:
        with quietly():
            kind = StableDiffusionPipeline.load_config(source).get("_class_name")
    except OSError as error:
        if isinstance(source, Path):
            raise ValueError(
                f"model folder {str(source)!r} is not a diffusers model: it has no readable model_index.json "
                "(expected: tokenizer, text_encoder, vae, unet, scheduler)"
            ) from error
        raise OSError(
            f"model {source!r} could not be fetched from the hub (offline, or no such model). Leave `model` out for "
            f"the bundled one, or pass a local folder or .safetensors file. The hub's client said: {error}"
        ) from error
    if kind != "StableDiffusionPipeline":
        raise ValueError(
            f"model {str(source)!r} holds a {kind}; a StableDiffusionPipeline (1.x or 2.x) is needed"
        )


def _check_pipeline(pipe: StableDiffusionPipeline, source) -> None:
    width, given = pipe.unet.config.cross_attention_dim, pipe.text_encoder.config.hidden_size
    if width != given or pipe.unet.config.addition_embed_type is not None:
        raise ValueError(
            f"model {str(source)!r}: the UNet takes texts of width {width} and the text encoder gives {given}, "
            "or it wants more than one text; only Stable Diffusion 1.x and 2.x are supported, not XL"
        )
    if pipe.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"model {str(source)!r} predicts {pipe.scheduler.config.prediction_type!r}, expected 'epsilon' or "
            "'v_prediction' in its scheduler's configuration"
        )
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"model {str(source)!r}: the UNet takes {pipe.unet.config.in_channels} channels and the autoencoder "
            f"makes {pipe.vae.config.latent_channels}; inpainting and depth models are not supported"
        )
    if len(pipe.tokenizer) < 100:
        raise ValueError(f"model {str(source)!r}: its tokenizer has only {len(pipe.tokenizer)} entries")


def _settings(folder: Path) -> Settings:
    """The folder's dsnb.json, or the paper's settings where there is none."""
    file = folder / "dsnb.json"
    if not file.is_file():
        return Settings()
    values = json.loads(file.read_text())
    unknown = set(values) - {f.name for f in fields(Settings)}
    if unknown:
        raise ValueError(f"{file}: unknown settings {sorted(unknown)}")
    return Settings(**values)


def _looks_like_file(source) -> bool:
    """Whether a source that is not on disk was meant as a path rather than as the id of a hub's model."""
    text = str(source)
    return (
        isinstance(source, Path)
        or text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or Path(text).suffix.lower() in (".safetensors", *PICKLES)
    )
