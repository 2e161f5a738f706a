"""Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502): few steps, and a way back to the noise."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from latentia.errors import check_range
from latentia.functional.diffusion import predict_eps, predict_x0
from latentia.schedulers import diffusion
from latentia.schedulers.scheduling import SchedulerMixin


class DDIMScheduler(SchedulerMixin, ConfigMixin):
    """Deterministic (eta = 0) to ancestral (eta = 1) sampling in any number of steps.

        x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z                         (Eq. 12)
        sigma = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t / alpha_bar_s)         (Eq. 16)

    with s the time step that is visited after t, whatever the number of steps and their spacing. After `set_timesteps`
    a step is a pure function of its arguments. Steps are computed from float64 tables. The last visited step adds no
    noise (sigma = 0). A network with learned variances must be cut to its first half of channels.

    diffusers' DDIMScheduler takes s = t - T // num_inference_steps, which is not the time step visited next where T /
    num_inference_steps is no integer: noise is left over, at 501 steps twice that of the data. `set_timesteps(...,
    constant_stride=True)` does the same, for comparisons.

    Args:
        num_train_timesteps: T >= 1, noise levels of training.
        beta_start, beta_end: first and last beta, in (0, 1].
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)), "squaredcos_cap_v2" (cosine), "sigmoid" or
            "laplace".
        trained_betas: T betas to use in place of a schedule.
        clip_sample: clip x_0 to [-clip_sample_range, clip_sample_range].
        set_alpha_to_one: whether the last step ends at alpha_bar = 1 (True: data) or at alpha_bar_0.
        steps_offset: added to every time step of "leading".
        prediction_type: what the network gives: "epsilon", "sample" (x_0) or "v_prediction".
        thresholding: dynamic thresholding in place of clipping; dynamic_thresholding_ratio in (0, 1] is the quantile
            and sample_max_value >= 1 the largest threshold.
        timestep_spacing: "leading", "trailing" or "linspace" (arXiv 2305.08891 Table 2).
        rescale_betas_zero_snr: make alpha_bar_T zero (arXiv 2305.08891 Algorithm 1). Needs "v_prediction" or "sample".

    Raises:
        UsageError: an unknown name or a value out of its range.

    Example:
        >>> import torch
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(10)
        >>> x0, eps = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
        >>> x = scheduler.add_noise(x0, eps, 900)
        >>> for t in scheduler.timesteps:
        ...     x = scheduler.step(eps, t, x).prev_sample
        >>> torch.allclose(x, x0, atol=1e-4)
        True
    """

    _compatibles = diffusion.COMPATIBLES
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ):
        diffusion.start(self)
        first = self.alphas_cumprod[0]
        self.final_alpha_cumprod = torch.ones_like(first) if set_alpha_to_one else first
        self._set_chain(diffusion.every_timestep(self.config), None)

    to = diffusion.to
    __len__ = diffusion.num_timesteps
    previous_timestep = diffusion.previous_timestep
    scale_model_input = diffusion.scale_model_input
    forward_step = diffusion.forward_step
    add_noise = diffusion.add_noise
    get_velocity = diffusion.get_velocity
    target = diffusion.target
    predict_x0_eps = diffusion.predict_x0_eps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        constant_stride: bool = False,
    ) -> None:
        """Choose the time steps that `timesteps` then holds, descending, and move all tables to `device`.

        Args:
            num_inference_steps: 1 ... T, spread by `timestep_spacing`.
            device: where samples will be; None leaves the tables where they are.
            timesteps: a strictly descending list in place of `num_inference_steps`.
            constant_stride: end each step T // num_inference_steps below its start, as diffusers does, also where that
                is not the time step visited next. Default False.

        Raises:
            UsageError: numbers out of range, or a start where x_0 cannot be computed from eps.
        """
        visited = diffusion.make_timesteps(self.config, num_inference_steps, timesteps)
        self._set_chain(visited, device, self.config.num_train_timesteps // len(visited) if constant_stride else None)
        self.num_inference_steps = len(visited)

    def _set_chain(self, timesteps: torch.Tensor, device: str | torch.device | None, stride: int | None = None) -> None:
        alpha_bar = diffusion.make_alpha_bar(self.config)
        T = len(alpha_bar)
        previous = diffusion.previous_visited(timesteps, T)
        last = previous < 0
        if stride is not None:
            previous = torch.arange(T) - stride
        final = 1.0 if self.config.set_alpha_to_one else alpha_bar[0]
        alpha_bar_previous = torch.where(previous < 0, final, alpha_bar[previous.clamp(min=0)])
        # Eq. 16 squared, for eta = 1
        variance = (1 - alpha_bar_previous) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_previous)
        variance = variance.clamp(min=0).masked_fill(last, 0)
        self._step_table = torch.stack(
            [alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), alpha_bar_previous.sqrt(), 1 - alpha_bar_previous, variance]
        )
        self.timesteps = timesteps
        self.to(self.alphas_cumprod.device if device is None else device)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: diffusion.Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """From x_t to x_s, the time step visited next (Eq. 12).

        Args:
            model_output: the network's output at (x_t, t), of the sample's shape.
            timestep: t, a number, or a tensor () or (B,), each in 0 ... T - 1.
            sample: x_t, (B, ...).
            eta: 0 (deterministic) ... 1 (as much noise as DDPM with variance_type="fixed_small").
            use_clipped_model_output: recompute eps from the clipped x_0, so that both describe the same x_t.
            generator: of z; one, or a list of B. None uses torch's own. torch.compile needs None (torch cannot trace
                generators): give it variance_noise. Unused if eta = 0.
            variance_noise: z itself, of the sample's shape, in place of a generator.
            return_dict: False gives the tuple (prev_sample, pred_original_sample).

        Returns:
            prev_sample (x_s) and pred_original_sample (x_0, clipped or thresholded), in the sample's dtype.

        Raises:
            UsageError: before set_timesteps, for a wrong shape, an eta outside [0, 1], or with both generator and
                variance_noise.
        """
        self._check(model_output, sample)
        check_range("eta", eta, 0, 1)
        dtype, kind = diffusion.working_dtype(sample), self.config.prediction_type
        columns = diffusion.coefficients(self._step_table, timestep, sample)
        std, direction = eta * columns[4].sqrt(), (columns[3] - eta**2 * columns[4]).clamp(min=0).sqrt()
        signal, noise, signal_previous, _, _ = columns.to(dtype)
        x_t, output = sample.to(dtype), model_output.to(dtype)
        x0 = predict_x0(kind, output, x_t, signal, noise)
        x0 = diffusion.bound_x0(self.config, x0)
        if use_clipped_model_output:
            eps = predict_eps("sample", x0, x_t, signal, noise)
        else:
            eps = predict_eps(kind, output, x_t, signal, noise)
        x_s = signal_previous * x0 + direction.to(dtype) * eps
        if eta > 0:
            x_s = x_s + std.to(dtype) * diffusion.draw_noise(sample, generator, variance_noise)
        x_s, x0 = x_s.to(sample.dtype), x0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=x_s, pred_original_sample=x0) if return_dict else (x_s, x0)

    @property
    def inverse_timesteps(self) -> torch.Tensor:
        """The order in which `inverse_step` visits time steps: `timesteps`, ascending."""
        return self.timesteps.flip(0)

    def inverse_step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """From x_s back to x_t: Eq. 12 with sigma = 0, solved for x_t.

            x_0 = (x_s - sqrt(1 - alpha_bar_s) eps) / sqrt(alpha_bar_s),
            x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

        `step` undoes this exactly if eps is the network's at (x_t, t), which is what is being sought. So x_t is a fixed
        point: start from x_t = x_s (one evaluation, the usual DDIM inversion), then evaluate again at the x_t found,
        passing it as `at`, until it settles (Pan et al. 2023, arXiv 2309.04907). x_0 is not clipped.

        Args:
            model_output: the network's output at (`at`, t), of the sample's shape.
            timestep: t, the time step to arrive at: a number, or a tensor () or (B,).
            sample: x_s, (B, ...).
            at: the guess of x_t that the network saw; None: `sample`.

        Returns:
            x_t in the sample's dtype.

        Example:
            >>> import torch
            >>> scheduler = DDIMScheduler(clip_sample=False)
            >>> scheduler.set_timesteps(20)
            >>> network = lambda x, t: 0.1 * x
            >>> x = x0 = torch.randn(4, 1, 8, 8)
            >>> for t in scheduler.inverse_timesteps:
            ...     x_t = x
            ...     for _ in range(4):
            ...         x_t = scheduler.inverse_step(network(x_t, t), t, x, at=x_t)
            ...     x = x_t
            >>> for t in scheduler.timesteps:
            ...     x = scheduler.step(network(x, t), t, x).prev_sample
            >>> torch.allclose(x, x0, atol=1e-3)
            True
        """
        self._check(model_output, sample)
        at = sample if at is None else at
        diffusion.check_shape("at", at, sample.shape)
        dtype, kind = diffusion.working_dtype(sample), self.config.prediction_type
        columns = diffusion.coefficients(self._step_table, timestep, sample)
        noise_previous = columns[3].sqrt().to(dtype)
        signal, noise, signal_previous, _, _ = columns.to(dtype)
        eps = predict_eps(kind, model_output.to(dtype), at.to(dtype), signal, noise)
        x0 = (sample.to(dtype) - noise_previous * eps) / signal_previous
        return (signal * x0 + noise * eps).to(sample.dtype)

    def _check(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        diffusion.check_ready(self)
        hint = " Of a network with learned variances pass the first half of the channels."
        diffusion.check_shape("model_output", model_output, sample.shape, hint)
