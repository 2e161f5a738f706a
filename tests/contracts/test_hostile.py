"""Folders of strangers through every loader: refused in bounded time and memory, and nothing of theirs is run.

`python tests/contracts/test_hostile.py` counts them.
"""

import json
import os

import pytest
from children import ended
from hostile import CASES, LOADERS, PAIRS, go_through

pytestmark = pytest.mark.timeout(900)  # the process goes through 1600 attempts, 45 s of one core


@pytest.fixture(scope="module")
def answers(context, tmp_path_factory):
    """What one process, which goes through the whole table, says of each."""
    root = tmp_path_factory.mktemp("hostile")
    env = {"LATENTIA_CACHE": os.environ["LATENTIA_CACHE"], "LATENTIA_FAILPOINT": "", "HF_HUB_OFFLINE": "1"}
    child = context.Process(target=go_through, args=(str(root / "log.txt"), env, str(root), str(root / "answers.json")))
    child.log = root / "log.txt"
    child.start()
    code, text = ended(child, 800)
    assert code == 0, text[-3000:]
    return json.loads((root / "answers.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_and_nothing_of_it_is_run(answers, case):
    for loader in LOADERS[CASES[case][0]]:
        found = answers["found"][f"{case} | {loader}"]
        assert not found["ran"] and not found["imported"], (loader, found)
        if not case.startswith("no effect"):
            assert found["end"].startswith(("refused 2", "refused 5")), (loader, found)
        else:
            assert found["end"].startswith(("refused 2", "refused 5", "loaded")), (loader, found)


def test_every_setting_of_every_network_out_of_bounds(answers):
    assert len(answers["networks"]) > 500
    for name, found in answers["networks"].items():
        assert found["end"].startswith(("refused 2", "refused 5", "loaded")), (name, found)


def test_the_memory_stays_bounded(answers):
    """The limit of the process bounds what it asks for; this is what it used beyond the honest folders."""
    assert answers["grown"] < 300 * 2**20


if __name__ == "__main__":
    print(f"{len(CASES)} folders, {len({loader for _, loader in PAIRS})} loaders, {len(PAIRS)} attempts")
