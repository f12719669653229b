"""The model card that travels with the weights: what it was trained on, how, how good it is, what it cannot do."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from huggingface_hub import ModelCard, ModelCardData

from ...files import write_whole
from ..grid.parameters import HISTORY
from ..world import COLOURS, DRAWINGS, PAINTABLE, SCENES, STYLES
from .clip import WIDTH
from .evaluate import Row, as_markdown
from .export import SETTINGS
from .loop import number_format

if TYPE_CHECKING:
    from .recipe import Recipe


def stage_rows(state: Path, batches: dict[str, int]) -> list[dict]:
    """Steps, images per step (`batches`), hours and the loss towards the end of each stage, from the logs."""
    rows = []
    for stage, batch in batches.items():
        file = Path(state) / f"{stage}.csv"
        if file.is_file():
            log = pd.read_csv(file)
            tenth = max(1, len(log) // 10)
            last, before = log.loss[-tenth:], log.loss[-2 * tenth : -tenth]
            # the seconds of a log start anew with each training run
            ends = log.seconds > log.seconds.shift(-1, fill_value=0)
            rows.append({
                "stage": stage, "steps": int(log.step.iloc[-1]), "images per step": batch,
                "hours": round(log.seconds[ends].sum() / 3600, 2), "mean loss of its last tenth": round(last.mean(), 4),
                "of the tenth before": round(before.mean(), 4) if len(before) else None,
            })  # fmt: skip
    return rows


def write_history(folder: Path, state: Path, batches: dict[str, int], recipe: "Recipe") -> Path:
    """Write HISTORY beside the weights: the training stages of the weights that this run started from, then its own.

    Number format, fraction and images per step are those of this run, also where a stage had earlier ones.
    """
    earlier = Path(state) / HISTORY
    rows = json.loads(earlier.read_text(encoding="utf-8")) if earlier.is_file() else []
    for row in stage_rows(state, batches):
        row["number format"] = str(number_format(recipe.device)).removeprefix("torch.")
        row["images in several styles"] = recipe.fraction if row["stage"] == "unet" else 0.0
        rows.append(row)
    path = Path(folder) / HISTORY
    write_whole(path, json.dumps(rows, indent=1).encode() + b"\n")
    return path


def named(rows: list[Row]) -> list[tuple[str, Row]]:
    """The rows with their full names: a name that begins with "…" continues the last full name before it."""
    found, subject = [], ""
    for row in rows:
        more = row.name.startswith("…")
        subject = subject if more else row.name
        found.append((f"{subject} {row.name}" if more else subject, row))
    return found


def missed(rows: list[Row]) -> str:
    """Every bar that was missed, with the value, and the stage of the recipe to continue."""
    lines = []
    for name, row in named(rows):
        if row.passed is False:
            stage = next((stage for stage in ("evaluator", "autoencoder") if name.startswith(stage)), "unet")
            bar = f", bar ≤ {row.bar:.2f}" if row.at_most else f" of {row.bar:.2f}"
            lines.append(f"- {name}: {row.value:.2f}{bar}; the stage `{stage}` would have to continue.")
    if not lines:
        return "No bar was missed.\n" if rows else ""
    text = """Missed:

{lines}

A stage continues from its last checkpoint as long as its `--state` is kept. No checkpoint comes with the weights, but
`--from` starts from them. Once a UNet is trained, only the decoder of the autoencoder can be trained further. After a
change of the encoder or the text encoder, the UNet would have to be trained again.
"""
    return text.format(lines="\n".join(lines))


def uncertain(rows: list[Row]) -> str:
    """The bars that were met by less than one standard error, and what is read less often than in the ground truth."""
    lines, before = [], ("", None)
    for name, row in named(rows):
        if row.passed and abs(row.value - row.bar) < row.error:
            lines.append(f"- {name}: met by less than one standard error.")
        what, drawn = before
        if "in the ground" in row.name and row.value - drawn.value > 2 * math.hypot(row.error, drawn.error):
            lines.append(f"- {what}: {drawn.value:.2f}, where the ground truth gets {row.value:.2f}.")
        before = name, row
    if not lines:
        return ""
    return "Uncertain, or recognised less often than in the ground truth:\n\n" + "\n".join(lines) + "\n"


def write_card(folder: Path, rows: list[Row], recipe: "Recipe", *, unet_parameters: int) -> Path:
    """Write README.md beside the weights and their history."""
    history = json.loads((Path(folder) / HISTORY).read_text(encoding="utf-8"))
    gpu = torch.device(recipe.device).type == "cuda"
    return _write(
        Path(folder),
        "card.md",
        "diffusers",
        pipeline_tag="text-to-image",
        latent=recipe.latent_channels,
        million=round(unet_parameters / 1e6),
        objects=len(DRAWINGS),
        object_names=", ".join(DRAWINGS),
        scenes=len(SCENES),
        scene_names=", ".join(scene.phrases[0] for scene in SCENES.values()),
        styles=len(STYLES),
        style_names=", ".join(STYLES),
        colours=", ".join(COLOURS).capitalize(),
        paintable=", ".join(PAINTABLE),
        seed=recipe.seed,
        limits="\n".join(part for part in (missed(rows), uncertain(rows)) if part),
        device="a GPU" if gpu else "a CPU",
        settings=", ".join(_setting(name, value) for name, value in SETTINGS.items()),
        stages=pd.DataFrame(history).to_markdown(index=False, missingval="–"),
        table=as_markdown(rows) if rows else "Not measured.\n",
    )


def write_evaluator_card(folder: Path, rows: list[Row], state: Path, batch: int, seed: int) -> Path:
    """Write README.md beside the evaluator CLIP's weights."""
    stages = pd.DataFrame(stage_rows(state, {"evaluator": batch})).to_markdown(index=False)
    values = {"width": WIDTH, "seed": seed, "stages": stages, "table": as_markdown(rows)}
    return _write(Path(folder), "evaluator_card.md", "transformers", **values)


def _write(
    folder: Path, template: str, library: str, pipeline_tag: str | None = None, **values: object
) -> Path:
    data = ModelCardData(license="apache-2.0", library_name=library, pipeline_tag=pipeline_tag)
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    ModelCard.from_template(data, template_str=text, **values).save(folder / "README.md")
    return folder / "README.md"


def _setting(name: str, value: float | dict[str, float]) -> str:
    """One setting in words, such as "sampling guidance 5"."""
    if isinstance(value, dict):
        value = ", ".join(f"{key} {one:g}" for key, one in value.items())
        return f"{name.replace('_', ' ')} ({value})"
    return f"{name.replace('_', ' ')} {value:g}"
