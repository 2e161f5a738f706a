"""The games of two players: what a discriminator and a generator minimise, of logits and per image."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, did_you_mean


def _relativistic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - real)


# name -> what the discriminator minimises of (real, fake), and the generator of (fake, real); real, fake: logits.
_GAMES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "minimax": (lambda r, f: F.softplus(-r) + F.softplus(f), lambda f, r: -F.softplus(f)),
    "non_saturating": (lambda r, f: F.softplus(-r) + F.softplus(f), lambda f, r: F.softplus(-f)),
    "least_squares": (lambda r, f: (r - 1).square() + f.square(), lambda f, r: (f - 1).square()),
    "hinge": (lambda r, f: F.relu(1 - r) + F.relu(1 + f), lambda f, r: -f),
    "wasserstein": (lambda r, f: f - r, lambda f, r: -f),
    "relativistic": (_relativistic, lambda f, r: _relativistic(f, r)),
}
OBJECTIVES = tuple(_GAMES)


def discriminator_loss(real: Tensor, fake: Tensor, objective: str = "non_saturating") -> Tensor:
    r"""What the discriminator minimises, for each pair of a real and a fake image.

    Args:
        real, fake: its logits, (B,) or (B, ...) if it judges patches, whose losses are averaged.
        objective: one of `OBJECTIVES`.

    Returns:
        (B,), nats for the three games of probabilities.

    Raises:
        UsageError: an unknown objective.

    Generative Adversarial Networks (Goodfellow et al., 2014, 1406.2661), eq. 1; Least Squares GAN (Mao et al., 2016,
    1611.04076), eq. 9; Geometric GAN (Lim and Ye, 2017, 1705.02894), hinge; Wasserstein GAN (Arjovsky et al., 2017,
    1701.07875), eq. 2; The GAN is dead (Huang et al., 2025, 2501.05441), relativistic pairing.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(2), torch.zeros(2)) / math.log(2)  # it cannot tell them
        tensor([2., 2.])
    """
    return _per_image(_game(objective)[0](real, fake))


def generator_loss(fake: Tensor, real: Tensor | None = None, objective: str = "non_saturating") -> Tensor:
    """What the generator minimises, for each fake image; arguments as for `discriminator_loss`.

    `real` is needed by "relativistic" alone.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([0.5]), objective="hinge")
        tensor([-0.5000])
    """
    if objective == "relativistic" and real is None:
        raise UsageError('objective="relativistic" compares fake with real images; give the logits of `real` too.')
    return _per_image(_game(objective)[1](fake, real))


def _game(objective: str):
    if objective not in _GAMES:
        raise UsageError(f"objective must be one of {OBJECTIVES}; got {objective!r}.{did_you_mean(objective, _GAMES)}")
    return _GAMES[objective]


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values
