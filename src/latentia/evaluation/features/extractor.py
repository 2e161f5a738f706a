"""Feature extractors: what turns images into vectors whose distributions can be compared.

An extractor is anything called as `extractor(images) -> (features, logits)` that also says what it is; see
`FeatureExtractor`. Three are shipped, "digits" (1, 8, 8), "mnist" (1, 28, 28) and "emoji" (3, 32, 32), and
`load_extractor` finds these and all others by name.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from latentia.errors import CheckpointError, DataError, NumericsError, UsageError, did_you_mean
from latentia.safety import read_json

WEIGHTS = Path(__file__).parents[1] / "weights"
SHIPPED = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "emoji": (3, 32, 32)}
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_INCEPTION = {"inception": "clean", "inception-legacy": "legacy"}  # prefix -> how it resizes


class Predictions(NamedTuple):
    """What an extractor says about N images: `features` (N, D) and `logits` (N, K), both float32.

    `logits` is None where the extractor knows no classes; metrics of classes are then not defined.
    """

    features: torch.Tensor
    logits: torch.Tensor | None


class FeatureExtractor(Protocol):
    """The contract of an extractor; implement it to measure with another network.

    Attributes:
        name: what the report calls it.
        sha256: of its weights file. Distances compare only between equal hashes.
        image_shape: (C, H, W) that it takes, or None for any size in one or three channels.
        preprocessing: what it does to images before the network, in words; "none" if nothing. It changes every number.
        class_names: of the K logits, or None where they have no names or there are none.
    """

    name: str
    sha256: str
    image_shape: tuple[int, int, int] | None
    preprocessing: str
    class_names: list[str] | None

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (N, D) and logits (N, K) or None, of images (N, C, H, W) in [-1, 1]; float32."""
        ...


class ClassifierExtractor:
    """A `FeatureExtractor` around a classifier whose output has `logits` and `features`, such as `DigitClassifier`.

    Args:
        model: the classifier; it is put in evaluation mode and stays on its device.
        image_shape: (C, H, W) that it takes.
        name: what the report calls it.
        sha256: of its weights file.
        batch_size: images per forward pass; it bounds memory and does not change the numbers.
        class_names: of the logits, in their order.

    Example:
        >>> extractor = load_extractor("digits")
        >>> features, logits = extractor(torch.rand(5, 1, 8, 8) * 2 - 1)
        >>> tuple(features.shape), tuple(logits.shape)
        ((5, 64), (5, 10))
    """

    preprocessing = "none"

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        name: str,
        sha256: str,
        batch_size: int = 500,
        class_names: list[str] | None = None,
    ):
        self.model = model.eval().requires_grad_(False)
        self.image_shape: tuple[int, int, int] | None = image_shape
        self.name, self.sha256, self.batch_size, self.class_names = name, sha256, batch_size, class_names

    def __call__(self, images: torch.Tensor) -> Predictions:
        """Features (N, D) and logits (N, K) on the CPU.

        Raises:
            UsageError: `images` is not a float tensor (N, *image_shape) in [-1, 1].
            DataError: `images` holds NaN or infinity.
        """
        check_images(images, self.image_shape)

        def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.model(x)
            return output.features, output.logits

        return in_batches(forward, images, next(self.model.parameters()).device, self.batch_size)

    def __repr__(self) -> str:
        return f"ClassifierExtractor({self.name!r}, {self.image_shape}, sha256={self.sha256[:12]}...)"


@torch.no_grad()
def in_batches(
    forward: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    images: torch.Tensor,
    device: torch.device,
    batch_size: int,
) -> Predictions:
    """`forward` of all images in float32 on `device`, `batch_size` at a time; the results on the CPU."""
    # A surrounding autocast would change the numbers, and with them what the distance is compared to.
    with torch.autocast(device.type, enabled=False):
        parts = [forward(batch.to(device, torch.float32)) for batch in images.split(batch_size)]
    return _joined((features.float().cpu(), None if k is None else k.float().cpu()) for features, k in parts)


def _joined(parts: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> Predictions:
    features, logits = zip(*parts)
    return Predictions(torch.cat(features), None if logits[0] is None else torch.cat(logits))


def check_images(images: torch.Tensor, image_shape: Sequence[int] | None = None) -> None:
    """Refuse what is not a float tensor (N, C, H, W) in [-1, 1], N >= 1, of `image_shape` (C, H, W) where given.

    Eight or more images without a single negative value count as [0, 1].
    """
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) == 0:
        given = f"shape {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a tensor (N, C, H, W) with at least one image. Got {given}.")
    if image_shape is not None and tuple(images.shape[1:]) != tuple(image_shape):
        raise UsageError(
            f"`images` must have the extractor's (C, H, W) = {tuple(image_shape)}. Got {tuple(images.shape[1:])}; "
            "generate at that size, or load an extractor that was trained on yours."
        )
    if not images.is_floating_point():
        raise UsageError(
            f"`images` must be floats in [-1, 1]. Got {images.dtype}; for bytes in [0, 255] pass "
            "`from_uint8(images)`, or convert with x / 127.5 - 1."
        )
    low, high = (float(value) for value in torch.aminmax(images))
    if not -1e30 < low <= high < 1e30:
        bad = int((~images.isfinite()).flatten(1).any(1).sum())
        raise DataError(
            f"`images` must be finite. {bad} of {len(images)} hold NaN or infinity: the network that made them has "
            "diverged, or overflowed in half precision."
        )
    if low < -1.001 or high > 1.001:
        raise UsageError(
            f"`images` must lie in [-1, 1]. Got [{low:.4g}, {high:.4g}]; for [0, 255] convert with x / 127.5 - 1, "
            "for a sampler that overshoots clamp to [-1, 1] as pipelines do."
        )
    # A few images may well be bright all over, as the last batch of a data set, and constant ones are no range at all.
    if low >= 0 and high > low and len(images) >= 8:
        raise UsageError(
            f"`images` must lie in [-1, 1]. Got [{low:.4g}, {high:.4g}], which looks like [0, 1]: "
            f"none of {len(images)} images has a value below 0. Convert with x * 2 - 1."
        )


