"""Measures that use a network, which the caller passes: LPIPS, CLIP and deep structure.

Images are float32 in [0, 1], (B, 3, H, W). Every docstring gives the range, the better direction and the source. The
networks are an `Lpips`, or a class with the methods of `Clip`; `networks` opens both.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from .measures import check_images, side_weights
from .networks import Lpips

# --- LPIPS -------------------------------------------------------------------------------------------


@torch.no_grad()
def lpips(network: Lpips, images: Tensor, targets: Tensor) -> Tensor:
    """Learned perceptual distance. Range [0, about 1]; 0 for equal images, lower is nearer.

    Source: Zhang et al. 2018, eq. 1. It is the squared difference of channel-normalised features, weighted per channel,
    averaged over positions and summed over layers.

    Args:
        network: from `networks.load_lpips`.
        images, targets: (B, 3, H, W) in [0, 1]; each side should have at least 64 pixels.

    Returns:
        (B,).

    Raises:
        ValueError: the shapes differ, a range is wrong, or a side has fewer than `networks.SMALLEST` pixels.
    """
    return network(images, targets)


# --- structure -----------------------------------------------------------------------------------------


def structure_distance(features: Tensor, source: Tensor, grid: int = 16) -> Tensor:
    """Mean |S(a) − S(b)| of cosine self-similarities S of deep features. 0 for equal images; lower keeps more.

    Range [0, 2], or [0, 1] for features that are never negative. Source: after Tumanyan et al. 2022 (Splicing ViT
    Features, eq. 3), here with any features. With the LPIPS networks at 128 pixels, this measure depends mostly on the
    style, see notebook 13.

    Args:
        features, source: features (B, C, h, w) of the images and of their source images.
        grid: larger maps are averaged to grid × grid.

    Returns:
        (B,).

    Raises:
        ValueError: the shapes differ, or `grid` is below 1.
        TypeError: `grid` is not a whole number.
    """
    grid = checks.integer("grid", grid, 1)
    if features.shape != source.shape:
        raise ValueError(f"source is {tuple(source.shape)}, expected {tuple(features.shape)} like features")
    tokens = [
        F.adaptive_avg_pool2d(x.float(), (min(grid, x.shape[2]), min(grid, x.shape[3])))
        for x in (features, source)
    ]
    unit = [F.normalize(x.flatten(2), dim=1) for x in tokens]
    return (unit[0].mT @ unit[0] - unit[1].mT @ unit[1]).abs().mean((1, 2)).cpu()


# --- CLIP ----------------------------------------------------------------------------------------------


class Clip(Protocol):
    """The methods that the CLIP measures need. All features have unit length; `scale` is the logit scale."""

    ground: tuple[float, float, float]  # the colour that its preprocessing maps to zero
    scale: float

    def image_features(self, images: Tensor) -> Tensor: ...  # (B, 3, H, W) → (B, D)

    def text_features(self, texts: list[str]) -> Tensor: ...  # P texts → (P, D)


def similarity(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of image and text features. Range [-1, 1]; higher is nearer.

    Source: CLIPScore (Hessel et al. 2021) is 2.5 · max(this, 0). Many tables print 100 times this number.

    Args:
        features: of the images (B, D).
        text_features: (D,) or (B, D).

    Returns:
        (B,).
    """
    return F.cosine_similarity(features, text_features.expand_as(features), dim=-1)


def direction(features: Tensor, source: Tensor, text: Tensor, source_text: Tensor) -> Tensor:
    """Cosine of the change of the image and the change of the text. Range [-1, 1]; higher is better.

    Source: directional CLIP similarity (Gal et al. 2022, StyleGAN-NADA, eq. 2). An unchanged image gives 0.

    Args:
        features, source: of the results and of the source images (B, D).
        text, source_text: of the target text and of the source text, (D,) or (B, D).

    Returns:
        (B,).
    """
    return F.cosine_similarity(features - source, (text - source_text).expand_as(features), dim=-1)


def isolate(images: Tensor, side: Tensor, ground: tuple[float, float, float]) -> Tensor:
    """Images that show one side alone. Source: this project.

    The box around the pixels where the style leads by 0.5 or more is mirrored until it fills the image. If it leads by
    less everywhere, the box is around the pixels where it leads most. So a network sees no empty part. Inside the box,
    pixels of other sides fade to the colour `ground`. It is not enough to average a network's features of the whole
    image over one side, because they also depend on the other side.

    Args:
        images: (B, 3, H, W) in [0, 1].
        side: (H, W) in [0, 1], from `measures.side_weights`.
        ground: a neutral colour, see `Clip`.

    Returns:
        (B, 3, H, W).

    Raises:
        ValueError: `side` has another size than the images.
    """
    side = torch.as_tensor(side).to(images)
    if side.shape != images.shape[2:]:
        raise ValueError(f"side is {tuple(side.shape)}, expected {tuple(images.shape[2:])} like images")
    shown = (2 * side).clamp(0, 1)
    images = check_images(images) * shown + torch.tensor(ground).to(images).view(1, 3, 1, 1) * (1 - shown)
    led = side >= min(0.5, side.max().item())
    rows, columns = led.any(1).nonzero()[:, 0], led.any(0).nonzero()[:, 0]
    box = images[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box[:, :, _mirrored(box.shape[2], side.shape[0])][..., _mirrored(box.shape[3], side.shape[1])]


def _mirrored(length: int, total: int) -> Tensor:
    """Indices 0, 1, …, length − 1, length − 1, …, 0, 0, 1, … up to `total` of them."""
    index = torch.arange(total) % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


def side_similarity(clip: Clip, images: Tensor, weights: Tensor, texts: list[str]) -> Tensor:
    """CLIP similarity of each side, by `isolate`, with its own prompt. Range [-1, 1]; higher is better.

    Source: this project.

    Args:
        clip: the CLIP.
        images: (B, 3, H, W) in [0, 1].
        weights: the mask (N, H, W).
        texts: N prompts.

    Returns:
        (B, N).
    """
    texts = _one_each(texts, weights)
    return torch.stack(
        [
            similarity(clip.image_features(isolate(images, side, clip.ground)), text)
            for side, text in zip(side_weights(weights), clip.text_features(texts), strict=True)
        ],
        dim=1,
    )


def _one_each(texts: list[str], weights: Tensor) -> list[str]:
    texts = checks.texts("texts", texts)
    if len(texts) != len(weights):
        raise ValueError(f"texts must be one for each of the mask's {len(weights)} styles, got {len(texts)}")
    return texts


def side_direction(
    clip: Clip, images: Tensor, sources: Tensor, weights: Tensor, texts: list[str], source_text: str
) -> Tensor:
    """Directional CLIP of each side, by `isolate`, towards its own prompt. Range [-1, 1]; higher is better.

    Source: this project. Results and source images are cut out in the same way, so that the effect of the cut cancels.

    Args:
        clip: the CLIP.
        images, sources: (B, 3, H, W) in [0, 1].
        weights: the mask (N, H, W).
        texts: N prompts.
        source_text: the caption of the source images.

    Returns:
        (B, N).
    """
    sources = check_images(sources, "sources")
    *targets, origin = clip.text_features(
        [*_one_each(texts, weights), checks.text("source_text", source_text)]
    )
    columns = []
    for side, text in zip(side_weights(weights), targets, strict=True):
        after, before = (clip.image_features(isolate(x, side, clip.ground)) for x in (images, sources))
        columns.append(direction(after, before, text, origin))
    return torch.stack(columns, dim=1)
