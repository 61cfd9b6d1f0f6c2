"""Joining spans: whatever order they come in, a request is counted once, and two requests are never one."""

from collections.abc import Sequence
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.sidecar import span_join
from loadgen.sidecar.accounts import OpenRequest
from loadgen.sidecar.ledger import Ledger, Snapshot
from loadgen.sidecar.span_join import CLOCKS_NS, SpanJoin, joined
from loadgen.sidecar.watermark import EDGE_NS
from loadgen.telemetry.otlp_export import export_records
from loadgen.telemetry.otlp_parse import RequestSpan, parse_spans
from loadgen.telemetry.traceparent import span_ids
from loadgen.units import NS_PER_MS, NS_PER_S
from support.tgi_spans import tgi_request

GPU = EnergyDomain(name="gpu:0", source="simulated", uuid="GPU-0")
WORLD = b"\x01" * 16
"""A trace that a user's constant header puts every request into."""


def engines(name: str, start_s: float = 10, end_s: float = 20, **facts: object) -> RequestSpan:
    """The engine's span of the request `name`: a child of the client's, with an id of its own."""
    ids, own = span_ids(name), span_ids(f"engine of {name}")
    start_ns, end_ns = round(start_s * NS_PER_S), round(end_s * NS_PER_S)
    known: dict[str, object] = {
        "key": own.span_id.hex(), "request_id": None, "client": False, "start_ns": start_ns, "prefill_ns": start_ns,
        "first_token_ns": start_ns + (end_ns - start_ns) // 10, "end_ns": end_ns, "input_tokens": None,
        "output_tokens": 50, "cached_tokens": None, "model": "m", "workload": None, "ok": True,
        "trace_id": ids.trace_id, "span_id": own.span_id, "parent_id": ids.span_id,
    }  # fmt: skip
    return RequestSpan(**known | facts)  # type: ignore[arg-type]


def clients(name: str, start_s: float = 9.999, end_s: float = 20.001, **facts: object) -> RequestSpan:
    """The client's span of the request `name`: the root of its trace."""
    ids = span_ids(name)
    known: dict[str, object] = {
        "key": name, "request_id": name, "client": True, "input_tokens": 900, "cached_tokens": 300, "workload": "chat",
        "model": None, "span_id": ids.span_id, "parent_id": b"",
    }  # fmt: skip
    return engines(name, start_s, end_s, **known | facts)


def requests(spans: Sequence[RequestSpan]) -> list[RequestSpan]:
    """The requests that these spans are, added in this order."""
    entries: dict[str, OpenRequest] = {}
    join = SpanJoin(entries)
    for span in spans:
        if join.add(span) == "new":
            join.open(span)
    return [entry.request for entry in entries.values()]


GATEWAY = span_ids("gateway")
ONE = {
    "the engine's span is a child of the client's": (clients("a"), engines("a")),
    "the engine has the client's request id": (clients("a"), engines("a", key="a", trace_id=b"", parent_id=b"")),
    "a gateway made a span in between": (clients("a"), engines("a", parent_id=GATEWAY.span_id)),
    "the client's span is not the root": (clients("a", parent_id=b"\x05" * 8), engines("a")),
    "clocks differ by a second": (clients("a", 9, 9.1), engines("a", 10, 10.1)),
}


@pytest.mark.parametrize(("client", "engine"), ONE.values(), ids=ONE)
def test_a_request_of_both_sides_is_one_whichever_comes_first(client: RequestSpan, engine: RequestSpan) -> None:
    for spans in permutations((client, engine)):
        (request,) = requests(spans)
        assert (request.start_ns, request.first_token_ns, request.output_tokens) == (
            engine.start_ns,
            engine.first_token_ns,
            engine.output_tokens,
        ), "the engine's"
        assert (request.workload, request.input_tokens, request.cached_tokens) == ("chat", 900, 300), "the client's"


FAR = {
    "request id": ({"key": "a", "trace_id": b"", "parent_id": b""}, CLOCKS_NS),
    "child": ({}, CLOCKS_NS),
    "trace": ({"parent_id": GATEWAY.span_id}, EDGE_NS),
}


