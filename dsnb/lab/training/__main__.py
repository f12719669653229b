"""Make the bundled model: python -m dsnb.lab.training --minutes 25 --device cuda --state DIR --out data/models/NAME

Meant for half an hour of a GPU (`--size large`), which is still to be tried. On two CPU cores, use several training
runs with the same `--state`: the first ones with `--stages autoencoder generator evaluator`, all later ones with
`--stages unet --cooldown 0`, and the last one with `--stages unet` alone. `--from FOLDER` starts from exported weights.
"""

import argparse
import logging
from pathlib import Path

import torch

from ...checkpoints import choose_device
from . import recipe
from .diffusion import SIZES


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and work on the recipe."""
    parser = argparse.ArgumentParser("python -m dsnb.lab.training", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=25, help="time for training in this run (default 25)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    add(
        "--state",
        type=Path,
        default=Path("runs/training"),
        help="checkpoints and logs; a later training run continues there",
    )
    add(
        "--out",
        type=Path,
        help="write the model to this folder at the end, in the place of what is there; the evaluator CLIP beside it",
    )
    add(
        "--size",
        choices=[*SIZES, "auto"],
        default="auto",
        help="of the UNet; auto: large on a GPU, else small",
    )
    add("--latent-channels", type=int, default=recipe.autoencoders.LATENT_CHANNELS)
    add(
        "--stages",
        nargs="*",
        choices=list(recipe.STAGES),
        default=list(recipe.STAGES),
        help="work on these only; none: export and evaluate what there is",
    )
    add("--seed", type=int, default=0)
    add(
        "--from",
        dest="source",
        metavar="FOLDER",
        help="start from these exported weights; only the UNet and the decoder learn then",
    )
    add(
        "--fraction",
        type=float,
        default=0.2,
        help="fraction of the UNet's training images in several styles (default 0.2)",
    )
    add("--steps", type=int, default=10**9, help="at which each stage ends, if its time is not over before")
    add("--threads", type=int, help="CPU threads; 1 is fastest on a machine that is busy with other work")
    add(
        "--cooldown",
        type=float,
        default=0.2,
        help="fraction of a stage's time in which its learning rate falls to zero; 0 in all training runs but the last",
    )
    add("--compile", action="store_true", help="run the UNet through torch.compile")
    add("--pictures", type=int, default=90, help="pictures for the evaluation; 0 leaves it out")
    add(
        "--figures",
        type=Path,
        help="write the evaluation's pictures and the plot of the logs into this folder (default: the state's)",
    )
    options = parser.parse_args(arguments)
    try:
        choose_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    size = ("small" if options.device == "cpu" else "large") if options.size == "auto" else options.size
    try:
        work = recipe.Recipe(
            minutes=options.minutes,
            device=options.device,
            state=options.state,
            out=options.out,
            source=options.source,
            size=size,
            fraction=options.fraction,
            steps=options.steps,
            latent_channels=options.latent_channels,
            seed=options.seed,
            compiled=options.compile,
            stages=tuple(options.stages),
            pictures=options.pictures,
            cooldown=options.cooldown,
            figures=options.figures,
        )
    except ValueError as error:
        parser.error(str(error))
    recipe.run(work)


if __name__ == "__main__":
    main()
