"""Every committed measurement names a commit of the history, so that it can be checked out and repeated."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


def commits(found: object) -> Iterator[str]:
    if isinstance(found, dict):
        for key, value in found.items():
            if key in ("commit", "commits"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from commits(value)
    elif isinstance(found, list):
        for value in found:
            yield from commits(value)


@pytest.mark.skipif(git("rev-parse", "--is-shallow-repository").stdout != "false\n", reason="needs the whole history")
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_a_commit_of_the_history(path):
    named = {commit.removesuffix("-dirty") for commit in commits(json.loads(path.read_text()))}
    assert named, "no commit is named"
    missing = {commit for commit in named if git("merge-base", "--is-ancestor", commit, "HEAD").returncode}
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_can_be_started(path, monkeypatch):
    """Its command is what a reader repeats."""
    if path.stem == "vae_vs_pythae":
        pytest.importorskip("pythae")
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    before = dict(sys.modules)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    for name in sys.modules.keys() - before.keys():  # modules of this folder, whose names are no package's
        if getattr(sys.modules[name], "__file__", "") and Path(str(sys.modules[name].__file__)).parent == path.parent:
            del sys.modules[name]
    assert not ended.value.code