@pytest.mark.parametrize(("facts", "apart_ns"), FAR.values(), ids=FAR)
def test_the_surer_the_ids_the_further_the_clocks_may_differ(facts: dict[str, object], apart_ns: int) -> None:
    client = clients("a", 10, 20)
    for over_ns, found in ((0, 1), (1, 2)):
        for middle_ns in (client.start_ns - apart_ns - over_ns, client.end_ns + apart_ns + over_ns):
            engine = engines("a", start_ns=middle_ns - 100, end_ns=middle_ns + 100, **facts)
            assert len(requests([client, engine])) == len(requests([engine, client])) == found


AGENT = {"parent_id": b"\x05" * 8}
"""A client's span that is not the root of its trace: the trace has other requests."""
SEVERAL = {
    "another trace": (clients("a"), engines("b")),
    "no trace": (clients("a", trace_id=b""), engines("a", trace_id=b"")),
    "another time": (clients("a"), engines("a", 30, 40)),
    "a trace of several, and a stranger's child": (clients("a", **AGENT), engines("a", parent_id=b"\x06" * 8)),
    "one id, used again": (engines("a", key="probe"), engines("b", 21, 22, key="probe")),
    "a trace of two roots": (clients("a", trace_id=WORLD), clients("b", trace_id=WORLD)),
}


@pytest.mark.parametrize(("span", "other"), SEVERAL.values(), ids=SEVERAL)
def test_spans_that_may_be_of_two_requests_are_two(span: RequestSpan, other: RequestSpan) -> None:
    for spans in permutations((span, other)):
        assert len(requests(spans)) == 2


def test_prompts_of_a_batch_and_choices_are_one_request_with_their_sum() -> None:
    parts = [engines(f"{k}", key="a", input_tokens=900, output_tokens=20 + k, cached_tokens=0) for k in range(3)]
    (alone,) = requests(parts)
    assert (alone.input_tokens, alone.output_tokens, alone.cached_tokens) == (2700, 63, 0)
    for spans in permutations([clients("a", output_tokens=63), *parts]):
        (request,) = requests(spans)
        assert (request.input_tokens, request.output_tokens) == (900, 63), "the client's usage counts a prompt once"


def test_an_engine_that_names_its_prompts_itself_is_summed_as_far_as_the_client_has_tokens() -> None:
    parts = [engines("a", span_id=bytes([k + 1]) * 8, key=f"rid-{k}") for k in range(3)]
    for spans in permutations([clients("a", output_tokens=100), *parts]):
        assert sorted(request.output_tokens or 0 for request in requests(spans)) == [50, 100]


@pytest.mark.parametrize(("client", "engine"), [(None, 50), (100, None), (None, None), (100, 50)])
def test_tokens_that_are_unknown_part_nothing(client: int | None, engine: int | None) -> None:
    parts = [engines("a", span_id=bytes([k + 1]) * 8, key=f"rid-{k}", output_tokens=engine) for k in range(2)]
    assert len(requests([clients("a", output_tokens=client), *parts])) == 1


def test_a_label_is_the_one_that_the_engines_side_has_and_the_clients_without_it() -> None:
    engine, client = engines("a", labels={"tenant": "acme"}), clients("a", labels={"tenant": "evil", "team": "x"})
    assert joined([engine, client]).labels == {"tenant": "acme", "team": "x"}
    other = engines("b", labels={"tenant": "evil"})
    assert joined([engine, other]).labels == {"tenant": "other"}
    assert joined([engine, engines("b")]).labels == {"tenant": "acme"}


def test_of_a_gateways_span_and_the_engines_below_it_the_engines_counts() -> None:
    gateway = engines("a", span_id=GATEWAY.span_id, key="gateway", output_tokens=49, first_token_ns=None)
    engine = engines("a", 11, 19, parent_id=GATEWAY.span_id)
    for spans in permutations((clients("a"), gateway, engine)):
        (request,) = requests(spans)
        assert (request.start_ns, request.output_tokens) == (engine.start_ns, 50)


def test_an_engine_counts_though_its_gateways_clock_is_behind() -> None:
    gateway = engines("a", 10.2, 20, span_id=GATEWAY.span_id, key="gateway", output_tokens=49)
    engine = engines("a", 10.1, 19, parent_id=GATEWAY.span_id)
    assert joined([gateway, engine]) == joined([engine, gateway]) == engine


