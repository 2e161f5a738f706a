"""Gaussian log-densities and weighted moments of many components at once: the E-step and the M-step of mixtures."""

import torch
from torch import Tensor

from latentia.errors import DataError, NumericsError, UsageError

COVARIANCES = ("full", "diag", "spherical")
NEGLIGIBLE = 40.0  # nats below the best component of a row: e^-40 is less than the rounding of a sum of float64
_ROWS = 256  # of a block whose products stay in the cache


def as_rows(x: Tensor, least: int = 1, name: str = "x") -> Tensor:
    """Rows of numbers that a density can be fitted to, float64 (N, D).

    Args:
        x: (N, D).
        least: how many rows there must be. Default 1.
        name: what the argument is called.

    Raises:
        UsageError: no tensor of two dimensions, or fewer rows.
        DataError: a value is not finite.

    Example:
        >>> as_rows(torch.ones(3, 2)).dtype
        torch.float64
    """
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.shape[1]:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"{name} must be a tensor (N, D), a row for each datum; got {given}.")
    if len(x) < least:
        raise UsageError(f"{name} must have at least {least} rows; got {len(x)}. Give more data.")
    rows = x.detach().double()
    if not rows.isfinite().all():
        wrong = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        raise DataError(
            f"{name} must be finite; {len(wrong)} of {len(rows)} rows hold NaN or infinity (the first is number "
            f"{wrong[0]}). Leave them out or fill them in."
        )
    return rows


def cholesky(covariances: Tensor, advice: str = "Raise added_variance or use fewer components.") -> Tensor:
    """Lower Cholesky factors of matrices (K, D, D).

    Raises:
        NumericsError: a matrix is singular; the message names it.

    Example:
        >>> cholesky(torch.eye(2, dtype=torch.float64)[None] * 4)
        tensor([[[2., 0.],
                 [0., 2.]]], dtype=torch.float64)
    """
    factors, info = torch.linalg.cholesky_ex(covariances)
    # A matrix whose smallest pivot is rounding alone passes without an error.
    pivots = factors.diagonal(dim1=-2, dim2=-1).square()
    scale = covariances.diagonal(dim1=-2, dim2=-1)
    wrong = (info > 0) | ~(pivots > 1e-14 * scale).all(-1)
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        raise NumericsError(f"The covariance of component {first} is singular, so it has no density. {advice}")
    return factors


def whitening(covariances: Tensor, covariance: str) -> Tensor:
    r"""A with \(A A^\top = \Sigma^{-1}\), so that \((x - \mu) A\) has unit covariance.

    Args:
        covariances: "full" (K, D, D), "diag" (K, D), "spherical" (K, 1).
        covariance: which of them.

    Returns:
        Upper triangular matrices (K, D, D), or the reciprocal standard deviations, shaped as `covariances`.

    Raises:
        NumericsError: a covariance is singular.

    Example:
        >>> whitening(torch.tensor([[4.0]]), "spherical")
        tensor([[0.5000]])
    """
    if covariance == "full":
        factors = cholesky(covariances)
        eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
        return torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False).mT
    if not (covariances > 0).all():
        first = int((covariances <= 0).any(1).nonzero()[0, 0])
        raise NumericsError(
            f"The covariance of component {first} is singular: a variance is 0, so it has no density. Raise "
            "added_variance or use fewer components."
        )
    return covariances.rsqrt()


