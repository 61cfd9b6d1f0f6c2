"""Small files of every format with words that is read, by format, and their rows."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from loadgen.workload.trace import opened
from loadgen.workload.worded_formats import file_texts, worded_rows

MESSAGE = {"role": "user", "content": 'hi "x" }] é\n'}
ANSWER = {"role": "assistant", "content": "hello"}


def otlp(attributes: dict[str, Any], /, start_ns: int = 10**18, **span: Any) -> dict[str, Any]:
    """Return a document of one span."""
    listed = [{"key": key, "value": any_value(value)} for key, value in attributes.items()]
    fields = {"name": "chat", "startTimeUnixNano": str(start_ns), "attributes": listed} | span
    return {"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}


def any_value(value: Any) -> dict[str, Any]:
    """Return a value of OTLP's JSON, whose integers are texts."""
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": any_value(item)} for key, item in value.items()]}}
    return {"stringValue": value}


def genai_parts(message: dict[str, Any]) -> str:
    return json.dumps([{"role": message["role"], "parts": [{"type": "text", "content": message["content"]}]}])


CALL = {
    "id": "1",
    "call_type": "acompletion",
    "status": "success",
    "startTime": 1700000000.5,
    "endTime": 1700000001.0,
    "model": "gpt-4o",
    "messages": [MESSAGE],
    "response": {"choices": [{"message": ANSWER}]},
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "model_parameters": {"temperature": 0.5, "stream": True, "max_tokens": 64},
}

FILES: dict[str, list[Any]] = {
    "jsonl": [{"messages": [MESSAGE], "output_length": 3}, {"prompt": "p"}],
    "conversations": [
        {"id": 1, "conversations": [{"from": "human", "value": MESSAGE["content"]}, {"from": "gpt", "value": "hello"}]},
        {"id": "b", "conversations": [{"from": "human", "value": "two"}]},
    ],
    "openai-batch": [
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [MESSAGE], "n": 1}},
        {"custom_id": "2", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}},
    ],
    "aiperf-single-turn": [{"text": MESSAGE["content"], "timestamp": 5}, {"texts": ["a", "b"], "timestamp": 7.5}],
    "aiperf-multi-turn": [{"session_id": "s", "turns": [{"text": MESSAGE["content"]}]}, {"turns": [{"text": "b"}]}],
    "aiperf-raw-payload": [{"messages": [MESSAGE], "stream": True}, {"messages": [ANSWER], "n": 1}],
    "aiperf-inputs": [{"data": [{"session_id": "s", "payloads": [{"messages": [MESSAGE]}, {"messages": [MESSAGE]}]}]}],
    "aiperf-mooncake": [
        {"text_input": MESSAGE["content"], "output_length": 4, "timestamp": 0},
        {"messages": [MESSAGE], "timestamp": 10},
        {"payload": {"messages": [MESSAGE]}, "timestamp": 10},
    ],
    "litellm": [CALL, CALL | {"startTime": "2023-11-14 22:13:20.000000"}],
    "otel": [otlp({"gen_ai.input.messages": genai_parts(MESSAGE), "gen_ai.output.messages": genai_parts(ANSWER)})],
}  # fmt: skip
"""JSON values of a file, by the format that is detected."""


def saved_lines(path: Path, values: list[Any]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def rows_of(path: Path, format: str, left_out: Counter[str] | None = None, **columns: str) -> list[dict[str, Any]]:
    """Return the fields of every row of a file."""
    counted: Counter[str] = Counter() if left_out is None else left_out
    with opened(path) as file:
        texts = file_texts(path, file, columns, counted)
        rows = worded_rows(path, format, texts, counted)
        return [json.loads(msgspec.json.encode(fields)) for _, fields in rows]
