"""Parts of discriminators: packs, minibatch standard deviation, the last layer, and the initialisation of GANs."""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentia.errors import UsageError, check_range
from latentia.functional.checks import check_indices
from latentia.models.layers.conditioning import CONDITION_WIDTH, ConditionEmbedding, sinusoidal_embedding
from latentia.models.outputs import DiscriminatorOutput

LEAKY_SLOPE = 0.2


def pack_samples(sample: Tensor, pack: int) -> Tensor:
    """(B, C, ...) as (B / pack, pack C, ...): neighbours side by side.

    Args:
        sample: (B, C, ...).
        pack: how many are classified as one.

    Raises:
        UsageError: `pack` does not divide B.

    PacGAN (Lin et al., 2017, 1712.04086), section 2.

    Example:
        >>> pack_samples(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), 2)
        tensor([[1., 2.],
                [3., 4.]])
    """
    if pack == 1:
        return sample
    if len(sample) % pack:
        raise UsageError(f"pack={pack} must divide the batch; got {len(sample)} samples. Change train_batch_size.")
    return sample.unflatten(0, (-1, pack)).flatten(1, 2)


def append_minibatch_std(x: Tensor, group: int) -> Tensor:
    """One more channel: the standard deviation over each group of neighbours, averaged over channels and space.

    Args:
        x: (B, C, ...).
        group: neighbours in each group.

    Returns:
        (B, C + 1, ...).

    Raises:
        UsageError: `group` does not divide the batch.

    Progressive Growing of GANs (Karras et al., 2017, 1710.10196), section 3.

    Example:
        >>> append_minibatch_std(torch.tensor([[1.0], [3.0]]), 2)
        tensor([[1., 1.],
                [3., 1.]])
    """
    if len(x) % group:
        raise UsageError(f"minibatch_std={group} must divide the batch; got {len(x)}. Change train_batch_size.")
    groups = x.unflatten(0, (-1, group))
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)  # (B / group, C, ...); var() is 9 times slower
    std = (variance + 1e-8).sqrt().flatten(1).mean(1).repeat_interleave(group)
    return torch.cat([x, std.view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])], 1)


