"""Degradations, from which image-to-image networks restore: grey, edges, smaller, masked and noised images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError

_LUMA = (0.299, 0.587, 0.114)  # of R, G and B, as in Pillow's mode L (ITU-R BT.601)


def luminance(images: Tensor) -> Tensor:
    """Grey images: 0.299 R + 0.587 G + 0.114 B, the weights of Pillow's mode L.

    Args:
        images: (B, C, H, W); C is 3, or 1 for images that are grey already.

    Returns:
        (B, 1, H, W), in the range of the images.

    Raises:
        UsageError: another number of channels.

    Example:
        >>> red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
        >>> round(luminance(red).item(), 3)
        -0.402
    """
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise UsageError(f"Grey is made of images with 3 channels (R, G, B); got {images.shape[1]}. Give channels=3.")
    red, green, blue = (weight * images[:, i : i + 1] for i, weight in enumerate(_LUMA))
    return red + green + blue


def with_luminance(images: Tensor, grey: Tensor) -> Tensor:
    """The hues of `images` at the luminance of `grey`, in [-1, 1]: the grey of the result is `grey` but for rounding.

    The difference of an image from its own grey has luminance 0; so much of it is added to `grey` at each pixel as
    keeps all channels in [-1, 1].

    Args:
        images: (B, 3, H, W), any values.
        grey: (B, 1, H, W) in [-1, 1].

    Example:
        >>> images, grey = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4) * 2 - 1
        >>> bool((luminance(with_luminance(images, grey)) - grey).abs().max() < 1e-5)
        True
    """
    color = images - luminance(images)
    # The largest s in [0, 1] with -1 <= grey + s * color <= 1 in every channel.
    room = torch.where(color > 0, 1 - grey, 1 + grey)
    share = (room / color.abs().clamp(min=1e-6)).amin(1, keepdim=True).clamp(0, 1)
    return (grey + share * color).clamp(-1, 1)


def edges(images: Tensor) -> Tensor:
    """Strength of the edges: length of the Sobel gradient of the luminance, -1 for none, 1 for black beside white.

    Args:
        images: (B, C, H, W) in [-1, 1], C = 1 or 3.

    Returns:
        (B, 1, H, W) in [-1, 1].

    Example:
        >>> edges(torch.zeros(1, 3, 4, 4)).unique()
        tensor([-1.])
    """
    grey = F.pad(luminance(images), (1, 1, 1, 1), mode="replicate")
    parts = torch.tensor([[1.0, 2.0, 1.0], [-1.0, 0.0, 1.0]], dtype=grey.dtype)
    smooth, slope = parts.to(grey.device, non_blocking=True)  # an accelerator would wait for `new_tensor`
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None] / 8  # (2, 1, 3, 3)
    gradient = F.conv2d(grey, kernels)
    return (2 * gradient.square().sum(1, keepdim=True).sqrt()).clamp(max=2) - 1


def smaller(images: Tensor, scale: int) -> Tensor:
    """Means of blocks of `scale` x `scale` pixels: (B, C, H / scale, W / scale).

    Raises:
        UsageError: `scale` does not divide height and width.

    Example:
        >>> smaller(torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]), 2)
        tensor([[[[0.5000]]]])
    """
    if images.shape[2] % scale or images.shape[3] % scale:
        raise UsageError(
            f"scale must divide height and width of the images, {images.shape[2]} x {images.shape[3]}; got {scale}."
        )
    return F.avg_pool2d(images, scale)


def larger(images: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement, clamped to [-1, 1]: (B, C, H, W) to (B, C, scale H, scale W).

    Example:
        >>> larger(torch.zeros(1, 1, 2, 2), 2).shape
        torch.Size([1, 1, 4, 4])
    """
    return F.interpolate(images, scale_factor=scale, mode="bicubic").clamp(-1, 1)


def hole(places: Tensor, shape: tuple[int, int], share: float) -> Tensor:
    """Masks of one rectangle each, of the proportions of the image: 1 inside of the hole, 0 outside.

    Args:
        places: (B, 2) in [0, 1): where the hole lies, from the top and from the left.
        shape: (H, W).
        share: of the area of the image, in (0, 1].

    Returns:
        (B, 1, H, W), float32.

    Example:
        >>> hole(torch.zeros(1, 2), (4, 4), 0.25)[0, 0]
        tensor([[1., 1., 0., 0.],
                [1., 1., 0., 0.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])
    """
    spans = []
    for i, side in enumerate(shape):
        length = min(max(round(side * share**0.5), 1), side)
        first = (places[:, i] * (side - length + 1)).floor()[:, None]
        index = torch.arange(side, device=places.device)
        spans.append((index >= first) & (index < first + length))
    return (spans[0][:, None, :, None] & spans[1][:, None, None, :]).float()


def masked(images: Tensor, mask: Tensor) -> Tensor:
    """Images with a hole, 0 inside, and the mask as one more channel, -1 outside and 1 inside.

    Args:
        images: (B, C, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 inside of the hole and 0 outside.

    Returns:
        (B, C + 1, H, W).

    Example:
        >>> masked(torch.ones(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]])).flatten().tolist()
        [1.0, 0.0, -1.0, 1.0]
    """
    return torch.cat([images * (1 - mask), 2 * mask.to(images.dtype) - 1], 1)
