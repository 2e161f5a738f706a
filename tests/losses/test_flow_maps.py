"""Mean flow and shortcut models against Gaussian data, whose flow map has a closed form."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from latentia import UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import UsageError
from latentia.functional.continuous_flow import directional_derivative
from latentia.losses.flow_maps import OneStepGenerator, mean_flow_loss, shortcut_loss
from latentia.losses.flow_matching import reflow_loss
from latentia.pipelines.sampling import invert_ode, sample_ode
from latentia.rng import Rng

N = 4096
SPREAD = 0.5  # standard deviation of the data


class Config(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)


class Exact(torch.nn.Module):
    """The mean velocity of Gaussian data, whose flow map is x_r = x_t s_r / s_t; times a factor 1 + `off`."""

    def __init__(self, instantaneous=False):
        super().__init__()
        self.off = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.instantaneous = instantaneous
        self.config = Config(target_time=True)

    @staticmethod
    def deviation(t):
        return ((1 - t).square() * SPREAD**2 + t.square()).sqrt()

    def forward(self, x, t, target_timestep):
        t, r = (time.double().reshape(-1, 1, 1, 1) / 1000 for time in (t, target_timestep))
        velocity = (t - (1 - t) * SPREAD**2) / self.deviation(t).square()
        step = torch.where(t > r, t - r, 1.0)
        mean = torch.where(t > r, (1 - self.deviation(r) / self.deviation(t)) / step, velocity)
        factor = velocity if self.instantaneous else mean
        return SimpleNamespace(sample=(1 + self.off) * factor * x)


def batch():
    generator = torch.Generator().manual_seed(1)
    return {"x": SPREAD * torch.randn(N, 1, 1, 1, generator=generator)}


def score(network, loss):
    """The gradient with respect to the factor, in standard errors over 20 batches."""
    gradients = []
    for step in range(20):
        network.off.grad = None
        loss(network, batch(), Rng(0, step * N, N, 0, N))["loss"].backward()
        gradients.append(network.off.grad.clone())
    gradients = torch.stack(gradients)
    return float(gradients.mean() / (gradients.std() / 20**0.5))


def test_the_exact_flow_map_is_a_stationary_point_of_mean_flow():
    loss = partial(mean_flow_loss, adaptive_power=0.0, flow_share=0.0)
    assert abs(score(Exact(), loss)) < 4
    assert abs(score(Exact(instantaneous=True), loss)) > 20


def test_two_short_steps_of_the_exact_map_are_one_long():
    """The shortest are Euler steps with the velocity, whose error falls with their length."""

    def error(network, most_steps):
        loss = shortcut_loss(network, batch(), Rng(0, 0, N, 0, N), flow_share=0.0, most_steps=most_steps)
        return loss["loss"].item()

    assert error(Exact(), 2**16) < 1e-7 < 1e-3 < error(Exact(instantaneous=True), 2**16)
    assert error(Exact(), 2) > 0.01


def test_the_shortest_steps_take_the_velocity():
    """Else no length of a step is bound to it, as networks tell steps of length 0 from others."""

    class Recorder(Exact):
        def forward(self, x, t, target_timestep):
            self.asked = [*getattr(self, "asked", []), (t - target_timestep) / 1000]
            return super().forward(x, t, target_timestep)

    network = Recorder()
    shortcut_loss(network, batch(), Rng(0, 0, N, 0, N), flow_share=0.0, most_steps=8)
    first, second, step = network.asked
    torch.testing.assert_close(first, torch.where(step < 0.26, 0.0, step / 2))
    torch.testing.assert_close(second, first)
    assert step.unique().tolist() == pytest.approx([0.25, 0.5, 1.0])


@pytest.mark.parametrize("loss", [mean_flow_loss, shortcut_loss])
def test_without_steps_it_is_flow_matching(loss):
    value = loss(Exact(), batch(), Rng(0, 0, N, 0, N), flow_share=1.0)
    error = value.get("error", value["loss"])
    deviation = SPREAD / Exact.deviation(torch.linspace(0.0005, 0.9995, 1000).double())  # of eps - x_0 given x_t
    if loss is shortcut_loss:  # its times are uniform
        assert error.item() == pytest.approx(deviation.square().mean().item(), rel=0.05)
    assert 0 < error < 1 + SPREAD**2


def test_reflow_learns_straight_lines_of_the_teacher():
    teacher, exact = Exact(instantaneous=True), Exact()

    def velocity(x, t, conditions):
        return teacher(x, 1000 * t, 1000 * t).sample.float()

    class Straight(Exact):
        """Pairs (eps, s eps): x_t = eps (s + t (1 - s)), whose velocity is eps (1 - s)."""

        def forward(self, x, t):
            t = t.double().reshape(-1, 1, 1, 1) / 1000
            return SimpleNamespace(sample=x * (1 - SPREAD) / (SPREAD + t * (1 - SPREAD)))

    class Curved(Exact):
        def forward(self, x, t):
            return exact(x, t, t)

    def error(network, steps):
        loss = reflow_loss(network, batch(), Rng(0, 0, N, 0, N), teacher=velocity, teacher_steps=steps)
        return loss["loss"].item()

    assert error(Straight(), 64) < 1e-6 < 1e-3 < error(Curved(), 64)
    assert error(Straight(), 2) > 10 * error(Straight(), 8)  # the error of the solver


def test_a_step_may_be_as_long_as_one_likes():
    noise = torch.randn(5, 1, 1, 1, dtype=torch.float64)
    scheduler = FlowMatchEulerDiscreteScheduler()
    one, seven = (sample_ode(Exact(), scheduler, noise, None, steps) for steps in (1, 7))
    torch.testing.assert_close(one, SPREAD * noise, atol=1e-6, rtol=0)
    torch.testing.assert_close(seven, one, atol=1e-6, rtol=0)
    back = invert_ode(Exact(), scheduler, one, None, 3, refinements=60)
    torch.testing.assert_close(back, noise, atol=1e-6, rtol=0)


def test_derivatives_equal_finite_differences_channels_last():
    torch.manual_seed(0)
    network = UNet2D(8, 1, block_out_channels=(8, 16), attention_head_dim=4, target_time=True).double()
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    network.to(memory_format=torch.channels_last)
    x, v, t = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 1, 8, 8).double(), torch.tensor([0.25, 0.5])

    def f(x, t):
        return network(x, 8 * t, target_timestep=8 * torch.tensor([0.125, 0.25])).sample

    found = directional_derivative(f, (x, t), (v, torch.ones_like(t)))
    step = 2.0**-10  # times are embedded in float32, and these are exact
    with torch.no_grad():
        expected = (f(x + step * v, t + step) - f(x - step * v, t - step)) / (2 * step)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert found.abs().max() > 0.1


def test_a_network_without_the_target_becomes_one_with_it():
    torch.manual_seed(0)
    small = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "attention_head_dim": 4}
    plain, other = UNet2D(**small), UNet2D(**small, target_time=True)
    for parameter in plain.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    assert not other.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(plain(x, 500).sample, other(x, 500, target_timestep=0).sample)


def test_what_cannot_be_is_refused():
    data = {"x": torch.zeros(4, 1, 8, 8)}
    plain = UNet2D(8, 1, block_out_channels=(8,), attention_head_dim=4)
    with pytest.raises(UsageError, match="target_time=True"):
        mean_flow_loss(plain, data, Rng(0, 0, 4, 0, 4))
    with pytest.raises(UsageError, match="set target_time"):
        plain(data["x"], 5, target_timestep=0)
    with pytest.raises(UsageError, match="power of two"):
        shortcut_loss(Exact(), batch(), Rng(0, 0, N, 0, N), most_steps=12)
    with pytest.raises(UsageError, match=r"flow_share must be .* got 1.5"):
        mean_flow_loss(Exact(), batch(), Rng(0, 0, N, 0, N), flow_share=1.5)


@pytest.mark.parametrize("target_time", [True, False])
def test_a_generator_of_one_step_makes_what_the_pipeline_makes(target_time):
    torch.manual_seed(0)
    config = {"sample_size": (8, 4), "in_channels": 2, "block_out_channels": (8,), "attention_head_dim": 8}
    unet = UNet2D(**config, num_class_embeds=3, target_time=target_time).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    generator, noise, labels = OneStepGenerator(unet), torch.randn(3, 64), torch.tensor([0, 2, 1])
    with torch.no_grad():
        found = generator(noise, class_labels=labels).sample
    assert generator.config.latent_dim == 64 and generator.config.num_class_embeds == 3
    pipe = UnconditionalDiffusionPipeline(unet, FlowMatchEulerDiscreteScheduler(1000), unconditional=False)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(class_labels=labels, latents=noise.view(3, 2, 8, 4), num_inference_steps=1, output_type="latent").images
    torch.testing.assert_close(found, made, atol=1e-5, rtol=1e-5)


def sample_at(net, x, t):
    return net(x, t, target_timestep=torch.zeros(len(t))).sample


def test_smooth_time_bounds_the_derivative_by_time():
    """Of an untrained network: fast oscillations of the encoding rule it, which mean flow cannot follow."""
    slopes = {}
    for smooth in (False, True):
        torch.manual_seed(0)
        net = UNet2D(8, 1, block_out_channels=(64,), target_time=True, smooth_time=smooth).eval()
        for parameter in net.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 500.0)
        by_time = partial(sample_at, net, x)
        slopes[smooth] = 1000 * directional_derivative(by_time, (t,), (torch.ones(4),)).norm() / by_time(t).norm()
    assert slopes[True] < 0.1 * slopes[False]
