"""Diffusion-GAN: the discriminator sees diffused real and generated samples together with their time."""

from typing import Annotated

import torch
from torch import Tensor, nn

from latentia.errors import Positive, Range, Size, UsageError, check_arguments, check_choice, check_range
from latentia.rng import Rng

TIMES = ("priority", "uniform")
BETAS = (1e-4, 0.02)  # of the first and of the last step (2206.02262, section 4)


class DiffusionAugmentation(nn.Module):
    r"""Diffusion of samples: \(y = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \sigma \epsilon\).

    \(\beta\) rises linearly from 0.0001 at the first of `max_steps` steps to 0.02 at the last. Half of the samples are
    left as they are, with t = 0; the others have a time from 1 to T, the length of the chain. A real and a generated
    sample at the same place of a micro-batch have the same time, and so have all samples that the discriminator sees as
    one group.

    As the `operation` of an `AdaptiveAugmentation` with `most=1` its length T follows p, from `min_steps` to
    `max_steps`; alone it is `max_steps`. The discriminator needs `num_timesteps` of at least `max_steps`.

    Args:
        sigma: standard deviation of the noise at the end of the chain, in units of the samples. Default 0.05, that of
            the paper for images in [-1, 1].
        min_steps: length T of the chain at p = 0. Default 10.
        max_steps: length T at p = 1. Default 1000.
        times: probability of a time t in 1 to T: "priority" (default), proportional to t, or "uniform".
        group: neighbours that share a time, as those of a pack or of a minibatch standard deviation do. Default 1.

    Raises:
        UsageError: numbers out of range, `min_steps` above `max_steps`, an unknown name.

    Diffusion-GAN: Training GANs with Diffusion (Wang et al., 2022, 2206.02262), section 3. There a list of 64 times,
    half of them 0, is drawn whenever T changes; here each sample draws its own, from the same distribution.

    Example:
        >>> x, rng = torch.zeros(4, 2), Rng(0, 0, 4, 0, 4)
        >>> diffusion = DiffusionAugmentation(sigma=0.5)
        >>> diffusion(x, rng, "real").shape, diffusion.timesteps(rng).shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    alpha_bar: Tensor

    @check_arguments
    def __init__(
        self,
        sigma: Positive = 0.05,
        min_steps: Size = 10,
        max_steps: Annotated[int, Range(1, most=100_000)] = 1000,
        times: str = "priority",
        group: Size = 1,
    ):
        super().__init__()
        check_choice("times", times, TIMES)
        if min_steps > max_steps:
            raise UsageError(f"min_steps must be at most max_steps, {max_steps}; got {min_steps}.")
        self.sigma, self.min_steps, self.max_steps, self.times, self.group = sigma, min_steps, max_steps, times, group
        betas = torch.cat([torch.zeros(1, dtype=torch.float64), torch.linspace(*BETAS, max_steps, dtype=torch.float64)])
        self.register_buffer("alpha_bar", torch.cumprod(1 - betas, 0), persistent=False)  # of t = 0 to max_steps

    def length(self, p: Tensor | float) -> Tensor:
        """The length T of the chain, (), of p in [0, 1]."""
        p = torch.as_tensor(p, dtype=torch.float64)
        return (self.min_steps + p * (self.max_steps - self.min_steps)).round().long()

    def timesteps(self, rng: Rng, p: Tensor | float = 1.0) -> Tensor:
        """The time of each sample of a micro-batch, integers (B,) from 0 to T."""
        u, length = rng.uniform("diffusion time").double(), self.length(p).to(self.alpha_bar.device)
        if self.times == "uniform":
            t = 1 + (u * length).floor()
        else:  # P(t <= s) = s (s + 1) / (T (T + 1))
            t = (((1 + 4 * (1 - u) * length * (length + 1)).sqrt() - 1) / 2).ceil()
        t = t.clamp(min=1).minimum(length).long()
        t = t.masked_fill(rng.uniform("diffused") < 0.5, 0)
        first = torch.arange(len(t), device=t.device) // self.group * self.group
        return t[first]

    def forward(self, samples: Tensor, rng: Rng, stream: str = "augmented", p: Tensor | float = 1.0) -> Tensor:
        """Diffused samples.

        Args:
            samples: (B, ...).
            rng: the randomness of this micro-batch, of which the times are a function.
            stream: a name for this use of it, of which the noise is a function too.
            p: in [0, 1], from which the length of the chain follows. Default 1.
        """
        if not isinstance(p, Tensor):
            check_range("p", p, 0, 1)
        alpha_bar = self.alpha_bar[self.timesteps(rng, p)].view(-1, *[1] * (samples.ndim - 1))
        noise = rng.normal(f"{stream} diffused", tuple(samples.shape[1:])).to(samples.dtype)
        signal, scale = alpha_bar.sqrt(), self.sigma * (1 - alpha_bar).sqrt()
        return signal.to(samples.dtype) * samples + scale.to(samples.dtype) * noise
