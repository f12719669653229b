"""One call of `blend`, and the steps that all methods need: encode prompts, predict, and run over a trajectory."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .epsilon import Predictions
from .families import Prompts
from .inversion import Trajectory, guided_eps
from .masks import Mask
from .models import Model, decode_latents, encode_prompts, predict, refuse_ip_adapter, schedule_of
from .sampling import Network, Step, denoise


@dataclass(frozen=True)
class Job:
    """The checked arguments of one call of `blend`; guidance is (N,)."""

    model: Model
    trajectory: Trajectory
    prompts: list[str] | Prompts
    mask: Mask
    guidance: Tensor
    negative_prompt: str
    one_prompt: str | None
    switch: float
    regional: bool
    passes: tuple[float, ...]
    callback: Callable[[Step], None] | None
    progress: bool
    loras: tuple[str | None, ...] | None = None

    def decode(self, prompt: str | Prompts, guidance: float) -> Tensor:
        """The images (B, 3, H, W) of one prompt alone, without the mask."""
        return self.run(guided_eps(self.model, prompt, guidance, self.negative_prompt))

    def run(self, network: Network) -> Tensor:
        """The images (B, 3, H, W) that a network (x_t, t, progress) draws from the trajectory."""
        latents = decode_trajectory(self.model, self.trajectory, network, self.callback, self.progress)
        return decode_latents(self.model, latents)

    def styles(self) -> list[tuple[str | Prompts, float]]:
        """The prompt and the guidance of each style."""
        prompts: list[str | Prompts] = [*self.prompts]
        return list(zip(prompts, self.guidance.tolist(), strict=True))

    def contexts(self) -> Prompts:
        """The encoded prompts: one row per style, after the negative prompt's if the model is guided by it."""
        negative = self.negative_prompt if self.model.guided else None
        return encode_prompts(self.model, self.prompts, self.guidance, negative)

    def predict(self, x_t: Tensor, t: Tensor, rows: Prompts, weights: Tensor) -> Predictions:
        """One network call for all rows, which are as in `contexts`; one row may represent all styles."""
        outputs = predict(self.model, x_t.repeat(len(rows), 1, 1, 1), t, rows.repeat(len(x_t)))
        outputs = outputs.unflatten(0, (len(rows), len(x_t)))
        family, guidance = self.model.family, self.guidance
        uncond, cond = outputs[0], outputs[1:] if self.model.guided else outputs
        if self.model.guided and not family.linear:
            cond = family.guide(uncond, cond, guidance.view(-1, 1, 1, 1, 1))
        if not (self.model.guided and family.linear):  # the blend alone: o_1 + sum_i M_i (o_i - o_1)
            uncond, guidance = cond[0], torch.ones_like(guidance)
        return Predictions(uncond, cond.expand(self.mask.n, *x_t.shape), weights, guidance)

    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        height, width = self.trajectory.x_T.shape[-2:]
        return height, width

    def latent_weights(self) -> Callable[[float], Tensor]:
        """progress -> weights (N, h, w). All are made now, so a wrong mask raises an error before the first step."""
        weights = lambda progress: self.mask.weights(*self.size(), progress).to(self.model.device)
        total = len(self.trajectory.noises) if self.mask.timed else 1
        every = [weights(i / total) for i in range(total)]
        return lambda progress: every[round(progress * total) if self.mask.timed else 0]


def mixed_rows(contexts: Prompts, weights: Tensor) -> Prompts:
    """The unconditional row, and one for all styles. Its pooled vector is the styles' mean, weighted by their areas."""
    rows = contexts[:2]
    if contexts.pooled is None:
        return rows
    mean = (weights.mean((1, 2))[:, None] * contexts.pooled[1:]).sum(0, keepdim=True)
    return replace(rows, pooled=torch.cat([contexts.pooled[:1], mean.to(contexts.pooled)]))


def decode_trajectory(
    model: Model,
    trajectory: Trajectory,
    network: Network,
    callback: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Tensor:
    """Runs a network over the trajectory's steps and noise. Warns for a trajectory of another model or scheduler.

    Args:
        model: the model.
        trajectory: of B images.
        network: (x_t, t, progress) -> the network's output, see `sampling.denoise`.
        callback: called with a `sampling.Step` after each step.
        progress: whether to show a progress bar.

    Returns:
        The clean latents (B, C, h, w).

    Raises:
        ValueError: the trajectory does not fit the model's latents.
        NotImplementedError: the model has an IP-Adapter.
    """
    refuse_ip_adapter(model.network)
    height, width = trajectory.x_T.shape[-2:]
    channels = model.channels
    if trajectory.x_T.shape[1] != channels:
        raise ValueError(
            f"trajectory is of {trajectory.model!r} with {trajectory.x_T.shape[1]} latent channels, but "
            f"{model.name!r} has {channels}; invert the image with this model"
        )
    if trajectory.model != model.name:
        warnings.warn(
            f"the trajectory is of {trajectory.model!r}, the model is {model.name!r}; unless they are the same, "
            "invert the image with this model",
            stacklevel=2,
        )
    schedule = schedule_of(model, trajectory.steps, trajectory.skip, (height, width))
    if trajectory.schedule not in ("", schedule.label()):
        warnings.warn(
            f"the trajectory was recorded with another scheduler ({trajectory.schedule}) than the model has now "
            f"({schedule.label()}), so the image changes; invert it again, or set the old scheduler",
            stacklevel=2,
        )
    return denoise(
        network,
        trajectory.x_T.to(model.device, torch.float32, copy=True),  # a callback may change what it sees
        schedule,
        eta=trajectory.eta,
        noises=trajectory.noises.to(model.device, torch.float32),
        callback=callback,
        progress=progress,
    )
