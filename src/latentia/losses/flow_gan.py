"""Flow-GAN: a normalizing flow trained by its likelihood, as the generator of a GAN, or by both."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from latentia.errors import check_range
from latentia.functional.flows import dequantize, quantize
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.losses.conditions import item_of
from latentia.losses.likelihood import flow_loss
from latentia.losses.networks import config_of
from latentia.rng import Rng


class FlowGenerator:
    """A flow as the generator of a GAN: noise to images, its inverse.

    Args:
        flow: `NormalizingFlow`, called through `forward` alone; may be wrapped for several processes.

    Example:
        >>> import torch
        >>> from latentia import NormalizingFlow
        >>> generator = FlowGenerator(NormalizingFlow(8, num_layers=2, hidden_sizes=(8,)))
        >>> generator(torch.randn(3, generator.config.latent_dim)).sample.shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, flow: Any):
        self.flow, config = flow, config_of(flow)
        size = config.sample_size
        height, width = (1, 1) if size is None else (size, size) if isinstance(size, int) else size
        self.of_images = size is not None
        self.config = SimpleNamespace(
            latent_dim=config.in_channels * height * width, num_class_embeds=config.num_class_embeds
        )

    def __call__(self, latents: Tensor, **conditions: Tensor) -> SimpleNamespace:
        sample = self.flow(latents=latents, **conditions).sample
        return SimpleNamespace(sample=quantize(sample) if self.of_images else sample)


def flow_gan_discriminator_loss(
    discriminator: Any, flow: Any, batch: Mapping[str, Any], rng: Rng, **options: Any
) -> dict[str, Tensor]:
    """The discriminator's loss against a flow.

    Real images are dequantised: steps of 1/255 would tell them from any sample of a density.

    Args:
        discriminator, flow: called through `forward` alone; may be wrapped for several processes.
        batch: "x", images (B, C, H, W) in [-1, 1] or vectors (B, D), and "labels" (B,) for conditional networks.
        rng: the randomness of this micro-batch.
        **options: of `gan_discriminator_loss`: `objective`, `r1`, `r2`, `gp`.

    Returns:
        As `gan_discriminator_loss`.

    Flow-GAN (Grover et al., 2017, 1705.08868), eq. 6.

    Example:
        >>> import torch
        >>> from latentia import DCGANDiscriminator, NormalizingFlow
        >>> flow = NormalizingFlow(8, num_layers=2, hidden_sizes=(8,))
        >>> batch, rng = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4)
        >>> discriminator = DCGANDiscriminator(sample_size=8, block_out_channels=(8,), norm="none")
        >>> bool(flow_gan_discriminator_loss(discriminator, flow, batch, rng)["loss"] > 0)
        True
    """
    return gan_discriminator_loss(discriminator, FlowGenerator(flow), _continuous(batch, rng), rng, **options)


def flow_gan_loss(
    discriminator: Any,
    flow: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    likelihood_weight: float = 1.0,
    **options: Any,
) -> dict[str, Tensor]:
    r"""The flow's loss: that of a generator, and the negative log-likelihood: \(V(G, D) - \lambda E \log p(x) / D\).

    Args:
        discriminator, flow, batch, rng: as for `flow_gan_discriminator_loss`.
        likelihood_weight: \(\lambda\), at least 0, of the nats per value of a sample, so that it means the same for
            images of every size; 0: adversarial alone. Default 1.
        **options: of `gan_generator_loss`: `objective`, `top_k`, `matching_weight`.

    Returns:
        "loss"; "nats", "log_det" and "bits_per_dim" as `flow_loss`; "fake" and "fooled" as `gan_generator_loss`.

    Raises:
        UsageError: a negative weight, and what the two losses raise.

    Flow-GAN (Grover et al., 2017, 1705.08868), eq. 6.
    """
    check_range("likelihood_weight", likelihood_weight, 0)
    adversarial = gan_generator_loss(discriminator, FlowGenerator(flow), _continuous(batch, rng), rng, **options)
    likelihood = flow_loss(flow, batch, rng)
    values = item_of(batch, "x")[0].numel()
    loss = adversarial["loss"] + likelihood_weight * likelihood["loss"] / values
    return {**adversarial, **likelihood, "loss": loss}


def _continuous(batch: Mapping[str, Any], rng: Rng) -> dict[str, Any]:
    x = item_of(batch, "x")
    if x.ndim != 4:
        return {**batch}
    noise = rng.uniform("dequantize", x.shape[1:]).to(x.dtype)
    return {**batch, "x": quantize(dequantize(x, noise))}
