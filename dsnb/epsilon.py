"""Guidance, and the masked blend of N guided noise predictions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks


class Predictions(NamedTuple):
    """Noise predictions that are not merged yet. The sampler merges them and steps in one pass over memory."""

    uncond: Tensor  # (B, C, h, w)
    cond: Tensor  # (N, B, C, h, w)
    weights: Tensor  # (N, h, w), summing to 1
    guidance: Tensor  # (N,)

    def check(self, x_t: Tensor) -> None:
        """Checks the shapes; ValueError if they do not fit to each other and to the latents x_t (B, C, h, w)."""
        n, shape = len(self.cond), x_t.shape
        expected = (shape, (n, *shape), (n, *shape[-2:]), (n,))
        for name, given, wanted in zip(self._fields, self, expected, strict=True):
            if given.shape != wanted:
                raise ValueError(
                    f"{name} of the network's predictions must have shape {tuple(wanted)}, got {tuple(given.shape)}"
                )


def blend_eps(eps_uncond: Tensor, eps_cond: Tensor, weights: Tensor, guidance: Tensor) -> Tensor:
    """Blends guided predictions by the mask: eps = sum_i M_i (eps_uncond + s_i (eps_i - eps_uncond)).

    Guidance: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance".

    Args:
        eps_uncond: the unconditional prediction (B, C, h, w).
        eps_cond: the prediction of each style (N, B, C, h, w).
        weights: the mask M (N, h, w), summing to 1.
        guidance: s (N,), one scale per style.

    Returns:
        The blended prediction (B, C, h, w).
    """
    pull = (weights * guidance[:, None, None])[:, None, None] * (eps_cond - eps_uncond)
    return eps_uncond + pull.sum(0)


def guidance_per_style(guidance: float | Sequence[float], n: int, device: torch.device) -> Tensor:
    """One guidance scale for each of n styles.

    Args:
        guidance: one number for all styles, or n numbers.
        n: the number of styles.
        device: of the result.

    Returns:
        (n,), float32.

    Raises:
        ValueError: another number of values, or one that is not finite.
        TypeError: something that is not a number.
    """
    return torch.tensor(checks.numbers("guidance", guidance, n), dtype=torch.float32, device=device)
