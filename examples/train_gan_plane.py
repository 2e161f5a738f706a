"""Train a GAN on points of the plane and animate it: samples, discriminator, gradients, divergences.

    python examples/train_gan_plane.py --plane ring --output_dir outputs/gan-ring

The folder it leaves is a pipeline, with `animation.gif` of the run and `animation.png`, its last frame. Shapes: "ring"
and "grid" with modes to count, and GAN Lab's "lab_line", "lab_gaussians", "lab_ring" and "lab_disjoint", among others.
"""

import copy
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from latentia import GANPipeline, MLPDiscriminator, MLPGenerator
from latentia.data.plane import PlaneData
from latentia.errors import Count, Natural, Positive, Size, UsageError, Weight
from latentia.evaluation import grid_divergences, mode_coverage
from latentia.evaluation.modes import PLANE_SAMPLES
from latentia.evaluation.plane import LAB_SAMPLES
from latentia.files.writing import write_json
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.losses.augmentation import AdaptiveAugmentation
from latentia.losses.diffusion_augmentation import DiffusionAugmentation
from latentia.runs.arguments import (
    EMAArguments,
    NetworkArguments,
    OptimizationArguments,
    OutputArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.export import component_names, export
from latentia.runs.failure_monitor import FailureMonitor
from latentia.runs.run import INTERRUPTED, Run
from latentia.training.loop import Hook, Phase
from latentia.training.ownership import disk_errors

DIFFUSION_FLAGS = {name: f"diffusion_{name}" for name in ("sigma", "min_steps", "max_steps", "times")}
ADAPTED_IN = 100_000  # points in which the chain of a diffusion can grow from the shortest to the longest


@dataclass(frozen=True)
class PlaneArguments:
    """The points, the objective and the animation."""

    plane: str = "ring"
    """Distribution of the points, a name of `latentia.data.plane.PLANES`."""
    spread: Positive = 3.0
    """Standard deviation to which points are scaled for the networks; their samples are scaled back."""
    objective: str = "relativistic"
    """minimax, non_saturating, least_squares, hinge, wasserstein or relativistic."""
    r1: Weight = 1.0
    """Weight of the discriminator's squared gradient at real points; 0: none."""
    r2: Weight = 1.0
    """The same at generated points."""
    n_critic: Count = 1
    """Steps of the discriminator for one of the generator."""
    pack: Size = 1
    """Points that the discriminator discriminates together."""
    augment: Literal["none", "diffusion"] = "none"
    """Add noise to what the discriminator sees, by a diffusion that is longer the more it overfits: Diffusion-GAN."""
    frame_steps: Natural = 250
    """Steps between frames of the animation; 0: the last image alone."""


@dataclass(frozen=True)
class Arguments:
    plane: PlaneArguments = PlaneArguments()
    model: NetworkArguments = network_arguments(
        MLPGenerator,
        "latent_dim hidden_sizes activation",
        latent_dim=2,
        hidden_sizes=(128, 128, 128),
        activation="relu",
    )
    diffusion: NetworkArguments = network_arguments(
        DiffusionAugmentation, "sigma min_steps max_steps times", flags=DIFFUSION_FLAGS, sigma=0.2, min_steps=200
    )
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=128, max_train_steps=3000, adam_beta1=0.0, adam_weight_decay=0.0, max_grad_norm=100.0
    )
    ema: EMAArguments = EMAArguments(ema_decay=0.999)
    output: OutputArguments = OutputArguments()


class Scaled(PlaneData):
    """The points as the networks see them: centred, with a standard deviation of `spread` over both axes."""

    def __init__(self, plane: str, spread: float):
        super().__init__(plane)
        points = self.plane.sample(LAB_SAMPLES, 0)
        self.mean, self.factor = points.mean(0), spread / points.std()
        self.fingerprint = f"{self.fingerprint}-{spread:g}"

    def batch(self, start: int, stop: int, *, seed: int = 0, device="cpu") -> dict:
        points = self.plane.points(start, stop, seed, "batch")
        return {"x": self.scale(points).to(device, non_blocking=True)}

    def scale(self, points: torch.Tensor) -> torch.Tensor:
        return (points - self.mean) * self.factor

    def unscale(self, points: torch.Tensor) -> torch.Tensor:
        return points / self.factor + self.mean

    @torch.no_grad()
    def fold_scale(self, generator: MLPGenerator, discriminator: MLPDiscriminator) -> None:
        """Put the scale into the first and the last layer, so that the networks work on points as they are."""
        generator.out.weight /= self.factor
        generator.out.bias.copy_(self.unscale(generator.out.bias))
        first = discriminator.layers[0]
        first.weight *= self.factor
        first.bias -= first.weight @ self.mean.repeat(discriminator.config.pack)


