"""DDPM and DDIM: closed forms in float64, diffusers' own schedulers, and oracle networks on known distributions."""

import copy
import itertools
import json
import math

import diffusers
import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import latentia
from latentia.errors import UsageError
from latentia.schedulers import diffusion
from latentia.schedulers.ddim import DDIMScheduler
from latentia.schedulers.ddpm import DDPMScheduler

BOTH = [DDPMScheduler, DDIMScheduler]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
EVERY_SCHEDULE = [*SCHEDULES, "sigmoid", "laplace"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "trailing", "linspace"]
BOUNDS = [
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.8},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
]
VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
STEPS = [1, 7, 20, 50, 1000]


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alpha_bars(scheduler):
    """alpha_bar in float64, as the steps use it; `alphas_cumprod` is a float32 copy."""
    return diffusion.make_alpha_bar(scheduler.config)


def lend_tables(reference, ours):
    """Give a diffusers scheduler our float64 tables, so that only the algebra of a step is compared."""
    reference.alphas_cumprod, reference.one = alpha_bars(ours), torch.ones((), dtype=torch.float64)
    if hasattr(reference, "final_alpha_cumprod"):
        one = reference.config.set_alpha_to_one
        reference.final_alpha_cumprod = reference.one if one else reference.alphas_cumprod[0]


def set_like_diffusers(scheduler, n):
    """DDIM with the stride of diffusers, which is not the way to the next visited time step for every n."""
    scheduler.set_timesteps(n, **({"constant_stride": True} if isinstance(scheduler, DDIMScheduler) else {}))


