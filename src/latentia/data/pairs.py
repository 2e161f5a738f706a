"""Pairs of images, an input and its target: two columns, two folders, or images and what degrades them; or unpaired."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from latentia.data.base import require
from latentia.data.columns import Source
from latentia.data.images import ImageData
from latentia.data.left_out import LeftOut
from latentia.data.loading import load_images, parse_split
from latentia.data.sources import find_source
from latentia.errors import DataError, UsageError, check_choice, check_range, counted
from latentia.files.cache import key_of
from latentia.files.reading import open_file
from latentia.functional.degradation import edges, hole, larger, luminance, masked, smaller
from latentia.functional.pixels import from_uint8
from latentia.rng import Rng, seed_from

# Name of a degradation -> its usual strength; None: it has none.
STRENGTHS: dict[str, float | None] = {"grey": None, "edges": None, "smaller": 2.0, "masked": 0.25, "noised": 0.5}
_MEASURED = 1000  # pairs of files whose sizes are compared
_ORIENTATION = 0x0112  # of EXIF; 5 to 8 are turned by 90 degrees
Degrade = Literal["grey", "edges", "smaller", "masked", "noised"]


@dataclass(frozen=True)
class Degradation:
    """A function of an image, the input from which a network restores the image.

    Args:
        name: "grey", its luminance (1 channel); "edges", the strength of its edges (1 channel); "smaller", means of
            blocks, brought back to its size by bicubic interpolation; "masked", 0 in a rectangle at a random place,
            with the mask as one more channel; "noised", with Gaussian noise, clamped to [-1, 1].
        strength: of "smaller" the side of a block in pixels, at least 2 (default 2); of "masked" the share of the area
            in (0, 1] (default 0.25); of "noised" the standard deviation, positive, in units of [-1, 1] (default 0.5);
            of others `None`.

    Raises:
        UsageError: an unknown name, a strength out of its range, or of a degradation that has none.

    Example:
        >>> Degradation("smaller").strength, Degradation("grey").shape((3, 8, 8))
        (2.0, (1, 8, 8))
    """

    name: Degrade
    strength: float | None = None

    def __post_init__(self) -> None:
        check_choice("degrade", self.name, STRENGTHS)
        usual, given = STRENGTHS[self.name], self.strength
        if usual is None:
            if given is not None:
                raise UsageError(f"strength must be left out: degrade {self.name} has none; got {given}.")
            return
        if given is None:
            object.__setattr__(self, "strength", usual)
        elif self.name == "smaller":
            check_range("strength", int(given) if float(given).is_integer() else given, 2, 64, integer=True)
            object.__setattr__(self, "strength", float(given))
        elif self.name == "masked":
            check_range("strength", given, 0, 1, closed="right", advice="It is a share of the area.")
        else:
            check_range("strength", given, 0, closed="neither")

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the input of an image of this shape.

        Raises:
            UsageError: it cannot be made of such images.
        """
        channels, height, width = shape
        if self.name in ("grey", "edges") and channels not in (1, 3):
            raise UsageError(f"degrade {self.name} needs images with 1 or 3 channels; got {channels}. Give channels=3.")
        if self.name == "smaller" and (height % self.scale or width % self.scale):
            raise UsageError(
                f"strength must divide height and width of the images, {height} x {width}; got {self.scale}. Give "
                "another resolution."
            )
        return {"grey": 1, "edges": 1, "masked": channels + 1}.get(self.name, channels), height, width

    @property
    def scale(self) -> int:
        """Side of a block of "smaller", in pixels; 1 of others."""
        return int(self.strength or 1) if self.name == "smaller" else 1

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        """The inputs of images.

        Args:
            images: (B, C, H, W) in [-1, 1].
            rng: of the B images: places of holes, and noise.
        """
        if self.name == "grey":
            return luminance(images)
        if self.name == "edges":
            return edges(images)
        if self.name == "smaller":
            return larger(smaller(images, self.scale), self.scale)
        strength = float(self.strength or 0)
        if self.name == "masked":
            return masked(images, hole(rng.uniform("hole", (2,)), (images.shape[2], images.shape[3]), strength))
        return (images + strength * rng.normal("noise of inputs", tuple(images.shape[1:]))).clamp(-1, 1)


