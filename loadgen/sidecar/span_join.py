"""Joins the spans of a request, the client's and the engine's one or several, in whatever order they arrive. Pure.

Two spans are of one request if they overlap in time and one of these holds, the surest first:

* They have the same request id: vLLM's contains the client's X-Request-Id.
* The engine's span is a child of the client's: `traceparent` brought the client's ids to the engine.
* They are in the same trace and the client's span is its root: a gateway in between has made a span of its own.

A trace that several clients' requests share (a constant `traceparent`) proves nothing: once that is seen, it joins
nothing more, and what it joined is taken apart, unless energy was committed to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from loadgen.sidecar.accounts import OpenRequest
from loadgen.sidecar.watermark import EDGE_NS
from loadgen.telemetry.span_labels import agreed_labels
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan

MAX_ENDED = 100_000
"""Names of closed requests that are remembered, to recognise spans that come twice or too late."""
MAX_SHARED = 10_000
"""Traces of several requests that are remembered."""
CLOCKS_NS = 2 * NS_PER_S
"""Clocks of the client's and the engine's machine may differ by this much, where ids say that it is one request."""
MAX_PARTS = 256
"""Spans of one request: prompts of a batch, choices."""

Outcome = Literal["new", "added", "merged", "duplicate", "overflow"]
"""new: of no open request. added: another part of one. merged: it has both sides now. duplicate: known already, or too
late to change what its request is charged for. overflow: one part too many."""


class Ended(NamedTuple):
    """A closed request, under each of its names."""

    start_ns: int
    end_ns: int
    client: bytes | None
    """Identity of the client's span."""
    engines: frozenset[bytes]
    """Identities of the engine's spans."""


