"""How the processes of a run meet, and how long one waits for another."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from accelerate import InitProcessGroupKwargs
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous


def process_group(timeout: float) -> InitProcessGroupKwargs:
    """What `Accelerator(kwargs_handlers=[...])` takes so that no process waits for another for ever.

    Args:
        timeout: seconds after which a process that waits for another gives up, so that the run ends with an error.

    Example:
        >>> process_group(60).timeout.seconds
        60
    """
    # A microsecond more: accelerate leaves out what equals its own default, and gloo's default is another one.
    return InitProcessGroupKwargs(init_method="latentia://", timeout=timedelta(seconds=timeout, microseconds=1))


def _meet(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """As env://, with addresses of their own for each start by torchrun.

    torch 2.13 keeps one store for all starts of a job without telling them apart, so a process that is quick takes the
    address that one of the start before has left, and finds nobody there.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for store, rank, world in rendezvous("env://", **options):
        yield PrefixStore(f"start {start}", store), rank, world


register_rendezvous_handler("latentia", _meet)
