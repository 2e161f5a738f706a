"""Run a job on untrusted files in a child process, with limits on memory, time and output and without credentials."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from latentia.errors import CheckpointError

MAX_ANSWER = 2**26  # bytes
START = 60  # seconds that importing the libraries may take
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "HOME", "LANG", "SYSTEMROOT")  # no tokens
# Threads would reserve memory, and nothing that a child reads needs the network.
_SET = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")} | {
    **{name: "1" for name in ("HF_HUB_OFFLINE", "MALLOC_ARENA_MAX", "PYTHONDONTWRITEBYTECODE")},
    "TOKENIZERS_PARALLELISM": "false",
}


class Outcome(NamedTuple):
    """How a child process ended: its answer or None, whether it took too long, and its exit code."""

    answer: Any
    late: bool
    code: int


def run_limited(job: Path, arguments: list[str], *, memory: int, seconds: float) -> Outcome:
    """Run a job, see `limits.py`, in a fresh interpreter.

    Works in threads, in several processes at once and without fork: it starts a new program and shares nothing.

    Args:
        job: path of a script with the functions `prepare` and `answer`.
        arguments: of `answer`.
        memory: bytes beyond what the imported libraries take; not limited on macOS and Windows.
        seconds: of processor time, and `START` more of time on the clock.

    Raises:
        CheckpointError: no process can be started.
    """
    script = Path(__file__).with_name("limits.py")
    command = [sys.executable, "-P", "-W", "ignore", str(script), str(job), str(memory), str(math.ceil(seconds))]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SET
    try:
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=seconds + START,
                env=environment,
                cwd=empty,  # so that no module can lie where the process starts
            )
            output.seek(0)
            text = output.read(MAX_ANSWER + 1)
    except subprocess.TimeoutExpired:
        return Outcome(None, True, -signal.SIGTERM)
    except OSError as error:
        raise CheckpointError(
            f"Files that are not trusted are read in a process of their own, and none can be started: {error}."
        ) from error
    if done.returncode == -getattr(signal, "SIGXCPU", math.inf):
        return Outcome(None, True, done.returncode)
    try:
        return Outcome(json.loads(text) if len(text) <= MAX_ANSWER else None, False, done.returncode)
    except (ValueError, RecursionError):
        return Outcome(None, False, done.returncode)