def test_spans_without_ids_are_summed() -> None:
    nothing: dict[str, object] = {"trace_id": b"", "span_id": b"", "parent_id": b""}
    assert joined([engines("a", **nothing), engines("b", **nothing)]).output_tokens == 100


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("engine", [True, False])
def test_a_request_succeeded_if_both_sides_say_so(client: bool, engine: bool) -> None:
    assert joined([engines("a", ok=engine), clients("a", ok=client)]).ok is (client and engine)


def test_of_a_gateways_attempts_the_one_that_answered_counts_with_all_its_prompts() -> None:
    attempts = [
        engines("a", 10, 12, parent_id=b"\x05" * 8, span_id=b"\x01" * 8, output_tokens=3, first_token_ns=None),
        engines("a", 13, 19, parent_id=b"\x06" * 8, span_id=b"\x02" * 8, output_tokens=50),
        engines("a", 14, 20, parent_id=b"\x06" * 8, span_id=b"\x03" * 8, output_tokens=40),
        engines("a", 15, 16, parent_id=b"\x07" * 8, span_id=b"\x04" * 8, output_tokens=1, first_token_ns=None),
    ]
    for spans in permutations(attempts):
        request = joined(spans)
        assert (request.start_ns, request.end_ns, request.output_tokens) == (13 * NS_PER_S, 20 * NS_PER_S, 90)


def test_as_many_spans_are_joined_as_leave_room_for_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_join, "MAX_PARTS", 3)
    entries: dict[str, OpenRequest] = {}
    join = SpanJoin(entries)
    for k in range(3):
        engine = engines("a", span_id=bytes([k + 1]) * 8, key=f"rid-{k}", output_tokens=10)
        assert join.add(engine) == "new"
        join.open(engine)
    assert join.add(clients("a")) == "merged"
    assert [len(entry.parts) for entry in entries.values()] == [3, 1]


def test_a_first_token_that_the_engine_does_not_tell_is_the_clients() -> None:
    engine = engines("a", first_token_ns=None, prefill_ns=13 * NS_PER_S)
    for client_ns, first_s in ((15, 15), (11, 13), (25, 20)):
        request = joined([engine, clients("a", first_token_ns=client_ns * NS_PER_S)])
        assert request.first_token_ns == first_s * NS_PER_S, "inside the engine's phases"


@pytest.mark.parametrize(
    ("engine", "client", "tokens"), [(50, 60, 60), (50, 12, 50), (None, 12, 12), (0, None, 0), (None, None, None)]
)
def test_output_tokens_are_those_of_the_side_that_saw_more(
    engine: int | None, client: int | None, tokens: int | None
) -> None:
    sides = [engines("a", output_tokens=engine), clients("a", output_tokens=client)]
    assert joined(sides).output_tokens == tokens


def test_sums_of_unknown_counts_are_unknown() -> None:
    request = joined([engines("a", output_tokens=None), engines("b")])
    assert (request.output_tokens, request.input_tokens, request.first_token_ns) == (None, None, 11 * NS_PER_S)


def test_a_trace_that_two_requests_share_joins_by_request_id_alone() -> None:
    world: dict[str, object] = {"trace_id": WORLD, "parent_id": b"\x07" * 8}
    spans = [
        *(clients(name, 10 + k, 20 + k, trace_id=WORLD, output_tokens=10 + k) for k, name in enumerate("abc")),
        *(engines(name, 10 + k, 20 + k, key=name, output_tokens=10 + k, **world) for k, name in enumerate("abc")),
    ]
    for order in permutations(spans):
        found = sorted((request.start_ns, request.output_tokens) for request in requests(order))
        assert found == [((10 + k) * NS_PER_S, 10 + k) for k in range(3)]


