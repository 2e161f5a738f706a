"""Normalizing flows of images and of vectors: NICE, RealNVP, Glow, neural spline flows, MAF and IAF."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import NumericsError, Positive, Size, UsageError, check_arguments, check_choice, check_range
from latentia.functional.checks import check_values, is_false
from latentia.functional.chunks import in_chunks
from latentia.functional.distributions import log_normal
from latentia.functional.flows import dequantize
from latentia.models.layers.conditioners import ContextEmbedding
from latentia.models.layers.conditioning import check_class_labels
from latentia.models.layers.convolution import image_size
from latentia.models.layers.dequantizer import VariationalDequantizer
from latentia.models.layers.flow import (
    ActNorm,
    FlowLayer,
    Logit,
    Squeeze,
    Transform,
    check_halvings,
    conv_coupling,
    image_layers,
    vector_layers,
)
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET
from latentia.models.priors import check_generators, check_latents

# name -> the transform of each value, and what its layers are
IMAGES: dict[str, tuple[Any, str]] = {
    "nice": ("additive", "checkerboard"),
    "realnvp": ("affine", "checkerboard"),
    "glow": ("affine", "linear"),
    "spline": ("spline", "linear"),
}
DEQUANTIZATIONS = ("uniform", "variational")
VECTORS: dict[str, tuple[Any, str]] = {
    "nice": ("additive", "coupling"),
    "realnvp": ("affine", "coupling"),
    "spline": ("spline", "coupling"),
    "maf": ("affine", "autoregressive"),
    "iaf": ("affine", "inverse autoregressive"),
    "spline_maf": ("spline", "autoregressive"),
}


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


class NormalizingFlow(ModelMixin, ConfigMixin):
    r"""A normalizing flow, an invertible network f with \(\log p(x) = \log N(f(x); 0, I) + \log |\det \partial f|\).

    Of images it is multi-scale: each stage squeezes blocks of 2 x 2 pixels into channels, applies `num_layers`
    couplings and, but for the last stage, hands half of the channels to the latents, standardised by a convolution on
    the other half. "nice" (additive) and "realnvp" (affine) change the pixels of a checkerboard's fields, then halves
    of the channels; "glow" (affine) and "spline" (rational-quadratic) have an invertible 1x1 convolution before each
    coupling. The density is on [-1, 1]^D.

    Of vectors or points (`sample_size=None`) the layers are couplings, "nice", "realnvp" and "spline", or masked
    autoregressive: "maf" (affine; densities take one evaluation, samples D), "iaf" (the other way round), "spline_maf".
    It is a density for the `prior` of an autoencoder's pipeline too: it has `log_prob(z)` and `sample(n, generators)`.

    Args:
        sample_size: height and width in pixels, an integer or (H, W), each a multiple of 2^`num_stages`; `None`:
            vectors. Default 28.
        in_channels: channels of an image, or values of a vector. Default 1.
        architecture: of images "nice", "realnvp", "glow" (default) or "spline"; of vectors "nice", "realnvp", "spline",
            "maf", "iaf" or "spline_maf".
        num_stages: how often an image is halved, at least 1; of vectors 1. Default 1.
        num_layers: couplings or autoregressive transforms of each stage. Default 8.
        hidden_sizes: widths of the network that gives the parameters of a transform: of images channels of a 3x3
            convolution, then of 1x1 ones, before a last 3x3 one; of vectors of dense layers. Default (64, 64).
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "relu".
        bins: of the splines, from 2 to 100. Default 8.
        tail_bound: the splines act on [-tail_bound, tail_bound] and are the identity outside. Default 4.
        logit_alpha: pixels are mapped to real numbers by a logit that is kept this far from its ends, in (0, 0.5); its
            log-determinant counts. Default 0.05.
        dequantization: of images, "uniform" (default), or "variational": the noise that makes bytes continuous is
            learned, by a `VariationalDequantizer` that is a part of the network.
        num_class_embeds: number of classes that it is conditioned on; `None` (default): no labels.
        context_dim: values of a vector that it is conditioned on; `None` (default): no vector.

    Raises:
        UsageError: a size that cannot be halved so often, a coupling of one value, an unknown name, numbers out of
            range, conditions that are missing or not expected.

    NICE (Dinh et al., 2014, 1410.8516); Density Estimation using Real NVP (Dinh et al., 2016, 1605.08803); Glow (Kingma
    and Dhariwal, 2018, 1807.03039); Neural Spline Flows (Durkan et al., 2019, 1906.04032); Masked Autoregressive Flow
    (Papamakarios et al., 2017, 1705.07057); Inverse Autoregressive Flow (Kingma et al., 2016, 1606.04934).

    Example:
        >>> flow = NormalizingFlow(sample_size=8, num_layers=2, hidden_sizes=(8, 8))
        >>> x = torch.rand(4, 1, 8, 8) * 2 - 1
        >>> out = flow(x)
        >>> out.latents.shape, out.log_prob.shape, bool((flow.decode(out.latents) - x).abs().max() < 1e-5)
        (torch.Size([4, 64]), torch.Size([4]), True)
        >>> NormalizingFlow(None, 3, "maf", hidden_sizes=(8,)).log_prob(torch.zeros(2, 3)).shape
        torch.Size([2])
    """

    _skip_layerwise_casting_patterns: Any = ("out", "context")  # whose dtypes are read
    context: Any
    stages: Any

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 28,
        in_channels: Size = 1,
        architecture: str = "glow",
        num_stages: Size = 1,
        num_layers: Size = 8,
        hidden_sizes: tuple[Size, ...] = (64, 64),
        activation: str = "relu",
        bins: Size = 8,
        tail_bound: Positive = 4.0,
        logit_alpha: Positive = 0.05,
        dequantization: str = "uniform",
        num_class_embeds: Size | None = None,
        context_dim: Size | None = None,
    ):
        super().__init__()
        of_images = sample_size is not None
        check_choice("architecture", architecture, IMAGES if of_images else VECTORS)
        check_range("bins", bins, 2, 100)
        check_range("logit_alpha", logit_alpha, 0, 0.5, closed="neither")
        check_choice("dequantization", dequantization, DEQUANTIZATIONS if of_images else DEQUANTIZATIONS[:1])
        self.context = ContextEmbedding(num_class_embeds, context_dim)
        conditional = num_class_embeds is not None or context_dim is not None
        network = {"hidden_sizes": hidden_sizes, "activation": activation, "has_context": conditional}
        kind, layers_are = (IMAGES if of_images else VECTORS)[architecture]
        transform = Transform(kind, bins, tail_bound)

        # After each stage, half of the channels are standardised by the other half and are latents; but for the last.
        self.stages, self.splits = nn.ModuleList(), nn.ModuleList()
        if sample_size is None:
            self.shape: tuple[int, ...] = (in_channels,)
            _check_vectors(in_channels, num_stages, layers_are, architecture)
            layers = [ActNorm(in_channels), *vector_layers(in_channels, num_layers, layers_are, transform, network)]
            self._latent_shapes: list[tuple[int, ...]] = [self.shape]
            self.stages.append(nn.ModuleList([*layers, ActNorm(in_channels)]))
            return
        size = image_size(sample_size)
        check_halvings(size, num_stages)
        self.shape, self._latent_shapes = (in_channels, *size), []
        channels, (height, width) = in_channels, size
        prior = Transform("additive" if kind == "additive" else "affine", bins, tail_bound)
        for stage in range(num_stages):
            channels, height, width = 4 * channels, height // 2, width // 2
            first = [Logit(logit_alpha)] if stage == 0 else []
            couplings = image_layers(channels, num_layers, layers_are, transform, network)
            self.stages.append(nn.ModuleList([*first, Squeeze(), *couplings]))
            if stage < num_stages - 1:
                half = range(channels // 2)
                self.splits.append(conv_coupling(channels, half, prior, {**network, "hidden_sizes": ()}))
                channels //= 2
            self._latent_shapes.append((channels, height, width))
        self.stages[-1].append(ActNorm(channels))
        if dequantization == "variational":
            self.dequantizer = VariationalDequantizer(in_channels, hidden_sizes, activation)

    def forward(
        self,
        sample: Tensor | None = None,
        latents: Tensor | None = None,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowOutput | tuple[Tensor, ...]:
        r"""Map samples to latents, or latents to samples, with the log-density of the samples.

        Args:
            sample: x, (B, *shape); images in [-1, 1], as `latentia.functional.flows.dequantize` gives them.
            latents: z, (B, D), in place of `sample`.
            class_labels: integers in [0, num_class_embeds), (B,).
            context: (B, context_dim).
            noise: for `sample` as images of bytes, v / 127.5 - 1: they are dequantised here, by u in [0, 1) or, if
                `dequantization` is "variational", by what is made of N(0, 1); shaped as `sample`. `log_prob` is then
                \(\log p(x + u) - \log q(u|x)\). `None` (default): `sample` is continuous.
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
        if not given.is_floating_point():
            raise UsageError(f"sample and latents must be floating point; got {given.dtype}. Images: v / 127.5 - 1.")
        condition = self._condition(class_labels, context, len(given))
        # Densities are sums over all values and inverses undo roundings: at least float32 whatever the weights are.
        x = given.to(torch.promote_types(given.dtype, torch.float32))
        if latents is None:
            log_q: Tensor | float = 0.0
            if noise is not None and self.config.dequantization == "variational":
                noise, log_q = self.dequantizer(x, noise.to(x.dtype))
            x = x if noise is None else dequantize(x, noise)
            z, log_det = self._encode(x, condition)
            output = FlowOutput(log_normal(z) + log_det - log_q, x, z, log_det)
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
        return (
            in_chunks(self.decode, torch.stack(noise))
            if n
            else torch.zeros(0, *self.shape, dtype=dtype, device=self.device)
        )

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
        if len(self.shape) == 3 and sample.is_floating_point():
            check_values("sample", sample, -1, 1, advice="Scale pixels v of 0 to 255 by v / 127.5 - 1.")
        if not sample.is_floating_point() or is_false(sample.isfinite().all()):
            raise UsageError(f"sample must be floating point and finite to set scales from; got {sample.dtype}.")
        if len(sample) < 2:
            raise UsageError(f"sample must hold at least 2 samples to take a mean and variance of; got {len(sample)}.")
        condition = self._condition(class_labels, context, len(sample))
        self._encode(sample.to(torch.promote_types(sample.dtype, torch.float32)), condition, initialize=True)

    @classmethod
    def fit(
        cls, latents: Tensor, steps: int = 2000, batch_size: int = 256, seed: int = 0, **settings: Any
    ) -> "NormalizingFlow":
        """A flow of vectors fitted to latents by maximum likelihood, as the `prior` of a pipeline.

        A tenth of the latents is held out; the weights under which it is likeliest are kept.

        Args:
            latents: (N, D), or (N, ...), which is flattened; N at least 20.
            steps: of Adam, whose rate falls from 0.001 to 0. Default 2000: about half a minute for D = 32.
            batch_size: latents of a step. Default 256.
            seed: of weights and batches. Default 0.
            **settings: of the flow; default `architecture="spline"`, `num_layers=4`.

        Raises:
            UsageError: too few latents, or all of them equal.
            NumericsError: a latent is not finite, or no likelihood of the held-out ones is.

        Example:
            >>> angle = 6.28 * torch.rand(400, generator=torch.Generator().manual_seed(0))
            >>> flow = NormalizingFlow.fit(torch.stack([angle.cos(), angle.sin()], 1), steps=50)
            >>> flow.sample(3, [torch.Generator().manual_seed(i) for i in range(3)]).shape
            torch.Size([3, 2])
        """
        check_range("steps", steps, 1, integer=True)
        check_range("batch_size", batch_size, 1, integer=True)
        z = check_latents(latents, 20).float()
        generator = torch.Generator().manual_seed(seed)
        z = z[torch.randperm(len(z), generator=generator)]
        held, rest = z[: len(z) // 10], z[len(z) // 10 :]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = cls(None, z.shape[1], **{"architecture": "spline", "num_layers": 4} | settings)
        flow.initialize(rest[:1000])
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, kept = -math.inf, flow.state_dict()
        for step in range(1, steps + 1):
            rows = torch.randint(len(rest), (batch_size,), generator=generator)
            loss = -flow.log_prob(rest[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            if step % max(1, steps // 20) == 0 or step == steps:
                with torch.no_grad():
                    found = flow.log_prob(held).mean().item()
                if found > best:
                    best, kept = found, {key: value.clone() for key, value in flow.state_dict().items()}
        if best == -math.inf:
            raise NumericsError(
                "latents have no finite likelihood under the fitted flow. Take fewer steps, or scale them."
            )
        flow.load_state_dict(kept)
        return flow.eval()

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
        for i, stage in enumerate(self.stages):
            for layer in _members(stage):
                if initialize and isinstance(layer, ActNorm):
                    layer.initialize(x)
                x, change = layer(x, condition)
                log_det = log_det + change
            if i < len(self.splits):
                x, change = self.splits[i](x, condition)
                log_det = log_det + change
                x, latents = x.chunk(2, 1)
                done.append(latents.flatten(1))
        return torch.cat([*done, x.flatten(1)], 1), log_det

    def _decode(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = z.split([math.prod(shape) for shape in self._latent_shapes], 1)
        *done, x = (part.unflatten(1, shape) for part, shape in zip(parts, self._latent_shapes))
        log_det = z.new_zeros(len(z))
        for i in reversed(range(len(self.stages))):
            if i < len(self.splits):
                x, change = self.splits[i](torch.cat([x, done[i]], 1), condition, inverse=True)
                log_det = log_det + change
            for layer in reversed(_members(self.stages[i])):
                x, change = layer(x, condition, inverse=True)
                log_det = log_det + change
        return x, log_det


def _members(stage: Any) -> list[FlowLayer]:
    return list(stage)


def _check_vectors(values: int, num_stages: int, layers_are: str, architecture: str) -> None:
    if num_stages > 1:
        raise UsageError(f"num_stages must be 1 for vectors, which are not halved; got {num_stages}.")
    if values < 2 and layers_are == "coupling":
        raise UsageError(
            f"in_channels must be at least 2 for vectors and {architecture!r}, which transforms one half of the values "
            f'by the other; got {values}. Take architecture="maf".'
        )
