"""Disaggregated requests in random order, their spans late or lost: each is billed once, and each engine adds up."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.energy.series import EnergyDomain
from loadgen.results.bill import bill_of, bill_table
from loadgen.results.ledger_lines import SettledRequest
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.sidecar.ledger import Ledger
from loadgen.sidecar.settlement import Settlement
from loadgen.sidecar.span_router import SpanRouter
from loadgen.sidecar.watched_engine import WatchedEngine
from loadgen.telemetry.otlp_parse import RequestSpan, SpanLabels
from loadgen.units import NS_PER_S, ns_from_s
from sidecar.test_ledger import LATENESS, looks, power, span
from sidecar.test_settlement import unix_ns
from sidecar.test_span_router import D, P


class Fleet:
    """A prefill and a decode engine, which draw 400 and 150 W, without sockets and threads."""

    def __init__(self, folder: Path | None, labels: tuple[str, ...] = ()) -> None:
        self.engines = []
        for engine in (P, D):
            domain = EnergyDomain(name=f"gpu:0@{engine.name}", source="simulated")
            ledger = Ledger([domain], lateness=LATENESS, labels=labels, role=engine.role)
            self.engines.append(WatchedEngine(ledger, [domain], engine.url, engine))
        self.router = SpanRouter([P, D], ns_from_s(LATENESS.blind_s) // 2)
        self.settlement = Settlement(self.engines, self.router, [P, D], folder=folder, wait_s=LATENESS.max_s)
        self.at_s, self.unplaced, self.counter_mj = 0, 0, [0, 0]
        self.joules = [0.0, 0.0]

    def live(self, to_s: int, spans: list[RequestSpan], *, last: bool = False) -> None:
        """Measure up to an instant, take the spans that came meanwhile, commit, and write. Every engine adds up."""
        now_ns = ns_from_s(to_s)
        for number, (engine, watts) in enumerate(zip(self.engines, (400.0, 150.0), strict=True)):
            domain = engine.domains[0].name
            self.joules[number] = power(engine.ledger, self.at_s, to_s, watts, self.joules[number], domain)
            looks(engine.ledger, self.at_s, to_s, 1, self.at_s * 30.0, 30)
        routed = [one for sent in spans for one in self.router.add(sent, now_ns)]
        decided, unplaced = self.router.due(now_ns, lambda number: self.engines[number].ledger.engine_samples)
        for number, sent, copy in (*routed, *decided):
            self.engines[number].ledger.add_span(sent, now_ns, copy=copy)
        self.unplaced += len(unplaced)
        for engine in self.engines:
            engine.ledger.commit(now_ns)
        snapshots = [engine.ledger.snapshot(now_ns) for engine in self.engines]  # each checks its conservation
        self.settlement.take(snapshots, unix_ns, now_ns, last=last)
        asyncio.run(self.settlement.write())
        self.counter_mj = [snapshot.domains[0].committed_mj for snapshot in snapshots]
        self.at_s = to_s


class Sent(NamedTuple):
    begin_s: float
    prefill_s: float
    decode_s: float
    late_s: tuple[float | None, float | None, float | None]
    """Lateness of the spans of the prefill engine, the decode engine and the client; None: it never comes."""


LATE = st.one_of(st.floats(0, 8), st.none())
REQUESTS = st.lists(
    st.builds(Sent, st.floats(0, 40), st.floats(0.1, 2), st.floats(0.2, 12), st.tuples(LATE, LATE, LATE)), max_size=12
)


def arrivals(number: int, sent: Sent) -> list[tuple[float, RequestSpan]]:
    first_s = sent.begin_s + sent.prefill_s
    end_s = first_s + 0.1 + sent.decode_s
    spans = [
        (first_s, span(f"r{number}", sent.begin_s, first_s, 1, engine_names=("p",), workload=None)),
        (end_s, span(f"r{number}", first_s + 0.1, end_s, 50, engine_names=("d",), workload=None)),
        (end_s, span(f"r{number}", sent.begin_s - 0.01, end_s + 0.01, 50, client=True, workload="chat")),
    ]
    return [(end + late_s, one) for (end, one), late_s in zip(spans, sent.late_s, strict=True) if late_s is not None]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS)
def test_in_every_interleaving_a_request_is_billed_once_and_each_engines_lines_are_its_counter(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Sent]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    fleet = Fleet(folder)
    sent = [one for number, request in enumerate(requests) for one in arrivals(number, request)]
    for turn in range(1, 22):
        fleet.live(5 * turn, [one for at_s, one in sorted(sent, key=lambda pair: pair[0]) if -5 <= at_s - 5 * turn < 0])
    fleet.live(110, [], last=True)
    fleet.settlement.close()
    lines: list[SettledRequest] = [
        line for path in ledger_files(folder) for batch, _ in LedgerFile(path).batches() for line in batch.requests
    ]
    parts = [(line.id, engine) for line in lines for engine in (line.engine, line.prefill_engine) if engine]
    assert len(parts) == len(set(parts)), "no part of a request is in two lines"
    assert all(line.decode_mj == 0 for line in lines if line.engine == "p"), "a prefill alone"
    assert all(line.prefill_mj == 0 for line in lines if line.engine == "d" and line.prefill_engine is None)
    billed = bill_of(folder, ("engine",))
    assert billed.unsettled_mj == 0
    energy_mj = {"p": 0, "d": 0}
    for row in bill_table(billed).rows():
        if row["account"] != "unsettled":
            energy_mj[row["engine"]] += row["energy_mj"]
    assert list(energy_mj.values()) == fleet.counter_mj


def test_a_request_whose_spans_come_in_time_is_one_line_with_its_workload() -> None:
    fleet = Fleet(None)
    sent = [one for number in range(4) for one in arrivals(number, Sent(5 + 3 * number, 0.5, 2, (0.5, 0.5, 0.5)))]
    for turn in range(1, 9):
        fleet.live(5 * turn, [one for at_s, one in sent if -5 <= at_s - 5 * turn < 0])
    assert fleet.unplaced == 0
    for number in range(4):
        line = fleet.settlement._lookup.find(f"r{number}")
        assert line is not None
        assert (line.engine, line.prefill_engine, line.workload, line.output_tokens) == ("d", "p", "chat", 50)
        assert line.prefill_mj > 0 and line.decode_mj > 0
        assert line.begin_unix_ns == unix_ns(ns_from_s(5 + 3 * number))
    prefill, decode = (engine.ledger.snapshot(40 * NS_PER_S) for engine in fleet.engines)
    assert sum(account.completed for account in prefill.accounts.values()) == 0
    assert prefill.accounts["m", "chat"].prefill_mj > 0
    assert decode.accounts["m", "chat"].completed == 4


def test_a_line_of_two_engines_has_the_labels_that_its_account_has(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, labels=("tenant",))
    trace = bytes(range(16))
    for engine in fleet.engines:
        engine.ledger.add_labels([SpanLabels(trace, ns_from_s(1), ns_from_s(4), {"tenant": "a"})])
    prefill = span("r", 1, 2, 1, engine_names=("p",), trace_id=trace)
    decode = span("r", 2.1, 4, None, engine_names=("d",), trace_id=trace)  # without tokens it is never charged
    fleet.live(20, [prefill, decode])
    fleet.live(40, [], last=True)
    request = fleet.settlement._lookup.find("r")
    (account,) = fleet.engines[1].ledger.snapshot(ns_from_s(40)).accounts.values()
    assert request and not request.whole and request.prefill_engine == "p"
    assert request.labels == {"tenant": "a"} and list(account.by_labels) == [("a",)]
