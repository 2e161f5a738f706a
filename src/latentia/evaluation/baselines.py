"""Baselines without a network: a Gaussian over principal components, and a kernel density estimate.

Both are fitted in closed form or by a search along one number, sample in [-1, 1] and have a likelihood, so every model
can be held against them. Images count as bytes y in [0, 255]^D. A density p(y) bounds the probability of bytes by
uniform dequantisation, `log P(y) >= E_u log p(y + u)`, u uniform in [-1/2, 1/2]^D (Theis et al. 2016, arXiv:1511.01844,
equation 6); the mean over u is taken in closed form. It is the density of the samples before they are clamped.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_images
from latentia.evaluation.frechet import Moments
from latentia.rng import seed_from

_BLOCK = 64  # samples are made in blocks keyed by (seed, block), so that image i depends on (seed, i) alone
_ROWS = 2048  # images that are held in float64 at once
_HELD_OUT = 256  # images whose likelihood chooses the bandwidth
_VARIANCE_U = 1 / 12  # of each entry of u, in squared bytes


class PCASampler:
    """A Gaussian: principal components vary independently, all other directions have one variance.

    `y ~ N(mean, V diag(variances) V^T + rest (I - V V^T))`, the most likely one with k components (probabilistic PCA).

    Args:
        images: (N, C, H, W), N >= 2, uint8 in [0, 255] or floats in [-1, 1].
        components: how many, an int k from 1 to D = C H W, or the share of the variance to keep, a float in (0, 1].

    Raises:
        UsageError: wrong images, fewer than 2, or `components` out of range. DataError: NaN.

    References:
        "Probabilistic Principal Component Analysis", Tipping and Bishop 1999, Journal of the Royal Statistical Society
        B 61(3), equations 7 and 8.

    Example:
        >>> sampler = PCASampler(torch.rand(50, 1, 8, 8) * 2 - 1, components=10)
        >>> sampler.sample(3).shape, sampler.log_likelihood(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([3, 1, 8, 8]), torch.Size([2]))
    """

    def __init__(self, images: torch.Tensor, components: int | float = 0.9):
        _check(images, least=2)
        self.image_shape = tuple(images.shape[1:])
        self.basis = _principal_components(images, components)

    def sample(self, n: int, seed: int = 0, *, start: int = 0) -> torch.Tensor:
        """Images `start` to `start + n` of the endless stream of `seed`, the same however it is cut.

        Args:
            n: how many.
            seed: of the stream.
            start: position of the first.

        Returns:
            (n, C, H, W), float32, clamped to [-1, 1].
        """

        def draw(generator: torch.Generator) -> torch.Tensor:
            z = torch.randn(_BLOCK, self.basis.dimension, generator=generator, dtype=torch.float64)
            return self.basis.synthesis(z * self.basis.variances.sqrt(), generator)

        return _stream(draw, n, seed, start, self.image_shape)

    def log_likelihood(self, images: torch.Tensor) -> torch.Tensor:
        """Lower bound of log P of images (M, C, H, W) as bytes, by uniform dequantisation: (M,), nats per image.

        Bits per dimension are `-log_likelihood / (D ln 2)`; for a density of pixels in [0, 1] add `D ln 256`.
        """

        def bound(y: torch.Tensor) -> torch.Tensor:
            z, log_rest = self.basis.project(y)
            squares = (z.square() + _VARIANCE_U) / self.basis.variances
            return log_rest - 0.5 * (squares + (2 * math.pi * self.basis.variances).log()).sum(1)

        return _in_parts(bound, images, self.image_shape)


class KernelDensitySampler:
    """A mixture of equal Gaussians, one on each training image: a sample is a training image with noise.

    `p(y) = 1/N sum_i N(y; y_i, h^2 I)` over pixels; with `components`, over the principal components, next to an
    isotropic Gaussian for all other directions.

    Args:
        images: (N, C, H, W), N >= 2, uint8 in [0, 255] or floats in [-1, 1].
        bandwidth: h, the standard deviation of the kernels, in units of [-1, 1]. None: the one under which up to 256 of
            the images, chosen with seed 0, are most likely when each is left out of its own density. "silverman":
            `s (4 / ((k + 2) N))^(1 / (k + 4))`, s^2 the mean variance over the k dimensions, without a search; made for
            a single cloud in few dimensions, and much too wide for pixels.
        components: None for pixels, else as for `PCASampler`.

    Attributes:
        bandwidth: h, in units of [-1, 1].

    Raises:
        UsageError: wrong images, fewer than 2, or `bandwidth` or `components` out of range. DataError: NaN.

    References:
        "On Estimation of a Probability Density Function and Mode", Parzen 1962, Annals of Mathematical Statistics
        33(3); "Density Estimation for Statistics and Data Analysis", Silverman 1986, equation 4.14.

    Example:
        >>> sampler = KernelDensitySampler(torch.rand(50, 1, 8, 8) * 2 - 1)
        >>> sampler.sample(3).shape, 0.1 < sampler.bandwidth < 1
        (torch.Size([3, 1, 8, 8]), True)
    """

    def __init__(
        self, images: torch.Tensor, bandwidth: float | str | None = None, *, components: int | float | None = None
    ):
        _check(images, least=2)
        if not (bandwidth in (None, "silverman") or (isinstance(bandwidth, int | float) and 0 < bandwidth < math.inf)):
            raise UsageError(
                f'`bandwidth` must be a positive number in units of [-1, 1], None or "silverman". Got {bandwidth!r}.'
            )
        self.images = images
        self.image_shape = tuple(images.shape[1:])
        self.basis = _Basis(images[0].numel()) if components is None else _principal_components(images, components)
        if isinstance(bandwidth, int | float):
            self._h = 127.5 * bandwidth
        else:
            self._h = self._most_likely() if bandwidth is None else self._silverman()
        self.bandwidth = self._h / 127.5

    def sample(self, n: int, seed: int = 0, *, start: int = 0) -> torch.Tensor:
        """Images `start` to `start + n` of the endless stream of `seed`, as `PCASampler.sample` gives them."""

        def draw(generator: torch.Generator) -> torch.Tensor:
            chosen = torch.randint(len(self.images), (_BLOCK,), generator=generator)
            noise = torch.randn(_BLOCK, self.basis.dimension, generator=generator, dtype=torch.float64)
            return self.basis.synthesis(self._kernels(chosen) + self._h * noise, generator)

        return _stream(draw, n, seed, start, self.image_shape)

    def log_likelihood(self, images: torch.Tensor) -> torch.Tensor:
        """Lower bound of log P of images (M, C, H, W) as bytes, by uniform dequantisation: (M,), nats per image.

        The mean over u is taken within the sum over kernels, which lowers the bound where several kernels matter. Units
        as for `PCASampler`. The cost is that of M x N distances of D dimensions.
        """

        def bound(y: torch.Tensor) -> torch.Tensor:
            z, log_rest = self.basis.project(y)
            total = torch.full((len(z),), -math.inf, dtype=torch.float64)
            for part in torch.arange(len(self.images)).split(_ROWS):
                exponents = -_squared_distances(z, self._kernels(part)) / (2 * self._h**2)
                total = torch.logaddexp(total, exponents.logsumexp(1))
            return total - math.log(len(self.images)) + self._log_norm(self._h) + log_rest

        return _in_parts(bound, images, self.image_shape)

    def _kernels(self, index: torch.Tensor) -> torch.Tensor:
        """Centres (n, k) of the kernels of `index` (n,)."""
        return self.basis.project(_bytes(self.images[index]))[0]

    def _log_norm(self, h: float) -> float:
        """Log of a kernel's factor, with what the mean over u adds to its exponent."""
        return -0.5 * self.basis.dimension * (math.log(2 * math.pi * h**2) + _VARIANCE_U / h**2)

    def _most_likely(self) -> float:
        """h that maximises the mean leave-one-out bound of some of the images."""
        from scipy.optimize import minimize_scalar

        n = len(self.images)
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed_from(0, "bandwidth")))[:_HELD_OUT]
        z = self._kernels(chosen)
        parts = torch.arange(n).split(_ROWS)
        # Single precision from here on: errors of 1e-7 of an exponent.
        squares = torch.cat([_squared_distances(z, self._kernels(part)).float() for part in parts], 1)
        squares[torch.arange(len(chosen)), chosen] = math.inf  # without its own kernel
        top = float(squares[squares.isfinite()].double().mean()) / self.basis.dimension
        low, high = 0.5 * math.log(_VARIANCE_U), 0.5 * math.log(max(top, 1.0))

        def loss(log_h: float) -> float:
            h = math.exp(log_h)
            return -float((squares / (-2 * h**2)).logsumexp(1).double().mean()) - self._log_norm(h)

        return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3}).x)

    def _silverman(self) -> float:
        n, k = len(self.images), self.basis.dimension
        mean, square = torch.zeros(k, dtype=torch.float64), 0.0
        for part in torch.arange(n).split(_ROWS):
            centres = self._kernels(part)
            mean, square = mean + centres.sum(0) / n, square + float(centres.square().sum()) / n
        variance = (square - float(mean.square().sum())) * n / (n - 1) / k + _VARIANCE_U
        return math.sqrt(variance) * (4 / ((k + 2) * n)) ** (1 / (k + 4))


