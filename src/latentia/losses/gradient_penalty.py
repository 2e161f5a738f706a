"""What keeps a discriminator smooth: penalties on its gradient at the pictures, and the clipping of its weights."""

import math

import torch
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.rng import Rng


def zero_centred_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    r"""\(\lVert \nabla_x D(x) \rVert^2\) of each picture: R1 at real ones, R2 at generated ones.

    Args:
        logits: D(x), (B,) or any shape with each value of one picture, or of one pack.
        inputs: x, (B, ...), which required a gradient when the logits were computed.

    Returns:
        (B,), which has a gradient itself.

    Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018, 1801.04406), eq. 9 and 10, without
    the factor \(\gamma / 2\).

    Example:
        >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> zero_centred_penalty((x ** 2).sum(1), x)  # |2x|^2
        tensor([20.], grad_fn=<SumBackward1>)
    """
    return _gradient(logits, inputs).square().flatten(1).sum(1)


def one_centred_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    r"""\((\lVert \nabla_x D(x) \rVert - 1)^2\) of each picture; arguments as for `zero_centred_penalty`.

    Improved Training of Wasserstein GANs (Gulrajani et al., 2017, 1704.00028), eq. 3, at `interpolated` pictures.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> one_centred_penalty(x.square().sum(1) / 2, x).item()  # (5 - 1)^2
        16.0
    """
    return (torch.linalg.vector_norm(_gradient(logits, inputs).flatten(1), dim=1) - 1).square()


def interpolated(real: Tensor, fake: Tensor, rng: Rng) -> Tensor:
    r"""\(\hat x = u x + (1 - u) G(z)\), u ~ U[0, 1) for each picture; ready for `one_centred_penalty`.

    Gulrajani et al., 2017, 1704.00028, section 4.

    Example:
        >>> interpolated(torch.ones(2, 3), torch.ones(2, 3), Rng(0, 0, 2, 0, 2)).requires_grad
        True
    """
    u = rng.uniform("interpolated").to(real.dtype).view(-1, *[1] * (real.ndim - 1))
    return torch.lerp(fake.detach(), real.detach(), u).requires_grad_(True)


@torch.no_grad()
def clip_weights(discriminator: nn.Module, limit: float = 0.01) -> dict[str, Tensor]:
    r"""Sets every weight w to \(\min(\max(w, -c), c)\): an update rule, for a phase without an optimizer after D's.

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
    if not 0 < limit < math.inf:
        raise UsageError(f"limit must be positive and finite; got {limit}.")
    weights = [*discriminator.parameters()]
    for weight in weights:
        weight.clamp_(-limit, limit)
    held = torch.stack([(weight.abs() >= weight.new_tensor(limit)).sum() for weight in weights]).sum()
    return {"at_limit": held / sum(weight.numel() for weight in weights)}


def _gradient(logits: Tensor, inputs: Tensor) -> Tensor:
    if not inputs.requires_grad:
        raise UsageError("inputs must require a gradient before they are judged: inputs.requires_grad_(True).")
    return torch.autograd.grad(logits.sum(), inputs, create_graph=True)[0]
