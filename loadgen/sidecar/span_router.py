"""Gives each span to the engine that its request ran at. Pure.

An engine's span names its engine: by its resource's `service.instance.id` or `service.name`, or by `server.address` and
`server.port`. A client's span follows the engine's span of the same request, in whatever order the two arrive, and so
does an engine's that names no engine, a gateway's for example. What follows none in time goes to the only engine that
can have had it, by the engines' counters; if that is none or several, to no engine.

The copies of a client's span for further engines of its request, and for one that computes only the prompt, have no
output tokens: those are of the engine that generated them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from loadgen.energy.engine_names import EngineNames
from loadgen.sidecar.span_join import CLOCKS_NS, MAX_PARTS, identity_of, is_within, places_of
from loadgen.sidecar.watermark import queue_length
from loadgen.telemetry.engine_sample import EngineSample, counter_values
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.telemetry.otlp_parse import RequestSpan

MAX_KEPT = 20_000
"""Spans of either kind that are remembered; of more, the oldest are decided at once."""
KEPT = 4
"""Spans of engines are remembered for this many times as long as others wait."""
TRACING_NS = 600 * NS_PER_S
"""An engine that sent a span within this time sends one of each of its requests."""

Counts = Callable[[int], Sequence[EngineSample]]
"""Returns the samples of an engine's counters, by its number."""


class Routed(NamedTuple):
    """A span for the ledger of an engine."""

    engine: int
    """Number of the engine."""
    span: RequestSpan
    copy: bool = False
    """True if the span counts at another engine, and adds only its labels here."""


@dataclass(slots=True, eq=False)
class _Kept:
    """A span that others may follow, or that waits for the span that it follows."""

    span: RequestSpan
    names: list[str | bytes]
    """Names that it shares with spans of its request, the surest first."""
    follows: bool
    """True if it does not say which engine it is of."""
    arrived_ns: int
    engines: list[int] = field(default_factory=list)
    """Engines that have it."""


