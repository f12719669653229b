"""Style classifiers, which say which style a region of an image shows.

There are two: a linear probe on the features of a perceptual network, and zero-shot classification with a CLIP.
Neither shares weights with the model that is measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import data_path
from ..files import write_whole
from .measures import balance, check_images, check_weights, monotonicity, side_weights, strips
from .networks import Lpips, load_lpips, resize
from .perceptual import Clip, isolate


class StyleClassifier(Protocol):
    """Images (B, 3, H, W) in [0, 1] and regions (R, H, W) >= 0 -> probabilities (B, R, S) of the S `styles`."""

    styles: tuple[str, ...]

    def __call__(self, images: Tensor, regions: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Probe:
    """A linear probe: softmax regression on the mean and standard deviation of each channel of three early layers."""

    network: Lpips
    styles: tuple[str, ...]
    weight: Tensor  # (S, D)
    bias: Tensor  # (S,)
    centre: Tensor  # (D,), mean of the pooled features
    spread: Tensor  # (D,), their standard deviation
    size: int  # pixels of the images it was fitted on; others are resized

    def __call__(self, images: Tensor, regions: Tensor) -> Tensor:
        regions = torch.as_tensor(regions, dtype=torch.float32)
        if regions.shape[1:] == images.shape[2:] != (self.size, self.size):
            regions = F.interpolate(regions[:, None], (self.size, self.size), mode="area")[:, 0]
            images = resize(check_images(images), self.size)
        pooled = (pool_regions(self.network, images, regions) - self.centre) / self.spread
        return F.linear(pooled, self.weight, self.bias).softmax(-1)


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Zero-shot classification with a CLIP: softmax over one text per style. `perceptual.isolate` cuts out regions."""

    clip: Clip
    styles: tuple[str, ...]
    texts: tuple[str, ...]

    @cached_property
    def _text(self) -> Tensor:
        return self.clip.text_features(list(self.texts))

    def __call__(self, images: Tensor, regions: Tensor) -> Tensor:
        views = [self.clip.image_features(isolate(images, region, self.clip.ground)) for region in regions]
        return (self.clip.scale * torch.stack(views, 1) @ self._text.T).softmax(-1)


def pool_regions(network: Lpips, images: Tensor, regions: Tensor, layers: int = 3) -> Tensor:
    """Pools features over regions: the weighted mean and standard deviation of every channel.

    Features of early layers depend on a few dozen pixels only, so other regions have little effect.

    Args:
        network: the perceptual network.
        images: (B, 3, H, W) in [0, 1].
        regions: (R, H, W), weights of at least 0.
        layers: how many layers, counted from the first.

    Returns:
        (B, R, D).

    Raises:
        ValueError: `regions` has another size, a negative weight, or a region without any weight.
    """
    regions = torch.as_tensor(regions, dtype=torch.float32)
    if regions.ndim != 3 or regions.shape[1:] != images.shape[2:]:
        raise ValueError(
            f"regions is {tuple(regions.shape)}, expected (R, {images.shape[2]}, {images.shape[3]})"
        )
    if not (regions.sum((1, 2)) > 0).all() or regions.min() < 0:
        raise ValueError(
            f"regions must be non-negative, and none of them empty; got weights from {regions.min():.3g} and sums from "
            f"{regions.sum((1, 2)).min():.3g}"
        )
    rows = []
    for chunk in check_images(images).split(32):
        parts = []
        for maps in network.features(chunk, layers=layers):
            weights = F.interpolate(regions[:, None].to(maps), maps.shape[2:], mode="area").flatten(1)
            weights = weights / weights.sum(1, keepdim=True)
            flat = maps.flatten(2)
            mean = torch.einsum("bcp,rp->brc", flat, weights)
            square = torch.einsum("bcp,rp->brc", flat.square(), weights)
            parts += [mean, (square - mean.square()).clamp_min(0).sqrt()]
        rows.append(torch.cat(parts, -1).cpu())
    return torch.cat(rows)


