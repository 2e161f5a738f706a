"""The GAN's pipeline, its failure monitor, and the two examples: what is of the game itself is in other files."""

import copy
import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from children import ended, enter, ranks
from helpers import held, load_example, part_of, seeded
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from latentia import (
    VAE,
    DCGANDiscriminator,
    DCGANGenerator,
    DiffusionPipeline,
    GANPipeline,
    HashedWords,
    MLPDiscriminator,
    MLPGenerator,
    VAEPipeline,
)
from latentia.data import load_images
from latentia.data.plane import PlaneData
from latentia.errors import UsageError
from latentia.evaluation.failure_modes import FAILURE_MODES, SampleMonitor, check_discriminator, check_log, fine_energy
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.models.layers.discriminator import append_minibatch_std
from latentia.pipelines.rejection import rejection_sample
from latentia.runs.command_line import parse_arguments
from latentia.runs.failure_monitor import FailureMonitor
from latentia.training.ema import EMA
from latentia.training.loop import Phase, train


def generator(**config) -> DCGANGenerator:
    torch.manual_seed(0)
    base = {"sample_size": 8, "out_channels": 1, "latent_dim": 6, "block_out_channels": (8, 8)}
    return spread(DCGANGenerator(**base | config)).eval()


def discriminator(**config) -> DCGANDiscriminator:
    torch.manual_seed(1)
    base = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 8), "norm": "none"}
    return spread(DCGANDiscriminator(**base | config)).eval()


