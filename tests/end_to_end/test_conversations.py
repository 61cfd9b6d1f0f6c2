"""Conversations of one's own: each turn follows the answer before it, with the history that is asked for."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from end_to_end.test_own_words import lines, refused, replay
from loadgen.client.answer import Answer
from loadgen.record import RequestRecord
from loadgen.results.run_folder import read_lines
from loadgen.workload.schedule import ScheduledRequest
from support.recording_server import RecordingServer

ANSWER = " a b c"
"""The answer of the recording server."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def spoken(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def conversation(session: str, turns: int = 3) -> list[dict[str, Any]]:
    """Return the lines of a conversation, each with the whole history before it."""
    said: list[dict[str, Any]] = []
    rows = []
    for k in range(turns):
        said = [*said, user(f"{session} asks {k}")]
        rows.append({"messages": said, "session_id": session, "answer": f"old {k}"})
        said = [*said, spoken(f"old {k}")]
    return rows


def messages(server: RecordingServer, folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """Return the messages that were received of each turn of each session."""
    plan = sorted(read_lines(folder / "schedule.jsonl", ScheduledRequest), key=lambda r: (r.session_id or "", r.index))
    return {
        session or "": [json.loads(server.received[r.index].body)["messages"] for r in turns]
        for session, turns in groupby(plan, key=lambda request: request.session_id)
    }


def live(session: str, turns: int = 3) -> list[list[dict[str, Any]]]:
    said = [message for k in range(turns) for message in (user(f"{session} asks {k}"), spoken(ANSWER))]
    return [said[: 2 * k + 1] for k in range(turns)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("history", [None, "recorded", "live"])
def test_a_turn_follows_the_answer_before_it_with_the_history_that_is_asked_for(
    server: RecordingServer, url: str, tmp_path: Path, history: str | None, processes: int
) -> None:
    rows = [turn for pair in zip(*(conversation(name) for name in "abc"), strict=True) for turn in pair]
    (source := tmp_path / "c.jsonl").write_bytes(lines(*rows))
    out, options = tmp_path / "run", ("--history", history) if history else ()
    summary = replay(url, source, "--processes", processes, *options, out=out)
    assert summary.requests.completed == 9
    if history == "live":
        assert messages(server, out) == {name: live(name) for name in "abc"}
    else:
        assert messages(server, out) == {name: [row["messages"] for row in conversation(name)] for name in "abc"}
    records = {record.index: record for record in read_lines(out / "records.jsonl", RequestRecord)}
    plan = list(read_lines(out / "schedule.jsonl", ScheduledRequest))
    assert [request.after is None for request in plan].count(True) == 3
    for request in plan:
        if request.after is not None:
            assert records[request.index].scheduled_ns == records[request.after].finished_ns
    assert json.loads((out / "run.json").read_bytes())["config"]["history"] == (history or "recorded")


def test_lines_with_new_messages_alone_continue_live(server: RecordingServer, url: str, tmp_path: Path) -> None:
    rows = [
        {"messages": [user(f"s asks {k}")], "session_id": "s", **({"continues": True} if k else {})} for k in range(3)
    ]
    (source := tmp_path / "c.jsonl").write_bytes(lines(*rows))
    replay(url, source, out=tmp_path / "run")
    assert messages(server, tmp_path / "run") == {"s": live("s")}
    assert not (tmp_path / "run" / "answers.jsonl").exists(), "live answers are kept for their turn alone"


def test_a_turn_that_is_refused_ends_its_session(
    server: RecordingServer, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refuses = lambda body: "no" if b"a asks 1" in body else None
    (source := tmp_path / "c.jsonl").write_bytes(lines(*conversation("a"), *conversation("b")))
    summary = replay(url, source, "--history", "live", out=tmp_path / "run")
    assert summary.requests.by_error == {"http": 1, "not_sent": 1}
    details = {r.detail for r in read_lines(tmp_path / "run" / "records.jsonl", RequestRecord) if r.error == "not_sent"}
    assert details == {"turn 1 of its session failed: http"}


def test_users_think_as_the_option_says(server: RecordingServer, url: str, tmp_path: Path) -> None:
    rows = [row | {"timestamp": 30.0 * k} for k, row in enumerate(conversation("s"))]
    (source := tmp_path / "c.jsonl").write_bytes(lines(*rows))
    for law, think_ms in (("trace", 30), ("constant:0.02", 20)):
        replay(url, source, "--think", law, out=tmp_path / law)
        plan = list(read_lines(tmp_path / law / "schedule.jsonl", ScheduledRequest))
        assert [request.think_ns for request in plan] == [0, think_ms * 10**6, think_ms * 10**6]


@pytest.mark.parametrize(
    ("rows", "options", "fault"),
    [
        (conversation("s"), ("--think", "trace"), "has no timestamps"),
        (conversation("s", 1), ("--think", "constant:1"), "no sessions of several turns"),
        (conversation("s", 1), ("--history", "live"), "no session has a second turn"),
        ([{"prompt": "a", "session_id": "s"}] * 2, ("--history", "live"), "line 2 has no messages"),
        ([{"messages": [user("a")], "session_id": "s", "continues": True}], (), "line 1 continues a session"),
    ],
)
def test_what_cannot_be_sent_is_one_line_before_the_run(
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    options: tuple[str, ...],
    fault: str,
) -> None:
    (source := tmp_path / "c.jsonl").write_bytes(lines(*rows))
    arguments = (
        "replay",
        source,
        "--rps",
        100,
        "--arrival",
        "poisson",
        "--base-url",
        url,
        "--out",
        tmp_path / "run",
        *options,
    )
    assert fault in refused(capsys, *arguments)


@pytest.mark.parametrize("processes", [1, 2])
def test_answers_are_kept_on_request_for_their_owner_alone(url: str, tmp_path: Path, processes: int) -> None:
    (source := tmp_path / "c.jsonl").write_bytes(lines(*({"prompt": f"{i}"} for i in range(6))))
    out = tmp_path / "run"
    replay(url, source, "--keep-answers", "--processes", processes, out=out)
    answers = sorted(read_lines(out / "answers.jsonl", Answer), key=lambda answer: answer.index)
    assert answers == [Answer(index=i, text=ANSWER) for i in range(6)]
    assert (out / "answers.jsonl").stat().st_mode & 0o777 == 0o600
    assert not list(out.glob("*.[0-9].jsonl"))
    without = [path for path in out.iterdir() if path.name != "answers.jsonl" and ANSWER.encode() in path.read_bytes()]
    assert without == [], "no answer is in any other file"


def test_without_the_option_no_answer_is_anywhere(url: str, tmp_path: Path) -> None:
    (source := tmp_path / "c.jsonl").write_bytes(lines(*conversation("s")))
    replay(url, source, "--history", "live", out=tmp_path / "run")
    assert not any(ANSWER.encode() in path.read_bytes() for path in (tmp_path / "run").iterdir())
    assert not list((tmp_path / "run").glob("answers*"))
