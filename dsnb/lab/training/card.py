"""The model card that travels with the weights: what it was trained on, how, how good it is, what it cannot."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ..world.icons import DRAWINGS
from ..world.scenery import SCENES
from ..world.styles import STYLES
from ..world.world import COLOURS, PAINTABLE
from .clip import WIDTH
from .evaluate import Row, as_markdown
from .export import SETTINGS, read_log

TEXT = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# A small model of a drawn world

A Stable Diffusion in miniature for 128 x 128 pictures, with the real components: CLIPTokenizer, CLIPTextModel,
AutoencoderTiny (factor 8, {latent} latent channels), UNet2DConditionModel ({million:.0f} M parameters,
cross-attention at 16 x 16, 8 x 8 and 4 x 4), DDIMScheduler (scaled linear, epsilon). Any tool that opens a
Stable Diffusion 1.x folder opens this one. It exists to show a method quickly on any computer; it draws its own
world and nothing else.

## The world

One large object in one scene, in one style.

- {objects} objects: {object_names}.
- {scenes} scenes: {scene_names}.
- {styles} styles: {style_names}. `dsnb/lab/world/styles.py` draws them.
- {colours} as the colour of {paintable}.

Captions read like "a red car on a street", "a pencil sketch of an owl at night", or one of the long style
prompts in `data/prompts.json`.

## Sources and licences

The objects are three drawings each from open emoji art, through Iconify's npm packages: Noto Emoji (Google,
Apache-2.0), Twemoji (Twitter and contributors, [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/), changed in
colour and style), Fluent Emoji Flat (Microsoft, MIT). Scenes, styles and captions are this project's own. The weights
are Apache-2.0.

## Recipe

`python -m dsnb.lab.training` makes it from nothing; `notebooks/12_train_the_model.ipynb` tells how. All random
numbers follow from seed {seed} (the judge's from the next one); stages end by the clock, so a repeat gives a model of
this kind and not the same bits. AdamW on {device}, bfloat16 products, a moving average of the weights; the text
encoder is a contrastive one, trained first and then frozen; one caption in ten is empty; an error in the noise weighs
min(1/√snr, 5). Each object was kept out of one style in each scene. Style, object and inversion are measured on such
captions; of the two styles of one picture, one was kept out.

{stages}

Settings the workbook uses (`dsnb.json`): {settings}.

## Measured

{table}
The judge is a separate contrastive network of another architecture and seed, trained on drawn pictures only.
± is one standard error, of shares after Agresti & Coull. SSIM is against the true picture in the style asked, which
can be drawn because the world can; how much more of it an inversion has to keep than fresh noise is a bar of this
project's. Inversion is exact, so what a photograph loses is lost by the autoencoder. The sides of a picture in two
styles are held to the bar by the style probe, which reads the true mixes right; the judge, who sees each half mirrored
to a whole picture, stands beside it. The probe was chosen after both had read the bundled model's pictures.

## Limits

{limits}
`notebooks/13_what_teaches_objects.ipynb` tries what helps the contrastive network, which lends the text
encoder, to tell objects apart.

It knows the words above and no others. It draws one object; not two, not counts, not positions. Photographs
can be inverted and rebuilt as far as the autoencoder carries them, but are far from anything it has learnt.
"""

JUDGE = """\
---
license: apache-2.0
library_name: transformers
---

# A small CLIP of the drawn world

It judges what the generator draws: which style, which object. A VisionTextDualEncoderModel (ConvNeXt picture tower,
CLIP text tower, one space of {width} numbers) that `AutoModel.from_pretrained` opens; pictures of 128 x 128,
normalised by mean 0.5 and deviation 0.25. It was trained on drawn pictures and their captions alone, with seed {seed},
and never saw a picture that the generator made. World, sources and licences are those of the generator's model card.

{stages}

{table}
It knows the world's words and no others. A photograph is far from anything it has learnt.
"""


