"""The whole recipe: autoencoder, text encoder, judge, UNet and their evaluation, within a budget of minutes.

Each stage keeps its state in one folder and continues from there in the next sitting. A stage is over when its
networks are good enough, or when its share of the time is used up; the time it leaves goes to the later ones.
Once the UNet has begun, the networks it stands on stay as they are; of the autoencoder, the decoder may go on.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from ...plotting import save_figure
from ..world import captions
from . import autoencoder as autoencoders
from . import clip, diffusion
from .card import write_card, write_judge_card
from .evaluate import evaluate, measure_reading, write_table
from .export import export, plot_logs
from .judge import Judge, open_judge, top, truth
from .loop import Plan

log = logging.getLogger(__name__)

# stage: share of the time, batch on a CPU and on a GPU, learning rate on both
STAGES = {
    "autoencoder": (0.24, (16, 128), (1e-3, 1.5e-3)),
    "generator": (0.10, (32, 256), (7e-4, 1e-3)),
    "judge": (0.10, (32, 256), (7e-4, 1e-3)),
    "unet": (0.56, (32, 512), (3e-4, 4e-4)),
}
GOOD_PSNR, GOOD_OBJECTS, GOOD_STYLES = 28.5, 0.97, 0.995


@dataclass(frozen=True)
class Recipe:
    """What is asked for: minutes of this sitting, device, folders, sizes, and which stages to work on."""

    minutes: float
    device: str
    state: Path
    out: Path | None = None
    size: str = "small"
    latent_channels: int = autoencoders.LATENT_CHANNELS
    seed: int = 0
    compiled: bool = False
    stages: Sequence[str] = tuple(STAGES)
    pictures: int = 90  # for the evaluation; 0 leaves it out
    cooldown: float = 0.2  # share of each stage's time in which its learning rate falls to zero
    figures: Path | None = None  # where pictures and the plot of the logs go; by default into `state`

    def __post_init__(self):
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise ValueError(f"stages has {unknown}, expected some of {', '.join(STAGES)}")
        if self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes}, it must be above 0")
        if not 0 <= self.cooldown < 1:
            raise ValueError(f"cooldown is {self.cooldown}, expected a share in [0, 1)")
        if self.size not in diffusion.SIZES:
            raise ValueError(f"size is {self.size!r}, expected one of {', '.join(diffusion.SIZES)}")
        missing = [s for s in ("autoencoder", "generator") if not (self.state / f"{s}.pt").is_file()]
        if "unet" in self.stages and not set(missing) <= set(self.stages):
            raise ValueError(
                f"stages is {tuple(self.stages)}, but {str(self.state)!r} has no {' and no '.join(missing)} yet for "
                "the UNet to stand on; train 'autoencoder' and 'generator' first"
            )


def settle(recipe: Recipe) -> Recipe:
    """The recipe with the choices of earlier sittings, which cannot be changed halfway: sizes and seed."""
    path = recipe.state / "recipe.json"
    fixed = ("size", "latent_channels", "seed")
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name, value in earlier.items():
            if value != getattr(recipe, name):
                log.warning("%s stays %s, as %s was begun with it", name, value, recipe.state)
        return replace(recipe, **earlier)
    recipe.state.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: getattr(recipe, name) for name in fixed}) + "\n", encoding="utf-8")
    return recipe


def open_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of earlier sittings, or a new one."""
    if not (folder / "tokenizer.json").is_file():
        captions.train_tokenizer().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def reads_well(tokenizer: CLIPTokenizer, device):
    """A test for `fit`: does a contrastive network read objects and styles of true pictures well enough?"""

    def good(network: clip.Contrast) -> bool:
        objects, styles = reading(network, tokenizer, device)
        log.info("reads %.1f %% of objects, %.1f %% of styles", 100 * objects, 100 * styles)
        return objects >= GOOD_OBJECTS and styles >= GOOD_STYLES

    return good


def reading(
    network: clip.Contrast, tokenizer: CLIPTokenizer, device, count: int = 128
) -> tuple[float, float]:
    """Share of objects and of styles that a contrastive network reads right, from captions alone."""
    judge = Judge(ForReading(network), tokenizer)
    images, pictures, styles = truth(count, 7, device)
    objects = top(judge.objects(images, pictures, styles), pictures.object).mean().item()
    return objects, top(judge.styles(images, pictures), styles).mean().item()


