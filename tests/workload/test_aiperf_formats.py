"""AIPerf's input files ask what AIPerf would ask."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from support.foreign_files import MESSAGE, rows_of, saved_lines


def read(tmp_path: Path, format: str, *values: Any) -> list[dict[str, Any]]:
    return rows_of(saved_lines(tmp_path / "in.jsonl", list(values)), f"aiperf-{format}")


@pytest.mark.parametrize(
    ("turn", "content"),
    [
        ({"text": "a"}, "a"),
        ({"texts": ["a"]}, "a"),
        ({"texts": ["a", "b"]}, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ({"texts": [{"name": "q", "contents": ["a"]}]}, "a"),
        (
            {"text": "a", "image": "data:image/png;base64,AA"},
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
        ),
        ({"audio": "wav,AA"}, [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]),
        (
            {"audio": "data:audio/mp3;base64,AA"},
            [{"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}}],
        ),
        ({"videos": ["https://x/y.mp4"]}, [{"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}]),
    ],
)  # fmt: skip
def test_a_turn_is_the_message_that_aiperf_renders(tmp_path: Path, turn: dict[str, Any], content: Any) -> None:
    assert read(tmp_path, "single-turn", turn) == [{"messages": [{"role": "user", "content": content}]}]


def test_single_turns_are_ordered_by_time_and_keep_lengths_sessions_and_extra_fields(tmp_path: Path) -> None:
    late = {"text": "b", "timestamp": 2.5, "output_length": 9, "session_id": "s", "extra": {"temperature": 0.5}}
    rows = read(tmp_path, "single-turn", late, {"text": "a", "timestamp": 1, "role": "system"})
    fields = {"session_id": "s", "output_length": 9, "temperature": 0.5}
    assert rows == [
        {"timestamp": 1.0, "messages": [{"role": "system", "content": "a"}]},
        {"timestamp": 2.5, "messages": [{"role": "user", "content": "b"}]} | fields,
    ]


def test_a_turn_after_the_first_continues_its_session_and_a_system_turn_is_no_request(tmp_path: Path) -> None:
    system = {"role": "system", "text": "be kind"}
    rows = read(
        tmp_path,
        "multi-turn",
        {"session_id": "s", "turns": [system, {"text": "a"}, {"text": "b"}]},
        {"turns": [{"text": "c"}]},
        {"session_id": "s", "turns": [{"text": "d"}]},
    )
    assert [[m["content"] for m in row["messages"]] for row in rows] == [["be kind", "a"], ["b"], ["c"], ["d"]]
    assert [row["session_id"] for row in rows] == ["s", "s", "2", "s"]
    assert [row.get("continues", False) for row in rows] == [False, True, False, True]


def test_a_delay_is_left_out_and_counted(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    path = saved_lines(tmp_path / "in.jsonl", [{"turns": [{"text": "a", "delay": 0}, {"text": "b", "delay": 500}]}])
    assert len(rows_of(path, "aiperf-multi-turn", left_out)) == 2
    assert left_out.total() == 1


def test_payloads_are_bodies(tmp_path: Path) -> None:
    body = {"messages": [MESSAGE], "stream": True, "n": 2}
    assert read(tmp_path, "raw-payload", body) == [{"body": body}]
    sessions = [{"session_id": "a", "payloads": [body, {"prompt": "x"}]}, {"session_id": "b", "payloads": [body]}]
    assert read(tmp_path, "inputs", {"data": sessions}) == [
        {"body": body, "session_id": "a"},
        {"body": {"prompt": "x"}, "session_id": "a"},
        {"body": body, "session_id": "b"},
    ]


def test_a_mooncake_trace_has_text_messages_or_payloads(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        "mooncake",
        {"timestamp": 0, "text_input": "a", "output_length": 3},
        {"timestamp": 1, "messages": [MESSAGE], "tools": [{}], "extra": {"seed": 1}},
        {"timestamp": 2, "payload": {"prompt": "x"}},
        {"timestamp": 3, "messages": [MESSAGE], "session_id": "s", "message_mode": "delta"},
        {"timestamp": 4, "messages": [MESSAGE], "session_id": "s", "message_mode": "delta"},
    )
    assert rows == [
        {"timestamp": 0.0, "messages": [{"role": "user", "content": "a"}], "output_length": 3},
        {"timestamp": 1.0, "messages": [MESSAGE], "tools": [{}], "seed": 1},
        {"timestamp": 2.0, "body": {"prompt": "x"}},
        {"timestamp": 3.0, "messages": [MESSAGE], "session_id": "s"},
        {"timestamp": 4.0, "messages": [MESSAGE], "session_id": "s", "continues": True},
    ]


@pytest.mark.parametrize(
    ("format", "value", "fault"),
    [
        ("single-turn", {"text": 5}, "text: expected a text"),
        ("single-turn", {"text": "a", "texts": ["b"]}, "text and texts cannot both be given"),
        ("single-turn", {"texts": [5]}, "expected `object`, got `int`"),
        ("single-turn", {"role": "user"}, "expected a text, an image, an audio or a video"),
        ("single-turn", {"image": "/etc/passwd"}, "image: expected a data URL or a URL"),
        ("single-turn", {"audio": "x.wav"}, "audio: expected FORMAT,BASE64 or a data URL"),
        ("single-turn", {"text": "a", "image_uuids": ["u"]}, "unknown field `image_uuids`"),
        ("single-turn", {"text": "a", "timestamp": "now"}, "timestamp: expected `float | null`, got `str`"),
        ("single-turn", {"text": "a", "timestamp": 1e300}, "time: it is out of range"),
        ("multi-turn", {"turns": [{"role": "system", "text": "a"}]}, "expected a turn of the user after the system's"),
        ("multi-turn", {"session_id": "s"}, "missing required field `turns`"),
        ("mooncake", {"text_input": 5}, "text_input: expected a text"),
        ("mooncake", {"timestamp": 0}, "expected one of text_input, messages, payload"),
        ("mooncake", {"text_input": "a", "payload": {}}, "expected one of text_input, messages, payload"),
        ("mooncake", {"input_length": 5, "output_length": 5}, "unknown field `input_length`"),
        ("inputs", {"data": [{"payloads": []}]}, "session_id"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_its_field(tmp_path: Path, format: str, value: Any, fault: str) -> None:
    with pytest.raises(LoadgenError) as raised:
        read(tmp_path, format, value)
    assert "in.jsonl:1: " in str(raised.value)
    assert fault.lower() in str(raised.value).lower()


def test_times_are_stated_by_all_rows_or_by_none(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match=r"in\.jsonl:2: time: the first row has one"):
        read(tmp_path, "single-turn", {"text": "a", "timestamp": 1}, {"text": "b"})
    with pytest.raises(LoadgenError, match=r"in\.jsonl:2: time: the first row has none"):
        read(tmp_path, "single-turn", {"text": "a"}, {"text": "b", "timestamp": 1})
