"""From files to a complete diffusers pipeline: no weight may be missing, and pickle files must be allowed."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from torch import nn

from . import checks
from .families import family_of
from .models import DiffusionPipeline, quietly

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
LFS = b"version https://git-lfs"
FILE_KINDS = {
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
TRANSFORMERS = ("flux-2", "z-image", "qwen-image")  # kinds of files that hold no other part of the pipeline
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def open_folder(folder: Path, name: str, dtype: torch.dtype, allow_pickle: bool) -> DiffusionPipeline:
    """Opens a diffusers folder: first each network, to find missing weights, then the pipeline.

    Args:
        folder: the folder.
        name: the model that an error names.
        dtype: of the weights.
        allow_pickle: whether to read pickled weights.

    Returns:
        The pipeline.

    Raises:
        ValueError: the folder is not a model, or its weights are incomplete or pickled.
    """
    index = _index(folder, name)
    kind = index["_class_name"]
    family_of(kind, name)
    parts: dict[str, Any] = {
        part: _open_network(folder / part, kind, name, dtype, allow_pickle)
        for part, kind in _networks(index).items()
    }
    parts |= {part: None for part in UNUSED if part in index}
    if "requires_safety_checker" in index:
        parts["requires_safety_checker"] = False
    try:
        with quietly():
            return getattr(import_module("diffusers"), kind).from_pretrained(folder, **parts)
    except Exception as error:
        raise ValueError(f"model {name!r} cannot be opened: {error}") from error


def _index(folder: Path, name: str) -> dict[str, Any]:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        checks.text("_class_name", index["_class_name"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"model folder {name!r} is not a diffusers model: it has no readable model_index.json (expected beside "
            "it: scheduler, tokenizers, text encoders, vae, and unet or transformer)"
        ) from error
    return index


def _networks(index: dict[str, Any]) -> dict[str, type]:
    """The components with weights that are opened, and their classes."""
    found = {}
    for part, entry in index.items():
        if isinstance(entry, list) and entry[0] in ("diffusers", "transformers") and entry[1]:
            kind = getattr(import_module(entry[0]), entry[1], None)
            if isinstance(kind, type) and issubclass(kind, nn.Module) and part not in UNUSED:
                found[part] = kind
    return found


def _open_network(folder: Path, kind: type, name: str, dtype: torch.dtype, allow_pickle: bool) -> nn.Module:
    """One component, complete. Raises ValueError."""
    part = f"model {name!r}: {folder.name}"
    files = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", *PICKLES))
    for file in files:
        _refuse_pointer(file, part)
    safe = [file.name for file in files if file.suffix == ".safetensors"]
    if not files:
        raise ValueError(f"{part} cannot be opened: there are no weights in {str(folder)!r}")
    if not safe and not allow_pickle:
        raise ValueError(
            f"{part} cannot be opened: it has only pickled weights ({files[0].name}), which can run code when they are "
            "opened. Convert them, or pass allow_pickle=True if you trust their author"
        )
    half = all(re.search(r"\.fp16[.-]", file) for file in safe or [file.name for file in files])
    options: dict[str, Any] = {
        "variant": "fp16" if half else None,
        "use_safetensors": bool(safe),
        "output_loading_info": True,
    }
    options["dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"] = dtype
    try:
        with quietly():
            network, info = kind.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    except Exception as error:
        raise ValueError(f"{part} cannot be opened: {error}") from error
    _refuse_missing(network, part, info["missing_keys"])
    return network


def _refuse_missing(network: nn.Module, part: str, missing: Iterable[str] = ()) -> None:
    """ValueError for tensors that the library reports as missing, or leaves without values."""
    names = sorted({*missing, *(name for name, tensor in network.state_dict().items() if tensor.is_meta)})
    if names:
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise ValueError(f"{part} cannot be opened: {len(names)} tensors are missing from its file: {shown}")


def _refuse_pointer(file: Path, part: str) -> None:
    with file.open("rb") as opened:
        if opened.read(len(LFS)) == LFS:
            raise ValueError(
                f"{part} cannot be opened: {file.name} is a Git LFS pointer, not the weights; run `git lfs pull` in "
                "the clone, or download the file itself"
            )


def open_file(
    path: Path, dtype: torch.dtype, allow_pickle: bool, config: str | Path | None
) -> DiffusionPipeline:
    """Opens a single file. Its keys, or `config`, decide its pipeline class.

    Args:
        path: the file.
        dtype: of the weights.
        allow_pickle: whether to read another file than .safetensors.
        config: a folder or hub id with the same architecture and scheduler.

    Returns:
        The pipeline.

    Raises:
        ValueError: the file is not a complete model, or pickled.
    """
    part = f"model file {str(path)!r}"
    if path.suffix.lower() != ".safetensors" and not allow_pickle:
        raise ValueError(
            f"{part} is not a .safetensors file; such weights can run code when they are opened. Convert it, or "
            "pass allow_pickle=True if you trust its author"
        )
    _refuse_pointer(path, part)
    with quietly():
        files = import_module("diffusers.loaders.single_file_utils")
    try:
        kind = files.infer_diffusers_model_type(files.load_single_file_checkpoint(str(path)))
    except Exception as error:
        raise ValueError(f"{part} cannot be opened: it holds no readable weights: {error}") from error
    if kind.startswith(TRANSFORMERS):
        raise ValueError(
            f"{part} holds only a transformer ({kind}); open the folder or hub id of the model, or pass a pipeline"
        )
    kind = next(
        (name for start, name in FILE_KINDS.items() if kind.startswith(start)), "StableDiffusionPipeline"
    )
    if config is not None and Path(config).is_dir():
        kind = _index(Path(config), str(config))["_class_name"]
    family_of(kind, str(path))
    options: dict[str, Any] = {"torch_dtype": dtype} | ({} if config is None else {"config": str(config)})
    if kind == "StableDiffusionPipeline":
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with quietly():
            pipe = getattr(import_module("diffusers"), kind).from_single_file(str(path), **options)
    except Exception as error:
        hint = ". Without network, pass config='FOLDER' with the configuration of the same architecture"
        raise ValueError(f"{part} cannot be opened: {error}{hint if config is None else ''}") from error
    for component, network in pipe.components.items():
        if isinstance(network, nn.Module):
            # T5's embedding has two names, and a file may have only one of them
            getattr(network, "tie_weights", lambda: None)()
            _refuse_missing(network, f"{part}: {component}")
    return pipe


def fetch(name: str, allow_pickle: bool) -> Path:
    """Downloads a model from the hub into its cache, in full precision or, if there is none, in half precision.

    Args:
        name: the hub id.
        allow_pickle: whether to download pickled weights.

    Returns:
        The folder in the cache.

    Raises:
        OSError: the hub does not answer, or has no such model.
        ValueError: no family opens the model.
    """
    wanted = {".safetensors", *(PICKLES if allow_pickle else ())}
    try:
        with quietly():
            _ask_hub(name)
            family_of(DiffusionPipeline.load_config(name)["_class_name"], name)  # before any weights
            for variant in (None, "fp16"):
                options = {"variant": variant, "use_safetensors": None if allow_pickle else True}
                try:
                    folder = Path(DiffusionPipeline.download(name, **options))
                except OSError:  # no safetensors in full precision
                    if variant is not None:
                        raise
                    continue
                parts = [
                    {file.suffix for file in folder.glob(f"{p}/*")} for p in _networks(_index(folder, name))
                ]
                if all(found & wanted for found in parts):
                    break
            _fetch_settings(name)
    except OSError as error:
        raise OSError(
            f"model {name!r} could not be fetched from the hub (offline, or no such model). Without a name, "
            f"dsnb opens the bundled model. Or pass a local folder or .safetensors file. The hub's error: {error}"
        ) from error
    return folder


def _fetch_settings(name: str) -> None:
    """Downloads the model's `dsnb.json`, if it has one. The download of diffusers leaves it out."""
    if try_to_load_from_cache(name, "dsnb.json") is None:
        with suppress(OSError):  # there is none
            _ask_hub(name, "dsnb.json")
            hf_hub_download(name, "dsnb.json")


def _ask_hub(name: str, file: str = "model_index.json") -> None:
    """Asks the hub once for a model's file that is not in the cache. Raises OSError.

    A download alone would ask for 23 seconds before it reports that the hub does not answer.
    """
    try:
        if isinstance(try_to_load_from_cache(name, file), str):
            return
        get_hf_file_metadata(hf_hub_url(name, file))
    except Exception as error:  # each version of the hub's client has its own classes of errors
        raise OSError(str(error)) from error
