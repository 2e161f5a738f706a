"""Parts of generators and discriminators: batch norm over all processes, packs, conditions, the last layer."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from latentia.errors import UsageError
from latentia.models.layers.convolution import activation_of, image_size, pyramid_size
from latentia.models.modeling import UNSET

CONDITION_WIDTH = 64  # of the code of a label or caption
STRIDE = 2


@dataclass
class DCGANGeneratorOutput(BaseOutput):
    """`sample`: (B, C, H, W) in [-1, 1], or points (B, D) without bounds."""

    sample: Tensor


@dataclass
class DCGANDiscriminatorOutput(BaseOutput):
    """A discriminator's verdict on B samples, or on B / pack packs of them.

    Args:
        logits: (B / pack,), positive for real.
        features: what the last layer sees, (B / pack, F).
        class_logits: of the auxiliary classifier, (B / pack, num_aux_classes); None without.
    """

    logits: Tensor
    features: Tensor = UNSET
    class_logits: Tensor | None = None


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, and that one's."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's `BatchNorm2d` with the statistics of the batches of all processes, on CPUs too, for equal parts of it.

    Nothing that a gradient needs is changed by a second forward pass, so that two may come before one backward pass,
    whatever buffers are synchronised in between.

    Raises:
        UsageError: a batch of one in training.

    Batch Normalization (Ioffe and Szegedy, 2015, 1502.03167), algorithm 1.

    Example:
        >>> bool(BatchNorm2d(3)(torch.randn(4, 3, 8, 8)).mean().abs() < 1e-6)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if len(x) * world < 2:
            raise UsageError(
                "A batch of one cannot be trained with batch norm, whose statistics are of a batch: each picture would "
                'lose its own mean. Use a larger --train_batch_size, or norm="instance".'
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


class SpectralNorm(nn.Module):
    r"""A weight over its largest singular value as a matrix (out, everything else): \(W / \lVert W^T u \rVert\).

    The left vector u is kept and follows the weight by one power iteration in each forward pass of training. torch's
    own parametrisation rounds by where in memory a weight lies, so that a loaded network differs in the last bit.

    Spectral Normalization (Miyato et al., 2018, 1802.05957), algorithm 1.
    """

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


class Dropout(nn.Module):
    """Dropout that can stay on in evaluation, as a source of noise."""

    def __init__(self, p: float, keep: bool):
        super().__init__()
        self.p, self.keep = p, keep

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=self.training or self.keep)


class Condition(nn.Module):
    """A label, a caption's vector, or the sum of both, as a code (B, CONDITION_WIDTH) whose values have variance 1."""

    def __init__(self, num_class_embeds: int | None, text_embed_dim: int | None):
        super().__init__()
        check_numbers(num_class_embeds=num_class_embeds, text_embed_dim=text_embed_dim)
        self.classes, self.text_dim = num_class_embeds, text_embed_dim
        if num_class_embeds is not None:
            self.of_class = nn.Embedding(num_class_embeds, CONDITION_WIDTH)
        if text_embed_dim is not None:
            self.of_text = nn.Sequential(
                nn.LayerNorm(text_embed_dim, elementwise_affine=False),  # whatever the encoder's scale
                nn.Linear(text_embed_dim, CONDITION_WIDTH),
            )
            nn.init.normal_(self.of_text[1].weight, std=text_embed_dim**-0.5)

    def __bool__(self) -> bool:
        return self.classes is not None or self.text_dim is not None

    def forward(self, class_labels: Tensor | None, text_embeds: Tensor | None) -> Tensor | None:
        """Returns None if the network has no condition; raises unless exactly what it has is given."""
        for name, given, has, option in (
            ("class_labels", class_labels, self.classes, "num_class_embeds"),
            ("text_embeds", text_embeds, self.text_dim, "text_embed_dim"),
        ):
            if given is None and has is not None:
                raise UsageError(f"{name} are missing: this network was built with {option}={has}.")
            if given is not None and has is None:
                raise UsageError(f"{name} were given, but this network takes none; set {option} for them.")
        code = None if class_labels is None else self.of_class(class_labels)
        if text_embeds is not None:
            if text_embeds.ndim != 2 or text_embeds.shape[1] != self.text_dim:
                raise UsageError(f"text_embeds must be (B, {self.text_dim}); got {tuple(text_embeds.shape)}.")
            text = self.of_text(text_embeds)
            code = text if code is None else code + text
        return code


