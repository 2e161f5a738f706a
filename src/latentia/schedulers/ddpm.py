"""Denoising diffusion probabilistic models (Ho et al. 2020, arXiv 2006.11239): ancestral sampling."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

from latentia.functional.diffusion import predict_x0
from latentia.schedulers import diffusion
from latentia.schedulers.scheduling import SchedulerMixin


class DDPMScheduler(SchedulerMixin, ConfigMixin):
    """Ancestral sampling: draw x_{t-1} from a Gaussian around the posterior mean, t = T ... 1.

        p(x_{t-1} | x_t) = N(c_0(t) x_0 + c_t(t) x_t, sigma_t^2 I),   x_0 from the network      (DDPM Eq. 7 and 15)

    A step is a pure function of its arguments, computed from float64 tables. Without `set_timesteps` all T time steps
    are visited; with fewer, "t-1" is the next visited one and beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}. No noise is
    added in the last visited step (DDPM Algorithm 2), also where that is not t = 0.

    Args:
        num_train_timesteps: T >= 1, noise levels of training.
        beta_start, beta_end: first and last beta, in (0, 1].
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)), "squaredcos_cap_v2" (cosine), "sigmoid" or
            "laplace".
        trained_betas: T betas to use in place of a schedule.
        variance_type: sigma_t^2. "fixed_small": the posterior's beta_tilde_t, exact if data are one point.
            "fixed_large": beta_t, exact if data are N(0, I). "..._log": the same numbers. "learned": the second half of
            the network's output channels, positive. "learned_range": that half, in [-1, 1], says where between
            log beta_tilde_t and log beta_t (improved DDPM, arXiv 2102.09672, Eq. 15).
        clip_sample: clip x_0 to [-clip_sample_range, clip_sample_range].
        prediction_type: what the network gives: "epsilon", "sample" (x_0) or "v_prediction".
        thresholding: dynamic thresholding in place of clipping; dynamic_thresholding_ratio in (0, 1] is the quantile
            and sample_max_value >= 1 the largest threshold.
        timestep_spacing: "leading", "trailing" or "linspace" (arXiv 2305.08891 Table 2).
        steps_offset: added to every time step of "leading".
        rescale_betas_zero_snr: make alpha_bar_T zero (arXiv 2305.08891 Algorithm 1). Needs "v_prediction" or "sample".

    Raises:
        UsageError: an unknown name or a value out of its range.

    Example:
        >>> import torch
        >>> scheduler = DDPMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(10)
        >>> x = torch.randn(4, 1, 8, 8)
        >>> for t in scheduler.timesteps:
        ...     x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
        >>> x.shape
        torch.Size([4, 1, 8, 8])
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
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):
        diffusion.start(self)
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
    ) -> None:
        """Choose the time steps that `timesteps` then holds, descending, and move all tables to `device`.

        Args:
            num_inference_steps: 1 ... T, spread by `timestep_spacing`.
            device: where samples will be; None leaves the tables where they are.
            timesteps: a strictly descending list in place of `num_inference_steps`.

        Raises:
            UsageError: numbers out of range, or a start where x_0 cannot be computed from eps.
        """
        visited = diffusion.make_timesteps(self.config, num_inference_steps, timesteps)
        self._set_chain(visited, device)
        self.num_inference_steps = len(visited)

    def _set_chain(self, timesteps: torch.Tensor, device: str | torch.device | None) -> None:
        alpha_bar = diffusion.make_alpha_bar(self.config)
        previous = diffusion.previous_visited(timesteps, len(alpha_bar))
        alpha_bar_previous = torch.where(previous < 0, 1.0, alpha_bar[previous.clamp(min=0)])
        alpha = alpha_bar / alpha_bar_previous
        beta = 1 - alpha
        # q(x_{t-1} | x_t, x_0) = N(c_0 x_0 + c_t x_t, beta_tilde I): DDPM Eq. 6 and 7
        c_0 = alpha_bar_previous.sqrt() * beta / (1 - alpha_bar)
        c_t = alpha.sqrt() * (1 - alpha_bar_previous) / (1 - alpha_bar)
        beta_tilde = (1 - alpha_bar_previous) / (1 - alpha_bar) * beta
        # beta_tilde is 0 in the last step and has no log; improved DDPM takes the step before it.
        before = int(timesteps[-2]) if len(timesteps) > 1 else None
        beta_tilde = torch.where(previous < 0, beta if before is None else beta_tilde[before], beta_tilde)
        self._step_table = torch.stack(
            [alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), c_0, c_t, beta_tilde.log(), beta.log(), (previous >= 0).double()]
        )
        self.timesteps = timesteps
        self.to(self.alphas_cumprod.device if device is None else device)

    def posterior(
        self, original_samples: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of q(x_{t-1} | x_t, x_0) (DDPM Eq. 6 and 7).

        Args:
            original_samples: x_0, of the sample's shape.
            timestep: t, a number or (B,), each in 0 ... T - 1; t - 1 is the next visited time step below it.
            sample: x_t, (B, ...).

        Returns:
            The mean, of the sample's shape, and log beta_tilde_t, (1 or B, 1, ..., 1), both at least float32. The last
            step's beta_tilde is 0; as in improved DDPM that of the step before stands in its place.
        """
        diffusion.check_shape("original_samples", original_samples, sample.shape)
        dtype = diffusion.working_dtype(sample)
        _, _, c_0, c_t, log_beta_tilde, _, _ = diffusion.coefficients(self._step_table, timestep, sample).to(dtype)
        return c_0 * original_samples + c_t * sample, log_beta_tilde

    def reverse(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and log variance of the learned p(x_{t-1} | x_t), and the x_0 (clipped or thresholded) it aims at.

        Args as in `step`.

        Returns:
            mean, log_variance, x_0, at least float32. log_variance is (1 or B, 1, ..., 1) unless it is learned.
        """
        return self._reverse(model_output, timestep, sample)[:3]

    def _reverse(self, model_output, timestep, sample):
        kind, dtype = self.config.variance_type, diffusion.working_dtype(sample)
        shape, learned = list(sample.shape), kind in ("learned", "learned_range")
        if learned:
            shape[1] *= 2
        diffusion.check_shape(
            "model_output",
            model_output,
            shape,
            f" With variance_type={kind!r} a network gives {'twice' if learned else 'as many channels as'} the sample's"
            f"{' channels: the prediction and the variance.' if learned else '.'}",
        )
        columns = diffusion.coefficients(self._step_table, timestep, sample).to(dtype)
        signal, noise, c_0, c_t, log_beta_tilde, log_beta, more = columns
        x_t, output = sample.to(dtype), model_output.to(dtype)
        if learned:
            output, spread = output.chunk(2, dim=1)
        x0 = predict_x0(self.config.prediction_type, output, x_t, signal, noise)
        x0 = diffusion.bound_x0(self.config, x0)
        mean = c_0 * x0 + c_t * x_t
        if kind == "learned":
            log_variance = spread.log()
        elif kind == "learned_range":
            v = (spread + 1) / 2
            log_variance = v * log_beta + (1 - v) * log_beta_tilde  # improved DDPM Eq. 15
        else:
            log_variance = log_beta_tilde if kind.startswith("fixed_small") else log_beta
        return mean, log_variance, x0, more

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: diffusion.Generators = None,
        return_dict: bool = True,
        *,
        variance_noise: torch.Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """x_{t-1} = c_0 x_0 + c_t x_t + sigma_t z, with z = 0 in the last visited step (DDPM Algorithm 2).

        Args:
            model_output: the network's output at (x_t, t), of the sample's shape; twice its channels with a learned
                variance.
            timestep: t, a number, or a tensor () or (B,), each in 0 ... T - 1; t - 1 is the next visited one below it.
            sample: x_t, (B, C, ...).
            generator: of z; one, or a list of B. None uses torch's own. torch.compile needs None (torch cannot trace
                generators): give it variance_noise.
            return_dict: False gives the tuple (prev_sample, pred_original_sample).
            variance_noise: z itself, of the sample's shape, in place of a generator.

        Returns:
            prev_sample (x_{t-1}) and pred_original_sample (x_0, clipped or thresholded), in the sample's dtype.

        Raises:
            UsageError: a wrong shape, or both generator and variance_noise.
        """
        mean, log_variance, x0, more = self._reverse(model_output, timestep, sample)
        z = diffusion.draw_noise(sample, generator, variance_noise)
        previous = (mean + more * (0.5 * log_variance).exp() * z).to(sample.dtype)
        x0 = x0.to(sample.dtype)
        return DDPMSchedulerOutput(prev_sample=previous, pred_original_sample=x0) if return_dict else (previous, x0)
