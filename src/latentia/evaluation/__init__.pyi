# The public names of the room; `lazy_loader` reads this file, and type checkers do.

from .baselines import KernelDensitySampler as KernelDensitySampler
from .baselines import PCASampler as PCASampler
from .classes import (
    class_counts as class_counts,
)
from .classes import (
    class_divergence as class_divergence,
)
from .classes import (
    class_entropies as class_entropies,
)
from .classes import (
    inception_score as inception_score,
)
from .classes import (
    missing_classes as missing_classes,
)
from .color import (
    ciede2000 as ciede2000,
)
from .color import (
    color_difference as color_difference,
)
from .color import (
    color_word as color_word,
)
from .color import (
    color_word_accuracy as color_word_accuracy,
)
from .color import (
    mean_color as mean_color,
)
from .color import (
    palette as palette,
)
from .color import (
    srgb_to_lab as srgb_to_lab,
)
from .diversity import vendi_score as vendi_score
from .features.cache import cached_predict as cached_predict
from .features.extractor import (
    ClassifierExtractor as ClassifierExtractor,
)
from .features.extractor import (
    FeatureExtractor as FeatureExtractor,
)
from .features.extractor import (
    Predictions as Predictions,
)
from .features.extractor import (
    check_images as check_images,
)
from .features.extractor import (
    extractor_for as extractor_for,
)
from .features.extractor import (
    from_uint8 as from_uint8,
)
from .features.extractor import (
    load_extractor as load_extractor,
)
from .features.extractor import (
    predict as predict,
)
from .features.networks import (
    NetworkExtractor as NetworkExtractor,
)
from .features.networks import (
    inception_extractor as inception_extractor,
)
from .features.networks import (
    transformers_extractor as transformers_extractor,
)
from .frechet import (
    Moments as Moments,
)
from .frechet import (
    frechet_distance as frechet_distance,
)
from .frechet import (
    frechet_distance_of_gaussians as frechet_distance_of_gaussians,
)
from .frechet import (
    moments_of as moments_of,
)
from .frechet_uncertainty import (
    frechet_distance_infinity as frechet_distance_infinity,
)
from .frechet_uncertainty import (
    frechet_interval as frechet_interval,
)
from .kernel import (
    KernelDistance as KernelDistance,
)
from .kernel import (
    kernel_distance as kernel_distance,
)
from .kernel import (
    kernel_distance_with_error as kernel_distance_with_error,
)
from .likelihood.annealing import (
    Annealed as Annealed,
)
from .likelihood.annealing import (
    annealed_importance_sampling as annealed_importance_sampling,
)
from .likelihood.annealing import (
    sigmoid_temperatures as sigmoid_temperatures,
)
from .likelihood.estimate import (
    Likelihood as Likelihood,
)
from .likelihood.estimate import (
    Pixels as Pixels,
)
from .likelihood.estimate import (
    binarise as binarise,
)
from .likelihood.estimate import (
    bits_per_dimension as bits_per_dimension,
)
from .likelihood.estimate import (
    dequantise as dequantise,
)
from .likelihood.estimate import (
    elbo as elbo,
)
from .likelihood.estimate import (
    exact_likelihood as exact_likelihood,
)
from .likelihood.estimate import (
    importance_bound as importance_bound,
)
from .likelihood.estimate import (
    importance_weights as importance_weights,
)
from .likelihood.estimate import (
    log_mean_exp as log_mean_exp,
)
from .metrics import (
    METRICS as METRICS,
)
from .metrics import (
    Metric as Metric,
)
from .metrics import (
    Sample as Sample,
)
from .metrics import (
    check_metrics as check_metrics,
)
from .metrics import (
    measure as measure,
)
from .modes import (
    Birthday as Birthday,
)
from .modes import (
    Modes as Modes,
)
from .modes import (
    StackedModes as StackedModes,
)
from .modes import (
    birthday_test as birthday_test,
)
from .modes import (
    mode_coverage as mode_coverage,
)
from .modes import (
    stacked_logits as stacked_logits,
)
from .modes import (
    stacked_modes as stacked_modes,
)
from .pairs import (
    ms_ssim as ms_ssim,
)
from .pairs import (
    perceptual_distance as perceptual_distance,
)
from .pairs import (
    perceptual_loss as perceptual_loss,
)
from .pairs import (
    psnr as psnr,
)
from .pairs import (
    sharpness as sharpness,
)
from .pairs import (
    sharpness_ratio as sharpness_ratio,
)
from .pairs import (
    ssim as ssim,
)
from .plane import (
    GridDivergences as GridDivergences,
)
from .plane import (
    energy_distance as energy_distance,
)
from .plane import (
    grid_divergences as grid_divergences,
)
from .plane import (
    sliced_wasserstein2 as sliced_wasserstein2,
)
from .plane import (
    wasserstein2 as wasserstein2,
)
from .prdc import (
    Memorisation as Memorisation,
)
from .prdc import (
    PrecisionRecall as PrecisionRecall,
)
from .prdc import (
    authenticity as authenticity,
)
from .prdc import (
    memorisation as memorisation,
)
from .prdc import (
    nearest as nearest,
)
from .prdc import (
    precision_recall as precision_recall,
)
from .report.grids import curves as curves
from .report.grids import grid as grid
from .report.grids import strip as strip
from .report.human import (
    Sheet as Sheet,
)
from .report.human import (
    Votes as Votes,
)
from .report.human import (
    binomial_interval as binomial_interval,
)
from .report.human import (
    read_votes as read_votes,
)
from .report.human import (
    write_sheet as write_sheet,
)
from .report.page import text_table as text_table
from .report.page import write_page as write_page
from .report.plots import (
    class_histogram as class_histogram,
)
from .report.plots import (
    feature_map as feature_map,
)
from .report.plots import (
    neighbour_grid as neighbour_grid,
)
from .report.plots import (
    precision_recall_plot as precision_recall_plot,
)
from .report.report import Report as Report
from .report.report import Score as Score
from .report.report import score as score
from .representation.disentanglement import (
    Disentanglement as Disentanglement,
)
from .representation.disentanglement import (
    FactorSet as FactorSet,
)
from .representation.disentanglement import (
    beta_vae_score as beta_vae_score,
)
from .representation.disentanglement import (
    disentanglement_scores as disentanglement_scores,
)
from .representation.disentanglement import (
    factor_vae_score as factor_vae_score,
)
from .representation.factor_scores import (
    DCI as DCI,
)
from .representation.factor_scores import (
    attribute_predictability_gap as attribute_predictability_gap,
)
from .representation.factor_scores import (
    dci as dci,
)
from .representation.factor_scores import (
    interventional_robustness as interventional_robustness,
)
from .representation.factor_scores import (
    mutual_information as mutual_information,
)
from .representation.factor_scores import (
    mutual_information_gap as mutual_information_gap,
)
from .representation.factor_scores import (
    off_diagonal_correlation as off_diagonal_correlation,
)
from .representation.path_length import PathLength as PathLength
from .representation.path_length import perceptual_path_length as perceptual_path_length
from .representation.probes import (
    Probe as Probe,
)
from .representation.probes import (
    few_label_probe as few_label_probe,
)
from .representation.probes import (
    knn_probe as knn_probe,
)
from .representation.probes import (
    linear_probe as linear_probe,
)
from .representation.structure import (
    LatentStructure as LatentStructure,
)
from .representation.structure import (
    ProbeReport as ProbeReport,
)
from .representation.structure import (
    latent_structure as latent_structure,
)
from .representation.structure import (
    pixel_sums as pixel_sums,
)
from .representation.structure import (
    probe_report as probe_report,
)
from .representation.structure import (
    untrained_like as untrained_like,
)
from .retrieval import Retrieval as Retrieval
from .retrieval import retrieval_scores as retrieval_scores
from .two_sample import (
    Augmentation as Augmentation,
)
from .two_sample import (
    TrainOnSynthetic as TrainOnSynthetic,
)
from .two_sample import (
    TwoSampleTest as TwoSampleTest,
)
from .two_sample import (
    augment_with_synthetic as augment_with_synthetic,
)
from .two_sample import (
    train_on_synthetic as train_on_synthetic,
)
from .two_sample import (
    two_sample_test as two_sample_test,
)