class PairedImages:
    """A `Dataset` of targets, "x", and the inputs that they are made from, "condition"; see `load_pairs`.

    Both images of a pair are flipped alike, and cropped at the same place.

    Args:
        targets: the images to make.
        inputs: the images to make them from, in the same order and of the same size; or a `Degradation` of the targets.
        paired: False takes inputs and targets as two sets without a common order or number: each batch holds images of
            both that have nothing to do with each other, and an epoch is one of the targets. Default True.

    Raises:
        UsageError, DataError: another number or size of inputs than of targets; an unpaired degradation.

    Example:
        >>> data = PairedImages(load_images("digits", max_samples=6), Degradation("edges"))
        >>> batch = data.batch(0, 4)
        >>> batch["x"].shape, batch["condition"].shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 1, 8, 8]))
    """

    modality = "image"
    endless = False

    def __init__(self, targets: ImageData, inputs: ImageData | Degradation, *, paired: bool = True):
        self.targets, self.inputs, self.paired = targets, inputs, paired
        self.label_names = targets.label_names
        if isinstance(inputs, Degradation):
            if not paired:
                raise UsageError("paired must be True for a degradation, whose inputs are of the targets.")
            self.condition_shape: tuple[int, int, int] = inputs.shape(targets.shape)
            return
        self.condition_shape = inputs.shape
        if inputs.shape[1:] != targets.shape[1:]:
            (height, width), (high, wide) = inputs.shape[1:], targets.shape[1:]
            raise DataError(
                f"inputs and targets must have one size; inputs are {width} x {height}, targets {wide} x {high}. "
                "Give `resolution` to bring all images to one size."
            )
        if not paired:
            return
        if len(inputs) != len(targets):
            raise DataError(f"inputs and targets must be equally many; got {len(inputs)} and {len(targets)}.")
        sizes = [None if data._uneven is None else data._uneven.sizes for data in (inputs, targets)]
        if inputs.random_crop != targets.random_crop or (sizes[0] is not None and (sizes[0] != sizes[1]).any()):
            raise DataError(
                "the two images of each pair must have one size to be cropped at the same random place, and some "
                "have not. Crop at the centre: center_crop."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the targets."""
        return self.targets.shape

    @property
    def labels(self) -> Tensor | None:
        """Classes of the targets, int64 (n,); None without."""
        return self.targets.labels

    @property
    def captions(self) -> list[str] | None:
        """Texts of the targets."""
        return self.targets.captions

    @property
    def has_captions(self) -> bool:
        """True if batches hold captions."""
        return self.targets.has_captions

    @property
    def images(self) -> Tensor:
        """All targets in the order of the source, uint8 (n, C, H, W)."""
        return self.targets.images

    @property
    def source(self) -> dict[str, Any]:
        """Where the targets come from."""
        return self.targets.source

    @property
    def left_out(self) -> LeftOut:
        """What of the targets was not taken, and why."""
        return self.targets.left_out

    @property
    def fingerprint(self) -> str:
        """Of the content of targets and inputs."""
        inputs = self.inputs
        other = asdict(inputs) if isinstance(inputs, Degradation) else inputs.fingerprint
        return key_of([self.targets.fingerprint, other, self.paired])

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        inputs = f"their {self.inputs.name} ones" if isinstance(self.inputs, Degradation) else repr(self.inputs)
        return f"{type(self).__name__}({self.targets!r} {'from' if self.paired else 'unpaired, from'} {inputs})"

    def describe(self) -> dict[str, Any]:
        """Facts about the targets, with "inputs" and "paired"; for a model card."""
        inputs = self.inputs
        about = asdict(inputs) if isinstance(inputs, Degradation) else inputs.describe()
        return {**self.targets.describe(), "inputs": about, "paired": self.paired, "fingerprint": self.fingerprint}

    def require(self, n: int) -> None:
        """DataError if there are fewer than n targets, or unpaired inputs."""
        require(self, n)
        if isinstance(self.inputs, ImageData):
            require(self.inputs, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            As `ImageData.batch` of the targets, and "condition": float32 (B, *condition_shape) in [-1, 1].
        """
        batch = self.targets.batch(start, stop, seed=seed, device=device)
        if isinstance(self.inputs, Degradation):
            rng = Rng(seed_from(seed, "degradation"), start, stop - start, 0, stop - start, device)
            batch["condition"] = self.inputs(batch["x"], rng)
        else:  # equal numbers, sizes and seeds: the same order, crops and flips
            seed = seed if self.paired else seed_from(seed, "inputs")
            batch["condition"] = self.inputs.batch(start, stop, seed=seed, device=device)["x"]
        return batch

    def conditions(self, rows: Tensor) -> Tensor:
        """Inputs in the order of the source, without flips; holes and noise are those of their rows.

        Args:
            rows: int64 (B,), of the inputs.

        Returns:
            float32 (B, *condition_shape) in [-1, 1].
        """
        if isinstance(self.inputs, ImageData):
            return from_uint8(self.inputs.images[rows])
        parts = [
            self.inputs(from_uint8(self.images[row : row + 1]), Rng(seed_from(0, "degradation"), row, 1, 0, 1))
            for row in rows.tolist()
        ]
        return torch.cat(parts)


def load_pairs(
    inputs: str | Path | Iterable[dict[str, Any]],
    targets: str | Path | Iterable[dict[str, Any]] | None = None,
    *,
    target_column: str | None = None,
    degrade: Degrade | None = None,
    strength: float | None = None,
    paired: bool = True,
    **options: Any,
) -> PairedImages:
    """Load pairs of images, each decoded once and cached on disk: one of three ways to name the targets is given.

    Args:
        inputs: a source of images as for `load_images`; with `degrade` that of the targets.
        targets: another source. Of two folders the files of equal names belong together, whatever their suffixes; of
            other sources the rows of equal numbers.
        target_column: a second column of images of the same source; the inputs are of `image_column`.
        degrade: makes the inputs of the targets: "grey", "edges", "smaller", "masked" or "noised".
        strength: of that; see `Degradation`.
        paired: False for two sources of any numbers of images, without an order. Default True.
        **options: of `load_images`, for both sources, but for `streaming`.

    Raises:
        UsageError: none or several of the three ways; arguments out of range.
        DataError: data that cannot be read; a file without a partner, which is named; sizes that differ.

    Example:
        >>> pairs = load_pairs("emoji", image_column="noto", target_column="twemoji", max_samples=8)
        >>> pairs.condition_shape, pairs.shape, len(pairs)
        ((3, 32, 32), (3, 32, 32), 8)
    """
    ways = {"targets": targets, "target_column": target_column, "degrade": degrade}
    given = [name for name, value in ways.items() if value is not None]
    two_columns = set(given) == {"targets", "target_column"}
    if len(given) != 1 and not two_columns:
        raise UsageError(
            "Give one of targets (a second source), target_column (a second column) or degrade (a function of the "
            f"images); got {' and '.join(given) or 'none'}."
        )
    if strength is not None and degrade is None:
        raise UsageError(f"strength is of degrade; give that, or leave strength out. Got {strength}.")
    if options.pop("streaming", False):
        raise UsageError("streaming must be left out: pairs are decoded once and stored.")
    if degrade is not None:
        degradation = Degradation(degrade, strength)
        return PairedImages(load_images(inputs, **options), degradation, paired=paired)
    if paired and options.get("on_bad_image") == "skip":
        raise UsageError('on_bad_image must be "raise" for pairs: a bad image would leave its partner alone.')
    if targets is None:
        if not paired:
            raise UsageError("paired must be True for two columns of one source, whose rows belong together.")
        first = load_images(inputs, **options)
        if first.source["columns"]["image"] == target_column:
            raise UsageError(f'image_column must be another column than target_column; got "{target_column}" for both.')
        return PairedImages(load_images(inputs, **options | {"image_column": target_column}), first)
    if paired:
        _check_partners(inputs, targets, options)
    second = options | ({} if target_column is None else {"image_column": target_column})
    return PairedImages(load_images(targets, **second), load_images(inputs, **options), paired=paired)


def _check_partners(inputs: Any, targets: Any, options: dict[str, Any]) -> None:
    """DataError for a file of one folder without one of the same name in the other; other sources have no names."""
    names = ("split", "config_name", "revision", "cache_dir")
    chosen = {name: options[name] for name in names if name in options}
    chosen["split"], _ = parse_split(chosen.get("split", "train"))
    files = [_files(find_source(source, **chosen)) for source in (inputs, targets)]
    if files[0] is None or files[1] is None:
        return
    _check_names([name for name, _ in files[0]], [name for name, _ in files[1]], inputs, targets)
    if options.get("resolution") is not None:  # without, images of other sizes than the first are refused
        _check_proportions(dict(files[0]), dict(files[1]))


def _check_names(one: list[str], two: list[str], inputs: Any, targets: Any) -> None:
    ends = [(one, inputs), (two, targets)]
    for (own, here), (other, there) in (ends, ends[::-1]):
        if twice := [name for name, count in Counter(own).items() if count > 1]:
            raise DataError(f"{here} holds two images named {twice[0]}, with two suffixes; keep one of them.")
        if alone := sorted({*own} - {*other}):
            shown = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            raise DataError(
                f"{counted(len(alone), 'image')} of {here} must have a partner of the same name in {there}: {shown}. "
                "Add or remove images; suffixes may differ. Of images without pairs learns `latentia train cycle`."
            )
    if one != two:
        raise DataError(f"{inputs} and {targets} list their images in another order; give all files one suffix.")


def _check_proportions(inputs: dict[str, Path], targets: dict[str, Path]) -> None:
    """DataError for a pair whose images have other proportions, of at most 1000 pairs that are spread evenly.

    Each image would be cropped to a square at its own centre, and the two would show different parts.
    """
    names = [*inputs]
    for name in names[:: -(-len(names) // _MEASURED)]:
        (width, height), (wide, high) = (_size(files[name]) for files in (inputs, targets))
        if abs(width * high - wide * height) > max(width, height, wide, high):
            raise DataError(
                f"The two images of a pair must have the same proportions, up to a pixel; {name} is {width} x {height} "
                f"as an input and {wide} x {high} as a target. Crop them alike first."
            )


def _size(file: Path) -> tuple[int, int]:
    """Width and height of an image as it is seen, from its header; (1, 1) of one that loading will refuse."""
    try:
        with open_file(file, error=DataError) as opened, Image.open(opened) as image:
            turned = image.getexif().get(_ORIENTATION, 1) > 4
            return (image.height, image.width) if turned else image.size
    except (OSError, ValueError, SyntaxError):  # of Pillow, and DataError
        return 1, 1


def _files(source: Source) -> list[tuple[str, Path]] | None:
    """The images of a folder, (name without suffix, file), in its order; None of what is no folder of images."""
    if source.about.get("kind") != "image folder":
        return None
    rows: Callable[[Sequence[str]], Any] = source.open().rows
    return [(str(PurePosixPath(where).with_suffix("")), file) for where, (file,) in rows(["image"])]
