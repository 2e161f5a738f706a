"""Normalizing flows: inverses, Jacobians, densities that integrate to 1, and the same numbers as zuko and normflows."""

import json
import math

import normflows
import pytest
import torch
import zuko
from helpers import load_example, seeded

from latentia import VAE, Autoencoder, AutoencoderPipeline, FlowPipeline, NormalizingFlow, VAEPipeline
from latentia.data.plane import PLANES
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import bits_per_dimension, dequantise
from latentia.functional.flows import dequantize, logit, soft_clip
from latentia.losses.likelihood import flow_loss
from latentia.models.flow import IMAGES, VECTORS
from latentia.models.layers.flow import LOG_SCALE_BOUND, ActNorm, Autoregressive, Coupling, InvertibleLinear
from latentia.rng import Rng
from latentia.runs.command_line import with_values

CONDITIONS = {"none": {}, "classes": {"num_class_embeds": 3}, "context": {"context_dim": 2}}


def given(conditions: str, n: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    return {
        "none": {},
        "classes": {"class_labels": torch.arange(n) % 3},
        "context": {"context": torch.randn(n, 2, dtype=dtype, generator=seeded(4))},
    }[conditions]


def build(of: str, architecture: str, scale: float = 0.1, **config) -> NormalizingFlow:
    """A flow all of whose layers do something."""
    torch.manual_seed(0)
    if of == "images":
        size = {"sample_size": (8, 4), "in_channels": 1, "num_stages": 2, "num_layers": 4, "hidden_sizes": (8, 8)}
    else:
        size = {"sample_size": None, "in_channels": 4, "num_layers": 4, "hidden_sizes": (16,)}
    flow = NormalizingFlow(**size | config, architecture=architecture)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter)
    return flow.eval()


def data(flow: NormalizingFlow, n: int, dtype=torch.float64) -> torch.Tensor:
    generator = seeded(1)
    if len(flow.shape) == 3:
        return torch.rand(n, *flow.shape, generator=generator, dtype=dtype) * 2 - 1
    return torch.randn(n, *flow.shape, generator=generator, dtype=dtype)


EVERY = [("images", name) for name in IMAGES] + [("vectors", name) for name in VECTORS]
every = pytest.mark.parametrize("of, architecture", EVERY)


@every
@pytest.mark.parametrize("conditions", CONDITIONS)
def test_inverse_and_determinant_are_exact(of, architecture, conditions):
    flow = build(of, architecture, **CONDITIONS[conditions]).double()
    x, condition = data(flow, 5), given(conditions, 5)
    flow.initialize(x, **condition)
    out, back = flow(x, **condition), None
    back = flow(latents=out.latents, **condition)
    torch.testing.assert_close(back.sample, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(back.log_prob, out.log_prob, atol=1e-9, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, **condition).latents.sum(0), x)  # (D, 5, ...)
    matrices = jacobian.transpose(0, 1).flatten(2)
    torch.testing.assert_close(torch.linalg.slogdet(matrices)[1], out.log_det, atol=1e-9, rtol=0)
    assert out.log_prob.std() > 0


@every
def test_inverse_in_float32(of, architecture):
    flow = build(of, architecture)
    x = data(flow, 64, torch.float32)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, atol=1e-5, rtol=0)


@every
def test_samples_in_bfloat16_are_finite(of, architecture):
    """Weights in half precision, values in float32, whatever the weights are."""
    flow = build(of, architecture, scale=0.5).to(torch.bfloat16)
    samples = flow.sample(16, [seeded(i) for i in range(16)])
    assert samples.dtype == torch.float32 and samples.isfinite().all()
    assert flow.log_prob(data(flow, 16, torch.float32)).isfinite().all()


