"""The parts of the KL of a VAE over a data set: mutual information, total correlation, dimension-wise KL."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.distributions import log_normal

SAMPLINGS = ("weighted", "stratified")


class KLTerms(NamedTuple):
    """The three parts of log q(z|x) - log p(z), nats, each (B,); their means are divergences."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


def kl_terms(z: Tensor, mean: Tensor, log_variance: Tensor, dataset_size: int, sampling: str = "stratified") -> KLTerms:
    r"""\(\log\frac{q(z|x)}{p(z)} = \log\frac{q(z|x)}{q(z)} + \log\frac{q(z)}{\prod_j q(z_j)} + \sum_j
    \log\frac{q(z_j)}{p(z_j)}\), p = N(0, I).

    The aggregated posterior \(q(z) = \frac1N \sum_n q(z|x_n)\) is estimated from the batch:

    - "weighted": \(\frac{1}{N B} \sum_j q(z_i|x_j)\), in which the image of \(z_i\) itself counts too much;
    - "stratified": \(\frac1N q(z_i|x_i) + \frac{1}{B - 1} \sum_{j} q(z_i|x_j)\), the last of the others with weight
      \(\frac{N - B + 1}{N (B - 1)}\): unbiased for q(z).

    Args:
        z: samples of q(z|x), (B, D), B at least 2.
        mean, log_variance: of q(z|x), (B, D).
        dataset_size: N, at least B.
        sampling: "stratified" (default) or "weighted".

    Returns:
        The three parts, each (B,); they add up to the left side exactly.

    Raises:
        UsageError: a batch of one, N below B, an unknown sampling.

    Isolating Sources of Disentanglement in VAEs (Chen et al., 2018, 1802.04942), eq. 2, 5 and S6.

    Example:
        >>> z, mean, log_variance = torch.randn(3, 8, 2)
        >>> terms = kl_terms(z, mean, log_variance, 100)
        >>> bool(torch.allclose(sum(terms), log_normal(z, mean, log_variance) - log_normal(z), atol=1e-5))
        True
    """
    check_choice("sampling", sampling, SAMPLINGS)
    b = len(z)
    if b < 2:
        raise UsageError(
            f"a total correlation needs at least 2 images in a batch, as it compares their posteriors; got {b}. Take "
            "larger batches."
        )
    check_range("dataset_size", dataset_size, b, integer=True, advice="It is the number of training images.")
    each = log_normal(z[:, None, :, None], mean[None, ..., None], log_variance[None, ..., None])  # (B, B, D)
    if sampling == "weighted":
        weights = each.new_full((b, b), -math.log(dataset_size * b))
    else:
        weights = each.new_full((b, b), -math.log(b - 1))
        row = torch.arange(b, device=z.device)
        weights[row, row] = -math.log(dataset_size)
        weights[row, (row + 1) % b] = math.log((dataset_size - b + 1) / (dataset_size * (b - 1)))
    own = log_normal(z, mean, log_variance)
    joint = (each.sum(2) + weights).logsumexp(1)
    product = (each + weights[..., None]).logsumexp(1).sum(1)
    return KLTerms(own - joint, joint - product, product - log_normal(z))
