"""Open loop: the schedule decides when, the server never does; and every request gets exactly one record."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from loadgen import clock
from loadgen.client.answer import Answer
from loadgen.client.client import Client, OnRecord, Post
from loadgen.client.request_body import LiveHistory, Message
from loadgen.client.server_info import ServerInfo
from loadgen.errors import LoadgenError, NotReadyError
from loadgen.record import ErrorKind, RequestRecord
from loadgen.run.config import PreparedRun, RunConfig
from loadgen.run.pacer import BODIES_AHEAD, BYTES_AHEAD, Pacer
from loadgen.run.process_stats import SendingCost
from loadgen.run.sender import EARLY_NS, MARGIN_NS, NEAR_NS, Sender, warm_prefixes, warm_up
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import Schedule, ScheduledRequest, after_all
from loadgen.workload.words import WordsRef

Write = Callable[[RequestRecord], None]


def schedule(gaps_ms: list[int]) -> Schedule:
    offsets = [sum(gaps_ms[: i + 1]) * NS_PER_MS for i in range(len(gaps_ms))]
    requests = [
        ScheduledRequest(index=i, offset_ns=offset_ns, workload="chat", input_tokens=1, output_tokens=1)
        for i, offset_ns in enumerate(offsets)
    ]
    return Schedule(tuple(requests), "trace", None, 0)


@dataclass(frozen=True)
class Prepared(PreparedRun):
    """A prepared run whose bodies are what `make` says."""

    make: Callable[[ScheduledRequest], bytes] = lambda request: b"body %d" % request.index

    def message_maker(self, seed: int) -> Callable[[ScheduledRequest], Message]:
        return lambda request: Message("/chat/completions", self.make(request))


def prepared(cap: int | None = None, **kwargs: Any) -> PreparedRun:
    config = RunConfig(out=Path("unused"), base_url="http://server/v1", max_concurrency=cap, warmup=2)
    return Prepared("run", config, ServerInfo("http://server/v1", "m", None), {}, **kwargs)


class Server:
    """A client whose server takes `busy_s` for each request; a request of `failing` ends with `error`."""

    stamped_by = None

    def __init__(self, busy_s: float = 0.0, failing: tuple[int, ...] = (), error: ErrorKind = "http") -> None:
        self.busy_s, self.failing, self.error = busy_s, failing, error
        self.max_in_flight = self.in_flight = 0
        self.posts: list[Post] = []

    def busy_for_s(self, index: int) -> float:
        return self.busy_s

    def send(self, post: Post, on_record: OnRecord) -> Any:
        self.posts.append(post)
        response = asyncio.create_task(self._respond(post))
        response.add_done_callback(lambda task: on_record(task.result()))
        return SimpleNamespace(cancel=response.cancel, post=post)

    def cancel(self, exchange: Any) -> None:
        exchange.cancel()

    async def post(
        self, path: str, body: bytes, *, workload: str, headers: Mapping[str, str], hides_words: bool
    ) -> RequestRecord:
        return await self._respond(Post(path, body, int(body.split()[1]), workload, 0, ""))

    async def _respond(self, post: Post) -> RequestRecord:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        sent_ns = clock.monotonic_ns()
        error: ErrorKind | None = self.error if post.index in self.failing else None
        try:
            await asyncio.sleep(self.busy_for_s(post.index))
        except asyncio.CancelledError:
            error = "cancelled"
        self.in_flight -= 1
        return RequestRecord(
            index=post.index,
            workload="chat",
            scheduled_ns=post.scheduled_ns,
            sent_ns=sent_ns,
            finished_ns=clock.monotonic_ns(),
            output_tokens=3,
            error=error,
        )


@dataclass
class Outcome:
    records: list[RequestRecord]
    sender: Sender
    start_ns: int
    cost: SendingCost

    @property
    def errors(self) -> dict[int, str | None]:
        return {record.index: record.error for record in self.records}


def run(
    plan: Schedule,
    server: Server,
    *,
    when: Callable[[], bool] = lambda: False,
    then: Callable[[Sender], None] = lambda sender: None,
    cap: int | None = None,
    write: Write | None = None,
    **kwargs: Any,
) -> Outcome:
    """Send a schedule; call `then` as soon as `when` holds. Every request of the schedule gets exactly one record."""
    records: list[RequestRecord] = []

    async def watch(sender: Sender) -> None:
        while not when():
            await asyncio.sleep(0.001)
        then(sender)

    async def main() -> Outcome:
        client = cast("Client", server)
        sender = Sender(plan, prepared(cap, **kwargs), client, write or records.append)
        start_ns = clock.monotonic_ns() + 20 * NS_PER_MS
        watcher = asyncio.create_task(watch(sender))
        cost = await sender.run(start_ns)
        watcher.cancel()
        return Outcome(records, sender, start_ns, cost)

    outcome = asyncio.run(main())
    if write is None:
        assert sorted(record.index for record in records) == list(range(len(plan.requests)))
    assert outcome.sender.tallies.sent == len(server.posts)
    assert outcome.sender.tallies.in_flight == 0
    return outcome


def test_every_request_is_sent_at_its_instant_however_slow_the_server_is() -> None:
    gaps = [0, 10, 0, 30, 5, 20]
    released = asyncio.Event()

    class Stuck(Server):
        async def _respond(self, post: Post) -> RequestRecord:
            if len(self.posts) == len(gaps):
                released.set()
            await released.wait()
            return await super()._respond(post)

    server = Stuck()
    outcome = run(schedule(gaps), server)
    assert [post.index for post in server.posts] == list(range(6)), "none waited for a response"
    for record in outcome.records:
        assert record.scheduled_ns == outcome.start_ns + sum(gaps[: record.index + 1]) * NS_PER_MS
        assert record.sent_ns is not None and record.sent_ns >= record.scheduled_ns
    tallies = outcome.sender.tallies
    assert (tallies.sent, tallies.completed, tallies.failed, tallies.output_tokens) == (6, 6, 0, 18)
    assert outcome.sender.stopped_by == "completed"


def test_a_request_is_posted_with_its_own_body_and_an_id_made_of_run_and_index() -> None:
    server = Server()
    outcome = run(schedule([0, 1, 1]), server)
    assert [(post.request_id, post.body, post.path) for post in server.posts] == [
        (f"run-{i}", b"body %d" % i, "/chat/completions") for i in range(3)
    ]
    assert [post.scheduled_ns - outcome.start_ns for post in server.posts] == [0, NS_PER_MS, 2 * NS_PER_MS]


@pytest.mark.parametrize(
    ("body_ns", "spare_ns", "ahead"), [(0, 0, 1), (0, 1, BODIES_AHEAD), (1000, 0, 1), (1000, 1, 2)]
)
def test_another_body_is_made_ahead_only_while_two_of_the_slowest_and_a_margin_fit_in(
    body_ns: int, spare_ns: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is made in any case. `spare_ns` is the time beyond that, once it is made."""
    now_ns = 10**12
    monkeypatch.setattr("loadgen.run.sender.monotonic_ns", lambda: now_ns)

    def make(request: ScheduledRequest) -> bytes:
        nonlocal now_ns
        now_ns += body_ns
        return b"%d" % request.index

    async def main() -> list[bytes]:
        plan = schedule([0] * (BODIES_AHEAD + 10))
        sender = Sender(plan, prepared(make=make), cast("Client", Server()), lambda _: None)
        due_ns = now_ns + body_ns + 2 * body_ns + MARGIN_NS + spare_ns
        with Pacer() as pacer:
            await sender._make_messages_ahead(5, due_ns, pacer)
        return [message.body for message in sender._messages]

    assert asyncio.run(main()) == [b"%d" % i for i in range(5, 5 + ahead)]


