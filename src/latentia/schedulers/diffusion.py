"""What DDPM and DDIM share: the forward process, its tables, and the conversions between x0, eps and v.

Notation, with t = 0 ... T - 1 counted as in diffusers (the papers count from 1):

    x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps           one forward step
    alpha_bar_t = prod_{i<=t} (1 - beta_i)
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps     the shortcut, `signal` x_0 + `noise` eps below
    v_t = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0

A table is a float64 tensor (K, T) whose column t holds K coefficients of time t; `coefficients` reads columns. Steps
read these; the public `betas`, `alphas` and `alphas_cumprod` are float32 copies for loops written by hand. The
functions below "Methods" are bound in the bodies of both classes, so that each is written once without a base class.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.checks import check_indices
from latentia.functional.diffusion import (
    PREDICTION_TYPES,
    dynamic_threshold,
    predict_eps,
    predict_x0,
    zero_terminal_snr,
)
from latentia.safety import MAX_NUMBER

COMPATIBLES = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
}
Times = int | torch.Tensor | Sequence[int] | np.ndarray
Generators = torch.Generator | list[torch.Generator] | None

# ---------------------------------------------------------------------------------------------------------- tables


def check_config(config: Any) -> None:
    """Raises a `UsageError` for the first setting that breaks its rule."""
    for name, known in CHOICES.items():
        check_choice(name, config.get(name, known[0]), known)
    T = config.num_train_timesteps
    for name, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
        if not isinstance(config[name], int | np.integer):
            raise UsageError(f"{name} must be an integer; got {config[name]!r}.")
        check_range(name, config[name], least, MAX_NUMBER)
    if config.trained_betas is not None and len(config.trained_betas) != T:
        raise UsageError(
            f"trained_betas must hold one value for each of num_train_timesteps={T} steps; got "
            f"{len(config.trained_betas)} values. Set num_train_timesteps to that."
        )
    if config.rescale_betas_zero_snr and T < 2:
        raise UsageError("rescale_betas_zero_snr needs num_train_timesteps of at least 2; got 1. Switch it off.")
    check_range("dynamic_thresholding_ratio", config.dynamic_thresholding_ratio, 0, 1, closed="right")
    check_range("sample_max_value", config.sample_max_value, 1)
    check_range("clip_sample_range", config.clip_sample_range, 0, closed="neither")


def make_betas(config: Any) -> torch.Tensor:
    """beta_t of a configuration, float64 (T,), each in (0, 1].

    linear: DDPM (Ho et al. 2020, arXiv 2006.11239) section 4. scaled_linear: linear in sqrt(beta) (latent diffusion).
    squaredcos_cap_v2: the cosine of improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672) Eq. 17, beta <= 0.999.
    sigmoid: beta_start to beta_end along a logistic curve from -6 to 6 (GeoDiff, Xu et al. 2022, arXiv 2203.02923).
    laplace: log-SNR at the quantiles of a Laplace distribution (Hang & Gu 2024, arXiv 2407.03297), as diffusers has it:
    its alpha_bar is the root of SNR / (1 + SNR) and ends at .03, so take rescale_betas_zero_snr with it.
    """
    T, first, final = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        betas = torch.as_tensor(config.trained_betas, dtype=torch.float64)
    elif config.beta_schedule == "linear":
        betas = torch.linspace(first, final, T, dtype=torch.float64)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(first**0.5, final**0.5, T, dtype=torch.float64) ** 2
    elif config.beta_schedule == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float64)) * (final - first) + first
    else:
        u = torch.arange(T + 1, dtype=torch.float64) / T
        if config.beta_schedule == "laplace":
            log_snr = -0.5 * torch.sign(0.5 - u) * torch.log(1 - 2 * (0.5 - u).abs() + 1e-6)
            alpha_bar = log_snr.sigmoid().sqrt()
        else:
            alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    if not bool((betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] <= 1):
        raise UsageError(
            f"every beta must be in (0, 1), only the last may be 1; got {betas.min():.3g} to {betas.max():.3g}. "
            "Change beta_start, beta_end (0.0001 and 0.02 are usual) or trained_betas."
        )
    return zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def make_alpha_bar(config: Any) -> torch.Tensor:
    """alpha_bar_t = prod_{i<=t} (1 - beta_i), float64 (T,), from the configuration, wherever the tables are."""
    return torch.cumprod(1 - make_betas(config), 0)


def every_timestep(config: Any) -> torch.Tensor:
    return torch.arange(config.num_train_timesteps - 1, -1, -1)


def make_timesteps(config: Any, num_inference_steps: int | None, custom: Sequence[int] | None) -> torch.Tensor:
    """The time steps to visit, descending, int64 (arXiv 2305.08891 Table 2 compares the three spacings)."""
    T, n = config.num_train_timesteps, num_inference_steps
    if (n is None) == (custom is None):
        raise UsageError("set_timesteps takes either num_inference_steps or timesteps. Give exactly one of the two.")
    if custom is not None:
        given = np.asarray(custom.tolist() if isinstance(custom, torch.Tensor) else custom)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise UsageError(f"timesteps must be a list of integers, each from 0 to {T - 1}; got {custom}.")
        chosen = given.astype(np.int64)
        if chosen.size == 0 or (np.diff(chosen) >= 0).any() or chosen[0] >= T or chosen[-1] < 0:
            raise UsageError(f"timesteps must descend strictly, from {T - 1} or less to 0 or more; got {list(custom)}.")
        return check_division(config, torch.tensor(chosen))
    if not isinstance(n, int | np.integer) or not 1 <= n <= T:
        raise UsageError(
            f"num_inference_steps must be an integer between 1 and num_train_timesteps={T}; got {n}. A network that "
            f"was trained on {T} time steps knows no others."
        )
    timesteps: Any
    if config.timestep_spacing == "leading":
        timesteps = np.arange(n)[::-1] * (T // n) + config.steps_offset
    elif config.timestep_spacing == "trailing":
        timesteps = np.round(np.arange(T, 0, -T / n))[:n] - 1  # rounding can make arange one longer than n
    else:
        timesteps = np.linspace(0, T - 1, n).round()[::-1]
    if timesteps[0] >= T:
        raise UsageError(
            f"steps_offset={config.steps_offset} with num_inference_steps={n} visits t={timesteps[0]}, beyond the last "
            f"time step {T - 1}. Take fewer steps, or steps_offset=0."
        )
    return check_division(config, torch.tensor(timesteps.astype(np.int64)))


def check_division(config: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """x_0 cannot be had from eps where x_t holds no x_0 at all (arXiv 2305.08891 section 3.2)."""
    if config.prediction_type == "epsilon" and make_alpha_bar(config)[timesteps[0]] == 0:
        raise UsageError(
            f"prediction_type='epsilon' cannot start at t={timesteps[0]}, where alpha_bar is 0 "
            "(rescale_betas_zero_snr=True): x_0 would be a division by zero. Train with "
            "prediction_type='v_prediction', or use timestep_spacing='leading', which does not visit that step."
        )
    return timesteps


def previous_visited(timesteps: torch.Tensor, num_train_timesteps: int) -> torch.Tensor:
    """For every t in 0 ... T - 1 the largest visited time step below t, or -1: int64 (T,)."""
    ascending = torch.cat([torch.tensor([-1]), timesteps.flip(0)])
    return ascending[torch.searchsorted(ascending, torch.arange(num_train_timesteps)) - 1]


def start(scheduler: Any) -> None:
    """Check the configuration and build what depends on it alone."""
    check_config(scheduler.config)
    # diffusers' from_config replaces values left at their defaults by the other class's defaults (another beta_start
    # in some). Every value counts as given, so that a configuration means the same here as saved and loaded.
    scheduler.register_to_config(_use_default_values=[])
    scheduler.init_noise_sigma = 1.0
    scheduler.num_inference_steps = None
    betas, alpha_bar = make_betas(scheduler.config), make_alpha_bar(scheduler.config)
    scheduler._forward_table = torch.stack([alpha_bar, 1 - alpha_bar, 1 - betas, betas]).sqrt()
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas.float(), (1 - betas).float(), alpha_bar.float()


# ---------------------------------------------------------------------------------------------------------- algebra


def coefficients(table: torch.Tensor, t: Times, x: torch.Tensor) -> torch.Tensor:
    """Columns t of a table, ready to multiply x: (K, 1 or B, 1, ..., 1) in the table's dtype.

    Nothing is copied between devices when table, t and x lie on the same one, and no value is read back from it, so the
    range of a tensor is checked on the CPU alone.
    """
    if isinstance(t, list | tuple | np.ndarray):
        t = torch.as_tensor(t)
    if isinstance(t, torch.Tensor):
        if t.ndim > 1 or t.numel() not in (1, len(x)) or t.is_floating_point():
            raise UsageError(
                f"timestep must be an integer, or hold one for each of the {len(x)} samples; "
                f"got {t.dtype} of shape {tuple(t.shape)}."
            )
        if t.device.type == "cpu":
            check_indices("timestep", t, table.shape[1])
        columns = move(table, x.device).index_select(1, t.reshape(-1).to(x.device))
    else:
        if not isinstance(t, Integral):
            raise UsageError(f"timestep must be an integer between 0 and {table.shape[1] - 1}; got {t!r}.")
        t = int(t)
        if not 0 <= t < table.shape[1]:
            raise UsageError(f"timestep must be between 0 and {table.shape[1] - 1}; got {t}.")
        columns = move(table[:, t : t + 1], x.device)
    return columns.reshape(len(table), -1, *(1,) * (x.ndim - 1))


def move(table: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """The tensor on `device`, in float32 where that has no float64."""
    single = table.dtype == torch.float64 and torch.device(device).type == "mps"
    dtype = torch.float32 if single else table.dtype
    return table.to(device, dtype, non_blocking=table.device.type == "cpu")


def working_dtype(x: torch.Tensor) -> torch.dtype:
    """Arithmetic is never in less than float32: in half precision 1 / sqrt(alpha_bar) would swallow the image.

    Raises:
        UsageError: samples of integers, as the result would be cut to integers too.
    """
    if not x.is_floating_point():
        raise UsageError(
            f"samples must be of real numbers, images in [-1, 1]; got {x.dtype}. x / 127.5 - 1 makes them."
        )
    return torch.promote_types(x.dtype, torch.float32)


def bound_x0(config: Any, x0: torch.Tensor) -> torch.Tensor:
    """Clip x_0, or threshold it dynamically, as the configuration says."""
    if config.thresholding:
        return dynamic_threshold(x0, config.dynamic_thresholding_ratio, config.sample_max_value)
    return x0.clamp(-config.clip_sample_range, config.clip_sample_range) if config.clip_sample else x0


def draw_noise(sample: torch.Tensor, generator: Generators, variance_noise: torch.Tensor | None) -> torch.Tensor:
    """N(0, 1) of the sample's shape and dtype, or what the caller brought."""
    if variance_noise is None:
        if isinstance(generator, list) and len(generator) != len(sample):
            raise UsageError(f"generator must be one or a list of {len(sample)}, one per image; got {len(generator)}.")
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
    if generator is not None:
        raise UsageError("step takes generator or variance_noise, not both. Drop the generator.")
    check_shape("variance_noise", variance_noise, sample.shape)
    return variance_noise