def some(timesteps):
    """First, middle and last visited time step."""
    n = len(timesteps)
    return timesteps[sorted({0, n // 2, n - 1})]


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def cannot_divide(scheduler, n):
    """Whether eps-prediction would start where alpha_bar is zero; then set_timesteps must say so."""
    if not (scheduler.config.rescale_betas_zero_snr and scheduler.config.prediction_type == "epsilon"):
        return False
    spacing = scheduler.config.timestep_spacing
    if (spacing == "leading" and n < 1000) or (spacing == "linspace" and n == 1):
        return False
    with pytest.raises(UsageError, match="division by zero"):
        scheduler.set_timesteps(n)
    return True


# ------------------------------------------------------------ agreement with diffusers


def third(*axes):
    """A third of all combinations, in which every pair of settings of two axes meets."""
    wanted = [c for c in itertools.product(*map(enumerate, axes)) if sum(index for index, _ in c) % 3 == 0]
    places = [[(axis, index) for axis, (index, _) in enumerate(c)] for c in wanted]
    met = {pair for place in places for pair in itertools.combinations(place, 2)}
    assert len(met) == sum(len(a) * len(b) for a, b in itertools.combinations(axes, 2))
    return [tuple(value for _, value in c) for c in wanted]


@pytest.mark.parametrize("variance_type", VARIANCES)
def test_ddpm_step_is_the_algebra_of_diffusers(variance_type, monkeypatch):
    z = {}
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: z["now"])
    x, noise = seeded(2, 2, 3, 3), seeded(2, 2, 3, 3, seed=1)
    learned = variance_type.startswith("learned")
    output = torch.cat([seeded(2, 2, 3, 3, seed=2), seeded(2, 2, 3, 3, seed=3).sigmoid()], 1)[:, : 4 if learned else 2]
    schedules = SCHEDULES[:1] if variance_type.endswith("_log") else SCHEDULES
    for schedule, prediction, spacing, zero_snr, bound in third(
        schedules, PREDICTIONS, SPACINGS, [False, True], BOUNDS
    ):
        config = {
            "beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing,
            "rescale_betas_zero_snr": zero_snr, **bound,
        }  # fmt: skip
        ours = DDPMScheduler(variance_type=variance_type, **config)
        # diffusers takes the square root of log(beta) for fixed_large_log, which is NaN; its meaning is fixed_large.
        theirs = variance_type.replace("fixed_large_log", "fixed_large")
        reference = diffusers.DDPMScheduler(variance_type=theirs, **config)
        lend_tables(reference, ours)
        for n in STEPS:
            if cannot_divide(ours, n):
                continue
            ours.set_timesteps(n)
            reference.set_timesteps(n)
            assert torch.equal(ours.timesteps, reference.timesteps)
            for t in some(ours.timesteps):
                z["now"] = noise if t > ours.timesteps[-1] else 0 * noise  # the last step adds no noise (Algorithm 2)
                expected = reference.step(output, t, x)
                got = ours.step(output, t, x, variance_noise=noise)
                case = (config, n, int(t))
                assert relative(got.prev_sample, expected.prev_sample) < 1e-10, case
                assert relative(got.pred_original_sample, expected.pred_original_sample) < 1e-10, case


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta, clipped", [(0.0, False), (0.6, False), (1.0, True)])
def test_ddim_step_is_the_algebra_of_diffusers(prediction, eta, clipped):
    x, output, noise = (seeded(2, 2, 3, 3, seed=seed) for seed in range(3))
    for schedule, spacing, zero_snr, bound, to_one in third(
        SCHEDULES, SPACINGS, [False, True], BOUNDS, [True] if eta else [False, True]
    ):
        config = {
            "beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing,
            "rescale_betas_zero_snr": zero_snr, "set_alpha_to_one": to_one, **bound,
        }  # fmt: skip
        ours, reference = DDIMScheduler(**config), diffusers.DDIMScheduler(**config)
        lend_tables(reference, ours)
        for n in STEPS:
            if cannot_divide(ours, n):
                continue
            set_like_diffusers(ours, n)
            reference.set_timesteps(n)
            assert torch.equal(ours.timesteps, reference.timesteps)
            for t in some(ours.timesteps):
                theirs = eta if t > ours.timesteps[-1] else 0.0  # the last step adds no noise
                if zero_snr and t == 999 and theirs == 1:
                    theirs = 1 - 1e-12  # 1 - alpha_bar - sigma^2 rounds below zero there, and its root to NaN
                given = {"variance_noise": noise} if theirs else {}
                expected = reference.step(output, t, x, theirs, clipped, **given)
                got = ours.step(output, t, x, eta, clipped, variance_noise=noise)
                case = (config, n, int(t))
                tolerance = 1e-10 if theirs in (0, eta) else 1e-5
                assert relative(got.prev_sample, expected.prev_sample) < tolerance, case
                assert relative(got.pred_original_sample, expected.pred_original_sample) < 1e-10, case


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_float32_run_agrees_with_diffusers(cls, prediction):
    """Same seed, whole run, a smooth network. Of the cosine's last alpha_bar (2e-9) float32 keeps 4 digits and
    eps-prediction divides by it, so the run starts at t = 800; of its first 1 - alpha_bar (4e-5) it keeps 3."""
    x_T = seeded(2, 1, 4, 4, dtype=torch.float32)
    for schedule, spacing, n in itertools.product(SCHEDULES, SPACINGS, [7, 20, 50]):
        config = {"beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing}
        ends = []
        for scheduler in (cls(**config), getattr(diffusers, cls.__name__)(**config)):
            set_like_diffusers(scheduler, n)
            generator, x = torch.Generator().manual_seed(1), x_T
            for t in scheduler.timesteps[scheduler.timesteps <= 800][:-1]:  # the last step differs on purpose
                extra = {"eta": 0.5} if cls is DDIMScheduler else {}
                x = scheduler.step(torch.tanh(0.3 * x), t, x, generator=generator, **extra).prev_sample
            ends.append(x)
        assert relative(*ends) < (2e-5 if schedule == "squaredcos_cap_v2" else 1e-5), config


def test_one_float32_step_agrees_with_diffusers_at_every_time():
    x0, noise = seeded(4, 1, 4, 4, dtype=torch.float32).clamp(-1, 1), seeded(4, 1, 4, 4, seed=1, dtype=torch.float32)
    for schedule, prediction in itertools.product(SCHEDULES[:2], PREDICTIONS):
        ours = DDIMScheduler(beta_schedule=schedule, prediction_type=prediction)
        reference = diffusers.DDIMScheduler(beta_schedule=schedule, prediction_type=prediction)
        ours.set_timesteps(1000)
        reference.set_timesteps(1000)
        for t in ours.timesteps[::37]:
            x_t = reference.add_noise(x0, noise, t[None])
            assert relative(ours.add_noise(x0, noise, t), x_t) < 1e-5
            assert relative(ours.get_velocity(x0, noise, t), reference.get_velocity(x0, noise, t[None])) < 1e-5
            output = ours.target(x0, noise, t)
            got, expected = (scheduler.step(output, t, x_t) for scheduler in (ours, reference))
            assert relative(got.prev_sample, expected.prev_sample) < 1e-5


@pytest.mark.parametrize("cls", BOTH)
def test_time_steps_are_those_of_diffusers(cls):
    for spacing, offset in [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]:
        ours = cls(timestep_spacing=spacing, steps_offset=offset)
        reference = getattr(diffusers, cls.__name__)(timestep_spacing=spacing, steps_offset=offset)
        for n in [*range(1, 1000, 13), 61, 999]:
            ours.set_timesteps(n)
            reference.set_timesteps(n)
            assert len(ours.timesteps) == n and int(ours.timesteps.min()) >= 0
            # rounding makes diffusers visit t = -1 in the end for some n, 61 among them
            assert torch.equal(ours.timesteps, reference.timesteps[:n]), (spacing, n)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
                                  "EulerAncestralDiscreteScheduler", "PNDMScheduler", "HeunDiscreteScheduler",
                                  "DDIMScheduler", "DDPMScheduler"])  # fmt: skip
@pytest.mark.parametrize("cls", BOTH)
def test_configurations_are_interchangeable_with_diffusers(cls, name, caplog):
    settings = {"num_train_timesteps": 200, "beta_schedule": "scaled_linear", "beta_end": 0.03,
                "prediction_type": "v_prediction"}  # fmt: skip
    theirs = getattr(diffusers, name).from_config(cls(**settings).config)
    back = cls.from_config(theirs.config)
    for key, value in settings.items():
        assert theirs.config[key] == back.config[key] == value
    assert torch.allclose(theirs.betas, back.betas, atol=1e-7)
    assert not [record for record in caplog.records if "not expected" in record.message]


def test_diffusers_pipelines_run_our_scheduler():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        8, 1, 1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(8,),
        layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    images = []
    for scheduler in (DDPMScheduler(), diffusers.DDPMScheduler()):
        pipe = diffusers.DDPMPipeline(unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        images.append(pipe(2, generator, num_inference_steps=5, output_type="np").images)
    assert images[0].std() > 0.1 and np.abs(images[0] - images[1]).max() < 1e-4


# ------------------------------------------------------------ schedules and the forward process


def test_schedules_have_the_published_values():
    def alpha_bar(t, schedule="linear"):  # t as in the papers, from 1
        return float(alpha_bars(DDPMScheduler(beta_schedule=schedule))[t - 1])

    for t, value in [(1, 0.9999), (100, 0.8970), (250, 0.5241), (500, 0.0786)]:
        assert alpha_bar(t) == pytest.approx(value, abs=5e-5)
    assert alpha_bar(750) == pytest.approx(0.00335, abs=5e-6)
    assert alpha_bar(1000) == pytest.approx(4.04e-5, abs=5e-8)
    for t, value in [(100, 0.9721), (500, 0.4938)]:
        assert alpha_bar(t, "squaredcos_cap_v2") == pytest.approx(value, abs=5e-5)
    assert alpha_bar(1000, "squaredcos_cap_v2") == pytest.approx(2.4e-9, abs=5e-11)
    stable_diffusion = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert float(stable_diffusion.alphas_cumprod[-1]) == pytest.approx(0.00466, abs=5e-6)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_alpha_bar_falls_from_one_to_nearly_zero(schedule):
    alpha_bar = alpha_bars(DDPMScheduler(beta_schedule=schedule))
    first, end = (0.97, 0.04) if schedule == "laplace" else (0.999, 1e-3)  # diffusers' alpha_bar of laplace is a root
    assert (alpha_bar.diff() < 0).all() and alpha_bar[0] > first and 0 < alpha_bar[-1] < end
    rescaled = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    exact = alpha_bars(rescaled)
    assert (exact.diff() < 0).all() and exact[-1] == rescaled.alphas_cumprod[-1] == 0
    assert float(exact[0]) == pytest.approx(float(alpha_bar[0]), abs=1e-15)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_every_beta_schedule_of_diffusers_is_here(cls, schedule):
    """diffusers' DDIM knows three of them only, so its DDPM is the reference for both."""
    ours, theirs = cls(beta_schedule=schedule), diffusers.DDPMScheduler(beta_schedule=schedule)
    assert torch.allclose(ours.betas, theirs.betas, rtol=1e-4, atol=1e-7)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_terminal_distribution_is_standard_normal():
    alpha_bar = float(alpha_bars(DDPMScheduler())[-1])
    mean, var = alpha_bar**0.5, 1 - alpha_bar
    assert 0.5 * (var + mean**2 - 1 - math.log(var)) == pytest.approx(2.0e-5, abs=5e-7)  # KL(q(x_T | x_0=1) || N(0,1))


def test_trained_betas_and_steps_in_float64():
    betas = torch.linspace(0.001, 0.3, 10, dtype=torch.float64)
    scheduler = DDPMScheduler(num_train_timesteps=10, trained_betas=betas.tolist())
    assert scheduler._step_table.dtype == scheduler._forward_table.dtype == torch.float64
    product, one = 1.0, torch.ones(1, dtype=torch.float64)
    for t, beta in enumerate(betas.tolist()):
        product *= 1 - beta
        assert float(scheduler.add_noise(one, 0 * one, t)) == pytest.approx(product**0.5, rel=1e-14)
    assert torch.equal(scheduler.betas, betas.float())


@pytest.mark.parametrize("cls", BOTH)
def test_public_tables_work_in_a_loop_of_float32(cls):
    scheduler, t = cls(), torch.tensor([3, 900])
    tables = (scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod)
    assert {table.dtype for table in tables} == {torch.float32}
    x = scheduler.alphas_cumprod[t].sqrt().view(-1, 1) * torch.ones(2, 5)
    assert torch.nn.Linear(5, 5)(x).dtype == torch.float32  # a product of double and float is refused


@pytest.mark.parametrize("cls", BOTH)
def test_forward_formulas_to_the_last_digit(cls):
    scheduler = cls()
    x0, eps, t = seeded(5, 1, 2, 2), seeded(5, 1, 2, 2, seed=1), torch.tensor([0, 3, 250, 749, 999])
    betas = np.linspace(0.0001, 0.02, 1000)
    alpha_bar = torch.from_numpy(np.cumprod(1 - betas)[t]).reshape(5, 1, 1, 1)
    a, s, beta = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), torch.from_numpy(betas[t]).reshape(5, 1, 1, 1)
    assert (scheduler.add_noise(x0, eps, t) - (a * x0 + s * eps)).abs().max() < 1e-12
    assert (scheduler.get_velocity(x0, eps, t) - (a * eps - s * x0)).abs().max() < 1e-12
    assert (scheduler.forward_step(x0, eps, t) - ((1 - beta).sqrt() * x0 + beta.sqrt() * eps)).abs().max() < 1e-12


def test_iterated_forward_steps_have_the_moments_of_the_shortcut():
    n, start, end = 100_000, 0.7, 300
    scheduler, generator = DDPMScheduler(), torch.Generator().manual_seed(0)
    x = torch.full((n,), start, dtype=torch.float64)
    for t in range(end):
        x = scheduler.forward_step(x, torch.randn(n, generator=generator, dtype=torch.float64), t)
    alpha_bar = float(scheduler.alphas_cumprod[end - 1])
    assert abs(float(x.mean()) - alpha_bar**0.5 * start) < 3 * ((1 - alpha_bar) / n) ** 0.5
    assert abs(float(x.var()) - (1 - alpha_bar)) < 3 * (1 - alpha_bar) * (2 / n) ** 0.5


@pytest.mark.parametrize("cls", BOTH)
def test_all_predictions_mean_the_same_x0_and_eps(cls):
    x0, eps, t = seeded(6, 2, 2, 2), seeded(6, 2, 2, 2, seed=1), torch.tensor([0, 5, 100, 500, 900, 999])
    for prediction in PREDICTIONS:
        scheduler = cls(prediction_type=prediction)
        x_t = scheduler.add_noise(x0, eps, t)
        got = scheduler.predict_x0_eps(scheduler.target(x0, eps, t), t, x_t)
        assert (got[0] - x0).abs().max() < 1e-12 and (got[1] - eps).abs().max() < 1e-12


# ------------------------------------------------------------ oracle networks


# a 1-D mixture of four Gaussians: mean .11145, variance 1.17186
MU = torch.tensor([1.5, -0.216, 0.45, -1.875], dtype=torch.float64)
SD = torch.tensor([0.3, 0.15, 0.525, 0.075], dtype=torch.float64)
WEIGHT = torch.tensor([0.2, 0.3, 0.35, 0.15], dtype=torch.float64)


def oracle_eps(x, alpha_bar):
    """E[eps | x_t] for the mixture: eps = - sqrt(1 - alpha_bar) d/dx log q(x_t)."""
    mean, var = alpha_bar**0.5 * MU, alpha_bar * SD**2 + 1 - alpha_bar
    z = x[..., None] - mean
    responsibility = torch.softmax(WEIGHT.log() - 0.5 * var.log() - z**2 / (2 * var), -1)
    return (1 - alpha_bar) ** 0.5 * (responsibility * z / var).sum(-1)


def quantiles(n):
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    cdf = (WEIGHT * torch.special.ndtr((grid[:, None] - MU) / SD)).sum(-1)
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, cdf.numpy(), grid.numpy()))


