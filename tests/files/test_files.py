"""The door for files: what is opened, how much of it is read, what is said, and what a write may touch."""

import os
import socket
import stat
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

import latentia
from latentia.errors import CheckpointError, DataError, HubError, UsageError, printable
from latentia.files import reading, writing
from latentia.files.logs import get_logger

NESTED = "[" * 100_000


def pipe_at(path):
    os.mkfifo(path)


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda path: None, "holds no file x.json"),
        (lambda path: path.mkdir(), "must be a regular file; it is a folder"),
        (pipe_at, "must be a regular file; it is a pipe, a socket or a device"),
        (socket_at, "cannot be read|must be a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "must be a regular file; it is a pipe, a socket or a device"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"1" * 11), "has 11 bytes; at most 10 are read"),
        (lambda path: path.write_bytes(b"\xff"), "must be text in UTF-8"),
        (lambda path: path.write_text("[1, 2"), "cannot be read as JSON"),
    ],
)
@pytest.mark.parametrize("error", [CheckpointError, DataError])
def test_what_cannot_be_read_is_said(make, rule, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = tmp_path / "x.json"
    make(path if make is not socket_at else path.relative_to(tmp_path))
    with pytest.raises(error, match=rule):
        reading.read_json(path, 10, error=error)


def test_json_that_is_nested_too_deep_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text(NESTED)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        reading.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, got list"):
        reading.read_object(tmp_path / "x.json")


def test_a_file_that_grows_is_read_to_its_bound(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    real = os.fstat

    def grown(descriptor):
        found = real(descriptor)
        path.write_bytes(b"1" * 20)
        return found

    monkeypatch.setattr(os, "fstat", grown)
    with pytest.raises(CheckpointError, match="more than 10 bytes"):
        reading.read_bytes(path, 10)


def test_links_lead_nowhere_but_inside_their_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret").write_text("{}")
    (home / "out").symlink_to(tmp_path / "secret")
    (home / "real").write_text("{}")
    (home / "in").symlink_to(home / "real")
    assert reading.read_object(home / "in", home=home) == {} == reading.read_object(home / "out")
    with pytest.raises(CheckpointError, match="is a symbolic link out of its folder"):
        reading.read_object(home / "out", home=home)


def test_a_byte_order_mark_and_line_ends_are_no_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\r\nb\rc")
    assert reading.read_text(tmp_path / "a") == "a\nb\nc"


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_write_is_whole_or_not_there(tmp_path):
    writing.write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), writing.replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    """Neither at the final name nor at a name that waits for the temporary file."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    writing.write_text(tmp_path / "a", "new")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a").is_symlink()
    waiting = tmp_path / ".a.partial-known"
    monkeypatch.setattr(writing, "staging_of", lambda path: waiting)
    waiting.symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError):
        writing.write_text(tmp_path / "a", "again")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "a").read_text() == "new"


def test_a_durable_write_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_mode), real(descriptor)))
    writing.write_json(tmp_path / "a.json", {"b": 1})
    assert [stat.S_ISDIR(mode) for mode in synced] == [False, True]
    assert reading.read_object(tmp_path / "a.json") == {"b": 1}
    writing.write_image(tmp_path / "a.png", Image.new("L", (2, 2)))
    assert len(synced) == 2
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2, 2)
    with pytest.raises(UsageError, match=r"must end with the suffix of an image format, such as .png; got '.what'"):
        writing.write_image(tmp_path / "a.what", Image.new("L", (2, 2)))


def test_a_place_takes_its_name_only_at_the_end(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing.write_atomically(tmp_path / "a" / "b") as staging:
        staging.mkdir()
        (staging / "x").write_text("half")
        raise KeyboardInterrupt
    assert not list((tmp_path / "a").iterdir())
    with writing.write_atomically(tmp_path / "c") as staging:
        staging.write_text("whole")
        assert not (tmp_path / "c").exists()
    assert (tmp_path / "c").read_text() == "whole"
    blocked = tmp_path / "c" / "d"  # below a file
    with pytest.raises(UsageError, match="cannot be written"), writing.write_atomically(blocked):
        pass


def test_removing_stops_at_links(tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "kept").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "inside").symlink_to(tmp_path / "archive")
    (tmp_path / "link").symlink_to(tmp_path / "archive")
    for name in ("link", "run", "nothing"):
        writing.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"] and (tmp_path / "archive" / "kept").exists()


def test_text_that_is_no_unicode_is_escaped(tmp_path):
    writing.write_text(tmp_path / "a", "photos_\udce9")
    assert (tmp_path / "a").read_text() == "photos_\\udce9"


# -------------------------------------------------------------------------------------------------------------- errors


def test_errors_print_no_codes_of_a_terminal():
    text = str(CheckpointError("\x1b]0;title\x07 in photos_\udce9\nand é 日本\u202e"))
    assert text == "\\x1b]0;title\\x07 in photos_\\udce9\nand é 日本\\u202e"
    assert str(HubError(3)) == "3" and len(printable("x" * 10**6)) < 5000


def test_logs_print_no_codes_of_a_terminal(caplog, tmp_path):
    """As errors do, whatever a file of others is called; every module logs by `get_logger`."""
    get_logger("latentia.data.build").warning("%s is bad", "\x1b]0;title\x07.png")
    assert caplog.messages == ["\\x1b]0;title\\x07.png is bad"]
    package = Path(latentia.__file__).parent
    direct = [path for path in package.rglob("*.py") if "= logging.getLogger(__name__)" in path.read_text()]
    assert not direct


def test_a_figure_is_written_by_the_suffix_of_its_name(tmp_path):
    figure = Figure()
    writing.write_figure(tmp_path / "a.png", figure)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("a", "a.txt"):
        with pytest.raises(UsageError, match="suffix of a format for figures"):
            writing.write_figure(tmp_path / name, figure)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
