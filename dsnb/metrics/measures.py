"""Pixel measures of an image in two styles: distances, layout, smoothness, the seam and balance.

Images are float32 in [0, 1], shape (B, 3, H, W). Mask weights are (N, H, W) with sum 1 over N; index 0 is the first
(left) style. Most measures return one number per image, shape (B,). Every docstring gives the range, the better
direction and the source: a publication, the source project, or this project. No function here loads a network. The
Gram measures need features that a network has computed, for example `networks.Lpips`. All functions raise ValueError
for a wrong shape or range; the message names the parameter.
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
    """Checks images.

    Args:
        images: (B, 3, H, W) in [0, 1].
        name: the parameter that an error names.

    Returns:
        The images as float32, without gradients.

    Raises:
        ValueError: another shape or range, or NaN.
        TypeError: a tensor without values.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        shape = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
        raise ValueError(f"{name} is {shape}, expected a tensor of shape (B, 3, H, W)")
    if not images.numel():
        raise ValueError(f"{name} is {tuple(images.shape)}, expected at least one image")
    images = checks.dense(name, images, Tensor, "").detach().float()
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also for NaN
        raise ValueError(f"{name} spans [{low:.3g}, {high:.3g}], expected values in [0, 1]")
    return images


def _pair(images: Tensor, targets: Tensor, name: str = "targets") -> tuple[Tensor, Tensor]:
    images, targets = check_images(images), check_images(targets, name)
    if images.shape != targets.shape:
        raise ValueError(f"{name} is {tuple(targets.shape)}, expected {tuple(images.shape)} like images")
    return images, targets


def _finite(name: str, values: Tensor) -> Tensor:
    values = torch.as_tensor(values).float()
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} must be finite, some are NaN or infinite")
    return values


