"""A file that is imported and one that is replayed directly ask the same; nothing of its words is lost."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.schedule import build_schedule
from loadgen.workload.sources import read_source
from loadgen.workload.trace import Trace
from loadgen.workload.worded_import import imported_rows, write_rows
from loadgen.workload.words import WordsFile
from support.foreign_files import CALL, FILES, MESSAGE, saved_lines


def read(path: Path) -> tuple[Trace, bytes]:
    stored = BytesIO()
    return read_source(path, WordsFile(stored)), stored.getvalue()


def imported(path: Path, format: str | None = None, **columns: str) -> Path:
    """Import a file and return the trace that was written beside it."""
    left_out: Counter[str] = Counter()
    rows = imported_rows(str(path), format, columns, left_out)
    assert rows is not None
    out = path.with_name("imported.jsonl")
    write_rows(out, str(path), rows, left_out, overwrite=True)
    return out


def without_lines(trace: Trace) -> list[Any]:
    requests = build_schedule(
        trace, rps=None if trace.timed else 5.0, seed=0, num_requests=len(trace.requests)
    ).requests
    return [
        msgspec.structs.replace(request, words=request.words and msgspec.structs.replace(request.words, line=0))
        for request in requests
    ]


SENDABLE = sorted(set(FILES) - {"aiperf-multi-turn"})


def in_lines(path: Path, values: list[Any]) -> Path:
    return saved_lines(path, values)


def in_a_list(path: Path, values: list[Any]) -> Path:
    path.write_text(json.dumps(values, indent=1))
    return path


def compressed(path: Path, values: list[Any]) -> Path:
    path.write_bytes(gzip.compress(in_lines(path, values).read_bytes()))
    return path


@pytest.mark.parametrize("save", [in_lines, in_a_list, compressed])
@pytest.mark.parametrize("format", SENDABLE)
def test_an_imported_file_is_replayed_as_the_file_itself(
    tmp_path: Path, format: str, save: Callable[[Path, list[Any]], Path]
) -> None:
    path = save(tmp_path / "data.json", FILES[format])
    (direct, sent), (converted, sent_later) = read(path), read(imported(path))
    assert sent == sent_later
    assert without_lines(direct) == without_lines(converted)
    assert direct.timed == converted.timed


@pytest.mark.parametrize("format", SENDABLE)
def test_the_words_of_a_row_are_sent(tmp_path: Path, format: str) -> None:
    _, sent = read(saved_lines(tmp_path / "data.jsonl", FILES[format]))
    assert MESSAGE["content"] in [
        message["content"]
        for line in sent.splitlines()
        for message in json.loads(line).get("messages") or json.loads(line).get("body", {}).get("messages", [])
    ]


@pytest.mark.parametrize("format", FILES)
def test_a_stated_format_is_read_as_the_detected_one(tmp_path: Path, format: str) -> None:
    path = saved_lines(tmp_path / "data.jsonl", FILES[format])
    stated, detected = (imported_rows(str(path), name, {}, Counter()) for name in (format, None))
    assert stated is not None and detected is not None
    assert msgspec.json.encode(list(stated)) == msgspec.json.encode(list(detected))


def test_a_csv_is_imported_and_replayed_alike(tmp_path: Path) -> None:
    (path := tmp_path / "t.csv").write_text('prompt,output_length\n"a\nb",5\nc,6\n')
    assert read(path)[1] == read(imported(path))[1]
    assert [r.output_tokens for r in read(path)[0].requests] == [5, 6]


@pytest.mark.parametrize("format", [None, "jsonl", "mooncake", "azure", "burstgpt", "bailian"])
def test_a_trace_of_lengths_is_none_with_words(tmp_path: Path, format: str | None) -> None:
    path = saved_lines(tmp_path / "t.jsonl", [{"timestamp": 0, "input_length": 3, "output_length": 4}])
    assert imported_rows(str(path), format, {}, Counter()) is None


def test_public_csv_of_lengths_is_none_with_words(tmp_path: Path) -> None:
    (path := tmp_path / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    assert imported_rows(str(path), None, {}, Counter()) is None


def test_a_recorded_model_can_be_replaced_and_requests_named(tmp_path: Path) -> None:
    path = saved_lines(tmp_path / "log.jsonl", [CALL])
    rows = imported_rows(str(path), None, {}, Counter(), replaced={"model": "mine", "workload": "w"})
    assert rows is not None
    ((_, fields),) = rows
    assert (fields["model"], fields["workload"]) == ("mine", "w")


@pytest.mark.parametrize(
    ("row", "asked"), [(CALL, "mine"), ({"prompt": "x", "model": "named"}, "named"), (FILES["jsonl"][0], None)]
)
def test_a_replay_asks_its_own_model_instead_of_those_that_a_log_recorded(
    tmp_path: Path, row: dict[str, Any], asked: str | None
) -> None:
    path = saved_lines(tmp_path / "log.jsonl", [row])
    (request,) = read_source(path, WordsFile(BytesIO()), model="mine").requests
    assert request.model == asked


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": ""}, "t.jsonl:2: prompt: it is empty"),
        ({"prompt": "x", "promt": 1}, "t.jsonl:2: field 'promt' is not known"),
        ({"prompt": "x", "timestamp": 1}, "t.jsonl:2: timestamp: the first line has none"),
        (5, "t.jsonl:2: not a JSON object: 5"),
    ],
)
def test_a_row_that_cannot_be_sent_is_refused_and_no_trace_is_left(tmp_path: Path, row: Any, fault: str) -> None:
    path = saved_lines(tmp_path / "t.jsonl", [{"prompt": "a"}, row])
    with pytest.raises(LoadgenError) as raised:
        imported(path)
    assert fault in str(raised.value)
    assert not (tmp_path / "imported.jsonl").exists()


@pytest.mark.parametrize("data", [b"", b"[]", b" \n"])
def test_an_empty_file_has_no_requests(tmp_path: Path, data: bytes) -> None:
    (path := tmp_path / "t.json").write_bytes(data)
    with pytest.raises(LoadgenError, match="has no requests in it"):
        imported(path, "conversations")


@pytest.mark.parametrize("use", [read, imported])
def test_a_file_of_which_all_is_left_out_says_what_was(tmp_path: Path, use: Callable[[Path], Any]) -> None:
    path = saved_lines(tmp_path / "log.jsonl", [CALL | {"status": "failure"}] * 2)
    with pytest.raises(LoadgenError, match=r"has no requests in it; left out: 2 calls that failed"):
        use(path)


@pytest.mark.parametrize("format", sorted(set(FILES) - {"otel"}))
def test_half_a_surrogate_pair_is_kept_in_every_format(tmp_path: Path, format: str) -> None:
    halves = "\ud83d \ue0dd \ude00\U0001f600"
    content = json.dumps(MESSAGE["content"]), json.dumps(MESSAGE["content"] + halves)
    (path := tmp_path / "t.jsonl").write_text(json.dumps(FILES[format][0]).replace(*content))
    rows = [fields for _, fields in imported_rows(str(path), format, {}, Counter()) or ()]
    assert MESSAGE["content"] + halves in texts_in([json.loads(msgspec.json.encode(row)) for row in rows])


def texts_in(value: Any) -> list[str]:
    """Return every text of a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in texts_in(item)]


