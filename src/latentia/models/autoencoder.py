"""Autoencoders: linear, stacked, convolutional and recurrent, each from its configuration alone."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.functional.checks import is_false
from latentia.models.layers.convolution import Decoder, Encoder, activation_of, image_size, pyramid_size
from latentia.models.modeling import UNSET, ModelMixin


@dataclass
class AutoencoderOutput(BaseOutput):
    """`reconstruction`: shaped as the input; `latents`: the codes, (B, latent_dim)."""

    reconstruction: Tensor
    latents: Tensor = UNSET


class _Transposed(nn.Module):
    """A linear layer whose weight is the transpose of another's. It owns its bias alone."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.of = (layer,)  # in a tuple, so that its weight is not counted and saved a second time
        self.bias = nn.Parameter(torch.zeros(layer.in_features))

    @property
    def weight(self) -> Tensor:
        return self.of[0].weight.t()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Autoencoder(ModelMixin, ConfigMixin):
    r"""An image through a narrow code and back: \(z = f(x)\), \(\hat x = g(z)\), with g the mirror of f.

    What is given makes the kind. Without `hidden_sizes` and `block_out_channels` both maps are linear, and the best of
    them span the principal components (Bourlard and Kamp, 1988; Baldi and Hornik, 1989, doi:10.1016/0893-6080(89)
    90014-2). `hidden_sizes` stack dense layers, as (100, 30) makes D-100-30-M-30-100-D. `block_out_channels` put a
    pyramid of convolutions before them and its mirror after.

    Args:
        sample_size: height and width of the image in pixels, an integer or (H, W). With convolutions each must be
            divisible by `2 ** len(block_out_channels)`.
        in_channels: channels of the image. Default 1.
        latent_dim: M, the length of the code. Default 32.
        hidden_sizes: widths of the dense layers between input (or pyramid) and code. Default none.
        block_out_channels: channels of the pyramid's levels from fine to coarse, each half as large as the one before;
            `None` (default): dense layers only.
        layers_per_block, norm, upsample: of the pyramid, see `models.layers.convolution.Encoder` and `Decoder`.
        activation: of all hidden layers: "relu", "silu" (default), "gelu", "tanh", ...
        code_activation: of the code: "none" (default), "sigmoid" (in (0, 1), as sparse coding needs), "relu", ...
        tie_weights: the decoder's weights are the encoder's, transposed; about half the parameters. Dense layers only.
        overcomplete: allow a code longer than the image. It can hold a copy, so train it with corruption or sparsity.

    Raises:
        UsageError: a size that the pyramid cannot mirror, a code longer than the image, tied convolutions, numbers
            below 1, unknown names; images of another shape.

    Reducing the Dimensionality of Data with Neural Networks (Hinton and Salakhutdinov, 2006,
    doi:10.1126/science.1127647).

    Example:
        >>> network = Autoencoder(sample_size=28, latent_dim=8, block_out_channels=(8, 16))
        >>> out = network(torch.rand(2, 1, 28, 28) * 2 - 1)
        >>> out.latents.shape, out.reconstruction.shape
        (torch.Size([2, 8]), torch.Size([2, 1, 28, 28]))
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        latent_dim: int = 32,
        hidden_sizes: tuple[int, ...] = (),
        block_out_channels: tuple[int, ...] | None = None,
        layers_per_block: int = 1,
        norm: str = "group",
        upsample: str = "transposed",
        activation: str = "silu",
        code_activation: str = "none",
        tie_weights: bool = False,
        overcomplete: bool = False,
    ):
        super().__init__()
        self.image_shape = (in_channels, *image_size(sample_size))
        values = math.prod(self.image_shape)
        for name, sizes in {"in_channels": in_channels, "latent_dim": latent_dim, "hidden_sizes": hidden_sizes}.items():
            if min([sizes] if isinstance(sizes, int) else sizes, default=1) < 1:
                raise UsageError(f"{name} must be at least 1; got {sizes}.")
        if latent_dim > values and not overcomplete:
            raise UsageError(
                f"latent_dim must be at most the {values} values of an image {self.image_shape}; got {latent_dim}. A "
                "longer code can hold a copy of the image. If corruption or sparsity keeps it from that, set "
                "overcomplete=True."
            )
        self.nonlinearity = activation_of(activation)
        self.code_nonlinearity = activation_of(code_activation, "code_activation")
        self.down = self.up = None
        self.feature_shape = self.image_shape
        if block_out_channels is not None:
            if tie_weights:
                raise UsageError(
                    "tie_weights is for dense layers only; got it with "
                    f"block_out_channels={tuple(block_out_channels)}. Leave one of them out."
                )
            pyramid = (block_out_channels, sample_size, layers_per_block, norm, activation)
            self.down = Encoder(in_channels, *pyramid)
            self.up = Decoder(in_channels, *pyramid, upsample=upsample)
            self.feature_shape = (block_out_channels[-1], *pyramid_size(sample_size, block_out_channels))
        sizes = [math.prod(self.feature_shape), *hidden_sizes, latent_dim]
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.decoder = nn.ModuleList(
            _Transposed(layer) if tie_weights else nn.Linear(layer.out_features, layer.in_features)
            for layer in reversed(self.encoder)
        )

    @property
    def decoder_weights(self) -> list[Tensor]:
        """Weights (out, in) of the decoder's dense layers, from the code outwards."""
        return [layer.weight for layer in self.decoder]

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) in [-1, 1] to codes (B, latent_dim)."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise UsageError(
                f"images must have shape (B, {', '.join(map(str, self.image_shape))}), as this network was built for "
                f"sample_size and in_channels; got {tuple(images.shape)}."
            )
        h = (images if self.down is None else self.down(images)).flatten(1)
        for layer in self.encoder[:-1]:
            h = self.nonlinearity(layer(h))
        return self.code_nonlinearity(self.encoder[-1](h))

    def decode(self, latents: Tensor) -> Tensor:
        """Codes (B, latent_dim) to images (B, in_channels, H, W), not clamped."""
        if latents.ndim != 2 or latents.shape[1] != self.encoder[-1].out_features:
            raise UsageError(
                f"latents must have shape (B, {self.encoder[-1].out_features}), B codes of latent_dim; got "
                f"{tuple(latents.shape)}."
            )
        h = self.decoder[0](latents)
        for layer in self.decoder[1:]:
            h = layer(self.nonlinearity(h))
        h = h.unflatten(1, self.feature_shape)
        return h if self.up is None else self.up(h)

    def forward(self, images: Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[Tensor, Tensor]:
        """Code and reconstruction of images (B, in_channels, H, W); `return_dict=False`: (reconstruction, latents)."""
        latents = self.encode(images)
        out = AutoencoderOutput(reconstruction=self.decode(latents), latents=latents)
        return out if return_dict else out.to_tuple()


def outer_layers(network: Autoencoder, depth: int) -> Autoencoder:
    """The autoencoder of the outermost `depth` dense layers and their mirrors, which it shares with `network`.

    Layer-wise training: for depth = 1, 2, ... train `outer_layers(network, depth)` with an optimizer over its innermost
    pair, `encoder[-1]` and `decoder[0]`, while the others stay as they are; then, if wanted, all layers together. It
    was how deep networks were made to train at all, and is a regulariser where data are few.

    Args:
        network: an `Autoencoder` without convolutions.
        depth: from 1 to the number of its dense layers, which is `len(hidden_sizes) + 1`.

    Raises:
        UsageError: convolutions, or a depth that the network has not got.

    Greedy Layer-Wise Training of Deep Networks (Bengio et al., 2006), section 4.

    Example:
        >>> network = Autoencoder(sample_size=8, latent_dim=4, hidden_sizes=(32, 16))
        >>> outer = outer_layers(network, 2)
        >>> outer(torch.zeros(1, 1, 8, 8)).latents.shape, outer.encoder[1] is network.encoder[1]
        (torch.Size([1, 16]), True)
    """
    if network.down is not None:
        raise UsageError("Layer-wise training is for dense layers; this network has block_out_channels. Train jointly.")
    if not 1 <= depth <= len(network.encoder):
        raise UsageError(f"depth must be from 1 to {len(network.encoder)}, the network's dense layers; got {depth}.")
    config, sizes = dict(network.config), [*network.config.hidden_sizes, network.config.latent_dim]
    if depth < len(network.encoder):
        config |= {"hidden_sizes": tuple(sizes[: depth - 1]), "latent_dim": sizes[depth - 1], "overcomplete": True}
        config["code_activation"] = network.config.activation
    outer = Autoencoder(**{key: value for key, value in config.items() if not key.startswith("_")})
    outer.encoder, outer.decoder = network.encoder[:depth], network.decoder[-depth:]
    return outer


class RecurrentAutoencoder(ModelMixin, ConfigMixin):
    r"""A sequence of any length through one vector and back, with gated recurrent units.

    \(h_t = \mathrm{GRU}(x_t, h_{t-1})\), \(z = W h_T + b\); then \(s_0 = \tanh(V z + c)\),
    \(s_t = \mathrm{GRU}'(z, s_{t-1})\), \(\hat x_t = U s_t + d\). The decoder sees the code at every step and none of
    the sequence, so all that comes back went through the code. Where the mask is False the state stands still.

    Args:
        in_features: D, values of one element. Default 28, as the rows of a picture have.
        latent_dim: length of the code. Default 32.
        hidden_size: length of the states h and s. Default 128.
        code_activation: as for `Autoencoder`.

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
    def __init__(
        self, in_features: int = 28, latent_dim: int = 32, hidden_size: int = 128, code_activation: str = "none"
    ):
        super().__init__()
        for name, size in {"in_features": in_features, "latent_dim": latent_dim, "hidden_size": hidden_size}.items():
            if size < 1:
                raise UsageError(f"{name} must be at least 1; got {size}.")
        self.reader = nn.GRUCell(in_features, hidden_size)
        self.to_code = nn.Linear(hidden_size, latent_dim)
        self.code_nonlinearity = activation_of(code_activation, "code_activation")
        self.from_code = nn.Linear(latent_dim, hidden_size)
        self.writer = nn.GRUCell(latent_dim, hidden_size)
        self.to_element = nn.Linear(hidden_size, in_features)

    def encode(self, sequences: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sequences (B, T, D) to codes (B, latent_dim). `mask` (B, T): True where an element counts; `None`: all."""
        self._check(sequences, mask)
        h = sequences.new_zeros(len(sequences), self.reader.hidden_size)
        if mask is not None:  # what lies in the padding, even if not a number, must not reach the gradients
            mask = mask.bool()[..., None]
            sequences = torch.where(mask, sequences, 0.0)
        for t in range(sequences.shape[1]):
            following = self.reader(sequences[:, t], h)
            h = following if mask is None else torch.where(mask[:, t], following, h)
        return self.code_nonlinearity(self.to_code(h))

    def decode(self, latents: Tensor, steps: int) -> Tensor:
        """Codes (B, latent_dim) to sequences (B, steps, D)."""
        s, elements = self.from_code(latents).tanh(), []
        for _ in range(steps):
            s = self.writer(latents, s)
            elements.append(self.to_element(s))
        return torch.stack(elements, dim=1)

    def forward(
        self, sequences: Tensor, mask: Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderOutput | tuple[Tensor, Tensor]:
        """Code and reconstruction of sequences (B, T, D); `mask` as for `encode`. What is masked comes out as well."""
        latents = self.encode(sequences, mask)
        out = AutoencoderOutput(reconstruction=self.decode(latents, sequences.shape[1]), latents=latents)
        return out if return_dict else out.to_tuple()

    def _check(self, sequences: Tensor, mask: Tensor | None) -> None:
        if sequences.ndim != 3 or sequences.shape[2] != self.reader.input_size or 0 in sequences.shape:
            raise UsageError(
                f"sequences must have shape (B, T, {self.reader.input_size}), with at least one sequence of at least "
                f"one element of in_features values; got {tuple(sequences.shape)}."
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