def check_weights(weights: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Checks mask weights.

    Args:
        weights: (N, H, W), N ≥ 2, non-negative, with sum 1 over N.
        size: the expected (H, W); None allows any.

    Returns:
        The weights as float32, on the CPU.

    Raises:
        ValueError: another shape, size or range.
    """
    weights = torch.as_tensor(weights, dtype=torch.float32).detach().cpu()
    if weights.ndim != 3 or len(weights) < 2:
        raise ValueError(f"weights is {tuple(weights.shape)}, expected (N, H, W) with N ≥ 2 styles")
    if size is not None and tuple(weights.shape[1:]) != tuple(size):
        raise ValueError(
            f"weights is {tuple(weights.shape[1:])} pixels, expected {tuple(size)} like the image"
        )
    if not (weights.min() >= -1e-6 and (weights.sum(0) - 1).abs().max() < 1e-3):
        sums = weights.sum(0)
        raise ValueError(
            "weights must be non-negative and sum to 1 over the styles at every pixel, got values from "
            f"{weights.min():.3g} and sums from {sums.min():.3g} to {sums.max():.3g}"
        )
    return weights


# --- distances to another image -----------------------------------------------------------------------


def l2(images: Tensor, targets: Tensor) -> Tensor:
    """Euclidean norm of the difference over pixels and channels. Range [0, sqrt(3HW)]; lower is nearer.

    Source: the source project. It grows with the image's size, so compare only images of one size.

    Args:
        images, targets: (B, 3, H, W) in [0, 1].

    Returns:
        (B,).
    """
    images, targets = _pair(images, targets)
    return (images - targets).flatten(1).norm(dim=1)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, −10 log10(MSE) for a peak of 1. Range [0, inf]; higher is nearer.

    Source: the usual definition, with one mean over all channels, as in the source project.

    Args:
        images, targets: (B, 3, H, W) in [0, 1].

    Returns:
        (B,).
    """
    images, targets = _pair(images, targets)
    return -10 * torch.log10((images - targets).square().flatten(1).mean(1))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity, mean over channels. Range [-1, 1], 1 for equal images; higher is nearer.

    Source: the code of Wang et al. 2004: an 11×11 Gaussian window of sigma 1.5, completely inside the image,
    population covariance, and the scale 0–255.

    Args:
        images, targets: (B, 3, H, W) in [0, 1], with at least 11 pixels on each side.

    Returns:
        (B,).
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
        for a, b in zip(images.cpu().double().numpy(), targets.cpu().double().numpy(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


def layout(images: Tensor, sources: Tensor, grid: int = 16) -> Tensor:
    """Correlation of the luminance of grid × grid blocks with the source's. Range [-1, 1]; higher keeps more.

    Source: this project. It is Pearson's correlation, so changes of contrast and brightness have no effect. Details
    smaller than a block, such as brushstrokes and tiles, have little effect. A style that changes the colour of whole
    areas lowers it, so compare with the single-style images and not with 1. An image of one colour gives 0.

    Args:
        images, sources: (B, 3, H, W) in [0, 1].
        grid: the number of blocks on each side, at least 2.

    Returns:
        (B,).
    """
    images, sources = _pair(images, sources, "sources")
    grid = checks.integer("grid", grid, 2)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    blocks = [
        torch.nn.functional.adaptive_avg_pool2d((x * luma.to(x)).sum(1, keepdim=True), grid).flatten(1)
        for x in (images, sources)
    ]
    a, b = (x - x.mean(1, keepdim=True) for x in blocks)
    a_norm, b_norm = (x.norm(dim=1).clamp_min(1e-3) for x in (a, b))  # rounding alone is below 1e-5
    return (a * b).sum(1) / (a_norm * b_norm)


# --- smoothness and the seam -------------------------------------------------------------------


def smoothness(images: Tensor, width: float = 0.2, per_pixel: bool = False) -> Tensor:
    """Total variation of the central strip. Range ≥ 0; lower is smoother, and a blurred strip is the smoothest.

    Source: the source project. It is the sum of sqrt(d² + 1e-6) over the horizontal and vertical differences d of
    neighbouring pixels, in the columns int(W/2 − width·W/2) to int(W/2 + width·W/2).

    Args:
        images: (B, 3, H, W) in [0, 1].
        width: of the strip, as a fraction of the image in (0, 1].
        per_pixel: whether to divide by the strip's pixels and channels. Then images of different sizes are comparable.

    Returns:
        (B,).
    """
    images, width = check_images(images), checks.number("width", width, high=1, above=0)
    columns = images.shape[3]
    strip = images[..., int(columns / 2 - width / 2 * columns) : int(columns / 2 + width / 2 * columns)]
    if strip.shape[3] < 2:
        raise ValueError(
            f"width is {width}: the strip has {strip.shape[3]} of {columns} columns; use a larger one"
        )
    across = (strip.diff(dim=3).square() + 1e-6).sqrt().flatten(1).sum(1)
    down = (strip.diff(dim=2).square() + 1e-6).sqrt().flatten(1).sum(1)
    return (across + down) / (strip[0].numel() if per_pixel else 1)


def gradient_energy(images: Tensor) -> Tensor:
    """Squared forward differences in both directions, averaged over channels. Range [0, 2]; no direction is better.

    Source: the usual discrete gradient.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, H, W).
    """
    images = check_images(images)
    across = torch.nn.functional.pad(images.diff(dim=3), (0, 1)).square()
    down = torch.nn.functional.pad(images.diff(dim=2), (0, 0, 0, 1)).square()
    return (across + down).mean(1)


def border_distance(weights: Tensor) -> Tensor:
    """Distance in pixels from each pixel's centre to the nearest border between two leading styles.

    Source: this project. The leading style is the one with the largest weight. The sharpness of the mask does not
    change this border.

    Args:
        weights: (N, H, W), where at least two styles lead somewhere.

    Returns:
        (H, W).
    """
    lead = check_weights(weights).argmax(0).numpy()
    if (lead == lead.flat[0]).all():
        raise ValueError("weights has one leading style everywhere, expected at least two styles that lead")
    inside = [distance_transform_edt(lead == style) for style in np.unique(lead)]
    return torch.from_numpy(np.sum(inside, axis=0) - 0.5).float()


def transition_strip(weights: Tensor, width: float = 0.2) -> Tensor:
    """The pixels near the border of two styles. Source: this project.

    Args:
        weights: (N, H, W).
        width: of the strip, as a fraction of the image's longer side.

    Returns:
        bool (H, W).
    """
    distance, width = border_distance(weights), checks.number("width", width, 0, 1)
    return distance <= max(width / 2 * max(distance.shape), 0.5)


def border_window(image: Tensor, weights: Tensor, side: int) -> tuple[slice, slice]:
    """The square window on the border of two styles in which an image has the largest gradient energy.

    Source: this project. It depends on the source image and the mask only, so it favours no method.

    Args:
        image: the source image (1, 3, H, W) in [0, 1].
        weights: the mask (N, H, W).
        side: of the window, in pixels.

    Returns:
        The rows and the columns. The window's centre is next to the border.

    Raises:
        ValueError: several images, or the window does not fit into the image.
    """
    energy = gradient_energy(check_images(image, "image"))
    if len(energy) != 1:
        raise ValueError(f"image is {tuple(image.shape)}, expected one image (1, 3, H, W)")
    side = checks.integer("side", side, 1, min(energy.shape[1:]))
    # of each window, by its upper left corner
    total = torch.nn.functional.avg_pool2d(energy, side, stride=1)[0]
    middle = border_distance(check_weights(weights, energy.shape[1:]))[side // 2 :, side // 2 :]
    middle = middle[: total.shape[0], : total.shape[1]]
    total = total.masked_fill(middle > max(1.0, middle.min().item()), -1)
    top, left = divmod(int(total.argmax()), total.shape[1])
    return slice(top, top + side), slice(left, left + side)


def seam(images: Tensor, weights: Tensor, width: float = 0.2, singles: Tensor | None = None) -> Tensor:
    """Gradient energy in the transition strip, divided by the expected one. Range [0, inf), 1 is best.

    Source: this project. Above 1, the strip has edges that neither style has. Below 1, it is blurred, for example
    because two images were averaged. A small `width` measures the border alone.

    Args:
        images: (B, 3, H, W) in [0, 1].
        weights: the mask (N, H, W).
        width: of the strip, as a fraction of the image's longer side.
        singles: the single-style images of the same scene, (N, 3, H, W) or (B, N, 3, H, W). The expected energy is
            then theirs in the same strip, averaged by the mask's weights. Without them, it is that of the rest of the
            same image.

    Returns:
        (B,).
    """
    energy = gradient_energy(images)
    weights = check_weights(weights, energy.shape[1:])
    strip = transition_strip(weights, width)
    if singles is None:
        if strip.all():
            raise ValueError(
                f"width is {width}: the strip is the whole image and leaves no rest; use a smaller width"
            )
        expected = energy[:, ~strip].mean(1)
    else:
        singles = checks.dense("singles", singles, Tensor, "torch.stack(images) makes one").to(images.device)
        singles = singles if singles.ndim == 5 else singles[None].expand(len(images), *singles.shape)
        if singles.shape[:2] != (len(images), len(weights)) or singles.shape[2:] != images.shape[1:]:
            right = (len(images), len(weights), *images.shape[1:])
            raise ValueError(f"singles is {tuple(singles.shape)}, expected {right}")
        each = gradient_energy(check_images(singles.flatten(0, 1), "singles")).unflatten(0, singles.shape[:2])
        expected = (each * weights.to(each)).sum(1)[:, strip].mean(1)
    return energy[:, strip].mean(1) / expected.clamp_min(1e-12)


# --- sides ---------------------------------------------------------------------------------------------


def side_weights(weights: Tensor) -> Tensor:
    """The sides of the styles: how far each style leads at each pixel, relu(M_i − largest other weight).

    Source: this project. For a mask of 0 and 1, the sides are the mask itself. For a linear ramp, pixels at the outer
    edge have the weight 1, and those in the middle 0.

    Args:
        weights: the mask (N, H, W), where each style leads somewhere.

    Returns:
        (N, H, W) in [0, 1].
    """
    weights = check_weights(weights)
    first, second = weights.topk(2, dim=0).values
    lead = torch.where(weights == first, first - second, torch.zeros(()))
    empty = [i for i, side in enumerate(lead) if side.sum() <= 0]
    if empty:
        raise ValueError(f"weights: style {empty[0]} leads nowhere, so it has no side to measure")
    return lead


def strips(weights: Tensor, count: int = 8, first: int = 0, last: int = 1) -> Tensor:
    """Divides the regions of two styles into strips of equal area, by the signed distance to their border.

    Source: this project.

    Args:
        weights: the mask (N, H, W).
        count: the number of strips, at least 2.
        first, last: the two styles; each leads somewhere.

    Returns:
        (count, H, W) of 0 and 1, from the inside of `first` to the inside of `last`. Pixels where a third style leads
        are in no strip.
    """
    weights = check_weights(weights)
    lead = weights.argmax(0)
    first, last = (
        checks.integer(name, style, 0, len(weights) - 1) for name, style in (("first", first), ("last", last))
    )
    if first == last:
        raise ValueError(f"first and last must be two different styles, got {first} twice")
    for style in (first, last):
        if not (lead == style).any():
            raise ValueError(f"weights: style {style} leads nowhere, so no strips lead to it")
    to_last, to_first = (
        torch.from_numpy(distance_transform_edt(lead.numpy() != style)) for style in (last, first)
    )
    signed = (to_first - to_last).float()
    inside = (lead == first) | (lead == last)
    count = checks.integer("count", count, 2, int(inside.sum()))
    edges = torch.quantile(signed[inside], torch.linspace(0, 1, count + 1)[1:-1])
    index = torch.bucketize(signed, edges)
    return torch.stack([((index == k) & inside).float() for k in range(count)])


def balance(scores: Tensor) -> Tensor:
    """The lowest score of a side, divided by the highest. Range [0, 1]; higher is better.

    Source: this project.

    Args:
        scores: one score per side (B, N); negative ones become 0.

    Returns:
        (B,). It is 0 if all scores are 0.
    """
    scores = _finite("scores", scores).clamp_min(0)
    if not scores.numel():
        raise ValueError(f"scores is {tuple(scores.shape)}, expected (B, N), at least one score per side")
    high = scores.amax(-1)
    return torch.where(high > 0, scores.amin(-1) / high.clamp_min(1e-12), torch.zeros(()))


def monotonicity(values: Tensor) -> Tensor:
    """Net change of a score across the border, divided by its total variation. Range [-1, 1]; higher is better.

    Source: this project. It is 1 if the score only rises from the first strip to the last, −1 if it only falls, and 0
    without net change.

    Args:
        values: one score per strip (B, K), K ≥ 2.

    Returns:
        (B,).
    """
    values = _finite("values", values)
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"values is {tuple(values.shape)}, expected (B, K) with K ≥ 2 strips")
    steps = values.diff(dim=-1)
    moved = steps.abs().sum(-1)
    return torch.where(moved > 1e-9, steps.sum(-1) / moved.clamp_min(1e-9), torch.zeros(()))


# --- Gram matrices of features -----------------------------------------------------------------------------


def gram(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gram matrix of features, Σ w f fᵀ / Σ w. Range: that of the squared features; no direction is better.

    Source: Gatys et al. 2016, eq. 3, with weights.

    Args:
        features: (B, C, h, w).
        weights: w (H, W) or (B, H, W), averaged to the features' size; None gives all positions the same weight.

    Returns:
        (B, C, C).
    """
    batch, _, height, width = features.shape
    flat = features.float().flatten(2)
    if weights is None:
        return flat @ flat.mT / flat.shape[2]
    weights = _finite("weights", weights).to(flat.device)
    if (weights < 0).any():
        raise ValueError("weights must not be negative")
    if weights.ndim < 2 or weights.shape[:-2] not in ((), (1,), (batch,)):
        raise ValueError(
            f"weights is {tuple(weights.shape)}, expected (H, W) or ({batch}, H, W) like features"
        )
    weights = weights.expand(batch, *weights.shape[-2:])[:, None]
    weights = torch.nn.functional.interpolate(weights, (height, width), mode="area").flatten(2)
    total = weights.sum(2, keepdim=True)
    if not (total > 0).all():
        raise ValueError("weights is 0 everywhere, expected a weight above 0 at one position or more")
    return (flat * weights) @ flat.mT / total


def gram_reference(features: Sequence[Tensor], least: int = 32) -> list[Tensor]:
    """Mean Gram matrices of reference images.

    Args:
        features: (R, C, h, w) per layer, of R reference images.
        least: the smallest R that is allowed.

    Returns:
        (C, C) per layer.
    """
    if len(features[0]) < least:
        raise ValueError(f"features holds {len(features[0])} references, expected at least {least}")
    return [gram(layer).mean(0) for layer in features]


def gram_distance(
    features: Sequence[Tensor], reference: Sequence[Tensor], weights: Tensor | None = None
) -> Tensor:
    """‖G − G_ref‖ / ‖G_ref‖ (Frobenius), mean over layers. Range [0, inf); lower is nearer.

    Source: the source project's style distance, divided by the norm of the reference. The features of the images and
    of the references must come from the same network, with the same size and normalisation.

    Args:
        features: (B, C, h, w) per layer.
        reference: (C, C) per layer, from `gram_reference`.
        weights: (H, W), for example one side; None for the whole image.

    Returns:
        (B,).
    """
    shapes, expected = [tuple(mean.shape) for mean in reference], [(x.shape[1],) * 2 for x in features]
    if shapes != expected:
        raise ValueError(f"reference has layers of {shapes}, expected {expected} like features")
    if weights is not None and torch.as_tensor(weights).ndim != 2:
        shape = tuple(torch.as_tensor(weights).shape)
        raise ValueError(f"weights is {shape}, expected (H, W); take one side of a mask, such as weights[0]")
    distances = [
        (gram(layer, weights) - mean).flatten(1).norm(dim=1) / mean.norm().clamp_min(1e-12)
        for layer, mean in zip(features, reference, strict=True)
    ]
    return torch.stack(distances).mean(0)
