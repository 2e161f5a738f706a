"""The flow matching loss: predict the velocity of straight lines from data to noise."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import Finite, Positive, Share, Size, UsageError, check_arguments, check_range
from latentia.functional.masks import masked_mean
from latentia.functional.ode import solve_fixed
from latentia.functional.transport import optimal_assignment
from latentia.losses.conditions import Conditions, dropped_conditions, item_of
from latentia.losses.times import sample_times
from latentia.rng import Rng

Teacher = Callable[[Tensor, Tensor, Conditions], Tensor]  # x_t, t in [0, 1], conditions -> a trained velocity


def flow_matching_loss(
    unet: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    num_train_timesteps: int = 1000,
    time_sampling: str = "logit_normal",
    time_loc: float = 0.0,
    time_scale: float = 1.0,
    class_dropout: float = 0.1,
    empty_text: tuple[Tensor, Tensor] | None = None,
    coupling_size: int | None = None,
) -> dict[str, Tensor]:
    r"""\(\mathbb{E}_{x_0, \epsilon, t} \lVert (\epsilon - x_0) - v_\theta(x_t, t) \rVert^2\) on straight lines.

    \(x_t = (1 - t)\, x_0 + t\, \epsilon\), t in [0, 1): rectified flow, with t = 0 the data, as in diffusers'
    `FlowMatchEulerDiscreteScheduler`, which samples from the network. The norm is a mean over pixels.

    Args:
        unet: called as `unet(x_t, num_train_timesteps * t, **conditions)`, the time a real number.
        batch: as for `latentia.losses.diffusion.diffusion_loss`, the images about of unit variance. If it holds
            "source", of the shape of "x", these take the place of the noise: samples of another distribution.
        rng: the randomness of this micro-batch.
        num_train_timesteps: the scheduler's unit of time. Default 1000.
        time_sampling, time_loc, time_scale: see `latentia.losses.times.sample_times`. Default logit-normal, as the
            middle is the hardest.
        class_dropout, empty_text: as in `diffusion_loss`.
        coupling_size: couple noise and images by optimal transport within so many consecutive positions of the data:
            \(\epsilon\) is permuted among them so that \(\sum \lVert x_0 - \epsilon \rVert^2\) is least, for straighter
            paths. Images keep their labels, texts and times. It must divide the micro-batch, so that the coupling does
            not depend on how a step is split. `None` (default): independent noise.

    Returns:
        "loss".

    Raises:
        UsageError: a micro-batch that does not hold whole blocks of `coupling_size`, or a batch without what is needed.

    Flow Straight and Fast (Liu et al., 2022, 2209.03003), eq. 1; times: Esser et al., 2024, 2403.03206, section 3.1;
    minibatch coupling: Tong et al., 2023, 2302.00482, section 3.2; Pooladian et al., 2023, 2304.14772.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> flow_matching_loss(unet, batch, Rng(0, 0, 4, 0, 4))["loss"].item() > 0
        True
    """
    x0 = item_of(batch, "x")
    eps = batch["source"] if "source" in batch else rng.normal("noise", x0.shape[1:])
    if coupling_size is not None:
        eps = coupled_noise(x0, eps, rng, coupling_size)
    t = sample_times(rng, time_sampling, time_loc, time_scale)
    conditions = dropped_conditions(unet, batch, rng, class_dropout, empty_text)
    x_t = torch.lerp(x0, eps, t.view(-1, *[1] * (x0.ndim - 1)))
    prediction = unet(x_t, num_train_timesteps * t, **conditions).sample.float()
    if "step_mask" in conditions:
        errors = F.mse_loss(prediction, eps - x0, reduction="none")
        return {"loss": masked_mean(errors, conditions["step_mask"]).mean()}
    return {"loss": F.mse_loss(prediction, eps - x0)}


@check_arguments
def reflow_loss(
    unet: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    teacher: Teacher,
    teacher_steps: Size = 8,
    num_train_timesteps: Size = 1000,
    time_sampling: str = "uniform",
    time_loc: Finite = 0.0,
    time_scale: Positive = 1.0,
    class_dropout: Share = 0.1,
    empty_text: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""Reflow: flow matching on pairs of noise and what a teacher's ODE makes of it, whose paths do not cross.

    Each noise \(\epsilon\) gets the image \(x_0\) at the end of the teacher's probability-flow ODE, solved anew in each
    step by Heun's method; the student learns the velocity \(\epsilon - x_0\) of the straight line between them, so that
    few steps of Euler's method follow it. Of the batch only the conditions are used.

    Args:
        unet, batch, rng, num_train_timesteps: as for `flow_matching_loss`.
        teacher: (x_t, t, conditions) -> the velocity of a trained network on straight lines, t in [0, 1], (B,).
        teacher_steps: of Heun's method, two evaluations of the teacher each. Default 8.
        time_sampling, time_loc, time_scale: density of the times of the student. Default uniform.
        class_dropout, empty_text: as for `flow_matching_loss`; a dropped condition is dropped for the teacher too.

    Returns:
        "loss".

    Raises:
        UsageError: an argument out of its range, or a batch without what is needed.

    Flow Straight and Fast (Liu et al., 2022, 2209.03003), section 2.2.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> batch = {"x": torch.zeros(4, 1, 8, 8)}
        >>> shrink = lambda x, t, conditions: 0.5 * x / (0.5 + 0.5 * t.view(-1, 1, 1, 1))  # data of variance 1/4
        >>> reflow_loss(unet, batch, Rng(0, 0, 4, 0, 4), teacher=shrink, teacher_steps=2)["loss"].item() > 0
        True
    """
    eps = rng.normal("noise", item_of(batch, "x").shape[1:])
    conditions = dropped_conditions(unet, batch, rng, class_dropout, empty_text)

    def field(t: Tensor, states: Tensor) -> Tensor:
        return teacher(states.view_as(eps), t, conditions).flatten(1)

    with torch.no_grad():
        x0 = solve_fixed(field, eps.flatten(1), 1.0, 0.0, teacher_steps, "heun").view_as(eps)
    return flow_matching_loss(
        unet,
        {**batch, "x": x0, "source": eps},
        rng,
        num_train_timesteps=num_train_timesteps,
        time_sampling=time_sampling,
        time_loc=time_loc,
        time_scale=time_scale,
        class_dropout=class_dropout,
        empty_text=empty_text,
    )


def coupled_noise(x0: Tensor, eps: Tensor, rng: Rng, size: int) -> Tensor:
    """The noise, permuted within blocks of `size` consecutive positions so that it is nearest to the images there.

    Args:
        x0, eps: (B, ...).
        rng: the randomness of this micro-batch, which says where in its step it stands.
        size: of a block, at least 1.

    Raises:
        UsageError: a micro-batch that begins or ends within a block.

    Example:
        >>> x, eps = torch.tensor([[0.0], [5.0], [9.0], [1.0]]), torch.tensor([[5.0], [0.0], [1.0], [9.0]])
        >>> coupled_noise(x, eps, Rng(0, 0, 4, 0, 4), 2).T
        tensor([[0., 5., 9., 1.]])
    """
    check_range("coupling_size", size, 1, integer=True)
    if rng.start % size or rng.count % size:
        raise UsageError(
            f"coupling_size must divide the micro-batch of {rng.count}, as noise is coupled within blocks of "
            f"consecutive positions; got {size}."
        )
    blocks = zip(x0.split(size), eps.split(size))
    return torch.cat([noise[optimal_assignment(images, noise)] for images, noise in blocks])
