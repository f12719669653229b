"""Every method on every image and seed: the rows of a comparison, computed once and kept in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

import dsnb

from ...files import write_whole
from ...images import to_pil
from ...inversion import invert
from ...masks import Mask, linear, logistic
from ...methods import blend, blend_pixels, decode
from ...models import Model, count_unet_samples
from ...plotting import png_bytes
from .measuring import Networks, measure, prepare
from .tasks import Task

GROUND_TRUTH = "ground-truth blend"  # stands among the methods: the layers, blended by the mask
EXAMPLES = 2  # images of each part whose results are kept as a PNG file


@dataclass(frozen=True)
class Settings:
    """How images are made; None is the model's own value.

    Attributes:
        steps, skip, eta: of the inversion, see `dsnb.invert`.
        guidance: of every method.
        sharpness: of the logistic mask.
        passes: weights of the passes of attention interpolation, see `dsnb.blend`.
        switch: when "combined" changes from epsilon to attention, in [0, 1].
    """

    steps: int | None = None
    skip: int | None = None
    eta: float | None = None
    guidance: float | None = None
    sharpness: float = 20.0
    passes: tuple[float, ...] = (1.0,)
    switch: float = 0.5

    def for_model(self, model: Model, from_noise: bool = False) -> Settings:
        """The same with the model's own values in the place of None; nothing is skipped from noise."""
        own = model.settings
        steps = own.steps if self.steps is None else self.steps
        skip = round(own.skip * steps / own.steps) if self.skip is None else self.skip
        guidance = own.sampling_guidance if from_noise else own.guidance
        guidance = guidance if self.guidance is None else self.guidance
        eta = own.eta if self.eta is None else self.eta
        return replace(self, steps=steps, skip=0 if from_noise else skip, eta=eta, guidance=guidance)

    def masks(self, names: Sequence[str]) -> dict[str, Mask]:
        """The masks of these names, "linear" and "logistic"."""
        known = {"linear": linear(), "logistic": logistic(self.sharpness)}
        return {name: known[name] for name in names}


@dataclass(frozen=True)
class Part:
    """One part of a comparison: the same tasks, methods and masks under one or more settings.

    Attributes:
        name: names its rows.
        tasks: what is drawn; the tasks of one image stand together.
        methods: some of `dsnb.methods.METHODS`.
        masks: some of "linear" and "logistic".
        settings: label -> settings; a part that asks no question has the one label "".
        usual: the label that the others are compared with.
        from_noise: images start from random noise in the place of the source image's inversion.
    """

    name: str
    tasks: Sequence[Task]
    methods: Sequence[str]
    masks: Sequence[str] = ("linear", "logistic")
    settings: Mapping[str, Settings] = field(default_factory=lambda: {"": Settings()})
    usual: str = ""
    from_noise: bool = False


def noise_seed(name: str, seed: int) -> int:
    """The seed of an image's noise. It does not depend on the other images of the comparison."""
    return seed * 1_000_003 + crc32(name.encode())


def record(model: Model, task: Task, seeds: Sequence[int], settings: Settings, from_noise: bool = False):
    """One trajectory for all methods and seeds, seed by seed in its batch.

    Args:
        model: the model.
        task: the task.
        seeds: of the noise.
        settings: complete ones, see `Settings.for_model`.
        from_noise: start from random noise in the place of the source image's inversion.

    Returns:
        A `Trajectory` with a batch of len(seeds).
    """
    found, seeds = [], [noise_seed(task.name, seed) for seed in seeds]
    keep = {"steps": settings.steps, "eta": settings.eta}
    for seed in seeds:
        if from_noise:
            size = tuple(task.image.shape[2:])
            found.append(dsnb.from_noise(model, size, caption=task.caption, seed=seed, **keep))
        else:
            noise = {"generator": torch.Generator().manual_seed(seed), "progress": False}
            found.append(invert(model, task.image, task.caption, skip=settings.skip, **keep, **noise))
    x_T, noises = torch.cat([t.x_T for t in found]), torch.cat([t.noises for t in found], dim=1)
    return replace(found[0], x_T=x_T, noises=noises)


