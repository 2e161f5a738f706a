"""scikit-learn estimators: probabilistic PCA, factor analysis, Gaussian mixtures, autoencoder and VAE of rows.

They have `fit`, `transform`, `inverse_transform`, `score_samples`, `sample` and `get_params`, stand in a `Pipeline` and
in `GridSearchCV`, and are saved as safetensors and JSON by `save` and `load`.
"""

from latentia.sklearn.densities import PPCA, FactorAnalysis, GaussianMixture
from latentia.sklearn.networks import AutoencoderEstimator, VAEEstimator
from latentia.sklearn.saving import load, save

__all__ = ["PPCA", "AutoencoderEstimator", "FactorAnalysis", "GaussianMixture", "VAEEstimator", "load", "save"]
