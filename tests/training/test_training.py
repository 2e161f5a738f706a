"""The training loop, with networks small enough to know what must come out."""

import ast
import inspect
import json
import math
import os
import re
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from helpers import Points, differences, held, linear, part_of, regression
from torch import nn

from latentia.errors import CheckpointError, NumericsError, UsageError
from latentia.training import loop
from latentia.training.checkpoint import load_checkpoint
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, Progress, learning_rate_schedule, train


class Killed(BaseException):
    """Stands for `kill -9`: nothing in the package may catch it."""


class Players(nn.Module):
    """A discriminator with batch statistics, so that there are buffers as well."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1)).double()

    def forward(self, x):
        return self.body(x)


class Counts(nn.Module):
    """Statistics without gradients, as of a codebook."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))


def gan() -> list[Phase]:
    """Two players, a second phase for one of them, and an update rule without gradients."""
    torch.manual_seed(2)
    g, d, counts = linear(3), Players(), Counts()

    def critic(batch, rng):
        with torch.no_grad():
            fake = g(rng.normal("z_d", (2,)).double())
        return {"loss": (d(fake) - d(batch["y"])).mean()}

    def penalty(batch, rng):
        x = batch["y"].requires_grad_()
        (grad,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
        return {"loss": ((grad.norm(dim=1) - 1) ** 2).mean()}

    def generator(batch, rng):
        return {"loss": -d(g(rng.normal("z_g", (2,)).double())).mean()}

    def statistics(batch, rng):
        counts.mean.lerp_(batch["y"].mean(0), 0.1)
        return {"distance": counts.mean.norm()}

    d_opt = torch.optim.Adam(d.parameters(), lr=0.01)
    g_opt = torch.optim.SGD(g.parameters(), lr=0.01, momentum=0.9)
    return [
        Phase("critic", critic, d, d_opt, learning_rate=learning_rate_schedule("cosine", 2, 12), max_grad_norm=1.0),
        Phase("penalty", penalty, d, torch.optim.SGD(d.parameters(), lr=0.01), every=3),
        Phase("generator", generator, g, g_opt, every=2, ema=EMA(g, 0.9)),
        Phase("statistics", statistics, counts),
    ]


def run(folder: Path, steps: int, make=regression, data=None, phases=None, **options):
    options = {"batch_size": 3, "checkpoint_every": 1, "checkpoints_limit": None, "log_every": 1} | options
    phases = make() if phases is None else phases
    folder.mkdir(exist_ok=True, parents=True)
    result = train(Accelerator(cpu=True), phases, data or Points(), output_dir=folder, max_steps=steps, **options)
    return phases, result


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def killer(phases: list[Phase], at: int, with_what=Killed) -> list[Phase]:
    """Raises in the `at`-th call of the first phase's loss."""
    real, calls = phases[0].loss, []

    def loss(batch, rng):
        calls.append(1)
        if len(calls) == at:
            raise with_what
        return real(batch, rng)

    phases[0].loss = loss
    return phases


# ------------------------------------------------------------------------------------------------------- what it does


def test_it_finds_the_known_optimum(tmp_path):
    net = linear(1)
    phase = Phase(
        "net",
        lambda batch, rng: {"loss": ((net(batch["x"]) - batch["y"]) ** 2).mean()},
        net,
        torch.optim.SGD(net.parameters(), lr=0.3),
        learning_rate=learning_rate_schedule("linear", 0, 300),
    )
    run(tmp_path, 300, phases=[phase], batch_size=10, checkpoint_every=None)
    torch.testing.assert_close(net[1].weight.detach(), torch.tensor([[2.0, -1.0], [0.5, 3.0]]).double())
    torch.testing.assert_close(net[1].bias.detach(), torch.ones(2).double())


def test_a_step_equals_one_written_by_hand(tmp_path):
    phases, _ = run(tmp_path, 3, make=lambda: regression(noise=0, dropout=0))
    twin, data = regression(noise=0, dropout=0)[0], Points()
    for k in range(3):
        batch = data.batch(3 * k, 3 * k + 3, seed=0, device="cpu")
        twin.optimizer.zero_grad()
        ((twin.trains(batch["x"]) - batch["y"]) ** 2).mean().backward()
        twin.optimizer.step()
        twin.ema.update(twin.trains)
    for a, b in ((phases[0].trains, twin.trains), (phases[0].ema.module, twin.ema.module)):
        assert all((p == q).all() for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("k, b", [(2, 3), (3, 2), (6, 1)])
@pytest.mark.parametrize("make", [lambda: regression(dropout=0), lambda: regression(dropout=0, max_grad_norm=0.1)])
def test_accumulation_equals_the_large_batch(tmp_path, k, b, make):
    whole, _ = run(tmp_path / "whole", 5, make, batch_size=6)
    parts, _ = run(tmp_path / "parts", 5, make, batch_size=b, accumulate=k)
    for a, c in ((whole[0].trains, parts[0].trains), (whole[0].ema.module, parts[0].ema.module)):
        for p, q in zip(a.parameters(), c.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    rows = zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"))
    assert all(a["net/loss"] == pytest.approx(b["net/loss"], rel=1e-5) for a, b in rows)


def test_every_counts_steps_and_images_count_the_position(tmp_path):
    phases, seen = gan(), {}
    for phase in phases:

        def loss(batch, rng, real=phase.loss, name=phase.name):
            seen.setdefault(name, []).append(rng.position)
            return real(batch, rng)

        phase.loss = loss
    _, result = run(tmp_path, 7, phases=phases, accumulate=2)
    assert result.progress.step == 7 and result.progress.images == 42
    positions = [6 * step for step in range(7) for _ in range(2)]  # two micro-batches each
    assert seen["critic"] == seen["statistics"] == positions
    assert seen["generator"] == [p for p in positions if p // 6 % 2 == 0]
    assert seen["penalty"] == [p for p in positions if p // 6 % 3 == 0]


def test_a_phase_waits_until_its_first_step(tmp_path):
    """The other player is bit-unchanged before, and moves in that very step."""
    phases = gan()
    phases[0].after, phases[1].after = 3, 4
    start = phases[0].trains.body[0].weight.detach().clone()
    run(tmp_path, 3, phases=phases)
    assert torch.equal(phases[0].trains.body[0].weight, start)
    assert not [key for row in lines(tmp_path) for key in row if key.startswith(("critic", "penalty"))]
    run(tmp_path, 7, phases=phases)  # it goes on where it stood
    seen = {name: [row["step"] for row in lines(tmp_path) if f"{name}/loss" in row] for name in ("critic", "penalty")}
    assert seen == {"critic": [4, 5, 6, 7], "penalty": [7]}
    assert not torch.equal(phases[0].trains.body[0].weight, start)


def test_only_the_network_in_training_gets_gradients(tmp_path):
    phases = gan()
    critic, penalty, generator, _ = phases
    seen = []
    for phase in phases:

        def loss(batch, rng, phase=phase, real=phase.loss):
            flags = {p.name: {w.requires_grad for w in p.trains.parameters()} for p in phases}
            expected = {p.name: {p.trains is phase.trains} if [*p.trains.parameters()] else set() for p in phases}
            assert flags == expected, phase.name
            # what a phase leaves is a clean slate for the next
            assert all(w.grad is None for p in phases for w in p.trains.parameters()) or rng.slice.start > 0
            seen.append(phase.name)
            return real(batch, rng)

        phase.loss = loss
    touched = []
    for name, net in (("d", critic.trains), ("g", generator.trains)):
        for parameter in net.parameters():
            parameter.register_hook(lambda grad, name=name: touched.append((seen[-1], name)))
    before = {id(p): p.detach().clone() for p in generator.trains.parameters()}
    critic_step = critic.optimizer.step
    critic.optimizer.step = lambda *a: (
        [pytest.fail("gradient for the other player") for p in generator.trains.parameters() if p.grad is not None],
        critic_step(*a),
    )[1]
    run(tmp_path, 3, phases=phases, accumulate=2)
    assert {pair for pair in touched} == {("critic", "d"), ("penalty", "d"), ("generator", "g")}
    assert any((before[id(p)] != p).any() for p in generator.trains.parameters())
    assert penalty.trains is critic.trains


def test_a_phase_without_optimizer_changes_only_its_own(tmp_path):
    phases, _ = run(tmp_path, 4, gan)
    data, mean = Points(), torch.zeros(2, dtype=torch.float64)
    for k in range(4):
        mean = mean.lerp(data.batch(3 * k, 3 * k + 3, seed=0, device="cpu")["y"].mean(0), 0.1)
    torch.testing.assert_close(phases[3].trains.mean, mean)
    assert lines(tmp_path)[-1]["statistics/distance"] == pytest.approx(float(mean.norm()), rel=1e-5)


def test_networks_and_optimizers_come_back_as_they_were_given(tmp_path):
    phases, _ = run(tmp_path, 12, gan)
    assert all(p.requires_grad for phase in phases for p in phase.trains.parameters())
    assert [phase.optimizer.param_groups[0]["lr"] for phase in phases[:3]] == [0.01] * 3
    _, result = run(tmp_path, 14, phases=phases)  # the same objects go on in the same process
    run(tmp_path / "whole", 14, gan)
    assert result.progress.step == 14 and held(tmp_path, 14) == held(tmp_path / "whole", 14)


def test_they_come_back_after_an_error_too(tmp_path):
    phases = killer(gan(), 3)
    with pytest.raises(Killed):
        run(tmp_path, 6, phases=phases)
    assert all(p.requires_grad for phase in phases for p in phase.trains.parameters())


@pytest.mark.parametrize(
    "options, text",
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"steps": 0}, "max_steps must be at least 1"),
        ({"make": lambda: regression(every=0)}, "every of net must be at least 1"),
        ({"make": lambda: regression(after=-1)}, "after of net must be at least 0; got -1"),
        ({"make": lambda: regression() + regression()}, "a name of its own; got .'net', 'net'"),
        ({"make": lambda: []}, "at least one"),
    ],
)
def test_calls_that_make_no_sense(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        run(tmp_path, **{"steps": 2} | options)


def test_hooks_run_when_due_and_after_the_last_step(tmp_path):
    seen = {0: [], 2: []}
    hooks = [Hook(n, lambda progress, n=n: (seen[n].append(progress.step), {"score": n})[1]) for n in seen]
    run(tmp_path, 5, hooks=hooks, log_every=5)
    assert seen == {0: [5], 2: [2, 4, 5]}
    assert [(row["step"], row.get("score")) for row in lines(tmp_path)] == [(2, 2), (4, 2), (5, None), (5, 0), (5, 2)]


@pytest.mark.parametrize("log_every, steps", [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5])])
def test_lines_are_means_since_the_line_before(tmp_path, log_every, steps):
    run(tmp_path / "all", 5, log_every=1)
    run(tmp_path, 5, log_every=log_every)
    single, rows = [row["net/loss"] for row in lines(tmp_path / "all")], lines(tmp_path)
    assert [row["step"] for row in rows] == steps
    for before, row in zip([0, *steps], rows):
        part = single[before : row["step"]]
        assert row["net/loss"] == pytest.approx(sum(part) / len(part), rel=1e-4)


def test_a_line_is_left_out_when_no_phase_ran(tmp_path):
    run(tmp_path, 4, make=lambda: regression(every=2))
    assert [row["step"] for row in lines(tmp_path)] == [1, 3]


def test_the_checkpoints_of_a_run(tmp_path):
    run(tmp_path, 7, checkpoint_every=2, checkpoints_limit=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-6", "checkpoint-7"]
    run(tmp_path / "b", 7, checkpoint_every=None)
    assert [p.name for p in (tmp_path / "b" / "checkpoints").iterdir()] == ["checkpoint-7"]


# ----------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup, total", [(0, 10), (4, 20), (1, 1), (30, 20)])
def test_learning_rate_closed_forms(name, warmup, total):
    rate = learning_rate_schedule(name, warmup, total)
    for step in range(total + 3):
        s = min(max(step - warmup, 0) / max(total - warmup, 1), 1)
        after = {"constant": 1.0, "linear": 1 - s, "cosine": math.cos(math.pi * s / 2) ** 2}[name]
        assert rate(step) == pytest.approx((step + 1) / warmup if step < warmup else after, abs=1e-12)


def test_learning_rate_is_a_function_of_the_step(tmp_path):
    schedule = learning_rate_schedule("cosine", 3, 9)
    make = lambda: regression(learning_rate=schedule)  # noqa: E731
    run(tmp_path / "whole", 9, make)
    part = part_of(tmp_path / "whole", 4, tmp_path / "part")
    run(part, 9, make)
    assert [row["net/lr"] for row in lines(tmp_path / "whole")] == [
        float(f"{0.05 * schedule(k):.6g}") for k in range(9)
    ]
    assert [row["net/lr"] for row in lines(part)] == [float(f"{0.05 * schedule(k):.6g}") for k in range(4, 9)]


def test_each_phase_has_a_schedule_of_its_own(tmp_path):
    run(tmp_path, 5, gan)
    schedule = learning_rate_schedule("cosine", 2, 12)
    assert [row["critic/lr"] for row in lines(tmp_path)] == [float(f"{0.01 * schedule(k):.6g}") for k in range(5)]
    assert [row["generator/lr"] for row in lines(tmp_path) if "generator/lr" in row] == [0.01] * 3


def test_an_unknown_schedule():
    with pytest.raises(UsageError, match=r'lr_scheduler must be one of .*; got "cosin"'):
        learning_rate_schedule("cosin", 0, 1)


# ------------------------------------------------------------------------------------------------------------- resume

N = 8


@pytest.fixture(scope="module", params=["regression", "gan"])
def whole(request, tmp_path_factory):
    """An undisturbed run with a checkpoint after each step; steps 4, 8 end in the middle of an epoch, 10 at its end."""
    folder = tmp_path_factory.mktemp("whole")
    make, data = {"regression": regression, "gan": gan}[request.param], Points()
    run(folder, N, make, data, batch_size=5 if request.param == "gan" else 3)
    return folder, make, data, 5 if request.param == "gan" else 3


def test_two_steps_differ(whole):
    folder = whole[0]
    weights = [json.dumps({k: hash(v) for k, v in held(folder, step).items()}) for step in range(1, N + 1)]
    assert len({*weights}) == N and all(len(held(folder, step)) >= 6 for step in (1, N))


@pytest.mark.parametrize("step", range(1, N))
def test_resumed_after_any_step_the_end_is_the_same(whole, tmp_path, step):
    folder, make, data, batch = whole
    part, rest = part_of(folder, step, tmp_path / "part"), Points()
    _, result = run(part, N, make, rest, batch_size=batch)
    assert held(part, N) == held(folder, N)
    assert result.status == "finished" and result.resumed_from.endswith(f"checkpoint-{step}")
    assert data.asked[: step * batch] + rest.asked == data.asked == list(range(N * batch))
    assert rest.rows == data.rows[step * batch :]
    assert result.progress.restarts == 1


def test_each_epoch_shows_every_point_once_in_its_own_order(whole):
    rows = whole[2].rows
    epochs = [rows[k : k + 10] for k in range(0, len(rows) - 9, 10)]
    assert len(epochs) >= 2 and all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({*map(tuple, epochs)}) == len(epochs)


def test_resumed_three_times_in_a_row(whole, tmp_path):
    folder, make, data, batch = whole
    asked = []
    for at in (3, 2, 3):
        points = Points()
        with pytest.raises(Killed):
            run(tmp_path, N, data=points, phases=killer(make(), at), batch_size=batch)
        asked += points.asked[:-batch]  # the step that was killed is done again
    points = Points()
    _, result = run(tmp_path, N, make, points, batch_size=batch)
    assert held(tmp_path, N) == held(folder, N) and result.progress.restarts == 3
    assert asked + points.asked == data.asked
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, N + 1))
    volatile = ("seconds", "images_per_second")
    assert [{k: v for k, v in row.items() if k not in volatile} for row in lines(tmp_path)] == [
        {k: v for k, v in row.items() if k not in volatile} for row in lines(folder)
    ]


