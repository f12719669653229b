"""The whole recipe: autoencoder, text encoder, evaluator, UNet and their evaluation, within a budget of minutes.

Each stage keeps its state in one folder, where the next training run continues. A stage ends when its networks are
good enough, or when its fraction of the time is used up. Later stages get the time it leaves. Once the UNet has
begun, the networks it depends on stay as they are, except for the decoder of the autoencoder. A recipe can also start
from exported weights: then only the UNet and the decoder learn.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ... import checks
from ...files import write_whole
from ...metrics.networks import load_clip
from ...plotting import save_figure
from ..world import captions
from . import autoencoder as autoencoders
from . import clip, diffusion
from .card import HISTORY, write_card, write_evaluator_card, write_history
from .evaluate import evaluate, measure_reading, write_table
from .evaluator import Evaluator, ground_truth, top
from .export import export, plot_logs
from .loop import Plan, save_checkpoint

log = logging.getLogger(__name__)

# stage: fraction of the time, batch on a CPU and on a GPU, learning rate on both
STAGES = {
    "autoencoder": (0.24, (16, 128), (1e-3, 1.5e-3)),
    "generator": (0.10, (32, 256), (7e-4, 1e-3)),
    "evaluator": (0.10, (32, 256), (7e-4, 1e-3)),
    "unet": (0.56, (32, 512), (3e-4, 4e-4)),
}
CONTINUED = 1 / 3  # of these learning rates, where training starts from exported weights
GOOD_PSNR, GOOD_OBJECTS, GOOD_STYLES = 28.5, 0.97, 0.995
# what a later training run cannot change
FIXED = ("size", "latent_channels", "latent_scale", "seed", "source")


@dataclass(frozen=True)
class Recipe:
    """What is asked for.

    Attributes:
        minutes: of this training run.
        device: "cpu" or "cuda".
        state: folder of checkpoints and logs.
        out: folder the model is written to, the evaluator CLIP beside it; None writes nothing.
        source: folder of exported weights to start from; None starts from nothing.
        size: of the UNet, see `diffusion.SIZES`.
        latent_channels: channels of the latents.
        latent_scale: the autoencoder's scaling factor; None measures it.
        seed: of training.
        compiled: whether the UNet runs through torch.compile.
        fraction: fraction of the UNet's training images in several styles. With 0.2, some of the images whose caption
            names a style show it in a part only: a third for the workbook's four styles, half for the others.
        steps: at which each stage ends, if its time is not over before.
        stages: the stages to work on.
        pictures: number of images that the evaluation uses; 0 leaves it out.
        cooldown: fraction of each stage's time in which its learning rate falls to zero.
        figures: folder of figures, by default `state`.
    """

    minutes: float
    device: str
    state: Path
    out: Path | None = None
    source: str | None = None
    size: str = "small"
    latent_channels: int = autoencoders.LATENT_CHANNELS
    latent_scale: float | None = None
    seed: int = 0
    fraction: float = 0.1
    steps: int = 10**9
    compiled: bool = False
    stages: Sequence[str] = tuple(STAGES)
    pictures: int = 90
    cooldown: float = 0.2
    figures: Path | None = None

    def __post_init__(self):
        for stage in self.stages:
            checks.one_of("stages", stage, STAGES)
        checks.number("minutes", self.minutes, above=0)
        checks.number("fraction", self.fraction, 0, 1)
        checks.integer("steps", self.steps, 1)
        if checks.number("cooldown", self.cooldown, 0, 1) == 1:
            raise ValueError("cooldown must be below 1, got 1")
        checks.one_of("size", self.size, diffusion.SIZES)
        begun = {"autoencoder": self.state / "autoencoder.pt", "generator": self.state / "generator.pt"}
        missing = [stage for stage, path in begun.items() if not path.is_file()]
        exported = self.source or (self.state / "text_encoder").is_dir()
        if "unet" in self.stages and not (exported or set(missing) <= set(self.stages)):
            raise ValueError(
                f"stages is {tuple(self.stages)}, but {str(self.state)!r} has no {' and no '.join(missing)} yet for "
                "the UNet to stand on; train 'autoencoder' and 'generator' first"
            )


def settle(recipe: Recipe) -> Recipe:
    """The recipe with the choices of earlier training runs that cannot be changed halfway."""
    path = recipe.state / "recipe.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name, value in earlier.items():
            if value != getattr(recipe, name):
                log.warning("%s stays %s, as %s was begun with it", name, value, recipe.state)
        return replace(recipe, **earlier)
    recipe.state.mkdir(parents=True, exist_ok=True)
    if recipe.source is not None:
        recipe = start_from(recipe)
    write_whole(path, json.dumps({name: getattr(recipe, name) for name in FIXED}).encode() + b"\n")
    return recipe


def start_from(recipe: Recipe) -> Recipe:
    """Copy exported weights to the state folder, as checkpoints of step 0. Returns the recipe with their sizes.

    Raises:
        ValueError: where the folder holds no model of this recipe.
    """
    source, state = Path(recipe.source), recipe.state
    try:
        vae = AutoencoderTiny.from_pretrained(source / "vae", torch_dtype=torch.float32)
        autoencoders.build(vae.config.latent_channels).load_state_dict(vae.state_dict())  # the same layers
        unet = UNet2DConditionModel.from_pretrained(source / "unet", torch_dtype=torch.float32)
        for name in ("tokenizer", "text_encoder"):
            if not (source / name).is_dir():
                raise OSError(f"there is no folder {name}")
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"source {recipe.source!r} holds no model of this recipe: {error}") from None
    sizes = {size.channels: name for name, size in diffusion.SIZES.items()}
    size = sizes.get(tuple(unet.config.block_out_channels))
    if size is None:
        widths = tuple(unet.config.block_out_channels)
        raise ValueError(
            f"source {recipe.source!r} has a UNet of widths {widths}, expected one of {list(sizes)}"
        )
    for stage, network in (("autoencoder", vae), ("unet", unet)):
        save_checkpoint(state / f"{stage}.pt", {"step": 0, "network": network.state_dict()})
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(source / name, state / name, dirs_exist_ok=True)
    if (source / HISTORY).is_file():
        shutil.copy(source / HISTORY, state)
    evaluator = source.with_name(f"{source.name}-judge")
    if evaluator.is_dir():
        shutil.copytree(evaluator, state / "evaluator", dirs_exist_ok=True)
    config = vae.config
    return replace(
        recipe, size=size, latent_channels=config.latent_channels, latent_scale=config.scaling_factor
    )


def open_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of earlier training runs, or a new one."""
    if not (folder / "tokenizer.json").is_file():
        captions.train_tokenizer().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def reads_well(tokenizer: CLIPTokenizer, device):
    """A test for `fit`: does a contrastive network read objects and styles of drawn images well enough?"""

    def good(network: clip.Contrast) -> bool:
        images, pictures, asked = ground_truth(128, 7, device)  # not before it is needed
        evaluator = Evaluator(clip.ContrastClip(network, tokenizer))
        objects = top(evaluator.objects(images, pictures, asked), pictures.object).mean().item()
        styles = top(evaluator.styles(images, pictures), asked).mean().item()
        log.info("reads %.1f %% of objects, %.1f %% of styles", 100 * objects, 100 * styles)
        return objects >= GOOD_OBJECTS and styles >= GOOD_STYLES

    return good