def test_long_bodies_are_made_ahead_up_to_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.run.sender.BYTES_AHEAD", 100)
    made: list[int] = []
    most = 0

    def make(request: ScheduledRequest) -> bytes:
        nonlocal most
        made.append(request.index)
        most = max(most, len(made) - len(server.posts))
        return b"x" * 40

    server = Server()
    run(schedule([50, *[0] * 9]), server, make=make)
    assert made == [post.index for post in server.posts] == list(range(10)), "each once, in order"
    assert most <= 3, "two are 80 bytes, three are the first that reach 100"
    assert BYTES_AHEAD > 20 * 700_000


def test_no_body_is_made_ahead_beyond_the_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.run.sender.monotonic_ns", lambda: 0)

    async def main() -> int:
        sender = Sender(schedule([0] * 7), prepared(), cast("Client", Server()), lambda _: None)
        with Pacer() as pacer:
            await sender._make_messages_ahead(4, 10**12, pacer)
        return len(sender._messages)

    assert asyncio.run(main()) == 3


def test_a_cap_closes_the_loop_and_keeps_the_intended_instants() -> None:
    server = Server(busy_s=0.01)
    outcome = run(schedule([0] * 5), server, cap=2)
    assert server.max_in_flight == 2
    assert [record.scheduled_ns for record in outcome.records] == [outcome.start_ns] * 5


