"""Cross-attention interpolation: in every cross-attention, sum_i M_i softmax(Q K_i^T / sqrt(d)) V_i.

`blend_cross_attention` puts processors into a diffusers UNet and takes them out again. Self-attention is left alone:
cutting it along the mask would give two unrelated images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from .kernels import AttentionPlan, blend_attention, make_plan
from .masks import Mask
from .models import network_lock, refuse_ip_adapter


class Blend:
    """What the processors of one block share: the mask's pyramid, and which row of the batch gets which mix.

    Prompt 0 is the unconditional one. A role is a weight map over all prompts: role 0 is prompt 0 alone, role 1 the
    mask's mix of prompts 1..N, role 1 + i prompt i alone.
    """

    def __init__(self, mask: Mask, size: tuple[int, int], levels: set, sampling: str, device: torch.device):
        self._mask, self._sampling, self._device = mask, sampling, device
        self._sizes = token_sizes(*size)
        self._used = [tokens for level, tokens in enumerate(self._sizes) if level in levels]
        self._progress = 0.0
        self._rows: tuple[int, ...] = ()
        self._plans: dict[tuple, AttentionPlan] = {}

    def at(self, progress: float, rows: Sequence[int]) -> None:
        """Called before each UNet call: the progress in [0, 1) of the denoising, and the role of each row.

        The plans are made here rather than at first use, so that a compiled UNet finds them ready.
        """
        if self._mask.timed and progress != self._progress:
            self._plans.clear()
        self._progress, self._rows = progress, tuple(rows)
        for tokens in self._used:
            self.plan(len(self._rows), tokens)

    def plan(self, batch: int, tokens: int) -> AttentionPlan:
        """Weights (roles, prompts, tokens) and the role of each row (batch,), as the kernels want them."""
        if len(self._rows) != batch:
            raise ValueError(
                f"the UNet was called with {batch} rows, but the roles {self._rows} were announced"
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
        mask = self._mask.weights(*self._sizes[tokens], self._progress, self._sampling).flatten(1)
        weights = torch.zeros(len(mask) + 2, len(mask) + 1, tokens)
        weights[0, 0] = 1
        weights[1, 1:] = mask
        for i in range(1, len(mask) + 1):
            weights[1 + i, i] = 1
        return weights


class BlendProcessor:
    """Stands in for one cross-attention's processor; the text keys and values are projected once, here."""

    def __init__(self, attn: Attention, contexts: Tensor, blend: Blend, passes: Sequence[float] = (1.0,)):
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).contiguous()
        with torch.no_grad():
            self.keys, self.values = heads(attn.to_k(contexts)), heads(attn.to_v(contexts))
        self.contexts, self.blend, self.passes = contexts, blend, passes
        self.watch = getattr(attn.processor, "watch", None)  # of a recorder, see `attention_maps`

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
                "a cross-attention was given an attention mask, which cannot be blended"
            )
        batch, tokens, _ = hidden_states.shape
        plan = self.blend.plan(batch, tokens)
        mixed = hidden_states
        for factor in self.passes:
            query = attn.to_q(mixed).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            if self.watch is not None and mixed is hidden_states:  # the first pass is what is watched
                self.watch(query, self.keys, self.values, self.contexts, plan)
            answer = blend_attention(query, self.keys, self.values, plan)
            answer = answer.transpose(1, 2).flatten(2)
            mixed = answer if factor == 1 else torch.lerp(mixed, answer, factor)
        out = attn.to_out[1](attn.to_out[0](mixed))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


@contextmanager
def blend_cross_attention(
    unet: UNet2DConditionModel,
    contexts: Tensor,
    mask: Mask,
    size: tuple[int, int],
    *,
    layers: Callable[[str], bool] | None = None,
    passes: Sequence[float] = (1.0,),
    sampling: str = "area",
) -> Iterator[Blend]:
    """Mixes the prompts of `contexts` by the mask in the UNet's cross-attentions while the block runs.

    Args:
        unet: the UNet.
        contexts: (1 + N, L, D) text embeddings, the unconditional one first.
        mask: of N styles.
        size: height and width of the latents.
        layers: chooses layers by name, e.g. `lambda name: name.startswith("up_blocks")`. The others keep the
            `encoder_hidden_states` of their row.
        passes: a weight f per pass. Each pass takes the result of the last one as its query,
            h <- f O(Q(h)) + (1 - f) h; (1.0,) is plain attention.
        sampling: of the mask, as for `Mask.weights`.

    Yields:
        The blend. Call `blend.at(progress, rows)` before each UNet call, to say what each row is. When the block ends,
        the UNet has its own processors again.

    Raises:
        RuntimeError: the UNet is hooked already.
        ValueError: the number of prompts is not that of the mask.
        NotImplementedError: attention that cannot be blended.
    """
    if len(contexts) != mask.n + 1:
        raise ValueError(
            f"the mask has {mask.n} styles, so {mask.n + 1} contexts are needed; got {len(contexts)}"
        )
    passes = tuple(float(factor) for factor in passes)
    if not passes or not all(0 <= factor <= 1 for factor in passes):
        raise ValueError(f"passes must be one weight from 0 to 1 or more of them, got {passes}")
    names = [n for n in cross_attention_layers(unet) if layers is None or layers(n)]
    if not names:
        raise ValueError("layers chooses no cross-attention of this UNet")
    with network_lock(unet):
        check_hookable(unet, names, watched=True)
        levels = {layer_level(name, len(unet.config.down_block_types)) for name in names}
        blend = Blend(mask, size, levels, sampling, contexts.device)
        ours = {name: BlendProcessor(unet.get_submodule(name), contexts, blend, passes) for name in names}
        with replaced_processors(unet, ours):
            yield blend


@contextmanager
def replaced_processors(unet: UNet2DConditionModel, ours: Mapping[str, Any]) -> Iterator[None]:
    """The attentions of these names have other processors until the block ends, also by an error."""
    ours = {f"{name}.processor": processor for name, processor in ours.items()}
    every = dict(unet.attn_processors)
    before = {name: every[name] for name in ours}
    try:
        unet.set_attn_processor(every | ours)
        yield
    finally:
        unet.set_attn_processor(unet.attn_processors | before)


def cross_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of the UNet's cross-attention modules, in the order they run: down, middle, up."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    names = [name for name in names if unet.get_submodule(name).is_cross_attention]
    order = ("down_blocks", "mid_block", "up_blocks")
    return sorted(names, key=lambda name: order.index(name.split(".")[0]))


def layer_level(name: str, blocks: int) -> int:
    """How often the latents are halved on their way to the attention of this name, given the down blocks."""
    part, index, *_ = name.split(".")
    if part == "mid_block":
        return blocks - 1
    return int(index) if part == "down_blocks" else blocks - 1 - int(index)


def check_hookable(unet: UNet2DConditionModel, names: Sequence[str], watched: bool = False) -> None:
    """Raises unless the named attentions have diffusers' plain processors, which ours stand in for.

    watched: a recorder (`attention_maps`) around the plain ones is welcome too.
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
                f"{name} normalises inside its attention, as no Stable Diffusion 1.x/2.x/XL does"
            )


def token_sizes(height: int, width: int) -> dict[int, tuple[int, int]]:
    """Token count -> (height, width) of each resolution a UNet halves these latents to, rounding up."""
    sizes = {height * width: (height, width)}
    while height > 1 or width > 1:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes[height * width] = (height, width)
    return sizes
