"""The benchmark for a GPU host keeps its time and leaves a result, whatever its stages do. Tried on a CPU, small."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.engines import ENGINES, ROOT, missing

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(missing("transformers") is not None, reason=str(missing("transformers"))),
]


def measure(out: Path, *options: str) -> dict[str, Any]:
    words = [
        sys.executable,
        "benchmarks/paper/measure_offline.py",
        "--out",
        str(out),
        "--shape",
        "tiny",
        "--energy",
        "cpu",
    ]
    words += ["--device", "cpu", "--window-s", "1", "--repeats", "2", *options]
    words += ["--hf-python", str(ENGINES / "transformers" / "bin" / "python")]
    subprocess.run(words, cwd=ROOT, check=True, timeout=200, capture_output=True)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_a_stage_that_fails_costs_only_itself(tmp_path: Path) -> None:
    """vllm-eager has a Python without vLLM here; hf-eager runs all the same."""
    options = ["--vllm-python", sys.executable, "--stages", "vllm-eager,hf-eager", "--cells", "32x8@1,4"]
    summary = measure(tmp_path, "--budget-s", "150", *options)
    assert summary["stages"]["vllm-eager"]["ended"].startswith("failed with status 1")
    assert "No module named" in (tmp_path / "vllm-eager.log").read_text()
    assert summary["stages"]["hf-eager"]["ended"] == "done"
    assert [cell["batch"] for cell in summary["cells"]] == [1, 4]
    for cell in summary["cells"]:
        tokens = 8 * cell["batch"]
        for part in cell["full"]:
            assert part["joules"] == pytest.approx(part["watts"] * part["seconds"])
            assert part["seconds"] >= 1 and part["batches"] >= 1
        each = [part["joules"] / part["batches"] / tokens for part in cell["full"]]
        assert cell["joules_per_output_token"] == pytest.approx(sum(each) / len(each))
    samples = [json.loads(line) for line in (tmp_path / "energy.jsonl").read_text().splitlines()]
    assert samples[-1]["t_ns"] >= summary["cells"][-1]["full"][-1]["end_ns"]


def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    summary = measure(tmp_path, "--budget-s", "24", "--stages", "hf-eager", "--cells", "32x8@1,2,4,8,16,32")
    assert summary["stages"]["hf-eager"]["seconds"] < 60
    assert len(summary["cells"]) < 6


def test_beams_and_answers_of_one_token(tmp_path: Path) -> None:
    options = [
        "--budget-s",
        "100",
        "--stages",
        "hf-eager",
        "--cells",
        "32x8@2 32x1@2",
        "--sampling",
        '{"num_beams": 4}',
    ]
    summary = measure(tmp_path, *options)
    assert summary["sampling"] == {"num_beams": 4}
    whole, one = summary["cells"]
    assert len(whole["prefill"]) == 1 and one["prefill"] == [], "an answer of one token is its own prefill"
    assert len(one["full"]) == 2 and one["prefill_joules_per_batch"] is None
    assert all(1 <= part["distinct_last"] <= 2 for cell in (whole, one) for part in cell["full"])