class Animation:
    """Training as GAN Lab shows it (Kahng et al., 2018, 1809.01587): a hook that draws a frame."""

    def __init__(self, data: Scaled, generator, discriminator):
        self.generator, self.discriminator, self.data, self.plane = generator, discriminator, data, data.plane
        self.real = data.plane.sample(LAB_SAMPLES, 0)
        low, high = self.real.amin(0), self.real.amax(0)
        unit = data.plane.name.startswith("lab_")  # these lie in the unit square, where GAN Lab measures them
        margin = 0.15 * (high - low).max()
        self.low, self.high = (torch.zeros(2), torch.ones(2)) if unit else (low - margin, high + margin)
        self.of_real = self.divergence(data.plane.sample(LAB_SAMPLES, 1))
        self.history: list[tuple[int, float, float]] = []
        self.frames: list[Image.Image] = []

    def divergence(self, points: torch.Tensor):
        """KL and JS to the real points, on a grid of 30 x 30 cells."""
        return grid_divergences(*((part - self.low) / (self.high - self.low) for part in (points, self.real)))

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> torch.Tensor:
        dim = self.generator.config.latent_dim
        return self.generated(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)))

    def generated(self, z: torch.Tensor) -> torch.Tensor:
        """Points of latents, on the CPU."""
        return self.data.unscale(self.generator(z.to(self.generator.device)).sample.cpu())

    def __call__(self, progress) -> dict[str, float]:
        found = self.divergence(self.sample(LAB_SAMPLES, 2))
        self.history.append((progress.step, found.kl, found.js))
        self.frames.append(self.draw(progress.step))
        return {"eval/kl": found.kl, "eval/js": found.js}

    def draw(self, step: int) -> Image.Image:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.6), layout="constrained")
        panels = figure.subplot_mosaic([["points", "grid"], ["points", "time"]], width_ratios=[1.6, 1])
        box = [float(v) for pair in zip(self.low, self.high) for v in pair]
        fake, real = self.sample(300, 3), self.real[:300]
        height, arrows = self.probabilities(real, fake)
        plane = panels["points"]
        plane.imshow(height.numpy(), extent=box, origin="lower", cmap="RdYlBu", vmin=0, vmax=1, alpha=0.6)
        plane.scatter(*real.T.numpy(), s=5, color="#2e8b57", label="real")
        plane.scatter(*fake.T.numpy(), s=5, color="#6c4aa1", label="generated")
        plane.quiver(
            *fake[:60].T.numpy(), *arrows[:60].T.numpy(), angles="xy", width=0.003, color="#6c4aa1", alpha=0.7
        )  # gradients of the logits
        plane.set(xlim=box[:2], ylim=box[2:], aspect="equal", title=f"step {step}")
        plane.legend(loc="upper right", fontsize=7)
        if self.generator.config.latent_dim == 2:
            self.draw_grid(panels["grid"])
        panels["grid"].set(xlim=box[:2], ylim=box[2:], aspect="equal", title="a grid of the latents, mapped")
        steps, kl, js = zip(*self.history)
        panels["time"].plot(steps, js, color="#1f4e79", label="JS")
        panels["time"].plot(steps, kl, color="#d1495b", label="KL", alpha=0.5)
        panels["time"].axhline(self.of_real.js, color="#1f4e79", linestyle=":", label="JS of real points")
        panels["time"].set(ylim=(0, max(1.0, 1.1 * max(js))), xlabel="steps", ylabel="bits")
        panels["time"].legend(fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=80)
        return Image.open(buffer).convert("RGB")

    def probabilities(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """P(real) on a grid of 30 x 30, with the logits centred between both kinds of points, and its gradient."""
        x, y = (self.low[k] + (self.high[k] - self.low[k]) * (torch.arange(30) + 0.5) / 30 for k in (0, 1))
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)  # rows are y
        discriminator = copy.deepcopy(self.discriminator).cpu().requires_grad_(False)

        def logits(points: torch.Tensor) -> torch.Tensor:  # of packs of equal points, if it takes packs
            return discriminator(self.data.scale(points).repeat_interleave(discriminator.config.pack, 0)).logits

        centre = (logits(real).mean() + logits(fake).mean()) / 2
        fake = fake.clone().requires_grad_()
        (arrows,) = torch.autograd.grad(logits(fake).sum(), fake)
        centred = logits(places) - centre
        return (centred / centred.abs().max().clamp(max=1)).sigmoid().view(30, 30), arrows  # faint ones in full colour

    @torch.no_grad()
    def draw_grid(self, panel) -> None:
        """20 x 20 cells of equal probability under N(0, I), and where the generator maps them."""
        at = torch.special.ndtri(torch.linspace(0.01, 0.99, 21))
        fine = torch.special.ndtri(torch.linspace(0.01, 0.99, 201))
        for fixed in at:
            for line in (torch.stack([fixed.expand(201), fine], 1), torch.stack([fine, fixed.expand(201)], 1)):
                panel.plot(*self.generated(line).T.numpy(), color="#6c4aa1", linewidth=0.4, alpha=0.6)


