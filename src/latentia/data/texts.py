"""`load_text`: a text file, a folder of them or a column of a table as windows of characters, with its vocabulary."""

import bz2
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentia.data.base import description, require
from latentia.data.loading import parse_split
from latentia.data.names import is_unicode
from latentia.data.order import check_positions, indices, uniform
from latentia.data.parquet import open_parquet
from latentia.errors import DataError, MissingSplitError, Size, UsageError, check_arguments, did_you_mean
from latentia.files.cache import key_of
from latentia.files.reading import check_file, read_bytes, read_text, user_path
from latentia.functional.settings import check_types

TEXTS = {"moby_dick": "Moby-Dick by Herman Melville (1851), public domain, 1.19 million characters"}
SPLITS = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0), "all": (0.0, 1.0)}  # by position
TABLES = (".csv", ".tsv", ".parquet")
BETWEEN = "\n\n"  # files or rows: an empty line
MAX_CHARACTERS = 2**28


class TextData:
    """A `Dataset` of the windows of a text, indices of characters; made by [`load_text`], or directly.

    An epoch has as many windows as fit into the text side by side. Element i begins at a random character of the i-th
    of as many equal parts, anew at each position of the stream, so that all beginnings are equally likely.

    Args:
        text: at least `context_length` characters.
        context_length: characters of a window, L.
        vocabulary: the characters that have an index, their order; `None` (default): those of `text`, sorted.
        unknown_character: stands for characters that the vocabulary does not hold; `None` (default): they are an error.
        source: where the text comes from, for the model card.

    Attributes:
        tokens: int64 (n,), the indices of the whole text.

    Raises:
        UsageError: a vocabulary that is empty, or holds a character twice.
        DataError: a text shorter than a window, or with characters that the vocabulary does not hold.

    Example:
        >>> data = TextData("to be or not to be", 4)
        >>> data.vocabulary, data.batch(0, 3)["x"].shape
        (' benort', torch.Size([3, 4]))
        >>> decode_text(data.tokens[:5], data.vocabulary)
        'to be'
    """

    modality = "text window"
    endless = False
    labels: None = None
    label_names: list[str] | None = None
    captions: None = None
    has_captions = False

    @check_arguments
    def __init__(
        self,
        text: str,
        context_length: Size = 256,
        vocabulary: str | None = None,
        unknown_character: str | None = None,
        source: dict[str, Any] | None = None,
    ):
        self.source: dict[str, Any] = dict(source or {"kind": "text"})
        name = self.source.get("name", "text")
        if "split" in self.source:
            name = f'part "{self.source["split"]}" of {name}'
        if len(text) < context_length:
            raise DataError(
                f"{name} has {len(text)} characters, fewer than one window of context_length={context_length}. Lower "
                f"context_length to {max(1, len(text))} at most, or add text."
            )
        self.vocabulary = find_vocabulary(text, unknown_character) if vocabulary is None else vocabulary
        self.unknown_character = unknown_character
        self.tokens = encode_text(text, self.vocabulary, unknown_character, name=name)
        self.shape = (context_length,)

    def __len__(self) -> int:
        return len(self.tokens) // self.shape[0]

    def __repr__(self) -> str:
        name = self.source.get("name", self.source["kind"])
        return (
            f"TextData({name}: {len(self.tokens)} characters of {len(self.vocabulary)}, in windows of {self.shape[0]})"
        )

    @property
    def text(self) -> str:
        """The text, as its tokens give it."""
        return decode_text(self.tokens, self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the content: tokens, vocabulary and length of the windows."""
        digest = hashlib.blake2b(self.tokens.numpy().data, digest_size=32).hexdigest()
        return key_of(["text", digest, self.vocabulary, self.shape[0]])

    def describe(self) -> dict[str, Any]:
        """Source, characters, vocabulary, fingerprint; for a model card."""
        return {
            **self.source,
            "characters": len(self.tokens),
            **description(self),
            "vocabulary": self.vocabulary,
            "unknown_character": self.unknown_character,
        }

    def require(self, n: int) -> None:
        """DataError if there are fewer than n windows, one global batch over all processes and accumulation."""
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": float32 (B, L)}, whole numbers: the index of each character.
        """
        check_positions(start, stop)
        length = self.shape[0]
        places = indices(start, stop, len(self), seed).numpy() + uniform("window", start, stop, seed)
        begins = np.floor(places * (len(self.tokens) - length + 1) / len(self)).astype(np.int64)
        windows = self.tokens[torch.from_numpy(begins)[:, None] + torch.arange(length)]
        return {"x": windows.float().to(device, non_blocking=True)}


@check_types
def load_text(
    source: str | Path,
    context_length: int = 256,
    *,
    split: str = "train",
    text_column: str | None = None,
    vocabulary: str | None = None,
    unknown_character: str | None = None,
) -> TextData:
    """Load a text as windows of characters.

    The parts are by position: "train" is the first 90 % of the characters, "validation" the next 5 %, "test" the last
    5 %; "all" is everything. Several files or rows follow each other with an empty line between them.

    Args:
        source: a text file in UTF-8; a folder, whose .txt files are read in the order of their paths; a .csv, .tsv or
            .parquet file; or "moby_dick", which comes with the package. What exists is a path first.
        context_length: characters of a window. Default 256.
        split: "train" (default), "validation", "test" or "all", or a part of one as "train[:10%]".
        text_column: of a table; default "text" if there is such a column.
        vocabulary: of the pipeline that the text is for; `None` (default): the characters of the training part, sorted.
        unknown_character: as in [`TextData`].

    Raises:
        UsageError: no such source, split or column, or an unknown character that is not one character.
        DataError: a file that cannot be read or is no text, no text at all, or as in [`TextData`].

    Example:
        >>> data = load_text("moby_dick", 64, split="test")
        >>> data, data.text[:9]
        (TextData(moby_dick: 59516 characters of 83, in windows of 64), 'ecy, gree')
    """
    part, rows = parse_split(split)
    if part not in SPLITS:
        raise MissingSplitError(f'{source} has no split "{part}".{did_you_mean(part, SPLITS)} It has: {_SPLITS_SAID}.')
    pieces, about = _read(source, text_column)
    text = BETWEEN.join(text for _, text in pieces)
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{source} has {len(text)} characters; at most {MAX_CHARACTERS} are read. Give a part of it.")
    if "\0" in text:
        raise DataError(f"{source} holds a zero character, so it is no text in UTF-8. Convert or repair it.")
    if len({*text}) < 2:
        raise DataError(f"{source} must hold text of at least two different characters; it holds {text[:1]!r} alone.")
    if vocabulary is None:
        vocabulary = find_vocabulary(_part(text, "train"), unknown_character)
    chosen = _part(text, part)
    wanted = rows(len(chosen))
    about |= {"split": split}
    return TextData(chosen[wanted.start : wanted.stop], context_length, vocabulary, unknown_character, about)


def load_texts(source: str | Path, *, text_column: str | None = None) -> tuple[list[str], list[str], dict[str, Any]]:
    """Load texts one by one: the lines of a file, the files of a folder, or the rows of a column.

    Args:
        source: as for [`load_text`]. Lines of blanks alone are left out.
        text_column: of a table; default "text" if there is such a column.

    Returns:
        The texts; the name of each, such as "line 3"; facts about the source.

    Raises:
        UsageError, DataError: as in [`load_text`].

    Example:
        >>> texts, names, about = load_texts("moby_dick")
        >>> texts[0], names[0]
        ('CHAPTER 1. Loomings.', 'line 1')
    """
    pieces, about = _read(source, text_column)
    if about["kind"] in ("built in", "text file"):
        lines = pieces[0][1].splitlines()
        pieces = [(f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pieces:
        raise DataError(f"{source} holds no text.")
    return [text for _, text in pieces], [name for name, _ in pieces], about


def find_vocabulary(text: str, unknown_character: str | None = None) -> str:
    """The characters of a text, sorted, and the one that stands for all others.

    Example:
        >>> find_vocabulary("banana", "?")
        '?abn'
    """
    if unknown_character is not None and len(unknown_character) != 1:
        raise UsageError(f"unknown_character must be one character; got {unknown_character!r}.")
    return "".join(sorted({*text, *(unknown_character or "")}))


def encode_text(text: str, vocabulary: str, unknown_character: str | None = None, *, name: str = "text") -> Tensor:
    """The index of each character in a vocabulary, int64 (n,).

    Args:
        text: to encode.
        vocabulary: the characters in their order, none twice.
        unknown_character: one of them, which stands for characters that it does not hold; `None` (default): none does.
        name: of the text in errors.

    Raises:
        UsageError: a vocabulary that is empty, holds a character twice or lacks the unknown one.
        DataError: a character that the vocabulary does not hold; it names the first, its line and its column.

    Example:
        >>> encode_text("abba", "abc").tolist()
        [0, 1, 1, 0]
        >>> encode_text("ab\\nxa", "ab\\n")
        Traceback (most recent call last):
        latentia.errors.DataError: text holds 'x' (U+0078) in line 2, column 1, which is not among the 3 characters ...
    """
    known = _code_points(vocabulary)
    if not len(known) or len(np.unique(known)) < len(known):
        raise UsageError(f"vocabulary must hold at least one character and none twice; got {vocabulary!r:.200}.")
    if unknown_character is not None and (len(unknown_character) != 1 or unknown_character not in vocabulary):
        raise UsageError(f"unknown_character must be one character of the vocabulary; got {unknown_character!r}.")
    order = np.argsort(known)
    points = _code_points(text)
    places = np.minimum(np.searchsorted(known, points, sorter=order), len(known) - 1)
    tokens = order[places]
    wrong = known[tokens] != points
    if wrong.any():
        if unknown_character is None:
            raise _unknown(text, int(np.argmax(wrong)), vocabulary, name)
        tokens = np.where(wrong, vocabulary.index(unknown_character), tokens)
    return torch.from_numpy(tokens.astype(np.int64))


def decode_text(tokens: Tensor, vocabulary: str) -> str:
    """The text of indices of characters, the inverse of [`encode_text`].

    Example:
        >>> decode_text(torch.tensor([0, 1, 1, 0]), "abc")
        'abba'
    """
    return "".join(vocabulary[i] for i in tokens.tolist())


_SPLITS_SAID = ", ".join(f"{name} ({100 * a:.0f} to {100 * b:.0f} %)" for name, (a, b) in SPLITS.items())


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _unknown(text: str, place: int, vocabulary: str, name: str) -> DataError:
    character, before = text[place], text[:place]
    line, column = before.count("\n") + 1, place - before.rfind("\n")
    return DataError(
        f"{name} holds {character!a} (U+{ord(character):04X}) in line {line}, column {column}, which is not among the "
        f"{len(vocabulary)} characters of the vocabulary, those of the training part. Remove or replace it, or train "
        "with unknown_character, which stands for such characters."
    )


def _part(text: str, name: str) -> str:
    first, last = SPLITS[name]
    return text[round(first * len(text)) : round(last * len(text))]


def _read(source: str | Path, text_column: str | None) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The texts of a source, each with its name, and facts about the source for the model card."""
    path, about = user_path(source), dict[str, Any]()
    if not path.exists() and str(source) in TEXTS:
        packed = files("latentia.data") / "embedded" / f"{source}.txt.bz2"
        about = {"kind": "built in", "name": str(source), "license": "cc0-1.0"}
        text = bz2.decompress(read_bytes(str(packed), error=DataError)).decode()
        pieces, table = [(str(source), text)], False
    elif path.is_dir():
        found = sorted(file for file in path.rglob("*.txt") if not file.name.startswith("."))
        if not found:
            raise DataError(f"{path} holds no .txt file. Give a folder of text files, or one file.")
        about = {"kind": "text folder", "name": path.name, "files": len(found)}
        pieces, table = [(file.relative_to(path).as_posix(), _read_file(file)) for file in found], False
    elif path.suffix.lower() in TABLES:
        pieces = [(f"row {row}", text) for row, text in enumerate(_read_column(path, text_column))]
        about, table = {"kind": "text column", "name": path.name, "rows": len(pieces)}, True
    elif path.exists():
        about, table = {"kind": "text file", "name": path.name}, False
        pieces = [(path.name, _read_file(path))]
    else:
        raise UsageError(
            f"{source} must be a text file, a folder of .txt files, a table, or one of {', '.join(TEXTS)}; there is no "
            f"such file.{did_you_mean(str(source), TEXTS)}"
        )
    if text_column is not None and not table:
        raise UsageError(f"text_column is for tables, and {source} is none; leave it out. Got {text_column}.")
    return pieces, about


def _read_file(path: Path) -> str:
    return read_text(path, 4 * MAX_CHARACTERS, error=DataError)


def _read_column(path: Path, name: str | None) -> list[str]:
    import pyarrow as pa
    import pyarrow.csv

    try:
        if path.suffix.lower() == ".parquet":
            opened = open_parquet(path)
            names = opened.schema_arrow.names
            column = _chosen(path, name, names)
            values = opened.read(columns=[column])[column].to_pylist()
        else:
            sign = "\t" if path.suffix.lower() == ".tsv" else ","
            options = pa.csv.ParseOptions(delimiter=sign, newlines_in_values=True)
            table = pa.csv.read_csv(check_file(path, error=DataError), parse_options=options)
            column = _chosen(path, name, table.column_names)
            values = table[column].to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    for row, value in enumerate(values):
        if not isinstance(value, str) or not is_unicode(value):
            shown = "no value" if value is None else repr(value)[:40]
            raise DataError(f'{path}: column "{column}" holds {shown} in row {row}, not a text. Fill or drop it.')
    if not values:
        raise DataError(f"{path} holds no rows.")
    return values


def _chosen(path: Path, name: str | None, names: list[str]) -> str:
    wanted = "text" if name is None else name
    if wanted not in names:
        raise UsageError(
            f'text_column must be one of {", ".join(names)} in {path}; got "{wanted}".{did_you_mean(wanted, names)}'
        )
    return wanted
