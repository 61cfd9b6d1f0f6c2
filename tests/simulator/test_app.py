"""The simulated server over real sockets, with the real openai client."""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from array import array
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from loadgen.client.client import Client as LoadClient
from loadgen.energy_model.hardware import read_model
from loadgen.errors import LoadgenError
from loadgen.simulator.api import ApiError, GenerateBody, ask_of
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions
from loadgen.simulator.faults import MEANING, Faults, parse_faults
from loadgen.simulator.speculation import Speculation
from loadgen.simulator.tokens import answer_tokens, answer_words, block_hashes, chat_tokens, tokenize
from loadgen.telemetry.engine_page import parse_page
from loadgen.units import NS_PER_MS

MODEL = "llama-3.1-8b"
HELLO = [{"role": "user", "content": "Say hello, would you?"}]
LONG_WAIT_S = 20


class Client:
    """Plain HTTP to a running server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def get(self, path: str) -> bytes:
        async with self.session.get(self.url + path) as response:
            assert response.headers["X-Simulated"] == "true"
            return await response.read()

    async def get_json(self, path: str) -> Any:
        return json.loads(await self.get(path))

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=raw, headers=headers) as response:
            assert response.headers["X-Simulated"] == "true"
            return response.status, json.loads(await response.read())

    async def stream(self, path: str, body: Any, headers: dict[str, str] | None = None) -> list[Any]:
        """Every event's data, "[DONE]" as text and what is not JSON as bytes."""
        async with self.session.post(self.url + path, json=body | {"stream": True}, headers=headers) as response:
            assert response.status == 200
            return [_event(line) async for line in response.content if line.startswith(b"data: ")]

    async def oracle(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (await self.get("/oracle/requests")).splitlines()]

    async def metrics(self) -> dict[str, float]:
        families = text_string_to_metric_families((await self.get("/metrics")).decode())
        samples = (sample for family in families for sample in family.samples)
        reasons = "finished_reason"
        return {s.name + (f"_{s.labels[reasons]}" if reasons in s.labels else ""): s.value for s in samples}


def _event(line: bytes) -> Any:
    data = line.removeprefix(b"data: ").strip()
    if data == b"[DONE]":
        return "[DONE]"
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        return data


def serving(test: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    """Run `test` against a server with `options`."""

    async def main() -> None:
        async with running_simulator(ServerOptions(port=0, **options)) as (_, url), aiohttp.ClientSession() as session:
            await asyncio.wait_for(test(Client(session, url)), LONG_WAIT_S)

    asyncio.run(main())


def with_openai(test: Callable[[AsyncOpenAI], Awaitable[None]], api_key: str | None = None) -> None:
    async def inner(client: Client) -> None:
        async with AsyncOpenAI(base_url=client.url + "/v1", api_key=api_key or "any", max_retries=0) as sdk:
            await test(sdk)

    serving(inner, api_key=api_key)


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "one two three", "max_tokens": 6, "ignore_eos": True} | fields


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


# -- the real openai client ------------------------------------------------------------------------------------


def test_openai_lists_the_model_and_knows_it_is_simulated():
    async def test(sdk):
        models = [model async for model in sdk.models.list()]
        assert [(m.id, m.owned_by, m.max_model_len) for m in models] == [(MODEL, "loadgen-simulator", 131_072)]

    with_openai(test)


def test_openai_chat_whole_and_streamed_say_the_same():
    async def test(sdk):
        ask = dict(model=MODEL, messages=HELLO, max_completion_tokens=9, seed=3, extra_body={"ignore_eos": True})
        whole = await sdk.chat.completions.create(**ask)
        stream = await sdk.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert whole.system_fingerprint == "simulated"
        assert {chunk.system_fingerprint for chunk in chunks} == {"simulated"}
        role, *tokens, usage = chunks
        assert (role.choices[0].delta.role, role.choices[0].delta.content) == ("assistant", "")
        assert len(tokens) == 9, "one event per token"
        assert "".join(c.choices[0].delta.content for c in tokens) == whole.choices[0].message.content
        assert [c.choices[0].finish_reason for c in tokens] == [None] * 8 + ["length"]
        assert usage.choices == []
        assert usage.usage == whole.usage
        assert whole.usage.completion_tokens == 9
        assert whole.usage.prompt_tokens == len(chat_tokens([("user", HELLO[0]["content"])]))

    with_openai(test)


