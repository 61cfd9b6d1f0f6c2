"""Recorded agent sessions on the simulated server: all requests, in order, with the cache hits that the trace has."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from loadgen.cli import cli
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.results.run_folder import read_lines
from loadgen.servers.launcher import served
from loadgen.workload.schedule import ScheduledRequest
from support.agent_files import BLOCK, FORKED, talk, write_session

PREFIX = {"tool_tokens": 2 * BLOCK, "system_tokens": BLOCK}


def replayed(folder: Path, *arguments: object, wanted: int = 0) -> tuple[Any, dict[int, ScheduledRequest], Any]:
    """Return run.json, and schedule and records by index, of a run on a server with an empty prefix cache."""
    out = folder / "run"
    with served("sim", "--prefix-caching") as url:
        command = ["replay", *arguments, "--base-url", url, "--endpoint", "completions", "--out", out, "--json"]
        result = CliRunner().invoke(cli, [*map(str, command), "--energy", "none"], catch_exceptions=False)
    assert result.exit_code == wanted, result.output
    info = json.loads((out / "run.json").read_bytes())
    plan = {request.index: request for request in read_lines(out / "schedule.jsonl", ScheduledRequest)}
    return info, plan, {record.index: record for record in read_lines(out / "records.jsonl", RequestRecord)}


def check_order(plan: dict[int, ScheduledRequest], records: dict[int, RequestRecord]) -> None:
    """Hold each request to its parents: sent a think time after the last of their answers."""
    assert records.keys() == plan.keys()
    for index, request in plan.items():
        record = records[index]
        assert record.error is None and record.sent_ns is not None
        for parent in request.parents:
            assert record.sent_ns >= (records[parent].finished_ns or 0) + request.think_ns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "sessions").mkdir()
    long = talk("b", 4, **PREFIX)
    long["requests"][-1]["type"] = "n"
    for content in (FORKED | PREFIX, talk("a", 3, **PREFIX), long):
        write_session(folder, content)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("--concurrent-sessions", 1, "--speedup", 100),
        ("--concurrent-sessions", 2, "--timing", "afap", "--processes", 2),
        ("--sessions-rate", 50, "--speedup", 100),
        ("--timing", "recorded", "--speedup", 50),
    ],
)
def test_every_request_is_sent_after_all_that_it_waits_for(
    folder: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    info, plan, records = replayed(tmp_path, folder, *options)
    assert len(plan) == 15
    check_order(plan, records)
    config = info["config"]
    assert config["unstreamed"] == 2 and config["trace_sha256"] is not None
    assert config["timing"] == (options[options.index("--timing") + 1] if "--timing" in options else "think")
    if "recorded" in options:
        for index, request in plan.items():
            assert records[index].scheduled_ns >= info["start_ns"] + request.offset_ns
    if options[:2] == ("--concurrent-sessions", 1):
        sessions = [plan[i].session_id for i in sorted(records, key=lambda i: records[i].sent_ns or 0)]
        assert [name for i, name in enumerate(sessions) if name not in sessions[:i]] == ["a", "b", "forked"]
        assert sessions == sorted(sessions, key=lambda name: name or ""), "one after another"


def test_the_cache_has_what_the_trace_shares_block_by_block(folder: Path, tmp_path: Path) -> None:
    _, plan, records = replayed(tmp_path, folder, "--concurrent-sessions", 1, "--timing", "afap")
    seen: set[tuple[int, ...]] = set()
    for index in sorted(plan, key=lambda i: records[i].sent_ns or 0):
        ids = plan[index].prefix_ids
        shared = max((n for n in range(len(ids) + 1) if not n or ids[:n] in seen), default=0)
        # The template, or the bos token, moves the blocks of the trace against those of the server.
        assert abs((records[index].cached_tokens or 0) - shared * BLOCK) <= BLOCK, (index, ids)
        seen.update(ids[:n] for n in range(1, len(ids) + 1))


def test_a_session_that_starts_in_the_middle_finds_its_history(folder: Path, tmp_path: Path) -> None:
    info, plan, records = replayed(
        tmp_path, folder, "--session-start", "middle", "--timing", "afap", "--concurrent-sessions", 3
    )
    check_order(plan, records)
    firsts = [request for request in plan.values() if not request.parents and request.task is None]
    assert len(plan) < 15 and len(firsts) == info["config"]["warmed"] == 3
    for request in firsts:
        assert (records[request.index].cached_tokens or 0) >= (len(request.prefix_ids) - 2) * BLOCK


@pytest.mark.parametrize(("how", "sent"), [("cut", 14), ("leave-out", 11)])
def test_sessions_that_are_too_long_are_counted(folder: Path, tmp_path: Path, how: str, sent: int) -> None:
    """The last prompt of session b, and no other, is longer than 100 tokens with its answer."""
    info, plan, records = replayed(
        tmp_path, folder, "--timing", "afap", "--concurrent-sessions", 1, "--max-context", 100, "--too-long", how
    )
    check_order(plan, records)
    config = info["config"]
    assert (config["too_long_sessions"], config["too_long_requests"], len(plan)) == (1, 15 - sent, sent)
    assert config["unstreamed"] == 1, "the others of those that are sent"
    assert sorted({request.session_id or "" for request in plan.values()}) == (
        ["a", "b", "forked"] if how == "cut" else ["a", "forked"]
    )


def test_a_session_that_is_too_long_is_refused_unless_something_else_is_wanted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match=r"needs 104 \+ 5 tokens, more than --max-context 100: --too-long leave-out"):
        replayed(tmp_path, folder, "--max-context", 100)
