"""Randomness as a function of where a run stands, so that nothing about it has to be saved.

Every draw of a training step is keyed by (seed, stream, images seen before the step). It is made for the whole global
batch and each process keeps its slice. So a run that was killed and started again, or that is spread over another
number of processes or micro-batches, meets the same noise, and no two processes meet equal noise.
"""

import hashlib

import torch


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed from any number of integers and strings; equal parts give equal seeds on every machine.

    Example:
        >>> seed_from(0, "noise", 64) == seed_from(0, "noise", 64) != seed_from(0, "noise", 128)
        True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's own generators of the CPU and of `device`.

    The numbers are those of `torch.manual_seed`, which also notes the stack of its caller for every kind of device
    that is not in use.

    Example:
        >>> seed_global(3, torch.device("cpu"))
        >>> a = torch.rand(2)
        >>> _ = torch.manual_seed(3)
        >>> bool((torch.rand(2) == a).all())
        True
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


class Rng:
    """The random numbers of one micro-batch.

    Args:
        seed: the run's seed.
        position: images seen before this *step* (not micro-batch).
        global_batch: images of the whole step, over all processes and micro-batches.
        start, count: which of them this micro-batch holds, `0 <= start`, `start + count <= global_batch`.
        device: where the numbers are drawn. CPU and GPU draw different numbers.

    Example:
        >>> whole = Rng(0, 64, 8, 0, 8).normal("noise", (3,))
        >>> part = Rng(0, 64, 8, 6, 2).normal("noise", (3,))
        >>> bool((whole[6:] == part).all())
        True
    """

    def __init__(self, seed: int, position: int, global_batch: int, start: int, count: int, device="cpu"):
        self.seed, self.position, self.global_batch = seed, position, global_batch
        self.slice = slice(start, start + count)
        self.device = torch.device(device)

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_from(self.seed, stream, self.position))

    def normal(self, stream: str, shape: tuple[int, ...]) -> torch.Tensor:
        """N(0, 1), float32, of shape (count, *shape). Each use of a step needs a `stream` name of its own."""
        generator = self._generator(stream)
        return torch.randn(self.global_batch, *shape, generator=generator, device=self.device)[self.slice]

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """U[0, 1), float32, of shape (count, *shape)."""
        generator = self._generator(stream)
        return torch.rand(self.global_batch, *shape, generator=generator, device=self.device)[self.slice]

    def stratified(self, stream: str) -> torch.Tensor:
        """U[0, 1), float32, of shape (count,): one in each of `global_batch` equal intervals, in turn."""
        shift = torch.rand((), generator=self._generator(stream), device=self.device)
        even = torch.arange(self.global_batch, device=self.device) / self.global_batch
        return ((even + shift) % 1)[self.slice]
