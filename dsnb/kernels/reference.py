"""The three kernels in plain torch: short, readable, and the specification the fused ones are tested against.

On a CPU this is also the fast path: prompts whose weights are exactly zero are not computed at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1_500_000  # probabilities at a time on a CPU: 6 MB of float32, beyond which memory sets the pace


class Plan(NamedTuple):
    """Row b has role `roles[b]` and first meets prompt `first[b]`; then terms (start, stop, role, prompt).

    A term whose prompt is its rows' first one only multiplies by the weights; any other adds an attention.
    """

    roles: tuple[int, ...]
    first: tuple[int, ...]
    terms: tuple[tuple[int, int, int, int], ...]

    def shares(self) -> list[tuple[int, int, int, int]]:
        """The terms, and one of the same form for each row that takes the path of plain attention."""
        mixed = {row for start, stop, *_ in self.terms for row in range(start, stop)}
        plain = [row for row in range(len(self.roles)) if row not in mixed]
        return [*self.terms, *((row, row + 1, self.roles[row], self.first[row]) for row in plain)]


def make_plan(weights: Tensor, roles: Tensor | Sequence[int], skip: bool = True) -> Plan:
    """Which rows attend to which prompts, so that exact zeros cost nothing. Once per step, not per layer.

    weights (R, P, T), roles (B,) into R. A role with a single prompt of weight exactly one takes the path of
    plain attention, bit for bit. With `skip` off every prompt is computed and the weights are not looked at.
    """
    roles = roles.tolist() if isinstance(roles, Tensor) else list(roles)
    n_roles, n_prompts = weights.shape[:2]
    if skip:
        used = (weights != 0).any(-1).tolist()
        active = [[p for p in range(n_prompts) if row[p]] or [0] for row in used]
        plain = [len(a) == 1 and bool((weights[r, a[0]] == 1).all()) for r, a in enumerate(active)]
    else:
        active, plain = [list(range(n_prompts))] * n_roles, [False] * n_roles
    terms, start = [], 0
    while start < len(roles):
        role, stop = roles[start], start + 1
        while stop < len(roles) and roles[stop] == role:
            stop += 1
        if not plain[role]:
            terms += [(start, stop, role, p) for p in active[role]]
        start = stop
    return Plan(tuple(roles), tuple(active[r][0] for r in roles), tuple(terms))


def blend_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, plan: Plan) -> Tensor:
    """O = Σ_i M_i softmax(Q K_iᵀ / √d) V_i, the attention interpolation of a mask M over N prompts.

    q (B, heads, T, d), k and v (P, heads, L, d), weights (R, P, T), plan from `make_plan`.
    Returns (B, heads, T, d) in q's dtype; the sum over the prompts is taken in float32.
    """
    out = attend(q, _prompts(k, plan.first), _prompts(v, plan.first))
    if not plan.terms:
        return out
    if out.requires_grad:
        out = out.clone()  # what follows works in place
    precise = torch.promote_types(out.dtype, torch.float32)
    weights, span = weights.to(precise), None
    for i, (start, stop, role, p) in enumerate(plan.terms):
        if (start, stop) != span:
            span, rows = (start, stop), out[start:stop]
            total = rows.to(precise)  # the rows themselves where they are float32
        weight = weights[role, p].unsqueeze(-1)
        if p == plan.first[start]:
            total.mul_(weight)
        else:
            keys, values = _prompts(k, (p,) * (stop - start)), _prompts(v, (p,) * (stop - start))
            total.addcmul_(attend(q[start:stop], keys, values).to(precise), weight)
        last = i + 1 == len(plan.terms) or plan.terms[i + 1][:2] != span
        if last and total is not rows:
            rows.copy_(total)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V for q (B, heads, T, d), k and v (B, heads, L, d), in q's dtype.

    bfloat16 on a CPU is quicker as two plain matrix products where there is something to multiply and their
    probabilities still fit the cache: two thirds of the time, half as much again with fewer tokens; its error is 4e-3
    instead of 2e-3, the format's own step.
    """
    fits = 128 <= q.shape[2] <= 2048 and k.shape[2] <= 256
    if fits and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _probabilities(q, k).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attention_with_maps(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attention, and how much each query looks at the chosen tokens, averaged over the heads.

    q (B, heads, T, d), k and v (B, heads, L, d), tokens (n,) long into L.
    Returns the output (B, heads, T, d) in q's dtype and float32 maps (B, T, n), each in [0, 1].
    """
    out, maps = [], []
    for part in _blocks(q, k):
        probs = _probabilities(part, k)
        out.append(probs.to(v.dtype) @ v)
        maps.append(probs.index_select(-1, tokens).mean(1))
    return torch.cat(out, 2), torch.cat(maps, 1).float()


class StepCoefficients(NamedTuple):
    """One step of a sampler is linear in the latents x, the prediction e and fresh noise z:

    x_0 = clean_x · x + clean_e · e and x_next = next_x · x + next_e · e + next_z · z.
    """

    clean_x: float
    clean_e: float
    next_x: float
    next_e: float
    next_z: float


def blend_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    weights: Tensor,
    guidance: Tensor,
    x_t: Tensor,
    noise: Tensor | None,
    step: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """e = e_∅ + Σ_i M_i g_i (e_i − e_∅), and one step with it -> the next latents, and the clean ones."""
    scale = (weights * guidance[:, None, None])[:, None, None]
    e = eps_uncond + (scale * (eps_cond - eps_uncond)).sum(0)
    x_0 = step.clean_x * x_t + step.clean_e * e
    x_next = step.next_x * x_t + step.next_e * e
    return (x_next if noise is None else x_next + step.next_z * noise), x_0


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d), at least float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))


def _blocks(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The queries in blocks whose probabilities stay in a CPU's cache; all at once elsewhere."""
    rows = max(1, BLOCK // (q.shape[0] * q.shape[1] * k.shape[2]))
    return q.split(rows if q.device.type == "cpu" else q.shape[2], 2)


def _prompts(x: Tensor, index: tuple[int, ...]) -> Tensor:
    """One entry of x (P, …) per row: a view where the index is constant or counts up, a copy otherwise."""
    first, n = index[0], len(index)
    if index.count(first) == n:
        return x[first : first + 1].expand(n, -1, -1, -1)
    if index == tuple(range(first, first + n)):
        return x[first : first + n]
    return torch.stack([x[p] for p in index])
