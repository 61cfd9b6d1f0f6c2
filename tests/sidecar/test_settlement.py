"""Sidecars that are killed and started again at random: what they settle is on disk once, and sums to the counter."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.results.bill import bill_of
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.sidecar import ledger_writer, settlement
from loadgen.sidecar.ledger import Ledger
from loadgen.sidecar.settlement import Settlement
from loadgen.sidecar.watched_engine import WatchedEngine
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_S, ns_from_s
from sidecar.test_ledger import GPU, LATENESS, OTHER, looks, power, span

WALL_NS = 1_700_000_000 * NS_PER_S


def unix_ns(monotonic_ns: int) -> int:
    return WALL_NS + monotonic_ns


class Life:
    """A sidecar from a start to its end."""

    def __init__(self, folder: Path | None, start_s: int) -> None:
        self.ledger = Ledger([GPU, OTHER], lateness=LATENESS, since_ns=ns_from_s(start_s))
        engine = WatchedEngine(self.ledger, [GPU, OTHER], "http://user:secret@gpu-host:8000/v1", None)
        self.settlement = Settlement([engine], folder=folder)
        self.start_s, self.written_mj = start_s, 0

    def live(self, to_s: int, spans: list[RequestSpan]) -> None:
        """Measure up to an instant, take the spans that came meanwhile, commit, and write."""
        power(self.ledger, self.start_s, to_s, 400.0, 400.0 * self.start_s)
        power(self.ledger, self.start_s, to_s, 150.0, 150.0 * self.start_s, "gpu:1")
        looks(self.ledger, self.start_s, to_s, 1, self.start_s * 30.0, 30)
        self.start_s, now_ns = to_s, ns_from_s(to_s)
        for sent in spans:
            self.ledger.add_span(sent, now_ns)
        self.ledger.commit(now_ns)
        snapshot = self.ledger.snapshot(now_ns)
        self.settlement.take([snapshot], unix_ns, now_ns)
        asyncio.run(self.settlement.write())
        self.written_mj = sum(domain.committed_mj for domain in snapshot.domains)

    def kill(self) -> None:
        assert self.settlement._writer is not None
        self.settlement._writer._held.close()  # as the kernel does


ARRIVALS = st.lists(st.tuples(st.floats(0, 55), st.floats(0.1, 15), st.floats(0, 12)), max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ARRIVALS, st.lists(st.integers(1, 11), max_size=3, unique=True).map(sorted), st.booleans())
def test_in_every_interleaving_no_request_is_billed_twice_and_the_bill_is_the_counter(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[float, float, float]], kills: list[int], again: bool
) -> None:
    """again: exporters send what a killed sidecar had received to the next one, too."""
    folder = tmp_path_factory.mktemp("ledger")
    sent = [
        (begin + length + late, span(f"k{k}", begin, begin + length))
        for k, (begin, length, late) in enumerate(arrivals)
    ]
    lives = [Life(folder, 0)]
    for turn in range(1, 13):
        new = [request for at_s, request in sent if 5 * turn - 5 <= at_s < 5 * turn]
        lives[-1].live(5 * turn, new)
        if turn in kills:
            lives[-1].kill()
            lives.append(Life(folder, 5 * turn + 1))
            for request in (request for at_s, request in sent if again and at_s < 5 * turn):
                lives[-1].ledger.add_span(request, ns_from_s(5 * turn + 1))
    lives[-1].kill()
    if not any(life.written_mj for life in lives):
        return
    batches = [batch for path in ledger_files(folder) for batch, _ in LedgerFile(path).batches()]
    ids = [request.id for batch in batches for request in batch.requests]
    assert len(ids) == len(set(ids))
    bill = bill_of(folder, ("engine",))
    assert bill.counter_mj == sum(life.written_mj for life in lives)
    assert set(bill.groups) <= {("gpu-host:8000",)}, "no credentials"


def test_a_disk_that_does_not_answer_holds_up_nothing_but_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life, answers, asked = Life(tmp_path, 10), threading.Event(), threading.Event()
    fsync = os.fsync

    def silent(file: int) -> None:
        asked.set()
        assert answers.wait(30)
        fsync(file)

    def take(number: int) -> None:
        power(life.ledger, life.start_s, life.start_s + 10, 400.0, 400.0 * life.start_s)
        life.start_s += 10
        now_ns = ns_from_s(life.start_s)
        life.ledger.add_span(span(f"k{number}", life.start_s - 8, life.start_s - 7), now_ns)
        life.ledger.commit(now_ns)
        life.settlement.take([life.ledger.snapshot(now_ns)], unix_ns, now_ns)

    async def lived() -> None:
        take(0)
        monkeypatch.setattr(os, "fsync", silent)
        monkeypatch.setattr(ledger_writer, "SILENT_S", 0.0)
        writing = asyncio.create_task(life.settlement.write())
        await asyncio.to_thread(asked.wait)
        for number in (1, 2):
            take(number)
        find = life.settlement._lookup.find
        assert find("k0") is None and not writing.done()
        assert "the disk has not answered for" in (life.settlement.health or "")
        answers.set()
        await writing
        assert find("k0") and find("k1") is None, "what was taken meanwhile is shown once it is written for sure"
        await life.settlement.write()
        assert find("k1") and life.settlement.health == "written"

    asyncio.run(lived())
    life.settlement.close()
    batches = [batch for path in ledger_files(tmp_path) for batch, _ in LedgerFile(path).batches()]
    ids = [request.id for batch in batches for request in batch.requests]
    assert ids == sorted(set(ids)) and ids[:2] == ["k0", "k1"]


def test_requests_beyond_those_that_wait_for_the_disk_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "MAX_WAITING", 1)
    life = Life(tmp_path, 10)
    monkeypatch.setattr(life.settlement._writer, "flush", lambda: None)
    life.live(40, [span(name, start_s, start_s + 1) for name, start_s in (("a", 12), ("b", 14), ("c", 16))])
    assert all(life.settlement._lookup.find(name) for name in "abc")
    assert len(life.settlement._unwritten) == len(life.settlement._writing) == 0


def test_periods_follow_each_other_from_the_first_sample_on(tmp_path: Path) -> None:
    life = Life(tmp_path, 10)
    for turn in range(3, 9):
        life.live(5 * turn, [span(f"k{turn}", 5 * turn - 4, 5 * turn - 1)])
    life.settlement.close()
    periods = [batch.period for path in ledger_files(tmp_path) for batch, _ in LedgerFile(path).batches()]
    assert periods[0].from_unix_ns == unix_ns(ns_from_s(10.1))
    assert [p.to_unix_ns for p in periods[:-1]] == [p.from_unix_ns for p in periods[1:]]
    assert life.settlement.health == "written"


def test_a_requests_line_has_no_words_of_it_and_its_ids_are_those_of_both_sides(tmp_path: Path) -> None:
    life = Life(None, 10)
    client = span("client", 12, 14, client=True, workload="code", trace_id=b"t" * 16, span_id=b"c" * 8)
    engine = span("engine", 12.1, 13.9, trace_id=b"t" * 16, parent_id=b"c" * 8, span_id=b"e" * 8, workload=None)
    life.live(40, [client, engine])
    found = [life.settlement._lookup.find(name) for name in ("client", "engine", "chatcmpl-engine")]
    assert found[0] is not None and found[0] is found[1] is found[2]
    assert (found[0].id, found[0].workload, found[0].begin_unix_ns) == ("client", "code", unix_ns(ns_from_s(12.1)))
    assert found[0].settled_unix_ns == unix_ns(ns_from_s(40))
    assert life.settlement.health is None
