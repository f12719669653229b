"""The denoising loop for diffusion and flow matching: x_t = a x_0 + s e, with recorded noise.

Diffusion (DDPM) has a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar). Its steps are those of DDIM (Song, Meng & Ermon
2021, "Denoising Diffusion Implicit Models", whose alpha_t is alpha_bar_t here). Flow matching (Lipman et al. 2023) has
s = sigma and a = 1 - sigma. Without fresh noise, its steps are Euler steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor
from tqdm.auto import tqdm

from . import checks
from .epsilon import Predictions
from .kernels import StepCoefficients, blend_step, linear_step

Network = Callable[[Tensor, Tensor, float], Tensor | Predictions]
PlainNetwork = Callable[[Tensor, Tensor, float], Tensor]  # one that merges its predictions itself
PREDICTIONS = ("epsilon", "v_prediction", "flow")


def clean_and_noise(prediction: str, a: Tensor, s: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Coefficients that give x_0 = c x_t + d o and e = f x_t + g o from x_t = a x_0 + s e and a network's output o.

    Args:
        prediction: one of `PREDICTIONS`. "epsilon" is o = e. "v_prediction" is o = a e - s x_0 with a^2 + s^2 = 1
            (Salimans & Ho 2022, "Progressive distillation", appendix D). "flow" is the velocity o = e - x_0.
        a: the weight of x_0, any shape; above 0 for "epsilon".
        s: the weight of the noise, like a.

    Returns:
        ((c, d), (f, g)), all like a.
    """
    one = torch.ones_like(a)
    if prediction == "epsilon":
        return (1 / a, -s / a), (0 * one, one)
    if prediction == "v_prediction":
        return (a, -s), (s, a)
    return (one, -s), (one, a)


