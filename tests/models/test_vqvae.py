"""Vector and finite scalar quantisation: codes, gradients, the codebook's update, and the pipeline over it."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from children import ended, enter, ranks
from helpers import held, load_example, part_of, seeded
from safetensors.torch import load_file
from torch import nn

from latentia import VQVAE, DiffusionPipeline, PositionPrior, VQVAEPipeline
from latentia.data.order import indices
from latentia.errors import UsageError
from latentia.functional.quantisation import perplexity
from latentia.losses.quantisation import CodebookUpdate, vqvae_loss
from latentia.models.layers.quantizers import FiniteScalarQuantizer, VectorQuantizer
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments
from latentia.training.ema import EMA
from latentia.training.loop import Phase, train


def network(**config) -> VQVAE:
    torch.manual_seed(0)
    base = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1}
    vqvae = VQVAE(**base | {"codebook_size": 12, "latent_channels": 4} | config)
    if hasattr(vqvae.quantize, "codebook"):
        nn.init.normal_(vqvae.quantize.codebook, std=0.5)
    return vqvae


def fsq(**config) -> VQVAE:
    return network(quantizer="fsq", levels=(5, 4), **config)


def pictures(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Pictures:
    """Twenty pictures of two tones."""

    fingerprint = "pictures"

    def batch(self, first, last, *, seed, device):
        return {"x": (pictures(20) + 2 * (torch.arange(20) % 2).view(-1, 1, 1, 1)).div(3)[
            indices(first, last, 20, seed)].double()}  # fmt: skip


# ------------------------------------------------------------ quantisation


def test_quantised_latents_are_the_nearest_rows_of_the_codebook():
    vqvae, x = network(), pictures()
    out, rows = vqvae(x), vqvae.quantize.codebook
    z_e, z_q = out.latents.movedim(1, -1), out.quantized.movedim(1, -1)  # (B, h, w, D)
    assert torch.equal(z_q, rows[out.codes]) and out.codes.shape == (6, 4, 4)
    assert torch.equal(torch.cdist(z_e.flatten(0, 2).double(), rows.double()).argmin(1), out.codes.flatten())
    assert torch.equal(vqvae.lookup(out.codes), out.quantized) and len(out.codes.unique()) > 3


@pytest.mark.parametrize("make", [network, fsq])
def test_the_decoder_sees_the_quantised_latents_to_the_last_bit(make):
    vqvae, seen = make().train(), []
    vqvae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = vqvae(pictures())
    assert torch.equal(seen[0], out.quantized) and torch.equal(vqvae.lookup(out.codes), out.quantized)
    torch.testing.assert_close(vqvae.decode(vqvae.lookup(out.codes)), out.reconstruction)


def test_the_encoder_gets_the_gradient_of_the_decoder_input():
    vqvae, seen = network(), []
    vqvae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    vqvae.post_quant_conv.register_full_backward_hook(lambda module, into, out: seen.append(into[0]))
    out = vqvae(pictures())
    out.latents.retain_grad()
    out.reconstruction.square().sum().backward()
    assert torch.equal(out.latents.grad, seen[1]) and out.latents.grad.abs().sum() > 0


def test_scalar_quantisation_has_the_gradient_of_the_squeezed():
    vqvae, seen = fsq(), []
    vqvae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    vqvae.post_quant_conv.register_full_backward_hook(lambda module, into, out: seen.append(into[0]))
    out = vqvae(pictures())
    out.latents.retain_grad()
    out.reconstruction.square().sum().backward()
    torch.testing.assert_close(out.latents.grad, seen[1] * (1 - out.latents.tanh() ** 2))


@pytest.mark.parametrize("levels", [(2,), (3,), (5, 4), (8, 5, 5), (2, 3, 4)])
def test_scalar_codes_and_levels_are_a_bijection(levels):
    quantizer = FiniteScalarQuantizer(levels)
    assert quantizer.codebook_size == math.prod(levels)
    codes = torch.arange(quantizer.codebook_size).view(-1, 1, 1)
    points = quantizer.lookup(codes)  # (K, d, 1, 1)
    found = {tuple(round(v, 5) for v in row) for row in points.flatten(1).tolist()}
    grid = itertools.product(*[[round(2 * i / (count - 1) - 1, 5) for i in range(count)] for count in levels])
    assert found == {*grid} and len(found) == quantizer.codebook_size
    z_q, again = quantizer(torch.atanh(points.clamp(-0.9999, 0.9999)))
    assert torch.equal(again, codes) and torch.equal(z_q, points)


def test_scalar_quantisation_takes_the_nearest_level():
    z = torch.linspace(-4, 4, 801).view(-1, 1, 1, 1)
    z_q, _ = FiniteScalarQuantizer((4,))(z)
    levels = torch.tensor([-1, -1 / 3, 1 / 3, 1])
    nearest = levels[(z.tanh().view(-1, 1) - levels).abs().argmin(1)]
    torch.testing.assert_close(z_q.flatten(), nearest)
    assert len(z_q.unique()) == 4


def test_perplexity_closed_form():
    assert perplexity(torch.arange(7), 100).item() == pytest.approx(7)
    assert perplexity(torch.zeros(3, 4, 4).long(), 100).item() == 1
    p = torch.tensor([0.5, 0.25, 0.25])
    expected = math.exp(-sum(v * math.log(v) for v in p.tolist()))
    assert perplexity(torch.tensor([[3, 3], [1, 0]]), 5).item() == pytest.approx(expected)


# ------------------------------------------------------------ objective


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_loss_closed_form(update):
    vqvae, x = network(codebook_update=update), pictures()
    values = vqvae_loss(vqvae, {"x": x}, Rng(0, 0, 6, 0, 6), beta=0.7)
    out = vqvae(x)
    error, gap = (out.reconstruction - x).square().mean(), (out.latents - out.quantized).square().mean()
    factor = 1.7 if update == "gradient" else 0.7
    torch.testing.assert_close(values["loss"], error + factor * gap)
    torch.testing.assert_close(values["commitment"], gap)
    values["loss"].backward()
    gradients = {name: p.grad is not None and bool(p.grad.abs().sum() > 0) for name, p in vqvae.named_parameters()}
    assert all(gradients.values()) and ("quantize.codebook" in gradients) == (update == "gradient")


def test_commitment_moves_the_encoder_the_other_the_codebook():
    vqvae, x = network(codebook_update="gradient"), pictures()
    loss = {}
    for beta in (0.0, 1.0):
        vqvae.zero_grad()
        vqvae_loss(vqvae, {"x": x}, Rng(0, 0, 6, 0, 6), beta=beta)["loss"].backward()
        loss[beta] = (vqvae.quantize.codebook.grad.clone(), vqvae.quant_conv.weight.grad.clone())
    assert torch.equal(loss[0.0][0], loss[1.0][0]) and not torch.allclose(loss[0.0][1], loss[1.0][1])
    out = vqvae(x)
    z, codes = out.latents.movedim(1, -1).flatten(0, 2), out.codes.flatten()
    expected = torch.zeros_like(vqvae.quantize.codebook).index_add_(0, codes, vqvae.quantize.codebook[codes] - z)
    torch.testing.assert_close(loss[0.0][0], 2 * expected / z.numel())


def test_scalar_quantisation_has_no_other_term():
    values = vqvae_loss(fsq(), {"x": pictures()}, Rng(0, 0, 6, 0, 6), beta=9.0)
    assert torch.equal(values["loss"], values["reconstruction"]) and "commitment" not in values


# ------------------------------------------------------------ the codebook


def learn(vqvae, update: CodebookUpdate, x: torch.Tensor, position: int = 0, parts: int = 1) -> dict:
    """One step's statistics in `parts` micro-batches, then the update."""
    size = len(x) // parts
    for k in range(parts):
        rng = Rng(0, position, len(x), k * size, size)
        vqvae_loss(vqvae, {"x": x[k * size : (k + 1) * size]}, rng, collect=update.collect)
    return [update({}, rng) for _ in range(parts)][-1]


