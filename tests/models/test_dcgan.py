"""Generators and discriminators: shapes, the rules of DCGAN, norms, packs, conditions; hashed captions."""

import warnings

import pytest
import torch
from torch import nn

from latentia import DCGANDiscriminator, DCGANGenerator, HashedWords, MLPDiscriminator, MLPGenerator
from latentia.errors import UsageError
from latentia.models.layers.convolution import paddings
from latentia.models.layers.discriminator import append_minibatch_std
from latentia.models.layers.norm import BatchNorm2d, SpectralNorm
from latentia.pipelines.gan import GANPipeline


def generator(**config) -> DCGANGenerator:
    return DCGANGenerator(**{"sample_size": 8, "latent_dim": 4, "block_out_channels": (4, 8)} | config)


def discriminator(**config) -> DCGANDiscriminator:
    return DCGANDiscriminator(**{"sample_size": 8, "block_out_channels": (4, 8)} | config)


def of(network: nn.Module, *kinds: type) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128, (8, 24), (13, 30), 7])
@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_pictures_of_every_size_and_colour(size, upsample):
    h, w = (size, size) if isinstance(size, int) else size
    for channels in (1, 4):
        g = generator(sample_size=size, out_channels=channels, upsample=upsample)
        x = g(torch.randn(2, 4)).sample
        assert x.shape == (2, channels, h, w) and x.abs().max() < 1
        out = discriminator(sample_size=size, in_channels=channels)(x)
        assert out.features.shape == (2, 8 * (h // 4) * (w // 4))
        assert out.logits.shape == (2,) and out.class_logits is None


def test_the_same_noise_gives_the_same_image_in_every_batch():
    g, z = generator().eval(), torch.randn(4, 4)
    assert torch.equal(g(z).sample, g(z).sample) and torch.equal(g.decode(z), g(z).sample)
    torch.testing.assert_close(g(z[:1]).sample, g(z).sample[:1])


def test_the_default_networks_follow_the_rules():
    g, d = DCGANGenerator(), DCGANDiscriminator()
    pools = [m for m in [*g.modules(), *d.modules()] if "pool" in type(m).__name__.lower()]
    assert pools == []
    ups, downs = of(g, nn.ConvTranspose2d), of(d, nn.Conv2d)
    assert len(ups) == len(downs) == 2 and all(c.stride == (2, 2) for c in ups + downs)
    assert all(side % 2 == 0 for c in ups + downs for side in c.kernel_size)
    # Batch norm everywhere but at the generator's output and the discriminator's input.
    kinds = [[type(m) for m in level] for level in g.up_blocks]
    assert kinds == [[BatchNorm2d, nn.ReLU, nn.ConvTranspose2d]] * 2
    kinds = [[type(m) for m in level] for level in d.down_blocks]
    assert kinds == [[nn.Conv2d, nn.Identity, nn.LeakyReLU], [nn.Conv2d, BatchNorm2d, nn.LeakyReLU]]
    assert {m.negative_slope for m in of(d, nn.LeakyReLU)} == {0.2} and not of(d, nn.ReLU)
    for module in of(g, nn.ConvTranspose2d, nn.Linear) + of(d, nn.Conv2d, nn.Linear):
        assert 0.018 < module.weight.std() < 0.022 and module.weight.mean().abs() < 0.002
    assert all((m.weight - 1).abs().max() < 0.1 for m in of(g, BatchNorm2d))


def test_without_norms_a_signal_keeps_its_size():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 32, 32)
    for channels in ((32, 64, 128), (16, 16, 16, 16)):
        d = discriminator(sample_size=32, in_channels=3, block_out_channels=channels, norm="none")
        assert 0.3 < d.down_blocks(x).square().mean() < 3
        assert discriminator(sample_size=32, in_channels=3, block_out_channels=channels, norm="batch").down_blocks[0](
            x
        ).square().mean() < 0.1  # fmt: skip
    g = generator(sample_size=32, block_out_channels=(16, 32, 64), norm="none", latent_dim=100)
    assert 0.3 < torch.atanh(g(torch.randn(64, 100)).sample.clamp(-0.999, 0.999)).square().mean() < 4


@pytest.mark.parametrize(
    ("kernel", "stride", "counts", "spread"),
    [(3, 2, {1, 2}, 1 / 3), (5, 2, {2, 3}, 1 / 5), (4, 2, {2}, 0), (6, 3, {2}, 0)],
)
def test_a_kernel_that_the_stride_divides_is_even(kernel, stride, counts, spread):
    overlap = nn.functional.conv_transpose1d(torch.ones(1, 1, 40), torch.ones(1, 1, kernel), stride=stride)[0, 0]
    inner = overlap[12:-12] if len(overlap[12:-12]) % stride == 0 else overlap[12 : -12 - len(overlap) % stride]
    assert {*inner.int().tolist()} == counts
    assert (inner.std(correction=0) / inner.mean()).item() == pytest.approx(spread, abs=1e-6)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 6])
