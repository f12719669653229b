"""The kernels in plain torch, tuned for a CPU: the same numbers as `reference`, with fewer passes over memory."""

from torch import Tensor

from dsnb.kernels.reference import StepCoefficients


def blend_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    weights: Tensor,
    guidance: Tensor,
    x_t: Tensor,
    noise: Tensor | None,
    step: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """`reference.blend_step` in place."""
    eps_uncond, eps_cond = eps_uncond.to(x_t.dtype), eps_cond.to(x_t.dtype)
    scale = (weights * guidance[:, None, None]).to(x_t.dtype)[:, None, None]
    e = (eps_cond - eps_uncond).mul_(scale).sum(0).add_(eps_uncond)
    return linear_step(e, x_t, noise, step)


def linear_step(
    e: Tensor, x_t: Tensor, noise: Tensor | None, step: StepCoefficients
) -> tuple[Tensor, Tensor]:
    """One step with a merged prediction e (B, C, h, w) -> the next latents, and the predicted clean ones, as x_t."""
    x_0 = (step.clean_x * x_t).add_(e, alpha=step.clean_e)
    x_next = (step.next_x * x_t).add_(e, alpha=step.next_e)
    return (x_next if noise is None else x_next.add_(noise, alpha=step.next_z)), x_0
