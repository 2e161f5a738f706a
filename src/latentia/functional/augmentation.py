"""Differentiable augmentation of images, each of given uniform numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 1 / 8  # of a side
CUTOUT = 1 / 2  # of a side


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness + U[-1/2, 1/2), saturation U[0, 2), contrast U[1/2, 3/2), each about the mean of what it scales.

    Args:
        x: (B, C, H, W).
        u: for each image three numbers in [0, 1), (B, 3).

    Differentiable Augmentation for Data-Efficient GAN Training (Zhao et al., 2020, 2006.10738), section 3.2.

    Example:
        >>> x = torch.rand(2, 3, 4, 4)
        >>> torch.allclose(color(x, torch.full((2, 3), 0.5)), x)
        True
    """
    brightness, saturation, contrast = u.T[..., None, None, None]  # (B, 1, 1, 1) each
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Translation by whole pixels, up to an eighth of a side each way, all equally likely; what comes in is 0, grey.

    Args:
        x: (B, C, H, W).
        u: for each image two numbers in [0, 1), for rows and columns, (B, 2).

    Zhao et al., 2020, 2006.10738, section 3.2.

    Example:
        >>> translation(torch.eye(4).view(1, 1, 4, 4), torch.tensor([[0.99, 0.5]]))[0, 0, 0]  # one row up
        tensor([0., 1., 0., 0.])
    """
    sides = x.shape[-2:]
    most = [max(int(side * MAX_SHIFT + 0.5), 1) for side in sides]
    shifts = [(part * (2 * m + 1)).long().clamp(max=2 * m) for part, m in zip(u.T, most)]  # 0 to 2m
    rows, columns = (torch.arange(n, device=x.device) + s[:, None] for n, s in zip(sides, shifts))  # (B, H), (B, W)
    padded = F.pad(x, (most[1], most[1], most[0], most[0])).movedim(1, -1)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """A box of half the sides, its middle anywhere in the image, becomes 0, grey.

    Args:
        x: (B, C, H, W).
        u: for each image two numbers in [0, 1), for rows and columns, (B, 2).

    Zhao et al., 2020, 2006.10738, section 3.2.

    Example:
        >>> cutout(torch.ones(1, 1, 4, 4), torch.tensor([[0.5, 0.5]])).sum()  # 2 x 2 pixels are 0
        tensor(12.)
    """
    inside = torch.ones(len(x), 1, 1, dtype=torch.bool, device=x.device)
    for i, side in enumerate(x.shape[-2:]):
        size = int(side * CUTOUT + 0.5)
        start = (u[:, i] * (side + 1 - size % 2)).long() - size // 2
        place = torch.arange(side, device=x.device) - start[:, None]
        inside = inside & ((place >= 0) & (place < size)).view(-1, *((side, 1) if i == 0 else (1, side)))
    return x.masked_fill(inside[:, None], 0.0)


def affine(images: Tensor, u: Tensor, shift: float = 0.125, zoom: float = 0.25) -> Tensor:
    """Translation and scaling; what comes in repeats the border.

    Args:
        images: (B, C, H, W).
        u: for each image three numbers in [0, 1), for the size, the column and the row, (B, 3).
        shift: of each side, at most, each way. Default 1/8.
        zoom: natural logarithm of the factor of the size, at most, each way. Default 0.25.

    Example:
        >>> x = torch.rand(2, 3, 8, 8)
        >>> torch.allclose(affine(x, torch.full((2, 3), 0.5)), x, atol=1e-6)
        True
    """
    size = torch.exp((2 * u[:, 0] - 1) * zoom)
    place = 2 * shift * (2 * u[:, 1:] - 1)  # half a side is 1
    theta = torch.cat([torch.diag_embed(size[:, None].expand(-1, 2)), place[..., None]], 2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
