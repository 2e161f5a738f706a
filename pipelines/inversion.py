"""Inversion of images by diffusion pipelines: the noise they come from, and how well they come back from it."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.evaluation.pairs import psnr
from latentia.pipelines.control import control_of
from latentia.pipelines.images import Images, from_input
from latentia.pipelines.latents import decode_latents, posterior
from latentia.pipelines.sampling import Conditioning, deterministic_scheduler, deterministic_step, is_flow, predict

InversionMethod = Literal["ddim", "fixed_point", "coupled"]
_MIXING = 0.93  # of the two chains; nearer 1 they drift apart, lower they lose digits


@dataclass(frozen=True)
class Inversion:
    """Images, the noise that a deterministic sampler makes them of, and what it makes of that noise.

    Args:
        images: (B, C, H, W) in [-1, 1].
        latents: the noise, (B, D, h, w); of "coupled" that of the first chain.
        second: the noise of the second chain of "coupled"; None for other methods.
        reconstruction: (B, C, H, W) in [-1, 1].
        autoencoder_psnr: dB of each image after the autoencoder alone, (B,); infinite for pipelines over pixels.
        conditions: of encoding and decoding.
    """

    images: Tensor
    latents: Tensor
    second: Tensor | None
    reconstruction: Tensor
    autoencoder_psnr: Tensor
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def psnr(self) -> Tensor:
        """dB of each reconstruction, (B,); what the autoencoder loses is in it."""
        return psnr(self.reconstruction, self.images)


@torch.no_grad()
def invert(
    pipe: Any,
    images: Images,
    *,
    method: InversionMethod = "fixed_point",
    num_inference_steps: int = 50,
    refinements: int = 5,
    **conditions: Any,
) -> Inversion:
    """The noise from which a pipeline of diffusion or flow matching makes images, and what it makes of it.

    "ddim" evaluates the network once a step, at the wrong point; "fixed_point" solves each step by iteration (Pan et
    al., 2023, 2309.04907); "coupled" runs two chains that invert each other exactly, whatever the network (EDICT,
    Wallace et al., 2022, 2211.12446), at twice the evaluations and twice the noise.

    Args:
        pipe: of diffusion over pixels or latents, unconditional, of classes or of texts.
        images: as for `from_input`.
        method: see above. Default "fixed_point".
        num_inference_steps: of the chain. Default 50.
        refinements: evaluations per step of "fixed_point". Default 5.
        **conditions: of the pipeline's `encode`: `prompt`, `class_labels` or `control_image`.

    Raises:
        UsageError: an argument out of its range, or a pipeline of another kind.

    Example:
        >>> from latentia import DDIMScheduler, UNet2D, UnconditionalDiffusionPipeline
        >>> unet = UNet2D(8, 1, block_out_channels=(32,))
        >>> pipe = UnconditionalDiffusionPipeline(unet, DDIMScheduler())
        >>> found = invert(pipe, torch.zeros(2, 1, 8, 8), method="coupled", num_inference_steps=4)
        >>> bool((found.psnr > 60).all())
        True
    """
    check_choice("method", method, ("ddim", "fixed_point", "coupled"))
    check_range("refinements", refinements, 1, integer=True)
    if not hasattr(pipe, "unet") or "encode" not in pipe.words:
        raise UsageError(f"pipe must be a pipeline of diffusion; got {type(pipe).__name__}.")
    vae = pipe.components.get("vae")
    channels = pipe.unet.config.in_channels if vae is None else vae.config.in_channels
    x = from_input(images, channels=channels, device=pipe._execution_device)
    exact = torch.full((len(x),), float("inf"), dtype=torch.float64)
    if vae is not None:
        exact = psnr(decode_latents(vae, posterior(vae, x)[0]).float().clamp(-1, 1), x)
    options = {"num_inference_steps": num_inference_steps, **conditions}
    if method != "coupled":
        latents = pipe.encode(images, refinements=1 if method == "ddim" else refinements, **options)
        back = pipe.decode(latents, output_type="latent", **options).float().clamp(-1, 1)
        return Inversion(x, latents, None, back, exact, conditions)
    latents = x if vae is None else posterior(vae, x)[0]
    conditioning = conditioning_of(pipe, len(x), (latents.shape[2], latents.shape[3]), **conditions)
    network = getattr(pipe, "_network", pipe.unet)
    first, second = coupled_inversion(network, pipe.scheduler, latents, conditioning, num_inference_steps)
    again = coupled_sampling(network, pipe.scheduler, (first, second), conditioning, num_inference_steps)
    again = again if vae is None else decode_latents(vae, again)
    return Inversion(x, first, second, again.float().clamp(-1, 1), exact, conditions)


def conditioning_of(pipe: Any, count: int, sides: tuple[int, int], **conditions: Any) -> Conditioning | None:
    """The conditioning of a pipeline of diffusion by the conditions of its `encode`, without guidance."""
    if pipe.is_text_conditional:
        return pipe._conditioning(pipe._each(conditions.get("prompt", ""), count), count)
    control = control_of(pipe, conditions.get("control_image"), sides)
    labels = pipe._class_indices(conditions.get("class_labels"), count)
    return pipe._conditioning(labels, count, control=control)


# ------------------------------------------------------------ two coupled chains


class _Steps:
    """Deterministic steps x_s = a x_t + b f(y, t), in float64; the network sees float32 or less."""

    def __init__(self, network: Any, scheduler: Any, conditioning: Conditioning | None, count: int, x: Tensor):
        self.run = deterministic_scheduler(scheduler, count, x.device)
        self.network, self.conditioning, self.flow = network, conditioning, is_flow(self.run)
        self.dtype = getattr(network, "unet", network).dtype

    def factor(self, i: int) -> float:
        if self.flow:
            return 1.0
        table, times = self.run.alphas_cumprod.double(), self.run.timesteps
        last = 1.0 if self.run.config.set_alpha_to_one else float(table[0])
        end = float(table[times[i + 1]]) if i + 1 < len(times) else last
        return (end / float(table[times[i]])) ** 0.5

    def shift(self, i: int, at: Tensor) -> Tensor:
        """b f(at, t) of the i-th step."""
        t = self.run.timesteps[i]
        output = predict(self.network, at.to(self.dtype), t, self.conditioning).double()
        return deterministic_step(self.run, i, output, at) - self.factor(i) * at


def coupled_inversion(
    network: Any, scheduler: Any, x: Tensor, conditioning: Conditioning | None, num_inference_steps: int
) -> tuple[Tensor, Tensor]:
    """The noise of two coupled chains that both end in x: EDICT, eq. 15."""
    first = second = x.double()
    steps = _Steps(network, scheduler, conditioning, num_inference_steps, x)
    for i in reversed(range(len(steps.run.timesteps))):
        a = steps.factor(i)
        second = (second - (1 - _MIXING) * first) / _MIXING
        first = (first - (1 - _MIXING) * second) / _MIXING
        second = (second - steps.shift(i, first)) / a
        first = (first - steps.shift(i, second)) / a
    return first, second


def coupled_sampling(
    network: Any,
    scheduler: Any,
    noise: tuple[Tensor, Tensor],
    conditioning: Conditioning | None,
    num_inference_steps: int,
) -> Tensor:
    """The samples of two coupled chains from their noise: EDICT, eq. 14."""
    first, second = (part.double() for part in noise)
    steps = _Steps(network, scheduler, conditioning, num_inference_steps, first)
    for i in range(len(steps.run.timesteps)):
        a = steps.factor(i)
        first = a * first + steps.shift(i, second)
        second = a * second + steps.shift(i, first)
        first = _MIXING * first + (1 - _MIXING) * second
        second = _MIXING * second + (1 - _MIXING) * first
    return first.to(steps.dtype)
