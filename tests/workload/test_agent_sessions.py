"""Recorded sessions of agents: what waits for what, which text is shared, and what is no such session."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.agent_sessions import MAX_DEPTH, holds_sessions, read_sessions
from loadgen.workload.prompts import BLOCK_TOKENS
from loadgen.workload.sources import source_sha256
from loadgen.workload.trace import TraceRequest, read_trace, write_trace
from support.agent_files import BLOCK, FORKED, agent, call, session, talk, write_session


def requests_of(folder: Path, *sessions: dict[str, Any], **options: Any) -> tuple[TraceRequest, ...]:
    paths = [write_session(folder, one, f"{i}.json") for i, one in enumerate(sessions)]
    return read_sessions(paths, Counter(), **options).requests


def graph_of(requests: tuple[TraceRequest, ...]) -> dict[str | None, tuple[tuple[str, ...], float | None]]:
    return {request.request_id: (request.after, request.think_s) for request in requests}


# -- what waits for what ----------------------------------------------------------------------------------------------


def test_a_turn_comes_its_think_time_after_the_answer_before_it(tmp_path: Path) -> None:
    requests = requests_of(tmp_path, talk("s", 3))
    assert graph_of(requests) == {"0": ((), None), "1": (("0",), 2.0), "2": (("1",), 2.0)}
    assert [(r.arrival_s, r.input_tokens, r.output_tokens, r.session_id) for r in requests] == [
        (0.0, 3 * BLOCK + 8, 5, "s"), (3.0, 4 * BLOCK + 8, 5, "s"), (6.0, 5 * BLOCK + 8, 5, "s"),
    ]  # fmt: skip


def test_sub_agents_start_from_a_turn_run_beside_the_next_and_are_waited_for_by_the_first_that_begins_after_them(
    tmp_path: Path,
) -> None:
    requests = requests_of(tmp_path, FORKED)
    names = {request.request_id: (request.task, request.arrival_s) for request in requests}
    assert names == {
        "0": (None, 0.0), "1": ("a", 3.0), "2": ("a", 7.0), "3": ("b", 3.5), "4": ("b/c", 5.5), "5": ("b", 11.5),
        "6": (None, 5.0), "7": (None, 20.0),
    }  # fmt: skip
    graph = graph_of(requests)
    assert graph["1"] == (("0",), 2.0) and graph["3"] == (("0",), 2.5), "as long after the answer as in the recording"
    assert graph["2"] == (("1",), 3.0)
    assert graph["4"] == (("3",), 1.0)
    assert graph["5"] == (("3", "4"), 5.0), "the sub-agent of b ended at 7 s, later than b's answer"
    assert graph["6"] == (("0",), 4.0)
    assert graph["7"] == (("2", "5", "6"), 7.5), "b ended last, at 12.5 s"
    assert [request.streamed for request in requests if request.request_id == "2"] == [False]


@pytest.mark.parametrize(
    ("entries", "graph"),
    [
        # A sub-agent before any turn begins with the session.
        ([agent(0, "a", [call(1, [5])]), call(9, [1], think_time=0)], {"0": (), "1": ("0",)}),
        # One that is still running when the session ends is waited for by nothing.
        ([call(0, [1]), agent(2, "a", [call(0, [5], api=50)]), call(9, [1, 2])], {"0": (), "1": ("0",), "2": ("0",)}),
        # Times of a sub-agent may count from the start of the session.
        ([call(0, [1]), agent(40, "a", [call(40, [5])]), call(60, [1, 2])], {"0": (), "1": ("0",), "2": ("0", "1")}),
        # A request that begins while the one before it runs is beside it, and the next waits for both.
        (
            [call(0, [1]), call(9, [1, 2], api=20), call(12, [1, 3]), call(40, [1, 2, 3])],
            {"0": (), "1": ("0",), "2": ("0",), "3": ("1", "2")},
        ),
        # Without recorded ends, the requests of a thread follow each other.
        ([call(0, [1], api=None), call(5, [1, 2], api=None), call(9, [1])], {"0": (), "1": ("0",), "2": ("1",)}),
        # In order of time, whatever the order in the file.
        ([call(9, [1, 2]), call(0, [1])], {"0": (), "1": ("0",)}),
        # What cannot be sent is stepped over.
        ([call(0, [1]), call(5, [1, 2], output=0), call(9, [1, 2, 3])], {"0": (), "1": ("0",)}),
    ],
)
def test_the_recorded_times_say_what_a_request_waits_for(
    tmp_path: Path, entries: list[dict[str, Any]], graph: dict[str, tuple[str, ...]]
) -> None:
    requests = requests_of(tmp_path, session("s", entries))
    assert {name: after for name, (after, _) in graph_of(requests).items()} == graph
    earlier: set[str] = set()
    for request in requests:
        assert earlier.issuperset(request.after), "the trace has the parents first"
        earlier.add(str(request.request_id))


@pytest.mark.parametrize(
    ("before", "think_time", "think_s"),
    [
        ({"api": 1.0}, 7.5, 7.5),
        ({"api": 1.0}, None, 9.0),
        ({"api": None}, 7.5, 7.5),
        ({"api": None}, None, None),
        ({"api": 30.0}, 0.0, None),  # it began beside it, and waits for nothing
    ],
)
def test_a_think_time_is_the_recorded_one_or_the_gap_or_not_known(
    tmp_path: Path, before: dict[str, Any], think_time: float | None, think_s: float | None
) -> None:
    requests = requests_of(tmp_path, session("s", [call(0, [1], **before), call(10, [1, 2], think_time=think_time)]))
    assert requests[1].think_s == think_s


# -- which text is shared ---------------------------------------------------------------------------------------------

PREFIX = {"tool_tokens": 2 * BLOCK, "system_tokens": BLOCK + 4}


def ids(requests: tuple[TraceRequest, ...], name: str) -> list[tuple[int, ...]]:
    return [request.prefix_ids for request in requests if request.session_id == name]


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (PREFIX, 3),
        (PREFIX | {"system_tokens": 5 * BLOCK}, 2),  # the tools alone
        (PREFIX | {"tool_tokens": 3 * BLOCK}, 0),
        ({}, 0),
        (PREFIX | {"hash_id_scope": "global"}, 0),
    ],
)
def test_local_ids_are_shared_as_far_as_the_tools_and_the_system_prompt_are_the_same(
    tmp_path: Path, other: dict[str, Any], shared: int
) -> None:
    """The sessions have other numbers for the same tools: only the first block that differs has the same number."""
    requests = requests_of(tmp_path, talk("s", **PREFIX), talk("t", first_id=3, **other), talk("u", first_id=3))
    s, t = ids(requests, "s"), ids(requests, "t")
    assert [len(set(s[-1]) & set(t[-1])), len(s[-1])] == [shared, 5]
    assert s[-1][:shared] == t[-1][:shared]
    assert s[2][:4] == s[1] and s[1][:3] == s[0], "within a session equal ids stay equal"
    assert not set(ids(requests, "u")[-1]) & {*s[-1], *t[-1]}, "which says nothing about its tools"


def test_another_model_has_another_prefix_and_global_ids_are_equal_everywhere(tmp_path: Path) -> None:
    haiku = session("t", [call(0, [1, 2, 3], model="haiku")], **PREFIX)
    requests = requests_of(tmp_path, talk("s", **PREFIX), haiku)
    assert not set(ids(requests, "s")[-1]) & set(ids(requests, "t")[-1])
    requests = requests_of(tmp_path, *(talk(name, hash_id_scope="global", **PREFIX) for name in "st"))
    assert ids(requests, "s") == ids(requests, "t")


def test_a_sub_agent_s_prefix_is_that_of_its_own_tools(tmp_path: Path) -> None:
    helpers = [agent(2, "a", [call(0, [40, 41, 42])], **PREFIX), agent(3, "b", [call(0, [40, 41, 43])], **PREFIX)]
    requests = requests_of(tmp_path, session("s", [call(0, [1, 2, 3]), *helpers]), talk("t", **PREFIX))
    of = {request.task: request.prefix_ids for request in requests if request.session_id == "s"}
    assert of["a"][:2] == of["b"][:2] and of["a"][2] != of["b"][2], "as the session says"
    assert of["a"] == ids(requests, "t")[0], "the same model with the same tools and system prompt"


def test_a_prompt_may_have_an_id_for_its_last_block_and_blocks_of_any_size(tmp_path: Path) -> None:
    entries = [call(0, [1, 2, 3], **{"in": 2 * BLOCK + 1}), call(9, [1, 2], **{"in": 3 * BLOCK - 1}), call(20, [])]
    requests = requests_of(tmp_path, session("s", entries))
    assert [len(request.prefix_ids) for request in requests] == [3, 2, 0]
    assert [request.block_tokens for request in requests] == [BLOCK, BLOCK, BLOCK_TOKENS]


# -- models, and the one trace format ---------------------------------------------------------------------------------


def test_the_served_model_takes_all_requests_unless_the_recorded_ones_are_kept(tmp_path: Path) -> None:
    assert {(r.model, r.workload) for r in requests_of(tmp_path, FORKED)} == {(None, "code")}
    assert {(r.model, r.workload) for r in requests_of(tmp_path, FORKED, workload="w")} == {(None, "w")}
    kept = requests_of(tmp_path, FORKED, keeps_models=True)
    assert {(r.model, r.workload) for r in kept} == {("opus", "opus"), ("haiku", "haiku")}


def test_sessions_are_read_from_lines_lists_folders_and_packed_files_and_survive_the_one_format(tmp_path: Path) -> None:
    (folder := tmp_path / "sessions").mkdir()
    both = [FORKED, talk("talk", **PREFIX)]
    for one in both:
        write_session(folder, one)
    (lines := tmp_path / "lines.jsonl").write_text("".join(json.dumps(one) + "\n" for one in both))
    (packed := tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(both).encode()))
    (pretty := tmp_path / "pretty.json").write_text(json.dumps(both[0], indent=1))
    expected = read_sessions([folder], Counter()).requests
    for path in (lines, packed):
        assert read_sessions([path], Counter()).requests == expected
    backwards = write_session(tmp_path, dict(reversed(FORKED.items())), "backwards.json")
    assert all(map(holds_sessions, (folder, lines, packed, pretty, backwards)))
    alone = read_sessions([pretty], Counter()).requests
    assert graph_of(alone) == graph_of(read_sessions([folder / "forked.json"], Counter()).requests)
    write_trace(tmp_path / "trace.jsonl", expected)
    assert read_trace(tmp_path / "trace.jsonl").requests == expected
    assert not holds_sessions(tmp_path / "trace.jsonl")


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    write_session(tmp_path, talk("s"))
    before = source_sha256(tmp_path)
    assert source_sha256(tmp_path) == before
    write_session(tmp_path, talk("s", 4))
    assert before != source_sha256(tmp_path)


# -- bad input --------------------------------------------------------------------------------------------------------


def nested(depth: int) -> list[dict[str, Any]]:
    requests = [call(0, [1])]
    for _ in range(depth):
        requests = [agent(0, "a", requests)]
    return requests


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (session("s", [call(0, [1]), call(1, [1, 2, 3], **{"in": 16})]),
         "s.json:1: requests[1]: hash_ids has 3 ids; in 16 needs 1"),
        (session("s", [agent(0, "a", [call(1, [], **{"in": 64}), call(1, [1], **{"in": 64})])]),
         "s.json:1: requests[0].requests[1]: hash_ids has 1 ids; in 64 needs 4, for 16 tokens each"),
        (session("s", [call(0, [1], type="x")]), "s.json:1: requests[0].type: invalid value 'x'"),
        (session("s", [call(-1, [1])]), "s.json:1: requests[0].t: expected `float` >= 0.0"),
        (session("s", [call(0, [1], think_time=-3)]), "s.json:1: requests[0].think_time: expected `float` >= 0.0"),
        (session("s", [call(0, [1], api=1e300)]), "s.json:1: requests[0].api_time"),
        (session("s", [call(0, [1], **{"in": 10**30})]), "s.json:1: requests[0].in"),
        (session("s", [call(0, [1], **{"in": 1.5})]), "s.json:1: requests[0].in: expected `int`, got `float`"),
        (session("s", [call(0, [1], model="\x1b[2J")]), "s.json:1: name '\\x1b[2J': expected printable"),
        (session("\n", [call(0, [1])]), "s.json:1: name '\\n': expected printable"),
        (session("s", [call(0, [1])], block_size=0), "s.json:1: block_size: expected `int` >= 1"),
        (session("s", [call(0, [1])], hash_id_scope="world"), "s.json:1: hash_id_scope: invalid enum value 'world'"),
        (session("s", nested(MAX_DEPTH + 1)), f"sub-agents are nested deeper than {MAX_DEPTH}"),
        (session("s", []), "s.json has no requests in it"),
        ({"id": "s", "block_size": 16}, "s.json:1: object missing required field `requests`"),
        ({"id": "s", "requests": [{"type": "s", "t": 0, "in": 1}], "block_size": 16}, "missing required field `out`"),
    ],
)  # fmt: skip
def test_what_is_no_session_is_one_line_with_its_file_and_place(
    tmp_path: Path, content: dict[str, Any], fault: str
) -> None:
    path = write_session(tmp_path, content, "s.json")
    with pytest.raises(LoadgenError) as refused:
        read_sessions([path], Counter())
    message = str(refused.value)
    assert fault in message
    assert message.isprintable() and len(message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"id": "s", "block_size": 16, "requests": [{"type": "s", "t": NaN', "not a recorded session"),
        ('{"requests": ' + "[" * 100_000, "expected `object`, got `array`"),
        ('{"requests": [], "block_size": 1e999}', "block_size"),
        ("[" * 100_000, "s.json"),
    ],
)
def test_text_that_no_json_has_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    (path := tmp_path / "s.json").write_text(text)
    with pytest.raises(LoadgenError, match=fault):
        read_sessions([path], Counter())


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_anywhere_is_an_error(tmp_path: Path, packed: bool) -> None:
    whole = json.dumps(FORKED).encode()
    whole = gzip.compress(whole) if packed else whole
    for size in range(1, len(whole), 7):
        (path := tmp_path / "s.json").write_bytes(whole[:size])
        with pytest.raises(LoadgenError) as refused:
            read_sessions([path], Counter())
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_cut_object_is_said_to_be_cut(tmp_path: Path) -> None:
    (path := tmp_path / "s.json").write_text(json.dumps(FORKED)[:200])
    with pytest.raises(LoadgenError, match=r"s\.json:1: the session ends within its object; the file was cut off"):
        read_sessions([path], Counter())


def test_the_same_session_twice_and_a_folder_without_any_are_errors(tmp_path: Path) -> None:
    paths = [write_session(tmp_path, talk("s"), name) for name in ("a.json", "b.json")]
    with pytest.raises(LoadgenError, match=r"b\.json:1: session 's' is in .*a\.json:1 as well"):
        read_sessions(paths, Counter())
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(LoadgenError, match=r"is a folder without \.json files"):
        read_sessions([empty], Counter())


def test_requests_without_tokens_are_counted(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    entries = [call(0, [1]), call(3, [1], output=0), call(6, [], **{"in": 0}), call(9, [1, 2], output=0)]
    path = write_session(tmp_path, session("s", entries))
    assert len(read_sessions([path], left_out).requests) == 1
    assert left_out == {"0 output tokens": 2, "0 input tokens": 1}
