"""The families of models that dsnb opens: one small file each, with one interface, `base.Family`."""

from .base import Family, Prompts, Settings
from .flux import Flux
from .flux2 import Flux2
from .qwen_image import QwenImage
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion
from .z_image import ZImage

__all__ = ["FAMILIES", "Family", "Prompts", "Settings", "family_of"]

FAMILIES: tuple[Family, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
    Flux2(),
    QwenImage(),
    ZImage(),
)


def family_of(pipeline: str, model: str) -> Family:
    """The family of a diffusers pipeline class.

    Args:
        pipeline: the name of the class.
        model: its name in an error.

    Returns:
        The family.

    Raises:
        ValueError: no family opens this class.
    """
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    hint = ""
    if any(word in pipeline for word in ("ControlNet", "Adapter", "PAG", "Inpaint", "Img2Img")):
        hint = "; make a plain one from the same parts, e.g. StableDiffusionPipeline.from_pipe(pipe)"
    raise ValueError(f"model {model!r} holds a {pipeline}; needed is one of {known}{hint}")
