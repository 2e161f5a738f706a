"""Real processes that are killed, stopped, started twice or given nonsense. After each: the same end, or a clear word.

The seed of the random moments is LATENTIA_FAULT_SEED, default 0.
"""

import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from children import (
    EXAMPLES,
    ended,
    enter,
    example,
    free_port,
    launch,
    ranks,
    steps_logged,
    torchrun,
    wait_for,
)
from hub_server import Handler, image_dataset, point_client_at, point_datasets_at, running_hub
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.run import parse_args

import latentia

pytestmark = pytest.mark.fault
EXAMPLE = EXAMPLES / "train_ddpm.py"
STEPS = 24
SMALL = [
    *("--dataset_name", "digits", "--max_train_samples", "60", "--block_out_channels", "4", "32"),
    *("--max_train_steps", f"{STEPS}", "--checkpointing_steps", "4", "--checkpoints_total_limit", "2"),
    *("--train_batch_size", "8", "--lr_warmup_steps", "4", "--logging_steps", "1", "--adam_epsilon", "1e-3"),
    *("--eval_num_samples", "0", "--num_inference_steps", "1", "--class_conditional"),
]


def players(log: str, env: dict[str, str], folder: str, batch_size: int, accumulate: int, trouble: str) -> None:
    """Two players of linear maps under whatever the environment says: one process or several."""
    enter(log, env)
    from accelerate import Accelerator
    from helpers import Points
    from torch import nn

    from latentia.errors import NumericsError
    from latentia.training import checkpoint, nonfinite
    from latentia.training.ema import EMA
    from latentia.training.loop import Phase, train

    late, trouble = trouble.endswith(", late"), trouble.removesuffix(", late")
    if late:  # as on a GPU
        nonfinite.FLAGGED = ("cpu",)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    if trouble.startswith("slow disk"):
        save, last = checkpoint.save_checkpoint, 3 if "stopped" in trouble else 6
        checkpoint.save_checkpoint = lambda root, step, *rest: (
            time.sleep(0.5 * (step == last)), save(root, step, *rest)
        )[1]  # fmt: skip
    torch.manual_seed(1)
    g, d = nn.Linear(2, 2).double(), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    if trouble == "batch statistics":
        d = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.LeakyReLU(), nn.Linear(4, 1)).double()
    average = EMA(g, 0.9)
    g_opt, d_opt = (torch.optim.Adam(net.parameters(), lr=0.01, fused=late) for net in (g, d))
    g, d, g_opt, d_opt = accelerator.prepare(g, d, g_opt, d_opt)

    def critic(batch, rng):
        if rank == 1 and trouble == "raise" and rng.position >= 24:
            raise OSError("only here")
        if rank == 1 and "stopped" in trouble and rng.position >= 24:
            os.kill(os.getpid(), signal.SIGTERM)
        with torch.no_grad():
            fake = g(rng.normal("z_d", (2,)).double())
        loss = (d(fake) - d(batch["y"])).mean()
        bad = rng.position >= 24 if trouble == "nan" else rng.position == 24 and trouble == "nan once"
        return {"loss": loss * (float("nan") if bad and rank == accelerator.num_processes - 1 else 1)}

    def generator(batch, rng):
        return {"loss": -d(g(rng.normal("z_g", (2,)).double())).mean()}

    phases = [Phase("d", critic, d, d_opt), Phase("g", generator, g, g_opt, every=2, ema=average)]
    options = {"batch_size": batch_size, "accumulate": accumulate, "log_every": 1, "checkpoint_every": 1}
    if late:
        options |= {"log_every": 4, "checkpoint_every": 2}
    options["max_skips"] = int(trouble == "nan once")
    if "stopped" in trouble:
        options["checkpoint_every"] = None
    Path(folder).mkdir(exist_ok=True)
    try:
        result = train(accelerator, phases, Points(), output_dir=folder, max_steps=6, **options)
        assert result.progress.step == (3 if "stopped" in trouble else 6)
        assert Path(folder, "checkpoints", f"checkpoint-{result.progress.step}").is_dir()
    except NumericsError as error:
        print(error, flush=True)
        sys.exit(3)


def command(folder: Path, *more) -> list[str]:
    return [*SMALL, "--output_dir", str(folder), *map(str, more)]


@pytest.fixture
def run(start):
    def run(folder, *more, expect=0, env=()):
        code, text = ended(start(example, EXAMPLE.name, command(folder, *more), env=env))
        assert code == expect, text
        return text

    return run