def spread(network: nn.Module) -> nn.Module:
    """Weights large enough that pictures differ: N(0, 0.02) makes them all grey."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


@pytest.fixture
def pipe():
    return GANPipeline(generator(), discriminator())


# ------------------------------------------------------------ sampling


def test_a_picture_does_not_depend_on_its_batch(pipe):
    sizes = set()
    pipe.generator.project_in.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    many = pipe(70, generator=seeded(1), output_type="latent").images
    assert torch.equal(pipe(3, generator=seeded(1), output_type="latent").images, many[:3]) and len(sizes) == 1
    own = [seeded(k) for k in range(2)]
    pair = pipe(2, generator=own, output_type="latent").images
    assert torch.equal(pipe(1, generator=seeded(1), output_type="latent").images[0], many[0])
    assert torch.equal(pipe(generator=[seeded(1)], output_type="latent").images[0], pair[1])
    assert many.std(0).max() > 0.05


def test_sampling_is_in_evaluation_mode_and_restores_the_mode(pipe):
    first = pipe(2, generator=seeded(0), output_type="latent").images
    pipe.generator.train()
    assert torch.equal(pipe(2, generator=seeded(0), output_type="latent").images, first) and pipe.generator.training


def test_truncation_lessens_diversity_and_one_changes_nothing(pipe):
    def spread_of(psi):
        return pipe(64, generator=seeded(0), truncation=psi, output_type="latent").images.std(0).mean().item()

    found = [spread_of(psi) for psi in (0, 0.3, 0.6, 1.0)]
    assert found[0] < 1e-6 and found == sorted(found)
    plain, one = (pipe(5, generator=seeded(0), output_type="latent", **o).images for o in ({}, {"truncation": 1.0}))
    assert torch.equal(plain, one)


def test_labels_by_index_and_name():
    pipe = GANPipeline(generator(num_class_embeds=3), label_names=["a", "b", "c"])
    z = torch.randn(3, 6, generator=seeded(0))
    named = pipe(class_labels=["c", "a", "b"], latents=z, output_type="latent").images
    assert torch.equal(named, pipe(class_labels=torch.tensor([2, 0, 1]), latents=z, output_type="latent").images)
    assert not torch.equal(named, pipe(class_labels="a", latents=z, output_type="latent").images)
    assert torch.equal(named, pipe.decode(z, class_labels=[2, 0, 1], output_type="latent")) and pipe.num_classes == 3


def test_a_vae_is_a_generator_and_gives_the_same_pictures():
    torch.manual_seed(0)
    for likelihood in ("gaussian", "bernoulli"):
        vae = spread(VAE(sample_size=8, latent_dim=4, hidden_sizes=(8,), likelihood=likelihood)).eval()
        z = torch.randn(5, 4, generator=seeded(0))
        kinds = [GANPipeline(vae), VAEPipeline(vae)]
        assert torch.equal(*(kind.decode(z, output_type="latent") for kind in kinds))
        drawn = [kind(3, generator=seeded(2), output_type="latent").images for kind in kinds]
        assert torch.equal(*drawn) and kinds[0].generator is kinds[1].vae
        assert kinds[0].encode(drawn[0].clamp(-1, 1), steps=5).shape == (3, 4)


@pytest.mark.parametrize("with_discriminator", [True, False])
def test_save_and_load(pipe, tmp_path, with_discriminator):
    if not with_discriminator:
        pipe = GANPipeline(pipe.generator)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is GANPipeline and (loaded.discriminator is None) != with_discriminator
    drawn = [p(4, generator=seeded(1), output_type="latent").images for p in (pipe, loaded)]
    assert torch.equal(*drawn)


# ------------------------------------------------------------ the latent space


def test_pictures_of_the_generator_are_found_again(pipe):
    z = torch.randn(3, 6, generator=seeded(5))
    x = pipe.decode(z, output_type="latent")
    error = pipe.reconstruction_error(x, steps=150)
    chance = (pipe(3, generator=seeded(9), output_type="latent").images - x).square().flatten(1).mean(1)
    assert error.shape == (3,) and (error < 0.05 * chance).all(), (error, chance)
    again = pipe.reconstruct(x, steps=150, output_type="latent")
    torch.testing.assert_close((again - x).square().flatten(1).mean(1), error)
    assert pipe.encode(x).requires_grad is False and all(p.grad is None for p in pipe.generator.parameters())


def test_encoding_ignores_the_batch_and_more_starts_are_better(pipe):
    x = torch.rand(20, 1, 8, 8, generator=seeded(0)) * 2 - 1
    many = pipe.encode(x, steps=5)
    assert torch.equal(pipe.encode(x[:2], steps=5), many[:2]) and torch.equal(pipe.encode(x, steps=5), many)
    few, more = (pipe.reconstruction_error(x, steps=20, starts=k, feature_weight=0.0) for k in (1, 6))
    assert (more <= few + 1e-5).all() and more.mean() < few.mean()


def test_interpolation_stays_on_the_sphere_and_hits_its_ends(pipe):
    a, b = torch.randn(2, 6, generator=seeded(0))
    a, b = a / a.norm(), b / b.norm()
    seen = []
    pipe.generator.project_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:5]))
    way = pipe.interpolate(a, b, 5, output_type="latent")
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(5))
    torch.testing.assert_close(way[[0, -1]], pipe.decode(torch.stack([a, b]), output_type="latent"))
    pipe.interpolate(a, b, 5, mode="lerp")
    assert seen[-1].norm(dim=1)[2] < 0.99
    x = pipe(2, generator=seeded(3), output_type="latent").images
    assert len(pipe.interpolate(x[0], x[1], 4)) == 4


def test_arithmetic_is_of_means(pipe):
    a, b, c = torch.randn(3, 3, 6, generator=seeded(0))
    expected = pipe.decode((a.mean(0) - b.mean(0) + c.mean(0))[None], output_type="latent")
    torch.testing.assert_close(pipe.arithmetic(a, b, c, output_type="latent"), expected)
    torch.testing.assert_close(
        pipe.arithmetic(a, a, c[0], output_type="latent"), pipe.decode(c[:1], output_type="latent")
    )


# ------------------------------------------------------------ rejection


def test_rejection_makes_the_density_that_the_logits_say():
    """Candidates uniform on [0, 1], log ratio 3x. Gamma is 0, and the density exact, where e^(D - D_M) is one half."""

    def draw(rows, generators):
        x = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        return x, 3 * x

    exactly = 1 - math.log(2) / 3
    kept = rejection_sample(draw, [seeded(i) for i in range(3000)], percentile=exactly)
    exact = 1 / (1 - math.exp(-3)) - 1 / 3  # mean of the density 3 e^3x / (e^3 - 1)
    assert abs(kept.mean() - exact) < 0.02
    few = rejection_sample(draw, [seeded(i) for i in range(5)], percentile=exactly)
    assert torch.equal(few, kept[:5])
    assert rejection_sample(draw, [seeded(i) for i in range(300)], percentile=0.95).mean() > kept.mean() + 0.03


def test_a_packed_discriminator_judges_single_images_afterwards(pipe):
    d = discriminator(minibatch_std=4).train()
    x = pipe(16, generator=seeded(0), output_type="latent").images
    for _ in range(60):
        d(x)
    spread = append_minibatch_std(d.down_blocks(x), 4)[:, -1].mean()
    torch.testing.assert_close(d.minibatch_std.running_std, spread, rtol=5e-3, atol=0)
    d.eval()
    assert torch.equal(d(x).logits[:1], d(x[:1]).logits) or torch.allclose(d(x).logits[:1], d(x[:1]).logits, atol=1e-6)
    grouped = GANPipeline(pipe.generator, d)
    kept = grouped(50, generator=seeded(0), rejection=True, output_type="latent").images
    assert torch.equal(grouped(3, generator=seeded(0), rejection=True, output_type="latent").images, kept[:3])


def test_rejection_prefers_what_the_discriminator_takes_for_real(pipe):
    plain, kept = (pipe(200, generator=seeded(0), rejection=r, output_type="latent").images for r in (False, True))
    mean = [pipe.discriminator(x).logits.mean().item() for x in (plain, kept)]
    assert mean[1] > mean[0] + 0.3 * pipe.discriminator(plain).logits.std().item()
    assert torch.equal(pipe(3, generator=seeded(0), rejection=True, output_type="latent").images, kept[:3])


# ------------------------------------------------------------ failure modes


def line(real=1.0, fake=-1.0, right=0.7, g=0.3, d=0.5) -> dict[str, float]:
    return {
        "discriminator/real": real, "discriminator/fake": fake, "discriminator/accuracy_real": right,
        "discriminator/accuracy_fake": right, "discriminator/grad_norm": d, "generator/grad_norm": g,
    }  # fmt: skip


@pytest.mark.parametrize(
    "row, failures",
    [
        (line(), []),
        (line(right=0.5, real=0.0, fake=0.0), []),  # guessing is where converged training ends
        (line(right=1.0), []),  # and a discriminator may be right, if it is not sure
        (line(right=1.0, real=9.0, fake=-9.0), ["discriminator too strong"]),
        (line(right=1.0, g=1e-6), ["discriminator too strong"]),
        (line(g=1e-6), ["vanishing generator gradient"]),
        (line(g=150.0), ["exploding gradients"]),
        (line(d=1e5), ["exploding gradients"]),
    ],
)
def test_failure_modes_in_a_log(row, failures):
    assert [finding.failure_mode for finding in check_log([row] * 5)] == failures
    assert check_log([row] * 4) == [] and check_log([row] * 2 + [line()] * 3) == []
    assert all(str(finding).count("Try ") == 1 for finding in check_log([row] * 5))


def test_guessing_is_a_failure_far_from_the_data_alone():
    assert check_discriminator(0.5, 0.02) is None and check_discriminator(0.9, 0.8) is None
    assert "50%" in str(check_discriminator(0.5, 0.8))


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").images.float() / 127.5 - 1


def test_samples_of_the_data_are_healthy_and_few_are_a_collapse(digits):
    monitor = SampleMonitor(digits[:256])
    values, found = monitor.check(digits[300:556])
    assert not found and abs(values["diversity"] - 1) < 0.05 and values["distance"] < 0.02
    assert abs(values["fine_energy"] - 1) < 0.3
    for few in (1, 10):
        values, found = monitor.check(digits[:few].repeat(256, 1, 1, 1)[:256])
        assert [f.failure_mode for f in found] == ["mode collapse"]
    assert values["support"] == pytest.approx(10, rel=0.1)  # the birthday test counts them


def test_missing_classes_are_named(digits):
    from latentia.evaluation import load_extractor

    monitor = SampleMonitor(digits[:256], load_extractor("digits"))
    labels = load_images("digits").labels
    values, found = monitor.check(digits[labels < 4][:256])
    assert values["classes"] == 4 and "6 of 10 classes are missing: [4, 5, 6, 7, 8, 9]" in str(found[0])


def test_kernels_that_the_stride_does_not_divide_are_seen():
    smooth = nn.functional.interpolate(torch.randn(64, 1, 7, 7, generator=seeded(0)), 28, mode="bicubic").tanh()
    monitor, found = SampleMonitor(smooth), {}
    for kernel in (3, 4):
        torch.manual_seed(0)
        up = nn.ConvTranspose2d(1, 1, kernel, 2, 1, kernel % 2, bias=False)
        nn.init.constant_(up.weight, 4 / kernel**2)
        half = nn.functional.interpolate(smooth, 14, mode="area")
        found[kernel] = monitor.check(up(half).detach())
    assert "checkerboard" in [f.failure_mode for f in found[3][1]] and not found[4][1]
    assert found[3][0]["fine_energy"] > 5 * found[4][0]["fine_energy"]
    assert fine_energy(smooth) < 0.01


# ------------------------------------------------------------ runs that are broken on purpose, and one that is not


class Blobs:
    """Smooth spots on 16 x 16, one in each picture."""

    fingerprint = "blobs"

    def batch(self, first, last, *, seed, device):
        place = torch.rand(4000, 2, generator=seeded(seed))[torch.arange(first, last) % 4000] * 10 + 3
        rows, columns = torch.arange(16) - place[:, :1], torch.arange(16) - place[:, 1:]
        height = torch.exp(-(rows.square()[:, :, None] + columns.square()[:, None]) / 8)
        return {"x": (2 * height - 1)[:, None]}


def warnings_of(folder: Path, g, d, data, real, steps: int, rates=(2e-3, 2e-3), **options) -> list[str]:
    """Train, with the monitor, and return the failure modes it named."""

    def sample(n, seed):
        return g.decode(torch.randn(n, g.config.latent_dim, generator=seeded(seed))).detach()

    accelerator = Accelerator(cpu=True)
    optimizers = [torch.optim.Adam(net.parameters(), lr=r, betas=(0.0, 0.99)) for net, r in zip((g, d), rates)]
    pairs = [accelerator.prepare(net, optimizer) for net, optimizer in zip((g, d), optimizers)]
    (gen, g_opt), (dis, d_opt) = pairs
    objective = options.pop("objective", "relativistic")

    def judge(batch, rng):
        return gan_discriminator_loss(dis, gen, batch, rng, objective=objective, **options)

    def make(batch, rng):
        return gan_generator_loss(dis, gen, batch, rng, objective=objective)

    phases = [Phase("discriminator", judge, dis, d_opt), Phase("generator", make, gen, g_opt)]
    hooks = FailureMonitor(folder, real, sample).hooks(log_every=5, samples_every=20)
    train(accelerator, phases, data, output_dir=folder, max_steps=steps, batch_size=64, hooks=hooks, log_every=5)
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("monitor/diversity" in row for row in rows if "monitor/distance" in row)
    said = " ".join(row["warning"] for row in rows if "warning" in row)
    return [name for name in FAILURE_MODES if f"{name}: " in said]


def plane_run(folder: Path, steps: int = 300, **options) -> list[str]:
    torch.manual_seed(0)
    nets = [MLPGenerator(hidden_sizes=(32, 32)), MLPDiscriminator(hidden_sizes=(32, 32), activation="relu")]
    if options.pop("frozen", False):
        nn.init.zeros_(nets[0].out.weight)
        options["rates"] = (0.0, 2e-3)
    data = PlaneData("ring")
    return warnings_of(folder, *nets, data, data.plane.sample(256, 0), steps, **options)


def test_the_monitor_is_silent_on_a_healthy_run(tmp_path, capsys):
    assert plane_run(tmp_path, 400, r1=0.1, r2=0.1) == []
    assert "warning" not in capsys.readouterr().err


def test_a_discriminator_that_learns_too_fast_is_named(tmp_path, capsys):
    rates = (1e-4, 1e-2)
    assert "discriminator too strong" in plane_run(tmp_path, objective="non_saturating", r1=0, r2=0, rates=rates)
    shown = capsys.readouterr().err
    assert "warning: discriminator too strong: it classifies" in shown
    assert "Try a lower --discriminator_learning_rate" in shown and "warning=discriminator too strong" in shown


def test_a_generator_that_makes_one_thing_is_named(tmp_path):
    named = plane_run(tmp_path, 100, frozen=True, r1=0.1, r2=0.1)
    assert "mode collapse" in named and "exploding gradients" not in named
    monitor = FailureMonitor(tmp_path, torch.randn(16, 2), None)
    [sentence] = monitor.sentences()
    assert sentence.startswith("Failure monitor at step 60: mode collapse: two samples differ by 0%")


def test_gradients_that_explode_are_named(tmp_path):
    named = plane_run(tmp_path, 100, rates=(1.0, 1.0), objective="wasserstein", r1=0, r2=0)
    assert "exploding gradients" in named


def test_a_discriminator_without_learning_lets_the_other_win(tmp_path):
    named = plane_run(tmp_path, 100, rates=(2e-3, 0.0), objective="non_saturating", r1=0, r2=0)
    assert "discriminator too weak" in named or "mode collapse" in named


@pytest.mark.filterwarnings("ignore:kernel_size")
def test_a_kernel_that_draws_checkerboards_is_named(tmp_path):
    named = {}
    for name, shape in {"odd kernel": {"kernel_size": 3}, "resized": {"upsample": "resize"}}.items():
        torch.manual_seed(0)
        g = DCGANGenerator(16, latent_dim=8, block_out_channels=(8, 8), **shape)
        d = DCGANDiscriminator(16, block_out_channels=(8, 8), norm="none")
        data = Blobs()
        real = data.batch(0, 128, seed=0, device="cpu")["x"]
        named[name] = warnings_of(tmp_path / name, g, d, data, real, 60, r1=0.1, r2=0.1)
    assert "checkerboard" in named["odd kernel"] and "checkerboard" not in named["resized"]


# ------------------------------------------------------------ the turns


def two_turns(folder: Path, steps: int, every: int = 1, batch_size: int = 8, accumulate: int = 1, norm="none"):
    """Both players on ring's points as one-pixel pictures would be: DCGAN on 8 x 8 blobs, in float64."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    torch.manual_seed(0)
    g = DCGANGenerator(8, latent_dim=4, block_out_channels=(4, 4)).double()
    d = DCGANDiscriminator(8, block_out_channels=(4, 4), norm=norm).double()
    if norm == "none":
        g = DCGANGenerator(8, latent_dim=4, block_out_channels=(4, 4), norm="none").double()
    ema, counts = EMA(g, 0.9), {"d": 0, "g": 0}
    seen: list[tuple] = []
    make_optimizer = partial(torch.optim.Adam, lr=1e-2, betas=(0.0, 0.99), eps=1e-3)
    gen, dis, g_opt, d_opt = accelerator.prepare(g, d, make_optimizer(g.parameters()), make_optimizer(d.parameters()))
    penalties = {"r1": 0.0, "r2": 0.0} if norm == "batch" else {}

    def judge(batch, rng):
        counts["d"] += 1
        seen.append(("d", [p.requires_grad for p in d.parameters()], [p.requires_grad for p in g.parameters()]))
        return gan_discriminator_loss(dis, gen, batch, rng, **penalties)

    def make(batch, rng):
        counts["g"] += 1
        seen.append(("g", [p.requires_grad for p in d.parameters()], [p.requires_grad for p in g.parameters()]))
        return gan_generator_loss(dis, gen, batch, rng)

    phases = [Phase("discriminator", judge, dis, d_opt), Phase("generator", make, gen, g_opt, every=every, ema=ema)]
    folder.mkdir(parents=True, exist_ok=True)
    options = {"batch_size": batch_size, "accumulate": accumulate, "checkpoint_every": 3, "log_every": 1}
    train(accelerator, phases, Doubles(), output_dir=folder, max_steps=steps, **options)
    return counts, seen, g, d


