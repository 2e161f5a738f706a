"""Normalizing flows of vectors and points: NICE, RealNVP, neural spline flows, MAF and IAF."""

from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import nn

from latentia.errors import Positive, Size, UsageError, check_arguments, check_choice
from latentia.models.flow import Flow, check_spline
from latentia.models.layers.conditioners import ContextEmbedding, DenseConditioner
from latentia.models.layers.flow import ActNorm, Autoregressive, Coupling, InvertibleLinear, Reverse, Transform

# name -> transform of each value, and how values depend on each other
ARCHITECTURES: dict[str, tuple[Any, str]] = {
    "nice": ("additive", "coupling"),
    "realnvp": ("affine", "coupling"),
    "spline": ("spline", "coupling"),
    "maf": ("affine", "autoregressive"),
    "iaf": ("affine", "inverse autoregressive"),
    "spline_maf": ("spline", "autoregressive"),
}


class VectorFlow(Flow):
    r"""A normalizing flow of vectors or points: NICE, RealNVP, neural spline flow, MAF or IAF.

    It is a density for `prior` of an autoencoder's pipeline too: it has `log_prob(z)` and `sample(n, generators)`.

    Args:
        features: D, values of a vector. Default 2.
        architecture: couplings, "nice" (additive), "realnvp" (affine) and "spline" (rational-quadratic, default); or
            masked autoregressive transforms, "maf" (affine; densities take one evaluation, samples D), "iaf" (the other
            way round) and "spline_maf".
        num_layers: transforms of the flow. Default 8.
        hidden_sizes: width of each hidden layer of the network of a transform. Default (64, 64).
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "silu".
        bins: of the splines, at least 2. Default 8.
        tail_bound: the splines act on [-tail_bound, tail_bound] and are the identity outside. Default 4.
        num_class_embeds: number of classes that it is conditioned on; `None` (default): no labels.
        context_dim: values of a vector that it is conditioned on; `None` (default): no vector.

    Raises:
        UsageError: a coupling of one value, an unknown name, numbers out of range, conditions that are missing or not
            expected.

    NICE (Dinh et al., 2014, 1410.8516); Density Estimation using Real NVP (Dinh et al., 2016, 1605.08803); Neural
    Spline Flows (Durkan et al., 2019, 1906.04032); Masked Autoregressive Flow (Papamakarios et al., 2017, 1705.07057);
    Inverse Autoregressive Flow (Kingma et al., 2016, 1606.04934).

    Example:
        >>> flow = VectorFlow(3, architecture="maf", hidden_sizes=(8,))
        >>> flow.log_prob(torch.zeros(2, 3)).shape
        torch.Size([2])
        >>> flow.sample(2, [torch.Generator().manual_seed(i) for i in range(2)]).shape
        torch.Size([2, 3])
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        features: Size = 2,
        architecture: str = "spline",
        num_layers: Size = 8,
        hidden_sizes: tuple[Size, ...] = (64, 64),
        activation: str = "silu",
        bins: Size = 8,
        tail_bound: Positive = 4.0,
        num_class_embeds: Size | None = None,
        context_dim: Size | None = None,
    ):
        super().__init__()
        check_choice("architecture", architecture, ARCHITECTURES)
        check_spline(bins)
        kind, dependence = ARCHITECTURES[architecture]
        if features < 2 and dependence == "coupling":
            raise UsageError(
                f"features must be at least 2 for {architecture!r}, which transforms one half of the values by the "
                f'other; got {features}. Take architecture="maf".'
            )
        self.shape = (features,)
        self.context = ContextEmbedding(num_class_embeds, context_dim)
        conditional = num_class_embeds is not None or context_dim is not None
        transform = Transform(kind, bins, tail_bound)
        options = (hidden_sizes, activation)
        layers: list[nn.Module] = [ActNorm(features)]
        for _ in range(num_layers):
            if dependence == "coupling":
                known, changed = range(features // 2), range(features // 2, features)
                outputs = len(changed) * transform.parameters_per_value
                network = DenseConditioner(len(known), outputs, *options, conditional)
                layers += [Coupling(known, changed, network, transform)]
            else:
                fast = dependence == "inverse autoregressive"
                layers += [Autoregressive(features, *options, transform, conditional, fast)]
            # NICE keeps the volume but for one scale of each value at the end (section 3.3).
            layers += [Reverse()] if kind == "additive" else [InvertibleLinear(features)]
        layers += [ActNorm(features)]
        self.stages, self.splits = nn.ModuleList([nn.ModuleList(layers)]), nn.ModuleList([nn.Identity()])
        self._latent_sizes, self._last_shape = [features], self.shape
