"""Weight clipping: the Lipschitz constraint of the first Wasserstein GAN."""

import torch
from torch import Tensor, nn

from latentia.errors import check_range


@torch.no_grad()
def clip_weights(discriminator: nn.Module, limit: float = 0.01) -> dict[str, Tensor]:
    r"""Sets every weight w to \(\min(\max(w, -c), c)\): an update rule, for a phase without an optimizer.

    Args:
        discriminator: changed in place; may be wrapped for several processes.
        limit: c, positive. Default 0.01.

    Returns:
        "at_limit", the share of weights with \(|w| = c\).

    Raises:
        UsageError: a limit that is not positive.

    Wasserstein GAN (Arjovsky et al., 2017, 1701.07875), algorithm 1.

    Example:
        >>> critic = nn.Linear(2, 1)
        >>> float(clip_weights(critic, 1e-6)["at_limit"]), bool(critic.weight.abs().max() <= 1e-6)
        (1.0, True)
    """
    check_range("limit", limit, 0, closed="neither")
    weights = [*discriminator.parameters()]
    for weight in weights:
        weight.clamp_(-limit, limit)
    held = torch.stack([(weight.abs() >= weight.new_tensor(limit)).sum() for weight in weights]).sum()
    return {"at_limit": held / sum(weight.numel() for weight in weights)}