def test_stop_drains_the_requests_in_flight_and_accounts_for_the_others() -> None:
    server = Server(busy_s=0.05)
    outcome = run(
        schedule([0, 10, 60_000, 1000]),
        server,
        when=lambda: len(server.posts) == 2,
        then=lambda sender: sender.stop("interrupted"),
    )
    assert outcome.sender.stopped_by == "interrupted"
    assert outcome.errors == {0: None, 1: None, 2: "not_sent", 3: "not_sent"}
    unsent = outcome.records[2]
    assert (unsent.sent_ns, unsent.detail) == (None, None)
    assert unsent.scheduled_ns == outcome.start_ns + 60_010 * NS_PER_MS


def test_abort_cancels_the_requests_in_flight() -> None:
    server = Server(busy_s=60)
    outcome = run(schedule([0, 10, 60_000]), server, when=lambda: len(server.posts) == 2, then=Sender.abort)
    assert outcome.sender.stopped_by == "aborted"
    assert outcome.errors == {0: "cancelled", 1: "cancelled", 2: "not_sent"}
    assert (outcome.sender.tallies.completed, outcome.sender.tallies.failed) == (0, 2)


def test_an_abort_after_a_stop_ends_a_drain_that_takes_too_long() -> None:
    server = Server(busy_s=60)

    def stop_twice(sender: Sender) -> None:
        sender.stop("interrupted")
        sender.abort()

    outcome = run(schedule([0, 60_000]), server, when=lambda: len(server.posts) == 1, then=stop_twice)
    assert outcome.sender.stopped_by == "aborted"
    assert outcome.errors == {0: "cancelled", 1: "not_sent"}


def test_a_record_that_cannot_be_kept_ends_the_run_and_cancels_the_others() -> None:
    class OneSlow(Server):
        def busy_for_s(self, index: int) -> float:
            return 60.0 if index == 0 else 0.0

    kept: list[RequestRecord] = []

    def full(record: RequestRecord) -> None:
        kept.append(record)
        raise LoadgenError("disk full")

    server = OneSlow()
    with pytest.raises(LoadgenError, match="disk full"):
        run(schedule([0, 0, 60_000]), server, write=full)
    assert [(record.index, record.error) for record in kept] == [(1, None), (0, "cancelled")], "and none for request 2"
    assert server.in_flight == 0


