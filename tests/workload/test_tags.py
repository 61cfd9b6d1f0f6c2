"""Tags of requests: where they come from, which are refused, and rows that a run is summed up by."""

from collections import Counter
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.workload.load import Load, planned_schedule
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.tags import MAX_TAGS, MAX_VALUE, MAX_VALUES, Tags, rows_by_tag, tags_fault, tags_of
from loadgen.workload.trace import TraceRequest, read_trace, write_trace
from loadgen.workload.words import WordsFile


def schedule(*tags: Tags | None) -> list[ScheduledRequest]:
    return [
        ScheduledRequest(
            index=i, offset_ns=i, workload="w", input_tokens=1, output_tokens=1, tags=own or msgspec.UNSET
        )
        for i, own in enumerate(tags)
    ]  # fmt: skip


def planned(folder: Path, text: str, load: Load) -> list[Tags]:
    """The tags of the requests of a load, in order; `text` is that of the file in its trace."""
    name = folder / str(load.trace)
    name.write_text(text)
    made, plan = planned_schedule(
        msgspec.structs.replace(load, trace=str(name)), WordsFile(BytesIO()), None, say=lambda _: None
    )
    assert plan.get("tags", {}) == load.tags
    return [tags_of(request) for request in made.requests]


LINES = """{"timestamp": 0, "input_length": 3, "output_length": 6, "tags": {"tenant": "a"}}
{"timestamp": 1, "input_length": 3, "output_length": 6}
"""
WORDS = """{"prompt": "x", "timestamp": 0, "tags": {"tenant": "a"}}
{"prompt": "y", "timestamp": 1}
"""


@pytest.mark.parametrize("text", [LINES, WORDS], ids=["lengths", "words"])
def test_a_line_has_its_own_tags_before_those_of_the_run(tmp_path: Path, text: str) -> None:
    assert planned(tmp_path, text, Load(trace="t.jsonl")) == [{"tenant": "a"}, {}]
    load = Load(trace="t.jsonl", tags={"tenant": "b", "team": "x"})
    assert planned(tmp_path, text, load) == [{"tenant": "a", "team": "x"}, {"tenant": "b", "team": "x"}]


def test_a_stream_has_its_own_tags_before_those_of_the_run_and_after_those_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(LINES)
    text = '[chat]\ntrace = "lines.jsonl"\ntags = {tenant = "s", team = "y"}\n'
    load = Load(trace="s.toml", tags={"tenant": "b", "task": "z"})
    assert planned(tmp_path, text, load) == [
        {"tenant": "a", "team": "y", "task": "z"},
        {"tenant": "s", "team": "y", "task": "z"},
    ]


def test_a_request_without_tags_has_no_such_field_in_the_schedule() -> None:
    plain, tagged = schedule({}, {"tenant": "a"})
    assert b"tags" not in msgspec.json.encode(plain)
    assert msgspec.json.decode(msgspec.json.encode(tagged), type=ScheduledRequest) == tagged


def test_tags_are_written_back(tmp_path: Path) -> None:
    written = [TraceRequest(arrival_s=0.0, input_tokens=1, output_tokens=2, tags={"tenant": "a b"})]
    write_trace(tmp_path / "t.jsonl", written)
    assert list(read_trace(tmp_path / "t.jsonl").requests) == written


BAD = [
    ({"": "a"}, "expected a name of letters"),
    ({"te-nant": "a"}, "expected a name of letters"),
    ({"x" * 65: "a"}, "expected a name of letters"),
    ({"tenant": ""}, "expected a value of 1 to 64 printable characters"),
    ({"tenant": "a\nb"}, "expected a value of 1 to 64 printable characters"),
    ({"tenant": "\u202e"}, "expected a value of 1 to 64 printable characters"),
    ({"tenant": "x" * (MAX_VALUE + 1)}, "expected a value of 1 to 64 printable characters"),
    ({f"t{i}": "a" for i in range(MAX_TAGS + 1)}, "9 tags: expected at most 8"),
]


@pytest.mark.parametrize(("tags", "fault"), BAD)
def test_tags_that_no_report_can_show_are_refused_wherever_they_come_from(
    tmp_path: Path, tags: Tags, fault: str
) -> None:
    assert fault in (tags_fault(tags) or "")
    field = msgspec.json.encode(tags).decode()
    for text in (LINES, WORDS):
        with pytest.raises(LoadgenError, match=fault):
            planned(tmp_path, text, Load(trace="t.jsonl", tags=tags))
        with pytest.raises(LoadgenError, match=rf"t\.jsonl:1: .*{fault}"):
            planned(tmp_path, text.replace('{"tenant": "a"}', field), Load(trace="t.jsonl"))


def test_tags_that_are_no_object_of_texts_are_an_error_of_their_line(tmp_path: Path) -> None:
    for text in (LINES, WORDS):
        with pytest.raises(LoadgenError, match=r"t\.jsonl:1: "):
            planned(tmp_path, text.replace('{"tenant": "a"}', '["a"]'), Load(trace="t.jsonl"))


TAGS = st.dictionaries(st.sampled_from(["tenant", "team"]), st.sampled_from(["a", "b", "=", "other"]))


@given(st.lists(TAGS, max_size=30))
def test_the_rows_of_a_tag_are_together_all_rows(tags: list[Tags]) -> None:
    rows = rows_by_tag(schedule(*tags))
    for name in {name for own in tags for name in own}:
        of_name = Counter(row for label, of_label in rows.items() if label.startswith(f"{name}=") for row in of_label)
        assert of_name == Counter(range(len(tags)))
    for label, of_label in rows.items():
        name, _, value = label.partition("=")
        assert all(tags[row].get(name, "") == value for row in of_label)


def test_of_many_values_those_of_most_requests_have_rows_of_their_own() -> None:
    tags = [{"tenant": f"t{i}"} for i in range(MAX_VALUES + 5)] + [
        {"tenant": f"t{i}"} for i in range(5, MAX_VALUES + 5)
    ]
    rows = rows_by_tag(schedule(*tags))
    assert len(rows) == MAX_VALUES + 1
    assert rows["tenant=other"] == [0, 1, 2, 3, 4]
