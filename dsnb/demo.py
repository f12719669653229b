"""The first run of dsnb: one bundled image in two styles, by every method."""

from collections.abc import Iterator
from pathlib import Path

import torch

from . import masks, plotting, prompts
from .checkpoints import load
from .files import write_whole
from .images import read_image
from .inversion import invert
from .methods import TITLES, blend

IMAGE, LEFT, RIGHT = "bear_grass", "minecraft", "vangogh"
OTHERS = ("prompt", "pixel", "epsilon", "attention")


def draw(folder: str | Path = ".", steps: int | None = None) -> Iterator[Path]:
    """Blend the demo image and save it, then save it beside the results of the other methods.

    Args:
        folder: an existing folder for both files.
        steps: denoising steps, at least 2; default those of the model.

    Yields:
        The path of each PNG file as soon as it is complete: first the image of method combined, then the comparison of
        the source image, the baselines and the methods.

    Raises:
        ValueError: `steps` is out of range.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder).resolve()
    model, picture = load(), prompts.picture(IMAGE)
    source = read_image(picture.file, model)
    generator = torch.Generator().manual_seed(0)
    trajectory = invert(model, source, picture.caption, steps=steps, generator=generator)
    styled = [prompts.prompt(style, picture.caption) for style in (LEFT, RIGHT)]
    mask = masks.logistic(sharpness=20)

    combined = blend(model, trajectory, styled, mask, method="combined")
    first = folder / "dsnb_demo.png"
    write_whole(first, plotting.png_bytes(combined))
    yield first

    together = prompts.one_prompt([LEFT, RIGHT], picture.caption)
    columns = {"source image": source}
    for method in OTHERS:
        text = together if method == "prompt" else None
        columns[TITLES[method]] = blend(model, trajectory, styled, mask, method=method, one_prompt=text)
    columns["combined"] = combined
    strip = plotting.show_grid(list(columns.values()), list(columns))
    yield plotting.save_figure(strip, str(folder / "dsnb_demo_methods.png"))
