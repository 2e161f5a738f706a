"""Optimal transport between two small sets of points: the assignment with the least squared distance."""

import torch
from torch import Tensor

from latentia.errors import UsageError


def optimal_assignment(x: Tensor, y: Tensor) -> Tensor:
    r"""The permutation p with the least \(\sum_i \lVert x_i - y_{p(i)} \rVert^2\).

    Args:
        x, y: (n, ...) of one shape. The time grows with the cube of n: about 1 ms for 128, .3 s for 1024.

    Returns:
        int64, (n,), on the device of x: `y[p]` is `y` coupled to x.

    Raises:
        UsageError: other shapes.

    Computational Optimal Transport (Peyre and Cuturi, 2018, 1803.00567), section 2.2.

    Example:
        >>> optimal_assignment(torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[8.0], [1.0], [4.0]]))
        tensor([1, 2, 0])
    """
    from scipy.optimize import linear_sum_assignment

    if x.shape != y.shape or x.ndim < 2:
        raise UsageError(f"x and y must have one shape (n, ...); got {tuple(x.shape)} and {tuple(y.shape)}.")
    if x.is_meta:
        return torch.arange(len(x), device=x.device)
    a, b = (points.detach().flatten(1).cpu().double() for points in (x, y))
    _, columns = linear_sum_assignment(-(a @ b.T).numpy())  # |x|^2 and |y|^2 are the same for every permutation
    return torch.from_numpy(columns).to(x.device)
