"""Asking a run to stop: a flag that the loop reads at the end of each step, agreed on by all processes."""

import signal
import threading

import torch
from accelerate import Accelerator


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

    def agreed(self, accelerator: Accelerator) -> bool:
        if accelerator.num_processes == 1:
            return self.raised
        return accelerator.reduce(torch.tensor(float(self.raised), device=accelerator.device), "sum").item() > 0