@dataclass(frozen=True)
class Schedule:
    """The T steps from noise to image. Each goes from x_t = a x_0 + s e to a_next x_0 + s_next e.

    All tensors have the shape (T,).
    """

    timesteps: Tensor  # falling; the network's input
    a: Tensor
    s: Tensor
    a_next: Tensor
    s_next: Tensor
    prediction: str = "epsilon"  # the kind of the network's output, one of `PREDICTIONS`

    alpha = property(lambda self: self.a**2, doc="alpha_bar at each timestep, for diffusion.")
    alpha_prev = property(lambda self: self.a_next**2, doc="alpha_bar at the next, cleaner, timestep.")

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, eta: float) -> Tensor:
        """The standard deviation n of the fresh noise of each step: n = eta s' sqrt(1 - (a s' / (a' s))^2).

        For diffusion, this is DDIM's equation 16. A step that ends at s' = 0 needs no fresh noise. There n is
        eta s, so that an inversion can record the error of the predicted x_0 as z.

        Args:
            eta: the factor of the fresh noise, from 0 to 1.

        Returns:
            (T,).
        """
        if eta == 0:
            return torch.zeros_like(self.s)
        ratio = (self.a * self.s_next / (self.a_next * self.s)).double()
        n = eta * self.s_next * (1 - ratio**2).clamp(min=0).sqrt()
        return torch.where(self.s_next > 0, n, eta * self.s).to(self.s.dtype)

    def coefficients(self, eta: float) -> list[StepCoefficients]:
        """Each step x' = a' x_0 + sqrt(s'^2 - n^2) e + n z as a linear map of x_t, the network's output and z.

        Args:
            eta: the factor of the fresh noise, from 0 to 1.

        Returns:
            The coefficients of the T steps.
        """
        a, s, a_next, s_next, n = (
            v.double() for v in (self.a, self.s, self.a_next, self.s_next, self.sigma(eta))
        )
        (clean_x, clean_o), (noise_x, noise_o) = clean_and_noise(self.prediction, a, s)
        kept = (s_next**2 - n**2).clamp(min=0).sqrt()
        next_x, next_o = a_next * clean_x + kept * noise_x, a_next * clean_o + kept * noise_o
        return [
            StepCoefficients(*row) for row in torch.stack([clean_x, clean_o, next_x, next_o, n], 1).tolist()
        ]

    def label(self) -> str:
        """A short text that tells schedules apart: the prediction, and the first, middle and last step with its a."""
        steps = (0, len(self) // 2, len(self) - 1)
        return ", ".join([self.prediction, *(f"t {self.timesteps[i]:.0f} a {self.a[i]:.3f}" for i in steps)])

    def reversed(self) -> "Schedule":
        """The same steps from image to noise."""
        parts = (self.timesteps, self.a_next, self.s_next, self.a, self.s)
        times, a, s, a_next, s_next = (part.flip(0) for part in parts)
        return Schedule(times, a, s, a_next, s_next, self.prediction)


@dataclass(frozen=True)
class Step:
    """One step, as a callback gets it: the input x_t, and the results x_prev, predicted noise eps and predicted x_0."""

    index: int
    total: int
    timestep: float
    x_t: Tensor
    eps: Tensor
    x_0: Tensor
    x_prev: Tensor


def make_schedule(scheduler: SchedulerMixin, steps: int, skip: int = 0, **timing: Any) -> Schedule:
    """Makes the schedule of a scheduler; spacing and noise levels are those of its config.

    Diffusion ends at timestep 0, as in Stable Diffusion, where a little noise is left. Flow matching ends at s = 0.

    Args:
        scheduler: a diffusers scheduler; only its class and config are read.
        steps: the number of steps of a whole image, from 1 to half the number of training steps.
        skip: how many of them are left out, from the noisiest on; below `steps`.
        timing: for flow matching, the arguments `sigmas` and `mu` (the shift) of `set_timesteps`.

    Returns:
        The remaining `steps - skip` steps, on the CPU.

    Raises:
        ValueError: `steps` or `skip` is out of range, or the first step has no signal and the network predicts noise.
        TypeError: a parameter of a wrong type.
    """
    steps = checks.integer("steps", steps, 1, scheduler.config.num_train_timesteps // 2)
    skip = checks.integer("skip", skip, 0, steps - 1)
    if type(scheduler).__name__.startswith("FlowMatch"):
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
    """Runs the schedule from x_T to the clean latents.

    Args:
        network: (x_t, t, progress) -> the network's output of the kind `schedule.prediction`, merged or as
            `Predictions`. progress goes from 0 to below 1.
        x_T: the noisy latents (B, C, h, w).
        schedule: the T steps.
        eta: the factor of the fresh noise, from 0 to 1.
        noises: z (T, B, C, h, w); each step adds its z times `schedule.sigma(eta)`. Not needed for eta 0.
        callback: called with a `Step` after each step.
        progress: whether to show a progress bar.

    Returns:
        The clean latents (B, C, h, w).

    Raises:
        ValueError: eta is out of range, or above 0 without noises; or shapes do not fit.
        TypeError: a parameter of a wrong type.
    """
    eta = checks.number("eta", eta, 0, 1)
    if eta > 0:
        wanted = (len(schedule), *x_T.shape)
        if noises is None:
            raise ValueError(f"eta is {eta}, so the noise of every step is needed: pass noises, or eta=0")
        if noises.shape != wanted:
            raise ValueError(f"noises must have shape {wanted}, got {tuple(noises.shape)}")
    steps = schedule.coefficients(eta)
    times, total, x_t = schedule.timesteps.to(x_T.device), len(schedule), x_T
    for i, t in enumerate(tqdm(times, desc="decoding", disable=not progress, leave=False)):
        output = network(x_t, t, i / total)
        if i == 0:  # the shapes of all later steps are the same
            _check_shapes(output, x_t)
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


def _check_shapes(output: Tensor | Predictions, x_t: Tensor) -> None:
    if not isinstance(output, Tensor):
        output.check(x_t)
    elif output.shape != x_t.shape:
        raise ValueError(
            f"the network's output must have shape {tuple(x_t.shape)}, got {tuple(output.shape)}"
        )
