"""Plays the engine in real time: requests in, tokens out at the planned instants, and the true cost of each request.

A step is decided at its start and emitted at its end: one write per stream, at the planned instant. The next step
starts at the *planned* end, not when this process woke up, so that delays never accumulate; `lateness_ms` reports them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.clock import anchor, monotonic_ns
from loadgen.record import UNSTREAMED
from loadgen.simulator.api import Ask, Events, ResponseEvents
from loadgen.simulator.engine import Engine, Sequence, Step
from loadgen.simulator.metrics import Metrics
from loadgen.simulator.served_request import ServedRequest
from loadgen.simulator.spans import ID_PREFIXES, SIMULATOR, export_finished
from loadgen.simulator.tokens import answer_tokens, answer_words, block_hashes
from loadgen.telemetry.otlp_export import BatchSender, resource_attributes
from loadgen.units import NS_PER_MS, NS_PER_S, s_from_ns

if TYPE_CHECKING:
    from loadgen.simulator.faults import Fault
    from loadgen.telemetry.traceparent import SpanIds

_log = logging.getLogger(__name__)

MEAN_ANSWER_TOKENS = 200
"""Without ignore_eos, answers have a geometric length of this mean, cut at max_tokens."""

_ORACLE_LINES = 1_000_000
_LATENESS_STEPS = 10_000


class OracleLine(msgspec.Struct, frozen=True):
    """True cost of one request. Joules are those of the simulated GPU, not of its counter."""

    request_id: str
    prefill_joules: float
    decode_joules: float
    joules: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens that the prefix cache had when the request was admitted."""
    evicted_tokens: int
    """Prompt tokens behind them that the prefix cache once had, and had evicted by then."""
    preemptions: int
    repeated_tokens: int
    """Tokens of prompt and answer that were in the KV cache before a preemption, and were computed again after it."""
    finish_reason: str
    simulated: bool = True


