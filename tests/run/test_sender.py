"""Open loop: the schedule decides when, the server never does; and every request gets exactly one record."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from loadgen import clock
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.run.pacer import Pacer
from loadgen.run.runner import Runner
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import Schedule, ScheduledRequest


def schedule(gaps_ms: list[int]) -> Schedule:
    offsets = [sum(gaps_ms[: i + 1]) * NS_PER_MS for i in range(len(gaps_ms))]
    requests = [
        ScheduledRequest(index=i, offset_ns=at, workload="chat", input_tokens=1, output_tokens=1)
        for i, at in enumerate(offsets)
    ]
    return Schedule(tuple(requests), "trace", None, 0)


class Server:
    """Takes `busy_s` for each request, like a client would report it."""

    def __init__(self, busy_s: float) -> None:
        self.busy_s = busy_s
        self.most_in_flight = self.in_flight = 0

    def launch(
        self, request: ScheduledRequest, body: bytes, scheduled_ns: int, landed: Callable[[RequestRecord], None]
    ) -> asyncio.Task[RequestRecord]:
        task = asyncio.create_task(self.send(request, body, scheduled_ns))
        task.add_done_callback(lambda task: landed(task.result()))
        return task

    async def send(self, request: ScheduledRequest, body: bytes, scheduled_ns: int) -> RequestRecord:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        sent_ns = clock.monotonic_ns()
        error = None
        try:
            await asyncio.sleep(self.busy_s)
        except asyncio.CancelledError:
            error = "cancelled"
        self.in_flight -= 1
        return RequestRecord(
            index=request.index,
            workload="chat",
            scheduled_ns=scheduled_ns,
            sent_ns=sent_ns,
            finished_ns=clock.monotonic_ns(),
            output_tokens=3,
            error=error,  # type: ignore[arg-type]
        )


def run(
    gaps_ms: list[int], server: Server, *, then: Callable[[Runner], None] | None = None, cap: int | None = None
) -> tuple[list[RequestRecord], Runner, int]:
    records: list[RequestRecord] = []

    async def main() -> tuple[Runner, int]:
        runner = Runner(schedule(gaps_ms), lambda _: b"", server.launch, records.append, cap)
        start_ns = clock.monotonic_ns() + 20 * NS_PER_MS
        if then:
            asyncio.get_running_loop().call_later(0.15, then, runner)
        await runner.run(start_ns)
        return runner, start_ns

    runner, start_ns = asyncio.run(main())
    return records, runner, start_ns


def test_every_request_is_sent_at_its_instant_however_slow_the_server_is() -> None:
    gaps = [0, 10, 0, 30, 5, 20]
    server = Server(busy_s=0.2)
    records, runner, start_ns = run(gaps, server)
    assert sorted(record.index for record in records) == list(range(6))
    assert server.most_in_flight == 6, "nobody waited for an answer"
    for record in records:
        assert record.scheduled_ns == start_ns + sum(gaps[: record.index + 1]) * NS_PER_MS
        assert record.sent_ns is not None
        assert record.sent_ns >= record.scheduled_ns
    assert (runner.tallies.sent, runner.tallies.completed, runner.tallies.in_flight) == (6, 6, 0)
    assert runner.tallies.output_tokens == 18
    assert runner.stopped_by == "completed"


def test_a_cap_closes_the_loop_and_keeps_the_intended_instants() -> None:
    server = Server(busy_s=0.03)
    records, _, start_ns = run([0, 0, 0, 0], server, cap=2)
    assert server.most_in_flight == 2
    assert [record.scheduled_ns for record in records] == [start_ns] * 4


def test_stop_drains_what_is_in_flight_and_accounts_for_the_rest() -> None:
    records, runner, _ = run([0, 10, 1000, 1000], Server(busy_s=0.3), then=lambda runner: runner.stop("interrupted"))
    assert runner.stopped_by == "interrupted"
    assert [(record.index, record.error) for record in records] == [
        (0, None),
        (1, None),
        (2, "not_sent"),
        (3, "not_sent"),
    ]
    assert records[2].sent_ns is None


def test_abort_cancels_what_is_in_flight() -> None:
    records, runner, _ = run([0, 10, 60_000], Server(busy_s=60), then=Runner.abort)
    assert runner.stopped_by == "aborted"
    found = sorted((record.index, record.error) for record in records)
    assert found == [(0, "cancelled"), (1, "cancelled"), (2, "not_sent")]


def test_what_on_record_raises_ends_the_run() -> None:
    async def main() -> None:
        def full(_: RequestRecord) -> None:
            raise LoadgenError("disk full")

        await Runner(schedule([0, 60_000]), lambda _: b"", Server(0).launch, full).run(clock.monotonic_ns())

    with pytest.raises(LoadgenError, match="disk full"):
        asyncio.run(main())


def test_bodies_are_made_before_the_deadline() -> None:
    made: list[int] = []

    async def main() -> int:
        def make(_: ScheduledRequest) -> bytes:
            made.append(clock.monotonic_ns())
            return b""

        start_ns = clock.monotonic_ns() + 20 * NS_PER_MS
        await Runner(schedule([20, 20]), make, Server(0).launch, lambda _: None).run(start_ns)
        return start_ns

    start_ns = asyncio.run(main())
    assert made[0] < start_ns + 20 * NS_PER_MS
    assert made[1] < start_ns + 40 * NS_PER_MS


# -- sessions ---------------------------------------------------------------------------------------------------------


def sessions(*turns: tuple[int, int | None, int]) -> Schedule:
    """(offset ms, after, think ms) of each request."""
    requests = [
        ScheduledRequest(
            index=i, offset_ns=at * NS_PER_MS, workload="chat", input_tokens=1, output_tokens=1, after=after,
            think_ns=think * NS_PER_MS,
        )
        for i, (at, after, think) in enumerate(turns)
    ]  # fmt: skip
    return Schedule(tuple(requests), None, None, 0)


def run_sessions(
    plan: Schedule, server: Server, *, then: Callable[[Runner], None] | None = None, cap: int | None = None
) -> tuple[dict[int, RequestRecord], Runner]:
    records: list[RequestRecord] = []

    async def main() -> Runner:
        runner = Runner(plan, lambda _: b"", server.launch, records.append, cap)
        if then:
            asyncio.get_running_loop().call_later(0.15, then, runner)
        await runner.run(clock.monotonic_ns() + 20 * NS_PER_MS)
        return runner

    runner = asyncio.run(main())
    assert sorted(record.index for record in records) == list(range(len(plan.requests))), "one record each"
    assert runner.tallies.sent == sum(record.sent_ns is not None for record in records)
    assert runner.tallies.in_flight == 0
    return {record.index: record for record in records}, runner


TWO_SESSIONS = sessions((0, None, 0), (5, None, 0), (20, 0, 20), (40, 2, 20), (5, 1, 0))


@pytest.mark.parametrize("cap", [None, 1])
def test_a_turn_is_due_a_think_time_after_the_answer_before_it(cap: int | None) -> None:
    records, runner = run_sessions(TWO_SESSIONS, Server(busy_s=0.03), cap=cap)
    for request in TWO_SESSIONS.requests:
        if request.after is not None:
            record, before = records[request.index], records[request.after]
            assert before.finished_ns is not None and record.sent_ns is not None
            assert record.scheduled_ns == before.finished_ns + request.think_ns
            assert record.sent_ns >= record.scheduled_ns
    assert runner.stopped_by == "completed"


def test_a_session_waits_for_itself_and_for_nobody_else() -> None:
    server = Server(busy_s=0.08)
    run_sessions(sessions((0, None, 0), (1, None, 0), (2, None, 0), (0, 0, 0), (1, 1, 0)), server)
    assert server.most_in_flight == 3


def test_a_session_ends_where_a_turn_of_it_fails() -> None:
    class Failing(Server):
        async def send(self, request: ScheduledRequest, body: bytes, scheduled_ns: int) -> RequestRecord:
            record = await super().send(request, body, scheduled_ns)
            return msgspec.structs.replace(record, error="http") if request.index == 0 else record

    records, runner = run_sessions(TWO_SESSIONS, Failing(busy_s=0.01))
    assert {i: records[i].error for i in range(5)} == {0: "http", 1: None, 2: "not_sent", 3: "not_sent", 4: None}
    assert records[2].detail == records[3].detail == "turn 0 of its session failed: http"
    assert records[3].sent_ns is None
    assert runner.stopped_by == "completed"


@pytest.mark.parametrize(("end", "second"), [(lambda r: r.stop("interrupted"), None), (Runner.abort, "cancelled")])
def test_stop_and_abort_end_the_thinking(end: Callable[[Runner], None], second: str | None) -> None:
    plan = sessions((0, None, 0), (0, None, 0), (0, 0, 60_000), (60_000, 2, 0), (0, 1, 0))

    class OneSlow(Server):
        async def send(self, request: ScheduledRequest, body: bytes, scheduled_ns: int) -> RequestRecord:
            self.busy_s = 0.3 if request.index == 1 else 0.01
            return await super().send(request, body, scheduled_ns)

    records, _ = run_sessions(plan, OneSlow(0), then=end)
    assert [records[i].error for i in range(5)] == [None, second, "not_sent", "not_sent", "not_sent"]


@pytest.mark.parametrize("with_timer", [True, False])
def test_the_pacer_never_wakes_early(with_timer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_timer:
        monkeypatch.setattr("loadgen.run.pacer.sys.platform", "elsewhere")

    async def main() -> None:
        with Pacer() as pacer:
            start_ns = clock.monotonic_ns()
            for ms in (0, 3, 3, 7, 12):
                await pacer.until(start_ns + ms * NS_PER_MS)
                assert clock.monotonic_ns() >= start_ns + ms * NS_PER_MS

    asyncio.run(main())


def test_a_cancelled_pacer_lets_go() -> None:
    async def main() -> None:
        with Pacer() as pacer:
            task = asyncio.create_task(pacer.until(clock.monotonic_ns() + 3600 * 10**9))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await pacer.until(clock.monotonic_ns() + NS_PER_MS)

    asyncio.run(main())