def test_openai_completions_whole_and_streamed_say_the_same():
    async def test(sdk):
        ask = dict(model=MODEL, prompt=[5, 6, 7, 8], max_tokens=7, seed=1, extra_body={"ignore_eos": True})
        whole = await sdk.completions.create(**ask)
        chunks = [c async for c in await sdk.completions.create(**ask, stream=True)]
        assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
        assert len(chunks) == 7, "no usage chunk without include_usage, no role chunk"
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (4, 7, 11)
        assert len(tokenize(whole.choices[0].text)) == 7

    with_openai(test)


def test_openai_responses_whole_and_streamed_say_the_same():
    async def test(sdk):
        ask = {"model": MODEL, "input": "Say hello, would you?", "max_output_tokens": 7}
        more = {"ignore_eos": True, "seed": 3}
        whole = await sdk.responses.create(**ask, extra_body=more)
        stream = await sdk.responses.create(**ask, extra_body=more, stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(event.delta for event in events if event.type.endswith(".delta")) == whole.output_text
        last = events[-1]
        assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")
        assert last.response.usage == whole.usage
        assert (whole.usage.output_tokens, whole.status) == (7, "incomplete")
        chat = await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        assert whole.usage.input_tokens == chat.usage.prompt_tokens

    with_openai(test)


def test_openai_embeds_as_many_texts_as_it_is_given():
    async def test(sdk):
        answer = await sdk.embeddings.create(model=MODEL, input=["one two", "three"], encoding_format="float")
        assert [item.index for item in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3

    with_openai(test)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_documents_are_ranked_and_cost_a_prefill(path):
    async def test(client):
        ask = {"model": MODEL, "query": "one", "documents": [" two", " three", " four"]}
        status, answer = await client.post(path, ask, {"X-Request-Id": "ranked"})
        assert (status, len(answer["results"]), answer["usage"]) == (200, 3, {"prompt_tokens": 6, "total_tokens": 6})
        (cost,) = await client.oracle()
        assert cost["prefill_joules"] > 0 == cost["decode_joules"]
        metrics = await client.metrics()
        assert (metrics["vllm:prompt_tokens_total"], metrics["vllm:generation_tokens_total"]) == (6, 0)

    serving(test)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {}),
        ("/v1/embeddings", {"input": ""}),
        ("/v1/embeddings", {"input": ["a", ""]}),
        ("/v1/embeddings", {"input": 7}),
        ("/v1/rerank", {"query": "a"}),
        ("/v1/rerank", {"documents": ["a"]}),
        ("/v1/responses", {}),
        ("/v1/responses", {"input": 7}),
        ("/v1/responses", {"input": [7]}),
    ],
)
def test_an_input_that_is_none_is_refused(path, body):
    async def test(client):
        status, answer = await client.post(path, body)
        assert status == 400, answer

    serving(test)


def test_openai_raises_what_it_raises_on_the_real_api():
    async def test(sdk):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await sdk.completions.create(model="gpt-9", prompt="hi")
        with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
            await sdk.completions.create(model=MODEL, prompt="hi", max_tokens=-4)
        with pytest.raises(openai.BadRequestError, match="n=2 is not simulated"):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, n=2)
        stranger = sdk.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()

    with_openai(test, api_key="s3cret")


# -- the API ---------------------------------------------------------------------------------------------------


