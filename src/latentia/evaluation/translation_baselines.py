"""Baselines of image-to-image translation, fitted to training pairs: what a network has to be better than."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.evaluation.color import color_difference
from latentia.functional.degradation import luminance, with_luminance

PATCH = 5  # pixels of a side of the neighbourhood of the linear regression
RIDGE = 1e-3  # of its normal equations, over the number of pixels
_FITTED = 500  # training pairs that a regression or a hue is fitted to
_HUES, _CHROMAS = 24, (0.1, 0.2, 0.4, 0.6)  # constant hues that are tried, and their strengths
Baseline = Callable[[Tensor], Tensor]


def translation_baselines(
    inputs: Tensor, targets: Tensor, *, task: str | None = None, scale: int = 1
) -> dict[str, Baseline]:
    """The baselines of a task: name -> function of inputs (B, C, H, W) in [-1, 1] to outputs (B, D, H, W).

    "identity" is the input itself ("bicubic" of enlargements, "mean fill" of holes, which get the mean colour of the
    rest of the image); "nearest neighbour" the target of the training pair with the nearest input; "regression" a
    linear map of 5 x 5 pixels, after bicubic enlargement one for each place within a block; of colourisation "mean
    colour" the mean difference of training targets from their grey, and "best hue" the constant one of least
    CIEDE2000 on training targets, both at the luminance of the input.

    Args:
        inputs, targets: training pairs in [-1, 1], (N, C, H, W) and (N, D, H, W).
        task: what inputs were made by: "grey", "edges", "smaller", "masked" or "noised"; None (default): images of
            their own.
        scale: side of the blocks of "smaller".

    Example:
        >>> images = torch.rand(9, 3, 8, 8) * 2 - 1
        >>> [*translation_baselines(luminance(images), images, task="grey")]
        ['identity', 'mean colour', 'best hue', 'nearest neighbour']
    """
    if task == "masked":
        return {"mean fill": mean_fill}
    inputs, targets = inputs.float(), targets.float()
    found: dict[str, Baseline] = {}
    if task != "edges" and inputs.shape[1] in (1, targets.shape[1]):
        found["bicubic" if task == "smaller" else "identity"] = lambda x: x.expand(-1, targets.shape[1], -1, -1)
    if task == "grey":
        mean = (targets - luminance(targets)).mean((0, 2, 3)).view(1, 3, 1, 1)
        hue = best_hue(targets)
        found["mean colour"] = lambda x: with_luminance(x + mean.to(x), x)
        found["best hue"] = lambda x: with_luminance(x + hue.to(x), x)
    elif task != "edges":
        name = "bicubic and regression" if task == "smaller" else "regression"
        found[name] = patch_regression(inputs, targets, scale)
    found["nearest neighbour"] = nearest_neighbour(inputs, targets)
    return {name: partial(_in_float32, method) for name, method in found.items()}


def _in_float32(method: Baseline, x: Tensor) -> Tensor:
    return method(x.float())


def nearest_neighbour(inputs: Tensor, targets: Tensor) -> Baseline:
    """The target of the training pair whose input is nearest, by squared differences of pixels.

    Example:
        >>> inputs = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> nearest_neighbour(inputs, -inputs)(torch.full((1, 1, 1, 1), 0.8)).item()
        -1.0
    """
    known = inputs.flatten(1)

    def nearest(x: Tensor) -> Tensor:
        return targets[torch.cdist(x.flatten(1), known).argmin(1)]

    return nearest


def mean_fill(x: Tensor) -> Tensor:
    """Holes in the mean colour of what is known of their image; the mask is the last channel, 1 inside.

    Example:
        >>> mean_fill(torch.tensor([[[[0.5, 0.0]], [[-1.0, 1.0]]]])).flatten().tolist()
        [0.5, 0.5]
    """
    image, hole = x[:, :-1], (x[:, -1:] > 0).to(x.dtype)
    known = (1 - hole).sum((2, 3), keepdim=True).clamp(min=1)
    mean = (image * (1 - hole)).sum((2, 3), keepdim=True) / known
    return image * (1 - hole) + mean * hole


def patch_regression(inputs: Tensor, targets: Tensor, scale: int = 1) -> Baseline:
    """The linear map of `PATCH` x `PATCH` pixels of the input that is nearest to the targets, by ridge regression.

    Args:
        inputs, targets: training pairs; the first are used.
        scale: side of the blocks that a low resolution lost: one map for each place in a block, of all channels alike
            where input and target have equally many; else, and for 1, one map of all channels.

    Example:
        >>> x = torch.rand(20, 1, 8, 8) * 2 - 1
        >>> bool((patch_regression(x, x / 2)(x) - x / 2).abs().max() < 1e-2)
        True
    """
    x, y = inputs[:_FITTED], targets[:_FITTED]
    shared = scale > 1 and x.shape[1] == y.shape[1]
    maps = {
        place: _ridge(_patches(x, place, scale, shared), _pixels(y, place, scale, shared))
        for place in ((i, j) for i in range(scale) for j in range(scale))
    }

    def predict(x: Tensor) -> Tensor:
        out = x.new_empty(len(x), y.shape[1], *x.shape[2:])
        for (i, j), weights in maps.items():
            found = _patches(x, (i, j), scale, shared) @ weights
            rows = out[:, :, i::scale, j::scale]
            if shared:
                rows.copy_(found.view(rows.shape))
            else:
                rows.copy_(found.view(len(x), rows.shape[2], rows.shape[3], -1).permute(0, 3, 1, 2))
        return out.clamp(-1, 1)

    return predict


def _patches(x: Tensor, place: tuple[int, int], scale: int, shared: bool) -> Tensor:
    """A row of neighbours and a 1 for each pixel of this place in its block, float64."""
    x = x.flatten(0, 1)[:, None] if shared else x
    padded = F.pad(x, (PATCH // 2,) * 4, mode="replicate")
    windows = padded.unfold(2, PATCH, 1).unfold(3, PATCH, 1)[:, :, place[0] :: scale, place[1] :: scale]
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * PATCH**2).double()
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def _pixels(y: Tensor, place: tuple[int, int], scale: int, shared: bool) -> Tensor:
    chosen = y[:, :, place[0] :: scale, place[1] :: scale]
    return (chosen.reshape(-1, 1) if shared else chosen.permute(0, 2, 3, 1).reshape(-1, y.shape[1])).double()


def _ridge(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(a.T @ a + RIDGE * len(a) * torch.eye(a.shape[1]).to(a), a.T @ b)


def best_hue(targets: Tensor) -> Tensor:
    """The constant difference from grey, (1, 3, 1, 1), with the least mean CIEDE2000 to training targets.

    Of 24 hues in four strengths, and none, at the luminance of the targets.

    Example:
        >>> red = torch.tensor([0.5, -0.5, -0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
        >>> best_hue(red).flatten().argmax().item()
        0
    """
    y = targets[:: max(1, len(targets) // 100)]
    grey, best, least = luminance(y), y.new_zeros(1, 3, 1, 1), torch.inf
    angles = torch.arange(_HUES) * (2 * torch.pi / _HUES)
    # Two directions without luminance span all hues: blue against yellow, and red against cyan.
    blue, red = torch.tensor([-0.114, -0.114, 0.886]), torch.tensor([0.701, -0.299, -0.299])
    hues = torch.cat([s * (angles.cos()[:, None] * blue + angles.sin()[:, None] * red) for s in _CHROMAS])
    for hue in torch.cat([torch.zeros(1, 3), hues]).to(y).view(-1, 1, 3, 1, 1):
        found = float(color_difference(with_luminance(grey + hue, grey), y).mean())
        if found < least:
            best, least = hue, found
    return best