def test_a_header_that_the_user_holds_constant_joins_by_request_id() -> None:
    names = [f"run-{k}" for k in range(20)]
    spans = [clients(name) for name in names]
    spans += [engines(name, key=name, trace_id=WORLD, parent_id=b"\x07" * 8) for name in names]
    Random(1).shuffle(spans)
    assert sorted(request.key for request in requests(spans)) == sorted(names)


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["request id", "child", "gateway", "batch"]),
        st.integers(10, 20),  # start
        st.integers(1, 8),  # duration
        st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 1), (1, 2), (3, 3)]),  # copies of the client's span, the engine's
    ),
    max_size=8,
)


def spans_of(index: int, kind: str, start_s: int, length_s: int, copies: tuple[int, int]) -> list[RequestSpan]:
    name, end_s = f"run-{index}", start_s + length_s
    engine = engines(name, start_s, end_s, output_tokens=10)
    match kind:
        case "request id":
            parts = [replace(engine, key=name, trace_id=WORLD, parent_id=b"\x07" * 8)]
        case "gateway":
            parts = [replace(engine, parent_id=GATEWAY.span_id)]
        case "batch":
            parts = [replace(engine, key=name, span_id=bytes([k + 1]) * 8, output_tokens=5) for k in range(2)]
        case _:
            parts = [engine]
    client = clients(name, start_s - 0.01, end_s + 0.01, output_tokens=10)
    return [client] * copies[0] + parts * copies[1]


def completed(ledger: Ledger) -> int:
    return sum(account.completed for account in ledger.snapshot(0).accounts.values())


@settings(max_examples=200)
@given(REQUESTS, st.integers(0, 2**32))
def test_whatever_is_lost_repeated_or_out_of_order_every_request_is_counted_once(
    rows: list[tuple[str, int, int, tuple[int, int]]], seed: int
) -> None:
    spans = [span for index, row in enumerate(rows) for span in spans_of(index, *row)]
    Random(seed).shuffle(spans)
    ledger = Ledger([GPU])
    for span in spans:
        ledger.add_span(span, 100 * NS_PER_S)
    ledger.commit(10_000 * NS_PER_S)
    snapshot = ledger.snapshot(0)
    assert completed(ledger) == len(rows)
    assert sum(account.output_tokens for account in snapshot.accounts.values()) == 10 * len(rows)
    assert snapshot.merged == sum(copies[0] > 0 < copies[1] for *_, copies in rows)


@settings(max_examples=60)
@given(REQUESTS, st.integers(0, 2**32))
def test_a_request_is_counted_once_however_late_its_other_spans_are(
    rows: list[tuple[str, int, int, tuple[int, int]]], seed: int
) -> None:
    random, arrivals = Random(seed), []
    for index, row in enumerate(rows):
        spans = spans_of(index, *row)
        random.shuffle(spans)
        delays_s = [random.uniform(0, 5), *(random.uniform(5, 15) for _ in spans[1:])]
        arrivals += [
            (span.end_ns + round(delay_s * NS_PER_S), span) for span, delay_s in zip(spans, delays_s, strict=True)
        ]
    arrivals.sort(key=lambda arrival: arrival[0])
    ledger = Ledger([GPU])
    for second in range(2, 50, 2):  # an engine without a queue: all but the last 6 s are committed
        now_ns = second * NS_PER_S
        ledger.add_energy([EnergySample(now_ns + 1, "gpu:0", 100.0 * second)])
        ledger.add_engine_sample({"t_ns": now_ns, "running": 0.0, "waiting": 0.0})
        while arrivals and arrivals[0][0] <= now_ns:
            ledger.add_span(arrivals.pop(0)[1], now_ns)
        ledger.commit(now_ns)
    assert completed(ledger) == len(rows)
    assert ledger.snapshot(0).open_requests == 0


WALL_NS = 1_790_000_000 * NS_PER_S
TGI_SIDES = {"engine": (True, False), "client": (False, True), "both": (True, True)}


