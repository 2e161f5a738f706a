"""Checkpoints that are whole or not there, the average of the weights, and randomness by position."""

import errno
import json
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from latentia.errors import CheckpointError, NumericsError
from latentia.rng import Rng, seed_from
from latentia.training import checkpoint as ckpt
from latentia.training.ema import EMA

RUN = "run-a"


def state(step: int = 1) -> dict:
    """What a small run holds: a network, an optimizer with moments, an average with its counter."""
    torch.manual_seed(step)
    return {
        "net.model": {"weight": torch.randn(3, 2), "bias": torch.randn(3), "count": torch.tensor(step)},
        "net.optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.randn(3, 2)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "foreach": None, "amsgrad": False, "params": [0, 1]}],
        },
        "net.ema": {"steps": torch.tensor(step), "module": {"weight": torch.randn(3, 2)}},
    }


def save(root: Path, step: int, run_id: str = RUN, **more) -> Path:
    return ckpt.save_checkpoint(root, step, state(step) | more, {"progress": {"step": step}, "config": {}}, run_id)


def same(a, b) -> bool:
    """Whether two state dicts are equal to the last bit, up to tuples, which come back as lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def numbers(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in root.iterdir())


# ---------------------------------------------------------------------------------------------------- state dicts

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
TENSORS = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple), DTYPES, st.integers(0, 99),
)  # fmt: skip
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    TENSORS | PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 2) | st.sampled_from(["0", "a", "b", "a.b", "__tensor__", "é'"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_a_state_dict_comes_back_through_bytes(tree):
    from safetensors.torch import load
    from safetensors.torch import save as to_bytes

    tensors = {}
    text = json.dumps(ckpt.flatten(tree, "x", tensors))
    assert same(tree, ckpt.unflatten(json.loads(text), load(to_bytes(tensors))))


def test_names_that_would_collide_stay_apart():
    tree = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), 0: torch.full((1,), 2.0), "0": torch.full((1,), 3.0)}
    tensors = {}
    flat = ckpt.flatten(tree, "x", tensors)
    assert len(tensors) == 4 and same(tree, ckpt.unflatten(json.loads(json.dumps(flat)), tensors))


@pytest.mark.parametrize("bad", [object(), {1, 2}, b"bytes", {(0, 1): 2.0}, {1.5: 2.0}, lambda: 0])
def test_what_json_cannot_hold_is_refused(bad):
    with pytest.raises(TypeError, match=r"at x\.k"):
        ckpt.flatten({"k": bad}, "x", {})


def test_flatten_copies_so_that_training_can_go_on():
    weight, tensors = torch.zeros(3), {}
    ckpt.flatten({"w": weight.t()}, "x", tensors)
    weight += 1
    assert tensors["x.w"].sum() == 0


def test_save_and_load(tmp_path):
    path = save(tmp_path, 7)
    loaded, manifest = ckpt.load_checkpoint(path)
    assert path == tmp_path / "checkpoint-7" and names(tmp_path) == ["checkpoint-7"]
    assert same(state(7), loaded) and not same(state(8), loaded)
    assert manifest["step"] == 7 and manifest["run_id"] == RUN and manifest["progress"] == {"step": 7}
    assert {"manifest.json", *manifest["files"]} == set(names(path))
    assert {Path(name).suffix for name in names(path)} == {".safetensors", ".json"}


# ----------------------------------------------------------------------------------------------------------- damage


def cuts(size: int) -> list[int]:
    return sorted({0, 7, 8, size // 2, size - 1} - {size})


@pytest.fixture
def two(tmp_path):
    save(tmp_path, 1)
    return tmp_path, save(tmp_path, 2)


def falls_back(root: Path, caplog) -> str:
    """`auto` and `latest` go back to checkpoint-1 with one warning for the folder; the path itself is refused."""
    for value in ("auto", "latest"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert ckpt.resolve_resume(value, root) == root / "checkpoint-1"
        assert len(caplog.records) == 1 and "checkpoint-2" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint-2") as caught:
        ckpt.resolve_resume(str(root / "checkpoint-2"), root)
    assert caught.value.exit_code == 5
    with pytest.raises(CheckpointError):
        ckpt.load_checkpoint(root / "checkpoint-2")
    return str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "net.model.safetensors", "net.optimizer.json"])
@pytest.mark.parametrize("cut", range(5))
def test_a_file_that_was_cut(two, caplog, name, cut):
    root, path = two
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: cuts(len(data))[cut]])
    assert name in falls_back(root, caplog)


@pytest.mark.parametrize("name", ["net.model.safetensors", "net.ema.json"])
def test_a_file_that_is_gone(two, caplog, name):
    root, path = two
    (path / name).unlink()
    assert f"{name} is missing" in falls_back(root, caplog)


def test_no_manifest(two, caplog):
    root, path = two
    (path / "manifest.json").unlink()
    assert "manifest.json cannot be read" in falls_back(root, caplog)


def test_all_files_empty_after_a_power_loss(two, caplog):
    root, path = two
    for file in path.iterdir():
        file.write_bytes(b"")
    falls_back(root, caplog)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_seen(two, data):
    path = two[1]
    file = path / data.draw(st.sampled_from(names(path)))
    good = file.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(bad))
    try:
        with pytest.raises(CheckpointError):
            ckpt.verify_checkpoint(path)
    except BaseException:
        # JSON has more than one spelling for some values; then nothing was lost.
        assert file.name == "manifest.json" and json.loads(bytes(bad)) == json.loads(good)
    finally:
        file.write_bytes(good)


def rewrite(path: Path, change) -> None:
    """Alter a manifest as somebody would who also knows how to sign it."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    manifest["sha256"] = ckpt._manifest_sha256(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_another_version_is_named(two):
    """Neither half a load nor a fresh start beside it."""
    root, path = two[:2]
    rewrite(path, lambda manifest: manifest.update(format=1, versions={"latentia": "0.1.0.dev0"}))
    for resume in ("auto", "latest", str(path)):
        with pytest.raises(CheckpointError, match=r"by latentia 0\.1\.0\.dev0, in checkpoint format 1; .* format 2"):
            ckpt.resolve_resume(resume, root)
    assert ckpt.resolve_resume("none", root) is None
    with pytest.raises(CheckpointError, match="Train anew"):
        ckpt.load_checkpoint(path)
    rewrite(path, lambda manifest: manifest.update(format=99))
    with pytest.raises(CheckpointError, match="format 99; this version reads format 2"):
        ckpt.resolve_resume("auto", root)


