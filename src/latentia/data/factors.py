"""Images rendered from known factors of variation: one shape on a dark ground, with six independent factors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentia.errors import UsageError, did_you_mean
from latentia.rng import seed_from

SHAPES = ("square", "ellipse", "heart", "triangle")
COLOURS = {
    "red": (235, 64, 52),
    "yellow": (250, 206, 60),
    "green": (72, 190, 84),
    "cyan": (64, 208, 216),
    "blue": (76, 110, 245),
    "magenta": (224, 86, 196),
}
GROUND = (22, 24, 30)
RESOLUTIONS = (32, 64)
# Lengths are in half sides of the image. A triangle's corner reaches 0.38 + 1.56 * 0.36 < 1.
_RADII = np.linspace(0.22, 0.36, 6)
_ANGLES = np.arange(10) * math.pi / 20  # 0 to 81 degrees: a square looks alike again at 90
_PLACES = np.linspace(-0.38, 0.38, 16)
_CHUNK = 64  # images rendered at once, few enough to stay in the processor's cache


class Factors:
    """4 x 6 x 6 x 10 x 16 x 16 = 368,640 distinct colour images, rendered when asked for.

    | factor | size | values |
    | --- | --- | --- |
    | shape | 4 | square, ellipse (2 : 1), heart, triangle; at one scale all cover the same area |
    | colour | 6 | red, yellow, green, cyan, blue, magenta, on a nearly black ground |
    | scale | 6 | radius of the disc of equal area, evenly from 0.22 to 0.36 of half the image's side |
    | rotation | 10 | 0, 9, ..., 81 degrees clockwise: less than a quarter turn, after which a square looks the same |
    | x | 16 | centre of mass, evenly from -0.38 (left) to 0.38 (right) of half the side |
    | y | 16 | the same from top to bottom |

    No shape is ever cut off, and different factors give different images. Image i holds the factors at position i of
    the row-major order of `sizes`: y runs fastest. Nothing is stored and nothing is random.

    Args:
        resolution: side of the images in pixels, 32 or 64. The same indices give the same image at both.

    Raises:
        UsageError: another resolution.

    References:
        In the manner of dSprites (Matthey et al. 2017) and of the Shapes data of Reed et al. 2015; the renderer is new.

    Example:
        >>> factors = Factors()
        >>> len(factors), dict(zip(factors.names, factors.sizes))
        (368640, {'shape': 4, 'colour': 6, 'scale': 6, 'rotation': 10, 'x': 16, 'y': 16})
        >>> hearts = factors.sample(5, seed=1, fixed={"shape": 2})
        >>> factors.render(hearts).shape, factors.describe(hearts[0])["shape"]
        (torch.Size([5, 3, 32, 32]), 'heart')
    """

    names = ("shape", "colour", "scale", "rotation", "x", "y")
    sizes = (4, 6, 6, 10, 16, 16)
    ordered = (False, False, True, True, True, True)  # whether neighbouring indices look alike

    def __init__(self, resolution: int = 32):
        if resolution not in RESOLUTIONS:
            raise UsageError(f"`resolution` must be one of {', '.join(map(str, RESOLUTIONS))}. Got {resolution!r}.")
        self.resolution = resolution

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def __repr__(self) -> str:
        parts = " x ".join(f"{size} {name}" for name, size in zip(self.names, self.sizes))
        return f"Factors({self.resolution} x {self.resolution}: {parts} = {len(self)} images)"

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W), uint8, and factors (6,), int64, at a position in [0, len(self)).

        Example:
            >>> image, indices = Factors()[-1]
            >>> tuple(image.shape), indices.tolist()
            ((3, 32, 32), [3, 5, 5, 9, 15, 15])
        """
        if not -len(self) <= position < len(self):
            raise IndexError(f"position must be in [0, {len(self)}). Got {position}.")
        indices = self.indices_of(torch.tensor([position % len(self)]))
        return self.render(indices)[0], indices[0]

    def indices_of(self, positions: torch.Tensor) -> torch.Tensor:
        """Factor indices (N, 6), int64, of positions (N,) in [0, len(self)).

        Example:
            >>> Factors().indices_of(torch.tensor([0, 17])).tolist()
            [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
        """
        positions = torch.as_tensor(positions)
        if positions.ndim != 1 or positions.is_floating_point() or not _within(positions, 0, len(self)):
            raise UsageError(f"`positions` must be integers (N,) in [0, {len(self)}). Got {_given(positions)}.")
        return torch.stack(torch.unravel_index(positions.long(), self.sizes), 1)

    def sample(self, n: int, *, seed: int = 0, fixed: Mapping[str, int] | None = None) -> torch.Tensor:
        """Factor indices (n, 6), int64, each factor uniform and independent of the others.

        Args:
            n: how many, >= 1; a combination may come up more than once.
            seed: equal seeds give equal indices.
            fixed: factors that stay at an index of their own, by name.

        Raises:
            UsageError: n < 1, a name that is no factor, or an index outside its factor's size.

        Example:
            >>> Factors().sample(3, fixed={"x": 4})[:, 4].tolist()
            [4, 4, 4]
        """
        if n < 1:
            raise UsageError(f"`n` must be at least 1. Got {n}.")
        generator = torch.Generator().manual_seed(seed_from(seed, "factors"))
        indices = torch.stack([torch.randint(size, (n,), generator=generator) for size in self.sizes], 1)
        for name, index in (fixed or {}).items():
            if name not in self.names:
                raise UsageError(
                    f"`fixed` must name factors. Got {name!r}.{did_you_mean(str(name), self.names)} "
                    f"There are: {', '.join(self.names)}."
                )
            column = self.names.index(name)
            if not 0 <= index < self.sizes[column]:
                raise UsageError(f"`fixed[{name!r}]` must be in [0, {self.sizes[column]}). Got {index}.")
            indices[:, column] = index
        return indices

    def describe(self, indices: torch.Tensor) -> dict[str, Any]:
        """The factors (6,) of one image in words, degrees and half sides.

        Example:
            >>> Factors().describe(torch.tensor([3, 0, 5, 1, 0, 15]))
            {'shape': 'triangle', 'colour': 'red', 'scale': 0.36, 'rotation': 9.0, 'x': -0.38, 'y': 0.38}
        """
        shape, colour, scale, rotation, x, y = self._check(torch.as_tensor(indices)[None])[0].tolist()
        return {
            "shape": SHAPES[shape],
            "colour": list(COLOURS)[colour],
            "scale": round(float(_RADII[scale]), 6),
            "rotation": round(math.degrees(_ANGLES[rotation]), 6),
            "x": round(float(_PLACES[x]), 6),
            "y": round(float(_PLACES[y]), 6),
        }

    def render(self, indices: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W), uint8 in [0, 255], of factor indices (N, 6); x / 127.5 - 1 brings them to [-1, 1].

        A pixel's share of the shape's colour is `1/2 - d`, cut to [0, 1], where d is the signed distance in pixels of
        its centre from the outline (negative inside).

        Args:
            indices: integers (N, 6), N >= 0, in the order of `names`, each below its factor's size.

        Raises:
            UsageError: another shape or type, or an index out of range.

        Example:
            >>> Factors(64).render(torch.tensor([[2, 0, 5, 0, 8, 8]])).shape
            torch.Size([1, 3, 64, 64])
        """
        parts = [self._render(part.numpy()) for part in self._check(indices).split(_CHUNK)]
        return torch.from_numpy(np.concatenate(parts))

    def _check(self, indices: torch.Tensor) -> torch.Tensor:
        indices = torch.as_tensor(indices)
        if indices.ndim != 2 or indices.shape[1] != len(self.sizes) or indices.is_floating_point():
            raise UsageError(f"`indices` must be integers (N, {len(self.sizes)}). Got {_given(indices)}.")
        indices = indices.long().cpu()
        for name, size, column in zip(self.names, self.sizes, indices.T):
            if not _within(column, 0, size):
                raise UsageError(
                    f"`indices` of the factor {name!r} must be in [0, {size}). Got {int(column.min())} to "
                    f"{int(column.max())}."
                )
        return indices

    def _render(self, indices: np.ndarray) -> np.ndarray:
        """Factors (N, 6) to uint8 (N, 3, H, W)."""
        side = self.resolution
        centres = (np.arange(side) + 0.5) * 2 / side - 1  # of the pixels, from left to right and top to bottom
        shape, colour, scale, rotation, x, y = indices.T
        right = (centres - _PLACES[x, None])[:, None, :]  # (N, 1, W)
        down = (centres - _PLACES[y, None])[:, :, None]  # (N, H, 1)
        cosine, sine = (f(_ANGLES[rotation])[:, None, None] for f in (np.cos, np.sin))
        # Into the shape's own frame: u to its right, v down.
        u, v = cosine * right + sine * down, cosine * down - sine * right  # (N, H, W)
        radius = _RADII[scale][:, None, None]
        distance = np.empty_like(u)
        for kind, outline in enumerate((_square, _ellipse, _heart, _triangle)):
            rows = shape == kind
            distance[rows] = outline(u[rows], v[rows], radius[rows])
        cover = np.clip(0.5 - distance * (side / 2), 0, 1).astype(np.float32)[:, None]  # (N, 1, H, W)
        ground = np.array(GROUND, np.float32)[:, None, None]
        values = cover * (np.array([*COLOURS.values()], np.float32)[colour][:, :, None, None] - ground)
        # The odd thousandth decides ties, which else the last bit of a machine's cosine would.
        values += ground + np.float32(0.501)
        return values.astype(np.uint8)


# Signed distances from outlines around the centre of mass, exact near the outline and away from corners. All have the
# area pi r^2; u points right, v down.


def _square(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - r * math.sqrt(math.pi) / 2


def _ellipse(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Its long axis lies along u: F / |grad F| of `F = (u / a)^2 + (v / b)^2 - 1`."""
    a, b = r * math.sqrt(2), r / math.sqrt(2)
    slope = 2 * np.hypot(u / a**2, v / b**2)
    return ((u / a) ** 2 + (v / b) ** 2 - 1) / np.maximum(slope, 1e-9)


