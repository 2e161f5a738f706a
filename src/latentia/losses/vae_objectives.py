"""The objectives of a VAE by name: a function, what makes the variant, one line and its paper."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from latentia.functional.distributions import log_cosh
from latentia.losses.aggregate_posterior import (
    beta_tc_loss,
    dip_vae_loss,
    factor_discriminator_loss,
    factor_vae_loss,
    info_vae_loss,
    swae_loss,
    wae_loss,
)
from latentia.losses.importance_groups import ciwae_loss, miwae_loss, piwae_loss
from latentia.losses.variational import elbo_loss, iwae_loss


@dataclass(frozen=True)
class VAEObjective:
    """One objective of a VAE.

    Args:
        loss: (vae, batch, rng, **options) -> {"loss": ..., **metrics}; with a `second` (vae, discriminator, batch, rng,
            **options).
        title: what it minimises, in one line.
        paper: authors, year, number in arXiv.
        fixed: options that make the variant.
        second: the loss of a discriminator of latents, (discriminator, vae, batch, rng) -> the same, whose phase runs
            before that of the VAE; `None` (default): there is no second network.
    """

    loss: Callable[..., dict[str, Tensor]]
    title: str
    paper: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    second: Callable[..., dict[str, Tensor]] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Name and default of each option of the loss that the variant leaves open."""
        parameters = inspect.signature(self.loss).parameters.values()
        of_loss = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {name: default for name, default in of_loss.items() if name not in self.fixed}


_RAINFORTH = "Rainforth et al., 2018, 1802.04537"
_KUMAR = "Kumar et al., 2017, 1711.00848"
_CHEN = "Chen et al., 2018, 1802.04942"
_WAE = "Tolstikhin et al., 2017, 1711.01558"
OBJECTIVES = {
    "elbo": VAEObjective(elbo_loss, "beta-weighted KL, free bits or capacity", "Kingma, Welling, 2013, 1312.6114"),
    "iwae": VAEObjective(iwae_loss, "importance weighted bound of k samples", "Burda et al., 2015, 1509.00519"),
    "miwae": VAEObjective(miwae_loss, "mean of M importance weighted bounds", _RAINFORTH),
    "ciwae": VAEObjective(ciwae_loss, "mean of the ELBO and the importance weighted bound", _RAINFORTH),
    "piwae": VAEObjective(piwae_loss, "IWAE for the decoder, MIWAE for the encoder", _RAINFORTH),
    "wae_rbf": VAEObjective(wae_loss, "Wasserstein autoencoder, MMD by Gaussian kernels", _WAE, {"kernel": "rbf"}),
    "wae_imq": VAEObjective(wae_loss, "Wasserstein autoencoder, MMD by inverse multiquadrics", _WAE, {"kernel": "imq"}),
    "swae": VAEObjective(swae_loss, "sliced Wasserstein distance to the prior", "Kolouri et al., 2018, 1804.01947"),
    "info_vae": VAEObjective(info_vae_loss, "KL of each posterior, MMD of all", "Zhao et al., 2017, 1706.02262"),
    "beta_tc": VAEObjective(beta_tc_loss, "KL with beta on its total correlation", _CHEN),
    "factor": VAEObjective(
        factor_vae_loss, "ELBO + total correlation by a discriminator of permuted latents",
        "Kim, Mnih, 2018, 1802.05983", second=factor_discriminator_loss,
    ),
    "dip_i": VAEObjective(dip_vae_loss, "ELBO + covariance of posterior means to I", _KUMAR, {"kind": "i"}),
    "dip_ii": VAEObjective(dip_vae_loss, "ELBO + covariance of latents to I", _KUMAR, {"kind": "ii"}),
}  # fmt: skip
# The names once more, as type checkers and command lines read them.
Objective = Literal[
    "elbo", "iwae", "miwae", "ciwae", "piwae", "wae_rbf", "wae_imq", "swae", "info_vae", "beta_tc", "factor", "dip_i",
    "dip_ii",
]  # fmt: skip


def describe_objectives() -> str:
    """Each objective in one line with its paper, such as a help text shows them.

    Example:
        >>> print(describe_objectives().splitlines()[1])
        iwae: importance weighted bound of k samples (Burda et al., 2015, 1509.00519)
    """
    return "\n".join(f"{name}: {each.title} ({each.paper})" for name, each in OBJECTIVES.items())


def log_cosh_cost(images: Tensor, reconstructions: Tensor) -> Tensor:
    r"""\(\sum \ln\cosh(x - \hat x)\) over the values of each image, (B,): quadratic near 0, linear far away.

    Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder (Chen, Chen and Wang, 2019).

    Example:
        >>> log_cosh_cost(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        tensor([1.7351])
    """
    return log_cosh(images - reconstructions).flatten(1).sum(1)


def similarity_cost(images: Tensor, reconstructions: Tensor, similarity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """1 - similarity, times the number of values of an image, so that its size is that of other costs; (B,).

    Args:
        images, reconstructions: (B, C, H, W) in [-1, 1]; reconstructions beyond are cut off.
        similarity: (images, reconstructions) -> (B,), at most 1, such as `latentia.evaluation.ms_ssim`.

    Learning to Generate Images with Perceptual Similarity Metrics (Snell et al., 2015, 1511.06409), section 3.

    Example:
        >>> x = torch.zeros(1, 1, 2, 2)
        >>> similarity_cost(x, x, lambda a, b: torch.ones(1))
        tensor([0.])
    """
    return images[0].numel() * (1 - similarity(images, reconstructions.clamp(-1, 1))).to(images.dtype)
