"""The live ledger: laws that hold whatever arrives, and its numbers where the true ones are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.attribution.cost_model import Coefficients
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries
from loadgen.sidecar import ledger as books
from loadgen.sidecar import span_join
from loadgen.sidecar.accounts import MAX_LABELS, Account
from loadgen.sidecar.clock_sync import ClockSync
from loadgen.sidecar.ledger import Ledger, Snapshot
from loadgen.sidecar.live_fit import LiveFit
from loadgen.sidecar.watermark import EDGE_NS, AllowedLateness
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_MS, NS_PER_S, ns_from_s, s_from_ns

GPU = EnergyDomain(name="gpu:0", source="simulated", uuid="GPU-0")
OTHER = EnergyDomain(name="gpu:1", source="simulated", uuid="GPU-1")
INNER = EnergyDomain(name="dram:0", source="simulated", within="gpu:0")
LATENESS = AllowedLateness(min_s=1.0, blind_s=5.0, max_s=60.0)
NO_FIT = Coefficients(step_j=1, prefill_token_j=0, prefill_context_j=0, decode_token_j=0, decode_context_j=0,
                      idle_w=55.0, r_squared=None)  # fmt: skip


def span(key: str, start_s: float, end_s: float, output: int | None = 50, **facts: object) -> RequestSpan:
    start_ns, end_ns = ns_from_s(start_s), ns_from_s(end_s)
    known: dict[str, object] = {
        "key": key,
        "request_id": key,
        "client": False,
        "start_ns": start_ns,
        "prefill_ns": start_ns,
        "first_token_ns": start_ns + (end_ns - start_ns) // 10,
        "end_ns": end_ns,
        "input_tokens": 100,
        "output_tokens": output,
        "cached_tokens": None,
        "model": "m",
        "workload": "chat",
        "ok": True,
    }
    return RequestSpan(**known | facts)  # type: ignore[arg-type]


def power(
    ledger: Ledger, from_s: float, to_s: float, watts: float, joules: float = 0.0, domain: str = "gpu:0"
) -> float:
    """The counter moving ten times a second; gives where it ends."""
    for tick in range(round(from_s * 10), round(to_s * 10)):
        joules += watts / 10
        ledger.add_energy([EnergySample((tick + 1) * 100 * NS_PER_MS, domain, joules)])
    return joules


def looks(ledger: Ledger, from_s: float, to_s: float, running: int, tokens: float, per_s: float) -> float:
    """The engine's page, looked at every half second."""
    for half in range(round(from_s * 2), round(to_s * 2)):
        values = {"running": float(running), "waiting": 0.0, "generation_tokens": tokens}
        ledger.add_engine_sample({"t_ns": half * NS_PER_S // 2, **values})
        tokens += per_s / 2
    return tokens


def attributed_mj(snapshot: Snapshot) -> int:
    return sum(account.prefill_mj + account.decode_mj for account in snapshot.accounts.values())


def counters(account: Account) -> tuple[int, ...]:
    return (account.prefill_mj, account.decode_mj, account.input_tokens, account.output_tokens, account.completed,
            account.failed)  # fmt: skip


def committed_mj(snapshot: Snapshot) -> int:
    return sum(domain.committed_mj for domain in snapshot.domains)


def test_energy_waits_for_its_requests_and_is_then_theirs() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 10, 30, 500.0)
    looks(ledger, 10, 30, running=1, tokens=0, per_s=5)
    assert not ledger.commit(ns_from_s(14.5)), "someone is in there that nobody told of"
    ledger.add_span(span("a", 10, 20, output=50, first_token_ns=ns_from_s(10.2)), ns_from_s(20.1))
    assert ledger.commit(ns_from_s(22))
    snapshot = ledger.snapshot(ns_from_s(22))
    assert committed_mj(snapshot) == pytest.approx(500_000 * 10, rel=0.02)
    assert attributed_mj(snapshot) == pytest.approx(committed_mj(snapshot), rel=0.02)


def test_what_ran_before_the_first_energy_is_unknown_and_settles_without_waiting_for_more() -> None:
    """The meter of the engine answers at 20 s."""
    ledger = Ledger([], lateness=LATENESS)
    looks(ledger, 0, 40, running=0, tokens=0, per_s=0)
    ledger.add_span(span("before", 10, 12), ns_from_s(12))
    ledger.commit(ns_from_s(15))
    assert [(e.entry.request.key, e.entry.charged) for e in ledger.settled] == [("before", False)]
    ledger.add_span(span("across", 18, 26), ns_from_s(26))
    ledger.take_domains([GPU])
    power(ledger, 20, 40, 300.0)
    ledger.add_span(span("after", 28, 30), ns_from_s(30))
    ledger.commit(ns_from_s(40))
    snapshot = ledger.snapshot(ns_from_s(40))
    settled = {e.entry.request.key: e.entry for e in ledger.settled}
    assert {key: (entry.charged, entry.whole) for key, entry in settled.items()} == {
        "across": (True, False), "after": (True, True)
    }  # fmt: skip
    assert snapshot.partial == 1
    assert committed_mj(snapshot) == attributed_mj(snapshot) + snapshot.idle_mj + snapshot.unattributed_mj > 0


@given(
    comes_s=st.integers(1, 30),
    requests=st.lists(st.tuples(st.integers(0, 36), st.integers(1, 10), st.integers(0, 3)), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_a_request_has_joules_if_and_only_if_the_meter_was_there_all_its_time(
    comes_s: int, requests: list[tuple[int, int, int]]
) -> None:
    """Each request begins, lasts, and is reported late by some seconds; the meter comes some time."""
    ledger, entries = Ledger([], lateness=AllowedLateness(min_s=1.0, blind_s=20.0, max_s=60.0)), {}
    joules = tokens = 0.0
    for now_s in range(1, 75):
        running = sum(start_s <= now_s - 1 < start_s + lasts_s for start_s, lasts_s, _ in requests)
        tokens = looks(ledger, now_s - 1, now_s, running, tokens, per_s=50.0 * running)
        for number, (start_s, lasts_s, late_s) in enumerate(requests):
            if start_s + lasts_s + late_s == now_s:
                ledger.add_span(span(f"r{number}", start_s, start_s + lasts_s), ns_from_s(now_s))
        if now_s == comes_s:
            ledger.take_domains([GPU])
        if now_s > comes_s:
            joules = power(ledger, now_s - 1, now_s, 300.0, joules)
        ledger.commit(ns_from_s(now_s))
        entries |= {settled.entry.request.key: settled.entry for settled in ledger.settled}
        snapshot = ledger.snapshot(ns_from_s(now_s))
        assert committed_mj(snapshot) == attributed_mj(snapshot) + snapshot.idle_mj + snapshot.unattributed_mj
    first_ns = ledger.measured_since_ns
    assert first_ns is not None
    for entry in entries.values():
        assert (entry.charged and entry.whole) == (entry.request.start_ns >= first_ns)
    assert snapshot.dropped["late"] + len(entries) == len(requests)


def test_nobody_there_is_idle() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 20, 100.0)
    looks(ledger, 0, 20, running=0, tokens=7, per_s=0)
    assert ledger.commit(ns_from_s(20))
    snapshot = ledger.snapshot(ns_from_s(20))
    assert snapshot.idle_mj == committed_mj(snapshot) > 0
    assert snapshot.unattributed_mj == 0


def test_requests_that_send_no_spans_are_unattributed_not_idle() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 20, 400.0)
    looks(ledger, 0, 20, running=3, tokens=0, per_s=100)
    assert ledger.commit(ns_from_s(20)), "given up after blind_s"
    snapshot = ledger.snapshot(ns_from_s(20))
    assert snapshot.unattributed_mj == committed_mj(snapshot) > 0
    assert snapshot.coverage == 0.0


def test_half_the_tokens_are_others_so_about_half_the_energy_is() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 60, 400.0)
    looks(ledger, 0, 60, running=2, tokens=0, per_s=200)
    for second in range(58):
        ledger.add_span(span(f"r{second}", second, second + 1, output=100), ns_from_s(second + 1))
    ledger.commit(ns_from_s(60))
    snapshot = ledger.snapshot(ns_from_s(60))
    assert snapshot.coverage == pytest.approx(0.5, abs=0.02)
    assert snapshot.foreign_tokens == pytest.approx(100 * 50, rel=0.1), "in the fifty seconds committed"
    assert attributed_mj(snapshot) / committed_mj(snapshot) == pytest.approx(0.5, abs=0.05)


