"""Measures of a two-style picture: on pixels (`measures`), through networks (`perceptual`, `networks`), and of
which style a side shows (`readers`)."""

from .measures import (
    balance,
    border_distance,
    check_images,
    check_weights,
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
    "balance", "border_distance", "check_images", "check_weights", "gradient_energy", "gram", "gram_distance",
    "gram_reference", "l2", "layout", "monotonicity", "psnr", "seam", "side_weights", "smoothness", "ssim",
    "strips", "transition_strip",
]  # fmt: skip
