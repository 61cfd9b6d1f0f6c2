"""Prefix caching on the simulated server gives back what the trace says is shared, and nothing else."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from loadgen.cli import cli
from loadgen.servers.launcher import served
from loadgen.workload.prompts import BLOCK_TOKENS

SIM_BLOCK = 16
"""Tokens of one block of the simulated server's cache; a prompt's last token is computed in any case."""


def replayed(tmp_path: Path, *arguments: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Schedule and records, by index, of a run on a server with an empty prefix cache."""
    out = tmp_path / "run"
    with served("sim", "--prefix-caching") as url:
        command = ["replay", *arguments, "--base-url", url, "--endpoint", "completions", "--out", str(out), "--json"]
        result = CliRunner().invoke(cli, [*command, "--energy", "none"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    schedule, records = (
        [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        for name in ("schedule", "records")
    )
    assert all(record["error"] is None for record in records)
    return schedule, sorted(records, key=lambda record: record["index"])


def write_trace(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_cached_tokens_are_the_shared_blocks_and_no_more(tmp_path: Path) -> None:
    rows: list[tuple[int, list[int]]] = [
        (1500, []),  # unique
        (1500, []),  # unique: nothing of the one before
        (1300, [1, 2, 10]),
        (1300, [1, 2, 11]),  # both blocks
        (1300, [1, 3, 12]),  # the first block
        (1300, [4, 2, 13]),  # a block is cached only behind the same blocks
        (700, [1, 14]),
    ]
    lines = [
        {"timestamp": 300 * i, "input_length": n, "output_length": 2, "hash_ids": ids}
        for i, (n, ids) in enumerate(rows)
    ]
    _, records = replayed(tmp_path, str(write_trace(tmp_path / "t.jsonl", lines)))
    found = [record["cached_tokens"] or 0 for record in records]
    wanted = [0, 0, 0, 2 * BLOCK_TOKENS, BLOCK_TOKENS, 0, BLOCK_TOKENS]
    assert found == wanted


def test_a_turn_finds_the_whole_prompt_before_it_and_a_file_what_was_read_of_it(tmp_path: Path) -> None:
    """Every cached count is what the schedule says, to a block: none for a first turn or a cut history."""
    (tmp_path / "mix.toml").write_text(
        """
        [talk]
        trace = "talk.jsonl"
        turns = "trace"
        think = "constant:0.05"
        [code]
        trace = "files.jsonl"
        files = 2
        shared = 0.75
        [alone]
        trace = "files.jsonl"
        """
    )
    talk = [(0, "a", 300), (50, "b", 200), (100, "a", 420), (150, "a", 610), (200, "b", 100), (250, None, 350)]
    lines = [
        {"timestamp": at, "input_length": n, "output_length": 5} | ({"session_id": who} if who else {})
        for at, who, n in talk
    ]
    write_trace(tmp_path / "talk.jsonl", lines)
    rows = [{"timestamp": 200 * i, "input_length": 600 - 120 * (i % 3), "output_length": 2} for i in range(6)]
    write_trace(tmp_path / "files.jsonl", rows)
    schedule, records = replayed(tmp_path, str(tmp_path / "mix.toml"))
    for request, record in zip(schedule, records, strict=True):
        same = [r for r in schedule if r["text_id"] == request["text_id"] is not None and r is not request]
        sent = [r for r in same if records[r["index"]]["sent_ns"] < record["sent_ns"]]
        read = [r for r in same if records[r["index"]]["first_token_ns"] < record["sent_ns"]]
        most, least = (max((min(r["text_tokens"], request["text_tokens"]) for r in some), default=0)
                       for some in (sent, read))  # fmt: skip
        assert least - 2 * SIM_BLOCK < (record["cached_tokens"] or 0) <= most, (request, record)
        if request["after"] is not None:
            before = records[request["after"]]
            assert record["scheduled_ns"] == before["finished_ns"] + 50_000_000
            assert record["sent_ns"] >= record["scheduled_ns"]
    by_workload = {name: [r for r in schedule if r["workload"] == name] for name in ("talk", "code", "alone")}
    assert [r["input_tokens"] for r in by_workload["talk"] if r["after"] is not None] == [420, 610, 100]
    assert len({r["text_id"] for r in by_workload["talk"]}) == 4, "a, b, b once its history was cut, and one alone"
    assert len({r["text_id"] for r in by_workload["code"]}) == 2
    assert {r["text_id"] for r in by_workload["alone"]} == {None}