def test_an_engine_that_restarts_makes_no_negative_tokens() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 20, 400.0)
    tokens = looks(ledger, 0, 8, running=1, tokens=5000, per_s=100)
    assert tokens > 5000
    looks(ledger, 10, 20, running=1, tokens=0, per_s=100)
    ledger.add_span(span("a", 0, 20, output=1800), ns_from_s(20))
    ledger.commit(ns_from_s(22))
    coverage = ledger.snapshot(ns_from_s(22)).coverage
    assert coverage is not None and 0.8 < coverage <= 1.0


def test_what_flows_around_a_counter_reset_is_in_no_account() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    joules = power(ledger, 0, 10, 100.0)
    ledger.add_energy([EnergySample(ns_from_s(15), "gpu:0", joules, gap=True)])  # 5 s unknown, same joules
    power(ledger, 15, 25, 100.0, joules)
    ledger.add_span(span("a", 8, 18), ns_from_s(18))
    ledger.commit(ns_from_s(60))
    snapshot = ledger.snapshot(ns_from_s(60))
    assert committed_mj(snapshot) == pytest.approx(100_000 * 20, rel=0.02)
    assert attributed_mj(snapshot) == pytest.approx(100_000 * 5, rel=0.05)
    assert snapshot.idle_mj + attributed_mj(snapshot) + snapshot.unattributed_mj == committed_mj(snapshot)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (span("a", 10, 20), "duplicate"),
        (span("b", 1, 2), "late"),
        (span("c", 10, 99), "future"),
    ],
)
def test_spans_that_take_no_part_are_counted_with_a_reason(second: RequestSpan, reason: str) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.commit(ns_from_s(14))
    ledger.add_span(span("a", 10, 20), ns_from_s(20))
    ledger.add_span(second, ns_from_s(21))
    snapshot = ledger.snapshot(ns_from_s(21))
    assert {name: count for name, count in snapshot.dropped.items() if count} == {reason: 1}


def test_the_clients_and_the_engines_span_of_one_request_count_once() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 45, 100.0)
    ledger.add_span(span("a", 10.1, 19.9, workload=None), ns_from_s(20))
    ledger.add_span(span("a", 10, 20, client=True, workload="code", model=None), ns_from_s(20))
    ledger.commit(ns_from_s(45))
    snapshot = ledger.snapshot(ns_from_s(45))
    assert snapshot.merged == 1
    completed = {label: account.completed for label, account in snapshot.accounts.items()}
    assert completed == {("m", "unlabelled"): 0, ("m", "code"): 1}  # the first was shown before the client told


def test_a_closed_request_stays_known() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 45, 100.0)
    ledger.add_span(span("a", 10, 20), ns_from_s(20))
    ledger.commit(ns_from_s(45))
    ledger.add_span(span("a", 10, 20), ns_from_s(45))
    assert ledger.snapshot(ns_from_s(45)).dropped["duplicate"] == 1
    ledger.add_span(span("a", 42, 44), ns_from_s(45))
    assert ledger.snapshot(ns_from_s(45)).open_requests == 1, "its id is used again, for another request"


def test_whatever_arrives_memory_and_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_OPEN", 200)
    monkeypatch.setattr(span_join, "MAX_ENDED", 300)
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    for turn in range(5):
        for k in range(300):
            ledger.add_span(span(f"{turn}-{k}", 20 + turn, 21 + turn, workload=f"w{turn}-{k}"), ns_from_s(27))
    assert ledger.snapshot(ns_from_s(27)).dropped["overflow"] == 5 * 300 - 200
    ledger.commit(ns_from_s(31))
    snapshot = ledger.snapshot(ns_from_s(31))
    assert len(snapshot.accounts) == MAX_LABELS + 1
    assert snapshot.accounts["other", "other"].completed == 200 - MAX_LABELS
    assert len(ledger._join._ended) <= 300


