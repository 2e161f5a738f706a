"""What goes wrong in a game of two players, told while it happens: from the logged values, and from samples.

It knows the names of values and of diseases, and no network: `train` calls it as a hook, and a log of long ago can be
read as well.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.classes import class_counts
from latentia.evaluation.features.base import FeatureExtractor
from latentia.evaluation.modes import birthday_test
from latentia.evaluation.plane import energy_distance

WINDOW = 5  # lines of the log, or looks at samples, that must agree before a disease is named
SURE = 0.99  # accuracy of a discriminator that has won
GAP = 10.0  # and the difference of its mean logits: it is e^10 to 1 certain
VANISHED = 1e-4  # norm of a gradient that teaches nothing
EXPLODED = 100.0  # norm of a gradient
CHANCE = 0.55  # accuracy of a discriminator that cannot tell
FAR = 0.15  # share of the distance between the two sets that is not spread within them
ALIKE = 0.5  # diversity of samples against that of the data
CHECKERED = 3.0  # energy at the finest frequencies against the data's
VISIBLE = 0.02  # and the share of all energy there from which on it is seen


@dataclass(frozen=True)
class Finding:
    """A disease, the evidence for it, and what to try. `str` is one sentence for each."""

    disease: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.disease}: {self.evidence}. Try {self.remedy}."


def read_log(rows: Sequence[Mapping[str, float]]) -> list[Finding]:
    """What the logged values of a run say, from the last lines of its `metrics.jsonl`.

    Values that are looked at, where they are there: `discriminator/accuracy_real` and `_fake`, `discriminator/real` and
    `fake` (mean logits), and each phase's `grad_norm`, which is taken before any clipping.

    Args:
        rows: the lines, oldest first. Judged are the last 5 that hold values of a discriminator.

    Returns:
        The diseases, none for a healthy run: "the discriminator has won", "exploding gradients", "the generator gets no
        gradient".

    Tips of "How to Train a GAN?" (Chintala et al., 2016), number 10.

    Example:
        >>> row = {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 1.0, "generator/grad_norm": 1e-7,
        ...        "discriminator/real": 9.0, "discriminator/fake": -9.0}
        >>> [finding.disease for finding in read_log([row] * 5)]
        ['the discriminator has won']
    """
    rows = [row for row in rows if any(key.endswith("/grad_norm") for key in row)][-WINDOW:]
    found = []
    if len(rows) < WINDOW:
        return found
    norms = {key: [row[key] for row in rows if key in row] for key in rows[-1] if key.endswith("/grad_norm")}
    exploded = {key: values for key, values in norms.items() if statistics.median(values) > EXPLODED}
    for key, values in exploded.items():
        found.append(
            Finding(
                "exploding gradients",
                f"the median of the last {len(values)} values of {key} is {statistics.median(values):.3g}",
                "a lower learning rate, a stronger --r1 and --r2, or a --max_grad_norm",
            )
        )
    told = [row for row in rows if {"discriminator/accuracy_real", "discriminator/accuracy_fake"} <= row.keys()]
    if len(told) < WINDOW:
        return found
    accuracy = [(row["discriminator/accuracy_real"] + row["discriminator/accuracy_fake"]) / 2 for row in told]
    gaps = [row.get("discriminator/real", math.nan) - row.get("discriminator/fake", math.nan) for row in told]
    norms_g = norms.get("generator/grad_norm", [])
    silent = bool(norms_g) and max(norms_g) < VANISHED
    if min(accuracy) > SURE and (silent or min(gaps) > GAP):
        reason = f"the generator's gradient is {norms_g[-1]:.1e}" if silent else f"its logits differ by {gaps[-1]:.3g}"
        found.append(
            Finding(
                "the discriminator has won",
                f"it tells real from generated images in {accuracy[-1]:.1%} of cases, and {reason}",
                "the relativistic objective with --r1 and --r2, a lower --discriminator_learning_rate, or "
                "--instance_noise",
            )
        )
    elif silent:
        found.append(
            Finding(
                "the generator gets no gradient",
                f"its norm is {norms_g[-1]:.1e}",
                "another --objective than minimax, and look whether the generator's weights can move at all",
            )
        )
    return found


class SampleMonitor:
    """What samples say against as many real images.

    Args:
        real: (n, C, H, W) in [-1, 1], n >= 16, as many as will be given as samples; or points (n, D).
        extractor: tells the classes, for the histogram of them; `None` (default): none is made.

    Example:
        >>> real = torch.rand(64, 1, 8, 8) * 2 - 1
        >>> monitor = SampleMonitor(real)
        >>> values, found = monitor.look(real[:1].repeat(64, 1, 1, 1))
        >>> values["diversity"], [finding.disease for finding in found]
        (0.0, ['mode collapse'])
    """

    def __init__(self, real: Tensor, extractor: FeatureExtractor | None = None):
        if len(real) < 16:
            raise UsageError(f"A monitor needs at least 16 real images; got {len(real)}.")
        self.extractor, self.real = extractor, real.flatten(1).double().cpu()
        self.spread = _mean_distance(self.real)
        gaps = torch.cdist(self.real, self.real).fill_diagonal_(math.inf).amin(1)
        # Near as the nearest real ones, and near for a pair at all: where everything is far from everything, the
        # nearest are not the same.
        self.close = max(min(float(gaps.quantile(0.01)), self.spread / 4), 1e-6)
        self.fine = fine_energy(real) if real.ndim == 4 else None
        self.classes = self._classes(real)

    def look(self, samples: Tensor) -> tuple[dict[str, float], list[Finding]]:
        """Numbers of a batch of samples, and the diseases they show.

        Args:
            samples: as many as there are real images, and of their shape.

        Returns:
            `diversity`: mean distance of two samples against that of two real images, 1 is best.
            `distance`: normalised energy distance to the real images, 0 to 1, 0 is best (Szekely and Rizzo, 2013).
            `support`: about how many different samples there are by the birthday test (Arora and Zhang, 2017,
            1706.08224); there only if two were the same.
            `fine_energy`: share of power at the finest frequencies against the data's; images only.
            `classes`: how many of the data's classes are there; with an extractor only.
        """
        x = samples.flatten(1).double().cpu()
        if not x.isfinite().all():
            return {}, [Finding("exploding gradients", "the samples are not finite", "a lower learning rate")]
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
        if self.classes is not None:
            counts = self._classes(samples)
            real = {k for k, count in enumerate(self.classes) if count >= 0.02 * len(x)}
            missing = sorted(k for k in real if counts[k] == 0)
            values["classes"] = float(len(real) - len(missing))
            if len(missing) > len(real) / 3:
                signs.append(f"{len(missing)} of {len(real)} classes are missing: {missing}")
        if signs:
            found.append(
                Finding(
                    "mode collapse",
                    ", and ".join(signs),
                    "the relativistic objective with --r1 and --r2, --pack 2, or a lower --learning_rate",
                )
            )
        if self.fine is not None:
            fine = fine_energy(samples)
            values["fine_energy"] = fine / max(self.fine, 1e-6)
            if values["fine_energy"] > CHECKERED and fine > VISIBLE:
                found.append(
                    Finding(
                        "checkerboard",
                        f"samples have {values['fine_energy']:.1f} times the energy of the data at the finest "
                        "frequencies",
                        "a kernel that the stride divides (4 at stride 2), or upsampling by resizing",
                    )
                )
        return values, found

    def _classes(self, images: Tensor) -> list[int] | None:
        if self.extractor is None:
            return None
        logits = self.extractor(images.clamp(-1, 1)).logits
        return None if logits is None else class_counts(logits)


def generator_won(accuracy: float, distance: float) -> Finding | None:
    """The disease of a discriminator that cannot tell although the samples are far from the data.

    Chance alone is no disease: it is also where a game that is over ends.

    Args:
        accuracy: of the discriminator, in [0, 1], 1/2 is chance.
        distance: of the samples, as `SampleMonitor` gives it.

    Example:
        >>> generator_won(0.5, 0.01), generator_won(0.5, 0.6).disease
        (None, 'the generator has won')
    """
    if accuracy > CHANCE or distance < FAR:
        return None
    return Finding(
        "the generator has won",
        f"the discriminator is right in {accuracy:.0%} of cases, and yet the samples lie {distance:.2f} from the data "
        "(0 is on it, 1 apart)",
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
