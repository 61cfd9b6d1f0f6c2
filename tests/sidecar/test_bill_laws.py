"""The laws of the bill, whatever happens to spans, engines, meters and sidecars.

Nothing is billed twice, nothing to the wrong tenant or engine, what is not known is unattributed, and each engine's
energy is conserved at every scrape. What Prometheus makes of the scrapes that it did not lose is in
test_lost_scrapes.py.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loadgen.energy.named_engine import NamedEngine
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.results.bill import bill_of
from loadgen.results.ledger_lines import SettledRequest
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.sidecar.ledger import Ledger, Snapshot
from loadgen.sidecar.settlement import Settlement
from loadgen.sidecar.span_router import SpanRouter
from loadgen.sidecar.watched_engine import WatchedEngine
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_S, mj_from_j, ns_from_s
from sidecar.test_ledger import LATENESS, span

TURN_S, TURNS = 5, 14
"""A turn is a batch of an exporter, a commit and a scrape."""
WATTS = (400.0, 150.0)
"""Power of each engine's GPU while a request runs at it, and IDLE_W else."""
IDLE_W = 60.0
WINDOW_S = 0.1
ENGINES = tuple(NamedEngine(name=name, url=f"http://{name}:8000") for name in ("a", "b"))
GPUS = tuple(EnergyDomain(name=f"gpu:{k}", source="simulated") for k in range(len(ENGINES)))


class Sent(NamedTuple):
    """A request, and what becomes of its span."""

    engine: int
    begin_s: float
    length_s: float
    tenant: str | None
    late_s: float | None
    """None: the span is lost."""
    copies: int
    """Times that the span arrives again, a turn later each time."""
    other_late_s: float | None
    """Delay of a client's span of the same request; None: there is none."""


class Happens(NamedTuple):
    """Turns at whose ends an engine restarts, a meter restarts, and the sidecar is killed while it writes."""

    engine_restarts: set[tuple[int, int]]
    meter_restarts: set[tuple[int, int]]
    kills: dict[int, float]
    """Turn -> share of the batch that reached the disk."""


REQUESTS = st.builds(
    Sent,
    st.integers(0, 1),
    st.floats(0, TURN_S * (TURNS - 2)),
    st.floats(0.2, 15),
    st.sampled_from(("acme", "birch", "other", None)),
    st.one_of(st.floats(0, 12), st.just(40.0), st.none()),
    st.sampled_from((0, 0, 0, 1, 3)),
    st.one_of(st.none(), st.none(), st.floats(0, 12)),
)
PLACES = st.sets(st.tuples(st.integers(1, TURNS - 1), st.integers(0, 1)), max_size=3)
HAPPENS = st.builds(
    Happens, PLACES, PLACES, st.dictionaries(st.integers(1, TURNS - 1), st.floats(0, 1, exclude_max=True), max_size=3)
)


def spans_of(number: int, sent: Sent) -> list[tuple[float, RequestSpan]]:
    """Return the spans of a request, with the instants at which they arrive."""
    end_s = sent.begin_s + sent.length_s
    labels = {"tenant": sent.tenant} if sent.tenant else {}
    trace, tokens = (number + 1).to_bytes(16, "big"), max(int(30 * sent.length_s), 1)
    engine = span(
        f"r{number}", sent.begin_s, end_s, tokens, labels=labels, trace_id=trace, span_id=b"e" * 8,
        parent_id=b"c" * 8, engine_names=(ENGINES[sent.engine].name,),
    )  # fmt: skip
    client = span(
        f"c{number}", sent.begin_s - 0.01, end_s + 0.01, tokens, labels=labels, trace_id=trace, span_id=b"c" * 8,
        client=True,
    )  # fmt: skip
    arrivals = []
    if sent.late_s is not None:
        arrivals += [(end_s + sent.late_s + TURN_S * copy, engine) for copy in range(sent.copies + 1)]
    if sent.other_late_s is not None:
        arrivals.append((end_s + sent.other_late_s, client))
    return arrivals


