"""Augmentation, fixed and adaptive, and the pool of old fakes."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import held, part_of

from latentia import DCGANDiscriminator, DCGANGenerator
from latentia.errors import UsageError
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.losses.augmentation import POLICIES, AdaptiveAugmentation, ReplayPool, random_augment
from latentia.losses.diffusion_augmentation import DiffusionAugmentation
from latentia.rng import Rng
from latentia.training.loop import Phase, train


def draws(n: int, position: int = 0, start: int = 0, count: int | None = None) -> Rng:
    return Rng(0, position, n, start, n if count is None else count)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 16, 24), (4, 5, 7)])
@pytest.mark.parametrize("policy", [POLICIES, *((name,) for name in POLICIES)])
def test_shape_and_identity_and_gradient(shape, policy):
    x = torch.randn(6, *shape, dtype=torch.float64, requires_grad=True)
    y = random_augment(x, draws(6), policy=policy)
    assert y.shape == x.shape and y.dtype == x.dtype and not torch.equal(x, y)
    assert torch.equal(random_augment(x, draws(6), policy=policy, p=0.0), x)
    assert torch.equal(random_augment(x, draws(6), policy=policy, p=torch.zeros(())), x)
    (y * torch.randn_like(y)).sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_augmentation_is_a_function_of_the_draw_alone():
    x = torch.randn(6, 3, 8, 8)
    whole = random_augment(x, draws(6))
    torch.manual_seed(5)
    assert torch.equal(whole, random_augment(x, draws(6)))
    parts = [random_augment(x[i : i + 2], draws(6, 0, i, 2)) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, random_augment(x, draws(6), "another")) and not torch.equal(
        whole, random_augment(x, draws(6, 6))
    )


def test_the_derivative_is_the_true_one():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: random_augment(x, draws(2)), x)
    assert torch.autograd.gradgradcheck(lambda x: random_augment(x, draws(2)).square().sum(), x)


def test_a_share_p_of_the_pictures_is_changed_each_on_its_own():
    x = torch.randn(2000, 1, 8, 8)
    for name in POLICIES:
        changed = (random_augment(x, draws(2000), policy=(name,), p=0.3) != x).flatten(1).any(1).float().mean()
        assert changed.item() == pytest.approx(0.3 * (8 / 9 if name == "translation" else 1), abs=0.04)


def test_translations_are_equally_likely_shifts_by_whole_pixels():
    h, w, n = 8, 16, 9000
    picture = torch.arange(1.0, h * w + 1).view(1, 1, h, w)
    moved = random_augment(picture.expand(n, -1, -1, -1), draws(n), policy=("translation",))
    found = torch.zeros(3, 5)
    for dy in range(-1, 2):
        for dx in range(-2, 3):
            expected = torch.zeros(1, h, w)
            expected[:, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = picture[
                0, :, max(-dy, 0) : h - max(dy, 0), max(-dx, 0) : w - max(dx, 0)
            ]
            found[dy + 1, dx + 2] = (moved == expected).flatten(1).all(1).sum()
    assert found.sum() == n  # each picture is exactly one of the 15 shifts
    assert ((found - n / 15).square() / (n / 15)).sum() < 36  # chi squared, 14 degrees: p = 0.001
    # So the mean over many is the picture convolved with a box.
    box = torch.nn.functional.conv2d(picture, torch.full((1, 1, 3, 5), 1 / 15), padding=(1, 2))
    torch.testing.assert_close(moved.mean(0), box[0], atol=3.0, rtol=0.05)


def test_a_cutout_is_one_box_and_every_place_can_be_hit():
    n = 4000
    holes = random_augment(torch.ones(n, 1, 8, 8), draws(n), policy=("cutout",))[:, 0] == 0
    assert torch.equal(holes, holes.any(2)[:, :, None] & holes.any(1)[:, None, :])  # a box
    for side in (holes.any(1), holes.any(2)):
        assert {*side.sum(1).tolist()} <= {2, 3, 4} and (side.int().diff(dim=1) == 1).sum(1).max() <= 1
    share = holes.float().mean(0)
    side = (
        torch.tensor([3.0, 4, 4, 4, 4, 4, 4, 3]) / 9
    )  # its middle is at one of 9 places, of which 4 or 3 reach a pixel
    torch.testing.assert_close(share, side[:, None] * side, atol=0.03, rtol=0)


def test_colour_moves_brightness_and_scales_contrast_alone():
    x = torch.rand(3000, 3, 4, 4, dtype=torch.float64) * 2 - 1
    y = random_augment(x, draws(3000), policy=("color",))
    shift = (y - x).mean((1, 2, 3))
    assert -0.5 <= shift.min() < -0.48 and 0.48 < shift.max() < 0.5
    grey = random_augment(x[:, :1], draws(3000), policy=("color",))
    scale = grey.std((1, 2, 3)) / x[:, :1].std((1, 2, 3))
    assert 0.5 <= scale.min() < 0.51 and 1.49 < scale.max() < 1.5
    # About the mean, so that affine it stays: (y - mean y) is a multiple of (x - mean x).
    centred = [v - v.mean((1, 2, 3), keepdim=True) for v in (x[:, :1], grey)]
    torch.testing.assert_close(centred[1], centred[0] * scale.view(-1, 1, 1, 1))
    colour = [v - v.mean(1, keepdim=True) for v in (x, y)]
    ratio = colour[1].flatten(1).norm(dim=1) / colour[0].flatten(1).norm(dim=1)
    assert 0 <= ratio.min() < 0.05 and 2 < ratio.max() < 3


def test_the_generator_learns_through_it():
    g = DCGANGenerator(sample_size=8, latent_dim=4, block_out_channels=(4,))
    d = DCGANDiscriminator(sample_size=8, block_out_channels=(4,), norm="none")
    batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
    plain = gan_generator_loss(d, g, batch, draws(4))["loss"]
    loss = gan_generator_loss(d, g, batch, draws(4), augment=random_augment)["loss"]
    loss.backward()
    assert loss != plain and all(p.grad.abs().sum() > 0 for p in g.parameters())
    seen = gan_discriminator_loss(d, g, batch, draws(4), augment=random_augment)
    assert seen["loss"] != gan_discriminator_loss(d, g, batch, draws(4))["loss"]


def test_the_probability_follows_the_sign_of_overfitting():
    ada = AdaptiveAugmentation(target=0.5, images=1000, window=100)
    known, unknown = torch.ones(50), torch.tensor([1.0, -1.0]).repeat(25)
    moves = []
    for step, logits in enumerate([known] * 4 + [unknown] * 3 + [known] * 2):
        ada.collect(logits, draws(50, 50 * step))
        moves.append(round(ada.update({}, draws(50))["p"].item(), 6))
    # By 0.1 after each full window of 100; at the target, as in the window that is half of both, it stays.
    assert moves == [0, 0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
    for _ in range(40):
        ada.collect(known, draws(50))
        ada.update({}, draws(50))
    assert ada.p.item() == pytest.approx(0.8)  # not beyond


def test_the_probability_is_state_and_repeats_count_once():
    first, second = (AdaptiveAugmentation(images=1000, window=30) for _ in range(2))
    for step in range(5):
        for start in (0, 5, 5):  # the last is shown again
            first.collect(
                torch.randn(5, generator=torch.Generator().manual_seed(step + start)) + 3, draws(10, 0, start, 5)
            )
        first.update({}, draws(10))
        assert first.update({}, draws(10))["p"] == first.p
        if step == 1:
            second.load_state_dict(first.state_dict())
        if step > 1:
            for start in (0, 5):
                second.collect(
                    torch.randn(5, generator=torch.Generator().manual_seed(step + start)) + 3, draws(10, 0, start, 5)
                )
            second.update({}, draws(10))
    assert first.p > 0 and all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers()))
    assert len([*first.buffers()]) == 3 and first.count == 20


def test_the_loss_shows_the_share_of_real_images_above_zero():
    g = DCGANGenerator(sample_size=8, latent_dim=4, block_out_channels=(4,))
    d = DCGANDiscriminator(sample_size=8, block_out_channels=(4,), norm="none")
    batch, seen = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, []
    for objective in ("non_saturating", "least_squares", "relativistic"):
        gan_discriminator_loss(
            d, g, batch, draws(4), objective=objective, r1=0, r2=0, collect=lambda margins, rng: seen.append(margins)
        )
    logits = d(batch["x"]).logits.detach()
    torch.testing.assert_close(seen[0], logits)
    torch.testing.assert_close(seen[1], logits - 0.5)
    fake = g(draws(4).normal("discriminator latents", (4,))).sample
    torch.testing.assert_close(seen[2], logits - d(fake).logits.detach())


def fill(pool: ReplayPool, steps: int, n: int, first: int = 0, parts: int = 1) -> list[torch.Tensor]:
    """Each step shows n fakes that hold their own number."""
    given = []
    for step in range(first, first + steps):
        fresh, out = torch.arange(step * n, (step + 1) * n).float().view(n, 1), []
        for k in range(parts):
            part = slice(k * n // parts, (k + 1) * n // parts)
            out.append(pool(fresh[part], draws(n, step * n, part.start, part.stop - part.start)))
        pool.update({}, draws(n, step * n))
        given.append(torch.cat(out))
    return given


def test_a_full_pool_gives_an_old_fake_half_of_the_time():
    pool, n = ReplayPool(50, (1,)), 10
    given = fill(pool, 405, n)
    for step, out in enumerate(given[:5]):  # while it fills, all are new and kept
        assert torch.equal(out[:, 0], torch.arange(step * n, (step + 1) * n).float())
    old = torch.stack([out[:, 0] < step * n for step, out in enumerate(given)])[5:]
    assert old.float().mean().item() == pytest.approx(0.5, abs=0.03)
    # A fake is given once, now or later, and what was given is no longer in the pool.
    everything = torch.cat([*given[5:], pool.images])[:, 0]
    assert len(everything.unique()) == len(everything) == 400 * n + 50


def test_the_pool_is_the_same_in_parts_and_after_a_restart():
    whole, parts, again = (ReplayPool(16, (1,)) for _ in range(3))
    expected = fill(whole, 6, 8)
    assert all(torch.equal(a, b) for a, b in zip(expected, fill(parts, 6, 8, parts=4)))
    assert torch.equal(whole.images, parts.images)
    fill(again, 3, 8)
    loaded = ReplayPool(16, (1,))
    loaded.load_state_dict(again.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(expected[3:], fill(loaded, 3, 8, first=3)))
    assert torch.equal(whole.images, loaded.images) and whole.filled == 16


def test_old_fakes_reach_the_discriminator():
    g = DCGANGenerator(sample_size=8, latent_dim=4, block_out_channels=(4,))
    d = DCGANDiscriminator(sample_size=8, block_out_channels=(4,), norm="none")
    pool, batch = ReplayPool(4, (1, 8, 8)), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
    losses = []
    for step in range(2):
        values = gan_discriminator_loss(d, g, batch, draws(4, 4 * step), replay=pool)
        losses.append(bool(values["loss"] == gan_discriminator_loss(d, g, batch, draws(4, 4 * step))["loss"]))
        assert pool.update({}, draws(4, 4 * step))["filled"] == 1
    assert losses == [True, False]


class Pictures:
    fingerprint = "pictures"

    def batch(self, start, stop, *, seed, device):
        generators = [torch.Generator().manual_seed(position) for position in range(start, stop)]
        return {"x": torch.stack([torch.rand(1, 8, 8, generator=g) * 2 - 1 for g in generators])}


def run(folder: Path, operation=random_augment, accumulate: int = 1) -> tuple[AdaptiveAugmentation, ReplayPool]:
    """Four phases: two players, and two updates without an optimizer."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    d = DCGANDiscriminator(sample_size=8, block_out_channels=(4,), norm="none", num_timesteps=1000)
    g = DCGANGenerator(sample_size=8, latent_dim=4, block_out_channels=(4,), norm="instance")
    ada, pool = AdaptiveAugmentation(operation, images=100, window=12, target=-0.9), ReplayPool(8, (1, 8, 8))
    d, g, *optimizers = accelerator.prepare(d, g, *(torch.optim.Adam(n.parameters(), lr=1e-3) for n in (d, g)))

    def judge(batch, rng):
        return gan_discriminator_loss(d, g, batch, rng, augment=ada, collect=ada.collect, replay=pool)

    def make(batch, rng):
        return gan_generator_loss(d, g, batch, rng, augment=ada)

    phases = [
        Phase("discriminator", judge, d, optimizers[0]),
        Phase("generator", make, g, optimizers[1]),
        Phase("augmentation", ada.update, ada),
        Phase("pool", pool.update, pool),
    ]
    options = {"batch_size": 8 // accumulate, "accumulate": accumulate, "checkpoint_every": 3, "log_every": 1}
    train(accelerator, phases, Pictures(), output_dir=folder, max_steps=6, **options)
    return ada, pool


@pytest.mark.parametrize("operation", [random_augment, DiffusionAugmentation()], ids=["random", "diffusion"])
def test_resuming_is_bit_equal_and_micro_batches_change_nothing(operation, tmp_path):
    ada, pool = run(tmp_path / "whole", operation)
    assert pool.filled == 8 and ada.p > 0 and ada.count == 0
    folder = part_of(tmp_path / "whole", 3, tmp_path / "again")
    run(folder, operation)
    assert held(folder, 6) == held(tmp_path / "whole", 6)
    other, others = run(tmp_path / "parts", operation, accumulate=2)
    torch.testing.assert_close(other.p, ada.p)
    torch.testing.assert_close(others.images, pool.images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: random_augment(torch.randn(2, 2), draws(2)), ["images", "(B, C, H, W)", "(2, 2)"]),
        (
            lambda: random_augment(torch.randn(2, 1, 4, 4), draws(2), policy=("colour",)),
            ["policy", "colour", '"color"'],
        ),
        (lambda: random_augment(torch.randn(2, 1, 4, 4), draws(2), p=1.5), ["p must be", "1.5"]),
        (lambda: AdaptiveAugmentation(target=1.0), ["target", "(-1, 1)", "1.0"]),
        (lambda: AdaptiveAugmentation(p=0.9), ["p must be in [0, 0.8]", "0.9"]),
        (lambda: ReplayPool(0, (1,)), ["capacity", "at least 1", "0"]),
        (lambda: ReplayPool(3, (1,))(torch.randn(4, 1), draws(4)), ["capacity", "global batch, 4", "got 3"]),
    ],
)
def test_bad_input_says_what_and_why(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value