@pytest.mark.parametrize("name", ["../checkpoint-1/net.model.safetensors", "/etc/passwd", ".."])
def test_a_manifest_cannot_point_outside(two, caplog, name):
    root, path = two
    rewrite(path, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0"}}))
    assert "is missing" in falls_back(root, caplog)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"format": 1}', '{"format": 1, "files": []}', "\x00" * 50])
def test_a_manifest_that_is_something_else(two, caplog, text):
    root, path = two
    (path / "manifest.json").write_text(text)
    falls_back(root, caplog)
    ckpt.rotate(root, 2, RUN)
    assert numbers(root) == [1, 2]


# -------------------------------------------------------------------------------------------------------- discovery


def test_what_resume_means(tmp_path):
    root = tmp_path / "checkpoints"
    assert ckpt.resolve_resume("auto", root) is None and ckpt.resolve_resume("none", root) is None
    with pytest.raises(CheckpointError, match=r"latest: there is no whole checkpoint.*none to start"):
        ckpt.resolve_resume("latest", root)
    save(root, 9), save(root, 10)
    assert ckpt.resolve_resume("none", root) is None and ckpt.resolve_resume(None, root) is None
    assert ckpt.resolve_resume("auto", root) == ckpt.resolve_resume("latest", root) == root / "checkpoint-10"
    assert ckpt.resolve_resume(str(root / "checkpoint-9"), root) == root / "checkpoint-9"
    with pytest.raises(CheckpointError, match=r'"nowhere".*not there. .*checkpoint-9, checkpoint-10') as caught:
        ckpt.resolve_resume("nowhere", root)
    assert caught.value.exit_code == 5


