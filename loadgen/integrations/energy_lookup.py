"""Asks sidecars for the joules of requests that have ended, from a thread: they settle seconds after the answer.

Nothing waits for it. What is too much, too late or malformed is counted and given up.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Annotated, NamedTuple
from urllib.parse import quote

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S, ns_from_s

if TYPE_CHECKING:
    from loadgen.http_get import PageClient

_log = logging.getLogger(__name__)

MAX_WAITING = 20_000
"""Requests whose joules are awaited. Any further one is dropped."""
MAX_ID = 128
"""Characters of an id that a sidecar looks up."""
FIRST_S = 6.0
"""A sidecar waits at least this long for late spans."""
PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
"""Pauses between questions for a request, or to a sidecar that does not answer: each is twice the previous one."""
UNKNOWN_S = 60.0
"""A request is given up if no span of it has arrived by then."""
UNSETTLED_S = 900.0
"""A request is given up if it has not settled by then: a sidecar settles it within `--max-lateness`, 600 s."""
_ANSWERS = (200, 202, 400, 404)
"""Settled, not yet, malformed id, unknown."""


Joules = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Text = Annotated[str, msgspec.Meta(max_length=256)]


class RequestEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of GET /requests/ID for a request that has settled."""

    joules: Joules | None
    """Is None if a part of its time was not measured."""
    se_joules: Joules | None
    prefill_joules: Joules | None
    decode_joules: Joules | None
    measured_joules: Joules
    """Energy that was measured of it."""
    model: Text
    engine: Text | None
    input_tokens: Tokens | None
    output_tokens: Tokens | None
    cached_tokens: Tokens | None
    settled_unix_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Question(NamedTuple):
    due_ns: int
    number: int
    """Orders questions that are due at the same time."""
    sidecar: str
    request_id: str
    begin_ns: int
    pause_s: float
    deliver: Callable[[RequestEnergy | None], None]


class EnergyLookup:
    """The requests whose joules are awaited. `add` never waits."""

    def __init__(
        self,
        sidecars: Mapping[str, PageClient],
        *,
        max_waiting: int = MAX_WAITING,
        first_s: float = FIRST_S,
        pause_s: float = PAUSE_S,
        unknown_s: float = UNKNOWN_S,
        unsettled_s: float = UNSETTLED_S,
    ) -> None:
        self._sidecars = dict(sidecars)
        self._away: dict[str, tuple[int, float]] = {}
        """Sidecar that does not answer -> when it is asked again, and the pause before that."""
        self._max_waiting, self._first_s, self._pause_s = max_waiting, first_s, pause_s
        self._unknown_ns, self._unsettled_ns = ns_from_s(unknown_s), ns_from_s(unsettled_s)
        self._questions: list[_Question] = []
        self._waiting = 0
        self._changed = threading.Condition()
        self._numbers = count()
        self._thread: threading.Thread | None = None
        self.counts: Counter[str] = Counter()
        """Requests by outcome: settled, partial, unknown, malformed, dropped; and undelivered ones of them."""

    def add(self, sidecar: str, request_id: str, deliver: Callable[[RequestEnergy | None], None]) -> bool:
        """Look a request up when it may have settled. Return False if too many wait, or it is no id.

        deliver: is called from the thread, with None if its joules stay unknown.
        """
        now_ns = monotonic_ns()
        due_ns = now_ns + ns_from_s(self._first_s)
        if not (0 < len(request_id) <= MAX_ID and request_id.isprintable()):
            self.counts["malformed"] += 1
            return False
        with self._changed:
            if self._waiting >= self._max_waiting:
                self.counts["dropped"] += 1
                return False
            self._waiting += 1
            question = _Question(due_ns, next(self._numbers), sidecar, request_id, now_ns, self._pause_s, deliver)
            heappush(self._questions, question)
            if self._thread is None:  # not before: processes that a server forks have no threads
                self._thread = threading.Thread(target=self._run, name="energy-lookup", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def wait(self, timeout_s: float) -> bool:
        """Block until nothing is awaited. Return False if the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting == 0, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._questions or self._questions[0].due_ns > monotonic_ns():
                    pause_s = (self._questions[0].due_ns - monotonic_ns()) / NS_PER_S if self._questions else None
                    self._changed.wait(pause_s)
                question = heappop(self._questions)
            self._ask(question)

    def _ask(self, question: _Question) -> None:
        """Ask a sidecar for a request: deliver its joules, ask again later, or give up."""
        now_ns = monotonic_ns()
        age_ns = now_ns - question.begin_ns
        away_until_ns, _ = self._away.get(question.sidecar, (0, 0.0))
        if now_ns < away_until_ns:
            status, body, next_ns = None, b"", away_until_ns
        else:
            status, body = self._get(question.sidecar, question.request_id)
            next_ns = monotonic_ns() + ns_from_s(question.pause_s)
        if status == 200:
            self._settle(question, body)
        elif status == 400 or age_ns >= (self._unknown_ns if status == 404 else self._unsettled_ns):
            self._finish(question, None, "unknown")
        else:
            pause_s = min(2 * question.pause_s, LONGEST_PAUSE_S)
            again = question._replace(due_ns=next_ns, number=next(self._numbers), pause_s=pause_s)
            with self._changed:
                heappush(self._questions, again)

    def _get(self, sidecar: str, request_id: str) -> tuple[int | None, bytes]:
        """Return the status and the body of a request's page; no status if the sidecar is away, for a while."""
        page = self._sidecars[sidecar]
        try:
            response = page.get("/requests/" + quote(request_id, safe=""))
            problem = None if response.status in _ANSWERS else f"{page.url} answered {response.status}"
        except MeterError as err:
            problem = str(err)
        if problem is None:
            self._away.pop(sidecar, None)
            return response.status, response.body
        if sidecar not in self._away:
            _log.warning("joules of requests: %s", problem)
        _, pause_s = self._away.get(sidecar, (0, self._pause_s))
        self._away[sidecar] = (monotonic_ns() + ns_from_s(pause_s), min(2 * pause_s, LONGEST_PAUSE_S))
        return None, b""

    def _settle(self, question: _Question, body: bytes) -> None:
        try:
            energy = msgspec.json.decode(body, type=RequestEnergy)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._finish(question, None, "malformed")
            return
        self._finish(question, energy, "partial" if energy.joules is None else "settled")

    def _finish(self, question: _Question, energy: RequestEnergy | None, outcome: str) -> None:
        try:
            question.deliver(energy)
        except Exception:  # of the user's own code: the joules of the next request must not depend on it
            if not self.counts["undelivered"]:
                _log.exception("the joules of a request could not be handed over; the next ones are only counted")
            self.counts["undelivered"] += 1
        with self._changed:
            self.counts[outcome] += 1
            self._waiting -= 1
            self._changed.notify_all()
