"""Normalisation layers: group norm, batch norm over all processes, instance norm and spectral norm."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from latentia.errors import UsageError


class GroupNorm(nn.GroupNorm):
    """Group norm in the precision of its weights on CPUs, whose bfloat16 kernel is many times slower than float32's; on
    accelerators in the precision of its input, with sums in float32. There autocast would cast the input to float32,
    and the next convolution would cast it back.

    Example:
        >>> GroupNorm(group_count(8), 8)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return super().forward(x.to(self.weight.dtype))
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Group norm in the precision of its input, whatever autocast is active.

    Args:
        x: (B, C, ...).
        groups: divides C.
        weight, bias: (C,).
        eps: added to the variance. Default 1e-5.

    Example:
        >>> x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16)
        >>> group_norm(x, 2, torch.ones(8), torch.zeros(8)).dtype
        torch.bfloat16
    """
    scale, shift = weight.to(x.dtype), bias.to(x.dtype)
    pixels = x[0, 0].numel()
    # `F.group_norm` is in autocast's list of float32; the operator below it is not.
    return torch.native_group_norm(x.contiguous(), scale, shift, len(x), x.shape[1], pixels, groups, eps)[0]


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm in the precision of its weights: mixed precision would take variances in 8 or 11 bits.

    Example:
        >>> InstanceNorm2d(8, affine=True)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def group_count(channels: int) -> int:
    """The largest number of groups up to 32 that leaves at least 4 channels in each.

    Example:
        >>> group_count(64), group_count(6)
        (16, 1)
    """
    return next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, and the gradient of that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's `BatchNorm2d` with the statistics of the batches of all processes, on CPUs too, for equal parts of it.

    Nothing that a gradient needs is changed by a second forward pass, so that two may come before one backward pass,
    whatever buffers are synchronised in between.

    Args:
        num_features: channels C of inputs (B, C, H, W).

    Raises:
        UsageError: a batch of one in training.

    Batch Normalization (Ioffe and Szegedy, 2015, 1502.03167), algorithm 1.

    Example:
        >>> bool(BatchNorm2d(3)(torch.randn(4, 3, 8, 8)).mean().abs() < 1e-6)
        True
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int):
        super().__init__(num_features)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if len(x) * world < 2:
            raise UsageError(
                "A batch of one cannot be trained with batch norm, whose statistics are of a batch: each image would "
                'lose its own mean. Use a larger train_batch_size, or norm="instance".'
            )
        if world == 1:
            return super().forward(x)
        dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32  # sums of halves would round
        wide, count = x.to(dtype), world * x.numel() / x.shape[1]
        mean = _Sum.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def make_norm(name: str, channels: int) -> nn.Module:
    """A norm layer by its name: "group", "batch" or "instance"; the identity for "none", and "spectral" (of weights).

    Example:
        >>> make_norm("none", 8)
        Identity()
    """
    if name == "group":
        return GroupNorm(group_count(channels), channels)
    if name == "batch":
        return BatchNorm2d(channels)
    return InstanceNorm2d(channels, affine=True) if name == "instance" else nn.Identity()


class SpectralNorm(nn.Module):
    r"""A weight over its largest singular value as a matrix (out, everything else): \(W / \lVert W^T u \rVert\).

    The left vector u is kept and follows the weight by one power iteration in each forward pass of training. torch's
    own parametrisation rounds by where in memory a weight lies, so that a loaded network differs in the last bit.

    Args:
        weight: what it will normalise, with the output first.

    Spectral Normalization (Miyato et al., 2018, 1802.05957), algorithm 1.

    Example:
        >>> norm = SpectralNorm(torch.diag(torch.tensor([4.0, 1.0])))
        >>> norm(torch.diag(torch.tensor([4.0, 1.0]))).diag()
        tensor([1.0000, 0.2500])
    """

    u: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn_like(weight.detach().flatten(1)[:, 0]), dim=0))
        for _ in range(10):
            self.forward(weight.detach())

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        if self.training:
            with torch.no_grad():
                v = F.normalize((matrix * self.u[:, None]).sum(0), dim=0)
                self.u.copy_(F.normalize((matrix * v).sum(1), dim=0))
        u = self.u.clone()  # the buffer will have moved on when the gradient is computed
        return weight / (matrix * u[:, None]).sum(0).norm()


def add_spectral_norm(network: nn.Module) -> None:
    """Puts `SpectralNorm` on the weight of each convolution, linear layer and embedding, in place.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> add_spectral_norm(layer)
        >>> bool((torch.linalg.matrix_norm(layer.weight, 2) - 1).abs() < 1e-2)
        True
    """
    for module in [*network.modules()]:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            register_parametrization(module, "weight", SpectralNorm(module.weight))
