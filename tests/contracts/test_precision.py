"""Every kind of training in every precision, compiled, with less memory and in micro-batches: as in float32, eager.

Runs are compared by the losses in `metrics.jsonl` and by the weights of the last checkpoint. Differences of weights
are in units of how far the weights moved between the first checkpoint and the last, so they need no scale.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from children import ended, enter, example, run_example
from families import FAMILIES, MODES, STEPS, Family
from safetensors.torch import load_file

pytestmark = pytest.mark.fault
# Of weights and of losses. bf16 keeps 8 bits and fp16 11, of which a network of few layers loses some: measured were
# 0.09 and 0.009 at most in bf16 (autoencoder_kl, gan), 0.006 and 0.0005 in fp16, 2e-6 and 0 where only the order of
# additions differs. Recomputed activations are the same numbers.
TOLERANCES = {
    "bf16": (0.2, 0.02),
    "fp16": (0.02, 0.002),
    "compile": (2e-5, 1e-5),
    "accumulation": (2e-5, 1e-5),
    "checkpointing": (0.0, 0.0),
}
# Tracing takes seconds; the other kinds have networks of the same classes.
COMPILED = {"autoencoder", "vae", "vqvae", "latent_diffusion", "vq_prior"}


def in_fp16(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    """The arithmetic of fp16 on a CPU, which accelerate gives to GPUs alone: its autocast and its loss scaler."""
    enter(log, env)
    from accelerate import Accelerator

    init = Accelerator.__init__

    def with_scaler(self, **options):
        init(self, **options)
        self.scaler, self.native_amp = torch.amp.GradScaler("cpu"), True

    Accelerator.__init__ = with_scaler
    run_example(script, argv)


def compiled(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    """Traced forwards and backwards as `torch.compile` does, but without generating code for them."""
    enter(log, env)
    real = torch.nn.Module.compile
    torch.nn.Module.compile = lambda self: real(self, backend="aot_eager")
    run_example(script, argv)


ENTRIES = {"fp16": in_fp16, "compile": compiled}


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key.endswith("/loss")} for row in rows]
    return [row for row in rows if row]


def weights(folder: Path, step: int, without: tuple[str, ...]) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((folder / "checkpoints" / f"checkpoint-{step}").glob("*.model.safetensors")):
        for key, value in load_file(path).items():
            if value.is_floating_point() and not key.endswith(without):
                found[f"{path.name}:{key}"] = value.double()
    return found


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys() and len(a) > 0
    return float(sum((a[key] - b[key]).square().sum() for key in a)) ** 0.5


def differences(family: Family, found: Path, expected: Path) -> tuple[float, float]:
    """Of the weights, in units of their movement, and of the losses, relative to the larger of |loss| and 0.1."""
    first, last, other = (
        weights(folder, step, family.per_forward) for folder, step in ((expected, 2), (expected, STEPS), (found, STEPS))
    )
    a, b = losses(found), losses(expected)
    assert len(a) == len(b) == STEPS and [row.keys() for row in a] == [row.keys() for row in b]
    relative = [abs(x[key] - y[key]) / max(abs(y[key]), 0.1) for x, y in zip(a, b) for key in y]
    return distance(other, last) / distance(first, last), max(relative)


def check(family: Family, mode: str, found: Path, expected: Path) -> None:
    of_weights, of_losses = differences(family, found, expected)
    print(f"{family.name} {mode}: weights {of_weights:.1e}, losses {of_losses:.1e}")
    most = TOLERANCES[mode]
    assert of_weights <= most[0] and of_losses <= most[1]
    assert mode not in ("bf16", "fp16") or of_weights > 1e-5, "this is float32"


def cases() -> Iterator:
    for family in FAMILIES:
        for mode in MODES:
            if mode == "accumulation" and not family.splits:
                continue
            slow = mode == "compile" and mode not in family.refuses and family.name not in COMPILED
            yield pytest.param(family, mode, id=f"{family.name}-{mode}", marks=[pytest.mark.nightly] * slow)


@pytest.mark.parametrize("family, mode", cases())
def test_equals_float32(family, mode, trained, start, parts, tmp_path):
    argv = family.command(tmp_path, parts, *family.same, *MODES[mode])
    code, text = ended(start(ENTRIES.get(mode, example), family.script, argv))
    if mode in family.refuses:
        assert code == 2 and family.refuses[mode] in text, text
        return
    assert code == 0, text
    check(family, mode, tmp_path, trained(family, *family.same))


def test_fp16_is_refused_without_a_gpu(start, parts, tmp_path):
    """accelerate would train in float32 and not say so."""
    code, text = ended(start(example, "train_vae.py", FAMILIES[3].command(tmp_path, parts, *MODES["fp16"])))
    assert code == 2 and "--mixed_precision fp16 needs a GPU" in text, text