class Head(nn.Module):
    r"""Features to a logit: \(w \cdot \phi + b\), and \(e(c) \cdot P \phi\) where there is a condition c."""

    def __init__(
        self,
        features: int,
        num_class_embeds: int | None = None,
        text_embed_dim: int | None = None,
        num_aux_classes: int | None = None,
    ):
        super().__init__()
        check_numbers(num_aux_classes=num_aux_classes)
        self.to_logit = nn.Linear(features, 1)
        self.condition = Condition(num_class_embeds, text_embed_dim)
        self.project = None
        if self.condition:
            self.project = nn.Linear(features, CONDITION_WIDTH, bias=False)
            nn.init.normal_(self.project.weight, std=(features * CONDITION_WIDTH) ** -0.5)  # a product of variance 1
        self.to_classes = nn.Linear(features, num_aux_classes) if num_aux_classes else None

    def forward(
        self, features: Tensor, class_labels: Tensor | None, text_embeds: Tensor | None
    ) -> DCGANDiscriminatorOutput:
        # A product with one row is rounded by kernels that depend on where in memory the row lies.
        logits = (features * self.to_logit.weight).sum(1) + self.to_logit.bias
        code = self.condition(class_labels, text_embeds)
        if code is not None and self.project is not None:
            logits = logits + (code * self.project(features)).sum(1)
        classes = None if self.to_classes is None else self.to_classes(features)
        return DCGANDiscriminatorOutput(logits, features, classes)


def packed(sample: Tensor, pack: int) -> Tensor:
    """(B, C, ...) as (B / pack, pack C, ...): neighbours side by side.

    Raises:
        UsageError: `pack` does not divide B.

    Example:
        >>> packed(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), 2)
        tensor([[1., 2.],
                [3., 4.]])
    """
    if pack == 1:
        return sample
    if len(sample) % pack:
        raise UsageError(f"pack={pack} must divide the batch; got {len(sample)} samples. Change --train_batch_size.")
    return sample.unflatten(0, (-1, pack)).flatten(1, 2)


def with_minibatch_std(x: Tensor, group: int) -> Tensor:
    """One more channel: the standard deviation over each group of neighbours, averaged over channels and space.

    Raises:
        UsageError: `group` does not divide the batch.

    Karras et al., 2017, 1710.10196, section 3.

    Example:
        >>> with_minibatch_std(torch.tensor([[1.0], [3.0]]), 2)
        tensor([[1., 1.],
                [3., 1.]])
    """
    if len(x) % group:
        raise UsageError(f"minibatch_std={group} must divide the batch; got {len(x)}. Change --train_batch_size.")
    groups = x.unflatten(0, (-1, group))
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)  # (B / group, C, ...); var() is 9 times slower
    spread = (variance + 1e-8).sqrt().flatten(1).mean(1).repeat_interleave(group)
    return torch.cat([x, spread.view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])], 1)


class MinibatchStd(nn.Module):
    """`with_minibatch_std` in training; in evaluation the running mean of it, so that each picture is judged alone."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return torch.cat([x, self.spread.to(x.dtype).expand(len(x), 1, *x.shape[2:])], 1)
        out = with_minibatch_std(x, self.group)
        with torch.no_grad():
            mean = out[:, -1].mean().to(self.spread.dtype)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(mean.div_(dist.get_world_size()))
            self.spread.lerp_(mean, 0.1)
        return out


def with_condition(network: nn.Module, latents: Tensor, class_labels, text_embeds) -> Tensor:
    """The noise and beside it the code of the condition, after a check of both."""
    dim = network.config.latent_dim
    if latents.ndim != 2 or latents.shape[1] != dim:
        raise UsageError(f"latents must be of shape (B, latent_dim={dim}); got {tuple(latents.shape)}.")
    code = network.condition(class_labels, text_embeds)
    return latents if code is None else torch.cat([latents, code], 1)


def norm_of(name: str, channels: int) -> list[nn.Module]:
    """No layer or one; "spectral" is none between activations."""
    layers = {"batch": BatchNorm2d, "instance": lambda c: nn.InstanceNorm2d(c, affine=True)}
    return [layers[name](channels)] if name in layers else []


def activation_named(name: str) -> nn.Module:
    """As `activation_of`, but "leaky_relu" with DCGAN's slope, 0.2."""
    return nn.LeakyReLU(0.2) if name == "leaky_relu" else activation_of(name)


def dense(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    """Linear layers, each with an activation after it."""
    return [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation_named(activation))]


