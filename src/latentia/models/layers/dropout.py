"""Dropout whose mask is a function of a seed for each sample, so that it can stay on as a source of noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.rng import seed_from, uniform_of_seeds


class SeededDropout(nn.Module):
    """Dropout that can stay on in evaluation: equal seeds give equal masks, in every batch and on every device.

    Args:
        p: share of values set to 0, in [0, 1).
        keep: whether it stays on in evaluation.
        place: number of the layer within its network, so that no two layers share a mask.

    Example:
        >>> dropout, x = SeededDropout(0.5, keep=True).eval(), torch.ones(2, 8)
        >>> bool((dropout(x, torch.tensor([3, 4]))[1] == dropout(x[:1], torch.tensor([4]))[0]).all())
        True
    """

    def __init__(self, p: float, keep: bool, place: int = 0):
        super().__init__()
        self.p, self.keep, self.key = p, keep, seed_from("dropout", place)

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The values that are left, divided by their share.

        Args:
            x: (B, ...).
            seeds: int64 (B,); `None` (default): torch's own generator in training, and seed 0 in evaluation.
        """
        if not self.p or not (self.training or self.keep):
            return x
        if seeds is None:
            if self.training:
                return F.dropout(x, self.p)
            seeds = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        left = uniform_of_seeds(seeds, self.key, tuple(x.shape[1:])) >= self.p
        return x * (left.to(x.dtype) / (1 - self.p))
