"""Real processes, forked from a server that has imported everything (`preload.py`): the start of one takes a moment.

The fixtures `context` and `start` of conftest.py make them.
"""

import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
ONE_CORE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


def small_chunks(patch) -> None:
    """Networks of pipelines see 8 images at once instead of up to 64: the fewer rows a padded chunk has, the faster."""
    from latentia.functional.chunks import in_chunks
    from latentia.pipelines import sampling

    patch.setattr(in_chunks, "__kwdefaults__", {"size": 8})
    patch.setattr(sampling, "chunk_size", lambda pixels, device_type: 8)


def enter(log: str, env: dict[str, str]) -> None:
    """A child says everything into a file and has an environment of its own."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(env)
    torch.set_num_threads(1)


def run_example(script: str, argv: list[str]) -> None:
    """Run one of `examples/` as a program in this process."""
    sys.argv = [str(EXAMPLES / script), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


def example(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    """Run one of `examples/` as a program in a child."""
    enter(log, env)
    run_example(script, argv)


def torchrun(log: str, env: dict[str, str], entry, trouble: str, folder: str, argv: list[str], options) -> None:
    """`torchrun` with workers that are forks of this process and run `entry`: its own agent, its own restarts,
    but no import at each start."""
    enter(log, {**ONE_CORE, **env})
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    config, _, _ = config_from_args(parse_args([*options, "--start-method=fork", "--monitor-interval=0.05", "script"]))
    elastic_launch(config, entry)(trouble, folder, argv)


def launch(log: str, env: dict[str, str], argv: list[str]) -> None:
    """`accelerate launch` with processes that are forks of this one: its own choice of launcher, environment and
    arguments, but no import at each start."""
    enter(log, {**ONE_CORE, **env})
    import torch.distributed.run
    from accelerate.commands import launch
    from torch.distributed.launcher.api import elastic_launch

    def one(args) -> None:
        _, environment = launch.prepare_simple_launcher_cmd_env(args)
        os.environ.update(environment)
        run_example(args.training_script, args.training_script_args)

    def several(args) -> None:
        args.start_method, args.monitor_interval = "fork", 0.05
        config, _, _ = torch.distributed.run.config_from_args(args)
        elastic_launch(config, run_example)(args.training_script, args.training_script_args)

    launch.simple_launcher, torch.distributed.run.run = one, several
    launch.launch_command(launch.launch_command_parser().parse_args(argv))


def ended(child, timeout: float = 120) -> tuple[int, str]:
    """Exit code and output of a child, which must end by itself."""
    child.join(timeout)
    text = child.log.read_text(errors="replace") if child.log.exists() else ""
    assert not child.is_alive(), f"still running after {timeout} s:\n{text}"
    return child.exitcode, text


def wait_for(path: Path, child, text: str = "", timeout: float = 60) -> None:
    until = time.monotonic() + timeout
    while not (path.exists() and (not text or text in path.read_text())):
        assert child.is_alive() and time.monotonic() < until, child.log.read_text()
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks(start, target, *args, world: int = 2, env=()):
    """One child for each process of a group."""
    shared = {
        "WORLD_SIZE": f"{world}", "LOCAL_WORLD_SIZE": f"{world}", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{free_port()}", **ONE_CORE, **dict(env),
    }  # fmt: skip
    return [start(target, *args, env={**shared, "RANK": f"{k}", "LOCAL_RANK": f"{k}"}) for k in range(world)]


def steps_logged(folder: Path) -> list[int]:
    """The steps of the lines with losses; what hooks say has lines of its own."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if any(key.endswith("/loss") for key in row)]