def test_energy_by_label_is_conserved_and_bounded() -> None:
    ledger = Ledger([GPU], lateness=LATENESS, labels=["tenant"], label_values=2)
    power(ledger, 0, 60, 100.0)
    for k, tenant in enumerate(["a", "b", "c", None, "d"]):
        labels = {} if tenant is None else {"tenant": tenant, "unasked": "x"}
        ledger.add_span(span(f"r{k}", 10 + k, 14 + k, labels=labels), ns_from_s(20))
    ledger.commit(ns_from_s(60))
    snapshot = ledger.snapshot(ns_from_s(60))
    account = snapshot.accounts["m", "chat"]
    assert snapshot.labels == ("tenant",)
    assert {row: totals.completed for row, totals in account.by_labels.items()} == {
        ("a",): 1, ("b",): 1, ("other",): 2, ("",): 1,
    }  # fmt: skip
    by_label_mj = sum(totals.prefill_mj + totals.decode_mj for totals in account.by_labels.values())
    assert by_label_mj == account.prefill_mj + account.decode_mj > 0


def test_without_a_meter_requests_still_end_and_cost_nothing_known() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_span(span("a", 10, 20), ns_from_s(20))
    ledger.commit(ns_from_s(200))
    account = ledger.snapshot(ns_from_s(200)).accounts["m", "chat"]
    assert (account.completed, sum(account.energy.counts)) == (1, 0)


def test_a_domain_within_another_is_not_added() -> None:
    ledger = Ledger([GPU, INNER], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    power(ledger, 0, 30, 100.0, domain="dram:0")
    ledger.commit(ns_from_s(30))
    assert [domain.domain.name for domain in ledger.snapshot(ns_from_s(30)).domains] == ["gpu:0"]


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 30),  # key: some twice
        st.floats(0, 55),
        st.floats(0, 20),
        st.one_of(st.none(), st.integers(0, 500)),
        st.floats(0, 15),  # how late it is told
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(ARRIVALS, st.lists(st.floats(0, 900), min_size=6, max_size=6), st.integers(0, 3))
def test_every_millijoule_is_in_one_account_and_counters_never_go_down(
    arrivals: list[tuple[int, float, float, int | None, float, bool]], watts: list[float], running: int
) -> None:
    ledger = Ledger([GPU, OTHER], lateness=LATENESS)
    told = sorted(
        ((start + length + late, k, start, length, output, ok) for k, start, length, output, late, ok in arrivals),
        key=lambda row: row[0],
    )
    joules = [0.0, 0.0]
    before: list[int] = []
    for turn, level in enumerate(watts):
        joules[0] = power(ledger, turn * 10, turn * 10 + 10, level, joules[0])
        joules[1] = power(ledger, turn * 10, turn * 10 + 10, level / 3, joules[1], "gpu:1")
        looks(ledger, turn * 10, turn * 10 + 10, running, turn * 300.0, 30)
        for at, k, start, length, output, ok in told:
            if turn * 10 <= at < turn * 10 + 10:
                ledger.add_span(span(f"k{k}", start, start + length, output, ok=ok), ns_from_s(max(at, start + length)))
        ledger.commit(ns_from_s(turn * 10 + 10))
        snapshot = ledger.snapshot(ns_from_s(turn * 10 + 10))  # raises when the accounts do not add up
        now = [
            snapshot.idle_mj,
            snapshot.unattributed_mj,
            *(domain.committed_mj for domain in snapshot.domains),
            *(value for label in sorted(snapshot.accounts) for value in counters(snapshot.accounts[label])),
        ]
        assert all(a <= b for a, b in zip(before, now, strict=False))
        before = now
        pending = sum(domain.pending_mj for domain in snapshot.domains)
        assert committed_mj(snapshot) + pending == pytest.approx(sum(joules) * 1000 - (watts[0] * 100 * 4 / 3), abs=3)


def test_wall_clock_instants_survive_a_step_of_the_wall_clock() -> None:
    clock = ClockSync(Anchor(wall_ns=1_000 * NS_PER_S, monotonic_ns=0))
    clock.observe(Anchor(wall_ns=1_010 * NS_PER_S + 5, monotonic_ns=10 * NS_PER_S))
    clock.observe(Anchor(wall_ns=5_020 * NS_PER_S, monotonic_ns=20 * NS_PER_S))  # stepped an hour ahead
    assert clock.monotonic_ns(1_005 * NS_PER_S) == pytest.approx(5 * NS_PER_S, abs=10)
    assert clock.monotonic_ns(5_025 * NS_PER_S) == 25 * NS_PER_S
    clock.observe(Anchor(wall_ns=1_030 * NS_PER_S, monotonic_ns=30 * NS_PER_S))  # and back
    assert clock.monotonic_ns(1_031 * NS_PER_S) == 31 * NS_PER_S


def test_a_portion_is_committed_from_its_shortest_duration_on() -> None:
    for duration_s, committed in ((1.9, False), (2.0, True)):
        ledger = Ledger([GPU], lateness=LATENESS)
        ledger.add_engine_sample({"t_ns": 0, "running": 0.0})
        ends_s = (20, 20 + duration_s)
        ledger.add_energy([EnergySample(ns_from_s(t_s), "gpu:0", 10 * k + 1.0) for k, t_s in enumerate(ends_s)])
        assert ledger.commit(ns_from_s(60)) is committed
        (energy,) = ledger.snapshot(ns_from_s(60)).domains
        assert (energy.committed_mj, energy.pending_mj) == ((10_000, 0) if committed else (0, 10_000))


@pytest.mark.parametrize(("after_s", "looked"), [(0.5, False), (1.9, False), (2.0, True)])
def test_requests_are_looked_at_once_the_shortest_portion_can_have_ended(
    monkeypatch: pytest.MonkeyPatch, after_s: float, looked: bool
) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 10, 30, 500.0)
    looks(ledger, 10, 30, running=0, tokens=0, per_s=0)
    assert ledger.commit(ns_from_s(25))
    committed_s = s_from_ns(ledger.committed_ns)
    counts: list[int] = []
    monkeypatch.setattr(books, "complete_until", lambda samples, _: counts.append(len(samples)) or 0)
    assert not ledger.commit(ns_from_s(committed_s + after_s + LATENESS.min_s))
    assert bool(counts) is looked


