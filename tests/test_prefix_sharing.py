"""Prefix caching on the simulated server gives back what the trace says is shared, and nothing else."""

import json
from pathlib import Path

from click.testing import CliRunner

from loadgen.cli import cli
from loadgen.prompts import BLOCK_TOKENS
from loadgen.serve import served


def cached_tokens(tmp_path: Path, rows: list[tuple[int, list[int]]]) -> list[int]:
    """Of every request of a trace of (input tokens, ids), one each 0.3 s."""
    trace = tmp_path / "t.jsonl"
    lines = [
        {"timestamp": 300 * i, "input_length": n, "output_length": 2, "hash_ids": ids}
        for i, (n, ids) in enumerate(rows)
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "run"
    with served("sim", "--prefix-caching") as url:
        command = ["replay", str(trace), "--base-url", url, "--endpoint", "completions", "--out", str(out), "--json"]
        result = CliRunner().invoke(cli, [*command, "--energy", "none"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    return [r["cached_tokens"] or 0 for r in sorted(records, key=lambda r: r["index"])]


def test_cached_tokens_are_the_shared_blocks_and_no_more(tmp_path: Path) -> None:
    rows = [
        (1500, []),  # unique
        (1500, []),  # unique: nothing of the one before
        (1300, [1, 2]),
        (1300, [1, 2]),  # both blocks
        (1300, [1, 3]),  # the first block
        (1300, [4, 2]),  # a block is cached only behind the same blocks
        (700, [1]),
    ]
    found = cached_tokens(tmp_path, rows)
    wanted = [0, 0, 0, 2 * BLOCK_TOKENS, BLOCK_TOKENS, 0, BLOCK_TOKENS]
    assert all(abs(got - want) <= 16 for got, want in zip(found, wanted, strict=True)), (found, wanted)