def test_a_body_that_cannot_be_made_ends_the_run() -> None:
    def make(request: ScheduledRequest) -> bytes:
        if request.index == 1:
            raise LoadgenError("no such text")
        return b""

    with pytest.raises(LoadgenError, match="no such text"):
        run(schedule([0, 1, 60_000]), Server(), make=make)


def test_bodies_are_made_before_the_first_instant_but_not_too_many() -> None:
    made: list[int] = []

    def make(request: ScheduledRequest) -> bytes:
        made.append(request.index)
        return b"body %d" % request.index

    class Counting(Server):
        made_at_first: int | None = None

        def send(self, post: Post, on_record: OnRecord) -> Any:
            self.made_at_first = self.made_at_first or len(made)
            return super().send(post, on_record)

    server = Counting()
    requests = 2 * BODIES_AHEAD
    run(schedule([20, *[0] * (requests - 1)]), server, make=make)
    assert made == [post.index for post in server.posts] == list(range(requests)), "each once, in order"
    assert server.made_at_first is not None and 1 <= server.made_at_first <= BODIES_AHEAD


def test_the_cost_of_sending_is_this_process_s_own() -> None:
    cost = run(schedule([0, 30]), Server()).cost
    assert cost.cpu_s > 0
    assert cost.max_rss_bytes > 2**20
    assert all(late_ns >= 0 for late_ns in cost.late_ns)
    assert (cost.stamped_by, cost.spans) == (None, None)


# -- sessions ---------------------------------------------------------------------------------------------------------


def sessions(*turns: tuple[int, int | None, int]) -> Schedule:
    """Return a schedule of (offset ms, after, think ms) of each request."""
    requests = [
        ScheduledRequest(
            index=i, offset_ns=offset_ms * NS_PER_MS, workload="chat", input_tokens=1, output_tokens=1, after=after,
            think_ns=think_ms * NS_PER_MS,
        )
        for i, (offset_ms, after, think_ms) in enumerate(turns)
    ]  # fmt: skip
    return Schedule(tuple(requests), None, None, 0)


TWO_SESSIONS = sessions((0, None, 0), (5, None, 0), (20, 0, 20), (40, 2, 20), (5, 1, 0))


@pytest.mark.parametrize("cap", [None, 1])
def test_a_turn_is_due_a_think_time_after_the_response_before_it(cap: int | None) -> None:
    outcome = run(TWO_SESSIONS, Server(busy_s=0.01), cap=cap)
    records = {record.index: record for record in outcome.records}
    for request in TWO_SESSIONS.requests:
        if request.after is not None:
            record, previous = records[request.index], records[request.after]
            assert previous.finished_ns is not None and record.sent_ns is not None
            assert record.scheduled_ns == previous.finished_ns + request.think_ns
            assert record.sent_ns >= record.scheduled_ns
    assert outcome.errors == dict.fromkeys(range(5))
    assert outcome.sender.stopped_by == "completed"


def test_a_session_waits_for_itself_only() -> None:
    """Three first turns are in flight together; the second turns of two sessions come after the responses to theirs."""
    server = Server(busy_s=0.05)
    outcome = run(sessions((0, None, 0), (1, None, 0), (2, None, 0), (0, 0, 0), (1, 1, 0)), server)
    sent_ns = {record.index: record.sent_ns or 0 for record in outcome.records}
    finished_ns = {record.index: record.finished_ns or 0 for record in outcome.records}
    assert [post.index for post in server.posts[:3]] == [0, 1, 2]
    assert sent_ns[3] >= finished_ns[0] and sent_ns[4] >= finished_ns[1]


def test_a_session_ends_where_a_turn_of_it_fails() -> None:
    outcome = run(TWO_SESSIONS, Server(busy_s=0.01, failing=(0,)))
    assert outcome.errors == {0: "http", 1: None, 2: "not_sent", 3: "not_sent", 4: None}
    for record in outcome.records:
        if record.error == "not_sent":
            assert record.detail == "turn 0 of its session failed: http"
            assert record.sent_ns is None
    assert outcome.sender.stopped_by == "completed"