def wasserstein(sample):
    return float((sample.flatten().sort().values - quantiles(len(sample))).abs().mean())


def sample_mixture(scheduler, n, **step):
    """From the n quantiles of N(0, 1), so that a deterministic sampler's distance is its own and not the sample's."""
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).reshape(n, 1) * scheduler.init_noise_sigma
    alpha_bar = alpha_bars(DDPMScheduler())
    for t in scheduler.timesteps:
        x = scheduler.step(oracle_eps(scheduler.scale_model_input(x, t), alpha_bar[t.long()]), t, x, **step).prev_sample
    return wasserstein(x)


def floor(n):
    """The mean W1 that n true samples have: what no stochastic sampler can beat."""
    generator = torch.Generator().manual_seed(5)
    values = []
    for _ in range(5):
        k = torch.multinomial(WEIGHT, n, replacement=True, generator=generator)
        values.append(wasserstein(MU[k] + SD[k] * torch.randn(n, generator=generator, dtype=torch.float64)))
    return sum(values) / len(values)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_with_an_oracle_network_samples_the_mixture(variance_type):
    n, scheduler = 10_000, DDPMScheduler(variance_type=variance_type, clip_sample=False)
    scheduler.set_timesteps(1000)
    assert sample_mixture(scheduler, n, generator=torch.Generator().manual_seed(1)) < 2 * floor(n) < 0.04


