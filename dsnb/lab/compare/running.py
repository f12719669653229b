"""Every method on every image and seed: the rows of a comparison, computed once and kept in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import dsnb

from ...files import write_whole
from ...inversion import Trajectory, from_noise, invert
from ...masks import Mask, linear, logistic
from ...methods import blend, blend_pixels, decode, default_guidance
from ...models import Model, count_unet_samples
from ...plotting import png_bytes
from .measuring import Networks, measure, prepare
from .tasks import GROUND_TRUTH, Task

EXAMPLES = 4  # tasks of each run whose images are kept


@dataclass(frozen=True)
class Settings:
    """How images are made; None is the model's own value.

    Attributes:
        steps, skip, eta: of the inversion, see `dsnb.invert`.
        guidance: of every method; None is each method's own, see `methods.default_guidance`.
        sharpness: of the logistic mask.
        switch: the progress at which "combined" changes from epsilon to regional, in [0, 1].
        from_noise: start from random noise in the place of the source image's inversion.
    """

    steps: int | None = None
    skip: int | None = None
    eta: float | None = None
    guidance: float | None = None
    sharpness: float = 20.0
    switch: float = 0.5
    from_noise: bool = False

    def for_model(self, model: Model) -> Settings:
        """These settings with the model's values for each None except guidance. From noise, no step is skipped."""
        own, steps = model.settings, self.steps or model.settings.steps
        usual = {"steps": steps, "skip": round(own.skip * steps / own.steps), "eta": own.eta}
        given = {name: value for name, value in vars(self).items() if value is not None}
        return Settings(**usual | given | ({"skip": 0} if self.from_noise else {}))

    def mask(self, name: str) -> Mask:
        """The mask of a name, "linear" or "logistic"."""
        return linear() if name == "linear" else logistic(self.sharpness)


@dataclass(frozen=True)
class Run:
    """Tasks, methods and masks under one setting.

    Attributes:
        part: of the comparison; its runs differ in their settings alone.
        tasks: what is drawn.
        methods: some of `dsnb.methods.METHODS`.
        masks: some of "linear" and "logistic".
        settings: how.
        label: names the settings among those of the part, such as "eta 0.1"; "" in a part with one run.
        usual: whether the other settings of the part are compared with these.
    """

    part: str
    tasks: Sequence[Task]
    methods: Sequence[str]
    masks: Sequence[str] = ("linear", "logistic")
    settings: Settings = Settings()
    label: str = ""
    usual: bool = True

    def file(self, folder: Path, k: int, seed: int) -> Path:
        """The file of the rows of task k with one seed."""
        name = (self.label or self.part).replace(" ", "-")
        if len(self.methods) == 1:
            name = f"{name}-{self.methods[0]}"
        return folder / f"{name}-{k:03d}-{seed}.json"


def record(model: Model, task: Task, seeds: Sequence[int], settings: Settings) -> Trajectory:
    """One trajectory for all methods and seeds, seed by seed in its batch.

    The noise depends on the image's name and the seed, not on the other images of the comparison.

    Args:
        model: the model.
        task: the task.
        seeds: of the noise.
        settings: complete ones, see `Settings.for_model`.

    Returns:
        A `Trajectory` with a batch of len(seeds).
    """
    found, usual = [], {"steps": settings.steps, "eta": settings.eta}
    for seed in seeds:
        noise = torch.Generator().manual_seed(seed * 1_000_003 + crc32(task.name.encode()))
        if settings.from_noise:
            size = tuple(task.image.shape[2:])
            found.append(from_noise(model, size, caption=task.caption, seed=noise, **usual))
        else:
            usual |= {"skip": settings.skip, "progress": False}
            found.append(invert(model, task.image, task.caption, generator=noise, **usual))
    x_T, noises = torch.cat([t.x_T for t in found]), torch.cat([t.noises for t in found], dim=1)
    return replace(found[0], x_T=x_T, noises=noises)


