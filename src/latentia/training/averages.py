"""Averages of weights of any length after training (post-hoc EMA), from the averages that checkpoints hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentia.errors import UsageError, check_range, counted

LONGEST = 0.28  # about that of equal weights of all steps, 1 / sqrt(12)
_EDGES = 4096  # steps at which the weights up to there are compared
_FARTHEST = 0.25  # of the length, beyond which one average is not the other


@dataclass(frozen=True)
class Combination:
    """Shares of the averages of checkpoints, which sum to 1, and what they come to.

    Args:
        shares: of each checkpoint, at least 0.
        difference: how far the steps are off on average, the Wasserstein distance of their weights from those that were
            asked for, as a share of the length.
    """

    shares: list[float]
    difference: float


def power_exponent(length: float) -> float:
    r"""The exponent \(\gamma\) of the weights \(\propto \tau^\gamma\) of steps \(\tau\), an average of a given length.

    Args:
        length: standard deviation of the steps that are averaged, as a share of all steps; in (0, 0.28].

    Raises:
        UsageError: a length out of its range.

    Karras et al., 2023, 2312.02696, eq. 123 to 126.

    Example:
        >>> round(power_exponent(0.05), 2), round(power_exponent(0.1), 2)
        (16.97, 6.94)
    """
    check_range("length", length, 0, LONGEST, closed="right")
    square = length**2
    roots = np.roots([square, 7 * square, 16 * square - 1, 12 * square - 1])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def combine(ends: Sequence[int], decay: float, warmup: bool, length: float, end: int) -> Combination:
    r"""Shares of running averages that come nearest to the average with weights \(\propto \tau^\gamma\) up to a step.

    The averages are those of `latentia.training.ema.EMA`, so the weight of every step in each is known. Least squares
    of the weights up to each step, not of the weights themselves, so that the mean step is right too. Shares are not
    negative, so that what they make is a mean: variances of batch norms stay positive.

    Args:
        ends: updates after which each average was saved, none beyond `end`.
        decay: of the running averages.
        warmup: whether their early decays are smaller, as `EMA` has it.
        length: as for `power_exponent`.
        end: the step at which the average that is asked for ends.

    Raises:
        UsageError: a length out of its range, or one that is not near to any mean of these averages.

    After Karras et al., 2023, 2312.02696, section 3.2 and appendix C, who fit the weights themselves.

    Example:
        >>> combine([1000, 2000], decay=0.99999, warmup=True, length=0.0905, end=2000).shares
        [0.0, 1.0]
    """
    from scipy.optimize import nnls

    edges = np.unique(np.linspace(0, end, min(end, _EDGES) + 1).astype(np.int64))
    widths = np.append(1, np.diff(edges))
    own, wanted = _cumulative(ends, decay, warmup, edges), (edges / end) ** (power_exponent(length) + 1)
    root = np.sqrt(widths)
    sum_is_one = 1e3 * float(np.linalg.norm(wanted * root))
    rows = np.vstack([(own * root).T, np.full(len(own), sum_is_one)])
    shares, _ = nnls(rows, np.append(wanted * root, sum_is_one))
    shares /= shares.sum()
    difference = float(np.abs(shares @ own - wanted) @ widths) / (length * end)
    if difference > _FARTHEST:
        raise UsageError(
            f"length {length} cannot be made of {counted(len(ends), 'average')} with ema_decay {decay}: the steps of "
            f"the nearest mean are off by {difference:.0%} of the length. Take another length, or train with a smaller "
            "ema_decay for a shorter one, and keep more checkpoints, checkpoints_total_limit 100, for a longer one."
        )
    return Combination([round(float(share), 6) for share in shares], difference)


def _cumulative(ends: Sequence[int], decay: float, warmup: bool, edges: np.ndarray) -> np.ndarray:
    """The weight that each average gives to all steps up to each edge, (len(ends), len(edges)): a product of decays."""
    steps = np.arange(max(ends))
    decays = np.minimum(decay, (1 + steps) / (10 + steps)) if warmup else np.full(len(steps), decay)
    logs = np.append(0.0, np.cumsum(np.log(np.maximum(decays, 1e-300))))
    return np.exp(np.minimum(logs[np.asarray(ends)][:, None] - logs[np.minimum(edges, max(ends))], 0.0))
