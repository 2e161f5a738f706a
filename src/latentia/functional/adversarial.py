"""Adversarial objectives of the logits of real and generated samples, and what they say of a discriminator."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, check_choice


class _Objective(NamedTuple):
    """What each network minimises, and where a logit changes from fake to real (None: only differences count)."""

    discriminator: Callable[[Tensor, Tensor, Tensor | float, Tensor | float], Tensor]  # real, fake, their labels
    generator: Callable[[Tensor, Any], Tensor]  # fake, real
    threshold: float | None
    has_labels: bool = False


def _binary(r: Tensor, f: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
    # Cross-entropy against the labels t and s; softplus(-r) + softplus(f) for 1 and 0.
    return F.softplus(-r) + (1 - t) * r + F.softplus(f) - s * f


_OBJECTIVES = {
    "minimax": _Objective(_binary, lambda f, r: -F.softplus(f), 0.0, has_labels=True),
    "non_saturating": _Objective(_binary, lambda f, r: F.softplus(-f), 0.0, has_labels=True),
    "least_squares": _Objective(
        lambda r, f, t, s: (r - t).square() + (f - s).square(), lambda f, r: (f - 1).square(), 0.5, has_labels=True
    ),
    "hinge": _Objective(lambda r, f, t, s: F.relu(1 - r) + F.relu(1 + f), lambda f, r: -f, 0.0),
    "wasserstein": _Objective(lambda r, f, t, s: f - r, lambda f, r: -f, None),
    "relativistic": _Objective(lambda r, f, t, s: F.softplus(f - r), lambda f, r: F.softplus(r - f), None),
}
OBJECTIVES = tuple(_OBJECTIVES)
Objective = Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"]
WITH_LABELS = tuple(name for name, objective in _OBJECTIVES.items() if objective.has_labels)


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    objective: str = "non_saturating",
    real_label: Tensor | float = 1.0,
    fake_label: Tensor | float = 0.0,
) -> Tensor:
    r"""What the discriminator minimises, for each pair of a real and a generated sample.

    Args:
        real, fake: its logits, (B,), or (B, ...) of patches, whose losses are averaged.
        objective: one of `OBJECTIVES`.
        real_label, fake_label: the targets of both, numbers or (B, ...). Default 1 and 0.

    Returns:
        (B,), nats for the three objectives of probabilities.

    Raises:
        UsageError: an unknown objective, or labels for one that has none.

    Generative Adversarial Networks (Goodfellow et al., 2014, 1406.2661), eq. 1; Least Squares GAN (Mao et al., 2016,
    1611.04076), eq. 9; Geometric GAN (Lim and Ye, 2017, 1705.02894), hinge; Wasserstein GAN (Arjovsky et al., 2017,
    1701.07875), eq. 2; The GAN is dead (Huang et al., 2025, 2501.05441), relativistic pairing.

    Example:
        >>> import math, torch
        >>> discriminator_loss(torch.zeros(2), torch.zeros(2)) / math.log(2)  # chance: 2 ln 2
        tensor([2., 2.])
    """
    check_choice("objective", objective, OBJECTIVES)
    plain = all(not isinstance(v, Tensor) and v == usual for v, usual in ((real_label, 1), (fake_label, 0)))
    if not plain and objective not in WITH_LABELS:
        raise UsageError(
            f'objective="{objective}" has no labels that could be smoothed or flipped; those of {WITH_LABELS} have.'
        )
    return mean_over_patches(_OBJECTIVES[objective].discriminator(real, fake, real_label, fake_label))


def generator_loss(fake: Tensor, real: Tensor | None = None, objective: str = "non_saturating") -> Tensor:
    """What the generator minimises, for each generated sample; arguments and errors as for `discriminator_loss`.

    `real` is needed by "relativistic" alone.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([0.5]), objective="hinge")
        tensor([-0.5000])
    """
    check_choice("objective", objective, OBJECTIVES)
    if objective == "relativistic" and real is None:
        raise UsageError('objective="relativistic" compares fake with real images; give the logits of `real` too.')
    return mean_over_patches(_OBJECTIVES[objective].generator(fake, real))


def discriminator_metrics(real: Tensor, fake: Tensor, objective: str) -> dict[str, Tensor]:
    """Mean logits and accuracies, against the objective's threshold or, without one, the middle of the two means.

    Args:
        real, fake: logits, (B, ...).
        objective: one of `OBJECTIVES`.

    Returns:
        "real" and "fake", the mean logits; "accuracy_real" and "accuracy_fake".

    Example:
        >>> import torch
        >>> discriminator_metrics(torch.tensor([2.0, -1.0]), torch.tensor([-2.0]), "hinge")["accuracy_real"]
        tensor(0.5000)
    """
    real, fake = real.detach(), fake.detach()
    means, known = (real.mean(), fake.mean()), threshold_of(objective)
    threshold = (means[0] + means[1]) / 2 if known is None else known
    accuracy = {"accuracy_real": (real > threshold).float().mean(), "accuracy_fake": (fake <= threshold).float().mean()}
    return {"real": means[0], "fake": means[1], **accuracy}


def real_margins(real: Tensor, fake: Tensor, objective: str) -> Tensor:
    """How far real logits are above the objective's threshold or, without one, above those of generated samples.

    Args:
        real, fake: logits, of one shape.
        objective: one of `OBJECTIVES`.

    Example:
        >>> import torch
        >>> real_margins(torch.tensor([2.0]), torch.tensor([-1.0]), "wasserstein")
        tensor([3.])
    """
    threshold = threshold_of(objective)
    return (real - (fake if threshold is None else threshold)).detach()


def feature_matching(real: Tensor, fake: Tensor) -> Tensor:
    r"""\(\lVert E f(x) - E f(G(z)) \rVert^2\) of features (B, F), with the means of this micro-batch.

    Improved Techniques for Training GANs (Salimans et al., 2016, 1606.03498), section 3.1.

    Example:
        >>> import torch
        >>> feature_matching(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [5.0]]))
        tensor(9.)
    """
    return (real.mean(0) - fake.mean(0)).square().sum()


def threshold_of(objective: str) -> float | None:
    """The logit above which a sample counts as real; None if only differences of logits count.

    Example:
        >>> threshold_of("least_squares"), threshold_of("wasserstein")
        (0.5, None)
    """
    check_choice("objective", objective, OBJECTIVES)
    return _OBJECTIVES[objective].threshold


def mean_over_patches(values: Tensor) -> Tensor:
    """(B, ...) to (B,)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
