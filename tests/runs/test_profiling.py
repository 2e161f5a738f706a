"""`--profile`: the trace, the table, and what bounds a run."""

import json
import time

import pytest
import torch
from accelerate import Accelerator
from children import ended, example
from families import DIGITS
from helpers import Points, regression

from latentia.runs.profiling import STEPS, WARM_UP, Operator, ProfiledData, bound, report
from latentia.training.loop import train

CONV, ADD = "aten::mkldnn_convolution", "aten::add_"


@pytest.mark.parametrize(
    ("data", "operators", "on_device", "word", "busy"),
    [
        (0.0, [(CONV, 100, 0.6), (ADD, 100, 0.3)], False, "arithmetic", 0.9),
        (0.0, [(CONV, 100, 0.3), (ADD, 100, 0.6)], False, "memory", 0.9),
        (0.4, [(CONV, 100, 0.5)], False, "input", 0.5),
        (0.1, [(CONV, 100, 0.3)], False, "launches", 0.3),  # the rest is Python
        (0.0, [(CONV, 200_000, 0.9)], False, "launches", 0.9),  # less than 10 us each
        (0.0, [("sm80_xmma_fprop_implicit_gemm", 10, 0.5), ("elementwise_kernel", 10, 0.4)], True, "arithmetic", 0.9),
        (0.0, [("sm80_xmma_fprop_implicit_gemm", 10, 0.2), ("elementwise_kernel", 10, 0.6)], True, "memory", 0.8),
        (0.1, [("flash_fwd_kernel", 10, 0.35)], True, "launches", 0.35),
        (0.5, [("flash_fwd_kernel", 10, 0.35)], True, "input", 0.35),
        (0.5, [("flash_fwd_kernel", 10, 0.95)], True, "arithmetic", 0.95),  # data are made meanwhile
    ],
)
def test_what_bounds_a_run(data, operators, on_device, word, busy):
    found, share = bound(1.0, data, [Operator(*operator) for operator in operators], on_device)
    assert (found, round(share, 6)) == (word, busy)


def test_the_table_has_the_ten_largest():
    operators = [Operator(f"aten::op{i}", 5 * i, i / 100) for i in range(1, 13)]
    first, advice, _, head, *rows = report(1.0, 0.1, operators, False, torch.device("cpu")).splitlines()
    assert "200.0 ms on cpu: 78% in operators, 10% for data" in first and first.endswith("It is bound by memory.")
    assert "compile" in advice and "ms/step" in head
    assert [row.split()[-1] for row in rows] == [f"aten::op{i}" for i in range(12, 2, -1)]
    assert rows[0].split() == ["12.0%", "24.000", "12.0", "aten::op12"]


class Slow(Points):
    def batch(self, *arguments, **options):
        time.sleep(0.02)
        return super().batch(*arguments, **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_bound_by_its_data_is_called_so(tmp_path, accumulate):
    said = []
    data = ProfiledData(Slow(), accumulate, tmp_path / "profile", torch.device("cpu"), said.append)
    options = {"batch_size": 2, "accumulate": accumulate, "checkpoint_every": None}
    steps = WARM_UP + STEPS + 1
    train(Accelerator(cpu=True), regression(), data, output_dir=tmp_path, max_steps=steps, **options)
    data.close()
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert len(said) == 1 and "bound by input" in said[0] and "bound by input" in table and "aten::" in table
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "latentia: data" and event["ph"] == "X" for event in events) == STEPS * accumulate


def test_a_run_that_is_too_short_says_so(tmp_path):
    said = []
    data = ProfiledData(Points(), 1, tmp_path / "profile", torch.device("cpu"), said.append)
    train(Accelerator(cpu=True), regression(), data, output_dir=tmp_path, max_steps=7, batch_size=2)
    data.close()
    assert said == ["--profile needs at least 11 steps, and this start had fewer: no profile."]
    assert not (tmp_path / "profile").exists()


@pytest.mark.fault
def test_a_script_profiles_itself_and_ends_the_same(start, tmp_path):
    flags = [*DIGITS, "--latent_dim", "2", "--hidden_sizes", "8", "--train_batch_size", "8", "--max_train_steps", "11"]
    weights = []
    for name, more in (("a", ["--profile"]), ("b", [])):
        code, text = ended(start(example, "train_vae.py", [*flags, *more, "--output_dir", str(tmp_path / name)]))
        assert code == 0 and ("It is bound by" in text) == bool(more), text
        weights.append((tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert sorted(path.name for path in (tmp_path / "a" / "profile").iterdir()) == ["operators.txt", "trace.json"]
    again = [*flags, "--profile", "--overwrite_output_dir", "--output_dir", str(tmp_path / "a")]
    assert ended(start(example, "train_vae.py", again))[0] == 0