def test_resumed_in_the_middle_of_an_interval_of_checkpoints(whole, tmp_path):
    folder, make, _, batch = whole
    with pytest.raises(Killed):
        run(tmp_path, N, phases=killer(make(), 6), batch_size=batch, checkpoint_every=3)
    run(tmp_path, N, make, batch_size=batch, checkpoint_every=3)
    assert held(tmp_path, N) == held(folder, N)
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, N + 1))


def test_another_seed_is_another_run(tmp_path):
    run(tmp_path / "a", 2), run(tmp_path / "b", 2, seed=1)
    assert held(tmp_path / "a", 2) != held(tmp_path / "b", 2)


def test_a_checkpoint_can_be_named_and_is_not_rotated(whole, tmp_path):
    folder, make, _, batch = whole
    part = part_of(folder, 2, tmp_path / "part")
    run(part, N, make, batch_size=batch, resume=str(part / "checkpoints" / "checkpoint-2"), checkpoints_limit=2)
    assert held(part, N) == held(folder, N)
    assert sorted(p.name[-1] for p in (part / "checkpoints").iterdir()) == ["2", "7", "8"]


def test_a_finished_run_has_nothing_to_do(whole, tmp_path):
    folder, make, _, batch = whole
    points = Points()
    part = part_of(folder, N, tmp_path / "part")
    _, result = run(part, N, make, points, batch_size=batch)
    assert result.status == "nothing to do" and not points.asked and result.progress.step == N


