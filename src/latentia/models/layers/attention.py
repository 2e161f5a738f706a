"""Attention over the pixels of an image, and to the tokens of a context."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.functional.precision import full_precision
from latentia.models.layers.norm import GroupNorm, group_count
from latentia.models.layers.residual import zero_init


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: queries, (B, heads, L, head_dim).
        k, v: keys and values, (B, heads, S, head_dim).
        mask: bool, broadcasting with (B, heads, L, S), True where a key counts; `None` (default): all count.
        causal: whether query i counts keys 0 to i alone. Default False.

    Returns:
        (B, heads, L, head_dim).

    Example:
        >>> attend(*torch.randn(3, 2, 4, 5, 8), causal=True).shape
        torch.Size([2, 4, 5, 8])
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # its kernel is many times slower than float32's
        with full_precision("cpu"):
            h = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal)
            return h.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels and, where there is a context, cross-attention to it; a residual branch.

    Args:
        channels: of the images.
        head_dim: channels of one head, which divides them.
        cross_attention_dim: width of the context's tokens; `None`: no context.

    Attention Is All You Need (Vaswani et al., 2017, 1706.03762), eq. 1.

    Example:
        >>> AttentionBlock(8, 4, None)(torch.randn(2, 8, 4, 4), None, None).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, head_dim: int, cross_attention_dim: int | None):
        super().__init__()
        self.heads = channels // head_dim
        self.group_norm = GroupNorm(group_count(channels), channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = zero_init(nn.Linear(channels, channels))
        if cross_attention_dim is not None:
            self.cross_norm = nn.LayerNorm(channels)
            self.cross_to_q = nn.Linear(channels, channels)
            self.cross_to_kv = nn.Linear(cross_attention_dim, 2 * channels)
            self.cross_to_out = zero_init(nn.Linear(channels, channels))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, head_dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._split(q), self._split(k), self._split(v)
        return attend(q, k, v, mask=mask).transpose(1, 2).flatten(2)  # (B, tokens, channels)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Images of the same shape.

        Args:
            x: (B, channels, H, W).
            context: (B, L, cross_attention_dim), or None.
            mask: bool, broadcasting with (B, heads, H W, L), True where a token counts; `None`: all count.
        """
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H * W, channels)
        q, k, v = self.to_qkv(h).chunk(3, dim=-1)
        h = self.to_out(self._attend(q, k, v))
        if context is not None:
            q = self.cross_to_q(self.cross_norm(h + x.flatten(2).transpose(1, 2)))
            k, v = self.cross_to_kv(context).chunk(2, dim=-1)
            h = h + self.cross_to_out(self._attend(q, k, v, mask))
        return x + h.transpose(1, 2).unflatten(2, x.shape[-2:])
