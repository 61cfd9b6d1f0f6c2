"""One GPU that plays several in turn: the requests of its runs, and what a way of serving uses in all."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import by_turns
from benchmarks.paper import disaggregated as tables
from loadgen.workload.prompts import BLOCK_TOKENS


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return by_turns.lines_of(by_turns.requests_of(rps=8.0, duration_s=20.0))


def test_a_prompt_is_made_of_blocks_that_no_other_has(lines: list[dict[str, Any]]) -> None:
    ids = [block for line in lines for block in line["hash_ids"]]
    assert len(lines) > 50 and len(set(ids)) == len(ids)
    for line in lines:
        tokens = len(line["hash_ids"]) * BLOCK_TOKENS
        assert tokens - BLOCK_TOKENS < line["input_length"] <= tokens
    assert {line["workload"] for line in lines} == set(by_turns.MIX)


def test_a_decode_comes_when_its_prefill_was_done(lines: list[dict[str, Any]]) -> None:
    waits_s = [5.0 if row == 0 else 0.1 for row in range(len(lines))]
    made = by_turns.after_prefill(lines, waits_s)
    due = [line["timestamp"] for line in made]
    assert due == sorted(due) and made[0]["hash_ids"] == lines[1]["hash_ids"]
    came = {line["hash_ids"][0]: line["timestamp"] for line in made}
    for line, wait_s in zip(lines, waits_s, strict=True):
        assert came[line["hash_ids"][0]] == pytest.approx(line["timestamp"] + wait_s * 1e3)
    with pytest.raises(ValueError, match="zip"):
        by_turns.after_prefill(lines, waits_s[1:])


def run(joules: float, seconds: float, requests: int, idle_w: float = 100.0) -> dict[str, Any]:
    return {
        "duration_s": seconds, "requests": requests, "completed": requests, "tokens": {"input": 9, "output": 50},
        "latency_ms": {"ttft": [20.0, 30.0], "tpot": []},
        "gpus": {"a": {"counter_mj": round(joules * 1e3), "seconds": seconds, "idle_w": idle_w}},
        "engines": {"a": {"counters": {"prompt_tokens": 9, "cached_tokens": 3, "iterations": 7}}},
    }  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loads, the higher one first."""
    played = {"half0": run(2000.0, 10.0, 20), "half1": run(1500.0, 5.0, 20), "prefill": run(1500.0, 8.0, 40),
              "decode": run(1300.0, 8.0, 40), "whole": run(1600.0, 10.0, 40)}  # fmt: skip
    low = {f"load4-{name}": own for name, own in played.items()}
    high = {f"load14-{name}": own | {"requests": 90} for name, own in played.items()}
    monkeypatch.setattr(tables, "DATA", tmp_path / "by-turns.json")
    monkeypatch.setattr(tables, "ARRIVING_S", 10.0)
    tables.DATA.write_text(json.dumps(high | low))


def cells(text: str) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in text.splitlines()]


def test_a_gpu_whose_run_was_shorter_is_at_rest_for_the_difference(data: None) -> None:
    _, _, *body = cells(tables.disaggregated())
    assert body[:3] == [
        ["4.0/s", "two replicas", "4,000", "", "80.0", "2,000", ""],
        ["4.0/s", "prefill and decode apart", "3,200", "−20.0 %", "64.0", "1,200", "−40.0 %"],
        ["4.0/s", "one GPU", "1,600", "−60.0 %", "32.0", "600", "−70.0 %"],
    ]


def test_loads_are_in_the_order_of_their_rates(data: None) -> None:
    for draw, rows in ((tables.disaggregated, 3), (tables.by_turns, 5)):
        head, _, *body = cells(draw())
        assert [row[0] for row in body[::rows]] == ["4.0/s", "9.0/s"]
        assert {len(row) for row in body} == {len(head)}


def test_two_gpus_are_compared_in_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas were done after 10 s, apart after 12; computing and generating engines have their own counts."""

    def pair(joules: float, seconds: float, roles: tuple[str | None, str | None]) -> dict[str, Any]:
        one = run(joules, seconds, 20)
        engines = {name: one["engines"]["a"] | {"role": role} for name, role in zip("xy", roles, strict=True)}
        return one | {"gpus": dict.fromkeys("xy", one["gpus"]["a"]), "engines": engines}

    read = {f"{kind}-{load}": made for load in ("load4-1", "load14-1", "load14-2")
            for kind, made in (("rep", pair(2000.0, 10.0, (None, None))),
                               ("pd", pair(1800.0, 12.0, ("prefill", "decode"))))}  # fmt: skip
    monkeypatch.setattr(tables.several_engines, "runs", lambda: read)
    head, _, *body = cells(tables.on_two_gpus())
    assert [row[:10] for row in body[:2]] == [
        ["0.4/s", "two replicas", "10.0", "4,400", "", "88.0", "2,000", "", "33.3 %", "14"],
        ["0.4/s", "prefill and decode apart", "12.0", "3,600", "−18.2 %", "72.0", "1,200", "−40.0 %", "33.3 %", "7"],
    ]
    assert len(head) == len(body[1])
