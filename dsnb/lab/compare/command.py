"""`dsnb compare`: compute the rows of the comparison, then write its tables and figures."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ... import checkpoints, checks, prompts
from ...methods import METHODS
from ...models import Model
from ...plotting import figures_folder, save_figure, show_grid
from ..grid.command import exit_status
from ..grid.parameters import parse_settings
from ..world import split
from .measuring import open_networks
from .report import COMPARED, read_rows, write_report
from .running import EXAMPLES, Run, Settings, claim, compute
from .tasks import GROUND_TRUTH, Task, drawn_tasks, read_pairs

IMAGES, FROM_NOISE, FEWER, SEEDS = 96, 24, 12, 4  # what the tables in figures/ are made of
MASKS = ("linear", "logistic")
# What the source project leaves open: settings, and values to try. One setting at a time, on the validation set.
QUESTIONS: dict[str, list[float]] = {
    "guidance": [3, 5, 8, 20],
    "eta": [0.1, 0.3, 1.0],
    "steps": [12, 18, 25, 50],
    "skip": [5, 10, 20],
    "switch": [0.12, 0.25, 0.5, 0.75],
}
PARTS = (*COMPARED, *QUESTIONS)
WORDS = lambda text: tuple(word.strip() for word in text.split(","))
NUMBER = lambda text: checks.number("it", float(text))  # neither NaN nor infinite
PARAMETERS: dict[str, Callable] = {
    "steps": int, "skip": int, "eta": NUMBER, "guidance": NUMBER, "sharpness": NUMBER, "switch": NUMBER,
    "pairs": lambda text: [WORDS(pair.replace("/", ",")) for pair in text.split(",")],
    "masks": WORDS, "pairs_file": Path, "model": str, "lpips_network": str, "clip_model": str,
}  # fmt: skip
HELP = """parameters for -p: steps, skip, eta, guidance, sharpness (of the logistic mask), switch;
pairs=left/right,left/right; masks=linear,logistic; pairs_file (your own images and prompts); model (a folder, a
hub id or a .safetensors file); lpips_network, clip_model (the networks that measure)"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is 0 done, 2 it could not run, 130 it was stopped."""
    given = parser().parse_args(argv)

    def work() -> int:
        folder = redraw() if given.redraw else compare_all(given)
        print(f"tables and figures: {folder}/14_*")
        return 0

    return exit_status(work, ValueError, OSError, NotImplementedError, ImportError)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("dsnb compare", description="Compare the methods.", epilog=HELP)
    p.add_argument("--images", type=int, default=IMAGES, help=f"of the test set (default: {IMAGES})")
    p.add_argument("--noise-images", type=int, default=FROM_NOISE, help=f"from noise (default: {FROM_NOISE})")
    p.add_argument("--seeds", type=int, default=SEEDS, help=f"of the noise of each image (default: {SEEDS})")
    p.add_argument("--fewer", type=int, default=FEWER, help=f"images per open question (default: {FEWER})")
    p.add_argument("--methods", type=WORDS, default=tuple(METHODS), help=f"(default: {','.join(METHODS)})")
    p.add_argument("--parts", type=WORDS, default=PARTS, help=f"(default: {','.join(PARTS)})")
    p.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--output", type=Path, default=Path("runs", "compare"), help="folder of the rows")
    p.add_argument("--redraw", action="store_true", help="only tables and figures, from figures/14_rows")
    return p


def redraw() -> Path:
    """Write tables and figures again from the kept rows."""
    rows = read_rows(figures_folder() / "14_rows")
    if not rows:
        raise FileNotFoundError(
            f"there are no rows in {figures_folder() / '14_rows'}; run dsnb compare first"
        )
    write_report(rows, figures_folder())
    return figures_folder()


def compare_all(given: argparse.Namespace) -> Path:
    """Compute what is missing of every part, then write tables and figures.

    Returns:
        The folder of the tables: figures/ for the whole comparison, else `figures` in the output folder.

    Raises:
        ValueError: an argument is wrong, or the output folder holds other rows.
        FileNotFoundError: the pairs file or one of its images does not exist.
    """
    for name in ("images", "noise_images", "seeds", "fewer"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(given, name), 1)
    for name, known in (("methods", METHODS), ("parts", PARTS)):
        for word in getattr(given, name):
            checks.one_of(f"--{name}", word, known)
    chosen = parse_parameters(given.parameters)
    read: dict[str, str] = {}  # what the pairs file says and shows
    if "pairs_file" in chosen:  # a misread file stops before anything is loaded
        own = read_pairs(chosen["pairs_file"], chosen["pairs"])
        read["pairs_file"] = chosen["pairs_file"].read_text(encoding="utf-8-sig")
        read["images"] = sha256(b"".join(task.image.numpy().tobytes() for task in own)).hexdigest()[:16]

    model = checkpoints.load(chosen.get("model"))
    runs = [run for name in given.parts for run in plan(name, given, chosen, model)]
    if not runs:
        raise ValueError(
            f"--parts {','.join(given.parts)} asks nothing about --methods {','.join(given.methods)}"
        )
    claim(given.output, model, chosen | {"methods": given.methods, "pairs_file": False} | read)
    networks = {name: chosen[name] for name in ("lpips_network", "clip_model") if name in chosen}
    styles = {style for run in runs for task in run.tasks for style in task.styles}
    nets = open_networks(styles, device=model.device, **networks)
    tables: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        table = compute(run, model, nets, range(given.seeds), given.output)
        tables.setdefault(run.part, []).append(table)

    counts = (
        (given.images, IMAGES),
        (given.noise_images, FROM_NOISE),
        (given.fewer, FEWER),
        (given.seeds, SEEDS),
    )
    whole = all(asked >= least for asked, least in counts) and not given.parameters
    whole = whole and set(given.parts) == set(PARTS) and set(given.methods) == set(METHODS)
    folder = figures_folder() if whole else given.output / "figures"
    write_report({name: pd.concat(found, ignore_index=True) for name, found in tables.items()}, folder)
    for run in runs:
        if run.part in COMPARED:
            stem = "14_images" if run.part == "compare" else f"14_{run.part}_images"
            if figure := draw_examples(run, given.output):
                save_figure(figure, folder / stem)
    return folder


