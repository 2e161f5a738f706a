"""Variational bounds from their terms: ELBO, importance weighted, and that of diffusion; in nats per image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentia.functional.distributions import discretized_gaussian_log_prob, gaussian_kl, gaussian_kl_between


def hierarchical_kl(z: Tensor, mean: Tensor, log_variance: Tensor, sizes: Sequence[int]) -> Tensor:
    r"""KL(q(z|x) || p(z)) of each dimension of a hierarchy: exact of the topmost layer, a sample's of those below it.

    q of the topmost stochastic layer depends on nothing above, so given the layers below its KL has a closed form. A
    lower layer's prior is given by the layer above, which was inferred from that very sample: in
    \(E_q[\log q(z_l|z_{l-1}) - \log p(z_l|z_{l+1})]\) the two do not separate, and the difference of the two at the
    sample takes its place. It may be negative; its mean over samples is the KL.

    Args:
        z: samples of all layers side by side, from the image upwards, in units of their priors, so that p is N(0, I);
            (B, D), or (B, K, D), over whose K samples the mean is taken.
        mean, log_variance: of q in these units, shaped as z, or (B, D).
        sizes: dimensions of each layer, from the image upwards.

    Returns:
        (B, D); never negative of one layer.

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), section 2.

    Example:
        >>> hierarchical_kl(torch.zeros(3, 6), torch.ones(3, 6), torch.zeros(3, 6), (4, 2))[0]
        tensor([-0.5000, -0.5000, -0.5000, -0.5000,  0.5000,  0.5000])
    """
    mean, log_variance = (part if part.ndim == z.ndim else part[:, None] for part in (mean, log_variance))
    below = sum(sizes[:-1])
    z_below, m, lv = (part[..., :below] for part in (z, mean, log_variance))
    sampled = 0.5 * (z_below.square() - (z_below - m).square() * (-lv).exp() - lv)
    exact = gaussian_kl(mean[..., below:], log_variance[..., below:])
    return torch.cat([kl if kl.ndim == 2 else kl.mean(1) for kl in (sampled, exact)], 1)


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    r"""\(\log \frac1k \sum_i w_i\) of the logarithms of k importance weights \(w_i = p(x, z_i) / q(z_i|x)\).

    Args:
        log_weights: (B, k).

    Returns:
        (B,): a lower bound of log p(x) in expectation; with k = 1 the ELBO.

    Burda et al., 2015, 1509.00519, eq. 8.

    Example:
        >>> importance_weighted_bound(torch.tensor([[1.0, 3.0]]).log()).exp()
        tensor([2.])
    """
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""\(1 / \sum_i \tilde w_i^2\) of normalised importance weights: from 1 to k.

    Args:
        log_weights: (B, k).

    Returns:
        (B,).

    Example:
        >>> effective_sample_size(torch.zeros(1, 5))
        tensor([5.0000])
    """
    return 1 / log_weights.softmax(1).square().sum(1)


def diffusion_bound_term(
    x0: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    posterior_mean: Tensor,
    posterior_log_variance: Tensor,
    last: Tensor,
) -> Tensor:
    r"""One term of the variational bound of a diffusion model, summed over pixels.

    \(L_{t-1} = \mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \,\|\, p_\theta(x_{t-1} \mid x_t))\), and at the last step
    \(L_0 = -\log p_\theta(x_0 \mid x_1)\) of pixels with 256 values (DDPM, Ho et al., 2020, 2006.11239, eq. 5 and 13).

    Args:
        x0: clean images in [-1, 1], (B, C, H, W).
        mean, log_variance: of the model's p(x_{t-1} | x_t), broadcasting with x0.
        posterior_mean, posterior_log_variance: of q(x_{t-1} | x_t, x_0).
        last: whether this is the last step, from which x_0 itself is drawn; bool, (B,) or ().

    Returns:
        float32 of shape (B,).

    Example:
        >>> x, zero = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)
        >>> diffusion_bound_term(x, x + 1, zero, x, zero, torch.tensor(False))  # half a nat for each of four pixels
        tensor([2.])
    """
    kl = gaussian_kl_between(posterior_mean, posterior_log_variance, mean, log_variance)
    nll = -discretized_gaussian_log_prob(x0, mean, log_variance)
    return torch.where(last.view(-1, *[1] * (x0.ndim - 1)), nll, kl.float()).flatten(1).sum(1)


def bits_per_dim(nats: Tensor, dimensions: int, density: bool = False) -> Tensor:
    """Nats per image as bits per value, of values in 256 steps of [-1, 1].

    Args:
        nats: the negative log-likelihood of an image, or a bound of it, any shape.
        dimensions: values of an image.
        density: whether the nats are of a density per unit of [-1, 1] rather than of a probability. Default False.

    Example:
        >>> bits_per_dim(torch.tensor(8 * math.log(2)), 2)
        tensor(4.)
    """
    return (nats / dimensions + (math.log(256 / 2) if density else 0.0)) / math.log(2)


def beta_of_mse_weight(kl_weight: float, dimensions: int, observation_std: float = 1.0) -> float:
    r"""The beta that a loss `mean squared error + kl_weight * KL` has for Gaussian pixels: \(\lambda D / (2\sigma^2)\).

    A Gaussian decoder has \(-\log p(x|z) = \lVert x - \hat x \rVert^2 / (2\sigma^2) + \text{const}\). The mean squared
    error is that norm over D, so \(\mathrm{MSE} + \lambda \mathrm{KL} = \frac{2\sigma^2}{D} \left(-\log p(x|z) +
    \frac{\lambda D}{2\sigma^2} \mathrm{KL}\right) + \text{const}\): the ELBO with this beta. Equivalently it is the
    plain ELBO, beta = 1, of pixels with variance \(\sigma^2 = \lambda D / 2\).

    Args:
        kl_weight: lambda, on the KL summed over the latent.
        dimensions: D, values of an image over which the squared error is averaged.
        observation_std: sigma, in the units of the pixels.

    Example:
        >>> beta_of_mse_weight(0.00025, 3 * 64 * 64)  # a common choice for 64 x 64 faces
        1.536
    """
    return kl_weight * dimensions / (2 * observation_std**2)
