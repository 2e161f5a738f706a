"""The exact likelihood of denoising pipelines: closed forms, estimates, classes, what cannot be reached."""

import math

import diffusers
import pytest
import torch
from helpers import quiet, seeded
from tiny_pipelines import COSINE, FLOW, unet

from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline
from latentia.errors import NumericsError, UsageError
from latentia.functional.diffusion import predict_eps, predict_velocity
from latentia.pipelines.capabilities import Likelihood, capabilities
from latentia.pipelines.likelihood import rectified_velocity
from latentia.schedulers.diffusion import make_alpha_bar

MEAN, STD = 0.3, 0.4


class Exact(torch.nn.Module):
    """The exact network of data from N(0.3, 0.4^2) in each pixel, and of N(-0.3, 0.2^2) for class 1, at real times."""

    def __init__(self, scheduler, dtype=torch.float64):
        super().__init__()
        self.scheduler, self.dtype, self.device, self.calls = scheduler, dtype, torch.device("cpu"), 0
        config = {"in_channels": 1, "out_channels": 1, "sample_size": 4, "num_class_embeds": 2}
        self.config = type("Config", (), config)()

    def forward(self, x, t, class_labels=None):
        self.calls += 1
        t = t.view(-1, 1, 1, 1).to(x.dtype)
        second = torch.zeros_like(t) if class_labels is None else class_labels.view(-1, 1, 1, 1).to(x)
        mean, std = MEAN - 2 * MEAN * second, STD - 0.2 * second
        if isinstance(self.scheduler, FLOW):
            noise = t / self.scheduler.config.num_train_timesteps
            signal, kind = 1 - noise, "flow"
        else:
            alpha_bar = make_alpha_bar(self.scheduler.config)
            angles = torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt())
            low = t.floor().long().clamp(max=len(angles) - 2)
            angle = torch.lerp(angles[low], angles[low + 1], t - low)
            signal, noise, kind = angle.cos(), angle.sin(), self.scheduler.config.prediction_type
        x0 = mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (x - signal * mean)
        if kind == "flow":
            return type("Output", (), {"sample": noise / (signal**2 * std**2 + noise**2) * (x - signal * mean) - x0})()
        eps = predict_eps("sample", x0, x, signal, noise)
        sample = {"sample": x0, "epsilon": eps, "v_prediction": signal * eps - noise * x0}[kind]
        return type("Output", (), {"sample": sample})()


def pipe_of(scheduler):
    pipe = quiet(UnconditionalDiffusionPipeline(unet(1, 16, 2), scheduler, ["one", "two"]))
    pipe.unet = Exact(scheduler)
    return pipe


def log_prob(scheduler, x, mean=MEAN, std=STD):
    """Of what the ODE makes of N(0, 1): z = (x - signal mean) / sqrt(signal^2 std^2 + noise^2) is constant along it.

    A chain begins at the little signal of its last time step, and ends at the little noise of its first one.
    """
    ends = (0.0, 1.0) if isinstance(scheduler, FLOW) else make_alpha_bar(scheduler.config)[[-1, 0]].tolist()
    late, early = (torch.tensor(a * std**2 + 1 - a, dtype=torch.float64).sqrt() for a in ends)
    shift = ends[1] ** 0.5 * mean - early / late * ends[0] ** 0.5 * mean
    return torch.distributions.Normal(shift, early / late).log_prob(x).flatten(1).sum(1)


ZERO_SNR = {**COSINE, "rescale_betas_zero_snr": True}
SCHEDULERS = {
    "flow": FLOW(),
    "flow-shifted": FLOW(shift=3.0, num_train_timesteps=700),
    "v": DDIMScheduler(**COSINE),
    "v-zero-snr": DDPMScheduler(**ZERO_SNR),
    "epsilon": DDIMScheduler(beta_schedule="linear", prediction_type="epsilon", clip_sample=True),
    "sample": diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type="sample"),
    "sample-zero-snr": DDPMScheduler(**ZERO_SNR | {"prediction_type": "sample"}),
}
X = (0.4 * torch.randn(5, 1, 4, 4, generator=seeded(0), dtype=torch.float64)).clamp(-1, 1)


@pytest.mark.parametrize(
    "scheduler, options",
    [
        pytest.param(scheduler, options, id=f"{name}-{solver}", marks=[pytest.mark.nightly] * late)
        for name, scheduler in SCHEDULERS.items()
        for solver, options, late in (
            ("fixed", {"num_inference_steps": 100}, name not in ("flow", "v", "sample-zero-snr")),
            ("adaptive", {"tolerance": 1e-8}, False),
        )
    ],
)
def test_an_exact_network_has_the_likelihood_of_its_data(scheduler, options):
    pipe, labels = pipe_of(scheduler), [0, 1, 1, 0, 1]
    for probes in (None, 1):  # of a diagonal Jacobian, random signs give the exact trace
        found = pipe.log_likelihood(X, method="ode", class_labels=labels, probes=probes, **options)
        of_class = torch.tensor(labels) == 1
        expected = torch.where(of_class, log_prob(scheduler, X, -MEAN, 0.2), log_prob(scheduler, X))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-6)
    named = pipe.log_likelihood(X, method="ode", class_labels=["one", "two", "two", "one", "two"], **options)
    assert torch.equal(named, found)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_network_has_the_velocity_of_flow_matching(scheduler):
    exact, flow = Exact(scheduler), Exact(FLOW())
    velocity = rectified_velocity(scheduler)
    t = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    found = velocity(lambda x, time: exact(x, time).sample, t, X)
    torch.testing.assert_close(found, flow(X, 1000 * t).sample, atol=1e-6, rtol=1e-6)


