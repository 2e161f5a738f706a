"""Autoregressive networks against closed forms: sums of probabilities, order, receptive fields, caches, draws."""

import itertools
import math

import pytest
import torch
from helpers import seeded

from latentia import MADE, AutoregressivePipeline, CausalTransformer, GatedPixelCNN, TextPipeline
from latentia.errors import UsageError
from latentia.losses.autoregressive import pixel_loss, token_log_probs, token_loss
from latentia.models.layers.raster import raster
from latentia.pipelines.tokens import make_pick
from latentia.rng import Rng


def spread(network, scale: float = 0.4):
    """Weights of which every one does something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn_like(parameter)
    return network.double().eval()


def pixelcnn(**config):
    return spread(GatedPixelCNN(**{"hidden_channels": 6, "layers": 3, "first_kernel_size": 3} | config))


def transformer(shape, levels=2, **config):
    return spread(CausalTransformer(levels, shape, **{"width": 16, "layers": 2, "heads": 2} | config))


SMALL = {  # networks of 2 x 3 binary pixels
    "pixelcnn": lambda: pixelcnn(sample_size=(2, 3), levels=2),
    "transformer": lambda: transformer((1, 2, 3), positions="learned"),
    "made": lambda: spread(MADE(sample_size=(2, 3), hidden_sizes=(8, 8))),
}
COLOUR = {  # and of 3 x 3 pixels of two channels and three levels
    "pixelcnn": lambda: pixelcnn(sample_size=3, in_channels=2, levels=3),
    "transformer": lambda: transformer((2, 3, 3), 3),
    "made": lambda: spread(MADE(sample_size=3, in_channels=2, levels=3, hidden_sizes=(40, 40), activation="silu")),
}


@pytest.mark.parametrize("name", SMALL)
def test_probabilities_of_all_binary_images_sum_to_1(name):
    values = torch.tensor([*itertools.product((0, 1), repeat=6)]).view(-1, 1, 2, 3)
    log_probs = token_log_probs(SMALL[name](), values).double().flatten(1).sum(1)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-6) and log_probs.std() > 0.1


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_probabilities_of_all_sequences_sum_to_1(positions):
    tokens = torch.tensor([*itertools.product(range(3), repeat=5)])
    log_probs = token_log_probs(transformer((5,), 3, positions=positions), tokens).double().sum(1)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-6) and log_probs.std() > 0.1


@pytest.mark.parametrize("name", COLOUR)
def test_each_value_depends_on_all_before_it_and_no_other(name):
    """The whole triangle of dependence, by derivatives of finite size: no blind spot, and nothing of the future."""
    network = COLOUR[name]()
    values = torch.randint(3, (1, 2, 3, 3), generator=seeded(1))
    n = values.numel()
    places = raster(torch.arange(n).view(1, 2, 3, 3))[0]  # of the flattened image, in raster order
    changed = values.flatten(1).repeat(n, 1)
    for i, place in enumerate(places):
        changed[i, place] = (changed[i, place] + 1) % 3
    with torch.no_grad():
        before, after = network(values).logits, network(changed.view(n, 2, 3, 3)).logits
    moved = (after - before).abs().flatten(1, 3).amax(2) > 1e-9  # which place was changed, which logits moved
    seen = moved[:, places].T
    assert torch.equal(seen, torch.ones(n, n).tril(-1).bool())


@pytest.mark.parametrize("layers, kernel", [(1, 3), (2, 3), (3, 5), (4, 3)])
def test_the_receptive_field_of_pixelcnn_has_no_blind_spot(layers, kernel):
    """All of the rows above and of the row itself that kernels reach, to the right as well, and nothing else."""
    size, reach, row, column = 15, layers * (kernel // 2), 11, 7
    network = pixelcnn(sample_size=size, levels=2, layers=layers, kernel_size=kernel, first_kernel_size=kernel)
    rows = torch.randn(1, 1, size, size, dtype=torch.float64, generator=seeded(0), requires_grad=True)
    logits = network._horizontal(rows, network._vertical(rows, None), None)
    logits[0, :, row, column].abs().sum().backward()
    expected = torch.zeros(size, size, dtype=torch.bool)
    expected[max(0, row - 1 - reach) : row, max(0, column - reach) : column + reach + 1] = True
    expected[row, max(0, column - 1 - reach) : column] = True
    assert torch.equal(rows.grad[0, 0] != 0, expected)


@pytest.mark.parametrize("name", COLOUR)
def test_samples_have_the_probabilities_of_the_forward_pass(name):
    """The incremental ways of sampling see the logits of one whole pass."""
    network, seen = COLOUR[name](), []

    def pick(logits, uniform):
        seen.append(logits)
        return make_pick()(logits, uniform)

    values = network.sample(torch.rand(4, 2, 3, 3, generator=seeded(2)), pick)
    with torch.no_grad():
        whole = network(values).logits.permute(0, 2, 3, 1, 4).flatten(1, 3)
    torch.testing.assert_close(torch.stack(seen, 1), whole.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [5, 8, 13, 30])
def test_cached_and_uncached_sampling_give_the_same_tokens(length):
    network = transformer((8,), 5)
    uniform = torch.rand(6, length, generator=seeded(3))
    cached, plain = (network.sample(uniform, make_pick(), use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain) and len(cached.unique(dim=0)) == 6


def test_a_temperature_towards_0_is_argmax():
    logits = torch.randn(50, 7, generator=seeded(0))
    uniform = torch.rand(50, generator=seeded(1))
    assert torch.equal(make_pick(temperature=1e-6)(logits, uniform), logits.argmax(1))
    assert torch.equal(make_pick(top_k=1)(logits, uniform), logits.argmax(1))
    network = transformer((6,), 4)
    cold = network.sample(torch.rand(3, 6, generator=seeded(4)), make_pick(temperature=1e-6))
    assert torch.equal(network(cold).logits.argmax(-1), cold)


def test_top_p_by_hand():
    """Of .5, .3, .15 and .05 the first two have .8 together, and .6 needs both."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    grid = (torch.arange(1000) + 0.5) / 1000
    shares = torch.bincount(make_pick(top_p=0.6)(logits, grid), minlength=4) / 1000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0, 0]), atol=2e-3, rtol=0)
    shares = torch.bincount(make_pick(top_k=3)(logits, grid), minlength=4) / 1000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_given_upper_half_is_kept_and_conditions_the_rest(name):
    """Frequencies of the lower row given the upper one are the ratio of exact probabilities."""
    network = SMALL[name]().float()
    pipe = AutoregressivePipeline(network)
    pipe.set_progress_bar_config(disable=True)
    upper = torch.tensor([[[[1.0, -1, 1], [-1, -1, -1]]]])
    images = pipe(4000, image=upper, generator=seeded(0), output_type="latent").images
    assert torch.equal(images[:, :, 0], upper[:, :, 0].expand(4000, -1, -1))
    lower = torch.tensor([*itertools.product((-1.0, 1.0), repeat=3)])
    every = torch.cat([upper[:, :, :1].expand(8, -1, -1, -1), lower.view(8, 1, 1, 3)], 2)
    expected = pipe.log_likelihood(every).softmax(0)
    found = torch.stack([(images[:, 0, 1] == row).all(1).double().mean() for row in lower])
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    assert torch.equal(pipe(2, image=upper, known_rows=2, output_type="latent").images, upper.expand(2, -1, -1, -1))


