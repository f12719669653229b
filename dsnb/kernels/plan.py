"""What the kernels are told about a step: worked out and checked once, then used in every layer."""

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
    """Rows start to stop − 1 of a batch have this role and attend to these prompts, the only ones with weight.

    plain: the only prompt has weight 1 everywhere, so that its attention is the result.
    """

    start: int
    stop: int
    role: int
    prompts: tuple[int, ...]
    plain: bool


class AttentionPlan(NamedTuple):
    """Which row of a batch attends to which prompts with which weights; made by `make_plan`."""

    weights: Tensor  # (R, P, T) float32: the weight of each prompt at each token, for each role
    roles: Tensor  # (B,) int32: the role of each row
    spans: tuple[Span, ...]  # all rows, in order


def make_plan(
    weights: Tensor,
    roles: Tensor | Sequence[int] | None = None,
    device: torch.device | None = None,
) -> AttentionPlan:
    """The plan for `blend_attention`: made once per step and resolution, so that exact zeros cost nothing.

    Args:
        weights: (R, P, T), the weight of each of P prompts at each of T tokens, for R roles; (P, T) for one role.
            Best on the CPU, because the values are read here.
        roles: (B,), the role of each row of the batch; several rows may share one. None: one row of role 0.
        device: of the queries; default that of the weights.

    Returns:
        The plan. A role with a single prompt of weight exactly 1 costs one plain attention, bit for bit.

    Raises:
        ValueError: weights have another number of axes, or a role is out of range.
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
