"""Every public format becomes the same requests; every bad row is reported with file, line and value."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.trace import TraceRequest, read_trace, write_trace
from loadgen.workload.trace_columns import iter_columns
from loadgen.workload.trace_formats import detect_format, iter_import, time_origin
from support.trace_files import GOOD, data, request, saved

AZURE_2023 = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.9799600,4808,10\r\n"
AZURE_2024 = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,2162,5\n"
BURSTGPT = (
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
)
BURSTGPT_2 = (
    b"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5.25,78,0.1,ChatGPT,472,18,490,Conversation log\n6,,0.1,GPT-4,1,2,3,API log\n"
)


def imported(path: Path, **options) -> tuple[list[TraceRequest], Counter[str]]:  # type: ignore[no-untyped-def]
    dropped: Counter[str] = Counter()
    return list(iter_import(path, dropped, **options)), dropped


def test_azure_2023_keeps_all_seven_decimals_over_midnight(tmp_path: Path) -> None:
    requests, _ = imported(saved(tmp_path, AZURE_2023 + b"2023-11-17 00:00:00.0000001,3,4\r\n"))
    assert [(r.input_tokens, r.output_tokens) for r in requests] == [(4808, 10), (3, 4)]
    assert [r.arrival_s for r in requests] == pytest.approx([0.0, 0.0200401], abs=1e-15)


def test_azure_2024_has_zones_six_decimals_or_none(tmp_path: Path) -> None:
    requests, _ = imported(saved(tmp_path, AZURE_2024 + b"2024-05-10 00:00:00.009930+00:00,7,8\n"))
    assert requests == [request(0.0, 2162, 5), request(0.00993, 7, 8)]


def test_a_zone_is_taken_into_account(tmp_path: Path) -> None:
    requests, _ = imported(saved(tmp_path, AZURE_2024 + b"2024-05-10 02:00:01+02:00,7,8\n"))
    assert requests[1].arrival_s == 1.0


def test_burstgpt_failures_are_dropped_and_counted(tmp_path: Path) -> None:
    requests, dropped = imported(saved(tmp_path, BURSTGPT + b"6,GPT-4,9,0,9,API log\n7,GPT-4,9,1,10,API log\n"))
    assert requests == [request(0, 472, 18), request(2, 9, 1)]  # from the first row, at 5 s
    assert dropped == {"0 output tokens": 1}


def test_burstgpt_sessions_are_kept_if_the_file_has_them(tmp_path: Path) -> None:
    requests, _ = imported(saved(tmp_path, BURSTGPT_2), workload="w")
    assert [(r.arrival_s, r.session_id, r.workload) for r in requests] == [(0.0, "78", "w"), (0.75, None, "w")]


def test_jsonl_rows_of_0_tokens_are_dropped_by_import(tmp_path: Path) -> None:
    requests, dropped = imported(saved(tmp_path, GOOD + GOOD.replace(b"211", b"0") + GOOD), workload="w")
    assert [r.workload for r in requests] == ["w", "w"]
    assert dropped == {"0 output tokens": 1}


def bailian(**fields: Any) -> bytes:
    line = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 40, "output_length": 30,
            "type": "text", "turn": 1, "hash_ids": [1, 2, 3]}  # fmt: skip
    return json.dumps(line | fields).encode() + b"\n"


def test_bailians_times_are_seconds_its_blocks_16_tokens_and_its_chains_sessions(tmp_path: Path) -> None:
    content = (
        bailian()
        + bailian(chat_id=2, timestamp=1.5, type="search", input_length=16, hash_ids=[1])
        + bailian(chat_id=3, parent_chat_id=1, timestamp=20.25, turn=2)
        + bailian(chat_id=4, parent_chat_id=3, timestamp=60.0, turn=3, hash_ids=[])
        + bailian(chat_id=6, parent_chat_id=5, timestamp=61.0, turn=2)  # its first turn was before the file
        + bailian(chat_id=7, parent_chat_id=5, timestamp=62.0, turn=2)
    )
    requests, dropped = imported(saved(tmp_path, content))
    assert [(r.arrival_s, r.workload, r.session_id) for r in requests] == [
        (0.0, "text", "1"), (1.5, "search", "2"), (20.25, "text", "1"), (60.0, "text", "1"), (61.0, "text", "5"),
        (62.0, "text", "5"),
    ]  # fmt: skip
    assert [r.prefix_ids for r in requests][:2] == [(1, 2, 3), (1,)]
    assert {r.block_tokens for r in requests} == {16} and not dropped
    write_trace(tmp_path / "out.jsonl", requests)
    assert read_trace(tmp_path / "out.jsonl").requests[:3] == tuple(requests[:3])
    assert {r.workload for r in imported(tmp_path / "t.jsonl", workload="w")[0]} == {"w"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hash_ids": [1]}, "hash_ids has 1 ids; input_length 40 needs 2 or 3, for 16 tokens"),
        ({"messages": []}, "messages: a trace has lengths"),
        ({"turns": 1}, "unknown field turns: did you mean turn?"),
        ({"timestamp": -1}, "$.timestamp"),
        ({"type": "\x1b"}, "expected printable characters"),
        ({"type": ""}, "$.type"),
        ({"chat_id": None}, "$.chat_id"),
        ({"output_length": 1.5}, "$.output_length"),
    ],
)
def test_a_bad_bailian_line_is_reported_with_file_line_and_value(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, bailian() + bailian(**fields))
    with pytest.raises(LoadgenError) as caught:
        imported(path)
    assert message in str(caught.value) and f"{path}:2: " in str(caught.value)


def test_a_bailian_row_of_0_tokens_is_dropped_and_still_the_parent_of_the_next(tmp_path: Path) -> None:
    content = bailian(output_length=0) + bailian(chat_id=2, parent_chat_id=1)
    requests, dropped = imported(saved(tmp_path, content))
    assert [r.session_id for r in requests] == ["1"] and dropped == {"0 output tokens": 1}


@pytest.mark.parametrize(
    "content",
    [
        BURSTGPT.splitlines()[0] + b"\n0,ChatGPT,5,0,5,API log\n45,ChatGPT,7,0,7,API log\n",
        GOOD.replace(b"211", b"0") * 2,
        bailian(output_length=0) * 2,
    ],
)
def test_a_file_of_failures_says_so_with_their_number(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, content)
    for read in (iter_import, iter_columns):
        with pytest.raises(LoadgenError, match="all 2 of its rows were dropped: 2 have 0 output tokens"):
            list(read(path, Counter()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,c\n1,2,3\n", ":1: a,b,c: expected JSON lines, or the CSV header"),
        (b"", "has no requests"),
        (AZURE_2023.splitlines()[0], "has no requests"),
        (b"TIMESTAMP,ContextTokens\n", "no column GeneratedTokens"),
        (AZURE_2023 + b"2023-11-17 00:00:01,1\n", ":3: 2023-11-17 00:00:01,1: expected 3 columns"),
        (AZURE_2023 + b"yesterday,1,2\n", ":3: time 'yesterday': expected a date and time"),
        (AZURE_2023 + b"2023-13-17 00:00:01,1,2\n", ":3: time '2023-13-17 00:00:01'"),
        (AZURE_2023 + b"2023-11-17 00:00:01,-1,2\n", ":3: '-1' tokens: expected an integer"),
        (AZURE_2023 + b"2023-11-17 00:00:01,1.5,2\n", ":3: '1.5' tokens"),
        (AZURE_2023 + b"2023-11-17 00:00:01,1,99999999999\n", ":3: '99999999999' tokens"),
        (AZURE_2023 + b"2023-11-15 00:00:01,1,2\n", ":3: arrival at"),
        (BURSTGPT + b"nan,GPT-4,1,2,3,API log\n", ":3: time 'nan': expected seconds"),
        (BURSTGPT + b"inf,GPT-4,1,2,3,API log\n", ":3: time 'inf'"),
        (BURSTGPT + b"-6,GPT-4,1,2,3,API log\n", ":3: time '-6'"),
    ],
)
def test_a_bad_row_is_reported_with_file_line_and_value(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(LoadgenError) as caught:
        imported(saved(tmp_path, content, "t.csv"))
    assert message in str(caught.value) and str(tmp_path / "t.csv") in str(caught.value)


def test_a_requested_format_overrides_the_first_line(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="no column Timestamp"):
        imported(saved(tmp_path, AZURE_2023), format="burstgpt")


@pytest.mark.parametrize("name", ["conv", "code"])
def test_the_azure_2023_traces_import_as_their_statistics_say(tmp_path: Path, name: str) -> None:
    stats = json.loads(data(f"AzureLLMInferenceTrace_{name}.stats.json").read_text())
    requests, dropped = imported(data(f"AzureLLMInferenceTrace_{name}.csv"))
    assert len(requests) == stats["rows"] and not dropped
    assert sum(r.input_tokens for r in requests) == stats["total_in"]
    assert sum(r.output_tokens for r in requests) == stats["total_out"]
    assert requests[-1].arrival_s == pytest.approx(stats["duration_s"], abs=1e-6)
    write_trace(tmp_path / "t.jsonl", requests)
    assert read_trace(tmp_path / "t.jsonl").requests == tuple(requests)


@pytest.mark.parametrize(
    ("first_line", "format_"),
    [
        ("{", "jsonl"),
        ('{"chat_id": 1', "bailian"),
        ("TIMESTAMP,ContextTokens", "azure"),
        ("Timestamp,Request tokens,x", "burstgpt"),
    ],
)
def test_the_first_line_tells_the_format(first_line: str, format_: str) -> None:
    assert detect_format(Path("t"), first_line) == format_


AZURE_HEADER = (1, "TIMESTAMP,ContextTokens,GeneratedTokens")
BURSTGPT_HEADER = (1, "Timestamp,Model,Request tokens,Response tokens")


@pytest.mark.parametrize(
    ("text", "since_1970_ns"),
    [
        ("1970-01-01 00:00:00", 0),
        ("1970-01-01 00:00:00.1", 100_000_000),
        ("1970-01-01T00:00:01.000000001Z", 1_000_000_001),
        ("1970-01-01 00:00:00-01:00", 3600 * 10**9),
        ("1970-01-02 00:00:00+02:00", 22 * 3600 * 10**9),
    ],
)
def test_the_origin_of_azure_is_its_first_instant_in_nanoseconds(text: str, since_1970_ns: int) -> None:
    assert time_origin(Path("t"), "azure", AZURE_HEADER, (2, f"{text},1,1")) == since_1970_ns


def test_the_origin_of_burstgpt_is_its_first_second_and_json_counts_from_0() -> None:
    assert time_origin(Path("t"), "burstgpt", BURSTGPT_HEADER, (2, "5.25,m,1,1")) == 5.25
    assert time_origin(Path("t"), "jsonl", (1, "{}"), (2, "{}")) == 0


@pytest.mark.parametrize(
    ("row", "dropped"),
    [
        (b"7,GPT-4,0,1,1,x\n", {"0 input tokens": 1}),
        (b"7,GPT-4,1,0,1,x\n", {"0 output tokens": 1}),
        (b"7,GPT-4,0,0,0,x\n", {"0 input tokens": 1}),
        (b"7,GPT-4,2147483647,1,9,x\n", {}),
    ],
)
def test_a_dropped_row_is_counted_once_under_its_first_zero(
    tmp_path: Path, row: bytes, dropped: dict[str, int]
) -> None:
    requests, counted = imported(saved(tmp_path, BURSTGPT + row))
    assert counted == dropped and len(requests) == 2 - sum(dropped.values())


@pytest.mark.parametrize("tokens", [b"2147483648", b"00000000001", b"", b"+1", "١".encode()])
def test_a_length_is_at_most_ten_ascii_digits_up_to_the_largest(tmp_path: Path, tokens: bytes) -> None:
    with pytest.raises(LoadgenError, match=r":3: .* tokens: expected an integer, 0 to 2147483647"):
        imported(saved(tmp_path, BURSTGPT + b"7,GPT-4," + tokens + b",1,9,x\n"))


def test_a_missing_column_is_reported_with_the_line_of_the_header(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match=r":2: no column GeneratedTokens in TIMESTAMP,ContextTokens"):
        imported(saved(tmp_path, b"\nTIMESTAMP,ContextTokens\n"))


def test_a_row_at_second_0_is_valid_and_a_first_row_of_0_tokens_sets_the_origin(tmp_path: Path) -> None:
    header = BURSTGPT.splitlines()[0] + b"\n"
    requests, _ = imported(saved(tmp_path, header + b"0,m,0,1,1,x\n1.5,m,1,1,2,x\n"))
    assert [r.arrival_s for r in requests] == [1.5]
