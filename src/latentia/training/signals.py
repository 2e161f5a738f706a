"""Asking a run to stop: a flag that the loop reads at the end of each step, agreed on by all processes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.nn.modules.module import register_module_forward_pre_hook


class Stopped(BaseException):  # so that no `except Exception` on the way keeps it
    """Sampling or scoring was left because the run was asked to stop. Nothing of training is lost with it."""


class Signals:
    """SIGTERM, SIGUSR1 and the first Ctrl-C raise a flag; the second Ctrl-C ends at once."""

    def __enter__(self):
        self.raised = False
        main = threading.current_thread() is threading.main_thread()  # only there can handlers be set
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT) if main else ()
        self.old = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def _handle(self, number, frame):
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = True

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    @contextmanager
    def polled(self) -> Iterator[None]:
        """Read the flag at every forward pass of any network meanwhile, and raise `Stopped` if it is up.

        So sampling and scoring, which may take longer than a scheduler waits, end within one evaluation of a network,
        without a word about it in pipelines or metrics.
        """

        def check(module, arguments):
            if not torch.compiler.is_compiling() and self.raised:
                raise Stopped

        handle = register_module_forward_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()

    def agreed(self, accelerator: Accelerator) -> bool:
        if accelerator.num_processes == 1:
            return self.raised
        return accelerator.reduce(torch.tensor(float(self.raised), device=accelerator.device), "sum").item() > 0
