"""The parts of a request at a prefill and at a decode engine become one, and none is lost or held for ever."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.named_engine import NamedEngine
from loadgen.sidecar import request_pairs
from loadgen.sidecar.accounts import OpenRequest
from loadgen.sidecar.ledger import SettledEntry
from loadgen.sidecar.request_pairs import RequestPairs, SettledPair, SettledPart
from loadgen.units import NS_PER_S, ns_from_s
from sidecar.test_span_router import A, D, P, span

P2 = NamedEngine(name="p2", url="http://h:3", role="prefill")
WAIT_NS = 600 * NS_PER_S


def part(engine: int, key: str, settled_s: float = 30, **times: Any) -> SettledPart:
    entry = OpenRequest(span(key, **times), prefill_mj=10 * (engine != 1), decode_mj=7 * (engine == 1), charged=True)
    return SettledPart(engine, SettledEntry(entry, ("m", "chat")), ns_from_s(settled_s))


def pairs(*engines: NamedEngine) -> RequestPairs:
    return RequestPairs(engines or (P, D), WAIT_NS)


def committed(*seconds: float) -> Any:
    return lambda number: ns_from_s(seconds[number])


@pytest.mark.parametrize("prefill_first", [True, False])
def test_a_request_is_whole_when_both_parts_have_settled(prefill_first: bool) -> None:
    held, prefill, decode = pairs(), part(0, "r", end_s=10.5), part(1, "r")
    first, second = (prefill, decode) if prefill_first else (decode, prefill)
    assert held.add(first) is None
    assert held.is_waiting("r") and held.held_mj(first.engine) == first.energy_mj
    assert held.add(second) == SettledPair(decode, prefill)
    assert not held.is_waiting("r") and held.held_mj(0) == held.held_mj(1) == 0
    assert held.all() == []


def test_an_engine_without_a_role_settles_at_once() -> None:
    alone = part(0, "r")
    assert pairs(A, NamedEngine(name="b", url="http://b")).add(alone) == SettledPair(alone)


def test_a_decode_waits_until_no_prefill_engine_can_settle_its_prefill() -> None:
    held, decode = pairs(P, D, P2), part(1, "r", end_s=12)
    held.add(decode)
    assert held.due(40 * NS_PER_S, committed(12, 30, 11.9)) == []
    assert held.due(40 * NS_PER_S, committed(12, 30, 12)) == [SettledPair(decode)]


def test_a_prefill_waits_for_a_bounded_time_because_decodes_may_be_long() -> None:
    held, prefill = pairs(), part(0, "r", settled_s=30)
    held.add(prefill)
    assert held.due(ns_from_s(629), committed(629, 629)) == []
    assert held.due(ns_from_s(630), committed(630, 630)) == [SettledPair(prefill)]
    assert held.due(ns_from_s(700), committed(700, 700)) == []


def test_an_id_that_comes_again_is_paired_with_the_newest_prefill_that_began_before() -> None:
    held = pairs()
    old, new = part(0, "r", start_s=1, end_s=2), part(0, "r", start_s=20, end_s=21)
    held.add(old)
    held.add(new)
    assert held.add(first := part(1, "r", start_s=3, end_s=5)) == SettledPair(first, old)
    assert held.add(second := part(1, "r", start_s=22, end_s=25)) == SettledPair(second, new)


def test_parts_beyond_those_that_are_held_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_pairs, "MAX_HELD", 3)
    held = pairs()
    for k in range(5):
        held.add(part(0, f"r{k}"))
    released = held.due(31 * NS_PER_S, committed(0, 0))
    assert [pair.main.settled.entry.request.key for pair in released] == ["r0", "r1"]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), max_size=40))
def test_every_part_is_in_one_request_and_held_until_it_is(arrivals: list[tuple[int, int]]) -> None:
    held, done, taken = pairs(), list[SettledPart](), list[SettledPart]()
    for engine, number in arrivals:
        taken.append(new := part(engine, f"r{number}"))
        pair = held.add(new)
        done += [one for one in (pair or ()) if one is not None]
        open_mj = sum(one.energy_mj for one in taken) - sum(one.energy_mj for one in done)
        assert held.held_mj(0) + held.held_mj(1) == open_mj
    done += [one for pair in held.all() for one in pair if one is not None]
    assert sorted(map(id, done)) == sorted(map(id, taken))
    assert held._by_name == {} and not held._held