def check_shape(name: str, given: torch.Tensor, shape: Sequence[int], hint: str = "") -> None:
    if tuple(given.shape) != tuple(shape):
        raise UsageError(f"{name} must have shape {tuple(shape)}; got {tuple(given.shape)}.{hint}")


def check_ready(scheduler: Any) -> None:
    if scheduler.num_inference_steps is None:
        raise UsageError(
            "step needs to know which time steps are visited. Call set_timesteps(num_inference_steps) first."
        )


# ---------------------------------------------------------------------------------------------------------- Methods


def to(self, device: str | torch.device):
    """Move all tables, once, so that no later call copies them. Returns the scheduler."""
    for name, value in vars(self).items():
        if isinstance(value, torch.Tensor):
            setattr(self, name, move(value, device))
    return self


def num_timesteps(self) -> int:
    """T, the number of noise levels a network was trained on."""
    return self.config.num_train_timesteps


def previous_timestep(self, timestep: int | torch.Tensor) -> int:
    """The time step at whose noise a step from `timestep` ends: the largest visited one below it, or -1, the data.

    Before `set_timesteps` all T time steps are visited, so it is `timestep - 1`.

    Example:
        >>> from latentia.schedulers.ddpm import DDPMScheduler
        >>> scheduler = DDPMScheduler()
        >>> scheduler.set_timesteps(timesteps=[900, 400, 30])
        >>> [scheduler.previous_timestep(t) for t in (900, 400, 30)]
        [400, 30, -1]
    """
    below = self.timesteps[self.timesteps < timestep]
    return int(below.max()) if len(below) else -1