def test_a_later_turn_that_fails_ends_its_own_successors_only() -> None:
    outcome = run(TWO_SESSIONS, Server(failing=(2,)))
    assert outcome.errors == {0: None, 1: None, 2: "http", 3: "not_sent", 4: None}
    (unsent,) = (record for record in outcome.records if record.index == 3)
    assert unsent.detail == "turn 2 of its session failed: http"
    assert unsent.scheduled_ns == outcome.start_ns + 40 * NS_PER_MS, "its earliest instant"


def graph(*requests: tuple[str, tuple[int, ...], int]) -> Schedule:
    """Return a schedule of (session, parents, think ms) of each request."""
    return Schedule(
        tuple(
            ScheduledRequest(
                index=i, offset_ns=0, workload="chat", input_tokens=1, output_tokens=1, session_id=session,
                after=after_all(parents), think_ns=think_ms * NS_PER_MS,
            )
            for i, (session, parents, think_ms) in enumerate(requests)
        ), None, None, 0,
    )  # fmt: skip


# A sub-agent (2, 3) runs beside turn 1, and turn 4 waits for both. Session t follows s on its lane.
FORK_AND_JOIN = graph(("s", (), 0), ("s", (0,), 5), ("s", (0,), 0), ("s", (2,), 0), ("s", (1, 3), 10), ("t", (4, 3), 0))


def test_a_request_is_not_due_before_its_instant_even_if_nothing_holds_it_up() -> None:
    plan = sessions((0, None, 0), (60, 0, 0), (61, 1, 30))
    outcome = run(plan, Server(busy_s=0.001))
    records = {record.index: record for record in outcome.records}
    for request in plan.requests[1:]:
        waited_ns = (records[request.index - 1].finished_ns or 0) + request.think_ns
        earliest_ns = outcome.start_ns + request.offset_ns
        assert records[request.index].scheduled_ns == max(waited_ns, earliest_ns)
        assert (records[request.index].sent_ns or 0) >= earliest_ns


@pytest.mark.parametrize("slow", range(4))
def test_a_request_is_due_a_think_time_after_the_last_of_its_parents(slow: int) -> None:
    class OneSlow(Server):
        def busy_for_s(self, index: int) -> float:
            return 0.05 if index == slow else 0.001

    outcome = run(FORK_AND_JOIN, OneSlow())
    records = {record.index: record for record in outcome.records}
    assert outcome.errors == dict.fromkeys(range(6))
    for request in FORK_AND_JOIN.requests[1:]:
        ends_ns = [records[parent].finished_ns or 0 for parent in request.parents]
        assert records[request.index].scheduled_ns == max(ends_ns) + request.think_ns
        assert (records[request.index].sent_ns or 0) >= max(ends_ns) + request.think_ns


@pytest.mark.parametrize(
    ("failing", "given_up"), [(0, {1, 2, 3, 4}), (1, {4}), (2, {3, 4}), (3, {4}), (4, set()), (5, set())]
)
def test_a_failure_gives_up_what_waits_for_it_in_its_session_and_no_other(failing: int, given_up: set[int]) -> None:
    outcome = run(FORK_AND_JOIN, Server(busy_s=0.001, failing=(failing,)))
    assert len(outcome.records) == 6
    assert {index for index, error in outcome.errors.items() if error == "not_sent"} == given_up
    assert {r.detail for r in outcome.records if r.error == "not_sent"} <= {
        f"turn {failing} of its session failed: http"
    }
    assert outcome.errors[5] == ("http" if failing == 5 else None)


