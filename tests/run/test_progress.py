"""The numbers that a view shows, and the ticker that brings them to it."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError, NotReadyError
from loadgen.record import RequestRecord
from loadgen.results.metrics import goodput
from loadgen.run import progress
from loadgen.run.process_stats import ProcessMeter, SendingCost, merge_costs, own_cpu_s, own_max_rss_bytes, own_wait_s
from loadgen.run.progress import (
    WARMING_UP,
    NullView,
    Percentiles,
    Plan,
    Progress,
    Stage,
    StageTimer,
    Tallies,
    Waiting,
    progress_at,
    server_start,
    stage_at,
    sum_tallies,
    ticking,
)
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import ScheduledRequest

TALLIES = Tallies(sent=9, in_flight=4, completed=3, failed=2, input_tokens=700, output_tokens=50)
PLAN = Plan(target="m at http://server/v1", limits_ms={"ttft": 40.0}, scheduled=20, total_s=10.0, idle_s=2.0)
START_NS = 5 * NS_PER_S


def at(elapsed_s: float, *, joules: float | None = 100.0, tallies: Tallies = TALLIES) -> Progress:
    oldest = [Waiting(7, START_NS, True)]
    now_ns = START_NS + round(elapsed_s * NS_PER_S)
    return progress_at(now_ns, START_NS, PLAN, tallies, oldest, watts=70.0, joules=joules)


def test_progress_by_hand() -> None:
    unknown = Percentiles(None, None)
    assert at(4.0) == Progress(
        target="m at http://server/v1",
        limits_ms={"ttft": 40.0},
        scheduled=20,
        sent=9,
        in_flight=4,
        completed=3,
        failed=2,
        output_tokens=50,
        tokens_per_s=12.5,
        watts=70.0,
        joules_per_token=2.0,
        elapsed_s=4.0,
        total_s=10.0,
        errors={},
        goodput=None,
        ttft_s=unknown,
        tpot_s=unknown,
        e2e_s=unknown,
        oldest=((Waiting(7, START_NS, True), 4.0),),
    )


@pytest.mark.parametrize(
    ("elapsed_s", "shown_s", "tokens_per_s"),
    [(-0.5, 0.0, None), (0.0, 0.0, None), (10.0, 10.0, 5.0), (12.5, 12.5, 4.0)],
)
def test_time_before_the_start_is_not_shown(elapsed_s: float, shown_s: float, tokens_per_s: float | None) -> None:
    moment = at(elapsed_s)
    assert (moment.elapsed_s, moment.tokens_per_s) == (shown_s, tokens_per_s)


def test_the_rate_of_tokens_is_unknown_until_a_request_has_ended() -> None:
    assert at(4.0, tallies=Tallies(sent=5, in_flight=5)).tokens_per_s is None
    assert at(4.0, tallies=Tallies(sent=5, in_flight=4, failed=1)).tokens_per_s == 0.0


@pytest.mark.parametrize(("joules", "tokens"), [(None, 50), (0.0, 50), (100.0, 0)])
def test_joules_per_token_need_joules_and_tokens(joules: float | None, tokens: int) -> None:
    assert at(1.0, joules=joules, tallies=Tallies(output_tokens=tokens)).joules_per_token is None


ALL_SENT = Tallies(sent=20, in_flight=3)
STAGES: list[tuple[float, Tallies, str, Stage]] = [
    (-2.1, Tallies(), "completed", Stage("measuring idle", done=0.0, total=2.0, unit="s")),
    (-0.5, Tallies(), "completed", Stage("measuring idle", done=1.5, total=2.0, unit="s")),
    (0.0, Tallies(), "completed", Stage("sending")),
    (10.5, TALLIES, "completed", Stage("sending")),
    (10.5, ALL_SENT, "completed", Stage("draining")),
    (4.0, TALLIES, "interrupted", Stage("draining", hint="Ctrl-C again to abort")),
    (-1.0, Tallies(), "interrupted", Stage("stopping")),
    (4.0, TALLIES, "aborted", Stage("aborting")),
]


@pytest.mark.parametrize(("elapsed_s", "tallies", "stopped_by", "stage"), STAGES)
def test_the_stage_of_a_sender(elapsed_s: float, tallies: Tallies, stopped_by: str, stage: Stage) -> None:
    assert stage_at(elapsed_s, PLAN, tallies, stopped_by) == stage


def test_without_an_idle_time_the_lead_before_the_first_instant_is_sending() -> None:
    assert stage_at(-0.05, replace(PLAN, idle_s=0.0), Tallies(), "completed") == Stage("sending")


RECORDS = st.builds(
    RequestRecord,
    index=st.just(0),
    workload=st.just("chat"),
    scheduled_ns=st.just(0),
    sent_ns=st.just(0),
    first_token_ns=st.none() | st.integers(1, 2 * NS_PER_S),
    error=st.none() | st.sampled_from(["http", "cancelled"]),
    input_tokens=st.none() | st.integers(0, 99),
    output_tokens=st.none() | st.integers(0, 99),
)


@given(st.lists(RECORDS), st.integers(0, 5))
def test_tallies_count_every_record_once(records: list[RequestRecord], unfinished: int) -> None:
    tallies = Tallies()
    for _ in range(len(records) + unfinished):
        tallies.start()
    for record in records:
        tallies.add(record, {"ttft": 1000.0})
    completed = [record for record in records if record.ok]
    assert (tallies.sent, tallies.in_flight) == (len(records) + unfinished, unfinished)
    assert (tallies.completed, tallies.failed) == (len(completed), len(records) - len(completed))
    assert tallies.input_tokens == sum(record.input_tokens or 0 for record in records)
    assert tallies.output_tokens == sum(record.output_tokens or 0 for record in records)
    assert tallies.errors == Counter(record.error for record in records if record.error)
    assert tallies.ttft_s.counts.total() == sum(record.ttft_ns is not None for record in completed)
    assert tallies.limited == len(records)
    assert tallies.good == goodput(records, {"ttft": 1000.0}, 1.0).good


def test_requests_without_limits_are_in_no_goodput() -> None:
    tallies = Tallies()
    tallies.start()
    tallies.add(RequestRecord(index=0, workload="chat", scheduled_ns=0), {})
    assert (tallies.limited, tallies.good) == (0, 0)
    assert at(1.0, tallies=tallies).goodput is None


def test_the_tallies_of_several_processes_add_up() -> None:
    ended = RequestRecord(index=0, workload="chat", scheduled_ns=0, sent_ns=0, first_token_ns=9, error="http")
    first, second = Tallies(), Tallies()
    for tallies, records in ((first, [ended]), (second, [ended, msgspec.structs.replace(ended, error=None)])):
        for record in records:
            tallies.start()
            tallies.add(record, {"ttft": 1.0})
    both = sum_tallies([first, second])
    assert (both.sent, both.completed, both.failed, both.limited, both.good) == (3, 1, 2, 3, 1)
    assert both.errors == {"http": 2}
    assert both.ttft_s == first.ttft_s + second.ttft_s
    assert sum_tallies([]) == Tallies()


# -- stages before the first request --------------------------------------------------------------------------------


def test_a_stage_is_shown_when_it_begins_and_counts_the_seconds_since_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter((10.0, 10.0, 13.5, 20.0, 20.0, 26.0))
    monkeypatch.setattr(progress, "monotonic", lambda: next(now_s))
    shown: list[Stage] = []

    class Recorder(NullView):
        def update(self, stage: Stage, progress: Progress | None = None) -> None:
            shown.append(stage)

    timer = StageTimer(Recorder())
    timer.show()
    assert not shown, "nothing has begun"
    timer.begin("waiting for the first answer")
    timer.show()
    timer.begin("counting prompts", 0, 40)
    timer.begin("counting prompts", 12, 40)
    timer.show()
    assert shown == [
        Stage("waiting for the first answer", waited_s=0.0),
        Stage("waiting for the first answer", waited_s=3.5),
        Stage("counting prompts", 0, 40, waited_s=0.0),
        Stage("counting prompts", 12, 40, waited_s=6.0),
    ]


def test_what_a_stage_waits_for_is_shown_at_once_and_until_it_ends() -> None:
    hints: list[str] = []

    class Recorder(NullView):
        def update(self, stage: Stage, progress: Progress | None = None) -> None:
            hints.append(stage.hint)

    timer = StageTimer(Recorder())
    timer.wait("nothing has begun")
    timer.begin("waiting for the first answer")
    timer.wait("waiting for http://h")
    timer.show()
    timer.begin("asking how it counts tokens")
    assert hints == ["", "waiting for http://h", "waiting for http://h", ""]


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("", Stage("starting vllm", waited_s=3.0)),
        ("[vllm] Loading: 25%", Stage("waiting for vllm to load the model", waited_s=3.0, detail="Loading: 25%")),
    ],
)
def test_a_server_that_starts_shows_its_last_line(text: str, stage: Stage) -> None:
    shown: list[Stage] = []

    class Recorder(NullView):
        def update(self, stage: Stage, progress: Progress | None = None) -> None:
            shown.append(stage)

    server_start(Recorder(), "vllm")(3.0, text)
    assert shown == [stage]


# -- the ticker -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_TICK_S", 0.001)


def test_it_ticks_while_the_block_runs_and_not_after_it() -> None:
    async def main() -> int:
        ticks, third = 0, asyncio.Event()

        def update() -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 3:
                third.set()

        async with ticking(update):
            assert ticks == 0
            await third.wait()
        ended = ticks
        await asyncio.sleep(0.01)
        return ticks - ended

    assert asyncio.run(main()) == 0


def test_an_error_in_a_tick_ends_the_block() -> None:
    def update() -> None:
        raise LoadgenError("disk full")

    async def main() -> None:
        async with ticking(update):
            await asyncio.Event().wait()

    with pytest.raises(LoadgenError, match=r"^disk full$"):
        asyncio.run(main())


def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    async def main() -> None:
        async with ticking(lambda: None):
            raise LoadgenError("no such text")

    with pytest.raises(LoadgenError, match=r"^no such text$"):
        asyncio.run(main())


# -- the cost of sending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "merged"),
    [
        (["kernel", "kernel"], "kernel"),
        (["kernel", None], "kernel"),
        (["kernel", "reading", "kernel"], "reading"),
        ([None, "reading"], "reading"),
        ([None], None),
        ([], None),
    ],
)
def test_stamps_are_as_good_as_the_worst_process_s(sources: list[str | None], merged: str | None) -> None:
    costs = [SendingCost(1.0, 1, stamped_by=source) for source in sources]  # type: ignore[arg-type]
    assert merge_costs(costs).stamped_by == merged


def test_a_cost_without_delays_has_its_own_empty_list() -> None:
    first, second = SendingCost(1.0, 1), SendingCost(1.0, 1)
    first.late_ns.append(3)
    assert not second.late_ns


def test_the_wait_for_a_core_is_the_kernel_s_second_number_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("123 2500000000 7\n")
    assert own_wait_s(tmp_path / "schedstat") == 2.5


@pytest.mark.parametrize("content", [None, "", "123\n", "123 many\n"])
def test_the_wait_for_a_core_is_unknown_where_the_kernel_does_not_state_it(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "schedstat").write_text(content)
    assert own_wait_s(tmp_path / "schedstat") is None


def test_cpu_time_grows_with_work_and_memory_is_in_bytes() -> None:
    before_s = own_cpu_s()
    while own_cpu_s() == before_s:
        sum(range(10_000))
    assert own_max_rss_bytes() > 10 * 2**20


# -- requests without a response --------------------------------------------------------------------------------------


@given(st.integers(0, 10**15), st.integers(0, 10**12), st.sampled_from(["not_sent", "cancelled"]))
def test_a_request_without_a_response_has_a_record_at_its_instant(start_ns: int, offset_ns: int, error: str) -> None:
    request = ScheduledRequest(index=3, offset_ns=offset_ns, workload="code", input_tokens=1, output_tokens=1)
    record = RequestRecord.unanswered(request, start_ns, error, "why")  # type: ignore[arg-type]
    assert (record.index, record.workload, record.scheduled_ns) == (3, "code", start_ns + offset_ns)
    assert (record.error, record.detail, record.ok) == (error, "why", False)
    assert record.sent_ns is record.finished_ns is record.output_tokens is record.lag_ns is None


@pytest.mark.parametrize(
    ("waits_s", "waited_s"), [((1.0, 3.5), 2.5), ((0.0, 0.25), 0.25), ((None, None), None), ((None, 2.0), None)]
)
def test_the_cost_is_what_was_added_since_the_meter_began(
    waits_s: tuple[float | None, float | None], waited_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, waits = iter((10.0, 10.75)), iter(waits_s)
    monkeypatch.setattr("loadgen.run.process_stats.own_cpu_s", lambda: next(cpu))
    monkeypatch.setattr("loadgen.run.process_stats.own_wait_s", lambda: next(waits))
    monkeypatch.setattr("loadgen.run.process_stats.own_max_rss_bytes", lambda: 4096)

    async def main() -> SendingCost:
        with ProcessMeter() as meter:
            await asyncio.sleep(0)
        return meter.cost("kernel", {"sent": 1, "lost": 0})

    cost = asyncio.run(main())
    assert (cost.cpu_s, cost.waited_s, cost.max_rss_bytes) == (0.75, waited_s, 4096)
    assert (cost.stamped_by, cost.spans) == ("kernel", {"sent": 1, "lost": 0})


@pytest.mark.parametrize(("wake_ns", "late_ns"), [(0, 0), (999_999, 0), (1_000_000, 0), (1_000_007, 7)])
def test_a_wake_up_is_late_by_what_it_comes_after_its_due_time_and_never_early(
    wake_ns: int, late_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is due to wake up after one millisecond."""
    readings = iter((0, wake_ns))
    monkeypatch.setattr("loadgen.run.process_stats.LOOP_PERIOD_S", 0.001)
    monkeypatch.setattr("loadgen.run.process_stats.monotonic_ns", lambda: next(readings, 0))

    async def main() -> int:
        with ProcessMeter() as meter:
            while not (late := meter.cost(None, None).late_ns):
                await asyncio.sleep(0.001)
        return late[0]

    assert asyncio.run(main()) == late_ns


@pytest.mark.parametrize("ending", [TimeoutError(), LoadgenError("the request was cancelled")], ids=["raises", "fails"])
def test_a_preparation_beyond_its_time_is_an_error_that_names_its_stage(ending: Exception) -> None:
    async def prepare(limit_s: float | None, takes_s: float) -> None:
        stages = StageTimer(NullView())
        async with stages.within(limit_s):
            stages.begin(WARMING_UP, 0, 4)
            try:
                await asyncio.sleep(takes_s)
            except asyncio.CancelledError:
                raise ending from None
            raise ending

    with pytest.raises(NotReadyError, match=r"^no request was sent within 0\.1 s: still warming up; --warmup 0 sends"):
        asyncio.run(prepare(0.1, 60))
    for limit_s in (None, 60):
        with pytest.raises(type(ending)) as raised:
            asyncio.run(prepare(limit_s, 0))
        assert raised.value is ending
