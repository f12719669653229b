"""Joint attention with a mask: image positions attend to each style's text by the mask's weight.

In a transformer with joint attention, the image and the texts are one sequence. With N texts it is
[image, text_1 ... text_N]. The mask becomes a bias that is added to the scores.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .families import Prompts


def joint_bias(weights: Tensor, length: int) -> Tensor:
    """The bias on the scores of the sequence [image, text_1 ... text_N].

    It is log M_i from the image to text_i, minus infinity from a text to another text, and 0 elsewhere. With one text,
    or the same text N times, the result is plain attention.

    This is not cross-attention interpolation, sum_i M_i softmax_i(Q K_i) V_i, because all texts and the image share one
    softmax. A text whose keys match a position better than the others has more influence than its M_i.

    Args:
        weights: the mask M (N, T) at the image's positions, summing to 1.
        length: the number of tokens of each text.

    Returns:
        (T + N length, T + N length), in the dtype of `weights`.
    """
    n, positions = weights.shape
    bias = weights.new_zeros(positions + n * length, positions + n * length)
    bias[:positions, positions:] = weights.log().T.repeat_interleave(length, 1)
    style = torch.arange(n, device=weights.device).repeat_interleave(length)
    bias[positions:, positions:].masked_fill_(style[:, None] != style, -torch.inf)
    return bias


def joint_rows(rows: Prompts, weights: Tensor) -> Prompts:
    """Rows for one network call: one row with the texts of all n styles.

    If there is a negative prompt, a row with n copies of its text comes first. Pooled vectors, and a
    guidance that is an input of the network, have no position. The row has their mean, weighted by each style's area.

    Args:
        rows: one per style, perhaps after one negative prompt.
        weights: the mask (N, T) at the image's positions.

    Returns:
        One or two rows.
    """
    n, area = len(weights), weights.mean(1)
    styles, negative = rows[-n:], rows[:-n]
    bias = joint_bias(weights, rows.text.shape[1]).to(rows.text.dtype)
    merge = lambda part: None if part is None else torch.tensordot(area.to(part), part, 1)[None]
    every = Prompts(styles.text.flatten(0, 1)[None], merge(styles.pooled), merge(styles.guidance), bias)
    if len(negative) == 0:
        return every
    text = torch.cat([negative.text.repeat(1, n, 1), every.text])
    if negative.pooled is None or every.pooled is None:
        return replace(every, text=text)
    return replace(every, text=text, pooled=torch.cat([negative.pooled, every.pooled]))
