"""k-means with k-means++ starts: the start of mixtures, and the limit of hard EM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import Count, Seed, UsageError, check_arguments
from latentia.inference.gaussians import as_rows
from latentia.rng import seed_from


@dataclass(frozen=True)
class KMeans:
    """Centres (K, D), the nearest centre of each row, int64 (N,), and the mean squared distance to it at each step."""

    centres: Tensor
    labels: Tensor
    distances: Tensor


@check_arguments
def kmeans(
    x: Tensor,
    num_components: Count,
    *,
    centres: Tensor | None = None,
    starts: Count = 1,
    max_iterations: Count = 100,
    seed: Seed = 0,
) -> KMeans:
    """Cluster rows by Lloyd's algorithm from k-means++ starts; the best of several starts.

    A centre that no row is nearest to moves to the row farthest from its own centre.

    Args:
        x: (N, D), finite.
        num_components: K, at most the number of different rows.
        centres: (K, D) to start from; `None` (default): by k-means++.
        starts: k-means++ starts of which the best is kept. Default 1.
        max_iterations: of each start. Default 100.
        seed: of the starts. Default 0.

    Raises:
        UsageError: more components than different rows, or centres of another shape.
        DataError: a value is not finite.

    Least Squares Quantization in PCM (Lloyd, 1982, doi:10.1109/TIT.1982.1056489); k-means++ (Arthur and Vassilvitskii,
    2007).

    Example:
        >>> found = kmeans(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2)
        >>> sorted(found.centres.flatten().tolist())
        [0.5, 10.5]
    """
    rows = as_rows(x)
    check_components(num_components, len(rows))
    if centres is not None and centres.shape != (num_components, rows.shape[1]):
        raise UsageError(
            f"centres must have shape (num_components, D) = ({num_components}, {rows.shape[1]}); got "
            f"{tuple(centres.shape)}."
        )
    shift = rows.mean(0)
    rows = rows - shift
    generator = torch.Generator().manual_seed(seed_from(seed, "k-means"))
    best: KMeans | None = None
    for _ in range(starts if centres is None else 1):
        start = _plus_plus(rows, num_components, generator) if centres is None else centres.to(rows) - shift
        found = _lloyd(rows, start, max_iterations)
        if best is None or found.distances[-1] < best.distances[-1]:
            best = found
    assert best is not None
    return KMeans(best.centres + shift, best.labels, best.distances)


def check_components(num_components: int, rows: int) -> None:
    """Raises a `UsageError` if there are more components than rows.

    Example:
        >>> check_components(2, 3)
    """
    if num_components > rows:
        raise UsageError(
            f"num_components must be at most the number of rows, {rows}; got {num_components}. Give more data."
        )


def _plus_plus(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Each centre is a row, drawn with a probability in proportion to its squared distance to those before."""
    chosen = [int(torch.randint(len(x), (), generator=generator))]
    nearest = (x - x[chosen[0]]).square().sum(1)
    for k in range(1, count):
        if not nearest.max() > 0:
            raise UsageError(
                f"num_components must be at most the number of different rows, {k}; got {count}. Use fewer components."
            )
        share = nearest.cumsum(0).cpu()
        u = torch.rand((), generator=generator, dtype=x.dtype) * share[-1]
        chosen.append(min(int(torch.searchsorted(share, u, right=True)), len(x) - 1))
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(1))
    return x[chosen]


def _lloyd(x: Tensor, centres: Tensor, max_iterations: int) -> KMeans:
    squares, distances, labels = x.square().sum(1), [], None
    for _ in range(max_iterations + 1):
        found = torch.addmm(centres.square().sum(1), x, centres.T, alpha=-2)  # but for the square of x
        nearest = found.min(1)
        own = (nearest.values + squares).clamp(min=0)
        distances.append(own.mean())
        if labels is not None and bool((nearest.indices == labels).all()):
            break
        labels = nearest.indices
        counts = labels.bincount(minlength=len(centres))
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            farthest = own.topk(len(empty)).indices
            labels = labels.index_copy(0, farthest, empty)
            counts = labels.bincount(minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    assert labels is not None
    return KMeans(centres, nearest.indices, torch.stack(distances))
