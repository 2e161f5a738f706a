"""Causal transformer blocks with rotary positions and a cache of keys and values."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.models.layers.attention import attend
from latentia.models.layers.residual import zero_init

_WAVELENGTH = 10_000.0


class KeyValueCache:
    """Keys and values of the tokens that causal blocks have seen, so that each new token costs one position.

    Args:
        layers: number of blocks.
        shape: (B, heads, L, head_dim), L being the most tokens that it holds.
        like: a tensor of the dtype and device of keys and values.

    Attributes:
        length: tokens that it holds.

    Example:
        >>> cache = KeyValueCache(1, (2, 4, 8, 16), torch.zeros(()))
        >>> keys, values = cache.append(0, *torch.randn(2, 2, 4, 3, 16))
        >>> keys.shape
        torch.Size([2, 4, 3, 16])
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor):
        self.keys = [like.new_empty(shape) for _ in range(layers)]
        self.values = [like.new_empty(shape) for _ in range(layers)]
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, (B, heads, T, head_dim), and return all; the last block ends with `advance`."""
        last = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : last] = keys
        self.values[layer][:, :, self.length : last] = values
        return self.keys[layer][:, :, :last], self.values[layer][:, :, :last]

    def advance(self, tokens: int) -> None:
        """Count new tokens, once all blocks have added theirs."""
        self.length += tokens


class CausalBlock(nn.Module):
    r"""Causal self-attention and a dense layer of four times the width with \(\max(0, x)^2\), each after a norm.

    Args:
        width: of the tokens.
        heads: of the attention; they divide the width.
        dropout: rate, at the end of both residual branches.

    Primer (So et al., 2021, 2109.08668), for the squared activation.

    Example:
        >>> CausalBlock(16, 2, 0.0)(torch.randn(2, 5, 16), None).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = zero_init(nn.Linear(width, width, bias=False))
        self.project_in = nn.Linear(width, 4 * width, bias=False)
        self.project_out = zero_init(nn.Linear(4 * width, width, bias=False))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: KeyValueCache | None = None, layer: int = 0
    ) -> Tensor:
        """Tokens of the same shape; token i depends on tokens 0 to i and those of the cache.

        Args:
            x: (B, T, width).
            rotation: from `rotary`, of the positions of these tokens; `None`: no rotation.
            cache: of the tokens before; if it holds some, T must be 1. `None` (default): there are none.
            layer: the number of this block in the cache. Default 0.
        """
        q, k, v = self.to_qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        h = attend(q, k, v, causal=q.shape[2] > 1).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.to_out(h))
        return x + self.dropout(self.project_out(F.relu(self.project_in(self.norm2(x))).square()))


def rotary(first: int, last: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Cosine and sine of \(i \omega_j\) for positions i in [first, last), float32 (last - first, head_dim / 2).

    RoFormer (Su et al., 2021, 2104.09864), eq. 15.

    Example:
        >>> rotary(0, 3, 8, torch.device("cpu"))[0].shape
        torch.Size([3, 4])
    """
    frequencies = _WAVELENGTH ** -(torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.arange(first, last, device=device).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the two halves of each head as pairs, in float32, so that products of two tokens depend on their distance.

    Args:
        x: (B, heads, T, head_dim).
        rotation: from `rotary`.

    Example:
        >>> x = torch.randn(1, 1, 3, 8)
        >>> torch.allclose(rotate(x, rotary(0, 3, 8, x.device)).norm(dim=-1), x.norm(dim=-1))
        True
    """
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
