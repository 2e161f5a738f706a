"""Annealed importance sampling: log p(x) of a latent variable model of which only two densities are known."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from latentia.errors import NumericsError, UsageError
from latentia.rng import seed_from

_RATE = 0.2  # of the adaptation: log step size per unit of acceptance rate


class Annealed(NamedTuple):
    """Result of `annealed_importance_sampling`.

    Args:
        log_weights: float64 (N, chains), for `importance_bound`: their mean is an unbiased estimate of p(x).
        z: (chains, N, ...), the last states, about samples of p(z | x).
        acceptance: share of accepted proposals, in [0, 1]; far from the target the step size did not adapt.
        kind: for the `Likelihood`: how it was done.
    """

    log_weights: Tensor
    z: Tensor
    acceptance: float
    kind: str


class _State(NamedTuple):
    """Points (B, ...) with both log-densities (B,) and their gradients: no temperature needs them anew."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor


def sigmoid_temperatures(n: int, delta: float = 4.0) -> Tensor:
    """n + 1 inverse temperatures from 0 to 1, close together near both ends, where most is at stake: float64.

    References:
        "Sandwiching the marginal likelihood using bidirectional Monte Carlo", Grosse et al. 2015, arXiv:1511.02543.

    Example:
        >>> sigmoid_temperatures(2).tolist()
        [0.0, 0.5, 1.0]
    """
    if n < 1 or not delta > 0:
        raise UsageError(f"`n` must be at least 1 and `delta` positive. Got {n} and {delta}.")
    s = (delta * torch.linspace(-1, 1, n + 1, dtype=torch.float64)).sigmoid()
    return (s - s[0]) / (s[-1] - s[0])


def annealed_importance_sampling(
    log_prior: Callable[[Tensor], Tensor],
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    z: Tensor,
    temperatures: Tensor,
    *,
    seed: int = 0,
    leapfrog: int = 10,
    step_size: float = 0.1,
    target_acceptance: float = 0.65,
) -> Annealed:
    """Importance weights of chains that go from the prior to the posterior through `p(z) p(x | z)^b`, b = 0 ... 1.

    Each temperature has one transition of Hamiltonian Monte Carlo. Its step sizes, one for each image and temperature,
    are adapted by a first run of all chains and then held fixed in a second one, from which the weights come: if a
    chain's own past chose its steps, the weights would not be unbiased. So it costs 2 * leapfrog * temperatures
    gradients per chain.

    Args:
        log_prior: z (B, ...) -> log p(z), (B,); differentiable.
        log_likelihood: x (B, ...), z (B, ...) -> log p(x | z), (B,); differentiable in z.
        x: N images (N, ...).
        z: independent samples of the *prior*, (chains, N, ...). Their dtype is that of the computation.
        temperatures: b, increasing from 0 to 1, such as `sigmoid_temperatures(1000)`.
        seed: of momenta and acceptance.
        leapfrog: steps of a proposal, default 10.
        step_size: of the first adaptation, default 0.1.
        target_acceptance: that the step sizes are adapted to, in (0, 1), default 0.65.

    Raises:
        UsageError: an argument breaks these rules.
        NumericsError: a weight is NaN or infinite.

    References:
        "Annealed importance sampling", Neal 2001, arXiv:physics/9803008; "On the quantitative analysis of
        decoder-based generative models", Wu et al. 2016, arXiv:1611.04273.

    Example:
        >>> normal = lambda x, mean: torch.distributions.Normal(mean, 1.0).log_prob(x).sum(1)
        >>> x, z = torch.ones(2, 3), torch.randn(4, 2, 3)
        >>> found = annealed_importance_sampling(lambda z: normal(z, 0.0), normal, x, z, sigmoid_temperatures(20))
        >>> found.log_weights.shape, found.kind
        (torch.Size([2, 4]), 'annealed importance sampling, 4 chains, 20 temperatures')
    """
    betas = torch.as_tensor(temperatures, dtype=torch.float64).cpu()
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not bool((betas.diff() > 0).all()):
        raise UsageError(f"`temperatures` must increase from 0 to 1. Got {betas.flatten()[:5].tolist()}...")
    if z.ndim < 3 or z.shape[1] != len(x) or not len(z) or not z.is_floating_point():
        raise UsageError(f"`z` must be floats of shape (chains, {len(x)}, ...). Got {z.dtype} {tuple(z.shape)}.")
    if leapfrog < 1 or not step_size > 0 or not 0 < target_acceptance < 1:
        raise UsageError(
            "`leapfrog` must be at least 1, `step_size` positive and `target_acceptance` in (0, 1). Got "
            f"{leapfrog}, {step_size} and {target_acceptance}."
        )
    chains, n = z.shape[:2]
    repeated = x.repeat(chains, *[1] * (x.ndim - 1))  # (chains * N, ...), chain by chain as z.flatten(0, 1)

    def at(point: Tensor) -> _State:
        point = point.detach().requires_grad_(True)
        with torch.enable_grad():
            prior, likelihood = log_prior(point), log_likelihood(repeated, point)
            for name, value in (("log_prior", prior), ("log_likelihood", likelihood)):
                if value.shape != (len(point),):
                    given = tuple(value.shape)
                    raise UsageError(f"`{name}` must return one number per point, ({len(point)},). Got {given}.")
            gradients = (torch.autograd.grad(value.sum(), point)[0] for value in (prior, likelihood))
        return _State(point.detach(), prior.detach(), likelihood.detach(), *gradients)

    def run(stream: str, steps: Tensor, adapt: bool) -> tuple[Tensor, _State, Tensor, float]:
        """Log weights (chains * N,), last states, the step sizes used (temperatures, N) and the acceptance."""
        generator = torch.Generator().manual_seed(seed_from(seed, "annealing", stream))
        state, accepted = at(z.flatten(0, 1)), 0.0
        log_weights = torch.zeros(chains * n, dtype=torch.float64, device=z.device)
        for t, (low, high) in enumerate(zip(betas[:-1].tolist(), betas[1:].tolist())):
            log_weights += (high - low) * state.log_likelihood.double()
            state, probability = _transition(at, state, high, steps[t].repeat(chains), leapfrog, generator)
            accepted += float(probability.mean()) / (len(betas) - 1)
            if adapt and t + 1 < len(steps):
                excess = probability.view(chains, n).mean(0) - target_acceptance
                steps[t + 1] = steps[t] * (_RATE * excess).exp()
        return log_weights, state, steps, accepted

    steps = torch.full((len(betas) - 1, n), step_size, dtype=z.dtype, device=z.device)
    steps = run("adaptation", steps, adapt=True)[2]
    log_weights, state, _, accepted = run("sampling", steps, adapt=False)
    if not log_weights.isfinite().all():
        raise NumericsError(
            f"Importance weights must be finite. {int((~log_weights.isfinite()).sum())} of {len(log_weights)} are not: "
            "the log-likelihood of some samples of the prior is not finite; compute it from logits, or in float64."
        )
    kind = f"annealed importance sampling, {chains} chains, {len(betas) - 1} temperatures"
    return Annealed(log_weights.view(chains, n).T.contiguous(), state.z.view_as(z), accepted, kind)


