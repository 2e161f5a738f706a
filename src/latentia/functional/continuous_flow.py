r"""Log-density of a continuous normalising flow: the change of variables along an ODE, and its divergence.

A velocity \(v(t, x)\) carries data at `start` to N(0, I) at `stop`. Along \(dx/dt = v\) the log-density changes by
\(d \log p_t(x_t) / dt = -\nabla \cdot v(t, x_t)\) (Chen et al., 2018, 1806.07366, theorem 1).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentia.errors import NumericsError, UsageError
from latentia.functional.ode import solve_adaptive, solve_fixed


class FlowDensity(NamedTuple):
    """Result of `flow_log_density`.

    Args:
        log_density: in nats, (B,).
        latents: the points at `stop` that the samples are carried to, of their shape.
    """

    log_density: Tensor
    latents: Tensor


def divergence(function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""A function at x, and its divergence \(\mathrm{tr}(\partial f / \partial x)\) there.

    Args:
        function: (B, ...) -> the same shape, each sample of its own row alone; differentiable.
        x: (B, ...) of D values each.
        probes: (B, K, ...), independent random vectors \(\epsilon\) with \(E[\epsilon \epsilon^T] = I\): the mean of
            \(\epsilon^T (\partial f / \partial x)\, \epsilon\) is an unbiased estimate (Hutchinson, 1990), by K passes
            backward. `None` (default): exact, by D passes.

    Returns:
        \(f(x)\), of the shape of x, and the divergence, (B,).

    Raises:
        UsageError: probes of another shape.

    FFJORD (Grathwohl et al., 2018, 1810.01367), section 3.1.

    Example:
        >>> divergence(lambda x: x**2, torch.tensor([[1.0, 3.0]]))  # 2 + 6
        (tensor([[1., 9.]]), tensor([8.]))
    """
    if probes is not None and (probes.shape[:1] + probes.shape[2:] != x.shape or not probes.shape[1]):
        raise UsageError(
            f"probes must have shape (B, K, ...), K at least 1, for points of shape {tuple(x.shape)}; got "
            f"{tuple(probes.shape)}."
        )
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)

    def backward(vector: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(y, x, vector, retain_graph=True)
        return (found * vector).flatten(1).sum(1)

    if probes is not None:
        return y.detach(), torch.stack([backward(probes[:, k]) for k in range(probes.shape[1])]).mean(0)
    total = y.new_zeros(len(y))
    for i in range(y[0].numel()):
        unit = torch.zeros_like(y).flatten(1)
        unit[:, i] = 1
        total = total + backward(unit.view_as(y))
    return y.detach(), total


def directional_derivative(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> Tensor:
    r"""The Jacobian-vector product \(\sum_i \frac{\partial f}{\partial x_i} v_i\), by differentiating backward twice.

    For networks: derivatives in forward mode are missing for channels last, and slower. Compiled parts run uncompiled.

    Args:
        function: of the inputs, twice differentiable.
        inputs: \(x_i\).
        tangents: \(v_i\), each of the shape of its input.

    Returns:
        Of the shape of the function's value, without gradient.

    Example:
        >>> x, t = torch.tensor([3.0]), torch.tensor([2.0])
        >>> directional_derivative(lambda x, t: x**2 * t, (x, t), (torch.ones(1), torch.zeros(1)))  # 2 x t
        tensor([12.])
    """
    # Neither compiled graphs nor the other attention kernels can be differentiated twice.
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        y = function(*inputs)
        weights = torch.zeros_like(y, requires_grad=True)  # of y: the gradient is linear in them
        gradients = torch.autograd.grad(y, inputs, weights, create_graph=True)
        return torch.autograd.grad(gradients, weights, tangents)[0].detach()


@torch.no_grad()
def flow_log_density(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    start: float = 0.0,
    stop: float = 1.0,
    probes: Tensor | None = None,
    steps: int | None = None,
    tolerance: float = 1e-5,
    max_evaluations: int = 5000,
) -> FlowDensity:
    r"""\(\log p(x) = \log N(z; 0, I) + \int \nabla \cdot v(t, x_t)\, dt\), with z where the ODE carries x.

    It is the density of the points that the same ODE makes of N(0, I), up to the error of the solver. With probes it is
    an unbiased estimate of it.

    Args:
        velocity: times (B,), points (B, ...) -> derivatives (B, ...); differentiable.
        x: (B, ...), the data at time `start`.
        start, stop: times of the data and of N(0, I). Default 0 and 1.
        probes: see `divergence`; the same along the whole path. `None` (default): the exact divergence.
        steps: steps of the classical Runge-Kutta method, four evaluations each; `None` (default): adaptive steps.
        tolerance: of adaptive steps, for each value of a point and for the integral, divided by the number of values.
            Default 1e-5.
        max_evaluations: of adaptive steps. Default 5000.

    Returns:
        Log-density and latents, in the dtype of x, at least float32.

    Raises:
        UsageError: numbers out of range.
        NumericsError: the tolerance was not reached, or a result is not finite.

    Score-Based Generative Modeling through SDEs (Song et al., 2020, 2011.13456), eq. 39; FFJORD (Grathwohl et al.,
    2018, 1810.01367), eq. 3.

    Example:
        >>> shrink = lambda t, x: x  # N(0, e^-2) becomes N(0, 1)
        >>> found = flow_log_density(shrink, torch.zeros(1, 2))
        >>> normal = torch.distributions.Normal(0.0, math.exp(-1))
        >>> torch.allclose(found.log_density, 2 * normal.log_prob(torch.zeros(1)), atol=1e-4)
        True
    """
    values = x[0].numel()
    points = x.to(torch.promote_types(x.dtype, torch.float32))

    def field(t: Tensor, states: Tensor) -> Tensor:  # the points, and the integral of the divergence for each value
        v, trace = divergence(lambda x: velocity(t, x), states[:, :-1].reshape(x.shape), probes)
        return torch.cat([v.flatten(1), trace[:, None] / values], 1)

    states = torch.cat([points.flatten(1), points.new_zeros(len(x), 1)], 1)
    if steps is None:
        states = solve_adaptive(field, states, start, stop, tolerance, max_evaluations)
    else:
        states = solve_fixed(field, states, start, stop, steps)
    z, integral = states[:, :-1], values * states[:, -1]
    found = integral - 0.5 * z.square().sum(1) - 0.5 * values * math.log(2 * math.pi)
    if not found.isfinite().all():
        raise NumericsError(
            f"Log-densities must be finite; {int((~found.isfinite()).sum())} of {len(found)} are not: the velocity is "
            f"not, or it leads {'steps that are too long' if steps else 'points'} to infinity. Take more steps."
        )
    return FlowDensity(found, z.reshape(x.shape))
