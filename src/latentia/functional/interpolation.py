"""Paths between two latents: straight lines and great circles."""

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.checks import is_false

MODES = ("lerp", "slerp")


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The straight line, (1 - t) a + t b, which is exact at both ends.

    Args:
        a, b: of one shape.
        t: in [0, 1], broadcasting with both.

    Example:
        >>> lerp(torch.zeros(2), torch.ones(2), torch.tensor(0.25))
        tensor([0.2500, 0.2500])
    """
    return (1 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    r"""The great circle, for latents that are noise: \(\frac{\sin((1-t)\Omega) a + \sin(t\Omega) b}{\sin\Omega}\).

    Gaussian noise lies near a sphere, and so do these points, while a straight line would leave it.

    Args:
        a, b: n vectors each, (n, ...); what lies behind the first dimension is one vector.
        t: in [0, 1], broadcasting with (n, 1, ...).

    Raises:
        UsageError: a vector of length 0, or opposite ones, between which no circle is the shortest.

    Animating Rotation with Quaternion Curves (Shoemake, 1985); Sampling Generative Networks (White, 2016, 1609.04468).

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5]]))
        tensor([[0.7071, 0.7071]])
    """
    inner = tuple(range(1, a.ndim))

    def length(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=inner, keepdim=True)

    norm_a, norm_b = length(a), length(b)
    if is_false((norm_a > 0).all() & (norm_b > 0).all()):
        raise UsageError('latents must not be 0 for mode="slerp": they have no direction. Use "lerp".')
    unit_a, unit_b = a / norm_a, b / norm_b
    # From the chords, which keep their digits for nearly equal directions as a cosine does not.
    angle = 2 * torch.atan2(length(unit_a - unit_b), length(unit_a + unit_b))
    if is_false((angle <= 3.14159).all()):
        raise UsageError('latents must not be opposite for mode="slerp": no great circle is the shortest. Use "lerp".')
    sine = torch.where(angle > 1e-9, angle.sin(), 1)
    curved = ((1 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where(angle > 1e-9, curved, lerp(a, b, t))


def interpolate(a: Tensor, b: Tensor, steps: int, mode: str = "lerp") -> Tensor:
    """Latents on the way from one to another, both ends included.

    Args:
        a, b: of one shape (1, ...).
        steps: how many; at least 2.
        mode: "lerp" (default), the straight line; or "slerp", the great circle, which suits latents that are spread
            like Gaussian noise.

    Returns:
        (steps, ...).

    Raises:
        UsageError: fewer steps, an unknown mode, several latents at an end, two shapes, or latents between which there
            is no such way.

    Example:
        >>> interpolate(torch.zeros(1, 2), torch.ones(1, 2), 3).tolist()
        [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    """
    check_choice("mode", mode, MODES)
    check_range("steps", steps, 2, integer=True)
    for name, end in (("a", a), ("b", b)):
        if end.ndim < 1 or len(end) != 1:
            count = len(end) if end.ndim else "no first dimension"
            raise UsageError(f"{name} must be one image or latent, (1, ...); got {count}. Interpolate pair by pair.")
    if a.shape != b.shape:
        raise UsageError(f"a and b must be of one shape; got {tuple(a.shape)} and {tuple(b.shape)}.")
    t = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype).view(-1, *[1] * (a.ndim - 1))
    return (slerp if mode == "slerp" else lerp)(a, b, t)
