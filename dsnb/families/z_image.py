"""Z-Image: hidden states of a language model, a transformer over one sequence of image and text.

The network makes the positions and masks of its sequence itself, so its attention takes no bias.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .base import FlowFamily, Prompts, Settings, chat_start, read_chat

TEXT_LENGTH = 512  # tokens, as in the pipeline itself


class ZImage(FlowFamily):
    """The guidance s here is the usual one, and the pipeline's `guidance_scale` is s - 1."""

    name = "Z-Image"
    pipelines = ("ZImagePipeline",)
    attention = "plain joint"
    settings = Settings(steps=50, skip=5, guidance=8.5, sampling_guidance=6.0)

    def image_size(self, pipe: Any) -> int:
        return 1024

    def text_room(self, pipe: Any) -> tuple[Any, int]:
        start = chat_start(lambda prompt: read_chat(pipe.tokenizer, prompt, enable_thinking=True))
        return pipe.tokenizer, TEXT_LENGTH - start

    def text_length(self, pipe: Any) -> int:
        return TEXT_LENGTH

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        texts, _ = pipe.encode_prompt(
            list(prompts), pipe._execution_device, False, max_sequence_length=TEXT_LENGTH
        )
        length = torch.tensor([len(text) for text in texts], device=texts[0].device)
        return Prompts(pad_sequence(texts, batch_first=True), length=length)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        """In this network, time goes from noise to image, and the predicted velocity has this direction."""
        whole = [prompts.text.shape[1]] * len(prompts)
        lengths = whole if prompts.length is None else prompts.length.tolist()
        texts = [text[:length] for text, length in zip(prompts.text, lengths, strict=True)]
        out = pipe.transformer(list(x_t[:, :, None]), 1 - timestep.expand(len(x_t)) / 1000, texts).sample
        return -torch.stack(out)[:, :, 0]
