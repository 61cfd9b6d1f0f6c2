"""The users, and what those of one process share while a test runs."""

import logging
import os
import re
import secrets
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gevent.event import AsyncResult
from locust import User, task
from locust.exception import CatchResponseError, StopUser

from loadgen import schedule
from loadgen.ask import Question, Reply, ask
from loadgen.bins import TokenBins, read_bins, sample
from loadgen.blocking import BlockingClient
from loadgen.clock import anchor
from loadgen.errors import LoadgenError
from loadgen.locust.options import Settings, settings
from loadgen.locust.replay import Outcome, Part, Ready, play
from loadgen.locust.web import ANSWER, FIRST_TOKEN, LATE, NEXT_TOKENS
from loadgen.openai_api import PATHS, payload
from loadgen.paths import profile_path
from loadgen.prompts import Kind, kind_of, prompt_rng
from loadgen.record import RequestRecord
from loadgen.schedule import Schedule, ScheduledRequest
from loadgen.spans import SpanSender
from loadgen.trace import read_trace
from loadgen.units import NS_PER_MS

log = logging.getLogger("loadgen")

SAMPLE = 256
"""Lengths drawn at a time: as a block they are closer to the bins than one by one."""


class Test:
    """All that this process's users share from test_start to test_stop. Made whole before the first user."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.settings = given = settings(environment.parsed_options, environment.host)
        classes = set(environment.user_classes)
        self.plan = _plan(given) if TraceReplay in classes and given.trace else None
        kinds: set[Kind] = {user.kind for user in classes if issubclass(user, ClosedLoopUser)}
        if self.plan:
            kinds |= {kind_of(request.workload) for request in self.plan.requests}
        self.reply: Reply = ask(
            Question(
                base_url=given.base_url,
                model=given.model,
                endpoint=given.endpoint,
                kinds=frozenset(kinds),
                tokenizer=given.tokenizer,
                timeout_s=given.timeout_s,
            )
        )
        self.bins = {
            kind: _fitting(given.bins[kind], self.reply.server.max_model_len) for kind in kinds if kind in given.bins
        }
        key = os.environ.get("OPENAI_API_KEY")
        self._client = BlockingClient(given.base_url, api_key=key, timeout_s=given.timeout_s)
        self._senders: dict[str, SpanSender] = {}
        self.run_id = secrets.token_hex(6)
        self.worker_index = max(0, environment.runner.worker_index)
        self.indices = count()
        self.users = count()

    def body(self, workload: str, index: int, input_tokens: int, output_tokens: int, prefix_ids: Any = ()) -> bytes:
        """The same as `loadgen replay` sends for the same seed and index."""
        seed, server = self.settings.seed, self.reply.server
        words = self.reply.vocabularies[kind_of(workload)]
        prompt = words.prompt(input_tokens, prompt_rng(seed, index), prefix_ids, seed)
        return payload(self.settings.endpoint, server.model, prompt, output_tokens, server.dialect, {})

    def send(self, run_id: str, workload: str, index: int, body: bytes, scheduled_ns: int) -> RequestRecord:
        """One request, told to locust and to the sidecar."""
        record = self._client.send(
            PATHS[self.settings.endpoint], body, index=index, workload=workload, scheduled_ns=scheduled_ns,
            request_id=f"{run_id}-{index}",
        )  # fmt: skip
        if self.settings.sidecar:
            self._sender(run_id).add(record)
        report(self.environment, record)
        return record

    def _sender(self, run_id: str) -> SpanSender:
        if run_id not in self._senders:
            assert self.settings.sidecar is not None
            sender = SpanSender(self.settings.sidecar, run_id, self.reply.server.model)
            self._senders[run_id] = sender.__enter__()
        return self._senders[run_id]

    def close(self) -> None:
        """Sends the last spans."""
        self._client.close()
        for sender in self._senders.values():
            sender.__exit__(None, None, None)
            if sender.lost:
                log.warning("the sidecar was not told of %d requests: %s", sender.lost, sender.last_error)


def _plan(given: Settings) -> Schedule:
    assert given.trace is not None
    return schedule.build(
        read_trace(Path(given.trace)), seed=given.seed, rps=given.rps, arrival=given.arrival,
        duration_s=given.duration_s, num_requests=given.num_requests,
    )  # fmt: skip


def _fitting(name: str, limit: int | None) -> TokenBins:
    """The bins, seen to hold requests that the model takes at all."""
    bins = read_bins(profile_path("workloads", name, "json"))
    if limit is not None and all(b.mean_input + b.mean_output > limit for b in bins.bins):
        raise LoadgenError(f"no request of {name} fits into the model's {limit} tokens: choose other bins")
    return bins


def lengths(bins: TokenBins, limit: int | None, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(input, output) tokens for ever; what the model cannot take is left out."""
    while True:
        for pair in zip(*(side.tolist() for side in sample(bins, SAMPLE, rng)), strict=True):
            if limit is None or sum(pair) <= limit:
                yield pair


