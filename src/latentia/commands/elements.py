"""Elements of data that a command scores one by one: images, rows, texts, series or sounds, with names and labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from latentia.commands.modalities import MODALITIES
from latentia.commands.reference import CONFIG, find_reference, run_arguments
from latentia.commands.signals import real_signals, run_of
from latentia.commands.tables import held_out_rows, name_of_table
from latentia.data import ImageData
from latentia.data.loading import parse_split
from latentia.data.mixed import MixedTable, column_texts, rows_like
from latentia.data.texts import SPLITS, load_texts
from latentia.errors import UsageError
from latentia.files.reading import user_path
from latentia.functional.pixels import from_uint8
from latentia.runs.command_line import read_config
from latentia.runs.start import load_data


@dataclass(frozen=True)
class Elements:
    """Images, rows, texts, series or sounds.

    Args:
        inputs: uint8 images (N, C, H, W), a list of texts, or a `MixedTable`, `Series` or `Sounds`.
        names: where each is found, N.
        labels: the name of the class of each, N, or None.
        data: name of the data.
    """

    inputs: Any
    names: Sequence[str]
    labels: Sequence[str] | None
    data: str

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> "Elements":
        """Those of these indices."""
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        if isinstance(self.inputs, list):
            inputs: Any = [self.inputs[i] for i in rows]
        else:
            inputs = self.inputs[[*rows]] if isinstance(self.inputs, Tensor) else self.inputs.take(np.asarray(rows))
        return Elements(inputs, [self.names[i] for i in rows], labels, self.data)

    def thin(self, most: int | None) -> "Elements":
        """At most so many, spread evenly; all for None."""
        if most is None or most >= len(self):
            return self
        return self.take([i * len(self) // most for i in range(most)])

    def batch(self, start: int, stop: int) -> Any:
        """Some of them as a pipeline takes them."""
        part = self.take(range(start, min(stop, len(self)))).inputs
        return from_uint8(part) if isinstance(part, Tensor) else part


@dataclass(frozen=True)
class Reader:
    """How the elements of one modality are read.

    Args:
        settings: those that it takes; None for the flags of images.
        read: (pipeline, source, data, settings) -> elements; data None for those that the source was trained on.
        held_out: source -> elements of the training data that it was not trained on; None if there are none.
    """

    settings: tuple[str, ...] | None
    read: Callable[[Any, Any, Any, dict[str, Any]], Elements]
    held_out: Callable[[Any], Elements | None]


def read_elements(pipe: Any, source: Any, data: Any, settings: Mapping[str, Any]) -> Elements:
    """The elements that `data` names, as the model of a pipeline takes them.

    Args:
        pipe: the pipeline.
        source: its folder, which says how its training data were read; or any other name.
        data: name, file or folder; of rows also a DataFrame, of texts a list of them; None for the training data.
        settings: how the data are read.

    Raises:
        UsageError: a pipeline of another modality, a setting that it does not take, or no data.
        DataError: data that cannot be read, or of other columns than the model knows.
    """
    reader = reader_of(pipe)
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given if reader.settings is not None else ("text_column",):
        if name in given and name not in (reader.settings or ()):
            raise UsageError(f"{name} must be left out: {type(pipe).__name__} does not take it; got {given[name]!r}.")
    return reader.read(pipe, source, data, given)


def reader_of(pipe: Any) -> Reader:
    """That of the modality of a pipeline.

    Raises:
        UsageError: there is none.
    """
    kind = getattr(pipe, "modality", "image")
    if kind not in READERS:
        raise UsageError(f"source must be a model of {', '.join(READERS)}; {type(pipe).__name__} is of {kind}.")
    return READERS[kind]


def _missing(source: Any, what: str) -> UsageError:
    return UsageError(f"data is missing: {source} is no folder of a run, with a {CONFIG} that names {what}.")


def _images(pipe: Any, source: Any, data: Any, settings: dict[str, Any]) -> Elements:
    return _of_images(find_reference(data, [source], settings).images)


def _of_images(found: ImageData) -> Elements:
    labels = None
    if found.labels is not None and found.label_names is not None:
        labels = [found.label_names[i] for i in found.labels.tolist()]
    names = found.names or [f"image {i}" for i in range(len(found))]
    return Elements(found.images, names, labels, str(found.source.get("name", found.source["kind"])))


def _held_out_images(source: Any) -> Elements | None:
    """The test images; or, where a part of a split was trained on, the rest of it."""
    arguments = run_arguments(source)
    if arguments is None:
        return None
    reference = find_reference(None, [source], {})
    if reference.test is not None:
        return _of_images(reference.test)
    split, part = parse_split(arguments.split)
    if reference.pairs is not None or split == arguments.split:
        return None
    everything = _of_images(load_data(replace(arguments, split=split, max_train_samples=None)))
    rest = sorted({*range(len(everything))} - {*part(len(everything))})
    return everything.take(rest) if rest else None


def _rows(pipe: Any, source: Any, data: Any, settings: dict[str, Any]) -> Elements:
    opened = name_of_table(source) if data is None else data
    if opened is None:
        raise _missing(source, "a table")
    label = settings.get("label_column")
    labels = None if label is None else column_texts(opened, label)
    return _of_rows(rows_like(pipe.columns, opened), labels)


def _of_rows(table: MixedTable, labels: list[str] | None = None) -> Elements:
    return Elements(table, [f"row {i}" for i in range(len(table))], labels, str(table.source["name"]))


def _held_out_rows(source: Any) -> Elements | None:
    found = held_out_rows(source)
    return None if found is None else _of_rows(found)


def _texts(pipe: Any, source: Any, data: Any, settings: dict[str, Any]) -> Elements:
    if isinstance(data, Sequence) and not isinstance(data, str):
        return Elements([*data], [f"text {i}" for i in range(len(data))], None, "texts")
    name, column = _text_of(source) if data is None else (data, None)
    if name is None:
        raise _missing(source, "a text")
    texts, names, about = load_texts(name, text_column=settings.get("text_column", column))
    return Elements(texts, names, None, about["name"])


def _held_out_texts(source: Any) -> Elements | None:
    """Those that lie in the test part, by position."""
    name, column = _text_of(source)
    if name is None:
        return None
    texts, names, about = load_texts(name, text_column=column)
    begins = np.cumsum([0, *map(len, texts)])
    rows = [i for i in range(len(texts)) if begins[i] >= SPLITS["test"][0] * begins[-1]]
    return Elements(texts, names, None, about["name"]).take(rows) if rows else None


def _text_of(source: Any) -> tuple[str | None, str | None]:
    """The text that a run was trained on, and its column."""
    path = user_path(source) / CONFIG if isinstance(source, str) else None
    found = read_config(path) if path is not None and path.is_file() else {}
    return found.get("train_data_dir") or found.get("dataset_name"), found.get("text_column")


def _signals(modality: str) -> Reader:
    """The reader of time series or sounds."""
    how = MODALITIES[modality]

    def elements(signals: Any) -> Elements:
        labels = None
        if signals.labels is not None and signals.label_names is not None:
            labels = [signals.label_names[i] for i in signals.labels]
        names = [f"{modality} {i}" for i in range(len(signals))]
        return Elements(signals, names, labels, str(signals.source["name"]))

    def read(pipe: Any, source: Any, data: Any, settings: dict[str, Any]) -> Elements:
        return elements(real_signals(how, source, data, settings)[0])

    def held_out(source: Any) -> Elements | None:
        run = run_of(how, source)
        rest = None if run is None else how.from_flags(run).parts(run.held_out_share)[1]
        return elements(rest) if rest is not None and len(rest) else None

    return Reader(tuple(how.settings), read, held_out)


READERS = {
    "image": Reader(None, _images, _held_out_images),
    "table": Reader(("label_column",), _rows, _held_out_rows),
    "text": Reader(("text_column",), _texts, _held_out_texts),
    **{modality: _signals(modality) for modality in MODALITIES},
}
