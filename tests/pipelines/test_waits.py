"""Between the steps of sampling nothing waits for the device, which is that of devices.py."""

import devices
import pytest
import torch
from devices import DEVICE, separate_device
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from helpers import quiet

from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.pipelines import sampling

STEPS, FIRST = 5, 2


def waits_of(monkeypatch, scheduler, **options) -> list[str]:
    """What waits from the second evaluation of the network to the last, the checks left out that only CPUs make."""
    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "attention_head_dim": 8}
    pipe = quiet(UnconditionalDiffusionPipeline(UNet2D(**shape, num_class_embeds=3), scheduler, unconditional=True))
    real, calls = sampling._predict_chunk, []

    def chunk(unet, x, *rest):
        calls.append(len(x))
        devices._watching = FIRST <= len(calls) < STEPS
        return real(unet, x, *rest)

    monkeypatch.setattr(sampling, "_predict_chunk", chunk)
    devices.waits.clear()
    try:
        with separate_device():
            pipe.to(DEVICE)
            generators = [torch.Generator().manual_seed(i) for i in range(3)]
            options = {"class_labels": [0, 1, 2], "guidance_scale": 2.0, "generator": generators} | options
            pipe(3, num_inference_steps=STEPS, output_type="latent", **options)
    finally:
        devices._watching = False
    assert len(calls) == STEPS  # with and without condition in one call
    return [wait for wait in devices.waits if "check_indices" not in wait]


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler(), DDPMScheduler(), FlowMatchEulerDiscreteScheduler(), DPMSolverMultistepScheduler()],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_nothing_waits_between_steps(monkeypatch, scheduler):
    assert waits_of(monkeypatch, scheduler) == []


def test_a_callback_that_reads_is_seen(monkeypatch):
    read = lambda pipe, i, t, held: held["latents"].sum().item() and None  # noqa: E731
    assert len(waits_of(monkeypatch, DDIMScheduler(), callback_on_step_end=read)) == STEPS - FIRST
