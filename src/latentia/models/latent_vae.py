"""LatentVAE: a VAE on the latents of an autoencoder, the second stage of a two-stage VAE, as a prior."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import NumericsError, Size, UsageError, check_arguments, check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.chunks import in_chunks
from latentia.functional.distributions import gaussian_kl, log_likelihood, log_normal
from latentia.models.modeling import ModelMixin
from latentia.models.priors import check_generators, check_latents
from latentia.models.vae import VAE


@dataclass
class LatentVAEOutput(BaseOutput):
    """`log_prob`: a lower bound of log p(z) in nats, (B,)."""

    log_prob: Tensor


class LatentVAE(ModelMixin, ConfigMixin):
    r"""A second VAE, \(p(z) = \int p(z|u)\, p(u)\, du\), of the latents z of a first one: a two-stage VAE's prior.

    The first VAE's latents are not distributed as its prior; the second, whose latents u have as many dimensions and
    whose learned variance goes to 0, learns how they are. As the `prior` of a pipeline it is where latents are drawn
    from.

    Args:
        latent_dim: D, the length of a latent vector, and of u.
        hidden_sizes: width of each dense layer of the encoder; the decoder mirrors them. Default (256, 256).
        samples: importance samples of `log_prob`. Default 64.

    Raises:
        UsageError: numbers below 1; latents of another width.

    Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019, 1903.05789), section 4.

    Example:
        >>> z = torch.cat([torch.randn(100, 2) - 5, torch.randn(100, 2) + 5])
        >>> prior = LatentVAE.fit(z, steps=20, hidden_sizes=(16,))
        >>> prior.sample(3, [torch.Generator().manual_seed(i) for i in range(3)]).shape
        torch.Size([3, 2])
    """

    _skip_layerwise_casting_patterns: Any = ("posterior",)  # whose dtype is read

    mean: Tensor
    scale: Tensor
    noise: Tensor

    @register_to_config
    @check_arguments
    def __init__(self, latent_dim: Size, hidden_sizes: tuple[Size, ...] = (256, 256), samples: Size = 64):
        super().__init__()
        self.vae = VAE((1, latent_dim), 1, latent_dim, hidden_sizes, likelihood="gaussian")
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))
        self.register_buffer("noise", torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(0)))

    @classmethod
    def fit(cls, latents: Tensor, steps: int = 2000, batch_size: int = 256, seed: int = 0, **settings: Any) -> Self:
        """A second VAE trained on latents by the ELBO, Adam with a rate that falls from 0.002 to 0.

        Args:
            latents: (N, D), or (N, ...), which is flattened; N at least 20.
            steps: default 2000: about ten seconds for D = 32.
            batch_size: latents of a step. Default 256.
            seed: of weights, batches and noise. Default 0.
            **settings: of the constructor.

        Raises:
            UsageError: too few latents, or all of them equal.
            NumericsError: a latent is not finite, or the bound is not.
        """
        check_range("steps", steps, 1, integer=True)
        check_range("batch_size", batch_size, 1, integer=True)
        z = check_latents(latents, 20).float()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            prior = cls(z.shape[1], **settings)
        prior.mean.copy_(z.mean(0))
        prior.scale.copy_(z.std(0, correction=0).clamp(min=1e-6 * float(z.std())))
        optimizer = torch.optim.Adam(prior.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(z), (batch_size,), generator=generator)
            x = prior._images(z[rows])
            out = prior.vae(x, torch.randn(batch_size, z.shape[1], generator=generator))
            error = -log_likelihood("gaussian", x, out.location, out.log_scale)
            loss = (error + gaussian_kl(out.mean, out.log_variance).sum(1)).mean()
            if not loss.isfinite():
                raise NumericsError(
                    "latents have no finite bound under the second VAE. Take fewer steps, or scale them."
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(prior.parameters(), 10.0)
            optimizer.step()
            schedule.step()
        return prior.eval()

    def forward(self, latents: Tensor, return_dict: bool = True) -> LatentVAEOutput | tuple[Tensor]:
        """A lower bound of log p(z), (B,), of latents (B, D), by importance samples of the same noise for each."""
        if latents.ndim != 2 or latents.shape[1] != self.config.latent_dim:
            raise UsageError(
                f"latents must have shape (B, latent_dim) = (B, {self.config.latent_dim}); got {tuple(latents.shape)}."
            )
        x = self._images(latents)
        out = self.vae(x, self.noise.to(x.dtype).expand(len(x), -1, -1))
        log_w = log_likelihood("gaussian", x, out.location, out.log_scale) + log_normal(out.z)
        log_w = log_w - log_normal(out.z, out.mean[:, None], out.log_variance[:, None])
        log_prob = importance_weighted_bound(log_w) - self.scale.log().sum().to(x.dtype)
        return LatentVAEOutput(log_prob) if return_dict else (log_prob,)

    def log_prob(self, latents: Tensor) -> Tensor:
        """A lower bound of log p(z) in nats, (B,), of latents (B, D)."""
        return self(latents).log_prob

    @torch.no_grad()
    def sample(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents (n, D), u from N(0, I) and z from p(z|u), each drawn with a generator of its own.

        Args:
            n: how many.
            generators: one for each.

        Raises:
            UsageError: another number of generators.
        """
        check_generators(n, generators)
        dim, like = self.config.latent_dim, self.scale
        if not n:
            return like.new_zeros(0, dim)
        noise = torch.stack([torch.randn(2, dim, generator=g, device=g.device).to(like) for g in generators])
        location = in_chunks(self.vae.decode, noise[:, 0]).flatten(1)
        return self.mean + self.scale * (location + self.vae.log_scale.exp() * noise[:, 1])

    def _images(self, latents: Tensor) -> Tensor:
        """Latents of mean 0 and deviation 1 as images of one row, (B, 1, 1, D)."""
        return ((latents - self.mean) / self.scale)[:, None, None]
