"""The inputs of the kernels for one step: computed and checked once, then used in every layer."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


class StepCoefficients(NamedTuple):
    """One step of a sampler is linear in the latents x, the network's output e and fresh noise z:

    x_0 = clean_x · x + clean_e · e and x_next = next_x · x + next_e · e + next_z · z.
    """

    clean_x: float
    clean_e: float
    next_x: float
    next_e: float
    next_z: float


class Span(NamedTuple):
    """Rows start to stop − 1 of a batch, which have the same role. `prompts` are those with a weight above 0.

    plain: there is one prompt with weight 1 everywhere, so its attention is the result.
    """

    start: int
    stop: int
    role: int
    prompts: tuple[int, ...]
    plain: bool


class AttentionPlan(NamedTuple):
    """The weights with which each row of a batch attends to each prompt; `make_plan` makes it."""

    weights: Tensor  # (R, P, T) float32: the weight of each prompt at each token, for each role
    roles: Tensor  # (B,) int32: the role of each row
    spans: tuple[Span, ...]  # all rows, in order


def make_plan(
    weights: Tensor,
    roles: Tensor | Sequence[int] | None = None,
    device: torch.device | None = None,
) -> AttentionPlan:
    """Makes the plan for `blend_attention`, once per step and resolution. Prompts with weight 0 are not computed.

    Args:
        weights: (R, P, T), the weight of each of P prompts at each of T tokens, for R roles; (P, T) for one role. A
            tensor on the CPU is faster, because the values are read here.
        roles: (B,), the role of each row of the batch, from 0 to R - 1. None is one row of role 0.
        device: of the queries; default that of the weights.

    Returns:
        The plan. A role with one prompt of weight exactly 1 is computed as one plain attention, bit for bit.

    Raises:
        ValueError: another number of axes, or a role out of range.
    """
    if weights.ndim not in (2, 3):
        raise ValueError(
            f"weights must be (roles, prompts, tokens) or (prompts, tokens), got {tuple(weights.shape)}"
        )
    weights = weights.float().reshape(-1, *weights.shape[-2:])
    rows = torch.as_tensor([0] if roles is None else roles).tolist()
    if not rows or not all(0 <= role < len(weights) for role in rows):
        raise ValueError(f"roles must be indices from 0 to {len(weights) - 1}, got {rows}")
    used, whole = (weights != 0).any(-1).tolist(), (weights == 1).all(-1).tolist()
    spans, start = [], 0
    for role, same in groupby(rows):
        stop = start + len(list(same))
        prompts = tuple(p for p, any_weight in enumerate(used[role]) if any_weight) or (0,)
        plain = len(prompts) == 1 and whole[role][prompts[0]]
        spans.append(Span(start, stop, role, prompts, plain))
        start = stop
    device = weights.device if device is None else device
    roles = torch.tensor(rows, dtype=torch.int32, device=device)
    return AttentionPlan(weights.to(device).contiguous(), roles, tuple(spans))
