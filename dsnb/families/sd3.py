"""Stable Diffusion 3 and 3.5: two CLIP texts, a T5 text and a pooled vector, a transformer with joint attention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor

from .base import FlowFamily, Prompts, Settings

TEXT_LENGTH = 256  # tokens of T5, as in the pipeline itself


class StableDiffusion3(FlowFamily):
    name = "Stable Diffusion 3/3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    attention = "joint"
    settings = Settings(steps=28, skip=3, guidance=7.0, sampling_guidance=4.5)

    def timing(self, pipe: Any, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """The shift is the scheduler's own, or depends on the size where its configuration says so."""
        if not pipe.scheduler.config.get("use_dynamic_shifting"):
            return {}
        return {"mu": super().timing(pipe, steps, size)["mu"]}

    def text_room(self, pipe: Any) -> tuple[Any, int]:
        if pipe.text_encoder_3 is None:
            return pipe.tokenizer, pipe.tokenizer.model_max_length - 2
        return pipe.tokenizer_3, TEXT_LENGTH - 1

    def text_offset(self, pipe: Any) -> int:
        return 0 if pipe.text_encoder_3 is None else pipe.tokenizer_max_length

    def text_length(self, pipe: Any) -> int:
        return pipe.tokenizer_max_length + TEXT_LENGTH

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        text, _, pooled, _ = pipe.encode_prompt(
            list(prompts), None, None, pipe._execution_device, 1, False, max_sequence_length=TEXT_LENGTH
        )
        return Prompts(text, pooled)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        bias = {} if prompts.bias is None else {"attention_mask": prompts.bias.to(x_t.dtype)}
        return pipe.transformer(
            hidden_states=x_t,
            timestep=timestep.expand(len(x_t)),
            encoder_hidden_states=prompts.text,
            pooled_projections=prompts.pooled,
            joint_attention_kwargs=bias,
        ).sample

    @contextmanager
    def biased(self, pipe: Any) -> Iterator[None]:
        """diffusers' own processor of this family silently ignores attention masks, so it is replaced."""
        before = dict(pipe.transformer.attn_processors)
        if any(type(processor) is not JointAttnProcessor2_0 for processor in before.values()):
            kinds = ", ".join(sorted({type(processor).__name__ for processor in before.values()}))
            raise NotImplementedError(
                f"method 'joint' needs diffusers' plain joint attention, got {kinds}; remove the other processors"
            )
        try:
            pipe.transformer.set_attn_processor(BiasedProcessor())
            yield
        finally:
            pipe.transformer.set_attn_processor(before)


class BiasedProcessor:
    """diffusers' `JointAttnProcessor2_0` for the sequence [image, text], with a bias (S, S) on its scores."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        norm = lambda layer, x: x if layer is None else layer(x)
        q = norm(attn.norm_q, heads(attn.to_q(hidden_states)))
        k = norm(attn.norm_k, heads(attn.to_k(hidden_states)))
        v = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is None:  # the image alone, without a text
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return attn.to_out[1](attn.to_out[0](out))
        text = encoder_hidden_states
        q = torch.cat([q, norm(attn.norm_added_q, heads(attn.add_q_proj(text)))], 2)
        k = torch.cat([k, norm(attn.norm_added_k, heads(attn.add_k_proj(text)))], 2)
        v = torch.cat([v, heads(attn.add_v_proj(text))], 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask).transpose(1, 2).flatten(2)
        image, text = out.split([hidden_states.shape[1], text.shape[1]], 1)
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if attn.context_pre_only else attn.to_add_out(text)
