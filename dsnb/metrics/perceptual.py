"""Measures that look through a network, which the caller passes in: LPIPS, CLIP, structure.

Images are float32 in [0, 1], (B, 3, H, W); every docstring gives range, direction and source. Two families of
networks, both opened in `networks`: an `Lpips`, and anything with the methods of `Clip`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .measures import check_images, side_weights
from .networks import Lpips

# --- LPIPS -------------------------------------------------------------------------------------------


@torch.no_grad()
def lpips(network: Lpips, images: Tensor, targets: Tensor) -> Tensor:
    """Learned perceptual distance, (B,). Range [0, about 1]; 0 for equal images, lower is nearer.

    Zhang et al. 2018, eq. 1: squared differences of channel-normalised features, weighted per channel,
    averaged over positions, summed over layers. The image should have at least 64 pixels a side.
    """
    return network(images, targets)


# --- structure -----------------------------------------------------------------------------------------


def structure_distance(features: Tensor, source: Tensor, grid: int = 16) -> Tensor:
    """Mean |S(a) − S(b)| of cosine self-similarities of deep features (B, C, h, w). Lower: structure kept.

    Range [0, 2], [0, 1] for features that are never negative; 0 for equal images. After Tumanyan et al.
    2022 (Splicing ViT Features, eq. 3), here with any features. Which positions look alike is layout; what they look
    like is style. Some features mix the two: with the LPIPS trunks at 128 pixels, the style changes this measure
    almost fully, see notebook 13. Maps above `grid` × `grid` are averaged down to it.
    """
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
    """What the CLIP measures ask of a network. All features have unit length; `scale` is its logit scale."""

    ground: tuple[float, float, float]  # the colour that its preprocessing maps to zero
    scale: float

    def image_features(self, images: Tensor) -> Tensor: ...  # (B, 3, H, W) → (B, D)

    def text_features(self, texts: list[str]) -> Tensor: ...  # P texts → (P, D)


def similarity(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of image features (B, D) with text features (D,) or (B, D). Range [-1, 1]; higher is nearer.

    CLIPScore (Hessel et al. 2021) is 2.5 · max(this, 0); many tables print 100 times this number.
    """
    return F.cosine_similarity(features, text_features.expand_as(features), dim=-1)


def direction(features: Tensor, source: Tensor, text: Tensor, source_text: Tensor) -> Tensor:
    """Cosine of the change in the image with the change in the text. Range [-1, 1]; higher is better.

    Directional CLIP similarity (Gal et al. 2022, StyleGAN-NADA, eq. 2): features of result and source image
    (B, D), of target and source text (D,) or (B, D). An unchanged image gives 0.
    """
    return F.cosine_similarity(features - source, (text - source_text).expand_as(features), dim=-1)


def isolate(images: Tensor, side: Tensor, ground: tuple[float, float, float]) -> Tensor:
    """Show one side alone: (B, 3, H, W) with `side` (H, W) in [0, 1].

    The box around the pixels where the style leads by half or more is mirrored until it fills the frame. So a network
    sees an image without an empty part. Inside the box, what is not of that side fades into a neutral colour. Unlike
    pooled patch tokens, this contains nothing of the other side, and it works with any image tower.
    """
    side = torch.as_tensor(side).to(images)
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
    """CLIP similarity of each side, isolated (this project's), with its own prompt: (B, N). Range [-1, 1]; higher is
    better."""
    return torch.stack(
        [
            similarity(clip.image_features(isolate(images, side, clip.ground)), text)
            for side, text in zip(side_weights(weights), clip.text_features(texts), strict=True)
        ],
        dim=1,
    )


def side_direction(
    clip: Clip, images: Tensor, sources: Tensor, weights: Tensor, texts: list[str], source_text: str
) -> Tensor:
    """Directional CLIP of each side towards its own prompt: (B, N). Range [-1, 1]; higher is better.

    `direction` of each side alone, which is this project's. Result and source are cut out in the same way, so that the
    effect of the cut on the features cancels.
    """
    *targets, origin = clip.text_features([*texts, source_text])
    columns = []
    for side, text in zip(side_weights(weights), targets, strict=True):
        after, before = (clip.image_features(isolate(x, side, clip.ground)) for x in (images, sources))
        columns.append(direction(after, before, text, origin))
    return torch.stack(columns, dim=1)
