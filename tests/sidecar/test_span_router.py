"""Spans find the engine of their request by names, by each other, or by what the engines counted."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.named_engine import NamedEngine
from loadgen.sidecar import span_router
from loadgen.sidecar.span_router import Routed, SpanRouter, may_have_served
from loadgen.telemetry.engine_sample import EngineSample
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_S, ns_from_s

WAIT_NS = 15 * NS_PER_S
A, B = NamedEngine(name="a", url="http://127.0.0.1:8001"), NamedEngine(name="b", url="https://gpu-b/v1")
P = NamedEngine(name="p", url="http://h:1", role="prefill")
D = NamedEngine(name="d", url="http://h:2", role="decode")
TRACE = b"t" * 16


def span(
    key: str, *names: str, client: bool = False, start_s: float = 10, end_s: float = 12, **fields: Any
) -> RequestSpan:
    first_ns = ns_from_s(start_s + 0.1)
    ids = {"trace_id": b"", "span_id": key.encode().rjust(8, b"-")[:8], "parent_id": b"", "output_tokens": 20}
    return RequestSpan(
        key=key, request_id=None, client=client, start_ns=ns_from_s(start_s), prefill_ns=ns_from_s(start_s),
        first_token_ns=first_ns, end_ns=ns_from_s(end_s), input_tokens=100, cached_tokens=None, model=None,
        workload="chat" if client else None, ok=True, engine_names=names, **(ids | fields),
    )  # fmt: skip


def counts(tokens_per_s: float, from_s: float = 0, to_s: float = 60, running: float = 1) -> list[EngineSample]:
    """Samples of an engine, four a second."""
    times = [from_s + k / 4 for k in range(int(4 * (to_s - from_s)))]
    return [{"t_ns": ns_from_s(t), "generation_tokens": tokens_per_s * t, "running": running} for t in times]


def nothing(number: int) -> list[EngineSample]:
    return []


def numbers(routed: list[Routed]) -> list[tuple[int, str, bool]]:
    return [(number, sent.key, sent.client) for number, sent, _ in routed]


LINKS = [
    ({}, {}),
    ({"key": "other", "trace_id": TRACE, "parent_id": b"client-1"}, {"trace_id": TRACE, "span_id": b"client-1"}),
    ({"key": "other", "trace_id": TRACE, "parent_id": b"gateway1"}, {"trace_id": TRACE, "span_id": b"client-1"}),
]


@pytest.mark.parametrize("engine_first", [True, False])
@pytest.mark.parametrize(("engine", "client"), LINKS, ids=["request id", "parent", "trace"])
def test_a_clients_span_follows_the_engines_in_either_order(
    engine: dict[str, Any], client: dict[str, Any], engine_first: bool
) -> None:
    router = SpanRouter([A, B], WAIT_NS)
    spans = [
        msgspec.structs.replace(span("r", "b"), **engine),
        msgspec.structs.replace(span("r", client=True, start_s=9.9, end_s=12.1), **client),
    ]
    routed = [one for sent in (spans if engine_first else spans[::-1]) for one in router.add(sent, 20 * NS_PER_S)]
    assert [(number, sent.client, copy) for number, sent, copy in routed] == [(1, False, False), (1, True, False)]
    assert routed[1].span == spans[1]
    assert router.due(60 * NS_PER_S, nothing) == ([], [])


REQUESTS = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 10), st.floats(0.5, 4), st.booleans()), min_size=1, max_size=30
)


@given(REQUESTS, st.randoms(use_true_random=False))
def test_in_every_order_each_request_goes_to_the_engine_that_served_it_and_to_no_other(
    requests: list[tuple[int, float, float, bool]], order: Any
) -> None:
    """Half of the requests are known by their ids, the others by their traces."""
    engines = [A, B, NamedEngine(name="c", url="http://c:1")]
    router, sent, expected = SpanRouter(engines, WAIT_NS), [], {}
    for k, (number, begin_s, length_s, by_id) in enumerate(requests):
        trace_id = b"" if by_id else bytes([k]) * 16
        ids = {"trace_id": trace_id, "parent_id": b"" if by_id else f"c{k}".encode().rjust(8, b"-")}
        key = f"c{k}" if by_id else f"e{k}"
        sent.append(span(key, engines[number].name, start_s=begin_s, end_s=begin_s + length_s, **ids))
        sent.append(
            span(f"c{k}", client=True, start_s=begin_s - 0.01, end_s=begin_s + length_s + 0.01, trace_id=trace_id)
        )
        expected |= {(key, False): [number], (f"c{k}", True): [number]}
    order.shuffle(sent)
    routed = [one for one_span in sent for one in router.add(one_span, 20 * NS_PER_S)]
    got: dict[tuple[str, bool], list[int]] = {}
    for number, one, _ in routed:
        got.setdefault((one.key, one.client), []).append(number)
    assert got == expected
    assert router.due(80 * NS_PER_S, nothing) == ([], [])
    assert not router._placed and not router._followers, "nothing is remembered for longer"
    assert router._by_name == router._claims == {}


def test_a_trace_that_several_clients_share_says_nothing() -> None:
    router = SpanRouter([A, B], WAIT_NS)
    shared = {"trace_id": TRACE}
    clients = [span(f"c{k}", client=True, start_s=9, end_s=13, **shared) for k in range(2)]
    engines = [span("e0", "a", **shared), span("e1", "b", **shared)]
    routed = [one for sent in (*clients, *engines) for one in router.add(sent, 0)]
    assert numbers(routed) == [(0, "e0", False), (1, "e1", False)]
    assert [sent.key for sent in router.due(60 * NS_PER_S, nothing)[1]] == ["c0", "c1"]


def test_a_gateways_span_that_names_no_engine_follows_the_engines_below_it() -> None:
    router = SpanRouter([A, B], WAIT_NS)
    gateway = span("g", "litellm", trace_id=TRACE, span_id=b"gateway1", start_s=9.9, end_s=12.1)
    assert router.add(gateway, 0) == []
    routed = router.add(span("e", "b", trace_id=TRACE, parent_id=b"gateway1"), 0)
    assert numbers(routed) == [(1, "e", False), (1, "g", False)]


@pytest.mark.parametrize(
    ("samples", "served"),
    [
        (counts(10), True),
        (counts(10)[:20], True),  # until 5 s: nothing is known of the time of the request
        (counts(4), True),
        (counts(3), False),  # fewer tokens than the request has from 2 s before to 2 s after it
        (counts(0, running=0), False),
        ([{"t_ns": ns_from_s(t)} for t in range(30)], True),
        ([], True),
    ],
)
def test_counters_rule_an_engine_out_only_if_it_cannot_have_had_the_request(
    samples: list[EngineSample], served: bool
) -> None:
    assert may_have_served(samples, span("r", client=True, output_tokens=24)) is served


def test_an_engine_that_had_no_request_while_this_one_decoded_is_ruled_out() -> None:
    long = span("r", client=True, start_s=10, end_s=20)
    begins = [{**sample, "running": float(sample["t_ns"] > ns_from_s(12))} for sample in counts(10)]
    assert may_have_served(begins, long), "clocks differ by up to two seconds"
    assert may_have_served(counts(10, running=1), long)
    assert not may_have_served(counts(10, running=0), long)
    assert may_have_served(counts(10, running=0), msgspec.structs.replace(long, first_token_ns=None))


@pytest.mark.parametrize(
    ("busy", "traced", "placed"),
    [
        ({0}, set(), 0),  # the other one was idle
        ({0, 1}, set(), None),  # both may have had it
        ({0, 1}, {1}, 0),  # the other one would have sent a span of it
        ({0, 1}, {0, 1}, None),
        ({1}, {1}, None),  # the span of the engine that had it was lost
        (set(), set(), None),
    ],
)
def test_a_clients_span_alone_goes_to_the_only_engine_that_can_have_had_it(
    busy: set[int], traced: set[int], placed: int | None
) -> None:
    router = SpanRouter([A, B], WAIT_NS)
    for number in traced:
        router.add(span(f"e{number}", ("a", "b")[number], start_s=1, end_s=2), NS_PER_S)
    assert router.add(client := span("c", client=True), 20 * NS_PER_S) == []
    assert router.is_waiting("c")
    early, _ = router.due(20 * NS_PER_S + WAIT_NS - 1, lambda number: counts(50 if number in busy else 0))
    assert early == []
    routed, unplaced = router.due(20 * NS_PER_S + WAIT_NS, lambda number: counts(50 if number in busy else 0))
    assert routed == ([] if placed is None else [Routed(placed, client)])
    assert unplaced == ([client] if placed is None else [])
    assert not router.is_waiting("c")


def test_an_engine_that_has_sent_no_span_for_long_may_have_stopped_to() -> None:
    router = SpanRouter([A, B], WAIT_NS)
    router.add(span("e", "a", start_s=1, end_s=2), 0)
    late_ns = span_router.TRACING_NS - WAIT_NS
    for number, now_ns in enumerate((late_ns, late_ns + 1)):
        router.add(span(f"c{number}", client=True), now_ns)
        routed, unplaced = router.due(now_ns + WAIT_NS, lambda number: counts(50 if number == 0 else 0))
        assert (len(routed), len(unplaced)) == (number, 1 - number)


@pytest.mark.parametrize(("late_s", "follows"), [(59, True), (61, False)])
def test_a_span_of_an_engine_is_remembered_for_four_times_as_long_as_others_wait(late_s: float, follows: bool) -> None:
    router = SpanRouter([P, D], WAIT_NS)
    router.add(span("r", "p", start_s=10, end_s=10.5), 0)
    router.due(ns_from_s(late_s), nothing)
    assert bool(router.add(span("r", client=True, start_s=9.9, end_s=60), ns_from_s(late_s))) is follows


@pytest.mark.parametrize("order", ["pdc", "dpc", "pcd", "cpd", "cdp", "dcp"])
def test_the_prefill_engine_never_gets_the_clients_output_tokens(order: str) -> None:
    router = SpanRouter([P, D], WAIT_NS)
    spans = {
        "p": span("r", "p", start_s=10, end_s=10.5, output_tokens=1),
        "d": span("r", "d", start_s=10.6, end_s=14),
        "c": span("r", client=True, start_s=9.9, end_s=14.1, output_tokens=500),
    }
    routed = [one for who in order for one in router.add(spans[who], 20 * NS_PER_S)]
    assert {(number, sent.client): (sent.output_tokens, copy) for number, sent, copy in routed} == {
        (0, False): (1, False),
        (1, False): (20, False),
        (0, True): (None, True),
        (1, True): (500, False),
    }
    assert len(routed) == 4
    assert router.due(60 * NS_PER_S, nothing) == ([], [])


def test_a_request_that_was_sent_again_to_another_engine_has_its_output_tokens_at_one_of_them() -> None:
    router = SpanRouter([A, B], WAIT_NS)
    spans = [span("r", "a", end_s=10.5), span("r", "b", start_s=11, end_s=12), span("r", client=True, start_s=9.9)]
    routed = [one for sent in spans for one in router.add(sent, 20 * NS_PER_S)]
    assert [(number, sent.output_tokens, copy) for number, sent, copy in routed if sent.client] == [
        (0, 20, False),
        (1, None, True),
    ]


def test_spans_beyond_those_that_are_kept_are_decided_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_router, "MAX_KEPT", 5)
    router = SpanRouter([A, B], WAIT_NS)
    for k in range(50):
        router.add(span(f"c{k}", client=True), NS_PER_S)
    _, unplaced = router.due(NS_PER_S, nothing)
    assert [sent.key for sent in unplaced] == [f"c{k}" for k in range(45)]
    assert len(router._by_name) == 5


def test_many_spans_with_one_name_are_not_compared_with_each_other() -> None:
    router = SpanRouter([A, B], WAIT_NS)
    for k in range(1000):
        router.add(span("same", "a", trace_id=TRACE, span_id=k.to_bytes(8)), NS_PER_S)
    assert {len(kept) for kept in router._by_name.values()} == {span_router.MAX_PARTS}


@pytest.mark.parametrize(
    ("late", "number"),
    [
        ({"key": "r"}, 1),  # the client's id
        ({"key": "x", "trace_id": TRACE, "parent_id": b"cccccccc"}, 1),  # the client's span
        ({"key": "x", "trace_id": TRACE, "parent_id": b"dddddddd"}, 0),
        ({"key": "r", "start_s": 40.0, "end_s": 41.0}, 0),  # the id again, for another request
    ],
)
def test_an_engines_span_that_comes_after_its_request_was_given_to_another_engine_counts_nowhere_else(
    late: dict[str, Any], number: int
) -> None:
    """It would be billed twice."""
    router = SpanRouter([A, B], WAIT_NS)
    router.add(span("other", "a"), ns_from_s(13))
    router.add(span("r", client=True, trace_id=TRACE, span_id=b"cccccccc"), ns_from_s(13))
    routed, _ = router.due(ns_from_s(13) + WAIT_NS, nothing)
    assert numbers(routed) == [(1, "r", True)], "a sends spans, and sent none of it"
    key = late.pop("key")
    assert [routed.engine for routed in router.add(span(key, "a", **late), ns_from_s(42))] == [number]


def test_an_engines_span_without_a_name_is_of_the_only_engine_whose_spans_have_none() -> None:
    router = SpanRouter([A, B], WAIT_NS)
    router.add(span("other", "a", start_s=1, end_s=2), NS_PER_S)
    assert router.add(unnamed := span("r", "vllm"), 20 * NS_PER_S) == []
    asking = span("r", client=True, start_s=9.9, end_s=12.1)
    assert router.add(asking, 21 * NS_PER_S) == []
    routed, unplaced = router.due(20 * NS_PER_S + WAIT_NS, lambda number: counts(50))
    assert (routed, unplaced) == ([Routed(1, unnamed), Routed(1, asking)], [])
