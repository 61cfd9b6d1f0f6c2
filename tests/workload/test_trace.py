import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.workload.trace import (
    MAX_LINE_BYTES,
    MAX_TOKENS,
    Trace,
    TraceRequest,
    check_workload,
    iter_trace,
    line_fault,
    milliseconds,
    read_trace,
    shortened,
    write_trace,
)
from loadgen.workload.trace_columns import iter_columns, write_columns
from loadgen.workload.trace_formats import iter_import
from support.trace_files import GOOD, data, request, saved, with_blocks

# -- reading


def test_every_field_of_a_line_is_read(tmp_path: Path) -> None:
    line = {"timestamp": 1, "input_length": 2, "output_length": 3, "workload": "chat", "session_id": "s"}
    trace = read_trace(saved(tmp_path, json.dumps(line | {"hash_ids": [4, 5], "block_size": 1}).encode()))
    assert trace.requests == (
        TraceRequest(
            arrival_s=0.001,
            input_tokens=2,
            output_tokens=3,
            workload="chat",
            session_id="s",
            prefix_ids=(4, 5),
            block_tokens=1,
        ),
    )
    assert (trace.name, trace.duration_s, trace.mean_rps) == ("t", 0.0, None)


def test_a_bom_blank_lines_and_windows_line_ends_are_not_faults(tmp_path: Path) -> None:
    plain = read_trace(saved(tmp_path, GOOD)).requests
    assert read_trace(saved(tmp_path, b"\xef\xbb\xbf\r\n" + GOOD.replace(b"\n", b"\r\n") + b"\n\n")).requests == plain


def test_mean_rps_is_gaps_per_second(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", [request(10.0), request(10.5), request(12.0)])
    trace = read_trace(tmp_path / "t.jsonl")
    assert (trace.duration_s, trace.mean_rps) == (2.0, 1.0)


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(GOOD * 3),
        gzip.compress(GOOD) + gzip.compress(GOOD * 2),
        zstandard.compress(GOOD * 3),
        zstandard.compress(GOOD) + zstandard.compress(GOOD * 2),
    ],
    ids=["gzip", "two gzip members", "zstd", "two zstd frames"],
)
def test_a_compressed_trace_is_the_same_trace(tmp_path: Path, packed: bytes) -> None:
    path = saved(tmp_path, packed)
    assert read_trace(path).requests == read_trace(saved(tmp_path, GOOD * 3, "plain.jsonl")).requests


@pytest.mark.parametrize(
    ("magic", "reason"), [(b"\x1f\x8b\x01", "Unknown compression method"), (zstandard.FRAME_HEADER, "zstd")]
)
def test_a_file_that_only_looks_compressed_is_reported_with_the_reason(
    tmp_path: Path, magic: bytes, reason: str
) -> None:
    with pytest.raises(LoadgenError, match=rf"cannot read .*t\.jsonl: .*{reason}"):
        read_trace(saved(tmp_path, magic + b" garbage"))


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.jsonl")
    with pytest.raises(LoadgenError, match="not a regular file"):
        read_trace(tmp_path / "t.jsonl")


