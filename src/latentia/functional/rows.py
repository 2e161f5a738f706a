"""Images as sequences of rows, and back."""

from torch import Tensor


def rows_of_images(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as sequences of H rows from the top, each of C * W values: (B, H, C * W).

    Example:
        >>> import torch
        >>> rows_of_images(torch.arange(4.0).view(1, 1, 2, 2)).tolist()
        [[[0.0, 1.0], [2.0, 3.0]]]
    """
    return images.transpose(1, 2).flatten(2)


def rows_to_images(rows: Tensor, channels: int) -> Tensor:
    """Sequences of rows (B, H, C * W) as images (B, C, H, W).

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 4, 5)
        >>> bool((rows_to_images(rows_of_images(images), 3) == images).all())
        True
    """
    return rows.unflatten(2, (channels, -1)).transpose(1, 2)
