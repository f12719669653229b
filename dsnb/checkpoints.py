"""Open a model: the bundled one, a diffusers folder, a hub id, a single file, or a pipeline that is open already.

Only this module chooses devices and dtypes. A model opens completely or raises an error.
"""

import json
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checks, data_path
from .families import Settings, family_of
from .methods import JOINT_METHODS, METHODS
from .models import DiffusionPipeline, Model
from .weights import PICKLES, UNUSED, fetch, open_file, open_folder

BUNDLED = "drawn-world"
DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
    "half": torch.float16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip
DISTILLED = ("LCMScheduler", "TCDScheduler")


def load(
    source: str | Path | DiffusionPipeline | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    allow_pickle: bool = False,
    config: str | Path | None = None,
) -> Model:
    """Opens a model. Its pipeline class decides the family, one of `dsnb.families.FAMILIES`.

    Args:
        source: None or "drawn-world" for the bundled model; a diffusers folder; a hub id; a single .safetensors file;
            or a diffusers pipeline, which is used as it is, except that its weights are frozen. If a folder or hub id
            has half precision only, its variant fp16 is opened.
        device: default cuda, then mps, then cpu.
        dtype: a torch.dtype or its name ("fp16", "bfloat16"). Default bfloat16 if the hardware multiplies it natively,
            float16 on other GPUs, else float32.
        allow_pickle: whether to read .ckpt and .bin weights, which can run code of their author.
        config: for a single file, a folder or hub id with the same architecture and scheduler. It is needed offline,
            for Stable Diffusion 2.x (whose configuration is no longer on the hub), and for v-prediction, which a file
            does not state.

    Returns:
        The model, with the settings of its `dsnb.json`, or else its family's.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: the hub does not answer, or has no such model.
        ValueError: no family opens the source, its weights are incomplete or pickled, or a parameter is wrong.
        TypeError: `source` is of a wrong type.
        NotImplementedError: a kind of model that is not supported, such as a UNet distilled for LCM.
    """
    if isinstance(source, DiffusionPipeline):
        given = {"device": device, "dtype": dtype, "config": config, "allow_pickle": allow_pickle or None}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} is the pipeline's own where source is a pipeline, got {value!r}; leave it out"
                )
        name = str(source.config.get("_name_or_path") or type(source).__name__)
        return _model(source, name, Path(name))
    if not isinstance(source, str | Path | None):
        raise TypeError(
            f"source must be a folder, a file, a hub id or a diffusers pipeline, got a {type(source).__name__}"
        )
    device = choose_device(device)
    dtype = choose_dtype(device) if dtype is None else _parse_dtype(dtype)
    bundled = source is None or str(source) == BUNDLED
    path = data_path("models", BUNDLED) if bundled else Path(str(source)).expanduser()
    name = BUNDLED if bundled else str(source)
    if path.is_file():
        pipe = open_file(path, dtype, allow_pickle, config)
    elif not path.is_dir() and _looks_like_file(source):
        raise FileNotFoundError(f"model {name!r}: there is no such file or folder")
    elif config is not None:
        raise ValueError(f"config is for a single file, and {name!r} is not one; leave config out")
    elif path.is_dir():
        pipe = open_folder(path, name, dtype, allow_pickle)
    else:
        path = fetch(name, allow_pickle)
        pipe = open_folder(path, name, dtype, allow_pickle)
    pipe.to(device)
    if all(weight.dim() < 5 for weight in pipe.vae.parameters()):  # not an autoencoder of videos
        pipe.vae.to(memory_format=torch.channels_last)
    if hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)
    return _model(pipe, name, path)


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Chooses a device.

    Args:
        device: the device or its name; default cuda, then mps, then cpu.

    Returns:
        The device.

    Raises:
        ValueError: an unknown device, or one that is not available.
    """
    if device is None:
        backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((name for name, there in backends.items() if there), "cpu"))
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {device!r} is unknown; use 'cuda', 'cuda:1', 'mps' or 'cpu'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but no CUDA GPU is available; use 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} does not exist; use one of cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    if device.type == "meta":
        raise ValueError("device 'meta' holds no numbers, so nothing can be drawn there; use 'cpu'")
    try:
        torch.empty(1, device=device)
    except (AssertionError, ImportError, RuntimeError):
        raise ValueError(
            f"device {str(device)!r} was asked for, but it is not available; use 'cpu'"
        ) from None
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """Chooses the default dtype of a device.

    Args:
        device: the device.

    Returns:
        bfloat16 if the hardware multiplies it natively, float16 on other GPUs, else float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    features = torch.cpu.get_capabilities()
    native = features.get("amx_bf16") or features.get("amx_tile") or features.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def _parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise ValueError(f"dtype must be a torch.dtype or one of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _model(pipe: DiffusionPipeline, name: str, folder: Path) -> Model:
    """Checks an open pipeline and makes a model of it."""
    family = family_of(type(pipe).__name__, name)
    spare = (*UNUSED, "text_encoder_3", "tokenizer_3")  # Stable Diffusion 3 draws without T5, too
    absent = [part for part, given in pipe.components.items() if given is None and part not in spare]
    if absent:
        raise ValueError(
            f"model {name!r} has no {', '.join(absent)}; open the pipeline with all of its parts"
        )
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    try:
        family.check(pipe)
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"model {name!r}: {error}") from error
    for network in networks:
        network.eval().requires_grad_(False)
    settings = _settings(folder, family.settings_of(pipe))
    kind, spacing = type(pipe.scheduler).__name__, pipe.scheduler.config.get("timestep_spacing")
    if kind in DISTILLED or kind.startswith("Euler") and spacing == "trailing":
        warnings.warn(
            f"model {name!r} has a scheduler for few steps ({kind}), as distilled models (LCM, turbo, lightning) "
            f"do. dsnb's defaults are {settings.steps} steps and guidance {settings.guidance:g}; such a model wants "
            "about 4 steps and guidance 1, with which DDIM inversion is inaccurate",
            stacklevel=3,
        )
    return Model(pipe, name, settings, family)


def _settings(folder: Path, defaults: Settings) -> Settings:
    """The defaults, changed by the folder's dsnb.json. Raises ValueError that names the file, key and value."""
    file = folder / "dsnb.json"
    if not file.is_file():
        return defaults
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Settings)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(
                f"unknown settings {sorted(set(values) - known)}; known are {', '.join(sorted(known))}"
            )
        for key, value in values.items():
            if key in ("steps", "skip"):
                checks.integer(key, value, int(key == "steps"))
            elif key == "eta":
                checks.number(key, value, above=0.0, high=1.0)
            elif key == "method_guidance":
                for method, number in checks.instance(key, value, dict, "it maps methods to numbers").items():
                    checks.number(
                        f"{key} of {checks.one_of(key, method, {*METHODS, *JOINT_METHODS})}", number
                    )
            else:
                checks.number(key, value)
        settings = replace(defaults, **values)
        if settings.skip >= settings.steps:
            raise ValueError(f"skip must be below steps ({settings.steps}), got {settings.skip}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    return settings


def _looks_like_file(source: Any) -> bool:
    """Whether a source that is not on disk looks like a path, and not like a hub id."""
    text = str(source)
    return (
        isinstance(source, Path)
        or text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or Path(text).suffix.lower() in (".safetensors", *PICKLES)
    )
