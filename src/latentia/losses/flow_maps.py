r"""Objectives of networks that sample in one or a few steps: mean flow and shortcut models.

Both train \(u_\theta(x_t, t, r)\), the mean velocity of the path from time t to an earlier time r, so that one step of
Euler's method, \(x_r = x_t - (t - r)\, u_\theta(x_t, t, r)\), is exact however long it is. At r = t it is the velocity
of flow matching. The network is a `UNet2D` with `target_time`, and `FlowMatchEulerDiscreteScheduler` samples from it.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import Count, Finite, Positive, Share, Size, UsageError, Weight, check_arguments
from latentia.functional.continuous_flow import directional_derivative
from latentia.functional.precision import full_precision
from latentia.losses.conditions import Conditions, dropped_conditions, item_of
from latentia.losses.flow_matching import Teacher, coupled_noise
from latentia.losses.networks import config_of, unwrap
from latentia.losses.times import sample_times, times_at
from latentia.rng import Rng


@check_arguments
def mean_flow_loss(
    unet: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    num_train_timesteps: Size = 1000,
    time_sampling: str = "logit_normal",
    time_loc: Finite = -0.4,
    time_scale: Positive = 1.0,
    flow_share: Share = 0.75,
    adaptive_power: Weight = 1.0,
    class_dropout: Share = 0.1,
    empty_text: tuple[Tensor, Tensor] | None = None,
    coupling_size: Size | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    r"""Mean flow: regress the mean velocity on the identity between it and the velocity.

    The target is \(v - (t - r)\, \frac{d}{dt} u_\theta(x_t, t, r)\) without gradient, where \(v = \epsilon - x_0\) and
    the total derivative \(v\, \partial_x u + \partial_t u\) is one Jacobian-vector product.

    Args:
        unet: called as `unet(x_t, N t, target_timestep=N r, **conditions)`, N = `num_train_timesteps`.
        batch: as for `latentia.losses.flow_matching.flow_matching_loss`.
        rng: the randomness of this micro-batch.
        num_train_timesteps: the scheduler's unit of time. Default 1000.
        time_sampling, time_loc, time_scale: density of both times, of which t is the later one; see
            `latentia.losses.times.sample_times`. Default logit-normal at -.4.
        flow_share: share of images with r = t, which need no derivative, in [0, 1]. Default .75.
        adaptive_power: p of the weight \((\lVert \Delta \rVert^2 + .001)^{-p}\) of each image, without gradient. 0: no
            weight. Default 1.
        class_dropout, empty_text: as in `latentia.losses.diffusion.diffusion_loss`.
        coupling_size: as in `flow_matching_loss`. Default none.
        teacher: (x_t, t, conditions) -> a trained velocity in the place of \(\epsilon - x_0\), such as a guided one,
            for distillation. `None` (default): none.

    Returns:
        "loss", and "error", the squared error per pixel without the weight.

    Raises:
        UsageError: a network without `target_time`, an argument out of its range, or a batch without what is needed.

    Mean Flows for One-step Generative Modeling (Geng et al., 2025, 2505.13447), algorithm 1 and appendix A.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), target_time=True)
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> sorted(mean_flow_loss(unet, batch, Rng(0, 0, 4, 0, 4)))
        ['error', 'loss']
    """
    x0, eps, conditions = _start(unet, batch, rng, class_dropout, empty_text, coupling_size)
    density = time_sampling, time_loc, time_scale
    first, second = sample_times(rng, *density), times_at(rng.uniform("target times"), *density)
    jumps = _jumps(rng, flow_share)
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    r = torch.where(_mask(jumps, rng), r, t)
    x_t = torch.lerp(x0, eps, _wide(t, x0))
    v = eps - x0 if teacher is None else teacher(x_t, t, conditions)
    target = v.clone()
    if len(jumps):
        some = {name: value[jumps] for name, value in conditions.items()}
        end, velocity = r[jumps], _velocity(unwrap(unet), num_train_timesteps)

        def mean_velocity(x: Tensor, time: Tensor) -> Tensor:
            return velocity(x, time, end, some)

        with full_precision(x0.device.type):
            inputs, tangents = (x_t[jumps], t[jumps]), (v[jumps], torch.ones_like(end))
            derivative = directional_derivative(mean_velocity, inputs, tangents)
        target[jumps] -= _wide(t[jumps] - end, x0) * derivative
    error = _velocity(unet, num_train_timesteps)(x_t, t, r, conditions) - target
    total = error.square().flatten(1).sum(1)
    weight = (total.detach() + 1e-3) ** -adaptive_power
    return {"loss": (weight * total).mean(), "error": error.detach().square().mean()}


@check_arguments
def shortcut_loss(
    unet: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    num_train_timesteps: Size = 1000,
    time_sampling: str = "uniform",
    time_loc: Finite = 0.0,
    time_scale: Positive = 1.0,
    flow_share: Share = 0.75,
    most_steps: Count = 128,
    class_dropout: Share = 0.1,
    empty_text: tuple[Tensor, Tensor] | None = None,
    coupling_size: Size | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    r"""Shortcut models: one step of length 2d leads to where two steps of length d lead.

    Images with a step are trained on the mean of the network's own two velocities,
    \(u(x_t, t, t - d)\) and \(u(x_{t-d}, t - d, t - 2d)\), without gradient, where 2d is 1, 1/2, 1/4, ... and t a
    multiple of 2d; all others on the velocity of flow matching at r = t. The shortest steps d take the velocity itself.

    Args:
        unet, batch, rng, num_train_timesteps: as for `mean_flow_loss`.
        time_sampling, time_loc, time_scale: density of the times of flow matching. Default uniform.
        flow_share: share of images that learn the velocity, in [0, 1]. Default .75.
        most_steps: a power of two; the shortest step d is one of so many. Default 128.
        class_dropout, empty_text, coupling_size, teacher: as for `mean_flow_loss`.

    Returns:
        "loss", a mean over pixels.

    Raises:
        UsageError: as of `mean_flow_loss`, or `most_steps` that is no power of two.

    One Step Diffusion via Shortcut Models (Frans et al., 2024, 2410.12557), algorithm 1.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), target_time=True)
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> shortcut_loss(unet, batch, Rng(0, 0, 4, 0, 4))["loss"].item() > 0
        True
    """
    if most_steps < 2 or most_steps & (most_steps - 1):
        raise UsageError(f"most_steps must be a power of two from 2 on; got {most_steps}.")
    x0, eps, conditions = _start(unet, batch, rng, class_dropout, empty_text, coupling_size)
    jumps = _jumps(rng, flow_share)
    levels = most_steps.bit_length() - 1
    halvings = (rng.uniform("step size") * levels).floor()  # 2d = 2^-halvings
    step = 0.5**halvings
    grid = (1 + (rng.uniform("target times") * 2**halvings).floor()) * step  # t in {2d, 4d, ..., 1}
    stepping = _mask(jumps, rng)
    t = torch.where(stepping, grid, sample_times(rng, time_sampling, time_loc, time_scale))
    r = torch.where(stepping, grid - step, t)
    x_t = torch.lerp(x0, eps, _wide(t, x0))
    target = eps - x0 if teacher is None else teacher(x_t, t, conditions)
    if len(jumps):
        some = {name: value[jumps] for name, value in conditions.items()}
        velocity = _velocity(unwrap(unet), num_train_timesteps)
        start, middle, end = t[jumps], (t - step / 2)[jumps], r[jumps]
        shortest = halvings[jumps] == levels - 1
        with torch.no_grad():
            first = velocity(x_t[jumps], start, torch.where(shortest, start, middle), some)
            between = x_t[jumps] - _wide(start - middle, x0) * first
            second = velocity(between, middle, torch.where(shortest, middle, end), some)
            target[jumps] = (first + second) / 2
    return {"loss": F.mse_loss(_velocity(unet, num_train_timesteps)(x_t, t, r, conditions), target)}


class OneStepGenerator:
    r"""A network of velocities as the generator of a GAN, by one step of Euler's method.

    \(x_0 = \epsilon - u(\epsilon, 1, 0)\). The losses of `latentia.losses.adversarial` take it, for the
    adversarial finish of a few-step model (after Sauer et al., 2023, 2311.17042).

    Args:
        unet: as for `mean_flow_loss`, with `target_time` or without; may be wrapped for several processes.
        num_train_timesteps: the scheduler's unit of time. Default 1000.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), target_time=True)
        >>> OneStepGenerator(unet)(torch.randn(3, 64)).sample.shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, unet: Any, num_train_timesteps: int = 1000):
        self.unet, self.unit, config = unet, num_train_timesteps, config_of(unet)
        size = config.sample_size
        self.shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
        self.target_time = config.target_time
        latent_dim = self.shape[0] * self.shape[1] * self.shape[2]
        self.config = SimpleNamespace(latent_dim=latent_dim, num_class_embeds=config.num_class_embeds)

    def __call__(self, latents: Tensor, **conditions: Tensor) -> SimpleNamespace:
        noise = latents.reshape(-1, *self.shape)
        time = torch.full((len(noise),), float(self.unit), device=noise.device)
        end = {"target_timestep": torch.zeros_like(time)} if self.target_time else {}
        return SimpleNamespace(sample=noise - self.unet(noise, time, **end, **conditions).sample)


