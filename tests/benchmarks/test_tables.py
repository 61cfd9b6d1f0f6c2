"""Every table and figure of docs/results is drawn from the committed data; a few numbers are checked by hand."""

import csv
import gzip
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

import benchmarks.paper.__main__ as paper
from benchmarks.paper import checks, frameworks, ingest, moe, published, speculative_decoding, tensor_parallel
from benchmarks.paper.offline_results import per_token
from benchmarks.paper.words import in_words, percent, percents, sig
from loadgen.energy.series import EnergySeries
from loadgen.energy_model.energy_profile import read_energy_profile
from loadgen.energy_model.estimate import surface
from loadgen.errors import LoadgenError
from loadgen.stats.intervals import Interval

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/results/h200-2026"


def test_the_committed_files_are_what_the_command_makes() -> None:
    for path, text in paper.outputs().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run python -m benchmarks.paper"


def test_every_table_is_shown_once_and_every_figure_is_linked() -> None:
    pages = {path: path.read_text() for path in paper.DOCUMENTS.glob("*.md")}
    document = "".join(pages.values())
    assert sorted(re.findall(r"<!-- begin (\S+) -->", document)) == sorted(paper.TABLES)
    assert all(f"figures/{name}.svg" in document for name in paper.FIGURES)


def test_every_link_of_the_result_pages_leads_somewhere() -> None:
    for path in paper.DOCUMENTS.glob("*.md"):
        for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", path.read_text()):
            target = path.parent / link if link else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, anchor


def test_a_table_is_filled_in_between_its_markers_and_nothing_else_changes() -> None:
    document = "before\n<!-- begin online-paper -->\nstale\n<!-- end online-paper -->\nafter\n"
    filled = paper.filled(document)
    assert filled.startswith("before\n<!-- begin online-paper -->\n\n| batch |") and "stale" not in filled
    assert filled.endswith("|\n\n<!-- end online-paper -->\nafter\n")
    assert paper.filled(filled) == filled
    with pytest.raises(KeyError):
        paper.filled("<!-- begin nothing --><!-- end nothing -->")


def test_vllm_at_batch_8_by_hand() -> None:
    """Three batches of 8 x 128 tokens a repeat: joules over 3,072 tokens, t(2) = 4.303."""
    lines = map(json.loads, (FOLDER / "offline/sessions.jsonl").read_text().splitlines())
    (stored,) = (line for line in lines if line["session"] == "vllm-graphs")
    cell = next(c for c in stored["cells"] if (c["input_tokens"], c["output_tokens"], c["batch"]) == (512, 128, 8))
    per_token = [part["joules"] / (3 * 8 * 128) for part in cell["full"]]
    assert [part["batches"] for part in cell["full"]] == [3, 3, 3]
    half = 4.303 * float(np.std(per_token, ddof=1)) / 3**0.5
    line = next(row for row in frameworks.frameworks().splitlines() if row.startswith("| 8 |"))
    assert line.endswith(f"| {fmean(per_token):.3f} ± {half:.3f} |")


def test_two_gpus_against_one_by_hand() -> None:
    with (FOLDER / "offline/results.csv").open(newline="") as file:
        where = {"workload": "512x128", "batch": "1", "model": "llama-3.1-8b"}
        rows = [row for row in csv.DictReader(file) if row.items() >= where.items()]
    logs = {
        name: fmean(np.log([float(r["joules_per_output_token"]) for r in rows if r["server"] == name]))
        for name in ("vllm-graphs", "vllm-graphs-tp2")
    }
    change = np.exp(logs["vllm-graphs-tp2"] - logs["vllm-graphs"]) - 1
    assert f"| 2 | +{100 * change:.1f} %" in tensor_parallel.four_gpus()


def test_drafting_saves_from_the_rate_at_which_decode_joules_fall_to_those_of_greedy() -> None:
    """Batch 1: a step of acceptance 1 gives 5 tokens; at the break-even rate its tokens cost what greedy ones cost."""
    names = (speculative_decoding.GREEDY, speculative_decoding.DRAFT)
    greedy, draft = (fmean(per_token(name, "512x128", 1)) * 128 for name in names)
    cell = next(c for c in ingest.session("vllm-graphs-draft")["cells"] if c["batch"] == 1)
    prefill = cell["prefill_joules_per_batch"]
    counted = 1 + cell["speculation"]["accepted_tokens"] / cell["speculation"]["drafts"]
    break_even = float(speculative_decoding.break_even(1, counted))
    step = (draft - prefill) * counted
    for rate, sign in ((break_even + 0.01, 1), (break_even - 0.01, -1)):
        assert sign * (greedy - prefill - step / sum(rate**i for i in range(5))) > 0


