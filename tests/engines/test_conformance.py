"""What loadgen needs from a server, asked of every engine alike; and that its recipe tells the truth about it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest
import uvloop

from loadgen.client.client import Client
from loadgen.client.find_dialect import find_dialect
from loadgen.client.find_model import find_model
from loadgen.client.openai_api import payload
from loadgen.client.server_info import ServerInfo
from loadgen.client.token_counts import count_on_server
from loadgen.record import PATHS, Endpoint, RequestRecord
from loadgen.report.write import finish
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.telemetry.engine_page import parse_page
from loadgen.workload.schedule import Schedule, ScheduledRequest
from support.engines import SEEN, Engine

pytestmark = pytest.mark.timeout(400)
T = TypeVar("T")
PROMPT = "Tell me about the history of the bicycle, in a few words."


def talk(engine: Engine, what: Callable[[Client], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Client(engine.url, timeout_s=120) as client:
            return await what(client)

    return asyncio.run(run())


PROBED: dict[tuple[str, Endpoint], ServerInfo] = {}
"""What each server said of itself, by URL and endpoint: one probe is enough for all tests."""


async def info(client: Client, endpoint: Endpoint = "chat") -> ServerInfo:
    key = (client.url.clean, endpoint)
    if key not in PROBED:
        found = await find_model(client, None)
        dialect = await find_dialect(client, endpoint, found, {})
        PROBED[key] = ServerInfo(found.base_url, found.model, found.engine, found.max_model_len, dialect)
    return PROBED[key]


async def send(client: Client, body: bytes, endpoint: Endpoint = "chat", index: int = 0) -> RequestRecord:
    return await client.post(
        PATHS[endpoint], body, index=index, workload="t", scheduled_ns=0, request_id=f"conformance-{index}"
    )


async def ask(client: Client, tokens: int, endpoint: Endpoint = "chat", prompt: str = PROMPT) -> RequestRecord:
    server = await info(client, endpoint)
    return await send(client, payload(endpoint, server.model, prompt, tokens, server.dialect, {}), endpoint)


def told(engine: Engine, column: str, value: object) -> None:
    text = (
        {True: "yes", False: "no", None: "-"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )
    SEEN.setdefault(engine.recipe.name, {})[column] = text


def test_it_is_healthy_and_says_what_it_serves(engine: Engine) -> None:
    found = talk(engine, info)
    told(engine, "engine", found.engine)
    told(engine, "context", found.max_model_len)
    told(engine, "usage", found.dialect.include_usage)
    if engine.recipe.name != "tgi":
        assert found.engine == engine.recipe.engine
    assert found.dialect.include_usage == engine.recipe.speaks.usage
    assert found.dialect.ignore_eos >= engine.recipe.speaks.ignore_eos
    assert found.dialect.min_tokens >= engine.recipe.speaks.min_tokens


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_stream_has_instants_counts_and_an_end(engine: Engine, endpoint: Endpoint) -> None:
    record = talk(engine, lambda client: ask(client, 24, endpoint))
    assert record.error is None, record.detail
    assert record.finish_reason is not None
    assert record.token_source == "usage"
    assert record.output_tokens is not None and 1 <= record.output_tokens <= 24
    assert record.input_tokens is not None and record.input_tokens >= 8
    assert 1 <= len(record.chunk_ns) <= record.output_tokens
    assert record.first_token_ns is not None and record.sent_ns is not None
    assert record.sent_ns < record.first_token_ns <= record.chunk_ns[-1]
    told(engine, f"{endpoint} chunks/tokens", f"{len(record.chunk_ns)}/{record.output_tokens}")


def test_ignore_eos_gives_the_length_that_was_asked(engine: Engine) -> None:
    lengths = [talk(engine, lambda client, n=n: ask(client, n)).output_tokens for n in (1, 7, 20)]
    told(engine, "ignore_eos", lengths == [1, 7, 20])
    if engine.recipe.speaks.ignore_eos:
        assert lengths == [1, 7, 20]


def test_token_ids_are_a_prompt_of_exactly_their_number(engine: Engine) -> None:
    async def look(client: Client) -> RequestRecord:
        server = await info(client, "completions")
        body = payload("completions", server.model, PROMPT, 2, server.dialect, {})
        ids = b"[" + b",".join(str(100 + i).encode() for i in range(50)) + b"]"
        return await send(client, body.replace(b'"' + PROMPT.encode() + b'"', ids), "completions")

    record = talk(engine, look)
    exact = record.error is None and record.input_tokens == 50
    told(engine, "token ids", exact)
    assert exact == engine.recipe.speaks.token_id_prompts, record.detail


def test_tokenize_counts_as_the_server_does(engine: Engine) -> None:
    async def look(client: Client) -> tuple[dict[str, int] | None, RequestRecord]:
        server = await info(client, "completions")
        return await count_on_server(client, server.model, [PROMPT]), await ask(client, 1, "completions")

    counted, record = talk(engine, look)
    told(engine, "/tokenize", counted is not None)
    assert (counted is not None) == engine.recipe.speaks.tokenize
    if counted is not None:
        assert record.input_tokens is not None
        assert 0 <= record.input_tokens - counted[PROMPT] <= 1, "at most a beginning-of-text token apart"


def test_what_it_refuses_is_data_and_it_lives_on(engine: Engine) -> None:
    async def look(client: Client) -> tuple[RequestRecord, RequestRecord]:
        server = await info(client)
        long = "word " * round(1.2 * (server.max_model_len or 4096))  # a token each at least
        refused = await send(client, payload("chat", server.model, long, 4, server.dialect, {}))
        return refused, await ask(client, 4)

    refused, after = talk(engine, look)
    told(engine, "too long", refused.status)
    assert refused.error == "http" and refused.status in (400, 413, 422)
    assert refused.detail
    assert after.error is None


def test_a_client_that_leaves_does_not_take_the_server_with_it(engine: Engine) -> None:
    async def look(client: Client) -> RequestRecord:
        server = await info(client)
        body = payload("chat", server.model, PROMPT, 200, server.dialect, {})
        task = asyncio.create_task(send(client, body))
        await asyncio.sleep(0.3)
        task.cancel()
        left = await task
        assert left.error in ("cancelled", None)
        return await ask(client, 3)

    assert talk(engine, look).error is None


def test_requests_at_once_are_all_answered_and_its_counters_count_them(engine: Engine) -> None:
    async def page(client: Client) -> dict[str, float]:
        async with aiohttp.ClientSession() as session:
            address = engine.url.removesuffix("/v1") + (engine.recipe.metrics or "/metrics")
            async with session.get(address) as answer:
                understood = parse_page(await answer.read())
                assert understood is not None
                return understood.values

    async def look(client: Client) -> tuple[list[RequestRecord], dict[str, float], dict[str, float]]:
        server = await info(client)
        bodies = [payload("chat", server.model, f"{i} {PROMPT}", 6, server.dialect, {}) for i in range(8)]
        before = await page(client)
        records = await asyncio.gather(*(send(client, body, index=i) for i, body in enumerate(bodies)))
        await asyncio.sleep(0.2)
        return records, before, await page(client)

    records, before, after = talk(engine, look)
    assert [record.error for record in records] == [None] * 8
    ours = sum(record.output_tokens or 0 for record in records)
    grown = {name: after[name] - before[name] for name in after if name in before}
    told(engine, "counters", len(after))
    told(engine, "iterations", grown.get("iterations"))
    assert grown["generation_tokens"] == ours
    prompts = grown["prompt_tokens"] if "prompt_tokens" in grown else grown["computed_tokens"]  # no cache is on
    assert prompts == sum(record.input_tokens or 0 for record in records)
    if "iterations" in grown:
        assert grown["iterations"] < ours, "some iterations carried more than one request"


def test_a_replay_is_whole(engine: Engine, tmp_path: Path) -> None:
    requests = tuple(
        ScheduledRequest(index=i, offset_ns=i * 40_000_000, workload="chat", input_tokens=40 + i, output_tokens=3 + i)
        for i in range(4)
    )
    options = RunConfig(out=tmp_path / "run", base_url=engine.url, energy="none", timeout_s=120, warmup=1, idle_s=0.0)
    schedule = Schedule(requests, "constant", 25.0, 0)
    uvloop.run(replay(schedule, options, NullView()))
    result = finish(options.out, schedule)
    assert result.summary is not None and result.summary.lengths is not None
    assert result.summary.requests.completed == 4
    off = result.summary.lengths.input_max_off
    told(engine, "prompt off by", off)
    if engine.recipe.speaks.tokenize:
        assert off is not None and off <= 2
    if engine.recipe.speaks.ignore_eos:
        assert result.summary.lengths.output_max_off == 0