def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
    """The sample as it is: networks of this process see x_t itself (other schedulers of diffusers rescale it)."""
    return sample


def forward_step(
    self, previous_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor
) -> torch.Tensor:
    """One step of the forward process, q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (DDPM Eq. 2).

    Args:
        previous_samples: x_{t-1}, (B, ...), or x_0 where t = 0.
        noise: eps ~ N(0, I), of the same shape.
        timesteps: t, a number or (B,), each in 0 ... T - 1.

    Returns:
        x_t, in the dtype of `previous_samples`.
    """
    check_shape("noise", noise, previous_samples.shape)
    dtype = working_dtype(previous_samples)
    _, _, keep, add = coefficients(self._forward_table, timesteps, previous_samples).to(dtype)
    # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps
    return (keep * previous_samples + add * noise).to(previous_samples.dtype)


def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
    """The shortcut to any step, q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (DDPM Eq. 4).

    Args:
        original_samples: x_0, (B, ...), images in [-1, 1].
        noise: eps ~ N(0, I), of the same shape.
        timesteps: t, a number or (B,), each in 0 ... T - 1.

    Returns:
        x_t, in the dtype of `original_samples`.

    Raises:
        UsageError: noise of another shape, or not one time step per sample.

    Example:
        >>> import torch
        >>> from latentia.schedulers.ddpm import DDPMScheduler
        >>> x_t = DDPMScheduler().add_noise(torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0, 749]))
        >>> [round(value, 5) for value in (x_t[:, 0] ** 2).tolist()]
        [0.9999, 0.00335]
    """
    check_shape("noise", noise, original_samples.shape)
    dtype = working_dtype(original_samples)
    signal, sigma, _, _ = coefficients(self._forward_table, timesteps, original_samples).to(dtype)
    # x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    return (signal * original_samples + sigma * noise).to(original_samples.dtype)


