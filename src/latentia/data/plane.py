"""Toy distributions of points in the plane with known modes and densities, to train on and to measure with.

A shape is a pure function of six numbers per point, four uniform and two normal, so a point depends on (seed, position)
alone. All points are independent, and no point comes twice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentia.data.base import description
from latentia.data.order import check_positions, uniform
from latentia.errors import UsageError, did_you_mean
from latentia.files.cache import key_of

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]  # u (n, 4) in [0, 1) and e (n, 2) normal -> points (n, 2)


@dataclass(frozen=True, eq=False)
class Plane:
    """A distribution of points in the plane.

    Args:
        name: of the distribution.
        shape: u (n, 4) uniform in [0, 1), e (n, 2) standard normal -> points (n, 2).
        centres: (K, 2) of a mixture of K equally likely Gaussians, else `None`.
        sigma: (K, 2), the standard deviations of each of them along both axes, else `None`.
        about: where the definition comes from.

    Example:
        >>> PLANES["ring"].sample(5, seed=0).shape, tuple(PLANES["ring"].centres.shape)
        (torch.Size([5, 2]), (8, 2))
    """

    name: str
    shape: Shape
    centres: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    about: str = ""

    def sample(self, n: int, seed: int) -> torch.Tensor:
        """n points, float32 (n, 2): the first n of `seed`, none of which is in a training batch."""
        if n < 0:
            raise UsageError(f"`n` must be at least 0. Got {n}.")
        return self.points(0, n, seed, "sample")

    def points(self, start: int, stop: int, seed: int, stream: str) -> torch.Tensor:
        """The points at positions [start, stop) of a stream, float32 (stop - start, 2)."""
        u = [uniform(f"plane {stream} {k}", start, stop, seed) for k in range(6)]
        radius, angle = np.sqrt(-2 * np.log1p(-u[4])), 2 * np.pi * u[5]
        e = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)  # Box and Muller
        return torch.from_numpy(self.shape(np.stack(u[:4], 1), e).astype(np.float32))

    def log_prob(self, points: torch.Tensor) -> torch.Tensor:
        """The true log-density in nats, (B,), of points (B, 2); of a mixture of Gaussians.

        Raises:
            UsageError: the distribution is no mixture, and its density has no closed form here.

        Example:
            >>> PLANES["lab_disjoint"].log_prob(torch.tensor([[0.35, 0.75]])).round(decimals=3)  # ln 1 / (3 2 pi s^2)
            tensor([4.4410], dtype=torch.float64)
        """
        if self.centres is None or self.sigma is None:
            raise UsageError(f"the density of {self.name} has no closed form; that of a mixture of Gaussians has.")
        scaled = (points.double()[:, None] - self.centres) / self.sigma  # (B, K, 2)
        log_normal = -0.5 * scaled.square().sum(2) - self.sigma.log().sum(1) - math.log(2 * math.pi)
        return log_normal.logsumexp(1) - math.log(len(self.centres))


def gaussian_mixture(
    centres: Sequence[Sequence[float]] | torch.Tensor, sigma: Any, name: str = "mixture", about: str = ""
) -> Plane:
    """Mixture of equally likely Gaussians with axes along x and y; the centres may follow a stroke.

    Args:
        centres: (K, 2).
        sigma: their standard deviation, one number, or of shape (K, 1) or (K, 2).

    Raises:
        UsageError: another shape, or a standard deviation that is not positive.

    Example:
        >>> stroke = gaussian_mixture([[0.2, 0.2], [0.3, 0.25], [0.4, 0.35]], 0.02)
        >>> stroke.sample(100, seed=1).shape
        torch.Size([100, 2])
    """
    means = torch.as_tensor(centres, dtype=torch.float64)
    deviations = torch.as_tensor(sigma, dtype=torch.float64)
    if means.ndim != 2 or means.shape[1] != 2 or not len(means) or not means.isfinite().all():
        raise UsageError(f"`centres` must be finite and of shape (K, 2), K >= 1. Got shape {tuple(means.shape)}.")
    if deviations.ndim not in (0, 2) or not bool((deviations > 0).all() and deviations.isfinite().all()):
        raise UsageError(f"`sigma` must be positive: one number, (K, 1) or (K, 2). Got {deviations.tolist()}.")
    try:
        deviations = deviations.expand(len(means), 2).clone()
    except RuntimeError:
        given = tuple(deviations.shape)
        raise UsageError(
            f"`sigma` must be one number, or (K, 1) or (K, 2) with K = {len(means)}. Got {given}."
        ) from None

    def shape(u: np.ndarray, e: np.ndarray) -> np.ndarray:
        chosen = np.minimum((u[:, 0] * len(means)).astype(np.int64), len(means) - 1)
        return means.numpy()[chosen] + deviations.numpy()[chosen] * e

    return Plane(name, shape, means, deviations, about)


class PlaneData:
    """A `Dataset` of the points of a plane distribution; endless.

    Args:
        plane: a name of `PLANES`, or a `Plane`.

    Example:
        >>> data = PlaneData("grid")
        >>> batch = data.batch(0, 64, seed=1)
        >>> batch["x"].shape
        torch.Size([64, 2])
        >>> bool((data.batch(60, 64, seed=1)["x"] == batch["x"][60:]).all())
        True
    """

    modality = "point"
    endless = True
    shape = (2,)
    labels: None = None
    label_names: list[str] | None = None
    captions: None = None
    has_captions = False

    def __init__(self, plane: str | Plane):
        self.plane = find_plane(plane) if isinstance(plane, str) else plane
        mixture = [[] if part is None else part.tolist() for part in (self.plane.centres, self.plane.sigma)]
        self.fingerprint = key_of(["plane", self.plane.name, *mixture])

    def __len__(self) -> int:
        raise UsageError("a plane distribution is endless and has no length; say how long to train in steps.")

    def __repr__(self) -> str:
        return f"PlaneData({self.plane.name!r})"

    def describe(self) -> dict[str, Any]:
        """Name and origin of the distribution, shape, fingerprint; for a model card."""
        return {"kind": "plane", "name": self.plane.name, "about": self.plane.about, **description(self)}

    def require(self, n: int) -> None:
        """Do nothing: a distribution has any number of points."""

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": float32 (B, 2)}, not confined to [-1, 1].
        """
        check_positions(start, stop)
        return {"x": self.plane.points(start, stop, seed, "batch").to(device, non_blocking=True)}