@pytest.mark.parametrize(
    ("end", "second"), [(lambda sender: sender.stop("interrupted"), None), (Sender.abort, "cancelled")]
)
def test_stop_and_abort_end_the_thinking(end: Callable[[Sender], None], second: str | None) -> None:
    """Session 0 thinks, request 1 is in flight, and turn 4 would follow it."""
    plan = sessions((0, None, 0), (0, None, 0), (0, 0, 60_000), (60_000, 2, 0), (0, 1, 0))

    class OneSlow(Server):
        def busy_for_s(self, index: int) -> float:
            return 0.1 if index == 1 else 0.0

    server = OneSlow()
    outcome = run(plan, server, when=lambda: len(server.posts) == 2 and server.in_flight == 1, then=end)
    assert outcome.errors == {0: None, 1: second, 2: "not_sent", 3: "not_sent", 4: "not_sent"}


# -- warm-up ----------------------------------------------------------------------------------------------------------


class Recorder(Server):
    """Keeps the bodies of what is posted outside the schedule."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.bodies: list[bytes] = []

    async def post(
        self, path: str, body: bytes, *, workload: str, headers: Mapping[str, str], hides_words: bool
    ) -> RequestRecord:
        assert (path, workload) == ("/chat/completions", "warmup")
        self.bodies.append(body)
        return await super().post(path, body, workload=workload, headers=headers, hides_words=hides_words)


def test_a_warm_up_sends_the_first_requests_with_prompts_that_no_request_of_the_run_has() -> None:
    server = Recorder()
    asked: list[ScheduledRequest] = []

    def make(request: ScheduledRequest) -> bytes:
        asked.append(request)
        return b"body %d" % request.index

    plan = schedule([1, 1, 1])
    shared = [msgspec.structs.replace(request, prefix_ids=(7,), text_id=5) for request in plan.requests]
    plan = Schedule(tuple(shared), "trace", None, 0)
    announced: list[tuple[str, int, int]] = []
    announce = lambda *stage: announced.append(stage)  # noqa: E731
    asyncio.run(warm_up(plan, prepared(make=make), cast("Client", server), announce))
    assert announced == [("warming up", 0, 2), ("warming up", 1, 2)]
    assert server.bodies == [b"body 3", b"body 4"], "two, as the options say, after the last index of the schedule"
    assert [(request.prefix_ids, request.text_id) for request in asked] == [((), None)] * 2


@pytest.mark.parametrize(
    ("failing", "error", "sent", "fault"),
    [
        ((), "http", 2, None),
        ((3,), "http", 2, None),
        ((4,), "http", 2, None),
        ((3, 4), "http", 2, r"2 of 2 warm-up requests failed \(http\): .*; --warmup 0 sends none"),
        ((3,), "timeout", 1, r"1 of 1 warm-up requests failed \(timeout\)"),
    ],
)
def test_a_warm_up_ends_the_run_if_all_of_it_fails_or_a_timeout_was_waited_for(
    failing: tuple[int, ...], error: ErrorKind, sent: int, fault: str | None
) -> None:
    server = Recorder(failing=failing, error=error)
    with nullcontext() if fault is None else pytest.raises(NotReadyError, match=fault):
        asyncio.run(warm_up(schedule([1, 1, 1]), prepared(), cast("Client", server), lambda *_: None))
    assert len(server.bodies) == sent


@pytest.mark.parametrize(("now_ns", "made"), [(0, BODIES_AHEAD), (2**62, 1)])
def test_bodies_are_made_ahead_if_there_is_time_and_one_by_one_if_not(
    now_ns: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadgen.run.sender.monotonic_ns", lambda: now_ns)
    bodies: list[int] = []

    class Counting(Server):
        def send(self, post: Post, on_record: OnRecord) -> Any:
            if not self.posts:
                made_at_first.append(len(bodies))
            return super().send(post, on_record)

    def make(request: ScheduledRequest) -> bytes:
        bodies.append(request.index)
        return b""

    made_at_first: list[int] = []
    run(schedule([0] * (BODIES_AHEAD + 5)), Counting(), make=make)
    assert made_at_first == [made]
    assert bodies == list(range(BODIES_AHEAD + 5))


@pytest.mark.parametrize(("due_ns", "breaths"), [(5 + MARGIN_NS, 0), (6, 0), (5, 1), (4, 1)])
def test_a_sender_that_is_late_reads_responses_between_two_bodies(
    due_ns: int, breaths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadgen.run.sender.monotonic_ns", lambda: 5)

    class Breathing:
        breaths = 0

        async def breathe(self) -> None:
            self.breaths += 1

    async def main() -> int:
        sender = Sender(schedule([0]), prepared(), cast("Client", Server()), lambda _: None)
        pacer = Breathing()
        await sender._make_messages_ahead(0, due_ns, cast("Pacer", pacer))
        return pacer.breaths

    assert asyncio.run(main()) == breaths


@pytest.mark.parametrize(
    ("due_ns", "slept_s"),
    [
        (EARLY_NS + 7 * NS_PER_MS, [0.007, "made", (EARLY_NS - NEAR_NS) / 1e9]),
        (EARLY_NS, ["made", (EARLY_NS - NEAR_NS) / 1e9]),
        (NEAR_NS + 1, ["made", 1e-9]),
        (NEAR_NS, ["made"]),
        (0, ["made"]),
    ],
)
def test_a_user_sleeps_until_shortly_before_the_next_turn_and_the_pacer_waits_for_the_rest(
    due_ns: int, slept_s: list[float | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body is made shortly before as well, so that a long one is not held for as long as the user thinks."""
    slept: list[float | str] = []
    waited: list[int] = []
    begin_ns = 100 * NS_PER_MS
    now_ns = begin_ns

    async def sleep(duration_s: float) -> None:
        nonlocal now_ns
        now_ns += round(duration_s * 1e9)
        slept.append(duration_s)

    def make(_: ScheduledRequest) -> bytes:
        slept.append("made")
        return b""

    async def until(_: Pacer, instant_ns: int) -> None:
        waited.append(instant_ns)

    async def main() -> None:
        plan = sessions((0, None, 0), (0, 0, 0))
        sender = Sender(plan, prepared(make=make), cast("Client", Server()), lambda _: None)
        monkeypatch.setattr(sender, "launch", lambda *_: None)
        await sender._think(plan.requests[1], begin_ns + due_ns)

    monkeypatch.setattr("loadgen.run.sender.monotonic_ns", lambda: now_ns)
    monkeypatch.setattr("loadgen.run.sender.asyncio.sleep", sleep)
    monkeypatch.setattr(Pacer, "until", until)
    asyncio.run(main())
    assert slept == slept_s
    assert waited == [begin_ns + due_ns]