def test_tokenize_agrees_with_usage():
    async def test(client):
        text = "def f(x):\n    return x_1 ** 2  # naïve 漢字 🙂\n"
        _, counted = await client.post("/tokenize", {"model": MODEL, "prompt": text})
        _, answer = await client.post("/v1/completions", completion(prompt=text))
        assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
        assert counted["max_model_len"] == 131_072
        _, counted = await client.post("/tokenize", {"messages": HELLO})
        _, answer = await client.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 5})
        assert counted["count"] == answer["usage"]["prompt_tokens"]
        _, said = await client.post("/tokenize", {"prompt": answer["choices"][0]["message"]["content"]})
        assert said["count"] == answer["usage"]["completion_tokens"]

    serving(test)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"prompt": ', 400, "bad request body"),
        (b"[1, 2]", 400, "bad request body"),
        (b"\xff\xfe", 400, "bad request body"),
        ({"prompt": "hi", "max_tokens": "many"}, 400, "bad request body"),
        ({"prompt": ""}, 400, "at least one token"),
        ({"prompt": None}, 400, "non-empty text or list"),
        ({"prompt": [1, -2]}, 400, "non-empty text or list"),
        ({"prompt": ["a", "b"]}, 400, "several prompts"),
        ({"prompt": "hi", "max_tokens": 0}, 400, "at least 1"),
        ({"prompt": "hi", "max_tokens": 5, "min_tokens": 6}, 400, "min_tokens"),
        ({"prompt": "hi", "max_tokens": 2000}, 400, "maximum context length is 1024"),
        ({"prompt": [1] * 1024}, 400, "your prompt contains 1024"),
        ({"prompt": "hi", "echo": True}, 400, "echo is not simulated"),
        ({"prompt": "hi", "model": "other"}, 404, "does not exist"),
    ],
)
def test_a_bad_request_is_refused_with_openais_json_and_costs_nothing(body, status, message):
    async def test(client):
        got, answer = await client.post("/v1/completions", body)
        assert got == answer["error"]["code"] == status
        assert message in answer["error"]["message"]
        assert await client.oracle() == []

    serving(test, engine=EngineOptions(kv_cache_tokens=1024))


def test_unknown_routes_and_methods_answer_json():
    async def test(client):
        assert (await client.post("/nope", {}))[0] == 404
        assert (await client.post("/v1/models", {}))[0] == 405

    serving(test)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/tokenize"])
def test_the_api_key_is_asked_for_and_health_is_not_behind_it(path):
    async def test(client):
        assert await client.get("/health") == b""
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with client.session.request(
                "GET" if path == "/v1/models" else "POST", client.url + path, headers=headers
            ) as response:
                assert response.status == 401
                assert (await response.json())["error"]["type"] == "AuthenticationError"
        good = {"Authorization": "Bearer s3cret"}
        assert (await client.post("/v1/completions", completion(), good))[0] == 200

    serving(test, api_key="s3cret")


def test_without_ignore_eos_answers_end_by_themselves_between_min_and_max():
    async def test(client):
        ask = completion(ignore_eos=False, min_tokens=3, max_tokens=40)
        answers = await asyncio.gather(*(client.post("/v1/completions", ask | {"seed": i}) for i in range(60)))
        again = await client.post("/v1/completions", ask | {"seed": 7})
        assert again[1]["choices"] == answers[7][1]["choices"], "a seed fixes the answer"
        ends = [(a["usage"]["completion_tokens"], a["choices"][0]["finish_reason"]) for _, a in answers]
        assert all(3 <= tokens <= 40 for tokens, _ in ends)
        assert {reason for tokens, reason in ends if tokens < 40} == {"stop"}
        assert "length" in {reason for _, reason in ends}

    serving(test)


def test_continuous_usage_counts_up():
    async def test(client):
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await client.stream("/v1/completions", completion(stream_options=options))
        counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
        assert counts == [1, 2, 3, 4, 5, 6, 6]
        assert events[-1] == "[DONE]"

    serving(test)


