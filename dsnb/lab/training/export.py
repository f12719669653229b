"""Write the trained networks as a Stable Diffusion folder, and plot the logs."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure

from .diffusion import make_scheduler

# Steps: the fewest that the validation images do not tell apart from 25 (figures/14_questions.md). Guidance: of each
# method, the value with the largest sum of two numbers: the rate of both styles shown, and the layout kept. They are
# measured on the first six validation images.
SETTINGS = {
    "steps": 18,
    "skip": 1,
    "eta": 0.1,
    "encoder_guidance": 1.0,
    "guidance": 5.0,
    "sampling_guidance": 5.0,
    "method_guidance": {"attention": 8.0, "regional": 8.0},
}
SHARD = "15MB"  # small files can be stored anywhere


def export(autoencoder, text_encoder, tokenizer, unet, folder: Path) -> Path:
    """Write a plain diffusers folder in fp16 safetensors; `StableDiffusionPipeline.from_pretrained` opens it.

    The networks are copied, not changed. `dsnb.json` carries the settings the workbook uses with this model. What an
    earlier export left in `folder` under the same names is replaced whole, so no old shard stays behind.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"vae": autoencoder, "text_encoder": text_encoder, "unet": unet}
    pipeline = StableDiffusionPipeline(
        **{name: copy.deepcopy(part).cpu().half() for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        fresh = Path(name)
        pipeline.save_pretrained(fresh, safe_serialization=True, max_shard_size=SHARD)
        (fresh / "dsnb.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")
        for part in parts:  # the folder it was read from says nothing to users
            path = fresh / part / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            if "dtype" in config:  # transformers would open this part alone in half precision
                config["dtype"] = "float32"
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for written in fresh.iterdir():
            if (folder / written.name).is_dir():
                shutil.rmtree(folder / written.name)
            os.replace(written, folder / written.name)
    return folder


STAGE_TITLES = {"generator": "text encoder", "evaluator": "evaluator CLIP"}


def plot_logs(folder: Path) -> Figure:
    """The loss of every stage that has a log in `folder`, and its mean over 20 rows."""
    files = [Path(folder, f"{stage}.csv") for stage in ("autoencoder", "generator", "evaluator", "unet")]
    files = [file for file in files if file.is_file()]
    figure = Figure(figsize=(3.2 * max(1, len(files)), 2.6), layout="constrained")
    for axes, file in zip(figure.subplots(1, max(1, len(files)), squeeze=False)[0], files, strict=False):
        log = pd.read_csv(file)
        axes.plot(log.step, log.loss, alpha=0.25)
        axes.plot(log.step, log.loss.rolling(min(20, len(log)), center=True).mean())
        axes.set(title=STAGE_TITLES.get(file.stem, file.stem), xlabel="step", ylabel="loss")
    return figure