def end_of(folder: Path) -> dict[str, str]:
    """The hash of all that a run is about: weights, average, moments, scale, and the network that is exported."""
    last = folder / "checkpoints" / f"checkpoint-{STEPS}"
    files = [path for path in last.iterdir() if path.name != "manifest.json"] + [*(folder / "unet").iterdir()]
    assert len(files) == 8, files
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    return load_file(last / f"{name}.safetensors")


def assert_close(a: Path, b: Path, names: list[str], tolerance: float) -> None:
    for name in names:
        one, two = weights(a, name), weights(b, name)
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")


def tidy(folder: Path) -> None:
    """Nothing half is left: whole checkpoints with numbers, no staging, no leftovers of an export."""
    assert {p.name for p in (folder / "checkpoints").iterdir()} <= {f"checkpoint-{k}" for k in range(STEPS + 1)}
    assert not [*folder.glob(".export")] and steps_logged(folder) == list(range(1, STEPS + 1))


@pytest.fixture(scope="session")
def undisturbed(make_once, starter):
    """The run that all others must equal, and how long it took."""

    def make(folder):
        for name in ("first", "run"):  # the first also starts the server and fills the cache
            started = time.perf_counter()
            code, text = ended(starter(folder / "log.txt", example, EXAMPLE.name, command(folder / name)))
            assert code == 0, text
        (folder / "seconds").write_text(str(time.perf_counter() - started))

    folder = make_once("undisturbed", make)
    return folder / "run", float((folder / "seconds").read_text())


# --------------------------------------------------------------------------------------------------------------- kills


def test_the_undisturbed_run(undisturbed):
    tidy(undisturbed[0])
    assert len(end_of(undisturbed[0])) == 8


