"""Regional context: the mask weights group normalisation and self-attention.

With cross-attention interpolation, every position has the right text. Two other kinds of layers still carry a style
across the border: group normalisation uses a mean and deviation over the whole image, and self-attention reads every
position. Here the mask weights both. Nothing is trained. Statistics per region: Yu et al. 2020, "Region Normalization
for Image Inpainting". Statistics as style: Huang & Belongie 2017, "Arbitrary Style Transfer in Real-time".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttentionProcessor
from torch import Tensor, nn

from . import checks
from .attention import (
    check_hookable,
    layer_level,
    project_out,
    refuse_other_size,
    replaced_processors,
    split_heads,
    token_sizes,
)
from .masks import Mask
from .models import network_lock

LEAK = 1e-3  # weight of the positions of other regions in self-attention, so that none has the weight 0


def regional_group_norm(
    x: Tensor, weights: Tensor, groups: int, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Tensor:
    """Group normalisation with statistics per region: y = sum_i M_i (x - mu_i) / sigma_i * gamma + beta.

    mu_i and sigma_i^2 are the mean and variance of each group of channels, weighted by M_i.

    Args:
        x: features (B, C, h, w).
        weights: the mask M (N, h, w), summing to 1 at each position.
        groups: the number of groups, a divisor of C.
        gamma, beta: scale and shift of each channel (C,), or None.
        eps: added to the variance.

    Returns:
        (B, C, h, w). If one style has the weight 1 everywhere, it is plain group normalisation.
    """
    M = weights.flatten(1)  # (N, T)
    each = M / M.sum(1, keepdim=True).clamp(min=1e-12)  # each style's positions, summing to 1
    grouped = x.float().flatten(2).unflatten(1, (groups, -1))  # (B, groups, C / groups, T)
    mean = grouped.mean(2) @ each.T  # (B, groups, N)
    variance = (grouped.square().mean(2) @ each.T - mean.square()).clamp(min=0)
    inverse = (variance + eps).rsqrt()
    y = grouped * (inverse @ M)[:, :, None] - ((mean * inverse) @ M)[:, :, None]
    y = y.flatten(1, 2).unflatten(2, x.shape[2:]).to(x.dtype)
    per_channel = lambda p: p[:, None, None].to(x.dtype)
    y = y if gamma is None else y * per_channel(gamma)
    return y if beta is None else y + per_channel(beta)


def region_bias(weights: Tensor, strength: float) -> Tensor:
    """The bias on the scores of self-attention: kappa log(sum_i M_i(p) M_i(p') + 1/1000), for positions p and p'.

    Args:
        weights: the mask M (N, h, w).
        strength: kappa, at least 0; 0 is plain self-attention.

    Returns:
        (T, T), for T = h w positions.
    """
    M = weights.flatten(1)
    return strength * (M.T @ M + LEAK).log()


class Regions:
    """What the hooked layers share: the mask at each of the UNet's resolutions, and its bias."""

    def __init__(self, mask: Mask, size: tuple[int, int], levels: set[int], strength: float, like: Tensor):
        self._mask, self._strength, self._like = mask, strength, like
        self._sizes = list(token_sizes(*size).values())
        self._attending = [self._sizes[level] for level in levels if level < len(self._sizes)]
        self._weights: dict[tuple[int, int], Tensor] = {}
        self._biases: dict[int, Tensor] = {}
        self._progress: float | None = None
        self.on = True
        self.at(0.0)

    def at(self, progress: float, on: bool = True) -> None:
        """Sets the state for the next UNet call. The tensors are made here, so that a compiled UNet finds them ready.

        Args:
            progress: of the denoising, from 0 to below 1; it matters for timed masks only.
            on: False switches the regional context off for this call.
        """
        self.on = on
        if self._progress is not None and (not self._mask.timed or progress == self._progress):
            return
        self._progress = progress
        for size in self._sizes:
            self._weights[size] = self._mask.weights(*size, progress).to(self._like.device)
        for height, width in self._attending:
            bias = region_bias(self._weights[height, width], self._strength)
            self._biases[height * width] = bias.to(self._like.dtype)

    def weights(self, height: int, width: int) -> Tensor:
        """The mask (N, height, width) at one of the UNet's resolutions."""
        return self._weights[height, width]

    def bias(self, tokens: int) -> Tensor:
        """The bias (tokens, tokens) of self-attention at one of the UNet's resolutions."""
        return self._biases[tokens]


def _loads_itself(layer: nn.Module) -> bool:
    """Whether a hook loads the layer's weights in each call: sequential offloading, or diffusers' group offloading."""
    registry = getattr(layer, "_diffusers_hook", None)
    away = hasattr(layer, "_hf_hook") and any(parameter.is_meta for parameter in layer.parameters())
    return away or bool(registry and registry.get_hook("group_offloading"))


class RegionalNorm(nn.GroupNorm):
    """Replaces a UNet's group normalisation and uses its parameters."""

    def __init__(self, norm: nn.GroupNorm, regions: Regions):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.weight, self.bias, self.regions = norm.weight, norm.bias, regions

    def forward(self, x: Tensor) -> Tensor:
        if not self.regions.on:
            return super().forward(x)
        weights = self.regions.weights(*x.shape[-2:]).to(x.device)  # an offloaded UNet is on another device
        return regional_group_norm(x, weights, self.num_groups, self.weight, self.bias, self.eps)


class RegionalProcessor:
    """Replaces the processor of one self-attention, `plain`, and adds the bias of the regions to its scores."""

    def __init__(self, plain: AttentionProcessor, regions: Regions):
        self.plain, self.regions = plain, regions

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if not self.regions.on:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            raise NotImplementedError(
                "a self-attention was given an attention mask, which regional context cannot use; call the UNet "
                "without it"
            )
        query, key, value = (
            split_heads(attn, project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        bias = self.regions.bias(hidden_states.shape[1]).to(query.device)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return project_out(attn, out.transpose(1, 2).flatten(2), hidden_states)


@contextmanager
def regional_context(
    unet: UNet2DConditionModel,
    mask: Mask,
    size: tuple[int, int],
    *,
    layers: Callable[[str], bool] | None = None,
    strength: float = 1.0,
) -> Iterator[Regions]:
    """Weights group normalisation and self-attention by the mask while the block runs, in every row of the batch.

    `attention.blend_cross_attention` may be entered before or after it, because it hooks other layers.

    Args:
        unet: a diffusers UNet.
        mask: where each style goes.
        size: height and width of the latents.
        layers: chooses layers by name, e.g. `lambda name: name.startswith("up_blocks")`; default all.
        strength: kappa of self-attention, at least 0, see `region_bias`; 0 leaves self-attention plain.

    Yields:
        The regions. Call `regions.at(progress)` before each UNet call. When the block ends, even with an error, the
        UNet has its own layers again.

    Raises:
        RuntimeError: the UNet is hooked already.
        ValueError: `layers` chooses nothing, `strength` is out of range, or, in a call of the UNet, latents of another
            size.
        TypeError: a parameter of a wrong type.
        NotImplementedError: a self-attention with another processor than diffusers' plain one, or a normalisation whose
            weights are offloaded layer by layer.
    """
    strength = checks.number("strength", strength, 0)
    checks.instance("mask", mask, Mask, "dsnb.masks.from_weights makes one of an array")
    size, layers = checks.size("size", size), checks.function("layers", layers)
    unet = getattr(unet, "_orig_mod", unet)  # of a compiled one
    norms = [name for name, module in unet.named_modules() if isinstance(module, nn.GroupNorm)]
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    names = [name for name in names if strength > 0 and not unet.get_submodule(name).is_cross_attention]
    norms, names = ([name for name in each if layers is None or layers(name)] for each in (norms, names))
    if not norms and not names:
        raise ValueError(
            "layers chooses no group normalisation and no self-attention of this UNet; names are such as "
            "'down_blocks.0.resnets.0.norm1'"
        )
    with network_lock(unet):
        if any(isinstance(unet.get_submodule(name), RegionalNorm) for name in norms):
            raise RuntimeError("the UNet is hooked already; leave the first block before entering another")
        check_hookable(unet, names)
        plain = {name: unet.get_submodule(name) for name in norms}
        if any(map(_loads_itself, plain.values())):
            raise NotImplementedError(
                "this UNet's weights are offloaded layer by layer, which regional context cannot use; call "
                "pipe.enable_model_cpu_offload() instead, or use method 'attention', or 'combined' with regional=False"
            )
        levels = {layer_level(name, len(unet.config.down_block_types)) for name in names}
        stored = next(unet.parameters())  # perhaps in another dtype, or offloaded and without data
        like = torch.empty(0, dtype=unet.dtype, device="cpu" if stored.is_meta else stored.device)
        regions = Regions(mask, size, levels, strength, like)
        ours = {name: RegionalProcessor(unet.get_submodule(name).processor, regions) for name in names}
        watch = unet.register_forward_pre_hook(partial(refuse_other_size, size), with_kwargs=True)
        try:
            for name, norm in plain.items():
                _replace(unet, name, RegionalNorm(norm, regions))
            with replaced_processors(unet, ours):
                yield regions
        finally:
            watch.remove()
            for name, norm in plain.items():
                _replace(unet, name, norm)


def _replace(unet: UNet2DConditionModel, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(unet.get_submodule(parent), child, module)