def test_ddim_with_eta_one_is_ddpm():
    x, output, z = (seeded(2, 1, 4, 4, seed=seed) for seed in range(3))
    for config in ({}, {"clip_sample": False}, {"thresholding": True}):
        ddpm, ddim = make(DDPMScheduler, **config), make(DDIMScheduler, **config)
        for t in ddpm.timesteps:
            a, b = ddpm.step(output, t, x, variance_noise=z), ddim.step(output, t, x, 1.0, True, variance_noise=z)
            assert relative(a.prev_sample, b.prev_sample) < 1e-12


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_with_an_oracle_network_converges_to_the_mixture(spacing):
    """An Euler step of an ODE: the error falls in proportion to the step."""
    scheduler, distance = DDIMScheduler(clip_sample=False, timestep_spacing=spacing), {}
    for steps in (20, 50, 200):
        scheduler.set_timesteps(steps)
        distance[steps] = sample_mixture(scheduler, 10_000)
    assert distance[20] < 0.08 and distance[50] < 0.04 and distance[200] < 0.01
    assert distance[20] > 1.7 * distance[50] > 5 * distance[200]


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete"])
def test_stock_solvers_on_our_configuration_sample_the_mixture(name):
    scheduler = getattr(diffusers, name + "Scheduler").from_config(DDPMScheduler(clip_sample=False).config)
    scheduler.set_timesteps(50)
    assert sample_mixture(scheduler, 10_000) < 0.04


def gaussian_std(scheduler, sd=0.5, **options):
    """The standard deviation that a run with the exact network of N(0, sd^2) ends with, from N(0, 1), without samples:
    each step is linear in (x, z), so it is read off at (1, 0) and (0, 1)."""
    alpha_bar, variance = alpha_bars(scheduler), 1.0
    one = torch.ones(1, dtype=torch.float64)
    for t in scheduler.timesteps:
        a = alpha_bar[t]

        def step(x, z, t=t, a=a):
            eps = (1 - a).sqrt() * x / (a * sd**2 + 1 - a)
            given = {"variance_noise": z} if options.get("eta", 1) else {}
            return float(scheduler.step(eps, t, x, **given, **options).prev_sample)

        variance = variance * step(one, 0 * one) ** 2 + step(0 * one, one) ** 2
    return variance**0.5


def exact_std(alpha_bar, visited, noise, sd=0.5):
    """What `gaussian_std` is by Eq. 12 and 16 of DDIM, from each visited time step to the next and to the data."""
    variance = 1.0
    for t, s in itertools.pairwise([*visited, None]):
        a, b = alpha_bar[t], 1.0 if s is None else alpha_bar[s]
        total = a * sd**2 + 1 - a
        added = 0.0 if s is None else noise**2 * (1 - b) / (1 - a) * (1 - a / b)
        keep = b**0.5 * a**0.5 * sd**2 / total + (1 - b - added) ** 0.5 * (1 - a) ** 0.5 / total
        variance = variance * keep**2 + added
    return variance**0.5


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("cls, eta", [(DDIMScheduler, 0.0), (DDIMScheduler, 1.0), (DDPMScheduler, 1.0)])
def test_every_number_of_steps_ends_at_the_data(cls, eta, spacing):
    scheduler = cls(clip_sample=False, timestep_spacing=spacing)
    options = {"eta": eta} if cls is DDIMScheduler else {}
    alpha_bar = alpha_bars(scheduler).numpy()
    for n in (1, 2, 3, 7, 50, 61, 150, 333, 501, 1000):
        scheduler.set_timesteps(n)
        std = gaussian_std(scheduler, **options)
        assert std == pytest.approx(exact_std(alpha_bar, scheduler.timesteps.tolist(), eta), rel=1e-9), n
        if n >= 150:  # "leading" starts far below T for 501 steps, and its noise there is not N(0, 1)
            assert abs(std - 0.5) < (0.03 if spacing == "leading" or n == 150 else 0.02), (n, std)
        listed = cls(clip_sample=False)
        listed.set_timesteps(timesteps=scheduler.timesteps.tolist())
        assert torch.equal(scheduler._step_table, listed._step_table)  # one chain, however it is chosen


