"""Exponential moving average of a network's weights, as a network of its own."""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latentia.errors import check_range


class EMA:
    r"""\(\bar\theta \leftarrow d_n \bar\theta + (1 - d_n)\, \theta\), \(d_n = \min(\text{decay}, (1 + n) / (10 + n))\).

    The average is a second network (`ema.module`), always ready to sample with, so the one in training is never
    touched. Buffers are part of it: those of real numbers are averaged, others copied.

    Args:
        module: the network to follow, before it is wrapped for several processes.
        decay: in [0, 1), default 0.999.
        warmup: whether early averages are shorter, by the n-dependent rule above. Default True.

    Raises:
        UsageError: a decay out of its range.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> ema = EMA(net, decay=0.5, warmup=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> before = ema.module.weight.clone()
        >>> ema.update(net)
        >>> bool(torch.allclose(ema.module.weight, before / 2))
        True
    """

    def __init__(self, module: nn.Module, decay: float = 0.999, warmup: bool = True):
        check_range("decay", decay, 0, 1, closed="left")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, module: nn.Module, held_back: Tensor | None = None) -> None:
        """Take in the weights of `module`, which has the structure of the one given at the start.

        Args:
            module: the network in training.
            held_back: float (), on its device: where it is 1 the average stays, but counts the update. Its weights are
                finite then, while buffers may be anything. `None` (default): it is 0.
        """
        n = int(self.steps)
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        self.steps += 1
        mean, new = list(_tensors(self.module)), list(_tensors(module))
        if held_back is not None:
            count = sum(1 for _ in module.parameters())
            moves = torch._foreach_sub(new[:count], mean[:count])
            torch._foreach_mul_(moves, (1 - held_back) * (1 - decay))
            torch._foreach_add_(mean[:count], moves)
            for old, now in zip(mean[count:], new[count:]):
                now = old.lerp(now, 1 - decay) if old.is_floating_point() else now
                old.copy_(torch.where(held_back > 0, old, now))
            return
        real = [i for i, tensor in enumerate(mean) if tensor.is_floating_point()]
        torch._foreach_lerp_([mean[i] for i in real], [new[i] for i in real], 1 - decay)
        for i in set(range(len(mean))) - set(real):
            mean[i].copy_(new[i])

    def state_dict(self) -> dict[str, Tensor | dict]:
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.steps.copy_(state["steps"])
        self.module.load_state_dict(state["module"])


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; of sharded ones what this process holds of them."""
    for tensor in chain(module.parameters(), module.buffers()):
        yield tensor.to_local() if isinstance(tensor, DTensor) else tensor
