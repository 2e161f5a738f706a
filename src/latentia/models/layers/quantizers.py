"""Quantizers between an encoder and a decoder: a learned codebook, or finite scalars."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentia.errors import check_range
from latentia.functional.quantisation import (
    codebook_lookup,
    fsq_codes,
    fsq_lookup,
    nearest_codes,
    straight_through,
    updated_codebook,
)


class VectorQuantizer(nn.Module):
    r"""Each latent becomes the nearest row of a codebook: \(c = \arg\min_k \lVert z_e - e_k \rVert\), \(z_q = e_c\).

    Args:
        codebook_size: K, rows of the codebook, at least 2.
        latent_channels: D, their length.
        codebook_update: "ema" (default): the codebook is a buffer that `update` moves to running means of the latents
            assigned to each row. "gradient": it is a parameter, for an objective that pulls it to the latents.

    Raises:
        UsageError: numbers out of range.

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937), eq. 1 and 2.

    Example:
        >>> z_q, codes = VectorQuantizer(512, 64)(torch.randn(2, 64, 7, 7))
        >>> z_q.shape, codes.shape
        (torch.Size([2, 64, 7, 7]), torch.Size([2, 7, 7]))
    """

    has_commitment = True  # the latents must be kept near the codebook
    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codebook_size: int, latent_channels: int, codebook_update: str = "ema"):
        super().__init__()
        check_range("codebook_size", codebook_size, 2, advice="With one row every image has the same code.")
        check_range("latent_channels", latent_channels, 1)
        self.codebook_size, self.latent_channels = codebook_size, latent_channels
        start = torch.empty(codebook_size, latent_channels).uniform_(-1 / codebook_size, 1 / codebook_size)
        if codebook_update == "gradient":
            self.codebook = nn.Parameter(start)
            return
        self.register_buffer("codebook", start)  # e, (K, D)
        self.register_buffer("counts", torch.zeros(codebook_size))  # N, (K,)
        self.register_buffer("sums", torch.zeros(codebook_size, latent_channels))  # m, (K, D)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_q (B, D, h, w) and its codes, int64 (B, h, w), of latents (B, D, h, w)."""
        codes = nearest_codes(z, self.codebook)
        return self.lookup(codes), codes

    def lookup(self, codes: Tensor) -> Tensor:
        """The rows of codes (B, h, w) as (B, D, h, w)."""
        return codebook_lookup(codes, self.codebook)

    def straight_through(self, z: Tensor, z_q: Tensor) -> Tensor:
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

    Raises:
        UsageError: a level below 2.

    Finite Scalar Quantization (Mentzer et al., 2023, 2309.15505), section 3.1.

    Example:
        >>> fsq = FiniteScalarQuantizer((3, 2))
        >>> z_q, codes = fsq(torch.tensor([5.0, -5.0]).view(1, 2, 1, 1))
        >>> z_q.flatten().tolist(), codes.item(), fsq.lookup(codes).flatten().tolist()
        ([1.0, -1.0], 2, [1.0, -1.0])
    """

    has_commitment = False

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        check_range("levels", levels, 2, advice="A channel of one level says nothing.")
        self.levels, self.latent_channels = tuple(levels), len(levels)
        self.codebook_size = math.prod(self.levels)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_q (B, d, h, w) and its codes, int64 (B, h, w), of latents (B, d, h, w)."""
        codes = fsq_codes(z, self.levels)
        return self.lookup(codes).to(z.dtype), codes

    def lookup(self, codes: Tensor) -> Tensor:
        """The points in [-1, 1]^d of codes (B, h, w) as (B, d, h, w)."""
        return fsq_lookup(codes, self.levels)

    def straight_through(self, z: Tensor, z_q: Tensor) -> Tensor:
        """`z_q` for the decoder; its gradient goes to tanh z as it is."""
        return straight_through(z_q, z.tanh())