def test_other_kernels_keep_sizes_and_are_warned_of_if_odd(kernel):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        g, d = generator(kernel_size=kernel, norm="none"), discriminator(kernel_size=kernel)
    said = [("checkerboard" in str(w.message), w.filename) for w in caught]
    assert said == [(True, __file__)] * 2 * (kernel % 2)
    assert d(g(torch.randn(2, 4)).sample).logits.shape == (2,)
    if kernel % 2 == 0:
        odd = {"sample_size": (13, 28), "kernel_size": kernel, "block_out_channels": (4, 4, 4)}
        x = generator(**odd)(torch.randn(2, 4)).sample
        assert x.shape == (2, 1, 13, 28) and discriminator(**odd)(x).features.shape == (2, 4 * 1 * 3)
    up = of(g, nn.ConvTranspose2d)[0]
    ones = nn.functional.conv_transpose2d(torch.ones(1, 1, 9, 9), torch.ones(1, 1, kernel, kernel), None, 2, *paddings(
        kernel, (18, 18)
    ))[0, 0, 6:-6, 6:-6]  # fmt: skip
    assert up.kernel_size == (kernel, kernel) and (ones.std() == 0) == (kernel % 2 == 0)


@pytest.mark.parametrize("network", ["pictures", "points"])
def test_spectral_norm_holds_the_largest_singular_value_at_one(network):
    torch.manual_seed(0)
    d, x = (
        (discriminator(norm="spectral", num_class_embeds=3), torch.randn(4, 1, 8, 8))
        if network == "pictures"
        else (MLPDiscriminator(hidden_sizes=(16, 16), norm="spectral"), torch.randn(4, 2))
    )
    labels = {"class_labels": torch.tensor([0, 1, 2, 0])} if network == "pictures" else {}
    with torch.no_grad():
        for p in d.parameters():
            p.mul_(3)
    for _ in range(100):
        d(x, **labels)
    weights = [m.weight for m in of(d, nn.Conv2d, nn.Linear, nn.Embedding)]
    assert len(weights) == (5 if network == "pictures" else 3)
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    assert len(of(d, SpectralNorm)) == len(weights)
    before = {key: value.clone() for key, value in d.state_dict().items()}
    d.eval()(x, **labels)
    assert all(torch.equal(value, before[key]) for key, value in d.state_dict().items())


def test_the_gradient_of_spectral_norm_is_that_of_the_quotient():
    norm, weight = SpectralNorm(torch.randn(3, 5)).double().eval(), torch.randn(3, 5, dtype=torch.float64)
    for _ in range(200):
        norm.train()(weight)
    norm.eval()
    torch.testing.assert_close(norm(weight), weight / torch.linalg.matrix_norm(weight, 2))
    assert torch.autograd.gradcheck(norm, weight.requires_grad_())


def test_batch_norm_is_torch_s_in_one_process():
    ours, theirs, x = BatchNorm2d(3).double(), nn.BatchNorm2d(3).double(), torch.randn(5, 3, 4, 4).double()
    assert torch.equal(ours(x), theirs(x)) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours.eval()(x[:1]), theirs.eval()(x[:1]))


def test_a_batch_of_one_cannot_be_trained_with_batch_norm():
    for network, x in ((generator(), torch.randn(1, 4)), (discriminator(), torch.randn(1, 1, 8, 8))):
        with pytest.raises(UsageError, match=r"batch of one.*train_batch_size"):
            network(x)
        network.eval()(x)


def test_packs_are_neighbours_side_by_side():
    d, x = discriminator(pack=2, norm="none"), torch.randn(6, 1, 8, 8)
    out = d(x)
    assert out.logits.shape == (3,)
    other = discriminator(in_channels=2, norm="none")
    other.load_state_dict(d.state_dict())
    assert torch.equal(out.logits, other(torch.cat([x[0::2], x[1::2]], 1)).logits)
    with pytest.raises(UsageError, match=r"pack=2 must divide the batch; got 5"):
        d(x[:5])
    with pytest.raises(UsageError, match=r"pack=2 must divide"):
        MLPDiscriminator(pack=2)(torch.randn(3, 2))