def test_the_stride_of_diffusers_is_an_option():
    """With 501 steps diffusers' DDIM leaves twice the noise of the data, as each step ends one too high."""
    ours, theirs = (
        lib.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="sample")
        for lib in (latentia, diffusers)
    )
    lend_tables(theirs, ours)
    x, output = seeded(2, 1, 3, 3), seeded(2, 1, 3, 3, seed=1)
    for n, same in [(50, True), (150, False), (501, False)]:
        theirs.set_timesteps(n)
        set_like_diffusers(ours, n)
        t = ours.timesteps[n // 2]
        expected = theirs.step(output, t, x).prev_sample
        assert relative(ours.step(output, t, x).prev_sample, expected) < 1e-12
        ours.set_timesteps(n)
        differs = max(
            relative(ours.step(output, t, x).prev_sample, theirs.step(output, t, x).prev_sample)
            for t in ours.timesteps[:-1]
        )
        assert (differs < 1e-12) == same, (n, differs)
    stride = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    set_like_diffusers(stride, 501)
    assert gaussian_std(stride, eta=0.0) > 0.7


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_previous_timestep_is_the_next_visited_one(cls, spacing):
    scheduler = cls(timestep_spacing=spacing)
    assert [scheduler.previous_timestep(t) for t in (999, 1, 0)] == [998, 0, -1]
    for n in (1, 7, 50, 501):
        scheduler.set_timesteps(n)
        visited = [*scheduler.timesteps.tolist(), -1]
        assert [scheduler.previous_timestep(t) for t in scheduler.timesteps] == visited[1:]
        theirs = diffusers.DDPMScheduler(timestep_spacing=spacing)
        theirs.set_timesteps(n)
        assert [int(theirs.previous_timestep(t)) for t in scheduler.timesteps] == visited[1:]


def test_ddpm_steps_without_set_timesteps():
    ours, theirs = DDPMScheduler(), diffusers.DDPMScheduler()
    lend_tables(theirs, ours)
    x, output = seeded(2, 1, 3, 3), seeded(2, 1, 3, 3, seed=1)
    for t in (0, 1, 2, 500, 999):
        got, expected = (s.step(output, t, x, torch.Generator().manual_seed(0)) for s in (ours, theirs))
        assert relative(got.prev_sample, expected.prev_sample) < 1e-12


def entropy_bound(scheduler, sd, output_at):
    """The full variational bound L_T + sum L_{t-1} + L_0 (DDPM Eq. 5) for x_0 ~ N(0, sd^2), in nats, exactly: every
    term is a quadratic form of (x_0, eps), whose mean over four points x_0 = +-sd, eps = +-1 is that over Gaussians."""
    T = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(T)
    alpha_bar = torch.cumprod(1 - torch.linspace(0.0001, 0.02, T, dtype=torch.float64), 0)
    x0 = torch.tensor([sd, sd, -sd, -sd], dtype=torch.float64).reshape(4, 1)
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1)
    bound = float(0.5 * (alpha_bar[-1] * sd**2 + (1 - alpha_bar[-1]) - 1 - (1 - alpha_bar[-1]).log()))  # L_T
    for t in range(T):
        x_t = scheduler.add_noise(x0, eps, t)
        mean, log_variance, _ = scheduler.reverse(output_at(x_t, t, alpha_bar), t, x_t)
        variance = log_variance.exp()
        if t == 0:
            bound += float((0.5 * (2 * math.pi * variance).log() + (x0 - mean) ** 2 / (2 * variance)).mean())
            continue
        beta, before = 1 - alpha_bar[t] / alpha_bar[t - 1], alpha_bar[t - 1]
        tilde = (1 - before) / (1 - alpha_bar[t]) * beta
        truth = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - alpha_bar[t])
        kl = 0.5 * ((variance / tilde).log() + (tilde + (truth - mean) ** 2) / variance - 1)
        bound += float(kl.mean())
    return bound


def test_variational_bound_is_the_entropy_of_gaussian_data():
    def eps(x_t, t, alpha_bar, sd):
        return (1 - alpha_bar[t]).sqrt() * x_t / (alpha_bar[t] * sd**2 + 1 - alpha_bar[t])

    # data N(0, 1): beta_t is the exact reverse variance
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    large = DDPMScheduler(variance_type="fixed_large", clip_sample=False)
    bound = entropy_bound(large, 1.0, lambda x, t, a: eps(x, t, a, 1.0))
    assert entropy - 1e-9 < bound < 1.01 * entropy
    small = DDPMScheduler(variance_type="fixed_small", clip_sample=False)
    assert entropy_bound(small, 1.0, lambda x, t, a: eps(x, t, a, 1.0)) > bound

    # data N(0, .5^2): the exact variance lies between, and a network of learned range can say where
    sd, entropy = 0.5, 0.5 * math.log(2 * math.pi * math.e * 0.25)
    ranged = DDPMScheduler(variance_type="learned_range", clip_sample=False)

    def output(x_t, t, alpha_bar):
        v = 0.0
        if t > 0:
            beta, before = 1 - alpha_bar[t] / alpha_bar[t - 1], alpha_bar[t - 1]
            tilde = (1 - before) / (1 - alpha_bar[t]) * beta
            var_x0 = sd**2 * (1 - alpha_bar[t]) / (alpha_bar[t] * sd**2 + 1 - alpha_bar[t])
            exact = tilde + before * (beta / (1 - alpha_bar[t])) ** 2 * var_x0
            v = 2 * (exact / tilde).log() / (beta / tilde).log() - 1
        else:
            # only here the two ends are log beta_1 and log beta_tilde_2
            beta = 1 - alpha_bar[0]
            tilde = (1 - alpha_bar[0]) / (1 - alpha_bar[1]) * (1 - alpha_bar[1] / alpha_bar[0])
            exact = sd**2 * beta / (alpha_bar[0] * sd**2 + beta)
            v = 2 * (exact / tilde).log() / (beta / tilde).log() - 1
        return torch.cat([eps(x_t, t, alpha_bar, sd), torch.full_like(x_t, float(v))], 1)

    bound = entropy_bound(ranged, sd, output)
    assert entropy - 1e-9 < bound < entropy + 0.01 * abs(entropy)
    fixed = entropy_bound(large, sd, lambda x, t, a: eps(x, t, a, sd))
    assert fixed > bound


