"""Pipelines of tables: what is promised of every pipeline, conditions, the copula and likelihoods."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet, seeded

import latentia
from latentia import (
    DDPMScheduler,
    LatentMixture,
    MLPDenoiser,
    MLPDiscriminator,
    MLPGenerator,
    NormalizingFlow,
    TableDiffusionPipeline,
    TableEncoder,
    TableFlowPipeline,
    TableGANPipeline,
    TableVAE,
    TableVAEPipeline,
)
from latentia.data.mixed import EncodedRows, load_mixed_table
from latentia.errors import UsageError
from latentia.pipelines.base import WORDS
from latentia.pipelines.capabilities import capabilities

TABLE = load_mixed_table("people", max_samples=300)
ONE_HOT, SCORES = (TableEncoder.fit(TABLE.columns, TABLE.values, layout, 3) for layout in ("one_hot", "scores"))
SCHEDULER = DDPMScheduler(4, beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="v_prediction")


def spread(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


def copula():
    return TableFlowPipeline(SCORES, LatentMixture.fit(EncodedRows(TABLE, SCORES).batch(0, 900)["x"], 1))


def gan():
    classes = len(ONE_HOT.conditions)
    generator = MLPGenerator(5, ONE_HOT.width, (8,), num_class_embeds=classes, categories=ONE_HOT.categories)
    return TableGANPipeline(ONE_HOT, spread(generator), MLPDiscriminator(ONE_HOT.width, num_class_embeds=classes))


PIPELINES = {
    "vae": lambda: TableVAEPipeline(ONE_HOT, spread(TableVAE(ONE_HOT.width, ONE_HOT.categories, 3, (8,)))),
    "flow": lambda: TableFlowPipeline(SCORES, spread(NormalizingFlow(None, SCORES.width, "spline", num_layers=2))),
    "copula": copula,
    "gan": gan,
    "diffusion": lambda: TableDiffusionPipeline(
        ONE_HOT, spread(MLPDenoiser(ONE_HOT.width, ONE_HOT.categories, (8,))), SCHEDULER
    ),
}


def build(name):
    torch.manual_seed(0)
    return quiet(PIPELINES[name]())


BUILT = {name: build(name) for name in PIPELINES}
every = pytest.mark.parametrize("name", PIPELINES)


def sample(pipe, n, seed=7, **options):
    generator = seeded(seed) if isinstance(seed, int) else seed
    return pipe(n, generator=generator, **{"output_type": "latent"} | options).rows


def test_every_public_pipeline_of_tables_is_here():
    public = {name for name in latentia.__all__ if name.endswith("Pipeline")} - {"DiffusionPipeline"}
    tables = {name for name in public if getattr(latentia, name).modality == "table"}
    assert {type(pipe).__name__ for pipe in BUILT.values()} == tables


@every
def test_a_row_has_the_same_bytes_in_every_batch(name):
    pipe = BUILT[name]
    many = sample(pipe, 19)
    assert many.shape == (19, pipe.encoder.width) and len(many.unique(dim=0)) == 19
    for n in (1, 9):
        assert torch.equal(sample(pipe, n), many[:n])
    assert torch.equal(sample(pipe, 1, seed=[seeded(4)]), sample(pipe, 3, seed=[seeded(3), seeded(4), seeded(5)])[1:2])
    assert not torch.equal(sample(pipe, 2, seed=8), many[:2])


@every
def test_declarations_are_what_the_methods_are(name):
    pipe = BUILT[name]
    able = capabilities(pipe)
    words = {word for word in WORDS if getattr(type(pipe), word) is not getattr(latentia.DiffusionPipeline, word)}
    assert set(able.words) == words and able.conditions == () and able.samples
    assert able.options["where"].type is str and all(option.help for option in able.options.values())
    for word in set(WORDS) - words:
        with pytest.raises(UsageError, match=f"has no {word}"):
            getattr(pipe, word)(*[0] * (3 if word == "interpolate" else 1))


@every
def test_output_types_agree(name):
    pipe = BUILT[name]
    frame, arrays = (sample(pipe, 40, output_type=kind) for kind in ("pandas", "np"))
    assert list(frame) == list(arrays) == TABLE.names and len(frame) == 40
    assert np.array_equal(frame["income"], arrays["income"]) and frame["married"].dtype == bool
    values = pipe.encoder.decode(sample(pipe, 40), within=True)
    assert np.array_equal(values[:, 2], frame["age"]) and frame["age"].between(18, 80).all()
    assert set(frame["region"]) <= {"north", "south", "east", "west", "islands"}
    assert isinstance(pipe(1, return_dict=False), tuple)
    for options, text in (
        ({"output_type": "csv"}, "output_type must be one of"),
        ({"where": {"rgion": "north"}}, 'where must name columns.*Did you mean "region"'),
        ({"where": "region=nrth"}, 'Did you mean "north"'),
        ({"where": "income=3"}, "must have two ends for income"),
        ({"where": "age=old"}, "must be a number or two ends for age"),
        ({"where": "age"}, 'where must be such as "region=north'),
        ({"where": {"age": (900, 901)}}, r"must lie within 1[89]..7\d for age, as in training"),
    ):
        with pytest.raises(UsageError, match=text):
            sample(pipe, 1, **options)
    with pytest.raises(UsageError, match="batch_size must be at least 1; got 0"):
        sample(pipe, 0)


def test_conditions_that_hardly_any_row_meets_are_refused(monkeypatch):
    monkeypatch.setattr("latentia.pipelines.tables._TRIES", 20)
    with pytest.raises(UsageError, match=r"must be met by one of 20 rows; income=20000\.001..20000\.002 is not"):
        sample(BUILT["vae"], 1, where="income=20000.001..20000.002")


@every
def test_rows_meet_the_conditions_asked_for(name):
    pipe = BUILT[name]
    where = {"married": True, "age": (30, 60)}
    found = sample(pipe, 5, where=where, output_type="pandas")
    assert found["married"].all() and found["age"].between(30, 60).all()
    assert found.equals(sample(pipe, 5, where="married=true, age=30..60", output_type="pandas"))
    assert found.iloc[:2].equals(sample(pipe, 2, where=where, output_type="pandas"))


@every
def test_saved_and_loaded_it_gives_the_same_rows(name, tmp_path):
    pipe = BUILT[name]
    pipe.save_pretrained(tmp_path)
    loaded = quiet(latentia.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is type(pipe) and loaded.columns == TABLE.columns
    torch.testing.assert_close(sample(loaded, 6), sample(pipe, 6))
    again = type(pipe).from_pipe(pipe)
    assert {key: id(part) for key, part in again.components.items()} == {
        key: id(part) for key, part in pipe.components.items()
    }
    assert not any(str(tmp_path) in path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize("name", ["vae", "flow", "gan", "diffusion"])
def test_half_precision_is_near(name):
    full, half = sample(BUILT[name], 12), sample(build(name).to(torch.bfloat16), 12)
    numbers = full.shape[1] - sum(BUILT[name].encoder.categories)
    difference = (full - half)[:, :numbers].abs().mean() / full[:, :numbers].std()
    assert half.dtype == torch.float32 and difference < 0.1


@pytest.mark.parametrize("name", ["vae"])
def test_words_of_latents(name):
    pipe, frame = BUILT[name], TABLE.frame().iloc[:9]
    z = pipe.encode(frame)
    assert z.shape == (9, 3) and torch.equal(pipe.encode(frame.iloc[:2]), z[:2])
    assert torch.equal(pipe.encode(ONE_HOT.encode(torch.from_numpy(TABLE.values[:9])).float()), z)
    path = pipe.interpolate(frame.iloc[:1], frame.iloc[1:2], 5, output_type="latent")
    torch.testing.assert_close(path[[0, -1]], pipe.decode(z[:2], output_type="latent"))


def plain(rows=4000):
    """Two correlated normal numbers of any digits."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    return load_mixed_table(pd.DataFrame({"a": 3 + 2 * x[:, 0], "b": -1e-3 * x[:, 1]}))