def test_the_standard_deviation_is_that_of_each_group_alone():
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    y = append_minibatch_std(x, 3)
    assert y.shape == (6, 3, 3, 3) and torch.equal(y[:, :2], x)
    expected = x[3:].std(0, correction=0).mean()
    torch.testing.assert_close(y[3:, 2], expected.expand(3, 3, 3), atol=1e-6, rtol=1e-6)
    d = discriminator(minibatch_std=2, norm="none")
    torch.testing.assert_close(d(x[:4, :1].float().repeat(1, 1, 3, 3)[..., :8, :8]).logits[:2], d(
        x[:2, :1].float().repeat(1, 1, 3, 3)[..., :8, :8]).logits)  # fmt: skip
    with pytest.raises(UsageError, match=r"minibatch_std=3 must divide the batch; got 4"):
        MLPDiscriminator(minibatch_std=3)(torch.randn(4, 2))


def test_conditions_reach_both_players():
    told = {"num_class_embeds": 3, "text_embed_dim": 5}
    g, d = generator(**told).eval(), discriminator(**told).eval()
    z, text = torch.randn(1, 4).expand(3, -1), torch.randn(1, 5).expand(3, -1)
    labels = torch.arange(3)
    x = g(z, labels, text).sample
    assert (x[0] - x[1]).abs().max() > 1e-3
    assert (g(z, labels, text).sample - g(z, labels, -text).sample).abs().max() > 1e-3
    verdicts = d(x[:1].expand(3, -1, -1, -1), labels, text).logits
    assert len({*verdicts.tolist()}) == 3
    torch.testing.assert_close(d(x, labels, text).logits, d(x, labels, 7 * text).logits, atol=1e-4, rtol=1e-4)


def test_the_projection_is_linear_in_the_features():
    d, x = discriminator(num_class_embeds=3).double().eval(), torch.randn(2, 1, 8, 8).double()
    for parameter in d.parameters():
        torch.nn.init.normal_(parameter)
    out = d(x, torch.tensor([0, 2]))
    code = d.head.condition.class_embedding.weight[[0, 2]]
    projected = (code * (out.features @ d.head.projection.weight.T)).sum(1)
    torch.testing.assert_close(out.logits, d.head.to_logit(out.features)[:, 0] + projected)


def test_an_auxiliary_classifier_is_one_more_layer():
    d = discriminator(num_aux_classes=10)
    out = d(torch.randn(4, 1, 8, 8))
    assert out.class_logits.shape == (4, 10) and len(out.to_tuple()) == 3
    assert len(d(torch.randn(4, 1, 8, 8), return_dict=False)) == 3


def test_dropout_can_be_the_source_of_noise():
    z = torch.randn(2, 4)
    kept, dropped = generator(dropout=0.5, keep_dropout=True).eval(), generator(dropout=0.5).eval()
    seeds = torch.tensor([3, 4])
    assert torch.equal(kept(z).sample, kept(z).sample)  # of seed 0
    assert torch.equal(kept(z, dropout_seeds=seeds).sample, kept(z, dropout_seeds=seeds).sample)
    assert not torch.equal(kept(z, dropout_seeds=seeds).sample, kept(z, dropout_seeds=seeds + 1).sample)
    torch.testing.assert_close(kept(z[1:], dropout_seeds=seeds[1:]).sample, kept(z, dropout_seeds=seeds).sample[1:])
    assert torch.equal(dropped(z, dropout_seeds=seeds).sample, dropped(z).sample)
    dropped.train()
    assert not torch.equal(dropped(z).sample, dropped(z).sample)


def test_dropout_as_noise_comes_from_the_seed_of_the_image():
    pipe = GANPipeline(generator(dropout=0.5, keep_dropout=True).eval())
    for seed in (0, 1):
        asked = {"latents": torch.ones(1, 4), "output_type": "latent"}  # so that dropout is all the noise there is
        one, again = (pipe(generator=torch.Generator().manual_seed(seed), **asked).images for _ in range(2))
        assert torch.equal(one, again)
    assert not torch.equal(one, pipe(generator=torch.Generator().manual_seed(0), **asked).images)
    state = torch.random.get_rng_state()
    few, many = (pipe(n, generator=torch.Generator().manual_seed(3), output_type="latent").images for n in (2, 5))
    decoded = (pipe.decode(torch.ones(1, 4), output_type="latent") for _ in range(2))
    assert torch.equal(few, many[:2]) and torch.equal(*decoded) and torch.equal(state, torch.random.get_rng_state())