def test_without_memory_it_is_a_step_of_k_means():
    vqvae, x = network(), pictures(20)
    before, out = vqvae.quantize.codebook.clone(), vqvae(x)
    learn(vqvae, CodebookUpdate(vqvae, decay=0, restart_below=0), x)
    z, codes = out.latents.movedim(1, -1).flatten(0, 2).detach(), out.codes.flatten()
    for k, row in enumerate(vqvae.quantize.codebook):
        expected = z[codes == k].mean(0) if (codes == k).any() else before[k]
        torch.testing.assert_close(row, expected)
    assert 3 < len(codes.unique()) < 12


def test_with_memory_it_is_the_ratio_of_running_sums():
    quantizer, memory = VectorQuantizer(3, 2).double(), [torch.zeros(3).double(), torch.zeros(3, 2).double()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        n, s = (torch.rand(3, *shape, generator=generator).double() for shape in ((), (2,)))
        quantizer.update(n, s, torch.zeros(3, 2), decay=0.9, restart_below=0)
        memory = [0.9 * old + 0.1 * new for old, new in zip(memory, (n, s))]
    torch.testing.assert_close(quantizer.codebook, memory[1] / memory[0][:, None])
    torch.testing.assert_close(quantizer.counts, memory[0])


def test_dead_rows_come_alive_on_latents_of_the_batch():
    vqvae, x = network(codebook_size=32), pictures(40)
    with torch.no_grad():
        vqvae.quantize.codebook[1:] = 1e3  # nobody takes these
    assert vqvae(x).codes.unique().tolist() == [0]
    update = CodebookUpdate(vqvae, decay=0.9, restart_below=0.1)
    values = learn(vqvae, update, x)
    assert values["restarts"] == 31 and values["perplexity"] == 1
    z = vqvae(x).latents.movedim(1, -1).flatten(0, 2)
    rows = vqvae.quantize.codebook[1:]
    assert torch.cdist(rows.double(), z.double()).amin(1).max() < 1e-6 and len(rows.unique(dim=0)) == 31
    assert perplexity(vqvae(x).codes, 32) > 10
    # a row that was just restarted has time to find its own
    quantizer = vqvae.quantize
    torch.testing.assert_close(quantizer.counts[1:], quantizer.counts[1:].mean().expand(31))
    torch.testing.assert_close(quantizer.sums[1:], quantizer.counts[1:, None] * rows)


def test_rows_in_use_are_not_restarted_and_zero_means_never():
    quantizer = VectorQuantizer(4, 2)
    counts, candidates = torch.tensor([50.0, 46.0, 4.0, 0.0]), torch.full((4, 2), 9.0)
    dead = quantizer.update(counts, torch.ones(4, 2), candidates, decay=0.0, restart_below=0.1)  # the mean is 25
    assert dead.tolist() == [False, False, False, True] and quantizer.codebook[3].tolist() == [9, 9]
    quantizer = VectorQuantizer(4, 2)
    before = quantizer.codebook[3].clone()
    assert not quantizer.update(counts, torch.ones(4, 2), candidates, decay=0.0, restart_below=0).any()
    assert torch.equal(quantizer.codebook[3], before)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_whole_batch(parts):
    x, results = pictures(16), []
    for count in (1, parts):
        vqvae = network(codebook_size=32).double()
        values = [learn(vqvae, CodebookUpdate(vqvae), x.double(), step * 16, count) for step in range(2)]
        results.append((values, dict(vqvae.quantize.named_buffers())))
    (one, a), (several, b) = results
    assert one[0]["restarts"] > 10
    assert [v["perplexity"] for v in one] == [v["perplexity"] for v in several]
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-12, atol=1e-12)


