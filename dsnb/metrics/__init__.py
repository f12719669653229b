"""Measures of an image in two styles: from pixels (`measures`), with networks (`perceptual`, `networks`), and of the
style that each side shows (`classifiers`)."""

from .measures import (
    balance,
    border_distance,
    border_window,
    gradient_energy,
    gram,
    gram_distance,
    gram_reference,
    l2,
    layout,
    monotonicity,
    psnr,
    seam,
    side_weights,
    smoothness,
    ssim,
    strips,
    transition_strip,
)

__all__ = [
    "balance", "border_distance", "border_window", "gradient_energy", "gram",
    "gram_distance", "gram_reference", "l2", "layout", "monotonicity", "psnr", "seam", "side_weights", "smoothness",
    "ssim", "strips", "transition_strip",
]  # fmt: skip
