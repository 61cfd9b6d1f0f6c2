"""Lengths of a trace or of bins, by path or by name."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload import trace_columns
from loadgen.workload.length_source import DRAWS, draw_bins, length_chunks, source_path, spooled_lengths
from loadgen.workload.token_bins import Pairs

ROOT = Path(__file__).parents[2]


def rows(chunks: Iterable[Pairs]) -> list[tuple[int, int]]:
    return [row for inputs, outputs in chunks for row in zip(inputs.tolist(), outputs.tolist(), strict=True)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    lines = (f'{{"timestamp":{i},"input_length":{i + 1},"output_length":{2**31 - 1 - i}}}' for i in range(40))
    (path := tmp_path / "t").write_text("\n".join(lines))
    return path


EXPECTED = [(i + 1, 2**31 - 1 - i) for i in range(40)]


def test_spooled_lengths_are_parsed_once_and_the_same_every_time(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = spooled_lengths(trace, None, io.BytesIO())
    assert rows(chunks()) == EXPECTED
    monkeypatch.setattr(trace_columns, "opened", lambda path: pytest.fail("parsed a second time"))
    assert rows(chunks()) == rows(chunks()) == EXPECTED


def test_a_spool_has_eight_bytes_a_request(trace: Path) -> None:
    spool = io.BytesIO()
    rows(spooled_lengths(trace, "jsonl", spool)())
    assert len(spool.getvalue()) == 8 * 40


def test_lengths_of_a_trace_are_its_own_and_those_of_bins_are_always_the_same_draws(trace: Path) -> None:
    assert rows(length_chunks(str(trace))) == EXPECTED
    (first,), (second,) = length_chunks("azure-2023-chat"), length_chunks("azure-2023-chat")
    assert len(first[0]) == DRAWS and np.array_equal(first, second)
    bins, pairs = draw_bins(ROOT / "profiles" / "workloads" / "azure-2023-chat.json")
    assert np.array_equal(pairs, first) and bins.name == "azure-2023-chat"


def test_a_name_is_that_of_a_shipped_source_unless_there_is_such_a_file(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source_path("azure-2023-chat") == ROOT / "profiles" / "workloads" / "azure-2023-chat.json"
    monkeypatch.chdir(trace.parent)
    assert source_path("t") == Path("t") and source_path("none.jsonl") == Path("none.jsonl")
    with pytest.raises(LoadgenError, match="called 'none'"):
        source_path("none")
    assert source_path("chat") == ROOT / "traces" / "chat.jsonl"
    Path("chat").mkdir()
    assert source_path("chat") == ROOT / "traces" / "chat.jsonl" and source_path("./chat") == Path("chat")
    Path("code").write_text("")
    assert source_path("code") == Path("code")
