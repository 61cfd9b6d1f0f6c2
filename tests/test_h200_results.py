"""docs/results.md and what it shows are drawn from the committed data, and a few numbers of it by hand."""

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from loadgen.energy.series import EnergySeries
from loadgen.profiles import read_energy_profile

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/results/h200-2026"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("h200_results", ROOT / "benchmarks/h200_results.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["h200_results"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_committed_files_are_what_the_command_makes(results: ModuleType) -> None:
    for path, text in results.outputs().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run python benchmarks/h200_results.py"


def test_every_table_is_shown_and_every_figure_is_linked(results: ModuleType) -> None:
    document = results.DOCUMENT.read_text()
    assert sorted(re.findall(r"<!-- begin (\S+) -->", document)) == sorted(results.TABLES)
    assert all(f"figures/{name}.svg" in document for name in results.FIGURES)
    for link in re.findall(r"\]\((results/[^)#]+)", document):
        assert (ROOT / "docs" / link).exists(), link


def test_vllm_at_batch_8_by_hand(results: ModuleType) -> None:
    """Three batches of 8 x 128 tokens a repeat: joules over 3,072 tokens, t(2) = 4.303."""
    cells = json.loads((FOLDER / "frameworks/vllm-graphs/summary.json").read_text())["cells"]
    cell = next(c for c in cells if (c["input_tokens"], c["output_tokens"], c["batch"]) == (512, 128, 8))
    each = [part["joules"] / (3 * 8 * 128) for part in cell["full"]]
    assert [part["batches"] for part in cell["full"]] == [3, 3, 3]
    half = 4.303 * float(np.std(each, ddof=1)) / 3**0.5
    line = next(row for row in results.frameworks().splitlines() if row.startswith("| 8 |"))
    assert line.endswith(f"| {fmean(each):.3f} ± {half:.3f} |")


def test_two_gpus_against_one_by_hand(results: ModuleType) -> None:
    with (FOLDER / "frameworks/results.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["workload"] == "512x128" and r["batch"] == "1"]
    logs = {
        name: fmean(np.log([float(r["joules_per_output_token"]) for r in rows if r["server"] == name]))
        for name in ("vllm-graphs", "vllm-graphs-tp2")
    }
    change = np.exp(logs["vllm-graphs-tp2"] - logs["vllm-graphs"]) - 1
    assert f"| 2 | +{100 * change:.1f} %" in results.four_gpus()


def test_the_paper_says_the_same_twice(results: ModuleType) -> None:
    """Saved = 1 - (1 + vLLM above ideal) / (1 + PyTorch above ideal); Figure 1 within what digitising leaves open."""
    for trace, (eager, vllm, saved) in results.TABLE_4.items():
        assert 1 - (1 + vllm) / (1 + eager) == pytest.approx(saved, abs=0.0002)
        _, eager_kwh, vllm_kwh = results.FIGURE_1[trace]
        assert 1 - vllm_kwh / eager_kwh == pytest.approx(saved, abs=0.02)


def shared(name: str) -> list[dict[str, str]]:
    path = ROOT.parent / "shared/data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_digitised_values_are_as_they_were_digitised(results: ModuleType) -> None:
    def read(figure: str, series: str) -> dict[int, float]:
        return {
            int(row["batch"]): float(row["value"])
            for row in shared("fernandez_figs_digitised.csv")
            if row["figure"].startswith(figure) and row["series"] == series
        }

    names = {"hf-eager": "pytorch_eager", "hf-compile": "pytorch_compile", "vllm-eager": "vllm_eager"}
    for name, series in (names | {"vllm-graphs": "vllm_cudagraph"}).items():
        assert results.A100[name] == read("Fig5 A100", series)
    for gpus, values in results.TP_KWH.items():
        assert values == read("Fig6 Llama", f"TP{gpus}")


def test_the_leaderboard_rows_are_as_published(results: ModuleType) -> None:
    where = {"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "H100", "task": "lm-arena-chat"}
    rows = [row for row in shared("mlenergy_v3_llm.csv") if row.items() >= where.items()]
    published = {
        int(row["max_num_seqs"]): (
            float(f"{float(row['J_per_tok']):.3g}"),
            round(float(row["avg_power_w"])),
            round(float(row["tok_s"])),
        )
        for row in rows
    }
    assert {batch: published[batch] for batch in results.ML_ENERGY} == results.ML_ENERGY


def test_the_profile_of_transformers_is_read_back(results: ModuleType) -> None:
    profile = read_energy_profile(str(results.PROFILE))
    at = {(c.input, c.output, c.batch): c for c in profile.cells}
    assert not profile.simulated and (128, 16, 8) not in at, "its window's bound of error is too wide"
    assert at[512, 128, 8].repeats == 2, "the first repeat is warm-up"
    assert at[512, 1, 8].joules_per_request < at[512, 128, 8].joules_per_request


def window(start_ns: int, joules: float | None) -> dict[str, Any]:
    end_ns = start_ns + 1_000_000_000
    return {"start_ns": start_ns, "end_ns": end_ns, "batches": 1, "seconds": 1.0, "joules": joules, "u_joules": 1.0,
            "watts": joules}  # fmt: skip


def test_taking_a_sitting_in_sets_the_first_repeat_aside_and_asks_the_counter(results: ModuleType) -> None:
    """A counter of 100 W, moving every 0.1 s; the last window's joules came too late for the script."""
    t_ns = np.arange(0, 6_000_000_000, 100_000_000)
    series = [EnergySeries("gpu:0", t_ns, t_ns // 10_000)]
    full = [window(10**9, 300.0), window(2 * 10**9, 100.0), window(3 * 10**9, None)]
    cell = {"input_tokens": 8, "output_tokens": 10, "batch": 2, "full": full, "prefill": [window(0, 40.0)]}
    summary = sys.modules["h200_take"].settled({"cells": [cell]}, series, True)
    (taken,) = summary["cells"]
    assert [part["joules"] for part in taken["warm_up"]] == [300.0]
    assert [part["joules"] for part in taken["full"]] == pytest.approx([100.0, 100.0])
    assert taken["joules_per_output_token"] == pytest.approx(5.0)
    assert summary["taken"]["joules_from_energy_jsonl"] == ["8x10@2"]
    assert sys.modules["h200_take"].joules_of(window(5_500_000_000, None), series) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [(2.3204, "2.32"), (0.09758, "0.0976"), (0.9999, "1.00"), (1382.4, "1,380"), (0.0, "0"), (None, "-"), (50, "50.0")],
)
def test_three_digits(results: ModuleType, value: float | None, told: str) -> None:
    assert results.sig(value) == told