class World:
    """Engines with a GPU each, whose counters and meters go on while sidecars come and go."""

    def __init__(self, requests: list[Sent], happens: Happens) -> None:
        self.requests, self.happens = requests, happens
        self.joules, self.tokens = [0.0, 0.0], [0.0, 0.0]
        self.windows: list[list[tuple[float, int]]] = [[], []]
        """The end of each window and its millijoules, by engine: what its meter counted."""

    def running(self, engine: int, t_s: float) -> int:
        return sum(r.engine == engine and r.begin_s <= t_s < r.begin_s + r.length_s for r in self.requests)

    def energy(self, turn: int) -> list[EnergySample]:
        """Return the samples of a turn. A meter that restarts is away for its first half."""
        samples = []
        for engine, gpu in enumerate(GPUS):
            restarts = (turn, engine) in self.happens.meter_restarts
            begin_s = TURN_S * turn - TURN_S
            for k in range(round(TURN_S / WINDOW_S)):
                end_s = begin_s + (k + 1) * WINDOW_S
                if restarts and k < TURN_S / WINDOW_S / 2:
                    continue
                gap = restarts and k == -(-TURN_S // (2 * WINDOW_S))
                watts = WATTS[engine] if self.running(engine, end_s - WINDOW_S / 2) else IDLE_W
                before_mj = mj_from_j(self.joules[engine])
                self.joules[engine] += 0.0 if gap else watts * WINDOW_S
                samples.append(EnergySample(ns_from_s(end_s), gpu.name, self.joules[engine], gap=gap))
                self.windows[engine].append((end_s, mj_from_j(self.joules[engine]) - before_mj))
        return samples

    def counters(self, turn: int) -> list[list[dict[str, float]]]:
        """Return the samples of each engine's counters in a turn."""
        looked: list[list[dict[str, float]]] = [[], []]
        for engine in range(len(ENGINES)):
            if (turn, engine) in self.happens.engine_restarts:
                self.tokens[engine] = 0.0
            for k in range(4 * TURN_S):
                t_s = TURN_S * turn - TURN_S + k / 4
                running = self.running(engine, t_s)
                values = {"running": float(running), "waiting": 0.0, "generation_tokens": self.tokens[engine]}
                looked[engine].append({"t_ns": round(t_s * NS_PER_S), **values})
                self.tokens[engine] += running * 30 / 4
        return looked

    def counted_mj(self, engine: int, from_s: float, to_s: float) -> int:
        """Return what the meter counted in the windows that touch [from, to]."""
        return sum(mj for end_s, mj in self.windows[engine] if end_s >= from_s and end_s - WINDOW_S <= to_s)


class Life:
    """A sidecar from its start to its end."""

    def __init__(self, folder: Path, start_s: float) -> None:
        self.engines = [
            WatchedEngine(
                Ledger([gpu], lateness=LATENESS, labels=("tenant",), label_values=2, since_ns=ns_from_s(start_s)),
                [gpu], None, engine,
            )
            for gpu, engine in zip(GPUS, ENGINES, strict=True)
        ]  # fmt: skip
        self.router = SpanRouter(ENGINES, ns_from_s(LATENESS.blind_s) // 2)
        self.settlement = Settlement(self.engines, self.router, ENGINES, folder=folder)
        self.first_mj: dict[str, int] = {}
        self.newest_mj: dict[str, int] = {}
        self.snapshots: list[Snapshot] = []
        """The newest, by engine."""
        self.committed_mj = self.written_mj = (0, 0)
        """By engine: what the newest scrape shows, and what is on disk."""

    def turn(self, now_s: float, energy: list[EnergySample], counters: list[list[dict[str, float]]],
             spans: list[RequestSpan]) -> None:  # fmt: skip
        """Take what has arrived, as the sidecar's tick does, and check the page."""
        now_ns = ns_from_s(now_s)
        for sample in energy:
            self.first_mj.setdefault(sample.domain, mj_from_j(sample.joules))
            self.newest_mj[sample.domain] = mj_from_j(sample.joules)
        for engine, looked in zip(self.engines, counters, strict=True):
            engine.ledger.add_energy(energy)
            for sample in looked:
                engine.ledger.add_engine_sample(sample)
        routed = [one for sent in spans for one in self.router.add(sent, now_ns)]
        decided, _ = self.router.due(now_ns, lambda number: self.engines[number].ledger.engine_samples)
        for number, sent, copy in (*routed, *decided):
            self.engines[number].ledger.add_span(sent, now_ns, copy=copy)
        for engine in self.engines:
            engine.ledger.commit(now_ns)
        self.snapshots = snapshots = [engine.ledger.snapshot(now_ns) for engine in self.engines]
        committed = []
        for snapshot, gpu in zip(snapshots, GPUS, strict=True):
            [energy_of] = snapshot.domains
            assert energy_of.domain == gpu, "the energy of an engine is that of its own GPU"
            accounts = snapshot.accounts.values()
            attributed = sum(account.prefill_mj + account.decode_mj for account in accounts)
            by_tenant = sum(t.prefill_mj + t.decode_mj for account in accounts for t in account.by_labels.values())
            assert attributed == by_tenant
            assert energy_of.committed_mj == attributed + snapshot.idle_mj + snapshot.unattributed_mj
            counted_mj = self.newest_mj[gpu.name] - self.first_mj[gpu.name] if gpu.name in self.newest_mj else 0
            assert energy_of.committed_mj + energy_of.pending_mj == counted_mj, "all that the meter has counted"
            assert min(snapshot.idle_mj, snapshot.unattributed_mj, energy_of.pending_mj) >= 0
            committed.append(energy_of.committed_mj)
        assert all(new >= old for new, old in zip(committed, self.committed_mj, strict=True))
        self.committed_mj = (committed[0], committed[1])
        self.settlement.take(snapshots, lambda t_ns: t_ns, now_ns)

    def write(self) -> None:
        writer = self.settlement._writer
        assert writer is not None
        writer.flush()
        self.written_mj = self.committed_mj

    def kill(self, folder: Path, share: float) -> None:
        """End the process while it writes: a share of what waits is on disk."""
        writer = self.settlement._writer
        assert writer is not None
        sizes = {path: path.stat().st_size for path in folder.glob("*.jsonl")}
        writer.flush()
        for path in folder.glob("*.jsonl"):
            before, after = sizes.get(path, 0), path.stat().st_size
            if after > before:
                os.truncate(path, before + int(share * (after - before)))
        writer._held.close()  # as the kernel does


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, max_size=25), HAPPENS)
@example(
    [Sent(0, 2.0, 4.0, "acme", 0.0, 3, 1.0), Sent(0, 2.0, 12.0, "birch", None, 0, None)], Happens(set(), set(), {})
)
@pytest.mark.timeout(180)
def test_the_bill_has_each_request_once_at_its_tenant_and_its_engine_and_is_the_counter(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Sent], happens: Happens
) -> None:
    folder, world = tmp_path_factory.mktemp("ledger"), World(requests, happens)
    arrivals = [arrival for number, sent in enumerate(requests) for arrival in spans_of(number, sent)]
    lives, written_mj = [Life(folder, 0.0)], Counter[str]()
    for turn in range(1, TURNS + 1):
        now_s = float(TURN_S * turn)
        new = [sent for at_s, sent in arrivals if now_s - TURN_S < at_s <= now_s or (turn == 1 and at_s <= 0)]
        lives[-1].turn(now_s, world.energy(turn), world.counters(turn), new)
        if turn in happens.kills:
            lives[-1].kill(folder, happens.kills[turn])
            lives.append(Life(folder, now_s))
        else:
            lives[-1].write()
    for life in lives:
        written_mj += Counter({engine.name: mj for engine, mj in zip(ENGINES, life.written_mj, strict=True)})
    lives[-1].settlement.close()
    if not any(written_mj.values()):
        return
    check_lines(world, folder, written_mj)


