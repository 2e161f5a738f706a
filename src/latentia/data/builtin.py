"""Data sets that need no network: scikit-learn's digits and the emoji that ship with the package."""

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean
from .columns import Column, Source, Table

# Each with its splits.
BUILTIN = {"digits": ("train",), "emoji": ("train", "test")}


def builtin_source(name: str, split: str, parquet_source: Callable[..., Source]) -> Source:
    """The source "digits" or "emoji"."""
    if split not in BUILTIN[name]:
        raise DataError(
            f'"{name}" has no split "{split}".{did_you_mean(split, BUILTIN[name])} It has: {", ".join(BUILTIN[name])}; '
            'a part of one is written as in `datasets`: "train[:80%]".'
        )
    if name == "digits":
        about = {"kind": "built in", "name": "digits", "split": split, "license": "cc-by-4.0"}
        return Source("digits", about, _digits, "digits")
    path = Path(str(files("latentia.data") / "embedded" / f"emoji-{split}.parquet"))
    about = {"kind": "built in", "name": "emoji", "split": split, "license": "apache-2.0 (noto), cc-by-4.0 (twemoji)"}
    return parquet_source("emoji", [path], split, about, image="noto", label="category", caption="text")


def _digits() -> Table:
    """UCI optical digits (1797, 8 x 8). The values v = 0..16 become floor((255 v + 8) / 16), so 16 is 255 (white)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    values = {"image": images, "label": digits.target.tolist()}

    def rows(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        for i, row in enumerate(zip(*(values[name] for name in names))):
            yield f"digit {i}", row

    return Table({"image": Column("image"), "label": Column("integer", [str(i) for i in range(10)])}, rows, len(images))
