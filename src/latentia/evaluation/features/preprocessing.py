"""Preprocessing of images for a pretrained network: resize, crop, normalise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import CheckpointError
from latentia.safety import read_json


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, and (u - mean) / std with u in [0, 1], of images in [-1, 1].

    Args:
        resize: (H, W); or the length of the shorter side, which keeps the proportions; or None.
        filter: of the resizing.
        antialias: widen the filter when shrinking, as PIL does.
        crop: (H, W) of the centre to keep, or None.
        mean, std: per channel, or one for all.

    Example:
        >>> preprocess = Preprocessing(resize=(299, 299), filter="bilinear", antialias=False, mean=(0.5,), std=(0.5,))
        >>> tuple(preprocess(torch.zeros(2, 3, 32, 32)).shape)
        (2, 3, 299, 299)
    """

    resize: tuple[int, int] | int | None
    filter: Literal["bilinear", "bicubic"]
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Of (B, 3, H, W) in [-1, 1], float32."""
        u = (images + 1) / 2
        if self.resize is not None:
            height, width = u.shape[2:]
            short = min(height, width)
            # The longer side is rounded down.
            size = (height * self.resize // short, width * self.resize // short) if isinstance(self.resize, int) else ()
            u = F.interpolate(
                u, size or self.resize, mode=self.filter, align_corners=False, antialias=self.antialias
            ).clamp(0, 1)  # bicubic overshoots
        if self.crop is not None:
            top, left = (u.shape[2] - self.crop[0]) // 2, (u.shape[3] - self.crop[1]) // 2
            u = u[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(values, device=u.device)[:, None, None] for values in (self.mean, self.std))
        return (u - mean) / std

    def __str__(self) -> str:
        kind = f"{self.filter}{' antialiased' if self.antialias else ''}"
        parts = [] if self.resize is None else [f"resize to {self.resize} {kind}"]
        parts += [f"crop to {self.crop}"] if self.crop else []
        numbers = [" ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std)]
        return ", ".join([*parts, f"mean {numbers[0]}, std {numbers[1]}"])


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read preprocessor_config.json, or the image processor in processor_config.json.

    Raises:
        CheckpointError: there is none, or it asks for something that is not done here.
    """
    file = folder / "preprocessor_config.json"
    if file.is_file():
        asked = read_json(file)
    else:
        file = folder / "processor_config.json"
        asked = read_json(file).get("image_processor", {}) if file.is_file() else {}
    if not asked:
        raise CheckpointError(f"{folder} holds no preprocessor_config.json, which says what the network wants to see.")

    def pair(size: Any) -> tuple[int, int]:
        return (size, size) if isinstance(size, int) else (size["height"], size["width"])

    try:
        size = asked["size"] if asked.get("do_resize", True) else None
        cropped = asked.get("do_center_crop", "crop_size" in asked and asked["crop_size"] is not None)
        crop = pair(asked["crop_size"]) if cropped else None
        if isinstance(size, dict) and "shortest_edge" in size and "longest_edge" not in size:
            resize: tuple[int, int] | int | None = int(size["shortest_edge"])
        elif isinstance(size, int) and crop:  # the older way to write the same
            resize = size
        else:
            resize = None if size is None else pair(size)
        if abs(asked.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3 or not asked.get("do_rescale", True):
            raise KeyError("do_rescale by 1/255")
        normal = asked.get("do_normalize", True)
        mean, std = (tuple(asked[key]) for key in ("image_mean", "image_std")) if normal else ((0.0,), (1.0,))
        kinds: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
        kind = kinds[asked["resample"]] if size is not None else "bilinear"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} must give `size` as a number, height and width, or shortest_edge, `resample` 2 or 3, `image_mean` "
            f"and `image_std`, and rescale by 1/255. Not so: {error}. Preprocess the images yourself, and wrap the "
            "network in an extractor of your own."
        ) from error
    smallest = (resize, resize) if isinstance(resize, int) else resize
    if crop and smallest and (crop[0] > smallest[0] or crop[1] > smallest[1]):
        raise CheckpointError(f"{file} must not crop to more than it resizes to. Got {crop} of {smallest}.")
    return Preprocessing(resize, kind, True, mean, std, crop)
