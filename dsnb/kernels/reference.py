"""The three operations as equations in plain torch: the specification of the CPU code and of the Triton kernels.

The package does not call these functions. The tests compare the fast code with them, in float64.
"""

import torch
from torch import Tensor

from dsnb.kernels.plan import StepCoefficients


def blend_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, roles: Tensor) -> Tensor:
    """O = Σ_i M_i softmax(Q K_iᵀ / √d) V_i: attention to P prompts, blended at each query by a mask M.

    Args:
        q: queries (B, heads, T, d).
        k, v: keys and values (P, heads, L, d).
        weights: (R, P, T), one mask per role.
        roles: (B,), the role of each row.

    Returns:
        (B, heads, T, d).
    """
    scores = torch.einsum("bhtd,phld->bphtl", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bpt,bphtl,phld->bhtd", weights[roles], scores.softmax(-1), v)


def attention_with_maps(q: Tensor, k: Tensor, v: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Attention, and the probabilities of the chosen tokens, averaged over the heads.

    Args:
        q: queries (B, heads, T, d).
        k, v: keys and values (B, heads, L, d).
        first, count: the maps are of the tokens first to first + count - 1, which must be below L.

    Returns:
        The output (B, heads, T, d), and the maps (B, T, count).
    """
    probabilities = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return probabilities @ v, probabilities.mean(1)[..., first : first + count]


def blend_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    weights: Tensor,
    guidance: Tensor,
    x_t: Tensor,
    noise: Tensor | None,
    step: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """e = e_∅ + Σ_i M_i s_i (e_i − e_∅), and one step of the sampler with it.

    Args:
        eps_uncond: e_∅ (B, C, h, w).
        eps_cond: e_i (N, B, C, h, w).
        weights: the mask M (N, h, w).
        guidance: s (N,).
        x_t: the latents (B, C, h, w).
        noise: standard normal numbers (B, C, h, w), or None.
        step: the coefficients of the step.

    Returns:
        The next latents and the predicted clean ones, both (B, C, h, w).
    """
    scale = (weights * guidance[:, None, None])[:, None, None]
    e = eps_uncond + (scale * (eps_cond - eps_uncond)).sum(0)
    x_0 = step.clean_x * x_t + step.clean_e * e
    x_next = step.next_x * x_t + step.next_e * e
    return (x_next if noise is None else x_next + step.next_z * noise), x_0
