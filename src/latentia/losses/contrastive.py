"""The contrastive loss of texts and images in one space, over the batches of all processes."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.contrastive import info_nce

MAX_SCALE = 100.0  # of the logits


class _Gather(torch.autograd.Function):
    """The rows of all processes, in the order of their ranks.

    All processes compute the same loss of the same rows. DDP takes the mean of their gradients, and each has only what
    goes through its own rows; so these are multiplied by the number of processes.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.rows
        return dist.get_world_size() * gradient[start : start + ctx.rows]


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, *, groups: Tensor | None = None
) -> dict[str, Tensor]:
    r"""Symmetric InfoNCE as in CLIP: which text of the batch belongs to an image, and which image to a text.

    \(s_{ij} = e^{\tau} \langle x_i, t_j \rangle\) of unit vectors, and
    \(\frac12 \left( \mathrm{CE}(s_{i\cdot}, i) + \mathrm{CE}(s_{\cdot i}, i) \right)\), a mean over i. The batch is
    that of all processes together, and so are the gradients: two processes train as one with their batches joined.

    Args:
        image_embeds, text_embeds: (B, D) of B pairs, B the same on every process; they are normalised here.
        logit_scale: \(\tau\), a learned number; its exponential is held at 100 at most. Begin with ln(1 / 0.07).
        groups: (B,) integers; pairs of one group, such as one caption twice, are no negatives of each other. `None`
            (default): each pair is a group.

    Returns:
        "loss", in nats, ln of the global batch by chance; "accuracy", how often an image's own text is the nearest;
        "scale".

    Raises:
        UsageError: embeddings of different shapes.

    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021, 2103.00020), figure 3.

    Example:
        >>> found = contrastive_loss(torch.eye(4), torch.eye(4), torch.tensor(0.0))
        >>> round(found["loss"].item(), 4), round(math.log(1 + 3 / math.e), 4)
        (0.7437, 0.7437)
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise UsageError(
            "image_embeds and text_embeds must be pairs of shape (B, D); got "
            f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}."
        )
    groups = None if groups is None else groups.to(image_embeds.device)
    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    x, t = F.normalize(image_embeds, dim=1), F.normalize(text_embeds, dim=1)
    if many:
        x, t = _Gather.apply(x), _Gather.apply(t)
        groups = None if groups is None else _Gather.apply(groups)
    scale = logit_scale.clamp(max=math.log(MAX_SCALE)).exp()
    loss, accuracy = info_nce(x, t, scale, groups)  # of all processes
    return {"loss": loss, "accuracy": accuracy, "scale": scale.detach()}