def test_a_micro_batch_that_is_run_again_counts_once():
    x, ends = pictures(8), []
    for times in (1, 2):
        vqvae = network()
        update, rng = CodebookUpdate(vqvae), Rng(0, 0, 8, 0, 8)
        for _ in range(times):
            vqvae_loss(vqvae, {"x": x}, rng, collect=update.collect)
        update({}, rng)
        ends.append(vqvae.quantize.counts.clone())
    assert torch.equal(*ends) and ends[0].sum() > 0


def test_restarts_depend_on_seed_and_position_alone():
    rows = {}
    for seed, position in ((0, 0), (0, 16), (1, 0)):
        vqvae = network(codebook_size=32)
        update, rng = CodebookUpdate(vqvae), Rng(seed, position, 16, 0, 16)
        torch.manual_seed(seed + position + 7)
        vqvae_loss(vqvae, {"x": pictures(16)}, rng, collect=update.collect)
        update({}, rng)
        rows[seed, position] = vqvae.quantize.codebook.clone()
    assert not torch.equal(rows[0, 0], rows[0, 16]) and not torch.equal(rows[0, 0], rows[1, 0])


def test_nothing_moves_outside_of_training():
    vqvae, x = network(), pictures()
    before = {key: value.clone() for key, value in vqvae.state_dict().items()}
    update, rng = CodebookUpdate(vqvae), Rng(0, 0, 6, 0, 6)
    vqvae(x)  # a forward alone never does
    vqvae.eval()
    vqvae_loss(vqvae, {"x": x}, rng, collect=update.collect)
    assert update({}, rng) == {}
    assert all(torch.equal(before[key], value) for key, value in vqvae.state_dict().items())


