"""Saving and loading fitted estimators as safetensors and JSON, without pickle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from sklearn.utils.validation import check_is_fitted

from latentia.errors import CheckpointError, LatentiaError, UsageError, check_known
from latentia.files.reading import read_bytes, read_object, user_path
from latentia.files.writing import write_bytes, write_json
from latentia.sklearn.densities import PPCA, FactorAnalysis, GaussianMixture
from latentia.sklearn.networks import AutoencoderEstimator, VAEEstimator

CLASSES = {one.__name__: one for one in (PPCA, FactorAnalysis, GaussianMixture, AutoencoderEstimator, VAEEstimator)}
CONFIG, WEIGHTS = "estimator.json", "estimator.safetensors"
_MOST = 2**32  # bytes of the weights


def save(estimator: Any, folder: str | Path) -> Path:
    """Save a fitted estimator: its parameters in estimator.json, what it learned in estimator.safetensors.

    Args:
        estimator: one of `latentia.sklearn`, fitted.
        folder: where the two files go; it is made if it is not there, and they take the place of earlier ones.

    Returns:
        The folder.

    Raises:
        UsageError: another estimator, or a `random_state` that is neither an integer nor None.
        sklearn.exceptions.NotFittedError: it was not fitted.

    Example:
        >>> import tempfile
        >>> ppca = PPCA().fit(np.random.default_rng(0).normal(size=(9, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(ppca, folder))
        >>> bool((again.model_.loadings == ppca.model_.loadings).all())
        True
    """
    name = type(estimator).__name__
    if CLASSES.get(name) is not type(estimator):
        raise UsageError(
            f"estimator must be one of {', '.join(CLASSES)}; got {name}. Save the steps of a pipeline apart."
        )
    check_is_fitted(estimator, "tensors_")
    parameters = estimator.get_params()
    if not isinstance(parameters["random_state"], int | np.integer | None):
        raise UsageError("random_state must be an integer or None to be saved; got a generator. Fit with an integer.")
    parameters = {key: value.item() if isinstance(value, np.generic) else value for key, value in parameters.items()}
    about = {"class": name, "parameters": parameters, "n_features": estimator.n_features_in_}
    about["n_iter"] = int(estimator.n_iter_)
    if hasattr(estimator, "feature_names_in_"):
        about["feature_names"] = [str(one) for one in estimator.feature_names_in_]
    tensors = {key: value.contiguous() for key, value in estimator.tensors_.items()}
    if hasattr(estimator, "bounds_"):
        tensors["bounds"] = torch.from_numpy(estimator.bounds_)
    try:
        json.dumps(about)
    except TypeError as error:
        raise UsageError(
            f"The parameters of {name} must be numbers, words and tuples of them to be saved: {error}."
        ) from None
    path = user_path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_bytes(path / WEIGHTS, bytes_of(tensors))
    write_json(path / CONFIG, about)
    return path


def load(folder: str | Path) -> Any:
    """Load an estimator that `save` wrote; no code of the folder runs.

    Args:
        folder: with estimator.json and estimator.safetensors.

    Raises:
        CheckpointError: a file is missing or damaged, or the two do not fit each other.
    """
    path = user_path(folder)
    about = read_object(path / CONFIG)
    kind = CLASSES.get(str(about.get("class")))
    if kind is None:
        raise CheckpointError(
            f"{path / CONFIG} must name one of {', '.join(CLASSES)}; it names {about.get('class')!r}."
        )
    try:
        parameters = dict(about["parameters"])
        check_known(kind.__name__, parameters, kind().get_params())
        if "hidden_sizes" in parameters:
            parameters["hidden_sizes"] = tuple(parameters["hidden_sizes"])
        estimator = kind(**parameters)
        estimator.n_features_in_, estimator.n_iter_ = int(about["n_features"]), int(about["n_iter"])
        if "feature_names" in about:
            estimator.feature_names_in_ = np.asarray(about["feature_names"], dtype=object)
        tensors = tensors_of(read_bytes(path / WEIGHTS, _MOST))
        if "bounds" in tensors:
            estimator.bounds_ = tensors.pop("bounds").numpy()
        estimator.tensors_ = tensors
        estimator.transform(np.zeros((1, estimator.n_features_in_)))  # what does not fit is an error here
    except (LatentiaError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no estimator that can be loaded: {error}") from error
    return estimator