class EnginePlayer:
    """An engine in real time, and the requests that it serves."""

    def __init__(
        self,
        engine: Engine,
        model_name: str,
        gpu_uuids: list[str],
        *,
        seed: int,
        rng: np.random.Generator,
        otlp_traces_endpoint: str | None = None,
        resource: Mapping[str, str] | None = None,
    ) -> None:
        """seed: part of the response ids. rng: draws answer lengths and words. resource: of its spans."""
        self.engine, self.model_name, self.rng, self._seed = engine, model_name, rng, seed
        self.anchor = anchor()
        self.metrics = Metrics(engine, model_name, gpu_uuids, self.now_ns)
        self.answers: dict[Sequence, ServedRequest] = {}
        self.oracle: deque[OracleLine] = deque(maxlen=_ORACLE_LINES)
        self.lateness_ns: deque[int] = deque(maxlen=_LATENESS_STEPS)
        self.count = 0
        attributes = resource_attributes(SIMULATOR) if resource is None else resource
        export = partial(export_finished, model_name, engine=attributes)
        self.spans = BatchSender(otlp_traces_endpoint, export) if otlp_traces_endpoint else None
        self._work = asyncio.Event()
        self._warned_ns = 0

    def now_ns(self) -> int:
        """Return the current instant, after accounting for the GPU's idle energy up to it."""
        now_ns = monotonic_ns()
        if self.engine.next_start_ns() is None:
            self.engine.gpu.idle_until(now_ns)
        return now_ns

    async def play(self) -> None:
        """Run steps until cancelled; emit the tokens of each at its planned end."""
        while True:
            start_ns = self.engine.next_start_ns()
            if start_ns is None:
                self._work.clear()
                await self._work.wait()
                continue
            step = self.engine.step(start_ns)
            assert step is not None, "every admitted sequence fits"
            # Whole milliseconds, rounded up: the event loop's timers have no finer grain. Yields at least once.
            await asyncio.sleep(0)
            while (remaining_ns := step.end_ns - monotonic_ns()) > 0:
                await asyncio.sleep(math.ceil(remaining_ns / NS_PER_MS) / 1000)
            now_ns = monotonic_ns()
            self.lateness_ns.append(now_ns - step.end_ns)
            if now_ns - self._warned_ns > 10 * NS_PER_S and len(self.lateness_ns) >= 100:
                self._warned_ns = now_ns
                late_ms = self.lateness_ms()["p99"]
                if late_ms is not None and late_ms > 5:
                    _log.warning("simulated server: tokens leave late: p99 %.1f ms; this machine is too busy", late_ms)
            self._emit(step)

    def _emit(self, step: Step) -> None:
        """Count a step that has ended, and send its tokens."""
        end_ns = step.end_ns
        self.metrics.step(step)
        for seq in step.emitted:
            answer = self.answers.get(seq)
            if answer is None:
                continue
            if answer.sent_tokens:
                self.metrics.observe("inter_token_latency_seconds", s_from_ns(end_ns - answer.last_token_ns))
            answer.emit(end_ns, seq.emitted - answer.sent_tokens)
        for seq in step.finished:
            if (answer := self.answers.get(seq)) is not None:
                self._finish(answer)

    def lateness_ms(self) -> dict[str, float | None]:
        """Return quantiles of the delay between planned and actual sends; None before the first step."""
        late = sorted(self.lateness_ns)
        ranks = {"p50": len(late) // 2, "p99": len(late) * 99 // 100, "max": -1}
        return {name: round(late[rank] / NS_PER_MS, 3) if late else None for name, rank in ranks.items()}

    def admit(
        self, ask: Ask, request_id: str | None, fault: Fault | None, parent: SpanIds | None = None
    ) -> ServedRequest:
        """Queue a request now. request_id: the client's; None generates one. parent: the client's span."""
        self.count += 1
        rng = self.rng if ask.seed is None else np.random.default_rng(ask.seed % 2**64)
        drawn_tokens = max(ask.min_tokens, int(rng.geometric(1 / MEAN_ANSWER_TOKENS)), 1)
        ends_by_itself = not ask.ignore_eos and drawn_tokens < ask.max_tokens
        length, reason = (drawn_tokens, "stop") if ends_by_itself else (ask.max_tokens, "length")
        response_id = f"{ID_PREFIXES[ask.endpoint]}-simulated-{self._seed}-{self.count}"
        word_seed = int(rng.integers(2**31))
        pooled = ask.endpoint in UNSTREAMED
        hashes: tuple[bytes, ...] = ()
        if self.engine.scheduler.options.prefix_caching:
            hashes = block_hashes(ask.input_ids if pooled else ask.input_ids + answer_tokens(word_seed, length))
        now_ns = self.now_ns()
        answer = ServedRequest(
            ask=ask,
            seq=Sequence(now_ns, len(ask.input_ids), length, hashes, pooled=pooled),
            request_id=response_id if request_id is None else request_id,
            response_id=response_id,
            created_s=(now_ns + self.anchor.offset_ns) // NS_PER_S,
            finish_reason=reason,
            word_seed=word_seed,
            fault=fault,
            parent=parent,
            done=asyncio.get_running_loop().create_future(),
        )
        if ask.stream:
            about = (response_id, self.model_name, answer.created_s)
            answer.events = (
                ResponseEvents(*about) if ask.endpoint == "responses" else Events(ask.endpoint == "chat", *about)
            )
            answer.words = answer_words(answer.word_seed)
        self.answers[answer.seq] = answer
        self.engine.add(answer.seq)
        self._work.set()
        return answer

    def _finish(self, answer: ServedRequest) -> None:
        """Close a request whose last token was sent, whether or not a fault keeps its connection open."""
        seq, observe = answer.seq, self.metrics.observe
        assert seq.started_ns is not None
        observe("time_to_first_token_seconds", s_from_ns(answer.first_token_ns - seq.arrival_ns))
        observe("e2e_request_latency_seconds", s_from_ns(answer.last_token_ns - seq.arrival_ns))
        observe("request_queue_time_seconds", s_from_ns(seq.started_ns - seq.arrival_ns))
        observe("request_prefill_time_seconds", s_from_ns(answer.first_token_ns - seq.started_ns))
        observe("request_decode_time_seconds", s_from_ns(answer.last_token_ns - answer.first_token_ns))
        observe("request_prompt_tokens", seq.input_tokens)
        observe("request_generation_tokens", answer.sent_tokens)
        if self.spans:
            self.spans.add(answer.finished)
        self._close(answer, answer.finish_reason)
        stays_open = answer.fault == "stall" or (answer.fault == "open_body" and answer.wire is not None)
        if not stays_open and not answer.done.done():
            answer.done.set_result(None)

    def leave(self, answer: ServedRequest) -> None:
        """End the sequence of a client that disconnected; it keeps its cost share so far. No effect once finished."""
        if answer.seq in self.answers:
            self.engine.abort(answer.seq)
            self._close(answer, "abort")

    def _close(self, answer: ServedRequest, reason: str) -> None:
        """Remove a request and append its cost to the oracle."""
        seq = self.answers.pop(answer.seq).seq
        self.metrics.finished[reason] += 1
        self.oracle.append(
            OracleLine(
                answer.request_id,
                seq.prefill_j,
                seq.decode_j,
                seq.prefill_j + seq.decode_j,
                seq.input_tokens,
                answer.sent_tokens,
                seq.cached_tokens,
                seq.evicted_tokens,
                seq.preemptions,
                seq.repeated_tokens,
                reason,
            )
        )