def _start(
    unet: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    class_dropout: float,
    empty_text: tuple[Tensor, Tensor] | None,
    coupling_size: int | None,
) -> tuple[Tensor, Tensor, Conditions]:
    """Images, noise and conditions of a micro-batch."""
    if not getattr(config_of(unet), "target_time", False):
        raise UsageError("unet must be a UNet2D with target_time=True, to learn mean velocities; got one without.")
    x0 = item_of(batch, "x")
    eps = rng.normal("noise", x0.shape[1:])
    if coupling_size is not None:
        eps = coupled_noise(x0, eps, rng, coupling_size)
    return x0, eps, dropped_conditions(unet, batch, rng, class_dropout, empty_text)


def _jumps(rng: Rng, flow_share: float) -> Tensor:
    """Indices of the images that learn a step of a length above 0: those of the same places in every step."""
    share, tiny = 1 - flow_share, 1e-9
    places = range(rng.start, rng.start + rng.count)
    chosen = [i for i, k in enumerate(places) if int(share * (k + 1) + tiny) > int(share * k + tiny)]
    return torch.tensor(chosen, dtype=torch.long).to(rng.device, non_blocking=True)


def _mask(indices: Tensor, rng: Rng) -> Tensor:
    return torch.zeros(rng.count, dtype=torch.bool, device=rng.device).index_fill(0, indices, True)


def _velocity(unet: Any, num_train_timesteps: int) -> Callable[[Tensor, Tensor, Tensor, Conditions], Tensor]:
    def velocity(x: Tensor, t: Tensor, r: Tensor, conditions: Conditions) -> Tensor:
        times = num_train_timesteps * t, num_train_timesteps * r
        return unet(x, times[0], target_timestep=times[1], **conditions).sample.float()

    return velocity


def _wide(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) that broadcast with images."""
    return t.view(-1, *[1] * (x.ndim - 1))