def test_without_labels_the_likelihood_is_the_mean_over_classes():
    pipe = AutoregressivePipeline(pixelcnn(sample_size=(2, 3), levels=3, num_class_embeds=2).float())
    x = torch.rand(4, 1, 2, 3, generator=seeded(0)) * 2 - 1
    each = torch.stack([pipe.log_likelihood(x, class_labels=c) for c in range(2)])
    torch.testing.assert_close(pipe.log_likelihood(x), each.logsumexp(0) - math.log(2))
    assert (each[0] - each[1]).abs().min() > 1e-3


def test_a_loss_is_the_mean_of_nats_and_binary_pixels_are_drawn():
    network = SMALL["made"]().float()
    rng = Rng(0, 0, 3, 0, 3)
    grey = torch.zeros(3, 1, 2, 3)
    drawn = (rng.uniform("binarise", (1, 2, 3)) < 0.5).long()
    expected = -token_log_probs(network, drawn).mean().item()
    found = pixel_loss(network, {"x": grey}, rng)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert found["bits_per_dimension"].item() == pytest.approx(expected / math.log(2), rel=1e-5)
    assert token_loss(network, {"x": drawn.float()}, rng)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_gradient_checkpointing_changes_no_number():
    values = torch.randint(2, (2, 1, 2, 3), generator=seeded(0))
    for name in ("pixelcnn", "transformer"):
        network, grads = SMALL[name]().train(), []
        for on in (False, True):
            network.zero_grad()
            if on:
                network.enable_gradient_checkpointing()
            token_log_probs(network, values).sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        torch.testing.assert_close(*grads)


def test_settings_that_make_no_sense_are_refused():
    for build, said in (
        (lambda: CausalTransformer(shape=(4, 4)), r"shape must be \(L,\) or \(C, H, W\)"),
        (lambda: CausalTransformer(width=20, heads=4), "width must be a multiple of 2 heads = 8; got 20"),
        (lambda: CausalTransformer(levels=1), "levels must be in .2, 65536.; got 1"),
        (lambda: CausalTransformer(shape=(3, 256, 256)), "at most 65536 values; got .*, which holds 196608"),
        (lambda: GatedPixelCNN(kernel_size=4), "kernel_size must be odd; got 4"),
        (lambda: GatedPixelCNN(levels=300), "levels must be in .2, 256.; got 300"),
        (lambda: MADE(hidden_sizes=(0,)), "hidden_sizes must each be at least 1"),
        (lambda: CausalTransformer(5, (8,))(torch.zeros(2, 9, dtype=torch.long)), r"tokens must have shape \(B, 8\)"),
        (lambda: CausalTransformer(5, (8,))(torch.full((2, 8), 5)), "tokens must be from 0 to 4; got 5 to 5"),
        (lambda: GatedPixelCNN(4, levels=2)(torch.zeros(2, 1, 4, 5, dtype=torch.long)), "tokens must have shape"),
        (lambda: TextPipeline(CausalTransformer(5, (8,)), "abc"), "vocabulary must hold 5 characters.*got 3"),
        (lambda: TextPipeline(CausalTransformer(3, (8,)), "abb"), "holds no character twice"),
        (lambda: TextPipeline(CausalTransformer(3, (8,)), "abc", "?"), "unknown_character must be one character of"),
        (lambda: TextPipeline(CausalTransformer(2, (1, 2, 2))), "CausalTransformer of sequences"),
    ):
        with pytest.raises(UsageError, match=said):
            build()