class ForReading(torch.nn.Module):
    """A `Contrast` behind the two methods of transformers' models that a judge calls."""

    def __init__(self, network: clip.Contrast):
        super().__init__()
        self.network = network

    def get_image_features(self, pixel_values):
        return _Pooled(self.network.from_image(self.network.tower(pixel_values)))

    def get_text_features(self, input_ids):
        return _Pooled(self.network.from_text(self.network.text(input_ids).pooler_output))


@dataclass
class _Pooled:
    pooler_output: torch.Tensor


def decodes_well(device):
    """A test for `fit`: is the autoencoder good enough?"""
    images, _, _ = truth(90, 8, device)

    def good(network) -> bool:
        value = (
            torch.cat([autoencoders.psnr(network, part.to(device)) for part in images.split(30)])
            .mean()
            .item()
        )
        log.info("autoencoder PSNR %.2f dB", value)
        return value >= GOOD_PSNR

    return good


def plan_for(recipe: Recipe, stage: str, seconds: float) -> Plan:
    """How a stage is trained on this device for `seconds`."""
    _, batches, rates = STAGES[stage]
    gpu = int(torch.device(recipe.device).type != "cpu")
    offset = {"judge": 1}.get(stage, 0)  # the judge must not start where the generator's network starts
    save_every = 60 if gpu else 300
    return Plan(
        batches[gpu],
        rates[gpu],
        seconds,
        seed=recipe.seed + offset,
        cooldown=recipe.cooldown,
        save_every=save_every,
    )


def run(recipe: Recipe) -> Path | None:
    """Work on the recipe for its minutes; returns the folder of the exported model, the judge beside it.

    None without `out`, or as long as no UNet has been begun. The evaluation comes on top of the minutes.
    """
    recipe = settle(recipe)
    state, device, start = recipe.state, torch.device(recipe.device), time.monotonic()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    tokenizer = open_tokenizer(state / "tokenizer")
    frozen = (state / "unet.pt").is_file()
    left = {stage: STAGES[stage][0] for stage in recipe.stages}

    def plan(stage: str) -> Plan:
        """This stage's part of the remaining time; none at all where it is not asked for or must not
        change."""
        share = left.pop(stage, 0.0)
        if frozen and stage == "generator":
            share = 0.0
        remaining = max(0.0, 60 * recipe.minutes - (time.monotonic() - start))
        return plan_for(recipe, stage, remaining * share / (share + sum(left.values())) if share else 0.0)

    good = decodes_well(device)
    autoencoder = autoencoders.train(
        plan("autoencoder"), state, device, good, frozen, latent_channels=recipe.latent_channels
    )
    log.info("latent scale %.4f", autoencoders.measure_scale(autoencoder, device))
    good = reads_well(tokenizer, device)
    text_encoder = clip.train("generator", tokenizer, plan("generator"), state, device, good).text
    judge_plan = plan("judge")
    judge = clip.train("judge", tokenizer, judge_plan, state, device, good)
    if (state / "judge.pt").is_file():
        clip.save_judge(judge, tokenizer, state / "judge")
        rows = measure_reading(open_judge(state / "judge", device), 360)
        write_judge_card(state / "judge", rows, state, judge_plan.batch, judge_plan.seed)
        if recipe.out is not None:
            shutil.copytree(state / "judge", f"{recipe.out}-judge", dirs_exist_ok=True)
    unet = diffusion.train(
        autoencoder, text_encoder, tokenizer, plan("unet"), state, device, recipe.size, recipe.compiled
    )
    log.info(
        "the logs are in %s", save_figure(plot_logs(state), (recipe.figures or state) / "12_logs").parent
    )
    if recipe.out is None or not (state / "unet.pt").is_file():
        return None
    folder = export(autoencoder, text_encoder, tokenizer, unet, recipe.out)
    rows = []
    if recipe.pictures and (state / "judge").is_dir():
        rows, figures = evaluate(folder, open_judge(state / "judge", device), recipe.pictures, device)
        write_table(rows, state / "evaluation.csv")
        for name, figure in figures.items():
            save_figure(figure, (recipe.figures or state) / name)
    write_card(
        folder,
        rows,
        state,
        {stage: plan_for(recipe, stage, 0).batch for stage in STAGES},
        unet_parameters=sum(weight.numel() for weight in unet.parameters()),
        latent=recipe.latent_channels,
        seed=recipe.seed,
        device=recipe.device,
    )
    return folder
