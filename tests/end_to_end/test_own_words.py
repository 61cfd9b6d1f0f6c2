"""One's own requests reach the server word for word, whatever file they come from."""

import gzip
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from loadgen.cli import main
from loadgen.record import RequestRecord
from loadgen.results.run_folder import read_lines
from loadgen.results.summary import Summary
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.words import WordsReader
from support.recording_server import Received, RecordingServer

QUIET = ("--energy", "none", "--ui", "none")
QUICK = (*QUIET, "--rps", 300, "--arrival", "constant", "--max-failed", "100%")


def replay(url: str, *arguments: object, out: Path, quick: Sequence[object] = QUICK) -> Summary:
    """Return the summary of a run. On a busy machine it may have been late, and nothing else may be wrong."""
    with pytest.raises(SystemExit):
        main([str(argument) for argument in ("replay", *arguments, "--base-url", url, "--out", out, *quick)])
    summary = msgspec.json.decode((out / "summary.json").read_bytes(), type=Summary)
    assert {check.name for check in summary.verdict.checks if check.status == "failed"} <= {"client", "load"}
    return summary


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()  # of earlier runs, which may say that something takes long
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    stage, *said = capsys.readouterr().err.splitlines()
    assert (exit_.value.code, stage, len(said)) == (2, "making the schedule", 1), said
    return said[0]


def lines(*rows: dict[str, Any] | bytes) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def bodies(server: RecordingServer) -> list[dict[str, Any]]:
    return [json.loads(server.received[index].body) for index in sorted(server.received)]


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
RAW = [
    rb'{"prompt": "\ud83d half, \u0000 nul, \/ slash"}',
    rb'{"messages": [ {"content":"caf\u00e9"  ,"role":"user"} ], "stop": [ "x" ]}',
    '{"body": {"messages": [{"role":"user","content":"\N{GRINNING FACE}"}], "n" : 1.0, "big": 1e400}}'.encode(),
]
"""Values whose bytes are not those that an encoder would write."""
INSIDE = [rb'"\ud83d half, \u0000 nul, \/ slash"', rb'[ {"content":"caf\u00e9"  ,"role":"user"} ]', b"1e400"]


def packed(how: str, content: bytes) -> bytes:
    match how:
        case "gzip":
            return gzip.compress(content)
        case "zstd":
            return zstandard.compress(content)
        case "crlf":
            return content.replace(b"\n", b"\r\n")
        case "bom":
            return b"\xef\xbb\xbf" + content
        case _:
            return content.rstrip(b"\n") if how == "no last line end" else content


@pytest.mark.parametrize("how", ["plain", "gzip", "zstd", "crlf", "bom", "no last line end"])
def test_values_arrive_byte_for_byte_from_any_kind_of_file(
    server: RecordingServer, url: str, tmp_path: Path, how: str
) -> None:
    (source := tmp_path / "p.jsonl").write_bytes(packed(how, lines(*RAW)))
    summary = replay(url, source, "--max-tokens", 9, out=tmp_path / "run")
    assert summary.requests.completed == 3
    received = [server.received[index] for index in range(3)]
    assert [request.path for request in received] == [
        "/v1/completions", "/v1/chat/completions", "/v1/chat/completions",
    ]  # fmt: skip
    assert all(value in request.body for value, request in zip(INSIDE, received, strict=True))
    assert [b'"max_tokens":9' in request.body for request in received] == [True, True, False]


@pytest.mark.parametrize(
    "row",
    [
        rb'{"id": "a", "conversations": [{"from": "human", "value": "\ud83d half"}, {"from": "gpt", "value": "b"}]}',
        rb'{"custom_id": "a", "url": "URL", "body": {"messages": [{"role": "user", "content": "\ud83d half"}]}}',
    ],
    ids=["conversations", "openai-batch"],
)
def test_half_a_character_arrives_from_other_tools_files_and_through_import(
    server: RecordingServer, url: str, tmp_path: Path, row: bytes
) -> None:
    (source := tmp_path / "p.json").write_bytes(row.replace(b"URL", b"/v1/chat/completions") + b"\n")
    with pytest.raises(SystemExit):
        main(["trace", "import", str(source), "--out", str(tmp_path / "imported.jsonl")])
    for number, file in enumerate((source, tmp_path / "imported.jsonl")):
        replay(url, file, out=tmp_path / f"run-{number}")
        assert rb'"\ud83d half"' in server.received.pop(0).body


def test_a_pipe_is_read_once(server: RecordingServer, url: str, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "p.jsonl")
    writer = threading.Thread(target=pipe.write_bytes, args=(lines(CHAT, CHAT),))
    writer.start()
    assert replay(url, pipe, out=tmp_path / "run").requests.completed == 2
    writer.join()


