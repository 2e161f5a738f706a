"""Scores of image-to-image translation: outputs beside targets, with the baselines of the task beside every number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.color import color_difference
from latentia.evaluation.features.base import FeatureExtractor, known_range, predict
from latentia.evaluation.frechet import frechet_distance
from latentia.evaluation.pairs import (
    MS_SSIM_WEIGHTS,
    SSIM_WINDOW,
    ms_ssim,
    perceptual_distance,
    psnr,
    sharpness_ratio,
    ssim,
)
from latentia.functional.pixels import from_uint8, to_uint8

# Name -> (title, which numbers are better).
SCORES = {
    "l1": ("L1", "lower"),
    "psnr": ("PSNR, dB", "higher"),
    "ssim": ("SSIM", "higher"),
    "ms_ssim": ("MS-SSIM", "higher"),
    "perceptual": ("perceptual distance", "lower"),
    "ciede2000": ("CIEDE2000", "lower"),
    "class_agreement": ("class agreement", "higher"),
    "sharpness_ratio": ("gradient energy ratio", "nearer 1"),
    "fd": ("Frechet distance", "lower"),
    "cycle_l1": ("L1 there and back", "lower"),
}


@dataclass(frozen=True)
class TranslationScores:
    """Scores of the translations of n images, and of the baselines of the task.

    Args:
        scores: method -> name in `SCORES` -> value; "model" first. A score that does not apply is absent.
        n: images.
        images: what they are, "test images" or "training images".
        paired: whether outputs have targets to be compared with.
        ssim_window: pixels; the published 11, or the largest odd number that fits smaller images.
        ms_ssim_scales: how many of five fit.
    """

    scores: dict[str, dict[str, float]]
    n: int
    images: str
    paired: bool
    ssim_window: int
    ms_ssim_scales: int

    def text(self) -> str:
        """A table: a row for each score, a column for each method."""
        names = [name for name in SCORES if any(name in values for values in self.scores.values())]
        rows = [["", *self.scores, "better"]]
        for name in names:
            title, better = SCORES[name]
            cells = [f"{values[name]:.4g}" if name in values else "-" for values in self.scores.values()]
            rows.append([title, *cells, better])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        kind = "with their targets" if self.paired else "without pairs"
        return "\n".join([f"translations of {self.n} {self.images}, {kind}:", *lines])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


def translation_scores(
    outputs: Mapping[str, Tensor],
    targets: Tensor,
    extractor: FeatureExtractor | None = None,
    *,
    paired: bool = True,
    real: Tensor | None = None,
    labels: Tensor | None = None,
    about: str = "images",
    cycled: tuple[Tensor, Tensor] | None = None,
) -> TranslationScores:
    """Score the outputs of several methods against targets, as bytes, as they would be saved.

    Args:
        outputs: method -> (N, C, H, W) in [-1, 1], of the same inputs.
        targets: uint8 (N, C, H, W), the true output of each; without `paired` other images of the target domain.
        extractor: of `load_extractor` or your own; `None` (default): no perceptual distance, classes and Frechet
            distance. The perceptual distance needs a shipped classifier.
        paired: whether output i belongs to target i. Default True.
        real: features of real images (M, F) for the Frechet distance; `None` (default): those of `targets`.
        labels: int64 (N,), the class of each input, for unpaired images; `None` (default): the class that the extractor
            sees in the target.
        about: what the images are.
        cycled: inputs and their way there and back, for unpaired images; `None` (default): none.

    Returns:
        L1, PSNR, SSIM, MS-SSIM, perceptual distance, CIEDE2000 of colour images, agreement of the class of output and
        target, gradient energy over that of the targets, and the Frechet distance; of unpaired images the last three,
        with the label in place of the target's class, and the L1 of the cycle.

    Raises:
        UsageError: no outputs, or shapes that differ.

    Example:
        >>> targets = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
        >>> found = translation_scores({"model": from_uint8(targets) * 0.9}, targets)
        >>> round(found.scores["model"]["l1"], 2), [*found.scores["model"]]
        (0.05, ['l1', 'psnr', 'ssim', 'ms_ssim', 'sharpness_ratio'])
    """
    if not outputs or any(made.shape != targets.shape for made in outputs.values() if paired):
        shapes = ", ".join(str(tuple(made.shape)) for made in outputs.values()) or "none"
        raise UsageError(f"outputs must have the shape of the targets, {tuple(targets.shape)}; got {shapes}.")
    side = min(targets.shape[2:])
    window = min(SSIM_WINDOW, side - 1 + side % 2)
    scales = max(i for i in range(1, len(MS_SSIM_WEIGHTS) + 1) if i == 1 or side >> (i - 1) >= window)
    truth = from_uint8(targets.cpu())
    scores = {}
    with known_range():
        seen = None if extractor is None else predict(list(truth.split(100)), extractor)
        for method, made in outputs.items():
            image = from_uint8(to_uint8(made.cpu().float()))
            values = _of_pairs(image, truth, extractor, window, scales) if paired else {}
            values["sharpness_ratio"] = sharpness_ratio(image, truth)
            if extractor is not None and seen is not None:
                found = predict(list(image.split(100)), extractor)
                wanted = labels if labels is not None or seen.logits is None or not paired else seen.logits.argmax(1)
                if found.logits is not None and wanted is not None:
                    values["class_agreement"] = float((found.logits.argmax(1) == wanted.cpu()).double().mean())
                values["fd"] = frechet_distance(found.features, seen.features if real is None else real)
            scores[method] = {name: values[name] for name in SCORES if name in values}
    if cycled is not None:
        before, after = cycled
        scores[next(iter(scores))]["cycle_l1"] = float((after.cpu().float() - before.cpu().float()).abs().mean())
    return TranslationScores(scores, len(targets), about, paired, window, scales)


def _of_pairs(image: Tensor, truth: Tensor, extractor: Any, window: int, scales: int) -> dict[str, float]:
    """Means over the pairs."""
    metrics: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "l1": lambda a, b: (a - b).abs().flatten(1).mean(1),
        "psnr": lambda a, b: psnr(a, b).clamp(max=100),  # of equal images it is infinite
        "ssim": lambda a, b: ssim(a, b, window=window),
        "ms_ssim": lambda a, b: ms_ssim(a, b, window=window, scales=scales),
    }
    if _perceives(extractor, image.shape[1:]):
        metrics["perceptual"] = lambda a, b: perceptual_distance(a, b, extractor)
    if image.shape[1] == 3:
        metrics["ciede2000"] = color_difference
    pairs = list(zip(image.split(100), truth.split(100)))
    return {name: sum(float(metric(a, b).sum()) for a, b in pairs) / len(image) for name, metric in metrics.items()}


def _perceives(extractor: Any, shape: Sequence[int]) -> bool:
    """Whether an extractor is a classifier with halvings, of images of this shape."""
    model = getattr(extractor, "model", None)
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "body") or "sample_size" not in config:
        return False
    return tuple(shape) == (config.in_channels, config.sample_size, config.sample_size)
