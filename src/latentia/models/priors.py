"""Priors over the latents or codes of an encoder, fitted after it: a Gaussian mixture, and codes by position.

A flow as such a density: `latentia.NormalizingFlow.fit`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.errors import NumericsError, UsageError, check_range
from latentia.functional.checks import check_indices
from latentia.inference.mixture import fit_mixture
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET


@dataclass
class LatentMixtureOutput(BaseOutput):
    """`log_prob`: log p(z) in nats, (B,). `responsibilities`: p(component | z), (B, K)."""

    log_prob: Tensor
    responsibilities: Tensor = UNSET


@dataclass
class PositionPriorOutput(BaseOutput):
    """`log_prob`: log p(codes) in nats, (B,)."""

    log_prob: Tensor


class LatentMixture(ModelMixin, ConfigMixin):
    r"""A Gaussian mixture fitted to latents: \(p(z) = \sum_k \pi_k\, \mathcal{N}(z; \mu_k, L_k L_k^\top)\).

    Its parameters are buffers of float64: there is nothing to train by gradients, and it is saved and loaded as any
    network is. As the `prior` of a pipeline it is where the pipeline's latents are drawn from.

    Args:
        latent_dim: D, the length of a latent vector.
        num_components: K. Default 10.

    Fitted after training, ten Gaussians took the FID of a plain autoencoder on MNIST from 58.7 to 10.7 (Ghosh et al.,
    2020, 1903.12436, table 1).

    Example:
        >>> z = torch.cat([torch.randn(200, 2) - 5, torch.randn(200, 2) + 5])
        >>> mixture = LatentMixture.fit(z, num_components=2)
        >>> sorted(mixture.means[:, 0].round().abs().tolist())
        [5.0, 5.0]
        >>> mixture.sample(3, [torch.Generator().manual_seed(i) for i in range(3)]).shape
        torch.Size([3, 2])
    """

    weights: Tensor
    means: Tensor
    scale_tril: Tensor

    @register_to_config
    def __init__(self, latent_dim: int, num_components: int = 10):
        super().__init__()
        check_range("latent_dim", latent_dim, 1)
        check_range("num_components", num_components, 1)
        weights = torch.full((num_components,), 1 / num_components, dtype=torch.float64)
        scale_tril = torch.eye(latent_dim, dtype=torch.float64).repeat(num_components, 1, 1)
        self.register_buffer("weights", weights)  # pi
        self.register_buffer("means", torch.zeros(num_components, latent_dim, dtype=torch.float64))  # mu
        self.register_buffer("scale_tril", scale_tril)  # L, lower triangular

    @classmethod
    def fit(cls, latents: Tensor, num_components: int = 10, seed: int = 0) -> Self:
        """The mixture to which expectation-maximisation, started from k-means, brings these latents.

        Every variance gets a millionth of the mean variance of the latents added, so that a direction in which they
        do not vary does no harm; the fit does not depend on their scale.

        Args:
            latents: (N, D), or (N, ...), which is flattened; N at least `num_components`.
            num_components: K, default 10.
            seed: of k-means. Default 0.

        Raises:
            UsageError: fewer different latents than components.
            NumericsError: a latent is not finite.
        """
        if not 1 <= num_components <= len(latents):
            raise UsageError(
                f"num_components must be from 1 to the number of latents, {len(latents)}; got {num_components}. Fit to "
                "more images."
            )
        z = check_latents(latents)
        found = fit_mixture(z, num_components, tolerance=1e-3, max_iterations=300, seed=seed).model
        mixture = cls(z.shape[1], num_components)
        mixture.weights.copy_(found.weights)
        mixture.means.copy_(found.means)
        mixture.scale_tril.copy_(torch.linalg.cholesky(found.covariances))
        return mixture.eval()

    @classmethod
    def of_components(cls, mean: Tensor, log_variance: Tensor) -> Self:
        """The mixture of K normal distributions of equal weight with such means and log-variances, (K, D) each.

        Example:
            >>> mixture = LatentMixture.of_components(torch.zeros(2, 3), torch.zeros(2, 3))
            >>> bool(mixture.log_prob(torch.zeros(1, 3)) + 1.5 * math.log(2 * math.pi) < 1e-9)
            True
        """
        mixture = cls(mean.shape[1], len(mean)).to(mean.device)
        mixture.means.copy_(mean.detach())
        mixture.scale_tril.copy_((0.5 * log_variance.detach().double()).exp().diag_embed())
        return mixture.eval()

    def forward(self, latents: Tensor, return_dict: bool = True) -> LatentMixtureOutput | tuple[Tensor, Tensor]:
        """Density and responsibilities of latents (B, D), computed in float64, in the dtype of `latents`."""
        if latents.ndim != 2 or latents.shape[1] != self.config.latent_dim:
            raise UsageError(
                f"latents must have shape (B, latent_dim) = (B, {self.config.latent_dim}); got {tuple(latents.shape)}."
            )
        scale_tril = self.scale_tril.double()
        difference = latents.double()[None] - self.means.double()[:, None]  # (K, B, D)
        white = torch.linalg.solve_triangular(scale_tril, difference.mT, upper=False)  # L^-1 (z - mu), (K, D, B)
        log_det = scale_tril.diagonal(dim1=1, dim2=2).log().sum(1)  # of L, (K,)
        log_normal = -0.5 * (white.square().sum(1) + self.config.latent_dim * math.log(2 * math.pi)) - log_det[:, None]
        joint = (self.weights.double().log()[:, None] + log_normal).mT  # log p(z, k), (B, K)
        log_prob = joint.logsumexp(1)
        responsibilities = (joint - log_prob[:, None]).exp()
        output = (log_prob.to(latents.dtype), responsibilities.to(latents.dtype))
        return LatentMixtureOutput(*output) if return_dict else output

    def log_prob(self, latents: Tensor) -> Tensor:
        """log p(z) in nats, float64 of shape (B,), for latents (B, D)."""
        return self(latents.double()).log_prob

    @torch.no_grad()
    def sample(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents (n, D), float32, each drawn with a generator of its own, so that it does not depend on the others.

        Args:
            n: how many.
            generators: one for each.

        Raises:
            UsageError: another number of generators.
        """
        check_generators(n, generators)
        edges, dim = self.weights.double().cumsum(0).cpu(), self.config.latent_dim
        samples = []
        for generator in generators:
            device, dtype = generator.device, torch.float64
            u = torch.rand((), generator=generator, device=device, dtype=dtype).cpu() * edges[-1]
            k = min(int(torch.searchsorted(edges, u, right=True)), len(edges) - 1)
            eps = torch.randn(dim, generator=generator, device=device, dtype=dtype).to(self.means.device)
            samples.append(self.means[k].double() + self.scale_tril[k].double() @ eps)
        return torch.stack(samples).float() if samples else self.means.new_zeros(0, dim, dtype=torch.float32)