@pytest.mark.parametrize("architecture", VECTORS)
def test_a_density_of_the_plane_integrates_to_one(architecture):
    flow = build("vectors", architecture, in_channels=2, activation="silu").double()
    flow.initialize(torch.randn(500, 2, dtype=torch.float64, generator=seeded(0)))
    side = torch.linspace(-10, 10, 501, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        total = sum(part.exp().sum() for part in map(flow.log_prob, points.split(20_000))) * (20 / 500) ** 2
    assert abs(float(total) - 1) < 2e-3, float(total)


def test_a_density_of_images_integrates_to_one():
    """Of 1 x 2 x 2 pixels, over the real numbers that the logit makes of them."""
    flow = build("images", "glow", sample_size=2, num_stages=1, num_layers=2, activation="silu").double()
    side = torch.linspace(-7, 7, 29, dtype=torch.float64)
    places = torch.cartesian_prod(side, side, side, side).view(-1, 1, 2, 2)
    pixels, log_derivative = logit(places, 0.05, inverse=True)
    with torch.no_grad():
        log_density = torch.cat([flow.log_prob(part) for part in pixels.split(100_000)])
    total = (log_density + log_derivative.flatten(1).sum(1)).exp().sum() * 0.5**4
    assert abs(float(total) - 1) < 2e-3, float(total)


def test_initialisation_makes_every_norm_standard():
    flow = build("images", "glow").double()
    x = data(flow, 300) * torch.tensor([0.2]).double()
    flow.initialize(x)
    seen: list[torch.Tensor] = []
    for layer in flow.modules():
        if isinstance(layer, ActNorm):
            layer.register_forward_hook(lambda _, __, out: seen.append(out[0].transpose(0, 1).flatten(1)))
    flow(x)
    assert len(seen) == 9
    for values in seen:
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)).double(), atol=1e-5, rtol=0)


def test_a_constant_channel_is_shifted_and_not_scaled():
    norm = ActNorm(2)
    norm.initialize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert norm.log_scale[1] == 0 and norm.shift[1] == -5


@pytest.mark.parametrize("has_context", [False, True])
@pytest.mark.parametrize("architecture", ["maf", "spline_maf"])
def test_parameters_depend_on_the_values_before_alone(architecture, has_context):
    flow = build(
        "vectors", architecture, activation="silu", **CONDITIONS["context" if has_context else "none"]
    ).double()
    layer = next(layer for layer in flow.modules() if isinstance(layer, Autoregressive))
    context = torch.randn(1, 64, dtype=torch.float64) if has_context else None

    weights = torch.randn(layer.transform.parameters_per_value, 1, dtype=torch.float64)

    def parameters(x):
        return (layer.conditioner(x[None], context)[0] * weights).sum(0)  # (D,)

    depends = torch.autograd.functional.jacobian(parameters, data(flow, 1)[0]) != 0
    assert torch.equal(depends, torch.ones(4, 4).tril(-1).bool())


# ------------------------------------------------------------ other libraries, with the same weights


def as_zuko(flow: NormalizingFlow) -> zuko.distributions.NormalizingFlow:
    """The same flow of zuko's transforms; its soft clip has the bound as the logarithm of a slope."""
    parts = []
    for layer in flow.stages[0]:
        if isinstance(layer, ActNorm):
            parts.append(zuko.transforms.DependentTransform(
                torch.distributions.AffineTransform(layer.shift, layer.log_scale.exp()), 1
            ))  # fmt: skip
        elif isinstance(layer, InvertibleLinear):
            size, scale = len(layer.log_diagonal), layer.log_diagonal.exp()  # which zuko has in the other factor
            parts.append(zuko.transforms.PermutationTransform(torch.arange(size).flip(0)))
            lower = layer.lower.tril(-1) * scale + scale.diag()
            parts.append(zuko.transforms.LULinearTransform(lower + layer.upper.triu(1) / scale[:, None]))
        else:

            def meta(x, layer=layer):
                shift, scale = layer.conditioner(x, None).unbind(1)
                slope = math.exp(-LOG_SCALE_BOUND)
                return zuko.transforms.DependentTransform(
                    zuko.transforms.MonotonicAffineTransform(shift, scale, slope=slope), 1
                )

            parts.append(zuko.transforms.AutoregressiveTransform(meta, passes=4))
    base = zuko.distributions.DiagNormal(*(part.double() for part in (torch.zeros(4), torch.ones(4))))
    return zuko.distributions.NormalizingFlow(zuko.transforms.ComposedTransform(*parts), base)