def from_uint8(images: torch.Tensor, batch_size: int = 1000) -> Iterator[torch.Tensor]:
    """Batches in [-1, 1] of a byte tensor, so that a large data set is never held as floats.

    Args:
        images: (N, C, H, W), uint8 in [0, 255].
        batch_size: images per batch.

    Example:
        >>> [tuple(batch.shape) for batch in from_uint8(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), 3)]
        [(3, 1, 8, 8), (2, 1, 8, 8)]
    """
    if images.dtype != torch.uint8:
        raise UsageError(
            f"`images` must be uint8 in [0, 255]. Got {images.dtype}; floats in [-1, 1] need no conversion."
        )
    return (batch.float() / 127.5 - 1 for batch in images.split(batch_size))


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
    from latentia.evaluation.features.networks import inception_extractor, transformers_extractor

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
            f'`name_or_path` must be one of {", ".join(SHIPPED)}, a folder with a config.json, "inception:" with the '
            f'path of its weights, or the "user/name" of a vision model on the Hub. Got "{name}".'
            + did_you_mean(resize, known)
        )
    config = read_json(folder / "config.json")
    if config.get("_class_name") == "InceptionV3":
        return inception_extractor(folder, device=device)
    if "_class_name" not in config and "model_type" in config:
        return transformers_extractor(folder, device=device)
    return _load_classifier(folder, name if name in SHIPPED else folder.name, config, device)


def _load_classifier(folder: Path, name: str, config: dict, device: str | torch.device) -> ClassifierExtractor:
    from latentia import DigitClassifier

    if config.get("_class_name") != "DigitClassifier":
        raise CheckpointError(
            f"{folder}/config.json must describe a DigitClassifier, an InceptionV3 or a vision model of transformers. "
            f"Got {config.get('_class_name')}."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS_FILE}; save the classifier again with save_pretrained.")
    sha256 = hash_of(folder / WEIGHTS_FILE)
    stated = check_statement(folder, sha256, required=folder.parent == WEIGHTS)
    model = DigitClassifier.from_pretrained(folder)
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    return ClassifierExtractor(model.to(device), shape, name, sha256, class_names=stated.get("class_names"))


def extractor_for(image_shape: Sequence[int], device: str | torch.device = "cpu") -> FeatureExtractor | None:
    """The shipped extractor for images of `image_shape` (C, H, W), or None.

    Only the shape is looked at: it also fits images that show no digits or emoji, whose distances then say little.

    Example:
        >>> extractor_for((1, 8, 8)).name, extractor_for((3, 32, 32)).name, extractor_for((3, 64, 64))
        ('digits', 'emoji', None)
    """
    names = [name for name, shape in SHIPPED.items() if shape == tuple(image_shape)]
    return load_extractor(names[0], device) if names else None


def predict(images: torch.Tensor | Iterable[torch.Tensor] | Predictions, extractor: FeatureExtractor) -> Predictions:
    """Features and logits of images given whole or batch by batch; what is already predicted passes through.

    Args:
        images: (N, C, H, W) in [-1, 1], an iterable of such batches, or `Predictions`.
        extractor: from `load_extractor` or your own.

    Returns:
        `Predictions`, on the CPU. `logits` is None if the extractor knows no classes.

    Raises:
        UsageError: images of a wrong shape, type or range, or none at all.
        DataError: images hold NaN.
        NumericsError: features or logits hold NaN.

    Example:
        >>> predict(from_uint8(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), 4), load_extractor("digits")).logits.shape
        torch.Size([7, 10])
    """
    if isinstance(images, Predictions):
        predictions = images
    else:
        batches = [images] if isinstance(images, torch.Tensor) else images
        parts = [extractor(batch) for batch in batches]
        if not parts:
            raise UsageError("`images` must hold at least one batch. Got an empty iterable.")
        predictions = _joined(parts)
    check_features(predictions.features)
    if predictions.logits is not None:
        check_features(predictions.logits)
    return predictions


def check_features(features: torch.Tensor) -> None:
    """Refuse what is not a finite matrix (n, D), n >= 1."""
    if features.ndim != 2 or len(features) == 0:
        raise UsageError(f"Features and logits must have shape (n, D), n >= 1. Got {tuple(features.shape)}.")
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise NumericsError(
            f"Features and logits must be finite. {bad} of {len(features)} images have NaN or infinity: the extractor "
            "overflowed (half precision?) or its weights are not finite."
        )


def hash_of(file: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_statement(folder: Path, sha256: str, required: bool = False) -> dict:
    """`folder/evaluation.json`, after its `sha256` was compared with the weights'; empty if there is none."""
    statement = folder / "evaluation.json"
    if not statement.is_file() and not required:
        return {}
    stated = read_json(statement, sizes=False) if statement.is_file() else {}
    if stated.get("sha256") != sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} must have the sha256 that {statement.name} states, {stated.get('sha256')}. Got "
            f"{sha256}: the file was altered, and its distances would compare with no other. Install the package "
            "again, or train the classifier again."
        )
    return stated
