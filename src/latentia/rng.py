"""Random numbers as a function of where a run stands, so that nothing about them has to be saved.

Every number of a training step is a function of (seed, stream, position in the stream of data, index within the
element). So a run that was killed and started again, or that is spread over another number of processes or
micro-batches, meets the same noise; no two processes meet equal noise; and a process makes only its own numbers, on its
own device.
"""

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range


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


# The generator is SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195), which needs no state: number n
# of a key is a mixing function of key + n * GAMMA, here variant 13. Element p of the data has those from p * 2^32 on.
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LOW_32, _LOW_24 = (1 << 32) - 1, (1 << 24) - 1


class Rng:
    """The random numbers of one micro-batch.

    Args:
        seed: the run's seed.
        position: elements seen before this *step* (not micro-batch).
        global_batch: elements of the whole step, over all processes and micro-batches.
        start, count: which of them this micro-batch holds, `0 <= start`, `start + count <= global_batch`.
        device: where the numbers are made. Those of another device differ by rounding at most.

    Raises:
        UsageError: no integers, or a part that lies outside the step.

    Example:
        >>> whole = Rng(0, 64, 8, 0, 8).normal("noise", (3,))
        >>> part = Rng(0, 64, 8, 6, 2).normal("noise", (3,))
        >>> bool((whole[6:] == part).all())
        True
    """

    def __init__(
        self,
        seed: int,
        position: int,
        global_batch: int,
        start: int,
        count: int,
        device: str | torch.device = "cpu",
    ):
        check_range("seed", seed, integer=True)
        places = {"position": position, "global_batch": global_batch, "start": start, "count": count}
        for name, value in places.items():
            check_range(name, value, 0, integer=True)
        if start + count > global_batch:
            raise UsageError(
                f"start + count must be at most global_batch={global_batch}; got {start} + {count}: a micro-batch is a "
                "part of its step."
            )
        self.seed, self.position, self.global_batch = seed, position, global_batch
        self.start, self.count, self.device = start, count, torch.device(device)
        self.slice = slice(start, start + count)  # of the global batch

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """N(0, 1), float32, of shape (count, *shape). Each use of a step needs a `stream` name of its own."""
        size = math.prod(shape)
        bits = self._bits(stream, (size + 1) // 2)
        # Box and Muller, 1958, doi:10.1214/aoms/1177706645: two normal numbers from the two halves of 64 bits.
        radius = (bits & _LOW_32).float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = _high(bits, 32).float().mul_(2 * math.pi * 2.0**-32)
        pairs = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], 1)
        return pairs[:, :size].reshape(self.count, *shape)

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
        """U[0, 1), float32, of shape (count, *shape): multiples of 2^-24."""
        size = math.prod(shape)
        bits = self._bits(stream, (size + 1) // 2)
        pairs = torch.cat([_high(bits, 24), bits.bitwise_and_(_LOW_24)], 1)
        return pairs[:, :size].float().mul_(2.0**-24).reshape(self.count, *shape)

    def seeds(self, stream: str) -> Tensor:
        """A seed for each element, any int64, (count,): of `uniform_of_seeds`."""
        return self._bits(stream, 1)[:, 0]

    def stratified(self, stream: str) -> Tensor:
        """U[0, 1), float32, of shape (count,): one in each of `global_batch` equal intervals, in turn."""
        shift = Rng(self.seed, self.position, 1, 0, 1, self.device).uniform(stream)
        even = torch.arange(self.start, self.start + self.count, device=self.device) / self.global_batch
        return (even + shift) % 1

    def _bits(self, stream: str, size: int) -> Tensor:
        """Bits of size x 64 for each element, int64 (count, size)."""
        first = self.position + self.start
        elements = torch.arange(first, first + self.count, device=self.device).mul_(_signed(_GAMMA << 32))
        return _mix(elements[:, None] + _counters(self.seed, stream, size, self.device))


@lru_cache(maxsize=32)
def _counters(seed: int, stream: str, size: int, device: torch.device) -> Tensor:
    """Number times GAMMA of each of an element's numbers, under the key of a stream; equal in all steps of a run."""
    return torch.arange(1, size + 1, device=device).mul_(_signed(_GAMMA)).add_(seed_from(seed, stream))


def uniform_of_seeds(seeds: Tensor, key: int, shape: tuple[int, ...]) -> Tensor:
    """U[0, 1), float32, of shape (B, *shape): multiples of 2^-24 that are a function of a seed each and of `key`.

    Args:
        seeds: int64 (B,), on the device of the numbers.
        key: of the use, another one for each use of the same seeds.
        shape: of the numbers of a seed.

    Example:
        >>> few, many = (uniform_of_seeds(torch.tensor(seeds), 1, (3,)) for seeds in ([7], [5, 7]))
        >>> bool((few[0] == many[1]).all())
        True
    """
    size = math.prod(shape)
    numbers = torch.arange(1, (size + 1) // 2 + 1, device=seeds.device).mul_(_signed(_GAMMA)).add_(_signed(key))
    bits = _mix(_mix(seeds.clone())[:, None] + numbers)
    pairs = torch.cat([_high(bits, 24), bits.bitwise_and_(_LOW_24)], 1)
    return pairs[:, :size].float().mul_(2.0**-24).reshape(len(seeds), *shape)


def _mix(x: Tensor) -> Tensor:
    """The mixing function of SplitMix64, in place: multiplications of int64 wrap as those of unsigned numbers do."""
    for shift, factor in _MIX:
        x.bitwise_xor_(_high(x, 64 - shift)).mul_(_signed(factor))
    return x.bitwise_xor_(_high(x, 33))


def _high(x: Tensor, bits: int) -> Tensor:
    """The highest `bits` of 64, as a number: a shift of int64 repeats the sign, which is masked away."""
    return (x >> (64 - bits)).bitwise_and_((1 << bits) - 1)


def _signed(x: int) -> int:
    """The int64 with the lowest 64 bits of a number."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
