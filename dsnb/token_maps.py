"""Attention maps of the tokens of a prompt: sums that are recorded while a network runs, and read as images and masks.

There is one sum for each layer, part of the denoising, prompt, head group and token, so the size does not grow with the
steps. `attention_maps.record_attention` records them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks
from .attention import token_sizes
from .images import LARGEST_SIDE
from .kernels import AttentionPlan, attention_with_maps
from .masks import Mask, from_weights
from .models import Model, encode_prompts, written_out

Layers = Callable[[str], bool] | Collection[str] | None


class AttentionMaps:
    """What `record_attention` yields: `heat` reads a map, and `mask` makes a mask from it."""

    def __init__(
        self, model: Model, prompts: str | Sequence[str], size: tuple[int, int], groups: int, buckets: int
    ):
        given = [prompts] if isinstance(prompts, str) else checks.texts("prompts", prompts)
        if not given:
            raise ValueError("prompts is empty; expected at least one")
        self.size, self.groups = checks.size("size", size), groups
        self.buckets = checks.integer("buckets", buckets, 1)
        self.layers: dict[str, tuple[int, int]] = {}  # the layers recorded so far, and their height and width
        self._tokenizer, room = model.family.text_room(model.pipe)
        self.prompts = [written_out(model.pipe, prompt, self._tokenizer) for prompt in given]
        length = room + self._tokenizer.num_special_tokens_to_add()
        options = {"truncation": True, "max_length": length, "return_offsets_mapping": True}
        read = [self._tokenizer(prompt, **options) for prompt in self.prompts]
        self._ids = [each.input_ids for each in read]
        texts: dict[tuple[int, ...], str] = {}
        for prompt, ids in zip(self.prompts, self._ids, strict=True):
            other = texts.setdefault(tuple(ids), prompt)
            if other != prompt:
                raise ValueError(
                    f"prompts {other!r} and {prompt!r} have the same tokens, so their maps cannot be told apart; "
                    "leave one of them out"
                )
        # the first and the last character of each token
        self._spans: list[list[tuple[int, int]]] = [each.offset_mapping for each in read]
        self.text_offset = model.family.text_offset(model.pipe)
        self._embedded = encode_prompts(model, given).text.float()
        self._tolerance = max(1e-3, 16 * torch.finfo(model.dtype).eps)  # rounding depends on the batch
        self._trained = model.scheduler.config.num_train_timesteps
        self._time_unit = model.family.time_unit
        self._sizes = token_sizes(*(side // model.family.patch for side in self.size))
        self._longest = max(map(len, self._ids))
        self._sums: dict[str, Tensor] = {}  # layer -> (buckets, prompts, groups, T, tokens)
        self._counts: dict[str, Tensor] = {}  # layer -> (buckets, prompts), rows added to each
        self._times: dict[int, tuple[int, int]] = {}  # bucket -> the first and the last timestep
        self._rows: list[int | None] = []  # the prompt of each row of the present call
        self._buckets: list[int] = []  # the bucket of each row
        self._contexts: Tensor | None = None

    @property
    def steps(self) -> dict[int, tuple[int, int]]:
        """The recorded parts of the denoising, in order: bucket -> its first and last timestep."""
        return {bucket: self._times[bucket] for bucket in sorted(self._times)}

    @property
    def positions(self) -> int:
        """The number of positions of the layers with the highest resolution."""
        return max(self._sizes)

    @property
    def nbytes(self) -> int:
        """Size of all sums in bytes."""
        return sum(sums.nbytes for sums in self._sums.values())

    def tokens(self, prompt: int = 0) -> list[str]:
        """A prompt's tokens as texts, with the start and end tokens. `heat` takes their indices.

        Args:
            prompt: the index of the prompt.

        Returns:
            One text per token: its characters in the prompt, without spaces. Tokens that are parts of one character
            all have it.

        Raises:
            ValueError: there is no such prompt.
            TypeError: `prompt` is not a whole number.
        """
        text, spans = self.prompts[self._prompt(prompt)], self._spans[prompt]
        names = self._tokenizer.convert_ids_to_tokens(self._ids[prompt])
        # a name may hold marks or bytes, so it is used only for the start and end, which have no characters
        shown = [text[a:b].strip() if a < b else name for name, (a, b) in zip(names, spans, strict=True)]
        # T5's mark of a space has the characters of the next token
        return ["" if name == "\u2581" else each for name, each in zip(names, shown, strict=True)]

    def words(self, prompt: int = 0) -> dict[str, list[int]]:
        """The words of a prompt that have a map.

        Args:
            prompt: the index of the prompt.

        Returns:
            Word -> the indices of its tokens, in the prompt's order.

        Raises:
            ValueError: there is no such prompt.
            TypeError: `prompt` is not a whole number.
        """
        text = self.prompts[self._prompt(prompt)]
        found = {word: self._find(word, prompt) for word in re.findall(r"\w+", text.lower())}
        return {word: where for word, where in found.items() if where}

    def heat(
        self,
        word: str | int | Sequence[int],
        *,
        prompt: int = 0,
        layers: Layers = None,
        steps: int | Sequence[int] | None = None,
        group: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """How much each position attends to a word. In a UNet, the maps of all tokens and the padding add up to 1.

        Args:
            word: a word or phrase of the prompt, or indices of tokens. The maps of its tokens are added.
            prompt: the index of the prompt.
            layers: names of the layers to average, or a function of a name that chooses them; default all.
            steps: the buckets of the denoising; default all.
            group: the group of heads; default all.
            size: height and width of the result; default those of the layer with the highest resolution. All maps are
                resized to it bilinearly.

        Returns:
            (H, W) in [0, 1].

        Raises:
            ValueError: something that was not recorded; the message lists what was.
            TypeError: a parameter of a wrong type.
        """
        prompt = self.prompts.index(self.prompts[self._prompt(prompt)])  # equal prompts have one map
        where = self._where(word, prompt)
        if not self._counts or not any(counts[:, prompt].any() for counts in self._counts.values()):
            raise ValueError(
                f"nothing was recorded for prompt {prompt}, {self.prompts[prompt]!r}: "
                "call the UNet with it inside the block"
            )
        buckets = self._which("steps", steps, list(self.steps))
        names = choose_layers(self.layers, layers)
        finest = max((self.layers[name] for name in names), key=lambda s: s[0] * s[1])
        size = finest if size is None else checks.size("size", size, high=LARGEST_SIDE)
        names = [name for name in names if self._counts[name][buckets, prompt].any()]
        if not names:
            raise ValueError(
                f"nothing was recorded for prompt {prompt} in these layers and steps; leave one of them out"
            )
        parts = self._which("group", group, list(range(self.groups)))
        total = torch.zeros(1, 1, *size)
        for name in names:
            sums = self._sums[name][buckets, prompt].sum(0)[parts].mean(0)[:, where].sum(-1).float().cpu()
            mean = sums / self._counts[name][buckets, prompt].sum().clamp(min=1)
            mean = mean.reshape(1, 1, *self.layers[name])
            total += F.interpolate(mean, size, mode="bilinear", align_corners=False)
        return (total[0, 0] / len(names)).clamp(0, 1)

    def mask(
        self,
        word: str | int | Sequence[int],
        *,
        threshold: float = 0.5,
        sharpness: float = 10.0,
        **options: Any,
    ) -> Mask:
        """A mask of two styles: the first where the attention to a word is high, the second elsewhere.

        The map is scaled to [0, 1]. The first weight is then 1 / (1 + exp(-sharpness (map - threshold))).

        Args:
            word: as for `heat`.
            threshold: the value of the scaled map, from 0 to 1, at which both styles have the weight 1/2.
            sharpness: of the border, above 0.
            **options: as for `heat`.

        Returns:
            The mask.

        Raises:
            ValueError: as for `heat`, or the map has the same value everywhere.
            TypeError: a parameter of a wrong type.
        """
        threshold = checks.number("threshold", threshold, 0, 1)
        sharpness = checks.number("sharpness", sharpness, above=0)
        heat = self.heat(word, **options)
        low, high = heat.min(), heat.max()
        if not high > low:
            raise ValueError(
                f"the map of {word!r} is {low:.3g} everywhere and gives no mask; choose other layers or steps"
            )
        first = torch.sigmoid(sharpness * ((heat - low) / (high - low) - threshold))
        return from_weights(torch.stack([first, 1 - first]))

    # Reading

    def _prompt(self, prompt: int) -> int:
        return checks.integer("prompt", prompt, 0, len(self.prompts) - 1)

    def _find(self, word: str, prompt: int) -> list[int]:
        """Indices of all tokens of the word, wherever the prompt has it as a whole word."""
        if not word.strip():
            return []
        pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
        found = [match.span() for match in re.finditer(pattern, self.prompts[prompt], re.IGNORECASE)]
        inside = lambda start, end: start < end and any(start < b and a < end for a, b in found)
        return [i for i, span in enumerate(self._spans[prompt]) if inside(*span)]

    def _where(self, word: str | int | Sequence[int], prompt: int) -> list[int]:
        if isinstance(word, str):
            where = self._find(word, prompt)
            if not where:
                raise ValueError(f"word must be one of {', '.join(self.words(prompt))}; got {word!r}")
            return where
        last, given = len(self._ids[prompt]) - 1, _as_list(word)
        try:
            where = list(dict.fromkeys(checks.integer("word", index, 0, last) for index in given))
        except (TypeError, ValueError):
            where = []
        if not where:
            raise ValueError(f"word must be a word, or indices of tokens from 0 to {last}; got {word!r}")
        return where

    def _which(self, name: str, given: int | Sequence[int] | None, there: list[int]) -> list[int]:
        chosen = there if given is None else [checks.integer(name, each) for each in _as_list(given)]
        if not chosen or not set(chosen) <= set(there):
            raise ValueError(f"{name} must be among {there}, got {given}")
        return chosen

    # Recording

    @torch.compiler.disable
    def next_call(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A hook before each UNet call: reads the timestep and finds the prompt of each of its rows."""
        self._rows = self._match(args[2] if len(args) > 2 else kwargs["encoder_hidden_states"])
        given = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"])
        self._buckets = []
        for given_time in given.flatten().expand(len(self._rows)).tolist():
            time = round(given_time * self._time_unit)
            progress = max(0.0, 1 - (time + 1) / self._trained)
            bucket = min(int(progress * self.buckets), self.buckets - 1)
            first, last = self._times.get(bucket, (time, time))
            self._times[bucket] = max(first, time), min(last, time)
            self._buckets.append(bucket)

    def _match(self, contexts: Tensor) -> list[int | None]:
        """Which of the prompts each text embedding (B, L, D) is, if any."""
        if contexts.shape[1] != self._embedded.shape[1]:
            raise NotImplementedError(
                "method 'joint' reads all texts in one row, which cannot be recorded; use 'epsilon'"
            )
        norms = self._embedded.norm(dim=-1)
        gaps = (contexts.float()[:, None] - self._embedded).norm(dim=-1) / norms.clamp(min=norms.mean() / 100)
        nearest = gaps.amax(-1).min(1)  # over the tokens, since similar texts differ in few of them
        near = nearest.values <= self._tolerance
        return [i if ok else None for i, ok in zip(nearest.indices.tolist(), near.tolist(), strict=True)]

    @torch.compiler.disable
    def add_plain(self, layer: str, query: Tensor, keys: Tensor, values: Tensor, first: int = 0) -> Tensor:
        """Computes and records the attention of each row to its own text.

        Args:
            layer: the layer's name.
            query: (B, heads, T, d).
            keys, values: (B, heads, L, d).
            first: the index of the text's first key.

        Returns:
            (B, heads, T, d).
        """
        out, maps = self._attend(query, keys, values, first)
        each = list(zip(self._buckets, self._rows, strict=True))
        for bucket, prompt in set(each):
            if prompt is not None:
                rows = [row for row, one in enumerate(each) if one == (bucket, prompt)]
                self._add(layer, bucket, prompt, maps[:, rows].sum(1), len(rows))
        return out

    @torch.compiler.disable
    def add_blended(
        self, layer: str, query: Tensor, keys: Tensor, values: Tensor, contexts: Tensor, plan: AttentionPlan
    ) -> None:
        """Records each prompt's attention in an `attention.BlendProcessor`, times its weight in the plan.

        Args:
            layer: the layer's name.
            query: (B, heads, T, d).
            keys, values: of the P prompts (P, heads, L, d).
            contexts: the prompts' embeddings (P, L, D).
            plan: the weights, and the role of each row.
        """
        if contexts is not self._contexts:
            self._contexts, self._texts = contexts, self._match(contexts)
        # rows and prompt -> maps; several texts may belong to one prompt
        found: dict[tuple[int, int, int], Tensor] = {}
        for start, stop, role, texts, _ in plan.spans:
            for i in texts:
                prompt, spread = self._texts[i], (stop - start, -1, -1, -1)
                if prompt is not None:
                    part = query[start:stop], keys[i : i + 1].expand(spread), values[i : i + 1].expand(spread)
                    maps = self._attend(*part, 0)[1] * plan.weights[role, i][:, None]
                    key = start, stop, prompt
                    found[key] = found[key] + maps if key in found else maps
        for (start, stop, prompt), maps in found.items():
            self._add(layer, self._buckets[start], prompt, maps.sum(1), stop - start)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Attention (B, heads, T, d), and its maps (groups, B, T, tokens), means over each group."""
        split = [x.tensor_split(self.groups, 1) for x in (query, keys, values)]
        both = [attention_with_maps(q, k, v, first, self._longest) for q, k, v in zip(*split, strict=True)]
        return torch.cat([out for out, _ in both], 1), torch.stack([maps for _, maps in both])

    def _add(self, layer: str, bucket: int, prompt: int, maps: Tensor, rows: int) -> None:
        """maps (groups, T, tokens), summed over `rows` rows of the batch."""
        if layer not in self._sums:
            if maps.shape[1] not in self._sizes:
                raise ValueError(
                    f"a cross-attention with {maps.shape[1]} positions does not fit latents halved as "
                    f"{list(self._sizes.values())}; pass `size` as the height and width of the UNet's latents"
                )
            self.layers[layer] = self._sizes[maps.shape[1]]
            self._sums[layer] = maps.new_zeros(self.buckets, len(self.prompts), *maps.shape)
            self._counts[layer] = torch.zeros(self.buckets, len(self.prompts))
        self._sums[layer][bucket, prompt] += maps
        self._counts[layer][bucket, prompt] += rows


def _as_list(given: Any) -> list[Any]:
    """One index or several. A tensor without dimensions is one, although it has the methods of an iterable."""
    return list(given) if isinstance(given, Iterable) and getattr(given, "ndim", 1) != 0 else [given]


def choose_layers(names: Collection[str], layers: Layers) -> list[str]:
    """Chooses layers.

    Args:
        names: of all layers.
        layers: a function of the name, one name, or some of the names; None for all.

    Returns:
        The chosen names.

    Raises:
        ValueError: an unknown name, or no layer is chosen.
        TypeError: neither a function nor names.
    """
    layers = [layers] if isinstance(layers, str) else layers
    if not (layers is None or callable(layers) or isinstance(layers, Collection)):
        raise TypeError(f"layers must be names of layers, or a function of a name; got {layers!r}")
    if layers is not None and not callable(layers) and not set(layers) <= set(names):
        raise ValueError(f"layers has {sorted(set(layers) - set(names))}; expected names among {list(names)}")
    chosen = [n for n in names if layers is None or (layers(n) if callable(layers) else n in layers)]
    if not chosen:
        raise ValueError(f"layers chooses none of {list(names)}")
    return chosen
