"""Data sets that need no network: scikit-learn's digits, the emoji that ship with the package, and rendered factors."""

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from latentia.data.columns import Column, Source, Table
from latentia.errors import MissingSplitError, did_you_mean

# Each with its splits.
BUILTIN = {"digits": ("train",), "emoji": ("train", "test"), "factors": ("train", "test")}
_FACTORS = {"train": slice(0, 10_000), "test": slice(10_000, 12_000)}  # rows of a fixed order of all images


def builtin_source(name: str, split: str, parquet_source: Callable[..., Source]) -> Source:
    """The source "digits", "emoji" or "factors"."""
    if split not in BUILTIN[name]:
        raise MissingSplitError(
            f'"{name}" has no split "{split}".{did_you_mean(split, BUILTIN[name])} It has: {", ".join(BUILTIN[name])}; '
            'a part of one is written as in `datasets`: "train[:80%]".'
        )
    if name == "digits":
        about = {"kind": "built in", "name": "digits", "split": split, "license": "cc-by-4.0"}
        return Source("digits", about, _digits, "digits")
    if name == "factors":
        about = {"kind": "built in", "name": "factors", "split": split, "license": "apache-2.0"}
        return Source("factors", about, lambda: _factors(split), ["factors", split, 1])
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


def _factors(split: str) -> Table:
    """10,000 (train) or 2,000 (test) of the images of `Factors(32)`, none twice, with their factors as columns."""
    from latentia.data.factors import COLOURS, SHAPES, Factors
    from latentia.data.order import indices

    factors = Factors(32)
    part = _FACTORS[split]
    chosen = factors.indices_of(indices(part.start, part.stop, len(factors), seed=0))
    classes = {"shape": list(SHAPES), "colour": list(COLOURS)}
    columns = {name: Column("integer", classes.get(name, [str(i) for i in range(size)]))
               for name, size in zip(factors.names, factors.sizes)}  # fmt: skip

    def rows(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        for number, row in enumerate(chosen.split(1)):
            values = dict(zip(factors.names, row[0].tolist()))
            if "text" in names:
                values["text"] = f"a {classes['colour'][values['colour']]} {classes['shape'][values['shape']]}"
            if "image" in names:
                values["image"] = factors.render(row)[0].permute(1, 2, 0).numpy()
            yield f"image {number}", tuple(values[name] for name in names)

    return Table({"image": Column("image"), **columns, "text": Column("text")}, rows, len(chosen), {"label": "shape"})
