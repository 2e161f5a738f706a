"""Samples in, numbers out, with what real images reach at the same n beside every distance."""

from latentia.evaluation.features import (
    ClassifierExtractor,
    FeatureExtractor,
    Predictions,
    check_images,
    extractor_for,
    from_uint8,
    load_extractor,
    predict,
)
from latentia.evaluation.metrics import (
    Moments,
    Report,
    class_counts,
    class_entropies,
    frechet_distance,
    frechet_distance_of_gaussians,
    inception_score,
    kernel_distance,
    score,
)
from latentia.evaluation.pictures import curves, grid, strip

__all__ = [
    "ClassifierExtractor",
    "FeatureExtractor",
    "Moments",
    "Predictions",
    "Report",
    "check_images",
    "class_counts",
    "class_entropies",
    "curves",
    "extractor_for",
    "frechet_distance",
    "frechet_distance_of_gaussians",
    "from_uint8",
    "grid",
    "inception_score",
    "kernel_distance",
    "load_extractor",
    "predict",
    "score",
    "strip",
]
