"""Encoded rows of tables: numbers, then a block of values for each variable of categories."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentia.functional.distributions import gaussian_log_prob


def split_row(x: Tensor, categories: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The numbers (..., M) and the blocks (..., K_j) of encoded rows (..., M + sum K_j).

    Args:
        x: (..., D).
        categories: K_j, how many categories each variable has.

    Example:
        >>> numbers, blocks = split_row(torch.zeros(5, 7), (2, 3))
        >>> numbers.shape[1], [block.shape[1] for block in blocks]
        (2, [2, 3])
    """
    numbers, *blocks = x.split([x.shape[-1] - sum(categories), *categories], -1)
    return numbers, blocks


def relax_row(x: Tensor, categories: Sequence[int]) -> Tensor:
    """The numbers as they are, and each block as probabilities, the softmax of its values.

    Example:
        >>> relax_row(torch.zeros(1, 3), (2,))
        tensor([[0.0000, 0.5000, 0.5000]])
    """
    numbers, blocks = split_row(x, categories)
    return torch.cat([numbers, *(block.softmax(-1) for block in blocks)], -1)


def draw_row(x: Tensor, u: Tensor, categories: Sequence[int]) -> Tensor:
    """The numbers as they are, and each block one-hot, a category drawn with the probabilities of its logits.

    Args:
        x: (B, D).
        u: uniform in [0, 1), one number for each block, (B, S).
        categories: K_j of the S blocks.

    Example:
        >>> draw_row(torch.tensor([[1.5, 0.0, 0.0]]), torch.tensor([[0.7]]), (2,))
        tensor([[1.5000, 0.0000, 1.0000]])
    """
    numbers, blocks = split_row(x, categories)
    return torch.cat([numbers, *(one_hot_of(block.softmax(-1), u[:, j]) for j, block in enumerate(blocks))], -1)


def one_hot_of(probabilities: Tensor, u: Tensor) -> Tensor:
    """A one-hot category (B, K) drawn from probabilities (B, K) by uniform numbers (B,) in [0, 1).

    Example:
        >>> one_hot_of(torch.tensor([[0.2, 0.8], [0.2, 0.8]]), torch.tensor([0.1, 0.3]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    ends = probabilities.cumsum(-1)
    chosen = (u[:, None] * ends[:, -1:] >= ends[:, :-1]).sum(-1)
    categories = torch.arange(probabilities.shape[-1], device=u.device)  # F.one_hot reads the indices on some devices
    return (chosen[:, None] == categories).to(probabilities.dtype)


def row_log_likelihood(x: Tensor, location: Tensor, log_scale: Tensor, categories: Sequence[int]) -> Tensor:
    """log p(x|z) of encoded rows: normal distributions of the numbers, and categories by the logits of their block.

    Args:
        x: (B, D), each block one-hot.
        location: means and logits, (B, D), or (B, K, D) for K samples of z.
        log_scale: logarithm of the standard deviation of each number, (M,).
        categories: K_j of the blocks.

    Returns:
        (B,) or (B, K).

    Example:
        >>> x = torch.tensor([[0.0, 1.0, 0.0]])
        >>> row_log_likelihood(x, torch.zeros(1, 3), torch.zeros(1), (2,)).exp()  # 1 / sqrt(2 pi) / 2
        tensor([0.1995])
    """
    if location.ndim == x.ndim + 1:
        x = x[:, None]
    numbers, blocks = split_row(x, categories)
    means, logits = split_row(location, categories)
    found = gaussian_log_prob(numbers, means, log_scale).sum(-1)
    for block, values in zip(blocks, logits):
        found = found + (block * values.log_softmax(-1)).sum(-1)
    return found
