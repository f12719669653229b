"""Attention maps: how much each position attends to each token, summed up while the network runs.

`record_attention` replaces the attention processors of a diffusers UNet while a block runs. In a transformer with joint
attention, it records the attention from the image to the text. It keeps one sum for each layer, part of the denoising,
prompt, head group and token, so the memory does not grow with the steps.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttentionProcessor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import checks
from .attention import (
    check_hookable,
    cross_attention_layers,
    project_out,
    refuse_other_size,
    replaced_processors,
    split_heads,
)
from .models import Model
from .token_maps import AttentionMaps, Layers, choose_layers

ATTEND = F.scaled_dot_product_attention


@contextmanager
def record_attention(
    model: Model,
    prompts: str | Sequence[str],
    size: tuple[int, int],
    *,
    layers: Layers = None,
    groups: int = 1,
    buckets: int = 10,
) -> Iterator[AttentionMaps]:
    """Records how much each position attends to each token of the prompts, while the block runs.

        with record_attention(model, prompt, trajectory.x_T.shape[-2:]) as maps:
            dsnb.decode(model, trajectory, prompt)
        maps.heat("bear")

    Inside the block, `blend_cross_attention` and all methods of `dsnb.blend` except "joint" work. In a blend, prompt i
    is recorded with its mask, M_i softmax(Q K_i^T / sqrt(d)), which costs one more attention per prompt. In a
    transformer with joint attention, the layers are its blocks, and the image and the whole text share one softmax. A
    UNet under `torch.compile` has a graph break in every recorded layer, so compile it without `fullgraph`.

    Args:
        model: the model whose network is recorded.
        prompts: one text or more. Only rows of a network call with one of these texts are recorded. With several text
            encoders, the tokens are those of T5, or else of the first CLIP.
        size: height and width of the latents.
        layers: names of layers, or a function of a name that chooses them; default all cross-attentions.
        groups: the number of equal groups into which each layer's heads are divided.
        buckets: the number of parts into which the denoising is divided, at least 1.

    Yields:
        The maps. When the block ends, the network has its own processors again.

    Raises:
        RuntimeError: the UNet is hooked already.
        ValueError: `groups`, `buckets` or `size` is out of range, there is no prompt, or no such layer, or two
            different prompts have the same tokens ("A bear" and "a bear" for CLIP).
        TypeError: a parameter of a wrong type.
        NotImplementedError: attention that cannot be recorded, such as method "joint".
    """
    checks.instance("model", model, Model, "dsnb.load opens one")
    if model.family.attention == "plain joint":
        raise NotImplementedError(
            f"attention maps are not there for {model.family.name}, whose texts have no fixed length; use a model of "
            "another family"
        )
    if model.family.attention == "joint":
        with model.lock, _record_joint(model, prompts, size, layers, groups, buckets) as maps:
            yield maps
        return
    unet = model.unet
    names = choose_layers(cross_attention_layers(unet), layers)
    check_hookable(unet, names)
    groups = _equal_groups(groups, math.gcd(*(unet.get_submodule(name).heads for name in names)))
    with model.lock:
        maps = AttentionMaps(model, prompts, size, groups, buckets)
        ours = {name: RecordProcessor(name, unet.get_submodule(name).processor, maps) for name in names}
        before = [partial(refuse_other_size, maps.size), maps.next_call]
        watches = [unet.register_forward_pre_hook(hook, with_kwargs=True) for hook in before]
        try:
            with replaced_processors(unet, ours):
                yield maps
        finally:
            for watch in watches:
                watch.remove()


def _equal_groups(groups: int, heads: int) -> int:
    """Refuses groups of unequal size, because heat maps are the mean of all groups."""
    if heads % checks.integer("groups", groups, 1, heads):
        raise ValueError(f"groups must divide the {heads} heads equally, got {groups}")
    return groups


@contextmanager
def _record_joint(
    model: Model,
    prompts: str | Sequence[str],
    size: tuple[int, int],
    layers: Layers,
    groups: int,
    buckets: int,
) -> Iterator[AttentionMaps]:
    """`record_attention` of a transformer with joint attention: what the image reads of the text in each block."""
    network = model.network
    blocks = [
        name
        for name, _ in network.named_modules()
        if re.fullmatch(r"(single_)?transformer_blocks\.\d+", name)
    ]
    names, heads = choose_layers(blocks, layers), network.config.num_attention_heads
    maps = AttentionMaps(model, prompts, size, _equal_groups(groups, heads), buckets)
    watch = JointWatch(blocks, names, maps, model.family.text_first)
    before = network.register_forward_pre_hook(watch.begin, with_kwargs=True)
    after = network.register_forward_hook(watch.end, always_call=True)
    try:
        with watch:
            yield maps
    finally:
        before.remove()
        after.remove()


class RecordProcessor:
    """Replaces the processor of one cross-attention, `plain`, and records its attention.

    `attention.BlendProcessor` calls `watch` while it replaces this processor.
    """

    def __init__(self, name: str, plain: AttentionProcessor, maps: AttentionMaps):
        self.name, self.plain, self.maps = name, plain, maps

    def watch(self, *seen: Any) -> None:
        self.maps.add_blended(self.name, *seen)

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
                f"{self.name} was given an attention mask, which cannot be recorded; call the UNet without it"
            )
        query = split_heads(attn, attn.to_q(hidden_states))
        key, value = (split_heads(attn, project(encoder_hidden_states)) for project in (attn.to_k, attn.to_v))
        out = self.maps.add_plain(self.name, query, key, value)
        return project_out(attn, out.transpose(1, 2).flatten(2), hidden_states)


class JointWatch(TorchFunctionMode):
    """Records every attention of a transformer that has the image and the text in one sequence.

    diffusers has a processor for each family. All of them call the same function of torch, which is intercepted here.
    """

    def __init__(self, blocks: list[str], names: list[str], maps: AttentionMaps, text_first: bool):
        super().__init__()
        self.blocks, self.names, self.maps, self.text_first = blocks, names, maps, text_first
        self.left: list[str] = []  # blocks that still follow in this call
        self.length = 0  # tokens of the text

    def begin(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.maps.next_call(network, args, kwargs)
        self.left, self.length = list(self.blocks), kwargs["encoder_hidden_states"].shape[1]

    def end(self, *_: Any) -> None:
        self.left = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is ATTEND and self.left:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            positions = given["query"].shape[2] - self.length
            if positions == self.maps.positions:  # not an attention of the image alone
                self._see(positions, given["query"], given["key"], given["value"])
        return function(*args, **kwargs)

    def _see(self, positions: int, query: Tensor, keys: Tensor, values: Tensor) -> None:
        name = self.left.pop(0)
        if name in self.names:
            image = query[:, :, self.length :] if self.text_first else query[:, :, :positions]
            first = self.maps.text_offset + (0 if self.text_first else positions)
            self.maps.add_plain(name, image, keys, values, first)
