"""Run one job in this process within limits of memory, time and output: the script of a child process.

    python -P limits.py JOB MEMORY_BYTES SECONDS [ARGUMENT ...]

JOB is the path of a script with two functions: `prepare()` imports what it needs, before the limits are set, and
`answer(*arguments)` returns what is printed as JSON. Nothing of latentia is imported, so that an untrusted file can
reach nothing but the library that reads it.
"""

import json
import os
import runpy
import sys
import time


def limit_resources(memory: int, seconds: int) -> None:
    """Limit the memory, file size and processor time of this process from here on, as far as the system can."""
    try:
        import resource
    except ImportError:  # Windows, where only the parent process limits the time
        return
    import psutil

    until = int(time.process_time()) + seconds  # also if the parent process has ended
    room = psutil.Process().memory_info().vms + memory
    for limit, soft, hard in (
        (resource.RLIMIT_AS, room, room),
        (resource.RLIMIT_CPU, until, until + 5),
        (resource.RLIMIT_FSIZE, memory, memory),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        most = resource.getrlimit(limit)[1]  # which this process may itself have from its parent
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        try:
            resource.setrlimit(limit, (soft, hard))
        except (OSError, ValueError):
            if sys.platform != "darwin" or limit != resource.RLIMIT_AS:  # macOS cannot limit memory
                raise


def main(job: str, memory: str, seconds: str, *arguments: str) -> None:
    """Prepare the job, set the limits, and print its answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints is taken for the answer
    functions = runpy.run_path(job)
    functions["prepare"]()
    limit_resources(int(memory), int(seconds))
    with answers:
        json.dump(functions["answer"](*arguments), answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
