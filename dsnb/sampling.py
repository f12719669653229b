"""The one denoising loop, for diffusion and flow matching: x_t = a x_0 + s e, with recorded noise.

Diffusion (DDPM) has a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar); its steps are those of DDIM (Song, Meng & Ermon
2021, "Denoising Diffusion Implicit Models", whose alpha_t is alpha_bar_t here). Flow matching (Lipman et al. 2023) has
s = sigma and a = 1 - sigma; without fresh noise its steps are Euler's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor
from tqdm.auto import tqdm

from .epsilon import Predictions
from .kernels import StepCoefficients, blend_step, linear_step

Network = Callable[[Tensor, Tensor, float], Tensor | Predictions]
PlainNetwork = Callable[[Tensor, Tensor, float], Tensor]  # which merges its predictions itself
PREDICTIONS = ("epsilon", "v_prediction", "flow")


def clean_and_noise(prediction: str, a: Tensor, s: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """The clean part and the noise of x_t = a x_0 + s e, from a network's output o: x_0 = c x_t + d o, e = f x_t + g o.

    Args:
        prediction: one of `PREDICTIONS`. "epsilon" is o = e. "v_prediction" is o = a e - s x_0 with a^2 + s^2 = 1
            (Salimans & Ho 2022, "Progressive distillation", appendix D). "flow" is the velocity o = e - x_0.
        a: the signal's weight, any shape.
        s: the noise's weight, like a.

    Returns:
        ((c, d), (f, g)), all like a. For "epsilon", a must be above 0.
    """
    one = torch.ones_like(a)
    if prediction == "epsilon":
        return (1 / a, -s / a), (0 * one, one)
    if prediction == "v_prediction":
        return (a, -s), (s, a)
    return (one, -s), (one, a)


@dataclass(frozen=True)
class Schedule:
    """The steps that are run, from noise to image: each goes from x_t = a x_0 + s e to a_next x_0 + s_next e.

    All tensors have the shape (T,).
    """

    timesteps: Tensor  # falling; what the network is told
    a: Tensor
    s: Tensor
    a_next: Tensor
    s_next: Tensor
    prediction: str = "epsilon"  # what the network's output is, one of `PREDICTIONS`

    alpha = property(lambda self: self.a**2, doc="alpha_bar at each timestep, for diffusion.")
    alpha_prev = property(lambda self: self.a_next**2, doc="alpha_bar at the next, cleaner, timestep.")

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, eta: float) -> Tensor:
        """The fresh noise n of each step, shape (T,): n = eta s' sqrt(1 - (a s' / (a' s))^2).

        For diffusion this is DDIM's equation 16. A step that ends at s' = 0 can add no noise; there n = eta s is
        the unit in which an inversion records what the prediction of x_0 lacks.
        """
        if eta == 0:
            return torch.zeros_like(self.s)
        ratio = (self.a * self.s_next / (self.a_next * self.s)).double()
        n = eta * self.s_next * (1 - ratio**2).clamp(min=0).sqrt()
        return torch.where(self.s_next > 0, n, eta * self.s).to(self.s.dtype)

    def coefficients(self, eta: float) -> list[StepCoefficients]:
        """Each step x' = a' x_0 + sqrt(s'^2 - n^2) e + n z as a linear map of x_t, the network's output and z."""
        a, s, a_next, s_next, n = (
            v.double() for v in (self.a, self.s, self.a_next, self.s_next, self.sigma(eta))
        )
        (clean_x, clean_o), (noise_x, noise_o) = clean_and_noise(self.prediction, a, s)
        kept = (s_next**2 - n**2).clamp(min=0).sqrt()
        next_x, next_o = a_next * clean_x + kept * noise_x, a_next * clean_o + kept * noise_o
        return [
            StepCoefficients(*row) for row in torch.stack([clean_x, clean_o, next_x, next_o, n], 1).tolist()
        ]

    def reversed(self) -> "Schedule":
        """The same steps from image to noise."""
        parts = (self.timesteps, self.a_next, self.s_next, self.a, self.s)
        times, a, s, a_next, s_next = (part.flip(0) for part in parts)
        return Schedule(times, a, s, a_next, s_next, self.prediction)

    def to(self, device: torch.device) -> "Schedule":
        parts = (self.timesteps, self.a, self.s, self.a_next, self.s_next)
        times, a, s, a_next, s_next = (part.to(device) for part in parts)
        return Schedule(times, a, s, a_next, s_next, self.prediction)


@dataclass(frozen=True)
class Step:
    """What a callback sees of one step: x_t went in, x_prev and the predicted noise eps and x_0 came out."""

    index: int
    total: int
    timestep: float
    x_t: Tensor
    eps: Tensor
    x_0: Tensor
    x_prev: Tensor


def make_schedule(scheduler: SchedulerMixin, steps: int, skip: int = 0, **timing: Any) -> Schedule:
    """The `steps` steps of a scheduler without the `skip` noisiest; spacing and noise are those of its config.

    Diffusion ends at time 0 as Stable Diffusion does, rather than without any noise. Flow matching ends at s = 0.

    Args:
        scheduler: a diffusers scheduler; only its class and config are read.
        steps: how many steps a whole image takes.
        skip: how many of them, from the noisiest on, are left out.
        timing: for flow matching, the `sigmas` and the shift `mu` that `set_timesteps` takes.

    Returns:
        The steps - skip steps that are left, on the CPU.

    Raises:
        ValueError: unless 0 <= skip < steps <= half the number of training steps (beyond it the spacings no longer
            keep steps apart), or where the first step has no signal and the network predicts the noise.
    """
    most = scheduler.config.num_train_timesteps // 2
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be between 1 and {most}, half of this scheduler's own, got {steps}")
    if not 0 <= skip < steps:
        raise ValueError(f"skip must be at least 0 and below steps ({steps}), got {skip}")
    if is_flow(scheduler):
        flow = type(scheduler).from_config(scheduler.config)
        flow.set_timesteps(steps, **timing)
        times, prediction = flow.timesteps, "flow"
        s = flow.sigmas.double()
        a = 1 - s
    else:
        times, alpha = _ddim_times(scheduler, steps)
        prediction = scheduler.config.prediction_type
        a, s = alpha.double().sqrt(), (1 - alpha.double()).sqrt()
    if prediction == "epsilon" and a[skip] <= 0:
        raise ValueError(
            f"skip must be at least 1 for this scheduler, whose first step has no signal; got {skip}"
        )
    a, s = a[skip:].float(), s[skip:].float()
    return Schedule(times[skip:], a[:-1], s[:-1], a[1:], s[1:], prediction)


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether a diffusers scheduler is one of flow matching."""
    return type(scheduler).__name__.startswith("FlowMatch")


def _ddim_times(scheduler: SchedulerMixin, steps: int) -> tuple[Tensor, Tensor]:
    """The timesteps (T,), and alpha_bar at each and at the end (T + 1,)."""
    end: dict[str, Any] = {"set_alpha_to_one": False, "steps_offset": 1}
    if scheduler.config.get("timestep_spacing") == "linspace":  # ends at time 0 itself
        end["timestep_spacing"] = "leading"
    ddim = DDIMScheduler.from_config(scheduler.config, **end)
    ddim.set_timesteps(steps)
    times = ddim.timesteps[:steps]  # by rounding, "trailing" sometimes has one more
    return times, torch.cat([ddim.alphas_cumprod[times], ddim.final_alpha_cumprod.reshape(1)])


def denoise(
    network: Network,
    x_T: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noises: Tensor | None = None,
    callback: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Tensor:
    """Runs the schedule from x_T to the clean latents, adding `schedule.sigma(eta)[t]` noises[t] at each step.

    Args:
        network: network(x_t, t, progress) is the network's output, merged or as `Predictions`, of the kind
            `schedule.prediction`. progress goes from 0 to below 1.
        x_T: the noisy latents (B, C, h, w).
        schedule: the steps.
        eta: the fraction of fresh noise in [0, 1]; 0 needs no noises.
        noises: (T, B, C, h, w).
        callback: called with a `Step` after each step.
        progress: whether to show a bar.

    Returns:
        The clean latents (B, C, h, w).
    """
    if eta > 0 and noises is None:
        raise ValueError(f"eta is {eta}, so the noise of every step is needed: pass noises, or eta=0")
    steps = schedule.coefficients(eta)
    times, total, x_t = schedule.timesteps.to(x_T.device), len(schedule), x_T
    for i, t in enumerate(tqdm(times, desc="decoding", disable=not progress, leave=False)):
        output = network(x_t, t, i / total)
        noise = None if eta == 0 or noises is None else noises[i]
        if isinstance(output, Tensor):
            x_prev, x_0 = linear_step(output, x_t, noise, steps[i])
        else:
            x_prev, x_0 = blend_step(*output, x_t, noise, steps[i])
        if callback is not None:
            eps = (x_t - schedule.a[i] * x_0) / schedule.s[i]
            callback(Step(i, total, t.item(), x_t, eps, x_0, x_prev))
        x_t = x_prev
    return x_t