POINTS = ["after-mkdir", "mid-state", "before-manifest", "after-manifest", "after-rename", "mid-rotate"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_stage_of_a_save(run, undisturbed, tmp_path, point):
    folder = tmp_path / "run"
    first = {"LATENTIA_FAILPOINT": "after-rename"}
    run(folder, expect=-signal.SIGKILL, env=first)  # leaves checkpoint-4
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint-4"]
    run(folder, expect=-signal.SIGKILL, env={"LATENTIA_FAILPOINT": point})
    inside = {p.name.split("-")[0] for p in (folder / "checkpoints").iterdir()}
    committed = point in ("after-rename", "mid-rotate")
    assert inside == ({"checkpoint", ".aside"} if point == "mid-rotate" else {"checkpoint"} if committed else
                      {"checkpoint", ".staging"})  # fmt: skip
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        assert (path / "manifest.json").exists()
    run(folder)
    assert end_of(folder) == end_of(undisturbed[0])
    tidy(folder)


KILLS = 4  # `benchmarks/faults.py` makes a hundred of each kind of training


def test_killed_at_random_moments(start, undisturbed, tmp_path):
    seed = int(os.environ.get("LATENTIA_FAULT_SEED", "0"))
    chance, (whole, seconds) = random.Random(seed), undisturbed
    kills, k, moments = 0, 0, []
    while kills < KILLS:
        k += 1
        folder = tmp_path / f"run-{k}"
        while True:
            child = start(example, EXAMPLE.name, command(folder))
            moments.append(round(chance.uniform(0.1, 1.0) * seconds, 3) if kills < KILLS else None)
            child.join(moments[-1] if moments[-1] is not None else 120)
            if child.is_alive():
                child.kill()
                child.join()
                kills += 1
                continue
            code, text = ended(child)
            assert code == 0, f"seed {seed}, moments {moments}: {text}"
            break
        print(f"seed {seed}, killed after {moments} s")
        assert end_of(folder) == end_of(whole), f"seed {seed}, moments {moments}"
        assert steps_logged(folder) == list(range(1, STEPS + 1))


def test_killed_while_it_exports(start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    child = start(example, EXAMPLE.name, command(folder))
    wait_for(folder / "checkpoints" / f"checkpoint-{STEPS}" / "manifest.json", child)
    child.kill()
    child.join()
    code, text = ended(start(example, EXAMPLE.name, command(folder)))
    assert code == 0, text
    assert end_of(folder) == end_of(undisturbed[0]) and (folder / "README.md").exists()


def test_asked_to_stop_it_saves_says_so_and_goes_on(start, run, undisturbed, tmp_path):
    folder = tmp_path / "run"
    child = start(example, EXAMPLE.name, command(folder, "--checkpointing_steps", 1000))
    wait_for(folder / "metrics.jsonl", child, '"step": 3')
    os.kill(child.pid, signal.SIGTERM)
    code, text = ended(child)
    assert code == 75 and "the checkpoint is whole. Start the same command again" in text
    summary = json.loads((folder / "run_summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("interrupted", 75)  # which a launcher may hide
    run(folder)
    assert end_of(folder) == end_of(undisturbed[0])
    summary = json.loads((folder / "run_summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["restarts"]) == ("finished", STEPS, 1)
    assert "Nothing to do" in run(folder)


def test_two_runs_in_one_folder(start, run, undisturbed, tmp_path):
    folder = tmp_path / "run"
    first = start(example, EXAMPLE.name, command(folder))
    wait_for(folder / "metrics.jsonl", first, "step")
    os.kill(first.pid, signal.SIGSTOP)
    for flags in ([], ["--overwrite_output_dir"]):
        assert "is in use by another run" in run(folder, *flags, expect=2)
    assert (folder / "metrics.jsonl").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    run(folder)
    assert end_of(folder) == end_of(undisturbed[0])
    run(folder, "--overwrite_output_dir")  # from the beginning, to the same end
    assert end_of(folder) == end_of(undisturbed[0])


def test_a_disk_that_is_full_ends_with_a_word(start, undisturbed, tmp_path):
    """Files may not grow beyond a limit, as on a full disk."""
    folder = tmp_path / "run"
    child = start(limited, command(folder))
    code, text = ended(child)
    assert code == 5 and "could not be written" in text and "Traceback" not in text, text
    assert not [*(folder / "checkpoints").iterdir()]


def limited(log: str, env: dict[str, str], argv: list[str]) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    example(log, env, EXAMPLE.name, argv)


# --------------------------------------------------------------------------------------------------- several processes


HALF = ("--train_batch_size", 4)


@pytest.fixture(scope="session")
def accelerate(starter):
    """`accelerate(log, config, *flags)`: the example under `accelerate launch`; test_packaging.py has new processes."""

    def accelerate(log, config, *flags):
        argv = ["--config_file", str(config), str(EXAMPLE), *flags]
        code, text = ended(starter(log, launch, argv))
        assert code == 0, text

    return accelerate


@pytest.fixture(scope="session")
def pair(make_once, accelerate):
    """2 processes x 4 images, started as users start them."""

    def make(folder):
        flags = command(folder / "run", *HALF)
        accelerate(folder / "log.txt", EXAMPLES / "accelerate" / "two_cpu_processes.yaml", *flags)

    return make_once("pair", make) / "run"


def test_two_processes_equal_one(pair, undisturbed):
    tidy(pair)
    assert_close(pair, undisturbed[0], ["unet.model", "unet.ema"], 1e-5)
    losses = [
        [json.loads(line)["unet/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (pair, undisturbed[0])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_two_processes_with_accumulation_equal_one(start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    argv = command(folder, "--train_batch_size", 2, "--gradient_accumulation_steps", 2)
    for child in ranks(start, example, EXAMPLE.name, argv):
        code, text = ended(child)
        assert code == 0, text
    assert_close(folder, undisturbed[0], ["unet.model", "unet.ema"], 1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_of_two_is_killed(start, pair, tmp_path, victim):
    folder, argv = tmp_path / "run", None
    argv = command(folder, "--train_batch_size", 4)
    children = ranks(start, example, EXAMPLE.name, argv)
    wait_for(folder / "metrics.jsonl", children[0], '"step": 6')
    children[victim].kill()
    code, text = ended(children[1 - victim], 60)
    assert code != 0, text
    for child in ranks(start, example, EXAMPLE.name, argv):
        code, text = ended(child)
        assert code == 0, text
    assert end_of(folder) == end_of(pair)
    tidy(folder)


RESTARTS = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--nproc_per_node=2", "--max-restarts=3")


def worker(trouble: str, folder: str, argv: list[str]) -> None:
    """A process of `torchrun`: the example, with trouble in the first starts."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # a fork has the launcher's
    import latentia.runs.run
    from latentia.training import checkpoint

    starts, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    Path(folder, f"rank-{rank}.pid").write_text(str(os.getpid()))
    train, died = latentia.runs.run.train, checkpoint.fail_point

    def disturbed(accelerator, phases, data, **options):
        loss = phases[0].loss

        def wrapped(batch, rng):
            if starts == 0 and rank == 1 and rng.position >= 8 * 6:
                if trouble == "kills":
                    os.kill(os.getpid(), signal.SIGKILL)
                if trouble == "raises":
                    raise OSError("only here")
            if trouble == "slow":
                time.sleep(0.1)
            return loss(batch, rng)

        phases[0].loss = wrapped
        return train(accelerator, phases, data, **options)

    def fail_point(name):
        if trouble == "kills" and starts == 1 and name == "before-manifest":
            os.kill(int(Path(folder, "rank-1.pid").read_text()), signal.SIGKILL)  # who waits for this save
        if trouble == "kills" and starts == 2 and name == "mid-state":
            os.kill(os.getpid(), signal.SIGKILL)
        died(name)

    latentia.runs.run.train, checkpoint.fail_point = disturbed, fail_point
    sys.argv = [str(EXAMPLE), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.fixture
def under_torchrun(start, tmp_path):
    def under_torchrun(trouble, folder, *more, options=RESTARTS):
        argv = command(folder, *HALF, *more)
        return start(torchrun, worker, trouble, str(tmp_path), argv, options)

    return under_torchrun


def test_torchrun_starts_them_again(under_torchrun, pair, tmp_path):
    """One dies in a step, one while it waits for a save, one amid a save; the end is that of an undisturbed run."""
    code, text = ended(under_torchrun("kills", tmp_path / "run"))
    assert code == 0 and text.count(f"{STEPS} steps of 8 (") == 4, text
    assert end_of(tmp_path / "run") == end_of(pair)
    tidy(tmp_path / "run")


def test_torchrun_shows_the_first_error(under_torchrun, tmp_path):
    code, text = ended(under_torchrun("raises", tmp_path / "run", options=RESTARTS[:3]), 60)
    assert code != 0 and "OSError: only here" in text, text


def test_torchrun_is_asked_to_stop(under_torchrun, pair, tmp_path):
    child = under_torchrun("slow", tmp_path / "run", "--checkpointing_steps", 1000)
    wait_for(tmp_path / "run" / "metrics.jsonl", child, '"step": 3')
    os.kill(child.pid, signal.SIGTERM)
    code, text = ended(child, 60)
    assert code == 1, text  # torchrun's own; what its processes end with is 75
    assert json.loads((tmp_path / "run" / "run_summary.json").read_text())["status"] == "interrupted"
    code, text = ended(under_torchrun("", tmp_path / "run"))
    assert code == 0 and end_of(tmp_path / "run") == end_of(pair), text


# Processes, images of a micro-batch, micro-batches: always a global batch of 8.
LAYOUTS = {"two": (2, 4, 1), "one": (1, 8, 1), "one, in parts": (1, 4, 2), "two, in parts": (2, 2, 2)}


@pytest.mark.parametrize("before, after", [("two", "one, in parts"), ("one", "two"), ("two, in parts", "one")])
def test_another_number_of_processes_goes_on(start, undisturbed, tmp_path, before, after):
    folder, every = tmp_path / "run", ("--checkpointing_steps", 1000)
    for layout in (before, after):
        world, size, parts = LAYOUTS[layout]
        batch = ("--train_batch_size", size, "--gradient_accumulation_steps", parts)
        children = ranks(start, example, EXAMPLE.name, command(folder, *batch, *every), world=world)
        if layout == before:
            wait_for(folder / "metrics.jsonl", children[0], '"step": 6')
            os.kill(children[-1].pid, signal.SIGTERM)
        for child in children:
            code, text = ended(child)
            assert code == (75 if layout == before else 0), text
    assert json.loads((folder / "run_summary.json").read_text())["resumed_from"]
    assert_close(folder, undisturbed[0], ["unet.model", "unet.ema"], 1e-5)
    tidy(folder)
    for child in ranks(start, example, EXAMPLE.name, command(folder, "--max_train_steps", 30)):  # 2 x 8 images
        code, text = ended(child)
        assert code == 5
        assert "global_batch: 8 in the checkpoint, 16 now" in text
        assert "--train_batch_size x --gradient_accumulation_steps x processes must be 8" in text, text


SHARDED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "AttentionBlock",
}  # fmt: skip
PARTS = ["unet.model", "unet.ema", "unet.optimizer"]


@pytest.fixture
def train_on(start, tmp_path):
    """The example on one or two processes, sharded or not, until it ends or is asked to stop at a step."""

    def train_on(world, env, *more, until=None):
        folder = tmp_path / "run"
        argv = command(folder, "--train_batch_size", 8 // world, *more)
        children = ranks(start, example, EXAMPLE.name, argv, world=world, env=env)
        if until is not None:
            wait_for(folder / "metrics.jsonl", children[0], f'"step": {until}')
            os.kill(children[-1].pid, signal.SIGTERM)
        for child in children:
            code, text = ended(child)
            assert code == (0 if until is None else 75), text
        return folder

    return train_on


def test_sharded_weights_equal_whole_ones(accelerate, undisturbed, tmp_path):
    """By the file for GPUs on two CPU processes. Pictures on the way need whole weights, and then it trains on."""
    config = yaml.safe_load((EXAMPLES / "accelerate" / "fsdp2.yaml").read_text())
    config |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
    folder, path = tmp_path / "run", tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    accelerate(tmp_path / "log.txt", path, *command(folder, *HALF, "--validation_steps", 8))
    assert_close(folder, undisturbed[0], PARTS, 1e-5)
    pictures = [Image.open(root / "samples" / "grid.png") for root in (folder, undisturbed[0])]
    assert np.abs(np.subtract(*(np.asarray(picture, np.int16) for picture in pictures))).max() <= 1
    assert len([*(folder / "samples").glob("step-*.png")]) == 6
    pipe = latentia.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe.unet) is latentia.UNet2D
    for key, value in weights(folder, "unet.ema").items():
        if key.startswith("unet.ema.module."):
            assert torch.equal(value, pipe.unet.state_dict()[key.removeprefix("unet.ema.module.")])
    tidy(folder)


@pytest.mark.parametrize("before, after", [((2, SHARDED), (1, {})), ((1, {}), (2, SHARDED))])
def test_sharded_runs_go_on_whole_and_whole_ones_sharded(train_on, undisturbed, before, after):
    train_on(*before, "--checkpointing_steps", 1000, until=6)
    folder = train_on(*after, "--checkpointing_steps", 1000)
    assert_close(folder, undisturbed[0], PARTS, 1e-5)
    tidy(folder)


def test_what_cannot_be_sharded(start, tmp_path):
    argv = ["--dataset_name", "digits", "--latent_dim", "4", "--block_out_channels", "4", "--output_dir", str(tmp_path)]
    for child in ranks(start, example, "train_gan.py", [*argv, "--max_train_steps", "1"], env=SHARDED):
        code, text = ended(child)
        assert code == 2 and "FSDP shards a run of one network" in text, text
    for child in ranks(start, example, EXAMPLE.name, command(tmp_path / "run"), env={**SHARDED, "FSDP_VERSION": "1"}):
        code, text = ended(child)
        assert code == 2 and "fsdp_version must be 2" in text, text


def test_nobody_waits_for_ever(start, tmp_path):
    folder = tmp_path / "run"
    argv = command(folder, "--train_batch_size", 4, "--distributed_timeout", 3)
    children = ranks(start, example, EXAMPLE.name, argv)
    wait_for(folder / "metrics.jsonl", children[0], '"step": 3')
    os.kill(children[1].pid, signal.SIGSTOP)
    code, text = ended(children[0], 60)
    assert code not in (0, 75) and "Timed out" in text, text


@pytest.mark.parametrize("trouble", ["", "nan once", "nan once, late"])
def test_two_players_on_two_processes_equal_one(start, tmp_path, trouble):
    """Also where one process meets a loss that is not finite, and all pass over that step."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ended(start(players, str(one), 12, 1, trouble))
    assert alone[0] == 0, alone[1]
    for child in ranks(start, players, str(two), 3, 2, trouble):
        code, text = ended(child)
        assert code == 0, text
    assert_close(one, two, ["d.model", "g.model", "g.ema", "d.optimizer", "g.optimizer"], 1e-9)
    told = [row for row in (two / "metrics.jsonl").read_text().splitlines() if "skipped" in row]
    assert len(told) == bool(trouble)


@pytest.mark.parametrize("trouble", ["slow disk", "slow disk, stopped"])
def test_no_process_goes_on_before_the_checkpoint_is_there(trouble, start, tmp_path):
    for child in ranks(start, players, str(tmp_path / "run"), 3, 2, trouble):
        code, text = ended(child)
        assert code == 0, text


def test_two_forwards_with_batch_statistics_on_two_processes(start, tmp_path):
    for child in ranks(start, players, str(tmp_path / "run"), 3, 2, "batch statistics"):
        code, text = ended(child)
        assert code == 0, text
    assert len(steps_logged(tmp_path / "run")) == 6


@pytest.mark.parametrize("trouble", ["nan", "nan, late"])
def test_a_loss_that_is_not_finite_on_one_process_stops_all(start, tmp_path, trouble):
    folder = tmp_path / "run"
    for child in ranks(start, players, str(folder), 3, 2, trouble):
        code, text = ended(child, 60)
        assert code == 3 and 'loss of phase "d" is not finite at step 3 ' in text, text
    assert max(p.name for p in (folder / "checkpoints").iterdir()) == "checkpoint-2"


def test_an_error_on_one_process_ends_all(start, tmp_path):
    codes = [ended(child, 60)[0] for child in ranks(start, players, str(tmp_path / "run"), 3, 2, "raise")]
    assert 0 not in codes


def test_accelerate_launch(accelerate, undisturbed, tmp_path):
    accelerate(tmp_path / "log.txt", EXAMPLES / "accelerate" / "one_cpu.yaml", *command(tmp_path / "run"))
    assert end_of(tmp_path / "run") == end_of(undisturbed[0])


@pytest.mark.parametrize("path", sorted((EXAMPLES / "accelerate").iterdir()), ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_the_configuration_files(path):
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    _validate_launch_command(args)
    assert args.num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_the_files_for_clusters_can_be_read():
    subprocess.run(["bash", "-n", EXAMPLES / "cluster" / "slurm.sh"], check=True)
    service, job = yaml.safe_load_all((EXAMPLES / "cluster" / "kubernetes.yaml").read_text())
    words = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    parsed = parse_args(words[1:])
    assert parsed.training_script == "examples/train_ddpm.py" and parsed.nnodes == str(job["spec"]["completions"])


def test_two_machines(start, pair, tmp_path):
    """Two launchers of one process each, which find each other at an address."""
    place = f"localhost:{free_port()}"
    options = ("--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={place}", "--rdzv-id=run")
    argv = command(tmp_path / "run", *HALF)
    for child in [start(torchrun, worker, "", str(tmp_path), argv, options) for _ in range(2)]:
        code, text = ended(child)
        assert code == 0, text
    assert end_of(tmp_path / "run") == end_of(pair)


# ------------------------------------------------------------------------------------------------------------- streams


def streamed(log: str, env: dict[str, str], endpoint: str, cache: str, argv: list[str]) -> None:
    """The example, with the Hub at `endpoint`, where pauses pass at once but steps take a while."""
    from latentia.data import streaming

    patch = pytest.MonkeyPatch()
    point_client_at(SimpleNamespace(endpoint=endpoint), patch, f"{cache}/hub")
    point_datasets_at(SimpleNamespace(endpoint=endpoint), patch, f"{cache}/datasets")
    patch.setattr("time.sleep", lambda seconds: None)
    batch, wait = streaming.StreamedImages.batch, threading.Event().wait
    patch.setattr(streaming.StreamedImages, "batch", lambda *a, **k: (wait(0.05), batch(*a, **k))[1])
    example(log, env, EXAMPLE.name, argv)


@pytest.mark.parametrize("trouble", ["500", "cut"])
def test_a_broken_stream_is_a_data_error_and_can_be_resumed(start, tmp_path, monkeypatch, trouble):
    """The source breaks for good amid training, by its status or amid a file; later it answers again."""
    broken = threading.Event()
    real = Handler.resolve

    def resolve(self, repo, revision, name):
        if not broken.is_set() or not name.endswith(".parquet") or self.command != "GET":
            return real(self, repo, revision, name)
        if trouble == "500":
            return self.answer(500, b"")
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"PAR1")
        self.close_connection = True

    monkeypatch.setattr(Handler, "resolve", resolve)
    more = ("--dataset_name", "user/set", "--streaming", "--eval_num_samples", 0)
    with running_hub() as hub:
        hub.put("datasets/user/set", image_dataset(shards=2))

        def begin(name):
            argv = command(tmp_path / name, *more)
            return start(streamed, hub.endpoint, str(tmp_path / f"cache-{name}"), argv, env={"HF_HUB_OFFLINE": "0"})

        code, text = ended(begin("whole"))
        assert code == 0 and "at-least-once" in text, text
        child = begin("run")
        wait_for(tmp_path / "run" / "metrics.jsonl", child, '"step": 5')
        broken.set()
        code, text = ended(child)
        assert code == 4 and "user/set failed 4 times" in text and "resumed from its last checkpoint" in text, text
        assert json.loads((tmp_path / "run" / "run_summary.json").read_text())["exit_code"] == 4
        broken.clear()
        code, text = ended(begin("run"))
        assert code == 0, text
    assert end_of(tmp_path / "run") == end_of(tmp_path / "whole")
    tidy(tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------ nonsense


def parquet(folder: Path) -> Path:
    import io

    def png(i: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (8, 8), i * 8).save(file, "PNG")
        return file.getvalue()

    table = {"picture": [{"bytes": png(i), "path": None} for i in range(20)], "digit": list(range(20))}
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "data.parquet")
    return folder / "data.parquet"


NONSENSE = {
    "unknown flag": (["--learning_rte", "1"], 2, ["learning_rte", "learning_rate"]),
    "no data set": (["--dataset_name", "None"], 2, ["--train_data_dir", "neither"]),
    "two data sets": (["--train_data_dir", "x"], 2, ["both"]),
    "misspelt key": (["--config", "{wrong.yaml}"], 2, ['unknown key "sed". Did you mean "seed"?']),
    "odd resolution": (["--resolution", "9"], 2, ["9", "block_out_channels"]),
    "negative resolution": (["--resolution", "-8"], 2, ["resolution"]),
    "label column": (["--dataset_name", "None", "--train_data_dir", "{parquet}", "--label_column", "digits"], 2,
                     ["--label_column digits is not a column", 'Did you mean "digit"?', "picture, digit"]),
    "empty folder": (["--dataset_name", "None", "--train_data_dir", "{empty}"], 4, ["empty"]),
    "missing folder": (["--dataset_name", "None", "--train_data_dir", "{empty}/none"], 4, ["none"]),
    "too few images": (["--max_train_samples", "5"], 4, ["5 images", "global batch of 8"]),
    "nothing to resume": (["--resume_from_checkpoint", "latest"], 5, ["no whole checkpoint"]),
    "no such checkpoint": (["--resume_from_checkpoint", "nowhere"], 5, ["nowhere", "not there"]),
    "output is a file": (["--output_dir", "{wrong.yaml}"], 2, ["is a file"]),
    "output below a file": (["--output_dir", "{wrong.yaml}/x"], 2, ["cannot be written"]),
    "output of 300 letters": (["--output_dir", "{empty}/" + "x" * 300], 2, ["cannot be written"]),
    "no steps": (["--max_train_steps", "0"], 2, ["--max_train_steps must be at least 1"]),
    "no batch": (["--train_batch_size", "0"], 2, ["batch_size must be at least 1"]),
    "no accumulation": (["--gradient_accumulation_steps", "0"], 2, ["at least 1"]),
    "unknown sampling": (["--time_sampling", "logitnormal"], 2, ['Did you mean "logit_normal"?']),
    "explosion": (["--learning_rate", "1e30"], 3, ['phase "unet" is not finite at step', "Nothing was updated"]),
    "another configuration": (["--output_dir", "{finished}", "--seed", "1", "--max_train_steps", "30"], 5,
                              ["  seed: 0 in the checkpoint, 1 now", "--resume_from_checkpoint none"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_ends_with_its_exit_code_and_a_word(start, undisturbed, tmp_path, name):
    argv, expected, words = NONSENSE[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.yaml").write_text("sed: 1\n")
    places = {"{wrong.yaml}": tmp_path / "wrong.yaml", "{empty}": tmp_path / "empty"}
    if "{parquet}" in argv:
        places["{parquet}"] = parquet(tmp_path / "table")
    if "{finished}" in argv:
        places["{finished}"] = shutil.copytree(undisturbed[0], tmp_path / "finished")
    for place, path in places.items():
        argv = [word.replace(place, str(path)) for word in argv]
    code, text = ended(start(example, EXAMPLE.name, command(tmp_path / "run", *argv)))
    assert code == expected, text
    assert all(word in text for word in words), text
    assert "Traceback" not in text