def test_a_run_can_be_made_longer(tmp_path):
    run(tmp_path / "a", 5), run(tmp_path / "b", 3)
    run(tmp_path / "b", 5)
    assert held(tmp_path / "a", 5) == held(tmp_path / "b", 5)


def test_memory_format_does_not_change_the_end(tmp_path):
    def make():
        torch.manual_seed(0)
        net = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        images = torch.randn(3, 2, 6, 6).to(memory_format=torch.channels_last)
        return [
            Phase("net", lambda b, d: {"loss": net(images).square().mean()}, net, torch.optim.Adam(net.parameters()))
        ]

    run(tmp_path / "a", 4, make)
    phases, _ = run(part_of(tmp_path / "a", 2, tmp_path / "b"), 4, make)
    assert held(tmp_path / "a", 4) == held(tmp_path / "b", 4)
    moments = phases[0].optimizer.state[phases[0].trains.weight]["exp_avg"]
    assert moments.stride() == phases[0].trains.weight.stride()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
        lambda p: torch.optim.NAdam(p, lr=0.01),
        lambda p: torch.optim.Adafactor(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.Rprop(p, lr=0.01),
    ],
)
def test_optimizers_of_torch_go_on_to_the_last_bit(tmp_path, optimizer):
    def make():
        phases = regression()
        phases[0].optimizer = optimizer(phases[0].trains.parameters())
        return phases

    run(tmp_path / "a", 4, make)
    run(part_of(tmp_path / "a", 2, tmp_path / "b"), 4, make)
    assert held(tmp_path / "a", 4) == held(tmp_path / "b", 4)