def test_a_portion_lasts_from_the_earliest_start_of_a_domain_to_the_latest_end() -> None:
    ledger = Ledger([GPU, OTHER], lateness=LATENESS)
    ledger.add_energy([EnergySample(0, "gpu:0", 0.0), EnergySample(NS_PER_S, "gpu:0", 10.0)])
    ledger.add_energy([EnergySample(3 * NS_PER_S // 2, "gpu:1", 0.0), EnergySample(2 * NS_PER_S, "gpu:1", 5.0)])
    assert ledger.commit(ns_from_s(60)), "2 s in all, though neither domain has as many"
    snapshot = ledger.snapshot(ns_from_s(60))
    assert [domain.committed_mj for domain in snapshot.domains] == [10_000, 5_000]
    assert snapshot.lag_s == 58.0


def test_before_the_first_commit_all_measured_time_lags_and_nothing_is_covered() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 1, 100.0)
    assert not ledger.commit(ns_from_s(60))
    snapshot = ledger.snapshot(ns_from_s(60))
    assert (snapshot.lag_s, snapshot.coverage, snapshot.foreign_tokens, snapshot.idle_mj) == (59.9, None, None, 0)
    assert Ledger([GPU]).snapshot(ns_from_s(60)).lag_s == 0.0, "nothing is measured"


def test_energy_after_the_watermark_is_pending() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.commit(ns_from_s(15))  # waits 5 s where no engine reports
    snapshot = ledger.snapshot(ns_from_s(15))
    (energy,) = snapshot.domains
    assert (energy.committed_mj, energy.pending_mj) == (990_000, 2_000_000)
    assert snapshot.lag_s == 5.0


@pytest.mark.parametrize(
    ("end_ns", "reason"),
    [
        (10 * NS_PER_S, "late"),
        (10 * NS_PER_S + 1, None),
        (17 * NS_PER_S, None),
        (17 * NS_PER_S + 1, "future"),
    ],
)
def test_a_span_is_taken_that_ends_after_the_watermark_and_not_in_the_future(end_ns: int, reason: str | None) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.commit(ns_from_s(15))
    ledger.add_span(span("a", 9, end_ns / NS_PER_S, end_ns=end_ns), 15 * NS_PER_S)
    snapshot = ledger.snapshot(15 * NS_PER_S)
    assert {name for name, count in snapshot.dropped.items() if count} == ({reason} if reason else set())
    assert (snapshot.open_requests, snapshot.partial) == ((0, 0) if reason else (1, 1))


def test_a_span_that_starts_at_the_watermark_is_whole() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.commit(ns_from_s(15))
    ledger.add_span(span("a", 10, 12), ns_from_s(15))
    assert ledger.snapshot(ns_from_s(15)).partial == 0


@pytest.mark.parametrize("client_arrives_at", [0, 1])
def test_a_merged_span_has_the_engines_times_and_counts_and_the_clients_workload(client_arrives_at: int) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    spans = [
        span("a", 10.1, 19.9, output=None, input_tokens=7, model="served", workload="engine"),
        span("a", 10, 20, client=True, output=50, input_tokens=9, model="asked", workload="chat", ok=False),
    ]
    if client_arrives_at == 0:
        spans.reverse()
    for each in spans:
        ledger.add_span(each, ns_from_s(20))
    request = ledger._open["a"].request
    assert (request.start_ns, request.end_ns) == (ns_from_s(10.1), ns_from_s(19.9))
    assert (request.input_tokens, request.output_tokens) == (9, 50)
    assert (request.model, request.workload, request.ok) == ("served", "chat", False)
    ledger.add_span(spans[1], ns_from_s(20))
    snapshot = ledger.snapshot(ns_from_s(20))
    assert snapshot.merged + snapshot.dropped["duplicate"] == 2


def test_a_span_is_not_merged_once_energy_was_committed_to_it() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.add_span(span("a", 2, 29), ns_from_s(29))
    ledger.commit(ns_from_s(90))
    ledger.add_span(span("a", 2, 29, client=True), ns_from_s(90))
    snapshot = ledger.snapshot(ns_from_s(90))
    assert (snapshot.merged, snapshot.dropped["duplicate"]) == (0, 1)


def test_the_fit_looks_back_a_minute_or_over_so_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    end_ns = 100 * NS_PER_S
    assert ledger._recent_requests(end_ns) == ([], end_ns - books.HISTORY_NS)
    ledger._closed.extend([span(str(second), second - 1, second) for second in (70, 80, 90)])
    monkeypatch.setattr(books, "FIT_REQUESTS", 3)
    assert ledger._recent_requests(end_ns)[1] == 40 * NS_PER_S
    monkeypatch.setattr(books, "FIT_REQUESTS", 2)
    requests, since_ns = ledger._recent_requests(end_ns)
    assert ([request.key for request in requests], since_ns) == (["90", "80"], 70 * NS_PER_S)


def test_closed_requests_energy_sums_to_what_was_committed_to_their_account() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 40, 300.0)
    for second in range(5, 25, 2):
        ledger.add_span(span(str(second), second, second + 3), ns_from_s(second + 3))
    ledger.commit(ns_from_s(90))
    account = ledger.snapshot(ns_from_s(90)).accounts["m", "chat"]
    assert account.prefill_mj > 0 and account.decode_mj > 0
    assert account.energy_mj == account.prefill_mj + account.decode_mj
    assert account.energy.sum == account.energy_mj / 1000
    assert sum(account.energy.counts) == account.completed == 10


def test_accounts_that_do_not_add_up_are_an_error() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.commit(ns_from_s(60))
    ledger._idle_mj += 1
    with pytest.raises(AssertionError, match="not conserved: 2990000 mJ committed, 2990001 mJ in accounts"):
        ledger.snapshot(ns_from_s(60))


def test_points_that_do_not_move_on_are_left_out() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_energy(
        [EnergySample(t_ns, "gpu:0", joules) for t_ns, joules in ((5, 1.0), (5, 9.0), (4, 9.0), (6, 2.0))]
    )
    assert [(point.t_ns, point.mj) for point in ledger._domains["gpu:0"].points] == [(5, 1000), (6, 2000)]


def test_only_the_history_of_the_fit_is_kept() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 300, 100.0)
    looks(ledger, 0, 300, running=0, tokens=0, per_s=0)
    ledger.add_span(span("a", 10, 20), ns_from_s(20))
    ledger.commit(ns_from_s(300))
    before_ns = ledger._watermark_ns - books.HISTORY_NS
    points = ledger._domains["gpu:0"].points
    assert points[0].t_ns < before_ns <= points[1].t_ns
    assert ledger._samples[0]["t_ns"] < before_ns <= ledger._samples[1]["t_ns"]
    assert not ledger._closed


