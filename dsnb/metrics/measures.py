"""Pixel measures of a two-style image: how near, how sharp, how smooth, how balanced.

Images are float32 in [0, 1], shape (B, 3, H, W); mask weights are (N, H, W) with sum 1 over N, index 0 the
first (left) style. Every measure returns one number per image, shape (B,), and every docstring says what
range it has, which direction is better and where it comes from: a publication, the source project (the student
project that this workbook reimplements), or this project. Nothing here loads a network; the Gram measures take
features that `perceptual` (or anything else) computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from skimage.metrics import structural_similarity
from torch import Tensor

from .. import checks


def check_images(images: Tensor, name: str = "images") -> Tensor:
    """Return `images` as float (B, 3, H, W), or say what is wrong with them (shape, range, NaN)."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        shape = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
        raise ValueError(f"{name} is {shape}, expected a tensor of shape (B, 3, H, W)")
    images = checks.dense(name, images, Tensor, "").detach().float()
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
        raise ValueError(f"{name} spans [{low:.3g}, {high:.3g}], expected values in [0, 1]")
    return images


def _pair(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    images, targets = check_images(images), check_images(targets, "targets")
    if images.shape != targets.shape:
        raise ValueError(f"targets is {tuple(targets.shape)}, expected {tuple(images.shape)} like images")
    return images, targets


def check_weights(weights: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Return mask weights as float32 (N, H, W), N ≥ 2, non-negative, sum 1; ValueError otherwise."""
    weights = torch.as_tensor(weights, dtype=torch.float32).detach().cpu()
    if weights.ndim != 3 or len(weights) < 2:
        raise ValueError(f"weights is {tuple(weights.shape)}, expected (N, H, W) with N ≥ 2 styles")
    if size is not None and tuple(weights.shape[1:]) != tuple(size):
        raise ValueError(
            f"weights is {tuple(weights.shape[1:])} pixels, expected {tuple(size)} like the image"
        )
    if not (weights.min() >= -1e-6 and (weights.sum(0) - 1).abs().max() < 1e-3):
        raise ValueError("weights must be non-negative and sum to 1 over the styles at every pixel")
    return weights


# --- how near to another image -----------------------------------------------------------------------


def l2(images: Tensor, targets: Tensor) -> Tensor:
    """Euclidean norm of the difference over pixels and channels. Range [0, sqrt(3HW)]; lower is nearer.

    The source project's. It grows with the image's size: compare only images of one size.
    """
    images, targets = _pair(images, targets)
    return (images - targets).flatten(1).norm(dim=1)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, −10 log10(MSE) for a peak of 1. Range [0, inf]; higher is nearer.

    The usual definition, with all channels in one mean, as in the source project.
    """
    images, targets = _pair(images, targets)
    return -10 * torch.log10((images - targets).square().flatten(1).mean(1))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity, mean over channels. Range [-1, 1], 1 for equal images; higher is nearer.

    Wang et al. 2004 as in their code: 11×11 Gaussian window of sigma 1.5, population covariance, 0–255 scale,
    window wholly inside the image. Raises ValueError for sides below 11 pixels.
    """
    images, targets = _pair(images, targets)
    if min(images.shape[2:]) < 11:
        raise ValueError(f"images is {tuple(images.shape[2:])} pixels, SSIM needs at least 11 on each side")
    values = [
        structural_similarity(
            a * 255.0,
            b * 255.0,
            data_range=255.0,
            channel_axis=0,
            win_size=11,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(images.double().cpu().numpy(), targets.double().cpu().numpy(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


def layout(images: Tensor, sources: Tensor, grid: int = 16) -> Tensor:
    """Correlation of the luminance of grid × grid blocks with the source's. Range [-1, 1]; higher: kept.

    This project's: Pearson's correlation, so that a style may change contrast and brightness but not which positions
    are light and which dark. Details smaller than a block (brushwork, tiles, grout) have little effect. A flat image
    gives 0. A style that changes the colour of whole areas lowers it. So compare with the single-style images, not
    with 1.
    """
    images, sources = _pair(images, sources)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    blocks = [
        torch.nn.functional.adaptive_avg_pool2d((x * luma.to(x)).sum(1, keepdim=True), grid).flatten(1)
        for x in (images, sources)
    ]
    a, b = (x - x.mean(1, keepdim=True) for x in blocks)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-9)


# --- how smooth, and where the seam is -------------------------------------------------------------------


def smoothness(images: Tensor, width: float = 0.2, per_pixel: bool = False) -> Tensor:
    """Total variation of the central strip, `width` of the image wide. Range ≥ 0; lower is smoother.

    The source project's: the sum of sqrt(d² + 1e-6) over the horizontal and vertical neighbour differences of the
    columns int(W/2 − width·W/2) … int(W/2 + width·W/2). `per_pixel` divides by the strip's pixels and channels, so
    that images of different sizes compare. Smooth is not good by itself: a blurred strip is the smoothest.
    """
    images = check_images(images)
    if not 0 < width <= 1:
        raise ValueError(f"width is {width}, expected a fraction of the image in (0, 1]")
    columns = images.shape[3]
    strip = images[..., int(columns / 2 - width / 2 * columns) : int(columns / 2 + width / 2 * columns)]
    across = (strip.diff(dim=3).square() + 1e-6).sqrt().flatten(1).sum(1)
    down = (strip.diff(dim=2).square() + 1e-6).sqrt().flatten(1).sum(1)
    return (across + down) / (strip[0].numel() if per_pixel else 1)


def gradient_energy(images: Tensor) -> Tensor:
    """Squared forward differences, both directions, mean over channels: (B, H, W).

    Range [0, 2]; higher: more structure, neither good nor bad by itself. The usual discrete gradient.
    """
    images = check_images(images)
    across = torch.nn.functional.pad(images.diff(dim=3), (0, 1)).square()
    down = torch.nn.functional.pad(images.diff(dim=2), (0, 0, 0, 1)).square()
    return (across + down).mean(1)


def border_distance(weights: Tensor) -> Tensor:
    """Distance in pixels from each pixel's centre to the nearest border between two leading styles: (H, W).

    This project's. The leading style is the one with the largest weight. The sharpness of the mask does not change
    this border, so strips made from it are the same for every sharpness.
    """
    lead = check_weights(weights).argmax(0).numpy()
    if (lead == lead.flat[0]).all():
        raise ValueError("weights has one leading style everywhere, expected at least two styles that lead")
    inside = [distance_transform_edt(lead == style) for style in np.unique(lead)]
    return torch.from_numpy(np.sum(inside, axis=0) - 0.5).float()


def transition_strip(weights: Tensor, width: float = 0.2) -> Tensor:
    """Pixels within width/2 of the image's longer side from the border of two styles: bool (H, W); this project's."""
    distance = border_distance(weights)
    return distance <= max(width / 2 * max(distance.shape), 0.5)


def border_window(image: Tensor, weights: Tensor, side: int) -> tuple[slice, slice]:
    """The square window on the border of two styles in which an image has the most structure.

    It depends on the source image and the mask alone, so a figure cut by it favours no method. This project's.

    Args:
        image: (1, 3, H, W) in [0, 1], the source image.
        weights: the mask (N, H, W).
        side: of the window, in pixels.

    Returns:
        Rows and columns; the window's centre is next to the border.

    Raises:
        ValueError: the window does not fit into the image.
    """
    energy = gradient_energy(image)[:1]
    if not 1 <= side <= min(energy.shape[1:]):
        raise ValueError(f"side is {side}, expected 1 to {min(energy.shape[1:])} pixels like the image")
    total = torch.nn.functional.avg_pool2d(energy, side, stride=1)[
        0
    ]  # of each window, by its upper left corner
    middle = border_distance(check_weights(weights, energy.shape[1:]))[side // 2 :, side // 2 :]
    middle = middle[: total.shape[0], : total.shape[1]]
    total = total.masked_fill(middle > max(1.0, middle.min().item()), -1)
    top, left = divmod(int(total.argmax()), total.shape[1])
    return slice(top, top + side), slice(left, left + side)


def seam(images: Tensor, weights: Tensor, width: float = 0.2, singles: Tensor | None = None) -> Tensor:
    """Gradient energy in the transition strip against what it should be. Range [0, inf), 1 is best.

    This project's. Without `singles` the strip is compared with the rest of the same image. With `singles`, the N
    single-style images of the same scene as (N, 3, H, W) or (B, N, 3, H, W), it is compared with their
    energies in the same strip, mixed by the mask's weights. Above 1: an edge that neither style has. Below 1:
    a strip washed out, as when two images are averaged. Narrow the `width` to look at the border alone.
    """
    energy = gradient_energy(images)
    weights = check_weights(weights, energy.shape[1:])
    strip = transition_strip(weights, width)
    if singles is None:
        if strip.all():
            raise ValueError(f"width is {width}: the strip is the whole image and leaves no rest")
        expected = energy[:, ~strip].mean(1)
    else:
        singles = singles if singles.ndim == 5 else singles[None].expand(len(images), *singles.shape)
        if singles.shape[:2] != (len(images), len(weights)) or singles.shape[2:] != images.shape[1:]:
            right = (len(images), len(weights), *images.shape[1:])
            raise ValueError(f"singles is {tuple(singles.shape)}, expected {right}")
        each = gradient_energy(singles.flatten(0, 1)).unflatten(0, singles.shape[:2])
        expected = (each * weights).sum(1)[:, strip].mean(1)
    return energy[:, strip].mean(1) / expected.clamp_min(1e-12)


# --- sides ---------------------------------------------------------------------------------------------


def side_weights(weights: Tensor) -> Tensor:
    """How far each style leads at each pixel: relu(w_i − largest other weight), (N, H, W) in [0, 1].

    This project's. The side of style i is where it leads, weighted by its lead: a hard mask is its own side; a linear
    ramp counts the outer edge fully and the middle not at all. ValueError if a style leads nowhere.
    """
    weights = check_weights(weights)
    first, second = weights.topk(2, dim=0).values
    lead = torch.where(weights == first, first - second, torch.zeros(()))
    empty = [i for i, side in enumerate(lead) if side.sum() <= 0]
    if empty:
        raise ValueError(f"weights: style {empty[0]} leads nowhere, so it has no side to measure")
    return lead


def strips(weights: Tensor, count: int = 8, first: int = 0, last: int = 1) -> Tensor:
    """Cut the image into `count` strips of equal area from deep in style `first` to deep in style `last`.

    This project's. Returns (count, H, W) of 0 and 1 with sum 1 over the strips, ordered by signed distance to the
    border; pixels led by a third style belong to no strip. ValueError if one of the two leads nowhere.
    """
    weights = check_weights(weights)
    lead = weights.argmax(0)
    for style in (first, last):
        if not (lead == style).any():
            raise ValueError(f"weights: style {style} leads nowhere, so no strips lead to it")
    to_last, to_first = (
        torch.from_numpy(distance_transform_edt(lead.numpy() != style)) for style in (last, first)
    )
    signed = (to_first - to_last).float()
    inside = (lead == first) | (lead == last)
    if not 2 <= count <= int(inside.sum()):
        raise ValueError(f"count is {count}, expected 2 to {int(inside.sum())} strips")
    edges = torch.quantile(signed[inside], torch.linspace(0, 1, count + 1)[1:-1])
    index = torch.bucketize(signed, edges)
    return torch.stack([((index == k) & inside).float() for k in range(count)])


def balance(scores: Tensor) -> Tensor:
    """Weaker over stronger side of scores (B, N), negative ones counted as 0. Range [0, 1]; higher is better.

    This project's. All scores 0 give 0: two absent styles are not balance.
    """
    scores = torch.as_tensor(scores).float().clamp_min(0)
    high = scores.amax(-1)
    return torch.where(high > 0, scores.amin(-1) / high.clamp_min(1e-12), torch.zeros(()))


def monotonicity(values: Tensor) -> Tensor:
    """Net rise over total movement of a score along the mask, (B, K) → (B,). Range [-1, 1]; higher is better.

    This project's. 1: the score only rises from the first strip to the last; −1: it only falls; 0: no net change.
    """
    values = torch.as_tensor(values).float()
    if values.shape[-1] < 2:
        raise ValueError(f"values has {values.shape[-1]} strips, expected at least 2")
    steps = values.diff(dim=-1)
    moved = steps.abs().sum(-1)
    return torch.where(moved > 1e-9, steps.sum(-1) / moved.clamp_min(1e-9), torch.zeros(()))


# --- Gram matrices of features -----------------------------------------------------------------------------


def gram(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted second moment of features (B, C, h, w) → (B, C, C), Σ w f fᵀ / Σ w (Gatys et al. 2016, eq. 3).

    Range: that of the features squared; no direction by itself, see `gram_distance`.
    `weights` (H, W), or (B, H, W), is averaged down to the features' size; None weighs all positions alike.
    """
    batch, _, height, width = features.shape
    flat = features.float().flatten(2)
    if weights is None:
        return flat @ flat.mT / flat.shape[2]
    weights = torch.as_tensor(weights, dtype=torch.float32, device=flat.device)
    weights = weights.expand(batch, *weights.shape[-2:])[:, None]
    weights = torch.nn.functional.interpolate(weights, (height, width), mode="area").flatten(2)
    total = weights.sum(2, keepdim=True)
    if not (total > 0).all():
        raise ValueError("weights is 0 everywhere, expected a positive weight somewhere")
    return (flat * weights) @ flat.mT / total


def gram_reference(features: Sequence[Tensor], least: int = 32) -> list[Tensor]:
    """Mean Gram matrix per layer of R ≥ `least` reference images, from a list of features (R, C, h, w)."""
    if len(features[0]) < least:
        raise ValueError(f"features holds {len(features[0])} references, expected at least {least}")
    return [gram(layer).mean(0) for layer in features]


def gram_distance(
    features: Sequence[Tensor], reference: Sequence[Tensor], weights: Tensor | None = None
) -> Tensor:
    """‖G − G_ref‖ / ‖G_ref‖ (Frobenius), mean over layers. Range [0, inf), 0 is best; lower is nearer.

    The source project's style distance, made relative to the reference. Features of the image and of the references
    must come from the same network at the same size, with the same normalisation, or the number says nothing about
    style. `weights` (H, W) measures one side only.
    """
    if len(features) != len(reference):
        raise ValueError(f"features has {len(features)} layers, reference {len(reference)}")
    distances = [
        (gram(layer, weights) - mean).flatten(1).norm(dim=1) / mean.norm().clamp_min(1e-12)
        for layer, mean in zip(features, reference, strict=True)
    ]
    return torch.stack(distances).mean(0)