def initialise(*parts: nn.Module, norm: str) -> None:
    """Weights and biases; codes of conditions and their projections stay as they are.

    Between norms DCGAN's: weights of layers N(0, 0.02), those of norms N(1, 0.02), biases 0. Without, He's N(0, 2 / n)
    for n inputs (He et al., 2015, 1502.01852, eq. 10): nothing mends a signal that 0.02 lets fade from layer to layer.
    """
    kept = {id(m) for part in parts for m in part.modules() if isinstance(m, Condition)}
    kept |= {id(m.project) for part in parts for m in part.modules() if isinstance(m, Head)}
    for module in (m for part in parts for m in walk(part, kept)):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.InstanceNorm2d):
            mean, std = float(isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d)), 0.02
            if norm not in ("batch", "instance"):
                std = math.sqrt(2 / inputs_of(module))
            nn.init.normal_(module.weight, mean, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def walk(module: nn.Module, left_out: set[int]) -> Iterator[nn.Module]:
    """A module and all within, but for those left out, by id, and what is within them."""
    if id(module) not in left_out:
        yield module
        for child in module.children():
            yield from walk(child, left_out)


def inputs_of(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """How many inputs reach one output."""
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
    return layer.weight[0].numel()


def normalise_spectra(network: nn.Module) -> None:
    """Each weight of a layer becomes one with `SpectralNorm`."""
    for module in [*network.modules()]:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            register_parametrization(module, "weight", SpectralNorm(module.weight))


def pyramid(sample_size: int | Sequence[int], block_out_channels: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of each level from the picture to the top; each is half the one before, rounded down.

    Raises:
        UsageError: a side that is halved to nothing, channels below 1 or decreasing.

    Example:
        >>> pyramid(28, (32, 64, 128))
        [(28, 28), (14, 14), (7, 7), (3, 3)]
    """
    levels = len(block_out_channels)
    sides = image_size(sample_size)
    pyramid_size([max(side >> levels, 1) << levels for side in sides], block_out_channels)  # what it says of channels
    if min(sides) >> levels < 1:
        raise UsageError(
            f"sample_size must be at least 2 ** {levels} = {2**levels}, so that each of the {levels} levels of "
            f"block_out_channels can halve it; got {min(sides)}. Use fewer levels."
        )
    return [(sides[0] >> i, sides[1] >> i) for i in range(levels + 1)]


def paddings(kernel_size: int, size: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each axis, the padding of a convolution of stride 2 that halves `size`, rounded down, and what a transposed
    one, which doubles the half to `size` again, adds at one end.

    Example:
        >>> paddings(4, (14, 7))
        ((1, 1), (0, 1))
    """
    odd = [side % STRIDE for side in size]
    padding = tuple((kernel_size - 1 - e) // 2 for e in odd)
    return padding, tuple(e + STRIDE + 2 * p - kernel_size for e, p in zip(odd, padding))


def check_kernel(kernel_size: int, warn: bool) -> None:
    """Raises a UsageError for a kernel that leaves pixels out, and warns of one that draws checkerboards."""
    check_numbers(minimum=STRIDE, kernel_size=kernel_size)
    if warn and kernel_size % STRIDE:
        warnings.warn(
            f"kernel_size={kernel_size} is not divisible by the stride, {STRIDE}: pixels get unequally many "
            f"contributions, which shows as a checkerboard. Use {kernel_size + 1}.",
            stacklevel=4,
        )


def check_numbers(minimum: int = 1, **values: int | None) -> None:
    """Raises a UsageError for a number that is too small; None is no number."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise UsageError(f"{name.replace('_of_', ' of ')} must be at least {minimum}; got {value}.")


def check_groups(pack: int, minibatch_std: int | None, *conditions: int | None) -> None:
    """Raises a UsageError for packs or groups that make no sense."""
    check_numbers(pack=pack)
    check_numbers(minimum=2, minibatch_std=minibatch_std)
    if pack > 1 and any(value is not None for value in conditions):
        raise UsageError(
            f"pack={pack} judges several pictures as one, which have no common label or caption; leave pack at 1, or "
            "num_class_embeds, text_embed_dim and num_aux_classes out."
        )


def check_instance(norm: str, top: tuple[int, int]) -> None:
    """Raises a UsageError if instance norm would see a single pixel."""
    if norm == "instance" and math.prod(top) == 1:
        raise UsageError(
            'norm="instance" needs more than one pixel at the top of the pyramid, or all values become 0; got 1 x 1. '
            "Use fewer levels of block_out_channels."
        )
