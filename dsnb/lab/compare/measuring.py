"""All measures of one image in two styles: `prepare` once per task and mask, `measure` once per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ... import metrics
from ...metrics import classifiers, networks, perceptual
from ..world import OBJECTS, STYLES, draw, object_captions, random_pictures, templates
from .tasks import Task

SIDES = ("left", "right")
REFERENCES = 32  # images of each style that the Gram matrices are compared with
REFERENCE_SEED = 930_000
GRAM = {"size": 128, "layers": 3}  # what Gram matrices are taken of; texture has a scale
# these compare with the source
OF_SOURCE = ("l2", "psnr", "ssim", "lpips", "layout", "structure", "truth", "direction")


@dataclass(frozen=True)
class Networks:
    """The networks that measure. A measure whose network is missing is left out.

    Attributes:
        lpips: the perceptual network.
        classifier: the style classifier.
        clip: the evaluator CLIP, which shares no weights with the model.
        second: a second style classifier, from the evaluator CLIP.
        grams: mean Gram matrix per layer of each style, see `gram_references`.
    """

    lpips: networks.Lpips
    classifier: classifiers.StyleClassifier | None = None
    clip: perceptual.Clip | None = None
    second: classifiers.StyleClassifier | None = None
    grams: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


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
    pictures = random_pictures(REFERENCES, generator)  # the same for every style
    drawn = {style: draw(pictures, style) for style in styles}
    # the probe works on the features of one network only
    classifier = classifiers.load_probe(network=lpips if lpips_network == "st-alex" else None)
    return Networks(lpips, classifier, clip, second, gram_references(lpips, drawn))


def gram_references(lpips: networks.Lpips, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Mean Gram matrix per layer of each style, from images (R, 3, H, W) in [0, 1] of it, R >= 32."""
    return {style: metrics.gram_reference(lpips.features(batch, **GRAM)) for style, batch in images.items()}


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
            texts = chain(*(object_captions(style, int(task.shows.scene[0])) for style in task.styles))
            found["objects"] = nets.clip.text_features(list(texts)).unflatten(0, (-1, len(OBJECTS)))
    return Target(task, weights, from_noise, **found)


def _views(clip: perceptual.Clip, image: Tensor, sides: Tensor) -> Tensor:
    """CLIP features of the whole image, then of each side alone: (3, D)."""
    alone = [perceptual.isolate(image, side, clip.ground) for side in sides]
    return clip.image_features(torch.cat([image, *alone]))


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
        "l2": metrics.l2(image, task.image),
        "psnr": metrics.psnr(image, task.image),
        "ssim": metrics.ssim(image, task.image),
        "lpips": nets.lpips.distance(maps, target.source),
        "layout": metrics.layout(image, task.image),
        "structure": perceptual.structure_distance(maps[3], target.source[3]),
    }
    if singles is not None:
        values["seam_single"] = metrics.seam(image, target.weights, singles=singles)
    if target.ground_truth is not None:
        values["truth"] = nets.lpips.distance(maps, target.ground_truth_features)
    if task.styles:
        values |= _style_measures(nets, image, target)
    if nets.clip is not None:
        values |= _clip_measures(nets.clip, image, target)
    kept = {name for name in values if not (target.from_noise and name.startswith(OF_SOURCE))}
    return {name: float(value) for name, value in values.items() if name in kept}


def _style_measures(nets: Networks, image: Tensor, target: Target) -> dict[str, Tensor]:
    """Whether each side shows its style: by Gram matrices, the style classifier, and the evaluator CLIP."""
    values, styles = {}, target.task.styles
    if all(style in nets.grams for style in styles):
        maps = nets.lpips.features(image, **GRAM)
        for side, style, weights in zip(SIDES, styles, metrics.side_weights(target.weights), strict=True):
            values[f"gram_{side}"] = metrics.gram_distance(maps, nets.grams[style], weights)
    if nets.classifier is not None:
        shown = classifiers.style_shown(nets.classifier, image, target.weights, styles)
        values |= {"style_left": shown["side"][0, 0], "style_right": shown["side"][0, 1]}
        values |= {name: shown[name] for name in ("both", "balance", "monotonicity")}
    if nets.second is not None:
        shown = classifiers.style_shown(nets.second, image, target.weights, styles)
        values |= {"second_left": shown["side"][0, 0], "second_right": shown["side"][0, 1]}
        values |= {f"second_{name}": shown[name] for name in ("both", "balance")}
    return values


def _clip_measures(clip: perceptual.Clip, image: Tensor, target: Target) -> dict[str, Tensor]:
    """Whether the image and each side of it agree with their prompts, and whether its object is read."""
    left, right, one_prompt, caption = target.texts
    after = _views(clip, image, metrics.side_weights(target.weights))
    values = {}
    for k, (name, text) in enumerate({"": one_prompt, "_left": left, "_right": right}.items()):
        values[f"clip{name}"] = perceptual.similarity(after[[k]], text)
        values[f"direction{name}"] = perceptual.direction(after[[k]], target.views[[k]], text, caption)
    if target.objects is not None:
        likeliest = (target.objects @ after[0]).mean(0).argmax()
        values["object"] = likeliest == target.task.shows.object[0]
    return values