class Doubles(Blobs):
    def batch(self, first, last, *, seed, device):
        images = super().batch(first, last, seed=seed, device=device)["x"]
        return {"x": nn.functional.avg_pool2d(images, 2).double()}


def test_each_turn_has_gradients_of_its_own_player_alone(tmp_path):
    _, seen, g, d = two_turns(tmp_path, 2)
    assert {turn for turn, *_ in seen} == {"d", "g"}
    for turn, of_d, of_g in seen:
        assert all(of_d) == (turn == "d") == any(of_d) and all(of_g) == (turn == "g") == any(of_g)
    assert all(p.grad is None for p in [*g.parameters(), *d.parameters()])


@pytest.mark.parametrize("n_critic", [1, 2, 5])
def test_the_discriminator_steps_n_critic_times_as_often(tmp_path, n_critic):
    counts = two_turns(tmp_path, 10, every=n_critic)[0]
    assert counts == {"d": 10, "g": 10 // n_critic}
    files = [load_file(tmp_path / f"checkpoints/checkpoint-10/{name}.optimizer.safetensors")
             for name in ("discriminator", "generator")]  # fmt: skip
    taken = [{int(v) for key, v in file.items() if key.endswith(".step")} for file in files]
    assert taken == [{10}, {10 // n_critic}]


def test_accumulation_equals_the_whole_batch(tmp_path):
    ends = [two_turns(tmp_path / f"{a}", 4, batch_size=8 // a, accumulate=a) for a in (1, 2)]
    for one, two in zip(ends[0][2:], ends[1][2:]):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[key], value, rtol=1e-9, atol=1e-9)


def on_a_rank(log: str, env: dict[str, str], folder: str) -> None:
    enter(log, env)
    two_turns(Path(folder), 6, every=2, batch_size=4, norm="batch")


def test_two_processes_equal_one_with_batch_norm_and_all(start, tmp_path):
    two_turns(tmp_path / "one", 6, every=2, batch_size=8, norm="batch")
    for child in ranks(start, on_a_rank, str(tmp_path / "two")):
        code, text = ended(child)
        assert code == 0, text
    for name in ("discriminator.model", "generator.model", "generator.ema"):
        one, two = (load_file(tmp_path / f / f"checkpoints/checkpoint-6/{name}.safetensors") for f in ("one", "two"))
        assert one.keys() == two.keys() and any("running_mean" in key for key in one)
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-7, atol=1e-7, msg=lambda text, key=key: f"{key} {text}")


# ------------------------------------------------------------ the examples


def run(folder: Path, *argv, source: str = "digits") -> int:
    module = load_example("train_gan")
    words = f"""--dataset_name {source} --max_train_samples 100 --block_out_channels 4 8 --latent_dim 8
        --max_train_steps 6 --train_batch_size 8 --eval_num_samples 0 --checkpointing_steps 3
        --logging_steps 1 --monitor_steps 3 --output_dir {folder}""".split()
    return module.main(parse_arguments(module.Arguments, [*words, *map(str, argv)], description="", prog="train"))


ALL = "--augment ada --replay 16 --regularise_every 2 --instance_noise 0.1 --n_critic 2".split()


def test_a_run_with_everything_goes_on_bit_equal(tmp_path):
    assert run(tmp_path / "whole", *ALL) == 0
    folder = part_of(tmp_path / "whole", 3, tmp_path / "again")
    assert run(folder, *ALL) == 0
    whole, again = held(tmp_path / "whole", 6), held(folder, 6)
    assert whole == again and {name.rpartition(".")[0] for name in whole} == {
        *("discriminator.model", "discriminator.optimizer", "penalty.optimizer", "generator.model", "generator.ema"),
        *("generator.optimizer", "augmentation.model", "replay.model"),
    }
    state = load_file(folder / "checkpoints" / "checkpoint-6" / "replay.model.safetensors")
    assert state["model.filled" if "model.filled" in state else "replay.model.filled"] == 16
    rows = [json.loads(text) for text in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "generator/loss" in row] == [1, 3, 5]
    assert any("monitor/diversity" in row for row in rows) and all(
        f"discriminator/{key}" in rows[0] for key in ("loss", "accuracy_real", "accuracy_fake", "grad_norm")
    )


def test_it_leaves_a_pipeline_a_card_and_nothing_to_do(tmp_path, capsys):
    assert run(tmp_path, "--label_smoothing", 0.1, "--label_flip", 0.05, "--objective", "non_saturating") == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe) is GANPipeline and pipe(batch_size=2)[0][0].size == (8, 8) and pipe.discriminator is not None
    assert run(tmp_path, "--label_smoothing", 0.1, "--label_flip", 0.05, "--objective", "non_saturating") == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_weights_are_clipped_after_each_step(tmp_path):
    assert run(tmp_path, *"--objective wasserstein --r1 0 --r2 0 --clip_weights 0.003 --n_critic 2".split()) == 0
    weights = DiffusionPipeline.from_pretrained(tmp_path).discriminator.parameters()
    assert max(float(weight.detach().abs().max()) for weight in weights) == pytest.approx(0.003)


def test_short_runs_are_looked_at_ten_times(tmp_path):
    assert run(tmp_path, "--max_train_steps", 20, "--monitor_steps", "None") == 0
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "monitor/diversity" in row] == [*range(2, 21, 2)]


def test_classes_are_asked_for_by_name(tmp_path):
    assert run(tmp_path, "--class_conditional", "--augment", "diff") == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe.num_classes == 10 and len(pipe(class_labels=["3", "7"]).images) == 2


def test_a_discriminator_can_name_the_classes_itself(tmp_path):
    assert run(tmp_path, "--class_conditional", "--auxiliary_classifier") == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    config = pipe.discriminator.config
    assert pipe.num_classes == 10 and config.num_aux_classes == 10 and config.num_class_embeds is None
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "discriminator/class_accuracy" in rows[0] and "discriminator/mismatched" not in rows[0]


def test_captions_are_asked_for_in_words(tmp_path):
    assert run(tmp_path, "--caption", source="emoji") == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    z = torch.randn(2, 8, generator=seeded(0))
    pair = pipe(prompt=["a red heart", "green apple"], latents=z, output_type="latent").images
    assert torch.equal(pipe(prompt="a red heart", latents=z[:1], output_type="latent").images, pair[:1])
    assert "text-to-image" in (tmp_path / "README.md").read_text() and not torch.equal(pair[0], pair[1])


def test_what_the_monitor_said_is_in_the_card(tmp_path):
    assert run(tmp_path, "--learning_rate", 1e-9, "--max_train_steps", 12) == 0
    assert "Failure monitor at step 9: " in (tmp_path / "README.md").read_text()


def plane_example(folder: Path, *argv) -> int:
    module = load_example("train_gan_plane")
    words = f"--max_train_steps 20 --frame_steps 10 --hidden_sizes 16 16 --output_dir {folder}".split()
    return module.main(parse_arguments(module.Arguments, [*words, *map(str, argv)], description="", prog="train"))


@pytest.mark.parametrize("flags", [["--plane", "grid", "--pack", "2"], ["--plane", "lab_line", "--latent_dim", "1"]])
def test_training_in_the_plane_is_animated(tmp_path, capsys, flags):
    assert plane_example(tmp_path, *flags) == 0
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames == 2
    assert (tmp_path / "animation.png").is_file()
    printed = capsys.readouterr().out
    assert "JS " in printed and ("of 25 modes" in printed) == ("grid" in flags)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    points = pipe(500, output_type="latent").images
    data = PlaneData(flags[1]).plane.sample(500, 0)
    assert points.shape == (500, 2) and (points.mean(0) - data.mean(0)).norm() < data.std()  # in the plane's own units
    scaled = sys.modules["train_gan_plane"].Scaled(flags[1], 3.0)
    torch.manual_seed(0)
    before = MLPGenerator(), MLPDiscriminator(pack=2)
    after = copy.deepcopy(before)
    scaled.fold_scale(*after)
    z, at = torch.randn(6, 2), torch.randn(6, 2)
    torch.testing.assert_close(after[0](z).sample, scaled.unscale(before[0](z).sample))
    torch.testing.assert_close(after[1](at).logits, before[1](scaled.scale(at)).logits, rtol=1e-4, atol=1e-5)
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert summary["js"] > summary["js_real"] > 0


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--n_critic", 0], "n_critic must be at least 1; got 0"),
        (["--regularise_every", 0], "regularise_every must be at least 1"),
        (["--pack", 3], "--pack must divide --train_batch_size 8; got 3"),
        (["--minibatch_std", 3], "--minibatch_std must divide the 8 logits of a batch"),
        (["--minibatch_std", 1], "--minibatch_std must be 0, or at least 2 images; got 1"),
        (["--replay", 7], "--replay must be 0, or at least the global batch of 8; got 7"),
        (["--caption"], "--caption needs captions, and this data set has none"),
        (["--label_smoothing", 1.5], "label_smoothing must be in"),
        (["--label_smoothing", 0.1], "--label_smoothing must be 0 with --objective relativistic, which has no labels"),
        (["--label_flip", 0.6, "--objective", "minimax"], r"label_flip must be in \[0, 0.5\); got 0.6"),
        (["--discriminator_norm", "batch"], "add --r1 0 --r2 0, or take spectral.* got --r1 0.1, --r2 0.1, --gp 0"),
        (["--replay", 8, "--class_conditional"], "--replay must be 0 with --class_conditional or --caption"),
        (["--clip_weights", -1], "clip_weights must be at least 0; got -1"),
        (["--auxiliary_classifier"], "--auxiliary_classifier learns the labels of --class_conditional; add that or"),
        (["--compile"], "--compile must be left out"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, argv, text):
    with pytest.raises(UsageError, match=text):
        run(tmp_path, *argv)


def test_classes_need_labels(tmp_path):
    with pytest.raises(UsageError, match="class_conditional needs labels"):
        run(tmp_path, "--class_conditional", "--label_column", "", source="emoji")


def test_columns_that_may_be_labels_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    rows = ["file_name,shape,colour", *(f"{i}.png,{i % 2},{i % 3}" for i in range(12))]
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows))
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "data" / f"{i}.png")
    with pytest.raises(UsageError, match=r"with label_column: shape, colour\."):
        run(tmp_path / "run", "--class_conditional", source=tmp_path / "data")


