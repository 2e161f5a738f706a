"""Random times of diffusion and flow matching, so that the effort lies where it counts."""

from torch import Tensor

from latentia.errors import check_choice
from latentia.functional.diffusion import logit_normal
from latentia.rng import Rng

TIME_SAMPLING = ("uniform", "logit_normal")


def sample_times(rng: Rng, sampling: str = "uniform", loc: float = 0.0, scale: float = 1.0) -> Tensor:
    r"""One time in [0, 1) for each image, 0 without noise, spread evenly over the batch.

    \(u_i = (u_0 + i / B) \bmod 1\) is stratified, so that a batch sees every part of the time axis and the loss is
    less noisy (Variational Diffusion Models, Kingma et al., 2021, 2107.00630, appendix I.1). It is mapped through the
    inverse distribution function of the wanted density.

    Args:
        rng: the randomness of this micro-batch.
        sampling: "uniform", or "logit_normal", see `latentia.functional.diffusion.logit_normal`.
        loc, scale: of the logit-normal density; a smaller `loc` means less noise. Defaults 0 and 1.

    Returns:
        float32 of shape (count,).

    Raises:
        UsageError: unknown `sampling`.

    Example:
        >>> sample_times(Rng(0, 0, 4, 0, 4)).mul(4).floor().sort().values
        tensor([0., 1., 2., 3.])
    """
    return times_at(rng.stratified("timesteps"), sampling, loc, scale)


def times_at(u: Tensor, sampling: str = "uniform", loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """Uniform numbers mapped through the inverse distribution function of the density of `sample_times`.

    Example:
        >>> import torch
        >>> times_at(torch.tensor([0.25, 0.5]), "uniform")
        tensor([0.2500, 0.5000])
    """
    check_choice("time_sampling", sampling, TIME_SAMPLING)
    return logit_normal(u, loc, scale) if sampling == "logit_normal" else u


def sample_timesteps(
    rng: Rng, num_train_timesteps: int, sampling: str = "uniform", loc: float = 0.0, scale: float = 1.0
) -> Tensor:
    """The times of `sample_times` as steps: int64 of shape (count,), in [0, num_train_timesteps - 1].

    Example:
        >>> t = sample_timesteps(Rng(0, 0, 1000, 0, 1000), 1000)
        >>> sorted(t.tolist()) == list(range(1000))
        True
    """
    u = sample_times(rng, sampling, loc, scale)
    return (u * num_train_timesteps).long().clamp_(max=num_train_timesteps - 1)
