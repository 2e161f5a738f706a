"""Solvers of ODEs, divergences and densities along a flow, against closed forms in float64."""

import math

import pytest
import torch
from helpers import seeded
from torch import nn

from latentia.errors import NumericsError, UsageError
from latentia.functional.continuous_flow import divergence, flow_log_density
from latentia.functional.ode import FIXED, solve_adaptive, solve_fixed

MEAN = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.7, 0.0], [-0.2, 0.1, 0.3]], dtype=torch.float64)
DATA = torch.distributions.MultivariateNormal(MEAN, scale_tril=ROOT)
X = MEAN + torch.randn(40, 3, generator=seeded(0), dtype=torch.float64) @ ROOT.T


def exact_velocity(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """E[eps - x_0 | x_t = x] for x_0 from `DATA` and x_t = (1 - t) x_0 + t eps."""
    a, b = (1 - t)[:, None, None], t[:, None, None]
    covariance, one = ROOT @ ROOT.T, torch.eye(3, dtype=torch.float64)
    weights = torch.linalg.solve(a**2 * covariance + b**2 * one, b * one - a * covariance, left=False)
    return -MEAN + (weights @ (x - a[:, 0] * MEAN)[:, :, None])[:, :, 0]


class Small(nn.Module):
    """A velocity in the plane from a random network, which is bounded."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        ).double()

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layers(torch.cat([x, t[:, None]], 1)).tanh()


# ------------------------------------------------------------ solvers


def turn(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """dy/dt = cos(t) (y_2, -y_1): y turns by the angle sin(t)."""
    return t.cos()[:, None] * torch.stack([y[:, 1], -y[:, 0]], 1)


def turned(y: torch.Tensor, t: float) -> torch.Tensor:
    c, s = math.cos(math.sin(t)), math.sin(math.sin(t))
    return torch.stack([c * y[:, 0] + s * y[:, 1], c * y[:, 1] - s * y[:, 0]], 1)


Y = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_errors_of_fixed_steps_fall_by_their_order(method, order):
    errors = [float((solve_fixed(turn, Y, 0.0, 1.3, n, method) - turned(Y, 1.3)).abs().max()) for n in (40, 80)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15
    assert set(FIXED) == {"euler", "heun", "rk4"}


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_the_adaptive_solver_keeps_its_tolerance(tolerance):
    counted = []

    def field(t, y):
        counted.append(len(y))
        return turn(t, y)

    found = solve_adaptive(field, Y, 0.0, 1.3, tolerance)
    assert (found - turned(Y, 1.3)).abs().max() < 20 * tolerance
    assert len(counted) < 40 * (1e-4 / tolerance) ** 0.2  # order 5
    back = solve_adaptive(turn, found, 1.3, 0.0, tolerance)
    assert (back - Y).abs().max() < 40 * tolerance


def test_each_sample_has_steps_of_its_own():
    """The second is hard, and changes nothing for the first."""
    speed = torch.tensor([1.0, 60.0], dtype=torch.float64)

    def field(rows):
        return lambda t, y: (speed[rows] * (speed[rows] * t).cos())[:, None] * torch.ones_like(y)

    start = torch.zeros(2, 1, dtype=torch.float64)
    both = solve_adaptive(field([0, 1]), start, 0.0, 1.0, 1e-8)
    for i in (0, 1):
        assert torch.equal(solve_adaptive(field([i]), start[i : i + 1], 0.0, 1.0, 1e-8), both[i : i + 1])
    torch.testing.assert_close(both[:, 0], speed.sin(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "field, tolerance",
    [
        (lambda t, y: torch.where(t[:, None] < 0.5, 1.0, -1.0) * y.sign(), 1e-300),
        (lambda t, y: y**2, 1e-5),  # at infinity before the end
        (lambda t, y: y / 0, 1e-5),
    ],
)
def test_a_tolerance_out_of_reach_is_an_error(field, tolerance):
    with pytest.raises(NumericsError, match=r"tolerance=.* was not reached within 500 evaluations: 3 of 3 samples"):
        solve_adaptive(field, torch.full((3, 1), 2.0, dtype=torch.float64), 0.0, 1.0, tolerance, max_evaluations=500)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: solve_fixed(turn, Y, 0.0, 1.0, 0), "steps must be at least 1; got 0"),
        (lambda: solve_fixed(turn, Y, 0.0, 1.0, 2, "hewn"), 'method must be one of euler, heun, rk4; .*"heun"'),
        (lambda: solve_adaptive(turn, Y, 0.0, 1.0, 0.0), "tolerance must be positive; got 0"),
        (lambda: divergence(lambda x: x, X, torch.ones(40, 2)), r"probes must have shape \(B, K, ...\), .*\(40, 2\)"),
        (lambda: divergence(lambda x: x, X, torch.ones(40, 0, 3)), "K at least 1"),
    ],
)
def test_arguments_out_of_range(call, words):
    with pytest.raises(UsageError, match=words):
        call()


# ------------------------------------------------------------ divergence


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    network, t = Small(), torch.full((40,), 0.4, dtype=torch.float64)
    value, found = divergence(lambda x: network(t, x), X[:, :2])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: network(t[:1], x[None])[0]))(X[:, :2])
    torch.testing.assert_close(found, jacobians.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(value, network(t, X[:, :2]).detach())
    assert not value.requires_grad and not found.requires_grad


@pytest.mark.parametrize("kind", ["signs", "normal"])
def test_hutchinson_is_unbiased(kind):
    matrix = torch.randn(3, 3, generator=seeded(2), dtype=torch.float64)
    probes = torch.randn(1, 20_000, 3, generator=seeded(3), dtype=torch.float64)
    probes = probes.sign() if kind == "signs" else probes
    each = torch.stack([divergence(lambda x: x @ matrix.T, X[:1], probes[:, k : k + 1])[1] for k in range(2000)])
    error = each.std() / len(each) ** 0.5
    assert abs(each.mean() - matrix.trace()) < 4 * error and error > 0
    together = divergence(lambda x: x @ matrix.T, X[:1], probes[:, :2000])[1]
    torch.testing.assert_close(together, each.mean(0))


# ------------------------------------------------------------ density


@pytest.mark.parametrize("options", [{"steps": 60}, {"tolerance": 1e-7}])
def test_the_density_of_a_gaussian_is_exact(options):
    found = flow_log_density(exact_velocity, X, **options)
    assert (found.log_density - DATA.log_prob(X)).abs().max() < 1e-5
    # The flow of a Gaussian is affine and carries it to N(0, I) exactly, so the latents have the densities' norm.
    back = solve_adaptive(exact_velocity, found.latents, 1.0, 0.0, 1e-8)
    assert (back - X).abs().max() < 1e-5


def test_probes_give_the_density_on_average():
    signs = torch.randn(300 * 40, 1, 3, generator=seeded(4), dtype=torch.float64).sign()
    each = flow_log_density(exact_velocity, X.repeat(300, 1), steps=20, probes=signs).log_density.view(300, 40)
    exact, error = flow_log_density(exact_velocity, X, steps=20).log_density, each.std(0) / 300**0.5
    assert (error > 0.01).all() and ((each.mean(0) - exact).abs() < 4.5 * error).all()
    assert abs(((each.mean(0) - exact) / error).mean()) < 4 / 40**0.5


@pytest.mark.parametrize("options", [{"steps": 30}, {"tolerance": 1e-5}])
def test_the_density_of_a_network_integrates_to_one(options):
    edges, n = 6.0, 120
    side = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * edges - edges
    grid = torch.cartesian_prod(side, side)
    density = flow_log_density(Small(), grid, **options).log_density.exp()
    assert abs(density.sum() * (2 * edges / n) ** 2 - 1) < 2e-3
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(grid).sum(1).exp()
    assert (density - normal).abs().sum() * (2 * edges / n) ** 2 > 0.3  # it is not N(0, I) itself


def test_the_density_of_samples_is_that_of_their_noise():
    """log p of what the flow makes of z is log N(z) minus the log-determinant of autograd's Jacobian of the solver."""
    network, z = Small(1), torch.randn(6, 2, generator=seeded(5), dtype=torch.float64)

    def generate(z):
        return solve_fixed(network, z, 1.0, 0.0, 100)

    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: generate(z[None])[0]))(z)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(z).sum(1)
    found = flow_log_density(network, generate(z).detach(), tolerance=1e-9)
    torch.testing.assert_close(found.log_density, (normal - jacobians.det().abs().log()).detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.latents, z, atol=1e-6, rtol=0)


def test_a_density_that_is_not_finite_is_an_error():
    with pytest.raises(NumericsError, match=r"Log-densities must be finite; 40 of 40 are not"):
        flow_log_density(lambda t, x: 1e300 * x, X, steps=2)
