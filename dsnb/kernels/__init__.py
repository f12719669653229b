"""The three operations worth a kernel, and the choice of who computes them.

On CUDA with a supported shape the fused Triton kernels run, anywhere else the plain torch reference, which is
the specification of both. One switch forces the choice: the environment variable DSNB_KERNELS=torch|triton,
read at import, or `force("torch" | "triton" | None)`, which also works as a context manager. Chosen
automatically, a kernel that fails to compile for a dtype and head size is replaced by the reference from then on,
with one warning that says why; forced, it raises.
"""

import importlib.util
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from dsnb.kernels import cpu, reference
from dsnb.kernels.cpu import linear_step
from dsnb.kernels.reference import Plan, StepCoefficients, make_plan

__all__ = [
    "Plan", "StepCoefficients", "attention_with_maps", "backend", "blend_attention", "blend_step", "force",
    "linear_step", "make_plan",
]  # fmt: skip

CHOICES = ("torch", "triton", None)
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_forced: str | None = None
_broken: set[tuple] = set()  # kernel, dtype and last dimension of what it failed on


class force:  # noqa: N801 - a function to its callers, and a context manager where the old choice shall return
    """Force who computes: "torch", "triton", or None, the automatic choice. ValueError for anything else."""

    def __init__(self, choice: str | None):
        global _forced
        if choice not in CHOICES:
            raise ValueError(f"kernels.force: choice must be 'torch', 'triton' or None, got {choice!r}")
        if choice == "triton" and not _HAS_TRITON:
            raise ValueError("kernels.force: triton is not installed: pip install 'dsnb[triton]'")
        self.before, _forced = _forced, choice

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        global _forced
        _forced = self.before


def backend(device: torch.device | str = "cpu") -> str:
    """Who computes on this device: "torch" or "triton" (which still leaves shapes it lacks to torch)."""
    if _forced:
        return _forced
    on_gpu = torch.device(device).type == "cuda" and torch.version.cuda is not None
    return "triton" if on_gpu and _HAS_TRITON else "torch"


def blend_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Tensor,
    roles: Tensor | Sequence[int] | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """O = Σ_i M_i softmax(Q K_iᵀ / √d) V_i: attention to P prompts at once, mixed per query token.

    q (B, heads, T, d); k, v (P, heads, L, d); weights (R, P, T), or (P, T) for a single role, float32;
    roles (B,) the role of each row of q (default: all rows role 0; several images per role are fine). An
    unconditional row is a role whose weight is 1 on the empty prompt and exactly 0 elsewhere: it costs one
    plain attention. plan: `make_plan(weights, roles)`, made once per step and resolution by a caller that
    cares for speed or compiles; without it the plan is made here on a CPU, and on a GPU the torch path skips
    nothing (to look at the weights would stall it).
    Returns (B, heads, T, d) in q's dtype.
    ValueError where the shapes do not fit, or a role is out of range (not looked at where it is on a GPU).
    """
    if weights.ndim == 2:
        weights = weights[None]
    batch, heads, n_queries, dim = q.shape
    if k.shape != v.shape or k.ndim != 4 or k.shape[1] != heads or k.shape[3] != dim:
        raise ValueError(f"k and v must be (P, {heads}, L, {dim}), got {tuple(k.shape)} and {tuple(v.shape)}")
    if weights.ndim != 3 or weights.shape[1] != k.shape[0] or weights.shape[2] != n_queries:
        raise ValueError(f"weights must be (R, {k.shape[0]}, {n_queries}), got {tuple(weights.shape)}")
    for name, given in (("roles", roles), ("plan.roles", plan.roles if plan else None)):
        if given is not None:
            if len(given) != batch:
                raise ValueError(f"{name} must name one role per row of q ({batch}), got {len(given)}")
            _check_indices(name, given, weights.shape[0])
    if roles is None:
        if plan is None and weights.shape[0] != 1:
            raise ValueError(f"roles must be given where weights hold {weights.shape[0]} roles")
        roles = (0,) * batch if plan is None else plan.roles
    if backend(q.device) == "triton":
        if torch.compiler.is_compiling():
            roles = roles if isinstance(roles, Tensor) else torch.tensor(roles, device=q.device)
            return _blend_attention_op(q, k, v, weights, roles)
        out = _fused("blend_attention", q, k, v, weights, roles)
        if out is not None:
            return out
    if plan is None:
        look = q.device.type == "cpu" and not torch.compiler.is_compiling()
        plan = make_plan(weights, roles, skip=look)
    return reference.blend_attention(q, k, v, weights, plan)