# ------------------------------------------------------------ training


def phases(vqvae, accelerator, average: bool = True) -> list[Phase]:
    ema = EMA(vqvae, 0.9) if average else None
    update = CodebookUpdate(vqvae, decay=0.5, restart_below=0.3)
    net, optimizer = accelerator.prepare(vqvae, torch.optim.Adam(vqvae.parameters(), lr=1e-2, eps=1e-3))

    def loss(batch, rng):
        return vqvae_loss(net, batch, rng, collect=update.collect)

    return [Phase("vqvae", loss, net, optimizer, ema=ema), Phase("codebook", update, net)]


def run(folder: Path, steps: int = 6, batch_size: int = 8, accumulate: int = 1):
    accelerator = Accelerator(cpu=True)
    vqvae = network(codebook_size=24).double()
    options = {"batch_size": batch_size, "accumulate": accumulate, "checkpoint_every": 3, "log_every": 1}
    folder.mkdir(parents=True, exist_ok=True)
    train(accelerator, phases(vqvae, accelerator), Pictures(), output_dir=folder, max_steps=steps, **options)
    return vqvae


def on_a_rank(log: str, env: dict[str, str], folder: str) -> None:
    enter(log, env)
    run(Path(folder), batch_size=2, accumulate=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), folder


def test_two_processes_and_micro_batches_equal_one(start, whole, tmp_path):
    for child in ranks(start, on_a_rank, str(tmp_path / "two")):
        code, text = ended(child)
        assert code == 0, text
    one, two = (
        load_file(f / "checkpoints" / "checkpoint-6" / "vqvae.model.safetensors") for f in (whole[1], tmp_path / "two")
    )
    assert one.keys() == two.keys() and sum("quantize." in key for key in one) == 3
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-8, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
    lines = [(f / "metrics.jsonl").read_text().splitlines() for f in (whole[1], tmp_path / "two")]
    values = [[json.loads(line) for line in part] for part in lines]
    for key in ("codebook/perplexity", "codebook/restarts"):
        assert [row[key] for row in values[0]] == pytest.approx([row[key] for row in values[1]], rel=1e-5)
    assert sum(row["codebook/restarts"] for row in values[0][1:]) > 0


def test_a_run_that_goes_on_is_bit_equal(whole, tmp_path):
    folder = part_of(whole[1], 3, tmp_path / "again")
    run(folder)
    assert held(folder, 6) == held(whole[1], 6)


