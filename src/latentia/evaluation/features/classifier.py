"""Feature extractors around classifiers; three are shipped, for digits, MNIST and emoji."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from latentia.errors import CheckpointError
from latentia.evaluation.features.base import Predictions, check_images, in_batches
from latentia.files.reading import open_file
from latentia.registration import public
from latentia.safety import read_json

WEIGHTS = Path(__file__).parents[1] / "weights"
SHIPPED = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "emoji": (3, 32, 32)}
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


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
        >>> from latentia.evaluation import load_extractor
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


def classifier_extractor(folder: Path, name: str, config: dict, device: str | torch.device) -> ClassifierExtractor:
    """The extractor around the `DigitClassifier` in a folder.

    Args:
        folder: written by `DigitClassifier.save_pretrained`.
        name: what the report calls it.
        config: content of its config.json.
        device: where it runs.

    Raises:
        CheckpointError: another class, or weights that are missing, damaged or not the stated ones.
    """
    if config.get("_class_name") != "DigitClassifier":
        raise CheckpointError(
            f"{folder}/config.json must describe a DigitClassifier, an InceptionV3 or a vision model of transformers. "
            f"Got {config.get('_class_name')}."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS_FILE}; save the classifier again with save_pretrained.")
    sha256 = hash_of(folder / WEIGHTS_FILE)
    stated = check_statement(folder, sha256, required=folder.parent == WEIGHTS)
    model = public("DigitClassifier").from_pretrained(folder)
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    return ClassifierExtractor(model.to(device), shape, name, sha256, class_names=stated.get("class_names"))


def hash_of(file: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with open_file(file) as opened:
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
