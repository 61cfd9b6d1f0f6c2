"""The published page of a GPU sitting is a function of its summary.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import offline_table
from loadgen.results.study_table import groups, reduction_between


def window(joules: float | None, batches: int, seconds: float) -> dict[str, Any]:
    watts = joules / seconds if joules is not None else None
    return {"joules": joules, "u_joules": 1.0, "batches": batches, "seconds": seconds, "watts": watts}


def cell(stage: str, batch: int, joules: list[float | None]) -> dict[str, Any]:
    """Each repeat: two batches in 4 s; prefill alone is 20 J and 0.4 s a batch."""
    return {
        "stage": stage,
        "input_tokens": 512,
        "output_tokens": 101,
        "batch": batch,
        "full": [window(one, 2, 4.0) for one in joules],
        "prefill": [window(40.0, 2, 0.8)],
        "prefill_joules_per_batch": 20.0,
        "gpus": [{"name": "NVIDIA H200", "temperature_c": 41.0}, {"name": "NVIDIA H200", "temperature_c": 44.0}],
    }


SUMMARY: dict[str, Any] = {
    "shape": "llama-3.1-8b",
    "tensor_parallel": 2,
    "vllm_args": {"quantization": "fp8"},
    "gpus": [{"name": "NVIDIA H200"}],
    "cells": [cell("hf-eager", 10, [4040.0, 4040.0]), cell("vllm-graphs", 10, [1010.0, 1010.0, None])],
}


def test_a_row_by_hand() -> None:
    first, *_ = rows = offline_table.rows_of(SUMMARY)
    assert len(rows) == 4, "a window that the counter did not cover is no row"
    assert (first.server, first.workload, first.batch, first.completed) == ("hf-eager", "512x101", 10, 20)
    assert first.output_tokens == 2020
    assert first.joules_per_output_token == pytest.approx(2.0)
    assert (first.prefill_joules, first.decode_joules) == (40.0, 4000.0)
    assert first.e2e_p50_s == 2.0
    assert first.tpot_p50_s == pytest.approx((2.0 - 0.4) / 100)
    assert first.temperature_c == 44.0
    assert first.energy_valid
    assert rows[-1].server == "vllm-graphs-tp2-quantization=fp8"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"vllm_args": {}, "tensor_parallel": 1, "sampling": {"num_beams": 4}}, "vllm-graphs-num_beams=4"),
        ({"vllm_args": {"speculative_config": {"method": "ngram"}}}, "vllm-graphs-tp2-ngram"),
        (
            {"vllm_args": {"speculative_config": {"method": "draft_model", "synthetic_acceptance_rates": [0.7, 0.49]}}},
            "vllm-graphs-tp2-draft=0.7",
        ),
    ],
)
def test_a_server_is_named_after_what_was_changed(changed: dict[str, Any], name: str) -> None:
    assert offline_table.rows_of(SUMMARY | changed)[-1].server == name


def test_a_row_is_about_the_gpus_whose_counter_was_read() -> None:
    (row, *_) = offline_table.rows_of({**SUMMARY, "energy": {"domains": [{"name": "gpu:0"}]}})
    assert (row.gpu, row.temperature_c) == ("NVIDIA H200", 41.0)


def test_the_reduction_and_the_bound_follow() -> None:
    rows = offline_table.rows_of(SUMMARY)
    base, best = groups(rows)
    assert reduction_between(base, best, "joules_per_output_token").mean == pytest.approx(0.75)
    flops_low, flops_high = 20 * 612 * 2 * 8.03e9, 20 * 620 * 2 * 8.03e9 * 1.05
    assert flops_low * 700 / 989e12 < rows[0].idealized_joules < flops_high * 700 / 989e12


def test_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    monkeypatch.setattr("sys.argv", ["offline_table.py", str(tmp_path / "out"), str(tmp_path / "summary.json")])
    offline_table.main()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "75.0 %" in page and "SIMULATED" not in page
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 5
