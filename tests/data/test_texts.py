"""Texts as data: sources, vocabularies, parts by position, windows, and what is refused."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from latentia.data import TextData, load_text
from latentia.data.texts import decode_text, encode_text
from latentia.errors import DataError, MissingSplitError, UsageError

TEXT = "".join(f"line {i} of a small book, with words\n" for i in range(60))


@pytest.fixture
def sources(tmp_path):
    """The same text as a file, a folder and tables."""
    halves = [TEXT[:700], TEXT[700:]]
    (tmp_path / "book.txt").write_text(TEXT)
    folder = tmp_path / "books"
    folder.mkdir()
    for name, part in zip(("a.txt", "b.txt"), halves):
        (folder / name).write_text(part)
    (folder / ".hidden.txt").write_text("hidden")
    table = pa.table({"id": [1, 2], "text": halves, "empty": ["", None]})
    pq.write_table(table, tmp_path / "books.parquet")
    pa.csv.write_csv(table, tmp_path / "books.csv")
    return tmp_path


def test_files_folders_and_columns_hold_the_same_text(sources):
    joined = TEXT[:700] + "\n\n" + TEXT[700:]
    assert load_text(sources / "book.txt", 32, split="all").text == TEXT
    for name in ("books", "books.parquet", "books.csv"):
        assert load_text(sources / name, 32, split="all").text == joined, name


def test_parts_are_by_position_and_leave_nothing_out(sources):
    whole = load_text(sources / "book.txt", 8, split="all").text
    parts = [load_text(sources / "book.txt", 8, split=name).text for name in ("train", "validation", "test")]
    assert "".join(parts) == whole and len(parts[0]) == round(0.9 * len(whole))
    assert load_text(sources / "book.txt", 8, split="train[:10%]").text == parts[0][: round(0.1 * len(parts[0]))]


def test_the_parts_of_the_shipped_text_share_its_characters():
    data = load_text("moby_dick", 64)
    assert len(data.vocabulary) == 83 and len(data.tokens) == 1_071_285
    assert data.text.startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    for part in ("validation", "test"):
        assert load_text("moby_dick", 64, split=part).vocabulary == data.vocabulary


def test_windows_are_spans_of_the_text_and_reach_all_of_it():
    letters = "".join(chr(97 + int(i)) for i in torch.randint(26, (203,), generator=torch.Generator().manual_seed(0)))
    data = TextData(letters, 20)
    windows = [decode_text(row.long(), data.vocabulary) for row in data.batch(0, 4000)["x"]]
    assert all(window in letters for window in windows)
    begins = torch.tensor([data.text.index(window) for window in windows])
    assert begins.min() == 0 and begins.max() == 183
    counts = torch.bincount(begins, minlength=184)
    assert (counts > 0).all() and counts.max() < 60  # about 22 each


def test_unknown_characters_are_named_or_replaced(tmp_path):
    text = "abc\n" * 50 + "ab\u00e9c\n" + "abc\n" * 2
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"part .* of a.txt holds '\\xe9' \(U\+00E9\) in line 1, column 1.*unknown"):
        load_text(tmp_path / "a.txt", 4, split="test[-11:]")
    data = load_text(tmp_path / "a.txt", 4, split="test[-11:]", unknown_character="?")
    assert data.vocabulary == "\n?abc" and data.text == "?c\nabc\nabc\n"


def test_texts_and_tokens_are_inverse():
    text = "na\u00efve \U0001f600 text\n"
    vocabulary = "".join(sorted({*text}))
    assert decode_text(encode_text(text, vocabulary), vocabulary) == text
    shuffled = vocabulary[::-1]
    assert decode_text(encode_text(text, shuffled), shuffled) == text


def test_what_is_no_text_is_refused(sources):
    (sources / "empty.txt").write_text("")
    (sources / "one.txt").write_text("aaaa")
    (sources / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (sources / "zero.txt").write_bytes(b"ab\0cd" * 9)
    (sources / "none").mkdir()
    for name, options, kind, said in (
        ("empty.txt", {}, DataError, "at least two different characters"),
        ("one.txt", {}, DataError, "at least two different characters; it holds 'a' alone"),
        ("latin.txt", {}, DataError, "must be text in UTF-8"),
        ("zero.txt", {}, DataError, "holds a zero character"),
        ("none", {}, DataError, "holds no .txt file"),
        ("nothing.txt", {}, UsageError, "there is no such file"),
        ("books.csv", {"text_column": "txt"}, UsageError, 'text_column must be one of .*got "txt".*mean "text"'),
        ("books.parquet", {"text_column": "empty"}, DataError, "holds no value in row 1"),
        ("books.csv", {"text_column": "id"}, DataError, "holds 1 in row 0, not a text"),
        ("book.txt", {"text_column": "text"}, UsageError, "text_column is for tables"),
        ("book.txt", {"split": "tset"}, MissingSplitError, 'no split "tset".*mean "test"'),
        ("book.txt", {"context_length": 5000}, DataError, "fewer than one window of context_length=5000. Lower"),
        ("book.txt", {"context_length": 0}, UsageError, "context_length must be at least 1; got 0"),
        ("book.txt", {"unknown_character": "??"}, UsageError, "unknown_character must be one character"),
        ("book.txt", {"vocabulary": ""}, UsageError, "vocabulary must hold at least one character"),
    ):
        with pytest.raises(kind, match=said):
            load_text(sources / name, **{"context_length": 8} | options)
    with pytest.raises(UsageError, match='mean "moby_dick"'):
        load_text("moby_dik")