def test_the_velocity_of_each_prediction_is_the_same():
    x0, eps = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    signal, noise = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 0.8))
    outputs = {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - noise * x0}
    for kind, output in outputs.items():
        found = predict_velocity(kind, output, signal * x0 + noise * eps, signal, noise)
        torch.testing.assert_close(found, outputs["v_prediction"])


def test_density_and_bound_agree_on_their_units():
    """The density of dequantised images, in bins of 1/128, is a little above the bound of the images in 256 bins."""
    pipe = pipe_of(DDIMScheduler(**COSINE))
    levels = (((0.2 * torch.randn(40, 1, 4, 4, generator=seeded(2)) - MEAN).clamp(-1, 1) + 1) * 127.5).round()
    given = {"class_labels": 1}
    bound = pipe.log_likelihood(levels / 127.5 - 1, generator=seeded(3), **given).mean() / 16
    noise = torch.rand(levels.shape, generator=seeded(4), dtype=torch.float64)
    density = pipe.log_likelihood((levels + noise) / 128 - 1, method="ode", **given).mean() / 16
    expected = -0.5 * math.log(2 * math.pi * math.e * 0.2**2)
    assert abs(density - expected) < 0.06  # its standard error at n = 640 is 0.028
    assert density - math.log(128) - 0.06 < bound < density - math.log(128) + 0.01


def test_the_scheduler_chooses_the_method_and_says_so():
    flow, chain = pipe_of(FLOW()), pipe_of(DDIMScheduler(**COSINE, num_train_timesteps=20))
    assert capabilities(flow).likelihood == flow.likelihood == Likelihood("exact", "density")
    assert capabilities(chain).likelihood == chain.likelihood == Likelihood("lower bound", "256 bins")
    assert torch.equal(flow.log_likelihood(X), flow.log_likelihood(X, method="ode"))
    given = {"generator": seeded(0)}, {"generator": seeded(0)}
    assert torch.equal(chain.log_likelihood(X, **given[0]), chain.log_likelihood(X, method="bound", **given[1]))


def random_pipe(scheduler=None, **options):
    return quiet(UnconditionalDiffusionPipeline(unet(1, 8, **options), scheduler or FLOW()))


def test_the_mean_over_probes_is_the_exact_trace():
    pipe, x = random_pipe(), torch.rand(1, 1, 8, 8, generator=seeded(1)) * 2 - 1
    exact = pipe.log_likelihood(x, probes=None, num_inference_steps=1)
    each = pipe.log_likelihood(x.expand(128, -1, -1, -1), num_inference_steps=1, generator=seeded(2)).double()
    error = each.std() / len(each) ** 0.5
    assert error > 0 and abs(each.mean() - exact) < 4 * error
    several = pipe.log_likelihood(x.expand(16, -1, -1, -1), num_inference_steps=1, probes=16, generator=seeded(3))
    assert each.std() / 8 < several.std() < each.std() / 2  # a quarter, in expectation


def test_adaptive_steps_ignore_the_batch_in_chunks_as_shipped(real_chunks):
    pipe = random_pipe()
    x = torch.rand(35, 1, 8, 8, generator=seeded(1)) * 2 - 1
    many = pipe.log_likelihood(x, generator=seeded(7), tolerance=1e-2)
    for n in (1, 33):
        assert torch.equal(pipe.log_likelihood(x[:n], generator=seeded(7), tolerance=1e-2), many[:n])
    assert not torch.equal(pipe.log_likelihood(x[:1], generator=seeded(8), tolerance=1e-2), many[:1])


def test_what_is_out_of_reach_is_an_error():
    pipe = pipe_of(FLOW())
    pipe.unet.dtype = torch.float32
    with pytest.raises(NumericsError, match="tolerance=1e-22 was not reached within 5000 evaluations"):
        pipe.log_likelihood(X, tolerance=1e-22)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p: p.log_likelihood(X, method="elbo"), "method must be one of bound, ode; got 'elbo'"),
        (lambda p: p.log_likelihood(X, probes=0), "probes must be at least 1; got 0"),
        (lambda p: p.log_likelihood(X, num_inference_steps=0), "num_inference_steps must be at least 1; got 0"),
        (lambda p: p.log_likelihood(X, tolerance=0), "tolerance must be positive; got 0"),
        (lambda p: p.log_likelihood(X, method="bound"), "scheduler must have a schedule of betas"),
        (lambda p: p.log_likelihood(X, class_labels=2), "class_labels must be from 0 to 1; got 2"),
    ],
)
def test_arguments_out_of_range(call, words):
    with pytest.raises(UsageError, match=words):
        call(pipe_of(FLOW()))


@pytest.mark.parametrize(
    "scheduler, words",
    [
        (diffusers.EDMEulerScheduler(), "schedule of betas for this; a EDMEulerScheduler has none"),
        (DDPMScheduler(num_train_timesteps=1, beta_schedule="linear"), "num_train_timesteps must be at least 2"),
        (DDPMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True), "prediction_type='epsilon' cannot start"),
    ],
)
def test_chains_without_an_ode_are_refused(scheduler, words):
    with pytest.raises(UsageError, match=words):
        pipe_of(scheduler).log_likelihood(X, method="ode")