class MinibatchStd(nn.Module):
    """`append_minibatch_std` in training; in evaluation its running mean, so that a sample's logit is its own.

    Args:
        group: neighbours in each group.

    Example:
        >>> MinibatchStd(2)(torch.randn(4, 3)).shape
        torch.Size([4, 4])
    """

    running_std: Tensor

    def __init__(self, group: int):
        super().__init__()
        self.group = group
        self.register_buffer("running_std", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return torch.cat([x, self.running_std.to(x.dtype).expand(len(x), 1, *x.shape[2:])], 1)
        out = append_minibatch_std(x, self.group)
        with torch.no_grad():
            mean = out[:, -1].mean().to(self.running_std.dtype)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(mean.div_(dist.get_world_size()))
            self.running_std.lerp_(mean, 0.1)
        return out


class DiscriminatorHead(nn.Module):
    r"""Features to a logit: \(w \cdot \phi + b\), and \(e(c) \cdot P \phi\) where there is a condition c.

    e(c) is the sum of the embeddings of all conditions, the time of diffused samples among them.

    Args:
        features: width F of \(\phi\).
        num_class_embeds: number of classes of the condition; `None` (default): no labels.
        text_embed_dim: dimensions of a caption's vector; `None` (default): no captions.
        num_aux_classes: classes of an auxiliary classifier; `None` (default): none.
        num_timesteps: the largest time of diffused samples; `None` (default): no times.

    Projection: cGANs with Projection Discriminator (Miyato and Koyama, 2018, 1802.05637), eq. 3.

    Example:
        >>> DiscriminatorHead(8)(torch.randn(4, 8), None, None).logits.shape
        torch.Size([4])
    """

    def __init__(
        self,
        features: int,
        num_class_embeds: int | None = None,
        text_embed_dim: int | None = None,
        num_aux_classes: int | None = None,
        num_timesteps: int | None = None,
    ):
        super().__init__()
        check_range("num_aux_classes", num_aux_classes, 1)
        check_range("num_timesteps", num_timesteps, 1)
        self.to_logit = nn.Linear(features, 1)
        self.condition = ConditionEmbedding(num_class_embeds, text_embed_dim)
        self.num_timesteps = num_timesteps
        self.time_projection = None if num_timesteps is None else nn.Linear(CONDITION_WIDTH, CONDITION_WIDTH)
        self.projection = None
        if self.condition.width or num_timesteps is not None:
            self.projection = nn.Linear(features, CONDITION_WIDTH, bias=False)
            nn.init.normal_(self.projection.weight, std=(features * CONDITION_WIDTH) ** -0.5)  # variance 1
        self.to_class_logits = nn.Linear(features, num_aux_classes) if num_aux_classes else None

    def forward(
        self,
        features: Tensor,
        class_labels: Tensor | None,
        text_embeds: Tensor | None,
        timesteps: Tensor | None = None,
    ) -> DiscriminatorOutput:
        # A product with one row is rounded by kernels that depend on where in memory the row lies.
        logits = (features * self.to_logit.weight).sum(1) + self.to_logit.bias
        embedding = self.condition(class_labels, text_embeds)
        time = self._embed_time(timesteps, features)
        if time is not None:
            embedding = time if embedding is None else embedding + time
        if embedding is not None and self.projection is not None:
            logits = logits + (embedding * self.projection(features)).sum(1)
        class_logits = None if self.to_class_logits is None else self.to_class_logits(features)
        return DiscriminatorOutput(logits, features, class_logits)

    def _embed_time(self, timesteps: Tensor | None, features: Tensor) -> Tensor | None:
        """The embedding of times, (B, width), those of samples that are not diffused by default; None without."""
        if self.time_projection is None or self.num_timesteps is None:
            if timesteps is not None:
                raise UsageError("timesteps were given, but this network takes none; set num_timesteps for them.")
            return None
        if timesteps is None:
            timesteps = torch.zeros(len(features), dtype=torch.long, device=features.device)
        elif timesteps.shape != features.shape[:1]:
            raise UsageError(
                f"timesteps must be one for each sample, ({len(features)},); got {tuple(timesteps.shape)}."
            )
        elif timesteps.device.type == "cpu":  # to read values of another device would make it wait
            check_indices("timesteps", timesteps, self.num_timesteps + 1)
        return self.time_projection(sinusoidal_embedding(timesteps, CONDITION_WIDTH).to(features.dtype))


def check_groups(pack: int, minibatch_std: int | None, *conditions: int | None) -> None:
    """Raises a `UsageError` for packs or groups that make no sense.

    Example:
        >>> check_groups(2, None)
        >>> check_groups(0, None)
        Traceback (most recent call last):
        latentia.errors.UsageError: pack must be at least 1; got 0.
    """
    check_range("pack", pack, 1)
    check_range("minibatch_std", minibatch_std, 2)
    if pack > 1 and any(value is not None for value in conditions):
        raise UsageError(
            f"pack={pack} classifies several images as one, which have no common label or caption; leave pack at 1, or "
            "num_class_embeds, text_embed_dim and num_aux_classes out."
        )


def init_weights(*parts: nn.Module, norm: str) -> None:
    """Initialises the layers of a GAN in place; embeddings of conditions and their projections stay as they are.

    Between norms DCGAN's: weights of layers N(0, 0.02), those of norms N(1, 0.02), biases 0. Without, He's N(0, 2 / n)
    for n inputs (He et al., 2015, 1502.01852, eq. 10): nothing mends a signal that 0.02 lets fade from layer to layer.

    Args:
        *parts: modules.
        norm: "batch", "instance", or another name, which stands between none of the activations.

    Example:
        >>> layer = nn.Linear(1000, 1000)
        >>> init_weights(layer, norm="batch")
        >>> bool((layer.weight.std() - 0.02).abs() < 1e-3)
        True
    """
    left_out = {id(m) for part in parts for m in part.modules() if isinstance(m, ConditionEmbedding)}
    heads = [m for part in parts for m in part.modules() if isinstance(m, DiscriminatorHead)]
    left_out |= {id(layer) for head in heads for layer in (head.projection, head.time_projection)}
    for module in (m for part in parts for m in _walk(part, left_out)):
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
            mean, std = 1.0, 0.02
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            mean, std = 0.0, 0.02 if norm in ("batch", "instance") else math.sqrt(2 / _fan_in(module))
        else:
            continue
        nn.init.normal_(module.weight, mean, std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _walk(module: nn.Module, left_out: set[int]) -> Iterator[nn.Module]:
    """A module and all within, but for those left out, by id, and what is within them."""
    if id(module) not in left_out:
        yield module
        for child in module.children():
            yield from _walk(child, left_out)


def _fan_in(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """How many inputs reach one output."""
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
    return layer.weight[0].numel()