def compare_image(
    model: Model,
    tasks: Sequence[Task],
    methods: Sequence[str],
    masks: Sequence[str],
    nets: Networks,
    *,
    seeds: Sequence[int] = (0,),
    settings: Settings | None = None,
    from_noise: bool = False,
) -> tuple[list[dict], dict[tuple[str, str, str], Tensor]]:
    """Draw one image by every method, with every pair of styles, mask and seed, and measure the results.

    All methods decode the same trajectory, with the same guidance.

    Args:
        model: the model.
        tasks: those of one image.
        methods: some of `dsnb.methods.METHODS`.
        masks: some of "linear" and "logistic".
        nets: the networks that measure.
        seeds: of the noise; all of them are drawn in one batch.
        settings: see `Settings`.
        from_noise: start from random noise in the place of the source image's inversion.

    Returns:
        Rows (one per pair, mask, method and seed), and the images (seeds, 3, H, W) by (pair, mask, method). The
        ground-truth blend is among the methods where the ground truth is known.

    Raises:
        ValueError: for whatever `dsnb.invert` or `dsnb.blend` refuse.
    """
    settings = (settings or Settings()).for_model(model, from_noise)
    trajectory = record(model, tasks[0], seeds, settings, from_noise)
    options = {"guidance": settings.guidance, "progress": False}
    evaluations = len(trajectory.noises) * len(seeds)
    rows, images = [], {}
    for task in tasks:
        own = {"prompt": {"one_prompt": task.one_prompt}, "attention": {"passes": settings.passes}}
        own["combined"] = {"switch": settings.switch}
        with count_unet_samples(model.unet) as single_count:
            singles = torch.stack([decode(model, trajectory, prompt, **options) for prompt in task.prompts])
        for mask_name, mask in settings.masks(masks).items():
            target = prepare(nets, task, mask.weights(*task.image.shape[2:]), from_noise)
            for method in methods:
                with count_unet_samples(model.unet) as count:
                    if method == "pixel":
                        image = blend_pixels(singles, mask)
                    elif method == "prompt" and (task.pair, masks[0], method) in images:
                        image = images[task.pair, masks[0], method]  # it knows no mask
                    else:
                        chosen = own.get(method, {})
                        image = blend(
                            model, trajectory, task.prompts, mask, method=method, **chosen, **options
                        )
                images[task.pair, mask_name, method] = image
                samples = (single_count if method == "pixel" else count).samples / evaluations
                for k, seed in enumerate(seeds):
                    row = {"image": task.name, "pair": task.pair, "mask": mask_name, "method": method}
                    values = measure(nets, image[[k]], target, singles[:, k])
                    rows.append(row | {"seed": seed, "samples": samples or None} | values)
            if target.ground_truth is not None:
                images[task.pair, mask_name, GROUND_TRUTH] = target.ground_truth.expand_as(singles[0])
                values = measure(nets, target.ground_truth, target, task.layers)
                row = {"image": task.name, "pair": task.pair, "mask": mask_name, "method": GROUND_TRUTH}
                rows += [row | {"seed": seed} | values for seed in seeds]
    return rows, images


def run_part(
    part: Part, model: Model, nets: Networks, seeds: Sequence[int], folder: Path, progress: bool = True
) -> pd.DataFrame:
    """Compute what is missing of a part, one file of rows per setting, image and seed, and read all of it.

    Args:
        part: what to compute.
        model: the model.
        nets: the networks that measure.
        seeds: of the noise.
        folder: of the files. It belongs to one model and one set of settings, see `claim`.
        progress: show a progress bar.

    Returns:
        The rows, with the columns `setting`, `usual` (whether it is the usual setting), `version_dsnb` and those of
        the settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (number, label, k, list(tasks))
        for number, label in enumerate(part.settings)
        for k, (_, tasks) in enumerate(groupby(part.tasks, key=lambda task: task.name))
    ]
    frames = []
    for number, label, k, tasks in tqdm(jobs, desc=part.name, unit="image", disable=not progress):
        files = {seed: folder / f"{part.name}-{number}-{k:03d}-{seed}.json" for seed in seeds}
        missing = [seed for seed, file in files.items() if not file.is_file()]
        if missing:
            settings = part.settings[label].for_model(model, part.from_noise)
            rows, images = compare_image(
                model, tasks, part.methods, part.masks, nets,
                seeds=missing, settings=settings, from_noise=part.from_noise,
            )  # fmt: skip
            table = pd.DataFrame(rows)
            used = vars(settings) | {"passes": ", ".join(f"{weight:g}" for weight in settings.passes)}
            table = table.assign(
                setting=label, usual=label == part.usual, version_dsnb=dsnb.__version__, **used
            )
            for index, seed in enumerate(missing):
                if k < EXAMPLES and number == 0:
                    sheet = _sheet(tasks, images, part, index)
                    write_whole(files[seed].with_suffix(".png"), png_bytes(sheet))
                text = table[table.seed == seed].to_json(orient="records", double_precision=15)
                write_whole(files[seed], text.encode())
        frames += [pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))) for file in files.values()]
    return pd.concat(frames, ignore_index=True)


def _sheet(tasks: Sequence[Task], images: Mapping, part: Part, index: int) -> Image.Image:
    """One row per pair of styles: the source image if there is one, then every method under the last mask."""
    shown = []
    for task in tasks:
        under = [image[[index]] for key, image in images.items() if key[:2] == (task.pair, part.masks[-1])]
        shown.append(torch.cat(under if part.from_noise else [task.image, *under], dim=3))
    return to_pil(torch.cat(shown, dim=2))


def claim(folder: Path, model: Model, settings: Mapping[str, object]) -> None:
    """Make sure that a folder's rows come from one model and one set of settings.

    Args:
        folder: of the rows.
        model: the model; its UNet's weights are part of what must be equal.
        settings: everything else that changes the rows.

    Raises:
        ValueError: the folder holds rows of another model or of other settings.
    """
    digest = hashlib.sha256()
    for tensor in model.unet.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    given = {"model": model.name, "unet": digest.hexdigest()[:16], "version_dsnb": dsnb.__version__}
    given = json.loads(json.dumps(given | dict(settings), default=str))
    file = folder / "settings.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(given, indent=1).encode())
        return
    kept = json.loads(file.read_text(encoding="utf-8"))
    for name in given.keys() | kept.keys():
        if given.get(name) != kept.get(name):
            raise ValueError(
                f"{folder} holds rows with {name} {kept.get(name)!r}, not {given.get(name)!r}; "
                "choose another --output, or delete the folder"
            )