def test_of_equal_keys_the_last_counts_as_in_every_reader_of_json(tmp_path: Path) -> None:
    (path := tmp_path / "t.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
    assert json.loads(read(path)[1]) == {"prompt": "b"}


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_anywhere_is_one_error(tmp_path: Path, format: str, cut: float) -> None:
    whole = json.dumps(FILES[format]).encode()
    (path := tmp_path / "t.json").write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(LoadgenError, match=r"t\.json:\d: "):
        imported(path, format)


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("hostile", ['{"a":' * 10**5, "[" * 10**5, "5", '"x"', "null", "{}", '{"messages": {"a": 1}}'])
def test_a_hostile_line_is_one_error_in_every_format(tmp_path: Path, format: str, hostile: str) -> None:
    (path := tmp_path / "t.jsonl").write_text(json.dumps(FILES[format][0]) + "\n" + hostile + "\n")
    if (hostile == "{}" and format == "litellm") or (hostile in ("{}", '{"messages": {"a": 1}}') and format == "otel"):
        assert imported(path, format).read_bytes().count(b"\n") == 1  # it is no call
        return
    if format == "aiperf-raw-payload" and "messages" in hostile:
        assert imported(path, format).read_bytes().count(b"\n") == 2  # the server refuses such a body
        return
    with pytest.raises(LoadgenError) as raised:
        imported(path, format)
    assert len(str(raised.value).splitlines()) == 1