def report(environment: Any, record: RequestRecord) -> None:
    """Rows of locust's table. Only whole answers count in its totals; the other rows are kept beside them."""
    tokens = record.output_tokens or 0
    environment.events.request.fire(
        request_type=record.workload,
        name=ANSWER,
        response_time=(record.e2e_ns or 0) / NS_PER_MS,
        response_length=tokens,
        exception=None if record.ok else CatchResponseError(reason(record)),
        context={},
        response=record,
    )
    rows = {
        FIRST_TOKEN: (record.ttft_ns, record.input_tokens),
        NEXT_TOKENS: (record.tpot_ns, max(0, tokens - 1)),
        LATE: (record.lag_ns if record.scheduled_ns else None, 0),
    }
    for name, (ns, size) in rows.items():
        if record.ok and ns is not None:
            environment.stats.get(name, record.workload).log(ns / NS_PER_MS, size or 0)


def reason(record: RequestRecord) -> str:
    """One line; the same for failures that differ only in how far they came, so that locust counts them together."""
    detail = " ".join((record.detail or "").split())[:200]
    return f"{record.error}: {re.sub(r'[0-9]+', 'N', detail) if record.error == 'truncated' else detail}"


# -- users ------------------------------------------------------------------------------------------------------------


class LoadgenUser(User):
    abstract = True
    test: ClassVar[Test | None] = None
    """None when the test could not be set up: its users end at once, and the reason has been said."""

    @classmethod
    def now(cls) -> Test:
        if LoadgenUser.test is None:
            raise StopUser
        return LoadgenUser.test


class ClosedLoopUser(LoadgenUser):
    """Asks, reads the whole answer, thinks, asks again."""

    abstract = True
    kind: ClassVar[Kind]
    _lengths: Iterator[tuple[int, int]] | None = None

    def wait_time(self) -> float:
        return self.now().settings.think_s

    @task
    def ask(self) -> None:
        test = self.now()
        if self._lengths is None:
            rng = np.random.default_rng([test.settings.seed, test.worker_index, next(test.users)])
            self._lengths = lengths(test.bins[self.kind], test.reply.server.max_model_len, rng)
        input_tokens, output_tokens = next(self._lengths)
        index = test.worker_index << 40 | next(test.indices)
        test.send(test.run_id, self.kind, index, test.body(self.kind, index, input_tokens, output_tokens), 0)


class ChatUser(ClosedLoopUser):
    """Conversations: lengths from --chat-bins."""

    kind = "chat"


class CodeUser(ClosedLoopUser):
    """Code generation: lengths from --code-bins."""

    kind = "code"


class TraceReplay(LoadgenUser):
    """One of the test's replaying users: sends its share of --trace, open loop. The test ends when all have."""

    parts: ClassVar[dict[int, "AsyncResult[Part]"]] = {}

    @task
    def replay(self) -> None:
        test = self.now()
        assert test.plan is not None
        number, runner = next(test.users), self.environment.runner
        self.parts[number] = AsyncResult()
        ready = Ready(test.worker_index, runner.client_id, number, test.plan.sha256, len(test.plan.requests))
        runner.send_message("loadgen_ready", ready._asdict())
        part = self.parts[number].get()
        outcome = Outcome(part.shard, *self._play(test, part))
        runner.send_message("loadgen_done", outcome._asdict())
        raise StopUser

    def _play(self, test: Test, part: Part) -> tuple[int, int]:
        """(sent, failed)."""
        assert test.plan is not None
        records: list[bool] = []

        def make_body(request: ScheduledRequest) -> bytes:
            return test.body(
                request.workload, request.index, request.input_tokens, request.output_tokens, request.prefix_ids
            )

        def send(request: ScheduledRequest, body: bytes, scheduled_ns: int) -> None:
            records.append(test.send(part.run_id, request.workload, request.index, body, scheduled_ns).ok)

        here = anchor()
        play(
            part.of_schedule(test.plan.requests), part.start_wall_ns - here.wall_ns + here.monotonic_ns, make_body, send
        )
        return len(records), records.count(False)
