"""benchmarks/gpu.py, tiny, so that it runs at once where a GPU is at hand."""

import json
import sys
from pathlib import Path

import pytest
from children import ended, enter

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def benchmark(log: str, env: dict[str, str], argv: list[str]) -> None:
    enter(log, env)
    sys.argv = [str(PATH), "--tiny", *argv]
    sys.path.insert(0, str(PATH.parent))
    import gpu

    gpu.main()


@pytest.mark.fault
def test_every_part_runs_tiny_and_is_written(start, tmp_path):
    output = tmp_path / "results" / "gpu.json"
    code, text = ended(start(benchmark, ["--output", str(output), "--commit", "abc"]), 300)
    assert code == 0, text
    found = json.loads(output.read_text())
    assert found["commit"] == "abc" and "--tiny" in found["command"] and found["card"] and found["left_out"] == []
    rows = found["rows"]
    kinds = ("latentia, {}", "latentia, float32 norms, {}", "latentia, channels last, {}", "diffusers, {}")
    names = [*(kind.format("8 x 8") for kind in kinds), "latentia, 8 x 8, compiled", "diffusers, 8 x 8, compiled"]
    assert {*rows} == {"peak", *names, "loop, 8 x 8", "sampling, latentia", "sampling, diffusers"}
    for name in names:
        assert rows[name]["ms_per_step"] > 0 and rows[name]["share_of_peak"] > 0
        assert abs(rows[name]["parameters"] / rows[names[0]]["parameters"] - 1) < 0.3
    assert rows["loop, 8 x 8"]["overhead"] == pytest.approx(
        rows["loop, 8 x 8"]["loop_ms"] / rows["loop, 8 x 8"]["bare_ms"] - 1, abs=0.01
    )


@pytest.mark.fault
def test_what_there_is_no_time_for_is_listed(start, tmp_path):
    output = tmp_path / "gpu.json"
    assert ended(start(benchmark, ["--output", str(output), "--seconds", "0"]), 300)[0] == 0
    found = json.loads(output.read_text())
    assert {*found["rows"]} == {"peak"} and len(found["left_out"]) == 9