# -- live answers -----------------------------------------------------------------------------------------------------


class Talker(Server):
    """Answers request i with `answer(i)`, whose words its exchanges have."""

    def __init__(self, answer: Callable[[int], Answer], failing: tuple[int, ...] = ()) -> None:
        super().__init__(failing=failing)
        self.answer = answer

    def send(self, post: Post, on_record: OnRecord) -> Any:
        exchange = super().send(post, on_record)
        words = [self.answer(post.index)] if post.keeps_answer else []
        exchange.stream = SimpleNamespace(answers=lambda index: words)
        return exchange


REF = WordsRef(line=1, sha256="", offset=0, size=0, endpoint="chat")
WORDED = [msgspec.structs.replace(request, words=REF) for request in TWO_SESSIONS.requests]


def talk(
    server: Server, live: bool = True, kept: list[Answer] | None = None
) -> tuple[dict[int, LiveHistory | None], list[RequestRecord]]:
    """Return the history that each request's message was made with, and the records."""
    made: dict[int, LiveHistory | None] = {}
    records: list[RequestRecord] = []
    config = RunConfig(out=Path("unused"), base_url="http://server/v1")
    turns = [msgspec.structs.replace(r, live=True) if r.after is not None and live else r for r in WORDED]
    plan = Schedule(tuple(turns), None, None, 0)

    async def main() -> None:
        ready = Prepared("run", config, ServerInfo("http://server/v1", "m", None), {})
        sender = Sender(plan, ready, cast("Client", server), records.append, None if kept is None else kept.append)

        def make(request: ScheduledRequest, history: LiveHistory | None = None) -> Message:
            made[request.index] = history
            return Message("/chat/completions", b"body %d" % request.index)

        sender.make_message = make
        await sender.run(clock.monotonic_ns())

    asyncio.run(main())
    return made, records


