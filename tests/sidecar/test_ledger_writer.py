"""The ledger on disk: whatever is killed, torn or full, its lines sum to the counter, and nothing is in it twice."""

import errno
import logging
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.results.bill import bill_of
from loadgen.results.ledger_lines import LedgerBatch, LedgerPeriod
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.sidecar import ledger_writer
from loadgen.sidecar.ledger_writer import MAX_SOURCES, LedgerWriter
from sidecar.test_request_lookup import settled

SECOND = 10**9
DAY = 86_400 * SECOND


def batch(number: int, requests: int = 1, open_mj: int = 0, before_mj: int = 0, day: int = 0) -> LedgerBatch:
    """Return a second's batch: each request 3.5 J, 100 mJ idle, 10 mJ unattributed."""
    lines = tuple(settled(f"{number}-{k}") for k in range(requests))
    at_ns = day * DAY + number * SECOND
    period = LedgerPeriod(
        from_unix_ns=at_ns, to_unix_ns=at_ns + SECOND, idle_mj=100, unattributed_mj=10, open_mj=open_mj,
        counter_mj=3_500 * requests + 110 + open_mj - before_mj, requests=requests,
    )  # fmt: skip
    return LedgerBatch(period, lines)


def ids(folder: Path) -> list[str]:
    return [r.id for path in ledger_files(folder) for b, _ in LedgerFile(path).batches() for r in b.requests]


def test_lines_are_on_disk_after_a_flush_and_sum_to_the_counter(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "new" / "ledger")
    for number in range(3):
        writer.add(batch(number, requests=number))
    writer.flush()
    bill = bill_of(writer.folder)
    assert (bill.counter_mj, bill.idle_mj, bill.unattributed_mj) == (3 * 3_500 + 330, 300, 30)
    assert ids(writer.folder) == ["1-0", "2-0", "2-1"]
    writer.close()


def test_a_file_names_the_sources_of_its_energy_within_its_bounds(tmp_path: Path) -> None:
    named = ["gpu:0 (nvml-counter)", "x" * 10_000, *(f"gpu:{n}" for n in range(500))]
    writer = LedgerWriter(tmp_path, sources=lambda: named)
    writer.add(batch(0, requests=1))
    writer.flush()
    writer.close()
    sources = bill_of(tmp_path).sources
    assert "gpu:0 (nvml-counter)" in sources
    assert len(sources) == MAX_SOURCES


def test_a_source_that_is_known_late_is_named_by_a_file_of_its_own(tmp_path: Path) -> None:
    named: list[str] = []
    writer = LedgerWriter(tmp_path, sources=lambda: list(named))
    for number, source in enumerate(("gpu:0@a (nvml-counter)", None, "gpu:0@b (simulated)", None)):
        named += [source] if source else []
        writer.add(batch(number, requests=1))
        writer.flush()
    writer.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    bill = bill_of(tmp_path)
    assert bill.sources == set(named)
    assert sum(group.requests for group in bill.groups.values()) == 4


def test_a_batch_that_is_not_the_counter_is_not_taken(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path)
    wrong = batch(0)
    with pytest.raises(AssertionError, match="1 mJ of a period are in no line"):
        writer.add(
            LedgerBatch(msgspec.structs.replace(wrong.period, counter_mj=wrong.period.counter_mj + 1), wrong.requests)
        )
    writer.close()


def test_a_second_sidecar_is_refused_the_folder_until_the_first_ends(tmp_path: Path) -> None:
    first = LedgerWriter(tmp_path)
    with pytest.raises(LoadgenError, match="another process writes the ledger"):
        LedgerWriter(tmp_path)
    first.close()
    LedgerWriter(tmp_path).close()


def test_a_new_file_begins_when_one_is_large_and_on_another_day(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, file_bytes=2_000)
    before_mj = 0
    for number, day in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]:
        writer.add(batch(number, requests=2, open_mj=number, before_mj=before_mj, day=day))
        before_mj = number
    writer.close()
    names = [path.name for path in ledger_files(tmp_path)]
    assert [name[:10] for name in names] == ["1970-01-01", "1970-01-01", "1970-01-02"]
    assert names[0].endswith("-0001.jsonl") and names[2].endswith("-0003.jsonl")
    assert bill_of(tmp_path).unsettled_mj == 5, "what is open goes from file to file"
    ledger_files(tmp_path)[0].unlink()
    assert bill_of(tmp_path).groups["chat",].requests < 12, "the rest can be billed without the oldest"