def test_a_file_whose_rows_were_all_dropped_says_why(tmp_path: Path) -> None:
    no_output = b'{"timestamp": 1, "input_length": 1, "output_length": 0}\n'
    no_input = b'{"timestamp": 1, "input_length": 0, "output_length": 1}\n'
    for rows, reasons in (
        (no_output * 2 + no_input * 3, "all 5 of its rows were dropped: 3 have 0 input tokens, 2 have 0 output tokens"),
        (no_output, "its only row has 0 output tokens"),
    ):
        with pytest.raises(LoadgenError, match=f"has no requests to replay: {reasons}"):
            list(iter_import(saved(tmp_path, rows), Counter()))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_compressed_file_cut_anywhere_is_an_error(tmp_path: Path, compress) -> None:  # type: ignore[no-untyped-def]
    lines = (b'{"timestamp": %d, "input_length": 1, "output_length": 1}\n' % i for i in range(10_000))
    packed = compress(b"".join(lines))  # several blocks: what comes before the cut is whole lines
    for end in (10, 100, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        with pytest.raises(LoadgenError, match="ended before the end-of-stream marker"):
            list(iter_trace(saved(tmp_path, packed[:end])))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "t.jsonl:2: not a JSON object: {"),
        (b"[1, 2]", "t.jsonl:2: [1, 2]: expected a JSON object"),
        (b"2023-11-16 18:17:03,4808,10", "loadgen trace import"),
        (b'{"timestamp": 1, "output_length": 1}', "no input_length: expected an integer of at least 1"),
        (b'{"timestamp": 1, "input_length": -4, "output_length": 1}', "input_length -4: expected"),
        (b'{"timestamp": 1, "input_length": 1.5, "output_length": 1}', "input_length 1.5: expected"),
        (b'{"timestamp": 1, "input_length": true, "output_length": 1}', "input_length true: expected"),
        (b'{"timestamp": 1, "input_length": "7", "output_length": 1}', 'input_length "7": expected'),
        (b'{"timestamp": 1, "input_length": 1e40, "output_length": 1}', "input_length 1e+40: expected"),
        (
            b'{"timestamp": 1, "input_length": 1, "output_length": 0}',
            "output_length 0: expected an integer of at least",
        ),
        (b'{"timestamp": NaN, "input_length": 1, "output_length": 1}', "timestamp NaN: expected milliseconds"),
        (b'{"timestamp": Infinity, "input_length": 1, "output_length": 1}', "timestamp Infinity: expected"),
        (b'{"timestamp": 1e999, "input_length": 1, "output_length": 1}', "timestamp Infinity: expected"),
        (b'{"timestamp": -1, "input_length": 1, "output_length": 1}', "timestamp -1: expected"),
        (b'{"timestamp": null, "input_length": 1, "output_length": 1}', "timestamp null: expected"),
        (b'{"timestamp": 1519, "input_length": 1, "output_length": 1}', "1.519 s comes after one at 1.5205 s"),
        (b'{"timestamp": 1521, "input_length": 1, "output_length": 1, "session_id": 7}', "$.session_id"),
        (b'{"timestamp": 1521, "input_length": 1, "output_length": 1, "workload": "\\u001b[2J"}', "printable"),
        (b'{"timestamp": 1521, "input_length": 1, "output_length": 1, "workload": ""}', "$.workload"),
        (b'{"timestamp": "\xff"}', "t.jsonl:2: byte 0xff at 15 is not UTF-8"),
        (b"[" * 100_000, "t.jsonl:2: not a JSON object"),
    ],
)
def test_a_bad_line_is_reported_with_file_line_and_value(tmp_path: Path, line: bytes, fault: str) -> None:
    with pytest.raises(LoadgenError) as caught:
        read_trace(saved(tmp_path, GOOD + line))
    message = str(caught.value)
    assert fault in message and f"{tmp_path / 't.jsonl'}:2: " in message
    assert message.isprintable() and len(message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages: a trace has lengths, and its words"),
        ({"text_input": "hello"}, "text_input: a trace has lengths"),
        ({"prompt": "hello", "tools": []}, "prompt, tools: a trace has lengths"),
        ({"body": {"messages": []}}, "body: a trace has lengths"),
        ({"hash_id": [1]}, "unknown field hash_id: did you mean hash_ids?"),
        ({"sessionid": "a"}, "unknown field sessionid: did you mean session_id?"),
        ({"priority": 1}, "unknown field priority: expected timestamp, input_length, output_length, workload"),
        ({"\x1b[2J": 1}, "unknown field \N{REPLACEMENT CHARACTER}[2J"),
        ({"chat_id": 1, "parent_chat_id": -1}, "this is a Bailian trace, with times in seconds: convert it"),
        ({"hash_ids": [1, 2]}, "hash_ids has 2 ids; input_length 20 needs 1, for 512 tokens"),
        (
            {"input_length": 600, "hash_ids": [1, 2, 3]},
            "hash_ids has 3 ids; input_length 600 needs 1 or 2, for 512",
        ),
        ({"input_length": 1024, "hash_ids": [1]}, "hash_ids has 1 ids; input_length 1024 needs 2, for 512 tokens"),
        ({"input_length": 512, "hash_ids": [1, 2]}, "hash_ids has 2 ids; input_length 512 needs 1, for 512 tokens"),
        ({"hash_ids": [1, 2, 3], "block_size": 16}, "hash_ids has 3 ids; input_length 20 needs 1 or 2, for 16 tokens"),
        ({"block_size": 0}, "$.block_size"),
    ],
)
def test_what_a_line_says_is_replayed_or_refused_by_name(tmp_path: Path, fields: dict[str, Any], fault: str) -> None:
    line = {"timestamp": 1521, "input_length": 20, "output_length": 5} | fields
    path = saved(tmp_path, GOOD + json.dumps(line).encode())
    for read in (
        read_trace,
        lambda path: list(iter_import(path, Counter())),
        lambda path: list(iter_columns(path, Counter())),
    ):
        with pytest.raises(LoadgenError) as refused:
            read(path)
        assert fault in str(refused.value) and f"{path}:2: " in str(refused.value)


