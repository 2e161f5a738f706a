"""What only training can show, at its smallest: a mixture is learnt, the time matters, the skips matter."""

import diffusers
import pytest
import torch
from accelerate import Accelerator

from latentia import DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.data import load_images
from latentia.losses.diffusion import diffusion_loss
from latentia.random import Draws
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, learning_rate_schedule, train

# a 1-D mixture of four Gaussians: mean .11145, variance 1.17186
MU, SD = torch.tensor([1.5, -0.216, 0.45, -1.875]), torch.tensor([0.3, 0.15, 0.525, 0.075])
EDGES = torch.tensor([0.2, 0.5, 0.85, 1.0])


class Mixture:
    """An endless stream of points, each as a picture of one pixel."""

    fingerprint = "mixture"

    def batch(self, start, stop, *, seed=0, device="cpu"):
        draw = Draws(seed, start, stop - start, 0, stop - start)
        k = torch.searchsorted(EDGES, draw.uniform("component")).clamp(max=3)
        return {"images": (MU[k] + SD[k] * draw.normal("spread", ())).reshape(-1, 1, 1, 1)}


def fit(unet, scheduler, data, folder, steps, batch_size, view=lambda unet: unet, look=None):
    accelerator, ema = Accelerator(cpu=True), EMA(unet)
    network, optimizer = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), lr=4e-3))
    phase = Phase(
        "unet", lambda batch, draw: diffusion_loss(view(network), scheduler, batch, draw), network, optimizer,
        learning_rate_schedule("cosine", 20, steps), max_grad_norm=1.0, ema=ema,
    )  # fmt: skip
    hooks = [Hook(steps // 3, lambda progress: look(ema.module))] if look else []
    train(
        accelerator, [phase], data, output_dir=folder, max_steps=steps, batch_size=batch_size, hooks=hooks,
        checkpoint_every=None, resume="none",
    )  # fmt: skip
    return ema.module


def pixel_network():
    torch.manual_seed(0)
    return UNet2D(sample_size=1, in_channels=1, block_out_channels=(32,), layers_per_block=1, attention_levels=(False,))


@torch.no_grad()
def held_out_loss(network, scheduler, x0):
    """The mean squared error of the predicted noise; always the same times and noise."""
    n = len(x0)
    return float(diffusion_loss(network, scheduler, {"images": x0}, Draws(99, 0, n, 0, n))["loss"])


def blind(unet):
    return lambda x, t: unet(x, torch.zeros_like(t))


STEPS = 500
SCHEDULER = DDPMScheduler(clip_sample=False)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return fit(pixel_network(), SCHEDULER, Mixture(), tmp_path_factory.mktemp("mixture"), STEPS, 256)


def test_a_trained_network_samples_the_mixture_under_stock_solvers(learnt):
    n = 4000
    data = Mixture().batch(0, n, seed=1)["images"].flatten().sort().values
    x = torch.randn(n, 1, 1, 1)

    def wasserstein(samples):
        return float((samples.flatten().sort().values - data).abs().mean())

    single = wasserstein(data.mean() + data.std() * x)
    assert 0.15 < single < 0.25
    for name in ("DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"):
        pipe = UnconditionalDiffusionPipeline(
            learnt, getattr(diffusers, f"{name}Scheduler").from_config(SCHEDULER.config)
        )
        pipe.set_progress_bar_config(disable=True)
        samples = pipe(latents=x, num_inference_steps=30, output_type="latent").images
        assert wasserstein(samples) < 0.5 * single, name


def test_without_the_time_the_noise_is_predicted_worse(learnt, tmp_path):
    x0 = Mixture().batch(0, 4000, seed=2)["images"]
    timeless = fit(pixel_network(), SCHEDULER, Mixture(), tmp_path, STEPS, 256, view=blind)
    with_time, without = held_out_loss(learnt, SCHEDULER, x0), held_out_loss(blind(timeless), SCHEDULER, x0)
    assert with_time < 0.95 * without < 0.95


def test_the_loss_falls_from_that_of_zero_and_rises_without_the_skips(tmp_path):
    scheduler, looks = DDPMScheduler(beta_schedule="squaredcos_cap_v2"), []
    x0 = load_images("digits", split="train[80%:]").images.float() / 127.5 - 1
    torch.manual_seed(0)
    unet = UNet2D(
        sample_size=8, in_channels=1, block_out_channels=(16, 32), layers_per_block=1, attention_levels=(False, False)
    )
    data = load_images("digits", split="train[:80%]", label_column="")
    zero = held_out_loss(unet, scheduler, x0)
    assert zero == pytest.approx(1.0, abs=0.03)
    fit(unet, scheduler, data, tmp_path, 120, 64, look=lambda ema: looks.append((held_out_loss(ema, scheduler, x0), ema)))
    losses, network = [loss for loss, _ in looks], looks[-1][1]
    assert zero > losses[0] > losses[1] > losses[2] < 0.5
    for stages, channels in zip(network.up, (32, 16)):
        stages[0].register_forward_pre_hook(
            lambda stage, args, channels=channels: (args[0] * (torch.arange(args[0].shape[1]) < args[0].shape[1] - channels).view(1, -1, 1, 1), *args[1:])
        )
    assert held_out_loss(network, scheduler, x0) > 1.5 * losses[-1]