def check_lines(world: World, folder: Path, written_mj: Counter[str]) -> None:
    """Check every line of a ledger against the world, and their sums against the meters."""
    batches = [batch for path in ledger_files(folder) for batch, _ in LedgerFile(path).batches()]
    settled = [request for batch in batches for request in batch.requests]
    numbers = Counter(number_of(request) for request in settled)
    assert max(numbers.values(), default=1) == 1, "nothing is billed twice"
    for request in settled:
        sent = world.requests[number_of(request)]
        assert sent.late_s is not None or sent.other_late_s is not None, "nobody sent a span of it"
        assert request.labels.get("tenant") in (sent.tenant, "other" if sent.tenant else None)
        engine = next(k for k, engine in enumerate(ENGINES) if engine.name == request.engine)
        if sent.late_s is not None and sent.other_late_s is None:
            assert engine == sent.engine, "its span says where it ran"
        counted_mj = world.counted_mj(engine, sent.begin_s - 0.02, sent.begin_s + sent.length_s + 0.02)
        assert request.energy_mj <= counted_mj, "it has no energy of a time in which it did not run"
    parts = Counter[str]()
    for batch in batches:
        parts += Counter({part.engine: part.counter_mj for part in batch.period.engines})
    assert parts == +written_mj, "each engine's counter is in the ledger, as far as it was written"
    by = "tenant" if any(request.labels for request in settled) else "workload"
    bill = bill_of(folder, (by,))
    assert bill.counter_mj == written_mj.total()
    assert {name for (name,) in bill.groups} <= {"", "acme", "birch", "other", "chat"}
    shown = sum(group.energy_mj for group in bill.groups.values()) + bill.idle_mj + bill.unattributed_mj
    assert shown + bill.unsettled_mj == bill.counter_mj


def number_of(request: SettledRequest) -> int:
    match = re.fullmatch(r"[rc](\d+)", request.id)
    assert match is not None
    return int(match[1])


@pytest.mark.parametrize("late_s", [None, 60.0])
def test_energy_of_a_request_whose_span_is_lost_or_too_late_is_unattributed(
    tmp_path: Path, late_s: float | None
) -> None:
    sent = [Sent(0, 2.0, 8.0, "acme", late_s, 0, None), Sent(0, 20.0, 8.0, "birch", 0.0, 0, None)]
    world, life = World(sent, Happens(set(), set(), {})), Life(tmp_path, 0.0)
    arrivals = [arrival for number, request in enumerate(sent) for arrival in spans_of(number, request)]
    for turn in range(1, TURNS + 1):
        now_s = float(TURN_S * turn)
        new = [request for at_s, request in arrivals if now_s - TURN_S < at_s <= now_s]
        life.turn(now_s, world.energy(turn), world.counters(turn), new)
        life.write()
    life.settlement.close()
    bill = bill_of(tmp_path, ("tenant",))
    assert set(bill.groups) == {("birch",)}
    assert bill.groups["birch",].energy_mj == pytest.approx(8 * 400_000, rel=0.02)
    assert bill.unattributed_mj == pytest.approx(8 * 400_000, rel=0.1), "unattributed, not idle, and nobody else's"
