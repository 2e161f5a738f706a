"""Scores of image-to-image pipelines, with the baselines of their task."""

import torch
from tqdm import tqdm

from latentia.commands.reference import Reference
from latentia.commands.sources import Source
from latentia.data import Degradation
from latentia.evaluation import TranslationScores, translation_baselines, translation_scores
from latentia.evaluation.features.base import FeatureExtractor
from latentia.evaluation.samples import Sample
from latentia.functional.pixels import from_uint8

_FITTED = 2000  # training pairs of the baselines


def measure_translation(
    opened: Source, reference: Reference, real: Sample, extractor: FeatureExtractor, count: int
) -> TranslationScores | None:
    """Scores of the translations of `count` held-out inputs; None for a source that translates nothing.

    Args:
        opened: the source.
        reference: the pairs.
        real: what was measured of all targets.
        extractor: of `real`.
        count: of inputs.
    """
    held_out = reference.held_out_pairs(count)
    if opened.translate is None or held_out is None or reference.pairs is None:
        return None
    pairs, inputs = reference.pairs, held_out.inputs
    outputs = {"model": opened.translate(inputs)}
    if pairs.paired:
        made = pairs.inputs if isinstance(pairs.inputs, Degradation) else None
        rows = torch.linspace(0, len(pairs) - 1, min(len(pairs), _FITTED)).long()
        tqdm.write(f"Baselines of the task, fitted to {len(rows)} training pairs.")
        baselines = translation_baselines(
            pairs.conditions(rows),
            from_uint8(pairs.images[rows]),
            task=None if made is None else made.name,
            scale=1 if made is None else made.scale,
        )
        outputs |= {
            name: torch.cat([baseline(part) for part in inputs.split(100)]) for name, baseline in baselines.items()
        }
    elif inputs.shape[1:] == held_out.targets.shape[1:]:
        outputs["identity"] = inputs
    return translation_scores(
        outputs,
        held_out.targets,
        extractor,
        paired=pairs.paired,
        real=real.features,
        labels=None if pairs.paired else held_out.labels,
        about=held_out.about,
        cycled=None if opened.cycle is None else (inputs, opened.cycle(inputs)),
    )
