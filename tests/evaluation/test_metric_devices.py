"""Every metric gives the same number of tensors that lie on another device than the CPU."""

import copy
import functools
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices import separate_device
from PIL import Image
from torch.utils._pytree import tree_map

from latentia import evaluation as ev
from latentia.data import Factors
from latentia.errors import UsageError
from latentia.evaluation.failure_modes import SampleMonitor, fine_energy

N = 60


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(n: int = N, channels: int = 1, size: int = 8, seed: int = 0) -> torch.Tensor:
    return numbers(n, channels, size, size, seed=seed).tanh()


FEATURES, OTHERS = numbers(N, 5), numbers(N, 5, seed=1) + 0.3
LOGITS, REAL_LOGITS = 3 * numbers(N, 4, seed=2), 3 * numbers(N, 4, seed=3)
LABELS = torch.arange(N) % 3
GREY, MORE = images(), images(seed=1)
COLOUR = images(8, 3)
BYTES = (GREY[:6] * 127.5 + 127.5).round().to(torch.uint8)
CODES, FACTORS = numbers(200, 3, seed=4), torch.stack([torch.arange(200) % 2, torch.arange(200) // 2 % 4], 1)


@functools.cache
def digits():
    return ev.load_extractor("digits")


def normal(x, mean):
    return torch.distributions.Normal(mean, 1.0).log_prob(x).flatten(1).sum(1)


def annealed(x, z):
    return ev.annealed_importance_sampling(
        lambda z: normal(z, torch.zeros_like(z)), normal, x, z, ev.sigmoid_temperatures(5), leapfrog=2
    ).log_weights


def layers(x):
    """The shipped classifier on the device of x."""
    return copy.deepcopy(digits().model).to(x.device)


def moments(a, b):
    found = ev.Moments()
    for part in a.split(4):
        found.update(part)
    other = ev.moments_of(b)
    found.merge(other.n, other.mean, other.scatter)
    return found.covariance


class DrawnOnTheCPU(torch.distributions.Normal):
    """A generator of a GPU draws other numbers, which is the caller's business."""

    def sample(self, shape=()):
        return torch.randn(self.loc.shape, dtype=self.loc.dtype).to(self.loc.device) * self.scale + self.loc


def weights_of(x):
    return ev.importance_weights(
        lambda x: DrawnOnTheCPU(torch.zeros_like(x), torch.ones_like(x)), lambda x, z: normal(z, x), x, k=3
    )


PAIRED = {
    "synthetic": FEATURES, "synthetic_labels": LABELS, "real": OTHERS, "real_labels": LABELS, "test": OTHERS,
    "test_labels": LABELS,
}  # fmt: skip


def folder() -> Path:
    return Path(tempfile.mkdtemp())


# Each function of the room with tensors as arguments: a call, and these tensors.
CALLS: dict[str, tuple[Callable[..., Any], Any]] = {
    "conformal_p_values": (ev.conformal_p_values, (FEATURES[:, 0], OTHERS[:, 0])),
    "ranking_scores": (ev.ranking_scores, (FEATURES[:, 0], LABELS == 0)),
    "class_counts": (ev.class_counts, (LOGITS,)),
    "class_divergence": (ev.class_divergence, (LOGITS, REAL_LOGITS)),
    "class_entropies": (ev.class_entropies, (LOGITS,)),
    "inception_score": (lambda x: ev.inception_score(x, 3), (LOGITS,)),
    "missing_classes": (ev.missing_classes, (LOGITS[:3], REAL_LOGITS)),
    "ciede2000": (ev.ciede2000, (50 * numbers(4, 3), 50 * numbers(4, 3, seed=1))),
    "color_difference": (ev.color_difference, (COLOUR, -COLOUR)),
    "color_word_accuracy": (
        lambda x, a, b: ev.color_word_accuracy(x, ["red cat", "blue dog"] * 4, {"red": a, "blue": b}),
        (COLOUR, torch.tensor([53.0, 80.0, 67.0]), torch.tensor([32.0, 79.0, -107.0])),
    ),
    "mean_color": (ev.mean_color, (COLOUR,)),
    "translation_scores": (lambda x, y: ev.translation_scores({"model": x}, y), (GREY[:6], BYTES)),
    "translation_baselines": (
        lambda x, y: [method(x[:4]) for method in ev.translation_baselines(x, y).values()],
        (GREY, MORE),
    ),
    "palette": (lambda x: ev.palette(x, ["red cat", "blue dog"] * 4), (COLOUR,)),
    "srgb_to_lab": (ev.srgb_to_lab, (COLOUR,)),
    "vendi_score": (ev.vendi_score, (FEATURES,)),
    "check_images": (ev.check_images, (GREY,)),
    "predict": (lambda x: tuple(ev.predict(x, digits())), (GREY,)),
    "uint8_batches": (lambda x: list(ev.uint8_batches(x, 4)), (BYTES,)),
    "frechet_distance": (ev.frechet_distance, (FEATURES, OTHERS)),
    "frechet_distance_infinity": (ev.frechet_distance_infinity, (FEATURES, OTHERS)),
    "frechet_distance_of_gaussians": (
        ev.frechet_distance_of_gaussians, (FEATURES.mean(0), FEATURES.T.cov(), OTHERS.mean(0), OTHERS.T.cov())
    ),
    "frechet_interval": (lambda x, y: ev.frechet_interval(x, y, resamples=20), (FEATURES, OTHERS)),
    "kernel_distance": (ev.kernel_distance, (FEATURES, OTHERS)),
    "kernel_distance_with_error": (ev.kernel_distance_with_error, (FEATURES, OTHERS)),
    "measure": (lambda x, labels: ev.measure(x, digits(), labels), (GREY, LABELS)),
    "score": (lambda x, y, a, b: ev.score(
        ev.measure(x, digits(), a), ev.measure(y, digits(), b), digits(), metrics=["fd", "recall", "label_agreement"]
    ).scores, (GREY, torch.cat([MORE, GREY + 0.001]).clamp(-1, 1), LABELS, LABELS.repeat(2))),
    "birthday_test": (lambda x: ev.birthday_test(x, 1.0), (FEATURES,)),
    "mode_coverage": (lambda x, c: ev.mode_coverage(x, c, 0.5), (FEATURES, 4 * torch.eye(5))),
    "stacked_logits": (lambda x: ev.stacked_logits(x, digits()), (COLOUR,)),
    "stacked_modes": (ev.stacked_modes, (numbers(9, 3, 4),)),
    "psnr": (ev.psnr, (GREY, MORE)),
    "ssim": (lambda a, b: ev.ssim(a, b, window=5), (GREY, MORE)),
    "ms_ssim": (lambda a, b: ev.ms_ssim(a, b, scales=2, window=3), (GREY, MORE)),
    "perceptual_distance": (lambda a, b: ev.perceptual_distance(a, b, digits()), (GREY, MORE)),
    "sharpness": (ev.sharpness, (GREY,)),
    "sharpness_ratio": (ev.sharpness_ratio, (GREY, MORE)),
    "energy_distance": (ev.energy_distance, (FEATURES, OTHERS)),
    "grid_divergences": (ev.grid_divergences, (FEATURES[:, :2], OTHERS[:, :2])),
    "sliced_wasserstein2": (ev.sliced_wasserstein2, (FEATURES, OTHERS)),
    "wasserstein2": (ev.wasserstein2, (FEATURES, OTHERS)),
    "authenticity": (lambda a, b: ev.authenticity(fake=a, train=b), (FEATURES, OTHERS)),
    "memorisation": (
        lambda a, b, c: ev.memorisation(fake=a, train=b, held_out=c), (FEATURES, OTHERS, numbers(N, 5, seed=9))
    ),
    "nearest": (lambda a, b: ev.nearest(a, b, 3), (FEATURES, OTHERS)),
    "precision_recall": (lambda a, b: ev.precision_recall(real=a, fake=b), (FEATURES, OTHERS)),
    "retrieval_scores": (lambda a, b, g: ev.retrieval_scores(a, b, groups=g), (FEATURES, OTHERS, LABELS)),
    "augment_with_synthetic": (lambda kw: ev.augment_with_synthetic(**kw, n_real=20), (PAIRED,)),
    "train_on_synthetic": (lambda kw: ev.train_on_synthetic(**kw), (PAIRED,)),
    "two_sample_test": (lambda a, b: ev.two_sample_test(real=a, fake=b), (FEATURES, OTHERS)),
    "binarise": (lambda x: ev.binarise(x).values, (BYTES,)),
    "dequantise": (lambda x: ev.dequantise(x).values, (BYTES,)),
    "exact_likelihood": (lambda x, y: ev.exact_likelihood(x, ev.dequantise(y)), (numbers(6), BYTES)),
    "elbo": (lambda w, x: ev.elbo(w, ev.binarise(x)), (numbers(6, 3), BYTES)),
    "importance_bound": (lambda w, x: ev.importance_bound(w, ev.binarise(x)), (numbers(6, 3), BYTES)),
    "importance_weights": (weights_of, (numbers(4, 2),)),
    "bits_per_dimension": (lambda x: ev.bits_per_dimension(x, 64), (numbers(4),)),
    "log_mean_exp": (lambda x: ev.log_mean_exp(x, 1), (numbers(4, 2),)),
    "annealed_importance_sampling": (annealed, (numbers(4, 2), numbers(3, 4, 2))),
    "image_grid": (ev.image_grid, (GREY,)),
    "image_strip": (lambda a, b: ev.image_strip([a, b], [1, 0]), (GREY[:3], MORE[:3])),
    "plot_features": (lambda a, b: ev.plot_features(a, b, folder() / "a.png").read_bytes(), (FEATURES, OTHERS)),
    "write_sheet": (lambda a, b: ev.write_sheet(a, b, folder(), trials=4).page.read_bytes(), (GREY, MORE)),
    "cached_predict": (lambda x: tuple(ev.cached_predict(x, digits(), "x", folder())), (GREY,)),
    "perceptual_loss": (lambda a, b: ev.perceptual_loss(a, b, layers(a)), (GREY, MORE)),
    "untrained_like": (lambda x: ev.untrained_like(digits().model)(x.cpu()).features, (GREY,)),
    "Moments": (moments, (FEATURES, OTHERS)),
    "SampleMonitor": (lambda a, b: SampleMonitor(a, digits()).check(b)[0], (GREY, MORE)),
    "fine_energy": (fine_energy, (GREY,)),
    "nearest_neighbour_grid": (
        lambda a, b, c, d: ev.nearest_neighbour_grid(a, b, c, d, rows=2), (BYTES, BYTES, FEATURES[:6], OTHERS[:6])
    ),
    "dci": (lambda z, v: ev.dci(z, v, (True, True)), (CODES, FACTORS)),
    "attribute_predictability_gap": (
        lambda z, v: ev.attribute_predictability_gap(z, v, (True, False)), (CODES, FACTORS)
    ),
    "interventional_robustness": (ev.interventional_robustness, (CODES, FACTORS)),
    "mutual_information": (ev.mutual_information, (CODES, FACTORS)),
    "mutual_information_gap": (ev.mutual_information_gap, (CODES, FACTORS)),
    "off_diagonal_correlation": (ev.off_diagonal_correlation, (CODES,)),
    "beta_vae_score": (lambda w: ev.beta_vae_score(lambda x: (x.amax((2, 3)).to(w) * w), Factors(), groups=60),
                       (torch.ones(3),)),
    "factor_vae_score": (
        lambda w: ev.factor_vae_score(lambda x: x.amax((2, 3)).to(w) * w, Factors(), w, groups=60), (torch.ones(3),)
    ),
    "disentanglement_scores": (
        lambda w: ev.disentanglement_scores(lambda x: x.amax((2, 3)).to(w) * w, Factors(), n=200, groups=60),
        (torch.ones(3),),
    ),
    "perceptual_path_length": (lambda a, b: ev.perceptual_path_length(lambda x: x, a, b, digits()), (GREY, MORE)),
    "latent_structure": (
        lambda x, labels: ev.latent_structure(lambda x: x, lambda z: z, x, labels, digits()),
        (GREY, LABELS),
    ),
    "linear_probe": (ev.linear_probe, (FEATURES, LABELS)),
    "knn_probe": (ev.knn_probe, (FEATURES, LABELS)),
    "few_label_probe": (lambda z, y: ev.few_label_probe(z, y, n_few=9), (FEATURES, LABELS)),
    "probe_report": (lambda x, y: ev.probe_report(lambda z: z[:, :, 2:4], x, y, n_few=9, seeds=1), (GREY, LABELS)),
    "pixel_sums": (ev.pixel_sums, (GREY,)),
    "noise_images": (lambda x: next(ev.noise_images("Gaussian", x, 4)), (BYTES,)),
    "noise_floor": (lambda x: ev.noise_floor(x, ev.measure(GREY, digits()), digits(), 6), (BYTES,)),
    "reconstruction": (
        lambda x: ev.reconstruction(lambda y: 0.9 * y, x, "bytes", ev.measure(GREY, digits()), digits()), (BYTES,)
    ),
    "moments_of": (lambda x: ev.moments_of(x).covariance, (FEATURES,)),
    "PCASampler": (lambda x, y: [ev.PCASampler(x).sample(3), ev.PCASampler(x).log_likelihood(y)], (GREY, MORE)),
    "KernelDensitySampler": (
        lambda x, y: [ev.KernelDensitySampler(x).sample(3), ev.KernelDensitySampler(x).log_likelihood(y)], (GREY, MORE)
    ),
}  # fmt: skip
# Public functions without tensors as arguments.
OTHERS_OF_THE_ROOM = {
    "binomial_interval", "check_metrics", "color_word", "extractor_for", "fitting_extractor", "inception_extractor",
    "load_extractor", "own_extractor",
    "plot_class_histogram", "plot_curves", "plot_precision_recall", "read_votes", "save_figures",
    "sigmoid_temperatures", "small_table", "text_table", "transformers_extractor", "write_page",
}  # fmt: skip


def flat(result: Any) -> list[Any]:
    """The numbers of a result, tensors brought to the CPU."""
    if isinstance(result, torch.Tensor):
        return [result.detach().cpu()]
    if isinstance(result, Image.Image):
        return [np.asarray(result).tobytes()]
    if isinstance(result, dict):
        return [leaf for key in result for leaf in flat(result[key])]
    if isinstance(result, list | tuple):
        return [leaf for item in result for leaf in flat(item)]
    if is_dataclass(result):
        return [leaf for item in fields(result) for leaf in flat(getattr(result, item.name))]
    return [result]


def assert_same(found: Any, wanted: Any, tolerance: float = 1e-6) -> None:
    found, wanted = flat(found), flat(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert type(a) is type(b)
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        elif isinstance(b, float):
            assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
        else:
            assert a == b


def test_the_list_holds_every_function_of_the_room():
    classes = {"KernelDensitySampler", "Moments", "PCASampler", "SampleMonitor", "fine_energy"}
    functions = {name for name in ev.__all__ if inspect.isfunction(getattr(ev, name))}
    assert CALLS.keys() == (functions | classes) - OTHERS_OF_THE_ROOM


def moved(given: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, given)


# Not those that are told apart by whoever calls: moments that are given, features that a report holds.
OF_FEATURES = [name for name, (_, given) in CALLS.items() if any(x is FEATURES or x is LOGITS for x in given)]
OF_FEATURES = [name for name in OF_FEATURES if name not in ("Moments", "plot_features")]


@pytest.mark.parametrize("name", OF_FEATURES)
def test_arrays_in_place_of_tensors_are_refused(name):
    """Features and logits often come as arrays: no AttributeError of what an array has not got."""
    call, given = CALLS[name]
    try:
        call(*moved(given, lambda x: x.numpy()))
    except UsageError as error:
        assert "ndarray" in str(error)


@pytest.mark.parametrize("name", CALLS)
def test_another_device_gives_the_same(name):
    call, given = CALLS[name]
    wanted = call(*given)
    with separate_device() as device:
        assert_same(call(*moved(given, lambda x: x.to(device))), wanted)
    if torch.cuda.is_available():
        assert_same(call(*moved(given, torch.Tensor.cuda)), wanted, 1e-4)


# These give tensors of the precision that they are given, or call a function of the test in it.
OF_ITS_PRECISION = {
    "annealed_importance_sampling", "bits_per_dimension", "importance_weights", "log_mean_exp", "perceptual_loss",
    "pixel_sums", "uint8_batches", "beta_vae_score", "factor_vae_score", "disentanglement_scores", "untrained_like",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CALLS.keys() - OF_ITS_PRECISION))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_count_as_float32(name, dtype):
    """A sampler in half precision is measured as its samples are, with no rounding of the measurement."""
    call, given = CALLS[name]
    half = moved(given, lambda x: x.to(dtype) if x.is_floating_point() else x)
    assert_same(call(*half), call(*moved(half, lambda x: x.float() if x.is_floating_point() else x)))
