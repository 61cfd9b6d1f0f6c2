"""Columns are the requests that `trace` reads one by one: the same values, bytes and errors, wherever blocks end."""

import gzip
import io
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.workload import trace_columns
from loadgen.workload.trace import MAX_LINE_BYTES, TraceRequest, write_trace
from loadgen.workload.trace_columns import (
    Columns,
    iter_columns,
    line_blocks,
    parse_decimals,
    parse_timestamps_ns,
    write_columns,
)
from loadgen.workload.trace_formats import iter_import
from support.trace_files import with_blocks

DATA = Path(__file__).parents[3] / "shared" / "data"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURSTGPT_2 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def requests_of(columns: Columns) -> list[TraceRequest]:
    n = len(columns)
    names = [columns.workload] * n if isinstance(columns.workload, str) else columns.workload
    fields = zip(
        columns.arrival_s.tolist(),
        columns.input_tokens.tolist(),
        columns.output_tokens.tolist(),
        names,
        columns.session_id or [None] * n,
        columns.prefix_ids or [()] * n,
        np.broadcast_to(columns.block_tokens, n).tolist(),
        strict=True,
    )
    keys = ("arrival_s", "input_tokens", "output_tokens", "workload", "session_id", "prefix_ids", "block_tokens")
    return [TraceRequest(**dict(zip(keys, values, strict=True))) for values in fields]


def by_columns(path: Path, **options) -> tuple[object, Counter[str]]:  # type: ignore[no-untyped-def]
    dropped: Counter[str] = Counter()
    try:
        return [r for c in iter_columns(path, dropped, **options) for r in requests_of(c)], dropped
    except LoadgenError as err:
        return str(err), Counter()


def by_requests(path: Path, **options) -> tuple[object, Counter[str]]:  # type: ignore[no-untyped-def]
    dropped: Counter[str] = Counter()
    try:
        return list(iter_import(path, dropped, **options)), dropped
    except LoadgenError as err:
        return str(err), Counter()


numbers = st.integers(0, 3000).map(str) | st.sampled_from(
    ["0", "007", "2147483647", "2147483648", "-1", "1.5", "", "x"]
)
common = st.integers(1, 9).map(str)
lengths = st.one_of(common, common, common, numbers)
stamps = st.one_of(
    st.integers(0, 59).map(lambda s: f"2023-11-16 18:17:{s:02}"),
    st.integers(0, 9999999).map(lambda f: f"2023-11-16 18:18:00.{f:07}"),
    st.integers(0, 999999).map(lambda f: f"2023-11-17 00:00:00.{f:06}+00:00"),
    st.sampled_from(
        [
            "2023-11-18 00:00:00+00:00",
            "2023-11-18T00:00:01Z",
            "2023-11-18 02:00:02+02:00",
            "2023-02-30 00:00:00",
            "2023-11-18 24:00:00",
            "2023-11-18 00:00:00.",
            "2023-11-18 00:00:03.123456789",
            "2023-11-18 00:00:00 00:00",
        ]
    ),
)
times = st.one_of(
    st.integers(0, 99).map(str),
    st.decimals(0, 1e6, places=3).map(str),
    st.sampled_from(["5.", ".5", "1e3", "nan", "-1", "123456789012345678", "6.123456789", ""]),
)
ends = st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", " \n"])