def test_a_larger_batch_reads_more_experts() -> None:
    """One layer of 2 x 2 attention matrices and experts of 3 x 2 x 1 weights, of which each token takes 1 of 4."""
    config = {"hidden_size": 2, "num_hidden_layers": 1, "num_key_value_heads": 1, "num_attention_heads": 1,
              "vocab_size": 10, "intermediate_size": 1, "num_experts": 4, "num_experts_per_tok": 1}  # fmt: skip
    assert moe.weights_read(config, 1) == 4 * 4 + 1 * 6 + 20
    assert moe.weights_read(config, 2) == 4 * 4 + (1 + 0.75) * 6 + 20
    assert moe.weights_read(config, 1000) == pytest.approx(4 * 4 + 4 * 6 + 20)


def test_a_session_is_shown_as_the_command_that_made_it() -> None:
    argv = ["--out", "--site", "--window-s", "2", "--budget-s", "9", "--cells", "8x8@1 9x9@2", "--window-s", "0.5"]
    assert checks.command(argv) == "--window-s 0.5 --cells '8x8@1 9x9@2'"


def test_the_paper_agrees_with_itself() -> None:
    """Saved = 1 - (1 + vLLM above ideal) / (1 + PyTorch above ideal); Figure 1 within what digitising leaves open."""
    for trace, (eager, vllm, saved) in published.TABLE_4.items():
        assert 1 - (1 + vllm) / (1 + eager) == pytest.approx(saved, abs=0.0002)
        _, eager_kwh, vllm_kwh = published.FIGURE_1[trace]
        assert 1 - vllm_kwh / eager_kwh == pytest.approx(saved, abs=0.02)


def shared(name: str) -> list[dict[str, str]]:
    path = ROOT.parent / "shared/data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_digitised_values_are_as_they_were_digitised() -> None:
    def read(figure: str, series: str) -> dict[int, float]:
        return {
            int(row["batch"]): float(row["value"])
            for row in shared("fernandez_figs_digitised.csv")
            if row["figure"].startswith(figure) and row["series"] == series
        }

    names = {"hf-eager": "pytorch_eager", "hf-compile": "pytorch_compile", "vllm-eager": "vllm_eager"}
    for name, series in (names | {"vllm-graphs": "vllm_cudagraph"}).items():
        assert published.A100[name] == read("Fig5 A100", series)
    for gpus, values in published.TP_KWH.items():
        assert values == read("Fig6 Llama", f"TP{gpus}")


def test_the_digitised_figures_3_4_8_and_12_are_as_they_were_digitised() -> None:
    rows = shared("fernandez_figs_digitised.csv")

    def read(figure: str, series: str) -> dict[str, float]:
        return {r["batch"]: float(r["value"]) for r in rows if r["figure"].startswith(figure) and r["series"] == series}

    for figure, series, kwh in [
        *(("Fig3", name, kwh) for name, kwh in published.SPECULATIVE_KWH.items()),
        *(("Fig4", name, kwh) for name, kwh in published.EXPERTS_KWH.items()),
        ("Fig12", "translation", published.TASKS_KWH["50x64"]),
        ("Fig12", "textgen", published.TASKS_KWH["137x64"]),
        ("Fig12", "classification", published.TASKS_KWH["292x1"]),
        ("Fig12", "summarization", published.TASKS_KWH["838x64"]),
    ]:
        assert {str(batch): value for batch, value in kwh.items()} == read(figure, series)
    for (eager, vllm), name in zip(published.BEST_KWH.values(), ("wmt14", "wikitext-2", "imdb", "cnn-dm"), strict=True):
        assert read("Fig8", f"pytorch_eager {name}") == {"best": eager}
        assert read("Fig8", f"vllm_cudagraph {name}") == {"best": vllm}


