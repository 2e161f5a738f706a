"""Samples in, numbers out, with what real images reach at the same n beside every distance."""

from importlib import import_module

# Public name -> module; a metric's dependencies are imported when it is first used.
_EXPORTS = {
    # features
    "ClassifierExtractor": "features",
    "FeatureExtractor": "features",
    "Predictions": "features",
    "check_images": "features",
    "extractor_for": "features",
    "from_uint8": "features",
    "load_extractor": "features",
    "predict": "features",
    "NetworkExtractor": "extractors",
    "inception_extractor": "extractors",
    "transformers_extractor": "extractors",
    "cached_predict": "cache",
    # distances between sets of features
    "Moments": "frechet",
    "frechet_distance": "frechet",
    "frechet_distance_of_gaussians": "frechet",
    "frechet_distance_infinity": "frechet_uncertainty",
    "frechet_interval": "frechet_uncertainty",
    "moments_of": "frechet",
    "KernelDistance": "kernel",
    "kernel_distance": "kernel",
    "kernel_distance_with_error": "kernel",
    # nearest neighbours
    "Memorisation": "neighbours",
    "PrecisionRecall": "neighbours",
    "authenticity": "neighbours",
    "memorisation": "neighbours",
    "nearest": "neighbours",
    "precision_recall": "neighbours",
    # diversity
    "vendi_score": "diversity",
    # what a fresh classifier can tell
    "Augmentation": "two_sample",
    "TrainOnSynthetic": "two_sample",
    "TwoSampleTest": "two_sample",
    "augment_with_synthetic": "two_sample",
    "train_on_synthetic": "two_sample",
    "two_sample_test": "two_sample",
    # classes
    "class_counts": "classes",
    "class_divergence": "classes",
    "missing_classes": "classes",
    "class_entropies": "classes",
    "inception_score": "classes",
    # texts and images
    "Retrieval": "retrieval",
    "retrieval_scores": "retrieval",
    # representation
    "Disentanglement": "disentanglement",
    "FactorSet": "disentanglement",
    "beta_vae_score": "disentanglement",
    "disentanglement_scores": "disentanglement",
    "factor_vae_score": "disentanglement",
    "DCI": "factor_scores",
    "attribute_predictability_gap": "factor_scores",
    "dci": "factor_scores",
    "interventional_robustness": "factor_scores",
    "mutual_information": "factor_scores",
    "mutual_information_gap": "factor_scores",
    "off_diagonal_correlation": "factor_scores",
    "PathLength": "path_length",
    "perceptual_path_length": "path_length",
    "Probe": "probes",
    "few_label_probe": "probes",
    "knn_probe": "probes",
    "linear_probe": "probes",
    "LatentStructure": "representation",
    "ProbeReport": "representation",
    "latent_structure": "representation",
    "pixel_sums": "representation",
    "probe_report": "representation",
    "untrained_like": "representation",
    # the report
    "METRICS": "metrics",
    "Metric": "metrics",
    "Report": "report",
    "Sample": "metrics",
    "Score": "report",
    "check_metrics": "metrics",
    "measure": "metrics",
    "score": "report",
    "text_table": "page",
    "write_page": "page",
    # pictures
    "class_histogram": "plots",
    "curves": "pictures",
    "feature_map": "plots",
    "grid": "pictures",
    "neighbour_grid": "plots",
    "precision_recall_plot": "plots",
    "strip": "pictures",
    # image pairs, sharpness
    "color_difference": "color",
    "color_word": "color",
    "color_word_accuracy": "color",
    "mean_color": "color",
    "palette": "color",
    "ciede2000": "color",
    "srgb_to_lab": "color",
    "ms_ssim": "pairs",
    "perceptual_distance": "pairs",
    "perceptual_loss": "pairs",
    "psnr": "pairs",
    "sharpness": "pairs",
    "sharpness_ratio": "pairs",
    "ssim": "pairs",
    # people
    "Sheet": "human",
    "Votes": "human",
    "binomial_interval": "human",
    "read_votes": "human",
    "write_sheet": "human",
    # baselines without a network
    "KernelDensitySampler": "baselines",
    "PCASampler": "baselines",
    # modes and points of the plane
    "Birthday": "modes",
    "Modes": "modes",
    "StackedModes": "modes",
    "birthday_test": "modes",
    "mode_coverage": "modes",
    "stacked_logits": "modes",
    "stacked_modes": "modes",
    "GridDivergences": "plane",
    "energy_distance": "plane",
    "grid_divergences": "plane",
    "sliced_wasserstein2": "plane",
    "wasserstein2": "plane",
    # likelihoods
    "Annealed": "annealing",
    "annealed_importance_sampling": "annealing",
    "sigmoid_temperatures": "annealing",
    "Likelihood": "likelihood",
    "Pixels": "likelihood",
    "binarise": "likelihood",
    "bits_per_dimension": "likelihood",
    "dequantise": "likelihood",
    "elbo": "likelihood",
    "exact_likelihood": "likelihood",
    "importance_bound": "likelihood",
    "importance_weights": "likelihood",
    "log_mean_exp": "likelihood",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'latentia.evaluation' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f"latentia.evaluation.{_EXPORTS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
