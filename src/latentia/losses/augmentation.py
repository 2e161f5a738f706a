"""What the discriminator is shown instead of a picture: differentiable augmentation, fixed or adaptive; old fakes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.errors import UsageError, did_you_mean
from latentia.rng import Rng, seed_from

SHIFT = 1 / 8  # of a side, at most
CUT = 1 / 2  # of a side
SAFE = 0.8  # up to this probability the generator does not learn the augmentations themselves (2006.06676, section 2.2)


def _color(x: Tensor, u: Callable[[str], Tensor]) -> Tensor:
    """Brightness + U[-1/2, 1/2), saturation U[0, 2), contrast U[1/2, 3/2), each about the mean of what it scales."""
    x = x + (u("brightness") - 0.5).view(-1, 1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * u("saturation")).view(-1, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (u("contrast") + 0.5).view(-1, 1, 1, 1)


def _translation(x: Tensor, u: Callable[[str], Tensor]) -> Tensor:
    """By whole pixels, up to an eighth of a side each way, all equally likely; what comes in is grey."""
    sides = x.shape[-2:]
    most = [max(int(side * SHIFT + 0.5), 1) for side in sides]
    shifts = [(u(f"shift {i}") * (2 * m + 1)).long().clamp(max=2 * m) for i, m in enumerate(most)]  # 0 to 2m
    rows, columns = (torch.arange(n, device=x.device) + s[:, None] for n, s in zip(sides, shifts))  # (B, H), (B, W)
    padded = F.pad(x, (most[1], most[1], most[0], most[0])).movedim(1, -1)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _cutout(x: Tensor, u: Callable[[str], Tensor]) -> Tensor:
    """A box of half the sides, its middle anywhere in the picture, becomes grey."""
    inside = torch.ones(len(x), 1, 1, dtype=torch.bool, device=x.device)
    for i, side in enumerate(x.shape[-2:]):
        size = int(side * CUT + 0.5)
        start = (u(f"cut {i}") * (side + 1 - size % 2)).long() - size // 2
        place = torch.arange(side, device=x.device) - start[:, None]
        inside = inside & ((place >= 0) & (place < size)).view(-1, *((side, 1) if i == 0 else (1, side)))
    return x.masked_fill(inside[:, None], 0.0)


_OPERATIONS: dict[str, Callable[[Tensor, Callable[[str], Tensor]], Tensor]] = {
    "color": _color, "translation": _translation, "cutout": _cutout,
}  # fmt: skip
POLICIES = tuple(_OPERATIONS)


def augmented(
    images: Tensor, rng: Rng, stream: str = "augmented", policy: Sequence[str] = POLICIES, p: Tensor | float = 1.0
) -> Tensor:
    """Each operation is done to each picture with probability p, drawn anew for each; gradients pass.

    Real and generated pictures must go through the same operations with the same p, under two streams.

    Args:
        images: (B, C, H, W) in [-1, 1], grey or colour; 0 is the grey of borders and holes.
        rng: the randomness of this micro-batch.
        stream: a name for this use of it.
        policy: of "color", "translation" and "cutout" (default: all), in this order.
        p: in [0, 1]; 0 is the identity. Default 1.

    Returns:
        (B, C, H, W); "color" can leave [-1, 1].

    Raises:
        UsageError: something that is no picture, an unknown operation, a p out of range.

    Differentiable Augmentation for Data-Efficient GAN Training (Zhao et al., 2020, 2006.10738), section 3.2.

    Example:
        >>> x, rng = torch.rand(4, 1, 8, 8) * 2 - 1, Rng(0, 0, 4, 0, 4)
        >>> augmented(x, rng).shape, torch.equal(augmented(x, rng, p=0.0), x)
        (torch.Size([4, 1, 8, 8]), True)
    """
    _check(policy, p)
    if images.ndim != 4:
        raise UsageError(f"images must be (B, C, H, W) to be augmented; got {tuple(images.shape)}.")
    x = images
    for name in policy:

        def u(part: str, name: str = name) -> Tensor:
            return rng.uniform(f"{stream} {name} {part}").to(images.dtype)

        chosen = rng.uniform(f"{stream} {name}").to(images.dtype) < p
        x = torch.where(chosen.view(-1, 1, 1, 1), _OPERATIONS[name](x, u), x)
    return x


class AdaptiveAugmentation(nn.Module):
    r"""Augmentation whose probability grows while the discriminator overfits, and falls while it does not.

    The sign of overfitting is \(r_t = E\, \mathrm{sign}(D(x))\) over real pictures x, with D above the game's threshold
    or, where only differences count, above a fake's: 0 where it cannot tell, 1 where it always can. After each `window`
    of real pictures p moves by `window / images`, up if r_t is above its target, else down, and stays in [0, 0.8].

    While losses are computed, `collect` notes signs; `update`, the loss of a phase of its own without an optimizer,
    sums them over micro-batches and processes. All that it knows is in buffers, so give that phase
    `trains=augmentation` and its checkpoints hold it.

    Args:
        policy: as for `augmented`.
        target: of r_t, in (-1, 1). Default 0.6.
        images: in how many p can go from 0 to 1. Default 500 000.
        window: real pictures between two moves. Default 256.
        p: the probability to start from. Default 0.

    Raises:
        UsageError: numbers out of range, an unknown operation.

    Training Generative Adversarial Networks with Limited Data (Karras et al., 2020, 2006.06676), eq. 1 and section 3.

    Example:
        >>> augmentation, rng = AdaptiveAugmentation(images=1024), Rng(0, 0, 256, 0, 256)
        >>> augmentation.collect(torch.ones(256), rng)  # all real ones are known
        >>> {key: value.item() for key, value in augmentation.update({}, rng).items()}
        {'p': 0.25, 'overfitting': 1.0}
    """

    def __init__(
        self,
        policy: Sequence[str] = POLICIES,
        target: float = 0.6,
        images: int = 500_000,
        window: int = 256,
        p: float = 0.0,
    ):
        super().__init__()
        _check(policy, p)
        if not -1 < target < 1 or images < 1 or window < 1 or p > SAFE:
            raise UsageError(
                f"target must be in (-1, 1), images and window at least 1, and p at most {SAFE}; got target={target}, "
                f"images={images}, window={window}, p={p}."
            )
        self.policy, self.target, self.images, self.window = tuple(policy), target, images, window
        self.register_buffer("p", torch.tensor(p, dtype=torch.float64))
        self.register_buffer("signs", torch.zeros((), dtype=torch.float64))  # since p last moved
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self._parts: dict[int, Tensor] = {}  # first image of the micro-batch -> sum of signs, how many

    def forward(self, images: Tensor, rng: Rng, stream: str = "augmented") -> Tensor:
        """`augmented` with the p of now; to be given to a loss as its `augment`."""
        return augmented(images, rng, stream, self.policy, self.p)

    @torch.no_grad()
    def collect(self, margins: Tensor, rng: Rng) -> None:
        """Note the signs of a micro-batch. Shown the same one again, as after an fp16 overflow, it counts the last."""
        signs = margins.detach().sign().double()
        self._parts[rng.slice.start] = torch.stack([signs.sum(), signs.new_tensor(float(signs.numel()))])

    @torch.no_grad()
    def update(self, batch: dict[str, Any], rng: Rng) -> dict[str, Tensor]:
        """Move p, if a window is full. The first call of a step does it, and all report it.

        Returns:
            "p", and "overfitting", r_t of the pictures since p last moved before this step.
        """
        if self._parts:
            total = torch.stack([*self._parts.values()]).sum(0)
            self._parts = {}
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(total)
            self.signs += total[0]
            self.count += total[1]
            self._overfitting = self.signs / self.count
            if self.count >= self.window:
                step = self.count / self.images * (self._overfitting - self.target).sign()
                self.p.copy_((self.p + step).clamp(0, SAFE))
                self.signs.zero_()
                self.count.zero_()
        return {"p": self.p.clone(), "overfitting": getattr(self, "_overfitting", self.p.new_zeros(()))}


class ReplayPool(nn.Module):
    """Old fakes: once the pool is full, each new one is swapped for an old one with probability 1/2.

    Within a step the pool stays as it is: `forward` gives old ones in place of new ones and notes the new, and
    `update`, the loss of a phase of its own without an optimizer, puts them in. So processes and micro-batches make no
    difference, and with `trains=pool` the checkpoints hold the pool.

    Args:
        capacity: how many fakes it holds; at least one global batch, so that no two get the same old one.
        shape: of one fake, such as (C, H, W).

    Raises:
        UsageError: a capacity below 1, or below the batch.

    Learning from Simulated and Unsupervised Images through Adversarial Training (Shrivastava et al., 2016,
    1612.07828), section 2.3, with the rule of CycleGAN (Zhu et al., 2017, 1703.10593), section 4.

    Example:
        >>> pool = ReplayPool(4, (2,))
        >>> for step in range(2):
        ...     rng = Rng(0, 4 * step, 4, 0, 4)
        ...     shown = pool(torch.full((4, 2), float(step)), rng)
        ...     _ = pool.update({}, rng)
        >>> sorted({*shown.flatten().tolist()})  # old ones and new
        [0.0, 1.0]
    """

    def __init__(self, capacity: int, shape: Sequence[int]):
        super().__init__()
        if capacity < 1:
            raise UsageError(f"capacity must be at least 1; got {capacity}.")
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._parts: dict[int, Tensor] = {}  # first image of the micro-batch -> its fakes

    @torch.no_grad()
    def forward(self, fake: Tensor, rng: Rng) -> Tensor:
        """Fakes to judge, (B, ...), in place of these."""
        slots, swapped = self._plan(rng, fake.device)
        self._parts[rng.slice.start] = fake.detach().to(self.images.dtype)
        old = self.images[slots[rng.slice]].to(fake.dtype)
        return torch.where(swapped[rng.slice].view(-1, *[1] * (fake.ndim - 1)), old, fake.detach())

    @torch.no_grad()
    def update(self, batch: dict[str, Any], rng: Rng) -> dict[str, Tensor]:
        """Put the step's fakes in; the first call of a step does it.

        Returns:
            "filled", the share of the pool that is in use.
        """
        if self._parts:
            slots, swapped = self._plan(rng, self.images.device)
            fresh = self.images.new_zeros(rng.global_batch, *self.images.shape[1:])
            for start, part in self._parts.items():
                fresh[start : start + len(part)] = part
            self._parts = {}
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(fresh)
            capacity, filled = len(self.images), int(self.filled)
            if filled < capacity:
                room = min(capacity - filled, len(fresh))
                self.images[filled : filled + room] = fresh[:room]
                self.filled += room
            else:
                self.images[slots[swapped]] = fresh[swapped]
        return {"filled": self.filled / len(self.images)}

    def _plan(self, rng: Rng, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each image of the global batch: a slot of its own, and whether it is swapped."""
        capacity, n = len(self.images), rng.global_batch
        if capacity < n:
            raise UsageError(
                f"capacity must be at least the global batch, {n}, so that each fake has a place of its own; got "
                f"{capacity}. Use a larger pool or a smaller --train_batch_size."
            )
        generator = torch.Generator().manual_seed(seed_from(rng.seed, "replay", rng.position))
        slots = torch.randperm(capacity, generator=generator)[:n].to(device)
        swapped = torch.rand(n, generator=generator).to(device) < 0.5
        return slots, swapped & (self.filled.to(device) == capacity)


def _check(policy: Sequence[str], p: Tensor | float) -> None:
    for name in policy:
        if name not in _OPERATIONS:
            raise UsageError(f"policy must be of {POLICIES}; got {name!r}.{did_you_mean(str(name), POLICIES)}")
    if not isinstance(p, Tensor) and not (0 <= p <= 1 and math.isfinite(p)):
        raise UsageError(f"p must be a probability in [0, 1]; got {p}.")