def log_gaussians(
    x: Tensor, means: Tensor, white: Tensor, constants: Tensor, negligible: float | None = None
) -> Tensor:
    r"""\(c_k - \frac12 \lVert (x - \mu_k) A_k \rVert^2\) of all rows and components.

    With `negligible` a component that is certainly so many nats below the best of a row gets -inf without being
    computed: a few of the whitened values already bound its density from above.

    Args:
        x: (N, D). For the accuracy of small variances far from the origin, centre x and means first.
        means: (K, D).
        white: \(A_k\), see `whitening`: upper triangular (K, D, D), or (K, D) or (K, 1).
        constants: \(c_k\), (K,).
        negligible: nats; `None` (default): all entries are computed.

    Returns:
        (N, K).

    Example:
        >>> log_gaussians(torch.tensor([[2.0]]), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
        tensor([[-2.]])
    """
    if white.ndim == 2:  # the square written out: two products, of x^2 and of x
        precisions = white.square().expand_as(means)
        constants = constants - 0.5 * (means.square() * precisions).sum(1)
        quadratic = torch.cat([blocks.square() @ precisions.T for blocks in x.split(_ROWS)]) if len(x) else x
        return constants + x @ (means * precisions).T - 0.5 * quadratic
    few = x.shape[1] // 4  # columns that bound a density from above
    if negligible is None or few < 4 or len(means) < 3:
        return constants - 0.5 * _squared_norms(x, means, white)
    # A rotation changes no norm. This one brings what tells the means apart into the first columns.
    differences = (means - means[:, None]) @ white  # [k, j]: of the means j and k, whitened by k
    rotated = white @ torch.linalg.svd(differences.mT).U
    part = x[:: max(len(x) // 512, 1)]
    best = (constants - 0.5 * _squared_norms(part, means, white)).amax(1, keepdim=True)
    near = constants - 0.5 * _squared_norms(part, means, rotated[:, :, :few]) > best - negligible
    if near.double().mean() > 0.3:  # most would be computed, and all in one product are faster
        return constants - 0.5 * _squared_norms(x, means, white)
    found = (constants - 0.5 * _squared_norms(x, means, rotated[:, :, :few])).T.contiguous()  # (K, N)
    nearest = found.max(0).indices  # probably the best
    rest, offsets = rotated[:, :, few:], (means[:, None] @ rotated[:, :, few:])[:, 0]

    def complete(entries: Tensor) -> None:
        for k, column in enumerate(entries):
            rows = column.nonzero().flatten()
            values = torch.addmm(offsets[k], x.index_select(0, rows), rest[k], beta=-1).square_().sum(1)
            found[k].index_add_(0, rows, values, alpha=-0.5)

    first = torch.arange(len(means), device=x.device)[:, None] == nearest
    complete(first)
    others = (found > found.gather(0, nearest[None]) - negligible) & ~first
    complete(others)
    return found.masked_fill_(~(others | first), -torch.inf).T.contiguous()


def _squared_norms(x: Tensor, means: Tensor, white: Tensor) -> Tensor:
    """Squared norms of (x - mean) A of rows and components, (N, K): one matrix product for all components."""
    count, dimensions = means.shape
    all_at_once = white.permute(1, 0, 2).reshape(dimensions, -1)  # (D, K * D)
    offsets = (means[:, None] @ white).flatten()
    blocks = []
    for block in x.split(_ROWS):
        values = torch.addmm(offsets, block, all_at_once, beta=-1).view(len(block), count, -1)
        blocks.append(torch.linalg.vector_norm(values, dim=2))
    return torch.cat(blocks).square()


def moments(x: Tensor, weights: Tensor, covariance: str) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of weights, weighted means and weighted covariances of rows for each component: the M-step.

    Rows of weight 0 are not visited. A component without weight has mean 0 and covariance 0.

    Args:
        x: (N, D).
        weights: responsibilities, (N, K).
        covariance: "full", "diag" or "spherical".

    Returns:
        Sums (K,), means (K, D), and covariances (K, D, D), (K, D) or (K, 1).

    Example:
        >>> sums, means, variances = moments(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), "diag")
        >>> sums.item(), means.item(), variances.item()
        (2.0, 1.0, 1.0)
    """
    sums = weights.sum(0)
    safe = sums.clamp(min=torch.finfo(sums.dtype).tiny)
    means = (weights.T @ x) / safe[:, None]
    if covariance != "full":
        # About the mean of all rows, so that the difference of squares loses little.
        centre = x.mean(0)
        shifted = x - centre
        squares = (weights.T @ shifted.square()) / safe[:, None]
        variances = (squares - (means - centre).square() * (sums > 0)[:, None]).clamp(min=0)
        return sums, means, variances if covariance == "diag" else variances.mean(1, keepdim=True)
    if (weights > 0).double().mean() > 0.5:
        return sums, means, _dense_covariances(x, weights, means, safe)
    found = []
    for column, mean, total in zip(weights.T.contiguous(), means, safe):
        rows = column.nonzero().flatten()
        difference = x.index_select(0, rows) - mean
        found.append((difference * column.index_select(0, rows)[:, None]).T @ difference / total)
    return sums, means, torch.stack(found)


def _dense_covariances(x: Tensor, weights: Tensor, means: Tensor, sums: Tensor) -> Tensor:
    """Weighted covariances, (K, D, D), one matrix product for all components in each block of rows.

    The difference of second moments and squared means loses little here, where components overlap.
    """
    centre, (count, dimensions) = x.mean(0), means.shape
    squares = x.new_zeros(count * dimensions, dimensions)
    for block, weight in zip(x.split(_ROWS), weights.split(_ROWS)):
        shifted = block - centre
        squares.addmm_((weight[:, :, None] * shifted[:, None]).view(len(block), -1).T, shifted)
    shift = means - centre
    return squares.view(count, dimensions, dimensions) / sums[:, None, None] - shift[:, :, None] * shift[:, None]