def test_http_1_0_gets_a_body_without_chunk_sizes():
    async def test(client):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(client.url.rsplit(":", 1)[1]))
        body = json.dumps(completion(stream=True)).encode()
        writer.write(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, _, payload = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"chunked" not in head
        lines = [line for line in payload.split(b"\n") if line]
        assert len(lines) == 7 and all(line.startswith(b"data: ") for line in lines)

    serving(test)


def test_prefix_caching_is_told_in_usage_and_metrics():
    async def test(client):
        prompt = list(range(100))
        first, second = [await client.post("/v1/completions", completion(prompt=prompt)) for _ in range(2)]
        cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for _, answer in (first, second)]
        assert cached == [0, 96]
        metrics = await client.metrics()
        assert metrics["vllm:prefix_cache_queries_total"] == 200
        assert metrics["vllm:prefix_cache_hits_total"] == metrics["vllm:prompt_tokens_cached_total"] == 96
        cold, warm = await client.oracle()
        assert warm["cached_tokens"] == 96 and warm["prefill_joules"] < cold["prefill_joules"]

    serving(test, engine=EngineOptions(prefix_caching=True))


def test_the_oracle_says_what_was_evicted_before_a_prompt_came_again():
    async def test(client):
        for first in (1, 2, 1):
            await client.post("/v1/completions", completion(prompt=[first] * 100))
        lines = await client.oracle()
        assert [(line["cached_tokens"], line["evicted_tokens"]) for line in lines] == [(0, 0), (0, 0), (16, 80)]
        assert [line["repeated_tokens"] for line in lines] == [0, 0, 0]

    serving(test, engine=EngineOptions(prefix_caching=True, kv_cache_tokens=128))


def test_the_next_turn_of_a_chat_finds_the_prompt_and_the_answer_before_it():
    async def test(client):
        messages = [{"role": "user", "content": "Say forty words."}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 40, "ignore_eos": True}
        _, answer = await client.post("/v1/chat/completions", body)
        messages += [answer["choices"][0]["message"], {"role": "user", "content": "And forty more."}]
        _, second = await client.post("/v1/chat/completions", body)
        computed = answer["usage"]["total_tokens"] - 1
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == computed // 16 * 16 > 16

    serving(test, engine=EngineOptions(prefix_caching=True))


# -- energy, oracle, metrics -----------------------------------------------------------------------------------


def test_fifty_streams_at_once_are_all_whole_and_their_joules_are_all_there():
    async def test(client):
        before = await client.get_json("/energy")
        asks = [completion(max_tokens=20 + i % 7, stream_options={"include_usage": True}) for i in range(50)]
        streams = await asyncio.gather(
            *(client.stream("/v1/completions", ask, {"X-Request-Id": f"run-{i}"}) for i, ask in enumerate(asks))
        )
        for ask, events in zip(asks, streams, strict=True):
            assert events[-1] == "[DONE]"
            assert events[-2]["usage"]["completion_tokens"] == ask["max_tokens"] == len(events) - 2
        lines = await client.oracle()
        assert {line["request_id"] for line in lines} == {f"run-{i}" for i in range(50)}
        assert all(math.isclose(x["prefill_joules"] + x["decode_joules"], x["joules"]) for x in lines)
        since = before["now_ns"]
        period_ns = round(before["domains"][0]["period_s"] * 1e9)
        ended_ns = (await client.get_json("/energy"))["now_ns"]

        async def caught_up() -> bool:
            page = await client.get_json(f"/energy?since={since}")
            return bool(page["samples"]) and page["samples"][-1][0] >= ended_ns

        await until(caught_up)
        page = await client.get_json("/energy")
        samples = page["samples"]
        assert page["simulated"] is True and page["domains"][0]["source"] == "simulated"
        assert {b[0] - a[0] for a, b in pairwise(samples)} == {period_ns}
        assert samples == sorted(samples) and samples[-1][0] <= page["now_ns"]
        owed_j = sum(line["joules"] for line in lines)
        total_j, total_s = samples[-1][2] - samples[0][2], (samples[-1][0] - samples[0][0]) / 1e9
        assert owed_j < total_j < owed_j + 130 * total_s, "the rest is idle, at no more than idle power"

    serving(test, counter=CounterOptions(period_ns=20 * NS_PER_MS))