def test_posterior_is_the_one_of_bayes():
    """q(x_{t-1} | x_t, x_0) from the product of two Gaussians, also with steps left out."""
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(timesteps=[900, 400, 30])
    x0, x_t, a = seeded(3, 1), seeded(3, 1, seed=1), alpha_bars(scheduler)
    mean, log_variance = scheduler.posterior(x0, 900, x_t)
    step = a[900] / a[400]  # x_t = sqrt(step) x_s + ..., x_s = sqrt(a_400) x_0 + ...
    precision = 1 / (1 - a[400]) + step / (1 - step)
    expected = (a[400].sqrt() * x0 / (1 - a[400]) + step.sqrt() * x_t / (1 - step)) / precision
    assert (mean - expected).abs().max() < 1e-12
    assert float(log_variance) == pytest.approx(-float(precision.log()), abs=1e-12)
    # the last step's variance is 0; improved DDPM has the one before it stand in
    assert scheduler.posterior(x0, 30, x_t)[1] == scheduler.posterior(x0, 400, x_t)[1]


# ------------------------------------------------------------ DDIM inversion


def image_oracle(n=4):
    """eps of a mixture of eight Gaussians around 8x8 images in [-1, 1], and n images of it."""
    centres, spread = 0.6 * torch.tanh(2 * seeded(8, 64)), 0.08

    def eps(x, alpha_bar):
        z = x.reshape(len(x), 1, 64) - alpha_bar**0.5 * centres
        var = alpha_bar * spread**2 + 1 - alpha_bar
        r = torch.softmax(-(z**2).sum(-1) / (2 * var), 1)
        return ((1 - alpha_bar) ** 0.5 * (r[..., None] * z).sum(1) / var).reshape(x.shape)

    return eps, (centres[:n] + spread * seeded(n, 64, seed=9)).reshape(n, 1, 8, 8)


def psnr(a, b):
    return float(10 * torch.log10(4 / ((a - b) ** 2).mean((1, 2, 3))).min())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("n, evaluations, spacing", [(50, 5, "leading"), (50, 5, "linspace"), (20, 20, "trailing")])