@pytest.mark.parametrize(
    ("input_length", "ids", "block_size"),
    [
        (1, 1, None),
        (512, 1, None),
        (513, 2, None),
        (513, 1, None),
        (1023, 1, None),
        (1100, 0, None),
        (16, 1, 16),
        (17, 2, 16),
        (33, 1, 64),
    ],
)
def test_ids_that_fit_the_prompt_are_read(tmp_path: Path, input_length: int, ids: int, block_size: int | None) -> None:
    line = {"timestamp": 0, "input_length": input_length, "output_length": 5, "hash_ids": list(range(ids))}
    line |= {} if block_size is None else {"block_size": block_size}
    [read] = read_trace(saved(tmp_path, json.dumps(line).encode())).requests
    assert (read.prefix_ids, read.block_tokens) == (tuple(range(ids)), block_size or 512)


def test_a_dropped_row_may_not_hide_a_field(tmp_path: Path) -> None:
    line = b'{"timestamp": 1521, "input_length": 20, "output_length": 0, "messages": []}\n'
    with pytest.raises(LoadgenError, match="messages: a trace has lengths"):
        list(iter_import(saved(tmp_path, GOOD + line), Counter()))


def test_a_file_that_is_no_trace_is_reported_in_one_line(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path, "Is a directory"),
        (saved(tmp_path, b""), "has no requests"),
        (saved(tmp_path, b"\n\n", "blank.jsonl"), "has no requests"),
        (saved(tmp_path, b"x" * (MAX_LINE_BYTES + 1), "long.jsonl"), ":1: the line is longer than 16 MiB"),
    ):
        with pytest.raises(LoadgenError, match=message):
            read_trace(path)


def test_every_line_of_the_mooncake_trace_is_valid() -> None:
    path = data("mooncake_synthetic_trace.jsonl")
    trace = read_trace(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r.arrival_s for r in trace.requests] == [line["timestamp"] / 1000 for line in lines]
    assert [list(r.prefix_ids) for r in trace.requests] == [line["hash_ids"] for line in lines]
    assert [r.output_tokens for r in trace.requests] == [line["output_length"] for line in lines]


# -- writing