def test_auto_does_not_start_anew_over_damaged_checkpoints(tmp_path):
    (save(tmp_path, 3) / "net.model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none to start from the beginning"):
        ckpt.resolve_resume("auto", tmp_path)


def strays(root: Path) -> list[str]:
    """What else may lie beside checkpoints."""
    for name in ("checkpoint-foo", "checkpoint-12.bak", "checkpoint-", "checkpoint--5", "old-checkpoint-99", "notes"):
        (root / name).mkdir(parents=True)
        (root / name / "keep").write_text("mine")
    (root / "checkpoint-9").write_text("a file")
    return names(root)


def test_stray_entries_are_left_alone(tmp_path):
    before = strays(tmp_path)
    for step in range(1, 6):
        save(tmp_path, step)
        ckpt.rotate(tmp_path, 2, RUN)
    ckpt.clean_staging(tmp_path)
    assert names(tmp_path) == sorted([*before, "checkpoint-4", "checkpoint-5"])
    assert ckpt.find_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert (tmp_path / "checkpoint-foo" / "keep").read_text() == "mine"


def test_a_file_in_the_way_is_not_deleted(tmp_path):
    strays(tmp_path)
    save(tmp_path, 9)
    assert ckpt.find_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert [p.read_text() for p in tmp_path.iterdir() if p.is_file()] == ["a file"]


def test_what_killed_saves_left_is_cleaned(tmp_path):
    save(tmp_path, 1)
    for name in (".staging-2-dead", ".aside-checkpoint-0-ab"):
        shutil.copytree(tmp_path / "checkpoint-1", tmp_path / name)
    assert ckpt.find_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    ckpt.clean_staging(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]


# --------------------------------------------------------------------------------------------------------- rotation


@pytest.mark.parametrize(
    "limit, expected",
    [(None, [8, 9, 10, 999, 1000]), (0, [999, 1000]), (1, [999, 1000]), (2, [999, 1000]), (3, [10, 999, 1000])],
)
def test_rotation_is_by_number_and_leaves_two(tmp_path, limit, expected):
    for step in (10, 1000, 9, 999, 8):
        save(tmp_path, step)
    ckpt.rotate(tmp_path, limit, RUN)
    assert numbers(tmp_path) == expected


def test_rotation_spares_other_runs_and_the_one_resumed_from(tmp_path, monkeypatch):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, "run-b" if step in (1, 4) else RUN)
    save(tmp_path, 1000, "run-b")
    monkeypatch.chdir(tmp_path.parent)
    ckpt.rotate(tmp_path, 2, RUN, keep=frozenset({Path(tmp_path.name) / "checkpoint-2"}))  # the same path, spelt so
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 1000]
    ckpt.rotate(tmp_path, 2, RUN)
    assert numbers(tmp_path) == [1, 3, 4, 5, 1000]


def test_what_cannot_be_deleted_is_only_a_warning(tmp_path, monkeypatch, caplog):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patch:
        patch.setattr(ckpt.Path, "unlink", refuse)
        ckpt.rotate(tmp_path, 2, RUN)
    assert "checkpoint-1 could not be deleted" in caplog.text and "checkpoint-2 could not" in caplog.text
    assert ckpt.find_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    ckpt.clean_staging(tmp_path)
    assert numbers(tmp_path) == [3, 4]


# ------------------------------------------------------------------------------------------------- disks that refuse


@pytest.mark.parametrize("n", range(7))
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, n):
    save(tmp_path, 1)
    real, calls = ckpt.write_durably, []

    def write(path, data):
        calls.append(path)
        if len(calls) > n:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(ckpt, "write_durably", write)
    with pytest.raises(CheckpointError, match=r"No space left on device\. Earlier checkpoints are intact"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1"] and len(calls) == n + 1
    assert same(state(1), ckpt.load_checkpoint(tmp_path / "checkpoint-1")[0])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "file" / "checkpoints", 1)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EPERM])