def _heart(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """A square on its tip with a disc over each upper edge, the edge being the disc's diameter."""
    half = r * math.sqrt(math.pi / (4 + math.pi))  # area 4 half^2 + pi half^2
    # Each half disc has its centre of mass 4 half / (3 pi) outside the edge.
    down = v - half * (math.pi + 4 / 3) / (math.sqrt(2) * (4 + math.pi))
    p, q = (np.abs(u) - down) / math.sqrt(2), (np.abs(u) + down) / math.sqrt(2)  # across the upper, the lower edge
    tilted = np.maximum(np.abs(p), np.abs(q)) - half
    disc = np.hypot(p - half, q) - half
    return np.minimum(tilted, disc)


def _triangle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Equilateral, pointing up: three lines at the distance of the inscribed circle."""
    inscribed = r * math.sqrt(math.pi / math.sqrt(27))
    return np.maximum(v, math.sqrt(3) / 2 * np.abs(u) - v / 2) - inscribed


def _within(values: torch.Tensor, low: int, high: int) -> bool:
    return not len(values) or bool(low <= values.min() and values.max() < high)


def _given(values: torch.Tensor) -> str:
    return f"{values.dtype} {tuple(values.shape)}" + (
        f" from {values.min().item()} to {values.max().item()}" if values.numel() else ""
    )
