"""How the next token is drawn from its logits: temperature, the likeliest ones alone, and one number for each draw."""

import math
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.layers.raster import Pick


def make_pick(temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Pick:
    """A function of logits (B, K) and numbers in [0, 1) (B,) that draws tokens (B,); arguments as in `make_processors`.

    Example:
        >>> make_pick(top_k=1)(torch.tensor([[0.1, 0.9], [2.0, 1.0]]), torch.tensor([0.99, 0.99]))
        tensor([1, 0])
    """
    processors = make_processors(temperature, top_k, top_p)
    return lambda logits, uniform: inverse_cdf(processors(None, logits), uniform)[:, 0]


def make_processors(temperature: float, top_k: int | None, top_p: float) -> Any:
    r"""transformers' processors of logits, called as `processors(tokens, logits)`.

    Args:
        temperature: T of \(\mathrm{softmax}(l / T)\), above 0.
        top_k: keep the k likeliest, at least 1; `None`: all.
        top_p: keep the fewest that have this probability together, in (0, 1].

    Raises:
        UsageError: a value out of its range.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> make_processors(1.0, None, 0.7)(None, logits).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if not 0 < temperature < math.inf:
        raise UsageError(
            f"temperature must be above 0 and finite; got {temperature}. For the likeliest alone give top_k=1."
        )
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise UsageError(f"top_k must be an integer of at least 1, or None for all; got {top_k}.")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p must be in (0, 1]; got {top_p}.")
    chosen = LogitsProcessorList()
    if temperature != 1:
        chosen.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    return chosen


def inverse_cdf(scores: Tensor, uniform: Tensor) -> Tensor:
    r"""The first k with \(\sum_{j \le k} p_j > u\), \(p = \mathrm{softmax}\) of the scores; never one of p = 0.

    Args:
        scores: (B, K); minus infinity for what must not be drawn.
        uniform: u in [0, 1), float32, (B,).

    Returns:
        int64 (B, 1).

    Example:
        >>> inverse_cdf(torch.tensor([[0.2, 0.0, 0.8]]).log().expand(3, 3), torch.tensor([0.1, 0.2001, 0.9])).tolist()
        [[0], [2], [2]]
    """
    mass = scores.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
