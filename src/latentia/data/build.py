"""Decode a source once: its rows become pixels, labels and captions."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latentia.data.columns import Labels, Table, check_caption
from latentia.data.decode import BadImage, Decoded, Fit, decode, decode_all, decoded_bytes, open_image
from latentia.errors import DataError
from latentia.files.logs import get_logger

logger = get_logger(__name__)

MAX_SKIPPED = 0.01  # share of bad images from which on something else is wrong
MAX_NAMED = 1000  # bad images in one error
_PART, _PART_BYTES = 64, 2**26  # images that a worker decodes at once, and bytes of their pixels unless one has more


@dataclass(frozen=True)
class Plan:
    """Options of `load_images` that change the pixels; part of the cache key."""

    size: tuple[int, int] | None
    channels: int | None
    crop: bool
    on_bad_image: Literal["raise", "skip"]
    label_names: list[str] | None


def choose_rows(count: int, part: Callable[[int], range], max_samples: int | None) -> Sequence[int]:
    """The rows of a part of the split, thinned evenly to `max_samples`."""
    rows = part(count)
    if max_samples is None or max_samples >= len(rows):
        return rows
    return [rows[i * len(rows) // max_samples] for i in range(max_samples)]


def build(
    table: Table,
    picked: dict[str, str],
    rows: Sequence[int],
    plan: Plan,
    write: Callable[[memoryview], Any],
    folder: Path,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Decode `rows` of `table` in order, `write` the pixels, and return what the JSON beside them holds.

    Raises:
        DataError: a bad image (or more than 1 % of them), images that differ in size or colour, a bad label or caption.
    """
    names = [picked[role] for role in ("image", "label", "caption") if role in picked]
    labels = None
    if "label" in picked:
        labels = Labels(picked["label"], plan.label_names or table.columns[picked["label"]].names)
    captions: list[str] | None = [] if "caption" in picked else None
    sizes: list[tuple[int, int]] = []
    places: list[str] = []
    bad: list[str] = []
    several: list[str] = []
    peak: int | None = None
    for where, values, decoded in _decode(table.rows(names), rows, plan, num_workers):
        if isinstance(decoded, BadImage):
            bad.append(f"{where} {decoded}")
            if plan.on_bad_image == "skip" and len(bad) > MAX_SKIPPED * len(rows):
                raise DataError(
                    f"{len(bad)} of the first {len(sizes) + len(bad)} images are bad, more than 1 % of "
                    f"{len(rows)}: {'; '.join(bad[:3])}. Repair or remove them."
                )
            if plan.on_bad_image == "raise" and len(bad) == 1:
                logger.warning("%s; the other images are read through, to name all that are bad", bad[0])
            if len(bad) == MAX_NAMED:
                break
            continue
        if isinstance(decoded, Exception):
            raise DataError(f"{where} {decoded}.") from decoded
        pixels = decoded.pixels
        if decoded.several:
            several.append(where)
        if decoded.peak is not None:
            peak = max(decoded.peak, peak or 0)
        if plan.crop and sizes and pixels.shape[1:] != sizes[0]:
            (height, width), (first_height, first_width) = pixels.shape[1:], sizes[0]
            raise DataError(
                f"{where} is {width} x {height}, but the first image is {first_width} x {first_height}. "
                "Give `resolution` to bring all images to one size."
            )
        rest = list(values[1:])
        if labels is not None:
            labels.add(rest.pop(0), where)
        if captions is not None:
            captions.append(check_caption(rest.pop(0), where, picked["caption"]))
        if not sizes:
            channels = pixels.shape[0]
            _check_room(folder, pixels.nbytes * len(rows))
        sizes.append((pixels.shape[1], pixels.shape[2]))
        places.append(where)
        write(np.ascontiguousarray(pixels).data)
    if bad and plan.on_bad_image == "raise":
        raise bad_images(bad, len(rows))
    if not sizes:
        raise DataError("there is no image in the rows asked for; look at split and max_samples.")
    numbers, classes = labels.numbered() if labels is not None else (None, None)
    return {
        "channels": channels,
        "sizes": [sizes[0]] if len(set(sizes)) == 1 else sizes,
        "count": len(sizes),
        "names": places,
        "columns": picked,
        "unused_columns": [name for name in table.columns if name not in names],
        "labels": numbers,
        "label_names": classes,
        "captions": captions,
        "skipped": bad,
        "several": several,
        "peak": peak,
    }


