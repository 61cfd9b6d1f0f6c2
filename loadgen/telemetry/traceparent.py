"""W3C trace context: a client's request and the engine's span of it are in one trace. Pure.

Engines take the header `traceparent` and make their span a child of the one that it names.
"""

import re
from hashlib import blake2b
from typing import NamedTuple

TRACEPARENT = "traceparent"
TRACE_BYTES, SPAN_BYTES = 16, 8
SAMPLED = "01"


class SpanIds(NamedTuple):
    trace_id: bytes
    span_id: bytes


def _digest(request_id: str) -> blake2b:
    return blake2b(request_id.encode(), digest_size=TRACE_BYTES + SPAN_BYTES)


def span_ids(request_id: str) -> SpanIds:
    """Return the ids of a request's span, for the header that is sent and the span that is reported later.

    They follow from the request id, so that nothing has to be remembered in between.
    """
    digest = _digest(request_id).digest()
    return SpanIds(digest[:TRACE_BYTES], digest[TRACE_BYTES:])


def traceparent(request_id: str) -> str:
    """Return the header's value: version 0, the ids, and a flag that asks the engine to record its span."""
    ids = _digest(request_id).hexdigest()
    return f"00-{ids[: 2 * TRACE_BYTES]}-{ids[2 * TRACE_BYTES :]}-{SAMPLED}"


_VERSION_0 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def parse_traceparent(value: str) -> SpanIds | None:
    """Return the ids that a header names; None when it is not a traceparent of version 0, or an id is all zeros."""
    match = _VERSION_0.fullmatch(value)
    if match is None or not (int(match[1], 16) and int(match[2], 16)):
        return None
    return SpanIds(bytes.fromhex(match[1]), bytes.fromhex(match[2]))
