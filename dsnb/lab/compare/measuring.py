"""All measures of one image in two styles: `prepare` once per task and mask, `measure` once per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ... import metrics
from ...metrics import classifiers, networks, perceptual
from ..world import OBJECTS, PARAPHRASES, STYLES, describe, draw, random_pictures, templates
from .tasks import Task

SIDES = ("left", "right")
REFERENCES = 32  # images of each style that the Gram matrices are compared with
REFERENCE_SEED = 930_000


@dataclass(frozen=True)
class Networks:
    """The networks that measure. A measure whose network is missing is left out.

    Attributes:
        lpips: the perceptual network.
        classifier: the style classifier.
        clip: the evaluator CLIP, which shares no weights with the model.
        second: a second style classifier, from the evaluator CLIP.
        grams: mean Gram matrix per layer of each style, see `gram_references`.
        gram_size: images are resized to this many pixels before their Gram matrices are taken.
    """

    lpips: networks.Lpips
    classifier: classifiers.StyleClassifier | None = None
    clip: perceptual.Clip | None = None
    second: classifiers.StyleClassifier | None = None
    grams: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    gram_size: int = 128


def open_networks(
    styles: Sequence[str],
    *,
    lpips_network: str = "st-alex",
    clip_model: str | Path = "",
    device: str | torch.device = "cpu",
) -> Networks:
    """Open all networks that measure.

    Args:
        styles: the styles to make Gram references of.
        lpips_network: see `networks.load_lpips`.
        clip_model: a folder or hub id; "" for the bundled evaluator CLIP.
        device: where they run.

    Returns:
        The networks.
    """
    lpips = networks.load_lpips(lpips_network, device)
    clip = networks.load_clip(clip_model or networks.bundled_clip(), device)
    texts = [templates(style)[0].format("a picture") for style in STYLES]
    second = classifiers.ZeroShotClassifier(clip, tuple(STYLES), tuple(texts))
    generator = torch.Generator().manual_seed(REFERENCE_SEED)
    drawn = {style: draw(random_pictures(REFERENCES, generator), style) for style in sorted(styles)}
    # the probe works on the features of one network only
    classifier = classifiers.load_probe(network=lpips if lpips_network == "st-alex" else None)
    return Networks(lpips, classifier, clip, second, gram_references(lpips, drawn))


def gram_references(lpips: networks.Lpips, images: Mapping[str, Tensor], layers: int = 3, size: int = 128):
    """Mean Gram matrix per layer of each style, from images (R, 3, H, W) in [0, 1] of it, R >= 32."""
    return {
        style: metrics.gram_reference(
            [
                torch.cat(maps)
                for maps in zip(*(lpips.features(x, size, layers) for x in batch.split(16)), strict=True)
            ]
        )
        for style, batch in images.items()
    }


@dataclass(frozen=True)
class Target:
    """What the images of one task under one mask are measured against; made by `prepare`."""

    task: Task
    weights: Tensor  # of the mask, (2, H, W)
    from_noise: bool
    source: list[Tensor]  # LPIPS features of the source image
    ground_truth: Tensor | None = None  # the layers, blended by the mask: (1, 3, H, W)
    ground_truth_features: list[Tensor] | None = None
    texts: Tensor | None = None  # evaluator CLIP features of left, right and one prompt, and the caption
    views: Tensor | None = None  # evaluator CLIP features of the source image, whole and each side alone
    objects: Tensor | None = None  # evaluator CLIP features of every object in the task's scene and styles


def prepare(nets: Networks, task: Task, weights: Tensor, from_noise: bool = False) -> Target:
    """Compute once what depends on the task and the mask alone.

    Args:
        nets: the networks that measure.
        task: the task.
        weights: mask weights (2, H, W) at the image's size.
        from_noise: the images do not come from the source image, so nothing is compared with it.

    Returns:
        The target for `measure`.
    """
    found = {"source": nets.lpips.features(task.image)}
    if task.layers is not None:
        blended = (task.layers * weights[:, None]).sum(0, keepdim=True).clamp(0, 1)
        found |= {"ground_truth": blended, "ground_truth_features": nets.lpips.features(blended)}
    if nets.clip is not None:
        found["texts"] = nets.clip.text_features([*task.prompts, task.one_prompt, task.caption])
        found["views"] = _views(nets.clip, task.image, metrics.side_weights(weights))
        if task.shows is not None:
            found["objects"] = nets.clip.text_features(_object_texts(task)).unflatten(0, (-1, len(OBJECTS)))
    return Target(task, weights, from_noise, **found)


def _object_texts(task: Task) -> list[str]:
    """Captions of every object in the task's scene, in the left style, then in the right one."""
    scenes = [describe(name, int(task.shows.scene[0])) for name in OBJECTS]
    return [PARAPHRASES[style][0].format(scene) for style in task.styles for scene in scenes]