def test_a_copula_has_correlations_and_margins():
    """Of normal numbers they are known: rho = -0.8, and of 8000 samples the error is about .005."""
    table = plain()
    encoder = TableEncoder.fit(table.columns, table.values, "scores")
    rows = encoder.encode(torch.from_numpy(table.values))
    pipe = quiet(TableFlowPipeline(encoder, LatentMixture.fit(rows, 1)))
    found = pipe(8000, generator=seeded(1)).rows
    assert abs(np.corrcoef(found.a, found.b)[0, 1] + 0.8) < 0.02
    assert abs(found.a.mean() - 3) < 0.1 and abs(found.a.std() - 2) < 0.1


def test_the_likelihood_of_a_copula_is_the_density():
    table = plain()
    encoder = TableEncoder.fit(table.columns, table.values, "scores")
    rows = encoder.encode(torch.from_numpy(table.values))
    pipe = TableFlowPipeline(encoder, LatentMixture.fit(rows, 1))
    covariance = np.array([[4.0, -1.6e-3], [-1.6e-3, 1e-6]])
    normal = torch.distributions.MultivariateNormal(torch.tensor([3.0, 0.0]).double(), torch.tensor(covariance))
    found = pipe.log_likelihood(table, samples=1)
    expected = normal.log_prob(torch.from_numpy(table.values))
    assert (found - expected).abs().median() < 0.03 and abs(float((found - expected).mean())) < 0.03


