"""FLUX.2: hidden states of a language model, a transformer with joint attention over packed latents.

Klein has an unconditional prediction. A distilled Klein has no guidance. In the dev model, guidance is an input.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Prompts, Settings, chat_start, read_chat
from .flux import TEXT_LENGTH, Flux, text_first


class Flux2(Flux):
    name = "FLUX.2"
    pipelines = ("Flux2KleinPipeline", "Flux2Pipeline")
    settings = Settings(steps=50, skip=5, guidance=6.0, sampling_guidance=4.0)

    def settings_of(self, pipe: Any) -> Settings:
        if pipe.config.get("is_distilled"):
            return replace(self.settings, steps=4, skip=0, guidance=1.0, sampling_guidance=1.0)
        return self.settings

    def guided(self, pipe: Any) -> bool:
        return pipe.config.get("is_distilled") is False  # only Klein has this entry

    def timing(self, pipe: Any, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """The pipeline's own: even sigmas, with a shift that was fitted to the image's size and the steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        shift = compute_empirical_mu((size[0] // 2) * (size[1] // 2), steps)
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": shift}

    def latent_scale(self, pipe: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
        """From the mean and the variance of each channel of the 2 x 2 patches, which the autoencoder stores."""
        norm = pipe.vae.bn
        parts = norm.running_mean, 1 / (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        one_patch = (pipe._unpatchify_latents(part.float()[None, :, None, None]) for part in parts)
        shift, scale = (part.repeat(1, 1, height // 2, width // 2) for part in one_patch)
        return shift, scale

    def text_room(self, pipe: Any) -> tuple[Any, int]:
        # the tokenizer of dev is inside a processor
        tokenizer = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)
        return tokenizer, TEXT_LENGTH - self._start(pipe)

    def text_offset(self, pipe: Any) -> int:
        tokenizer, _ = self.text_room(pipe)
        if tokenizer.padding_side != "right":
            raise NotImplementedError(
                "the tokenizer pads on the left, so a token has no fixed position in the text, and its attention map "
                "cannot be recorded"
            )
        return self._start(pipe) - tokenizer.num_special_tokens_to_add()

    def _start(self, pipe: Any) -> int:
        """The index of a prompt's first token in the chat template of the pipeline."""
        if "is_distilled" in pipe.config:
            return chat_start(lambda prompt: read_chat(pipe.tokenizer, prompt, enable_thinking=False))
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        read = lambda prompt: pipe.tokenizer.apply_chat_template(
            format_input([prompt], pipe.system_message), tokenize=True, return_dict=True
        )
        return chat_start(lambda prompt: read(prompt)["input_ids"][0])

    def encode_prompts(self, pipe: Any, prompts: Sequence[str]) -> Prompts:
        text, _ = pipe.encode_prompt(list(prompts), pipe._execution_device, max_sequence_length=TEXT_LENGTH)
        return Prompts(text)

    def predict(self, pipe: Any, x_t: Tensor, timestep: Tensor, prompts: Prompts) -> Tensor:
        patches = pipe._patchify_latents(x_t)
        ids = torch.zeros(prompts.text.shape[1], 4, device=x_t.device)
        ids[:, 3] = torch.arange(len(ids)) % TEXT_LENGTH  # each of several texts starts at 0
        out = pipe.transformer(
            hidden_states=pipe._pack_latents(patches),
            timestep=timestep.expand(len(x_t)) / 1000,
            guidance=prompts.guidance,
            encoder_hidden_states=prompts.text,
            txt_ids=ids,
            img_ids=pipe._prepare_latent_ids(patches).to(x_t.device),
            joint_attention_kwargs=text_first(prompts, x_t.dtype),
        ).sample
        return pipe._unpatchify_latents(out.mT.reshape(patches.shape))
