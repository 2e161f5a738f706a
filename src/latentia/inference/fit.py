"""The result of an iterative fit: the model and the bound of every iteration."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

Model = TypeVar("Model")


@dataclass(frozen=True)
class Fit(Generic[Model]):
    """A fitted model and how it was reached.

    Args:
        model: the fitted one.
        bounds: lower bound of the log-likelihood before each update and at the end, mean of a datum in nats, float64
            (iterations + 1,). The last one belongs to `model`.
        converged: whether the bound rose by less than the tolerance in the last iteration.
        restarted: iterations after which an empty component was put elsewhere; the bound may fall there alone.

    Example:
        >>> import torch
        >>> Fit(None, torch.tensor([-3.0, -2.0]), True).iterations
        1
    """

    model: Model
    bounds: Tensor
    converged: bool
    restarted: tuple[int, ...] = ()

    @property
    def iterations(self) -> int:
        """Updates of the parameters."""
        return len(self.bounds) - 1