requests = st.builds(
    TraceRequest,
    arrival_s=st.floats(0, 1e6),
    input_tokens=st.integers(1, 2**31 - 1),
    output_tokens=st.integers(1, 2**31 - 1),
    workload=st.sampled_from(["default", "chat", "数"]),
    session_id=st.none() | st.text(min_size=1, max_size=5),
    model=st.none() | st.sampled_from(["m", "数"]),
    think_s=st.none() | st.floats(0, 1e7),
    streamed=st.booleans(),
).flatmap(with_blocks)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
@settings(deadline=None, max_examples=50)
@given(written=st.lists(requests, min_size=1, max_size=20).map(lambda rs: sorted(rs, key=lambda r: r.arrival_s)))
def test_what_is_written_is_read_back(tmp_path_factory, name: str, written: list[TraceRequest]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("t") / name
    write_trace(path, written)
    reread = read_trace(path).requests
    for a, b in zip(written, reread, strict=True):
        assert math.isclose(a.arrival_s, b.arrival_s, rel_tol=1e-15, abs_tol=1e-12)
        assert [getattr(a, f) for f in a.__struct_fields__[1:]] == [getattr(b, f) for f in b.__struct_fields__[1:]]
    content = path.read_bytes()
    write_trace(path, written)
    assert path.read_bytes() == content


GRAPH = [
    {"request_id": "a", "session_id": "s"},
    {"request_id": "b", "session_id": "s", "after": ["a"], "think_time": 0.5, "task": "search", "model": "small"},
    {"request_id": "c", "session_id": "s", "after": ["a"], "stream": False},
    {"session_id": "s", "after": ["b", "c"], "think_time": 0.0},
    {"request_id": "a", "session_id": "another"},
]
ROW = {"timestamp": 0, "input_length": 20, "output_length": 5}


def test_a_session_s_graph_is_read_by_rows_and_by_columns_and_written_back(tmp_path: Path) -> None:
    lines = [ROW | fields for fields in GRAPH]
    path = saved(tmp_path, b"\n".join(json.dumps(line).encode() for line in lines))
    requests = read_trace(path).requests
    assert [request.after for request in requests] == [(), ("a",), ("a",), ("b", "c"), ()]
    assert [request.think_s for request in requests] == [None, 0.5, None, 0.0, None]
    assert [(request.task, request.model) for request in requests[1:3]] == [("search", "small"), (None, None)]
    assert [request.streamed for request in requests] == [True, True, False, True, True]
    write_trace(tmp_path / "rows", requests)
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == lines
    for block_bytes in (100, 10_000):
        write_columns(tmp_path / "columns", iter_columns(path, Counter(), block_bytes=block_bytes))
        assert (tmp_path / "columns").read_bytes() == (tmp_path / "rows").read_bytes()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"after": ["x"]}, "after 'x': no earlier line of session 's' has that request_id"),
        ({"after": ["itself"], "request_id": "itself"}, "after 'itself': no earlier line"),
        ({"after": ["a"], "session_id": "new"}, "after 'a': no earlier line of session 'new'"),
        ({"after": ["a"], "session_id": None}, "after without a session_id"),
        ({"task": "t", "session_id": None}, "task without a session_id"),
        ({"task": "\x1b[2J"}, "task '\\x1b[2J': expected a name of printable characters"),
        ({"model": "\n"}, "model '\\n': expected a name of printable characters"),
        ({"request_id": "a"}, "request_id 'a' is that of line 1 of its session already"),
        ({"request_id": ""}, "$.request_id"),
        ({"think_time": -1}, "$.think_time"),
        ({"think_time": 1e300}, "$.think_time"),
        ({"after": "a"}, "$.after"),
    ],
)
def test_a_graph_that_no_run_can_follow_is_refused_by_its_line(
    tmp_path: Path, fields: dict[str, Any], fault: str
) -> None:
    lines = [ROW | {"request_id": "a", "session_id": "s"}, ROW | {"session_id": "s"} | fields]
    path = saved(tmp_path, b"\n".join(json.dumps(line).encode() for line in lines))
    for read in (read_trace, lambda path: list(iter_columns(path, Counter(), block_bytes=40))):
        with pytest.raises(LoadgenError) as refused:
            read(path)
        assert fault in str(refused.value) and f"{path}:2: " in str(refused.value)


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = saved(tmp_path, GOOD)

    def broken():  # type: ignore[no-untyped-def]
        yield request(0)
        raise LoadgenError("bad input")

    with pytest.raises(LoadgenError, match="bad input"):
        write_trace(path, broken())
    assert path.read_bytes() == GOOD
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_without_overwrite_a_file_stays_unless_it_would_not_change(tmp_path: Path) -> None:
    write_trace(tmp_path / "t", [request(1)])
    write_trace(tmp_path / "t", [request(1)], overwrite=False)
    with pytest.raises(LoadgenError, match="--overwrite"):
        write_trace(tmp_path / "t", [request(2)], overwrite=False)
    write_trace(tmp_path / "t", [request(2)])
    assert read_trace(tmp_path / "t").requests[0].arrival_s == 2


# -- exact numbers and messages


@pytest.mark.parametrize(
    ("arrival_s", "timestamp"),
    [(0.0, 0.0), (4.314579, 4314.579), (1e-9, 1e-6), (0.1 + 0.2, 300.00000000000006), (1.0, 1000.0)],
)
def test_milliseconds_have_no_digits_of_rounding(arrival_s: float, timestamp: float) -> None:
    assert milliseconds(arrival_s) == pytest.approx(timestamp, abs=1e-9)
    assert len(repr(milliseconds(arrival_s))) <= len(repr(timestamp))


@pytest.mark.parametrize(
    ("name", "valid"), [(None, True), ("x", True), ("x" * 64, True), ("x" * 65, False), ("", False)]
)
def test_a_workload_name_has_1_to_64_characters(name: str | None, valid: bool) -> None:
    if valid:
        check_workload(name)
    else:
        with pytest.raises(LoadgenError, match="expected a name of 1 to 64 printable characters"):
            check_workload(name)


@pytest.mark.parametrize(("length", "valid"), [(0, False), (1, True), (MAX_TOKENS, True), (MAX_TOKENS + 1, False)])
def test_a_length_is_from_1_to_2_to_the_31(tmp_path: Path, length: int, valid: bool) -> None:
    path = saved(tmp_path, GOOD.replace(b"1155", str(length).encode()))
    if valid:
        assert read_trace(path).requests[0].input_tokens == length
    else:
        with pytest.raises(LoadgenError, match=f"input_length {length}: expected an integer of at least 1"):
            read_trace(path)


def test_requests_at_one_instant_are_in_order(tmp_path: Path) -> None:
    assert len(read_trace(saved(tmp_path, GOOD * 2)).requests) == 2


