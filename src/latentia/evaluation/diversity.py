"""Vendi score: how many different images a set is worth. In float64."""

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features

_CHUNK = 4096  # rows that are held in float64 at once


def vendi_score(features: torch.Tensor) -> float:
    """`exp(-sum_i l_i ln l_i)` over the eigenvalues l of K / n, with cosine similarities `K_ij = x_i.x_j / |x_i||x_j|`.

    The effective number of different images: 1 if all are alike, n if all are orthogonal, and never more than D. It
    needs no real images; compare it with that of as many real ones. K / n and the D x D matrix of the second moments
    have the same eigenvalues but for zeros; the smaller of the two is used.

    Args:
        features: (n, D), none of which is 0.

    Returns:
        Between 1 and min(n, D); higher is more diverse.

    Raises:
        UsageError: a row is zero, which has no direction, or the shape is another.
        NumericsError: a feature is NaN or infinite.

    References:
        "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", Friedman and Dieng 2022,
        arXiv:2210.02410, definition 3.1.

    Example:
        >>> round(vendi_score(torch.ones(7, 3)), 6), round(vendi_score(torch.eye(5)), 6)
        (1.0, 5.0)
    """
    check_features(features)
    zeros = int((features == 0).all(1).sum())
    if zeros:
        raise UsageError(
            f"`features` must not be zero, which has no direction to compare. {zeros} of {len(features)} are."
        )
    n, dimension = features.shape

    def unit(chunk: torch.Tensor) -> torch.Tensor:
        chunk = chunk.cpu().double()
        return torch.nn.functional.normalize(chunk / chunk.abs().amax(1, keepdim=True), dim=1)

    if n <= dimension:
        x = unit(features)
        density = x @ x.T / n
    else:
        density = torch.zeros(dimension, dimension, dtype=torch.float64)
        for chunk in features.split(_CHUNK):
            x = unit(chunk)
            density.addmm_(x.T, x, alpha=1 / n)
    values = torch.linalg.eigvalsh(density).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())