def test_a_file_system_without_rename(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ckpt.os, "replace", refuse)
    written, real = [], ckpt.write_durably
    monkeypatch.setattr(ckpt, "write_durably", lambda path, data: (written.append(path), real(path, data)))
    for step in (1, 2, 3):
        save(tmp_path, step)
        assert written[-1] == tmp_path / f"checkpoint-{step}" / "manifest.json"  # last: it makes the folder count
    save(tmp_path, 3)  # over one that is there
    shutil.rmtree(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1").mkdir()  # as a copy that was killed leaves it
    (tmp_path / "checkpoint-1" / "net.model.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert numbers(tmp_path) == [1, 2, 3]
    for step in (1, 2, 3):
        assert same(state(step), ckpt.load_checkpoint(tmp_path / f"checkpoint-{step}")[0])
    ckpt.rotate(tmp_path, 2, RUN)
    assert numbers(tmp_path) == [2, 3]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path, 1, extra={"old": torch.ones(1)})
    real = os.replace

    def replace(source, target):
        if ".staging" in str(source):
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(ckpt.os, "replace", replace)
    with pytest.raises(CheckpointError, match="broken"):
        save(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-1"] and "extra" in ckpt.load_checkpoint(tmp_path / "checkpoint-1")[0]


def test_a_checkpoint_can_be_written_again(tmp_path):
    save(tmp_path, 1, "run-b", extra={"old": torch.ones(1)})
    save(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-1"] and "extra" not in ckpt.load_checkpoint(tmp_path / "checkpoint-1")[0]


def test_order_on_the_disk_is_files_folder_rename_parent(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def log_fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("fsync", path.name.split("-")[0] if path.is_dir() else path.name))
        fsync(descriptor)

    def log_replace(source, target):
        events.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(ckpt.os, "fsync", log_fsync)
    monkeypatch.setattr(ckpt.os, "replace", log_replace)
    root = tmp_path / "checkpoints"
    files = set(json.loads((save(root, 1) / "manifest.json").read_text())["files"])
    assert {name for kind, name in events[: len(files)] if kind == "fsync"} == files
    assert events[len(files) :] == [
        ("fsync", "manifest.json"),
        ("fsync", ".staging"),
        ("replace", "checkpoint-1"),
        ("fsync", "checkpoints"),
    ]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_modes_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {mode}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_never_committed(tmp_path, value, dtype):
    save(tmp_path, 1)
    with pytest.raises(NumericsError, match=r"not finite in broken\.module\.w"):
        save(tmp_path, 2, broken={"module": {"w": torch.tensor([0.0, value], dtype=dtype)}})
    assert names(tmp_path) == ["checkpoint-1"]


def test_writing_over_a_mapped_file_keeps_its_values(tmp_path):
    loaded, _ = ckpt.load_checkpoint(save(tmp_path, 1))
    before = loaded["net.model"]["weight"].clone()
    ckpt.save_checkpoint(tmp_path, 1, state(2), {}, RUN)
    assert (loaded["net.model"]["weight"] == before).all()


# -------------------------------------------------------------------------------------------------------------- EMA


class WithBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def drift(net: WithBuffers) -> None:
    with torch.no_grad():
        net.weight += torch.randn_like(net.weight)
        net.mean += torch.randn_like(net.mean)
        net.count += 3


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_ema_closed_form(n, warmup):
    net = WithBuffers()
    ema = EMA(net, decay=0.8, warmup=warmup)
    history, means = [net.weight.detach().clone()], [net.mean.clone()]
    for _ in range(n):
        drift(net)
        live = net.weight.detach().clone()
        ema.update(net)
        assert (net.weight == live).all()
        history.append(live), means.append(net.mean.clone())
    # sum over k of (1 - d_k) theta_k prod_{j > k} d_j, with d_0 = 0 for where it started
    decays = [0.0] + [min(0.8, (1 + k) / (10 + k)) if warmup else 0.8 for k in range(n)]
    tail = [torch.tensor(decays[k + 1 :], dtype=torch.float64).prod() for k in range(n + 1)]
    for values, average in ((history, ema.module.weight), (means, ema.module.mean)):
        expected = sum((1 - d) * value * rest for d, value, rest in zip(decays, values, tail))
        torch.testing.assert_close(average.detach(), expected, rtol=1e-12, atol=1e-12)
    assert ema.module.count == net.count == 3 * n and int(ema.steps) == n
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())


def test_ema_goes_on_from_its_state_with_its_counter():
    net = WithBuffers()
    first = EMA(net, 0.9)
    for _ in range(4):
        drift(net)
        first.update(net)
    tensors = {}
    tree = json.loads(json.dumps(ckpt.flatten(first.state_dict(), "ema", tensors)))
    second = EMA(WithBuffers(), 0.9)
    second.load_state_dict(ckpt.unflatten(tree, tensors))
    assert int(second.steps) == 4 and same(dict(first.module.state_dict()), dict(second.module.state_dict()))
    drift(net)
    first.update(net), second.update(net)
    assert same(dict(first.module.state_dict()), dict(second.module.state_dict()))


# ------------------------------------------------------------------------------------------------------------ draws

KINDS = {
    "normal": lambda rng, stream="s": rng.normal(stream, (2, 3)),
    "uniform": lambda rng, stream="s": rng.uniform(stream, (2,)),
    "stratified": lambda rng, stream="s": rng.stratified(stream),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_slices_of_a_draw_equal_the_whole(kind, data):
    n = data.draw(st.integers(1, 20))
    seed, position = data.draw(st.integers(0, 2**40)), data.draw(st.integers(0, 2**40))
    start = data.draw(st.integers(0, n - 1))
    count = data.draw(st.integers(1, n - start))
    whole = KINDS[kind](Rng(seed, position, n, 0, n))
    assert (KINDS[kind](Rng(seed, position, n, start, count)) == whole[start : start + count]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_streams_steps_and_processes_differ(kind):
    def draw(seed=0, position=0, start=0, stream="s"):
        return KINDS[kind](Rng(seed, position, 32, start, 8), stream)

    others = [draw(seed=1), draw(position=32), draw(stream="t"), *(draw(start=8 * rank) for rank in (1, 2, 3))]
    assert all((draw() != other).all() for other in others)
    assert all((a != b).all() for i, a in enumerate(others) for b in others[:i])
    assert (draw() == draw()).all()


def test_the_draws_of_successive_steps_are_not_shifted_copies():
    flat = torch.cat([Rng(0, 8 * step, 8, 0, 8).normal("s", (16,)).flatten() for step in range(50)])
    assert flat.unique().numel() == flat.numel()
    assert abs(flat.mean()) < 0.05 and abs(flat.std() - 1) < 0.05


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**62), n=st.integers(1, 300))
def test_stratified_has_one_in_each_interval(seed, n):
    u = Rng(seed, 0, n, 0, n).stratified("t").double()
    assert u.min() >= 0 and u.max() < 1
    gaps = torch.cat([u, u[:1]]).diff() % 1  # in turn: each 1/n after the one before
    assert n == 1 or ((gaps - 1 / n).abs() < 1e-6).all()
    inside = (u * n) % 1
    if ((inside > 1e-4 * n) & (inside < 1 - 1e-4 * n)).all():  # away from rounding at the edges
        assert sorted((u * n).long().tolist()) == list(range(n))


def test_seeds_are_the_same_on_every_machine():
    assert seed_from(0, "noise", 64) == seed_from(0, "noise", 64)
    assert len({seed_from(a, b, c) for a in range(5) for b in ("x", "y") for c in range(5)}) == 50
    assert seed_from(1, 23) != seed_from(12, 3) and seed_from("1", 2) != seed_from(1, 2)
    assert all(0 <= seed_from(i) < 2**63 for i in range(100))
    assert seed_from(0, "noise", 64) == 2675971990592325964
