"""Trace files and requests for the tests of traces and of their formats."""

from pathlib import Path

import pytest

from loadgen.workload.trace import TraceRequest

DATA = Path(__file__).parents[3] / "shared" / "data"
GOOD = b'{"timestamp": 1520.5, "input_length": 1155, "output_length": 211}\n'


def data(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no {name}")
    return DATA / name


def saved(folder: Path, content: bytes, name: str = "t.jsonl") -> Path:
    (path := folder / name).write_bytes(content)
    return path


def request(arrival_s: float, input_tokens: int = 10, output_tokens: int = 5) -> TraceRequest:
    return TraceRequest(arrival_s=arrival_s, input_tokens=input_tokens, output_tokens=output_tokens)
