"""The estimators under scikit-learn's own checks, in pipelines and searches, and through files."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from latentia.errors import CheckpointError, UsageError
from latentia.inference.linear_gaussian import fit_ppca
from latentia.sklearn import PPCA, AutoencoderEstimator, FactorAnalysis, GaussianMixture, VAEEstimator, load, save

X, Y = load_iris(return_X_y=True)
SMALL = {"hidden_sizes": (4,), "max_iter": 2, "random_state": 0}
ALL = [
    PPCA(random_state=0),
    FactorAnalysis(random_state=0),
    GaussianMixture(2, random_state=0),
    AutoencoderEstimator(**SMALL),
    VAEEstimator(**SMALL, importance_samples=4),
]
NAMES = [type(one).__name__ for one in ALL]


BAYES = GaussianMixture(covariance_type="diag", method="bayes", random_state=0)


@pytest.mark.parametrize("estimator", [*ALL, BAYES], ids=[*NAMES, "bayes"])
def test_scikit_learn_accepts_them(estimator):
    """All checks but those of array libraries that are not installed."""
    found = check_estimator(estimator, on_skip=None)
    assert sum(one["status"] == "passed" for one in found) > 40
    assert {one["status"] for one in found} <= {"passed", "skipped"}


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_they_describe_rows_and_make_new_ones(estimator):
    """In the units of the data: what is scaled inside comes back."""
    fitted = clone(estimator).set_params(n_components=2)
    if "hidden_sizes" in fitted.get_params():
        fitted.set_params(hidden_sizes=(32,), max_iter=200, learning_rate=5e-3)
    latents = fitted.fit(X).transform(X)
    assert latents.shape == (150, 2)
    assert fitted.get_feature_names_out()[1] == f"{type(fitted).__name__.lower()}1"
    error = ((fitted.inverse_transform(latents) - X) ** 2).mean() / X.var(0).mean()
    assert error < 0.3
    drawn = fitted.sample(400)
    rows = drawn[0] if isinstance(drawn, tuple) else drawn
    assert rows.shape == (400, 4) and np.abs(rows.mean(0) - X.mean(0)).max() < 0.5
    again = fitted.sample(400)
    assert (rows == (again[0] if isinstance(again, tuple) else again)).all()
    assert fitted.score_samples(X).shape == (150,)
    assert fitted.score(X) > fitted.score(X + 3 * X.std(0)) + 1 and fitted.score(X) == fitted.score_samples(X).mean()


def test_densities_are_in_the_units_of_the_data():
    """A linear VAE in nats near those of PPCA, whatever the unit; and PPCA is the one of the library."""
    rows = X * [1, 10, 0.1, 1000]
    vae = VAEEstimator(2, (), learning_rate=0.05, batch_size=150, max_iter=200, random_state=0).fit(rows)
    best = FactorAnalysis(2).fit(rows).score(rows)
    assert best - 0.6 < vae.score(rows) < best + 0.05
    assert (
        abs(PPCA(2).fit(X).score(X) - float(fit_ppca(torch.from_numpy(X), 2).log_prob(torch.from_numpy(X)).mean()))
        < 1e-9
    )


def test_they_stand_in_pipelines_and_searches():
    pipeline = make_pipeline(StandardScaler(), GaussianMixture(3, random_state=0), LogisticRegression())
    grid = {"gaussianmixture__n_components": [1, 3]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, Y)
    assert search.best_params_ == {"gaussianmixture__n_components": 3} and search.best_score_ > 0.8
    density = GridSearchCV(PPCA(), {"n_components": [1, 2, 3]}, cv=3, error_score="raise").fit(X)  # by likelihood
    assert density.best_params_["n_components"] > 1
    network = make_pipeline(StandardScaler(), VAEEstimator(**SMALL), LogisticRegression())
    GridSearchCV(network, {"vaeestimator__beta": [0.5, 1.0]}, cv=2, error_score="raise").fit(X, Y)


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_they_come_back_from_files(estimator, tmp_path):
    fitted = clone(estimator).fit(X)
    again = load(save(fitted, tmp_path / "estimator"))
    assert sorted(path.name for path in (tmp_path / "estimator").iterdir()) == [
        "estimator.json",
        "estimator.safetensors",
    ]
    assert again.get_params() == fitted.get_params() and again.n_iter_ == fitted.n_iter_
    assert (again.transform(X) == fitted.transform(X)).all() and (
        again.score_samples(X) == fitted.score_samples(X)
    ).all()


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"estimator must be one of PPCA, .* got StandardScaler"):
        save(StandardScaler().fit(X), tmp_path)
    with pytest.raises(UsageError, match="random_state must be an integer or None to be saved"):
        save(PPCA(random_state=np.random.RandomState(0)).fit(X), tmp_path)
    with pytest.raises(NotFittedError):
        save(PPCA(), tmp_path)
    with pytest.raises(CheckpointError, match=r"estimator\.json"):
        load(tmp_path)
    folder = save(PPCA().fit(X), tmp_path)
    about = json.loads((folder / "estimator.json").read_text())
    for change, words in (
        ({"class": "os.system"}, "must name one of PPCA, .*; it names 'os.system'"),
        ({"parameters": {"components": 3}}, "components is not known to PPCA"),
        ({"n_features": 3}, "holds no estimator that can be loaded"),
        ({"n_features": None}, "holds no estimator that can be loaded"),
    ):
        (folder / "estimator.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(CheckpointError, match=words):
            load(folder)
    (folder / "estimator.json").write_text(json.dumps(about))
    (folder / "estimator.safetensors").write_bytes(b"\x80\x04}.")
    with pytest.raises(CheckpointError, match="holds no estimator that can be loaded"):
        load(folder)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (PPCA(4), "n_components must be from 1 to 3 for n_features = 4; got 4"),
        (PPCA(0), "n_components must be from 1 to 3"),
        (VAEEstimator(5), "n_components must be from 1 to 4"),
        (VAEEstimator(max_iter=0), "max_iter must be at least 1; got 0"),
        (VAEEstimator(importance_samples=0), "importance_samples must be at least 1; got 0"),
        (AutoencoderEstimator(hidden_sizes=4), "hidden_sizes must be a tuple of widths"),
        (AutoencoderEstimator(learning_rate=0.0), "learning_rate must be positive; got 0.0"),
        (GaussianMixture(method="gibbs"), "method must be one of em, hard, bayes; got 'gibbs'"),
        (GaussianMixture(151), "num_components must be at most the number of rows, 150; got 151"),
    ],
)
def test_bad_parameters_are_refused_by_name(estimator, words):
    with pytest.raises(UsageError, match=words):
        estimator.fit(X)


def test_bad_calls_of_fitted_estimators_are_refused():
    ppca = PPCA().fit(X)
    with pytest.raises(UsageError, match=r"X must hold latents of shape \(n_samples, 1\); got \(2, 3\)"):
        ppca.inverse_transform(np.zeros((2, 3)))
    with pytest.raises(UsageError, match="n_samples must be at least 1; got 0"):
        ppca.sample(0)
    with pytest.raises(NotFittedError):
        VAEEstimator().sample()
