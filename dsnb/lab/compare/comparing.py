"""The comparison of methods: same pictures, prompts, noise and guidance for each, then every measure.

A `Task` is a picture and what is asked of it, `Eyes` are the networks that look at the results. `compare`
returns one row per picture, mask and method, which `tables` turns into means, errors and paired
differences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import metrics
from ...images import read_image
from ...inversion import invert
from ...masks import Mask
from ...methods import blend, blend_pixels, decode
from ...metrics import perceptual
from ...metrics.classifiers import StyleClassifier, style_shown
from ...metrics.networks import Lpips
from ...models import Model

SIDES = ("left", "right")
TRUE_MIX = "true mix"  # in the place of a method: true pictures, faded into each other by the mask


@dataclass(frozen=True)
class Task:
    """One picture (1, 3, H, W) in [0, 1], its caption, and the two styles asked for, left first.

    `styles` are names that the reader and the Gram references know; without them those measures are left out.
    `layers` (2, 3, H, W), in [0, 1] too, are the true pictures in either style, where they are known.
    """

    name: str
    image: Tensor
    caption: str
    prompts: tuple[str, str]
    one_prompt: str
    styles: tuple[str, ...] = ()
    layers: Tensor | None = None

    @property
    def pair(self) -> str:
        return " / ".join(self.styles) if self.styles else "own prompts"


@dataclass(frozen=True)
class Eyes:
    """The networks that measure; without a reader, a CLIP or Gram references their measures are left out."""

    lpips: Lpips
    reader: StyleClassifier | None = None
    clip: perceptual.Clip | None = None
    grams: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)  # style → mean Gram matrix per layer
    size: int = 128  # pixels to which pictures are resized before their Gram matrices are taken
    second: StyleClassifier | None = None  # another opinion on the styles, in columns of its own


class Gauge:
    """All measures of one task under one mask: `Gauge(eyes, task, weights)(image)` → {name: value}.

    `weights` (2, H, W) are the mask's. What depends on the source picture and the texts alone is worked out once;
    `truth` is the LPIPS distance from the true pictures mixed by the mask, lower is nearer. `singles` (2, 3, H, W) are
    the model's own pictures in either style, for the seam. Every measure is described where it is computed, in
    `metrics`, `perceptual` and `readers`.
    """

    def __init__(self, eyes: Eyes, task: Task, weights: Tensor, singles: Tensor | None = None):
        self.eyes, self.task, self.weights, self.singles = eyes, task, weights, singles
        self.sides = metrics.side_weights(weights)
        self.source = eyes.lpips.features(task.image)
        self.true_mix = self.truth = None
        if task.layers is not None:
            self.true_mix = (task.layers * weights[:, None]).sum(0, keepdim=True).clamp(0, 1)
            self.truth = eyes.lpips.features(self.true_mix)
        if eyes.clip is not None:
            self.texts = eyes.clip.text_features([*task.prompts, task.one_prompt, task.caption])
            self.before = self._clip_views(task.image)

    def _clip_views(self, image: Tensor) -> Tensor:
        """CLIP features of the whole picture, then of each side alone: (3, D)."""
        alone = [perceptual.isolate(image, side, self.eyes.clip.ground) for side in self.sides]
        return self.eyes.clip.image_features(torch.cat([image, *alone]))

    def __call__(self, image: Tensor, singles: Tensor | None = None) -> dict[str, float]:
        """The measures of an image (1, 3, H, W); `singles`: in the place of those given before."""
        singles = self.singles if singles is None else singles
        maps = self.eyes.lpips.features(image)
        values = {
            "l2": metrics.l2(image, self.task.image),
            "psnr": metrics.psnr(image, self.task.image),
            "ssim": metrics.ssim(image, self.task.image),
            "lpips": self.eyes.lpips.distance(maps, self.source),
            "layout": metrics.layout(image, self.task.image),
            "structure": perceptual.structure_distance(maps[3], self.source[3]),
            "smoothness": metrics.smoothness(image),
            "smoothness_per_pixel": metrics.smoothness(image, per_pixel=True),
            "seam": metrics.seam(image, self.weights),
        }
        if self.truth is not None:
            values["truth"] = self.eyes.lpips.distance(maps, self.truth)
        if singles is not None:
            values["seam_single"] = metrics.seam(image, self.weights, singles=singles)
        if self.task.styles:
            values |= self._styles(image, maps)
        if self.eyes.clip is not None:
            values |= self._clip(image)
        return {name: float(value) for name, value in values.items()}

    def _styles(self, image: Tensor, maps: list[Tensor]) -> dict:
        values, styles = {}, self.task.styles
        if all(style in self.eyes.grams for style in styles):
            count = len(self.eyes.grams[styles[0]])
            fits = tuple(image.shape[2:]) == (self.eyes.size, self.eyes.size)
            maps = maps[:count] if fits else self.eyes.lpips.features(image, self.eyes.size, count)
            for side, style, weights in zip(SIDES, styles, self.sides, strict=True):
                values[f"gram_{side}"] = metrics.gram_distance(maps, self.eyes.grams[style], weights)
                values[f"gram_whole_{side}"] = metrics.gram_distance(maps, self.eyes.grams[style])
        if self.eyes.reader is not None:
            shown = style_shown(self.eyes.reader, image, self.weights, styles)
            values |= {
                f"style_{side}": value for side, value in zip(SIDES, shown.pop("side")[0], strict=True)
            }
            values |= shown
        if self.eyes.second is not None:
            side = self.eyes.second(image, self.sides)[0]
            index = [self.eyes.second.styles.index(style) for style in styles]
            values |= {f"second_{name}": side[k, index[k]] for k, name in enumerate(SIDES)}
            values["second_both"] = (side.argmax(-1) == torch.tensor(index)).all()
            values["second_balance"] = metrics.balance(side[torch.arange(len(index)), index])
        return values

    def _clip(self, image: Tensor) -> dict:
        after, (left, right, one, caption) = self._clip_views(image), self.texts
        whole, before = after[:1], self.before[:1]
        values = {
            "clip": perceptual.similarity(whole, one),
            "direction": perceptual.direction(whole, before, one, caption),
        }
        for k, (side, text) in enumerate(zip(SIDES, (left, right), strict=True), start=1):
            values[f"clip_{side}"] = perceptual.similarity(after[[k]], text)
            values[f"clip_whole_{side}"] = perceptual.similarity(whole, text)
            values[f"direction_{side}"] = perceptual.direction(after[[k]], self.before[[k]], text, caption)
            values[f"direction_whole_{side}"] = perceptual.direction(whole, before, text, caption)
        return values


def gram_references(lpips: Lpips, pictures: Mapping[str, Tensor], layers: int = 3, size: int = 128) -> dict:
    """Style → mean Gram matrix per layer, from at least 32 pictures (R, 3, H, W) in [0, 1] of each style."""
    return {
        style: metrics.gram_reference(
            [
                torch.cat(maps)
                for maps in zip(*(lpips.features(x, size, layers) for x in images.split(16)), strict=True)
            ]
        )
        for style, images in pictures.items()
    }


def noise_seed(task: Task, seed: int) -> int:
    """The seed of one picture's noise: its own, whatever other pictures are compared beside it."""
    return seed * 1_000_003 + crc32(task.name.encode())