class PositionPrior(ModelMixin, ConfigMixin):
    r"""A distribution over the codebook for each position: \(p(c) = \prod_{ij} p_{ij}(c_{ij})\).

    The simplest prior of a `VQVAE` and the baseline of an autoregressive one: it knows what is usual where, but not
    what goes together. The better prior is `latentia.models.vq_prior.code_transformer`.

    Args:
        codebook_size: K. Default 512.
        code_shape: height and width of the grid of codes, (h, w), or the codes of a sequence, (l,). Default (7, 7).

    Example:
        >>> prior = PositionPrior.fit(torch.tensor([[[0, 3]], [[0, 2]]]), codebook_size=4)
        >>> prior.sample(2, [torch.Generator().manual_seed(i) for i in range(2)]).shape
        torch.Size([2, 1, 2])
        >>> prior.log_prob(torch.tensor([[[0, 3]]])).exp()  # (2 + 1/4) / 3 times (1 + 1/4) / 3
        tensor([0.3125], grad_fn=<ExpBackward0>)
    """

    @register_to_config
    def __init__(self, codebook_size: int = 512, code_shape: tuple[int, ...] = (7, 7)):
        super().__init__()
        check_range("codebook_size", codebook_size, 1)
        check_range("code_shape", code_shape, 1)
        self.logits = torch.nn.Parameter(torch.zeros(*code_shape, codebook_size))

    @classmethod
    def fit(cls, codes: Tensor, codebook_size: int) -> Self:
        """The most likely one, after one more image whose codes are spread evenly, so that nothing is impossible.

        Args:
            codes: int64 (N, h, w) or (N, l) in [0, K), such as `pipe.encode(images)`.
            codebook_size: K.

        Raises:
            UsageError: codes of another shape or range, or none.
        """
        if codes.ndim not in (2, 3) or not codes.numel() or codes.is_floating_point():
            raise UsageError(
                f"codes must be integers (N, h, w) or (N, l), N >= 1; got {codes.dtype} {tuple(codes.shape)}."
            )
        check_indices("codes", codes, codebook_size)
        prior = cls(codebook_size, tuple(codes.shape[1:]))
        positions = codes.cpu().flatten(1).T  # (h * w, N)
        counts = torch.zeros(len(positions), codebook_size).scatter_add_(1, positions, torch.ones(positions.shape))
        with torch.no_grad():
            prior.logits.copy_((counts + 1 / codebook_size).log().view_as(prior.logits))
        return prior.eval()

    def forward(self, codes: Tensor, return_dict: bool = True) -> PositionPriorOutput | tuple[Tensor]:
        """log p(codes) in nats, (B,), of codes, int64 (B, h, w); `return_dict=False`: a tuple."""
        log_p = self.logits.log_softmax(-1).expand(len(codes), *self.logits.shape).gather(-1, codes[..., None])
        log_prob = log_p.flatten(1).sum(1)
        return PositionPriorOutput(log_prob=log_prob) if return_dict else (log_prob,)

    def log_prob(self, codes: Tensor) -> Tensor:
        r"""log p(codes) in nats, (B,), of codes (B, h, w); divided by \(-\ln 2\), the bits of an image."""
        return self(codes).log_prob

    @torch.no_grad()
    def sample(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Codes (n, h, w), each image drawn with a generator of its own, so that it does not depend on the others.

        Raises:
            UsageError: another number of generators.
        """
        check_generators(n, generators)
        p = self.logits.float().softmax(-1).flatten(0, -2)  # (h * w, K)
        drawn = [torch.multinomial(p.to(g.device), 1, generator=g).to(p.device) for g in generators]
        return (
            torch.stack(drawn).view(n, *self.logits.shape[:-1]) if n else p.new_zeros(0, *self.logits.shape[:-1]).long()
        )


def check_latents(latents: Tensor, least: int = 1) -> Tensor:
    """Latents that a density can be fitted to, (N, D), float64, on the CPU.

    Raises:
        UsageError: fewer than `least`, or all of them equal.
        NumericsError: a latent is not finite.

    Example:
        >>> check_latents(torch.arange(6.0).view(3, 2)).dtype
        torch.float64
    """
    if not isinstance(latents, Tensor) or latents.ndim < 2:
        given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise UsageError(f"latents must be a tensor (N, D) to fit a density to; got {given}.")
    z = latents.detach().flatten(1).double().cpu()
    if len(z) < least:
        raise UsageError(f"latents must be at least {least} to fit a density; got {len(z)}. Fit to more images.")
    if not z.isfinite().all():
        raise NumericsError("latents must be finite to fit a density; some are not. Was the encoder trained?")
    if not z.var(0, correction=0).mean() > 0:
        raise UsageError("latents must differ to fit a density; all of them are equal. Has the encoder collapsed?")
    return z


def check_generators(n: int, generators: Sequence[torch.Generator]) -> None:
    """Raises a `UsageError` unless there is one generator for each of n samples.

    Example:
        >>> check_generators(1, [torch.Generator()])
    """
    if not isinstance(generators, Sequence) or len(generators) != n:
        given = len(generators) if isinstance(generators, Sequence) else f"one {type(generators).__name__}"
        raise UsageError(f"generators must be one for each of n={n} samples; got {given}.")
