"""Three inversions, and `from_noise`. An inversion finds the noise with which the model draws an image.

The result is a `Trajectory`. Decoding it with the same prompt and guidance gives the latent of the image again.
Decoding it with another prompt keeps the layout and changes the rest.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from . import checks
from .families import Prompts
from .files import write_whole
from .images import LARGEST_SIDE, read_image
from .kernels import linear_step
from .models import (
    Model,
    check_image,
    check_negative_prompt,
    drawing,
    encode_image,
    encode_prompts,
    predict,
    refuse_blending,
    refuse_ip_adapter,
    schedule_of,
)
from .sampling import PlainNetwork, Schedule

Draw = Callable[[], Tensor]
METHODS = ("dpm-encoder", "ddim", "edit-friendly")
MOST_IMAGES = 1000  # in one batch of noise
LARGEST_CALL = 4 * 64 * 64  # latent positions in one unguided call of the DPM-Encoder: 4 images of SD 1
FROM_NOISE = "noise"  # the method of a trajectory without an inversion


@dataclass(frozen=True, eq=False)
class Trajectory:
    """x_T (B, C, h, w), the noise of every step (T, B, C, h, w), and the settings of the inversion.

    T is steps - skip. `caption` is one text, or one for each of the B images. `schedule` is the inversion's
    `sampling.Schedule.label`; "" if it is not known.

    Raises:
        ValueError: parts that do not fit together or are not finite.
        TypeError: a part of a wrong type.
    """

    x_T: Tensor
    noises: Tensor
    method: str
    model: str
    caption: str | tuple[str, ...]
    steps: int
    skip: int
    eta: float
    guidance: float
    negative_prompt: str = ""
    schedule: str = ""

    def __post_init__(self) -> None:
        for name in ("x_T", "noises"):
            tensor = checks.dense(name, getattr(self, name), Tensor, "dsnb.invert records a trajectory")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} must hold floating-point numbers, got {tensor.dtype}")
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name} must be finite, some numbers are NaN or infinite: the guidance is too large, or the "
                    "model's weights or its dtype are at fault"
                )
        if self.x_T.dim() != 4 or self.x_T.numel() == 0:
            raise ValueError(f"x_T must have the shape (B, C, h, w), got {tuple(self.x_T.shape)}")
        steps = checks.integer("steps", self.steps, 1)
        skip = checks.integer("skip", self.skip, 0, steps - 1)
        if self.noises.shape != (steps - skip, *self.x_T.shape):
            raise ValueError(
                f"noises must have the shape {(steps - skip, *self.x_T.shape)} for steps {steps}, skip {skip} and this "
                f"x_T, got {tuple(self.noises.shape)}"
            )
        plain = {
            "method": checks.one_of("method", self.method, (*METHODS, FROM_NOISE)),
            "model": checks.text("model", self.model),
            "caption": checks.one_or_each("caption", self.caption, len(self.x_T)),
            "steps": steps,
            "skip": skip,
            "eta": checks.number("eta", self.eta, 0, 1),
            "guidance": checks.number("guidance", self.guidance),
            "negative_prompt": checks.text("negative_prompt", self.negative_prompt),
            "schedule": checks.text("schedule", self.schedule),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def save(self, path: str | Path) -> Path:
        """Writes a .safetensors file. The file is complete or absent.

        Args:
            path: the file; missing folders are made.

        Returns:
            The path.

        Raises:
            OSError: the file cannot be written.
        """
        path = Path(path)
        settings = {name: str(getattr(self, name)) for name in _SETTINGS}
        if isinstance(self.caption, tuple):
            settings["captions"] = json.dumps(self.caption)
        noises = self.noises.cpu().contiguous().clone()  # safetensors refuses tensors that share memory
        tensors = {"x_T": self.x_T.cpu().contiguous(), "noises": noises}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(tensors, metadata=settings))
        except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
            raise OSError(f"trajectory cannot be written to {str(path)!r}: {error}") from error
        return path

    @staticmethod
    def load(path: str | Path) -> "Trajectory":
        """Reads a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            The trajectory.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another kind of file, or parts that do not fit together.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"trajectory {str(path)!r} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                kept = {"negative_prompt": "", "schedule": ""} | file.metadata()  # older files lack them
                settings = {name: kind(kept[name]) for name, kind in _SETTINGS.items()}
                if "captions" in kept:
                    settings["caption"] = json.loads(kept["captions"])
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
    "negative_prompt": str,
    "schedule": str,
}


