"""Guidance, and the masked blend of N guided noise predictions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks


class Predictions(NamedTuple):
    """Noise predictions still to be merged: the sampler merges them and steps in one pass over memory."""

    uncond: Tensor  # (B, C, h, w)
    cond: Tensor  # (N, B, C, h, w)
    weights: Tensor  # (N, h, w), summing to 1
    guidance: Tensor  # (N,)


def blend_eps(eps_uncond: Tensor, eps_cond: Tensor, weights: Tensor, guidance: Tensor) -> Tensor:
    """eps = sum_i M_i (eps_0 + s_i (eps_i - eps_0)): classifier-free guidance per style, merged by the mask.

    eps_uncond (B, C, h, w), eps_cond (N, B, C, h, w), weights (N, h, w) summing to 1, guidance (N,) -> (B, C, h, w).
    Guidance: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance".
    """
    pull = (weights * guidance[:, None, None])[:, None, None] * (eps_cond - eps_uncond)
    return eps_uncond + pull.sum(0)


def guidance_per_style(guidance: float | Sequence[float], n: int, device: torch.device) -> Tensor:
    """One guidance for all styles, or one each -> (n,). Raises ValueError for another number of them."""
    return torch.tensor(checks.numbers("guidance", guidance, n), dtype=torch.float32, device=device)
