"""Cross-attention interpolation: in every cross-attention, sum_i M_i softmax(Q K_i^T / sqrt(d)) V_i.

`blend_cross_attention` replaces the attention processors of a diffusers UNet while a block runs. It does not change
self-attention: cut along the mask, it would give two unrelated images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from . import checks
from .kernels import AttentionPlan, blend_attention, make_plan
from .masks import Mask
from .models import network_lock, refuse_ip_adapter


class Blend:
    """What the hooked layers share: the mask at each resolution, and the role of each row of the batch.

    A role is a weight per position for each prompt. Prompt 0 is the unconditional one. Role 0 is prompt 0 alone, role 1
    is the mix of prompts 1 to N by the mask, and role 1 + i is prompt i alone.
    """

    def __init__(self, mask: Mask, size: tuple[int, int], levels: set, device: torch.device):
        self._mask, self._device = mask, device
        self._sizes = token_sizes(*size)
        self._used = [tokens for level, tokens in enumerate(self._sizes) if level in levels]
        self._progress = 0.0
        self._rows: tuple[int, ...] = ()
        self._plans: dict[tuple, AttentionPlan] = {}

    def at(self, progress: float, rows: Sequence[int]) -> None:
        """Sets the state for the next UNet call. The plans are made here, so that a compiled UNet finds them ready.

        Args:
            progress: of the denoising, from 0 to below 1.
            rows: the role of each row of the batch.
        """
        if self._mask.timed and progress != self._progress:
            self._plans.clear()
        self._progress, self._rows = progress, tuple(rows)
        for tokens in self._used:
            self.plan(len(self._rows), tokens)

    def plan(self, batch: int, tokens: int) -> AttentionPlan:
        """The plan of the kernels for a layer with this many tokens. Raises ValueError for another number of rows."""
        if len(self._rows) != batch:
            raise ValueError(
                f"rows must be the roles of the {batch} rows of the UNet call, got {self._rows}; "
                "call blend.at(progress, rows) before it"
            )
        key = (self._rows, tokens)
        if key not in self._plans:
            self._plans[key] = make_plan(self._weights(tokens), self._rows, self._device)
        return self._plans[key]

    def _weights(self, tokens: int) -> Tensor:
        if tokens not in self._sizes:
            raise ValueError(
                f"a cross-attention with {tokens} tokens does not fit latents halved as {list(self._sizes.values())}; "
                "pass `size` as the height and width of the latents that the UNet is called with"
            )
        mask = self._mask.weights(*self._sizes[tokens], self._progress).flatten(1)
        weights = torch.zeros(len(mask) + 2, len(mask) + 1, tokens)
        weights[0, 0] = 1
        weights[1, 1:] = mask
        for i in range(1, len(mask) + 1):
            weights[1 + i, i] = 1
        return weights


def split_heads(attn: Attention, x: Tensor) -> Tensor:
    """Queries, keys or values (B, T, heads d) of an attention as (B, heads, T, d)."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def project_out(attn: Attention, mixed: Tensor, hidden_states: Tensor) -> Tensor:
    """The end of a UNet's attention: from the mixed values (B, T, heads d) to its output, shaped like its input."""
    out = attn.to_out[1](attn.to_out[0](mixed))
    if attn.residual_connection:
        out = out + hidden_states
    return out / attn.rescale_output_factor


class BlendProcessor:
    """Replaces the processor of one cross-attention. It computes the text's keys and values once.

    It does so when it is made. If the layer is offloaded, it does so in the first call, when the weights are loaded.
    """

    def __init__(self, attn: Attention, contexts: Tensor, blend: Blend, passes: Sequence[float] = (1.0,)):
        self.contexts, self.blend, self.passes = contexts, blend, passes
        self.watch = getattr(attn.processor, "watch", None)  # of a recorder, see `attention_maps`
        self.ready = False
        if next(attn.to_k.parameters()).device == contexts.device:
            self.read(attn)

    def read(self, attn: Attention) -> None:
        with torch.no_grad():
            self.keys, self.values = (
                split_heads(attn, project(self.contexts)).contiguous() for project in (attn.to_k, attn.to_v)
            )
        self.ready = True

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise NotImplementedError(
                "a cross-attention was given an attention mask, which cannot be blended; call the UNet without it"
            )
        if not self.ready:
            self.read(attn)
        batch, tokens, _ = hidden_states.shape
        plan = self.blend.plan(batch, tokens)
        mixed = hidden_states
        for factor in self.passes:
            query = split_heads(attn, attn.to_q(mixed))
            if self.watch is not None and mixed is hidden_states:  # only the first pass is recorded
                self.watch(query, self.keys, self.values, self.contexts, plan)
            answer = blend_attention(query, self.keys, self.values, plan)
            answer = answer.transpose(1, 2).flatten(2)
            mixed = answer if factor == 1 else torch.lerp(mixed, answer, factor)
        return project_out(attn, mixed, hidden_states)


