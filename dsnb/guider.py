"""The epsilon mask as a guider of diffusers' modular pipelines."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor

from . import checks
from .epsilon import blend_eps, guidance_per_style
from .families import Prompts
from .masks import Mask

TEXT = ("encoder_hidden_states", "prompt_embeds")  # names of the text in modular pipelines
POOLED = ("text_embeds", "pooled_projections")  # and the pooled vectors


class MaskGuider(BaseGuidance):
    """Guidance per style, merged by the mask: o = o_0 + sum_i M_i s_i (o_i - o_0), for the network's outputs o.

    The pipeline's own prompt is not used. Its negative prompt gives o_0. Guiders are experimental in diffusers.

    Args:
        mask: where each of N styles goes.
        styles: N encoded prompts, e.g. from `models.encode_prompts`.
        guidance: one scale for all styles, or one per style.

    Raises:
        ValueError: the numbers of rows or scales are not those of the mask.
        TypeError: a mask or styles of another type.
        NotImplementedError: padded prompts, as Qwen-Image and Z-Image have them.
    """

    _input_predictions = ["pred_styles", "pred_uncond"]

    def __init__(self, mask: Mask, styles: Prompts, guidance: float | Sequence[float] = 5.0):
        super().__init__()
        checks.instance("mask", mask, Mask, "dsnb.masks makes them")
        checks.instance("styles", styles, Prompts, "dsnb.models.encode_prompts makes them of texts")
        if len(styles) != mask.n:
            raise ValueError(
                f"the mask has {mask.n} styles, so styles needs {mask.n} rows; got {len(styles)}"
            )
        if styles.length is not None:
            raise NotImplementedError(
                "styles are padded, and this guider cannot mask the padding; use dsnb.blend for this model"
            )
        self.mask, self.styles = mask, styles
        self.guidance = guidance_per_style(guidance, mask.n, styles.text.device)
        self.register_to_config(guidance=self.guidance.tolist())

    @property
    def num_conditions(self) -> int:
        return self.mask.n + 1

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared <= self.mask.n

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """The inputs of N + 1 network calls: one per style, and the unconditional one. diffusers calls it."""
        batches = []
        for i in range(self.mask.n):
            batch = self._prepare_batch(data, 0, f"style_{i}")
            for names, part in ((TEXT, self.styles.text), (POOLED, self.styles.pooled)):
                if part is None:
                    continue
                for name in set(names) & set(data):
                    given = getattr(batch, name)
                    setattr(batch, name, part[i : i + 1].expand(len(given), *part.shape[1:]).to(given))
            batches.append(batch)
        return [*batches, self._prepare_batch(data, 1, "pred_uncond")]

    def forward(self, pred_uncond: Tensor, **styles: Tensor) -> GuiderOutput:
        if pred_uncond.ndim != 4:
            raise NotImplementedError(
                f"the network's output must be (B, C, h, w), got {tuple(pred_uncond.shape)}; for a model with packed "
                "latents, such as FLUX.2, use dsnb.blend"
            )
        height, width = pred_uncond.shape[-2:]
        weights = self.mask.weights(height, width, self._step / self._num_inference_steps)
        cond = torch.stack([styles[f"style_{i}"] for i in range(self.mask.n)])
        pred = blend_eps(pred_uncond, cond, weights.to(pred_uncond), self.guidance.to(pred_uncond))
        return GuiderOutput(pred=pred, pred_cond=None, pred_uncond=pred_uncond)