def compare(
    model: Model,
    tasks: Sequence[Task],
    masks: Mapping[str, Mask],
    methods: Sequence[str],
    eyes: Eyes,
    *,
    guidance: float | None = None,
    steps: int | None = None,
    skip: int | None = None,
    eta: float | None = None,
    passes: Sequence[float] = (1.0,),
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[dict], dict[tuple[str, str, str, str], Tensor]]:
    """Run every method on every task and mask, and measure → rows, pictures by (name, pair, mask, method).

    Every method decodes the same trajectory of the same picture, recorded with the same noise, at
    the same guidance; None takes the model's own settings. `passes`: of attention, see `methods.blend`.
    Where a task's true layers are known, their mix is measured too, as the method TRUE_MIX.
    ValueError for whatever `invert` and `blend` refuse.
    """
    options = {"guidance": guidance, "progress": False}
    record = {"steps": steps, "skip": skip, "eta": eta, "progress": False}
    rows, pictures = [], {}
    for task in tqdm(tasks, desc="comparing", unit="picture", disable=not progress):
        noise = torch.Generator().manual_seed(noise_seed(task, seed))
        start = invert(model, task.image, task.caption, generator=noise, **record)
        singles = None
        if "pixel" in methods:
            singles = torch.cat([decode(model, start, prompt, **options) for prompt in task.prompts])
        unmasked = {}
        for mask_name, mask in masks.items():
            weights = mask.weights(*task.image.shape[2:])
            gauge = Gauge(eyes, task, weights, singles)
            for method in [*methods, *([] if gauge.true_mix is None else [TRUE_MIX])]:
                if method == TRUE_MIX:
                    image = gauge.true_mix
                elif method == "pixel":
                    image = blend_pixels(singles[:, None], mask)
                elif method in unmasked:
                    image = unmasked[method]
                else:
                    own = {"attention": {"passes": passes}, "prompt": {"one_prompt": task.one_prompt}}
                    image = blend(
                        model, start, task.prompts, mask, method=method, **own.get(method, {}), **options
                    )
                if method == "prompt":
                    unmasked[method] = image
                head = {"picture": task.name, "pair": task.pair, "mask": mask_name, "method": method}
                rows.append(head | gauge(image, task.layers if method == TRUE_MIX else None))
                pictures[task.name, task.pair, mask_name, method] = image
    return rows, pictures


def read_pairs(path: str | Path, model: Model | None = None, styles: Sequence[str] = ()) -> list[Task]:
    """Tasks from a pairs file, a JSON list of {encode_text, decode_text: {left_prompt, right_prompt},
    decode_text_total, img_path}.

    Pictures are looked for from the file's folder first, then from the working one, and read at the
    model's size. ValueError names the entry and what is missing in it; FileNotFoundError the picture that
    is not there.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"pairs file {str(path)!r} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(
            f"pairs file {str(path)!r} holds a {type(entries).__name__}, expected a list of entries"
        )
    tasks = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("decode_text", {}), dict):
            raise ValueError(
                f"pairs file {str(path)!r}, entry {index} is {entry!r}, expected an object whose decode_text is one too"
            )
        try:
            sides = entry["decode_text"]
            caption, one, picture = entry["encode_text"], entry["decode_text_total"], entry["img_path"]
            prompts = sides["left_prompt"], sides["right_prompt"]
        except KeyError as error:
            raise ValueError(f"pairs file {str(path)!r}, entry {index}: {error} is missing") from None
        place = path.parent / picture
        image = read_image(place if place.is_file() else picture, model)
        tasks.append(Task(f"{index:03d} {Path(picture).stem}", image, caption, prompts, one, tuple(styles)))
    return tasks