def test_the_leaderboard_rows_are_as_published() -> None:
    where = {"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "H100", "task": "lm-arena-chat"}
    rows = [row for row in shared("mlenergy_v3_llm.csv") if row.items() >= where.items()]
    leaderboard = {
        int(row["max_num_seqs"]): (
            float(f"{float(row['J_per_tok']):.3g}"),
            round(float(row["avg_power_w"])),
            round(float(row["tok_s"])),
        )
        for row in rows
    }
    assert {batch: leaderboard[batch] for batch in published.ML_ENERGY} == published.ML_ENERGY


def test_the_profile_of_transformers_is_read_back() -> None:
    profile = read_energy_profile(str(paper.PROFILE))
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


def test_a_window_that_ended_before_the_counter_updated_gets_its_joules_from_the_samples() -> None:
    """A counter of 100 W that updates every 0.1 s; the joules of one window came too late for the script."""
    t_ns = np.arange(0, 6_000_000_000, 100_000_000)
    series = [EnergySeries("gpu:0", t_ns, t_ns // 10_000)]
    full = [window(2 * 10**9, 300.0), window(3 * 10**9, None)]
    cell = {"input_tokens": 8, "output_tokens": 10, "batch": 2, "full": full, "prefill": [window(0, 40.0)]}
    summary = ingest.with_late_joules({"cells": [cell]}, series)
    (ingested,) = summary["cells"]
    assert [part["joules"] for part in ingested["full"]] == pytest.approx([300.0, 100.0])
    assert ingested["joules_per_output_token"] == pytest.approx(10.0)
    assert summary["taken"]["joules_from_energy_jsonl"] == ["8x10@2"]
    assert ingest.joules_of(window(5_500_000_000, None), series) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.3204, "2.32"), (0.09758, "0.0976"), (0.9999, "1.00"), (1382.4, "1,380"), (0.0, "0"), (None, "-"), (50, "50.0")],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert sig(value) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(2.3204, 2.30, 2.34, 3), "2.32 ± 0.02"),
        (Interval(0.09758, 0.0973, 0.0979, 3), "0.0976 ± 0.0003"),
        (Interval(2.0, 1.9999, 2.0001, 3), "2.0000 ± 0.0001"),
        (Interval(0.5, None, None, 1), "0.500 (one repeat)"),
    ],
)
def test_a_mean_has_the_digits_that_its_interval_needs(interval: Interval, text: str) -> None:
    assert in_words(interval) == text


def test_a_reduction_and_the_change_that_it_is_have_the_same_interval() -> None:
    reduction = Interval(0.25, 0.2, 0.3, 3)
    assert percents(reduction) == "25.0 % [20.0, 30.0]"
    assert percents(reduction, -1) == "−25.0 % [−30.0, −20.0]"
    assert percents(Interval(-0.05, None, None, 1), -1) == "+5.0 %"
    assert percents(None) == percent(None) == "-"
    assert (percent(0.0312), percent(0.0312, True), percent(-0.0312, True)) == ("3.1 %", "+3.1 %", "−3.1 %")


def session_folder(folder: Path, joules: float | None) -> Path:
    folder.mkdir()
    full = [window(10**9, joules)]
    cell = {"input_tokens": 8, "output_tokens": 10, "batch": 2, "full": full, "prefill": []}
    (folder / "summary.json").write_text(json.dumps({"cells": [cell]}))
    samples = ({"t_ns": i * 10**8, "domain": "gpu:0", "joules": 10.0 * i} for i in range(40))
    (folder / "energy.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def test_a_session_is_appended_with_its_samples_and_never_twice(tmp_path: Path) -> None:
    offline = tmp_path / "group"
    ingest.ingest(session_folder(tmp_path / "a", 100.0), offline / "first")
    ingest.ingest(session_folder(tmp_path / "b", None), offline / "second")
    with pytest.raises(ValueError, match="holds a session 'first' already"):
        ingest.ingest(tmp_path / "a", offline / "first")
    first, second = map(json.loads, (offline / "sessions.jsonl").read_text().splitlines())
    assert (first["session"], second["session"]) == ("first", "second")
    assert second["taken"]["joules_from_energy_jsonl"] == ["8x10@2"]
    assert second["cells"][0]["joules_per_output_token"] == pytest.approx(first["cells"][0]["joules_per_output_token"])
    samples = [json.loads(line) for line in gzip.decompress((offline / "energy.jsonl.gz").read_bytes()).splitlines()]
    assert [sample["session"] for sample in samples] == ["first"] * 40 + ["second"] * 40


def test_the_spread_needs_two_values() -> None:
    assert ingest.spread([1.0]) is None and ingest.mean([]) is None
    assert ingest.spread([1.0, 3.0]) == 1.0
