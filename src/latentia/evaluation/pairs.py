"""Distances of image pairs (PSNR, SSIM, MS-SSIM, perceptual), and sharpness. In float64, one number per image.

Every function takes `a` and `b` (N, C, H, W) in [-1, 1], compares a[i] with b[i] and returns (N,), float64, on their
device. `psnr`, `ssim`, `ms_ssim` and `perceptual_loss` have gradients.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d

from latentia.errors import LatentiaError, UsageError
from latentia.evaluation.features.base import FeatureExtractor, check_images

DATA_RANGE = 2.0  # images lie in [-1, 1]
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03
# Exponents of the scales, finest first, as printed by Wang et al. 2003, section 3.2: they add up to 1.0001.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_VALUES = 2**22  # pixel values that are held in float64 at once, per intermediate result


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, `10 log10(2^2 / MSE)`, in decibels: higher is nearer, infinite for equal images.

    Args:
        a, b: (N, C, H, W) in [-1, 1].

    Returns:
        (N,), float64. The mean of several is the mean in decibels, not that of their pooled error.

    Raises:
        UsageError: another type or range, or shapes that differ. DataError: NaN. Both say whether `a` or `b`.

    Example:
        >>> psnr(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.2))  # 20 log10(2 / 0.2)
        tensor([20.0000], dtype=torch.float64)
    """
    return _per_image(lambda x, y: 10 * (DATA_RANGE**2 / (x - y).square().flatten(1).mean(1)).log10(), a, b)


def ssim(a: torch.Tensor, b: torch.Tensor, *, window: int = SSIM_WINDOW) -> torch.Tensor:
    """Structural similarity, between -1 and 1: higher is nearer, 1 for equal images only.

    `(2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))` with means, variances and covariance
    under a Gaussian window of sigma 1.5 pixels (population statistics), `C1 = (0.01 * 2)^2`, `C2 = (0.03 * 2)^2`;
    averaged over channels and over the windows that lie fully inside the image.

    Args:
        a, b: (N, C, H, W) in [-1, 1].
        window: side of the window in pixels, odd; the published 11. Images below 11 x 11 need a smaller one, whose
            scores compare only with each other.

    Raises:
        UsageError: the window does not fit (the message says which does), or as for `psnr`.

    References:
        "Image Quality Assessment: From Error Visibility to Structural Similarity", Wang, Bovik, Sheikh and Simoncelli
        2004, IEEE Transactions on Image Processing 13(4), equation 13.

    Example:
        >>> images = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> ssim(images, images), bool((ssim(images, images / 2) < 0.9).all())
        (tensor([1., 1.], dtype=torch.float64), True)
    """
    _check_pair(a, b)
    _check_window(a, window)
    return _per_image(lambda x, y: _similarity(x, y, window)[0], a, b)


