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
    parser = argparse.ArgumentParser(
        "python -m dsnb.lab.training",
        description=__doc__.split("\n\n")[0],
        argument_default=argparse.SUPPRESS,  # what is not given is the recipe's own
    )
    add, fraction = parser.add_argument, {"type": float, "metavar": "FRACTION"}
    # fmt: off
    add("--minutes", type=float, default=25, help="time for training in this run (default 25)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    add("--state", type=Path, default=Path("runs/training"), help="checkpoints and logs, where a later run continues")
    add("--out", type=Path, help="write the model in the place of this folder, the evaluator CLIP beside it")
    add("--size", choices=[*SIZES, "auto"], default="auto", help="of the UNet; auto: large on a GPU, else small")
    add("--latent-channels", type=int)
    add("--stages", nargs="*", choices=list(recipe.STAGES), help="work on these only; none: export and evaluate")
    add("--seed", type=int)
    add("--from", dest="source", metavar="FOLDER", help="start from exported weights; only UNet and decoder learn")
    add("--fraction", **fraction, help="of the UNet's training images in several styles (default 0.1)")
    add("--steps", type=int, help="at which each stage ends, if its time is not over before")
    add("--threads", type=int, default=0, help="of the CPU; 1 is fastest on a machine that is busy with other work")
    add("--cooldown", **fraction, help="of each stage, where its learning rate falls to 0; 0 in all but the last run")
    add("--compile", dest="compiled", action="store_true", help="run the UNet through torch.compile")
    add("--pictures", type=int, help="images for the evaluation (default 90); 0 leaves it out")
    add("--figures", type=Path, help="folder of the evaluation's images and the plot of the logs (default: --state)")
    # fmt: on
    given = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    if given["size"] == "auto":
        given["size"] = "small" if given["device"] == "cpu" else "large"
    try:
        choose_device(given["device"])
        work = recipe.Recipe(**given)
    except ValueError as error:
        parser.error(str(error))
    recipe.run(work)


if __name__ == "__main__":
    main()