@pytest.mark.parametrize(("end_ns", "kept"), [(235 * NS_PER_S - 1, 0), (235 * NS_PER_S, 1), (235 * NS_PER_S + 1, 1)])
def test_a_closed_request_is_kept_as_long_as_the_history_of_the_fit(end_ns: int, kept: int) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 300, 100.0)
    ledger.add_span(span("a", 234, 235, end_ns=end_ns), ns_from_s(236))
    ledger.commit(ns_from_s(300))
    assert ledger._watermark_ns == 295 * NS_PER_S
    assert len(ledger._closed) == kept


@pytest.mark.parametrize(
    ("queues", "unseen_s"),
    [([0, 0, 0], []), ([1, 0, 0], [[0, 1]]), ([0, 1, 0], [[0, 1], [1, 2]]), ([0, 0, 1], [[1, 2]])],
)
def test_an_interval_is_unseen_if_a_span_is_missing_at_either_end(queues: list[int], unseen_s: list[list[int]]) -> None:
    samples = [{"t_ns": t * NS_PER_S, "running": float(running)} for t, running in enumerate(queues)]
    assert (Ledger([GPU])._unseen([], samples) / NS_PER_S).tolist() == unseen_s


@pytest.mark.parametrize(
    ("tokens", "span_s", "unseen"),
    [(0, None, False), (1, None, True), (100, None, True), (100, (0, 1), False), (100, (0, 0.8), False)],
)
def test_an_interval_is_unseen_if_tokens_came_out_and_no_span_touches_it(
    tokens: int, span_s: tuple[float, float] | None, unseen: bool
) -> None:
    ledger = Ledger([GPU])
    if span_s is not None:
        ledger.add_span(span("a", *span_s), NS_PER_S)
    samples = [{"t_ns": 0, "generation_tokens": 7.0}, {"t_ns": NS_PER_S, "generation_tokens": 7.0 + tokens}]
    assert ledger._unseen([], samples).tolist() == ([[0, NS_PER_S]] if unseen else [])


def test_a_span_covers_only_the_intervals_that_it_touches() -> None:
    ledger = Ledger([GPU])
    ledger.add_span(span("a", 0, 0.5), NS_PER_S)
    ledger.add_span(span("b", 2.2, 2.8), 3 * NS_PER_S)
    samples = [{"t_ns": second * NS_PER_S, "generation_tokens": 9.0 * second} for second in range(5)]
    assert (ledger._unseen([], samples) / NS_PER_S).tolist() == [[1, 2], [3, 4]]


def test_a_span_without_tokens_is_unseen_from_its_start_to_its_end() -> None:
    silent, telling = span("a", 1, 3, output=None), span("b", 2, 4)
    assert (Ledger([GPU])._unseen([silent, telling], []) / NS_PER_S).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(("points", "fits"), [(2, 0), (3, 1)])
def test_a_fit_takes_three_points(points: int, fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(books, "fit_live", lambda series, steps: LiveFit(made.append(series) or NO_FIT, series, steps))
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, points / 10, 100.0)
    ledger._fit("gpu:0", NS_PER_S, NS_PER_S)
    assert ledger._fitted is None, "without r squared it decides the idle power alone"
    assert len(made) == fits
    assert ledger._idle_w == (55.0 if fits else None)


def test_the_fit_is_made_again_when_the_history_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Coefficients(step_j=1, prefill_token_j=0, prefill_context_j=0, decode_token_j=0, decode_context_j=0,
                       idle_w=None, r_squared=0.5)  # fmt: skip
    fits = []
    monkeypatch.setattr(books, "fit_live", lambda series, steps: LiveFit(fits.append(series) or fit, series, steps))
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)  # the oldest point is at 0.1 s
    made = []
    for now_s in (10.1, 20.0, 20.1, 40.0, 40.1):
        ledger._fit("gpu:0", ns_from_s(min(now_s, 20.1)), ns_from_s(now_s))
        made.append(len(fits))
    assert made == [1, 1, 2, 2, 3]


def test_coverage_is_that_of_the_last_five_minutes_committed() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 420, 100.0)
    looks(ledger, 0, 420, running=1, tokens=0, per_s=10)
    kept = []
    for now_s in (100, 300, 395, 400, 403):  # committed up to five seconds before
        ledger.commit(ns_from_s(now_s))
        kept.append(len(ledger._coverage))
    assert kept == [1, 2, 3, 4, 4], "the first is exactly five minutes old, then older"


def test_a_point_after_the_last_one_committed_is_never_forgotten() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_energy([EnergySample(t_ns, "gpu:0", 0.0) for t_ns in (1, 2)])
    domain = ledger._domains["gpu:0"]
    domain.forget(10)
    assert len(domain.points) == 2, "nothing is committed"
    domain.committed = domain.points[1]
    domain.forget(2)
    assert len(domain.points) == 2, "the fit may still look at what ends here"
    domain.committed = domain.committed._replace(t_ns=3)
    domain.forget(3)
    assert len(domain.points) == 1


@pytest.mark.parametrize(("end_ns", "spans"), [(-1, 0), (0, 1), (1, 1)])
def test_a_closed_request_may_cover_a_sample_an_edge_after_its_end(end_ns: int, spans: int) -> None:
    ledger = Ledger([GPU])
    first_ns = 10 * NS_PER_S
    ledger._closed.append(span("a", 5, 6, end_ns=first_ns - EDGE_NS + end_ns))
    assert len(ledger._span_times([{"t_ns": first_ns}, {"t_ns": first_ns + NS_PER_S}]).end_ns) == spans


