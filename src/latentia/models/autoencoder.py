"""Autoencoders: linear, stacked, convolutional and recurrent, each from its configuration alone."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments, check_range
from latentia.functional.checks import is_false
from latentia.models.layers.convolution import Decoder, Encoder, feature_size, sample_shape
from latentia.models.layers.mlp import make_activation
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET


@dataclass
class AutoencoderOutput(BaseOutput):
    """`reconstruction`: shaped as the input; `latents`: (B, latent_dim)."""

    reconstruction: Tensor
    latents: Tensor = UNSET


class _TiedLinear(nn.Module):
    """A linear layer whose weight is the transpose of another's. It owns its bias alone."""

    def __init__(self, tied_to: nn.Linear):
        super().__init__()
        self.tied_to = (tied_to,)  # in a tuple, so that its weight is not counted and saved a second time
        self.bias = nn.Parameter(torch.zeros(tied_to.in_features))

    @property
    def weight(self) -> Tensor:
        return self.tied_to[0].weight.t()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Autoencoder(ModelMixin, ConfigMixin):
    r"""An autoencoder, linear, stacked or convolutional: \(z = f(x)\), \(\hat x = g(z)\), with g the mirror of f.

    The arguments make the kind. Without `hidden_sizes` and `block_out_channels` both maps are linear, and the best of
    them span the principal components (Bourlard and Kamp, 1988; Baldi and Hornik, 1989, doi:10.1016/0893-6080(89)
    90014-2). `hidden_sizes` stack dense layers, as (100, 30) makes D-100-30-M-30-100-D. `block_out_channels` put a
    convolutional encoder before them and its mirror after.

    Args:
        sample_size: height and width of the image in pixels, an integer or (H, W). With convolutions each must be
            divisible by `2 ** len(block_out_channels)`. Or (L,), steps of a sequence, of any number. Default 28.
        in_channels: channels of the image or sequence. Default 1.
        latent_dim: M, the number of latents. Default 32.
        hidden_sizes: widths of the dense layers between input (or convolutions) and latents. Default none.
        block_out_channels: channels of the convolutional stages from fine to coarse, each of which halves the image;
            `None` (default): dense layers only.
        layers_per_block, norm, upsample: of the convolutions, see `latentia.models.layers.convolution`.
        activation: of all hidden layers: "relu", "silu" (default), "gelu", "tanh", ...
        latent_activation: of the latents: "none" (default), "sigmoid" (in (0, 1), as sparsity by KL needs), "relu", ...
        tie_weights: whether the decoder's weights are the encoder's, transposed; about half the parameters. Dense
            layers only. Default False.
        overcomplete: whether there may be more latents than values of the image. They can hold a copy, so train them
            with corruption or sparsity. Default False.

    Raises:
        UsageError: a size that convolutions cannot mirror, more latents than values, tied convolutions, numbers below
            1, unknown names; images of another shape.

    Reducing the Dimensionality of Data with Neural Networks (Hinton and Salakhutdinov, 2006,
    doi:10.1126/science.1127647).

    Example:
        >>> network = Autoencoder(sample_size=28, latent_dim=8, block_out_channels=(8, 16))
        >>> out = network(torch.rand(2, 1, 28, 28) * 2 - 1)
        >>> out.latents.shape, out.reconstruction.shape
        (torch.Size([2, 8]), torch.Size([2, 1, 28, 28]))
        >>> series = Autoencoder(sample_size=(30,), in_channels=2, block_out_channels=(8, 16))
        >>> series(torch.randn(3, 2, 30)).reconstruction.shape
        torch.Size([3, 2, 30])
    """

    _skip_layerwise_casting_patterns: Any = ("encoder_mlp",)  # whose weights the decoder may be tied to

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] | tuple[int] = 28,
        in_channels: Size = 1,
        latent_dim: Size = 32,
        hidden_sizes: tuple[Size, ...] = (),
        block_out_channels: tuple[Size, ...] | None = None,
        layers_per_block: Size = 1,
        norm: str = "group",
        upsample: str = "transposed",
        activation: str = "silu",
        latent_activation: str = "none",
        tie_weights: bool = False,
        overcomplete: bool = False,
    ):
        super().__init__()
        self.image_shape = (in_channels, *sample_shape(sample_size))
        values = math.prod(self.image_shape)
        if latent_dim > values and not overcomplete:
            raise UsageError(
                f"latent_dim must be at most the {values} values of an image {self.image_shape}; got {latent_dim}. "
                "More latents can hold a copy of the image. If corruption or sparsity keeps them from that, set "
                "overcomplete=True."
            )
        self.activation = make_activation(activation)
        self.latent_activation = make_activation(latent_activation, "latent_activation")
        self.encoder: nn.Module = nn.Identity()
        self.decoder: nn.Module = nn.Identity()
        self.feature_shape: tuple[int, ...] = self.image_shape
        if block_out_channels is not None:
            if tie_weights:
                raise UsageError(
                    "tie_weights is for dense layers only; got it with "
                    f"block_out_channels={tuple(block_out_channels)}. Leave one of them out."
                )
            stages = (block_out_channels, sample_size, layers_per_block, norm, activation)
            self.encoder = Encoder(in_channels, *stages)
            self.decoder = Decoder(in_channels, *stages, upsample=upsample)
            self.feature_shape = (block_out_channels[-1], *feature_size(sample_size, block_out_channels))
        sizes = [math.prod(self.feature_shape), *hidden_sizes, latent_dim]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.encoder_mlp = nn.ModuleList(layers)
        self.decoder_mlp = nn.ModuleList(
            _TiedLinear(layer) if tie_weights else nn.Linear(layer.out_features, layer.in_features)
            for layer in reversed(layers)
        )

    @property
    def decoder_weights(self) -> list[Tensor]:
        """Weights (out, in) of the decoder's dense layers, from the latents outwards."""
        return [_weight_of(layer) for layer in self.decoder_mlp]

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) in [-1, 1], or sequences (B, in_channels, L), to latents (B, latent_dim)."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise UsageError(
                f"images must have shape (B, {', '.join(map(str, self.image_shape))}), as this network was built for "
                f"sample_size and in_channels; got {tuple(images.shape)}."
            )
        h = self.encoder(images).flatten(1)
        for layer in self.encoder_mlp[:-1]:
            h = self.activation(layer(h))
        return self.latent_activation(self.encoder_mlp[-1](h))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, latent_dim) to images (B, in_channels, H, W), not clamped."""
        dim = self.decoder_weights[0].shape[1]
        if latents.ndim != 2 or latents.shape[1] != dim:
            raise UsageError(f"latents must have shape (B, latent_dim) = (B, {dim}); got {tuple(latents.shape)}.")
        h = self.decoder_mlp[0](latents)
        for layer in self.decoder_mlp[1:]:
            h = layer(self.activation(h))
        return self.decoder(h.unflatten(1, self.feature_shape))

    def forward(self, images: Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[Any, ...]:
        """Latents and reconstruction of images (B, in_channels, H, W); `return_dict=False`: both as a tuple."""
        latents = self.encode(images)
        out = AutoencoderOutput(reconstruction=self.decode(latents), latents=latents)
        return out if return_dict else out.to_tuple()


def outer_layers(network: Autoencoder, depth: int) -> Autoencoder:
    """The autoencoder of the outermost `depth` dense layers and their mirrors, which it shares with `network`.

    Layer-wise training: for depth = 1, 2, ... train `outer_layers(network, depth)` with an optimizer over its innermost
    pair, `encoder_mlp[-1]` and `decoder_mlp[0]`, while the others stay as they are; then, if wanted, all layers
    together. It was how deep networks were made to train at all, and is a regulariser where data are few.

    Args:
        network: an `Autoencoder` without convolutions.
        depth: from 1 to the number of its dense layers, which is `len(hidden_sizes) + 1`.

    Raises:
        UsageError: convolutions, or a depth that the network has not got.

    Greedy Layer-Wise Training of Deep Networks (Bengio et al., 2006), section 4.

    Example:
        >>> network = Autoencoder(sample_size=8, latent_dim=4, hidden_sizes=(32, 16))
        >>> outer = outer_layers(network, 2)
        >>> outer(torch.zeros(1, 1, 8, 8)).latents.shape, outer.encoder_mlp[1] is network.encoder_mlp[1]
        (torch.Size([1, 16]), True)
    """
    config = network.config
    if config.block_out_channels is not None:
        raise UsageError("Layer-wise training is for dense layers; this network has block_out_channels. Train jointly.")
    layers = len(network.encoder_mlp)
    check_range("depth", depth, 1, layers, advice=f"The network has {layers} dense layers.")
    options, sizes = dict(config), [*config.hidden_sizes, config.latent_dim]
    if depth < layers:
        options |= {"hidden_sizes": tuple(sizes[: depth - 1]), "latent_dim": sizes[depth - 1], "overcomplete": True}
        options["latent_activation"] = config.activation
    outer = Autoencoder(**{key: value for key, value in options.items() if not key.startswith("_")})
    outer.encoder_mlp, outer.decoder_mlp = network.encoder_mlp[:depth], network.decoder_mlp[-depth:]
    return outer


class RecurrentAutoencoder(ModelMixin, ConfigMixin):
    r"""A recurrent autoencoder: a sequence of any length to one vector and back, with gated recurrent units.

    \(h_t = \mathrm{GRU}(x_t, h_{t-1})\), \(z = W h_T + b\); then \(s_0 = \tanh(V z + c)\),
    \(s_t = \mathrm{GRU}'(z, s_{t-1})\), \(\hat x_t = U s_t + d\). The decoder sees the latents at every step and none
    of the sequence, so all that comes back went through the latents. Where the mask is False the state stands still.

    Args:
        in_features: D, values of one element. Default 28, as the rows of an image have.
        latent_dim: number of latents. Default 32.
        hidden_size: length of the states h and s. Default 128.
        latent_activation: as for `Autoencoder`.

    Raises:
        UsageError: numbers below 1, unknown names; sequences of another shape, empty or wholly masked.

    Learning Phrase Representations using RNN Encoder-Decoder (Cho et al., 2014, 1406.1078); Unsupervised Learning of
    Video Representations using LSTMs (Srivastava et al., 2015, 1502.04681).

    Example:
        >>> from latentia.functional.masks import length_mask
        >>> network = RecurrentAutoencoder(in_features=3, latent_dim=2, hidden_size=8)
        >>> out = network(torch.randn(4, 7, 3), mask=length_mask(torch.tensor([7, 5, 1, 7]), 7))
        >>> out.latents.shape, out.reconstruction.shape
        (torch.Size([4, 2]), torch.Size([4, 7, 3]))
    """

    @register_to_config
    @check_arguments
    def __init__(
        self, in_features: Size = 28, latent_dim: Size = 32, hidden_size: Size = 128, latent_activation: str = "none"
    ):
        super().__init__()
        self.encoder_rnn = nn.GRUCell(in_features, hidden_size)
        self.encoder_out = nn.Linear(hidden_size, latent_dim)
        self.latent_activation = make_activation(latent_activation, "latent_activation")
        self.decoder_in = nn.Linear(latent_dim, hidden_size)
        self.decoder_rnn = nn.GRUCell(latent_dim, hidden_size)
        self.decoder_out = nn.Linear(hidden_size, in_features)

    def encode(self, sequences: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sequences (B, T, D) to latents (B, latent_dim). `mask` (B, T): True where an element counts; `None`: all."""
        self._check(sequences, mask)
        h = sequences.new_zeros(len(sequences), self.encoder_rnn.hidden_size)
        if mask is not None:  # what lies in the padding, even if not a number, must not reach the gradients
            mask = mask.bool()[..., None]
            sequences = torch.where(mask, sequences, 0.0)
        for t in range(sequences.shape[1]):
            following = self.encoder_rnn(sequences[:, t], h)
            h = following if mask is None else torch.where(mask[:, t], following, h)
        return self.latent_activation(self.encoder_out(h))

    def decode(self, latents: Tensor, steps: int) -> Tensor:
        """Latents (B, latent_dim) to sequences (B, steps, D)."""
        s, elements = self.decoder_in(latents).tanh(), []
        for _ in range(steps):
            s = self.decoder_rnn(latents, s)
            elements.append(self.decoder_out(s))
        return torch.stack(elements, dim=1)

    def forward(
        self, sequences: Tensor, mask: Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderOutput | tuple[Any, ...]:
        """Latents and reconstruction of sequences (B, T, D), masked elements included; `mask` as for `encode`."""
        latents = self.encode(sequences, mask)
        out = AutoencoderOutput(reconstruction=self.decode(latents, sequences.shape[1]), latents=latents)
        return out if return_dict else out.to_tuple()

    def _check(self, sequences: Tensor, mask: Tensor | None) -> None:
        if sequences.ndim != 3 or sequences.shape[2] != self.encoder_rnn.input_size or 0 in sequences.shape:
            raise UsageError(
                f"sequences must have shape (B, T, {self.encoder_rnn.input_size}), with at least one sequence of at "
                f"least one element of in_features values; got {tuple(sequences.shape)}."
            )
        if mask is None:
            return
        if mask.shape != sequences.shape[:2]:
            raise UsageError(
                f"mask must have shape (B, T) = {tuple(sequences.shape[:2])}; got {tuple(mask.shape)}. From lengths it "
                "is made by length_mask(lengths, T)."
            )
        if is_false(mask.bool().any(1).all()):
            empty = (~mask.bool().any(1)).nonzero().flatten().tolist()
            raise UsageError(
                f"mask must leave at least one element of every sequence; got none for {len(empty)} of {len(mask)} "
                f"(the first is number {empty[0]}). Leave empty sequences out of the batch."
            )


def _weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear | _TiedLinear)
    return layer.weight
