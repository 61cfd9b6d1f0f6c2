"""Options and requests of a program as the command has them: plain values, and the fields of a line of a trace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from loadgen.client import DEFAULT_URL
from loadgen.errors import LoadgenError
from loadgen.workload.trace import Trace, TraceRequest


def plain_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], Trace | bytes | None]:
    """Return options as `record_run` expects them, and the requests if they are in memory."""
    plain = dict(options)
    if plain["serve"] and plain["base_url"] is not None:
        raise LoadgenError("serve starts the server of this run, base_url names another: leave one of them out")
    plain["base_url"] = plain["base_url"] or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    plain["api_key"] = plain["api_key"] or os.environ.get("OPENAI_API_KEY")
    plain |= {name: plain[name] or {} for name in ("headers", "extra_body", "goodput", "tags") if name in plain}
    plain["extra_body"] = _plain_json(plain["extra_body"])
    plain |= {name: str(plain[name]) for name in ("input", "output") if plain[name] is not None}
    plain |= {name: Path(plain[name]) for name in ("tokenizer", "out") if plain[name] is not None}
    trace = plain["trace"]
    if trace is None or isinstance(trace, str | os.PathLike):
        return plain | {"trace": None if trace is None else os.fspath(trace)}, None
    return plain | {"trace": None}, requests_of(trace)


def requests_of(requests: Trace | Iterable[TraceRequest | Mapping[str, Any]]) -> Trace | bytes:
    """Return requests that are in memory as a trace, or as JSON lines where they are the fields of lines."""
    if isinstance(requests, Trace):
        return requests
    if not isinstance(requests, Iterable):
        raise LoadgenError(f"expected a trace, its name, or requests, not {type(requests).__name__}")
    rows = list(requests)
    made = [row for row in rows if isinstance(row, TraceRequest)]
    if made and len(made) == len(rows):
        if any(row.words is not None for row in made):
            raise LoadgenError("requests with words of their own are in their file: replay that")
        return Trace("requests", tuple(sorted(made, key=lambda row: row.arrival_s)), "")
    try:
        fields = (dict(cast("Mapping[str, Any]", row)) for row in rows)
        return b"".join(msgspec.json.encode(row, enc_hook=plain_number) + b"\n" for row in fields)
    except (TypeError, ValueError, msgspec.MsgspecError) as err:
        raise LoadgenError(f"requests: expected the fields of a line of a trace each: {err}") from err


def _plain_json(body: Any) -> Any:
    """Return the fields of a body as JSON has them."""
    try:
        return msgspec.json.decode(msgspec.json.encode(body, enc_hook=plain_number))
    except (TypeError, ValueError, msgspec.MsgspecError) as err:
        raise LoadgenError(f"extra_body: {err}") from err


def plain_number(value: Any) -> Any:
    """Return one of numpy's numbers as a plain one, where JSON is encoded."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON")
