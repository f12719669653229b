"""Open a Stable Diffusion checkpoint: the bundled one, a diffusers folder, a hub id or a single file.

Devices and dtypes are chosen here and nowhere else.
"""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError

from . import data_path
from .models import Model, Settings, StableDiffusionPipeline, quietly

BUNDLED = "drawn-world"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


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
    values = json.loads(file.read_text(encoding="utf-8"))
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
