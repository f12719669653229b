"""The style classifier that comes with the workbook: how it was fitted."""

import torch
import torch.nn.functional as F

from ...metrics.classifiers import Probe, fit_probe
from ...metrics.networks import Lpips, resize
from ..world import SIZE, STYLES, draw, random_pictures

IMAGES = 360
NOISE = 0.02  # standard deviation of the noise on softened images


def fit_style_probe(network: Lpips) -> Probe:
    """Fit the style classifier on drawn images, each once sharp and once softened and noisy. It takes minutes.

    Args:
        network: the perceptual network whose features it works on.

    Returns:
        The fitted classifier; `classifiers.save_probe` writes it.
    """
    labels = torch.arange(IMAGES) % len(STYLES)
    sharp = draw(random_pictures(IMAGES, torch.Generator().manual_seed(0)), labels)
    noise = NOISE * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(1))
    soft = F.interpolate(resize(sharp, SIZE // 2), (SIZE, SIZE), mode="bicubic")
    soft = (soft + noise).clamp(0, 1)
    return fit_probe(network, torch.cat([sharp, soft]), labels.repeat(2), list(STYLES))
