"""Output folders of commands: what is listed is deleted, other files stay, and what cannot be written is said first."""

import errno
import inspect
from fnmatch import fnmatchcase

import pytest
from PIL import Image

from latentia import VAE, VAEPipeline
from latentia.commands import compare, embed, evaluate, sheet
from latentia.commands.generate import Generated
from latentia.commands.output import WRITTEN, check_output, open_output
from latentia.errors import UsageError
from latentia.training.ownership import MARK

FAST = ["fd", "kid", "inception_score"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of each command that has an output folder of its own."""
    root = tmp_path_factory.mktemp("written")
    evaluate("pca", "digits", n=40, metrics=FAST).save(root / "evaluate")
    VAEPipeline(VAE(sample_size=8, latent_dim=2, hidden_sizes=(8,))).save_pretrained(root / "vae")
    compare(["pca", str(root / "vae")], "digits", n=40, metrics=FAST).save(root / "compare")
    embed(str(root / "vae"), "digits", points=20, max_samples=60).save(root / "embed")
    return root


@pytest.mark.parametrize("command", ["evaluate", "compare", "embed"])
def test_the_list_has_all_that_a_command_writes(written, command):
    files = [
        path.relative_to(written / command).as_posix() for path in (written / command).rglob("*") if path.is_file()
    ]
    assert len(files) > 3
    unlisted = {f for f in files if not any(fnmatchcase(f, pattern) for pattern in WRITTEN[command])}
    assert unlisted == {MARK}


@pytest.mark.parametrize("command", WRITTEN)
def test_overwriting_deletes_only_what_the_command_wrote(command, tmp_path):
    with open_output(tmp_path / "out", command) as folder:
        pass
    names = [
        pattern.replace("*/", "part/").replace("[0-9]*", "0").replace("[0-9]", "0").replace("*", "")
        for pattern in WRITTEN[command]
    ]
    (tmp_path / "other").mkdir()
    for name in (*names, "notes.txt", "more/notes.txt"):
        for root in (folder, tmp_path / "other"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("mine")
    (folder / names[-1]).unlink()
    (folder / names[-1]).symlink_to(tmp_path / "other" / names[-1])
    with pytest.raises(UsageError, match="must be empty"), open_output(folder, command):
        pass
    with open_output(folder, command, overwrite=True):
        pass
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    assert left == {MARK, "notes.txt", "more/notes.txt", names[-1]}
    assert (tmp_path / "other" / names[-1]).read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=r"output_dir .*cannot be written"):
            check_output(place, "generate")
        monkeypatch.setitem(inspect.unwrap(sheet).__globals__, "find_reference", lambda *_: pytest.fail("it has begun"))
        with pytest.raises(UsageError, match=r"output_dir .*cannot be written"):
            sheet("pca", "digits", output_dir=place)
    check_output(tmp_path / "new" / "folder", "generate")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", WRITTEN)
def test_two_commands_never_write_into_one_folder(command, tmp_path):
    with open_output(tmp_path, command) as folder:
        (folder / "half").write_text("of the first")
        with pytest.raises(UsageError, match="in use by another"), open_output(tmp_path, command, overwrite=True):
            pytest.fail("both write")
    assert [path.name for path in sorted(folder.iterdir())] == [MARK, "half"]


def test_a_full_disk_amid_writing_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"output_dir .* cannot be written: No space left"):
        with open_output(tmp_path / "out", "evaluate"):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("mine"), lambda p: p.mkdir(), lambda p: p.symlink_to("/nowhere")]
)
def test_a_file_beside_the_samples_is_not_replaced(make, tmp_path):
    path = tmp_path / "out_sheet.png"
    make(path)
    sample = Generated([Image.new("L", (8, 8))], [{"class": "A", "prompt": None, "class_label": None}])
    with pytest.raises(UsageError, match=r"out_sheet\.png moved"):
        sample.save(tmp_path / "out")
    assert [place.name for place in tmp_path.iterdir()] == ["out_sheet.png"]
    path.rmdir() if path.is_dir() else path.unlink()
    for _ in range(2):  # its own is replaced
        sample.save(tmp_path / "out", overwrite=True)
    with Image.open(path) as image:
        assert image.info["latentia"]