def test_maf_gives_the_log_probability_of_zuko():
    flow = build("vectors", "maf").double()
    x = data(flow, 50)
    flow.initialize(x)
    torch.testing.assert_close(flow.log_prob(x), as_zuko(flow).log_prob(x), atol=1e-5, rtol=0)


def test_realnvp_gives_the_log_probability_of_normflows():
    """Its layers map from latents to data."""
    flow = build("vectors", "realnvp").double()
    x = data(flow, 50)
    flow.initialize(x)

    class Linear(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def inverse(self, x):
            return self.layer(x)

    def coupling(layer: Coupling):
        class Parameters(torch.nn.Module):
            def forward(self, known):
                shift, scale = layer.conditioner(known, None).unflatten(1, (2, -1)).unbind(1)
                scale = soft_clip(scale, LOG_SCALE_BOUND)
                return torch.stack([-shift * (-scale).exp(), -scale], 2).flatten(1)  # shift, scale of each in turn

        return normflows.flows.AffineCouplingBlock(Parameters(), scale_map="exp", split_mode="channel")

    flows = [coupling(layer) if isinstance(layer, Coupling) else Linear(layer) for layer in flow.stages[0]]
    base = normflows.distributions.DiagGaussian(4, trainable=False).double()
    theirs = normflows.NormalizingFlow(base, flows[::-1]).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), theirs, atol=1e-5, rtol=0)


# ------------------------------------------------------------ loss, pipeline, prior


def test_the_loss_is_the_likelihood_of_dequantised_images():
    flow, rng = build("images", "realnvp"), Rng(3, 0, 6, 0, 6)
    images = torch.randint(0, 256, (6, 1, 8, 4), dtype=torch.uint8, generator=seeded(0))
    values = flow_loss(flow, {"x": images / 127.5 - 1}, rng)
    dequantised = (images + rng.uniform("dequantize", (1, 8, 4))) / 128 - 1
    nats = -flow.log_prob(dequantised).mean()
    torch.testing.assert_close(values["loss"], nats, atol=1e-3, rtol=0)
    torch.testing.assert_close(values["bits_per_dim"], bits_per_dimension(-nats, 32).detach(), atol=1e-4, rtol=0)


def test_learned_noise_has_the_density_that_is_counted():
    """q(u|x) against autograd's Jacobian of the noise, and the bound as the difference of two densities."""
    flow = build("images", "glow", sample_size=4, dequantization="variational").double()
    x = torch.randint(0, 256, (5, 1, 4, 4), generator=seeded(0)).double() / 127.5 - 1
    noise = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=seeded(1))
    u, log_q = flow.dequantizer(x, noise)
    assert 0 <= u.min() and u.max() < 1 and u.std() > 0
    jacobian = torch.autograd.functional.jacobian(lambda e: flow.dequantizer(x, e)[0].sum(0).flatten(), noise)
    log_det = torch.linalg.slogdet(jacobian.transpose(0, 1).flatten(2))[1]
    normal = torch.distributions.Normal(0, 1).log_prob(noise).flatten(1).sum(1)
    torch.testing.assert_close(log_q, normal - log_det, atol=1e-9, rtol=0)
    bound = flow(x, noise=noise).log_prob
    torch.testing.assert_close(bound, flow.log_prob(dequantize(x, u)) - log_q, atol=1e-9, rtol=0)
    other = build("images", "glow", sample_size=4, dequantization="variational").double()
    assert not torch.equal(other.dequantizer(-x, noise)[0], u)  # it sees the image


