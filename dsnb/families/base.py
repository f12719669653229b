"""The interface of a family of models, `Family`. Its defaults are those of Stable Diffusion 1 and 2."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Defaults of one model for inversion and decoding. The values here are the source project's, for SD 1.4.

    `guidance` is for decoding an inversion, `sampling_guidance` for drawing from noise. `method_guidance` maps a
    method of `blend` to its default guidance, if that differs from `guidance`.
    """

    steps: int = 99
    skip: int = 10
    eta: float = 0.1
    encoder_guidance: float = 1.0
    guidance: float = 20.0
    sampling_guidance: float = 7.5
    method_guidance: Mapping[str, float] = field(default_factory=dict)

    def guidance_of(self, method: str) -> float:
        """The default guidance scale of a method for an inversion."""
        return self.method_guidance.get(method, self.guidance)


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, as the network reads them: one row per prompt.

    Indexing takes rows, as of a tensor: `prompts[1:]`, `prompts[[0, 2]]`.
    """

    text: Tensor  # (P, L, D), one vector per token
    pooled: Tensor | None = None  # (P, E), one vector per prompt
    guidance: Tensor | None = None  # (P,), for a network with guidance as an input
    bias: Tensor | None = None  # (S, S), added to the scores of every joint attention; the same for all rows
    length: Tensor | None = None  # (P,), the tokens of each row without its padding

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: Any) -> "Prompts":
        take = lambda part: None if part is None else part[rows]
        return Prompts(self.text[rows], take(self.pooled), take(self.guidance), self.bias, take(self.length))

    def __iter__(self) -> Iterator["Prompts"]:
        return (self[[row]] for row in range(len(self)))

    @property
    def valid(self) -> Tensor | None:
        """Which tokens are not padding (P, L), or None if none is padding."""
        if self.length is None:
            return None
        valid = torch.arange(self.text.shape[1], device=self.text.device) < self.length[:, None]
        return None if valid.all() else valid

    def padded(self, length: int) -> "Prompts":
        """These rows, padded with zeros to `length` tokens."""
        _, given, _ = self.text.shape
        every = torch.full((len(self),), given, device=self.text.device)
        text = F.pad(self.text, (0, 0, 0, length - given))
        return replace(self, text=text, length=every if self.length is None else self.length)

    def after(self, first: "Prompts") -> "Prompts":
        """These rows after those of `first`, in its dtype. Raises ValueError for texts of another length or width."""
        rows = self
        if first.length is not None:
            longest = max(first.text.shape[1], rows.text.shape[1])
            first, rows = first.padded(longest), rows.padded(longest)
        join = lambda a, b: None if a is None or b is None else torch.cat([a, b.to(a)])
        for name in ("text", "pooled"):
            one, other = getattr(first, name), getattr(rows, name)
            here, there = (None if part is None else tuple(part.shape[1:]) for part in (one, other))
            if here != there:
                shown = lambda shape: f"of shape (P, {', '.join(map(str, shape))})"
                needed = f"{name} vectors {shown(here)}" if here else f"no {name} vectors"
                got = f"some {shown(there)}" if there else "none"
                raise ValueError(f"prompts must have {needed} for this model, got {got}")
        if rows.pooled is not None and len(rows.pooled) != len(rows.text):
            raise ValueError(
                f"prompts has {len(rows.text)} rows of text and {len(rows.pooled)} pooled vectors; expected one each"
            )
        text, pooled = torch.cat([first.text, rows.text.to(first.text)]), join(first.pooled, rows.pooled)
        return Prompts(text, pooled, length=join(first.length, rows.length))

    def repeat(self, batch: int) -> "Prompts":
        """Each row repeated `batch` times, the copies together, for a batch of images per prompt."""
        return self[torch.arange(len(self)).repeat_interleave(batch).to(self.text.device)]


class Family:
    """One family of pipelines. It has no state; every method gets the pipeline as `pipe`.

    A subclass overrides what differs from Stable Diffusion 1 and 2. Latents are (B, C, h, w).
    """

    name: str
    pipelines: tuple[str, ...]  # names of diffusers' pipeline classes
    network = "unet"  # the component that predicts
    attention = "cross"  # of the image to the text: "cross", "joint", or "plain joint", which takes no bias
    linear = True  # whether guidance is u + s (c - u), which the sampler merges with the mask in one pass
    patch = 1  # latents are read in patches of patch x patch
    text_first = False  # whether joint attention has the text before the image
    time_unit = 1  # the network's time input, times this, is the schedule's timestep
    settings = Settings()

    def settings_of(self, pipe: Any) -> Settings:
        """Defaults of one pipeline, for a model without `dsnb.json`."""
        return self.settings

    def check(self, pipe: Any) -> None:
        """Raises ValueError or NotImplementedError for a pipeline that would give wrong images."""
        self.check_scheduler(pipe.scheduler)

    def check_scheduler(self, scheduler: Any) -> None:
        """Raises ValueError for a scheduler that does not suit the family; a user may replace the scheduler."""

    def guided(self, pipe: Any) -> bool:
        """Whether guidance uses an unconditional prediction. If not, it is an input of the network, or missing."""
        return True

    def channels(self, pipe: Any) -> int:
        """Channels of the latents."""
        return getattr(pipe, self.network).config.in_channels

    def image_size(self, pipe: Any) -> int | tuple[int, ...]:
        """Height and width of the images the model was trained on, or one number for both."""
        size, factor = getattr(pipe, self.network).config.sample_size, pipe.vae_scale_factor
        return size * factor if isinstance(size, int) else tuple(side * factor for side in size)

    def timing(self, pipe: Any, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """Arguments of the scheduler's `set_timesteps` besides the steps, for latents of this height and width."""
        return {}

    @contextmanager
    def autoencoder(self, pipe: Any) -> Iterator[Any]:
        """The autoencoder, in the dtype in which it computes while the block runs."""
        yield pipe.vae

    def encode_image(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> the autoencoder's latents (B, C, h, w), before shift and scale."""
        encoded = pipe.vae.encode(pixels)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def decode_latents(self, pipe: Any, latents: Tensor) -> Tensor:
        """The autoencoder's latents -> pixels; the reverse of `encode_image`."""
        return pipe.vae.decode(latents).sample

    def latent_scale(self, pipe: Any, height: int, width: int) -> tuple[Any, Any]:
        """Shift and scale: the network's latents are (those of the autoencoder - shift) * scale."""
        return pipe.vae.config.get("shift_factor") or 0.0, pipe.vae.config.scaling_factor

    def text_room(self, pipe: Any) -> tuple[Any, int]:
        """The tokenizer with the longest text, and the most tokens that a prompt may have."""
        return pipe.tokenizer, pipe.tokenizer.model_max_length - 2

    def text_offset(self, pipe: Any) -> int:
        """Where the tokens of that tokenizer begin in an encoded prompt."""
        return 0

    def text_length(self, pipe: Any) -> int:
        """Tokens of one encoded prompt."""
        return pipe.tokenizer.model_max_length

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        """Prompts -> one row each, by the pipeline's own `encode_prompt`."""
        raise NotImplementedError

    @contextmanager
    def biased(self, pipe: Any) -> Iterator[None]:
        """While the block runs, the network's joint attentions add `Prompts.bias` to their scores."""
        yield

    def guide(self, uncond: Tensor, cond: Tensor, guidance: Tensor | float) -> Tensor:
        """The guided output of the network, as the pipeline itself computes it."""
        return uncond + guidance * (cond - uncond)

    def tell_guidance(self, pipe: Any, guidance: Tensor) -> Tensor | None:
        """The guidance (P,) as an input of the network, or None. Raises ValueError if the model has no guidance."""
        return None

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        """x_t (B, C, h, w) in the network's dtype, and B rows of prompts -> the network's output, like x_t."""
        raise NotImplementedError


class FlowFamily(Family):
    """A flow-matching family, whose transformer reads latents in patches of 2 x 2."""

    network = "transformer"
    patch = 2

    def image_size(self, pipe: Any) -> int:
        return pipe.default_sample_size * pipe.vae_scale_factor

    def check_scheduler(self, scheduler: Any) -> None:
        kind = type(scheduler).__name__
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(
                f"the scheduler is a {kind}; this family needs a FlowMatchEulerDiscreteScheduler, e.g. "
                "FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)"
            )

    def timing(self, pipe: Any, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """Even sigmas, and a shift that depends on the number of patches, as in most of these pipelines."""
        get = pipe.scheduler.config.get
        few, many = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        least, most = get("base_shift", 0.5), get("max_shift", 1.15)
        patches = (size[0] // self.patch) * (size[1] // self.patch)
        shift = least + (most - least) * (patches - few) / (many - few)
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": shift}


def chat_start(read: Callable[[str], Sequence[int]]) -> int:
    """The index of a prompt's first token in a chat template; `read(prompt)` gives all tokens."""
    both = zip(read(""), read("a"), strict=False)
    return next(i for i, (empty, full) in enumerate(both) if empty != full)


def read_chat(tokenizer: Any, prompt: str, **options: Any) -> Sequence[int]:
    """The tokens of a chat template with the prompt as the user's message, up to the beginning of the answer."""
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options)
    return tokenizer(text).input_ids