def test_it_learns_and_uses_the_codebook(whole):
    rows = [json.loads(line) for line in (whole[1] / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["vqvae/reconstruction"] < rows[0]["vqvae/reconstruction"]
    assert rows[-1]["codebook/perplexity"] > rows[0]["codebook/perplexity"]


# ------------------------------------------------------------ pipeline


@pytest.fixture
def pipe():
    pipe = VQVAEPipeline(network().eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_words(pipe):
    x = pictures(5)
    codes, z = pipe.encode(x), pipe.encode(x, continuous=True)
    assert codes.shape == (5, 4, 4) and codes.dtype == torch.int64 and z.shape == (5, 4, 4, 4)
    out = pipe.vqvae(x)
    assert torch.equal(codes, out.codes)
    images = pipe.decode(codes, output_type="latent")
    torch.testing.assert_close(images, out.reconstruction, atol=1e-5, rtol=1e-5)
    assert torch.equal(pipe.decode(z, output_type="latent"), images)
    assert torch.equal(pipe.reconstruct(x, output_type="latent"), images)
    assert pipe.reconstruct(x)[0].size == (8, 8)


def test_codes_do_not_depend_on_the_batch(pipe):
    x, sizes = pictures(70), set()
    for part in (pipe.vqvae.encoder, pipe.vqvae.decoder):  # kernels are chosen by the shape of a batch
        part.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    many = pipe.encode(x), pipe.decode(pipe.encode(x), output_type="latent")
    few = pipe.encode(x[:3]), pipe.decode(pipe.encode(x[:3]), output_type="latent")
    assert all(torch.equal(a[:3], b) for a, b in zip(many, few)) and len(sizes) == 1


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
def test_interpolation_ends_at_the_reconstructions(pipe, mode):
    a, b = pictures(2).split(1)
    way = pipe.interpolate(a, b, 5, mode=mode, output_type="latent")
    ends = pipe.reconstruct(torch.cat([a, b]), output_type="latent")
    assert way.shape == (5, 1, 8, 8)
    torch.testing.assert_close(way[[0, -1]], ends)
    middle = (pipe.encode(a, continuous=True) + pipe.encode(b, continuous=True)) / 2
    if mode == "lerp":
        torch.testing.assert_close(way[2:3], pipe.decode(middle, output_type="latent"))


def test_sampling_needs_a_prior_and_says_which(pipe):
    with pytest.raises(UsageError, match=r"autoregressive network.*\n.*fit_prior"):
        pipe(2)
    pipe.register_modules(prior=pipe.fit_prior(pictures(30)))
    many = pipe(70, generator=seeded(1), output_type="latent").images
    assert torch.equal(pipe(3, generator=seeded(1), output_type="latent").images, many[:3])
    assert len(many.unique(dim=0)) > 60 and not torch.equal(
        pipe(1, generator=seeded(2), output_type="latent").images, many[:1]
    )


@pytest.mark.parametrize("make", [network, fsq, lambda: network(codebook_update="gradient")])
def test_save_and_load(make, tmp_path):
    pipe = VQVAEPipeline(make().eval())
    pipe.save_pretrained(tmp_path / "without")
    assert DiffusionPipeline.from_pretrained(tmp_path / "without").prior is None
    pipe.register_modules(prior=pipe.fit_prior(pictures(30)))
    pipe.save_pretrained(tmp_path / "with")
    loaded, x = DiffusionPipeline.from_pretrained(tmp_path / "with"), pictures()
    assert type(loaded) is VQVAEPipeline
    states = pipe.vqvae.state_dict(), loaded.vqvae.state_dict()
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert torch.equal(pipe.encode(x), loaded.encode(x))
    drawn = [p(4, generator=seeded(1), output_type="latent").images for p in (pipe, loaded)]
    assert torch.equal(*drawn)


def test_half_precision(pipe):
    pipe.register_modules(prior=pipe.fit_prior(pictures(30)))
    pipe.to(torch.bfloat16)
    assert pipe(2, output_type="np").images.shape == (2, 8, 8, 1)
    scalar = VQVAEPipeline(fsq().eval().to(torch.bfloat16))
    assert scalar.reconstruct(pictures(), output_type="pt").isfinite().all()


def test_the_position_prior():
    codes = torch.randint(0, 5, (400, 2, 3), generator=seeded(0))
    codes[:, 0, 0], codes[:, 1, 2] = 4, codes[:, 1, 2] % 2
    prior = PositionPrior.fit(codes, 5)
    p = prior.logits.softmax(-1)
    torch.testing.assert_close(p[0, 1], (torch.bincount(codes[:, 0, 1], minlength=5) + 0.2) / 401)
    alike = sum(p[i, j, codes[0, i, j]].log() for i in range(2) for j in range(3))
    torch.testing.assert_close(prior.log_prob(codes[:1])[0], alike)
    every = torch.cartesian_prod(*[torch.arange(2)] * 6).view(-1, 2, 3)
    assert PositionPrior.fit(codes % 2, 2).log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = prior.sample(2000, [seeded(i) for i in range(2000)])
    assert (drawn[:, 0, 0] == 4).float().mean() > 0.99
    shares = torch.bincount(drawn[:, 0, 1], minlength=5) / 2000
    torch.testing.assert_close(shares, p[0, 1].detach(), atol=0.04, rtol=0)


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: network(codebook_size=1), "codebook_size must be at least 2; got 1"),
        (lambda: network(quantizer="fqs"), 'Did you mean "fsq"'),
        (lambda: network(codebook_update="none"), "codebook_update must be one of ema, gradient"),
        (lambda: network(quantizer="fsq"), r"levels must be given with quantizer=.fsq."),
        (lambda: network(levels=(5, 5)), "and only there"),
        (lambda: network(quantizer="fsq", levels=(5, 1)), r"levels must each be at least 2; got \(5, 1\)"),
        (lambda: network(latent_channels=0), "latent_channels must be at least 1"),
        (lambda: network(sample_size=9), "divisible by 2"),
        (
            lambda: vqvae_loss(network(), {"x": pictures()}, Rng(0, 0, 6, 0, 6), beta=-1),
            "beta must be at least 0",
        ),
        (lambda: CodebookUpdate(fsq()), "Leave the phase out"),
        (lambda: CodebookUpdate(network(codebook_update="gradient")), "codebook_update"),
        (lambda: CodebookUpdate(network(), decay=1.0), r"decay must be in \[0, 1\); got 1.0"),
        (lambda: CodebookUpdate(network(), restart_below=-0.1), "restart_below must be in"),
        (lambda: PositionPrior.fit(torch.zeros(2, 2), 4), "must be integers"),
        (lambda: PositionPrior.fit(torch.full((1, 2, 2), 4), 4), "codes must be from 0 to 3; got 4 to 4"),
        (lambda: PositionPrior(4, (2, 2)).sample(2, [seeded(0)]), "one for each of n=2"),
    ],
)
def test_configurations_and_calls_that_make_no_sense(call, text):
    with pytest.raises(UsageError, match=text):
        call()


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pipe: pipe(0), "batch_size must be at least 1; got 0"),
        (lambda pipe: pipe(2, codes=torch.zeros(3, 4, 4).long()), "codes are given for 3 images"),
        (lambda pipe: pipe(output_type="pill"), 'Did you mean "pil"'),
        (lambda pipe: pipe.decode(torch.zeros(1, 3, 4).long()), r"shape \(B, 4, 4\)"),
        (lambda pipe: pipe.decode(torch.full((1, 4, 4), 12)), r"\[0, 12\), the codebook; got 12 to 12"),
        (lambda pipe: pipe.decode(torch.zeros(1, 3, 4, 4)), r"shape \(B, 4, h, w\), B >= 1; got \(1, 3, 4, 4\)"),
        (lambda pipe: pipe.encode(torch.zeros(1, 1, 4, 4)), "8 high and 8 wide"),
        (lambda pipe: pipe.interpolate(pictures(2), pictures(1)), "a must be one image; got 2"),
        (lambda pipe: pipe.interpolate(pictures(1), pictures(1), 1), "steps must be at least 2"),
    ],
)
def test_pipeline_calls_that_make_no_sense(pipe, call, text):
    with pytest.raises(UsageError, match=text):
        call(pipe)


