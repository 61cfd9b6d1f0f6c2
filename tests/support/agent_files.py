"""Recorded sessions of agents, made up."""

import json
from pathlib import Path
from typing import Any

BLOCK = 16

Entry = dict[str, Any]


def call(t: float, ids: list[int] | range, *, output: int = 5, api: float | None = 1.0, **fields: Any) -> Entry:
    """Return a request whose prompt has half a block more than `ids` name."""
    made = {"t": t, "type": "s", "model": "opus", "in": len(ids) * BLOCK + BLOCK // 2, "out": output}
    return {**made, "hash_ids": list(ids), "api_time": api} | fields


def agent(t: float, name: str, requests: list[Entry], **fields: Any) -> Entry:
    return {"t": t, "type": "subagent", "agent_id": name, "status": "completed", "requests": requests} | fields


def session(name: str, requests: list[Entry], **fields: Any) -> Entry:
    return {
        "id": name,
        "models": ["opus"],
        "block_size": BLOCK,
        "hash_id_scope": "local",
        "requests": requests,
    } | fields


def talk(name: str, turns: int = 3, *, think_s: float = 2.0, first_id: int = 1, **fields: Any) -> Entry:
    """Return a session of one thread, each prompt of which is one block longer than the one before."""
    calls = [
        call(i * (1 + think_s), range(first_id, first_id + 3 + i), think_time=think_s if i else 0.0)
        for i in range(turns)
    ]
    return session(name, calls, **fields)


# Sub-agents a and b start from turn 1 and run beside turn 2; turn 3 waits for all of them, and b has one of its own.
FORKED = session(
    "forked",
    [
        call(0, [1, 2, 3], think_time=0),
        agent(3, "a", [call(0, [50, 51], model="haiku"), call(4, [50, 51, 52], think_time=3, type="n")],
              duration_ms=6000),
        agent(3.5, "b", [call(0, [60]), agent(2, "c", [call(0, [70])], duration_ms=1500),
                         call(8, [60, 61], think_time=7)]),
        call(5, [1, 2, 3, 4], think_time=4),
        call(20, [1, 2, 3, 4, 5], think_time=14),
    ],
)  # fmt: skip


def write_session(folder: Path, content: Any, name: str | None = None) -> Path:
    path = folder / (name or f"{content['id']}.json")
    path.write_text(json.dumps(content))
    return path