def ms_ssim(a: torch.Tensor, b: torch.Tensor, *, scales: int = 5, window: int = SSIM_WINDOW) -> torch.Tensor:
    """Multi-scale structural similarity, between 0 and 1: higher is nearer, 1 for equal images only.

    Contrast and structure, `(2 s_ab + C2) / (s_a^2 + s_b^2 + C2)`, at each scale but the last and `ssim` at the last,
    each averaged over the image, raised to its weight and multiplied. From scale to scale images are averaged over
    2 x 2 pixels; an odd last row or column is left out. A negative average counts as 0.

    Args:
        a, b: (N, C, H, W) in [-1, 1]. The shorter side must be at least `window * 2 ** (scales - 1)`: 176 by default.
        scales: how many, 1 to 5; fewer than 5 use the first weights of 0.0448, 0.2856, 0.3001, 0.2363, 0.1333, divided
            by their sum. One scale is `ssim`, but never below 0.
        window: as for `ssim`.

    Raises:
        UsageError: the images are too small for so many scales (the message says how many fit), or as for `psnr`.

    References:
        "Multi-Scale Structural Similarity for Image Quality Assessment", Wang, Simoncelli and Bovik 2003, Asilomar
        Conference on Signals, Systems and Computers, equation 7.

    Example:
        >>> images = torch.rand(2, 1, 28, 28) * 2 - 1
        >>> ms_ssim(images, images, scales=2)
        tensor([1., 1.], dtype=torch.float64)
    """
    _check_pair(a, b)
    if not 1 <= scales <= len(MS_SSIM_WEIGHTS):
        raise UsageError(f"`scales` must be between 1 and {len(MS_SSIM_WEIGHTS)}. Got {scales}.")
    _check_window(a, window)
    side = min(a.shape[2:])
    if side >> (scales - 1) < window:
        fit = max(count for count in range(1, scales) if side >> (count - 1) >= window)
        raise UsageError(
            f"`scales` = {scales} with `window` = {window} needs images of at least {window << (scales - 1)} pixels a "
            f"side. Got {tuple(a.shape[2:])}; pass scales={fit}, which fits, and compare only scores of equal scales."
        )
    total = sum(MS_SSIM_WEIGHTS[:scales]) if scales < len(MS_SSIM_WEIGHTS) else 1.0
    weights = [weight / total for weight in MS_SSIM_WEIGHTS[:scales]]

    def multi_scale(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = torch.ones(len(x), dtype=x.dtype, device=x.device)
        for scale, weight in enumerate(weights, 1):
            full, contrast = _similarity(x, y, window)
            product = product * (full if scale == scales else contrast).clamp(min=0) ** weight
            x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
        return product

    return _per_image(multi_scale, a, b)


def perceptual_loss(a: torch.Tensor, b: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Distance of the inner layers of a classifier, between 0 and 4, for training: lower is nearer.

    `mean_l mean_hw |u_l(a) - u_l(b)|^2`, where u_l are the activations before the l-th halving of `model.body`, scaled
    to unit length over the channels at each pixel. Unlike LPIPS it has no learned weights: layers and channels count
    alike, and no human judgements went into it. Distances compare only between equal weights of the classifier.

    Args:
        a, b: (N, C, H, W), of the size and range that the model was trained on; not checked for their range.
        model: a `DigitClassifier` in evaluation mode, for example `load_extractor("mnist").model`.

    Returns:
        (N,), of the model's precision, differentiable in `a` and `b`.

    Raises:
        UsageError: `model` has no such layers or is in training mode, or the shapes differ.

    References:
        "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", Zhang et al. 2018, arXiv:1801.03924,
        equation 1, with all weights 1.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> images = torch.zeros(2, 1, 8, 8, requires_grad=True)
        >>> perceptual_loss(images, torch.ones(2, 1, 8, 8), load_extractor("digits").model).sum().backward()
        >>> bool(images.grad.abs().sum() > 0)
        True
    """
    if a.shape != b.shape:
        raise UsageError(f"`a` and `b` must have the same shape. Got {tuple(a.shape)} and {tuple(b.shape)}.")
    body = getattr(model, "body", None)
    if not isinstance(body, nn.Sequential) or not any(isinstance(layer, nn.MaxPool2d) for layer in body):
        raise UsageError(
            "`model` must have layers in a Sequential named `body`, halved by MaxPool2d, as DigitClassifier has. Got "
            f"{type(model).__name__}."
        )
    if model.training:
        raise UsageError("`model` must be in evaluation mode, or batch norm mixes the images; call model.eval() first.")
    distances = []
    for layer in body:
        if isinstance(layer, nn.MaxPool2d):
            distances.append((_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1))
        a, b = layer(a), layer(b)
    return torch.stack(distances).mean(0)


@torch.no_grad()
def perceptual_distance(a: torch.Tensor, b: torch.Tensor, extractor: FeatureExtractor | nn.Module) -> torch.Tensor:
    """`perceptual_loss` as a measurement: checked, in batches, without gradients and outside of autocast.

    Args:
        a, b: (N, C, H, W) in [-1, 1], of the size that the classifier takes.
        extractor: what `load_extractor` gives, or a `DigitClassifier` in evaluation mode.

    Returns:
        (N,), float64, between 0 and 4; 0 for equal images.

    Raises:
        UsageError, DataError: as for `psnr` and `perceptual_loss`, or another size than the classifier's.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> images = torch.rand(3, 1, 8, 8) * 2 - 1
        >>> perceptual_distance(images, images, load_extractor("digits"))
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    model = getattr(extractor, "model", extractor)
    if not isinstance(model, nn.Module):
        raise UsageError(f"`extractor` must be a classifier or hold one as `model`. Got {type(extractor).__name__}.")
    _check_pair(a, b)
    config = getattr(model, "config", None)
    if config is not None and tuple(a.shape[1:]) != (config.in_channels, config.sample_size, config.sample_size):
        shape = (config.in_channels, config.sample_size, config.sample_size)
        raise UsageError(f"`a` and `b` must have the classifier's (C, H, W) = {shape}. Got {tuple(a.shape[1:])}.")
    first = next(model.parameters())

    def measured(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return perceptual_loss(x.to(first), y.to(first), model).double().to(a.device)

    return _per_image(measured, a, b)


def sharpness(images: torch.Tensor) -> torch.Tensor:
    """Gradient energy: mean squared difference of neighbours along the width plus the same along the height.

    Blurred images have less than real ones, noisy ones more. A constant added to an image changes nothing.

    Args:
        images: (N, C, H, W) in [-1, 1], at least 2 x 2 pixels.

    Returns:
        (N,), float64, >= 0, in squared units of [-1, 1] per squared pixel; averaged over channels.

    Example:
        >>> ramp = torch.linspace(-1, 1, 5).expand(1, 1, 5, 5)  # steps of 1/2 along the width alone
        >>> sharpness(ramp)
        tensor([0.2500], dtype=torch.float64)
    """
    _check("images", images)
    if min(images.shape[2:]) < 2:
        raise UsageError(f"`images` must have at least 2 x 2 pixels to have gradients. Got {tuple(images.shape[2:])}.")
    energy = [
        x.diff(dim=3).square().flatten(1).mean(1) + x.diff(dim=2).square().flatten(1).mean(1)
        for x in (part.double() for part in images.split(_chunk(images)))
    ]
    return torch.cat(energy)


def sharpness_ratio(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Mean `sharpness` of generated images over that of real ones: below 1 blurred, above 1 noisy or too crisp.

    Args:
        generated: (N, C, H, W) in [-1, 1].
        real: (M, C, H, W) likewise; no pairs, M may differ from N.

    Raises:
        UsageError: the shapes (C, H, W) differ, or every real image is constant.

    Example:
        >>> images = torch.rand(9, 1, 8, 8) * 2 - 1
        >>> round(sharpness_ratio(images / 2, images), 6)
        0.25
    """
    _check("generated", generated)
    _check("real", real)
    if generated.shape[1:] != real.shape[1:]:
        shapes = f"{tuple(generated.shape[1:])} and {tuple(real.shape[1:])}"
        raise UsageError(f"`generated` and `real` must have the same (C, H, W). Got {shapes}.")
    reference = float(sharpness(real).mean())
    if reference == 0:
        raise UsageError("`real` must hold images with gradients. Every image in it is constant.")
    return float(sharpness(generated).mean()) / reference


def _similarity(x: torch.Tensor, y: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast-structure part, each (N,), of x and y (N, C, H, W)."""
    positions = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    kernel = (-0.5 * (positions / SSIM_SIGMA).square()).exp()
    kernel = kernel / kernel.sum()

    def blurred(images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(0, 1)[:, None]  # (N C, 1, H, W)
        return conv2d(conv2d(flat, kernel[None, None, None]), kernel[None, None, :, None]).view(len(x), -1)

    c1, c2 = (SSIM_K1 * DATA_RANGE) ** 2, (SSIM_K2 * DATA_RANGE) ** 2
    mean_x, mean_y = blurred(x), blurred(y)
    variances = (blurred(x * x) - mean_x * mean_x) + (blurred(y * y) - mean_y * mean_y)
    covariance = blurred(x * y) - mean_x * mean_y
    contrast = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return (luminance * contrast).mean(1), contrast.mean(1)


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Scaled to unit length over the channels, with a gradient where all are 0."""
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def _check_window(images: torch.Tensor, window: int) -> None:
    side = min(images.shape[2:])
    if window < 3 or window % 2 == 0 or window > side:
        if side < 3:
            raise UsageError(f"Structural similarity needs images of at least 3 x 3. Got {tuple(images.shape[2:])}.")
        fit = min(SSIM_WINDOW, side - 1 + side % 2)
        raise UsageError(
            f"`window` must be odd, from 3 to the shorter side of the images {tuple(images.shape[2:])}. Got {window}; "
            f"pass window={fit}, which fits, and compare only scores of equal windows."
        )


def _check(name: str, images: torch.Tensor) -> None:
    """`check_images`, saying `name`."""
    try:
        check_images(images.detach() if isinstance(images, torch.Tensor) else images)
    except LatentiaError as error:
        raise type(error)(str(error).replace("`images`", f"`{name}`")) from None


def _check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    _check("a", a)
    _check("b", b)
    if a.shape != b.shape or a.device != b.device:
        raise UsageError(
            "`a` and `b` must have the same shape (N, C, H, W) and device. "
            f"Got {tuple(a.shape)} on {a.device} and {tuple(b.shape)} on {b.device}."
        )


def _chunk(images: torch.Tensor) -> int:
    return max(1, _VALUES // images[0].numel())


def _per_image(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """`function` of chunks in float64, after the checks of both sides."""
    _check_pair(a, b)
    parts = zip(a.split(_chunk(a)), b.split(_chunk(b)))
    return torch.cat([function(x.double(), y.double()) for x, y in parts])