# ------------------------------------------------------------ the example


@pytest.fixture(scope="module")
def example():
    return load_example("train_vqvae")


def arguments(example, folder, *argv):
    words = f"""--dataset_name digits --max_train_samples 100 --block_out_channels 8 --codebook_size 16
        --max_train_steps 6 --train_batch_size 16 --eval_num_samples 20 --prior_samples 50
        --output_dir {folder}""".split()
    return parse_arguments(example.Arguments, [*words, *map(str, argv)], description="test", prog="train")


@pytest.mark.parametrize("flags", [["--validation_steps", "3"], ["--quantizer", "fsq", "--levels", "4", "4"]])
def test_the_example_leaves_a_pipeline_and_goes_on(example, tmp_path, capsys, flags):
    assert example.main(arguments(example, tmp_path, *flags)) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe(batch_size=2)[0][0].size == (8, 8) and pipe.encode(torch.zeros(3, 1, 8, 8)).max() < 16
    assert (tmp_path / "samples" / "step-000003-reconstruction.png").exists() == ("--validation_steps" in flags)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert ("codebook/restarts" in row) == ("fsq" not in flags) and row["vqvae/perplexity"] > 1
    assert example.main(arguments(example, tmp_path, *flags)) == 0 and "Nothing to do" in capsys.readouterr().out
    assert example.main(arguments(example, tmp_path, *flags, "--max_train_steps", 8)) == 0


def test_flags_that_the_network_cannot_heed(example, tmp_path):
    with pytest.raises(UsageError, match="gradient_checkpointing must be left out"):
        example.main(arguments(example, tmp_path, "--gradient_checkpointing"))