class SpanRouter:
    """Remembers spans for as long as their others may come."""

    def __init__(self, engines: Sequence[NamedEngine], wait_ns: int) -> None:
        """wait_ns: time for which spans wait. Those of engines are remembered for longer: a prompt's comes when it is
        computed, the client's when another engine has generated the output."""
        self._names = EngineNames(engines)
        self._prefills = {number for number, engine in enumerate(engines) if engine.role == "prefill"}
        self._all = range(len(engines))
        self._wait_ns = wait_ns
        self._placed: deque[_Kept] = deque()
        """Spans that name their engine, the first that came first."""
        self._followers: deque[_Kept] = deque()
        self._by_name: dict[str | bytes, list[_Kept]] = {}
        self._decided: OrderedDict[str | bytes, tuple[int, RequestSpan]] = OrderedDict()
        """Sure names of spans that went to the only engine that can have had them, and that engine."""
        self._claims: dict[bytes, Counter[bytes]] = {}
        """Place -> clients' spans that claim it, by their identity."""
        self._named_ns: dict[int, int] = {}
        """Engine -> arrival of its newest span that names it."""
        self._traced_ns: dict[int, int] = {}
        """Engine -> arrival of its newest span."""

    def add(self, span: RequestSpan, now_ns: int) -> list[Routed]:
        """Take a span; return what goes to engines now: the span if its engine is known, and those that follow it."""
        number = self._names.find(span.engine_names)
        if not span.client and (decided := self._decided_engine(span)) is not None:
            return [Routed(decided, span)]  # it came too late to change where its request counts: nowhere else
        follows = span.client or number is None
        if span.client or number is not None:
            places: list[bytes] = places_of(span)
        else:
            places = [span.trace_id + span.span_id] if span.trace_id and span.span_id else []
        kept = _Kept(span, [span.key, *places], follows, now_ns)
        if not follows and number is not None:
            self._named_ns[number] = now_ns
            routed = self._place(kept, number, now_ns)
        else:
            numbers = [*self._followed(kept), *([] if number is None else [number])]
            routed = [self._give(kept, engine) for engine in sorted(set(numbers), key=self._prefills.__contains__)]
        self._keep(kept)
        return routed

    def due(self, now_ns: int, counts: Counts) -> tuple[list[Routed], list[RequestSpan]]:
        """Decide the spans that have waited for long enough; return those that go to engines, and those that go to
        none."""
        routed: list[Routed] = []
        unplaced: list[RequestSpan] = []
        for _ in self._expired(self._placed, now_ns - KEPT * self._wait_ns):
            pass
        for kept in self._expired(self._followers, now_ns - self._wait_ns):
            if not self._prefills.issuperset(kept.engines):
                continue
            able = [number for number in self._able(kept, now_ns) if may_have_served(counts(number), kept.span)]
            if len(able) == 1:
                self._decide(kept.span, able[0])
            if len(able) == 1 and kept.span.client:
                routed.append(self._give(kept, able[0]))
            elif len(able) == 1:
                routed += self._place(kept, able[0], now_ns)
            elif not kept.engines:
                unplaced.append(kept.span)
        return routed, unplaced

    def _expired(self, spans: deque[_Kept], before_ns: int) -> Iterator[_Kept]:
        """Forget and yield those that came before, or are too many."""
        while spans and (spans[0].arrived_ns <= before_ns or len(spans) > MAX_KEPT):
            kept = spans.popleft()
            self._forget(kept)
            yield kept

    def _decide(self, span: RequestSpan, number: int) -> None:
        """Remember that a span's request counts at an engine, for spans of it that come yet."""
        for name in sure_names(span):
            self._decided[name] = (number, span)
        while len(self._decided) > MAX_KEPT:
            self._decided.popitem(last=False)

    def _decided_engine(self, span: RequestSpan) -> int | None:
        """Return the engine at which the request of an engine's span counts already."""
        for name in sure_names(span):
            number, other = self._decided.get(name, (None, span))
            if number is not None and is_within(span, other):
                return number
        return None

    def is_waiting(self, key: str) -> bool:
        """Return True if a span with this key waits for its engine to be known."""
        return any(not kept.engines for kept in self._by_name.get(key, ()))

    def _able(self, kept: _Kept, now_ns: int) -> list[int]:
        """Engines that would not have sent a span of their own of the request."""
        if kept.span.client:
            sent_ns = self._traced_ns
            engines = [number for number in self._all if number not in self._prefills]
        else:
            sent_ns, engines = self._named_ns, list(self._all)
        return [n for n in engines if n not in sent_ns or now_ns - sent_ns[n] > TRACING_NS]

    def _place(self, kept: _Kept, number: int, now_ns: int) -> list[Routed]:
        """Give an engine's span to its engine, and to it the spans that follow."""
        self._traced_ns[number] = now_ns
        kept.engines.append(number)
        followers = dict.fromkeys(
            other
            for name in kept.names
            for other in self._trusted(name, kept)
            if other.follows and number not in other.engines and is_within(kept.span, other.span)
        )
        return [Routed(number, kept.span), *(self._give(other, number) for other in followers)]

    def _give(self, kept: _Kept, number: int) -> Routed:
        """Give a span that follows to an engine."""
        copy = number in self._prefills or not self._prefills.issuperset(kept.engines)
        kept.engines.append(number)
        span = kept.span
        if copy:
            span = msgspec.structs.replace(span, output_tokens=None, first_token_ns=None)
        return Routed(number, span, copy)

    def _followed(self, kept: _Kept) -> list[int]:
        """Return the engines that have spans of the same request, by the surest name that has any."""
        for name in kept.names:
            placed = [other for other in self._trusted(name, kept) if not other.follows and other.engines]
            if numbers := [other.engines[0] for other in placed if is_within(other.span, kept.span)]:
                return numbers
        return []

    def _trusted(self, name: str | bytes, kept: _Kept) -> list[_Kept]:
        """Return the other spans with a name; none if it is of several clients' requests, as a constant traceparent."""
        others = self._by_name.get(name, [])
        if isinstance(name, bytes) and others:
            claims = self._claims.get(name, Counter())
            strange = bool(claims) and kept.span.client and identity_of(kept.span) not in claims
            if len(claims) > 1 or strange or len(others) >= MAX_PARTS:
                return []
        return others

    def _keep(self, kept: _Kept) -> None:
        (self._followers if kept.follows else self._placed).append(kept)
        for name in kept.names:
            others = self._by_name.setdefault(name, [])
            if len(others) < MAX_PARTS:
                others.append(kept)
            if kept.span.client and isinstance(name, bytes):
                self._claims.setdefault(name, Counter())[identity_of(kept.span)] += 1

    def _forget(self, kept: _Kept) -> None:
        for name in kept.names:
            others = self._by_name.get(name, [])
            if kept in others:
                others.remove(kept)
            if not others:
                self._by_name.pop(name, None)
            if kept.span.client and isinstance(name, bytes):
                claims, identity = self._claims[name], identity_of(kept.span)
                claims[identity] -= 1
                if not claims[identity]:
                    del claims[identity]
                if not claims:
                    del self._claims[name]


def sure_names(span: RequestSpan) -> list[str | bytes]:
    """Return the names that only spans of one request share: its id, and that of the client's span."""
    above = span.span_id if span.client else span.parent_id
    return [span.key, span.trace_id + above] if span.trace_id and above else [span.key]


def may_have_served(samples: Sequence[EngineSample], span: RequestSpan) -> bool:
    """Return False if the engine's counters rule a request out, however clocks differ: the engine had no request while
    it decoded, or generated fewer tokens meanwhile than it has."""
    when = itemgetter("t_ns")
    if span.first_token_ns is not None:
        begin = bisect_left(samples, span.first_token_ns + CLOCKS_NS, key=when)
        end = bisect_left(samples, span.end_ns - CLOCKS_NS, key=when)
        if any(queue_length(sample) == 0 for sample in samples[begin:end]):
            return False
    before = bisect_right(samples, span.start_ns - CLOCKS_NS, key=when) - 1
    after = bisect_left(samples, span.end_ns + CLOCKS_NS, key=when)
    if before < 0 or after >= len(samples):
        return True
    tokens = counter_values(samples[before : after + 1], "generation_tokens")
    return tokens is None or bool(tokens[-1] - tokens[0] >= (span.output_tokens or 0))