def test_inversion_and_sampling_reproduce_the_image(prediction, n, evaluations, spacing):
    eps, images = image_oracle()
    scheduler = DDIMScheduler(prediction_type=prediction, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(n)

    def network(x, t):
        alpha_bar = alpha_bars(scheduler)[t]
        e = eps(x, alpha_bar)
        return scheduler.target((x - (1 - alpha_bar).sqrt() * e) / alpha_bar.sqrt(), e, t)

    def there_and_back(evaluations):
        x = images
        for t in scheduler.inverse_timesteps:
            x_t = x
            for _ in range(evaluations):
                x_t = scheduler.inverse_step(network(x_t, t), t, x, at=x_t)
            x = x_t
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        return x

    x = there_and_back(evaluations)
    assert psnr(x, images) > 40
    if n == 50:  # the usual inversion, one evaluation a step
        assert psnr(x, images) > psnr(there_and_back(1), images) > 30


def test_inverse_step_undoes_step_exactly_and_diffusers_agrees():
    for spacing, to_one in itertools.product(["leading", "trailing"], [True, False]):
        config = {"timestep_spacing": spacing, "set_alpha_to_one": to_one, "clip_sample": False}
        ours, theirs = DDIMScheduler(**config), diffusers.DDIMInverseScheduler(**config)
        theirs.alphas_cumprod = alpha_bars(ours)
        theirs.initial_alpha_cumprod = torch.ones(()) if to_one else alpha_bars(ours)[0]
        ours.set_timesteps(20)
        theirs.set_timesteps(20)
        assert torch.equal(ours.inverse_timesteps, theirs.timesteps)
        x, output = seeded(2, 1, 2, 2), seeded(2, 1, 2, 2, seed=1)
        for t in ours.inverse_timesteps:
            x_t = ours.inverse_step(output, t, x)
            assert relative(x_t, theirs.step(output, int(t), x).prev_sample) < 1e-12
            assert relative(ours.step(output, t, x_t).prev_sample, x) < 1e-12


# ------------------------------------------------------------ a step is a pure function


def make(cls, **config):
    scheduler = cls(**config)
    scheduler.set_timesteps(10)
    return scheduler


@pytest.mark.parametrize("cls", BOTH)
def test_step_is_pure(cls):
    scheduler, x = make(cls), seeded(3, 1, 4, 4)
    before = copy.deepcopy(vars(scheduler))
    extra = {"eta": 0.5} if cls is DDIMScheduler else {}

    def step(t):
        return scheduler.step(0.3 * x, t, x, generator=torch.Generator().manual_seed(0), **extra).prev_sample

    forwards = {int(t): step(t) for t in scheduler.timesteps}
    backwards = {int(t): step(int(t)) for t in scheduler.timesteps.flip(0)}
    assert all(torch.equal(forwards[t], backwards[t]) for t in forwards)
    assert len({float(value.sum()) for value in forwards.values()}) == 10
    scheduler.add_noise(x, x, 3)
    scheduler.predict_x0_eps(x, 3, x)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_time_per_sample_equals_one_time_each(cls, prediction):
    scheduler = make(cls, prediction_type=prediction)
    x, output, z = (seeded(4, 2, 3, 3, seed=seed) for seed in range(3))
    t = torch.tensor([900, 500, 100, 0])
    extra = {"eta": 0.7} if cls is DDIMScheduler else {}
    together = scheduler.step(output, t, x, variance_noise=z, **extra).prev_sample
    for i in range(4):
        one = slice(i, i + 1)
        for time in (int(t[i]), t[i], t[one]):
            alone = scheduler.step(output[one], time, x[one], variance_noise=z[one], **extra).prev_sample
            assert torch.equal(together[one], alone)
    if cls is DDIMScheduler:
        assert torch.equal(scheduler.inverse_step(output, t, x)[2:3], scheduler.inverse_step(output[2:3], 100, x[2:3]))


def test_generators_noise_and_eta_zero():
    x, output = seeded(2, 1, 4, 4), seeded(2, 1, 4, 4, seed=1)
    ddpm, ddim = make(DDPMScheduler), make(DDIMScheduler)
    for step in (ddpm.step, lambda *a, **k: ddim.step(*a, eta=1.0, **k)):
        each = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        both = step(output, 500, x, generator=each).prev_sample
        alone = step(output[1:], 500, x[1:], generator=torch.Generator().manual_seed(2)).prev_sample
        assert torch.equal(both[1:], alone)
        assert not torch.equal(step(output, 500, x).prev_sample, step(output, 500, x).prev_sample)
        assert torch.equal(step(output, 0, x).prev_sample, step(output, 0, x).prev_sample)  # the last step
    assert torch.equal(ddim.step(output, 500, x).prev_sample, ddim.step(output, 500, x).prev_sample)
    assert torch.equal(ddim.step(output, 500, x, return_dict=False)[0], ddim.step(output, 500, x).prev_sample)


def test_the_last_step_adds_no_noise_wherever_it_is():
    x, output, z = (seeded(2, 1, 4, 4, seed=seed) for seed in range(3))
    for config in ({"steps_offset": 1}, {"timestep_spacing": "trailing"}):
        large, to_first = {"variance_type": "fixed_large"}, {"set_alpha_to_one": False}
        for cls, extra, eta in [(DDPMScheduler, large, {}), (DDIMScheduler, to_first, {"eta": 1.0})]:
            scheduler = make(cls, **config, **extra)
            assert scheduler.timesteps[-1] > 0
            for t, noisy in [(scheduler.timesteps[-1], False), (scheduler.timesteps[-2], True)]:
                a, b = (scheduler.step(output, t, x, variance_noise=noise, **eta).prev_sample for noise in (z, 5 * z))
                assert torch.equal(a, b) != noisy


@pytest.mark.parametrize("cls", BOTH)
def test_a_list_of_time_steps_steps_from_each_to_the_next(cls):
    """With the true eps DDIM stays on the line through x_0 and eps, so it must land on each listed noise level."""
    visited = [990, 700, 333, 20, 3]
    scheduler = cls(clip_sample=False)
    scheduler.set_timesteps(timesteps=visited)
    assert scheduler.timesteps.tolist() == visited and scheduler.num_inference_steps == 5
    x0, eps = seeded(2, 1, 3, 3), seeded(2, 1, 3, 3, seed=1)
    for t, s in itertools.pairwise(visited):
        x_s = scheduler.step(eps, t, scheduler.add_noise(x0, eps, t), variance_noise=None).prev_sample
        if cls is DDIMScheduler:
            assert relative(x_s, scheduler.add_noise(x0, eps, s)) < 1e-12
    assert relative(scheduler.step(eps, 3, scheduler.add_noise(x0, eps, 3)).prev_sample, x0) < 1e-12
    reference = diffusers.DDPMScheduler(clip_sample=False)
    reference.set_timesteps(timesteps=visited)
    if cls is DDPMScheduler:
        lend_tables(reference, scheduler)
        for t in visited[:-1]:
            both = [s.step(eps, t, x0, torch.Generator().manual_seed(0)).prev_sample for s in (scheduler, reference)]
            assert relative(*both) < 1e-12


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_dtype_of_the_sample_is_kept(cls, dtype):
    scheduler, x = make(cls), seeded(2, 1, 4, 4).to(dtype)
    extra = {"eta": 0.5} if cls is DDIMScheduler else {}
    out = scheduler.step(x, 900, x, **extra)
    assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
    for value in (scheduler.add_noise(x, x, 5), scheduler.get_velocity(x, x, 5), *scheduler.predict_x0_eps(x, 5, x)):
        assert value.dtype == dtype
    # arithmetic is in float32 or better: the result is the exact one, rounded once
    z = torch.zeros_like(x)
    got = scheduler.step(x, 900, x, variance_noise=z, **extra).prev_sample
    exact = scheduler.step(x.double(), 900, x.double(), variance_noise=z.double(), **extra).prev_sample
    once = 0.51 * torch.finfo(dtype).eps * exact.abs() + (1e-6 if dtype != torch.float64 else 0)
    assert ((got.double() - exact).abs() <= once).all()


@pytest.mark.parametrize("cls, extra", [(DDPMScheduler, {}), (DDIMScheduler, {}), (DDIMScheduler, {"eta": 0.5})])
def test_step_compiles_whole_and_once(cls, extra):
    scheduler, counter, x = make(cls, thresholding=True), CompileCounter(), seeded(2, 1, 4, 4, dtype=torch.float32)
    z = seeded(2, 1, 4, 4, seed=1, dtype=torch.float32)
    step = torch.compile(
        lambda output, t, x: scheduler.step(output, t, x, variance_noise=z, **extra).prev_sample,
        fullgraph=True,
        backend=counter,
    )
    for t in scheduler.timesteps:
        assert torch.equal(step(0.1 * x, t, x), scheduler.step(0.1 * x, t, x, variance_noise=z, **extra).prev_sample)
    assert counter.frame_count == 1


@pytest.mark.parametrize("cls, extra", [(DDPMScheduler, {}), (DDIMScheduler, {"eta": 0.5})])
def test_the_denoising_loop_compiles_whole(cls, extra):
    scheduler = cls()
    scheduler.set_timesteps(3)

    def loop(x):
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, **extra).prev_sample
        return x

    x = seeded(2, 1, 4, 4, dtype=torch.float32)
    torch.manual_seed(0)
    expected = loop(x)
    torch.manual_seed(0)
    assert torch.allclose(torch.compile(loop, fullgraph=True, backend="aot_eager")(x), expected, atol=1e-6)


