"""Penalties on the gradient of a discriminator at its inputs: R1, R2 and that of WGAN-GP."""

import torch
from torch import Tensor

from latentia.errors import UsageError


def zero_centred_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    r"""\(\lVert \nabla_x D(x) \rVert^2\) of each sample: R1 at real ones, R2 at generated ones.

    Args:
        logits: D(x), (B,) or any shape with each value of one sample, or of one pack.
        inputs: x, (B, ...), which required a gradient when the logits were computed.

    Returns:
        (B,), which has a gradient itself.

    Raises:
        UsageError: inputs that do not require a gradient.

    Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018, 1801.04406), eq. 9 and 10, without
    the factor \(\gamma / 2\).

    Example:
        >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> zero_centred_penalty((x ** 2).sum(1), x)  # |2x|^2
        tensor([20.], grad_fn=<SumBackward1>)
    """
    return _gradient(logits, inputs).square().flatten(1).sum(1)


def one_centred_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    r"""\((\lVert \nabla_x D(x) \rVert - 1)^2\) of each sample; arguments and errors as for `zero_centred_penalty`.

    Improved Training of Wasserstein GANs (Gulrajani et al., 2017, 1704.00028), eq. 3, at points between real and
    generated samples.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> one_centred_penalty(x.square().sum(1) / 2, x).item()  # (5 - 1)^2
        16.0
    """
    return (torch.linalg.vector_norm(_gradient(logits, inputs).flatten(1), dim=1) - 1).square()


def _gradient(logits: Tensor, inputs: Tensor) -> Tensor:
    if not inputs.requires_grad:
        raise UsageError("inputs must require a gradient before the logits are computed: inputs.requires_grad_(True).")
    return torch.autograd.grad(logits.sum(), inputs, create_graph=True)[0]