def test_a_source_that_changes_after_it_was_read_is_sent_as_it_was(
    server: RecordingServer, url: str, tmp_path: Path
) -> None:
    (source := tmp_path / "p.jsonl").write_bytes(lines(*({"prompt": f"before {i}"} for i in range(20))))

    def change(body: bytes) -> None:
        source.write_bytes(lines({"prompt": "after"}))

    server.refuses = change
    assert replay(url, source, out=tmp_path / "run").requests.completed == 20
    assert {body["prompt"] for body in bodies(server)} == {f"before {i}" for i in range(20)}


def test_a_line_has_its_own_headers_model_limit_and_fields(server: RecordingServer, url: str, tmp_path: Path) -> None:
    own = {"model": "lora", "max_tokens": 4, "headers": {"X-Tenant": "a"}, "temperature": 0.5, "answer": "never sent"}
    rows = [CHAT | own, CHAT, {"body": CHAT | {"model": "gpt", "max_tokens": 2}}]
    (source := tmp_path / "p.jsonl").write_bytes(lines(*rows))
    options = ("--max-tokens", 8, "--extra-body", '{"temperature": 1, "top_k": 3}', "--header", "X-Tenant:b")
    summary = replay(url, source, *options, out=tmp_path / "run")
    first, second, third = bodies(server)
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    assert first == CHAT | stream | {"model": "lora", "max_tokens": 4, "temperature": 0.5, "top_k": 3}
    assert second == CHAT | stream | {"model": "m", "max_tokens": 8, "temperature": 1, "top_k": 3}
    assert third == CHAT | stream | {"model": "m", "max_tokens": 2}
    assert [server.received[index].headers["x-tenant"] for index in range(3)] == ["a", "b", "b"]
    assert {name: part.requests.completed for name, part in summary.by_model.items()} == {"lora": 1, "m": 2}


def test_several_processes_send_the_same_bytes_as_one(url: str, server: RecordingServer, tmp_path: Path) -> None:
    (source := tmp_path / "p.jsonl").write_bytes(lines(*({"prompt": f"prompt {i}"} for i in range(9))))
    received: list[list[Received]] = []
    for processes in (1, 3):
        replay(url, source, "--processes", processes, "--num-requests", 12, out=tmp_path / f"run-{processes}")
        received.append([server.received.pop(index) for index in range(12)])
    assert [request.body for request in received[0]] == [request.body for request in received[1]]


def test_bodies_are_kept_on_request_only_and_are_found_by_the_schedule(url: str, tmp_path: Path) -> None:
    (source := tmp_path / "p.jsonl").write_bytes(lines(CHAT, {"prompt": "b", "headers": {"authorization": "s3cret"}}))
    replay(url, source, out=tmp_path / "without")
    replay(url, source, "--keep-bodies", out=tmp_path / "with")
    for path in (tmp_path / "without").iterdir():
        assert b"s3cret" not in path.read_bytes() and b'"hi"' not in path.read_bytes(), path
    kept = tmp_path / "with" / "bodies.jsonl"
    assert kept.stat().st_mode & 0o077 == 0
    schedule = list(read_lines(tmp_path / "with" / "schedule.jsonl", ScheduledRequest))
    reader = WordsReader(kept)
    assert [set(reader.fields(request.words)) for request in schedule if request.words] == [
        {"messages"}, {"prompt", "headers"},
    ]  # fmt: skip
    first, _ = kept.read_bytes().splitlines()
    assert json.loads(first) == CHAT


def test_a_body_that_the_server_refuses_is_a_failed_request_with_the_servers_words(
    server: RecordingServer, url: str, tmp_path: Path
) -> None:
    server.refuses = lambda body: "no such role: emperor" if b"emperor" in body else None
    rows = [CHAT, {"messages": [{"role": "emperor", "content": "hi"}]}, CHAT]
    (source := tmp_path / "p.jsonl").write_bytes(lines(*rows))
    summary = replay(url, source, out=tmp_path / "run")
    assert (summary.requests.completed, summary.requests.by_error) == (2, {"http": 1})
    (failed,) = (r for r in read_lines(tmp_path / "run" / "records.jsonl", RequestRecord) if not r.ok)
    assert (failed.index, failed.status, failed.detail) == (1, 400, "400 Bad Request: no such role: emperor")


@pytest.mark.parametrize("asked", [[], ["--keep-bodies"]], ids=["", "--keep-bodies"])
def test_no_file_of_a_run_quotes_a_prompt_unless_bodies_are_kept(
    server: RecordingServer, url: str, tmp_path: Path, asked: list[str]
) -> None:
    secret = "The treasure lies below the third stone"
    server.refuses = lambda body: f"refused: '{secret}' is no question" if secret.encode() in body else None
    (source := tmp_path / "p.jsonl").write_bytes(lines({"messages": [{"role": "user", "content": secret}]}, CHAT))
    replay(url, source, *asked, out=tmp_path / "run")
    quoting = {path.name for path in (tmp_path / "run").iterdir() if secret.encode() in path.read_bytes()}
    assert ("bodies.jsonl" in quoting) is bool(asked)
    assert asked or not quoting


