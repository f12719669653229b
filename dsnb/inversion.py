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
from .models import Model, encode_image, encode_prompts, refuse_ip_adapter, unet_eps
from .sampling import Eps, Schedule, ddim_mean, make_schedule

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


def guided_eps(model: Model, prompt: str, guidance: float) -> Eps:
    """eps(x_t, t) of one prompt with guidance; with guidance 1 the unconditional half is not computed."""
    if guidance == 1:
        context = encode_prompts(model, [prompt])
        return lambda x_t, t, progress: unet_eps(model, x_t, t, context.repeat(len(x_t), 1, 1))
    context = encode_prompts(model, ["", prompt])

    def eps(x_t, t, progress):
        both = unet_eps(model, x_t.repeat(2, 1, 1, 1), t, context.repeat_interleave(len(x_t), 0))
        uncond, cond = both.chunk(2)
        return uncond + guidance * (cond - uncond)

    return eps


def dpm_encoder(eps: Eps, x_0: Tensor, schedule: Schedule, eta: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """CycleDiffusion's DPM-Encoder (Wu & De la Torre 2022, algorithm 1): x_0 -> x_T and the noise of each step.

    x_T is drawn from q(x_T | x_0); each x_{t-1} from the posterior q(x_{t-1} | x_t, x_0), the last one being x_0; the
    recorded noise is what takes the decoder from x_t to this x_{t-1}.
    """
    sigma, total = schedule.sigma(eta), len(schedule)
    a, p = schedule.alpha, schedule.alpha_prev
    x_T = x_t = a[0].sqrt() * x_0 + (1 - a[0]).sqrt() * draw()
    noises = []
    for i, t in enumerate(schedule.timesteps):
        if i == total - 1:
            x_prev = x_0
        else:
            direction = (x_t - a[i].sqrt() * x_0) / (1 - a[i]).sqrt()
            x_prev = p[i].sqrt() * x_0 + (1 - p[i] - sigma[i] ** 2).sqrt() * direction + sigma[i] * draw()
        mean, _ = ddim_mean(x_t, eps(x_t, t, i / total), a[i], p[i], sigma[i])
        noises.append((x_prev - mean) / sigma[i])
        x_t = x_prev
    return x_T, torch.stack(noises)


def edit_friendly(eps: Eps, x_0: Tensor, schedule: Schedule, eta: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, algorithm 1): x_0 -> x_T and noises.

    Every x_t is x_0 with its own independent noise, so that the recorded noises have a larger variance and carry more
    of the picture.
    """
    sigma, total = schedule.sigma(eta), len(schedule)
    a, p = schedule.alpha, schedule.alpha_prev
    chain = [a[i].sqrt() * x_0 + (1 - a[i]).sqrt() * draw() for i in range(total)] + [x_0]
    noises = []
    for i, t in enumerate(schedule.timesteps):
        mean, _ = ddim_mean(chain[i], eps(chain[i], t, i / total), a[i], p[i], sigma[i])
        noises.append((chain[i + 1] - mean) / sigma[i])
    return chain[0], torch.stack(noises)


def ddim_inversion(eps: Eps, x_0: Tensor, schedule: Schedule) -> Tensor:
    """DDIM run backwards (Song et al. 2021, section 4.3): x_0 -> x_T, with eps read one step too early."""
    x, total = x_0, len(schedule)
    for i in reversed(range(total)):
        predicted = eps(x, schedule.timesteps[i], i / total)
        x, _ = ddim_mean(x, predicted, schedule.alpha_prev[i], schedule.alpha[i], torch.zeros(()))
    return x
