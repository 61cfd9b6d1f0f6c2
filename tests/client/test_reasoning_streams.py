"""The stream of a model that thinks, in each server's shape: its thoughts, its calls and its answer are told apart."""

import asyncio
import json
from typing import Any

import pytest

from loadgen.client.client import Client
from loadgen.record import PATHS, Endpoint, Kind, RequestRecord
from support.scripted_server import END, HEAD, chunk, wire


def chat(*deltas: dict[str, Any], **usage: Any) -> list[bytes]:
    """Return the events of a chat: one for each delta, the finish reason, the usage."""
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events.append({"choices": [], "usage": usage})
    return [*(b"data: %b\n\n" % json.dumps(event).encode() for event in events), b"data: [DONE]\n\n"]


def response(*events: tuple[str, dict[str, Any]]) -> list[bytes]:
    bodies = [(kind.encode(), json.dumps({"type": f"response.{kind}"} | fields).encode()) for kind, fields in events]
    return [b"event: response.%b\ndata: %b\n\n" % body for body in bodies]


CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "now", "arguments": ""}}
MORE = {"index": 0, "function": {"arguments": "{}"}}
THOUGHT_OF: dict[str, Any] = {"completion_tokens_details": {"reasoning_tokens": 3}}
COUNTED = {"input_tokens": 9, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 3}}
RUNS: list[tuple[Kind, int]] = [("reasoning", 3), ("answer", 2)]

STREAMS: list[tuple[str, Endpoint, list[bytes], list[tuple[Kind, int]], int | None]] = [
    # (server, endpoint, its events, runs of kinds, tokens of reasoning that it counts)
    ("vLLM", "chat", chat(
        {"role": "assistant", "content": ""}, *[{"reasoning": "hm"}] * 3, *[{"content": "a"}] * 2,
        prompt_tokens=9, completion_tokens=5, **THOUGHT_OF), RUNS, 3),
    ("vLLM until 0.11, llama.cpp", "chat", chat(
        {"role": "assistant", "content": None}, *[{"reasoning_content": "hm"}] * 3, *[{"content": "a"}] * 2,
        prompt_tokens=9, completion_tokens=5), RUNS, None),
    ("SGLang", "chat", chat(
        {"role": "assistant", "content": "", "reasoning_content": None},
        *[{"content": None, "reasoning_content": "hm"}] * 3, *[{"content": "a", "reasoning_content": None}] * 2,
        prompt_tokens=9, completion_tokens=5, reasoning_tokens=3), RUNS, 3),
    ("Mistral", "chat", chat(
        *[{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}] * 3,
        *[{"content": "a"}] * 2, prompt_tokens=9, completion_tokens=5), RUNS, None),
    ("a call after a thought", "chat", chat(
        *[{"reasoning": "hm"}] * 3, {"tool_calls": [CALL]}, {"tool_calls": [MORE]},
        prompt_tokens=9, completion_tokens=5, **THOUGHT_OF), [("reasoning", 3), ("tools", 2)], 3),
    ("responses", "responses", response(
        ("created", {"response": {"status": "in_progress"}}),
        ("output_item.added", {"item": {"type": "reasoning", "content": []}}),
        *[("reasoning_text.delta", {"delta": "hm"})] * 3,
        ("reasoning_text.done", {"text": "hmhmhm"}),
        ("output_item.added", {"item": {"type": "message", "content": []}}),
        *[("output_text.delta", {"delta": "a"})] * 2,
        ("completed", {"response": {"usage": COUNTED}})), RUNS, 3),
    ("responses with a call", "responses", response(
        *[("reasoning_summary_text.delta", {"delta": "hm"})] * 3,
        ("output_item.added", {"item": {"type": "function_call", "name": "now", "arguments": ""}}),
        ("function_call_arguments.delta", {"delta": "{}"}),
        ("function_call_arguments.done", {"arguments": "{}"}),
        ("completed", {"response": {"usage": COUNTED}})), [("reasoning", 3), ("tools", 2)], 3),
]  # fmt: skip


def received(endpoint: Endpoint, events: list[bytes]) -> RequestRecord:
    async def main() -> RequestRecord:
        steps = [HEAD, *(piece for event in events for piece in (chunk(event), 0.002)), END]
        async with wire(steps) as server, Client(server.url, timeout_s=10) as client:
            return await client.post(PATHS[endpoint], b"{}", workload="t")

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("endpoint", "events", "runs", "thought"), [row[1:] for row in STREAMS], ids=[r[0] for r in STREAMS]
)
def test_thoughts_come_before_the_first_token_of_the_answer(
    endpoint: Endpoint, events: list[bytes], runs: list[tuple[Kind, int]], thought: int | None
) -> None:
    record = received(endpoint, events)
    assert (record.error, record.finish_reason, record.input_tokens) == (None, "stop", 9), record.detail
    assert list(record.kinds or ()) == runs
    assert record.output_tokens == 5 and record.hidden_tokens in (0, None)
    assert record.reasoning_tokens == thought
    assert record.ttft_ns is not None and record.ttfa_ns is not None
    assert record.ttft_ns < record.ttfa_ns


def test_a_thought_that_is_not_sent_is_hidden() -> None:
    events = chat(*[{"content": "a"}] * 2, prompt_tokens=9, completion_tokens=5, **THOUGHT_OF)
    record = received("chat", events)
    assert (record.hidden_tokens, record.output_tokens, list(record.kinds or ())) == (3, 5, [("answer", 2)])