def files_of(header: str, line: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Sorted or not; most of one line end, as files are."""
    lines = st.lists(line, min_size=1, max_size=12)
    kept = st.tuples(lines | lines.map(sorted), ends, st.booleans())
    return kept.map(lambda it: (header + it[1].join(it[0]) + (it[1] if it[2] else "")).encode())


azure = files_of(AZURE, st.tuples(stamps, lengths, lengths).map(",".join))
burstgpt = files_of(BURSTGPT, st.tuples(times, st.just("GPT-4"), lengths, lengths, st.just("0,API log")).map(",".join))
sessions = files_of(
    BURSTGPT_2,
    st.tuples(times, st.sampled_from(["", "7", "a b"]), st.just("0.5,m"), lengths, lengths, st.just("3,l")).map(
        ",".join
    ),
)
bailian = files_of(
    "",
    st.tuples(st.integers(0, 50), st.integers(0, 5), st.integers(-1, 5), st.integers(0, 40), st.integers(0, 3)).map(
        lambda r: (
            f'{{"timestamp": {r[0]}.5, "chat_id": {r[1]}, "parent_chat_id": {r[2]}, "input_length": {r[3]}, '
            f'"output_length": {r[4]}, "type": "text", "turn": 1, "hash_ids": {list(range(-(-r[3] // 16)))}}}'
        )
    ),
)
jsonl = files_of(
    "",
    st.tuples(st.integers(0, 5000), st.integers(0, 9), st.integers(1, 9)).map(
        lambda r: f'{{"timestamp": {r[0]}.5, "input_length": {r[1] or 1}, "output_length": {r[2]}}}'
    )
    | st.sampled_from(
        [
            '{"timestamp":9e3,"input_length":1,"output_length":1,"workload":"数","session_id":"s"}',
            '{"timestamp":9001,"input_length":1,"output_length":1,"hash_ids":[1,2]}',
            '{"timestamp":9001,"input_length":600,"output_length":1,"hash_ids":[1,2]}',
            '{"timestamp":9001,"input_length":40,"output_length":1,"hash_ids":[1,2,3],"block_size":16}',
            '{"timestamp":9001,"input_length":4,"output_length":1,"messages":[]}',
            '{"timestamp":9002,"input_length":1,"output_length":0}',
            '{"timestamp":9003,"input_length":1,"output_length":1,"workload":"\\u001b"}',
            '{"timestamp":9004,"input_length":1}',
            "[]",
        ]
    ),
)


@settings(deadline=None, max_examples=120)
@given(azure | burstgpt | sessions | bailian | jsonl, st.integers(1, 400), st.sampled_from([None, "w"]))
@example((BURSTGPT + "1,m,4,0,4,a\n2,m,0,4,4,a\n").encode(), 400, None)
def test_columns_are_the_requests_or_the_error_wherever_blocks_end(content: bytes, size: int, name: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "t").write_bytes(content)
        assert by_columns(path, block_bytes=size, workload=name) == by_requests(path, workload=name)


@pytest.mark.parametrize(
    "name",
    ["AzureLLMInferenceTrace_conv.csv", "AzureLLMInferenceTrace_code.csv", "mooncake_synthetic_trace.jsonl"],
)
def test_the_data_sets_are_read_and_written_the_same(tmp_path: Path, name: str) -> None:
    if not (path := DATA / name).exists():
        pytest.skip(f"no {name}")
    expected = list(iter_import(path, Counter()))
    for size in (100_003, 2**22):
        assert [r for c in iter_columns(path, Counter(), block_bytes=size) for r in requests_of(c)] == expected
    assert write_columns(tmp_path / "columns.jsonl", iter_columns(path, Counter())) == len(expected)
    write_trace(tmp_path / "requests.jsonl", expected)
    assert (tmp_path / "columns.jsonl").read_bytes() == (tmp_path / "requests.jsonl").read_bytes()
    assert list(iter_import(tmp_path / "columns.jsonl", Counter())) == expected


def test_graphs_and_tags_are_written_as_their_requests_are(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp":0,"input_length":5,"output_length":5,"session_id":"s","request_id":"a","tags":{"tenant":"x"}}\n'
        '{"timestamp":1,"input_length":9,"output_length":5,"session_id":"s","after":["a"],"think_time":0.5,"task":"t",'
        '"model":"m","stream":false}\n'
    )
    write_columns(tmp_path / "columns.jsonl", iter_columns(path, Counter()))
    write_trace(tmp_path / "requests.jsonl", iter_import(path, Counter()))
    assert (tmp_path / "columns.jsonl").read_bytes() == (tmp_path / "requests.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.builds(
            TraceRequest,
            arrival_s=st.floats(0, 1e9),
            input_tokens=st.integers(1, 2**31 - 1),
            output_tokens=st.integers(1, 2**31 - 1),
            workload=st.sampled_from(["default", "chat", "数"]),
            session_id=st.none() | st.text(min_size=1, max_size=3),
        ).flatmap(with_blocks),
        min_size=1,
        max_size=9,
    ).map(lambda rs: sorted(rs, key=lambda r: r.arrival_s))
)
def test_columns_write_what_requests_write(tmp_path_factory, name: str, expected: list[TraceRequest]) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("t")
    write_trace(folder / name, expected)
    write_columns(folder / f"rewritten-{name}", iter_columns(folder / name, Counter()))
    assert (folder / f"rewritten-{name}").read_bytes() == (folder / name).read_bytes()


def test_a_plain_block_is_read_without_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the speed rests on: the files of the data sets never go line by line."""

    def refused(*_: object) -> Columns:
        raise AssertionError("line by line")

    monkeypatch.setattr(trace_columns._BlockReader, "_line_by_line", refused)
    for content in (
        AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0000000,1,0\n",
        AZURE + "2024-05-10 00:00:00+00:00,2162,5\n2024-05-11 00:00:00.009930+00:00,7,8\n",
        AZURE.replace("\n", "\r\n") + "2023-11-16 18:17:03,4808,10\r\n",
        BURSTGPT + "5,ChatGPT,472,18,490,Conversation log\n5.25,GPT-4,1,0,1,API log\n",
        BURSTGPT_2 + "5.25,78,0.1,ChatGPT,472,18,490,Conversation log\n6,,0.1,GPT-4,1,2,3,API log\n",
        '{"timestamp":1.5,"input_length":1,"output_length":2}\n' * 2,
    ):
        (path := tmp_path / "t").write_text(content)
        assert by_columns(path) == by_requests(path)


def test_compressed_blocks_and_lines_without_end(tmp_path: Path) -> None:
    (path := tmp_path / "t.gz").write_bytes(gzip.compress((AZURE + "2023-11-16 18:17:03,4808,10\n" * 999).encode()))
    assert by_columns(path, block_bytes=1000) == by_requests(path)
    path.write_bytes(b"{" + b" " * (MAX_LINE_BYTES + 10))
    assert by_columns(path) == by_requests(path)
    path.write_bytes(AZURE.encode() + b"2" * (MAX_LINE_BYTES + 10))
    assert by_columns(path) == by_requests(path)


# -- parts ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("ab", max_size=9), min_size=1), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_blocks_are_whole_lines_numbered_from_the_first(
    lines: list[str], size: int, first: int, has_last_end: bool
) -> None:
    content = "\n".join(lines).encode() + b"\n" * has_last_end
    head, body = content[:3], content[3:]
    blocks = list(line_blocks(Path("t"), io.BytesIO(body), first, head, size))
    joined = b"".join(block for _, block in blocks)
    assert joined == content + b"\n" * (bool(content) and not content.endswith(b"\n"))
    offset = 0
    for number, block in blocks:
        assert block.endswith(b"\n") and number == first + joined[:offset].count(b"\n")
        offset += len(block)


