"""A LoRA per style: turns a pipeline's loaded adapters on and off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn


def check_adapters(pipe: DiffusionPipeline, loras: Sequence[str | None], n: int) -> tuple[str | None, ...]:
    """Checks a list of n names of loaded adapters, where None stands for no adapter.

    Args:
        pipe: the pipeline, after `load_lora_weights`.
        loras: what the user passed.
        n: the number of styles.

    Returns:
        The n names.

    Raises:
        TypeError: `loras` is not a list.
        ValueError: another number of names, a name that is not loaded, or fused adapters.
    """
    if isinstance(loras, str) or not isinstance(loras, Sequence):
        raise TypeError(f"loras must be a list with one name per style, got {loras!r}")
    if len(loras) != n:
        raise ValueError(f"loras must have one name for each of the {n} styles, got {len(loras)}")
    loaded = sorted({each for names in pipe.get_list_adapters().values() for each in names})
    for i, each in enumerate(loras):
        if each is not None and each not in loaded:
            raise ValueError(
                f"loras[{i}] must be None or the name of a loaded adapter, one of {loaded}; got {each!r}. "
                "model.pipe.load_lora_weights(file, adapter_name=...) loads one"
            )
    if any(layer.merged for layer in _layers(pipe)):
        raise ValueError("loras cannot be switched while they are fused; call model.pipe.unfuse_lora() first")
    return tuple(loras)


@contextmanager
def switched_adapter(pipe: DiffusionPipeline, name: str | None) -> Iterator[None]:
    """Turns on one adapter, and all others off, while the block runs. Their strengths do not change.

    When the block ends, even with an error, the same adapters are active as before it.

    Args:
        pipe: the pipeline, after `load_lora_weights`.
        name: of the adapter; None turns all off.
    """
    layers = _layers(pipe)
    before = [
        (
            layer,
            list(layer.active_adapters),
            layer.disable_adapters,
            [p.requires_grad for p in layer.parameters()],
        )
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter([name])
        yield
    finally:
        for layer, active, disabled, learned in before:
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
            for parameter, requires_grad in zip(layer.parameters(), learned, strict=True):
                parameter.requires_grad_(requires_grad)


def _layers(pipe: DiffusionPipeline) -> list[Any]:
    """All layers of the pipeline's networks that carry adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return [layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer)]