class SpanJoin:
    """Finds the open request of a span. It changes `requests`, the owner's dict of open requests by key."""

    def __init__(self, requests: dict[str, OpenRequest]) -> None:
        self._open = requests
        self._by_request: dict[str, str] = {}
        """Request id -> key of the open request that has it."""
        self._by_place: dict[bytes, str] = {}
        """Place that a client's span claims -> key of its open request."""
        self._waiting: dict[bytes, dict[str, None]] = {}
        """Place -> keys of open requests there that no client has reported."""
        self._ended: OrderedDict[str | tuple[bool, bytes], Ended] = OrderedDict()
        """Closed requests by request id, and by side and place of a span."""
        self._shared: OrderedDict[bytes, None] = OrderedDict()
        """Places that several clients' requests claim."""
        self._opened = 0

    def add(self, span: RequestSpan) -> Outcome:
        """Add a span to the open request that it belongs to. One that belongs to none is left to `open`."""
        if span.client:
            for place in places_of(span):
                self._check_place(place, span)
        relations = {key: _relation(self._open[key], span) for key in self._candidates(span)}
        keys = [key for key, relation in relations.items() if relation == "part"]
        surest = next((relation for relation in relations.values() if relation), None)
        if surest == "duplicate" or self._is_ended(span, repeated=bool(keys)):
            return "duplicate"
        if not keys:
            return "new"
        for key in keys[1:] if span.client else ():
            self._absorb(keys[0], key, span)
        parts = self._open[keys[0]].parts
        if len(parts) >= MAX_PARTS:
            return "overflow"
        self._set_parts(keys[0], (*parts, span))
        return "merged" if {part.client for part in parts} == {not span.client} else "added"

    def open(self, span: RequestSpan) -> OpenRequest:
        """Open a request of this span alone, and return it."""
        self._opened += 1
        key = span.key if span.key not in self._open else f"{span.key}+{self._opened}"
        self._open[key] = entry = OpenRequest(span)
        self._register(key)
        return entry

    def is_open(self, key: str) -> bool:
        """Return True if an open request has a span with this key."""
        return key in self._by_request

    def close(self, key: str) -> OpenRequest:
        """Remove and return an open request; its names stay known."""
        self._unregister(key)
        entry = self._open.pop(key)
        self.remember(entry.parts)
        return entry

    def remember(self, parts: tuple[RequestSpan, ...]) -> None:
        """Remember a request that is not open, so that its other spans are not taken for another request."""
        ended = Ended(
            min(part.start_ns for part in parts),
            max(part.end_ns for part in parts),
            next((identity_of(part) for part in parts if part.client), None),
            frozenset(identity_of(part) for part in parts if not part.client),
        )
        for part in parts:
            names: list[str | tuple[bool, bytes]] = [part.key, *((part.client, place) for place in places_of(part))]
            for name in names:
                self._ended[name] = ended
                self._ended.move_to_end(name)
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    # -- names ---------------------------------------------------------------------------------------------------

    def _register(self, key: str) -> None:
        parts = self._open[key].parts
        for part in parts:
            self._by_request[part.key] = key
            if part.client:
                for place in places_of(part):
                    if place not in self._shared:
                        self._by_place.setdefault(place, key)
        if not any(part.client for part in parts):
            for place in (place for part in parts for place in places_of(part)):
                self._waiting.setdefault(place, {})[key] = None

    def _unregister(self, key: str) -> None:
        for part in self._open[key].parts:
            if self._by_request.get(part.key) == key:
                del self._by_request[part.key]
            for place in places_of(part):
                if part.client and self._by_place.get(place) == key:
                    del self._by_place[place]
                if keys := self._waiting.get(place):
                    keys.pop(key, None)
                    if not keys:
                        del self._waiting[place]

    def _set_parts(self, key: str, parts: tuple[RequestSpan, ...]) -> None:
        self._unregister(key)
        entry = self._open[key]
        entry.parts, entry.request = parts, joined(parts)
        self._register(key)

    def _absorb(self, key: str, other: str, client: RequestSpan) -> None:
        """Make one request of two if both can be the client's."""
        parts = (*self._open[key].parts, *self._open[other].parts)
        if _fits(parts, client) and len(parts) < MAX_PARTS:
            self._unregister(other)
            del self._open[other]
            self._set_parts(key, parts)

    # -- evidence ------------------------------------------------------------------------------------------------

    def _candidates(self, span: RequestSpan) -> list[str]:
        """Keys of the open requests that a span may belong to, the surest first, each once."""
        keys = dict.fromkeys(filter(None, [self._by_request.get(span.key)]))
        for place in places_of(span):
            if not span.client and place in self._by_place:
                keys[self._by_place[place]] = None
            elif span.client and place not in self._shared:
                keys |= dict.fromkeys(islice(self._waiting.get(place, ()), MAX_PARTS))
        return list(keys)

    def _check_place(self, place: bytes, span: RequestSpan) -> None:
        """Take apart what was joined at a place that another client's request claims too."""
        key = self._by_place.get(place)
        clients = {identity_of(part) for part in (self._open[key].parts if key else ()) if part.client}
        if (ended := self._ended.get((True, place))) and ended.client:
            clients.add(ended.client)
        if clients <= {identity_of(span)}:
            return
        self._shared[place] = None
        if len(self._shared) > MAX_SHARED:
            self._shared.popitem(last=False)
        if key is None:
            return
        entry = self._open[key]
        del self._by_place[place]
        client = next(part for part in entry.parts if part.client)
        claims = {client.key, *(place for place in places_of(client) if place not in self._shared)}
        strangers = [part for part in entry.parts if claims.isdisjoint((part.key, *places_of(part)))]
        if strangers and not entry.charged:
            self._set_parts(key, tuple(part for part in entry.parts if part not in strangers))
            for part in strangers:
                self.open(part)

    def _is_ended(self, span: RequestSpan, *, repeated: bool) -> bool:
        """Return True if a closed request has the span already or, unless only what is repeated counts, lacks it."""
        identity = identity_of(span)
        places = [(not span.client, place) for place in places_of(span) if place not in self._shared]
        names: list[str | tuple[bool, bytes]] = [span.key, *places]
        for name in names:
            if (ended := self._ended.get(name)) is None or not _overlap(ended, span):
                continue
            if identity in ended.engines or identity == ended.client:
                return True
            if not repeated and not (span.client and ended.client):
                return True
        return False


def _relation(entry: OpenRequest, span: RequestSpan) -> Literal["part", "duplicate"] | None:
    """Return what a span is to an open request that it shares a name with."""
    same_side = [part for part in entry.parts if part.client == span.client]
    other_side = [part for part in entry.parts if part.client != span.client]
    if any(identity_of(part) == identity_of(span) and _overlap(part, span) for part in same_side):
        return "duplicate"
    if span.client and same_side:
        return None
    if other_side:
        client, engines = (span, other_side) if span.client else (other_side[0], [span])
        related = any(is_within(engine, client) for engine in engines)
        if related and same_side and all(part.key != span.key for part in entry.parts):
            related = _fits([*same_side, span], client)
    else:
        related = _overlap(entry.request, span)
    if not related:
        return None
    return "duplicate" if entry.charged else "part"