def invert(
    model: Model,
    image: Tensor | str | Path | Image.Image | np.ndarray,
    caption: str | Sequence[str],
    *,
    method: str = "dpm-encoder",
    steps: int | None = None,
    skip: int | None = None,
    eta: float | None = None,
    guidance: float | None = None,
    negative_prompt: str = "",
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: bool = True,
) -> Trajectory:
    """Inverts images: records the noise with which the model draws them for a caption.

    Args:
        model: the model to invert with.
        image: a tensor (B, 3, H, W) in [0, 1], or one image as `read_image` takes it.
        caption: what the images show; one text, or a list with one for each image.
        method: "dpm-encoder", "ddim" (no noise) or "edit-friendly" (independent noise at every step).
        steps: denoising steps of the whole schedule, at least 1; default `model.settings.steps`.
        skip: how many of the noisiest steps are left out; default the same fraction as in `model.settings`.
        eta: the factor of the fresh noise, above 0 and at most 1. Default `model.settings.eta` for "dpm-encoder" and 1
            for "edit-friendly"; "ddim" has 0.
        guidance: the guidance scale of the inversion; default `model.settings.encoder_guidance`.
        negative_prompt: a text in place of the empty prompt; without effect at guidance 1.
        generator: the generator of the noise, or a list with one for each image; default torch's global one.
        progress: whether to show a progress bar.

    Returns:
        The trajectory of the B images.

    Raises:
        ValueError: an unknown method, a wrong image, a number out of range, or a result that is not finite.
        TypeError: a parameter of a wrong type.
        FileNotFoundError: the image file does not exist.
        NotImplementedError: the model has an IP-Adapter.
        RuntimeError: the call is inside the callback of a cross-attention blend with the same model.
    """
    settings = checks.instance("model", model, Model, "dsnb.load opens one").settings
    steps = settings.steps if steps is None else checks.integer("steps", steps, 1)
    if skip is None:
        skip = min(round(settings.skip * steps / settings.steps), steps - 1)
    guidance = settings.encoder_guidance if guidance is None else checks.number("guidance", guidance)
    negative_prompt = check_negative_prompt(model, negative_prompt)
    checks.one_of("method", method, METHODS)
    for one in generator if isinstance(generator, list) else [generator] * (generator is not None):
        checks.instance("generator", one, torch.Generator, "torch.Generator().manual_seed(seed) makes one")
    refuse_ip_adapter(model.network)
    eta = _eta(method, settings.eta if eta is None and method == "dpm-encoder" else eta)
    image = image if isinstance(image, Tensor) else read_image(image, model)
    check_image(model, image)
    size = tuple(length // model.latent_factor for length in image.shape[-2:])
    schedule = schedule_of(model, steps, skip, size)
    bar = tqdm(total=len(schedule), desc="inverting", disable=not progress, leave=False)
    with drawing(model), bar:
        x_0 = encode_image(model, image)
        caption = checks.one_or_each("caption", caption, len(x_0))
        if isinstance(generator, list) and len(generator) != len(x_0):
            raise ValueError(
                f"generator has {len(generator)} entries; expected {len(x_0)}, one for each image"
            )
        draw = lambda: randn_tensor(x_0.shape, generator, x_0.device, x_0.dtype)
        eps = guided_eps(model, caption, guidance, negative_prompt)
        counted = lambda x_t, t, p: (eps(x_t, t, p), bar.update(len(x_t) // len(x_0)))[0]
        if method == "dpm-encoder":
            x_T, noises = dpm_encoder(counted, x_0, schedule, eta, draw)
        elif method == "edit-friendly":
            x_T, noises = edit_friendly(counted, x_0, schedule, eta, draw)
        else:
            x_T = ddim_inversion(counted, x_0, schedule)
            noises = x_T.new_zeros(len(schedule), *x_T.shape)
    told = (steps, skip, eta, guidance, negative_prompt, schedule.label())
    return Trajectory(x_T, noises, method, model.name, caption, *told)


def from_noise(
    model: Model,
    size: int | tuple[int, int] | None = None,
    *,
    caption: str | Sequence[str] = "",
    seed: int | torch.Generator = 0,
    batch: int = 1,
    steps: int | None = None,
    eta: float | None = None,
) -> Trajectory:
    """Makes a trajectory of random noise, from which `decode` and `blend` draw images from text alone.

    Args:
        model: the model to draw with.
        size: height and width of the images in pixels, or one number for both; default the model's own size.
        caption: what the images will show. It is stored in the trajectory and has no other effect.
        seed: of the noise, from 0; or a generator.
        batch: the number of images B, at least 1.
        steps: denoising steps, at least 1; default `model.settings.steps`. No step is skipped.
        eta: the factor of the fresh noise in each step, from 0 to 1; default `model.settings.eta`.

    Returns:
        The trajectory, with method "noise" and the guidance `model.settings.sampling_guidance`.

    Raises:
        ValueError: a number out of range, or a size that is not a multiple of the latent factor times the patch size.
        TypeError: a parameter of a wrong type.
    """
    settings = checks.instance("model", model, Model, "dsnb.load opens one").settings
    steps = settings.steps if steps is None else checks.integer("steps", steps, 1)
    eta = settings.eta if eta is None else checks.number("eta", eta, 0, 1)
    batch = checks.integer("batch", batch, 1, MOST_IMAGES)
    factor = model.latent_factor
    size = checks.size(
        "size", model.image_size if size is None else size, factor * model.family.patch, LARGEST_SIDE
    )
    height, width = (side // factor for side in size)
    if isinstance(seed, torch.Generator):
        generator = seed
    else:
        generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0, 2**64 - 1))
    schedule = schedule_of(model, steps, 0, (height, width))
    shape = (batch, model.channels, height, width)
    x_T = randn_tensor(shape, generator, model.device, torch.float32)
    noises = randn_tensor((steps, *shape), generator, model.device, torch.float32)
    noises[(schedule.s_next == 0).to(noises.device)] = 0  # a step to the clean latents adds no noise
    guidance = settings.sampling_guidance
    return Trajectory(
        x_T,
        noises,
        FROM_NOISE,
        model.name,
        checks.one_or_each("caption", caption, batch),
        steps,
        0,
        eta,
        guidance,
    )


def _eta(method: str, eta: float | None) -> float:
    if method == "ddim":
        if eta is not None and checks.number("eta", eta) != 0:
            raise ValueError(f"eta must be 0 for method 'ddim', which records no noise; got {eta}")
        return 0.0
    return checks.number(f"eta of method {method!r}", 1.0 if eta is None else eta, high=1, above=0)


def guided_eps(
    model: Model, prompt: str | Sequence[str] | Prompts, guidance: float, negative_prompt: str = ""
) -> PlainNetwork:
    """A noise prediction with guidance. With guidance 1, the prediction with the negative prompt is not computed.

    Args:
        model: the model.
        prompt: one text, one for each image, or encoded prompts.
        guidance: the guidance scale.
        negative_prompt: a text in place of the empty prompt.

    Returns:
        A function (x_t, t, progress) -> the network's guided output, like x_t.

    Raises:
        RuntimeError: the call is inside the callback of a cross-attention blend with the same model.
        ValueError: a guidance that the model cannot use.
    """
    refuse_blending(model.network)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    each = lambda x_t: [i % len(prompts) for i in range(len(x_t))]  # x_t may hold the images of several steps
    if guidance == 1 or not model.guided:
        alone = encode_prompts(model, prompts, [float(guidance)] * len(prompts))
        return lambda x_t, t, progress: predict(model, x_t, t, alone[each(x_t)])
    both = encode_prompts(model, prompts, negative_prompt=negative_prompt)

    def network(x_t: Tensor, t: Tensor, progress: float) -> Tensor:
        rows = [0] * len(x_t) + [1 + i for i in each(x_t)]
        uncond, cond = predict(model, x_t.repeat(2, 1, 1, 1), t, both[rows]).chunk(2)
        return model.family.guide(uncond, cond, guidance)

    return network


def dpm_encoder(
    network: PlainNetwork, x_0: Tensor, schedule: Schedule, eta: float, draw: Draw
) -> tuple[Tensor, Tensor]:
    """CycleDiffusion's DPM-Encoder (Wu & De la Torre 2022, algorithm 1).

    x_T is a sample of q(x_T | x_0), and each x_next a sample of the posterior q(x_next | x_t, x_0). The last one is
    x_0. The recorded noise is the one with which the decoder computes x_next from x_t. No x_t depends on the network,
    so one call of the network covers many steps.

    Args:
        network: (x_t, t, progress) -> the network's output, like x_t. It gets the B images of k steps as k B rows: x_t
            is (k B, C, h, w), t is (k B, 1, 1, 1), and progress is that of the first step.
        x_0: the image's latents (B, C, h, w).
        schedule: the steps.
        eta: the factor of the fresh noise, above 0 and at most 1.
        draw: gives standard normal numbers (B, C, h, w).

    Returns:
        x_T (B, C, h, w), and the noise of each step (T, B, C, h, w).
    """
    steps, total = schedule.coefficients(eta), len(schedule)
    a, s, a_next, s_next = schedule.a, schedule.s, schedule.a_next, schedule.s_next
    chain = [a[0] * x_0 + s[0] * draw()]
    for i in range(total - 1):
        n = steps[i].next_z
        direction = (chain[i] - a[i] * x_0) / s[i]
        chain.append(a_next[i] * x_0 + (s_next[i] ** 2 - n**2).sqrt() * direction + n * draw())
    outputs: list[Tensor] = []
    count = max(1, LARGEST_CALL // x_0[:, 0].numel())  # steps in one call
    for first in range(0, total, count):
        x = torch.cat(chain[first : first + count])
        t = schedule.timesteps[first : first + count].repeat_interleave(len(x_0)).view(-1, 1, 1, 1)
        outputs += network(x, t.to(x.device), first / total).split(len(x_0))
    chain.append(x_0)
    noises = []
    for x_t, x_next, output, step in zip(chain[:-1], chain[1:], outputs, steps, strict=True):
        mean, _ = linear_step(output, x_t, None, step)
        noises.append((x_next - mean) / step.next_z)
    return chain[0], torch.stack(noises)


def edit_friendly(
    network: PlainNetwork, x_0: Tensor, schedule: Schedule, eta: float, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, algorithm 1).

    Every x_t is x_0 with its own independent noise. So the recorded noise has a larger variance and contains more of
    the image. After each step, x_next is set to mu_t + sigma_t z_t, as the decoder computes it. Otherwise the rounding
    errors of the steps add up.

    Args:
        network: (x_t, t, progress) -> the network's output, like x_t; it gets one step at a time.
        x_0, schedule, eta, draw: as for `dpm_encoder`.

    Returns:
        x_T (B, C, h, w), and the noise of each step (T, B, C, h, w).
    """
    steps, total = schedule.coefficients(eta), len(schedule)
    chain = [schedule.a[i] * x_0 + schedule.s[i] * draw() for i in range(total)] + [x_0]
    noises, x_t = [], chain[0]
    for i, t in enumerate(schedule.timesteps):
        output = network(x_t, t, i / total)
        mean, _ = linear_step(output, x_t, None, steps[i])
        noises.append((chain[i + 1] - mean) / steps[i].next_z)
        x_t, _ = linear_step(output, x_t, noises[-1], steps[i])
    return chain[0], torch.stack(noises)


def ddim_inversion(network: PlainNetwork, x_0: Tensor, schedule: Schedule) -> Tensor:
    """DDIM run backwards (Song et al. 2021, section 4.3).

    Each step uses the network's output at its cleaner end, because x_t at the noisier end is not known yet.

    Args:
        network, x_0, schedule: as for `edit_friendly`.

    Returns:
        x_T (B, C, h, w).
    """
    back, total, x = schedule.reversed(), len(schedule), x_0
    for i, (t, step) in enumerate(zip(back.timesteps, back.coefficients(0.0), strict=True)):
        x, _ = linear_step(network(x, t, (total - 1 - i) / total), x, None, step)
    return x
