"""The one denoising loop: DDIM with recorded noise, around any noise prediction eps(x_t, t, progress).

Equations are those of Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models"; what they call alpha_t, the share
of signal left at time t, is here alpha_bar_t, as in DDPM (Ho et al. 2020). sigma_t is the noise that a step puts back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm.auto import tqdm

from .epsilon import Predictions, blend_eps
from .kernels import StepCoefficients, blend_step, linear_step

Eps = Callable[[Tensor, Tensor, float], Tensor | Predictions]


@dataclass(frozen=True)
class Schedule:
    """The steps that are run, from noise to picture; all of shape (T,)."""

    timesteps: Tensor  # integers, falling
    alpha: Tensor  # alpha_bar at each timestep
    alpha_prev: Tensor  # alpha_bar at the next, cleaner, one

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, eta: float) -> Tensor:
        """sigma_t = eta sqrt((1 - a_prev) / (1 - a)) sqrt(1 - a / a_prev), shape (T,) (DDIM, equation 16)."""
        a, p = self.alpha, self.alpha_prev
        return eta * ((1 - p) / (1 - a)).sqrt() * (1 - a / p).sqrt()

    def coefficients(self, eta: float) -> list[StepCoefficients]:
        """Each step as a linear map: `ddim_mean` plus sigma z, solved for x_t and eps."""
        a, p, sigma = self.alpha.double(), self.alpha_prev.double(), self.sigma(eta).double()
        clean_x, clean_e = 1 / a.sqrt(), -((1 - a) / a).sqrt()
        next_e = p.sqrt() * clean_e + (1 - p - sigma**2).clamp(min=0).sqrt()
        columns = (clean_x, clean_e, p.sqrt() * clean_x, next_e, sigma)
        return [StepCoefficients(*step) for step in torch.stack(columns, 1).tolist()]

    def to(self, device: torch.device) -> "Schedule":
        return Schedule(self.timesteps.to(device), self.alpha.to(device), self.alpha_prev.to(device))


@dataclass(frozen=True)
class Step:
    """What a callback sees of one step: x_t and eps went in, x_prev and the predicted x_0 came out."""

    index: int
    total: int
    timestep: int
    x_t: Tensor
    eps: Tensor
    x_0: Tensor
    x_prev: Tensor


def make_schedule(scheduler, steps: int, skip: int = 0) -> Schedule:
    """The times of `steps` steps without the `skip` noisiest; spacing and alpha_bar as the scheduler's config says.

    Except at the end: a last step with sigma 0 could record no noise, so it goes from time 1 to 0, as Stable
    Diffusion's own does. Raises ValueError unless 0 <= skip < steps <= half the number of training steps, beyond
    which the spacings no longer keep steps apart, and for a first step without any signal.
    """
    most = scheduler.config.num_train_timesteps // 2
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be between 1 and {most}, half of this scheduler's own, got {steps}")
    if not 0 <= skip < steps:
        raise ValueError(f"skip must be at least 0 and below steps ({steps}), got {skip}")
    end = {"set_alpha_to_one": False, "steps_offset": 1}
    if scheduler.config.get("timestep_spacing") == "linspace":  # ends at time 0 itself
        end["timestep_spacing"] = "leading"
    ddim = DDIMScheduler.from_config(scheduler.config, **end)
    ddim.set_timesteps(steps)
    times = ddim.timesteps[:steps]  # by rounding, "trailing" sometimes has one more
    alpha = ddim.alphas_cumprod[times]
    alpha_prev = torch.cat([alpha[1:], ddim.final_alpha_cumprod.reshape(1)])
    if alpha[skip] <= 0:
        raise ValueError(
            f"skip must be at least 1 for this scheduler, whose first step has no signal; got {skip}"
        )
    return Schedule(times[skip:], alpha[skip:].float(), alpha_prev[skip:].float())


def ddim_mean(
    x_t: Tensor, eps: Tensor, alpha: Tensor, alpha_prev: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of x_{t-1} and the predicted x_0 (DDIM, equations 9 and 12); shapes as x_t."""
    x_0 = (x_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    return alpha_prev.sqrt() * x_0 + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * eps, x_0


def denoise(
    eps: Eps,
    x_T: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noises: Tensor | None = None,
    callback: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Tensor:
    """Runs the schedule from x_T (B, C, h, w) to x_0, adding sigma_t noises[t] at each step.

    eps(x_t, t, progress) predicts the noise, merged or as `Predictions`; progress goes from 0 to below 1. noises:
    (T, B, C, h, w), needed where eta > 0. callback: called with a `Step` after each step. progress: show a bar.
    """
    if eta > 0 and noises is None:
        raise ValueError(f"eta is {eta}, so the noise of every step is needed: pass noises, or eta=0")
    steps = schedule.coefficients(eta)
    times, total, x_t = schedule.timesteps.to(x_T.device), len(schedule), x_T
    for i, t in enumerate(tqdm(times, desc="decoding", disable=not progress, leave=False)):
        predicted = eps(x_t, t, i / total)
        merged = isinstance(predicted, Tensor)
        noise = noises[i] if eta > 0 else None
        if merged:
            x_prev, x_0 = linear_step(predicted, x_t, noise, steps[i])
        else:
            x_prev, x_0 = blend_step(*predicted, x_t, noise, steps[i])
        if callback is not None:
            eps_t = predicted if merged else blend_eps(*predicted)
            callback(Step(i, total, int(t), x_t, eps_t, x_0, x_prev))
        x_t = x_prev
    return x_t
