"""Folders that a grammar of mutations spoils: each is accepted and works, or is refused by an error that names a file.

No other exception, nothing run, no file changed inside or outside of the folder, no wait without end, bounded memory.
"""

import json
import os
from datetime import date

import pytest
from children import ended
from folder_grammar import go_through


def go(context, root, seed: int, count: int, timeout: float) -> dict:
    """What one process, whose memory is bounded, finds wrong in so many folders."""
    env = {"LATENTIA_CACHE": os.environ["LATENTIA_CACHE"], "LATENTIA_FAILPOINT": ""}
    child = context.Process(target=go_through, args=(str(root / "log.txt"), env, str(root), seed, 0, count))
    child.log = root / "log.txt"
    child.start()
    code, text = ended(child, timeout)
    assert code == 0, text[-3000:]
    return json.loads((root / "answers.json").read_text())


def test_spoilt_folders_work_or_are_refused_by_name(context, tmp_path):
    answer = go(context, tmp_path, seed=0, count=120, timeout=250)
    assert answer["found"] == {}
    assert answer["grown"] < 300 * 2**20


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_thousands_of_spoilt_folders(context, tmp_path):
    """Other ones every day; LATENTIA_FAULT_SEED brings a day back."""
    chosen = int(os.environ.get("LATENTIA_FAULT_SEED", date.today().toordinal()))
    print(f"LATENTIA_FAULT_SEED={chosen}")
    answer = go(context, tmp_path, chosen, int(os.environ.get("LATENTIA_FUZZ", 3000)), timeout=7000)
    assert answer["found"] == {}
    assert answer["grown"] < 300 * 2**20