@torch.library.custom_op("dsnb::blend_attention", mutates_args=())
def _blend_attention_op(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, roles: Tensor) -> Tensor:
    """What `torch.compile` sees in place of the fused kernel: one node, no graph break."""
    out = _fused("blend_attention", q, k, v, weights, roles)
    if out is None:
        out = reference.blend_attention(q, k, v, weights, make_plan(weights, roles))
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@_blend_attention_op.register_fake
def _(q, k, v, weights, roles):
    batch, heads, n_queries, dim = q.shape
    return q.new_empty(batch, n_queries, heads, dim).transpose(1, 2)


def attention_with_maps(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Plain attention that also tells how much each query looks at the chosen tokens, averaged over heads.

    q (B, heads, T, d); k, v (B, heads, L, d); tokens (n,) indices into L.
    Returns (B, heads, T, d) in q's dtype and float32 (B, T, n) in [0, 1].
    ValueError where the shapes do not fit, or a token is out of range (not looked at where it is on a GPU).
    """
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k and v must be (B, heads, L, d) as q {tuple(q.shape)}, got {tuple(k.shape)}")
    _check_indices("tokens", tokens, k.shape[2])
    tokens = torch.as_tensor(tokens, dtype=torch.long).to(q.device)
    if backend(q.device) == "triton":
        both = _fused("attention_with_maps", q, k, v, tokens)
        if both is not None:
            return both
    return reference.attention_with_maps(q, k, v, tokens)


def blend_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    weights: Tensor,
    guidance: Tensor,
    x_t: Tensor,
    noise: Tensor | None,
    step: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """Guidance, the masked blend of N predictions and one step of the sampler.

    Args:
        eps_uncond: the unconditional prediction (B, C, h, w).
        eps_cond: the prediction of each style (N, B, C, h, w).
        weights: the mask (N, h, w).
        guidance: one number per style (N,).
        x_t: the latents (B, C, h, w), float32 (or float64).
        noise: standard normal numbers (B, C, h, w), or None for a step without noise.
        step: the coefficients of the step.

    Returns:
        The next latents and the predicted clean ones, like x_t. The equations: `reference.blend_step`.

    Raises:
        ValueError: shapes do not fit each other.
    """
    n, shape = len(eps_cond), x_t.shape
    expected = {
        "eps_uncond": (eps_uncond, shape),
        "eps_cond": (eps_cond, (n, *shape)),
        "weights": (weights, (n, *shape[-2:])),
        "guidance": (guidance, (n,)),
        "noise": (x_t if noise is None else noise, shape),
    }
    for name, (given, wanted) in expected.items():
        if given.shape != wanted:
            raise ValueError(f"{name} must have shape {tuple(wanted)}, got {tuple(given.shape)}")
    args = (eps_uncond, eps_cond, weights, guidance, x_t, noise, step)
    both = _fused("blend_step", *args) if backend(x_t.device) == "triton" else None
    return cpu.blend_step(*args) if both is None else both


def _check_indices(name: str, given: Tensor | Sequence[int], n: int) -> None:
    """ValueError unless all are from 0 to n - 1; not looked at on a GPU (it would stall) or while compiling."""
    if torch.compiler.is_compiling() or isinstance(given, Tensor) and given.device.type != "cpu":
        return
    given = given.tolist() if isinstance(given, Tensor) else list(given)
    if not all(0 <= index < n for index in given):
        raise ValueError(f"{name} must be indices from 0 to {n - 1}, got {given}")


def _fused(name: str, *args):
    """The fused kernel's result; None where the reference must do it: a shape it lacks, a broken kernel."""
    first = next(a for a in args if isinstance(a, Tensor))
    kind = name, first.dtype, first.shape[-1]
    if kind in _broken and _forced != "triton":
        return None
    try:
        from dsnb.kernels import fused

        reason = fused.unsupported(name, *args)
        if reason is None:
            current = torch.cuda.device(first.device) if first.is_cuda else nullcontext()
            with current:  # Triton launches on the current device
                return getattr(fused, name)(*args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if _forced == "triton":
            raise
        _broken.add(kind)
        text = f"the fused {name} does not work here for {first.dtype}, plain torch takes over: {error}"
        warnings.warn(text, stacklevel=3)
        return None
    if _forced == "triton":
        raise ValueError(f"the fused {name} does not support this call: {reason}")
    return None


force(os.environ.get("DSNB_KERNELS") or None)
