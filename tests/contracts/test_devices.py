"""No training mixes tensors of two devices, or waits for one. The second is that of devices.py: no GPU is needed."""

import contextlib

import numpy as np
import pytest
import torch
from children import ended, enter, run_example
from devices import CPU, DEVICE, MixedDevices, device_of, separate_device, waits, watched
from families import FAMILIES


@pytest.fixture
def device():
    with separate_device() as device:
        yield device


def test_what_is_computed_stays_on_its_device(device):
    here = torch.randn(3)
    there = here.to(device)
    assert here.device == CPU and there.device == DEVICE == torch.ones(2, device=device).device
    network = torch.nn.Linear(3, 2).to(device)
    out = network(there)
    out.square().sum().backward()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    for tensor in (out, network.weight, network.weight.grad, there[1:], torch.zeros_like(there), *moments,
                   there.double(), there[torch.tensor([0])], there * torch.tensor(2.0), here.to(there)):  # fmt: skip
        assert tensor.device == DEVICE
    for tensor in (there.cpu(), there.to("cpu"), there.cpu().to(here), here[1:], here.double(), there.to(CPU)):
        assert tensor.device == CPU and device_of(tensor) == CPU
    assert torch.equal(there.cpu(), here) and there.tolist() == here.tolist()


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.nn.functional.linear(here, torch.ones(1, 3, device=there.device)),
        lambda here, there: here[torch.tensor([1], device=there.device)],
        lambda here, there: there.numpy(),
        lambda here, there: np.asarray(there),
        lambda here, there: there.mul_(here),
    ],
)
def test_mixing_is_an_error(device, mix):
    with pytest.raises(MixedDevices):
        mix(torch.ones(3), torch.ones(3, device=device))


def on_the_device(log: str, env: dict[str, str], script: str, argv: list[str]) -> None:
    enter(log, env)
    from accelerate import Accelerator

    from latentia.training import nonfinite, phases

    nonfinite.FLAGGED = ("cpu",)
    real, seen = phases.Steps.run, []

    def run(steps, data, progress):
        """The steps after the first, in which nothing waits, and each kind of phase at least once."""
        seen.extend(phase.name for phase in steps.phases if not progress.step % phase.every)
        with watched() if progress.step else contextlib.nullcontext():
            return real(steps, data, progress)

    phases.Steps.run = run
    with separate_device() as device:
        Accelerator.device = property(lambda self: device)
        try:
            run_example(script, argv)
        finally:
            print(f"phases {sorted({*seen})}, {len(waits)} waits", *sorted({*waits}), sep="\n")


@pytest.mark.fault
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_training_mixes_no_devices(family, start, parts, tmp_path):
    """Training with images and scores on the way, and the export at the end; no step waits for the device."""
    once = ("--validation_steps", "3") if "--validation_steps" in family.scored else ()
    flags = (*family.scored, "--max_train_steps", "3", "--logging_steps", "3", *once)
    code, text = ended(start(on_the_device, family.script, family.command(tmp_path, parts, *flags)))
    assert code == 0 and "1 x cpu:0" in text, text
    assert (", 0 waits" not in text) == bool(family.waits), text
