"""Gamma latents: samples by shape-augmented rejection with their gradient, densities and divergences, in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor

PROPOSALS, BOOSTS = 4, 6  # none of the proposals is accepted once in 10^9; each boost lowers the variance of a gradient
NOISE = 2 * PROPOSALS + BOOSTS  # normal numbers of which a sample is made


def gamma_sample(shape: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""A sample of Gamma(shape, 1) that has derivatives, and the correction of its gradient.

    Marsaglia and Tsang's \(x = h(\epsilon, s) = (s - \frac13) (1 + \epsilon / \sqrt{9 s - 3})^3\) of the first accepted
    of four proposals, at the augmented shape \(s = \alpha + B\), is Gamma(s, 1); \(z = x \prod_{i=1}^B u_i^{1 / (\alpha
    + i - 1)}\) is Gamma(alpha, 1). Acceptance depends on alpha, so that

    \(\nabla E[f(z)] = E[\nabla f(z)] + E[f(z)\, \nabla \log\frac{q(h(\epsilon, s))}{r(h(\epsilon, s))}]\),

    the second of which is small where s is large.

    Args:
        shape: alpha, positive, (..., D).
        noise: from N(0, 1), (..., `NOISE`, D).

    Returns:
        The sample; and \(\log q(h(\epsilon, s); s) + \log|h'(\epsilon, s)|\) with the proposal fixed, whose gradient,
        times f, is the correction; both (..., D).

    Reparameterization Gradients through Acceptance-Rejection Sampling (Naesseth et al., 2017, 1610.05683), eq. 8 to 10
    and section 5; Marsaglia and Tsang, 2000, doi:10.1145/358407.358414.

    Example:
        >>> z, _ = gamma_sample(torch.full((2000, 1), 0.5), torch.randn(2000, NOISE, 1))
        >>> bool((z.mean() - 0.5).abs() < 0.1)
        True
    """
    s = shape + BOOSTS
    d = s - 1 / 3
    c = (9 * d).rsqrt()
    proposed, levels, boosts = noise.split((PROPOSALS, PROPOSALS, BOOSTS), -2)
    with torch.no_grad():
        root = 1 + c.unsqueeze(-2) * proposed
        v, at = root.clamp(min=1e-6) ** 3, d.unsqueeze(-2)
        log_u = torch.special.log_ndtr(levels)
        accepted = (root > 0) & (log_u < 0.5 * proposed.square() + at * (1 - v + v.log()))
        first = accepted.to(torch.uint8).argmax(-2, keepdim=True)
        eps = torch.where(accepted.any(-2), proposed.gather(-2, first).squeeze(-2), 0.0)
    root = 1 + c * eps
    x = d * root**3
    steps = torch.arange(BOOSTS, dtype=shape.dtype, device=shape.device)[:, None]
    log_boost = (torch.special.log_ndtr(boosts) / (shape.unsqueeze(-2) + steps)).sum(-2)
    correction = gamma_log_prob(x, s) + (3 * d * c).log() + 2 * root.log()
    return x * log_boost.exp(), correction


def gamma_log_prob(z: Tensor, shape: Tensor, rate: Tensor | float = 1.0) -> Tensor:
    """log Gamma(z; shape, rate) of each value.

    Example:
        >>> gamma_log_prob(torch.tensor(2.0), torch.tensor(1.0))
        tensor(-2.)
    """
    rate = torch.as_tensor(rate, dtype=z.dtype, device=z.device)
    return shape * rate.log() + (shape - 1) * z.log() - rate * z - torch.lgamma(shape)


def gamma_kl(shape: Tensor, rate: Tensor) -> Tensor:
    r"""KL(Gamma(shape, rate) || Gamma(1, 1)): \((\alpha - 1) \psi(\alpha) - \ln\Gamma(\alpha) + \ln\beta +
    \alpha (1 - \beta) / \beta\).

    Example:
        >>> gamma_kl(torch.ones(1), torch.ones(1))
        tensor([0.])
    """
    return (shape - 1) * torch.digamma(shape) - torch.lgamma(shape) + rate.log() + shape * (1 - rate) / rate


def exponential_scores(z: Tensor) -> Tensor:
    r"""Latents of the prior Gamma(1, 1) as normal scores, \(-\Phi^{-1}(e^{-z})\), which are N(0, 1) under it.

    Example:
        >>> exponential_scores(torch.tensor([2.0]).log()).abs().round(decimals=5)
        tensor([0.])
    """
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    limits = torch.finfo(wide.dtype)
    return -torch.special.ndtri((-wide).exp().clamp(limits.tiny, 1 - limits.eps)).to(z.dtype)


def from_exponential_scores(scores: Tensor) -> Tensor:
    r"""The inverse of `exponential_scores`, \(-\log \Phi(-c)\).

    Example:
        >>> from_exponential_scores(torch.zeros(1)) / torch.tensor(2.0).log()
        tensor([1.])
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return -torch.special.log_ndtr(-wide).to(scores.dtype)


def gamma_parameters(raw_shape: Tensor, log_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Shape, above 0.1, and rate, in [e^-10, e^10], of what a network gives.

    Example:
        >>> [round(float(each), 3) for each in gamma_parameters(torch.tensor(-99.0), torch.tensor(0.0))]
        [0.1, 1.0]
    """
    return F.softplus(raw_shape) + 0.1, log_rate.clamp(-10, 10).exp()
