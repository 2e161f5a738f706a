"""What is promised of one kind of training is kept by all: killed, stopped, disturbed and spread over processes."""

import copy
import hashlib
import os
import random
import signal
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from children import ended, enter, example, ranks, run_example, steps_logged
from families import FAMILIES, STEPS
from safetensors.torch import load_file
from torch import nn

pytestmark = pytest.mark.fault
SEED = int(os.environ.get("LATENTIA_FAULT_SEED", "0"))


def disturbed(log: str, env: dict[str, str], script: str, argv: list[str], trouble: str, at: int) -> None:
    """An example in whose training something happens in step `at`: a signal, or a loss that is not finite."""
    enter(log, env)
    import latentia.runs.run

    real = latentia.runs.run.train

    def train(accelerator, phases, data, **options):
        learning = [phase for phase in phases if phase.optimizer is not None]
        phase = learning[-1] if trouble == "last loss" else learning[0]
        loss, position = phase.loss, (at - 1) * options["batch_size"]

        def disturbed_loss(batch, rng):
            values = loss(batch, rng)
            if rng.position >= position and trouble in ("first loss", "last loss"):
                values["loss"] = values["loss"] * float("nan")
            elif rng.position == position:
                os.kill(os.getpid(), signal.Signals[trouble])
            return values

        phase.loss = disturbed_loss
        return real(accelerator, phases, data, **options)

    latentia.runs.run.train = train
    run_example(script, argv)


def twice(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    """Train, build everything anew and fill it from the last checkpoint; exit 0 if nothing differs."""
    enter(log, env)
    from helpers import differences

    import latentia.runs.run

    real, seen = latentia.runs.run.train, []

    def train(accelerator, phases, data, **options):
        result = real(accelerator, phases, data, **options)
        kept = [{key: value for key, value in vars(phase).items() if key != "loss"} for phase in phases]
        kept += [reached(phase.loss) for phase in phases]
        seen.append((result.status, copy.deepcopy(kept)))  # an example may change its networks afterwards
        return result

    latentia.runs.run.train = train
    for _ in range(2):
        try:
            run_example(script, argv)
        except SystemExit as end:
            assert end.code in (0, None), end.code
    half = len(seen) // 2
    assert {status for status, _ in seen[half:]} == {"nothing to do"}, seen
    # Before the last call of `train` others may have trained the same objects, such as layers one by one.
    assert len(seen[-1][1]) > 0
    found = differences(seen[half - 1][1], seen[-1][1])
    print("\n".join(found), flush=True)
    os._exit(len(found) > 0)


def reached(function, depth: int = 4) -> dict:
    """What a loss closes over and may keep state in: networks, and the numbers and tensors of objects of the house."""
    if isinstance(function, nn.Module):
        return {"network": function}
    if depth == 0:
        return {}
    inside: dict = {}
    if isinstance(function, partial):
        inside = {"of": function.func, **dict(enumerate(function.args)), **function.keywords}
    elif hasattr(function, "__self__"):
        inside = {"self": function.__self__}
    elif getattr(function, "__closure__", None):
        inside = dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__)))
    elif isinstance(function, dict):
        inside = function
    elif type(function).__module__.startswith(("latentia.losses", "latentia.training")):
        inside = {key: value for key, value in vars(function).items() if not key.startswith("_")}
    found = {key: value for key, value in inside.items() if isinstance(value, bool | int | float | torch.Tensor)}
    deeper = {key: reached(value, depth - 1) for key, value in inside.items() if key not in found}
    return found | {key: value for key, value in deeper.items() if value}


@pytest.fixture
def run(start, parts):
    def run(family, folder, *more, expect=0, env=(), target=example, extra=()):
        argv = family.command(folder, parts, *more)
        code, text = ended(start(target, family.script, argv, *extra, env=env))
        assert code == expect, text
        return text

    return run


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def whole(request, trained):
    """A family, and the folder of its undisturbed run."""
    return request.param, trained(request.param)