def test_labels_matter_and_without_them_the_mixture_is_meant():
    flow = build("images", "glow", num_class_embeds=3)
    pipe, x = FlowPipeline(flow), dequantise(torch.full((2, 1, 8, 4), 90, dtype=torch.uint8)).values
    each = torch.stack([pipe.log_likelihood(x, class_labels=c) for c in range(3)], 1)
    rows = list(torch.tensor([2, 2]))  # as labels of a data set are taken
    assert torch.equal(pipe.log_likelihood(x, class_labels=rows), each[:, 2])
    assert (each[:, 0] - each[:, 1]).abs().min() > 1e-3
    torch.testing.assert_close(pipe.log_likelihood(x), each.logsumexp(1) - math.log(3), atol=1e-5, rtol=0)


def test_a_likelihood_of_bytes_grows_with_samples():
    pipe, images = FlowPipeline(build("images", "glow")), torch.full((3, 1, 8, 4), 200, dtype=torch.uint8)
    few, many = (pipe.log_likelihood(images, samples=k, generator=seeded(0)).mean() for k in (1, 200))
    assert few < many < 0
    middle = pipe.log_likelihood(dequantise(images).values).mean() - 32 * math.log(128)
    assert abs(float(middle - few)) < 5  # the same quantity


def test_a_flow_is_a_prior_of_autoencoders():
    prior = build("vectors", "spline", in_channels=3)
    autoencoder = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=3), prior=prior)
    few, many = (autoencoder(n, generator=seeded(0), output_type="latent").images for n in (2, 5))
    assert torch.equal(few, many[:2])
    vae = VAEPipeline(VAE(sample_size=8, latent_dim=3), prior=prior)
    assert vae.log_likelihood(torch.zeros(2, 1, 8, 8), samples=2, generator=seeded(0)).isfinite().all()


def test_a_fit_that_diverges_is_an_error(monkeypatch):
    monkeypatch.setattr(NormalizingFlow, "log_prob", lambda flow, x: flow.encode(x).sum(1) * math.nan)
    with pytest.raises(NumericsError, match="no finite likelihood"):
        NormalizingFlow.fit(torch.randn(100, 2, generator=seeded(0)), steps=2)


def test_points_pass_the_pipeline_as_tensors():
    pipe = FlowPipeline(build("vectors", "spline", in_channels=2))
    points = pipe(5, generator=seeded(0), output_type="latent").images
    assert points.shape == (5, 2)
    torch.testing.assert_close(pipe.decode(pipe.encode(points), output_type="latent"), points, atol=1e-5, rtol=0)
    assert pipe.log_likelihood(points).shape == (5,)