def test_an_affine_generator_is_one_layer():
    g = MLPGenerator(latent_dim=3, out_dim=2, hidden_sizes=())
    z = torch.randn(5, 3)
    assert torch.equal(g(z).sample, z @ g.out.weight.T + g.out.bias) or torch.allclose(g(z).sample, g.out(z))
    assert len([*g.parameters()]) == 2 and torch.equal(g.decode(z), g(z).sample)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: generator(sample_size=(30, 3)), ["sample_size", "at least 2 ** 2 = 4", "got 3"]),
        (lambda: generator(norm="btach"), ["norm", "btach", '"batch"']),
        (lambda: discriminator(norm="group"), ["norm", "group", "spectral"]),
        (lambda: generator(kernel_size=1), ["kernel_size", "at least 2", "1"]),
        (lambda: generator(latent_dim=0), ["latent_dim", "at least 1"]),
        (lambda: generator(dropout=1.0), ["dropout", "1.0"]),
        (lambda: generator(num_class_embeds=0), ["num_class_embeds", "at least 1", "0"]),
        (lambda: generator(sample_size=4, norm="instance"), ["instance", "1 x 1", "fewer block_out_channels"]),
        (lambda: discriminator(pack=0), ["pack", "at least 1", "0"]),
        (lambda: discriminator(minibatch_std=1), ["minibatch_std", "at least 2", "1"]),
        (lambda: discriminator(pack=2, num_class_embeds=3), ["pack=2", "num_class_embeds"]),
        (lambda: discriminator(pack=2, num_aux_classes=3), ["pack=2", "num_aux_classes"]),
        (lambda: MLPGenerator(hidden_sizes=(8, 0)), ["hidden_sizes must each be at least 1", "(8, 0)"]),
        (lambda: MLPDiscriminator(norm="batch"), ["norm", "spectral"]),
        (lambda: generator()(torch.randn(2, 5)), ["latents", "latent_dim=4", "(2, 5)"]),
        (lambda: generator(num_class_embeds=3)(torch.randn(2, 4)), ["class_labels are missing", "num_class_embeds=3"]),
        (lambda: generator()(torch.randn(2, 4), torch.tensor([0, 1])), ["class_labels were given"]),
        (lambda: generator(text_embed_dim=3)(torch.randn(2, 4)), ["text_embeds are missing", "text_embed_dim=3"]),
        (
            lambda: generator(text_embed_dim=3)(torch.randn(2, 4), text_embeds=torch.randn(2, 4)),
            ["text_embeds must be (B, 3)", "(2, 4)"],
        ),
        (lambda: MLPGenerator()(torch.randn(2, 2), torch.tensor([0, 1])), ["class_labels were given"]),
        (lambda: discriminator()(torch.randn(2, 1, 8, 12)), ["sample", "1, 8, 8", "(2, 1, 8, 12)"]),
        (lambda: MLPDiscriminator()(torch.randn(2, 3)), ["sample", "(B, 2)", "(2, 3)"]),
        (lambda: HashedWords(dim=10), ["dim", "multiple of places", "10"]),
        (lambda: HashedWords()(["a dog", ""]), ["at least one word", "''"]),
        (lambda: HashedWords()(["..."]), ["at least one word", "'...'"]),
        (lambda: HashedWords()([3]), ["texts", "int"]),
    ],
)  # fmt: skip
def test_bad_input_says_what_and_why(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


# ------------------------------------------------------------ captions


def test_captions_are_alike_by_the_words_they_share():
    encode = HashedWords(dim=512)
    a, same, order, other = encode(["The red dog", "the  RED dog!", "dog red the", "a blue house"])
    torch.testing.assert_close(encode(["The red dog", "x"]).norm(dim=1), torch.ones(2))
    assert torch.equal(a, same) and not torch.equal(a, order)
    assert a @ order > 0.5 > 0.2 > (a @ other).abs()
    assert encode("one text").shape == (1, 512) and encode(["😀", "ﬁne", "fine"]).shape == (3, 512)
    assert torch.equal(*encode(["ﬁne", "fine"]))  # a ligature


def test_a_caption_s_vector_is_the_same_for_ever(tmp_path):
    encode = HashedWords(dim=64, places=2)
    row = encode(["seven"])[0]
    assert {i: round(v.item(), 4) for i, v in enumerate(row) if v} == {21: -0.7071, 51: -0.7071}
    encode.save_pretrained(tmp_path)
    assert torch.equal(HashedWords.from_pretrained(tmp_path)(["seven"])[0], row)
    assert encode.double()(["seven"]).dtype == torch.float64


def test_words_of_a_vocabulary_are_told_apart():
    words = [f"word{i}" for i in range(400)]
    v = HashedWords(dim=512)(words)
    similar = (v @ v.T).fill_diagonal_(0)
    assert similar.max() < 0.99 and similar.mean().abs() < 0.01