@contextmanager
def blend_cross_attention(
    unet: UNet2DConditionModel,
    contexts: Tensor,
    mask: Mask,
    size: tuple[int, int],
    *,
    layers: Callable[[str], bool] | None = None,
    passes: Sequence[float] = (1.0,),
) -> Iterator[Blend]:
    """Mixes the prompts by the mask in the UNet's cross-attentions while the block runs.

    Args:
        unet: the UNet.
        contexts: (1 + N, L, D) text embeddings, the unconditional one first.
        mask: of N styles.
        size: height and width of the latents.
        layers: chooses layers by name, e.g. `lambda name: name.startswith("up_blocks")`; default all. The other layers
            use the `encoder_hidden_states` of the UNet call.
        passes: a weight f from 0 to 1 for each pass. A pass computes h <- f O(Q(h)) + (1 - f) h. The first h is the
            layer's input, and O is the mixed attention before the output projection. (1.0,) is plain attention.

    Yields:
        The blend. Call `blend.at(progress, rows)` before each UNet call. When the block ends, the UNet has its own
        processors again.

    Raises:
        RuntimeError: the UNet is hooked already.
        ValueError: a wrong number of contexts, a pass out of range, no layer is chosen, or, in a call of the UNet,
            latents of another size.
        TypeError: a parameter of a wrong type.
        NotImplementedError: attention that cannot be blended.
    """
    checks.instance("contexts", contexts, Tensor, "encode_prompts(model, prompts).text is one")
    checks.instance("mask", mask, Mask, "dsnb.masks.from_weights makes one of an array")
    size, layers = checks.size("size", size), checks.function("layers", layers)
    if len(contexts) != mask.n + 1:
        raise ValueError(
            f"the mask has {mask.n} styles, so {mask.n + 1} contexts are needed; got {len(contexts)}"
        )
    passes = tuple(checks.numbers("passes", passes, low=0, high=1))
    if not passes:
        raise ValueError("passes must be one or more weights from 0 to 1, got none")
    every = cross_attention_layers(unet)
    names = [name for name in every if layers is None or layers(name)]
    if not names:
        raise ValueError(f"layers chooses none of the {len(every)} cross-attentions, such as {every[0]!r}")
    with network_lock(unet):
        check_hookable(unet, names, watched=True)
        levels = {layer_level(name, len(unet.config.down_block_types)) for name in names}
        blend = Blend(mask, size, levels, contexts.device)
        ours = {name: BlendProcessor(unet.get_submodule(name), contexts, blend, passes) for name in names}
        watch = unet.register_forward_pre_hook(partial(refuse_other_size, size), with_kwargs=True)
        try:
            with replaced_processors(unet, ours):
                yield blend
        finally:
            watch.remove()


def refuse_other_size(size: tuple[int, int], _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A hook before each UNet call: raises ValueError for latents of another height and width than `size`."""
    height, width = (args[0] if args else kwargs["sample"]).shape[-2:]
    if (height, width) != tuple(size):
        raise ValueError(
            f"size must be the height and width of the latents, {height} x {width}; got {size[0]} x {size[1]}"
        )


@contextmanager
def replaced_processors(unet: UNet2DConditionModel, ours: Mapping[str, Any]) -> Iterator[None]:
    """Replaces the processors of these attentions until the block ends, even if it ends with an error."""
    ours = {f"{name}.processor": processor for name, processor in ours.items()}
    every = dict(unet.attn_processors)
    before = {name: every[name] for name in ours}
    try:
        unet.set_attn_processor(every | ours)
        yield
    finally:
        unet.set_attn_processor(unet.attn_processors | before)


def cross_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of the UNet's cross-attention modules, in the order in which they run.

    Args:
        unet: a diffusers UNet.

    Returns:
        The names, such as "down_blocks.0.attentions.0.transformer_blocks.0.attn2".
    """
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    names = [name for name in names if unet.get_submodule(name).is_cross_attention]
    order = ("down_blocks", "mid_block", "up_blocks")
    return sorted(names, key=lambda name: order.index(name.split(".")[0]))


def layer_level(name: str, blocks: int) -> int:
    """How often the UNet halves the latents before an attention.

    Args:
        name: of the attention module.
        blocks: the number of the UNet's down blocks.

    Returns:
        The number, from 0 to blocks - 1.
    """
    part, index, *_ = name.split(".")
    if part == "mid_block":
        return blocks - 1
    return int(index) if part == "down_blocks" else blocks - 1 - int(index)


def check_hookable(unet: UNet2DConditionModel, names: Sequence[str], watched: bool = False) -> None:
    """Checks that attentions have diffusers' plain processors, which dsnb's can replace.

    Args:
        unet: a diffusers UNet.
        names: of the attention modules.
        watched: whether the recorder of `attention_maps` is allowed, too.

    Raises:
        RuntimeError: dsnb has hooked one already.
        NotImplementedError: another processor, a normalisation inside the attention, or an IP-Adapter.
    """
    refuse_ip_adapter(unet)
    for name in names:
        attn = unet.get_submodule(name)
        processor = getattr(attn.processor, "plain", attn.processor) if watched else attn.processor
        if type(processor).__module__.startswith("dsnb."):
            raise RuntimeError(f"{name} is hooked already; leave the first block before entering another")
        if type(processor) not in (AttnProcessor, AttnProcessor2_0):
            raise NotImplementedError(
                f"{name} has a {type(processor).__name__}; only diffusers' plain attention can be hooked: undo "
                "attention slicing or the custom processor first (unet.set_default_attn_processor())"
            )
        norms = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
        if any(norm is not None for norm in norms):
            raise NotImplementedError(
                f"{name} normalises inside its attention; only the attention of Stable Diffusion 1, 2 and XL can be "
                "hooked"
            )


def token_sizes(height: int, width: int) -> dict[int, tuple[int, int]]:
    """The resolutions to which a UNet halves latents, rounding up.

    Args:
        height, width: of the latents.

    Returns:
        The number of tokens -> (height, width), the largest first.
    """
    sizes = {height * width: (height, width)}
    while height > 1 or width > 1:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes[height * width] = (height, width)
    return sizes
