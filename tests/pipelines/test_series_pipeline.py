"""The pipeline of time series: what is promised of every pipeline, lengths, classes, inversion and likelihood."""

import numpy as np
import pytest
import torch
from devices import DEVICE, separate_device
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import quiet, seeded
from tiny_pipelines import COSINE

import latentia
from latentia import DDIMScheduler, DDPMScheduler, SeriesPipeline, SeriesScaler, UNet1D
from latentia.data import load_series
from latentia.errors import UsageError
from latentia.pipelines.capabilities import capabilities

UNEQUAL = load_series(
    {
        "series": np.repeat(np.arange(12), 6 + np.arange(12) % 3),
        "u": np.arange(84) ** 2 % 13,
        "v": np.arange(84) ** 3 % 7,
    }
)  # 6, 7 or 8 steps
EQUAL = load_series("sines_ar2", max_samples=40, window=16)
SMALL = {"block_out_channels": (8, 16), "attention_head_dim": 8}
SHORT = {"num_inference_steps": 2}


def build(series=EQUAL, scheduler=None, classes=None, **config):
    torch.manual_seed(0)
    scaler = SeriesScaler.fit(series.describe_channels(), series.values, series.lengths)
    unet = UNet1D(series.values.shape[2], len(series.channels), num_class_embeds=classes, **SMALL, **config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    names = ["sines", "ar2"] if classes else None
    return quiet(SeriesPipeline(scaler, unet.eval(), scheduler or DDIMScheduler(**COSINE), names))


PIPELINES = {
    "ddim": lambda: build(),
    "classes": lambda: build(scheduler=DDPMScheduler(**COSINE), classes=2),
    "unequal": lambda: build(UNEQUAL, masked=True),
    "few-steps": lambda: build(scheduler=FlowMatchEulerDiscreteScheduler(), target_time=True),
}
BUILT = {name: make() for name, make in PIPELINES.items()}
every = pytest.mark.parametrize("name", PIPELINES)


def sample(pipe, n, seed=7, **options):
    generator = seeded(seed) if isinstance(seed, int) else seed
    asked = {"class_labels": [i % 2 for i in range(n)], "guidance_scale": 2.0} if pipe.num_classes else {}
    return pipe(n, generator=generator, **{"output_type": "latent"} | SHORT | asked | options).series


def test_every_public_pipeline_of_series_is_here():
    public = {name for name in latentia.__all__ if name.endswith("Pipeline")} - {"DiffusionPipeline"}
    assert {name for name in public if getattr(latentia, name).modality == "series"} == {"SeriesPipeline"}


@every
def test_a_series_has_the_same_bytes_in_every_batch(name):
    pipe = BUILT[name]
    many = sample(pipe, 35)
    assert many.shape == (35, len(pipe.channels), pipe.scaler.config.length) and len(many.unique(dim=0)) == 35
    for n in (1, 9):
        assert torch.equal(sample(pipe, n), many[:n])
    assert torch.equal(sample(pipe, 1, seed=[seeded(3)]), sample(pipe, 3, seed=[seeded(3), seeded(4), seeded(5)])[:1])
    assert not torch.equal(sample(pipe, 2, seed=8), many[:2])


@every
def test_output_types_agree_and_options_have_help(name):
    pipe = BUILT[name]
    arrays, held, frame = (sample(pipe, 6, output_type=kind) for kind in ("np", "series", "pandas"))
    assert np.array_equal(np.nan_to_num(arrays), held.values) and np.array_equal(~np.isnan(arrays[:, 0]), held.mask)
    assert len(frame) == held.lengths.sum() and list(frame)[2 : 2 + len(pipe.channels)] == [*pipe.channels]
    assert (held.labels is None) == (pipe.num_classes is None)
    able = capabilities(pipe)
    assert able.modality == "series" and all(option.help for option in able.options.values())
    assert "length" in able.options and able.conditions == (("class_labels",) if pipe.num_classes else ())
    assert isinstance(pipe(1, return_dict=False, **SHORT), tuple)


@every
def test_saved_and_loaded_it_gives_the_same_series(name, tmp_path):
    pipe = BUILT[name]
    pipe.save_pretrained(tmp_path)
    loaded = quiet(latentia.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is SeriesPipeline and capabilities(loaded) == capabilities(pipe)
    torch.testing.assert_close(sample(loaded, 3), sample(pipe, 3))
    assert torch.equal(loaded.scaler.scale, pipe.scaler.scale) and torch.equal(loaded.scaler.counts, pipe.scaler.counts)


@every
def test_half_precision_and_another_device_are_near(name):
    full = sample(BUILT[name], 4)
    half = sample(PIPELINES[name]().to(torch.bfloat16), 4).float()
    assert (half - full).abs().mean() < 0.05 * full.std()
    with separate_device():
        moved = sample(PIPELINES[name]().to(DEVICE), 4, output_type="np")
    np.testing.assert_allclose(moved, sample(BUILT[name], 4, output_type="np"), rtol=1e-4, atol=1e-4)


def test_lengths_are_drawn_as_in_training_or_asked_for():
    pipe = BUILT["unequal"]
    lengths = pipe(300, generator=seeded(1), num_inference_steps=1).lengths
    assert lengths.unique().tolist() == [6, 7, 8] and (lengths == 7).float().mean().sub(1 / 3).abs() < 0.1
    assert sample(pipe, 2, length=5, output_type="np").shape == (2, 2, 5)
    assert sample(BUILT["ddim"], 2, length=21, output_type="np").shape == (2, 1, 21)


def test_what_lies_beyond_the_end_changes_nothing():
    unet, x, t = BUILT["unequal"].unet, torch.randn(2, 2, 8), torch.tensor([3, 500])
    mask = torch.arange(8) < torch.tensor([[6], [8]])
    spoilt = torch.where(mask[:, None], x, 1e6)
    out = unet(x, t, step_mask=mask).sample
    assert torch.equal(out, unet(spoilt, t, step_mask=mask).sample) and (out[0, :, 6:] == 0).all()
    x.requires_grad_()
    unet(x, t, step_mask=mask).sample.square().sum().backward()
    assert (x.grad[0, :, 6:] == 0).all() and (x.grad[0, :, :6] != 0).all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(**COSINE), FlowMatchEulerDiscreteScheduler()])
