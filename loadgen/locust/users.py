"""Locust users, and the test that the users of one process share."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gevent.event import AsyncResult
from locust.exception import StopUser
from msgspec import UNSET
from msgspec.structs import replace

from loadgen.client.blocking_client import BlockingClient
from loadgen.client.request_body import Message, message_maker
from loadgen.locust.options import settings
from loadgen.locust.probe_process import Question, ask
from loadgen.locust.trace_replay import Outcome, Part, Ready, play
from loadgen.locust.web import UNSCHEDULED, log_record
from loadgen.locust.workload import fitting_bins, lengths, plan
from loadgen.telemetry.otlp_export import SpanSender
from loadgen.workload.schedule import ScheduledRequest
from locust import User, task

if TYPE_CHECKING:
    from loadgen.client.server_probe import ServerProbe
    from loadgen.locust.hooks import Coordinator
    from loadgen.record import RequestRecord
    from loadgen.workload.prompts import PromptKind

log = logging.getLogger("loadgen")

ABORTED = "aborted"
"""The sidecar's workload for requests in flight when the test was stopped: partial ones would distort the means."""


class Test:
    """The client, schedule and server facts that this process's users share, from test_start to test_stop."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.settings = options = settings(environment.parsed_options, environment.host)
        classes = set(environment.user_classes)
        self.plan = plan(options) if TraceReplay in classes and options.trace else None
        kinds: set[PromptKind] = {user.kind for user in classes if issubclass(user, ClosedLoopUser)}
        if self.plan:
            kinds |= self.plan.prompt_kinds
        self.reply: ServerProbe = ask(
            Question(
                base_url=options.base_url,
                model=options.model,
                endpoint=options.endpoint,
                kinds=frozenset(kinds),
                tokenizer=options.tokenizer,
                timeout_s=options.timeout_s,
            )
        )
        limit = self.reply.server.max_model_len
        if self.plan:
            self.reply.server.check_fits(self.plan.requests)
        self.bins = {kind: fitting_bins(options.bins[kind], limit) for kind in kinds}
        key = os.environ.get("OPENAI_API_KEY")
        url = options.api_at(self.reply.server.base_url)
        self._client = BlockingClient(url, api_key=key, timeout_s=options.timeout_s)
        self._senders: dict[str, SpanSender] = {}
        self.run_id = secrets.token_hex(6)
        self.worker_index = max(0, environment.runner.worker_index)
        server = self.reply.server
        self.message = message_maker(
            options.seed, self.reply.vocabularies, options.endpoint, server.model, server.dialect, extra_body={}
        )
        """The message of a request, the same as `loadgen replay` sends for the same seed."""
        self.indices = count()
        self.users = count()
        if options.sidecar:
            self._sender(self.run_id)

    def send(self, run_id: str, request: ScheduledRequest, message: Message, scheduled_ns: int) -> RequestRecord:
        """Send one request; report it to locust and to the sidecar.

        An aborted one is reported to the sidecar alone: it used energy too.
        """
        record = self._client.send(
            message.path,
            message.body,
            index=request.index,
            workload=request.workload,
            scheduled_ns=scheduled_ns,
            request_id=f"{run_id}-{request.index}",
            on_cancelled=lambda partial: self._export(
                run_id, replace(partial, workload=ABORTED, input_tokens=request.input_tokens)
            ),
        )
        self._export(run_id, record)
        log_record(self.environment, record)
        return record

    def _export(self, run_id: str, record: RequestRecord) -> None:
        if self.settings.sidecar:
            self._sender(run_id).add(record)

    def _sender(self, run_id: str) -> SpanSender:
        if run_id not in self._senders:
            assert self.settings.sidecar is not None
            replayed = self.plan.requests if self.plan and run_id != self.run_id else ()
            tags = {request.index: request.tags for request in replayed if request.tags is not UNSET}
            sender = SpanSender(self.settings.sidecar, run_id, self.reply.server.model, tags=tags)
            self._senders[run_id] = sender.__enter__()
        return self._senders[run_id]

    def close(self) -> None:
        """Close the connections and send the last spans."""
        self._client.close()
        for sender in self._senders.values():
            sender.__exit__(None, None, None)
            if sender.lost:
                log.warning("%d requests were not reported to the sidecar: %s", sender.lost, sender.last_error)


@dataclass
class State:
    """The mutable state of one locust environment. Only `state_of` creates it."""

    coordinator: Coordinator | None = None
    """The coordinator of the process that serves locust's page; None in a worker."""
    test: Test | None = None
    """The running test; None between tests, in a master, and when the test could not be set up."""
    parts: dict[int, AsyncResult[Part]] = field(default_factory=dict)
    """User number -> the part of the schedule that the user waits for."""
    closing: list[Any] = field(default_factory=list)
    """Greenlets that send the last spans of ended tests."""


def state_of(environment: Any) -> State:
    """Return the state of a locust environment; an empty one at the first call."""
    if not hasattr(environment, "loadgen"):
        environment.loadgen = State()
    state: State = environment.loadgen
    return state


# -- users ------------------------------------------------------------------------------------------------------------


class LoadgenUser(User):
    """A user of the environment's test."""

    abstract = True

    @property
    def test(self) -> Test:
        """The running test. Raises StopUser when it could not be set up: the reason was logged then."""
        test = state_of(self.environment).test
        if test is None:
            raise StopUser
        return test


class ClosedLoopUser(LoadgenUser):
    """A user in a closed loop: send a request, read the whole answer, wait for the think time, repeat."""

    abstract = True
    kind: ClassVar[PromptKind]
    _lengths: Iterator[tuple[int, int]] | None = None

    def wait_time(self) -> float:
        return self.test.settings.think_s

    @task
    def ask(self) -> None:
        test = self.test
        if self._lengths is None:
            rng = np.random.default_rng([test.settings.seed, test.worker_index, next(test.users)])
            self._lengths = lengths(test.bins[self.kind], test.reply.server.max_model_len, rng)
        input_tokens, output_tokens = next(self._lengths)
        request = ScheduledRequest(
            index=test.worker_index << 40 | next(test.indices),
            offset_ns=0,
            workload=self.kind,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        test.send(test.run_id, request, test.message(request), UNSCHEDULED)


class ChatUser(ClosedLoopUser):
    """Conversations: lengths from --chat-bins."""

    kind = "chat"


class CodeUser(ClosedLoopUser):
    """Code generation: lengths from --code-bins."""

    kind = "code"


class TraceReplay(LoadgenUser):
    """A replaying user: it sends its share of --trace in an open loop. The test ends when all shares are sent."""

    @task
    def replay(self) -> None:
        test = self.test
        assert test.plan is not None
        number, runner = next(test.users), self.environment.runner
        assigned: AsyncResult[Part] = AsyncResult()
        state_of(self.environment).parts[number] = assigned
        ready = Ready(test.worker_index, runner.client_id, number, test.plan.sha256, len(test.plan.requests))
        runner.send_message("loadgen_ready", ready._asdict())
        part = assigned.get()
        succeeded: list[bool] = []

        def send(request: ScheduledRequest, message: Message, scheduled_ns: int) -> None:
            succeeded.append(test.send(part.run_id, request, message, scheduled_ns).ok)

        play(part.of_schedule(test.plan.requests), part.start_ns(), test.message, send)
        outcome = Outcome(part.shard, sent=len(succeeded), failed=succeeded.count(False))
        runner.send_message("loadgen_done", outcome._asdict())
        raise StopUser