def checkpoint(folder: Path, step: int = STEPS) -> dict[str, str]:
    """The hashes of all that a checkpoint holds."""
    path = folder / "checkpoints" / f"checkpoint-{step}"
    files = [file for file in path.iterdir() if file.name != "manifest.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def export(folder: Path) -> dict[str, str]:
    """The hashes of the networks of the pipeline that a run leaves."""
    found = {path.relative_to(folder): path for path in folder.glob("*/*.safetensors")}
    assert found and (folder / "model_index.json").exists()
    return {str(name): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def same_end(a: Path, b: Path) -> bool:
    return checkpoint(a) == checkpoint(b) and export(a) == export(b) and steps_logged(a) == steps_logged(b)


def test_steps_differ_so_that_equal_ends_mean_something(whole):
    assert steps_logged(whole[1]) == list(range(1, STEPS + 1))
    hashes = [checkpoint(whole[1], step) for step in (2, 4, 6)]
    assert len({*map(str, hashes)}) == 3 and hashes[0].keys() == hashes[2].keys()


def killed_at_random(start, family, argv, whole, kills: int, chance: random.Random, folder: Path, longest: float):
    """Kill and start again the same command `kills` times; then let it end. Returns when it was killed, in s."""
    moments = []
    while len(moments) < kills:
        child = start(example, family.script, argv)
        moment = round(chance.uniform(0.0, longest), 3)
        child.join(moment)
        if child.is_alive():
            child.kill()
            child.join()
            moments.append(moment)
        elif same_end(folder, whole):
            break  # it was quicker
        else:
            raise AssertionError(ended(child)[1])
    code, text = ended(start(example, family.script, argv))
    assert code == 0, f"seed {SEED}, moments {moments}: {text}"
    return moments


def test_killed_in_saves_and_at_a_random_moment_it_ends_the_same(whole, run, start, parts, tmp_path):
    family, undisturbed = whole
    for point in ("mid-state", "after-rename", "before-manifest"):
        run(family, tmp_path / "run", expect=-signal.SIGKILL, env={"LATENTIA_FAILPOINT": point})
    argv = family.command(tmp_path / "run", parts)
    chance = random.Random(f"{SEED} {family.name}")
    moments = killed_at_random(start, family, argv, undisturbed, 1, chance, tmp_path / "run", 0.7)
    assert same_end(tmp_path / "run", undisturbed), f"seed {SEED}, moments {moments}"


def pairs(first: str, rest: Iterable[str], names: Collection[str], by_day: Collection[str] | None = None) -> list:
    """All families with `first`, at night those that are not `by_day`, and those of some names with the rest."""
    found = [(family, first) for family in FAMILIES]
    found += [(family, other) for other in rest for family in FAMILIES if family.name in names]
    night = [by_day is not None and family.name not in by_day for family, _ in found]
    return [
        pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}", marks=[pytest.mark.nightly] * late)
        for pair, late in zip(found, night)
    ]


# One handler for all three signals, in the loop that all families share: one phase, two, several parts, and texts.
STOPPED_BY_DAY = ("ddpm", "gan", "autoencoder_layers", "text_to_image")


@pytest.mark.parametrize("family, name", pairs("SIGTERM", ("SIGUSR1", "SIGINT"), ("ddpm", "gan"), STOPPED_BY_DAY))
def test_asked_to_stop_it_saves_and_goes_on(family, name, trained, run, tmp_path):
    undisturbed = trained(family)
    run(family, tmp_path, "--checkpointing_steps", "1000", target=disturbed, extra=(name, 3), expect=75)
    run(family, tmp_path)
    assert checkpoint(tmp_path) == checkpoint(undisturbed) and export(tmp_path) == export(undisturbed)


# These two have a first phase that is not the last. What is noticed is noticed in the loop, which all families share.
TWO_PHASES = ("gan_remedies", "autoencoder_kl")
BROKEN_BY_DAY = (*STOPPED_BY_DAY, *TWO_PHASES, "vqvae", "series")


@pytest.mark.parametrize("family, trouble", pairs("last loss", ("first loss",), TWO_PHASES, BROKEN_BY_DAY))
def test_a_loss_that_is_not_finite_stops_it_and_harms_nothing(family, trouble, trained, run, tmp_path):
    undisturbed = trained(family)
    text = run(family, tmp_path, target=disturbed, extra=(trouble, 4), expect=3)
    assert "is not finite at step" in text and '"failed"' in (tmp_path / "run_summary.json").read_text()
    run(family, tmp_path)
    assert same_end(tmp_path, undisturbed)


# The plane's last layer is exported with the scale of the data folded in, the temperature of CLIP in a configuration.
PLANE = {"out.weight", "out.bias"}
EXPORTED_OTHERWISE = {"gan_plane": PLANE, "gan_plane_diffusion": PLANE, "text_encoder": {"logit_scale"}}


def test_the_averaged_weights_are_exported(whole):
    """To the bit, of each network that is averaged; the raw weights differ from them."""
    folder = whole[1]
    last = folder / "checkpoints" / f"checkpoint-{STEPS}"
    exported = [item for path in folder.glob("*/*.safetensors") for item in load_file(path).items()]
    averages = [*last.glob("*.ema.safetensors")]
    assert averages
    for path in averages:
        prefix = path.name.removesuffix("safetensors") + "module."
        average = {k.removeprefix(prefix): v for k, v in load_file(path).items() if k.startswith(prefix)}
        raw = {k.partition(".model.")[2]: v for k, v in load_file(str(path).replace(".ema.", ".model.")).items()}
        assert average.keys() == raw.keys() and any(not torch.equal(average[k], raw[k]) for k in average)
        for key in average.keys() - EXPORTED_OTHERWISE.get(whole[0].name, set()):
            value = average[key]
            assert any(key.endswith(name) and torch.equal(weight, value) for name, weight in exported), key


def test_nothing_that_a_loss_uses_is_missing_from_a_checkpoint(whole, run, tmp_path):
    run(whole[0], tmp_path, target=twice)


# One phase, two, several parts, and those whose losses gather over processes, such as contrasts.
TWO_PROCESSES_BY_DAY = (*STOPPED_BY_DAY, "gan_remedies", "vqvae", "text_encoder", "cycle", "flow")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(one, id=one.name, marks=[pytest.mark.nightly] * (one.name not in TWO_PROCESSES_BY_DAY))
        for one in FAMILIES
    ],
)
def test_two_processes_equal_one(family, trained, start, parts, tmp_path):
    undisturbed = trained(family, *family.same)
    argv = family.command(tmp_path / "run", parts, *family.same, "--train_batch_size", "4")
    for child in ranks(start, example, family.script, argv):
        code, text = ended(child)
        assert code == 0, text
    for name in checkpoint(undisturbed):
        if name.endswith((".model.safetensors", ".ema.safetensors")):
            last = Path("checkpoints", f"checkpoint-{STEPS}", name)
            one, two = load_file(undisturbed / last), load_file(tmp_path / "run" / last)
            assert one.keys() == two.keys()
            for key in one:
                torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_killed_many_times(whole, start, parts, tmp_path):
    family, undisturbed = whole
    wanted = int(os.environ.get("LATENTIA_KILLS", "20"))
    chance, kills, k = random.Random(f"{SEED} {family.name} nightly"), 0, 0
    while kills < wanted:
        k += 1
        folder = tmp_path / f"run-{k}"
        argv = family.command(folder, parts)
        moments = killed_at_random(start, family, argv, undisturbed, min(4, wanted - kills), chance, folder, 1.5)
        kills += len(moments)
        print(f"seed {SEED}, killed after {moments} s")
        assert same_end(folder, undisturbed), f"seed {SEED}, moments {moments}"