class _Basis:
    """Coordinates of bytes (N, D), here the bytes themselves."""

    def __init__(self, dimension: int):
        self.dimension = dimension

    def project(self, y: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Coordinates (N, k) of y (N, D), and the log-density (N,) of what they leave out."""
        return y, 0.0

    def synthesis(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Bytes (N, D) of coordinates z (N, k), with a sample of what they leave out."""
        return z


class _PrincipalComponents:
    """Coordinates along k principal components; what they leave out has one variance `rest`. In bytes, float64."""

    def __init__(self, mean: torch.Tensor, variances: torch.Tensor, directions: torch.Tensor, rest: float):
        self.mean, self.variances, self.directions, self.rest = mean, variances, directions, rest
        self.dimension = len(variances)
        self.left_out = len(mean) - self.dimension

    def project(self, y: torch.Tensor) -> tuple[torch.Tensor, Any]:
        centred = y - self.mean
        z = centred @ self.directions
        if not self.left_out:
            return z, 0.0
        squares = (centred - z @ self.directions.T).square().sum(1) + self.left_out * _VARIANCE_U
        return z, -0.5 * (squares / self.rest + self.left_out * math.log(2 * math.pi * self.rest))

    def synthesis(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        y = self.mean + z @ self.directions.T
        if self.left_out:
            noise = torch.randn(len(z), len(self.mean), generator=generator, dtype=torch.float64)
            y = y + math.sqrt(self.rest) * (noise - noise @ self.directions @ self.directions.T)
        return y


def _principal_components(images: torch.Tensor, components: int | float) -> _PrincipalComponents:
    size, moments = images[0].numel(), Moments()
    for part in images.split(_ROWS):
        moments.update(_bytes(part))
    # Divided by N, as maximum likelihood has it.
    variances, directions = torch.linalg.eigh(moments.covariance * ((moments.n - 1) / moments.n))
    variances, directions = variances.clamp(min=0).flip(0), directions.flip(1)
    if isinstance(components, float) and 0 < components <= 1:
        below = variances.cumsum(0) < components * (1 - 1e-12) * variances.sum()
        count = int(below.sum()) + 1
    elif isinstance(components, int) and not isinstance(components, bool) and 1 <= components <= size:
        count = components
    else:
        raise UsageError(
            f"`components` must be an int from 1 to {size}, the pixel values of an image, or a float in (0, 1], the "
            f"share of the variance to keep. Got {components!r}."
        )
    # Dequantised bytes y + u have the covariance of y plus 1/12.
    rest = float(variances[count:].mean()) + _VARIANCE_U if count < size else 0.0
    return _PrincipalComponents(moments.mean, variances[:count] + _VARIANCE_U, directions[:, :count], rest)


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, m) between the rows of a (n, k) and b (m, k), in float64."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _bytes(images: torch.Tensor) -> torch.Tensor:
    """(N, D), float64, in [0, 255]."""
    y = images.flatten(1).cpu().double()
    return y if images.dtype == torch.uint8 else (y + 1) * 127.5


def _check(images: torch.Tensor, least: int = 1) -> None:
    if not (isinstance(images, torch.Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and len(images)):
        check_images(images)
    if len(images) < least:
        raise UsageError(f"`images` must hold at least {least} images. Got {len(images)}.")


def _stream(
    draw: Callable[[torch.Generator], torch.Tensor], n: int, seed: int, start: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Images `start` to `start + n` of whole blocks of bytes, clamped to [-1, 1]."""
    if n < 1 or start < 0:
        raise UsageError(f"`n` must be at least 1 and `start` at least 0. Got n={n}, start={start}.")
    blocks = []
    for block in range(start // _BLOCK, (start + n - 1) // _BLOCK + 1):
        y = draw(torch.Generator().manual_seed(seed_from(seed, "baseline", block)))
        blocks.append((y / 127.5 - 1).clamp(-1, 1).float())
    first = start % _BLOCK
    return torch.cat(blocks)[first : first + n].view(n, *shape)


def _in_parts(
    bound: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    _check(images)
    if tuple(images.shape[1:]) != shape:
        raise UsageError(
            f"`images` must have the (C, H, W) of the training images, {shape}. Got {tuple(images.shape[1:])}."
        )
    return torch.cat([bound(_bytes(part)) for part in images.split(_ROWS)])
