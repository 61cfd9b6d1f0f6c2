"""Pairs the two parts of a request whose prompt one engine computed and which another one generated from. Pure.

Each part settles in the ledger of its engine. A part that decoded waits until no prefill engine can settle the other
one any more. A part that was computed first waits for a bounded time: how long the other engine generates is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.sidecar.accounts import OpenRequest
    from loadgen.sidecar.ledger import SettledEntry

MAX_HELD = 20_000
"""Parts that wait; of more, the oldest stand alone."""


class SettledPart(NamedTuple):
    """Holds what the ledger of one engine settled of a request."""

    engine: int
    """Number of the engine."""
    settled: SettledEntry
    settled_ns: int

    @property
    def names(self) -> set[str]:
        """Ids of its spans."""
        return {span.key for span in self.settled.entry.parts}

    @property
    def energy_mj(self) -> int:
        return self.settled.entry.prefill_mj + self.settled.entry.decode_mj


class SettledPair(NamedTuple):
    """A settled request: the part that counts, and the one at a prefill engine if another engine decoded."""

    main: SettledPart
    prefill: SettledPart | None = None

    @property
    def entry(self) -> OpenRequest:
        """The request with the energy and the time of both parts."""
        entry = self.main.settled.entry
        if self.prefill is None:
            return entry
        first = self.prefill.settled.entry
        variances_j2 = entry.windows_j2, first.windows_j2
        return replace(
            entry,
            request=msgspec.structs.replace(
                entry.request,
                start_ns=min(first.request.start_ns, entry.request.start_ns),
                cached_tokens=first.request.cached_tokens,
                ok=first.request.ok and entry.request.ok,
            ),
            prefill_mj=first.prefill_mj + entry.prefill_mj,
            decode_mj=first.decode_mj + entry.decode_mj,
            charged=first.charged and entry.charged,
            whole=first.whole and entry.whole,
            windows_j2=None if None in variances_j2 else sum(filter(None, variances_j2)),
            law_j=math.hypot(first.law_j, entry.law_j),
        )


class RequestPairs:
    """Holds parts until their other part has settled, or does not come. Without roles it holds none."""

    def __init__(self, engines: Sequence[NamedEngine], wait_ns: int) -> None:
        """wait_ns: the longest that the part of a prefill engine waits."""
        self._prefills = {number for number, engine in enumerate(engines) if engine.role == "prefill"}
        self._decodes = {number for number, engine in enumerate(engines) if engine.role == "decode"}
        self._wait_ns = wait_ns
        self._held: dict[int, SettledPart] = {}
        """The first settled first."""
        self._by_name: dict[str, list[int]] = {}
        self._taken = 0

    def add(self, part: SettledPart) -> SettledPair | None:
        """Take a part; return the request if it is whole."""
        if part.engine not in self._prefills | self._decodes:
            return SettledPair(part)
        if (other := self._other(part)) is not None:
            self._remove(other)
            return SettledPair(other[1], part) if part.engine in self._prefills else SettledPair(part, other[1])
        self._taken += 1
        self._held[self._taken] = part
        for name in part.names:
            self._by_name.setdefault(name, []).append(self._taken)
        return None

    def due(self, now_ns: int, committed_ns: Callable[[int], int]) -> list[SettledPair]:
        """Return the parts that wait no longer. committed_ns: watermark of an engine's ledger, by its number."""
        before_ns = min((committed_ns(number) for number in self._prefills), default=now_ns)
        alone = [
            (number, part)
            for place, (number, part) in enumerate(self._held.items())
            if len(self._held) - place > MAX_HELD
            or (part.engine in self._decodes and part.settled.entry.request.end_ns <= before_ns)
            or part.settled_ns <= now_ns - self._wait_ns
        ]
        return self._released(alone)

    def all(self) -> list[SettledPair]:
        """Return every part that waits: no other comes."""
        return self._released(list(self._held.items()))

    def held_mj(self, engine: int) -> int:
        """Energy of the parts of an engine that wait."""
        return sum(part.energy_mj for part in self._held.values() if part.engine == engine)

    def is_waiting(self, name: str) -> bool:
        """Return True if a part with this id waits."""
        return name in self._by_name

    def _other(self, part: SettledPart) -> tuple[int, SettledPart] | None:
        """Return the other part of the same request, the newest if an id came twice."""
        wanted = self._decodes if part.engine in self._prefills else self._prefills
        numbers = {number for name in part.names for number in self._by_name.get(name, ())}
        for number in sorted(numbers, reverse=True):
            other = self._held[number]
            prefill, decode = (part, other) if part.engine in self._prefills else (other, part)
            if other.engine in wanted and prefill.settled.entry.request.start_ns <= decode.settled.entry.request.end_ns:
                return number, other
        return None

    def _released(self, parts: Sequence[tuple[int, SettledPart]]) -> list[SettledPair]:
        for part in parts:
            self._remove(part)
        return [SettledPair(part) for _, part in parts]

    def _remove(self, held: tuple[int, SettledPart]) -> None:
        number, part = held
        del self._held[number]
        for name in part.names:
            self._by_name[name].remove(number)
            if not self._by_name[name]:
                del self._by_name[name]
