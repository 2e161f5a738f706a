"""A run owns what it lists: it claims names first, deletes nothing else, and its own damaged files never end it."""

import errno
import json
import os
import shutil

import pytest
from filelock import FileLock
from helpers import regression
from test_training import lines, run

from latentia.errors import CheckpointError, UsageError
from latentia.training import checkpoint as ckpt
from latentia.training import ownership, state
from latentia.training.ownership import LONGEST, MARK, RUN, claim, clean, delete, delete_run, list_export, probe
from latentia.training.progress import read_log


def made_by_a_run(folder, step=2, run_id="run-a"):
    """A folder as a run leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, RUN, files=("metrics.jsonl", "README.md"), folders=("checkpoints", "samples", "net"))
    (folder / "metrics.jsonl").write_text('{"step": 1, "images": 1}\n')
    (folder / "samples").mkdir()
    (folder / "samples" / "step-1.png").write_text("image")
    (folder / "net").mkdir()
    (folder / "net" / "config.json").write_text("{}")
    list_export(folder, ["net/config.json"])
    ckpt.save_checkpoint(folder / "checkpoints", step, {"net": {"a": 1}}, {}, run_id)
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


# ------------------------------------------------------------ claims


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda path: (path.mkdir(), (path / "notes.txt").write_text("mine")), "which no run wrote there"),
        (lambda path: path.write_text("mine"), "holds net, where a folder must be"),
        (lambda path: path.symlink_to("/tmp"), "holds net, a symbolic link to /tmp"),
        (lambda path: path.symlink_to("/nowhere"), "a symbolic link to /nowhere"),
    ],
)
def test_a_name_of_somebody_else_is_refused_and_stays(tmp_path, make, rule):
    make(tmp_path / "net")
    before = files(tmp_path)
    with pytest.raises(UsageError, match=rule):
        claim(tmp_path, RUN, folders=["net"])
    assert files(tmp_path) == before


def test_a_file_where_a_folder_or_pipe_lies_is_refused(tmp_path):
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(UsageError, match=r"loss\.png, where a file must be"):
        claim(tmp_path, RUN, files=["loss.png"])
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match=r"metrics\.jsonl, where a file must be"):
        claim(tmp_path, RUN, files=["metrics.jsonl"])


def test_other_names_and_empty_folders_are_no_hindrance(tmp_path):
    (tmp_path / "slurm.out").write_text("mine")
    (tmp_path / "samples").mkdir()
    for _ in range(2):
        claim(tmp_path, RUN, files=["metrics.jsonl"], folders=["samples"])
    with pytest.raises(UsageError, match="holds results of run"):
        claim(tmp_path, "evaluate")


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    """It has no mark: a log and flags, or a checkpoint, say that a run made it."""
    made_by_a_run(tmp_path / "a")
    (tmp_path / "a" / "model_index.json").write_text('{"_class_name": "P", "net": ["latentia", "Net"]}')
    (tmp_path / "a" / "net" / "notes.txt").write_text("mine")
    (tmp_path / "a" / MARK).unlink()
    claim(tmp_path / "a", RUN, files=["metrics.jsonl"], folders=["samples"])
    claim(tmp_path / "a", RUN, folders=["net"])
    assert ownership.listed(tmp_path / "a")[1] == ["net/config.json"]
    shutil.copytree(tmp_path / "a" / "net", tmp_path / "pulled" / "net")
    (tmp_path / "pulled" / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="no run wrote"):
        claim(tmp_path / "pulled", RUN, files=["model_index.json"], folders=["net"])


def test_the_longest_name_is_tried_first(tmp_path, monkeypatch):
    deep = tmp_path
    while len(str(deep)) < 4096 - 90:
        deep = deep / ("d" * min(200, 4096 - 91 - len(str(deep))))
    os.makedirs(deep)
    with pytest.raises(UsageError, match=r"cannot be written: File name too long, when a file with a path of 4"):
        probe(deep, LONGEST)
    probe(tmp_path, LONGEST)
    assert not (tmp_path / "checkpoints").exists()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ckpt, "write_durably", full)
    with pytest.raises(UsageError, match="No space left on device"):
        run(tmp_path / "run", 2)
    assert not (tmp_path / "run" / "checkpoints").exists()


# ------------------------------------------------------------ deletion


def test_deletion_spares_what_was_not_listed(tmp_path):
    folder = made_by_a_run(tmp_path / "run")
    part = made_by_a_run(folder / "layer-1")
    claim(folder, RUN, folders=["layer-1"])
    other = made_by_a_run(folder / "other")  # another run, which this one did not list
    mine = ["notes.txt", "samples/mine.png", "net/notes.txt", "checkpoints/notes.txt", "layer-1/notes.txt"]
    mine.append("checkpoints/checkpoint-2/notes.txt")
    for name in mine:
        (folder / name).write_text("mine")
    kept = {f"other/{name}" for name in files(other)}
    delete_run(folder, ["samples/step-*.png"])
    assert files(folder) - {".lock", MARK, "layer-1/.lock", f"layer-1/{MARK}", "layer-1/samples/step-1.png"} == {
        *mine, *kept,
    }  # fmt: skip
    assert part.exists()


def test_deletion_never_goes_through_a_link(tmp_path):
    archive = made_by_a_run(tmp_path / "archive")
    before = files(archive)
    folder = tmp_path / "run"
    folder.mkdir()
    claim(folder, RUN, files=["metrics.jsonl"], folders=["samples", "checkpoints", "net", "layer-1"])
    list_export(folder, ["net/config.json"])
    for name in ("samples", "net", "metrics.jsonl"):
        (folder / name).symlink_to(archive / name)
    (folder / "layer-1").symlink_to(archive)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "checkpoint-2").symlink_to(archive / "checkpoints" / "checkpoint-2")
    (folder / "checkpoints" / ".staging-3-abc").symlink_to(archive / "checkpoints" / "checkpoint-2")
    delete_run(folder, ["samples/*"])
    assert files(archive) == before
    assert (folder / "checkpoints" / "checkpoint-2").is_symlink()
    (folder / "checkpoints" / "checkpoint-2").unlink()
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    (folder / "checkpoints").symlink_to(archive / "checkpoints")
    with pytest.raises(UsageError, match="checkpoints, a symbolic link"):
        run(folder, 2)
    assert files(archive) == before


def test_rotation_leaves_links_and_files_of_others(tmp_path):
    root, archive = tmp_path / "checkpoints", tmp_path / "archive"
    for step in (1, 2, 3, 4, 5):
        ckpt.save_checkpoint(root, step, {"net": {"a": step}}, {}, "run-a")
    shutil.move(root / "checkpoint-1", archive)
    (root / "checkpoint-1").symlink_to(archive)
    (root / "checkpoint-2" / "notes.txt").write_text("mine")
    ckpt.rotate(root, 2, "run-a")
    assert sorted(path.name for path in root.iterdir()) == [f"checkpoint-{step}" for step in (1, 2, 4, 5)]
    assert ckpt.load_checkpoint(archive)[0] == {"net": {"a": 1}}
    ckpt.verify_checkpoint(root / "checkpoint-2")


def test_a_part_in_use_is_not_deleted(tmp_path):
    folder = made_by_a_run(tmp_path / "run")
    part = made_by_a_run(folder / "layer-1")
    claim(folder, RUN, folders=["layer-1"])
    with FileLock(part / ".lock"), pytest.raises(UsageError, match="in use by another run"):
        delete_run(folder)
    assert (part / "checkpoints" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("name", ["../victim", "{}/victim", "net/../../victim", "./../victim", "..", ".", "", "a\0b"])
def test_a_mark_names_nothing_outside_of_its_folder(tmp_path, name):
    """It may have come with a folder of others, whose next run is asked to overwrite what is there."""
    victim, folder = made_by_a_run(tmp_path / "victim"), made_by_a_run(tmp_path / "cloned")
    there = files(victim)
    name = name.format(tmp_path)
    mark = json.loads((folder / MARK).read_text())
    forged = {"names": [*mark["names"], name], "files": [*mark["files"], name, f"{name}/net/config.json"]}
    (folder / MARK).write_text(json.dumps(mark | forged))
    claim(folder, RUN, files=("metrics.jsonl", "README.md"), folders=("checkpoints", "samples", "net"))
    delete_run(folder)
    assert files(victim) == there and not (folder / "checkpoints" / "checkpoint-2").exists()
    assert name not in (folder / MARK).read_text().split('"')


def test_what_killed_writes_left_is_cleaned(tmp_path):
    folder = made_by_a_run(tmp_path)
    for name in (f".{MARK}.partial-0123456789ab", ".metrics.jsonl.partial-ab", ".training_config.json.0a1b2c3d"):
        (folder / name).write_text("half")
    for name in (".metrics.jsonl.mine", ".other.partial-ab"):
        (folder / name).write_text("mine")
    clean(folder)
    assert {name for name in files(folder) if name.startswith(".")} == {
        MARK,
        ".metrics.jsonl.mine",
        ".other.partial-ab",
    }


def test_patterns_follow_no_link_and_leave_full_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("")
    (tmp_path / "a" / "y.txt").write_text("")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    delete(tmp_path, ["b/*", "../*", "a/*.png"])
    assert files(tmp_path) == {"a/y.txt", "b"}
    delete(tmp_path, ["a/y.txt"])
    assert not (tmp_path / "a").exists()


# ------------------------------------------------------------ damaged files of the run


DAMAGE = {
    "binary": b"\xff\xfe\x00\n", "nested": b"[" * 200_000, "text": b'{"images": 1, "step": 1, "net/loss": "a"}\n',
    "list": b"[]", "half": b'{"a', "no numbers": b'{"step": "x", "images": null}', "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["metrics.jsonl", "training_config.json", "run_summary.json", MARK, ".lock"])
def test_a_damaged_file_of_its_own_never_ends_a_resume(tmp_path, name, damage, capsys):
    run(tmp_path, 2)
    whole = (tmp_path / name).read_bytes() if name == "metrics.jsonl" else b""
    (tmp_path / name).write_bytes(whole + damage)
    _, result = run(tmp_path, 4)
    assert result.status == "finished" and [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]
    said = "no run wrote whole are left out" in capsys.readouterr().out
    assert said == (name == "metrics.jsonl" and bool(damage))


def test_a_log_is_read_line_by_line():
    good = {"step": 1, "images": 8, "net/loss": 0.5, "warning": "so", "skipped": 1}
    data = b"\n".join([json.dumps(good).encode(), *DAMAGE.values(), json.dumps(good).encode()])
    assert read_log(data) == [good, good]


def test_a_full_disk_in_log_or_hook_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    """An `OSError` amid training becomes an error of ours; the next start finishes."""

    def hook(progress):
        if progress.step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left.*start the same command again"):
        run(tmp_path, 4, hooks=[ckpt_hook(hook)])
    real = ownership.write_json
    monkeypatch.setattr("latentia.training.loop.write_json", lambda *_: hook(type("P", (), {"step": 3})))
    with pytest.raises(CheckpointError, match="No space left on device"):
        run(tmp_path, 4)
    monkeypatch.setattr("latentia.training.loop.write_json", real)
    _, result = run(tmp_path, 4)
    assert result.status == "finished" and [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]


def ckpt_hook(call):
    from latentia.training.loop import Hook

    return Hook(1, call)


def test_a_log_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    from latentia.training import progress

    def enter(self):
        real(self)
        self.file.close()
        self.file = open("/dev/full", "w")
        return self

    real = progress.Log.__enter__
    monkeypatch.setattr(progress.Log, "__enter__", enter)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl could not be written: .*No space left"):
        run(tmp_path, 4)
    monkeypatch.setattr(progress.Log, "__enter__", real)
    assert run(tmp_path, 4)[1].status == "finished"


def test_other_versions_and_threads_are_said(tmp_path, monkeypatch, capsys):
    run(tmp_path, 2)
    capsys.readouterr()
    run(tmp_path, 3)
    assert "bits may differ" not in capsys.readouterr().out
    now = state.versions()
    monkeypatch.setattr(state, "versions", lambda: {**now, "torch": "9.9", "threads": "64"})
    run(tmp_path, 4)
    said = capsys.readouterr().out
    assert f"torch {now['torch']} -> 9.9, threads {now['threads']} -> 64" in said


def test_a_run_leaves_what_lies_beside_it(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, 2, regression)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert ownership.listed(tmp_path)[0] == [".lock", "checkpoints", "metrics.jsonl", "training_config.json"]