def finish(folder: Path, animation: Animation, monitor: FailureMonitor) -> None:
    """Save the pipeline, the animation and its last frame, and print how near the points came."""
    points, plane = animation.sample(LAB_SAMPLES, 4), animation.plane
    found, real = animation.divergence(points), animation.of_real
    result = {"js": found.js, "js_real": real.js, "kl": found.kl}
    print(f"JS {found.js:.3f} bits (real points: {real.js:.3f}), KL {found.kl:.3f}, {LAB_SAMPLES} points")
    if plane.centres is not None:
        modes = mode_coverage(points[:PLANE_SAMPLES], plane.centres, plane.sigma)
        result |= {"modes": modes.covered, "high_quality": modes.high_quality, "reverse_kl": modes.reverse_kl}
        print(
            f"{modes.covered} of {modes.total} modes, {modes.high_quality:.1%} within 3 sigma "
            f"(real points: {modes.real_high_quality:.1%}), reverse KL {modes.reverse_kl:.3f} (real points: "
            f"{modes.real_reverse_kl:.3f}), {PLANE_SAMPLES} points"
        )
    animation.frames[-1].save(folder / "animation.png")
    first, *frames = [frame.quantize(64) for frame in animation.frames]
    first.save(folder / "animation.gif", save_all=True, append_images=frames, duration=250, loop=0)
    generator, discriminator = animation.generator.cpu(), animation.discriminator.cpu()
    animation.data.fold_scale(generator, discriminator)
    export(GANPipeline(generator, discriminator), folder)
    write_json(folder / "run_summary.json", {**result, "warnings": monitor.sentences()})
    print(f"Pipeline, animation and last frame: {folder}")


def main(args: Arguments) -> int:
    chosen, options = args.plane, args.optimization
    if options.compile:
        raise UsageError("--compile must be left out: the penalties need second derivatives, which it does not have.")
    if options.init_from is not None:
        raise UsageError("--init_from must be left out: saved networks of the plane have its scale in their weights.")
    if options.max_train_steps is None and options.minutes is None:
        raise UsageError("--max_train_steps must be given: points of the plane are endless and have no epochs.")
    diffuses = chosen.augment == "diffusion"
    if not diffuses:
        check_unused(args.diffusion, Arguments().diffusion, "is of --augment diffusion; add that, or leave it out")
    shortest, most = args.diffusion.diffusion_min_steps, args.diffusion.diffusion_max_steps
    if shortest > most:
        raise UsageError(f"--diffusion_min_steps must be at most --diffusion_max_steps, {most}; got {shortest}.")
    data = Scaled(chosen.plane, chosen.spread)
    run = Run(args, family="gan", data=data)
    run.claim(component_names(GANPipeline), ["animation.gif", "animation.png"])
    shape = {"hidden_sizes": args.model.hidden_sizes, "activation": args.model.activation}
    generator = run.prepare("generator", MLPGenerator(latent_dim=args.model.latent_dim, **shape))
    longest = args.diffusion.diffusion_max_steps if diffuses else None
    network = MLPDiscriminator(pack=chosen.pack, num_timesteps=longest, **shape)
    discriminator = run.prepare("discriminator", network, ema=False)
    g, d = generator.network, discriminator.network
    ada = None
    if diffuses:
        diffusion = DiffusionAugmentation(**args.diffusion, group=chosen.pack)
        ada = AdaptiveAugmentation(diffusion, images=ADAPTED_IN, most=1.0).to(run.device)
    shared = {"objective": chosen.objective, "augment": ada}
    penalties = {"r1": chosen.r1, "r2": chosen.r2}
    phases = [
        discriminator.phase(partial(gan_discriminator_loss, d, g, collect=ada and ada.collect, **shared, **penalties)),
        generator.phase(partial(gan_generator_loss, d, g, **shared), every=chosen.n_critic),
    ]
    phases += [Phase("augmentation", ada.update, ada)] if ada is not None else []
    animation = Animation(data, generator.final, discriminator.module)
    monitor = FailureMonitor(run.folder, animation.real[:256], animation.sample)
    hooks = [Hook(chosen.frame_steps, animation), *monitor.hooks(args.output.logging_steps, 200)]
    result = run.fit(phases, hooks=hooks)
    if result.status == "interrupted":
        return INTERRUPTED
    summary = run.folder / "run_summary.json"
    if run.accelerator.is_main_process and not (result.status == "nothing to do" and summary.exists()):
        if not animation.frames:  # the run was finished before, but killed while it was being exported
            animation(result.progress)
        with disk_errors(run.folder):
            finish(run.folder, animation, monitor)
    return 0


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
