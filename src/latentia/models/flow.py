"""The base of normalizing flows: both directions, densities, samples, data-dependent initialisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.functional.distributions import log_normal
from latentia.models.layers.conditioners import ContextEmbedding
from latentia.models.layers.conditioning import check_class_labels
from latentia.models.layers.flow import ActNorm
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET
from latentia.models.priors import check_generators


@dataclass
class FlowOutput(BaseOutput):
    r"""Both sides of a flow and the density: \(\log p(x) = \log N(f(x); 0, I) + \log |\det \partial f / \partial x|\).

    `log_prob`: log p(x) in nats, (B,). `sample`: x, of the shape of the data. `latents`: z = f(x), (B, D). `log_det`:
    of f at x, (B,).
    """

    log_prob: Tensor
    sample: Tensor = UNSET
    latents: Tensor = UNSET
    log_det: Tensor = UNSET


class Flow(ModelMixin, ConfigMixin):
    """A normalizing flow, the base of `ImageFlow` and `VectorFlow`: both directions, densities, samples.

    A subclass sets `shape`, of one sample; `context`, the embedding of its conditions; and `stages`, lists of
    invertible layers. After each stage its split standardises half of the channels by the other half and hands them to
    the latents; a stage whose split is an `Identity`, as the last one, hands on all of them.
    """

    _skip_layerwise_casting_patterns: Any = ("out", "context")  # whose dtypes are read

    shape: tuple[int, ...]
    context: ContextEmbedding
    stages: Any
    splits: Any

    def forward(
        self,
        sample: Tensor | None = None,
        latents: Tensor | None = None,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowOutput | tuple[Tensor, ...]:
        """Map samples to latents, or latents to samples, with the log-density of the samples.

        Args:
            sample: x, (B, *shape); images in [-1, 1], as `latentia.functional.flows.dequantize` gives them.
            latents: z, (B, D), in place of `sample`.
            class_labels: integers in [0, num_class_embeds), (B,).
            context: (B, context_dim).
            return_dict: `False` returns a tuple.

        Raises:
            UsageError: neither or both sides, or of another shape; conditions that are missing or not expected.
        """
        given = sample if latents is None else latents
        if given is None or (sample is not None and latents is not None):
            raise UsageError("sample or latents must be given, and not both.")
        expected = self.shape if latents is None else (math.prod(self.shape),)
        if tuple(given.shape[1:]) != expected or not len(given):
            name = "sample" if latents is None else "latents"
            raise UsageError(f"{name} must have shape (B, {', '.join(map(str, expected))}); got {tuple(given.shape)}.")
        condition = self._condition(class_labels, context, len(given))
        # Densities are sums over all values and inverses undo roundings: at least float32 whatever the weights are.
        x = given.to(torch.promote_types(given.dtype, torch.float32))
        if latents is None:
            z, log_det = self._encode(x, condition)
            output = FlowOutput(log_normal(z) + log_det, x, z, log_det)
        else:
            decoded, log_det = self._decode(x, condition)
            output = FlowOutput(log_normal(x) - log_det, decoded, x, -log_det)
        return output if return_dict else output.to_tuple()

    def encode(self, sample: Tensor, class_labels: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Latents (B, D) of samples (B, *shape)."""
        return self(sample, class_labels=class_labels, context=context).latents

    def decode(self, latents: Tensor, class_labels: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Samples (B, *shape) of latents (B, D): the inverse of `encode`."""
        return self(latents=latents, class_labels=class_labels, context=context).sample

    def log_prob(self, sample: Tensor, class_labels: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """log p(x) in nats, (B,), of samples (B, *shape)."""
        return self(sample, class_labels=class_labels, context=context).log_prob

    @torch.no_grad()
    def sample(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Samples (n, *shape), each drawn with a generator of its own, so that it does not depend on the others.

        Args:
            n: how many.
            generators: one for each.

        Raises:
            UsageError: another number of generators.
        """
        check_generators(n, generators)
        size, dtype = math.prod(self.shape), torch.promote_types(self.dtype, torch.float32)
        noise = [torch.randn(size, generator=g, device=g.device, dtype=dtype).to(self.device) for g in generators]
        return self.decode(torch.stack(noise)) if n else torch.zeros(0, *self.shape, dtype=dtype, device=self.device)

    @torch.no_grad()
    def initialize(self, sample: Tensor, class_labels: Tensor | None = None, context: Tensor | None = None) -> None:
        """Set every `ActNorm` from data, layer by layer, so that its output has mean 0 and variance 1.

        Call it once, before training, with equal samples on every process.

        Args:
            sample: (B, *shape), a few hundred samples.
            class_labels, context: as for `forward`.

        Raises:
            UsageError: fewer than two samples.

        Glow (Kingma and Dhariwal, 2018, 1807.03039), section 3.1.
        """
        if len(sample) < 2:
            raise UsageError(f"sample must hold at least 2 samples to take a mean and variance of; got {len(sample)}.")
        condition = self._condition(class_labels, context, len(sample))
        self._encode(sample.to(torch.promote_types(sample.dtype, torch.float32)), condition, initialize=True)

    def _condition(self, class_labels: Tensor | None, context: Tensor | None, count: int) -> Tensor | None:
        config = self.config
        check_class_labels(class_labels, config.num_class_embeds)
        if (context is None) != (config.context_dim is None):
            rule = "is missing" if context is None else "was given"
            raise UsageError(f"context {rule}: this network was built with context_dim={config.context_dim}.")
        if context is not None and tuple(context.shape) != (count, config.context_dim):
            raise UsageError(f"context must have shape ({count}, {config.context_dim}); got {tuple(context.shape)}.")
        embedding = self.context(class_labels, context)
        return None if embedding is None else embedding.expand(count, -1)

    def _encode(self, x: Tensor, condition: Tensor | None, initialize: bool = False) -> tuple[Tensor, Tensor]:
        log_det, done = x.new_zeros(len(x)), []
        for stage, split in zip(self.stages, self.splits):
            for layer in stage:
                if initialize and isinstance(layer, ActNorm):
                    layer.initialize(x)
                x, change = layer(x, condition)
                log_det = log_det + change
            if not isinstance(split, nn.Identity):
                x, change = split(x, condition)
                x, latents = x.chunk(2, 1)
                done.append(latents.flatten(1))
                log_det = log_det + change
        return torch.cat([*done, x.flatten(1)], 1), log_det

    def _decode(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = list(z.split(self._latent_sizes, 1))
        x, log_det = parts.pop().unflatten(1, self._last_shape), z.new_zeros(len(z))
        for stage, split in zip(reversed(self.stages), reversed(self.splits)):
            if not isinstance(split, nn.Identity):
                x = torch.cat([x, parts.pop().view_as(x)], 1)
                x, change = split(x, condition, inverse=True)
                log_det = log_det + change
            for layer in reversed(stage):
                x, change = layer(x, condition, inverse=True)
                log_det = log_det + change
        return x, log_det

    # Sizes of the parts of a latent, and the shape of the last of them; set by the subclass.
    _latent_sizes: list[int]
    _last_shape: tuple[int, ...]


def check_spline(bins: int, logit_alpha: float = 0.05) -> None:
    """Raises a `UsageError` unless a spline has at least 2 and at most 100 bins and the logit keeps off its ends.

    Example:
        >>> check_spline(8)
    """
    if not 2 <= bins <= 100:
        raise UsageError(f"bins must be from 2 to 100; got {bins}.")
    if not 0 < logit_alpha < 0.5:
        raise UsageError(f"logit_alpha must be in (0, 0.5); got {logit_alpha}.")
