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
# 0.10 and 0.006 at most in bf16 (gan, autoencoder_kl), 0.012 and 0.001 in fp16, 3e-6 and 3e-6 where only the order of
# additions differs. Recomputed activations are the same numbers. The generated code of `--compile` adds in an order of
# its own.
TOLERANCES = {
    "bf16": (0.2, 0.02),
    "fp16": (0.03, 0.003),
    "compile": (1e-3, 1e-4),
    "accumulation": (2e-5, 1e-5),
    "checkpointing": (0.0, 0.0),
}
# It takes seconds: of each kind of network one is traced, and a denoiser, which takes most, at night.
TRACED, TRACED_AT_NIGHT = {"autoencoder", "vae", "vqvae"}, {"vae_gan", "latent_diffusion"}
ON_THE_GPU = {"ACCELERATE_USE_CPU": "false", "NVIDIA_TF32_OVERRIDE": "0"}  # TF32 has the 11 bits of fp16


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


def traced(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    """Traced forwards and backwards as `torch.compile` does, but without generating code."""
    enter(log, env)
    real = torch.nn.Module.compile
    torch.nn.Module.compile = lambda self, **options: real(self, **options | {"backend": "aot_eager"})
    run_example(script, argv)


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
        weights(folder, step, family.buffers) for folder, step in ((expected, 2), (expected, STEPS), (found, STEPS))
    )
    a, b = losses(found), losses(expected)
    assert len(a) == len(b) == STEPS and [row.keys() for row in a] == [row.keys() for row in b]
    relative = [abs(x[key] - y[key]) / max(abs(y[key]), 0.1) for x, y in zip(a, b) for key in y]
    found_differences = distance(other, last) / distance(first, last), max(relative)
    print("{}: weights {:.1e}, losses {:.1e}".format(family.name, *found_differences))
    return found_differences


def cases() -> Iterator:
    for family in FAMILIES:
        for mode in MODES:
            entry = in_fp16 if mode == "fp16" else example
            if mode in family.refuses or mode != "compile":
                if family.splits or mode != "accumulation":
                    yield pytest.param(family, mode, entry, id=f"{family.name}-{mode}")
            else:
                yield pytest.param(family, mode, entry, id=f"{family.name}-{mode}", marks=pytest.mark.nightly)
                if family.name in TRACED | TRACED_AT_NIGHT:
                    night = [pytest.mark.nightly] * (family.name in TRACED_AT_NIGHT)
                    yield pytest.param(family, mode, traced, id=f"{family.name}-traced", marks=night)


@pytest.mark.parametrize("family, mode, entry", list(cases()))
def test_equals_float32(family, mode, entry, trained, start, parts, tmp_path):
    argv = family.command(tmp_path, parts, *family.same, *MODES[mode])
    code, text = ended(start(entry, family.script, argv), timeout=250)
    if mode in family.refuses:
        assert code == 2 and family.refuses[mode] in text, text
        return
    assert code == 0, text
    of_weights, of_losses = differences(family, tmp_path, trained(family, *family.same))
    assert of_weights <= TOLERANCES[mode][0] and of_losses <= TOLERANCES[mode][1]
    assert mode not in ("bf16", "fp16") or of_weights > 1e-5, "this was float32"


def test_fp16_is_refused_without_a_gpu(start, parts, tmp_path):
    """accelerate would train in float32 and not say so."""
    family = FAMILIES[0]
    code, text = ended(start(example, family.script, family.command(tmp_path, parts, *MODES["fp16"])))
    assert code == 2 and "--mixed_precision fp16 needs a GPU" in text, text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "family, mode",
    [
        pytest.param(family, mode, id=f"{family.name}-{mode}")
        for family in FAMILIES
        for mode in ("float32", *MODES)
        if family.splits or mode != "accumulation"
    ],
)
def test_a_gpu_equals_the_cpu(family, mode, trained, start, parts, tmp_path):
    argv = family.command(tmp_path, parts, *family.same, *MODES.get(mode, ()))
    code, text = ended(start(example, family.script, argv, env=ON_THE_GPU), timeout=250)
    if mode in family.refuses:
        assert code == 2 and family.refuses[mode] in text, text
        return
    assert code == 0 and "1 x cuda" in text, text
    of_weights, of_losses = differences(family, tmp_path, trained(family, *family.same))
    most = TOLERANCES["bf16" if mode == "bf16" else "fp16"]
    assert of_weights <= most[0] and of_losses <= most[1]