def compare_image(
    model: Model,
    task: Task,
    methods: Sequence[str],
    masks: Sequence[str],
    nets: Networks,
    seeds: Sequence[int],
    settings: Settings,
) -> tuple[list[dict], dict[tuple[str, str], Tensor]]:
    """Draw one task by every method, with every mask and seed, and measure the results.

    All methods decode the same trajectory.

    Args:
        model: the model.
        task: the image and its two styles.
        methods: some of `dsnb.methods.METHODS`.
        masks: some of "linear" and "logistic".
        nets: the networks that measure.
        seeds: of the noise; all of them are drawn in one batch.
        settings: see `Settings`.

    Returns:
        Rows (one per mask, method and seed), and the images (seeds, 3, H, W) by (mask, method). The ground-truth
        blend is among the methods where the ground truth is known.

    Raises:
        ValueError: as `dsnb.invert` and `dsnb.blend`.
    """
    settings = settings.for_model(model)
    trajectory = record(model, task, seeds, settings)
    given = settings.guidance
    guidance_of = lambda method: default_guidance(model, trajectory, method) if given is None else given
    own = {"prompt": {"one_prompt": task.one_prompt}, "combined": {"switch": settings.switch}}
    with count_unet_samples(model.unet) as single_count:
        single = {"guidance": guidance_of("pixel"), "progress": False}
        singles = torch.stack([decode(model, trajectory, prompt, **single) for prompt in task.prompts])
    images, samples, rows = {}, {}, []
    for name in masks:
        mask = settings.mask(name)
        target = prepare(nets, task, mask.weights(*task.image.shape[2:]), settings.from_noise)
        for method in methods:
            with count_unet_samples(model.unet) as count:
                if method == "pixel":
                    image, count = blend_pixels(singles, mask), single_count
                elif method == "prompt" and name != masks[0]:  # it knows no mask
                    image, count = images[masks[0], method], None
                else:
                    chosen = {"guidance": guidance_of(method), "progress": False} | own.get(method, {})
                    image = blend(model, trajectory, task.prompts, mask, method=method, **chosen)
            images[name, method] = image
            samples[name, method] = count and count.samples / len(trajectory.noises) / len(seeds)
        if target.ground_truth is not None:
            images[name, GROUND_TRUTH] = target.ground_truth.expand_as(singles[0])
        for method in (key[1] for key in images if key[0] == name):
            for k, seed in enumerate(seeds):
                sides = task.layers if method == GROUND_TRUTH else singles[:, k]
                row = {"image": task.name, "pair": task.pair, "mask": name, "method": method, "seed": seed}
                row["samples"] = samples.get((name, method))
                row["guidance"] = None if method == GROUND_TRUTH else guidance_of(method)
                if k == 0 or method != GROUND_TRUTH:  # the ground truth is the same for all seeds
                    measured = measure(nets, images[name, method][[k]], target, sides)
                rows.append(row | measured)
    return rows, images


def compute(run: Run, model: Model, nets: Networks, seeds: Sequence[int], folder: Path) -> pd.DataFrame:
    """Compute what is missing of a run, one file of rows per task and seed, and read all of it.

    Beside the rows of the first tasks is a PNG file: the source image if there is one, then every method under the
    last mask.

    Args:
        run: what to compute.
        model: the model.
        nets: the networks that measure.
        seeds: of the noise.
        folder: of the files. It belongs to one model and one set of settings, see `claim`.

    Returns:
        The rows, with the columns `setting`, `usual`, `version_dsnb` and those of the settings.
    """
    files = {(k, seed): run.file(folder, k, seed) for k in range(len(run.tasks)) for seed in seeds}
    settings = run.settings.for_model(model)
    about = {"setting": run.label, "usual": run.usual, "version_dsnb": dsnb.__version__} | vars(settings)
    del about["guidance"]  # each method's stands in its rows
    for k, task in enumerate(tqdm(run.tasks, desc=run.label or run.part, unit="task")):
        missing = [seed for seed in seeds if not files[k, seed].is_file()]
        if not missing:
            continue
        rows, images = compare_image(model, task, run.methods, run.masks, nets, missing, settings)
        table = pd.DataFrame(rows).assign(**about)
        for index, seed in enumerate(missing):
            if k < EXAMPLES:
                shown = [] if settings.from_noise else [task.image]
                shown += [batch[[index]] for (mask, _), batch in images.items() if mask == run.masks[-1]]
                write_whole(files[k, seed].with_suffix(".png"), png_bytes(torch.cat(shown, dim=3)))
            text = table[table.seed == seed].to_json(orient="records", double_precision=15)
            write_whole(files[k, seed], text.encode())
    return pd.concat([pd.DataFrame(_read_json(file)) for file in files.values()], ignore_index=True)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        wanted = "correct it; a file of rows may also be deleted, then its rows are computed again"
        raise ValueError(f"{file} cannot be read as JSON: {error}; {wanted}") from None


def claim(folder: Path, model: Model, settings: Mapping[str, object]) -> None:
    """Make sure that a folder's rows come from one model and one set of settings.

    Args:
        folder: of the rows; it is made if it does not exist.
        model: the model; the weights of its networks are part of what must be equal.
        settings: everything else that changes the rows.

    Raises:
        ValueError: the folder holds rows of another model, or of other or unknown settings.
    """
    digest = hashlib.sha256()
    for part in model.pipe.components.values():
        for tensor in part.state_dict().values() if isinstance(part, nn.Module) else ():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    given = {"model": model.name, "weights": digest.hexdigest()[:16], "version_dsnb": dsnb.__version__}
    given["defaults"] = vars(model.settings)
    given["scheduler"] = {key: value for key, value in model.scheduler.config.items() if key[0] != "_"}
    given = json.loads(json.dumps(given | dict(settings), default=str))
    file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    rows = any(folder.glob("*-[0-9][0-9][0-9]-*.json"))
    if rows and not file.is_file():
        raise ValueError(
            f"{folder} holds rows without their settings.json; choose another --output, or delete the folder"
        )
    if not rows:  # settings without rows are those of a command that failed
        write_whole(file, json.dumps(given, indent=1).encode())
    kept = _read_json(file)
    for name in given.keys() | kept.keys():
        if given.get(name) != kept.get(name):
            raise ValueError(
                f"{folder} holds rows with {name} {kept.get(name)!r}, not {given.get(name)!r}; "
                "choose another --output, or delete the folder"
            )