def test_decode_inverts_encode_and_interpolate_has_the_ends(scheduler):
    pipe = build(scheduler=scheduler)
    options = {"num_inference_steps": 40}
    latents = pipe.encode(EQUAL.take(slice(2)), refinements=4, **options)
    again = pipe.decode(latents, output_type="np", **options)
    assert np.abs(again - EQUAL.values[:2]).max() < 0.05
    path = pipe.interpolate(EQUAL.take(slice(1)), EQUAL.take(slice(1, 2)), 4, output_type="np", **options)
    assert path.shape == (4, 1, 16) and np.abs(path[[0, 3]] - EQUAL.values[:2]).max() < 0.3


def test_a_flow_without_velocity_has_the_likelihood_of_noise():
    pipe = build(scheduler=FlowMatchEulerDiscreteScheduler())
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    found = pipe.log_likelihood(EQUAL.take(slice(3)), num_inference_steps=1, generator=seeded(0)).double()
    mean, deviation = pipe.scaler.scale.view(torch.float64).flatten()
    normal = torch.distributions.Normal(mean, deviation)
    expected = normal.log_prob(torch.from_numpy(EQUAL.values[:3])).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert pipe.likelihood.kind == "exact" and BUILT["unequal"].likelihood is None


def test_what_makes_no_sense_is_refused():
    pipe = BUILT["ddim"]
    for call, text in (
        (lambda: pipe(output_type="csv"), "output_type must be one of"),
        (lambda: pipe(0), "batch_size must be at least 1; got 0"),
        (lambda: pipe(length=1), "length must be"),
        (lambda: pipe(class_labels=[0]), "trained without classes"),
        (lambda: pipe.encode(torch.zeros(1, 2, 16)), r"series must be finite values \(B, 1, L\)"),
        (lambda: pipe.decode(torch.zeros(1, 16)), r"latents must be \(B, 1, L\)"),
        (lambda: pipe.encode(UNEQUAL), "series must be finite values"),
        (lambda: BUILT["unequal"].log_likelihood(UNEQUAL), "must all be of one length for a likelihood"),
        (lambda: SeriesPipeline(pipe.scaler, latentia.UNet2D(8), pipe.scheduler), "unet must be a UNet1D; got UNet2D"),
        (lambda: SeriesPipeline(pipe.unet, pipe.unet, pipe.scheduler), "scaler must be a SeriesScaler; got UNet1D"),
        (lambda: SeriesPipeline(pipe.scaler, UNet1D(8), pipe.scheduler), r"of 1 channel and 16 steps, as scaler; got"),
        (lambda: SeriesPipeline(pipe.scaler, pipe.unet, DDIMScheduler()), "scheduler must have clip_sample=False"),
        (lambda: UNet1D(kernel_size=4), "kernel_size must be odd.*Take 5"),
        (lambda: UNet1D(masked=True, target_time=True), "target_time must be False with masked"),
        (lambda: UNet1D(block_out_channels=()), "block_out_channels must be at least one number"),
        (lambda: UNet1D()(torch.zeros(1, 2, 8), 3), r"sample must be \(B, 1, L\)"),
        (lambda: UNet1D()(torch.zeros(1, 1, 8), 3, step_mask=torch.ones(1, 8)), "step_mask was given"),
    ):
        with pytest.raises(UsageError, match=text):
            call()


@pytest.mark.parametrize("steps", [2, 3, 7, 13, 16])
def test_any_length_is_right(steps):
    unet = UNet1D(16, block_out_channels=(8, 8, 16), attention_head_dim=8)
    assert unet(torch.randn(2, 1, steps), 3).sample.shape == (2, 1, steps)
