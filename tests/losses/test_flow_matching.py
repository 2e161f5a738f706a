"""The coupling of noise and images in flow matching: optimal, within blocks, and never of labels."""

import itertools
import re

import pytest
import torch
from helpers import load_example, seeded

from latentia.errors import UsageError
from latentia.functional.transport import optimal_assignment
from latentia.losses.flow_matching import flow_matching_loss
from latentia.rng import Rng
from latentia.runs.command_line import run_script

X = torch.randn(24, 1, 2, 2, generator=seeded(0))
LABELS = torch.arange(24) % 5


class Recorder:
    """A network that predicts 0 and keeps what it was asked."""

    config = type("Config", (), {"num_class_embeds": 5})()

    def __call__(self, x, t, class_labels):
        self.x, self.t, self.labels = x, t, class_labels
        return type("Output", (), {"sample": torch.zeros_like(x)})()


def asked(start=0, count=24, position=0, batch=None, **options):
    """Noise, times and labels that the network saw of a part of a step of 24."""
    network, rows = Recorder(), slice(start, start + count)
    batch = batch or {"x": X[rows], "labels": LABELS[rows]}
    found = flow_matching_loss(network, batch, Rng(0, position, 24, start, count), class_dropout=0.0, **options)
    t = (network.t / 1000).view(-1, 1, 1, 1)
    noise = (network.x - (1 - t) * X[rows]) / t
    torch.testing.assert_close(found["loss"], (noise - X[rows]).square().mean(), atol=1e-4, rtol=1e-4)
    return noise, network.t, network.labels


def test_the_assignment_is_the_best_of_all_permutations():
    x, y = torch.randn(2, 6, 3, generator=seeded(1))
    costs = {p: float((x - y[list(p)]).square().sum()) for p in itertools.permutations(range(6))}
    assert tuple(optimal_assignment(x, y).tolist()) == min(costs, key=costs.get)
    with pytest.raises(UsageError, match=r"x and y must have one shape \(n, ...\); got \(6, 3\) and \(5, 3\)"):
        optimal_assignment(x, y[:5])


@pytest.mark.parametrize("size", [1, 4, 8, 24])
def test_noise_is_permuted_within_blocks_and_nothing_else_is(size):
    independent, coupled = asked(), asked(coupling_size=size)
    assert torch.equal(coupled[1], independent[1])  # times
    assert torch.equal(coupled[2], LABELS) and torch.equal(independent[2], LABELS)
    for block in torch.arange(24).split(size):
        place = optimal_assignment(X[block], independent[0][block])
        torch.testing.assert_close(coupled[0][block], independent[0][block][place], atol=1e-3, rtol=1e-3)
    cost = [float((noise - X).square().sum()) for noise, *_ in (coupled, independent)]
    assert cost[0] < cost[1] - 1 or size == 1


def test_the_coupling_ignores_how_a_step_is_split():
    whole = asked(coupling_size=4)
    for parts in ((8, 16), (4, 20), (12, 12), (4, 4, 16)):
        starts = [sum(parts[:k]) for k in range(len(parts))]
        found = [asked(start, count, coupling_size=4) for start, count in zip(starts, parts)]
        for expected, column in zip(whole, zip(*found)):
            torch.testing.assert_close(torch.cat(column), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(asked(position=24, coupling_size=4)[0], whole[0], atol=1e-2)


def test_a_source_takes_the_place_of_noise():
    source = 3 + torch.randn(24, 1, 2, 2, generator=seeded(2))
    found = asked(batch={"x": X, "labels": LABELS, "source": source})[0]
    torch.testing.assert_close(found, source, atol=1e-3, rtol=1e-3)
    coupled = asked(batch={"x": X, "labels": LABELS, "source": source}, coupling_size=24)[0]
    torch.testing.assert_close(coupled, source[optimal_assignment(X, source)], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: asked(coupling_size=5), "coupling_size must divide the micro-batch of 24, .*; got 5"),
        (lambda: asked(4, 8, coupling_size=8), "coupling_size must divide the micro-batch of 8, .*; got 8"),
        (lambda: asked(coupling_size=0), "coupling_size must be at least 1; got 0"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--coupling_size 8", "--coupling_size must be left out with --prediction_type v_prediction; got 8"),
        ("--coupling_size 5 --prediction_type flow", "--coupling_size must divide --train_batch_size 64, .*; got 5"),
        (
            "--learned_variance --prediction_type flow",
            "--learned_variance must be left out with --prediction_type flow",
        ),
        ("--loss_weighting min_snr --prediction_type flow", "--loss_weighting must be none"),
        ("--prediction_type flw", "--prediction_type must be one of"),
    ],
)
def test_the_script_refuses_what_would_be_ignored(flags, words, tmp_path, monkeypatch, capsys):
    script = load_example("train_ddpm")
    monkeypatch.setattr(
        "sys.argv", ["train_ddpm", "--dataset_name", "digits", "--output_dir", str(tmp_path), *flags.split()]
    )
    with pytest.raises(SystemExit) as ended:
        run_script(script.Arguments, script.main, "")
    assert ended.value.code == 2
    assert re.search(words, capsys.readouterr().err)