class FullDisk:
    """A disk on which only so many bytes fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.unbounded = room, os.pwrite
        monkeypatch.setattr(ledger_writer.os, "pwrite", self.pwrite)

    def pwrite(self, file: int, data: bytes, offset: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.unbounded(file, data[: self.room], offset)
        self.room -= written
        return written


def test_a_full_disk_is_said_once_and_what_waited_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, disk = LedgerWriter(tmp_path), FullDisk(monkeypatch, 1_000)
    for number in range(5):
        writer.add(batch(number))
        writer.flush()
    assert writer.problem == "No space left on device"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text
    assert len(ids(tmp_path)) < 5, "what is torn is not read"
    disk.room = 10**6
    writer.flush()
    assert (writer.problem, len(caplog.records)) == (None, 2)
    writer.close()
    assert ids(tmp_path) == [f"{number}-0" for number in range(5)]
    assert bill_of(tmp_path).counter_mj == 5 * 3_610


def test_a_disk_that_is_full_to_the_end_is_said_with_the_number_of_requests_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, _ = LedgerWriter(tmp_path), FullDisk(monkeypatch, 1_000)
    for number in range(5):
        writer.add(batch(number, requests=2))
    writer.close()
    lost = 10 - len(ids(tmp_path))
    assert 0 < lost < 10
    assert f"lacks the last {lost} requests: No space left on device" in caplog.messages[-1]


def test_a_disk_that_stays_full_loses_lines_of_requests_and_says_how_many_but_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_writer, "MAX_WAITING", 4)
    writer, disk = LedgerWriter(tmp_path), FullDisk(monkeypatch, 0)
    for number in range(6):
        writer.add(batch(number, requests=2))
        writer.flush()
    disk.room = 10**6
    writer.close()
    bill = bill_of(tmp_path)
    assert (bill.lost_requests, bill.groups["chat",].requests) == (8, 4)
    assert bill.counter_mj == 6 * 7_110
    assert bill.unattributed_mj == 60 + 8 * 3_500


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("settle"), st.integers(0, 4), st.integers(0, 5_000)),
        st.tuples(st.just("kill"), st.integers(0, 3_000), st.just(0)),
        st.tuples(st.just("full"), st.integers(0, 3_000), st.just(0)),
        st.tuples(st.just("room"), st.just(0), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_in_every_interleaving_of_settling_full_disks_and_kills_nothing_is_twice_and_the_sums_are_the_counter(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """A kill tears the newest file anywhere beyond its last fsync, and the memory of what waited is gone."""
    folder = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, 10**9)
        patch.setattr(ledger_writer.os, "fsync", lambda _: None)  # nothing here loses power
        writer, number, open_mj = LedgerWriter(folder, file_bytes=3_000), 0, 0
        written, waiting = list[LedgerBatch](), list[LedgerBatch]()
        for kind, amount, more in steps:
            match kind:
                case "settle":
                    more = more if amount > 1 else max(more, open_mj)  # what is no longer open, requests have
                    made = batch(number, requests=amount, open_mj=more, before_mj=open_mj)
                    number, open_mj = number + 1, more
                    writer.add(made)
                    waiting.append(made)
                case "full":
                    disk.room = amount
                case "room":
                    disk.room = 10**9
                case "kill":
                    if writer._file is not None:
                        disk.unbounded(writer._file, b'{"kind":"request","id":"torn'[: amount % 30], writer._size)
                        os.close(writer._file)
                    writer._held.close()
                    writer, open_mj, waiting = LedgerWriter(folder, file_bytes=3_000), 0, []
            if kind in ("flush", "room", "full"):
                writer.flush()
                done = len(waiting) - len(writer._waiting)
                written, waiting = written + waiting[:done], waiting[done:]
        disk.room = 10**9
        writer.close()
        written += waiting
    if not written:
        return
    bill, names = bill_of(folder), ids(folder)
    assert names == [request.id for made in written for request in made.requests], "none lost, none twice"
    assert bill.counter_mj == sum(made.period.counter_mj for made in written)