def test_a_live_turn_is_made_of_the_body_and_the_answer_before_it() -> None:
    made, _ = talk(Talker(lambda i: Answer(index=i, text=f"answer {i}")))
    after = {r.index: r.after for r in WORDED}
    for index, history in made.items():
        before = after[index]
        if before is None:
            assert history is None
        else:
            assert history == LiveHistory(b"body %d" % before, Answer(index=before, text=f"answer {before}"))


def test_only_answers_that_a_turn_waits_for_are_kept_unless_all_are_wanted() -> None:
    live, recorded, written = (Talker(lambda i: Answer(index=i)) for _ in range(3))
    talk(live)
    assert {post.index for post in live.posts if post.keeps_answer} == {0, 1, 2}
    made, _ = talk(recorded, live=False)
    assert not any(post.keeps_answer for post in recorded.posts)
    kept: list[Answer] = []
    made, _ = talk(written, live=False, kept=kept)
    assert sorted(answer.index for answer in kept) == [0, 1, 2, 3, 4]
    assert set(made.values()) == {None}


def test_an_answer_that_is_too_long_to_be_kept_ends_its_session() -> None:
    _, records = talk(Talker(lambda i: Answer(index=i, cut=i == 0)))
    assert {r.index: r.detail for r in records if r.error} == dict.fromkeys(
        (2, 3), "turn 0 of its session has an answer that is too long to be kept"
    )


def test_an_answer_without_words_is_an_empty_message() -> None:
    class Silent(Talker):
        def send(self, post: Post, on_record: OnRecord) -> Any:
            exchange = super().send(post, on_record)
            exchange.stream.answers = lambda index: []
            return exchange

    made, _ = talk(Silent(lambda i: Answer(index=i)))
    history = made[2]
    assert history is not None and history.answer.message == {"role": "assistant", "content": ""}


def cached_prompts(failing: tuple[int, ...] = ()) -> tuple[Recorder, list[ScheduledRequest], list[object]]:
    server, asked, announced = Recorder(failing=failing), list[ScheduledRequest](), list[object]()

    def make(request: ScheduledRequest) -> bytes:
        asked.append(request)
        return b"body %d" % request.index

    plan = schedule([1, 1, 1])
    histories = [msgspec.structs.replace(plan.requests[0], prefix_ids=(7, k), output_tokens=50) for k in range(2)]
    plan = dataclasses.replace(plan, warmed=tuple(histories))
    announce = lambda *stage: announced.append(stage)  # noqa: E731
    asyncio.run(warm_prefixes(plan, prepared(make=make), cast("Client", server), announce))
    return server, asked, announced


def test_the_history_of_sessions_is_sent_before_the_run_for_one_token_each() -> None:
    server, asked, announced = cached_prompts()
    assert [(request.prefix_ids, request.output_tokens) for request in asked] == [((7, 0), 1), ((7, 1), 1)]
    assert server.bodies == [b"body 6", b"body 7"], "behind the indices of the run and of its warm-up"
    assert announced == [("filling the prefix cache", 0, 2), ("filling the prefix cache", 1, 2)]


def test_a_history_that_is_not_in_the_cache_ends_the_run() -> None:
    with pytest.raises(LoadgenError, match=r"a request that fills the prefix cache failed \(http\)"):
        cached_prompts(failing=(7,))
