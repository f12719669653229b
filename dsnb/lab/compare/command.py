"""`python -m dsnb compare`: compute the rows of the comparison, then write its tables and figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from PIL import Image

from ... import checkpoints, checks, prompts
from ...methods import METHODS
from ...models import Model
from ...plotting import figures_folder, save_figure, show_grid
from ..world import split
from .measuring import open_networks
from .report import COMPARED, read_rows, write_report
from .running import EXAMPLES, GROUND_TRUTH, Part, Settings, claim, run_part
from .tasks import Task, drawn_tasks, read_pairs

IMAGES, FEWER, SEEDS = 96, 12, 4  # what the tables in figures/ are made of
MASKS = ("linear", "logistic")
HOOKED = ("epsilon", "attention", "combined", "regional")
# What the paper leaves open: question -> methods, and the settings that vary. Asked on the validation set.
QUESTIONS: dict[str, tuple[tuple[str, ...], dict[str, list]]] = {
    "guidance": (("attention", "combined", "regional"), {"guidance": [3, 5, 20, 30], "sharpness": [20, 70]}),
    "eta": (HOOKED, {"eta": [0.05, 0.1, 0.3, 1.0]}),
    "steps": (HOOKED, {"steps": [12, 25, 50, 99]}),
    "skip": (HOOKED, {"steps": [50], "skip": [0, 5, 10, 20, 30]}),
    "passes": (("attention",), {"passes": [(1,), (1, 0.02), (1, 0.02, 0.02, 0.02), (1, 1)]}),
    "switch": (("combined",), {"switch": [0.12, 0.25, 0.5, 0.75]}),
}
PARTS = (*COMPARED, *QUESTIONS)
WORDS = lambda text: tuple(word.strip() for word in text.split(","))
PARAMETERS: dict[str, Callable] = {
    "steps": int, "skip": int, "eta": float, "guidance": float, "sharpness": float, "switch": float,
    "passes": lambda text: tuple(float(word) for word in text.split(",")),
    "pairs": lambda text: [WORDS(pair.replace("/", ",")) for pair in text.split(",")],
    "masks": WORDS, "pairs_file": Path, "model": str, "lpips_network": str, "clip_model": str,
}  # fmt: skip
HELP = """parameters for -p: steps, skip, eta, guidance, sharpness (of the logistic mask), switch, passes (1,0.02);
pairs=left/right,left/right; masks=linear,logistic; pairs_file (your own images and prompts); model (a folder, a
hub id or a .safetensors file); lpips_network, clip_model (the networks that measure)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments.

    Returns:
        Exit status: 0 done, 2 it could not run, 130 it was stopped.
    """
    given = parser().parse_args(argv)
    try:
        folder = redraw() if given.redraw else compare_all(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"tables and figures: {folder}/10_*")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("python -m dsnb compare", description="Compare the methods.", epilog=HELP)
    p.add_argument("--images", type=int, default=IMAGES, help=f"of the test set (default: {IMAGES})")
    p.add_argument("--seeds", type=int, default=SEEDS, help=f"of the noise of each image (default: {SEEDS})")
    p.add_argument("--fewer", type=int, default=FEWER, help=f"images per open question (default: {FEWER})")
    p.add_argument("--methods", type=WORDS, default=tuple(METHODS), help=f"(default: {','.join(METHODS)})")
    p.add_argument("--parts", type=WORDS, default=PARTS, help=f"(default: {','.join(PARTS)})")
    p.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--output", type=Path, default=Path("runs", "compare"), help="folder of the rows")
    p.add_argument("--redraw", action="store_true", help="only tables and figures, from figures/10_rows")
    return p


def redraw() -> Path:
    """Write tables and figures again from the kept rows."""
    rows = read_rows(figures_folder() / "10_rows")
    if not rows:
        raise FileNotFoundError(f"there are no rows in {figures_folder() / '10_rows'}")
    write_report(rows, figures_folder())
    return figures_folder()


def compare_all(given: argparse.Namespace) -> Path:
    """Compute what is missing of every part, then write tables and figures.

    Args:
        given: the arguments of the command, see `parser`.

    Returns:
        The folder of the tables: figures/ for the whole comparison, else `figures` in the output folder.

    Raises:
        ValueError: an argument is wrong, or the output folder holds other rows.
        FileNotFoundError: the pairs file or one of its images does not exist.
    """
    for name in ("images", "seeds", "fewer"):
        checks.integer(f"--{name}", getattr(given, name), 1)
    for name, known in (("methods", METHODS), ("parts", PARTS)):
        for word in getattr(given, name):
            checks.one_of(f"--{name}", word, known)
    chosen = parse_parameters(given.parameters)
    masks = [checks.one_of("masks", name, MASKS) for name in chosen.pop("masks", MASKS)]
    pairs = [tuple(pair) for pair in chosen.pop("pairs", prompts.pairs())]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"pairs must be left/right,left/right, got {'/'.join(pair)!r}")
    file, source = chosen.pop("pairs_file", None), chosen.pop("model", None)
    networks = {name: chosen.pop(name) for name in ("lpips_network", "clip_model") if name in chosen}
    if file:
        read_pairs(file, pairs)  # before anything is loaded: a misread file stops here
    model = checkpoints.load(source)
    settings = Settings(**chosen)
    parts = plan(given, model, settings, masks, pairs, file)
    read = file and file.read_text(encoding="utf-8-sig")
    fixed = {"methods": given.methods, "masks": masks, "pairs": pairs, "pairs_file": read}
    claim(given.output, model, chosen | networks | fixed)
    styles = {style for part in parts for task in part.tasks for style in task.styles}
    nets = open_networks(styles, device=model.device, **networks)
    rows = {part.name: run_part(part, model, nets, range(given.seeds), given.output) for part in parts}
    whole = given.images >= IMAGES and given.fewer >= FEWER and given.seeds >= SEEDS and not given.parameters
    whole = whole and set(given.parts) == set(PARTS) and set(given.methods) == set(METHODS)
    folder = figures_folder() if whole else given.output / "figures"
    write_report(rows, folder)
    for part in parts:
        if part.name in COMPARED:
            stem = "10_images" if part.name == "compare" else f"10_{part.name}_images"
            save_figure(draw_examples(part, given.output), folder / stem)
    return folder


def plan(
    given: argparse.Namespace,
    model: Model,
    settings: Settings,
    masks: Sequence[str],
    pairs,
    file: Path | None,
) -> list[Part]:
    """The parts that a command line asks for. Methods are compared on the test set, questions asked on validation.

    A pairs file takes the place of both sets.
    """
    own = read_pairs(file, pairs, model) if file else []
    names = list(dict.fromkeys(task.name for task in own))

    def tasks(which: str, count: int) -> list[Task]:
        if file:
            return [task for task in own if task.name in names[:count]]
        return drawn_tasks(split(which, count), pairs, model.image_size)

    parts = []
    for name in given.parts:
        if name in COMPARED:
            drawn = tasks("test", given.images)
            parts.append(Part(name, drawn, given.methods, masks, {"": settings}, from_noise=name == "noise"))
            continue
        methods, varied = QUESTIONS[name]
        methods = [method for method in methods if method in given.methods]
        if methods:
            by_label, usual = vary(varied, settings, model)
            drawn = tasks("validation", given.fewer * (2 if name == "guidance" else 1))
            parts.append(Part(name, drawn, methods, ("logistic",), by_label, usual))
    return parts


def vary(varied: dict[str, list], settings: Settings, model: Model) -> tuple[dict[str, Settings], str]:
    """Settings by label, for every combination of the values; and the label of the model's own settings."""
    names = [name for name, values in varied.items() if len(values) > 1]
    label = lambda used: ", ".join(f"{name} {_text(getattr(used, name))}" for name in names)
    alone = {name: values[0] for name, values in varied.items() if name not in names}
    chosen = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    used = [replace(settings, **values).for_model(model) for values in chosen]
    return {label(each): each for each in used}, label(replace(settings, **alone).for_model(model))


