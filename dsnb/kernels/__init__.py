"""Three operations that have their own kernels, and the choice of the code that computes them.

`reference` has the equations. `cpu` computes them in plain torch, `fused` in Triton. On an NVIDIA GPU, the Triton
kernels compute all shapes that they support. Plain torch computes everything else. The environment variable
DSNB_KERNELS=torch|triton, which is read at import, and `force("torch" | "triton" | None)` override this.
"""

import importlib.util
import os
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor

from dsnb.kernels import cpu, reference
from dsnb.kernels.cpu import linear_step
from dsnb.kernels.plan import AttentionPlan, StepCoefficients, make_plan

__all__ = [
    "AttentionPlan", "StepCoefficients", "attention_with_maps", "backend", "blend_attention", "blend_step", "force",
    "linear_step", "make_plan", "reference",
]  # fmt: skip

CHOICES = ("torch", "triton", None)
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_forced: str | None = None


class force:  # noqa: N801 - called like a function, or used as a context manager that restores the old choice
    """Chooses which kernels compute, from now on or while a `with` block runs.

    Args:
        choice: "torch", "triton", or None for the automatic choice.

    Raises:
        ValueError: any other choice, or "triton" if it is not installed.
    """

    def __init__(self, choice: str | None):
        global _forced
        if choice not in CHOICES:
            raise ValueError(f"kernels.force: choice must be 'torch', 'triton' or None, got {choice!r}")
        if choice == "triton" and not _HAS_TRITON:
            raise ValueError("kernels.force: triton is not installed: pip install 'dsnb[triton]'")
        self.before, _forced = _forced, choice

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        global _forced
        _forced = self.before


def backend(device: torch.device | str = "cpu") -> str:
    """Which kernels compute on a device.

    Args:
        device: the device or its name.

    Returns:
        "torch" or "triton". With the automatic choice, plain torch computes the shapes that Triton does not support.
        With `force("triton")`, such a shape raises ValueError.
    """
    if _forced:
        return _forced
    nvidia = torch.device(device).type == "cuda" and torch.version.cuda is not None
    return "triton" if nvidia and _HAS_TRITON else "torch"


def blend_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """O = Σ_i M_i softmax(Q K_iᵀ / √d) V_i: attention to P prompts, blended at each query by a mask M.

    It runs in every layer and step, so it does not check the shapes. `make_plan` has checked those of the plan.

    Args:
        q: queries (B, heads, T, d), for the B rows and T tokens of the plan.
        k: keys (P, heads, L, d) of the plan's P prompts.
        v: values, like k.
        plan: the weights, and the role of each row. The role of an unconditional row has weight 1 for the empty prompt
            and 0 for all others.

    Returns:
        (B, heads, T, d) in q's dtype.

    Raises:
        ValueError: the plan is for another number of rows.
    """
    if len(q) != len(plan.roles):
        raise ValueError(f"plan must be for the {len(q)} rows of q, got one for {len(plan.roles)}")
    if not _fused_takes("blend_attention", q, k, v, plan):
        return cpu.blend_attention(q, k, v, plan)
    if torch.compiler.is_compiling():
        return _blend_attention_op(q, k, v, plan.weights, plan.roles)
    return _run_fused("blend_attention", q, k, v, plan.weights, plan.roles)


@torch.library.custom_op("dsnb::blend_attention", mutates_args=())
def _blend_attention_op(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, roles: Tensor) -> Tensor:
    """What `torch.compile` sees in place of the fused kernel: one node, no graph break."""
    return _run_fused("blend_attention", q, k, v, weights, roles)


@_blend_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, roles: Tensor) -> Tensor:
    batch, heads, n_queries, dim = q.shape
    return q.new_empty(batch, n_queries, heads, dim).transpose(1, 2)


def attention_with_maps(q: Tensor, k: Tensor, v: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Plain attention, and how much each query attends to the chosen tokens, averaged over the heads.

    Args:
        q: queries (B, heads, T, d).
        k: keys (B, heads, L, d).
        v: values, like k.
        first, count: the maps are of the tokens first to first + count - 1, which must be below L.

    Returns:
        The output (B, heads, T, d) in q's dtype, and float32 maps (B, T, count) in [0, 1].
    """
    if _fused_takes("attention_with_maps", q, k, v, first, count):
        return _run_fused("attention_with_maps", q, k, v, first, count)
    return cpu.attention_with_maps(q, k, v, first, count)


def blend_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    weights: Tensor,
    guidance: Tensor,
    x_t: Tensor,
    noise: Tensor | None,
    step: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """Guidance, the masked blend of N predictions, and one step of the sampler: see `reference.blend_step`.

    It runs in every step, so it does not check the shapes. `sampling.denoise` has checked those of the first step.

    Args:
        eps_uncond: the unconditional prediction (B, C, h, w).
        eps_cond: the prediction of each style (N, B, C, h, w).
        weights: the mask (N, h, w).
        guidance: one number per style (N,).
        x_t: the latents (B, C, h, w), float32 (or float64).
        noise: standard normal numbers (B, C, h, w), or None for a step without noise.
        step: the coefficients of the step.

    Returns:
        The next latents and the predicted clean ones, like x_t.
    """
    args = (eps_uncond, eps_cond, weights, guidance, x_t, noise, step)
    return _run_fused("blend_step", *args) if _fused_takes("blend_step", *args) else cpu.blend_step(*args)


def _fused_takes(name: str, *args: Any) -> bool:
    """Whether the fused kernel computes this call. ValueError if it is forced to and cannot."""
    if backend(args[0].device) == "torch":
        return False
    from dsnb.kernels import fused

    reason = fused.unsupported(name, *args)
    if reason and _forced:
        raise ValueError(f"the fused {name} cannot compute this call: {reason}; DSNB_KERNELS=torch can")
    return reason is None


def _run_fused(name: str, *args: Any) -> Any:
    """The fused kernel's result. Its errors say how to avoid it; an out-of-memory error stays as it is."""
    from dsnb.kernels import fused

    first = args[0]
    try:
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():  # where Triton launches
            return getattr(fused, name)(*args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"the fused {name} failed for {first.dtype} {tuple(first.shape)}: {error}\n"
            "Set DSNB_KERNELS=torch to compute it in plain torch, and please report this."
        ) from error


try:
    force(os.environ.get("DSNB_KERNELS") or None)
except ValueError as error:
    raise ValueError(f"the environment variable DSNB_KERNELS is wrong: {error}") from None
