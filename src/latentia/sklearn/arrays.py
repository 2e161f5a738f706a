"""Rows and seeds as scikit-learn gives them, as tensors."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor

from latentia.errors import UsageError


def fitting_rows(estimator: Any, X: Any) -> Tensor:
    """The rows that an estimator is fitted to, float64 (N, D), N at least 2; the estimator notes D and the names.

    Example:
        >>> from latentia.sklearn import PPCA
        >>> fitting_rows(PPCA(), [[1, 2], [3, 4]]).shape
        torch.Size([2, 2])
    """
    return torch.from_numpy(validate_data(estimator, X, dtype=np.float64, ensure_min_samples=2).copy())


def new_rows(estimator: Any, X: Any) -> Tensor:
    """Rows for a fitted estimator, float64 (N, D)."""
    check_is_fitted(estimator, "tensors_")
    return torch.from_numpy(validate_data(estimator, X, dtype=np.float64, reset=False).copy())


def latent_rows(estimator: Any, X: Any, columns: int) -> Tensor:
    """Latents for a fitted estimator, float64 (N, columns)."""
    check_is_fitted(estimator, "tensors_")
    latents = torch.as_tensor(np.asarray(X, dtype=np.float64))
    if latents.ndim != 2 or latents.shape[1] != columns:
        raise UsageError(f"X must hold latents of shape (n_samples, {columns}); got {tuple(latents.shape)}.")
    return latents


def seed_of(random_state: Any) -> int:
    """A seed from an integer, which gives equal results in every call, a `RandomState`, or None.

    Example:
        >>> seed_of(3) == seed_of(3)
        True
    """
    return int(check_random_state(random_state).randint(2**31 - 1))


def check_components(n_components: int, most: int, features: int) -> None:
    """Raises a `UsageError` unless there are from 1 to `most` components for so many features.

    Example:
        >>> check_components(1, 2, 3)
    """
    if not 1 <= n_components <= most:
        raise UsageError(
            f"n_components must be from 1 to {most} for n_features = {features}; got {n_components}."
            if most > 0
            else f"X must have at least 2 features for a latent to explain; got n_features = {features}."
        )
