"""What only training can show, at its smallest: a mixture is learnt, the time matters, the skips matter."""

import diffusers
import pytest
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import FrozenDict
from torch import nn

from latentia import DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.data import load_images
from latentia.losses.diffusion import diffusion_loss
from latentia.models.layers.conditioning import sinusoidal_embedding
from latentia.models.unet import UNet2DOutput
from latentia.rng import Rng
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, learning_rate_schedule, train


class Mixture:
    """An endless stream of points around -1 and 1, each as a picture of one pixel."""

    fingerprint = "two normals"

    def batch(self, start, stop, *, seed=0, device="cpu"):
        rng = Rng(seed, start, stop - start, 0, stop - start)
        sign = (rng.uniform("sign") < 0.5) * 2.0 - 1
        return {"x": (sign + 0.15 * rng.normal("spread", ())).reshape(-1, 1, 1, 1)}


def fit(unet, scheduler, data, folder, steps, batch_size, view=lambda unet: unet, look=None):
    accelerator, ema = Accelerator(cpu=True), EMA(unet)
    network, optimizer = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), lr=4e-3))
    phase = Phase(
        "unet", lambda batch, rng: diffusion_loss(view(network), scheduler, batch, rng), network, optimizer,
        learning_rate_schedule("cosine", 20, steps), max_grad_norm=1.0, ema=ema,
    )  # fmt: skip
    hooks = [Hook(steps // 3, lambda progress: look(ema.module))] if look else []
    train(
        accelerator, [phase], data, output_dir=folder, max_steps=steps, batch_size=batch_size, hooks=hooks,
        checkpoint_every=None, resume="none",
    )  # fmt: skip
    return ema.module


class PointNetwork(torch.nn.Module):
    """A multilayer perceptron that is called as UNet2D is."""

    config = FrozenDict(in_channels=1, out_channels=1, sample_size=1)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, width=64):
        super().__init__()
        torch.manual_seed(0)
        self.point, self.time, self.out = nn.Linear(1, width), nn.Linear(32, width), nn.Linear(width, 1)
        self.hidden = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, x, t):
        time = self.time(sinusoidal_embedding(torch.as_tensor(t).reshape(-1), 32))
        return UNet2DOutput(sample=self.out(self.hidden(self.point(x.flatten(1)) + time)).view_as(x))


@torch.no_grad()
def held_out_loss(network, scheduler, x0):
    """The mean squared error of the predicted noise; always the same times and noise."""
    n = len(x0)
    return float(diffusion_loss(network, scheduler, {"x": x0}, Rng(99, 0, n, 0, n))["loss"])


def blind(unet):
    return lambda x, t: unet(x, torch.zeros_like(t))


STEPS = 500
SCHEDULER = DDPMScheduler(clip_sample=False)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return fit(PointNetwork(), SCHEDULER, Mixture(), tmp_path_factory.mktemp("mixture"), STEPS, 128)


def test_a_trained_network_samples_under_stock_solvers(learnt):
    n = 4000
    data = Mixture().batch(0, n, seed=1)["x"].flatten().sort().values
    x = torch.randn(n, 1, 1, 1)

    def wasserstein(samples):
        return float((samples.flatten().sort().values - data).abs().mean())

    single = wasserstein(data.mean() + data.std() * x)
    assert single > 0.3
    for name in ("DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"):
        pipe = UnconditionalDiffusionPipeline(
            learnt, getattr(diffusers, f"{name}Scheduler").from_config(SCHEDULER.config)
        )
        pipe.set_progress_bar_config(disable=True)
        samples = pipe(latents=x, num_inference_steps=30, output_type="latent").images
        assert wasserstein(samples) < 0.3 * single, name


def test_without_the_time_the_noise_is_predicted_worse(learnt, tmp_path):
    x0 = Mixture().batch(0, 4000, seed=2)["x"]
    timeless = fit(PointNetwork(), SCHEDULER, Mixture(), tmp_path, STEPS, 128, view=blind)
    with_time, without = held_out_loss(learnt, SCHEDULER, x0), held_out_loss(blind(timeless), SCHEDULER, x0)
    assert with_time < 0.95 * without < 0.95


def test_the_loss_falls_from_zero_output_and_rises_without_skips(tmp_path):
    scheduler, looks = DDPMScheduler(beta_schedule="squaredcos_cap_v2"), []
    x0 = load_images("digits", split="train[80%:]").images.float() / 127.5 - 1
    torch.manual_seed(0)
    unet = UNet2D(
        sample_size=8, in_channels=1, patch_size=2, block_out_channels=(8, 16), layers_per_block=1,
        attention_stages=(False, False),
    )  # fmt: skip
    data = load_images("digits", split="train[:80%]", label_column="")
    zero = held_out_loss(unet, scheduler, x0)
    assert zero == pytest.approx(1.0, abs=0.03)
    network = fit(
        unet, scheduler, data, tmp_path, 90, 32, look=lambda ema: looks.append(held_out_loss(ema, scheduler, x0))
    )
    assert zero > looks[0] > looks[1] > looks[2] and looks[2] < 0.7
    for stages, channels in zip(network.up_blocks, (16, 8)):  # the last channels of what a stage gets are the skip's

        def cut(stage, args, channels=channels):
            kept = args[0].shape[1] - channels
            return torch.cat([args[0][:, :kept], torch.zeros_like(args[0][:, kept:])], 1), *args[1:]

        stages[0].register_forward_pre_hook(cut)
    assert held_out_loss(network, scheduler, x0) > 1.5 * looks[-1]
