"""Residual blocks that are conditioned on an embedding, and layers that start at zero."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.models.layers.norm import GroupNorm, group_count


def zero_init(module: nn.Module) -> nn.Module:
    """The module with all parameters set to 0: a residual branch that ends in it starts as the identity.

    Example:
        >>> bool((zero_init(nn.Linear(2, 2)).weight == 0).all())
        True
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Group norm, SiLU and convolution, twice; the embedding enters as scale and shift after the second norm.

    Args:
        in_channels, out_channels: of the images; a convolution of kernel 1 takes the input to other channels.
        emb_dim: width of the embedding of time and class.
        dropout: rate before the second convolution.
        kernel_size: odd height and width of both convolutions; (1, 3) for sequences of height 1. Default (3, 3).

    Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021, 2105.05233), eq. 4.

    Example:
        >>> ResidualBlock(8, 16, 32, 0.0)(torch.randn(2, 8, 4, 4), torch.randn(2, 32)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_dim: int, dropout: float, kernel_size: tuple[int, int] = (3, 3)
    ):
        super().__init__()
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        self.norm1 = GroupNorm(group_count(in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
        self.time_emb_proj = nn.Linear(emb_dim, 2 * out_channels)
        self.norm2 = GroupNorm(group_count(out_channels), out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, kernel_size, padding=padding))
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time_emb_proj(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(h)))
