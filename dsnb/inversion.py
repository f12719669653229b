"""From a picture to the noise that draws it: three inversions, one `Trajectory`.

Decoding a trajectory with the prompt and guidance it was recorded with gives the latent back; decoding it with
another prompt keeps the structure and changes the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from .files import write_whole
from .kernels import linear_step
from .models import Model, encode_image, encode_prompts, predict, refuse_ip_adapter
from .sampling import Network, Schedule, make_schedule

Draw = Callable[[], Tensor]
METHODS = ("dpm-encoder", "ddim", "edit-friendly")


@dataclass(frozen=True)
class Trajectory:
    """x_T (B, C, h, w), the noise of every step (T, B, C, h, w), and the settings they were recorded with."""

    x_T: Tensor
    noises: Tensor
    method: str
    model: str
    caption: str
    steps: int
    skip: int
    eta: float
    guidance: float

    def save(self, path: str | Path) -> Path:
        """Writes a .safetensors file, whole or not at all. Raises OSError where it cannot be written."""
        path = Path(path)
        settings = {name: str(getattr(self, name)) for name in _SETTINGS}
        tensors = {"x_T": self.x_T.cpu().contiguous(), "noises": self.noises.cpu().contiguous()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(tensors, metadata=settings))
        except OSError as error:
            raise OSError(f"trajectory cannot be written to {str(path)!r}: {error}") from error
        return path

    @staticmethod
    def load(path: str | Path) -> "Trajectory":
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError for another kind of file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"trajectory {str(path)!r} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                settings = {name: kind(file.metadata()[name]) for name, kind in _SETTINGS.items()}
                return Trajectory(file.get_tensor("x_T"), file.get_tensor("noises"), **settings)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is not a saved trajectory: {error}") from error


_SETTINGS = {
    "method": str,
    "model": str,
    "caption": str,
    "steps": int,
    "skip": int,
    "eta": float,
    "guidance": float,
}


def invert(
    model: Model,
    image: Tensor,
    caption: str,
    *,
    method: str = "dpm-encoder",
    steps: int | None = None,
    skip: int | None = None,
    eta: float | None = None,
    guidance: float | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Trajectory:
    """Records the trajectory of pictures (B, 3, H, W) in [0, 1] under a caption.

    method: "dpm-encoder", "ddim" (no noise) or "edit-friendly" (eta 1, independent noise at every step).
    steps, skip, eta, guidance: defaults from `model.settings`, with other steps the same share of them skipped;
    guidance is the encoder's. generator: the source of the noise. Raises ValueError for unknown methods, eta 0 with
    the DPM-Encoder, skip >= steps, or a wrong image, NotImplementedError for an IP-Adapter.
    """
    settings = model.settings
    steps = settings.steps if steps is None else steps
    skip = round(settings.skip * steps / settings.steps) if skip is None else skip
    guidance = settings.encoder_guidance if guidance is None else guidance
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    refuse_ip_adapter(model.unet)
    eta = _eta(method, settings.eta if eta is None and method == "dpm-encoder" else eta)
    schedule = make_schedule(model.scheduler, steps, skip).to(model.device)
    x_0 = encode_image(model, image)
    draw = lambda: randn_tensor(x_0.shape, generator, x_0.device, x_0.dtype)
    eps = guided_eps(model, caption, guidance)
    bar = tqdm(total=len(schedule), desc="inverting", disable=not progress, leave=False)
    counted = lambda x_t, t, p: (bar.update(), eps(x_t, t, p))[1]
    with bar:
        if method == "dpm-encoder":
            x_T, noises = dpm_encoder(counted, x_0, schedule, eta, draw)
        elif method == "edit-friendly":
            x_T, noises = edit_friendly(counted, x_0, schedule, eta, draw)
        else:
            x_T = ddim_inversion(counted, x_0, schedule)
            noises = x_T.new_zeros(len(schedule), *x_T.shape)
    return Trajectory(x_T, noises, method, model.name, caption, steps, skip, eta, guidance)


def _eta(method: str, eta: float | None) -> float:
    if method == "ddim":
        if eta:
            raise ValueError(f"eta must be 0 for method 'ddim', which records no noise; got {eta}")
        return 0.0
    eta = 1.0 if eta is None else eta
    if not 0 < eta <= 1:
        raise ValueError(
            f"eta must be above 0 and at most 1 for method {method!r}, got {eta}: no noise, no record"
        )
    return float(eta)


def guided_eps(model: Model, prompt: str, guidance: float) -> Network:
    """eps(x_t, t) of one prompt with guidance; with guidance 1 the unconditional half is not computed."""
    if guidance == 1:
        context = encode_prompts(model, [prompt])
        return lambda x_t, t, progress: predict(model, x_t, t, context.repeat(len(x_t), 1, 1))
    context = encode_prompts(model, ["", prompt])

    def eps(x_t, t, progress):
        both = predict(model, x_t.repeat(2, 1, 1, 1), t, context.repeat_interleave(len(x_t), 0))
        uncond, cond = both.chunk(2)
        return uncond + guidance * (cond - uncond)

    return eps


def dpm_encoder(
    network: Network, x_0: Tensor, schedule: Schedule, eta: float, draw: Draw
) -> tuple[Tensor, Tensor]:
    """CycleDiffusion's DPM-Encoder (Wu & De la Torre 2022, algorithm 1): x_0 -> x_T and the noise of each step.

    x_T is drawn from q(x_T | x_0); each next x from the posterior q(x_next | x_t, x_0), the last one being x_0. The
    recorded noise is what takes the decoder from x_t to this x_next.
    """
    steps, total = schedule.coefficients(eta), len(schedule)
    a, s, a_next, s_next = schedule.a, schedule.s, schedule.a_next, schedule.s_next
    x_T = x_t = a[0] * x_0 + s[0] * draw()
    noises = []
    for i, t in enumerate(schedule.timesteps):
        n = steps[i].next_z
        if i == total - 1:
            x_next = x_0
        else:
            direction = (x_t - a[i] * x_0) / s[i]
            x_next = a_next[i] * x_0 + (s_next[i] ** 2 - n**2).sqrt() * direction + n * draw()
        mean, _ = linear_step(network(x_t, t, i / total), x_t, None, steps[i])
        noises.append((x_next - mean) / n)
        x_t = x_next
    return x_T, torch.stack(noises)


def edit_friendly(
    network: Network, x_0: Tensor, schedule: Schedule, eta: float, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, algorithm 1): x_0 -> x_T and noises.

    Every x_t is x_0 with its own independent noise, so that the recorded noises have a larger variance and carry more
    of the image.
    """
    steps, total = schedule.coefficients(eta), len(schedule)
    chain = [schedule.a[i] * x_0 + schedule.s[i] * draw() for i in range(total)] + [x_0]
    noises = []
    for i, t in enumerate(schedule.timesteps):
        mean, _ = linear_step(network(chain[i], t, i / total), chain[i], None, steps[i])
        noises.append((chain[i + 1] - mean) / steps[i].next_z)
    return chain[0], torch.stack(noises)


def ddim_inversion(network: Network, x_0: Tensor, schedule: Schedule) -> Tensor:
    """DDIM run backwards (Song et al. 2021, section 4.3): x_0 -> x_T, the network asked one step too early."""
    back, total, x = schedule.reversed(), len(schedule), x_0
    for i, (t, step) in enumerate(zip(back.timesteps, back.coefficients(0.0), strict=True)):
        x, _ = linear_step(network(x, t, (total - 1 - i) / total), x, None, step)
    return x