def decodes_well(device):
    """A test for `fit`: is the autoencoder good enough?"""
    images, _, _ = ground_truth(90, 8, device)

    def good(network) -> bool:
        parts = [autoencoders.psnr(network, part.to(device)) for part in images.split(30)]
        value = torch.cat(parts).mean().item()
        log.info("autoencoder PSNR %.2f dB", value)
        return value >= GOOD_PSNR

    return good


def plan_for(recipe: Recipe, stage: str, seconds: float) -> Plan:
    """How a stage is trained on this device for `seconds`."""
    _, batches, rates = STAGES[stage]
    gpu = int(torch.device(recipe.device).type != "cpu")
    offset = int(stage == "evaluator")  # it must not start where the generator's network starts
    return Plan(
        batches[gpu],
        rates[gpu] * (CONTINUED if recipe.source else 1),
        seconds,
        recipe.steps,
        seed=recipe.seed + offset,
        cooldown=recipe.cooldown,
        save_every=60 if gpu else 300,
        decay=0.9995 if recipe.source else 0.999,
    )


def run(recipe: Recipe) -> Path | None:
    """Work on the recipe for its minutes; returns the folder of the exported model, the evaluator CLIP beside it.

    None without `out`, or as long as no UNet has been begun. The evaluation comes on top of the minutes.
    """
    recipe = settle(recipe)
    state, device, start = recipe.state, torch.device(recipe.device), time.monotonic()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    tokenizer = open_tokenizer(state / "tokenizer")
    frozen = (state / "unet.pt").is_file()
    left = {stage: STAGES[stage][0] for stage in recipe.stages}
    if frozen:
        left.pop("generator", None)
    if (state / "evaluator").is_dir() and not (state / "evaluator.pt").is_file():
        left.pop("evaluator", None)  # it came with exported weights

    def plan(stage: str) -> Plan:
        """This stage's part of the remaining time; none where it is not asked for or must not change."""
        part = left.pop(stage, 0.0)
        remaining = max(0.0, 60 * recipe.minutes - (time.monotonic() - start))
        return plan_for(recipe, stage, remaining * part / (part + sum(left.values())) if part else 0.0)

    good = None if recipe.source else decodes_well(device)  # exported weights have passed this test already
    autoencoder = autoencoders.train(
        plan("autoencoder"), state, device, good, frozen, latent_channels=recipe.latent_channels
    )
    if recipe.latent_scale is None:
        log.info("latent scale %.4f", autoencoders.measure_scale(autoencoder, device))
    else:
        autoencoder.register_to_config(scaling_factor=recipe.latent_scale)
    good = reads_well(tokenizer, device)
    if (state / "text_encoder").is_dir():
        text_encoder = CLIPTextModel.from_pretrained(state / "text_encoder", dtype=torch.float32)
        text_encoder = text_encoder.to(device).requires_grad_(False).eval()
    else:
        text_encoder = clip.train("generator", tokenizer, plan("generator"), state, device, good).text
    evaluator_plan = plan("evaluator")
    if evaluator_plan.seconds or (state / "evaluator.pt").is_file():
        evaluator = clip.train("evaluator", tokenizer, evaluator_plan, state, device, good)
        clip.save_evaluator(evaluator, tokenizer, state / "evaluator")
        rows = measure_reading(Evaluator(load_clip(state / "evaluator", device)), 360)
        write_evaluator_card(state / "evaluator", rows, state, evaluator_plan.batch, evaluator_plan.seed)
    if recipe.out is not None and (state / "evaluator").is_dir():
        shutil.copytree(state / "evaluator", f"{recipe.out}-judge", dirs_exist_ok=True)
    unet = diffusion.train(
        autoencoder,
        text_encoder,
        tokenizer,
        plan("unet"),
        state,
        device,
        recipe.size,
        recipe.compiled,
        recipe.fraction,
    )
    figures = recipe.figures or state
    log.info("the logs are in %s", save_figure(plot_logs(state), figures / "16_logs").parent)
    if recipe.out is None or not (state / "unet.pt").is_file():
        return None
    folder = export(autoencoder, text_encoder, tokenizer, unet, recipe.out)
    batches = {stage: plan_for(recipe, stage, 0).batch for stage in STAGES}
    write_history(folder, state, batches, recipe)
    rows = []
    if recipe.pictures and (state / "evaluator").is_dir():
        rows, drawn = evaluate(
            folder, Evaluator(load_clip(state / "evaluator", device)), recipe.pictures, device
        )
        write_table(rows, state / "evaluation.csv")
        for name, figure in drawn.items():
            save_figure(figure, figures / name)
    parameters = sum(weight.numel() for weight in unet.parameters())
    write_card(folder, rows, recipe, unet_parameters=parameters)
    return folder
