"""Autoencoders whose code is a picture of integers: vector quantisation and finite scalar quantisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.functional.quantisation import (
    codebook_lookup,
    fsq_codes,
    fsq_lookup,
    nearest_codes,
    straight_through,
    updated_codebook,
)
from latentia.models.layers.convolution import Decoder, Encoder, check_choice, pyramid_size
from latentia.models.modeling import UNSET, ModelMixin

QUANTIZERS = ("vq", "fsq")
CODEBOOK_UPDATES = ("ema", "gradient")


@dataclass
class VQVAEOutput(BaseOutput):
    """What an objective needs.

    Attributes:
        reconstruction: (B, in_channels, H, W).
        latents: z_e, what the encoder gives, (B, D, h, w).
        quantised: z_q, at each position the row of the codebook that was taken, (B, D, h, w).
        codes: its index, int64 (B, h, w).
    """

    reconstruction: Tensor
    latents: Tensor = UNSET
    quantised: Tensor = UNSET
    codes: Tensor = UNSET


@dataclass
class PositionPriorOutput(BaseOutput):
    """`log_prob`: log p(codes) in nats, (B,)."""

    log_prob: Tensor


class VectorQuantizer(nn.Module):
    r"""Each latent becomes the nearest row of a codebook: \(c = \arg\min_k \lVert z_e - e_k \rVert\), \(z_q = e_c\).

    Args:
        codebook_size: K, rows of the codebook.
        latent_channels: D, their length.
        codebook_update: "ema": the codebook is a buffer that `update` moves to running means of the latents assigned
            to each row. "gradient": it is a parameter, for an objective that pulls it to the latents.

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937), eq. 1 and 2.

    Example:
        >>> z_q, codes = VectorQuantizer(512, 64)(torch.randn(2, 64, 7, 7))
        >>> z_q.shape, codes.shape
        (torch.Size([2, 64, 7, 7]), torch.Size([2, 7, 7]))
    """

    def __init__(self, codebook_size: int, latent_channels: int, codebook_update: str = "ema"):
        super().__init__()
        self.size = codebook_size
        start = torch.empty(codebook_size, latent_channels).uniform_(-1 / codebook_size, 1 / codebook_size)
        if codebook_update == "gradient":
            self.codebook = nn.Parameter(start)
            return
        self.register_buffer("codebook", start)  # e, (K, D)
        self.register_buffer("counts", torch.zeros(codebook_size))  # N, (K,)
        self.register_buffer("sums", torch.zeros(codebook_size, latent_channels))  # m, (K, D)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = nearest_codes(z, self.codebook)
        return self.lookup(codes), codes

    def lookup(self, codes: Tensor) -> Tensor:
        """The rows of codes (B, h, w) as (B, D, h, w)."""
        return codebook_lookup(codes, self.codebook)

    def pass_gradient(self, z: Tensor, z_q: Tensor) -> Tensor:
        """`z_q` for the decoder; its gradient goes to the encoder as it is."""
        return straight_through(z_q, z)

    @torch.no_grad()
    def update(self, counts: Tensor, sums: Tensor, candidates: Tensor, decay: float, restart_below: float) -> Tensor:
        """Moves the codebook to running means, and rows that nobody uses to their candidates; see `updated_codebook`.

        Args:
            counts: how many latents of the batch took each row, (K,).
            sums: the sums of those latents, (K, D).
            candidates: a latent of the batch for each row, (K, D).
            decay: of the running means, in [0, 1).
            restart_below: in [0, 1); 0: no restarts.

        Returns:
            Which rows were restarted, bool (K,).
        """
        *new, restarted = updated_codebook(
            self.codebook, self.counts, self.sums, counts, sums, candidates, decay, restart_below
        )
        for buffer, value in zip((self.codebook, self.counts, self.sums), new):
            buffer.copy_(value)
        return restarted


class FiniteScalarQuantizer(nn.Module):
    r"""Each channel is squeezed into (-1, 1) and rounded to one of L levels there; all combinations are the codebook.

    \(z_q = \mathrm{round}(\tfrac{L - 1}{2} (\tanh z + 1)) \cdot \tfrac{2}{L - 1} - 1\): levels from -1 to 1, both
    included, for even L as well as for odd (the paper shifts those of even L by a half). There is nothing to learn, to
    collapse or to restart.

    Args:
        levels: L of each channel, each at least 2; the codebook has their product as its size. The paper advises at
            least 5, such as (8, 6, 5), about 2^8, or (8, 5, 5, 5), 2^10.

    Finite Scalar Quantization (Mentzer et al., 2023, 2309.15505), section 3.1.

    Example:
        >>> fsq = FiniteScalarQuantizer((3, 2))
        >>> z_q, codes = fsq(torch.tensor([5.0, -5.0]).view(1, 2, 1, 1))
        >>> z_q.flatten().tolist(), codes.item(), fsq.lookup(codes).flatten().tolist()
        ([1.0, -1.0], 2, [1.0, -1.0])
    """

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.levels, self.size = tuple(levels), math.prod(levels)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = fsq_codes(z, self.levels)
        return self.lookup(codes).to(z.dtype), codes

    def lookup(self, codes: Tensor) -> Tensor:
        """The points in [-1, 1]^d of codes (B, h, w) as (B, d, h, w)."""
        return fsq_lookup(codes, self.levels)

    def pass_gradient(self, z: Tensor, z_q: Tensor) -> Tensor:
        """`z_q` for the decoder; its gradient goes to tanh z as it is."""
        return straight_through(z_q, z.tanh())


class VQVAE(ModelMixin, ConfigMixin):
    r"""Pictures to small pictures of integers and back.

    Args:
        sample_size: height and width of the picture in pixels, an integer or (H, W), each divisible by 2^levels.
        in_channels: channels of the picture. Default 3.
        block_out_channels: channels of each level of the pyramid from fine to coarse; each level halves the picture.
        layers_per_block: convolutions of each level. Default 2.
        quantizer: "vq" (default; `VectorQuantizer`) or "fsq" (`FiniteScalarQuantizer`).
        codebook_size: rows K of the codebook of "vq", at least 2. Default 512.
        latent_channels: channels D of the latents of "vq", the length of a row of the codebook. Default 64.
        codebook_update: of "vq": "ema" (default), moved by `latentia.losses.quantisation.CodebookUpdate`, or
            "gradient", learned by the objective.
        levels: of "fsq", whose latents have as many channels; at least 2 each.
        norm, activation, upsample: of `latentia.models.layers.convolution`.

    Raises:
        UsageError: a size that cannot be halved so often, a codebook of one, levels without "fsq" or "fsq" without.

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937).

    Example:
        >>> vqvae = VQVAE(sample_size=28, in_channels=1, block_out_channels=(16, 32), codebook_size=64)
        >>> out = vqvae(torch.zeros(2, 1, 28, 28))
        >>> out.reconstruction.shape, out.codes.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 7, 7]))
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 2,
        quantizer: str = "vq",
        codebook_size: int = 512,
        latent_channels: int = 64,
        codebook_update: str = "ema",
        levels: tuple[int, ...] | None = None,
        norm: str = "group",
        activation: str = "silu",
        upsample: str = "transposed",
    ):
        super().__init__()
        check_choice("quantizer", quantizer, QUANTIZERS)
        check_choice("codebook_update", codebook_update, CODEBOOK_UPDATES)
        for name, value in (("in_channels", in_channels), ("latent_channels", latent_channels)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        if codebook_size < 2:
            raise UsageError(
                f"codebook_size must be at least 2, got {codebook_size}: with one row every picture has the same code."
            )
        if (quantizer == "fsq") != bool(levels):
            raise UsageError(
                f'levels must be given with quantizer="fsq", such as (8, 5, 5, 5), and only there; got {levels} with '
                f'"{quantizer}".'
            )
        if levels and min(levels) < 2:
            raise UsageError(f"levels must each be at least 2, or a channel says nothing; got {tuple(levels)}.")
        pyramid = (block_out_channels, sample_size, layers_per_block, norm, activation)
        dim = len(levels) if levels else latent_channels
        self.encoder = Encoder(in_channels, *pyramid)
        self.to_latents = nn.Conv2d(block_out_channels[-1], dim, 1)
        self.bottleneck: VectorQuantizer | FiniteScalarQuantizer = (
            FiniteScalarQuantizer(levels)
            if levels
            else VectorQuantizer(codebook_size, latent_channels, codebook_update)
        )
        self.from_latents = nn.Conv2d(dim, block_out_channels[-1], 3, padding=1)
        self.decoder = Decoder(in_channels, *pyramid, upsample=upsample)

    @property
    def code_shape(self) -> tuple[int, int]:
        """Height and width of the picture of codes."""
        return pyramid_size(self.config.sample_size, self.config.block_out_channels)

    def encode(self, images: Tensor) -> Tensor:
        """z_e, before quantisation, (B, D, h, w), of images (B, C, H, W) in [-1, 1]."""
        return self.to_latents(self.encoder(images))

    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """z_q (B, D, h, w) and its codes (B, h, w), of latents (B, D, h, w)."""
        return self.bottleneck(latents)

    def lookup(self, codes: Tensor) -> Tensor:
        """z_q (B, D, h, w) of codes, int64 (B, h, w) in [0, K)."""
        return self.bottleneck.lookup(codes).to(self.dtype)

    def decode(self, quantised: Tensor) -> Tensor:
        """Images (B, C, H, W) of z_q (B, D, h, w)."""
        return self.decoder(self.from_latents(quantised))

    def forward(self, images: Tensor, return_dict: bool = True) -> VQVAEOutput | tuple[Tensor, ...]:
        latents = self.encode(images)
        quantised, codes = self.quantise(latents)
        reconstruction = self.decode(self.bottleneck.pass_gradient(latents, quantised.to(latents.dtype)))
        output = VQVAEOutput(reconstruction=reconstruction, latents=latents, quantised=quantised, codes=codes)
        return output if return_dict else output.to_tuple()


class PositionPrior(ModelMixin, ConfigMixin):
    r"""Each position has its own distribution over the codebook: \(p(c) = \prod_{ij} p_{ij}(c_{ij})\).

    The simplest prior of a `VQVAE`, and what an autoregressive one has to beat: it knows what is usual where, but not
    what goes together. The better prior is `latentia.models.vq_prior.code_transformer`.

    Args:
        codebook_size: K.
        code_shape: height and width of the picture of codes, (h, w).

    Example:
        >>> prior = PositionPrior.fit(torch.tensor([[[0, 3]], [[0, 2]]]), codebook_size=4)
        >>> prior.sample(2, [torch.Generator().manual_seed(i) for i in range(2)]).shape
        torch.Size([2, 1, 2])
        >>> prior.log_prob(torch.tensor([[[0, 3]]])).exp()  # (2 + 1/4) / 3 times (1 + 1/4) / 3
        tensor([0.3125], grad_fn=<ExpBackward0>)
    """

    @register_to_config
    def __init__(self, codebook_size: int = 512, code_shape: tuple[int, int] = (7, 7)):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(*code_shape, codebook_size))

    @classmethod
    def fit(cls, codes: Tensor, codebook_size: int) -> Self:
        """The most likely one, after one more picture whose codes are spread evenly, so that nothing is impossible.

        Args:
            codes: int64 (N, h, w) in [0, K), such as `pipe.encode(images)`.
            codebook_size: K.

        Raises:
            UsageError: codes of another shape or range, or none.
        """
        if codes.ndim != 3 or not codes.numel() or codes.is_floating_point():
            raise UsageError(f"codes must be integers (N, h, w), N >= 1; got {codes.dtype} {tuple(codes.shape)}.")
        if codes.min() < 0 or codes.max() >= codebook_size:
            raise UsageError(
                f"codes must lie in [0, {codebook_size}), the codebook; got {int(codes.min())} to {int(codes.max())}."
            )
        prior = cls(codebook_size, tuple(codes.shape[1:]))
        positions = codes.cpu().flatten(1).T  # (h * w, N)
        counts = torch.zeros(len(positions), codebook_size).scatter_add_(1, positions, torch.ones(positions.shape))
        with torch.no_grad():
            prior.logits.copy_((counts + 1 / codebook_size).log().view_as(prior.logits))
        return prior.eval()

    def forward(self, codes: Tensor, return_dict: bool = True) -> PositionPriorOutput | tuple[Tensor]:
        log_p = self.logits.log_softmax(-1).expand(len(codes), -1, -1, -1).gather(-1, codes[..., None])
        log_prob = log_p.flatten(1).sum(1)
        return PositionPriorOutput(log_prob=log_prob) if return_dict else (log_prob,)

    def log_prob(self, codes: Tensor) -> Tensor:
        r"""log p(codes) in nats, (B,), of codes (B, h, w); divided by \(-\ln 2\), the bits of a picture."""
        return self(codes).log_prob

    @torch.no_grad()
    def sample(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Codes (n, h, w), each picture drawn with a generator of its own, so that it does not depend on the others.

        Raises:
            UsageError: another number of generators.
        """
        if len(generators) != n:
            raise UsageError(f"generators must be one for each of n={n} samples; got {len(generators)}.")
        p = self.logits.float().softmax(-1).flatten(0, 1)  # (h * w, K)
        drawn = [torch.multinomial(p.to(g.device), 1, generator=g).to(p.device) for g in generators]
        return (
            torch.stack(drawn).view(n, *self.logits.shape[:2]) if n else p.new_zeros(0, *self.logits.shape[:2]).long()
        )