def stage_table(state: Path, batches: dict[str, int]) -> str:
    """Steps, pictures a step (`batches`), hours and the loss towards the end of each stage, from the logs."""
    lines = [
        "| stage | steps | pictures a step | hours | mean loss of its last tenth | of the tenth before |",
        "|---|---|---|---|---|---|",
    ]
    for stage, batch in batches.items():
        file = Path(state) / f"{stage}.csv"
        if file.is_file():
            log = read_log(file)
            hours, steps = sum(sittings(log["seconds"])) / 3600, int(log["step"][-1])
            tenth = max(1, len(log["loss"]) // 10)
            last, before = (
                f"{sum(part) / len(part):.4f}" if part else "–"
                for part in (log["loss"][-tenth:], log["loss"][-2 * tenth : -tenth])
            )
            lines.append(f"| {stage} | {steps} | {batch} | {hours:.2f} | {last} | {before} |")
    return "\n".join(lines)


def missed(rows: list[Row]) -> str:
    """Every bar that was missed, by how much, and the stage of the recipe that would have to go on."""
    lines, subject = [], ""
    for row in rows:
        more = row.name.startswith("…")  # a row about the one before it
        subject = subject if more else row.name
        if row.passed is False:
            name = f"{subject} {row.name}" if more else subject
            stage = next((stage for stage in ("judge", "autoencoder") if name.startswith(stage)), "unet")
            lines.append(
                f"- {name}: {row.value:.2f} of {row.bar:.2f}; the stage `{stage}` would have to go on."
            )
    if not lines:
        return "No bar was missed.\n" if rows else ""
    text = """Missed:

{lines}

A stage goes on from its last checkpoint, for as long as its `--state` is kept; none comes with the weights. Beside a
UNet only the decoder of the autoencoder can go on: another encoder or text encoder means another UNet.
"""
    return text.format(lines="\n".join(lines))


def uncertain(rows: list[Row]) -> str:
    """The bars that were met by less than one standard error, and what is read less often than in the truth."""
    lines, subject = [], ""
    for before, row in zip([None, *rows], rows, strict=False):
        name = f"{subject} {row.name}" if row.name.startswith("…") else row.name
        if row.passed and row.value - row.error < row.bar:
            lines.append(f"- {name}: met by less than one standard error.")
        if "in the true" in row.name and row.value - before.value > 2 * math.hypot(row.error, before.error):
            what = f"{subject} {before.name}" if before.name.startswith("…") else before.name
            lines.append(f"- {what}: {before.value:.2f}, where the truth gets {row.value:.2f}.")
        subject = subject if row.name.startswith("…") else row.name
    if not lines:
        return ""
    return "With less certainty, or less often than in the true pictures:\n\n" + "\n".join(lines) + "\n"


def sittings(seconds: Sequence[float]) -> list[float]:
    """The length of each sitting, from a log's seconds, which start anew with each."""
    following = [*seconds[1:], 0.0]
    return [now for now, after in zip(seconds, following, strict=False) if after < now]


def write_card(
    folder: Path,
    rows: list[Row],
    state: Path,
    batches: dict[str, int],
    *,
    unet_parameters: int,
    latent: int,
    seed: int,
    device: str,
) -> Path:
    """Write README.md beside the weights; `batches`: pictures a step in each stage."""
    path = Path(folder) / "README.md"
    text = TEXT.format(
        latent=latent,
        million=unet_parameters / 1e6,
        objects=len(DRAWINGS),
        object_names=", ".join(DRAWINGS),
        scenes=len(SCENES),
        scene_names=", ".join(scene.phrases[0] for scene in SCENES.values()),
        styles=len(STYLES),
        style_names=", ".join(STYLES),
        colours=", ".join(COLOURS).capitalize(),
        paintable=", ".join(PAINTABLE),
        seed=seed,
        limits="\n".join(part for part in (missed(rows), uncertain(rows)) if part),
        device="a GPU"
        if torch.device(device).type == "cuda"
        else f"a CPU ({torch.get_num_threads()} threads)",
        settings=", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in SETTINGS.items()),
        stages=stage_table(state, batches),
        table=as_markdown(rows) if rows else "Not measured.\n",
    )
    path.write_text(text, encoding="utf-8")
    return path


def write_judge_card(folder: Path, rows: list[Row], state: Path, batch: int, seed: int) -> Path:
    """Write README.md beside the judge's weights."""
    path = Path(folder) / "README.md"
    stages = stage_table(state, {"judge": batch})
    path.write_text(
        JUDGE.format(width=WIDTH, seed=seed, stages=stages, table=as_markdown(rows)), encoding="utf-8"
    )
    return path
