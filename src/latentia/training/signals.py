"""Asking a run to stop: a flag that the loop reads at the end of each step, agreed on by all processes.

A run whose terminal or pipe was closed, or whose log lies on a full disk, goes on without it, so that it can save.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch.nn.modules.module import register_module_forward_pre_hook

_CLOSED = (errno.EPIPE, errno.EIO)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stopped(BaseException):  # so that no `except Exception` on the way keeps it
    """Sampling or scoring was left because the run was asked to stop. Nothing of training is lost with it."""


class Signals:
    """SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C raise a flag; the second Ctrl-C ends at once.

    SIGHUP, of a terminal that was closed, stays ignored where it was, as by `nohup`.
    """

    def __enter__(self):
        self.raised = False
        main = threading.current_thread() is threading.main_thread()  # only there can handlers be set
        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT] if main else []
        if main and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.output = ExitStack()
        self.output.enter_context(output_that_may_be_lost())
        self.old = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def _handle(self, number, frame):
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = True

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)
        self.output.close()

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


@contextmanager
def output_that_may_be_lost() -> Iterator[None]:
    """Drop what is printed meanwhile and cannot be written: to a closed terminal or pipe, or to a full disk.

    Example:
        >>> with output_that_may_be_lost():
        ...     print("step 1")
        step 1
    """
    streams = sys.stdout, sys.stderr
    wrapped = [_Output(stream) for stream in streams]
    sys.stdout, sys.stderr = wrapped  # type: ignore[assignment]  # all that printing needs
    try:
        yield
    finally:
        for stream in wrapped:
            stream.end()
        sys.stdout, sys.stderr = streams


class _Output:
    """A stream that drops what it cannot write; once nobody can read it, all of it."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        return self._unless_lost(self._stream.write, text)

    def flush(self):
        self._unless_lost(self._stream.flush)

    def end(self):
        """Write what is left; if that fails, drop it, as Python would fail on it again when it ends."""
        try:
            self._stream.flush()
        except OSError as error:
            if error.errno not in (*_CLOSED, *_FULL):
                raise
            self._drop()

    def _unless_lost(self, call, *arguments):
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno in _CLOSED:
                self._drop()
            elif error.errno not in _FULL:  # a disk may have room again
                raise

    def _drop(self):
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
