"""Values that are not finite, noticed by a flag of the device that is read later: here on the CPU."""

import contextlib
import json
import math
import signal

import pytest
import torch
from accelerate import Accelerator
from helpers import Points, differences, held, linear, regression
from test_training import Killed, Without, bad_at, killer, signalled
from torch import nn

from latentia.errors import NumericsError
from latentia.functional.checks import is_false
from latentia.training import nonfinite
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, learning_rate_schedule, train


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(nonfinite, "FLAGGED", ("cpu",))


def fused(phases: list[Phase]) -> list[Phase]:
    for phase in phases:
        if phase.optimizer is not None:
            kind, group = type(phase.optimizer), phase.optimizer.param_groups[0]
            phase.optimizer = kind(group["params"], lr=group["lr"], fused=True)
    return phases


class Batched(nn.Module):
    """A network with batch statistics."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    def forward(self, x):
        return self.body(x)


def two_phases() -> list[Phase]:
    """Two networks that learn, one of them with buffers, and an update rule without gradients."""
    torch.manual_seed(2)
    first, second, counts = linear(3), Batched(), Batched()

    def follow(batch, rng):
        counts.body[1].running_mean.lerp_(batch["y"].mean(), 0.1)
        return {"mean": counts.body[1].running_mean.norm()}

    def loss(net):
        return lambda batch, rng: {"loss": (net(batch["x"]) - batch["y"]).square().mean()}

    return [
        Phase("counts", follow, counts),
        Phase("first", loss(first), first, torch.optim.SGD(first.parameters(), lr=0.05, fused=True), max_grad_norm=1.0),
        Phase(
            "second",
            loss(second),
            second,
            torch.optim.Adam(second.parameters(), lr=0.05, fused=True),
            every=2,
            learning_rate=learning_rate_schedule("cosine", 2, 8),
            ema=EMA(second, 0.9),
        ),
    ]


def run(folder, steps, phases, data=None, **options):
    options = {"batch_size": 3, "checkpoint_every": None, "log_every": 4} | options
    folder.mkdir(exist_ok=True, parents=True)
    return train(Accelerator(cpu=True), phases, data or Points(), output_dir=folder, max_steps=steps, **options)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder):
    """The rows of a log without times."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows(folder)]


def test_flags_change_nothing_while_all_is_finite(tmp_path, monkeypatch):
    first = two_phases()
    run(tmp_path / "a", 7, first)
    monkeypatch.setattr(nonfinite, "FLAGGED", ("cpu",))
    second = two_phases()
    run(tmp_path / "b", 7, second)
    for one, other in zip(first, second):
        assert differences(one.trains, other.trains) == [] and differences(one.optimizer, other.optimizer) == []
        assert not hasattr(other.optimizer, "found_inf")
    averages = [phases[2].ema.module.state_dict() for phases in (first, second)]
    for key, value in averages[0].items():
        torch.testing.assert_close(averages[1][key], value, rtol=1e-7, atol=1e-9)
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


@pytest.mark.parametrize("make", [two_phases, lambda: fused(regression(noise=0, dropout=0))])
@pytest.mark.parametrize("at", [0, 4, 6])
def test_late_or_at_once_a_skip_is_the_same(tmp_path, late, make, at):
    """The steps between the bad one and the reading of its flag are made again, from where the bad one left them."""
    phases = bad_at(make(), 6 * at)
    result = run(tmp_path / "a", 7, phases, max_skips=1, batch_size=6)
    assert (result.progress.step, result.progress.images, result.progress.skipped) == (7, 48, 1)
    twin = make()
    run(tmp_path / "b", 7, twin, Without(6 * at, 6), batch_size=6)
    if len(phases) == 1:
        assert differences(phases, twin) == []
    ends = [[row for row in logged(tmp_path / name) if "skipped" not in row] for name in "ab"]
    assert [row["step"] for row in ends[0]] == [row["step"] for row in ends[1]] == [4, 7]
    assert [row["images"] for row in rows(tmp_path / "a") if "skipped" in row] == [6 * at + 6]
    for a, b in zip(*ends):
        assert len(phases) > 1 or all(a[f"net/{key}"] == b[f"net/{key}"] for key in ("loss", "grad_norm", "lr"))


