"""Streams from files and flags, and the laws of the schedule that is made of them."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import Schedule, ScheduledRequest, encode_schedule, merged_schedule, truncated
from loadgen.workload.sessions import NEW_TOKENS
from loadgen.workload.sources import read_source
from loadgen.workload.stream_schedule import schedule_stream, schedule_streams, schedule_trace
from loadgen.workload.streams import (
    Stream,
    Streams,
    chosen_streams,
    read_streams,
    share_rate,
    shipped_streams,
    stream_fault,
)
from loadgen.workload.words import WordsFile

ROOT = Path(__file__).parents[2]
CHAT, CODE = str(ROOT / "traces" / "chat.jsonl"), str(ROOT / "traces" / "code.jsonl")


def planned(streams: Streams, seed: int = 0, duration_s: float | None = 60.0, count: int | None = None) -> Schedule:
    return schedule_streams(streams, seed=seed, duration_s=duration_s, num_requests=count)


def fingerprints(requests: Sequence[ScheduledRequest], workload: str) -> list[tuple[object, ...]]:
    """Everything but the numbers that a merge gives anew."""
    return [
        (r.offset_ns, r.input_tokens, r.output_tokens, r.session_id, r.prefix_ids, r.think_ns, r.text_id, r.text_tokens)
        for r in requests
        if r.workload == workload
    ]


MIX: Streams = {
    "chat": Stream(trace=CHAT, rps=3, arrival="poisson", turns=2.5, think="exponential:4"),
    "code": Stream(trace=CODE, rps=1, arrival="gamma", burstiness=0.25, files=5),
    "bins": Stream(bins="azure-2024-chat", rps=2),
    "own": Stream(trace=CHAT, rps=0.5, seed=9),
    "ramp": Stream(trace=CODE, arrival="constant", shape="ramp:1:3:20"),
}


# -- laws of the plan -------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(st.sets(st.sampled_from(sorted(MIX)), min_size=1), st.integers(0, 5))
def test_the_plan_is_the_union_of_its_streams_which_do_not_know_each_other(names: set[str], seed: int) -> None:
    whole = planned({name: MIX[name] for name in names}, seed)
    for name in names:
        alone = schedule_stream(name, MIX[name], seed, 60.0, None)
        assert fingerprints(whole.requests, name) == fingerprints(alone.requests, name)
    assert {r.workload for r in whole.requests} == names
    assert [r.index for r in whole.requests] == list(range(len(whole.requests)))
    assert all(a.offset_ns <= b.offset_ns for a, b in pairwise(whole.requests))
    assert whole.rate_rps == pytest.approx(
        sum(schedule_stream(n, MIX[n], seed, 60.0, None).rate_rps or 0 for n in names)
    )


def test_same_seed_same_bytes_and_a_stream_with_a_seed_keeps_it() -> None:
    one, repeated, other = planned(MIX, 1), planned(MIX, 1), planned(MIX, 2)
    assert encode_schedule(one.requests) == encode_schedule(repeated.requests)
    for name, stream in MIX.items():
        if name != "ramp":  # a clock has no seed, and these are no sessions
            same = fingerprints(one.requests, name) == fingerprints(other.requests, name)
            assert same == (stream.seed is not None)


def test_two_streams_of_one_source_share_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    line = {"timestamp": 0, "input_length": 1024, "output_length": 2, "hash_ids": [1, 2], "session_id": "s"}
    trace.write_text("".join(json.dumps(line | {"timestamp": at}) + "\n" for at in (0, 1000)))
    requests = planned({name: Stream(trace=str(trace)) for name in "ab"}).requests
    a, b = ([r for r in requests if r.workload == name] for name in "ab")
    assert a[0].prefix_ids == a[1].prefix_ids and not set(a[0].prefix_ids) & set(b[0].prefix_ids)
    assert a[0].session_id == a[1].session_id != b[0].session_id


@pytest.mark.parametrize("name", sorted(MIX))
def test_a_stream_has_the_rate_asked_in_the_long_run(name: str) -> None:
    """Of requests, with sessions too, once these have filled up."""
    stream = MIX[name]
    if name == "own":
        assert len(schedule_stream(name, stream, 0, 100.0, None).requests) == 50
        return
    requests = [r.offset_ns / NS_PER_S for r in schedule_stream(name, stream, 0, 1500.0, None).requests]
    rate = 3.0 if name == "ramp" else stream.rps
    assert sum(at >= 100 for at in requests) / 1400 == pytest.approx(rate, rel=0.1)


def test_the_first_requests_of_all() -> None:
    drawn = {name: stream for name, stream in MIX.items() if name != "own"}  # which is squeezed to its very mean
    some = planned(drawn, duration_s=None, count=40)
    assert some.requests == planned(drawn, duration_s=None, count=90).requests[:40]
    assert len(planned(drawn, duration_s=5.0, count=1000).requests) < 200


# -- sessions ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from(["constant:0", "constant:3", "exponential:2", "lognormal:5:1"]))
def test_a_session_never_overlaps_itself(seed: int, think: str) -> None:
    """A turn names the one before it, is planned no earlier than that and its think time, and holds its prompt."""
    stream = Stream(trace=CHAT, rps=4, arrival="poisson", turns=2.5, think=think)
    requests = planned({"chat": stream, "code": MIX["code"]}, seed, 40.0).requests
    followed = Counter(r.after for r in requests if r.after is not None)
    assert set(followed.values()) <= {1}
    for turn in requests:
        if turn.after is not None:
            before = requests[turn.after]
            assert (turn.session_id, turn.text_id) == (before.session_id, before.text_id)
            assert turn.offset_ns == before.offset_ns + turn.think_ns
            assert turn.text_tokens == turn.input_tokens >= before.input_tokens + before.output_tokens + NEW_TOKENS
    starts = [r.session_id for r in requests if r.after is None and r.workload == "chat"]
    assert len(set(starts)) == len(starts)


def test_lengths_of_sessions_are_those_of_the_trace() -> None:
    stream = Stream(trace=CHAT, rps=50, arrival="constant", turns=2, think="constant:0")
    requests = schedule_stream("chat", stream, 0, None, None).requests
    rows = [json.loads(line) for line in Path(CHAT).read_text().splitlines()]
    assert Counter((r.input_tokens, r.output_tokens) for r in requests) == Counter(
        (row["input_length"], row["output_length"]) for row in rows
    )


# -- files ------------------------------------------------------------------------------------------------------------


def test_popular_files_open_most_prompts_as_zipf_says() -> None:
    stream = Stream(trace=CODE, rps=50, arrival="poisson", files=10, popularity=1.0, shared=0.5)
    requests = schedule_stream("code", stream, 0, 200.0, None).requests
    counts = [n for _, n in Counter(r.text_id for r in requests).most_common()]
    harmonic = sum(1 / k for k in range(1, 11))
    assert len(counts) == 10
    assert counts[0] / len(requests) == pytest.approx(1 / harmonic, rel=0.1)
    assert all(r.text_tokens == r.input_tokens // 2 for r in requests)


# -- merge ------------------------------------------------------------------------------------------------------------


def test_a_merge_of_nothing_new_is_the_same() -> None:
    one = planned({"chat": MIX["chat"]})
    assert merged_schedule([one], 0) == one
    assert truncated(one, 10).requests == one.requests[:10]


# -- files and flags --------------------------------------------------------------------------------------------------


def test_the_shipped_streams_are_a_conversation_and_a_code_generation() -> None:
    streams = read_streams(shipped_streams())
    assert list(streams) == ["chat", "code"]
    assert streams["chat"].turns and streams["code"].files and (streams["code"].burstiness < 1)
    assert len(planned(streams, duration_s=30.0).requests) > 30


def test_a_name_selects_a_stream_of_the_file_a_workload_or_a_source(tmp_path: Path) -> None:
    streams = chosen_streams(["chat:3", "code", "other=azure-2024-code:2"], None)
    assert streams["chat"] == read_streams(shipped_streams())["chat"]
    assert streams["code"].rps == 1.0
    assert streams["other"] == Stream(bins="azure-2024-code", rps=2)
    assert chosen_streams([f"{CHAT}:2"], None) == {"chat": Stream(trace=CHAT, rps=2)}
    file = tmp_path / "own.toml"
    file.write_text('[a]\nbins = "burstgpt"\nrps = 1\n[b]\nbins = "burstgpt"\nshape = "ramp:1:2:3"\n')
    assert list(chosen_streams([], file)) == ["a", "b"]
    assert chosen_streams(["b:5"], file)["b"] == Stream(bins="burstgpt", rps=5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["unknown:3"], "no file, trace or workload called 'unknown'; .*; streams: chat, code"),
        (["chat:x"], "'x' is not a rate"),
        (["chat:-1"], "'-1' is not a rate"),
        (["chat:1", "chat:2"], "two streams called 'chat'"),
        (["chat:"], "'' is not a rate"),
    ],
)
def test_text_that_is_no_stream_is_an_error(texts: list[str], message: str) -> None:
    with pytest.raises(LoadgenError, match=message):
        chosen_streams(texts, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no streams in it"),
        ("x = 1", "not a file of streams"),
        ("[a", "not a file of streams"),
        ('[a]\ntrac = "t"', "unknown field `trac`"),
        ("[a]", "expected one of a trace, bins, or input and output"),
        ('[a]\ntrace = "t"\nbins = "b"', "expected one of a trace, bins"),
        ('[a]\nbins = "b"\ninput = 5\noutput = 5', "expected one of a trace, bins"),
        ("[a]\ninput = 5", "input and output: expected both of them"),
        (
            '[a]\ntrace = "t"\nrps = 1\nweight = 2',
            "concurrent_sessions: expected one of them",
        ),
        ('[a]\ntrace = "t"\nweight = -1', "weight -1.0: expected a number above 0"),
        ('[a]\ntrace = "t"\nrps = 0', "rps 0.0: expected a number above 0"),
        ('[a]\ntrace = "t"\nturns = 0.5\nthink = "constant:1"', "turns 0.5: expected a mean of 1 or more"),
        ('[a]\ntrace = "t"\nturns = 2', "turns without think"),
        ('[a]\nbins = "b"\nturns = "trace"\nthink = "constant:1"', "bins and laws have no sessions"),
        ('[a]\nbins = "b"\narrival = "trace"', "no arrivals of their own"),
        ('[a]\ntrace = "t"\nturns = 2\nthink = "constant:1"\nfiles = 3', "one of them"),
        (
            '[a]\ntrace = "t"\nrps = 1\nshape = "ramp:1:2:3"',
            "rps, weight, shape, sessions_rate",
        ),
        ('[a]\ntrace = "t"\nshared = 1.5', "shared from 0 to 1"),
        ('[a]\ntrace = "t"\ngoodput = {itl = 5}', "goodput itl: 5"),
    ],
)
def test_an_invalid_file_of_streams_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(LoadgenError, match=message):
        read_streams(file)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, None),
        ({"rps": 0.001}, None),
        ({"rps": 0.0}, "rps 0.0: expected a number above 0"),
        ({"rps": math.inf}, "rps inf: expected a number above 0"),
        ({"burstiness": 0.0}, "burstiness 0.0: expected a number above 0"),
        ({"files": 1}, None),
        ({"files": 0}, "files 0: expected a number above 0"),
        ({"shared": 0.0}, None),
        ({"shared": 1.0}, None),
        ({"shared": -0.001}, "expected shared from 0 to 1"),
        ({"shared": 1.001}, "expected shared from 0 to 1"),
        ({"popularity": 0.0}, None),
        ({"popularity": -0.001}, "popularity of 0 or more"),
        ({"popularity": math.inf}, "popularity of 0 or more"),
        ({"turns": 1.0, "think": "constant:1"}, None),
        ({"turns": 0.999, "think": "constant:1"}, "expected a mean of 1 or more"),
        ({"turns": math.nan, "think": "constant:1"}, "expected a mean of 1 or more"),
        ({"turns": "trace", "think": "constant:1"}, None),
        ({"arrival": "trace"}, None),
        ({"goodput": {"ttft": 0.001, "tpot": 1, "e2el": 9}}, None),
        ({"goodput": {"ttft": 0}}, "goodput ttft: 0: expected milliseconds above 0"),
        ({"goodput": {"ttft": math.nan}}, "goodput ttft: nan"),
    ],
)
def test_the_limits_of_every_field_of_a_stream(fields: dict[str, Any], fault: str | None) -> None:
    text = stream_fault(Stream(trace="t", **fields))
    assert text is None if fault is None else fault in (text or "")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream(bins="burstgpt"), "its source has no rate; say one"),
        (Stream(trace=CHAT, turns=2, think="never"), "think 'never'"),
        (Stream(trace=CHAT, rps=1, arrival="poisson", scale="thin"), "needs --rps, and no --arrival"),
        (Stream(trace=CHAT, rps=99, scale="thin"), "cannot be thinned"),
    ],
)
def test_streams_that_cannot_be_planned_are_an_error(stream: Stream, message: str) -> None:
    with pytest.raises(LoadgenError, match=message):
        planned({"a": stream})


def test_bins_need_an_end() -> None:
    with pytest.raises(LoadgenError, match="bins and laws have no end"):
        planned({"a": Stream(bins="burstgpt", rps=1)}, duration_s=None)


# -- sources, models and weights of their own -------------------------------------------------------------------------


def written(folder: Path, text: str, **files: str) -> Streams:
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text(content)
    (folder / "s.toml").write_text(text)
    return read_streams(folder / "s.toml")


def test_a_stream_of_words_is_stored_and_scheduled_with_its_model(tmp_path: Path) -> None:
    rows = '{"prompt": "one"}\n{"prompt": "two", "model": "own"}\n'
    streams = written(tmp_path, '[a]\ntrace = "p.jsonl"\nmodel = "adapter"\nrps = 5', p=rows)
    with (tmp_path / "words").open("w+b") as file:
        schedule = schedule_streams(streams, seed=0, duration_s=None, num_requests=4, words=WordsFile(file))
    assert [request.model for request in schedule.requests] == ["adapter", "own", "adapter", "own"]
    assert [request.words and request.words.line for request in schedule.requests] == [1, 2, 1, 2]
    assert all(request.natural and request.workload == "a" for request in schedule.requests)
    assert schedule.requested_arrivals[0].process == "poisson"


def test_a_stream_may_be_made_of_laws_and_its_lengths_are_theirs(tmp_path: Path) -> None:
    streams = written(tmp_path, '[a]\ninput = "uniform:5:9"\noutput = 3\nrps = 20\nmodel = "m"')
    requests = planned(streams).requests
    assert {request.input_tokens for request in requests} == {5, 6, 7, 8, 9}
    assert {(request.output_tokens, request.model) for request in requests} == {(3, "m")}


def test_shipped_traces_are_known_by_name_unless_a_file_beside_is_called_that(tmp_path: Path) -> None:
    assert written(tmp_path, '[a]\ntrace = "chat"')["a"].trace == "chat"
    (tmp_path / "chat").write_text("")
    assert read_streams(tmp_path / "s.toml")["a"].trace == str(tmp_path / "chat")
    (request, *_) = planned({"a": Stream(trace="chat", rps=2)}).requests
    assert request.input_tokens == planned({"a": Stream(trace=CHAT, rps=2)}).requests[0].input_tokens


def test_a_rate_is_shared_out_by_weight() -> None:
    shared = share_rate({"a": Stream(trace=CHAT, weight=3), "b": Stream(trace=CODE, weight=1)}, 8.0)
    assert [(stream.rps, stream.weight) for stream in shared.values()] == [(6.0, None), (2.0, None)]
    unweighted = {"a": Stream(trace=CHAT, rps=2)}
    assert share_rate(unweighted, None) == unweighted
    with pytest.raises(LoadgenError, match="stream a has a weight, its share of the run's rate: give that with --rps"):
        share_rate({"a": Stream(trace=CHAT, weight=3)}, None)
    with pytest.raises(LoadgenError, match="--rps is shared out by weight, and stream a has none"):
        share_rate(unweighted, 8.0)


# -- conversations of words -------------------------------------------------------------------------------------------


def conversations(folder: Path, timed: bool = True) -> Path:
    """Write two conversations of three turns each, one line after the other, and a request on its own."""
    rows = [(i * 100.0, f"{'ab'[i % 2]}") for i in range(6)] + [(600.0, None)]
    lines = [
        {"messages": [{"role": "user", "content": f"{i}"}], "workload": "support"}
        | ({"timestamp": at_ms} if timed else {})
        | ({"session_id": session} if session else {})
        for i, (at_ms, session) in enumerate(rows)
    ]
    (path := folder / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def one_trace(path: Path, **options: Any) -> Schedule:
    limits = {name: options.pop(name, None) for name in ("duration_s", "num_requests")}
    with (path.parent / "bodies").open("wb") as file:
        return schedule_trace(read_source(path, WordsFile(file)), Stream(**options), seed=1, **limits)


def test_the_process_brings_first_turns_and_later_ones_follow_the_answer_before(tmp_path: Path) -> None:
    plan = one_trace(conversations(tmp_path)).requests
    lines = {r.words.line: r for r in plan if r.words}
    assert [r.offset_ns for r in lines.values() if r.after is None] == [0, 100_000_000, 600_000_000]
    assert [lines[line].after for line in (3, 5)] == [lines[1].index, lines[3].index]
    assert [lines[line].after for line in (4, 6)] == [lines[2].index, lines[4].index]
    assert {r.think_ns for r in plan} == {0}
    assert {r.workload for r in plan} == {"support"}
    assert [lines[line].session_id for line in (1, 2, 7)] == ["a", "b", None]


def test_the_rate_of_conversations_counts_all_their_turns(tmp_path: Path) -> None:
    plan = one_trace(conversations(tmp_path, timed=False), rps=70.0, arrival="constant", duration_s=10.0)
    assert plan.rate_rps == pytest.approx(70.0)
    (spec,) = plan.requested_arrivals
    assert (spec.sessions, spec.turns, spec.rate_rps) == (True, pytest.approx(7 / 3), pytest.approx(30.0))
    assert len(plan.requests) == pytest.approx(700, rel=0.02)
    sessions = {r.session_id for r in plan.requests if r.after is None and r.session_id}
    assert len(sessions) == sum(r.after is None and r.session_id is not None for r in plan.requests), "each its own"
    assert sessions >= {"a", "a+1", "b+1"}


def test_a_limit_keeps_the_first_requests_and_no_session_loses_its_beginning(tmp_path: Path) -> None:
    for count in range(1, 8):
        plan = one_trace(conversations(tmp_path), num_requests=count)
        assert len(plan.requests) == count
        assert all(r.after is None or r.after < r.index for r in plan.requests)


def test_a_stream_of_conversations_needs_no_word_about_turns(tmp_path: Path) -> None:
    with (tmp_path / "bodies").open("wb") as file:
        streams = {"own": Stream(trace=str(conversations(tmp_path)), model="m")}
        plan = schedule_streams(streams, seed=0, duration_s=None, num_requests=None, words=WordsFile(file))
    assert sum(r.after is not None for r in plan.requests) == 4
    assert {r.session_id for r in plan.requests} == {"own/a", "own/b", None}
    assert {r.workload for r in plan.requests} == {"own"}


def test_one_turn_a_session_is_no_conversation(tmp_path: Path) -> None:
    (path := tmp_path / "c.jsonl").write_text('{"prompt":"a","session_id":"a"}\n{"prompt":"b","session_id":"b"}\n')
    plan = one_trace(path, rps=1.0)
    assert [r.after for r in plan.requests] == [None, None]
    assert not plan.requested_arrivals[0].sessions
