"""Seamless dual-style image generation with diffusion models.

The names below are imported on first use, so `import dsnb` is fast and does not import torch.
"""

from importlib import import_module
from pathlib import Path

__version__ = "0.5.0"

_EXPORTS = {
    "load": "checkpoints",
    "Model": "models",
    "Settings": "models",
    "read_image": "images",
    "invert": "inversion",
    "from_noise": "inversion",
    "Trajectory": "inversion",
    "blend": "methods",
    "decode": "methods",
}
_MODULES = (
    "adapters", "app", "attention", "attention_maps", "checkpoints", "checks", "epsilon", "families", "films", "guider",
    "images", "inversion", "joint", "kernels", "lab", "masks", "memory", "methods", "metrics", "models", "panel",
    "plotting", "prompts", "regional", "sampling", "weights", "widgets",
)  # fmt: skip

__all__ = [*_EXPORTS, "data_path"]


def data_path(*parts: str) -> Path:
    """The path of a bundled file, such as the model, an image or the prompts.

    Args:
        parts: folders and file name below `data/`, e.g. `data_path("images", "bear_grass.png")`.

    Returns:
        The path inside the installed package, or in the repository's `data/` if dsnb runs from a clone.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_data"
    return (installed if installed.is_dir() else package.parent / "data").joinpath(*parts)


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(f"dsnb.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return import_module(f"dsnb.{name}")
    raise AttributeError(f"module 'dsnb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
