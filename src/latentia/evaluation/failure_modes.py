"""Failure modes of adversarial training, detected while it runs: from logged values, and from samples.

Nothing here knows a network: a hook of `train` calls it, and the `metrics.jsonl` of an earlier run can be read as well.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.classes import class_counts
from latentia.evaluation.features.base import FeatureExtractor, known_range
from latentia.evaluation.modes import birthday_test
from latentia.evaluation.plane import energy_distance

WINDOW = 5  # lines of the log that must agree
SURE = 0.99  # accuracy of a discriminator that is too strong
GAP = 10.0  # and the difference of its mean logits: a probability of 1 - e^-10
VANISHED = 1e-4  # norm of a gradient that is too small to learn from
EXPLODED = 100.0  # norm of a gradient
CHANCE = 0.55  # accuracy of a discriminator that guesses
FAR = 0.15  # normalised energy distance of samples that are clearly off the data
ALIKE = 0.5  # diversity of samples against that of the data
CHECKERED = 3.0  # energy at the finest frequencies against the data's
VISIBLE = 0.02  # and the least share of all energy there that is visible

STRONG_DISCRIMINATOR = "discriminator too strong"
WEAK_DISCRIMINATOR = "discriminator too weak"
VANISHING_GRADIENT = "vanishing generator gradient"
EXPLODING_GRADIENTS = "exploding gradients"
MODE_COLLAPSE = "mode collapse"
CHECKERBOARD = "checkerboard"
FAILURE_MODES = (
    STRONG_DISCRIMINATOR, WEAK_DISCRIMINATOR, VANISHING_GRADIENT, EXPLODING_GRADIENTS, MODE_COLLAPSE, CHECKERBOARD,
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A failure mode, one of `FAILURE_MODES`, the evidence for it, and a suggestion. `str` is two sentences."""

    failure_mode: str
    evidence: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.failure_mode}: {self.evidence}. Try {self.suggestion}."


