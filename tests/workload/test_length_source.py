"""Lengths of a trace or of bins, by path or by name."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload import length_source, trace_columns
from loadgen.workload.length_source import (
    DRAWS,
    count_workload,
    draw_bins,
    iter_lengths,
    length_chunks,
    read_lengths,
    source_path,
    spooled_lengths,
)
from loadgen.workload.token_bins import Pairs
from loadgen.workload.trace import read_trace

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


WORDS = '{"prompt": "a", "input_length": 7, "output_length": 5, "timestamp": 0, "workload": "w", "session_id": "s"}\n'


def test_a_trace_of_words_has_the_lengths_that_its_lines_state(tmp_path: Path) -> None:
    (path := tmp_path / "p.jsonl").write_text(WORDS + WORDS.replace("7", "8"))
    assert rows(length_chunks(str(path))) == rows(spooled_lengths(path, None, io.BytesIO())()) == [(7, 5), (8, 5)]
    (columns,) = iter_lengths(path, Counter())
    assert (list(columns.workload), columns.session_id) == (["w", "w"], ["s", "s"])
    assert count_workload(str(path)).rps is None
    source = read_lengths(str(path))
    assert [(request.input_tokens, request.words) for request in source.requests] == [(7, None), (8, None)]


@pytest.mark.parametrize("field", ["input_length", "output_length"])
def test_words_whose_lengths_are_not_stated_are_one_clear_line(tmp_path: Path, field: str) -> None:
    (path := tmp_path / "p.jsonl").write_text(WORDS + WORDS.replace(f'"{field}": ', '"max_tokens": '))
    for read in (lambda: rows(length_chunks(str(path))), lambda: read_lengths(str(path))):
        with pytest.raises(LoadgenError, match=rf"p.jsonl:2: no {field}: the tokens of these words are counted by"):
            read()


def test_many_requests_with_words_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_source, "BLOCK_REQUESTS", 2)
    (path := tmp_path / "p.jsonl").write_text(WORDS * 5)
    assert [len(columns) for columns in iter_lengths(path, Counter())] == [2, 2, 1]


def test_what_sends_made_up_prompts_refuses_words_in_one_line(tmp_path: Path) -> None:
    (path := tmp_path / "p.jsonl").write_text(WORDS)
    with pytest.raises(LoadgenError, match=r"p.jsonl:1: prompt: a trace has lengths, and its words would not be sent"):
        read_trace(path)