@pytest.mark.parametrize("name", ["vae", "flow"])
def test_probabilities_of_all_rows_sum_to_one(name):
    """Of a table of 2 x 3 categories and a number of few values, enumerated."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.choice(["x", "y"], 400), "b": random.choice(["u", "v", "w"], 400)})
    frame["n"] = random.integers(0, 5, 400) + 2 * (frame.a == "x")
    table = load_mixed_table(frame)
    torch.manual_seed(0)
    if name == "vae":
        encoder = TableEncoder.fit(table.columns, table.values)
        pipe = TableVAEPipeline(encoder, TableVAE(encoder.width, encoder.categories, 2, (8,)).eval())
    else:
        encoder = TableEncoder.fit(table.columns, table.values, "scores")
        pipe = TableFlowPipeline(encoder, spread(NormalizingFlow(None, 3, "realnvp", num_layers=2)))
    every = pd.DataFrame([(a, b, n) for a in "xy" for b in "uvw" for n in range(-15, 25)], columns=["a", "b", "n"])
    total = pipe.log_likelihood(every, samples=400, generator=seeded(0)).logsumexp(0).exp()
    assert abs(float(total) - 1) < 0.06


def test_a_gan_is_conditioned_on_the_category_asked_for(monkeypatch):
    """Its network gets the label of the category from the first draw on."""
    monkeypatch.setattr("latentia.pipelines.tables._TRIES", 3)
    pipe = build("gan")
    asked = []
    decode = pipe.generator.decode
    pipe.generator.decode = lambda z, labels: asked.append(labels.unique().tolist()) or decode(z, labels)
    with pytest.raises(UsageError, match="hardly any"):
        sample(pipe, 2, where={"region": "islands", "income": (20000.001, 20000.002)})
    assert asked[0] in ([ONE_HOT.conditions.index("region=islands")], [0, ONE_HOT.conditions.index("region=islands")])


def test_parts_that_do_not_fit_are_refused():
    for call, text in (
        (lambda: TableVAEPipeline(SCORES, TableVAE(3)), "must have rows of"),
        (lambda: TableFlowPipeline(ONE_HOT, NormalizingFlow(None, ONE_HOT.width, "maf")), 'the layout "scores"'),
        (lambda: TableGANPipeline(ONE_HOT, TableVAE(3)), "generator must be an MLPGenerator"),
        (lambda: TableVAEPipeline(TableVAE(3), TableVAE(3)), "encoder must be a TableEncoder"),
        (
            lambda: TableDiffusionPipeline(ONE_HOT, MLPDenoiser(ONE_HOT.width), DDPMScheduler()),
            "scheduler must be a DDPMScheduler with clip_sample=False",
        ),
    ):
        with pytest.raises(UsageError, match=text):
            call()
    assert math.isfinite(float(BUILT["vae"].log_likelihood(TABLE.frame().iloc[:3], generator=seeded(0)).sum()))