def check_log(rows: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Failure modes in the logged values of a run, from the last lines of its `metrics.jsonl`.

    Values that are read, where they are there: `discriminator/accuracy_real` and `_fake`, `discriminator/real` and
    `fake` (mean logits), and each phase's `grad_norm`, which is taken before any clipping.

    Args:
        rows: the lines, oldest first. The last 5 that hold values of a discriminator count.

    Returns:
        Findings, none for a healthy run: "discriminator too strong", "exploding gradients", "vanishing generator
        gradient".

    Tips of "How to Train a GAN?" (Chintala et al., 2016), number 10.

    Example:
        >>> row = {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 1.0, "generator/grad_norm": 1e-7,
        ...        "discriminator/real": 9.0, "discriminator/fake": -9.0}
        >>> [finding.failure_mode for finding in check_log([row] * 5)]
        ['discriminator too strong']
    """
    rows = [row for row in rows if any(key.endswith("/grad_norm") for key in row)][-WINDOW:]
    found: list[Finding] = []
    if len(rows) < WINDOW:
        return found
    norms = {key: [row[key] for row in rows if key in row] for key in rows[-1] if key.endswith("/grad_norm")}
    exploded = {key: values for key, values in norms.items() if statistics.median(values) > EXPLODED}
    for key, values in exploded.items():
        found.append(
            Finding(
                EXPLODING_GRADIENTS,
                f"the median of the last {len(values)} values of {key} is {statistics.median(values):.3g}",
                "a lower learning rate, a stronger --r1 and --r2, or a --max_grad_norm",
            )
        )
    rows = [row for row in rows if {"discriminator/accuracy_real", "discriminator/accuracy_fake"} <= row.keys()]
    if len(rows) < WINDOW:
        return found
    accuracy = [(row["discriminator/accuracy_real"] + row["discriminator/accuracy_fake"]) / 2 for row in rows]
    gaps = [row.get("discriminator/real", math.nan) - row.get("discriminator/fake", math.nan) for row in rows]
    generator = norms.get("generator/grad_norm", [])
    silent = bool(generator) and max(generator) < VANISHED
    if min(accuracy) > SURE and (silent or min(gaps) > GAP):
        reason = (
            f"the generator's gradient norm is {generator[-1]:.1e}"
            if silent
            else f"its logits differ by {gaps[-1]:.3g}"
        )
        found.append(
            Finding(
                STRONG_DISCRIMINATOR,
                f"it classifies {accuracy[-1]:.1%} of real and generated images correctly, and {reason}",
                "a lower --discriminator_learning_rate, --instance_noise 0.1, or --objective relativistic if it is not "
                "used",
            )
        )
    elif silent:
        found.append(
            Finding(
                VANISHING_GRADIENT,
                f"its norm is {generator[-1]:.1e}",
                "another --objective than minimax, and check that the generator's weights are trained at all",
            )
        )
    return found


class SampleMonitor:
    """Failure modes in batches of samples, by comparison with as many real images.

    Args:
        real: (n, C, H, W) in [-1, 1], n >= 16, as many as will be given as samples; or points (n, D).
        extractor: classifies images, for the histogram of classes; `None` (default): none is made.

    Example:
        >>> real = torch.rand(64, 1, 8, 8) * 2 - 1
        >>> monitor = SampleMonitor(real)
        >>> values, found = monitor.check(real[:1].repeat(64, 1, 1, 1))
        >>> values["diversity"], [finding.failure_mode for finding in found]
        (0.0, ['mode collapse'])
    """

    def __init__(self, real: Tensor, extractor: FeatureExtractor | None = None):
        if len(real) < 16:
            raise UsageError(f"real must hold at least 16 images; got {len(real)}.")
        self.extractor, self.real = extractor, real.flatten(1).double().cpu()
        self.spread = _mean_distance(self.real)
        gaps = torch.cdist(self.real, self.real).fill_diagonal_(math.inf).amin(1)
        # Near as the nearest real ones, and near for a pair at all: where everything is far from everything, the
        # nearest are not the same.
        self.close = max(min(float(gaps.quantile(0.01)), self.spread / 4), 1e-6)
        self.fine = fine_energy(real) if real.ndim == 4 else None
        counts = self._class_counts(real)
        self.classes = None if counts is None else {k for k, n in enumerate(counts) if n >= 0.02 * len(real)}

    def check(self, samples: Tensor) -> tuple[dict[str, float], list[Finding]]:
        """Numbers of a batch of samples, and the failure modes that they show.

        Args:
            samples: as many as there are real images, and of their shape.

        Returns:
            `diversity`: mean distance of two samples against that of two real images, 1 is best.
            `distance`: normalised energy distance to the real images, 0 to 1, 0 is best (Szekely and Rizzo, 2013).
            `support`: about how many different samples there are by the birthday test (Arora and Zhang, 2017,
            1706.08224); only if two were the same.
            `fine_energy`: share of power at the finest frequencies against the data's; images only.
            `classes`: how many of the data's classes occur; with an extractor only.
        """
        x = samples.flatten(1).double().cpu()
        if not x.isfinite().all():
            return {}, [Finding(EXPLODING_GRADIENTS, "the samples are not finite", "a lower learning rate")]
        values, found = {"diversity": _mean_distance(x) / max(self.spread, 1e-12)}, []
        between = float(torch.cdist(x, self.real).mean())
        values["distance"] = max(energy_distance(x, self.real), 0.0) / max(2 * between, 1e-12)
        same = birthday_test(x, self.close)
        if same.duplicates:
            values["support"] = same.support
        signs = []
        if values["diversity"] < ALIKE:
            signs.append(f"two samples differ by {values['diversity']:.0%} of what two real images do")
        if same.duplicates and same.support < len(x) / 2:
            signs.append(f"by the birthday test there are about {same.support:.0f} different samples")
        counts = self._class_counts(samples)
        if self.classes is not None and counts is not None:
            missing = sorted(k for k in self.classes if counts[k] == 0)
            values["classes"] = float(len(self.classes) - len(missing))
            if len(missing) > len(self.classes) / 3:
                signs.append(f"{len(missing)} of {len(self.classes)} classes are missing: {missing}")
        if signs:
            found.append(
                Finding(
                    MODE_COLLAPSE,
                    ", and ".join(signs),
                    "--pack 2, a lower --learning_rate, or --objective relativistic if it is not used",
                )
            )
        if self.fine is not None:
            fine = fine_energy(samples)
            values["fine_energy"] = fine / max(self.fine, 1e-6)
            if values["fine_energy"] > CHECKERED and fine > VISIBLE:
                found.append(
                    Finding(
                        CHECKERBOARD,
                        f"samples have {values['fine_energy']:.1f} times the energy of the data at the finest "
                        "frequencies",
                        "--upsample resize",
                    )
                )
        return values, found

    def _class_counts(self, images: Tensor) -> list[int] | None:
        if self.extractor is None:
            return None
        with known_range():
            _, logits = self.extractor(images.clamp(-1, 1))
        return None if logits is None else class_counts(logits)


def check_discriminator(accuracy: float, distance: float) -> Finding | None:
    """The failure mode of a discriminator that guesses although the samples are far from the data.

    Guessing alone is no failure: it is also where converged training ends.

    Args:
        accuracy: of the discriminator, in [0, 1], 1/2 is chance.
        distance: of the samples, as `SampleMonitor` gives it.

    Example:
        >>> check_discriminator(0.5, 0.01), check_discriminator(0.5, 0.6).failure_mode
        (None, 'discriminator too weak')
    """
    if accuracy > CHANCE or distance < FAR:
        return None
    return Finding(
        WEAK_DISCRIMINATOR,
        f"it classifies {accuracy:.0%} of the images correctly, and yet the samples lie {distance:.2f} from the data "
        "(0: the same distribution, 1: no overlap)",
        "--n_critic 2, a higher --discriminator_learning_rate, a wider discriminator, or weaker --r1 and --r2",
    )


def fine_energy(images: Tensor) -> float:
    """Share of the power of images, means left out, at 0.44 or more cycles per pixel along one axis.

    Transposed convolutions whose kernel the stride does not divide leave a pattern of period 2 there (Odena et al.,
    2016, "Deconvolution and Checkerboard Artifacts").

    Args:
        images: (n, C, H, W).

    Example:
        >>> board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
        >>> fine_energy(board), fine_energy(torch.ones(1, 1, 8, 8))
        (1.0, 0.0)
    """
    x = images.double().cpu()
    power = torch.fft.fft2(x - x.mean((-2, -1), keepdim=True)).abs().square().sum((0, 1))
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64).abs() for size in power.shape)
    fine = (rows[:, None] >= 0.44) | (columns >= 0.44)
    return float(power[fine].sum() / power.sum().clamp(min=1e-12))


def _mean_distance(x: Tensor) -> float:
    return float(torch.pdist(x).mean())