def _fits(engines: Sequence[RequestSpan], client: RequestSpan) -> bool:
    """Return True if the client has as many tokens as these spans: several of one trace may be of several requests."""
    tokens = joined(engines).output_tokens
    return tokens is None or client.output_tokens is None or tokens <= client.output_tokens


def places_of(span: RequestSpan) -> list[bytes]:
    """Return the places at which a span meets its other side, the surest first; none without a valid trace.

    An engine's span is below its parent and in its trace. A client's claims its children, and the trace if it is the
    root.
    """
    if not span.trace_id:
        return []
    over = span.span_id if span.client else span.parent_id
    below = [span.trace_id + over] if over else []
    return below if span.client and span.parent_id else [*below, span.trace_id]


def identity_of(span: RequestSpan) -> bytes:
    """Return what is the same if a span is sent twice."""
    return span.trace_id + span.span_id + span.key.encode()


def _overlap(span: RequestSpan | Ended, other: RequestSpan) -> bool:
    return span.start_ns <= other.end_ns and other.start_ns <= span.end_ns


def is_within(engine: RequestSpan, client: RequestSpan) -> bool:
    """Return True if the engine's span lies in the client's, as far as their clocks agree."""
    sure = engine.key == client.key or (bool(engine.parent_id) and engine.parent_id == client.span_id)
    apart_ns = CLOCKS_NS if sure else EDGE_NS
    middle_ns = (engine.start_ns + engine.end_ns) // 2
    return client.start_ns - apart_ns <= middle_ns <= client.end_ns + apart_ns


def joined(parts: Iterable[RequestSpan]) -> RequestSpan:
    """Return one span of a request's parts.

    The engine knows the times, the client the workload and the prompt's tokens; the side that saw more output tokens
    knows those. A label is the engine's where both have it: a client chooses what it sends.
    """
    parts = list(parts)
    clients = [part for part in parts if part.client]
    engines = [part for part in parts if not part.client]
    if not engines:
        return clients[0]
    engine = _summed(engines)
    if not clients:
        return engine
    client = clients[0]
    counts = engine.output_tokens, client.output_tokens  # chunks are fewer than tokens, and a span may be of a part
    first_ns = engine.first_token_ns
    if first_ns is None and client.first_token_ns is not None:
        first_ns = min(max(client.first_token_ns, engine.prefill_ns), engine.end_ns)
    return msgspec.structs.replace(
        engine,
        first_token_ns=first_ns,
        workload=client.workload or engine.workload,
        session=client.session or engine.session,
        labels=client.labels | engine.labels,
        model=engine.model or client.model,
        input_tokens=_known(client.input_tokens, engine.input_tokens),
        output_tokens=max((count for count in counts if count is not None), default=None),
        cached_tokens=_known(client.cached_tokens, engine.cached_tokens),
        ok=client.ok and engine.ok,
    )


def _known(tokens: int | None, fallback: int | None) -> int | None:
    return fallback if tokens is None else tokens


def _summed(engines: list[RequestSpan]) -> RequestSpan:
    """Return the engine's part: the sum over the prompts and choices of a request.

    Of the span of a gateway and that of the engine below it, the engine's counts.
    """
    if len(engines) == 1:
        return engines[0]
    labels = agreed_labels(span.labels for span in engines)
    parents = {(span.trace_id, span.parent_id) for span in engines}
    leaves = [span for span in engines if (span.trace_id, span.span_id) not in parents] or engines
    latest = max(leaves, key=lambda span: (span.first_token_ns is not None, span.start_ns))
    if any(span.trace_id == latest.trace_id and span.parent_id != latest.parent_id for span in leaves):
        leaves = [span for span in leaves if span.parent_id == latest.parent_id]
    first_ns = [span.first_token_ns for span in leaves if span.first_token_ns is not None]
    return msgspec.structs.replace(
        leaves[0],
        start_ns=min(span.start_ns for span in leaves),
        prefill_ns=min(span.prefill_ns for span in leaves),
        first_token_ns=min(first_ns, default=None),
        end_ns=max(span.end_ns for span in leaves),
        input_tokens=_total(span.input_tokens for span in leaves),
        output_tokens=_total(span.output_tokens for span in leaves),
        cached_tokens=_total(span.cached_tokens for span in leaves),
        labels=labels,
        ok=all(span.ok for span in leaves),
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """Return the sum; None if a count is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
