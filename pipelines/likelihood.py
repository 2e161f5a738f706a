"""Likelihood of denoising networks: exact by the change of variables along their ODE, or the bound of their chain."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.bounds import diffusion_bound_term
from latentia.functional.continuous_flow import flow_log_density
from latentia.functional.diffusion import predict_velocity
from latentia.pipelines.arguments import draw_noise, draw_uniform
from latentia.pipelines.sampling import Conditioning, check_steps, chunk_size, is_flow, noise_schedule, predict
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.schedulers.diffusion import check_division, make_alpha_bar, move

Network = Callable[[Tensor, Tensor], Tensor]  # points (B, ...), time steps (B,) -> output
Velocity = Callable[[Network, Tensor, Tensor], Tensor]  # network, times (B,), points (B, ...) -> dx/dt


def rademacher(generators: list[torch.Generator], probes: int, x: Tensor) -> Tensor:
    """Random signs, `probes` for each image: (B, probes, ...), of the dtype of x."""
    u = draw_uniform(generators, (probes, *x.shape[1:]), x.device)
    return torch.where(u < 0.5, -1.0, 1.0).to(x.dtype)


def ode_log_likelihood(
    unet: Any,
    scheduler: Any,
    x: Tensor,
    conditioning: Conditioning | None,
    probes: Tensor | None,
    num_inference_steps: int | None,
    tolerance: float,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Log-density of images under the probability-flow ODE of a network.

    Images are taken in chunks of one size, the last one padded, and each has steps of its own, so the number of an
    image does not depend on the others.

    Args:
        unet: called as `unet(x, t, **conditioning.inputs)`, t real.
        scheduler: of flow matching, or with a schedule of betas.
        x: (B, C, H, W) in [-1, 1].
        conditioning: `None`: none. Its guidance is not applied.
        probes: (B, K, C, H, W), or `None` for the exact trace, see `divergence`.
        num_inference_steps: of the Runge-Kutta method; `None`: adaptive steps.
        tolerance: of adaptive steps.
        progress: wraps the chunks.

    Returns:
        (B,), in nats, at least float32.

    Raises:
        UsageError: another kind of scheduler, or a chain without an ODE.
        NumericsError: the tolerance was not reached.
    """
    velocity, start, stop = probability_flow(scheduler)
    size = chunk_size(x.shape[-2] * x.shape[-1], x.device.type)
    wide = torch.promote_types(x.dtype, torch.float32)
    found = []
    for i in progress(range(0, len(x), size)):
        rows = torch.arange(i, i + size, device=x.device).clamp(max=len(x) - 1)
        inputs = {} if conditioning is None else conditioning.part(i, i + size).inputs
        density = flow_log_density(
            partial(velocity, partial(_output, unet, inputs)),
            x[rows].to(wide),
            start=start,
            stop=stop,
            probes=None if probes is None else probes[rows].to(wide),
            steps=num_inference_steps,
            tolerance=tolerance,
        )
        found.append(density.log_density)
    return torch.cat(found)[: len(x)]


def _output(unet: Any, inputs: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """What a network predicts, without the channels of a learned variance."""
    return unet(x.to(unet.dtype), t, **inputs).sample[:, : x.shape[1]].to(x.dtype)


def probability_flow(scheduler: Any) -> tuple[Velocity, float, float]:
    r"""The velocity of the probability-flow ODE, its time at the data and its time at N(0, I).

    Of flow matching it is the network's output, over t from 0 to 1. Of a variance-preserving diffusion it is
    \(dx/d\phi = v = \cos\phi\, \epsilon - \sin\phi\, x_0\) over the angle \(\phi\) of \(x = \cos\phi\, x_0 + \sin\phi\,
    \epsilon\), from that of the first time step, the smallest noise of training, to that of the last one. The network
    is evaluated between its time steps, at real ones, on which the angle is linear from each to the next.

    Song et al., 2020, 2011.13456, section 4.3; Salimans and Ho, 2022, 2202.00512, appendix D.

    Raises:
        UsageError: a scheduler with neither, a chain of one step, or one that predicts epsilon and ends without signal.
    """
    if is_flow(scheduler):
        unit = scheduler.config.num_train_timesteps
        return lambda network, t, x: network(x, unit * t), 0.0, 1.0
    config = noise_schedule(scheduler, DDPMScheduler).config
    alpha_bar, kind = make_alpha_bar(config), config.prediction_type
    if len(alpha_bar) < 2:
        raise UsageError("num_train_timesteps must be at least 2 for an ODE between the first and the last; got 1.")
    check_division(config, torch.arange(len(alpha_bar) - 1, -1, -1))
    angles = torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt())

    def velocity(network: Network, angle: Tensor, x: Tensor) -> Tensor:
        table = move(angles, angle.device)
        at = angle.to(table.dtype).contiguous()
        below = (torch.searchsorted(table, at, right=True) - 1).clamp(0, len(table) - 2)
        low, high = table[below], table[below + 1]
        t = (below + ((at - low) / (high - low)).clamp(0, 1)).to(x.dtype)
        each = (-1, *(1,) * (x.ndim - 1))
        return predict_velocity(kind, network(x, t), x, angle.cos().view(each), angle.sin().view(each))

    return velocity, float(angles[0]), float(angles[-1])


