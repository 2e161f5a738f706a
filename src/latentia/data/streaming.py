"""Streaming: images that are decoded as they are asked for, for data sets that do not fit on the disk."""

import random
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from latentia.data.base import description
from latentia.data.build import MAX_SKIPPED, Plan, bad_images, channels_of
from latentia.data.columns import Labels, Source, check_caption, pick
from latentia.data.decode import BadImage, Fit, decode
from latentia.data.identity import stamps
from latentia.data.images import normalize
from latentia.data.order import check_positions, flip_mask, uniform
from latentia.errors import DataError, UsageError, counted
from latentia.files.cache import key_of
from latentia.files.logs import get_logger
from latentia.rng import seed_from

logger = get_logger(__name__)

RETRIES = 3  # of a source that fails, with PAUSE, 2 PAUSE, 4 PAUSE seconds between
PAUSE = 1.0
SHUFFLE_BUFFER = 1024  # undecoded rows
_LOOK_AHEAD = 100  # rows tried in place of a bad one

Row = tuple[str, tuple[Any, ...]]


class StreamedImages:
    """A `Dataset` of images from a source without random access; made by `load_images(..., streaming=True)`.

    Position p of the stream is the p-th row that a shuffle buffer of 1024 rows, keyed by (seed, epoch), lets out; when
    the source ends it is read again as the next epoch. Batches are asked for in order of position. A jump forward
    passes rows without decoding them, so every process can take its own slice of a batch and a resumed run its place; a
    step back reads the source from the start of the epoch-0 stream.

    What resuming promises is at-least-once: the position is exact while the source gives the same rows in the same
    order, and a source that changed in between gives some images twice or not at all. With `on_bad_image="skip"` a bad
    image's position is taken by the next good row, which then appears twice, so that positions never shift.

    Example:
        >>> from latentia.data import load_images
        >>> stream = load_images("digits", streaming=True)
        >>> stream.batch(0, 4)["x"].shape
        torch.Size([4, 1, 8, 8])
    """

    modality = "image"
    endless = True
    labels = captions = None  # known batch by batch

    def __init__(
        self,
        source: Source,
        plan: Plan,
        asked: tuple[str | None, str | None, str | None],
        random_flip: bool = False,
        max_samples: int | None = None,
    ):
        self._source, self._plan, self._max_samples = source, plan, max_samples
        self.random_flip = random_flip
        self.skipped: list[str] = []
        self.left_out = source.left_out
        self._table = source.open()
        self._picked = pick(self._table, source.name, *asked)
        self.has_captions = "caption" in self._picked
        self._names = [self._picked[role] for role in ("image", "label", "caption") if role in self._picked]
        self.label_names: list[str] | None = None
        if "label" in self._picked:
            self.label_names = plan.label_names or self._table.columns[self._picked["label"]].names
            if self.label_names is None and self._table.columns[self._picked["label"]].kind == "text":
                raise UsageError(
                    f'label column "{self._picked["label"]}" of {source.name} holds text, and a stream cannot know all '
                    'of its classes beforehand. Give label_names, or label_column="" to do without labels.'
                )
        self._seed: int | None = None
        self._row = 0  # rows taken from the shuffled stream so far
        self._rows: Iterator[Row] = iter(())
        self._ahead: deque[Row] = deque()
        self._decoded = 0
        self._look_at_first()
        self.source = {**source.about, "columns": self._picked, "streaming": True}

    def _look_at_first(self) -> None:
        """The shape and the channels, from the first good image of the source."""
        self._fit, self._grey_only = Fit(3), False
        for where, values in self._unshuffled():
            try:
                channels = self._plan.channels or channels_of(values[0])
                fit = Fit(channels, self._plan.size, crop=True)
                decoded = decode(values[0], fit, grey_only=False)
                if isinstance(decoded, Exception):
                    raise decoded
                self.shape: tuple[int, int, int] = (channels, *decoded.pixels.shape[1:])  # type: ignore[assignment]
                self._fit = Fit(channels, self._plan.size, self._plan.crop)
                self._grey_only = self._plan.channels is None and channels == 1
                return
            except BadImage as error:
                if self._plan.on_bad_image == "raise":
                    raise bad_images([f"{where} {error}"]) from None
        raise DataError(f"{self._source.name} gives no image.")

    def __len__(self) -> int:
        raise UsageError(
            "a stream has no length; say how long to train with max_train_steps, or load it without streaming."
        )

    def __repr__(self) -> str:
        return f"StreamedImages({self._source.name}: images of shape {self.shape})"

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of where the images come from; their content is not known beforehand."""
        about = {key: str(value) for key, value in self.source.items()}
        return key_of([self._source.key, stamps(self._source.files), about, self._max_samples])

    def describe(self) -> dict[str, Any]:
        """Source, shape of the images, classes, fingerprint; for a model card."""
        return {
            **self.source,
            **description(self),
            "random_flip": self.random_flip,
            "skipped": len(self.skipped),
            "left_out": self.left_out.counts(),
        }

    def require(self, n: int) -> None:
        """DataError if the source ends before it gave n rows."""
        got = sum(1 for _, _ in zip(range(n), self._unshuffled()))
        if got < n:
            raise DataError(f"{self._source.name} gives {counted(got, 'image')}, fewer than one global batch of {n}.")

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`; fastest in order of position."""
        check_positions(start, stop)
        if seed != self._seed or start < self._row:
            self._seed, self._row, self._ahead = seed, 0, deque()
            self._rows = self._shuffled(seed)
        try:
            return self._batch(start, stop, seed, torch.device(device))
        except BaseException:
            self._seed = None  # the generator below ended with the error; a next call starts anew
            raise

    def _batch(self, start: int, stop: int, seed: int, device: torch.device) -> dict[str, Any]:
        places = list(zip(*(uniform(stream, start, stop, seed).tolist() for stream in ("crop y", "crop x"))))
        while self._row < start:
            self._take()
        pixels, labels, captions = [], [], []
        for y, x in places:
            image, values = self._good()
            _, height, width = self.shape
            top, left = int(y * (image.shape[1] - height + 1)), int(x * (image.shape[2] - width + 1))
            pixels.append(image[:, top : top + height, left : left + width])
            labels.append(values.get("label", 0))
            captions.append(values.get("caption", ""))
        stacked = np.stack(pixels) if pixels else np.empty((0, *self.shape), np.uint8)
        flips = flip_mask(start, stop, seed) if self.random_flip else None
        out: dict[str, Any] = {"x": normalize(stacked, flips, device)}
        if "label" in self._picked:
            out["labels"] = torch.tensor(labels, dtype=torch.int64, device=device)
        if "caption" in self._picked:
            out["captions"] = captions
        return out

    def _peek(self, ahead: int) -> Row:
        while len(self._ahead) <= ahead:
            self._ahead.append(next(self._rows))
        return self._ahead[ahead]

    def _take(self) -> None:
        self._peek(0)
        self._ahead.popleft()
        self._row += 1

    def _good(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The image and values at the next position, those of the next good row if its own is bad."""
        for ahead in range(_LOOK_AHEAD):
            where, values = self._peek(ahead)
            decoded = decode(values[0], self._fit, self._grey_only)
            if isinstance(decoded, BadImage):
                self._skip(where, decoded, count=ahead == 0)
                continue
            if isinstance(decoded, Exception):
                raise DataError(f"{where} {decoded}.") from decoded
            image = decoded.pixels
            if self._fit.crop and image.shape != self.shape:
                raise DataError(
                    f"{where} is {image.shape[2]} x {image.shape[1]}, but the first image is "
                    f"{self.shape[2]} x {self.shape[1]}. Give `resolution` to bring all images to one size."
                )
            found = self._check(where, values[1:])
            self._take()
            self._decoded += 1
            return image, found
        raise DataError(f"{_LOOK_AHEAD} bad images in a row in {self._source.name}: {self.skipped[-1]}.")

    def _check(self, where: str, values: tuple[Any, ...]) -> dict[str, Any]:
        rest, found = list(values), {}
        if "label" in self._picked:
            found["label"] = Labels(self._picked["label"], self.label_names).add(rest.pop(0), where)
            if isinstance(found["label"], str):
                raise DataError(f'{where}: label column "{self._picked["label"]}" mixes integers and text.')
        if "caption" in self._picked:
            found["caption"] = check_caption(rest.pop(0), where, self._picked["caption"])
        return found

    def _skip(self, where: str, error: BadImage, count: bool) -> None:
        if self._plan.on_bad_image == "raise":
            raise bad_images([f"{where} {error}"])
        if not count:
            return
        self.skipped.append(f"{where} {error}")
        self.left_out.add("bad image", "skipped, as on_bad_image says", self.skipped[-1])
        self._decoded += 1
        if len(self.skipped) > MAX_SKIPPED * max(self._decoded, 1000):
            shown = "; ".join(self.skipped[-3:])
            raise DataError(f"{len(self.skipped)} of {self._decoded} images are bad, more than 1 %: {shown}.")

    def _unshuffled(self) -> Iterator[Row]:
        """The rows once through. A source that fails is opened again and read up to where it was."""
        done, failures = 0, 0
        while True:
            number = -1
            try:
                for number, row in enumerate(self._table.rows(self._names)):
                    if self._max_samples is not None and number >= self._max_samples:
                        return
                    if number >= done:
                        done, failures = number + 1, 0
                        yield row
                if number + 1 < done:
                    raise DataError(f"{self._source.name} gave {done} rows and, opened again, only {number + 1}.")
                return
            except DataError:
                raise
            except Exception as error:  # what a source raises is its own affair: a socket, a decoder, a parser
                failures += 1
                reason = str(error) or type(error).__name__
                if failures > RETRIES:
                    raise DataError(
                        f"{self._source.name} failed {failures} times after row {done}: {reason}. "
                        "The run can be resumed from its last checkpoint when the source answers again."
                    ) from error
                logger.warning("%s failed after row %d, trying again: %s", self._source.name, done, reason)
                time.sleep(PAUSE * 2 ** (failures - 1))

    def _shuffled(self, seed: int) -> Iterator[Row]:
        """The endless stream: each epoch goes through a buffer from which a random row leaves for each that enters."""
        epoch = 0
        while True:
            rng = random.Random(seed_from(seed, "stream order", epoch))
            buffer: list[Row] = []
            empty = True
            for row in self._unshuffled():
                empty = False
                if len(buffer) < SHUFFLE_BUFFER:
                    buffer.append(row)
                    continue
                place = rng.randrange(SHUFFLE_BUFFER)
                buffer[place], row = row, buffer[place]
                yield row
            if empty:
                raise DataError(
                    f"{self._source.name} gives no row in epoch {epoch}; its __iter__ must start anew each time."
                )
            rng.shuffle(buffer)
            yield from buffer
            epoch += 1
