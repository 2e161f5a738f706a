"""The list of known bugs fits the code: what each replaces stands there once, and its tests exist."""

import importlib.util
import json
import sys

import pytest
from children import EXAMPLES

ROOT = EXAMPLES.parent
SPEC = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
mutants = importlib.util.module_from_spec(SPEC)
sys.modules["mutants"] = mutants
SPEC.loader.exec_module(mutants)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_known_bug_fits_the_code(mutant):
    text = (ROOT / mutant.file).read_text()
    for old, new in mutant.changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {mutant.file}"
        text = text.replace(old, new)
    compile(text, mutant.file, "exec")
    assert all((ROOT / path).exists() for path in mutant.tests.partition(" -k ")[0].split())


def test_the_published_result_is_of_all_known_bugs():
    result = json.loads((ROOT / "benchmarks" / "results" / "mutants.json").read_text())
    assert [row["name"] for row in result["mutants"]] == [mutant.name for mutant in mutants.MUTANTS]
    assert result["killed"] == result["of"] == len(mutants.MUTANTS)
    page = (ROOT / "docs" / "guarantees.md").read_text()
    assert f"{result['killed']} of {result['of']} made tests fail" in page