# --------------------------------------------------------------------------- everything stateful is in a checkpoint


@pytest.mark.parametrize("make", [regression, gan])
def test_nothing_stateful_is_missing_from_a_checkpoint(tmp_path, make):
    first, one = run(tmp_path / "a", 4, make)
    second, two = run(tmp_path / "a", 4, make)  # everything new, filled from the checkpoint alone
    assert two.status == "nothing to do"
    two.progress.restarts = 0
    assert differences([first, one.progress], [second, two.progress]) == []
    assert differences(first, make()) != []


def test_that_test_sees_a_counter_that_is_not_saved(tmp_path):
    class Forgetful(EMA):
        updates = 0

        def update(self, module):
            super().update(module)
            self.updates += 1

    def make():
        phases = regression()
        phases[0].ema = Forgetful(phases[0].trains, 0.9)
        phases[0].ema.updates = 0
        return phases

    first, _ = run(tmp_path, 3, make)
    second, _ = run(tmp_path, 3, make)
    assert differences(first, second) == ["run.0.ema.updates"]


def test_the_manifest_holds_all_of_progress(tmp_path):
    _, result = run(tmp_path, 2)
    manifest = load_checkpoint(tmp_path / "checkpoints" / "checkpoint-2")[1]
    assert set(manifest["progress"]) == {f.name for f in fields(Progress)}
    assert Progress(**manifest["progress"]) == result.progress
    assert manifest["world_size"] == 1 and set(manifest["versions"]) >= {"latentia", "torch", "diffusers", "accelerate"}
    # A new field of a phase is either state, and then must be saved, or not, and then is named here.
    constant = {"name", "loss", "learning_rate", "every", "after", "max_grad_norm"}
    assert {f.name for f in fields(Phase)} == constant | {"trains", "optimizer", "ema"}


