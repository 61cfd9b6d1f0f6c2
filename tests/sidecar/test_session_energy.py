"""Sessions end when they are idle, and only those whose every joule is known are counted."""

import pytest
from msgspec.structs import replace as changed

from loadgen.sidecar import session_energy
from loadgen.sidecar.accounts import Account, OpenRequest
from loadgen.sidecar.session_energy import SESSION_IDLE_S, OpenSessions
from loadgen.units import NS_PER_S
from sidecar.test_accounts import REQUEST

IDLE_NS = round(SESSION_IDLE_S * NS_PER_S)


def closed(session: str | None, end_ns: int, mj: int = 100, ok: bool = True, **known: bool) -> OpenRequest:
    request = changed(REQUEST, session=session, end_ns=end_ns, ok=ok)
    return OpenRequest(request, prefill_mj=mj // 2, decode_mj=mj - mj // 2, **({"charged": True} | known))


def counts(account: Account) -> tuple[int, int, int, int]:
    return (
        sum(account.completed_sessions.counts),
        account.completed_sessions_mj,
        sum(account.failed_sessions.counts),
        account.failed_sessions_mj,
    )


def test_a_session_has_the_energy_of_its_requests_once_it_is_idle() -> None:
    sessions, account = OpenSessions(), Account()
    sessions.add(closed("a", 10, 101), account)
    sessions.add(closed("b", 20, 50), account)
    sessions.add(closed("a", 30, 202), account)
    sessions.end_idle(20 + IDLE_NS)
    assert counts(account) == (0, 0, 0, 0)
    sessions.end_idle(21 + IDLE_NS)
    assert counts(account) == (1, 50, 0, 0)
    sessions.end_idle(31 + IDLE_NS)
    assert counts(account) == (2, 353, 0, 0) and account.completed_sessions.sum == 0.353


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (closed("a", 2), (1, 200, 0, 0)),
        (closed("a", 2, ok=False), (0, 0, 1, 200)),
        (closed("a", 2, charged=False), (0, 0, 0, 0)),
        (closed("a", 2, whole=False), (0, 0, 0, 0)),
        (closed(None, 2), (1, 100, 0, 0)),
    ],
    ids=["completed", "failed", "not charged", "not whole", "of no session"],
)
def test_a_session_is_counted_by_its_outcome_or_not_at_all(
    second: OpenRequest, expected: tuple[int, int, int, int]
) -> None:
    sessions, account = OpenSessions(), Account()
    sessions.add(closed("a", 1), account)
    sessions.add(second, account)
    sessions.end_idle(3 + IDLE_NS)
    assert counts(account) == expected


def test_of_too_many_sessions_the_one_idle_longest_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_energy, "MAX_SESSIONS", 2)
    sessions, account = OpenSessions(), Account()
    for name, mj in (("a", 1), ("b", 20), ("a", 300), ("c", 4000)):
        sessions.add(closed(name, 1, mj), account)
    assert counts(account) == (1, 20, 0, 0)