def tgi_books(engine: bool, client: bool) -> Snapshot:
    """24 requests of 900 prompt tokens and 80 output tokens to TGI, one a second, at 300 W."""
    arrivals: list[tuple[int, bytes]] = []
    for index in range(24):
        start_ns = (2 + index) * NS_PER_S
        end_ns = start_ns + NS_PER_S - 10 * NS_PER_MS
        if engine:
            parts, request = tgi_request(span_ids(f"run-{index}"), WALL_NS + start_ns)
            arrivals += [(end_ns + NS_PER_S, parts), (end_ns + 2 * NS_PER_S, request)]
        if client:
            record = RequestRecord(
                index=index, workload="chat", scheduled_ns=start_ns, sent_ns=start_ns - 300_000,
                first_token_ns=start_ns + 200 * NS_PER_MS, last_token_ns=end_ns, finished_ns=end_ns, input_tokens=900,
                output_tokens=80,
            )  # fmt: skip
            arrivals.append((end_ns + NS_PER_S, export_records("run", "org/model", {}, [record], Anchor(WALL_NS, 0))))
    arrivals.sort(key=lambda arrival: arrival[0])
    ledger = Ledger([GPU], model="org/model")
    for tenth in range(64 * 10):
        now_ns = tenth * NS_PER_S // 10
        ledger.add_energy([EnergySample(now_ns + 1, "gpu:0", 30.0 * tenth)])
        if tenth % 10:
            continue
        running = 2 * NS_PER_S <= now_ns < 26 * NS_PER_S
        ended = min(max(tenth // 10 - 2, 0), 24)  # TGI counts tokens when their request ends
        ledger.add_engine_sample({"t_ns": now_ns, "running": float(running), "generation_tokens": 80.0 * ended})
        while arrivals and arrivals[0][0] <= now_ns:
            parsed = parse_spans(arrivals.pop(0)[1])
            ledger.add_first_tokens((trace_id, t_ns - WALL_NS) for trace_id, t_ns in parsed.first_tokens.items())
            for span in parsed.spans:
                ledger.add_span(span.moved(lambda t_ns: t_ns - WALL_NS), now_ns)
        ledger.commit(now_ns)
    return ledger.snapshot(now_ns)


@pytest.mark.parametrize("sides", TGI_SIDES)
def test_tgis_requests_are_counted_once_with_or_without_their_clients_spans(sides: str) -> None:
    snapshot = tgi_books(*TGI_SIDES[sides])
    workload = "unlabelled" if sides == "engine" else "chat"
    account = snapshot.accounts["org/model", workload]
    assert (account.completed, account.output_tokens, snapshot.merged) == (24, 1920, 24 if sides == "both" else 0)
    assert (account.input_tokens, account.without_input_tokens) == ((0, 24) if sides == "engine" else (21_600, 0))
    assert account.ttft.sum / sum(account.ttft.counts) == pytest.approx(0.2, abs=0.001)
    joules = (account.prefill_mj + account.decode_mj) / 1000
    assert joules / account.output_tokens == pytest.approx(300 * 24 * 0.99 / 1920, rel=0.02)
    assert sum(other.completed for other in snapshot.accounts.values()) == 24


@pytest.mark.parametrize("late_side", ["client", "engine"])
def test_the_side_that_comes_after_its_request_was_closed_is_no_second_request(late_side: str) -> None:
    sides = {"client": clients("a", end_s=20.2), "engine": engines("a", end_s=20.1)}
    late = sides.pop(late_side)
    (early,) = sides.values()
    join = SpanJoin({})
    join.remember((early,))
    assert join.add(late) == join.add(early) == "duplicate"
    assert join.add(replace(late, start_ns=early.end_ns, end_ns=early.end_ns + 1)) == "duplicate"
    assert join.add(replace(late, start_ns=early.end_ns + 1, end_ns=early.end_ns + 2)) == "new"
    assert join.add(clients("b", trace_id=early.trace_id)) == ("new" if late_side == "engine" else "duplicate")


def test_a_span_of_a_closed_request_is_no_part_of_an_open_one_with_its_id() -> None:
    join = SpanJoin({})
    closed, reopened = engines("a", 10, 20, key="probe"), engines("b", 19, 25, key="probe")
    join.close(join.open(closed).request.key)
    join.open(reopened)
    assert join.add(closed) == "duplicate"
    assert join.add(engines("c", 18, 24, key="probe")) == "added"


def test_a_late_span_is_known_by_its_trace_though_its_id_was_another_requests_before() -> None:
    join = SpanJoin({})
    for closed in (engines("b", 1, 2, key="probe"), clients("a", 10, 20)):
        join.close(join.open(closed).request.key)
    assert join.add(engines("a", 10, 20, key="probe")) == "duplicate"


def test_a_closed_request_lasts_from_its_first_part_to_its_last() -> None:
    join = SpanJoin({})
    join.remember((engines("a", 10, 12, key="x"), engines("b", 11, 20, key="x")))
    times_s = ((9.9, "new"), (10, "duplicate"), (20, "duplicate"), (20.1, "new"))
    assert [join.add(engines("c", at_s, at_s, key="x")) for at_s, _ in times_s] == [outcome for _, outcome in times_s]


def test_a_span_that_waits_in_a_trace_is_still_there_when_another_of_it_has_ended() -> None:
    entries: dict[str, OpenRequest] = {}
    join = SpanJoin(entries)
    first, second = engines("a", 10, 11, key="rid-1", span_id=b"1" * 8), engines("a", 12, 20, key="rid-2")
    join.open(first)
    join.open(second)
    join.close("rid-1")
    assert join.add(clients("a", 12, 20)) == "merged"
    join.close("rid-2")
    assert not entries and not join._waiting


@pytest.mark.parametrize(("engine", "client", "model"), [("served", "asked", "served"), (None, "asked", "asked")])
def test_the_model_is_the_one_that_the_engine_serves(engine: str | None, client: str, model: str) -> None:
    assert joined([engines("a", model=engine), clients("a", model=client)]).model == model


def test_after_energy_was_committed_to_a_request_its_other_side_changes_nothing() -> None:
    entries: dict[str, OpenRequest] = {}
    join = SpanJoin(entries)
    join.open(engines("a"))
    (entry,) = entries.values()
    entry.charged = True
    assert join.add(clients("a")) == "duplicate"
    assert entry.request == engines("a")


def test_a_request_that_energy_was_committed_to_is_not_taken_apart() -> None:
    entries: dict[str, OpenRequest] = {}
    join = SpanJoin(entries)
    join.open(clients("a", trace_id=WORLD))
    assert join.add(engines("b", trace_id=WORLD, parent_id=b"\x07" * 8)) == "merged"
    next(iter(entries.values())).charged = True
    assert join.add(clients("b", trace_id=WORLD)) == "new"
    assert [len(entry.parts) for entry in entries.values()] == [2]


def test_a_sum_begins_and_ends_with_its_first_and_last_part() -> None:
    parts = [engines("a", 10, 20, key="x"), engines("b", 12, 22, key="x"), engines("c", 11, 15, key="x", ok=False)]
    request = joined(parts)
    assert (request.start_ns, request.prefill_ns, request.end_ns) == (10 * NS_PER_S, 10 * NS_PER_S, 22 * NS_PER_S)
    assert (request.first_token_ns, request.ok) == (11 * NS_PER_S, False)
    assert joined(reversed(parts)).first_token_ns == 11 * NS_PER_S


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("MAX_ENDED", 50), ("MAX_SHARED", 5), ("MAX_PARTS", 4)):
        monkeypatch.setattr(span_join, name, limit)
    entries: dict[str, OpenRequest] = {}
    join = SpanJoin(entries)
    for k in range(100):
        trace_id = bytes([k // 2 + 1]) * 16
        for span in (clients(f"run-{k}", trace_id=trace_id), engines(f"run-{k}", trace_id=trace_id)):
            if join.add(span) == "new":
                join.open(span)
    outcomes = [join.add(engines(f"part {k}", key="run-0")) for k in range(10)]
    assert outcomes.count("overflow") > 0 and max(len(entry.parts) for entry in entries.values()) == 4
    for key in list(entries):
        join.close(key)
    assert (len(join._ended), len(join._shared)) == (50, 5)
    assert not join._by_request and not join._by_place and not join._waiting


def test_many_spans_of_one_name_are_as_quick_as_of_many() -> None:
    assert len(requests([engines(f"{k}", k, k + 0.5, key="same") for k in range(3000)])) == 3000
    assert len(requests([engines(f"{k}", trace_id=WORLD, parent_id=b"") for k in range(3000)])) == 3000
    assert len(requests([clients(f"{k}", trace_id=WORLD, span_id=WORLD[:8]) for k in range(3000)])) == 3000
