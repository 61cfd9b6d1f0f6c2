"""Energy of whole sessions, from the spans of their requests. Pure.

Nothing says that a session is over. It is taken for ended when none of its requests has ended for SESSION_IDLE_S; one
that goes on after that counts as another session.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.units import ns_from_s

if TYPE_CHECKING:
    from loadgen.sidecar.accounts import Account, OpenRequest

SESSION_IDLE_S = 600.0
"""Time without the end of a request after which a session has ended: longer than most tools run."""
MAX_SESSIONS = 20_000
"""Sessions that have not ended; of more, the one that has been idle longest counts as ended."""


@dataclass
class OpenSession:
    """A session that may have further requests."""

    account: Account
    """Account of its first request."""
    energy_mj: int = 0
    ok: bool = True
    """False if a request failed."""
    whole: bool = True
    """False if the energy of a request is not known."""
    end_ns: int = 0
    """End of its last request."""


class OpenSessions:
    """Sessions by name, in the order of their last requests."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, OpenSession] = OrderedDict()

    def add(self, entry: OpenRequest, account: Account) -> None:
        """Add a request that is closed to its session; one without a session is left out."""
        if (name := entry.request.session) is None:
            return
        session = self._sessions.setdefault(name, OpenSession(account))
        session.energy_mj += entry.prefill_mj + entry.decode_mj
        session.ok = session.ok and entry.request.ok
        session.whole = session.whole and entry.charged and entry.whole
        session.end_ns = max(session.end_ns, entry.request.end_ns)
        self._sessions.move_to_end(name)
        if len(self._sessions) > MAX_SESSIONS:
            self._end(next(iter(self._sessions)))

    def end_idle(self, now_ns: int) -> None:
        """Count the sessions none of whose requests has ended lately."""
        before_ns = now_ns - ns_from_s(SESSION_IDLE_S)
        while self._sessions:
            name, session = next(iter(self._sessions.items()))
            if session.end_ns >= before_ns:
                return
            self._end(name)

    def _end(self, name: str) -> None:
        session = self._sessions.pop(name)
        if session.whole:
            session.account.end_session(session.energy_mj, session.ok)
