"""Categorical latents: Gumbel-softmax samples, their KL to the uniform prior and their log-probability."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import check_range
from latentia.functional.distributions import gaussian_kl


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    r"""A relaxed one-hot sample that has derivatives, \(\mathrm{softmax}((l + g) / \tau)\), g of Gumbel's distribution.

    \(g = -\log(-\log \Phi(\epsilon))\) of normal noise. As the temperature goes to 0 samples become one-hot, and their
    gradients large; at 0 they are one-hot samples of softmax(l), without derivatives.

    Args:
        logits: (..., K).
        noise: from N(0, 1), of a shape that broadcasts with it.
        temperature: \(\tau\), at least 0.

    Returns:
        (..., K), positive, with sum 1.

    Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2016, 1611.01144), eq. 2; The Concrete Distribution
    (Maddison et al., 2016, 1611.00712), eq. 10.

    Example:
        >>> gumbel_softmax(torch.tensor([0.0, 9.0]), torch.zeros(2), 0.0)
        tensor([0., 1.])
    """
    check_range("temperature", temperature, 0)
    wide = torch.promote_types(noise.dtype, torch.float32)
    scores = logits - (-torch.special.log_ndtr(noise.to(wide))).log().to(logits.dtype)
    if temperature == 0:
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
    return (scores / temperature).softmax(-1)


def categorical_kl(logits: Tensor) -> Tensor:
    r"""KL(softmax(l) || uniform), \(\log K + \sum_k q_k \log q_k\), nats: from 0 to log K.

    Args:
        logits: (..., K).

    Returns:
        (...).

    Example:
        >>> categorical_kl(torch.tensor([[0.0, 0.0], [0.0, 99.0]])) / math.log(2)
        tensor([0., 1.])
    """
    log_q = logits.log_softmax(-1)
    return math.log(logits.shape[-1]) + (log_q.exp() * log_q).sum(-1)


def categorical_log_prob(one_hot: Tensor, logits: Tensor) -> Tensor:
    """log q of one-hot vectors under softmax(l), nats: shapes (..., K) that broadcast, to (...).

    Example:
        >>> categorical_log_prob(torch.tensor([1.0, 0.0]), torch.zeros(2)).exp()
        tensor(0.5000)
    """
    return (one_hot * logits.log_softmax(-1)).sum(-1)


def mixed_kl(mean: Tensor, log_variance: Tensor, categories: Sequence[int]) -> Tensor:
    """The KL of each Gaussian dimension to N(0, 1), and of each categorical variable to the uniform distribution.

    Args:
        mean, log_variance: (B, D + K_1 + ...), `mean` holding the logits of the variables behind the means.
        categories: K of each variable.

    Returns:
        (B, D + G), nats.

    Example:
        >>> mixed_kl(torch.zeros(2, 5), torch.zeros(2, 5), (3,)).shape
        torch.Size([2, 3])
    """
    continuous = mean.shape[-1] - sum(categories)
    mu, *logits = mean.split((continuous, *categories), -1)
    kls = [categorical_kl(each)[..., None] for each in logits]
    return torch.cat([gaussian_kl(mu, log_variance[..., :continuous]), *kls], -1)