@pytest.mark.parametrize(("text", "shown"), [("x" * 60, "x" * 60), ("x" * 61, "x" * 57 + "..."), ("a\tb", "a\ufffdb")])
def test_text_in_a_message_is_60_printable_characters(text: str, shown: str) -> None:
    assert shortened(text) == shown


@pytest.mark.parametrize(
    ("arrival_s", "timestamp"),
    [(4.314579, 4314.579), (0.001, 1.0), (123.456, 123456.0), (1e-9, 1e-6), (8376.165817, 8376165.817),
     (4225978.111, 4225978111.0)],
)  # fmt: skip
def test_whole_nanoseconds_are_milliseconds_with_up_to_six_decimals(arrival_s: float, timestamp: float) -> None:
    assert milliseconds(arrival_s) == timestamp


@pytest.mark.parametrize(("name", "magic"), [("t.gz", b"\x1f\x8b"), ("t.zst", b"\x28\xb5\x2f\xfd"), ("t", b'{"ti')])
def test_the_suffix_chooses_the_compression(tmp_path: Path, name: str, magic: bytes) -> None:
    write_trace(tmp_path / name, [request(1)])
    content = (tmp_path / name).read_bytes()
    assert content.startswith(magic)
    if name == "t.gz":
        assert content[3:8] == bytes(5), "neither a name nor a time is in the header"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_write_returns_the_number_of_requests(tmp_path: Path, count: int) -> None:
    assert write_trace(tmp_path / "t", [request(i) for i in range(count)]) == count
    assert (tmp_path / "t").read_bytes().count(b"\n") == count


def test_only_fields_that_differ_from_their_defaults_are_written(tmp_path: Path) -> None:
    write_trace(tmp_path / "t", [request(0.25), msgspec.structs.replace(request(1), workload="w", prefix_ids=(7,))])
    assert [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()] == [
        {"timestamp": 250.0, "input_length": 10, "output_length": 5},
        {"timestamp": 1000.0, "input_length": 10, "output_length": 5, "workload": "w", "hash_ids": [7]},
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a,b", "not a JSON object: a,b (a CSV file?"),
        ('a,"b"', 'not a JSON object: a,"b"'),
        ("ab", "not a JSON object: ab"),
        ("null", "null: expected a JSON object"),
        ('{"input_length": 1}', "no timestamp: expected milliseconds from the start"),
        ('{"timestamp": true}', "timestamp true: expected milliseconds"),
        ('{"timestamp": 0}', "no input_length: expected an integer"),
        ('{"timestamp": -0.1}', "timestamp -0.1: expected milliseconds"),
        ('{"timestamp": 0, "input_length": 0}', "input_length 0: expected an integer of at least 1"),
        ('{"timestamp": 0, "input_length": 1}', "no output_length: expected an integer of at least 1 (servers refuse"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 2}', "MESSAGE in {"),
        ('{"timestamp": 0, "input_length": 2147483647, "output_length": 1}', "MESSAGE in {"),
        ('{"timestamp": 0, "input_length": 2147483648, "output_length": 1}', "input_length 2147483648: expected"),
    ],
)
def test_the_first_fault_of_a_line_is_described(line: str, fault: str) -> None:
    description = line_fault(line, "MESSAGE")
    assert description.startswith(fault)
    assert ("CSV" in description) == ("CSV" in fault)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_line_may_be_16_mib_long_and_no_longer(tmp_path: Path, excess: int) -> None:
    padding = b" " * (MAX_LINE_BYTES + excess - len(GOOD))
    path = saved(tmp_path, GOOD.rstrip() + padding + b"\n")
    if excess <= 0:
        assert len(read_trace(path).requests) == 1
    else:
        with pytest.raises(LoadgenError, match=":1: the line is longer than 16 MiB"):
            read_trace(path)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_line_number_counts_blank_lines(tmp_path: Path, excess: int) -> None:
    with pytest.raises(LoadgenError, match=rf":{3 + excess}: not a JSON object"):
        read_trace(saved(tmp_path, b"\n" * (2 + excess) + b"x\n"))


def test_a_decompressed_file_larger_than_the_buffer_is_whole(tmp_path: Path) -> None:
    line = b'{"timestamp": 1, "input_length": 1, "output_length": 1, "session_id": "%s"}\n' % (b"s" * 3000)
    assert len(read_trace(saved(tmp_path, zstandard.compress(line * 200))).requests) == 200


@pytest.mark.parametrize(("last_s", "rate"), [(10.0, None), (10.5, 2.0), (12.0, 0.5)])
def test_the_mean_rate_is_unknown_only_without_a_gap(last_s: float, rate: float | None) -> None:
    assert Trace("t", (request(10.0), request(last_s)), "").mean_rps == rate