def _text(value: float | tuple) -> str:
    return "+".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


def parse_parameters(words: Sequence[str]) -> dict[str, object]:
    """ "steps=12" -> {"steps": 12}. ValueError for an unknown name or a value of another kind."""
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        checks.one_of("-p", name, PARAMETERS)
        try:
            found[name] = PARAMETERS[name](text)
        except ValueError:
            raise ValueError(f"-p {name} cannot be {text!r}") from None
    return found


def draw_examples(part: Part, folder: Path):
    """The first images of a part, two seeds each: one row per pair of styles and seed, one column per method."""
    names = list(dict.fromkeys(task.name for task in part.tasks))[:EXAMPLES]
    shown, rows = [], []
    for k, name in enumerate(names):
        tasks = [task for task in part.tasks if task.name == name]
        for seed in range(2):
            file = folder / f"{part.name}-0-{k:03d}-{seed}.png"
            if file.is_file():
                sheet, size = Image.open(file), tasks[0].image.shape[2]
                for row, task in enumerate(tasks):
                    boxes = [(x, row * size) for x in range(0, sheet.width, tasks[0].image.shape[3])]
                    shown += [sheet.crop((x, y, x + tasks[0].image.shape[3], y + size)) for x, y in boxes]
                    rows.append(f"{task.pair}\nseed {seed}")
    columns = len(shown) // len(rows)
    titles = [*([] if part.from_noise else ["source"]), *part.methods, GROUND_TRUTH][:columns]
    return show_grid(shown, titles, columns=columns, row_titles=rows, width=1.2)
