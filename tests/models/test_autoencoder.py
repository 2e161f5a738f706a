"""Autoencoders: what is particular to them. Shapes, gradients, saving and compiling are tested over the whole zoo."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from helpers import load_example
from sklearn.decomposition import PCA
from torch import nn

import latentia
from latentia import Autoencoder, AutoencoderPipeline, RecurrentAutoencoder
from latentia.data import load_images
from latentia.errors import UsageError
from latentia.functional.distributions import bernoulli_kl
from latentia.functional.masks import length_mask
from latentia.losses.reconstruction import autoencoder_loss, corrupt
from latentia.models.autoencoder import outer_layers
from latentia.models.layers.convolution import Decoder, Encoder
from latentia.rng import Rng


def draws(n, position=0):
    return Rng(0, position, n, 0, n)


def fit(network, images, steps, rate=3e-3, parameters=None, **objective):
    """Full batches and Adam: small enough for a test."""
    optimizer = torch.optim.Adam(parameters or network.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        values = autoencoder_loss(network, {"x": images}, draws(len(images), step * len(images)), **objective)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
    return {key: value.item() for key, value in values.items()}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").images[:600].float() / 127.5 - 1


# ------------------------------------------------------------ networks


def test_a_linear_autoencoder_learns_what_pca_finds(digits):
    x = digits.flatten(1)
    pca = PCA(5).fit(x.double().numpy())
    best = np.square(pca.inverse_transform(pca.transform(x.numpy())) - x.numpy()).sum(1).mean()
    torch.manual_seed(0)
    network = Autoencoder(sample_size=8, latent_dim=5)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=250, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        found = autoencoder_loss(network, {"x": digits}, draws(len(digits)))["loss"]
        found.backward()
        return found

    optimizer.step(closure)
    assert best * (1 - 1e-6) <= closure().item() <= 1.01 * best
    basis = torch.linalg.qr(network.decoder_weights[0].detach().double()).Q  # (64, 5)
    cosines = torch.linalg.svdvals(torch.from_numpy(pca.components_) @ basis)
    assert cosines.min() >= 0.99


def test_layers_mirror_and_the_configuration_alone_builds_them():
    network = Autoencoder(sample_size=(8, 12), in_channels=3, latent_dim=7, hidden_sizes=(40, 20))
    shapes = [tuple(layer.weight.shape) for layer in network.encoder_mlp]
    assert shapes == [(40, 288), (20, 40), (7, 20)]
    assert [tuple(w.shape) for w in network.decoder_weights] == [shape[::-1] for shape in shapes[::-1]]


@pytest.mark.parametrize("tie", [False, True])
def test_a_stacked_autoencoder_is_the_chain_of_its_layers(tie):
    """Every hidden layer has the activation, the code its own, and what comes out none."""
    config = {"hidden_sizes": (9, 6), "activation": "tanh", "latent_activation": "sigmoid", "tie_weights": tie}
    network, x = Autoencoder(sample_size=4, latent_dim=3, **config).double(), torch.randn(2, 1, 4, 4).double()
    a, b, c, d, e, f = [(layer.weight, layer.bias) for layer in (*network.encoder_mlp, *network.decoder_mlp)]
    linear = nn.functional.linear
    z = linear(linear(linear(x.flatten(1), *a).tanh(), *b).tanh(), *c).sigmoid()
    back = linear(linear(linear(z, *d).tanh(), *e).tanh(), *f)
    torch.testing.assert_close(network(x).latents, z)
    torch.testing.assert_close(network(x).reconstruction, back.view_as(x))


@pytest.mark.parametrize(
    ("size", "channels"), [(8, (4, 8, 8)), (28, (4, 8)), (32, (4, 4, 8)), (64, (2, 4, 8, 8)), ((16, 40), (4, 8, 16))]
)
@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_the_pyramid_halves_and_its_mirror_gives_the_shape_back(size, channels, upsample):
    h, w = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, 3, h, w)
    features = Encoder(3, channels, size, 2, "batch", "relu")(x)
    n = len(channels)
    assert features.shape == (2, channels[-1], h // 2**n, w // 2**n)
    assert Decoder(5, channels, size, 2, "none", "relu", upsample)(features).shape == (2, 5, h, w)


def test_a_transposed_convolution_reaches_every_pixel_as_often():
    up = Decoder(1, (1, 1), 16, norm="none", activation="none")
    for parameter in up.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim > 1 else 0.0)
    inside = up(torch.ones(1, 1, 4, 4))[0, 0, 4:-4, 4:-4]
    assert inside.unique().numel() == 1  # no checkerboard


def test_tied_weights_halve_the_parameters_and_stay_tied(tmp_path):
    config = {"sample_size": 8, "latent_dim": 10, "hidden_sizes": (100, 30)}
    tied, free = Autoencoder(**config, tie_weights=True), Autoencoder(**config)
    biases = sum(p.numel() for p in free.parameters() if p.ndim == 1)
    count = [sum(p.numel() for p in network.parameters()) for network in (tied, free)]
    assert count[0] - biases == (count[1] - biases) / 2
    optimizer = torch.optim.SGD(tied.parameters(), lr=1e-2)
    tied(torch.randn(4, 1, 8, 8)).reconstruction.square().mean().backward()
    optimizer.step()
    tied.save_pretrained(tmp_path)
    for network in (tied, Autoencoder.from_pretrained(tmp_path), copy.deepcopy(tied)):
        for out, layer in zip(network.decoder_weights, reversed(network.encoder_mlp)):
            assert torch.equal(out, layer.weight.T) and out.data_ptr() == layer.weight.data_ptr()
    assert torch.equal(network.decoder_weights[0], tied.decoder_weights[0])


@pytest.mark.parametrize("tie", [False, True])
def test_layer_by_layer_moves_one_pair_and_each_layer_helps(digits, tie):
    torch.manual_seed(0)
    network = Autoencoder(sample_size=8, latent_dim=4, hidden_sizes=(48, 24), tie_weights=tie)
    start = fit(network, digits, 1, 0.0)["reconstruction"]
    for depth in (1, 2, 3):
        before = [p.clone() for p in network.parameters()]
        outer = outer_layers(network, depth)
        assert outer(digits[:2]).latents.shape == (2, (48, 24, 4)[depth - 1])
        inner = [*outer.encoder_mlp[-1].parameters(), *outer.decoder_mlp[0].parameters()]
        fit(outer, digits, 60, parameters=inner)
        moved = {id(p) for p, old in zip(network.parameters(), before) if not torch.equal(p, old)}
        assert moved == {id(p) for p in inner}
    greedy = fit(network, digits, 1, 0.0)["reconstruction"]
    x = digits[:5]
    assert torch.equal(outer_layers(network, 3)(x).reconstruction, network(x).reconstruction)
    assert fit(network, digits, 60)["reconstruction"] < greedy < 0.8 * start


def test_a_recurrent_encoder_is_the_gru_of_packed_sequences():
    network = RecurrentAutoencoder(3, 4, 8)
    gru = nn.GRU(3, 8, batch_first=True)
    for name, parameter in network.encoder_rnn.named_parameters():
        getattr(gru, f"{name}_l0").data.copy_(parameter)
    x, lengths = torch.randn(5, 7, 3), torch.tensor([7, 1, 4, 6, 2])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected = network.encoder_out(gru(packed)[1][0])
    mask = length_mask(lengths, 7)
    torch.testing.assert_close(network.encode(x, mask), expected)
    holes = torch.where(mask[..., None], x, torch.nan).requires_grad_()
    codes = network.encode(holes, mask)
    torch.testing.assert_close(codes, expected)
    codes.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.encoder_rnn.parameters())


def test_a_recurrent_decoder_sees_the_code_alone():
    network = RecurrentAutoencoder(2, 3, 8)
    a, b = torch.randn(1, 6, 2), torch.randn(1, 6, 2)
    network.encode = lambda sequences, mask=None: torch.ones(1, 3)
    assert torch.equal(network(a).reconstruction, network(b).reconstruction)
    longer = network.decode(torch.ones(1, 3), 9)
    torch.testing.assert_close(longer[:, :6], network(a).reconstruction)


# ------------------------------------------------------------ objectives


class Copy(nn.Module):
    """Reconstructs what it is given; its code is `latents`."""

    def __init__(self, latents, latent_activation="sigmoid"):
        super().__init__()
        self.latents, self.seen = latents, None
        self.config = type("Config", (), {"latent_activation": latent_activation})()

    def forward(self, x, mask=None):
        self.seen = x
        return latentia.models.autoencoder.AutoencoderOutput(reconstruction=x, latents=self.latents)


def test_the_kl_to_a_target_activation_has_the_known_values():
    found = bernoulli_kl(0.1, torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.03669, 0.36806]).double(), atol=5e-6, rtol=0)
    assert bernoulli_kl(0.1, torch.tensor([0.0, 1.0])).isfinite().all()


def test_gaussian_corruption_has_its_level_and_a_clean_target():
    x = torch.rand(500, 1, 8, 8) * 2 - 1
    network = Copy(torch.zeros(500, 2))
    values = autoencoder_loss(network, {"x": x}, draws(500), corruption="gaussian", corruption_strength=0.4)
    noise = network.seen - x
    assert abs(noise.std() - 0.4) < 0.01 and abs(noise.mean()) < 0.01
    # the copy of the noisy input is off by the noise: E ||eps||^2 = 64 sigma^2 per image, summed over pixels
    torch.testing.assert_close(values["reconstruction"], noise.square().sum() / 500)
    torch.testing.assert_close(values["per_value"], noise.square().mean())
    again = corrupt(x, draws(500), "gaussian", 0.4)
    assert torch.equal(again, network.seen) and not torch.equal(again, corrupt(x, draws(500, 500), "gaussian", 0.4))


def test_masking_switches_whole_pixels_off_as_often_as_asked():
    x = torch.rand(300, 3, 8, 8)
    off = corrupt(x, draws(300), "masking", 0.3) == -1
    assert torch.equal(off.all(1), off.any(1)) and abs(off.float().mean() - 0.3) < 0.01
    sequences = corrupt(torch.rand(300, 8, 5), draws(300), "masking", 0.3, masked_value=0.0) == 0
    assert torch.equal(sequences.all(2), sequences.any(2)) and abs(sequences.float().mean() - 0.3) < 0.03


def test_penalties_are_those_of_the_definition():
    z = torch.rand(6, 5)
    found = {}
    for sparsity in ("l1", "l2", "kl"):
        x = torch.zeros(6, 1, 2, 2)
        values = autoencoder_loss(Copy(z), {"x": x}, draws(6), sparsity=sparsity, sparsity_weight=0.5)
        assert values["loss"] == values["reconstruction"] + 0.5 * values["sparsity"]
        found[sparsity] = float(values["sparsity"])
    rho = z.mean(0)
    kl = (0.1 * (0.1 / rho).log() + 0.9 * (0.9 / (1 - rho)).log()).sum()
    expected = {"l1": z.sum() / 6, "l2": (z**2).sum() / 6, "kl": kl}
    assert found == pytest.approx({key: float(value) for key, value in expected.items()}, rel=1e-5)


def test_absolute_differences_and_masked_elements():
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]])
    network = Copy(torch.zeros(2, 1))
    network.forward = lambda s, mask: latentia.models.autoencoder.AutoencoderOutput(s + 2, torch.zeros(2, 1))
    for reconstruction, each in (("mse", 4.0), ("l1", 2.0), ("log_cosh", math.log(math.cosh(2)))):
        values = autoencoder_loss(network, {"x": x, "mask": mask}, draws(2), reconstruction=reconstruction)
        assert values["reconstruction"].item() == pytest.approx(each * (12 + 4) / 2)
        assert values["per_value"].item() == pytest.approx(each)


def test_sparse_codes_come_near_the_target(digits):
    torch.manual_seed(0)
    x = digits[:200]
    network = Autoencoder(sample_size=8, latent_dim=40, latent_activation="sigmoid")
    fit(network, x, 150, 3e-2, sparsity="kl", sparsity_weight=5.0)
    assert (network.encode(x).mean(0) - 0.1).abs().max() < 0.03
    free = Autoencoder(sample_size=8, latent_dim=40, latent_activation="sigmoid")
    fit(free, x, 150, 3e-2)
    assert (free.encode(x).mean(0) - 0.1).abs().mean() > 0.1


def test_a_denoiser_removes_noise_that_it_was_not_shown(digits):
    torch.manual_seed(0)
    network = Autoencoder(sample_size=8, latent_dim=24, hidden_sizes=(64,))
    fit(network, digits[:500], 200, corruption="gaussian", corruption_strength=0.6)
    noisy = digits[500:] + 0.6 * torch.randn_like(digits[500:])
    pipe = AutoencoderPipeline(network)
    clean = pipe.denoise(noisy, output_type="latent")
    assert (clean - digits[500:]).square().mean() < 0.5 * (noisy - digits[500:]).square().mean()
    assert len(pipe.denoise(noisy[:2])) == 2


# ------------------------------------------------------------ the pipeline


@pytest.fixture(scope="module")
def pipe(digits):
    torch.manual_seed(0)
    network = Autoencoder(sample_size=8, latent_dim=6, hidden_sizes=(32,))
    fit(network, digits, 150, 1e-2)
    pipe = AutoencoderPipeline(network.eval())
    return AutoencoderPipeline(network, prior=latentia.LatentMixture.fit(pipe.encode(digits), 3))


def test_without_a_density_sampling_is_refused_with_a_way_out(pipe):
    with pytest.raises(UsageError, match=r"LatentMixture\.fit\(pipe\.encode\(images\)"):
        AutoencoderPipeline(pipe.autoencoder)(batch_size=2)


def test_samples_depend_on_their_generator_alone(pipe):
    def sample(batch_size, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(batch_size, generator=generators, output_type="latent").images

    many = sample(70, range(70))
    assert torch.equal(sample(1, [66])[0], many[66])
    assert pipe(batch_size=2).images[0].size == (8, 8)


def test_saved_and_loaded_it_does_the_same(pipe, tmp_path, digits):
    for name, one in {"with": pipe, "without": AutoencoderPipeline(pipe.autoencoder)}.items():
        one.save_pretrained(tmp_path / name)
        loaded = latentia.DiffusionPipeline.from_pretrained(tmp_path / name)
        assert type(loaded) is AutoencoderPipeline and (loaded.prior is None) == (name == "without")
        assert torch.equal(loaded.encode(digits[:5]), one.encode(digits[:5]))
    assert json.loads((tmp_path / "with" / "model_index.json").read_text())["prior"] == ["latentia", "LatentMixture"]


def test_words(pipe, digits):
    x = digits[:3]
    codes = pipe.encode(x)
    assert codes.shape == (3, 6)
    back = pipe.reconstruct(x, output_type="latent")
    assert torch.equal(pipe.decode(codes, output_type="latent"), back)
    torch.testing.assert_close(pipe.anomaly_score(x), (back - x).square().sum((1, 2, 3)))
    noise = torch.rand_like(digits[:100]) * 2 - 1
    assert pipe.anomaly_score(noise).median() > 4 * pipe.anomaly_score(digits[:100]).median()
    for mode in ("lerp", "slerp"):
        way = pipe.interpolate(x[:1], x[1:2], 5, mode=mode, output_type="latent")
        assert way.shape == (5, 1, 8, 8)
        torch.testing.assert_close(way[[0, -1]], back[:2], atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="has no log_likelihood"):
        pipe.log_likelihood(x)


def test_memorising_is_detected_and_generalising_is_not(digits, pipe):
    """Codes of one number, a large network, 6 images: an index of them, and nothing about others."""
    torch.manual_seed(0)
    network = Autoencoder(sample_size=8, latent_dim=1, hidden_sizes=(128, 64), activation="relu")
    fit(network, digits[:6], 300, 5e-3)
    found = AutoencoderPipeline(network).memorisation(digits[:6], digits[12:200])
    assert found.memorises and found.ratio >= 100 and found.train_error < 0.01 * found.held_out_error
    assert not pipe.memorisation(digits[:300], digits[300:]).memorises


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sample_size": 8, "latent_dim": 65}, "at most the 64 values.*got 65.*overcomplete=True"),
        ({"sample_size": 28, "block_out_channels": (8, 8, 8)}, r"divisible by 2 \*\* 3 = 8.*got 28. Use 24 or 32"),
        ({"sample_size": (32, 20), "block_out_channels": (8, 8, 8)}, "got 20. Use 16 or 24"),
        ({"block_out_channels": (16, 8)}, r"none smaller than the one before.*got \(16, 8\)"),
        ({"block_out_channels": (8,), "tie_weights": True}, "tie_weights is for dense layers only"),
        ({"latent_dim": 0}, "latent_dim must be at least 1; got 0"),
        ({"hidden_sizes": (10, 0)}, r"hidden_sizes must each be at least 1; got \(10, 0\)"),
        ({"activation": "rele"}, 'activation must be one of.*Did you mean "relu"'),
        ({"latent_activation": "sigmiod"}, 'latent_activation must be one of.*Did you mean "sigmoid"'),
        ({"sample_size": (8, 8, 8)}, "sample_size must be one side or"),
        ({"block_out_channels": (8,), "upsample": "bilinear"}, "upsample must be one of transposed, resize"),
        ({"block_out_channels": (8,), "layers_per_block": 0}, "layers_per_block must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_way_out(config, words):
    with pytest.raises(UsageError, match=words):
        Autoencoder(**config)


def test_codes_longer_than_the_image_are_possible_on_purpose():
    assert Autoencoder(sample_size=8, latent_dim=300, overcomplete=True)(torch.zeros(1, 1, 8, 8)).latents.shape == (
        1,
        300,
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: Autoencoder(sample_size=8, latent_dim=2)(torch.zeros(1, 1, 8, 9)),
            r"shape \(B, 1, 8, 8\).*\(1, 1, 8, 9\)",
        ),
        (
            lambda: Autoencoder(sample_size=8, latent_dim=2).decode(torch.zeros(3)),
            r"shape \(B, latent_dim\) = \(B, 2\); got \(3,\)",
        ),
        (lambda: RecurrentAutoencoder(3)(torch.zeros(2, 0, 3)), r"at least one element.*got \(2, 0, 3\)"),
        (lambda: RecurrentAutoencoder(3)(torch.zeros(2, 4, 3), torch.zeros(2, 4)), "got none for 2 of 2"),
        (lambda: RecurrentAutoencoder(3)(torch.zeros(2, 4, 3), torch.ones(2, 5)), r"mask must have shape.*\(2, 4\)"),
        (lambda: RecurrentAutoencoder(0), "in_features must be at least 1"),
        (lambda: length_mask(torch.tensor([0, 2]), 3), "lengths must be from 1 to 3.*from 0 to 2"),
        (lambda: outer_layers(Autoencoder(sample_size=8, latent_dim=2), 2), r"depth must be in \[1, 1\]; got 2"),
        (lambda: outer_layers(Autoencoder(block_out_channels=(8,)), 1), "Train jointly"),
        (
            lambda: corrupt(torch.zeros(2, 1, 4, 4), draws(2), "masking", 1.0),
            r"corruption_strength must be in \[0, 1\); got 1.0",
        ),
        (lambda: corrupt(torch.zeros(2, 1, 4, 4), draws(2), "gaussian", -1), "at least 0; got -1"),
        (lambda: corrupt(torch.zeros(2, 1, 4, 4), draws(2), "gausian", 1), 'Did you mean "gaussian"'),
        (lambda: bernoulli_kl(1.0, torch.zeros(2)), r"rho must be in \(0, 1\); got 1.0"),
        (lambda: loss(sparsity="L1"), "sparsity must be one of"),
        (lambda: loss(sparsity="l1", sparsity_weight=-0.1), "sparsity_weight must be at least 0; got -0.1"),
        (lambda: loss(sparsity="kl", sparsity_weight=1), 'latent_activation="none".*"sigmoid"'),
        (lambda: loss(reconstruction="mes"), 'Did you mean "mse"'),
    ],
)
def test_wrong_arguments_are_refused_with_a_way_out(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def loss(**options):
    network = Autoencoder(sample_size=8, latent_dim=2)
    return autoencoder_loss(network, {"x": torch.zeros(2, 1, 8, 8)}, draws(2), **options)


def test_the_pipeline_refuses_what_it_cannot_do(pipe, digits):
    for call, words in (
        (lambda: pipe(batch_size=0), "batch_size must be at least 1; got 0"),
        (lambda: pipe(batch_size=3, latents=torch.zeros(2, 6)), "batch_size is 3, but latents are given for 2"),
        (lambda: pipe(output_type="pill"), 'Did you mean "pil"'),
        (lambda: pipe.encode(torch.zeros(1, 1, 9, 9)), "must be 8 high and 8 wide"),
        (lambda: pipe.denoise(torch.full((1, 1, 8, 8), torch.nan)), "must be finite"),
        (lambda: pipe.interpolate(digits[:2], digits[:1]), "a must be one image; got 2"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


# ------------------------------------------------------------ the example


def test_the_example_trains_layer_by_layer_and_resumes(tmp_path, capsys):
    example = load_example("train_autoencoder")
    from latentia.runs.command_line import parse_arguments

    flags = f"""--dataset_name digits --hidden_sizes 16 --latent_dim 4 --layerwise_steps 2 --max_train_steps 3
        --train_batch_size 32 --eval_num_samples 20 --prior_samples 100 --prior_components 2 --validation_steps 2
        --corruption masking --corruption_strength 0.2 --output_dir {tmp_path}""".split()
    args = parse_arguments(example.Arguments, flags, description="test", prog="train")
    assert example.main(args) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("autoencoder/reconstruction" in line for line in lines)
    assert (tmp_path / "layer-1" / "checkpoints").exists() and (tmp_path / "layer-2" / "checkpoints").exists()
    assert (tmp_path / "samples" / "step-000002-reconstruction.png").exists()
    pipe = latentia.DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe(batch_size=2, output_type="pt").images.shape == (2, 1, 8, 8)
    assert example.main(args) == 0 and "Nothing to do" in capsys.readouterr().out
