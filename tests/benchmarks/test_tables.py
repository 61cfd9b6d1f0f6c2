"""docs/results.md and what it shows are drawn from the committed data, and a few numbers of it by hand."""

import csv
import importlib
import json
import re
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from loadgen.energy.series import EnergySeries
from loadgen.energy_model.estimate import surface
from loadgen.energy_model.profiles import read_energy_profile
from loadgen.errors import LoadgenError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/results/h200-2026"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return importlib.import_module("benchmarks.paper.__main__")


def test_the_committed_files_are_what_the_command_makes(results: ModuleType) -> None:
    for path, text in results.outputs().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run python -m benchmarks.paper"


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
        where = {"workload": "512x128", "batch": "1", "model": "llama-3.1-8b"}
        rows = [row for row in csv.DictReader(file) if row.items() >= where.items()]
    logs = {
        name: fmean(np.log([float(r["joules_per_output_token"]) for r in rows if r["server"] == name]))
        for name in ("vllm-graphs", "vllm-graphs-tp2")
    }
    change = np.exp(logs["vllm-graphs-tp2"] - logs["vllm-graphs"]) - 1
    assert f"| 2 | +{100 * change:.1f} %" in results.four_gpus()


def test_guessing_begins_to_save_where_its_decode_joules_fall_to_those_of_greedy(results: ModuleType) -> None:
    """Batch 1: 5 tokens of a step at a rate of 1, and those of the rate told cost what greedy costs."""
    choices = importlib.import_module("benchmarks.paper.decoding")
    greedy, draft = (fmean(results.per_token(name, "512x128", 1)) * 128 for name in (choices.GREEDY, choices.DRAFT))
    cell = next(c for c in results.sitting("vllm-graphs-draft")["cells"] if c["batch"] == 1)
    prefill = cell["prefill_joules_per_batch"]
    counted = 1 + cell["speculation"]["accepted_tokens"] / cell["speculation"]["drafts"]
    told = float(choices.break_even(1, counted))
    step = (draft - prefill) * counted
    for rate, sign in ((told + 0.01, 1), (told - 0.01, -1)):
        assert sign * (greedy - prefill - step / sum(rate**i for i in range(5))) > 0


def test_more_requests_read_more_experts(results: ModuleType) -> None:
    """One layer of 2 x 2 attention matrices and experts of 3 x 2 x 1 weights, of which each token takes 1 of 4."""
    weights_read = importlib.import_module("benchmarks.paper.decoding").weights_read
    config = {"hidden_size": 2, "num_hidden_layers": 1, "num_key_value_heads": 1, "num_attention_heads": 1,
              "vocab_size": 10, "intermediate_size": 1, "num_experts": 4, "num_experts_per_tok": 1}  # fmt: skip
    assert weights_read(config, 1) == 4 * 4 + 1 * 6 + 20
    assert weights_read(config, 2) == 4 * 4 + (1 + 0.75) * 6 + 20
    assert weights_read(config, 1000) == pytest.approx(4 * 4 + 4 * 6 + 20)


def test_a_sitting_is_told_as_its_command(results: ModuleType) -> None:
    argv = ["--out", "--site", "--window-s", "2", "--budget-s", "9", "--cells", "8x8@1 9x9@2", "--window-s", "0.5"]
    assert results.command(argv) == "--window-s 0.5 --cells '8x8@1 9x9@2'"


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


def test_the_choices_were_digitised_so(results: ModuleType) -> None:
    choices = importlib.import_module("benchmarks.paper.decoding")
    rows = shared("fernandez_figs_digitised.csv")

    def read(figure: str, series: str) -> dict[str, float]:
        return {r["batch"]: float(r["value"]) for r in rows if r["figure"].startswith(figure) and r["series"] == series}

    for figure, series, kwh in [
        *(("Fig3", name, kwh) for name, kwh in choices.SPECULATIVE_KWH.items()),
        *(("Fig4", name, kwh) for name, kwh in choices.EXPERTS_KWH.items()),
        ("Fig12", "translation", choices.TASKS_KWH["50x64"]),
        ("Fig12", "textgen", choices.TASKS_KWH["137x64"]),
        ("Fig12", "classification", choices.TASKS_KWH["292x1"]),
        ("Fig12", "summarization", choices.TASKS_KWH["838x64"]),
    ]:
        assert {str(batch): value for batch, value in kwh.items()} == read(figure, series)
    for (eager, vllm), name in zip(choices.BEST_KWH.values(), ("wmt14", "wikitext-2", "imdb", "cnn-dm"), strict=True):
        assert read("Fig8", f"pytorch_eager {name}") == {"best": eager}
        assert read("Fig8", f"vllm_cudagraph {name}") == {"best": vllm}


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
    assert not profile.simulated and len(at) == len(profile.cells) == 3 * 3 * 2
    assert at[2048, 128, 8].repeats == 2, "the first repeat is warm-up"
    assert at[512, 1, 8].joules_per_request < at[512, 128, 8].joules_per_request
    assert surface(profile, 64).joules(np.array([700]), np.array([60]))[0] > 0, "no corner is missing"
    with pytest.raises(LoadgenError):
        surface(profile, 128)


def window(start_ns: int, joules: float | None) -> dict[str, Any]:
    end_ns = start_ns + 1_000_000_000
    return {"start_ns": start_ns, "end_ns": end_ns, "batches": 1, "seconds": 1.0, "joules": joules, "u_joules": 1.0,
            "watts": joules}  # fmt: skip


def test_taking_a_sitting_in_asks_the_counter(results: ModuleType) -> None:
    """A counter of 100 W, moving every 0.1 s; one window's joules came too late for the script."""
    t_ns = np.arange(0, 6_000_000_000, 100_000_000)
    series = [EnergySeries("gpu:0", t_ns, t_ns // 10_000)]
    full = [window(2 * 10**9, 300.0), window(3 * 10**9, None)]
    cell = {"input_tokens": 8, "output_tokens": 10, "batch": 2, "full": full, "prefill": [window(0, 40.0)]}
    summary = importlib.import_module("benchmarks.paper.ingest").settled({"cells": [cell]}, series)
    (taken,) = summary["cells"]
    assert [part["joules"] for part in taken["full"]] == pytest.approx([300.0, 100.0])
    assert taken["joules_per_output_token"] == pytest.approx(10.0)
    assert summary["taken"]["joules_from_energy_jsonl"] == ["8x10@2"]
    assert importlib.import_module("benchmarks.paper.ingest").joules_of(window(5_500_000_000, None), series) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [(2.3204, "2.32"), (0.09758, "0.0976"), (0.9999, "1.00"), (1382.4, "1,380"), (0.0, "0"), (None, "-"), (50, "50.0")],
)
def test_three_digits(results: ModuleType, value: float | None, told: str) -> None:
    assert results.sig(value) == told
