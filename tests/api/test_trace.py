"""A trace that a program writes is the one it reads."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import loadgen

ROW: dict[str, Any] = {"arrival_s": 0.0, "input_tokens": 5, "output_tokens": 2}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_trace_that_is_written_reads_back(tmp_path: Path, suffix: str) -> None:
    requests = loadgen.read_trace("chat").requests[:50]
    loadgen.write_trace(path := tmp_path / f"t.jsonl{suffix}", requests[::-1])
    trace = loadgen.read_trace(path)
    assert trace.requests == requests, "in the order of their arrivals"
    assert (trace.name, trace.timed) == ("t", True)


def test_a_shipped_trace_is_read_by_its_name_and_a_file_by_its_path() -> None:
    root = Path(__file__).parents[2]
    assert loadgen.read_trace("code") == loadgen.read_trace(root / "traces" / "code.jsonl")


def test_a_file_is_overwritten_only_if_asked(tmp_path: Path) -> None:
    one, two = loadgen.TraceRequest(**ROW), loadgen.TraceRequest(**ROW | {"input_tokens": 6})
    loadgen.write_trace(path := tmp_path / "t.jsonl", [one])
    with pytest.raises(loadgen.LoadgenError, match="exists and would change"):
        loadgen.write_trace(path, [two])
    loadgen.write_trace(path, [two], overwrite=True)
    assert loadgen.read_trace(path).requests == (two,)


@pytest.mark.parametrize("fields", [{"input_tokens": None}, {"output_tokens": None}])
def test_a_request_without_lengths_is_not_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(loadgen.LoadgenError, match="expected a request with both of its lengths"):
        loadgen.write_trace(tmp_path / "t.jsonl", [loadgen.TraceRequest(**ROW | fields)])
    with pytest.raises(loadgen.LoadgenError, match="at least one request"):
        loadgen.write_trace(tmp_path / "t.jsonl", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields", [{"input_tokens": -4}, {"output_tokens": 0}, {"arrival_s": float("inf")}], ids=lambda fields: str(fields)
)
def test_a_request_that_no_trace_can_hold_is_not_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(loadgen.LoadgenError, match=r"t\.jsonl:1: expected a finite arrival, and lengths of at least 1"):
        loadgen.write_trace(tmp_path / "t.jsonl", [loadgen.TraceRequest(**ROW | fields)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("azure-2023-chat", "has no requests before"),
        ("mix", "has no requests"),
        ("cht", "no file, trace"),
    ],
)
def test_what_is_no_trace_is_an_error_of_one_line(source: str, message: str) -> None:
    with pytest.raises(loadgen.LoadgenError, match=message):
        loadgen.read_trace(source)


def test_own_words_are_read_as_lengths_where_the_lines_state_them(tmp_path: Path) -> None:
    line = {"prompt": "a b", "input_length": 2, "output_length": 3}
    (path := tmp_path / "p.jsonl").write_bytes(msgspec.json.encode(line) + b"\n")
    (request,) = loadgen.read_trace(path).requests
    assert (request.input_tokens, request.output_tokens, request.words) == (2, 3, None)