def _transition(
    at: Callable[[Tensor], _State], state: _State, beta: float, steps: Tensor, leapfrog: int, generator: torch.Generator
) -> tuple[_State, Tensor]:
    """One proposal of Hamiltonian Monte Carlo, accepted or not, and the probability with which it was (B,)."""
    each = [len(state.z)] + [1] * (state.z.ndim - 1)

    def uniform() -> Tensor:
        return torch.rand(len(state.z), generator=generator, dtype=state.z.dtype).to(state.z.device)

    # Drawn on the CPU, so that a seed means the same numbers on every device.
    momentum = torch.randn(state.z.shape, generator=generator, dtype=state.z.dtype).to(state.z.device)
    # Steps that vary a little keep trajectories from closing upon themselves.
    eps = (steps * (0.8 + 0.4 * uniform())).view(each)

    def energy(where: _State, p: Tensor) -> Tensor:
        kinetic = p.square().flatten(1).sum(1) / 2
        return kinetic - where.log_prior - beta * where.log_likelihood

    start, new = energy(state, momentum), state
    p = momentum + eps / 2 * (new.prior_gradient + beta * new.likelihood_gradient)
    diverged = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    for step in range(leapfrog):
        z = new.z + eps * p
        # A trajectory that left the numbers goes back to its start, since torch.distributions raise on NaN.
        diverged |= ~z.isfinite().flatten(1).all(1)
        new = at(torch.where(diverged.view(each), state.z, z))
        share = 1.0 if step < leapfrog - 1 else 0.5
        p = p + share * eps * (new.prior_gradient + beta * new.likelihood_gradient)
    probability = (start - energy(new, p)).clamp(max=0).exp().nan_to_num(nan=0.0).masked_fill(diverged, 0.0)
    accept = uniform() < probability
    chosen = (torch.where(accept.view(each) if old.ndim > 1 else accept, fresh, old) for fresh, old in zip(new, state))
    return _State(*chosen), probability
