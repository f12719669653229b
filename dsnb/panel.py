"""The panel of notebook 00: one image in two styles, with controls for the mask, the method and the noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checks, masks, prompts
from .inversion import Trajectory, from_noise
from .masks import Mask
from .methods import TITLES, blend, blend_pixels, decode
from .models import Model
from .sampling import Step
from .widgets import Panel, explore
from .widgets.painting import Painter

# The masks of the panel, as functions of the sharpness and of the angle in degrees.
SHAPES: Mapping[str, Callable[[float, float], Mask]] = {
    "logistic": lambda sharpness, angle: masks.logistic(sharpness, angle=angle),
    "linear": lambda sharpness, angle: masks.linear(angle=angle),
    "radial": lambda sharpness, angle: masks.radial(sharpness=sharpness),
    "stripes": lambda sharpness, angle: masks.stripes(6, sharpness=sharpness, angle=angle),
}
KEPT = 12  # images in memory, so that a new wipe, or a new mask of finished images, needs no drawing


def blend_panel(
    model: Model,
    images: Sequence[Tensor],
    captions: Sequence[str],
    invert: Callable[[int, int, int], Trajectory],
    *,
    pair: tuple[str, str] = ("minecraft", "vangogh"),
    method: str = "combined",
    shape: str = "logistic",
    sharpness: float = 20.0,
    angle: float = 0.0,
    guidance: float | None = None,
    seed: int = 0,
    steps: int | None = None,
    preview_steps: int = 4,
    painter: Painter | None = None,
    save_as: str | None = "blend",
    settings: Mapping[str, object] | None = None,
    progress: bool = True,
) -> Panel:
    """A panel that blends two styles in an image, and compares two methods.

    The slider `wipe` divides the image: one method is left of it, the other one right.

    Args:
        model: a model with a UNet.
        images: the source images, each (1, 3, H, W) in [0, 1].
        captions: what each image shows; all different.
        invert: `invert(index, seed, steps)` gives the trajectory of an image. It should store its results.
        pair: the two styles at the start; the first one is at the left.
        method: the first method, one of `TITLES`.
        shape: the first mask, one of `SHAPES`.
        sharpness: of the first mask, above 0.
        angle: the direction from the first style to the second, in degrees.
        guidance: the first guidance scale; default the model's for the method.
        seed: of the first noise, from 0.
        steps: denoising steps of the full image; default the model's.
        preview_steps: denoising steps of the coarse image while a slider moves.
        painter: a mask to paint, from `widgets.paint`; it becomes the shape "painted".
        save_as: how the names of saved files begin; None for a panel that does not save.
        settings: what saved files contain besides the values of the sliders.
        progress: whether the first image shows a progress bar.

    Returns:
        The panel, as `widgets.explore` makes it.

    Raises:
        ValueError: an unknown method or shape, not two styles, or captions that do not fit the images.
        TypeError: `captions` is not a list of texts.
    """
    checks.one_of("method", method, TITLES)
    checks.one_of("shape", shape, SHAPES)
    captions = checks.texts("captions", captions)
    if len(images) != len(captions) or len(set(captions)) != len(captions):
        raise ValueError(f"captions must be one different text per image ({len(images)}), got {captions}")
    if len(pair) != 2:
        raise ValueError(f"pair must be two styles, got {pair!r}")
    if guidance is None:
        guidance = model.settings.guidance_of(method)
    steps = model.settings.steps if steps is None else steps
    pair = (pair[0], pair[1])
    shapes: dict[str, Callable[..., Mask]] = dict(SHAPES)
    more: dict[str, Any] = {}  # controls that need more than one image, or a painter
    labels = {"pair": "styles", "other": "other method", "shape": "mask"}
    if len(images) > 1:
        more["picture"] = {text: index for index, text in enumerate(captions)}
        labels["picture"] = "image"
    if painter is not None:
        shapes["painted"], more["painted"] = masks.from_weights, painter
    drawn: dict[tuple, Tensor] = {}  # the last images, in the order of their use

    def keep(key: tuple, make: Callable[[], Tensor]) -> Tensor:
        # the image that was used last is removed last
        drawn[key] = drawn.pop(key) if key in drawn else make()
        while len(drawn) > KEPT:
            del drawn[next(iter(drawn))]
        return drawn[key]

    def one(
        image: int, pair: tuple[str, str], method: str, mask: tuple, guidance: float, seed: int, from_noise_: bool,
        steps: int, report: Callable[[Step], None] | None,
    ) -> Tensor:  # fmt: skip
        shape, *drawing = mask
        painted = drawing[0].tobytes() if shape == "painted" else tuple(drawing)
        texts = [prompts.prompt(style, captions[image]) for style in pair]
        rest = (image, guidance, seed, from_noise_, steps)
        options: dict[str, Any] = {"guidance": guidance, "callback": report, "progress": False}

        def start() -> Trajectory:
            if from_noise_:
                height, width = images[image].shape[-2:]
                return from_noise(model, (height, width), seed=seed, steps=steps)
            return invert(image, seed, steps)

        def finished() -> Tensor:
            """The image of each style alone, drawn in one batch."""
            alone, n = start(), len(texts)
            noises = alone.noises.repeat(1, n, 1, 1, 1)
            every = replace(alone, x_T=alone.x_T.repeat(n, 1, 1, 1), noises=noises, caption=captions[image])
            return decode(model, every, texts, **options)

        def make() -> Tensor:
            chosen = shapes[shape](*drawing)
            if method == "pixel":  # the finished images serve every mask
                return blend_pixels(keep((*texts, *rest), finished)[:, None], chosen)
            if method == "prompt" and all(map(prompts.known, pair)):
                options["one_prompt"] = prompts.one_prompt(pair, captions[image])
            return blend(model, start(), texts, chosen, method=method, **options)

        return keep((*texts, method, shape, painted, *rest), make)

    def draw(
        picture: int = 0, pair: tuple[str, str] = pair, method: str = method, other: str = "pixel", wipe: float = 1.0,
        shape: str = shape, sharpness: float = sharpness, angle: float = angle % 360, painted: np.ndarray | None = None,
        guidance: float = guidance, seed: int = seed, from_noise: bool = False, steps: int = steps,
        report: Callable[[Step], None] | None = None,
    ) -> Tensor:  # fmt: skip
        mask = (shape, painted) if shape == "painted" else (shape, sharpness, angle)
        rest = (mask, guidance, seed, from_noise, steps, report)
        left = one(picture, pair, method, *rest)
        column = round(wipe * left.shape[-1])  # where the other method begins
        if column == left.shape[-1]:
            return left
        return torch.cat([left[..., :column], one(picture, pair, other, *rest)[..., column:]], -1)

    return explore(
        draw,
        preview=lambda **values: draw(**values, steps=preview_steps),
        play="angle",
        save_as=save_as,
        settings={"model": model.name, "captions": list(captions), "steps": steps, **(settings or {})},
        pair=_pairs(pair),
        method={title: name for name, title in TITLES.items()},
        other={title: name for name, title in TITLES.items()},
        wipe=(0.0, 1.0, 0.05),
        shape=list(shapes),
        sharpness=(min(1.0, sharpness), max(100.0, sharpness), 1.0),
        angle=(0.0, 360.0, 15.0),
        guidance=(min(0.0, guidance), max(30.0, guidance), 0.5),
        seed=(0, max(20, seed)),
        from_noise=False,
        **more,
        labels=labels,
        progress=progress,
    )


def _pairs(pair: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """The pairs to choose from; `pair` is one of them."""
    pairs = {" / ".join(map(prompts.title, both)): both for both in prompts.pairs()}
    return pairs if pair in pairs.values() else pairs | {"yours": pair}