def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
    """v_t = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (arXiv 2202.00512 section 4). Arguments as add_noise."""
    check_shape("noise", noise, sample.shape)
    signal, sigma, _, _ = coefficients(self._forward_table, timesteps, sample).to(working_dtype(sample))
    return (signal * noise - sigma * sample).to(sample.dtype)


def target(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
    """What a network of this `prediction_type` is trained to give: eps, x_0 or v_t. Arguments as add_noise."""
    check_shape("noise", noise, original_samples.shape)
    if self.config.prediction_type == "epsilon":
        return noise
    if self.config.prediction_type == "sample":
        return original_samples
    return self.get_velocity(original_samples, noise, timesteps)


def predict_x0_eps(
    self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_0, eps) that a network's output at (x_t, t) stands for, neither clipped nor thresholded.

    Args:
        model_output: eps, x_0 or v_t by `prediction_type`, of the sample's shape (without learned variances).
        timestep: t, a number or (B,), each in 0 ... T - 1.
        sample: x_t, (B, ...).

    Returns:
        Both in the dtype of `sample`. They satisfy x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
    """
    check_shape("model_output", model_output, sample.shape)
    dtype, kind = working_dtype(sample), self.config.prediction_type
    signal, sigma, _, _ = coefficients(self._forward_table, timestep, sample).to(dtype)
    output, x_t = model_output.to(dtype), sample.to(dtype)
    x0, eps = predict_x0(kind, output, x_t, signal, sigma), predict_eps(kind, output, x_t, signal, sigma)
    return x0.to(sample.dtype), eps.to(sample.dtype)
