"""Every endpoint is measured: what streams by its tokens, what answers whole by its end; the joules of both add up."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from loadgen.errors import LoadgenError
from loadgen.record import Endpoint, RequestRecord
from loadgen.report.write import finish
from loadgen.results.run_folder import RunResult, read_lines
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import Schedule, ScheduledRequest, build_schedule
from loadgen.workload.sources import read_source
from loadgen.workload.words import WordsFile


def run_of(schedule: Schedule, out: Path, **options: Any) -> RunResult:
    """Return the run of a schedule against the simulator; the true joules of its requests are in oracle.jsonl."""

    async def run() -> Schedule:
        async with running_simulator(ServerOptions(port=0)) as (server, url):
            config = RunConfig(out=out, base_url=f"{url}/v1", idle_s=0.3, **options)
            sent = await replay(schedule, config, NullView())
            (out / "oracle.jsonl").write_bytes(
                b"".join(msgspec.json.encode(line) + b"\n" for line in server.player.oracle)
            )
            return sent

    return finish(out, uvloop.run(run()))


def made_up(count: int, input_tokens: int, gap_ms: int) -> Schedule:
    requests = tuple(
        ScheduledRequest(
            index=i,
            offset_ns=i * gap_ms * NS_PER_MS,
            workload="w",
            input_tokens=input_tokens * (1 + i % 3),
            output_tokens=9,
        )
        for i in range(count)
    )
    return Schedule(requests, "constant", 1000 / gap_ms, 0)


@pytest.mark.parametrize("endpoint", ["embeddings", "rerank"])
def test_an_answer_that_comes_whole_has_latency_tokens_and_joules(endpoint: Endpoint, tmp_path: Path) -> None:
    result = run_of(made_up(20, 800, 60), tmp_path / "run", endpoint=endpoint)
    assert result.summary is not None and result.attribution is not None
    for record, request in zip(result.records, result.schedule, strict=True):
        assert record.came_whole and record.e2e_ns, record.detail
        assert (record.ttft_ns, record.tpot_ns, record.output_tokens) == (None, None, None)
        assert record.input_tokens == request.input_tokens
    summary, energy = result.summary, result.summary.energy
    assert (summary.ttft_s.count, summary.e2e_s.count, summary.tokens.output) == (0, 20, None)
    assert energy.came_whole == 20 and not energy.decode_joules
    shares = {share.index: share.joules or 0.0 for share in result.attribution.requests}
    true = {
        int(line["request_id"].rpartition("-")[2]): line["joules"]
        for line in map(json.loads, (tmp_path / "run" / "oracle.jsonl").read_text().splitlines())
        if line["request_id"].startswith(result.info.run_id)
    }
    assert sum(shares.values()) == pytest.approx(sum(true.values()), rel=0.3), (
        "its idle power while bytes travel is in the measured ones"
    )
    assert {check.name for check in summary.verdict.checks if check.status == "failed"} <= {"client", "load"}


def test_a_response_is_measured_as_a_chat_is(tmp_path: Path) -> None:
    results = [run_of(made_up(8, 90, 25), tmp_path / name, endpoint=name) for name in ("chat", "responses")]
    chat, response = ([msgspec.structs.replace(record) for record in result.records] for result in results)
    for one, other in zip(chat, response, strict=True):
        assert other.error is None, other.detail
        counted = (one.input_tokens, one.output_tokens, len(one.chunk_ns), one.finish_reason, one.token_source)
        assert counted == (other.input_tokens, other.output_tokens, len(other.chunk_ns), "length", "usage")
        assert other.kinds == one.kinds


MIXED = [
    {"body": {"input": "embed this"}, "url": "/v1/embeddings"},
    {"body": {"input": [{"role": "user", "content": "hello"}], "max_output_tokens": 5}, "url": "/v1/responses"},
    {"body": {"query": "what", "documents": ["a cat", "a dog"]}},
    {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
    {"prompt": "once upon", "max_tokens": 3},
]


def worded(rows: list[dict[str, Any]], folder: Path) -> tuple[Schedule, Path]:
    trace, bodies = folder / "mixed.jsonl", folder / "bodies.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with bodies.open("wb") as file:
        source = read_source(trace, WordsFile(file))
    return build_schedule(source, seed=0, rps=50, arrival="constant"), bodies


def test_one_run_may_need_them_all(tmp_path: Path) -> None:
    schedule, bodies = worded(MIXED, tmp_path)
    result = run_of(schedule, tmp_path / "run", words=bodies)
    assert [record.error for record in result.records] == [None] * 5, [record.detail for record in result.records]
    assert [record.came_whole for record in result.records] == [True, False, True, False, False]
    lines = read_lines(tmp_path / "run" / "schedule.jsonl", ScheduledRequest)
    assert [request.words and request.words.endpoint for request in lines] == [
        "embeddings", "responses", "rerank", "chat", "completions",
    ]  # fmt: skip


def test_words_that_no_endpoint_takes_end_the_run_before_it_begins(tmp_path: Path) -> None:
    schedule, bodies = worded([{"body": {"input": "which?"}}], tmp_path)
    with pytest.raises(LoadgenError, match=r"line 1: .* give the line a url"):
        asyncio.run(
            replay(schedule, RunConfig(out=tmp_path / "run", base_url="http://[::1]:9", words=bodies), NullView())
        )
    assert not (tmp_path / "run").exists()


def test_a_refused_embedding_is_a_failed_request_with_the_servers_words(tmp_path: Path) -> None:
    rows = [{"body": {"input": "fine"}}, {"body": {"input": ""}}]
    schedule, bodies = worded(rows, tmp_path)
    records: tuple[RequestRecord, ...] = run_of(schedule, tmp_path / "run", words=bodies, endpoint="embeddings").records
    assert [record.error for record in records] == [None, "http"]
    assert "the texts must hold" in (records[1].detail or "") or "non-empty" in (records[1].detail or "")