# ------------------------------------------------------------ saving, and bad input


@pytest.mark.parametrize("cls", BOTH)
def test_saved_and_loaded_tables_are_equal(cls, tmp_path):
    trained = {"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.3]}
    for config in ({}, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, trained):
        scheduler = cls(**config)
        scheduler.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == cls.__name__
        loaded = cls.from_pretrained(tmp_path)
        settings = [{k: v for k, v in one.config.items() if k[0] != "_"} for one in (loaded, scheduler)]
        assert settings[0] == settings[1] and len(loaded) == scheduler.config.num_train_timesteps
        for name, value in vars(scheduler).items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, getattr(loaded, name)), name
        assert getattr(latentia, cls.__name__) is cls


@pytest.mark.parametrize("cls", BOTH)
def test_to_moves_every_table(cls):
    scheduler = make(cls).to("meta")
    assert all(value.is_meta for value in vars(scheduler).values() if isinstance(value, torch.Tensor))
    scheduler = cls()
    scheduler.set_timesteps(10, device="meta")
    assert all(value.is_meta for value in vars(scheduler).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("cls", BOTH)
def test_bad_configurations_are_refused(cls):
    for config, words in [
        ({"beta_schedule": "cosine"}, "squaredcos_cap_v2"),
        ({"beta_schedule": "liner"}, 'Did you mean "linear"'),
        ({"prediction_type": "epsilom"}, 'Did you mean "epsilon"'),
        ({"timestep_spacing": "tailing"}, 'Did you mean "trailing"'),
        ({"num_train_timesteps": 0}, r"in \[1, .*got 0"),
        ({"beta_end": 1.5}, "beta"),
        ({"beta_start": 0.0}, "beta"),
        ({"trained_betas": [0.1, 0.2]}, "2 values"),
        ({"sample_max_value": 0.5}, "sample_max_value"),
        ({"dynamic_thresholding_ratio": 0.0}, "dynamic_thresholding_ratio"),
        ({"clip_sample_range": 0.0}, "clip_sample_range"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "at least 2"),
    ]:
        with pytest.raises(UsageError, match=words):
            cls(**config)
    if cls is DDPMScheduler:
        with pytest.raises(UsageError, match='Did you mean "fixed_small"'):
            cls(variance_type="fixd_small")


@pytest.mark.parametrize("cls", BOTH)
def test_bad_arguments_are_refused(cls):
    x, scheduler = torch.zeros(2, 1, 4, 4), cls()
    if cls is DDIMScheduler:
        with pytest.raises(UsageError, match="set_timesteps"):
            scheduler.step(x, 0, x)
    for n in (0, -3, 1001, 2.5):
        with pytest.raises(UsageError, match=f"between 1 and num_train_timesteps=1000; got {n}"):
            scheduler.set_timesteps(n)
    for given in ({}, {"num_inference_steps": 3, "timesteps": [2, 1]}):
        with pytest.raises(UsageError, match="exactly one"):
            scheduler.set_timesteps(**given)
    for timesteps in ([], [1, 2], [5, 5], [1000, 1], [3, -1]):
        with pytest.raises(UsageError, match="descend"):
            scheduler.set_timesteps(timesteps=timesteps)
    with pytest.raises(UsageError, match="visits t=1000"):
        cls(steps_offset=1).set_timesteps(1000)
    scheduler.set_timesteps(10)
    calls = [
        ("model_output must have shape", lambda: scheduler.step(x[:1], 0, x)),
        ("model_output must have shape", lambda: scheduler.step(torch.cat([x, x], 1), 0, x)),
        ("timestep must be between 0 and 999; got -1", lambda: scheduler.step(x, -1, x)),
        ("timestep must be between 0 and 999; got 1000", lambda: scheduler.step(x, 1000, x)),
        ("each of the 2 samples", lambda: scheduler.step(x, torch.zeros(3, dtype=torch.long), x)),
        ("torch.float32", lambda: scheduler.step(x, torch.tensor(1.0), x)),
        ("noise must have shape", lambda: scheduler.add_noise(x, x[:1], 0)),
        ("noise must have shape", lambda: scheduler.get_velocity(x, x[:1], 0)),
        ("noise must have shape", lambda: scheduler.target(x, x[:1], 0)),
        ("noise must have shape", lambda: scheduler.forward_step(x, x[:1], 0)),
        ("model_output must have shape", lambda: scheduler.predict_x0_eps(x[:1], 0, x)),
    ]
    eta = {"eta": 1.0} if cls is DDIMScheduler else {}
    one = torch.Generator()
    calls += [
        ("not both", lambda: scheduler.step(x, 0, x, generator=one, variance_noise=x, **eta)),
        ("list of 2", lambda: scheduler.step(x, 0, x, generator=[one] * 3, **eta)),
        ("variance_noise must have shape", lambda: scheduler.step(x, 0, x, variance_noise=x[:1], **eta)),
    ]
    if cls is DDIMScheduler:
        calls += [("eta must be in", lambda eta=eta: scheduler.step(x, 0, x, eta=eta)) for eta in (-0.1, 1.1)]
        calls += [("at must have shape", lambda: scheduler.inverse_step(x, 0, x, at=x[:1]))]
    else:
        calls += [
            ("twice the sample's channels", lambda kind=kind: make(cls, variance_type=kind).step(x, 0, x))
            for kind in ("learned", "learned_range")
        ]
        calls += [("original_samples must have", lambda: scheduler.posterior(x[:1], 0, x))]
    for words, call in calls:
        with pytest.raises(UsageError, match=words):
            call()