def test_a_flow_of_the_plane_is_trained_drawn_and_saved(tmp_path):
    example = load_example("train_flow_plane")
    flags = {"output_dir": str(tmp_path), "max_train_steps": 3, "num_layers": 2, "hidden_sizes": [8], "plane": "ring"}
    assert example.main(with_values(example.Arguments(), flags, "run.yaml")) == 0
    found = json.loads((tmp_path / "run_summary.json").read_text())
    assert found["log_likelihood"] < found["true_log_likelihood"] and (tmp_path / "density.png").stat().st_size > 5000
    pipe = FlowPipeline.from_pretrained(tmp_path)
    mean = pipe.log_likelihood(PLANES["ring"].sample(10_000, 0)).mean()
    assert abs(float(mean) - found["log_likelihood"]) < 1e-3


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: NormalizingFlow((30, 28), num_stages=2), "num_stages must be at most 1 .* to a multiple of 4"),
        (lambda: NormalizingFlow(7), "sample_size must have even sides .* got 7 x 7"),
        (lambda: NormalizingFlow(8, architecture="maf"), "architecture must be one of nice, realnvp, glow, spline;"),
        (lambda: NormalizingFlow(None, 2), "architecture must be one of nice, realnvp, spline, maf, iaf, spline_maf"),
        (lambda: NormalizingFlow(None, 1, "spline"), "in_channels must be at least 2 .* architecture=\"maf\""),
        (lambda: NormalizingFlow(None, 2, "maf", num_stages=2), "num_stages must be 1 for vectors"),
        (lambda: NormalizingFlow(8, bins=1), "bins must be in"),
        (lambda: NormalizingFlow(8, logit_alpha=0.5), "logit_alpha must be in"),
        (lambda: NormalizingFlow(8, dequantization="none"), "dequantization must be one of uniform, variational"),
        (lambda: NormalizingFlow(None, 2, "maf", dequantization="variational"), "dequantization must be one of"),
        (lambda: NormalizingFlow(8)(), "sample or latents must be given"),
        (lambda: NormalizingFlow(8)(torch.zeros(1, 1, 8, 4)), r"sample must have shape \(B, 1, 8, 8\)"),
        (lambda: NormalizingFlow(8)(latents=torch.zeros(1, 8)), r"latents must have shape \(B, 64\)"),
        (lambda: NormalizingFlow(8).log_prob(torch.zeros(1, 1, 8, 8), torch.tensor([0])), "class_labels were given"),
        (lambda: NormalizingFlow(8, context_dim=2).log_prob(torch.zeros(1, 1, 8, 8)), "context is missing"),
        (lambda: NormalizingFlow(8).initialize(torch.zeros(1, 1, 8, 8)), "at least 2 samples"),
        (lambda: NormalizingFlow(8).initialize(torch.full((4, 1, 8, 8), 3.0)), r"sample must be in \[-1, 1\]; got"),
        (lambda: NormalizingFlow(8).initialize(torch.zeros(4, 1, 8, 8).byte()), "must be floating point and finite"),
        (lambda: NormalizingFlow(None, 2, "maf").initialize(torch.full((4, 2), math.nan)), "floating point and finite"),
        (lambda: NormalizingFlow(8)(torch.zeros(4, 1, 8, 8).byte()), "must be floating point; got torch.uint8"),
        (lambda: NormalizingFlow(8).sample(2, seeded(0)), "one for each of n=2 samples; got one Generator"),
        (lambda: NormalizingFlow.fit(torch.randn(100)), r"latents must be a tensor \(N, D\)"),
        (lambda: NormalizingFlow.fit(torch.randn(100, 2).numpy()), r"latents must be a tensor \(N, D\)"),
        (lambda: FlowPipeline(NormalizingFlow(8)).decode(torch.zeros(1, 64).numpy()), "latents must be a tensor"),
        (lambda: FlowPipeline(NormalizingFlow(8)).log_likelihood(torch.zeros(1, 1, 8, 8), samples=1.5), "an integer"),
        (lambda: FlowPipeline(NormalizingFlow(8))(temperature=-1.0), "temperature must be at least 0"),
        (lambda: FlowPipeline(NormalizingFlow(8))(class_labels=1), "trained without classes"),
        (lambda: FlowPipeline(NormalizingFlow(8)).log_likelihood(torch.full((1, 1, 8, 8), 1.5)), r"lie in \[-1, 1\]"),
        (lambda: FlowPipeline(NormalizingFlow(8, context_dim=2)), "flow must have no context vector"),
        (lambda: FlowPipeline(Autoencoder(8, latent_dim=2)), "flow must be a NormalizingFlow; got Autoencoder"),
        (lambda: FlowPipeline(NormalizingFlow(None, 2, "maf"))(2), 'samples vectors of 2 values, no images'),
        (
            lambda: FlowPipeline(NormalizingFlow(None, 2, "maf")).encode(torch.zeros(2, 3)),
            r"images must be a tensor of vectors \(B, 2\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_says_what_and_why(call, words):
    with pytest.raises(UsageError, match=words):
        call()