def fields(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the texts as lines, and the offsets at which each begins and ends."""
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1
    data = np.frombuffer("".join(text + "\n" for text in texts).encode(), np.uint8)
    return data, ends - [len(text) for text in texts], ends


plain_decimals = st.tuples(st.integers(0, 10**10 - 1), st.integers(0, 5), st.integers(0, 10**5 - 1)).map(
    lambda t: f"{t[0]}.{t[2] % 10 ** t[1]:0{t[1]}d}" if t[1] else str(t[0])
)


@given(st.lists(plain_decimals, min_size=1, max_size=9))
def test_plain_decimals_are_the_numbers_that_float_returns(texts: list[str]) -> None:
    parsed = parse_decimals(*fields(texts))
    assert parsed is not None and parsed.tolist() == [float(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ("0", True), ("7.", True), ("0.00001", True), ("9999999999", True), ("10000000000", False),
        ("0.123456", False), (".5", False), ("", False), ("-1", False), ("1e3", False), ("nan", False),
        ("1.2.3", False),
    ],
)  # fmt: skip
def test_a_decimal_in_another_form_is_left_to_the_line_parser(text: str, is_plain: bool) -> None:
    for texts in ([text], ["1.5", text], [text, "1.5"]):
        parsed = parse_decimals(*fields(texts))
        assert (parsed is not None) == is_plain
        assert parsed is None or parsed.tolist() == [float(t) for t in texts]


def test_timestamps_are_nanoseconds_since_1970_whatever_their_widths_and_days() -> None:
    texts = [
        "1970-01-01 00:00:00",
        "1970-01-01 00:00:00.1",
        "1970-01-01 23:59:59.123456789",
        "1970-01-02 00:00:00+00:00",
        "1970-01-02 01:02:03.000001+00:00",
        "1972-02-29 00:00:00",
    ]
    day = 86_400 * 10**9
    parsed = parse_timestamps_ns(*fields(texts))
    assert parsed is not None and parsed.tolist() == [
        0, 10**8, day - 10**9 + 123_456_789, day, day + 3723 * 10**9 + 1000, (2 * 365 + 31 + 28) * day,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01 00:00:0", "1970-01-01T00:00:00", "1970-01-01 00:00:00.", "1970-01-01 00:00:00.1234567890",
        "1970-01-01 24:00:00", "1970-01-01 00:60:00", "1970-01-01 00:00:60", "1970-13-01 00:00:00",
        "1971-02-29 00:00:00", "1970-01-01 00:00:00+01:00", "1970-01-01 00:00:00Z", "1970-01-01 00:00:00,5", "",
    ],
)  # fmt: skip
def test_a_timestamp_in_another_form_is_left_to_the_line_parser(text: str) -> None:
    assert parse_timestamps_ns(*fields([text])) is None
    assert parse_timestamps_ns(*fields(["1970-01-01 00:00:00", text])) is None
