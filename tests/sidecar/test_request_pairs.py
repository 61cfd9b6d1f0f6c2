"""The parts of a request at a prefill and at a decode engine become one, and none is lost or held for ever."""

from dataclasses import replace
from typing import Any

import msgspec
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


def whole(engine: int, ok: bool = True, **known: Any) -> SettledPart:
    request = span("r", start_s=10 + engine, end_s=12 + engine)
    request = msgspec.structs.replace(request, ok=ok, cached_tokens=engine)
    entry = OpenRequest(request, charged=True, windows_j2=9.0 * (1 + engine), law_j=3.0 + engine)
    return SettledPart(engine, SettledEntry(replace(entry, **known), ("m", "chat")), 0)


def test_a_request_of_two_engines_has_the_energy_the_time_and_the_errors_of_both() -> None:
    assert SettledPair(alone := whole(1)).entry is alone.settled.entry
    first, second = whole(0, prefill_mj=50, decode_mj=1), whole(1, prefill_mj=2, decode_mj=700)
    entry = SettledPair(second, first).entry
    assert (entry.prefill_mj, entry.decode_mj, entry.windows_j2, entry.law_j) == (52, 701, 27.0, 5.0)
    request = entry.request
    assert (request.start_ns, request.end_ns) == (ns_from_s(10), ns_from_s(13))
    assert (request.cached_tokens, request.output_tokens) == (0, 20), "of the prompt's engine, and of the other"
    assert (first.energy_mj, second.energy_mj) == (51, 702)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("known", "lacks"),
    [({"whole": False}, "whole"), ({"charged": False}, "charged"), ({"windows_j2": None}, "windows_j2")],
)
def test_a_request_is_known_as_far_as_both_of_its_parts_are(which: int, known: dict[str, Any], lacks: str) -> None:
    parts = [whole(engine, **(known if engine == which else {})) for engine in (0, 1)]
    entry = SettledPair(parts[1], parts[0]).entry
    assert {name: bool(getattr(entry, name)) for name in ("whole", "charged", "windows_j2")} == {
        name: name != lacks for name in ("whole", "charged", "windows_j2")
    }
    failed = [whole(engine, ok=engine != which) for engine in (0, 1)]
    assert not SettledPair(failed[1], failed[0]).entry.request.ok


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
