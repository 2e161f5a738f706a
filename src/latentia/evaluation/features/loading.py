"""`load_extractor`: find a feature extractor by its name."""

from collections.abc import Sequence
from pathlib import Path

import torch

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.features.base import FeatureExtractor
from latentia.evaluation.features.classifier import SHIPPED, WEIGHTS, classifier_extractor
from latentia.evaluation.features.pretrained import inception_extractor, transformers_extractor
from latentia.safety import read_json

_INCEPTION = {"inception": "clean", "inception-legacy": "legacy"}  # prefix -> how it resizes


def load_extractor(name_or_path: str | Path, device: str | torch.device = "cpu") -> FeatureExtractor:
    """The extractor of that name.

    Args:
        name_or_path: one of
            "digits", "mnist" or "emoji", which come with the package;
            a folder written by `DigitClassifier.save_pretrained` or `InceptionV3.save_pretrained`;
            "inception:WEIGHTS" or "inception-legacy:WEIGHTS", see `inception_extractor`;
            a folder or Hub repository ("user/name") of a transformers vision model, see `transformers_extractor`.
            A shipped name wins over a folder of that name; write "./digits" for the folder.
        device: where it runs.

    Returns:
        The extractor. Its `sha256` was compared with the one stated in the folder's `evaluation.json`, which every
        shipped extractor has.

    Raises:
        UsageError: none of these.
        CheckpointError: the folder holds another class, or its weights are missing, damaged or not the stated ones.
        HubError: the repository cannot be fetched.

    Example:
        >>> load_extractor("digits").image_shape
        (1, 8, 8)
    """
    name = str(name_or_path)
    resize, _, weights = name.partition(":")
    if resize in _INCEPTION and weights:
        return inception_extractor(weights, resize=_INCEPTION[resize], device=device)
    folder = WEIGHTS / name if name in SHIPPED else Path(name_or_path)
    if not (folder / "config.json").is_file():
        if not folder.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return transformers_extractor(name, device=device)
        known = [*SHIPPED, *_INCEPTION]
        raise UsageError(
            f'extractor must be one of {", ".join(SHIPPED)}, a folder with a config.json, "inception:" with the '
            f'path of its weights, or the "user/name" of a vision model on the Hub. Got "{name}".'
            + did_you_mean(resize, known)
        )
    config = read_json(folder / "config.json")
    if config.get("_class_name") == "InceptionV3":
        return inception_extractor(folder, device=device)
    if "_class_name" not in config and "model_type" in config:
        return transformers_extractor(folder, device=device)
    return classifier_extractor(folder, name if name in SHIPPED else folder.name, config, device)


def extractor_for(image_shape: Sequence[int], device: str | torch.device = "cpu") -> FeatureExtractor | None:
    """The shipped extractor for images of `image_shape` (C, H, W), or None.

    Only the shape is looked at: it also fits images that show no digits or emoji, whose distances then say little.

    Example:
        >>> extractor_for((1, 8, 8)).name, extractor_for((3, 32, 32)).name, extractor_for((3, 64, 64))
        ('digits', 'emoji', None)
    """
    names = [name for name, shape in SHIPPED.items() if shape == tuple(image_shape)]
    return load_extractor(names[0], device) if names else None