def test_a_fit_takes_a_minute_up_to_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it requests without a span are not other clients': their spans may come."""
    fits = list[EnergySeries]()
    monkeypatch.setattr(books, "fit_live", lambda series, steps: LiveFit(fits.append(series) or NO_FIT, series, steps))
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_energy([EnergySample(second * NS_PER_S, "gpu:0", float(second)) for second in range(100)])
    ledger._fit("gpu:0", 80 * NS_PER_S, 90 * NS_PER_S)
    assert (fits[0].t_ns[0], fits[0].t_ns[-1]) == (20 * NS_PER_S, 80 * NS_PER_S)


def test_a_request_is_closed_in_the_end_though_its_meter_is_silent() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_energy([EnergySample(1, "gpu:0", 5.0)])
    ledger.add_span(span("a", 5, 10), ns_from_s(10))
    for now_s, open_requests in ((69.9, 1), (70.0, 0)):
        assert not ledger.commit(ns_from_s(now_s))
        assert ledger.snapshot(ns_from_s(now_s)).open_requests == open_requests


def test_the_oldest_key_of_a_closed_request_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_join, "MAX_ENDED", 2)
    ledger = Ledger([GPU], lateness=LATENESS)
    for second, key in enumerate("abc", 1):
        ledger.add_span(span(key, second - 1, second), ns_from_s(second))
    ledger.commit(ns_from_s(100))
    assert list(ledger._join._ended) == ["b", "c"]


@pytest.mark.parametrize(("after_ns", "charged"), [(-1, True), (0, False), (1, False)])
def test_energy_is_committed_to_requests_that_began_before_its_end(after_ns: int, charged: bool) -> None:
    start_ns = 20 * NS_PER_S + after_ns
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 30, 100.0)
    ledger.add_span(span("a", 20, 22, start_ns=start_ns, prefill_ns=start_ns), ns_from_s(22))
    ledger.commit(ns_from_s(25))
    assert ledger._watermark_ns == 20 * NS_PER_S
    assert ledger._open["a"].charged is charged


@pytest.mark.parametrize(
    ("rows", "coverage"),
    [
        ([], None),
        ([(0, 3.0, 0.0)], None),
        ([(0, 0.5, 1.0)], 0.5),
        ([(0, 1.0, 4.0), (1, 2.0, 2.0)], 0.5),
        ([(0, 3.0, 2.0)], 1.0),
    ],
)
def test_coverage_is_tokens_of_spans_over_those_of_the_engine(
    rows: list[tuple[int, float, float]], coverage: float | None
) -> None:
    ledger = Ledger([GPU])
    ledger._coverage.extend(rows)
    assert ledger.snapshot(0).coverage == coverage


@pytest.mark.parametrize(("sample_ns", "complete"), [(0, True), (-1, True), (1, False)])
def test_an_idle_engine_completes_what_exporters_had_the_shortest_time_for(sample_ns: int, complete: bool) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    t_ns = 19 * NS_PER_S + sample_ns  # now is 20 s, and exporters have 1 s
    ledger.add_engine_sample({"t_ns": t_ns, "running": 0.0})
    assert ledger.watermark(20 * NS_PER_S) == (t_ns if complete else 15 * NS_PER_S)


@pytest.mark.parametrize(("end_s", "reason"), [(9.9, "late"), (10.0, "late"), (10.1, None)])
@pytest.mark.parametrize("commits_s", [(), (65,)])
def test_a_span_that_ended_before_anything_was_measured_is_late(
    end_s: float, reason: str | None, commits_s: tuple[float, ...]
) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    for commit_s in commits_s:  # up to 5 s, without a meter
        ledger.commit(ns_from_s(commit_s))
    ledger.add_energy([EnergySample(ns_from_s(10), "gpu:0", 0.0), EnergySample(ns_from_s(11), "gpu:0", 50.0)])
    ledger.add_span(span("a", 5, end_s), ns_from_s(12))
    snapshot = ledger.snapshot(ns_from_s(12))
    assert {name for name, number in snapshot.dropped.items() if number} == ({reason} if reason else set())
    assert (snapshot.partial, snapshot.open_requests) == ((0, 0) if reason else (1, 1))


def test_a_span_is_late_once_its_time_was_given_up_without_a_meter() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_span(span("a", 10, 20), ns_from_s(20))
    ledger.commit(ns_from_s(200))
    ledger.add_span(span("b", 10, 15), ns_from_s(200))
    assert ledger.snapshot(ns_from_s(200)).dropped["late"] == 1
    assert [request.key for request in ledger._closed] == ["a"], "closed requests stay in the order of their ends"


@pytest.mark.parametrize(
    ("request_span", "known"),
    [
        (span("a", 12, 18), True),
        (span("a", 12, 18, output=None), False),  # of no step
        (span("a", 12, 18, output=0, ok=False), False),
        (span("a", 5, 18), False),  # began before the meter did
        (span("a", 20, 27), False),  # through a restart of the counter
        (span("a", 12, 21), True),  # before it
        (span("a", 24, 29), True),  # after it
    ],
)
def test_a_request_that_was_not_measured_whole_has_unknown_joules_not_zero(
    request_span: RequestSpan, known: bool
) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    joules = power(ledger, 10, 21, 300.0)
    ledger.add_energy([EnergySample(ns_from_s(24), "gpu:0", joules, gap=True)])
    power(ledger, 24, 40, 300.0, joules)
    ledger.add_span(request_span, request_span.end_ns)
    ledger.commit(ns_from_s(60))
    account = ledger.snapshot(ns_from_s(60)).accounts["m", "chat"]
    assert account.completed + account.failed == 1
    assert sum(account.energy.counts) == known
    assert (account.energy_mj > 0) == known


def test_energy_until_the_first_token_is_prefill_and_after_it_decode() -> None:
    """300 W throughout, alone: a fifth of ten seconds is prefill, and the parts sum to the whole."""
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 9.9, 30, 300.0)
    ledger.add_span(span("a", 10, 20, first_token_ns=ns_from_s(12)), ns_from_s(20))
    ledger.commit(ns_from_s(50))
    account = ledger.snapshot(ns_from_s(50)).accounts["m", "chat"]
    assert account.prefill_mj == pytest.approx(600_000, rel=0.02)
    assert account.decode_mj == pytest.approx(2_400_000, rel=0.02)
    assert account.energy_mj == account.prefill_mj + account.decode_mj


