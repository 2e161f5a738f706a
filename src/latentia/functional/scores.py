"""Normal scores: columns of a table mapped to N(0, 1) through their own distribution, and back."""

import math

import torch
from torch import Tensor

from latentia.functional.distributions import gaussian_log_prob

_FARTHEST = -500.0  # the least log-probability of a tail; its score is about 31
_INSIDE = 1e-6  # of an interval that is left free at both ends, where rounding would reach the neighbour


def mixture_scores(x: Tensor, weights: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    r"""The normal scores \(z = \Phi^{-1}(F(x))\) of values, F being the distribution function of a Gaussian mixture.

    Each mode of a column becomes a part of one standard normal distribution. Both tails are computed by their own
    logarithm, so that far values stay apart.

    Args:
        x: (N, C), float64.
        weights, means, deviations: of the mixture of each column, (C, K); a weight may be 0.

    Returns:
        (N, C), float64.

    Example:
        >>> parameters = torch.ones(1, 1).double(), torch.zeros(1, 1).double(), torch.ones(1, 1).double()
        >>> mixture_scores(torch.tensor([[-9.0], [0.0], [2.0]]).double(), *parameters).flatten().round(decimals=6) + 0
        tensor([-9.,  0.,  2.], dtype=torch.float64)
    """
    scaled = (x[..., None] - means) / deviations
    below = (weights.log() + torch.special.log_ndtr(scaled)).logsumexp(-1).clamp(_FARTHEST, 0)
    above = (weights.log() + torch.special.log_ndtr(-scaled)).logsumexp(-1).clamp(_FARTHEST, 0)
    return torch.where(below < above, torch.special.ndtri(below.exp()), -torch.special.ndtri(above.exp()))


def mixture_log_density(x: Tensor, weights: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """log p(x) of each value, (N, C), under the mixture of its column; arguments as for `mixture_scores`.

    Example:
        >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        >>> mixture_log_density(zero, one, zero, one).exp()
        tensor([[0.3989]])
    """
    return (weights.log() + gaussian_log_prob(x[..., None], means, deviations.log())).logsumexp(-1)


def mixture_values(z: Tensor, weights: Tensor, means: Tensor, deviations: Tensor, iterations: int = 100) -> Tensor:
    """The values of normal scores: the inverse of `mixture_scores`, by Newton's method within a bracket.

    Args:
        z: (N, C), float64.
        weights, means, deviations: of the mixture of each column, (C, K).
        iterations: at most. Default 100; about ten are usual.

    Returns:
        (N, C), float64, exact up to rounding.

    Example:
        >>> mixture = [torch.tensor([row]).double() for row in ([0.3, 0.7], [-5.0, 5.0], [1.0, 2.0])]
        >>> x = torch.linspace(-9, 9, 50).double()[:, None]
        >>> bool((mixture_values(mixture_scores(x, *mixture), *mixture) - x).abs().max() < 1e-9)
        True
    """
    reach = 32 * deviations  # beyond it every score is farther than any other
    low = torch.where(weights > 0, means - reach, math.inf).amin(1).expand_as(z).clone()
    high = torch.where(weights > 0, means + reach, -math.inf).amax(1).expand_as(z).clone()
    enough = 1e-14 * (high - low).amax(0) if len(z) else low.new_zeros(z.shape[1])
    x, step = (weights * means).sum(1).expand_as(z).clone(), torch.full_like(z, math.inf)
    active = torch.arange(z.shape[1], device=z.device)  # columns that have not converged
    for _ in range(iterations if len(z) else 0):
        mixture = weights[active], means[active], deviations[active]
        at, wanted = x[:, active], z[:, active]
        found = mixture_scores(at, *mixture)
        below = torch.where(found <= wanted, at, low[:, active])
        above = torch.where(found >= wanted, at, high[:, active])
        slope = (mixture_log_density(at, *mixture) + 0.5 * found.square()).exp() * math.sqrt(2 * math.pi)
        newton = at - (found - wanted) / slope
        # In a narrow mode the steps of Newton are short and do not shrink: then the bracket is halved.
        good = (newton >= below) & (newton <= above) & ((newton - at).abs() <= step[:, active] / 2)  # false of NaN
        following = torch.where(good, newton, (below + above) / 2)
        following = torch.where(
            (found - wanted).abs() <= 1e-15 * (1 + wanted.abs()), at, following
        )  # as near as it gets
        step[:, active] = (following - at).abs()
        x[:, active], low[:, active], high[:, active] = following, below, above
        active = active[(step[:, active] > enough[active]).any(0)]
        if not len(active):
            break
    return x


def category_scores(indices: Tensor, shares: Tensor, u: Tensor) -> Tensor:
    r"""The normal scores of categories: \(\Phi^{-1}\) of a place within the interval of [0, 1] that is a category's.

    With u uniform they are N(0, 1) if the categories have these shares.

    Args:
        indices: integers in [0, K), (N,).
        shares: of the categories, (K,), which add up to 1.
        u: place within the interval, in [0, 1], (N,).

    Returns:
        (N,), float64.

    Example:
        >>> shares = torch.tensor([0.5, 0.5]).double()
        >>> z = category_scores(torch.tensor([0, 1]), shares, torch.tensor([0.5, 0.5]).double())
        >>> z.round(decimals=3), categories_of_scores(z, shares)
        (tensor([-0.6740,  0.6740], dtype=torch.float64), tensor([0, 1]))
    """
    ends = shares.cumsum(0)
    return torch.special.ndtri((ends - shares)[indices] + inner(u) * shares[indices])


def inner(u: Tensor) -> Tensor:
    """Places in [0, 1] a little away from both ends, so that rounding does not reach a neighbouring interval.

    Example:
        >>> inner(torch.tensor([0.0, 0.5])).tolist()
        [9.999999974752427e-07, 0.5]
    """
    return _INSIDE + (1 - 2 * _INSIDE) * u


def categories_of_scores(z: Tensor, shares: Tensor) -> Tensor:
    """The categories, int64 (N,), of normal scores (N,): the inverse of `category_scores`."""
    return torch.searchsorted(shares.cumsum(0)[:-1].contiguous(), torch.special.ndtr(z.double()), right=True)
