"""The memory that a blend needs, computed from sizes alone; the model may be on the meta device."""

from typing import Any

from torch import nn

from . import checks
from .attention import cross_attention_layers, layer_level, token_sizes
from .methods import methods_of
from .models import Model


def memory_estimate(
    model: Model, size: tuple[int, int], n: int = 2, method: str = "epsilon", batch: int = 1
) -> dict[str, int]:
    """Bytes that a blend needs, without activations, whose size depends on how attention is computed.

    Args:
        model: the model, perhaps on the meta device.
        size: height and width of the images in pixels.
        n: the number of styles, at least 2.
        method: of `methods.blend`.
        batch: the number of images, at least 1.

    Returns:
        Name -> bytes. Each part of the pipeline has its weights under its own name. "latents" is the input of one
        network call in the network's dtype. "keys and values" are those of the prompts, which the methods with
        cross-attention keep for every layer. "bias" is what `regional`, `combined` and `joint` add to the scores;
        `joint` keeps it in float32 and in the network's dtype.

    Raises:
        ValueError: a parameter out of range, or a method that the family does not have.
        TypeError: a parameter of a wrong type.
    """
    checks.instance("model", model, Model, "dsnb.load opens one")
    checks.one_of("method", method, methods_of(model))
    n, batch = checks.integer("n", n, 2), checks.integer("batch", batch, 1)
    factor, patch = model.latent_factor, model.family.patch
    height, width = (side // factor for side in checks.size("size", size, factor * patch))
    item, extra = model.dtype.itemsize, int(model.guided)
    rows = {"epsilon": n + extra, "combined": n + extra, "attention": 2, "regional": 2}.get(method, 1 + extra)
    parts = {name: part for name, part in model.pipe.components.items() if isinstance(part, nn.Module)}
    needed = {
        name: sum(p.nbytes for p in [*part.parameters(), *part.buffers()]) for name, part in parts.items()
    }
    needed["latents"] = rows * batch * model.channels * height * width * item
    length = model.family.text_length(model.pipe)
    if method in ("attention", "regional", "combined"):
        unet: Any = model.unet
        wide = sum(unet.get_submodule(name).to_k.out_features for name in cross_attention_layers(unet))
        needed["keys and values"] = 2 * (n + 1) * length * wide * item
        if method in ("regional", "combined"):
            blocks, tokens = len(unet.config.down_block_types), list(token_sizes(height, width))
            levels = {layer_level(name, blocks) for name in unet.attn_processors}
            needed["bias"] = sum(tokens[level] ** 2 for level in levels if level < len(tokens)) * item
    if method == "joint":
        sequence = (height // patch) * (width // patch) + n * length
        needed["bias"] = sequence**2 * (4 + item)
    return needed
