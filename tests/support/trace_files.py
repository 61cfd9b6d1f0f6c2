"""Trace files and requests for the tests of traces and of their formats."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import strategies as st

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


def with_blocks(unshared: TraceRequest) -> st.SearchStrategy[TraceRequest]:
    """Requests with as many ids as their block size makes of their input, or with none."""
    sizes = [size for size in (16, 512, unshared.input_tokens) if unshared.input_tokens <= 3 * size]
    if not sizes:
        return st.just(unshared)
    blocks = st.sampled_from(sizes).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.lists(
                st.integers(-(2**62), 2**62),
                min_size=-(-unshared.input_tokens // size),
                max_size=-(-unshared.input_tokens // size),
            ),
        )
    )
    return st.just(unshared) | blocks.map(
        lambda it: msgspec.structs.replace(unshared, block_tokens=it[0], prefix_ids=tuple(it[1]))
    )