def test_a_model_that_becomes_known_names_the_requests_from_then_on() -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 40, 100.0)
    ledger.add_span(span("a", 2, 4, model=None), ns_from_s(5))
    ledger.commit(ns_from_s(12))
    ledger.name_model("llama")
    ledger.add_span(span("b", 10, 14, model=None), ns_from_s(15))
    ledger.add_span(span("c", 10, 14, model="own"), ns_from_s(15))
    ledger.commit(ns_from_s(40))
    accounts = ledger.snapshot(ns_from_s(40)).accounts
    assert {model: account.completed for (model, _), account in accounts.items()} == {
        "unknown": 1,
        "llama": 1,
        "own": 1,
    }
    assert all(account.energy_mj > 0 for account in accounts.values())


@pytest.mark.parametrize(
    ("spans", "per_s", "fitted_s", "fits"),
    [
        (True, 200, 25.0, 2),
        (True, 200, 25.001, 1),  # less than five seconds ago
        (True, 50, 25.0, 1),  # nobody else
        (False, 0, 25.0, 1),  # nobody at all
    ],
)
def test_beside_other_clients_the_fit_is_made_again_every_five_seconds(
    spans: bool, per_s: int, fitted_s: float, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span with 50 tokens a second, beside what the engine counts."""
    asked: list[int] = []
    monkeypatch.setattr(Ledger, "_fit", lambda ledger, name, end_ns, now_ns: asked.append(ledger._refit_ns))
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger._fitted_ns, ledger._refit_ns = ns_from_s(fitted_s), ns_from_s(60)
    power(ledger, 0, 30, 400.0)
    looks(ledger, 0, 30, running=spans + (per_s > 50), tokens=0, per_s=per_s)
    if spans:
        ledger.add_span(span("a", 0.2, 29.5, output=1465, first_token_ns=ns_from_s(0.22)), ns_from_s(29.5))
    ledger._longest_ns = 0
    assert ledger.commit(ns_from_s(30))
    assert asked == [ns_from_s(60), 0][:fits]


def test_the_earliest_token_of_a_trace_is_its_first() -> None:
    ledger = Ledger([GPU])
    ledger.add_first_tokens([(b"t", 5), (b"t", 3), (b"u", 4), (b"t", 9)])
    assert dict(ledger._first_tokens) == {b"t": 3, b"u": 4}


WORLD = b"\x01" * 16


def test_the_first_token_of_a_trace_is_that_of_the_first_request_in_it_that_lacks_one() -> None:
    ledger = Ledger([GPU])
    ledger.add_first_tokens([(WORLD, 13 * NS_PER_S), (WORLD, 12 * NS_PER_S), (b"\x02" * 16, NS_PER_S)])
    first_ns: dict[str, object] = {"first_token_ns": None, "trace_id": WORLD}
    spans = [
        span("client", 10, 20, client=True, **first_ns),
        span("known", 10, 20, trace_id=WORLD, span_id=b"k" * 8),
        span("early", 10, 11, **first_ns),
        span("first", 10, 20, span_id=b"f" * 8, **first_ns),
        span("second", 10, 20, span_id=b"s" * 8, **first_ns),
        span("later", 10, 20, first_token_ns=None, trace_id=b"\x02" * 16),
        span("nowhere", 10, 20, first_token_ns=None),
    ]
    firsts = [ledger._with_first_token(each).first_token_ns for each in spans]
    assert firsts == [None, 11 * NS_PER_S, None, 12 * NS_PER_S, None, None, None]


@pytest.mark.parametrize(("t_ns", "taken"), [(-1, False), (0, True), (1, True), (5, True), (6, False)])
def test_a_first_token_lies_between_the_prefill_and_the_end_of_its_request(t_ns: int, taken: bool) -> None:
    ledger = Ledger([GPU])
    start_ns = 10 * NS_PER_S
    ledger.add_first_tokens([(WORLD, start_ns + t_ns)])
    request = span("a", 10, 10, first_token_ns=None, trace_id=WORLD, start_ns=start_ns - 9, end_ns=start_ns + 5)
    assert ledger._with_first_token(request).first_token_ns == (start_ns + t_ns if taken else None)


def test_first_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_FIRST_TOKENS", 3)
    ledger = Ledger([GPU])
    ledger.add_first_tokens((bytes([k]) * 16, k) for k in range(10))
    assert list(ledger._first_tokens.values()) == [7, 8, 9]


def test_looks_at_the_engine_that_do_not_move_on_are_left_out() -> None:
    ledger = Ledger([GPU])
    for t_ns, running in ((5, 1.0), (5, 2.0), (4, 3.0), (6, 4.0)):
        ledger.add_engine_sample({"t_ns": t_ns, "running": running})
    assert [sample["running"] for sample in ledger._samples] == [1.0, 4.0]


@pytest.mark.parametrize(("duration_s", "waited_s"), [(1, 5), (2.5, 5), (10, 20), (40, 60)])
def test_twice_the_longest_request_is_waited_for(duration_s: float, waited_s: int) -> None:
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_span(span("a", 50, 50 + duration_s), ns_from_s(100))
    ledger.add_span(span("b", 50, 50.5), ns_from_s(100))
    assert ledger.watermark(ns_from_s(100)) == ns_from_s(100 - waited_s)


@pytest.mark.parametrize(("queue_s", "complete_s"), [(15.0, 17), (15.1, 15)])
def test_a_look_at_what_was_given_up_holds_nothing_back(queue_s: float, complete_s: int) -> None:
    """Now is 20 s, and requests without spans are waited for 5 s."""
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger.add_engine_sample({"t_ns": ns_from_s(queue_s), "running": 3.0})
    ledger.add_engine_sample({"t_ns": ns_from_s(17), "running": 0.0})
    assert ledger.watermark(ns_from_s(20)) == ns_from_s(complete_s)


@pytest.mark.parametrize(
    ("start_s", "end_s", "looked_s"),
    [(3, 5, [3, 4, 5]), (3.5, 5.5, [3, 4, 5, 6]), (-1, 0.5, [0, 1]), (8.5, 20, [8, 9])],
)
def test_a_portion_is_judged_by_the_looks_in_it_and_around_it(
    start_s: float, end_s: float, looked_s: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def unseen(_: Ledger, requests: object, samples: list[dict[str, int]]) -> np.ndarray:
        looked.extend(sample["t_ns"] for sample in samples)
        return np.zeros((0, 2), np.int64)

    monkeypatch.setattr(Ledger, "_unseen", unseen)
    ledger = Ledger([GPU])
    for second in range(10):
        ledger.add_engine_sample({"t_ns": second * NS_PER_S})
    ledger._unseen_in([], ns_from_s(start_s), ns_from_s(end_s))
    assert looked == [second * NS_PER_S for second in looked_s]


def test_tokens_of_an_interval_that_a_portion_cuts_count_by_its_share() -> None:
    """Ten tokens a second, then forty; one span has five of them a second."""
    ledger = Ledger([GPU], lateness=LATENESS)
    for second, tokens in enumerate((0, 10, 20, 60, 100, 140)):
        ledger.add_engine_sample({"t_ns": second * NS_PER_S, "generation_tokens": float(tokens)})
    ledger.add_span(span("a", 0, 5, output=26, first_token_ns=0), ns_from_s(5))
    portion = ns_from_s(0.5), ns_from_s(2.25)
    ledger._count_tokens(ledger._engine([], *portion), *portion)
    assert ledger._coverage[0] == pytest.approx((ns_from_s(2.25), 5 * 1.75, 10 * 1.5 + 40 * 0.25))
    assert ledger._foreign_tokens == pytest.approx(5 * 1.5 + 35 * 0.25)


def test_a_fit_that_explains_nothing_is_tried_again_and_decides_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    free = Coefficients(step_j=0, prefill_token_j=0, prefill_context_j=0, decode_token_j=0, decode_context_j=0,
                        idle_w=None, r_squared=0.0)  # fmt: skip
    fits = [free, NO_FIT, free]
    monkeypatch.setattr(books, "fit_live", lambda series, steps: LiveFit(fits.pop(0), series, steps))
    ledger = Ledger([GPU], lateness=LATENESS)
    power(ledger, 0, 1, 100.0)
    idle_w = []
    for _ in range(3):
        ledger._fit("gpu:0", NS_PER_S, NS_PER_S)
        idle_w.append(ledger._idle_w)
    assert ledger._fitted is None
    assert idle_w == [None, 55.0, 55.0], "and the idle power that is known stays"


@pytest.mark.parametrize(("idle_w", "fallback_w"), [(None, 1.0), (55.0, 55.0)])
def test_a_step_without_a_price_costs_idle_power_or_a_watt_before_that_is_known(
    idle_w: float | None, fallback_w: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[float] = []
    plain = books.cost_shares
    monkeypatch.setattr(books, "cost_shares", lambda *given: passed.append(given[2]) or plain(*given))
    monkeypatch.setattr(Ledger, "_fit", lambda *_: None)
    ledger = Ledger([GPU], lateness=LATENESS)
    ledger._idle_w = idle_w
    power(ledger, 0, 30, 100.0)
    assert ledger.commit(ns_from_s(30))
    assert passed == [fallback_w]


def test_a_prompts_energy_waits_for_its_client_who_reports_when_another_engine_has_generated_the_output() -> None:
    ledger = Ledger([GPU], lateness=LATENESS, role="prefill")
    power(ledger, 0, 20, 400.0)
    looks(ledger, 0, 20, running=0, tokens=0, per_s=0)
    now_ns = ns_from_s(20)
    prompts = [span("reported", 16, 16.5, workload=None), span("waiting", 17, 17.5, workload=None)]
    ledger.add_span(prompts[0], now_ns)
    ledger.add_span(span("reported", 15.9, 19, client=True, workload="chat"), now_ns, copy=True)
    ledger.add_span(prompts[1], now_ns)
    assert ledger.watermark(now_ns) == prompts[1].start_ns
    ledger.add_span(span("waiting", 16.9, 20, client=True, workload="code"), now_ns, copy=True)
    assert ledger.watermark(now_ns) > prompts[1].end_ns
    ledger.commit(now_ns)
    accounts = ledger.snapshot(now_ns).accounts
    assert {key[1]: account.decode_mj for key, account in accounts.items()} == {"chat": 0, "code": 0, "unlabelled": 0}
    assert all(accounts["m", workload].prefill_mj > 0 for workload in ("chat", "code"))


@pytest.mark.parametrize(("seconds", "rows"), [(2, 10_000), (5, 10_000), (10, 20_000), (25, 35_000), (600, 35_000)])
def test_a_long_portion_may_have_more_rows_up_to_a_bound(seconds: int, rows: int) -> None:
    assert books.commit_rows(seconds * NS_PER_S) == rows


def test_requests_that_follow_one_another_have_the_energy_of_their_time_on_the_counters_own_clock() -> None:
    """Each takes a second, with another power than the one before. Updates every 100 ms are seen up to 60 ms late: as
    seen, they would put 2 % (median) into the account of a neighbour. The ends of portions alone stay as seen."""
    ledger, rng, joules = Ledger([GPU], lateness=LATENESS), np.random.default_rng(0), 0.0
    looks(ledger, 0, 40, running=1, tokens=0, per_s=50)
    watts = {second: 300.0 if second % 2 else 700.0 for second in range(40)}
    shares: list[float] = []
    for second in range(40):
        for tick in range(10):
            joules += watts[second] / 10
            late_ns = int(rng.integers(0, 60 * NS_PER_MS))
            seen_ns = ns_from_s(second) + (tick + 1) * 100 * NS_PER_MS + late_ns
            ledger.add_energy([EnergySample(seen_ns - 30 * NS_PER_MS, "gpu:0", joules, slack_ns=30 * NS_PER_MS)])
        ledger.add_span(span(f"{second}", second, second + 1), ns_from_s(second + 1))
        ledger.commit(ns_from_s(second + 1))
        shares += [
            (settled.entry.prefill_mj + settled.entry.decode_mj) / 1000 / watts[int(settled.entry.request.key)]
            for settled in ledger.settled
        ]
    off = np.abs(np.array(shares[5:]) - 1)
    assert len(off) > 20 and np.median(off) < 0.005