def test_energy_since_gives_only_what_is_new_and_a_bad_instant_is_refused():
    async def test(client):
        async def moved() -> bool:
            return len((await client.get_json("/energy"))["samples"]) > 3

        await until(moved)
        page = await client.get_json("/energy")
        samples = page["samples"]
        assert page["domains"][0]["limit_w"] == 700 and set(page["capped_ns"]) == {0}, "an idle GPU is at no limit"
        since = samples[1][0]
        newer = (await client.get_json(f"/energy?since={since}"))["samples"]
        assert newer[: len(samples) - 2] == samples[2:]
        async with client.session.get(client.url + "/energy?since=yesterday") as response:
            assert response.status == 400

    serving(test, counter=CounterOptions(period_ns=5 * NS_PER_MS))


def test_a_speculating_server_sends_its_tokens_in_fewer_chunks_and_counts_drafts_as_vllm_does():
    async def test(client: Client) -> None:
        asked = completion(max_tokens=60, stream_options={"include_usage": True})
        events = await client.stream("/v1/completions", asked)
        texts = [event["choices"][0]["text"] for event in events[:-1] if event["choices"]]
        _, whole = await client.post("/v1/completions", {**asked, "stream_options": None})
        metrics = await client.metrics()
        assert events[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 60
        assert len(tokenize("".join(texts))) == 60 and len(texts) < 40
        drafts, tokens, accepted = (
            metrics[f"vllm:spec_decode_num_{name}_total"] for name in ("drafts", "draft_tokens", "accepted_tokens")
        )
        assert tokens == 2 * drafts
        assert 0 <= 2 + drafts + accepted - metrics["vllm:generation_tokens_total"] <= 4
        page = (await client.get("/metrics")).decode()
        by_position = re.findall(r'accepted_tokens_per_pos_total{.*position="(\d)"} (\d+)', page)
        assert [position for position, _ in by_position] == ["0", "1"]
        assert sum(int(count) for _, count in by_position) == accepted
        assert parse_page(page.encode()).values["accepted_tokens"] == accepted

    serving(test, engine=EngineOptions(speculation=Speculation(read_model("llama-3.2-1b"), (0.8, 0.8))))


def test_metrics_count_what_was_served_under_vllms_names():
    async def test(client):
        for max_tokens in (5, 10):
            await client.stream("/v1/completions", completion(max_tokens=max_tokens))
        got = await client.metrics()
        assert got["vllm:prompt_tokens_total"] == 6
        assert got["vllm:generation_tokens_total"] == 15
        assert got["vllm:iteration_tokens_total_count"] == 15, "two prefills and 13 decodes, nobody beside them"
        assert got["vllm:iteration_tokens_total_sum"] == 6 + 13
        assert got["vllm:request_success_total_length"] == 2
        assert got["vllm:time_to_first_token_seconds_count"] == got["vllm:e2e_request_latency_seconds_count"] == 2
        assert got["vllm:inter_token_latency_seconds_count"] == 13
        assert got["vllm:request_generation_tokens_sum"] == 15
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert got[f"vllm:{gauge}"] == 0
        assert got["loadgen_simulated_gpu_energy_joules_total"] >= 0
        help_lines = [x for x in (await client.get("/metrics")).decode().splitlines() if x.startswith("# HELP")]
        assert all("imulated" in line for line in help_lines)

    serving(test)


def test_metric_names_and_types_are_those_of_the_real_vllm():
    page = Path(__file__).parents[3] / "shared" / "data" / "vllm_0.20.2_metrics.txt"
    if not page.exists():
        pytest.skip("the recorded vLLM page is not here")

    def types(text: str) -> dict[str, str]:
        return dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE vllm:"))

    def bounds(text: str) -> set[tuple[str, str]]:
        rows = (line for line in text.splitlines() if line.startswith("vllm:") and "_bucket{" in line)
        return {(row.split("{")[0], row.split('le="')[1].split('"')[0]) for row in rows}

    async def test(client):
        ours, theirs = (await client.get("/metrics")).decode(), page.read_text()
        assert types(ours).items() <= types(theirs).items()
        wide = ("request_prompt_tokens", "request_generation_tokens")  # theirs depend on the context length
        assert {b for b in bounds(ours) if not any(name in b[0] for name in wide)} <= bounds(theirs)

    serving(test)


def test_a_client_that_leaves_frees_its_place_and_still_owes():
    async def test(client):
        ask = completion(max_tokens=100_000, stream=True)
        async with client.session.post(
            client.url + "/v1/completions", json=ask, headers={"X-Request-Id": "gone"}
        ) as response:
            await response.content.readline()
            response.close()

        async def ended() -> bool:
            return bool(await client.oracle())

        await until(ended)
        (line,) = await client.oracle()
        assert (line["request_id"], line["finish_reason"]) == ("gone", "abort")
        assert line["prefill_joules"] > 0 and line["output_tokens"] < 100_000
        metrics = await client.metrics()
        assert metrics["vllm:num_requests_running"] == 0
        assert metrics["vllm:request_success_total_abort"] == 1
        assert (await client.post("/v1/completions", completion()))[0] == 200

    serving(test)


def test_stats_report_the_servers_own_lateness():
    async def test(client):
        assert (await client.get_json("/stats"))["lateness_ms"]["p99"] is None
        await client.post("/v1/completions", completion())
        stats = await client.get_json("/stats")
        assert stats["steps"] == 6
        assert 0 <= stats["lateness_ms"]["p50"] <= stats["lateness_ms"]["p99"] <= stats["lateness_ms"]["max"]

    serving(test)


def test_simulated_time_is_the_plans_however_late_this_process_is():
    """Every token of a lone answer comes one decode step, about 5 ms, after the one before it."""

    async def test(client):
        await client.post("/v1/completions", completion(max_tokens=60))
        text = (await client.get("/metrics")).decode()
        assert 'vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="llama-3.1-8b"} 59.0' in text

    serving(test)


# -- faults ----------------------------------------------------------------------------------------------------


async def _faulty_stream(client: Client) -> list[Any]:
    return await client.stream("/v1/completions", completion(max_tokens=8, stream_options={"include_usage": True}))


@pytest.mark.parametrize("kind", ["http_500", "http_503", "http_429"])
def test_refusals(kind):
    async def test(client):
        status, answer = await client.post("/v1/completions", completion(stream=True))
        assert status == int(kind[-3:]) and kind in answer["error"]["message"]

    serving(test, faults=parse_faults((f"{kind}:1",)))


@pytest.mark.parametrize(
    ("kind", "tokens", "finished", "usage", "done"),
    [
        ("no_done", 8, True, True, False),
        ("no_usage", 8, True, False, True),
        ("truncate", 4, False, False, False),
        ("error_event", 4, False, False, True),
        ("bad_json", 8, True, True, True),
        ("abort", 5, True, False, True),
        ("done_early", 4, False, False, True),
        ("event_error", 4, False, False, True),
        ("textless", 8, True, True, True),
    ],
)
def test_broken_streams(kind, tokens, finished, usage, done):
    async def test(client):
        events = await _faulty_stream(client)
        chunks = [e for e in events if isinstance(e, dict) and e.get("choices")]
        assert len(chunks) == tokens
        assert any(c["choices"][0]["finish_reason"] for c in chunks) == finished
        assert any("usage" in e for e in events if isinstance(e, dict)) == usage
        assert (events[-1] == "[DONE]") == done
        assert any(isinstance(e, bytes) for e in events) == (kind == "bad_json")
        assert any("error" in e for e in events if isinstance(e, dict)) == (kind == "error_event")
        (line,) = await client.oracle()
        assert line["joules"] > 0, "what failed still cost"

    serving(test, faults=parse_faults((f"{kind}:1",)))


def test_a_disconnect_breaks_the_connection():
    async def test(client):
        with pytest.raises(aiohttp.ClientError):
            await _faulty_stream(client)
        with pytest.raises(aiohttp.ClientError):
            await client.post("/v1/completions", completion())

    serving(test, faults=parse_faults(("disconnect:1",)))


ENDS: list[tuple[str, str | None, str]] = [
    ("abort", "server", "finish_reason abort"),
    ("done_early", "truncated", "[DONE] after 4 chunks"),
    ("event_error", "server", "simulated fault: event_error"),
    ("textless", None, ""),
    ("open_body", None, ""),
]


@pytest.mark.parametrize(("kind", "error", "detail"), ENDS)
def test_the_client_has_the_right_record_of_a_stream_that_ends_oddly(kind, error, detail):
    async def test(client):
        async with LoadClient(client.url + "/v1", timeout_s=10) as own:
            body = completion(max_tokens=8, stream=True, stream_options={"include_usage": True})
            record = await own.post("/completions", json.dumps(body).encode(), workload="w")
        assert record.error == error
        assert detail in (record.detail or "")
        assert len(record.chunk_ns) == (4 if error else 8)
        assert record.output_tokens == (4 if error else 8)

    serving(test, faults=parse_faults((f"{kind}:1",)))


def test_a_stall_sends_half_and_then_nothing():
    async def test(client):
        ask = completion(max_tokens=8, stream=True)
        async with client.session.post(client.url + "/v1/completions", json=ask) as response:
            lines = [await response.content.readline() for _ in range(8)]
            assert [line for line in lines if line.strip()] and lines[-1] == b"\n"

            async def ended() -> bool:
                return bool(await client.oracle())

            await until(ended)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(response.content.readline(), 0.05)

    serving(test, faults=parse_faults(("stall:1",)))


@pytest.mark.parametrize(
    ("kind", "outcome"), [("no_usage", None), ("bad_json", ValueError), ("truncate", aiohttp.ClientError)]
)
def test_broken_whole_answers(kind, outcome):
    async def test(client):
        if outcome is not None:
            with pytest.raises(outcome):
                await client.post("/v1/completions", completion())
        else:
            assert "usage" not in (await client.post("/v1/completions", completion()))[1]

    serving(test, faults=parse_faults((f"{kind}:1",)))


def test_faults_come_at_their_rate_and_in_the_same_order_for_a_seed():
    async def test(client):
        statuses.append([(await client.post("/v1/completions", completion(max_tokens=1)))[0] for _ in range(40)])

    statuses: list[list[int]] = []
    for _ in range(2):
        serving(test, faults=Faults({"http_500": 0.5}), seed=5)
    assert statuses[0] == statuses[1]
    assert 8 < statuses[0].count(500) < 32


@pytest.mark.parametrize("text", ["stall", "stall:2", "stall:x", "nonsense:0.5", ":0.1"])
def test_a_bad_fault_is_explained(text):
    with pytest.raises(LoadgenError, match="expected KIND:P"):
        parse_faults((text,))


def test_every_fault_has_a_meaning():
    assert parse_faults(tuple(f"{kind}:0.1" for kind in MEANING)).probability.keys() == MEANING.keys()


# -- tokens ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text())
def test_any_text_has_tokens_and_never_more_than_characters(text):
    assert (len(tokenize(text)) > 0) == bool(text)
    assert len(tokenize(text)) <= len(text)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 400))