def test_buffers_stand_as_before_a_late_bad_step(tmp_path, late):
    """Also those that the steps in between have filled with values that are not finite."""
    phases = two_phases()
    real = phases[2].loss
    nan = lambda batch: {**batch, "x": batch["x"] * math.nan}  # noqa: E731
    phases[2].loss = lambda batch, rng: real(nan(batch) if rng.position == 6 else batch, rng)
    result = run(tmp_path / "a", 8, phases, max_skips=1)
    assert result.progress.skipped == 1 and all(
        bool(torch.as_tensor(value).isfinite().all())
        for phase in phases
        for thing in (phase.trains, phase.ema.module if phase.ema else phase.trains)
        for value in thing.state_dict().values()
    )
    assert int(phases[2].ema.steps) == 4 and {int(s["step"]) for s in phases[2].optimizer.state.values()} == {4}


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_late_error_names_its_step_and_harms_nothing(tmp_path, late, kind, limit):
    net = linear(1)

    def loss(batch, rng):
        bad = rng.position in (6, 15)
        steep = (net(batch["x"]) * 0).abs().sum().sqrt() if bad and kind == "gradient" else 0.0
        value = (net(batch["x"]) - batch["y"]).square().mean() + steep
        return {"loss": value * math.inf if bad and kind == "loss" else value}

    phase = Phase("net", loss, net, torch.optim.SGD(net.parameters(), lr=0.1, fused=True), ema=EMA(net, 0.9))
    step, images = (3, 6) if limit == 0 else (5, 15)
    with pytest.raises(NumericsError, match=rf'{kind} of phase "net" is not finite at step {step} \({images} images'):
        run(tmp_path / "a", 8, [phase], max_skips=limit)
    assert not (tmp_path / "a" / "checkpoints").exists() and int(phase.ema.steps) == step - 1
    twin = linear(1)
    good = lambda batch, rng: {"loss": (twin(batch["x"]) - batch["y"]).square().mean()}  # noqa: E731
    other = Phase("net", good, twin, torch.optim.SGD(twin.parameters(), lr=0.1, fused=True), ema=EMA(twin, 0.9))
    run(tmp_path / "b", step - 1, [other], Without(6, 3) if limit else None)
    assert differences(net, twin) == [] and differences(phase.ema, other.ema) == []


@pytest.mark.parametrize("call", [5, 8, 9])
def test_resumed_around_a_late_skip_the_end_is_the_same(tmp_path, late, call):
    make = lambda: bad_at(fused(regression()), 6, 15)  # noqa: E731
    options = {"max_skips": 2, "checkpoint_every": 3, "checkpoints_limit": None}
    run(tmp_path / "whole", 7, make(), **options)
    with pytest.raises(Killed):
        run(tmp_path / "part", 7, killer(make(), call), **options)
    result = run(tmp_path / "part", 7, make(), **options)
    assert held(tmp_path / "part", 7) == held(tmp_path / "whole", 7) and result.progress.skipped == 2
    written = [[(row["images"], row.get("skipped")) for row in rows(tmp_path / name)] for name in ("whole", "part")]
    assert written[0] == written[1]


def test_asked_to_stop_before_the_flags_are_read(tmp_path, late):
    phases = signalled(bad_at(fused(regression()), 3), 3, signal.SIGTERM)
    result = run(tmp_path / "a", 8, phases, max_skips=1, log_every=100)
    assert (result.status, result.progress.step, result.progress.skipped) == ("interrupted", 1, 1)
    run(tmp_path / "b", 8, bad_at(fused(regression()), 3), max_skips=1)
    run(tmp_path / "a", 8, bad_at(fused(regression()), 3), max_skips=1)
    assert held(tmp_path / "a", 8) == held(tmp_path / "b", 8)


def test_hooks_and_saves_see_good_steps_alone(tmp_path, late):
    seen = []
    net = linear(1)

    def loss(batch, rng):
        value = (net(batch["x"]) - batch["y"]).square().mean()
        return {"loss": value * (math.nan if rng.position == 9 else 1)}

    phase = Phase("net", loss, net, torch.optim.SGD(net.parameters(), lr=0.1, fused=True))
    hook = Hook(5, lambda progress: seen.append((progress.step, progress.images)))
    run(tmp_path, 6, [phase], hooks=[hook], max_skips=1, log_every=0, checkpoint_every=5)
    assert seen == [(5, 18), (6, 21)]


def test_flags_are_read_as_rarely_as_the_log_is_written(tmp_path, late, monkeypatch):
    """No value is read in between, also by the checks of the networks after the first step."""
    reads, real = [], nonfinite.Nonfinite.read
    monkeypatch.setattr(nonfinite.Nonfinite, "read", lambda self, p: (reads.append(p.step), real(self, p)))
    phases, checked = fused(regression()), []
    loss = phases[0].loss

    def checking(batch, rng):
        checked.append(is_false(torch.tensor(False)))
        return loss(batch, rng)

    phases[0].loss = checking
    run(tmp_path, 9, phases)
    assert reads == [4, 8, 9] and checked == [True] + 8 * [False] and is_false(torch.tensor(False))


@pytest.mark.parametrize(
    ("device", "scaler", "is_fused", "expected"),
    [("cuda", None, True, True), ("cuda", None, False, False), ("cuda", 1, True, False), ("cpu", None, True, False)],
)
def test_where_values_are_read_late(device, scaler, is_fused, expected):
    net = linear(1)
    accelerator = type("A", (), {"device": torch.device(device), "scaler": scaler})
    phase = Phase("net", lambda b, rng: {}, net, torch.optim.AdamW(net.parameters(), fused=is_fused))
    assert nonfinite.reads_late(accelerator, [phase, Phase("rule", lambda b, rng: {}, net)]) is expected


def test_a_torn_run_leaves_the_optimizers_as_they_were(tmp_path, late):
    phases = fused(regression())
    with contextlib.suppress(Killed):
        run(tmp_path, 3, killer(phases, 2))
    assert not hasattr(phases[0].optimizer, "found_inf")