def test_a_plane_needs_a_length_and_a_name(tmp_path):
    with pytest.raises(UsageError, match='Did you mean "ring"'):
        plane_example(tmp_path, "--plane", "rng")
    with pytest.raises(UsageError, match="n_critic must be at least 1; got 0"):
        plane_example(tmp_path, "--n_critic", 0)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pipe: pipe(0), "batch_size must be at least 1; got 0"),
        (lambda pipe: pipe(2, latents=torch.zeros(3, 6)), "batch_size is 2, but latents are given for 3"),
        (lambda pipe: pipe(latents=torch.zeros(3, 5)), r"latents must have shape \(B, 6\); got \(3, 5\)"),
        (lambda pipe: pipe(truncation=-0.1), "truncation must be at least 0 and finite; got -0.1"),
        (lambda pipe: pipe(rejection=True, latents=torch.zeros(1, 6)), "rejection chooses latents"),
        (lambda pipe: pipe(class_labels=1), "was trained without classes"),
        (lambda pipe: pipe(prompt="a cat"), "trained without captions; leave it out"),
        (lambda pipe: pipe(output_type="pill"), 'Did you mean "pil"'),
        (lambda pipe: pipe.encode(torch.zeros(1, 1, 4, 4)), "8 high and 8 wide"),
        (lambda pipe: pipe.encode(torch.zeros(1, 1, 8, 8), starts=0), "steps and starts must be at least 1"),
        (lambda pipe: pipe.interpolate(torch.zeros(2, 6), torch.zeros(6)), "a and b must be one each; got 2 and 1"),
        (lambda pipe: pipe.interpolate(torch.ones(6), torch.ones(6), 1), "steps must be at least 2"),
        (lambda pipe: pipe.log_likelihood(torch.zeros(1, 1, 8, 8)), "GANPipeline has no log_likelihood"),
        (lambda pipe: GANPipeline(pipe.generator)(rejection=True), "this pipeline has none"),
        (
            lambda pipe: GANPipeline(pipe.generator, discriminator(pack=2))(rejection=True),
            "one that scores packs",
        ),
        (lambda pipe: GANPipeline(generator(num_class_embeds=3))(2), "class_labels are missing"),
        (lambda pipe: captioned()(2), "prompt is missing"),
        (lambda pipe: captioned()(prompt=["a", " "]), "prompt must be texts that are not empty"),
        (lambda pipe: captioned()(3, prompt=["a", "b"]), "batch_size is 3, but prompt are given for 2"),
        (lambda pipe: SampleMonitor(torch.zeros(8, 1, 8, 8)), "at least 16 images; got 8"),
    ],
)
def test_calls_that_make_no_sense(pipe, call, text):
    with pytest.raises(UsageError, match=text):
        call(pipe)


def captioned() -> GANPipeline:
    words = HashedWords(dim=16)
    return GANPipeline(generator(text_embed_dim=16), text_encoder=words)