def parse_parameters(words: Sequence[str]) -> dict[str, object]:
    """["steps=12"] -> {"steps": 12, "masks": …, "pairs": …}, the last two in any case.

    Raises:
        ValueError: a name is unknown, or a value is of another kind.
    """
    found: dict[str, object] = {"masks": MASKS, "pairs": prompts.pairs()}
    for name, text in parse_settings(words, "-p").items():
        checks.one_of("-p", name, PARAMETERS)
        try:
            found[name] = PARAMETERS[name](text)
        except ValueError:
            raise ValueError(
                f"-p {name} must be a number (a whole one for steps and skip), got {text!r}"
            ) from None
    for name in found["masks"]:
        checks.one_of("masks", name, MASKS)
    for pair in found["pairs"]:
        if len(pair) != 2:
            raise ValueError(f"pairs must be left/right,left/right, got {'/'.join(pair)!r}")
    return found


def plan(part: str, given: argparse.Namespace, chosen: dict, model: Model) -> list[Run]:
    """The runs of one part. Methods are compared on the test set, questions are asked on validation.

    Args:
        part: one of `PARTS`.
        given: the arguments of the command.
        chosen: from `parse_parameters`. A pairs file takes the place of both sets of images.
        model: the model, whose own settings are the usual ones.

    Returns:
        One run for a part that compares methods; one per setting for a question.
    """
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in chosen.items() if name in names})
    if part in COMPARED:
        tasks = _tasks("test", given.noise_images if part == "noise" else given.images, chosen, model)
        settings = replace(settings, from_noise=part == "noise")
        return [Run(part, tasks, given.methods, chosen["masks"], settings)]
    tasks = _tasks("validation", given.fewer, chosen, model)
    able = ("combined",) if part == "switch" else ("epsilon", "attention", "combined", "regional")
    methods = [method for method in able if method in given.methods]
    usual, runs = settings.for_model(model), []
    # a skip must be below the steps; one that is not given is a fraction of them
    fits = {"skip": lambda v: v < usual.steps, "steps": lambda v: v > (settings.skip or 0)}.get(part)
    groups = [[method] for method in methods] if part == "guidance" else [methods] if methods else []
    for group in groups:  # each method may have a usual guidance of its own
        own = getattr(usual, part)
        if own is None:
            own = model.settings.guidance_of(group[0])
        for value in sorted({own, *filter(fits, QUESTIONS[part])}):
            setting, label = replace(settings, **{part: value}), f"{part} {value:g}"
            runs.append(Run(part, tasks, group, ("logistic",), setting, label, value == own))
    return runs


def _tasks(which: str, images: int, chosen: dict, model: Model) -> list[Task]:
    if "pairs_file" not in chosen:
        return drawn_tasks(split(which, images), chosen["pairs"], model.image_size)
    own = read_pairs(chosen["pairs_file"], chosen["pairs"], model)
    names = list(dict.fromkeys(task.name for task in own))
    if len(names) > images:
        told = f"the first {images} of the {len(names)} images of the pairs file are used"
        warnings.warn(f"{told} (--images, --noise-images, --fewer)", stacklevel=2)
    # ordered by image, so that the files of the first images stay valid when more images are used
    return [task for name in names[:images] for task in own if task.name == name]


def draw_examples(run: Run, folder: Path) -> Figure | None:
    """The first tasks, two seeds each: one row per task and seed, one column per method. None without their PNGs."""
    shown, titles = [], []
    for k, task in enumerate(run.tasks[:EXAMPLES]):
        for seed in range(2):
            file = run.file(folder, k, seed).with_suffix(".png")
            if file.is_file():
                strip, width = Image.open(file), task.image.shape[3]
                shown += [strip.crop((x, 0, x + width, strip.height)) for x in range(0, strip.width, width)]
                titles.append(f"{task.pair}\nseed {seed}")
    if not titles:
        return None
    columns = len(shown) // len(titles)
    names = [*([] if run.settings.from_noise else ["source"]), *run.methods, GROUND_TRUTH]
    return show_grid(shown, names[:columns], columns=columns, row_titles=titles, width=1.2)
