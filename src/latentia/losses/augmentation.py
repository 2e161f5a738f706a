"""Augmentation of what the discriminator sees, fixed or adaptive, and a pool of earlier generated samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional import augmentation
from latentia.rng import Rng, seed_from

SAFE = 0.8  # up to this probability the generator does not learn the augmentations themselves (2006.06676, section 2.2)

# name -> the operation, and the names of its uniform numbers.
_OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[str, ...]]] = {
    "color": (augmentation.color, ("brightness", "saturation", "contrast")),
    "translation": (augmentation.translation, ("shift 0", "shift 1")),
    "cutout": (augmentation.cutout, ("cut 0", "cut 1")),
}
POLICIES = tuple(_OPERATIONS)


def random_augment(
    images: Tensor, rng: Rng, stream: str = "augmented", policy: Sequence[str] = POLICIES, p: Tensor | float = 1.0
) -> Tensor:
    """Differentiable augmentation: each operation is done to each image with probability p, drawn anew for each.

    Real and generated images must go through the same operations with the same p, under two streams.

    Args:
        images: (B, C, H, W) in [-1, 1], grey or colour; 0 is the grey of borders and holes.
        rng: the randomness of this micro-batch.
        stream: a name for this use of it.
        policy: of "color", "translation" and "cutout" (default: all), in this order.
        p: in [0, 1]; 0 is the identity. Default 1.

    Returns:
        (B, C, H, W); "color" can leave [-1, 1].

    Raises:
        UsageError: something that is no image, an unknown operation, a p out of range.

    Differentiable Augmentation for Data-Efficient GAN Training (Zhao et al., 2020, 2006.10738), section 3.2.

    Example:
        >>> x, rng = torch.rand(4, 1, 8, 8) * 2 - 1, Rng(0, 0, 4, 0, 4)
        >>> random_augment(x, rng).shape, torch.equal(random_augment(x, rng, p=0.0), x)
        (torch.Size([4, 1, 8, 8]), True)
    """
    _check(policy, p)
    if images.ndim != 4:
        raise UsageError(f"images must be (B, C, H, W) to be augmented; got {tuple(images.shape)}.")
    x = images
    for name in policy:
        operation, numbers = _OPERATIONS[name]
        u = torch.stack([rng.uniform(f"{stream} {name} {number}").to(images.dtype) for number in numbers], 1)
        chosen = rng.uniform(f"{stream} {name}").to(images.dtype) < p
        x = torch.where(chosen.view(-1, 1, 1, 1), operation(x, u), x)
    return x


def random_affine(images: Tensor, rng: Rng, shift: float = 0.125, zoom: float = 0.25) -> Tensor:
    """Random translation and scaling of images; what comes in repeats the border.

    Args:
        images: (B, C, H, W).
        rng: the randomness of this micro-batch.
        shift: of each side, at most, each way. Default 1/8.
        zoom: natural logarithm of the factor of the size, at most, each way. Default 0.25.

    Returns:
        (B, C, H, W).

    Example:
        >>> random_affine(torch.ones(2, 3, 8, 8), Rng(0, 0, 2, 0, 2)).shape
        torch.Size([2, 3, 8, 8])
    """
    return augmentation.affine(images, rng.uniform("moved", (3,)).to(images), shift, zoom)


class AdaptiveAugmentation(nn.Module):
    r"""Adaptive discriminator augmentation: its strength p grows while the discriminator overfits, else it falls.

    The sign of overfitting is \(r_t = E\, \mathrm{sign}(D(x))\) over real images x, with D above the objective's
    threshold or, where only differences count, above a generated image's: 0 by chance, 1 if it is always right. After
    each `window` of real images p moves by `window / images`, up if r_t is above its target, else down, and stays in
    [0, most].

    p is the probability of `random_augment`, or sets the length of the chain of a `DiffusionAugmentation`, then with
    `most=1`.

    While losses are computed, `collect` notes signs; `update`, the loss of a phase of its own without an optimizer,
    sums them over micro-batches and processes. All its state is in buffers, so give that phase `trains=augmentation`
    and its checkpoints hold it.

    Args:
        operation: (images, rng, stream, p=p) -> images: `random_augment` (default) or a `DiffusionAugmentation`.
        target: of r_t, in (-1, 1). Default 0.6.
        images: in how many p can go from 0 to 1. Default 500 000.
        window: real images between two moves. Default 256.
        p: the strength to start from. Default 0.
        most: the largest p, in (0, 1]. Default 0.8, up to which the generator does not learn the operations of
            `random_augment` themselves.

    Raises:
        UsageError: numbers out of range.

    Training Generative Adversarial Networks with Limited Data (Karras et al., 2020, 2006.06676), eq. 1 and section 3;
    Diffusion-GAN (Wang et al., 2022, 2206.02262), section 3.3.

    Example:
        >>> augmentation, rng = AdaptiveAugmentation(images=1024), Rng(0, 0, 256, 0, 256)
        >>> augmentation.collect(torch.ones(256), rng)  # all real ones are recognised
        >>> {key: value.item() for key, value in augmentation.update({}, rng).items()}
        {'p': 0.25, 'overfitting': 1.0}
    """

    p: Tensor
    signs: Tensor
    count: Tensor

    def __init__(
        self,
        operation: Callable[..., Tensor] = random_augment,
        target: float = 0.6,
        images: int = 500_000,
        window: int = 256,
        p: float = 0.0,
        most: float = SAFE,
    ):
        super().__init__()
        check_range("target", target, -1, 1, closed="neither")
        check_range("images", images, 1)
        check_range("window", window, 1)
        check_range("most", most, 0, 1, closed="right")
        check_range("p", p, 0, most)
        self.operation, self.target, self.images, self.window, self.most = operation, target, images, window, most
        self.register_buffer("p", torch.tensor(p, dtype=torch.float64))
        self.register_buffer("signs", torch.zeros((), dtype=torch.float64))  # since p last moved
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self._parts: dict[int, Tensor] = {}  # first image of the micro-batch -> sum of signs, how many
        self._overfitting: Tensor | None = None

    def forward(self, images: Tensor, rng: Rng, stream: str = "augmented") -> Tensor:
        """The operation with the current p; to be given to a loss as its `augment`."""
        return self.operation(images, rng, stream, p=self.p)

    def timesteps(self, rng: Rng) -> Tensor | None:
        """Times of the samples of this micro-batch, (B,), of an operation that has them; else None."""
        draw = getattr(self.operation, "timesteps", None)
        return None if draw is None else draw(rng, self.p)

    @torch.no_grad()
    def collect(self, margins: Tensor, rng: Rng) -> None:
        """Note the signs of a micro-batch. Given the same one again, as after an fp16 overflow, the last counts."""
        signs = margins.detach().sign().double()
        self._parts[rng.slice.start] = torch.stack([signs.sum(), signs.new_full((), signs.numel())])

    @torch.no_grad()
    def update(self, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
        """Move p, if a window is full. The first call of a step does it, and all report it.

        Returns:
            "p"; "overfitting", r_t of the images since p last moved before this step; of diffusion "length", its T.
        """
        if self._parts:
            total = torch.stack([*self._parts.values()]).sum(0)
            self._parts = {}
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(total)
            self.signs += total[0]
            self.count += total[1]
            self._overfitting = overfitting = self.signs / self.count
            step = self.count / self.images * (overfitting - self.target).sign()
            full = self.count >= self.window  # not read, as an accelerator would wait for it
            self.p.copy_(torch.where(full, (self.p + step).clamp(0, self.most), self.p))
            self.signs.masked_fill_(full, 0)
            self.count.masked_fill_(full, 0)
        noted = self.p.new_zeros(()) if self._overfitting is None else self._overfitting
        length = getattr(self.operation, "length", None)
        chain = {} if length is None else {"length": length(self.p)}
        return {"p": self.p.clone(), "overfitting": noted, **chain}


class ReplayPool(nn.Module):
    """Replay of earlier generated samples: once the pool is full, each new one is swapped for an old one, p = 1/2.

    Within a step the pool stays as it is: `forward` gives old ones in place of new ones and notes the new, and
    `update`, the loss of a phase of its own without an optimizer, puts them in. So processes and micro-batches make no
    difference, and with `trains=pool` the checkpoints hold the pool.

    Args:
        capacity: how many samples it holds; at least one global batch, so that no two get the same old one.
        shape: of one sample, such as (C, H, W).

    Raises:
        UsageError: a capacity below 1, or below the batch.

    Learning from Simulated and Unsupervised Images through Adversarial Training (Shrivastava et al., 2016,
    1612.07828), section 2.3, with the rule of CycleGAN (Zhu et al., 2017, 1703.10593), section 4.

    Example:
        >>> pool = ReplayPool(4, (2,))
        >>> for step in range(2):
        ...     rng = Rng(0, 4 * step, 4, 0, 4)
        ...     samples = pool(torch.full((4, 2), float(step)), rng)
        ...     _ = pool.update({}, rng)
        >>> sorted({*samples.flatten().tolist()})  # old ones and new
        [0.0, 1.0]
    """

    images: Tensor
    filled: Tensor

    def __init__(self, capacity: int, shape: Sequence[int]):
        super().__init__()
        check_range("capacity", capacity, 1)
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._parts: dict[int, Tensor] = {}  # first image of the micro-batch -> its samples

    @torch.no_grad()
    def forward(self, fake: Tensor, rng: Rng) -> Tensor:
        """Samples for the discriminator, (B, ...), in place of these."""
        slots, swapped = self._plan(rng, fake.device)
        self._parts[rng.slice.start] = fake.detach().to(self.images.dtype)
        old = self.images[slots[rng.slice]].to(fake.dtype)
        return torch.where(swapped[rng.slice].view(-1, *[1] * (fake.ndim - 1)), old, fake.detach())

    @torch.no_grad()
    def update(self, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
        """Put the step's samples in; the first call of a step does it.

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
            # How full the pool is is not read, as an accelerator would wait for it: samples without a place put back
            # what lies there.
            capacity = len(self.images)
            rows = self.filled + torch.arange(len(fresh), device=fresh.device)
            places = torch.where(self.filled < capacity, rows % capacity, slots)
            placed = ((rows < capacity) | swapped).view(-1, *[1] * (fresh.ndim - 1))
            self.images.index_copy_(0, places, torch.where(placed, fresh, self.images[places]))
            self.filled.add_(len(fresh)).clamp_(max=capacity)
        return {"filled": self.filled / len(self.images)}

    def _plan(self, rng: Rng, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each image of the global batch: a slot of its own, and whether it is swapped."""
        capacity, n = len(self.images), rng.global_batch
        if capacity < n:
            raise UsageError(
                f"capacity must be at least the global batch, {n}, so that each sample has a place of its own; got "
                f"{capacity}. Use a larger pool or a smaller train_batch_size."
            )
        generator = torch.Generator().manual_seed(seed_from(rng.seed, "replay", rng.position))
        slots = torch.randperm(capacity, generator=generator)[:n].to(device, non_blocking=True)
        swapped = (torch.rand(n, generator=generator) < 0.5).to(device, non_blocking=True)
        return slots, swapped & (self.filled.to(device) == capacity)


def _check(policy: Sequence[str], p: Tensor | float = 0.0) -> None:
    for name in policy:
        check_choice("policy", name, POLICIES)
    if not isinstance(p, Tensor):
        check_range("p", p, 0, 1)