def find_plane(name: str) -> Plane:
    """The plane distribution of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in PLANES:
        raise UsageError(f'`plane` must be one of {", ".join(PLANES)}. Got "{name}".{did_you_mean(name, PLANES)}')
    return PLANES[name]


# ------------------------------------------------------------ shapes

_TURN = 2 * math.pi


def _line(u, e):
    return np.stack([0.8 - 0.75 * u[:, 0], 0.6 + 0.3 * u[:, 0]], 1) + 0.01 * e


def _oval(u, e):
    a = _TURN * u[:, 0]
    return np.stack([0.5 + 0.3 * np.cos(a), 0.45 + 0.25 * np.sin(a)], 1) + 0.025 * e


def _moons(u, e):
    a, inner = math.pi * u[:, 1], u[:, 0] < 0.5
    x = np.where(inner, 1 - np.cos(a), np.cos(a))
    y = np.where(inner, 0.5 - np.sin(a), np.sin(a))
    return 2 * (np.stack([x, y], 1) + 0.1 * e) + [-1, -0.2]


def _circles(u, e):
    a, radius = _TURN * u[:, 1], np.where(u[:, 0] < 0.5, 1, 0.5)
    return 3 * (np.stack([radius * np.cos(a), radius * np.sin(a)], 1) + 0.08 * e)


def _rings(u, e):
    a, radius = _TURN * u[:, 1], 0.75 * (1 + np.floor(4 * u[:, 0]))
    return np.stack([radius * np.cos(a), radius * np.sin(a)], 1) + 0.08 * e


def _swissroll(u, e):
    a = 1.5 * math.pi * (1 + 2 * u[:, 0])
    return (np.stack([a * np.cos(a), a * np.sin(a)], 1) + e) / 5


def _pinwheel(u, e):
    along, across = 1 + 0.3 * e[:, 0], 0.1 * e[:, 1]
    a = _TURN / 5 * np.floor(5 * u[:, 0]) + 0.25 * np.exp(along)
    return 2 * np.stack([along * np.cos(a) + across * np.sin(a), across * np.cos(a) - along * np.sin(a)], 1)


def _spirals(u, e):
    a, side = 3 * math.pi * np.sqrt(u[:, 1]), np.where(u[:, 0] < 0.5, 1, -1)
    arm = np.stack([0.5 * u[:, 2] - a * np.cos(a), 0.5 * u[:, 3] + a * np.sin(a)], 1)
    return side[:, None] * arm / 3 + 0.1 * e


def _checkerboard(u, e):
    x = 4 * u[:, 0] - 2
    y = u[:, 1] - 2 * (u[:, 2] < 0.5) + np.floor(x) % 2
    return 2 * np.stack([x, y], 1)


_CIRCLE = [[math.cos(_TURN * k / 8), math.sin(_TURN * k / 8)] for k in range(8)]
_GRID = [[float(x), float(y)] for x in range(-4, 5, 2) for y in range(-4, 5, 2)]
_MODES = "mode collapse: VEEGAN (Srivastava et al. 2017, arXiv:1705.07761), PacGAN (Lin et al. 2017, arXiv:1712.04086)"
_LAB = "GAN Lab (Kahng et al. 2018, arXiv:1809.01587), in [0, 1]^2"
_DENSITY = "density estimation: the toys of FFJORD (Grathwohl et al. 2018, arXiv:1810.01367)"

# The two mode-collapse mixtures are PacGAN's: radius 1 and variance 1e-4; spacing 2 and variance 0.0025.
PLANES = {
    plane.name: plane
    for plane in (
        gaussian_mixture(_CIRCLE, 0.01, "ring", _MODES),
        gaussian_mixture(_GRID, 0.05, "grid", _MODES),
        Plane("lab_line", _line, about=_LAB),
        gaussian_mixture([[0.3, 0.7], [0.7, 0.4]], [[0.1, 0.1], [0.05, 0.2]], "lab_gaussians", _LAB),
        Plane("lab_ring", _oval, about=_LAB),
        gaussian_mixture([[0.35, 0.75], [0.75, 0.6], [0.45, 0.35]], 0.025, "lab_disjoint", _LAB),
        gaussian_mixture([[4 * x / 1.414, 4 * y / 1.414] for x, y in _CIRCLE], 0.5 / 1.414, "8gaussians", _DENSITY),
        Plane("moons", _moons, about=_DENSITY),
        Plane("circles", _circles, about=_DENSITY),
        Plane("rings", _rings, about=_DENSITY),
        Plane("swissroll", _swissroll, about=_DENSITY),
        Plane("pinwheel", _pinwheel, about=_DENSITY),
        Plane("2spirals", _spirals, about=_DENSITY),
        Plane("checkerboard", _checkerboard, about=_DENSITY),
    )
}