def test_an_answer_of_n_words_is_n_tokens(seed, n):
    words = answer_words(seed)
    ids = tokenize("".join(next(words) for _ in range(n)))
    assert len(ids) == n
    assert ids == answer_tokens(seed, n)


@pytest.mark.parametrize("path", ["loadgen/simulator/engine.py", "loadgen/attribution/shapley.py", "LICENSE"])
def test_about_four_characters_a_token(path):
    text = (Path(__file__).parents[2] / path).read_text()
    assert 3.3 < len(text) / len(tokenize(text)) < 5


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=80), st.lists(st.integers(0, 9), max_size=80))
def test_equal_hashes_are_equal_prefixes(one, other):
    for i, (a, b) in enumerate(zip(*(block_hashes(array("I", ids)) for ids in (one, other)), strict=False)):
        assert (a == b) == (one[: 16 * (i + 1)] == other[: 16 * (i + 1)])


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50))
def test_lengths_are_granted_only_within_the_context(input_tokens, max_tokens, min_tokens):
    body = GenerateBody(prompt=[1] * input_tokens, max_tokens=max_tokens, min_tokens=min_tokens)
    try:
        ask = ask_of(body, "completions", model_name=MODEL, max_model_len=64)
    except ApiError:
        assert input_tokens + max_tokens > 64 or min_tokens > max_tokens
    else:
        assert len(ask.input_ids) + ask.max_tokens <= 64 and ask.min_tokens <= ask.max_tokens