def rectified_velocity(scheduler: Any) -> Velocity:
    r"""The velocity of a denoising network on straight lines, whatever it predicts: that of flow matching.

    The probability-flow ODE of a variance-preserving diffusion, \(x = \cos\phi\, x_0 + \sin\phi\, \epsilon\), passes
    the points of \(x_t = (1 - t)\, x_0 + t\, \epsilon\) at \(\tan\phi = t / (1 - t)\), but for a scale; there both have
    the same expected \(\epsilon - x_0\).

    Returns:
        (network, t, x_t) -> the velocity at times t in [0, 1], (B,), of the shape of x_t, (B, ...).

    Raises:
        UsageError: as of `probability_flow`.

    Elucidating the Design Space (Karras et al., 2022, 2206.00364), appendix B; Lipman et al., 2022, 2210.02747.

    Example:
        >>> from latentia import DDIMScheduler
        >>> velocity = rectified_velocity(DDIMScheduler(prediction_type="epsilon"))
        >>> ones = torch.ones(1, 1)  # with eps = 1 and x_t = 1, x_0 = 1
        >>> bool(velocity(lambda x, t: ones, torch.tensor([0.5]), ones).abs() < 1e-5)
        True
    """
    velocity, start, stop = probability_flow(scheduler)
    if is_flow(scheduler):
        return velocity

    def rectified(network: Network, t: Tensor, x: Tensor) -> Tensor:
        angle, each = torch.atan2(t, 1 - t).clamp(start, stop), (-1, *(1,) * (x.ndim - 1))
        cos, sin = angle.cos().view(each), angle.sin().view(each)
        x = x / (t.square() + (1 - t).square()).sqrt().view(each)
        v = velocity(network, angle, x)
        return (sin * x + cos * v) - (cos * x - sin * v)  # eps - x_0

    return rectified


def bound_log_likelihood(
    unet: Any,
    scheduler: Any,
    x: Tensor,
    conditioning: Conditioning | None,
    generators: list[torch.Generator],
    num_inference_steps: int | None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """The variational bound of a diffusion chain, each term estimated with one draw of noise.

    Args:
        unet, x, conditioning: as for `ode_log_likelihood`.
        scheduler: with a schedule of betas.
        generators: one for each image, for the noise.
        num_inference_steps: length of the chain; `None`: all steps that were trained.
        progress: wraps the time steps.

    Returns:
        (B,), in nats, float32.

    Raises:
        UsageError: another kind of scheduler, or more steps than were trained.
    """
    learned = unet.config.out_channels == 2 * unet.config.in_channels
    chain = noise_schedule(scheduler, DDPMScheduler, variance_type="learned_range" if learned else "fixed_large")
    steps = chain.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
    check_steps(scheduler, steps)
    chain.set_timesteps(steps, device=x.device)
    first, last = chain.timesteps[0], chain.timesteps[-1]
    alpha_bar = chain.alphas_cumprod[first].float()
    # L_T = KL(q(x_T | x_0) || N(0, 1))
    total = 0.5 * (alpha_bar * x.float().square() - alpha_bar - torch.log1p(-alpha_bar)).flatten(1).sum(1)
    for t in progress(chain.timesteps):
        x_t = chain.add_noise(x, draw_noise(generators, x.shape[1:], x.device, x.dtype), t)
        prediction = predict(unet, x_t, t, conditioning, with_variance=True)
        mean, log_variance, _ = chain.reverse(prediction, t, x_t)
        q_mean, q_log_variance = chain.posterior(x, t, x_t)
        total = total + diffusion_bound_term(x, mean, log_variance, q_mean, q_log_variance, t == last)
    return -total