def test_lines_without_times_come_as_a_poisson_process_and_go_round_again(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source := tmp_path / "p.jsonl").write_bytes(lines(CHAT, {"prompt": "b"}))
    replay(url, source, "--rps", 200, "--duration", 0.5, out=tmp_path / "run", quick=(*QUIET, "--ui", "plain"))
    assert "has no timestamps: its requests come as a Poisson process" in capsys.readouterr().err
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["config"]["arrival"], info["asked"][0]["process"]) == ("poisson", "poisson")
    schedule = list(read_lines(tmp_path / "run" / "schedule.jsonl", ScheduledRequest))
    assert len(schedule) > 50
    assert [request.words and request.words.line for request in schedule[:4]] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (lines(CHAT), (), "p has no mean rate of its own; say one with --rps"),
        (b"", ("--rps", 1), "p.jsonl has no requests in it"),
        (lines(CHAT) + b'{"prompt": "cut', ("--rps", 1), "p.jsonl:2: not a JSON object"),
        (lines(CHAT, b'{"prompt": "\xff"}'), ("--rps", 1), "p.jsonl:2: byte 0xff at 12 is not UTF-8"),
        (lines(CHAT, b'{"prompt": \x00"a"}'), ("--rps", 1), "p.jsonl:2: not a JSON object"),
        (lines(CHAT, CHAT | {"timestmp": 5}), ("--rps", 1), "p.jsonl:2: field 'timestmp' is not known"),
        (lines(CHAT, {"timestamp": 0, "input_length": 5}), ("--rps", 1), "p.jsonl:2: expected one of messages"),
        (lines(CHAT), ("--rps", 1, "--stop", "length"), "a request (line 1) has no output_length"),
        (lines({"body": CHAT}), ("--rps", 1, "--stop", "length"), "the request of line 1 has a body of its own"),
        (gzip.compress(lines(CHAT), mtime=0)[:-9], ("--rps", 1), "cannot read"),
    ],
    ids=["no rate", "empty", "cut", "no UTF-8", "NUL", "unknown", "lengths", "no length", "a body", "cut gzip"],
)  # fmt: skip
def test_a_fault_is_one_line_before_any_server_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, options: tuple[object, ...], message: str
) -> None:
    (source := tmp_path / "p.jsonl").write_bytes(content)
    assert message in refused(capsys, "replay", source, "--base-url", "http://127.0.0.1:1", *options)


def test_a_prompt_of_100_mb_is_sent_and_one_beyond_the_limit_is_refused(
    server: RecordingServer, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "p.jsonl"
    source.write_bytes(b'{"prompt": "' + b"word " * 20_000_000 + b'"}\n')
    assert replay(url, source, "--num-requests", 1, out=tmp_path / "run").requests.completed == 1
    assert len(server.received[0].body) > 100_000_000
    with source.open("wb") as file:
        file.write(b'{"prompt": "')
        file.seek(2**28)
        file.write(b'"}\n')
    assert "p.jsonl:1: the line is longer than 256 MiB" in refused(capsys, "replay", source, "--rps", 1)


def test_streams_of_words_and_of_laws_run_together_with_models_of_their_own(
    server: RecordingServer, url: str, tmp_path: Path
) -> None:
    (tmp_path / "sql.jsonl").write_bytes(lines({"prompt": "select"}))
    (tmp_path / "s.toml").write_text(
        '[sql]\ntrace = "sql.jsonl"\nmodel = "lora"\nweight = 3\n[noise]\ninput = 20\noutput = 3\nweight = 1\n'
    )
    options = ("--rps", 100, "--num-requests", 40)
    summary = replay(url, tmp_path / "s.toml", *options, out=tmp_path / "run", quick=QUIET)
    parts = {name: part.requests.completed for name, part in summary.by_workload.items()}
    assert parts["sql"] > parts["noise"] > 0
    assert {name: part.requests.completed for name, part in summary.by_model.items()} == {
        "lora": parts["sql"], "m": parts["noise"],
    }  # fmt: skip
    assert {(body["model"], "prompt" in body) for body in bodies(server)} == {("lora", True), ("m", False)}
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["config"]["streams"]["sql"]["rps"] == 75


def test_a_shipped_trace_a_profile_and_lengths_are_sent_from_any_folder(
    server: RecordingServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, source in enumerate((["chat"], ["burstgpt"], ["--input", "uniform:5:9", "--output", "3"])):
        summary = replay(url, *source, "--num-requests", 3, out=Path(f"run-{number}"))
        assert summary.requests.completed == 3
    schedule = list(read_lines(tmp_path / "run-2" / "schedule.jsonl", ScheduledRequest))
    assert all(request.input_tokens in range(5, 10) and request.output_tokens == 3 for request in schedule)
