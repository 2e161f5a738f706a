"""Averages of any length after training: closed forms, a run whose weights are all known, and the command."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import quiet
from torch import nn

from latentia import DiffusionPipeline
from latentia.commands.average import average
from latentia.commands.main import main
from latentia.errors import CheckpointError, UsageError
from latentia.training.averages import combine, power_exponent
from latentia.training.ema import EMA


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_weights_of_the_steps_have_the_length(length):
    """The standard deviation of a density (gamma + 1) tau^gamma on [0, 1]."""
    g = power_exponent(length)
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(length, rel=1e-9)


def test_the_warm_up_of_the_running_average_is_one_of_them():
    """Decays (1 + n) / (10 + n) give weights of the power 8: the last average is what is asked for."""
    found = combine([1000, 2000], 0.99999, True, math.sqrt(9 / (100 * 11)), 2000)
    assert found.shares == [0, 1] and found.difference < 0.01


@pytest.mark.parametrize(("decay", "length"), [(0.95, 0.05), (0.98, 0.1), (0.98, 0.15), (0.99, 0.2)])
def test_of_known_weights_it_is_their_power_average(decay, length):
    """A network whose single weight takes known values at 1000 steps, and its running averages at every 25th."""
    steps, net = 1000, nn.Linear(1, 1, bias=False)
    values = np.sin(np.arange(steps + 1) / 120) + 10 * np.arange(steps + 1) / steps
    net.weight.data.fill_(values[0])
    ema, ends, kept = EMA(net, decay), [], []
    for step in range(1, steps + 1):
        net.weight.data.fill_(values[step])
        ema.update(net)
        if step % 25 == 0:
            ends.append(step)
            kept.append(ema.module.weight.item())
    found = combine(ends, decay, True, length, steps)
    power = power_exponent(length) + 1
    wanted = np.diff((np.arange(steps + 1) / steps) ** power) @ values[1:]
    assert sum(found.shares) == pytest.approx(1, abs=1e-4) and min(found.shares) >= 0
    assert np.dot(found.shares, kept) == pytest.approx(wanted, abs=0.03)
    assert abs(kept[-1] - wanted) > 0.2  # the running average itself is another one


def test_lengths_that_cannot_be_made_are_refused():
    with pytest.raises(UsageError, match=r"length 0.02 cannot be made of 3 averages with ema_decay 0.998"):
        combine([1000, 1500, 2000], 0.998, True, 0.02, 2000)
    for length in (0, 0.5, math.nan):
        with pytest.raises(UsageError, match="length must"):
            combine([1000], 0.9, True, length, 1000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a VAE with a checkpoint at each tenth step."""
    folder = tmp_path_factory.mktemp("average") / "run"
    flags = "--max_train_steps 40 --checkpointing_steps 10 --checkpoints_total_limit 10 --eval_num_samples 0"
    sizes = "--hidden_sizes 16 --latent_dim 2 --train_batch_size 8 --ema_decay 0.8"
    with pytest.raises(SystemExit, match="0"):
        main(["train", "vae", "--dataset_name", "digits", "--output_dir", str(folder), *flags.split(), *sizes.split()])
    return folder


def test_a_run_gets_another_average_by_a_command(trained, tmp_path, capsys):
    out = tmp_path / "averaged"
    main(["average", str(trained), "--length", "0.15", "--output_dir", str(out)])
    assert "Average of vae of length 0.15 up to step 40, from 4 checkpoints" in capsys.readouterr().out
    about = json.loads((out / "average.json").read_text())
    assert [*about["shares"]] == ["10", "20", "30", "40"] and sum(about["shares"].values()) == pytest.approx(1)
    assert "library_name: latentia" in (out / "README.md").read_text()
    before, after = (quiet(DiffusionPipeline.from_pretrained(folder)).vae for folder in (trained, out))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))
    main(["evaluate", str(out), "--n", "40", "--metrics", "fd", "--output_dir", str(tmp_path / "e")])
    with pytest.raises(SystemExit):
        main(["average", str(trained), "--output_dir", str(out)])
    assert "output_dir must be empty" in capsys.readouterr().err
    main(["average", str(trained), "--length", "0.15", "--step", "20", "--output_dir", str(out), "--overwrite"])
    assert [*json.loads((out / "average.json").read_text())["shares"]] == ["10", "20"]


def test_what_a_run_does_not_hold_is_named(trained, tmp_path):
    with pytest.raises(UsageError, match=r"step must be that of a checkpoint of .*, 10, 20, 30, 40; got 7"):
        average(trained, step=7)
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        average(tmp_path)
    with pytest.raises(UsageError, match="length must"):
        average(trained, length=0.5)
