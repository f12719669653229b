"""Joint attention with a mask: image positions attend to each style's text by the weight of the mask.

In a transformer with joint attention, the image and the texts are one sequence. With N texts it is
[image, text_1 ... text_N]. The mask enters as a bias on the scores.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .families import Prompts


def joint_bias(weights: Tensor, length: int) -> Tensor:
    """What is added to the scores of the sequence [image, text_1 ... text_N].

    Image -> text_i gets log M_i. A text does not see another text. All else is open. With one text it is plain
    attention, and so it is with the same text N times.

    This is not cross-attention interpolation, sum_i M_i softmax_i(Q K_i) V_i: here all texts and the image share one
    softmax. Where a text's keys match a position better, that text counts for more than its M_i.

    Args:
        weights: the mask M (N, T) at the image's positions, summing to 1.
        length: tokens of each text.

    Returns:
        (T + N length, T + N length), float32.
    """
    n, positions = weights.shape
    bias = weights.new_zeros(positions + n * length, positions + n * length)
    bias[:positions, positions:] = weights.log().T.repeat_interleave(length, 1)
    style = torch.arange(n, device=weights.device).repeat_interleave(length)
    bias[positions:, positions:].masked_fill_(style[:, None] != style, -torch.inf)
    return bias


def joint_rows(rows: Prompts, n: int, weights: Tensor, area: Tensor) -> Prompts:
    """Rows for one call: the negative prompt n times in one row, if there is one, and all n styles in another.

    Pooled vectors and a guidance that the network is told have no position: each style counts by its area.

    Args:
        rows: one per style, perhaps after one negative prompt.
        n: the number of styles.
        weights: the mask (N, T) at the image's positions.
        area: each style's fraction of the image (N,).
    """
    styles, negative = rows[-n:], rows[:-n]
    bias = joint_bias(weights, rows.text.shape[1])
    merge = lambda part: None if part is None else torch.tensordot(area.to(part), part, 1)[None]
    every = Prompts(styles.text.flatten(0, 1)[None], merge(styles.pooled), merge(styles.guidance), bias)
    if len(negative) == 0:
        return every
    text = torch.cat([negative.text.repeat(1, n, 1), every.text])
    if negative.pooled is None or every.pooled is None:
        return replace(every, text=text)
    return replace(every, text=text, pooled=torch.cat([negative.pooled, every.pooled]))