# ------------------------------------------------------------------------------------------------- what does not fit


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    run(tmp_path, 2, config={"width": 3, "betas": (0.9, 0.99), "same": 1})
    before = held(tmp_path, 2)
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, 4, config={"width": 4, "betas": (0.9, 0.99), "same": 1}, seed=5)
    rows = re.findall(r"^  (\w+): (.*)$", str(caught.value), re.MULTILINE)
    assert rows == [("seed", "0 in the checkpoint, 5 now"), ("width", "3 in the checkpoint, 4 now")]
    assert held(tmp_path, 2) == before
    run(tmp_path, 4, config={"width": 3, "betas": [0.9, 0.99], "same": 1})


def test_another_data_set_or_batch_is_refused(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(CheckpointError, match="data: points in the checkpoint, others now"):
        run(tmp_path, 4, data=Points(fingerprint="others"))
    with pytest.raises(CheckpointError, match="global_batch: 3 in the checkpoint, 4 now"):
        run(tmp_path, 4, batch_size=4)
    run(tmp_path, 4, batch_size=1, accumulate=3)  # the same global batch in other pieces


def test_another_structure_is_refused(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"holds \['net.ema', 'net.model', 'net.optimizer'\], but this run needs"):
        run(tmp_path, 4, gan)

    def wider():
        net = linear(1, 2, 3)
        return [Phase("net", lambda b, d: {}, net, torch.optim.AdamW(net.parameters()), ema=EMA(net))]

    with pytest.raises(CheckpointError, match=r"net\.model does not fit this run"):
        run(tmp_path, 4, wider)


def test_arguments_are_written_only_when_the_run_may_start(tmp_path):
    run(tmp_path, 2, arguments={"a": 1})
    with pytest.raises(CheckpointError):
        run(tmp_path, 4, arguments={"a": 2}, seed=1)
    assert json.loads((tmp_path / "training_config.json").read_text()) == {"a": 1}


# ---------------------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path, value, at, accumulate):
    phases = regression(dropout=0)
    real, steps = phases[0].loss, []

    def loss(batch, rng):
        steps.append(rng.position)
        factor = value if len(steps) == at * accumulate else 1.0  # in the last micro-batch
        return {"loss": real(batch, rng)["loss"] * factor}

    phases[0].loss = loss
    with pytest.raises(NumericsError, match=rf'loss of phase "net" is not finite at step {at} ') as caught:
        run(tmp_path, 6, phases=phases, batch_size=6 // accumulate, accumulate=accumulate)
    assert caught.value.exit_code == 3
    done = at - 1
    assert int(phases[0].ema.steps) == done
    if done:
        twin, _ = run(tmp_path / "twin", done, make=lambda: regression(dropout=0), batch_size=6)
        for a, b in zip(phases[0].trains.parameters(), twin[0].trains.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert max(int(p.name[11:]) for p in (tmp_path / "checkpoints").iterdir()) == done
    else:
        assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_it_does_harm(tmp_path, limit):
    net = linear(1)
    before = [p.detach().clone() for p in net.parameters()]

    def loss(batch, rng):
        return {"loss": (net(batch["x"]) * 0).abs().sum().sqrt()}  # 0, with an infinite slope

    phase = Phase("net", loss, net, torch.optim.SGD(net.parameters(), lr=0.1), max_grad_norm=limit, ema=EMA(net))
    with pytest.raises(NumericsError, match='gradient of phase "net" is not finite at step 1'):
        run(tmp_path, 2, phases=[phase])
    assert all((a == b).all() for a, b in zip(before, net.parameters())) and int(phase.ema.steps) == 0


def bad_at(phases: list[Phase], *positions: int, name: str | None = None) -> list[Phase]:
    """The loss of a phase (the last that learns, or `name`) is not a number where these images are seen."""
    phase = next(p for p in reversed(phases) if (p.name == name if name else p.optimizer is not None))
    real = phase.loss

    def loss(batch, rng):
        values = real(batch, rng)
        return {**values, "loss": values["loss"] * (math.nan if rng.position in positions else 1.0)}

    phase.loss = loss
    return phases


class Without(Points):
    """The same points without the images at [start, start + count) of the stream."""

    def __init__(self, start: int, count: int):
        super().__init__()
        self.start, self.count = start, count

    def batch(self, start, stop, **options):
        past = self.count if start >= self.start else 0
        return super().batch(start + past, stop + past, **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_is_as_if_its_batch_were_not_there(tmp_path, accumulate):
    make = lambda: regression(noise=0, dropout=0, learning_rate=learning_rate_schedule("cosine", 2, 6))  # noqa: E731
    options = {"batch_size": 6 // accumulate, "accumulate": accumulate}
    phases, result = run(tmp_path / "a", 6, phases=bad_at(make(), 12), max_skips=1, **options)
    assert (result.progress.step, result.progress.images, result.progress.skipped) == (6, 42, 1)
    twin, _ = run(tmp_path / "b", 6, make, Without(12, 6), **options)
    assert differences(phases, twin) == []
    assert int(phases[0].ema.steps) == 6
    told = [(row["step"], row["images"], row.get("skipped")) for row in lines(tmp_path / "a")]
    assert told[1:5] == [(2, 12, None), (2, 18, 1), (3, 24, None), (4, 30, None)]
    rates = [[row["net/lr"] for row in lines(folder) if "net/lr" in row] for folder in (tmp_path / "a", tmp_path / "b")]
    assert rates[0] == rates[1]


def test_buffers_and_other_networks_survive_a_skipped_step(tmp_path):
    def make():
        phases = gan()
        real, d = phases[0].loss, phases[0].trains
        shown = lambda batch: {**batch, "y": batch["y"] * math.nan}  # noqa: E731
        phases[0].loss = lambda batch, rng: real(shown(batch) if rng.position == 10 else batch, rng)
        return phases, d

    phases, critic = make()
    _, result = run(tmp_path, 6, phases=phases, batch_size=5, max_skips=1)
    assert result.progress.skipped == 1
    assert all(bool(value.isfinite().all()) for value in critic.state_dict().values())
    moments = [value for phase in phases[:3] for state in phase.optimizer.state.values() for value in state.values()]
    assert all(bool(torch.as_tensor(value).isfinite().all()) for value in moments)


@pytest.mark.parametrize("step", range(6))
def test_resumed_around_a_skipped_step_the_end_is_the_same(tmp_path, step):
    make = lambda: bad_at(gan(), 0, 15, 20, name="critic")  # noqa: E731
    options = {"batch_size": 5, "max_skips": 3}
    _, result = run(tmp_path / "whole", 6, phases=make(), **options)
    assert result.progress.skipped == 3
    with pytest.raises(Killed):
        run(tmp_path / "part", 6, phases=killer(make(), step + 3), **options)
    _, result = run(tmp_path / "part", 6, phases=make(), **options)
    assert held(tmp_path / "part", 6) == held(tmp_path / "whole", 6) and result.progress.skipped == 3
    logged = [[(row["images"], row.get("skipped")) for row in lines(tmp_path / name)] for name in ("whole", "part")]
    assert logged[0] == logged[1]


def test_asked_to_stop_while_a_step_is_passed_over(tmp_path):
    run(tmp_path / "whole", 4, phases=bad_at(regression(), 6), max_skips=1)
    phases = signalled(bad_at(regression(), 6), 3, signal.SIGTERM)
    _, result = run(tmp_path / "part", 4, phases=phases, max_skips=1, checkpoint_every=None)
    assert (result.status, result.progress.step, result.progress.skipped) == ("interrupted", 2, 1)
    run(tmp_path / "part", 4, phases=bad_at(regression(), 6), max_skips=1)
    assert held(tmp_path / "part", 4) == held(tmp_path / "whole", 4)


def test_more_than_so_many_steps_are_not_passed_over(tmp_path):
    phases = bad_at(regression(), 6, 12, 15)
    with pytest.raises(
        NumericsError, match=r"not finite at step 4 \(15 images\).* 2 steps were skipped before"
    ) as caught:
        run(tmp_path, 6, phases=phases, max_skips=2)
    assert caught.value.exit_code == 3 and int(phases[0].ema.steps) == 3
    assert max(int(p.name[11:]) for p in (tmp_path / "checkpoints").iterdir()) == 3
    _, result = run(tmp_path, 6, phases=bad_at(regression(), 6, 12, 15), max_skips=3)  # allowed now
    assert (result.progress.step, result.progress.skipped) == (6, 3)


def test_a_gradient_that_is_not_finite_is_passed_over_too(tmp_path):
    net = linear(1)

    def loss(batch, rng):
        steep = (net(batch["x"]) * 0).abs().sum().sqrt() if rng.position == 3 else 0.0  # 0, with an infinite slope
        return {"loss": (net(batch["x"]) - batch["y"]).square().mean() + steep}

    phase = Phase("net", loss, net, torch.optim.SGD(net.parameters(), lr=0.1), max_grad_norm=1.0)
    _, result = run(tmp_path, 3, phases=[phase], max_skips=1)
    assert result.progress.skipped == 1 and all(bool(p.isfinite().all()) for p in net.parameters())


def half_precision(phases: list[Phase], scale: float) -> tuple[Accelerator, list[Phase]]:
    """The arithmetic of fp16 training on a CPU: a real loss scaler around networks in single precision."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    for phase in phases:
        phase.trains.float()
        if phase.ema is not None:
            phase.ema.module.float()
        if phase.optimizer is not None:
            phase.optimizer = AcceleratedOptimizer(phase.optimizer, scaler=accelerator.scaler)
            accelerator._optimizers.append(phase.optimizer)
    return accelerator, phases


class SinglePoints(Points):
    def batch(self, *args, **options):
        return {key: value.float() for key, value in super().batch(*args, **options).items()}


def single_gan() -> list[Phase]:
    torch.manual_seed(0)
    g, d = nn.Linear(2, 2), nn.Linear(2, 1)
    z = lambda rng, name: rng.normal(name, (2,))  # noqa: E731
    return [
        Phase(
            "d",
            lambda b, rng: {"loss": (d(g(z(rng, "a")).detach()) - d(b["y"])).mean()},
            d,
            torch.optim.Adam(d.parameters(), lr=0.01),
            every=2,
        ),
        Phase(
            "g",
            lambda b, rng: {"loss": -d(g(z(rng, "b"))).mean()},
            g,
            torch.optim.Adam(g.parameters(), lr=0.01),
            ema=EMA(g, 0.9),
        ),
    ]


def test_an_overflow_lowers_the_scale_and_nothing_else(tmp_path):
    accelerator, phases = half_precision(single_gan(), 2.0**128 * 0.99)
    options = {"batch_size": 3, "log_every": 1, "checkpoint_every": None}
    (tmp_path / "a").mkdir()
    start = accelerator.scaler.get_scale()
    train(accelerator, phases, SinglePoints(), output_dir=tmp_path / "a", max_steps=5, **options)
    assert accelerator.scaler.get_scale() < start
    for phase, steps in zip(phases, (3, 5)):
        assert {int(s["step"]) for s in phase.optimizer.state.values()} == {steps}  # each phase once in each due step
    assert int(phases[1].ema.steps) == 5
    twin, _ = run(tmp_path / "b", 5, phases=single_gan(), data=SinglePoints(), checkpoint_every=None)
    for phase, other in zip(phases, twin):
        for p, q in zip(phase.trains.parameters(), other.trains.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert "scaler.json" in held(tmp_path / "a", 5)
    later, again = half_precision(single_gan(), 1.0)
    train(later, again, SinglePoints(), output_dir=tmp_path / "a", max_steps=5, **options)
    assert later.scaler.get_scale() == accelerator.scaler.get_scale() != 1.0


def test_fp16_with_two_optimizers_over_one_network(tmp_path):
    """Each phase divides its gradient by the scale once, though the other optimizer has the same parameters."""

    def make():
        torch.manual_seed(0)
        net = nn.Linear(2, 2)

        def loss(batch, rng):
            return {"loss": (net(batch["x"]) - batch["y"]).square().mean()}

        options = [{"max_grad_norm": 1.0}, {"every": 2}]
        return [Phase(f"{k}", loss, net, torch.optim.SGD(net.parameters(), 0.1), **o) for k, o in enumerate(options)]

    accelerator, phases = half_precision(make(), 2.0**16)
    train(accelerator, phases, SinglePoints(), output_dir=tmp_path / "a", max_steps=4, batch_size=3)
    twin, _ = run(tmp_path / "b", 4, phases=make(), data=SinglePoints())
    for p, q in zip(phases[0].trains.parameters(), twin[0].trains.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_an_overflow_at_any_scale_is_skipped_and_scale_restored(tmp_path):
    net = nn.Linear(2, 2)

    def loss(batch, rng):
        steep = (net(batch["x"]) * 0).abs().sum().sqrt() if rng.position == 2 else 0.0
        return {"loss": (net(batch["x"]) - batch["y"]).square().mean() + steep}

    accelerator, phases = half_precision([Phase("net", loss, net, torch.optim.SGD(net.parameters(), lr=0.1))], 2.0**16)
    data, options = SinglePoints(), {"output_dir": tmp_path, "max_steps": 3, "batch_size": 2}
    result = train(accelerator, phases, data, max_skips=1, **options)
    assert result.progress.skipped == 1 and accelerator.scaler.get_scale() == 2.0**16


@pytest.mark.timeout(60)
def test_a_gradient_that_overflows_at_any_scale_ends(tmp_path):
    net = nn.Linear(2, 1)

    def loss(batch, rng):
        return {"loss": (net(batch["x"]) * 0).abs().sum().sqrt()}

    accelerator, phases = half_precision([Phase("net", loss, net, torch.optim.SGD(net.parameters(), lr=0.1))], 2.0**16)
    with pytest.raises(NumericsError, match='gradient of phase "net" overflows at step 1'):
        train(accelerator, phases, SinglePoints(), output_dir=tmp_path, max_steps=2, batch_size=2)


# ----------------------------------------------------------------------------------------------- metrics and signals


@pytest.mark.parametrize("tail", ['{"step": 9, "ima', "", "\x00\x00\x00", "7", '{"other": 1}', "null"])
def test_the_metrics_survive_half_a_line(tmp_path, tail):
    run(tmp_path, 3)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(tail)
    run(tmp_path, 5)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_starting_anew_drops_the_old_metrics(tmp_path):
    run(tmp_path, 3)
    run(tmp_path, 2, resume="none")
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def signalled(phases: list[Phase], at: int, *numbers: int) -> list[Phase]:
    real, calls = phases[0].loss, []

    def loss(batch, rng):
        calls.append(1)
        if len(calls) == at:
            for number in numbers:
                os.kill(os.getpid(), number)
        return real(batch, rng)

    phases[0].loss = loss
    return phases


@pytest.fixture
def hangup():
    """SIGHUP as in a terminal: a run leaves it ignored where it was, as under `nohup`."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_with_a_checkpoint(whole, tmp_path, number, hangup):
    folder, make, _, batch = whole
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)]
    _, result = run(tmp_path, N, phases=signalled(make(), 4, number), batch_size=batch, checkpoint_every=None)
    assert result.status == "interrupted" and result.progress.step == 4
    assert held(tmp_path, 4) == held(folder, 4)
    _, result = run(tmp_path, N, make, batch_size=batch, checkpoint_every=None)
    assert result.status == "finished" and held(tmp_path, N) == held(folder, N)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)]


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, result = run(tmp_path, 3, phases=signalled(regression(), 2, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.status == "finished"


def test_a_closed_pipe_does_not_end_a_run(tmp_path, monkeypatch):
    """As by `| head`, or of a terminal that is gone: what nobody reads is dropped."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        hook = Hook(1, lambda progress: print("a line"))
        _, result = run(tmp_path, 3, phases=regression(), hooks=[hook])
        assert sys.stdout is closed
    assert result.status == "finished" and held(tmp_path, 3)


def test_a_full_disk_under_its_log_does_not_end_a_run(tmp_path, monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        _, result = run(tmp_path, 3, phases=regression(), hooks=[Hook(1, lambda progress: print("a line"))])
        assert sys.stdout is full
    assert result.status == "finished" and held(tmp_path, 3)  # and nothing is left that fails when Python ends


def test_a_link_put_under_a_running_run_is_not_followed(tmp_path):
    """Nothing is written or deleted through `checkpoints` if others replace it by a link meanwhile."""
    folder, other = tmp_path / "run", tmp_path / "other"
    run(other, 2, checkpoint_every=1)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}

    def swap(progress):
        (folder / "checkpoints").rename(tmp_path / "moved")
        (folder / "checkpoints").symlink_to(other / "checkpoints")

    with pytest.raises(CheckpointError, match="symbolic link"):
        run(folder, 6, hooks=[Hook(2, swap)], checkpoint_every=1, checkpoints_limit=2)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_a_signal_in_the_last_step_leaves_scoring_for_later(tmp_path):
    called = []
    hook = Hook(0, lambda progress: called.append(1))
    _, result = run(tmp_path, 3, phases=signalled(regression(), 3, signal.SIGTERM), hooks=[hook])
    assert result.status == "interrupted" and "net.model.json" in held(tmp_path, 3) and not called
    assert run(tmp_path, 3)[1].status == "nothing to do"


def test_a_signal_amid_sampling_ends_it_at_the_next_forward_pass(whole, tmp_path):
    """Whatever a hook computes with: here a network of its own, in a loop that would never end."""
    folder, make, _, batch = whole
    network, passes = nn.Linear(1, 1), []

    def sample(progress):
        while True:
            passes.append(1)
            if len(passes) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                network(torch.zeros(1))
            except Exception:  # what a sampler may do
                pytest.fail("the loop could be kept from stopping")

    _, result = run(tmp_path, N, make, batch_size=batch, hooks=[Hook(2, sample)], checkpoint_every=None)
    assert (result.status, result.progress.step, len(passes)) == ("interrupted", 2, 3)
    assert held(tmp_path, 2) == held(folder, 2)
    network(torch.zeros(1))  # nothing is left behind in torch
    run(tmp_path, N, make, batch_size=batch)
    assert held(tmp_path, N) == held(folder, N)


def test_the_second_ctrl_c_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 6, phases=signalled(regression(), 3, signal.SIGINT, signal.SIGINT))
    _, result = run(tmp_path, 6)
    run(tmp_path / "whole", 6)
    assert result.resumed_from.endswith("checkpoint-2") and held(tmp_path, 6) == held(tmp_path / "whole", 6)


# -------------------------------------------------------------------------------------------------------- one at a time


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    def second(progress):
        with pytest.raises(UsageError, match="is in use by another run"):
            run(tmp_path, 2)
        return {"refused": 1}

    run(tmp_path, 2, hooks=[Hook(1, second)])
    assert lines(tmp_path)[-1]["refused"] == 1
    _, result = run(tmp_path, 3)  # the lock is free again
    assert result.status == "finished"


def test_the_refusal_says_whose_the_folder_is(tmp_path):
    def second(progress):
        with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* since 2\d\d\d-.* UTC"):
            run(tmp_path, 2)

    run(tmp_path, 1, hooks=[Hook(1, second)])


def test_a_lock_file_that_a_killed_run_left_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("12345")
    assert run(tmp_path, 2)[1].status == "finished"


# --------------------------------------------------------------------------------------------------- it knows no family


def test_the_training_room_names_no_family():
    words = {"diffusion", "unet", "gan", "vae", "autoencoder", "flow", "ddpm", "ddim", "generator", "discriminator",
             "critic", "teacher", "student", "codebook", "noise", "timestep", "image_size", "latent"}  # fmt: skip
    for path in Path(inspect.getfile(loop)).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""  # what a docstring gives as an example is not code
        code = re.sub(r"latentia|diffusers", "", ast.unparse(tree))
        found = {word for word in re.findall(r"[a-z]+", code.lower())} & words
        assert not found, f"{path.name} speaks of {found}"
