"""The log-likelihood of a mixture over one of its means, and the bounds of EM that touch it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import Count, UsageError, check_arguments
from latentia.inference.gaussians import as_rows
from latentia.inference.mixture import GaussianMixture


@dataclass(frozen=True)
class BoundCurves:
    r"""Values over a grid of one parameter \(\theta\), in nats of a datum.

    Args:
        grid: \(\theta\), (G,).
        log_likelihood: \(L(\theta)\), (G,).
        iterates: \(\theta^{(t)}\) of EM, (T + 1,), the first being the start.
        touched: \(L(\theta^{(t)})\), (T + 1,).
        slopes: \(L'(\theta^{(t)})\), (T + 1,).
        bounds: \(\mathcal{L}(q^{(t)}, \theta)\) with q the posterior at the iterate t, (T, G).
        bound_slopes: the derivative of that bound at its own iterate, (T,).

    Example:
        >>> curves = em_bounds(torch.tensor([[-1.0], [1.0]]), iterations=1)
        >>> bool((curves.bounds <= curves.log_likelihood + 1e-12).all())
        True
    """

    grid: Tensor
    log_likelihood: Tensor
    iterates: Tensor
    touched: Tensor
    slopes: Tensor
    bounds: Tensor
    bound_slopes: Tensor


@check_arguments
def em_bounds(x: Tensor, *, iterations: Count = 3, points: Count = 400) -> BoundCurves:
    r"""The bounds of EM for one mean of a mixture of two Gaussians over one value, all else fixed.

    The two components have equal weights and half of the standard deviation of x. The mean of the one lies at the
    upper quartile of x; that of the other, \(\theta\), is found by EM from far below. With \(q^{(t)}(k) =
    p_{\theta^{(t)}}(k | x)\) the bound is a parabola in \(\theta\) that touches the log-likelihood at
    \(\theta^{(t)}\), with equal slope, and its top is \(\theta^{(t+1)}\).

    Args:
        x: values (N, 1), not all equal.
        iterations: T. Default 3.
        points: G, of the grid, which reaches from 2.5 standard deviations below the mean of x to 2.5 above. Default
            400.

    Raises:
        UsageError: several columns, or equal values.

    A View of the EM Algorithm that Justifies Incremental, Sparse, and other Variants (Neal and Hinton, 1998).

    Example:
        >>> curves = em_bounds(torch.cat([torch.randn(50, 1) - 2, torch.randn(50, 1) + 2]))
        >>> bool((curves.touched.diff() > 0).all()), bool((curves.slopes[:3] - curves.bound_slopes).abs().max() < 1e-6)
        (True, True)
    """
    rows = as_rows(x, least=2)
    if rows.shape[1] != 1 or not rows.std() > 0:
        raise UsageError(f"x must be values (N, 1) that differ; got {tuple(rows.shape)}.")
    mean, std = rows.mean(), rows.std()
    half = torch.full((2,), 0.5, dtype=torch.float64)
    variances = (std / 2).square().expand(2, 1)

    def mixture(theta: Tensor) -> GaussianMixture:
        means = torch.stack([theta, rows.quantile(0.75)])[:, None]
        return GaussianMixture(half, means, variances, "spherical")

    def along(q: Tensor | None, thetas: Tensor) -> Tensor:
        parts = [mixture(theta) for theta in thetas]
        return torch.stack([(part.log_prob(rows) if q is None else part.bound(rows, q)).mean() for part in parts])

    def slope(q: Tensor | None, theta: Tensor) -> Tensor:
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(along(q, theta[None])[0], theta)[0]

    grid = torch.linspace(float(mean - 2.5 * std), float(mean + 2.5 * std), points, dtype=torch.float64)
    iterates, bounds, bound_slopes = [grid[points // 20]], [], []
    for _ in range(iterations):
        q = mixture(iterates[-1]).responsibilities(rows)
        bounds.append(along(q, grid))
        bound_slopes.append(slope(q, iterates[-1]))
        iterates.append((q[:, 0] @ rows[:, 0]) / q[:, 0].sum())
    found = torch.stack(iterates)
    slopes = torch.stack([slope(None, theta) for theta in found])
    curves = along(None, grid), found, along(None, found), slopes, torch.stack(bounds), torch.stack(bound_slopes)
    return BoundCurves(grid, *curves)