def fit_probe(
    network: Lpips,
    images: Tensor,
    labels: Tensor,
    styles: Sequence[str],
    *,
    decay: float = 1e-3,
    steps: int = 60,
) -> Probe:
    """Fits the probe on images of one style each, by full-batch L-BFGS on the cross-entropy. It is deterministic.

    Every image is used as a whole, by halves and by quarters from left to right, because the probe classifies parts.

    Args:
        network: the perceptual network.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,), indices into `styles`.
        styles: their names.
        decay: weight of the squared L2 norm of the weights.
        steps: iterations of L-BFGS.

    Returns:
        The fitted probe.

    Raises:
        ValueError: the labels do not fit the images, a style has no image, or the images are not square.
    """
    labels = torch.as_tensor(labels)
    missing = [style for index, style in enumerate(styles) if not (labels == index).any()]
    if len(labels) != len(images) or missing:
        raise ValueError(
            f"labels has {len(labels)} entries for {len(images)} images, none for {missing}; expected one per image, "
            "and each style"
        )
    width = images.shape[3]
    if images.shape[2] != width:
        raise ValueError(f"images is {tuple(images.shape[2:])} pixels, expected squares; crop or resize them")
    column = torch.arange(width).expand(images.shape[2:])
    bounds = [(k / n, (k + 1) / n) for n in (1, 2, 4) for k in range(n)]
    regions = torch.stack([((column >= a * width) & (column < b * width)).float() for a, b in bounds])
    pooled = pool_regions(network, images, regions)
    target = labels[:, None].expand(len(images), len(regions)).flatten()
    pooled = pooled.flatten(0, 1)
    centre, spread = pooled.mean(0), pooled.std(0).clamp_min(1e-4)
    pooled = (pooled - centre) / spread
    weight = torch.zeros(len(styles), pooled.shape[1], requires_grad=True)
    bias = torch.zeros(len(styles), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(pooled, weight, bias), target) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(network, tuple(styles), weight.detach(), bias.detach(), centre, spread, width)


def save_probe(probe: Probe, path: str | Path) -> Path:
    """Writes a probe, without its network, as a safetensors file. The file is complete or absent.

    Args:
        probe: the probe.
        path: the file; missing folders are made.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"styles": json.dumps(probe.styles), "network": probe.network.key, "size": str(probe.size)}
    tensors = {name: getattr(probe, name).contiguous() for name in ("weight", "bias", "centre", "spread")}
    write_whole(path, save(tensors, metadata=note))
    return path


def load_probe(path: str | Path | None = None, network: Lpips | None = None) -> Probe:
    """Opens a probe that `save_probe` wrote.

    Args:
        path: the file; default the bundled style classifier.
        network: the perceptual network it was fitted on; default opens it.

    Returns:
        The probe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a probe, or was fitted on another network.
    """
    path = data_path("readers", "style_probe.safetensors") if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no style probe {path}; fit_probe makes one, save_probe writes it")
    try:
        with safe_open(path, "pt") as file:
            note = file.metadata()
            tensors = {name: file.get_tensor(name) for name in ("weight", "bias", "centre", "spread")}
        fitted_on, styles, size = note["network"], tuple(json.loads(note["styles"])), int(note["size"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"path is {str(path)!r}, which is no style probe: {error}") from None
    network = load_lpips(fitted_on) if network is None else network
    if network.key != fitted_on:
        raise ValueError(f"network is {network.key!r}, but the probe was fitted on {fitted_on!r}")
    return Probe(network, styles, **tensors, size=size)


def style_shown(
    classifier: StyleClassifier, images: Tensor, weights: Tensor, styles: Sequence[str]
) -> dict[str, Tensor]:
    """Measures whether each side shows its own style. Source: this project. Higher is better for all values.

    Args:
        classifier: the style classifier.
        images: (B, 3, H, W) in [0, 1].
        weights: mask weights (N, H, W) that sum to 1.
        styles: the style of each mask weight, the left one first.

    Returns:
        `side` (B, N) in [0, 1]: the probability of style i on side i. `both` (B,): 1 if the most probable style of
        every side is its own, else 0. `balance` (B,) in [0, 1]: the lowest of these probabilities, divided by the
        highest. `monotonicity` (B,) in [-1, 1]: that of P(second style) − P(first style) over five strips across the
        border.

    Raises:
        ValueError: `styles` does not fit `weights`, or the classifier does not know one of them; or `weights` does not
            fit the images.
    """
    weights = check_weights(weights, images.shape[2:])
    unknown = [style for style in styles if style not in classifier.styles]
    if unknown or len(styles) != len(weights):
        raise ValueError(
            f"styles is {tuple(styles)}, expected {len(weights)} of {', '.join(classifier.styles)}"
        )
    index = torch.tensor([classifier.styles.index(style) for style in styles])
    sides = side_weights(weights)
    shown, along = classifier(images, torch.cat([sides, strips(weights, 5)])).split([len(sides), 5], dim=1)
    side = shown[:, torch.arange(len(index)), index]
    rise = along[..., index[1]] - along[..., index[0]]
    return {
        "side": side,
        "both": (shown.argmax(-1) == index).all(1).float(),
        "balance": balance(side),
        "monotonicity": monotonicity(rise),
    }