# -- the command -----------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loadgen", "serve", "sim", "--port", "0", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_broken_connection_leaves_no_traceback():
    async def talk(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                with pytest.raises(aiohttp.ClientError):
                    await Client(session, url).stream("/v1/completions", completion())

    with start("--fault", "disconnect:1") as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().split()[2].removesuffix("/v1")
        asyncio.run(asyncio.wait_for(talk(url), LONG_WAIT_S))
        process.terminate()
        assert process.wait(LONG_WAIT_S) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_and_ends_cleanly(number):
    async def talk(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            client = Client(session, url)
            version = await client.get_json("/version")
            assert version["simulated"] is True
            stream = session.post(url + "/v1/completions", json=completion(max_tokens=9000, stream=True))
            async with stream as response:
                await response.content.readline()
                process.send_signal(number)
                with suppress(aiohttp.ClientError):
                    await response.read()

    with start() as process:
        assert process.stdout is not None and process.stderr is not None
        banner = process.stdout.readline()
        assert banner.startswith("simulated server: http://127.0.0.1:")
        assert banner.endswith("/v1  (llama-3.1-8b, h200)\n")
        asyncio.run(asyncio.wait_for(talk(banner.split()[2].removesuffix("/v1")), LONG_WAIT_S))
        assert process.wait(LONG_WAIT_S) == 0
        assert process.stderr.read() == ""


def test_it_ends_with_its_parent_when_told_to():
    parent = textwrap.dedent("""
        import subprocess, sys
        child = subprocess.Popen(
            [sys.executable, "-m", "loadgen", "serve", "sim", "--port", "0", "--exit-with-parent"],
            stdout=subprocess.PIPE,
        )
        child.stdout.readline()
        print(child.pid, flush=True)
        sys.stdin.read()
    """)
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()

    async def gone() -> bool:
        stat = Path(f"/proc/{pid}/stat")
        try:
            return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    try:
        asyncio.run(asyncio.wait_for(until(gone), LONG_WAIT_S))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "abacus"], "no hardware profile called 'abacus'; there are: h100, h200, l4"),
        (["--hardware", "l4", "--model", "llama-3.1-70b"], "does not fit on one l4"),
        (["--fault", "gremlin:1"], "expected KIND:P"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
    ],
)
def test_the_world_not_as_asked_is_one_line_and_status_2(arguments, message):
    with start(*arguments) as process:
        out, err = process.communicate(timeout=LONG_WAIT_S)
    assert (process.returncode, out) == (2, "")
    assert message in err and err.count("\n") == 1
