"""The operations in plain torch, optimised for a CPU; any device can run them. `reference` has the equations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsnb.kernels.plan import AttentionPlan, StepCoefficients

BLOCK = 1_500_000  # probabilities at a time: 6 MB of float32; for more, memory bandwidth is the limit


def blend_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """`reference.blend_attention` without the prompts of weight 0; sums are float32.

    One call computes the first prompt of all rows, because small batches are slow.
    """
    first = [span.prompts[0] for span in plan.spans for _ in range(span.start, span.stop)]
    out = attend(q, _select(k, first), _select(v, first))
    if out.requires_grad:
        out = out.clone()  # because the code below changes it
    precise = torch.promote_types(out.dtype, torch.float32)
    weights = plan.weights.to(precise).unsqueeze(-1)
    for start, stop, role, (prompt, *others), plain in plan.spans:
        if plain:
            continue
        rows = out[start:stop]
        total = rows.to(precise).mul_(weights[role, prompt])  # in `rows` itself where they are float32
        for prompt in others:
            keys, values = (_select(x, [prompt] * (stop - start)) for x in (k, v))
            total.addcmul_(attend(q[start:stop], keys, values).to(precise), weights[role, prompt])
        if total.dtype != rows.dtype:
            rows.copy_(total)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V.

    On a CPU, two plain bfloat16 products take two thirds of SDPA's time, if there are enough tokens and their
    probabilities fit into the cache. The error is then 4e-3, the precision of bfloat16, instead of 2e-3.

    Args:
        q: queries (B, heads, T, d).
        k, v: keys and values (B, heads, L, d).

    Returns:
        (B, heads, T, d) in q's dtype.
    """
    fits = 128 <= q.shape[2] <= 2048 and k.shape[2] <= 256
    if fits and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _probabilities(q, k).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attention_with_maps(q: Tensor, k: Tensor, v: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """`reference.attention_with_maps`, one block of queries at a time, so that its probabilities stay in the cache."""
    rows = max(1, BLOCK // (q.shape[0] * q.shape[1] * k.shape[2]))
    out, maps = [], []
    for part in q.split(rows if q.device.type == "cpu" else q.shape[2], 2):
        probabilities = _probabilities(part, k)
        out.append(probabilities.to(v.dtype) @ v)
        maps.append(probabilities[..., first : first + count].mean(1))
    return torch.cat(out, 2), torch.cat(maps, 1).float()


def blend_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    weights: Tensor,
    guidance: Tensor,
    x_t: Tensor,
    noise: Tensor | None,
    step: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """`reference.blend_step` with fewer temporary tensors. Its arguments do not change."""
    eps_uncond, eps_cond = eps_uncond.to(x_t.dtype), eps_cond.to(x_t.dtype)
    scale = (weights * guidance[:, None, None]).to(x_t.dtype)[:, None, None]
    e = (eps_cond - eps_uncond).mul_(scale).sum(0).add_(eps_uncond)
    return linear_step(e, x_t, noise, step)


def linear_step(
    e: Tensor, x_t: Tensor, noise: Tensor | None, step: StepCoefficients
) -> tuple[Tensor, Tensor]:
    """One step of the sampler with a merged prediction.

    Args:
        e: the prediction (B, C, h, w).
        x_t: the latents (B, C, h, w).
        noise: standard normal numbers (B, C, h, w), or None for a step without noise.
        step: the coefficients of the step.

    Returns:
        The next latents and the predicted clean ones, like x_t.
    """
    x_0 = (step.clean_x * x_t).add_(e, alpha=step.clean_e)
    x_next = (step.next_x * x_t).add_(e, alpha=step.next_e)
    return (x_next if noise is None else x_next.add_(noise, alpha=step.next_z)), x_0


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d), at least float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))


def _select(x: Tensor, index: list[int]) -> Tensor:
    """One entry of x (P, …) per row: a view where the index is constant or counts up, a copy otherwise."""
    first, n = index[0], len(index)
    if index.count(first) == n:
        return x[first : first + 1].expand(n, -1, -1, -1)
    if index == list(range(first, first + n)):
        return x[first : first + n]
    return torch.stack([x[p] for p in index])
