"""InfoNCE: which of several candidates belongs to which."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Symmetric InfoNCE of B pairs, in nats: \(\frac12 \left( \mathrm{CE}(s_{i\cdot}, i) + \mathrm{CE}(s_{\cdot i}, i)
    \right)\), a mean over i, of \(s_{ij} = \mathrm{scale} \cdot \langle a_i, b_j \rangle\).

    Args:
        a, b: unit vectors, (B, D) each.
        scale: of the logits, the inverse of the temperature.
        groups: (B,) integers; pairs of one group, such as one caption twice, are no negatives of each other. `None`
            (default): each pair is a group.

    Returns:
        The loss, ln B by chance, and how often the nearest b of an a is its own; both ().

    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021, 2103.00020), figure 3.

    Example:
        >>> import math
        >>> loss, accuracy = info_nce(torch.eye(4), torch.eye(4), 1.0)
        >>> round(loss.item(), 4), round(math.log(1 + 3 / math.e), 4), accuracy.item()
        (0.7437, 0.7437, 1.0)
    """
    logits = scale * a @ b.T  # (B, B)
    own = torch.arange(len(logits), device=logits.device)
    if groups is not None:
        alike = (groups[:, None] == groups).fill_diagonal_(False)
        logits = logits.masked_fill(alike, -torch.inf)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()
