"""VQVAE: autoencoders of images and sequences with discrete codes, by vector or finite scalar quantisation."""

from dataclasses import dataclass
from typing import Annotated, Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Range, Size, UsageError, check_arguments, check_choice
from latentia.models.layers.convolution import Decoder, Encoder, feature_size, is_sequence
from latentia.models.layers.quantizers import FiniteScalarQuantizer, VectorQuantizer
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET

QUANTIZERS = ("vq", "fsq")
CODEBOOK_UPDATES = ("ema", "gradient")


@dataclass
class VQVAEOutput(BaseOutput):
    """What an objective needs; of sequences, L and l are in place of H, W and h, w.

    Attributes:
        reconstruction: (B, in_channels, H, W).
        latents: z_e, the output of the encoder, (B, D, h, w).
        quantized: z_q, at each position the row of the codebook that was taken, (B, D, h, w).
        codes: its index, int64 (B, h, w).
    """

    reconstruction: Tensor
    latents: Tensor = UNSET
    quantized: Tensor = UNSET
    codes: Tensor = UNSET


class VQVAE(ModelMixin, ConfigMixin):
    r"""A VQ-VAE: images to a grid of codes, integers, and back; or sequences, such as time series, to a row of codes.

    Args:
        sample_size: height and width of the image in pixels, an integer or (H, W), each divisible by 2^stages; or (L,),
            steps of a sequence, of any number.
        in_channels: channels of the image or sequence. Default 3.
        block_out_channels: channels of each stage from fine to coarse; each stage halves the image or sequence. Default
            (64, 128).
        layers_per_block: convolutions of each stage. Default 2.
        quantizer: "vq" (default; `VectorQuantizer`) or "fsq" (`FiniteScalarQuantizer`).
        codebook_size: rows K of the codebook of "vq", at least 2. Default 512.
        latent_channels: channels D of the latents of "vq", the length of a row of the codebook. Default 64.
        codebook_update: of "vq": "ema" (default), updated by `latentia.losses.quantisation.CodebookUpdate`, or
            "gradient", learned by the objective.
        levels: of "fsq", whose latents have as many channels; at least 2 each.
        norm, activation, upsample: of `latentia.models.layers.convolution`.

    Raises:
        UsageError: a size that cannot be halved so often, a codebook of one, levels without "fsq" or "fsq" without.

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937).

    Example:
        >>> import torch
        >>> vqvae = VQVAE(sample_size=28, in_channels=1, block_out_channels=(16, 32), codebook_size=64)
        >>> out = vqvae(torch.zeros(2, 1, 28, 28))
        >>> out.reconstruction.shape, out.codes.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 7, 7]))
        >>> VQVAE(sample_size=(30,), in_channels=2)(torch.zeros(3, 2, 30)).codes.shape
        torch.Size([3, 8])
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] | tuple[int] = 32,
        in_channels: Size = 3,
        block_out_channels: tuple[Size, ...] = (64, 128),
        layers_per_block: Size = 2,
        quantizer: str = "vq",
        codebook_size: Annotated[int, Range(2, most=2**20)] = 512,
        latent_channels: Size = 64,
        codebook_update: str = "ema",
        levels: tuple[Annotated[int, Range(2, most=2**20)], ...] | None = None,
        norm: str = "group",
        activation: str = "silu",
        upsample: str = "transposed",
    ):
        super().__init__()
        check_choice("quantizer", quantizer, QUANTIZERS)
        check_choice("codebook_update", codebook_update, CODEBOOK_UPDATES)
        if (quantizer == "fsq") != bool(levels):
            raise UsageError(
                f'levels must be given with quantizer="fsq", such as (8, 5, 5, 5), and only there; got {levels} with '
                f'"{quantizer}".'
            )
        stages = (block_out_channels, sample_size, layers_per_block, norm, activation)
        dim = len(levels) if levels else latent_channels
        self.encoder = Encoder(in_channels, *stages)
        features = block_out_channels[-1]
        convolution = nn.Conv1d if is_sequence(sample_size) else nn.Conv2d
        self.quant_conv = convolution(features, dim, 1)
        self.quantize: VectorQuantizer | FiniteScalarQuantizer = (
            FiniteScalarQuantizer(levels) if levels else VectorQuantizer(codebook_size, dim, codebook_update)
        )
        self.post_quant_conv = convolution(dim, features, 3, padding=1)
        self.decoder = Decoder(in_channels, *stages, upsample=upsample)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Height and width of the grid of codes, (h, w); of sequences their number, (l,)."""
        return feature_size(self.config.sample_size, self.config.block_out_channels)

    def encode(self, images: Tensor) -> Tensor:
        """z_e, before quantisation, (B, D, h, w), of images (B, C, H, W) in [-1, 1]; `quantize` gives z_q and codes."""
        return self.quant_conv(self.encoder(images))

    def lookup(self, codes: Tensor) -> Tensor:
        """z_q (B, D, h, w) of codes, int64 (B, h, w) in [0, K)."""
        return self.quantize.lookup(codes).to(self.dtype)

    def decode(self, quantized: Tensor) -> Tensor:
        """Images (B, C, H, W) of z_q (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(quantized))

    def forward(self, images: Tensor, return_dict: bool = True) -> VQVAEOutput | tuple[Any, ...]:
        """Encode, quantise and decode images (B, C, H, W) in [-1, 1]; `return_dict=False`: a tuple."""
        latents = self.encode(images)
        quantized, codes = self.quantize(latents)
        reconstruction = self.decode(self.quantize.straight_through(latents, quantized.to(latents.dtype)))
        output = VQVAEOutput(reconstruction=reconstruction, latents=latents, quantized=quantized, codes=codes)
        return output if return_dict else output.to_tuple()