def _views(clip: perceptual.Clip, image: Tensor, sides: Tensor) -> Tensor:
    """CLIP features of the whole image, then of each side alone: (3, D)."""
    return clip.image_features(
        torch.cat([image, *(perceptual.isolate(image, side, clip.ground) for side in sides)])
    )


@torch.no_grad()
def measure(nets: Networks, image: Tensor, target: Target, singles: Tensor | None = None) -> dict[str, float]:
    """All measures of an image; `tables.MEASURES` says what each name means.

    Args:
        nets: the networks that measure.
        image: (1, 3, H, W) in [0, 1].
        target: what it is measured against.
        singles: the same image in either style alone (2, 3, H, W), for the seam.

    Returns:
        Measure -> value. Measures whose network or ground truth is missing are left out.
    """
    task, maps = target.task, nets.lpips.features(image)
    values = {
        "smoothness": metrics.smoothness(image),
        "smoothness_per_pixel": metrics.smoothness(image, per_pixel=True),
        "seam": metrics.seam(image, target.weights),
    }
    if singles is not None:
        values["seam_single"] = metrics.seam(image, target.weights, singles=singles)
    if not target.from_noise:
        values |= {
            "l2": metrics.l2(image, task.image),
            "psnr": metrics.psnr(image, task.image),
            "ssim": metrics.ssim(image, task.image),
            "lpips": nets.lpips.distance(maps, target.source),
            "layout": metrics.layout(image, task.image),
            "structure": perceptual.structure_distance(maps[3], target.source[3]),
        }
        if target.ground_truth is not None:
            values["truth"] = nets.lpips.distance(maps, target.ground_truth_features)
    if task.styles:
        values |= _style_measures(nets, image, maps, target)
    if nets.clip is not None:
        values |= _clip_measures(nets.clip, image, target)
    return {name: float(value) for name, value in values.items()}


def _style_measures(nets: Networks, image: Tensor, maps: list[Tensor], target: Target) -> dict:
    values, styles, sides = {}, target.task.styles, metrics.side_weights(target.weights)
    if all(style in nets.grams for style in styles):
        count = len(nets.grams[styles[0]])
        fits = tuple(image.shape[2:]) == (nets.gram_size, nets.gram_size)
        maps = maps[:count] if fits else nets.lpips.features(image, nets.gram_size, count)
        for side, style, weights in zip(SIDES, styles, sides, strict=True):
            values[f"gram_{side}"] = metrics.gram_distance(maps, nets.grams[style], weights)
            values[f"gram_whole_{side}"] = metrics.gram_distance(maps, nets.grams[style])
    if nets.classifier is not None:
        shown = classifiers.style_shown(nets.classifier, image, target.weights, styles)
        values |= {f"style_{side}": value for side, value in zip(SIDES, shown.pop("side")[0], strict=True)}
        values |= shown
    if nets.second is not None:
        probabilities = nets.second(image, sides)[0]
        asked = torch.tensor([nets.second.styles.index(style) for style in styles])
        own = probabilities[torch.arange(len(asked)), asked]
        values |= {f"second_{side}": value for side, value in zip(SIDES, own, strict=True)}
        values["second_both"] = (probabilities.argmax(-1) == asked).all()
        values["second_balance"] = metrics.balance(own)
    return values


def _clip_measures(clip: perceptual.Clip, image: Tensor, target: Target) -> dict:
    left, right, one_prompt, caption = target.texts
    after = _views(clip, image, metrics.side_weights(target.weights))
    whole, source = after[:1], target.views[:1]
    values = {"clip": perceptual.similarity(whole, one_prompt)}
    if not target.from_noise:
        values["direction"] = perceptual.direction(whole, source, one_prompt, caption)
    for k, (side, text) in enumerate(zip(SIDES, (left, right), strict=True), start=1):
        values[f"clip_{side}"] = perceptual.similarity(after[[k]], text)
        values[f"clip_whole_{side}"] = perceptual.similarity(whole, text)
        if not target.from_noise:
            values[f"direction_{side}"] = perceptual.direction(after[[k]], target.views[[k]], text, caption)
            values[f"direction_whole_{side}"] = perceptual.direction(whole, source, text, caption)
    if target.objects is not None:
        likeliest = (target.objects @ whole[0]).mean(0).argmax()
        values["object"] = likeliest == target.task.shows.object[0]
    return values
