"""`--compile`: what is compiled, how often, and what is said where it cannot be."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from children import ended, enter, run_example
from families import DIGITS

from latentia import UNet2D
from latentia.errors import UsageError
from latentia.runs.compilation import can_compile, compile_network, fast_layout, uncompiled
from latentia.runs.start import _check_bfloat16


def args(compiled=True):
    return SimpleNamespace(optimization=SimpleNamespace(compile=compiled))


def counted(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    """Traced as by torch.compile, without generated code; prints how many graphs there were at each step's end."""
    enter(log, env)
    from torch._dynamo.utils import counters

    from latentia.training.phases import Steps

    compile_module, run = torch.nn.Module.compile, Steps.run
    torch.nn.Module.compile = lambda self, **options: compile_module(self, **options | {"backend": "eager"})
    graphs = []

    def counting(self, *arguments):
        metrics = run(self, *arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        return metrics

    Steps.run = counting
    try:
        run_example(script, argv)
    finally:
        print("graphs", *graphs, counters["stats"]["unique_graphs"])


@pytest.mark.fault
def test_nothing_is_compiled_after_the_first_step(start, tmp_path):
    """With samples and scores on the way, of other sizes and with guidance, and at the end."""
    flags = ["--block_out_channels", "8", "--layers_per_block", "1", "--attention_head_dim", "8", "--class_conditional"]
    flags += ["--num_inference_steps", "1", "--train_batch_size", "8", "--max_train_steps", "3", "--compile"]
    flags += ["--validation_steps", "1"]
    flags += ["--output_dir", str(tmp_path / "run")]
    code, text = ended(start(counted, "train_ddpm.py", [*DIGITS, *flags]))
    assert code == 0, text
    graphs = [int(word) for word in text.rpartition("graphs ")[2].split()]
    assert len(graphs) == 4 and len({*graphs}) == 1 and graphs[0] >= 2, text


def test_samples_run_as_they_are():
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    layer, calls = Doubled(), []

    def backend(graph, inputs):
        calls.append(inputs)
        return graph

    layer.compile(backend=backend, dynamic=False)
    layer(torch.ones(3, 2))
    with uncompiled(True), torch.no_grad():
        layer(torch.ones(5, 2))
    assert len(calls) == 1
    with uncompiled(False), torch.no_grad():
        layer(torch.ones(5, 2))
    assert len(calls) == 2


def test_blocks_are_compiled_one_by_one(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    compile_network(UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8))
    compile_network(torch.nn.Linear(2, 2))
    assert compiled == 6 * ["UNetBlock"] + ["Linear"]


@pytest.mark.parametrize(("device", "variable", "word"), [("cpu", "CXX", "C++"), ("cuda", "CC", "C")])
def test_without_a_compiler_it_is_said(monkeypatch, device, variable, word):
    said = []
    accelerator = SimpleNamespace(device=torch.device(device), print=said.append)
    monkeypatch.delenv(variable, raising=False)
    assert can_compile(args(), accelerator) and can_compile(args(False), accelerator) is False and not said
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert can_compile(args(), accelerator) is False
    assert f"needs a {word} compiler" in said[0] and f"variable {variable}" in said[0]
    assert can_compile(args(False), accelerator) is False and len(said) == 1
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "/opt/compiler" else None)
    monkeypatch.setenv(variable, "/opt/compiler")
    assert can_compile(args(), accelerator)


def test_a_gpu_without_bfloat16_is_named(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UsageError, match=r"mixed_precision bf16 needs a GPU with bfloat16.*got Tesla T4\. Use fp16"):
        _check_bfloat16("bf16")
    _check_bfloat16("fp16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _check_bfloat16("bf16")


@pytest.mark.parametrize(
    ("device", "compiled", "last"), [("cpu", False, True), ("cuda", False, False), ("cuda", True, True)]
)
def test_channels_last_where_it_is_faster(device, compiled, last):
    network = fast_layout(torch.nn.Conv2d(4, 4, 3), args(compiled), torch.device(device))
    assert network.weight.is_contiguous(memory_format=torch.channels_last) is last
    assert network.weight.is_contiguous() is not last