def bad_images(bad: Sequence[str], count: int | None = None) -> DataError:
    """The error that names bad images, each with its reason, of `count` images (None: a stream)."""
    shown, them = (bad[0], "it") if len(bad) == 1 else ("\n  ".join([f"{len(bad)} images are bad:", *bad]), "them")
    few = count is None or len(bad) <= MAX_SKIPPED * count  # else skipping is refused
    skip = ', or leave bad images out with on_bad_image="skip"' if few else ""
    return DataError(f"{shown}. Repair or remove {them}{skip}.")


def _check_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise DataError(
            f"the decoded images take about {wanted / 2**30:.1f} GiB, but {folder} has {free / 2**30:.1f} GiB left. "
            "Set LATENTIA_CACHE to a folder with room, or lower resolution or max_samples."
        )


def _decode(
    found: Iterator[tuple[str, tuple]], rows: Sequence[int], plan: Plan, num_workers: int
) -> Iterator[tuple[str, tuple, Decoded | Exception]]:
    """(where, values, pixels or error) of each wanted row. The first good image decides open questions."""
    fit: Fit | None = None
    grey_only = False
    with _Workers(num_workers) as workers:
        for where, values in _wanted(found, rows):
            if fit is None:
                try:
                    channels = plan.channels or channels_of(values[0])
                except BadImage:
                    pass  # it is reported below
                else:
                    fit, grey_only = Fit(channels, plan.size, plan.crop), plan.channels is None and channels == 1
            used = fit or Fit(plan.channels or 3, plan.size, plan.crop)
            yield from workers.add((where, values), used, grey_only)
        yield from workers.rest()


def _wanted(found: Iterator[tuple[str, tuple]], rows: Sequence[int]) -> Iterator[tuple[str, tuple]]:
    """The rows with these numbers, in ascending order.

    Raises:
        DataError: there are fewer.
    """
    wanted = iter(rows)
    following = next(wanted, None)
    for number, row in enumerate(found if rows else ()):
        if number == following:
            yield row
            following = next(wanted, None)
            if following is None:
                return
    if following is not None:
        raise DataError(f"the source ended before row {following}; has it changed while it was read?")


def channels_of(payload: Any) -> int:
    """1 for a grey image, else 3."""
    return 1 if open_image(payload).mode in ("L", "LA") else 3


class _Workers:
    """Decodes images in this process, one at a time, or in `count` others (threads would not help: Pillow decodes under
    Python's lock), in parts bounded by the bytes of their pixels."""

    def __init__(self, count: int):
        self.count = count
        self.pool: ProcessPoolExecutor | None = None
        self.part: list[tuple[str, tuple]] = []
        self.bytes, self.way = 0, (Fit(3), False)
        self.running: deque[tuple[list[tuple[str, tuple]], Future]] = deque()

    def __enter__(self):
        if self.count:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_end_with_parent)
        return self

    def __exit__(self, *error):
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def add(
        self, row: tuple[str, tuple], fit: Fit, grey_only: bool
    ) -> Iterator[tuple[str, tuple, Decoded | Exception]]:
        """Takes a row, whose image is its first value, and gives those that are decoded, in order."""
        if self.pool is None:
            yield *row, decode(row[1][0], fit, grey_only)
            return
        size = decoded_bytes(row[1][0], fit.size if fit.crop else None)
        size = _PART_BYTES if size is None else size
        if self.part and (self.way != (fit, grey_only) or self.bytes + size > _PART_BYTES):
            yield from self._submit()
        self.part.append(row)
        self.bytes, self.way = self.bytes + size, (fit, grey_only)
        if len(self.part) == _PART:
            yield from self._submit()

    def rest(self) -> Iterator[tuple[str, tuple, Decoded | Exception]]:
        """Those that are left."""
        if self.part:
            yield from self._submit()
        while self.running:
            yield from self._oldest()

    def _submit(self) -> Iterator[tuple[str, tuple, Decoded | Exception]]:
        if len(self.running) == 2 * self.count:
            yield from self._oldest()
        payloads = [values[0] for _, values in self.part]
        with _explained(), _without_interrupts():
            job = self.pool.submit(decode_all, payloads, *self.way)  # type: ignore[union-attr]  # there are workers
        self.running.append((self.part, job))
        self.part, self.bytes = [], 0

    def _oldest(self) -> Iterator[tuple[str, tuple, Decoded | Exception]]:
        part, job = self.running.popleft()
        with _explained():
            found = job.result()
        yield from ((where, values, out) for (where, values), out in zip(part, found))


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep back Ctrl-C while processes are started, which inherit that: it is for the one that ends them.

    A terminal sends it to all of them, and one that is importing would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this worker when the process that started it ends, also by a signal that leaves it no time to say so."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise DataError(
            "a decoding process ended unexpectedly (killed, out of memory, or started by a script that lacks "
            '`if __name__ == "__main__":`). Try fewer num_workers; 0 decodes in this process.'
        ) from None
