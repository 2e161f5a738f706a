r"""Solvers of ordinary differential equations \(dy/dt = f(t, y)\): fixed steps, or adaptive ones for each sample."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import NumericsError, check_choice, check_range

Field = Callable[[Tensor, Tensor], Tensor]  # times (B,), states (B, N) -> derivatives (B, N)


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Runge-Kutta method: \(k_i = f(t + c_i h, y + h \sum_j a_{ij} k_j)\), \(y' = y + h \sum_i b_i k_i\).

    Args:
        nodes: c, one for each stage.
        stages: a, for stage i the factors of the stages before it.
        weights: b.
        error: b minus the weights of the embedded method of lower order, for an estimate of the error; none by default.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()


FIXED = {
    "euler": Tableau((0,), ((),), (1,)),
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "rk4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
# Dormand and Prince, 1980, doi:10.1016/0771-050X(80)90013-3, table 2. The last stage is at the end of the step: an
# accepted step hands it on as the first stage of the next one.
_LAST = (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DORMAND_PRINCE = Tableau(
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _LAST,
    ),
    (*_LAST, 0),
    (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
_FIRST_STEP, _SAFETY, _LEAST, _MOST = 0.01, 0.9, 0.2, 5.0  # of the whole way; of the change of a step


def solve_fixed(field: Field, states: Tensor, start: float, stop: float, steps: int, method: str = "rk4") -> Tensor:
    """States at `stop` of those at `start`, by equal steps.

    Args:
        field: times (B,), states (B, N) -> derivatives (B, N).
        states: (B, N).
        start, stop: times; `stop` may be the smaller one.
        steps: at least 1.
        method: "euler", "heun" or "rk4" (default), of order 1, 2 and 4, with as many evaluations for each step.

    Returns:
        (B, N).

    Raises:
        UsageError: no step, or an unknown method.

    Example:
        >>> solve_fixed(lambda t, y: y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0, steps=20)  # e
        tensor([[2.7183]], dtype=torch.float64)
    """
    check_range("steps", steps, 1, integer=True)
    check_choice("method", method, FIXED)
    tableau, h = FIXED[method], (stop - start) / steps
    size = states.new_full((len(states),), h)
    for step in range(steps):
        t = states.new_full((len(states),), start + step * h)
        ks = _evaluate(field, t, states, size, field(t, states), tableau)
        states = states + h * _combined(tableau.weights, ks)
    return states


def solve_adaptive(
    field: Field, states: Tensor, start: float, stop: float, tolerance: float = 1e-5, max_evaluations: int = 5000
) -> Tensor:
    r"""States at `stop` of those at `start`, by Dormand and Prince's method of order 5 with steps chosen by its error.

    Each sample has a time and a step of its own, so that its result does not depend on the others in the batch. A step
    is accepted if the error estimate of every component is at most `tolerance` \(\cdot (1 + |y|)\).

    Args:
        field: times (B,), states (B, N) -> derivatives (B, N); of one sample they depend on that sample alone.
        states: (B, N).
        start, stop: times; `stop` may be the smaller one.
        tolerance: of one step, absolute and relative, positive. Default 1e-5. In float32 not below about 1e-6.
        max_evaluations: of the field for the whole batch. Default 5000.

    Returns:
        (B, N).

    Raises:
        UsageError: a tolerance that is not positive.
        NumericsError: a sample does not arrive within `max_evaluations`: the tolerance is out of reach, or a derivative
            is not finite.

    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), section II.4.

    Example:
        >>> solve_adaptive(lambda t, y: y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0)  # e
        tensor([[2.7183]], dtype=torch.float64)
    """
    check_range("tolerance", tolerance, 0, closed="neither")
    check_range("max_evaluations", max_evaluations, 1, integer=True)
    span = stop - start

    def scaled(u: Tensor, y: Tensor) -> Tensor:  # over u = (t - start) / (stop - start) in [0, 1]
        return span * field(start + span * u, y)

    y, u = states, states.new_zeros(len(states))
    h = torch.full_like(u, _FIRST_STEP)
    first, evaluations = scaled(u, y), 1
    while bool((u < 1).any()):
        if evaluations + 6 > max_evaluations:
            least, late = float(u.min()), int((u < 1).sum())
            raise NumericsError(
                f"tolerance={tolerance:g} was not reached within {max_evaluations} evaluations: {late} of {len(y)} "
                f"samples are still on the way, one at {least:.2%} of it. Give a larger tolerance, or a fixed number "
                "of steps; in half precision rounding alone may exceed it."
            )
        h = torch.minimum(h, 1 - u)
        ks = _evaluate(scaled, u, y, h, first, DORMAND_PRINCE)
        evaluations += 6
        new = y + h[:, None] * _combined(DORMAND_PRINCE.weights, ks)
        error = h[:, None] * _combined(DORMAND_PRINCE.error, ks)
        ratio = (error.abs() / (tolerance * (1 + torch.maximum(y.abs(), new.abs())))).amax(1)
        ratio = torch.where(new.isfinite().all(1), ratio, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)
        accepted = ratio <= 1
        y = torch.where(accepted[:, None], new, y)
        first = torch.where(accepted[:, None], ks[-1], first)
        u = torch.where(accepted, torch.where(h >= 1 - u, 1.0, u + h), u)
        h = h * (_SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(_LEAST, _MOST)
    return y


def _evaluate(field: Field, t: Tensor, y: Tensor, h: Tensor, first: Tensor, tableau: Tableau) -> list[Tensor]:
    """The stages k of one step of size h (B,), the first of which is known."""
    ks = [first]
    for node, factors in zip(tableau.nodes[1:], tableau.stages[1:]):
        ks.append(field(t + node * h, y + h[:, None] * _combined(factors, ks)))
    return ks


def _combined(factors: tuple[float, ...], ks: list[Tensor]) -> Tensor:
    return sum((factor * k for factor, k in zip(factors, ks) if factor), torch.zeros_like(ks[0]))
