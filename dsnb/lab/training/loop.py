"""One training loop for all networks: resumable, within a time budget, and the same on any device.

The data of a step depend on (seed, stage, step) alone, so no random state is saved. A run that was killed and resumed
from its last checkpoint does exactly what an uninterrupted run does. The exception is a learning rate that falls with
the time of the training run (`cooldown`).
"""

import copy
import csv
import io
import pickle
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from ...checkpoints import choose_dtype
from ...files import write_whole


@dataclass(frozen=True)
class Plan:
    """How a stage is trained. The learning rate rises over `warmup` steps and, where `cooldown` > 0, falls to
    zero over that fraction of the time budget, so that each training run ends with settled weights."""

    batch: int
    learning_rate: float
    seconds: float = float("inf")  # time budget of this training run
    steps: int = 10**9  # total number of steps, over all training runs
    warmup: int = 200
    cooldown: float = 0.2
    decay: float = 0.999  # of the moving average of the weights
    save_every: float = 300.0  # seconds between checkpoints
    log_every: int = 25
    seed: int = 0


def step_generator(seed: int, stage: str, step: int, device="cpu") -> torch.Generator:
    """The random generator of one step of one stage."""
    value = (seed * 1_000_003 + zlib.crc32(stage.encode())) * 4_000_037 % 2**31 + step
    return torch.Generator(device).manual_seed(value)


def upload(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on the device, copied while the device is still busy with earlier work."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def number_format(device: torch.device | str) -> torch.dtype:
    """The format of the products: bfloat16 where the hardware multiplies it natively, else float32.

    Emulated, a training step in bfloat16 takes over ten times as long as one in float32.
    """
    native = choose_dtype(torch.device(device)) == torch.bfloat16
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device | str):
    """Products in `number_format`; weights and optimiser stay float32."""
    return torch.autocast(
        torch.device(device).type, enabled=number_format(device) == torch.bfloat16, dtype=torch.bfloat16
    )


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` whole or not at all, whenever the run is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: Path, device="cpu") -> dict | None:
    """The state saved at `path`, or None where there is none. Raises ValueError for a damaged file."""
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is damaged; move it away to begin the stage again ({error})"
        ) from None


def log_row(path: Path, row: dict) -> None:
    """Append one row to a CSV table, with a header where the table is new."""
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def drop_rows(path: Path, step: int) -> None:
    """Remove the rows after a step, which no checkpoint kept."""
    if path.is_file():
        rows = pd.read_csv(path)
        write_whole(path, rows[rows.step <= step].to_csv(index=False).encode())


def rate(plan: Plan, step: int, elapsed: float) -> float:
    """The factor on the learning rate at a step, `elapsed` seconds into the training run."""
    warm = min(1.0, (step + 1) / plan.warmup)
    if plan.cooldown <= 0 or plan.seconds == float("inf"):
        return warm
    return warm * min(1.0, max(0.0, 1 - elapsed / plan.seconds) / plan.cooldown)


def fit(
    stage: str,
    network: nn.Module,
    loss: Callable[[nn.Module, int, torch.Generator], tuple[torch.Tensor, dict]],
    plan: Plan,
    folder: Path,
    device: torch.device | str,
    good: Callable[[nn.Module], bool] | None = None,
) -> nn.Module:
    """Train `network` in place until the time or the steps of `plan` are used up.

    The state lives in `folder/stage.pt` and the log in `folder/stage.csv`. A later training run continues both.

    Args:
        stage: the name of the files, and of the random numbers.
        network: the network.
        loss: `loss(network, step, generator)` gives the loss of a step, and numbers to log.
        plan: batch, learning rate and budget.
        folder: of the checkpoint and the log.
        device: of the network.
        good: `good(average)` ends the stage when it is true. It is called on a loaded checkpoint, and after each
            checkpoint during training.

    Returns:
        The moving average of the network's weights.

    Raises:
        FloatingPointError: where the loss or its gradient is not finite. The last checkpoint is kept.
    """
    path, step = Path(folder) / f"{stage}.pt", 0
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimiser = torch.optim.AdamW(network.parameters(), plan.learning_rate, betas=(0.9, 0.99), fused=True)
    state = load_checkpoint(path, device)
    if state is not None:
        network.load_state_dict(state["network"])
        average.load_state_dict(state.get("average", state["network"]))
        if "optimiser" in state:  # exported weights come without one
            optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        if plan.seconds <= 0 or (good is not None and good(average)):
            return average
    ema = EMAModel(average.parameters(), decay=plan.decay, foreach=True)
    ema.optimization_step = step
    Path(folder).mkdir(parents=True, exist_ok=True)
    drop_rows(path.with_suffix(".csv"), step)
    first = step
    start = saved = time.monotonic()

    def check():
        if not torch.isfinite(value + length):
            raise FloatingPointError(
                f"{stage}: the loss is {value.item()} at step {step}, the length of its gradient {length.item()}; "
                f"resume from {path}"
            )

    def record():
        check()
        row = {"step": step, "seconds": round(time.monotonic() - start, 1), "loss": round(value.item(), 5)}
        log_row(path.with_suffix(".csv"), row | {key: round(float(x), 5) for key, x in numbers.items()})
        bar.set_postfix(loss=f"{value.item():.4f}")

    def save():
        check()
        ema.copy_to(average.parameters())
        parts = {"network": network, "average": average, "optimiser": optimiser}
        save_checkpoint(path, {"step": step, **{name: part.state_dict() for name, part in parts.items()}})

    network.train()
    bar = tqdm(initial=step, total=plan.steps if plan.steps < 10**9 else None, desc=stage, mininterval=5)
    try:
        while step < plan.steps and (elapsed := time.monotonic() - start) < plan.seconds:
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * rate(plan, step, elapsed)
            value, numbers = loss(network, step, step_generator(plan.seed, stage, step))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            length = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            step += 1
            ema.step(network.parameters())
            due = time.monotonic() - saved > plan.save_every
            if step % plan.log_every == 0:
                record()
            bar.update()
            if due:
                save()
                if good is not None and good(average):
                    break
                saved = time.monotonic()
    except KeyboardInterrupt:  # no work is lost
        if step > first:
            save()
        raise
    if step > first:
        if step % plan.log_every:
            record()
        save()
    bar.close()
    network.eval()
    return average
