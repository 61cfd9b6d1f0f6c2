"""Measure one grid point of an energy profile against a live server.

Closed loop: as many requests are in flight as the batch says, all of one length, each with its own prompt so that a
prefix cache has nothing to reuse. The spread of the repeats decides how long a grid point is measured.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen import clock
from loadgen.client.openai_api import PATHS, Endpoint, payload
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.series import EnergySample, series_by_domain
from loadgen.energy_model.waves import grid_point_of, wave_boundaries, wave_repeats
from loadgen.errors import LoadgenError
from loadgen.stats.intervals import half_width
from loadgen.units import NS_PER_S, ns_from_s
from loadgen.workload.prompts import Vocabulary, draws_of

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.client.server_probe import ServerInfo
    from loadgen.energy_model.energy_profile import GridKey, GridPoint
    from loadgen.energy_model.profiling_plan import StoppingRule
    from loadgen.record import RequestRecord

_POLL_S = 0.05
_COUNTER_TIMEOUT_S = 10.0
_MAX_CACHED_SHARE = 0.05
"""Largest share of prompt tokens from the server's prefix cache at which the energy is still that of whole prompts."""


@dataclass
class ProfilingSession:
    """A server, and the energy samples of the meter beside it."""

    client: Client
    server: ServerInfo
    endpoint: Endpoint
    vocabulary: Vocabulary
    seed: int
    samples: list[EnergySample] = field(default_factory=list)
    nested_domains: frozenset[str] = frozenset()
    """Energy domains that another domain includes."""
    sent: int = 0

    async def request(self, input_tokens: int, output_tokens: int) -> RequestRecord:
        """Send one request with a prompt that no other request of this session has."""
        self.sent += 1
        index = self.sent
        prompt = self.vocabulary.prompt(input_tokens, draws_of(self.seed, index))
        body = payload(self.endpoint, self.server.model, prompt, output_tokens, self.server.dialect, {})
        return await self.client.post(
            PATHS[self.endpoint],
            body,
            index=index,
            workload="profile",
            scheduled_ns=clock.monotonic_ns(),
            request_id=f"loadgen-profile-{self.seed}-{index}",
        )

    def joules(self, start_ns: int, end_ns: int) -> float | None:
        """Return the energy of all outermost domains; None if one of them does not cover the interval."""
        outer = [sample for sample in self.samples if sample.domain not in self.nested_domains]
        series = map(align_to_counter_clock, series_by_domain(outer).values())
        domain_mj = [one_domain.energy_mj(start_ns, end_ns) for one_domain in series]
        covered_mj = [mj for mj in domain_mj if mj is not None]
        return sum(covered_mj) / 1000 if covered_mj and len(covered_mj) == len(domain_mj) else None

    async def idle_w(self, seconds: float) -> float | None:
        """Measure idle power for `seconds`; None if the counter updates less than twice in that time."""
        if seconds <= 0:
            return None
        await asyncio.sleep(seconds)
        outer = [sample for sample in self.samples if sample.domain not in self.nested_domains]
        watts = [
            series.total_mj / 1000 / ((series.t_ns[-1] - series.t_ns[0]) / NS_PER_S)
            for series in series_by_domain(outer).values()
            if len(series) > 1
        ]
        return float(sum(watts)) if watts else None

    async def settle(self, key: GridKey, seconds: float) -> None:
        """Apply the load of a grid point for `seconds` without measuring it."""
        async with _ClosedLoop(key, self):
            await asyncio.sleep(seconds)


class _ClosedLoop:
    """Keeps `key.batch` requests in flight while its block runs; `finished_ns` is in order of completion."""

    def __init__(self, key: GridKey, session: ProfilingSession, requests_per_worker: int | None = None) -> None:
        """requests_per_worker: None for an endless loop."""
        self.key, self.session, self.requests_per_worker = key, session, requests_per_worker
        self.finished_ns: list[int] = []
        self.failed: RequestRecord | None = None
        self.cached_tokens = self.input_tokens = 0
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> _ClosedLoop:
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.key.batch)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def join(self) -> None:
        """Wait until every worker has completed its last request."""
        await asyncio.gather(*self._workers)

    async def _work(self) -> None:
        sent = 0
        while self.failed is None and sent != self.requests_per_worker:
            sent += 1
            record = await self.session.request(self.key.input, self.key.output)
            if record.error == "cancelled":
                return
            if record.error:
                self.failed = record
                return
            assert record.finished_ns is not None
            self.finished_ns.append(record.finished_ns)
            self.input_tokens += record.input_tokens or 0
            self.cached_tokens += record.cached_tokens or 0

    def check(self) -> None:
        """Raise LoadgenError if a request failed or too many prompt tokens came from a prefix cache."""
        if self.failed is not None:
            raise LoadgenError(f"a request of {self.key} failed ({self.failed.error}): {self.failed.detail}")
        if self.cached_tokens > _MAX_CACHED_SHARE * self.input_tokens and self.input_tokens:
            raise LoadgenError(
                f"{self.key}: {self.cached_tokens} of {self.input_tokens} prompt tokens came from the server's prefix "
                "cache, although every prompt is new: start the server without prefix caching"
            )


async def measure_grid_point(key: GridKey, session: ProfilingSession, rule: StoppingRule) -> GridPoint:
    """Measure until the repeats agree, their maximum number is reached, or the time is up. Raises LoadgenError."""
    if rule.static:
        return await _measure_static(key, session, rule)
    start_ns = clock.monotonic_ns()
    async with _ClosedLoop(key, session) as loop:
        while True:
            await asyncio.sleep(_POLL_S)
            loop.check()
            boundaries = wave_boundaries(sorted(loop.finished_ns), key.batch, 1, ns_from_s(rule.repeat_s))
            repeats = wave_repeats(boundaries, session.joules)
            spread = half_width([r.joules / r.requests for r in repeats])
            late = (clock.monotonic_ns() - start_ns) / NS_PER_S > rule.cap_s
            if repeats and (spread <= rule.within or len(repeats) >= rule.max_repeats or late):
                return grid_point_of(key, repeats, rule.within)


async def _measure_static(key: GridKey, session: ProfilingSession, rule: StoppingRule) -> GridPoint:
    """Measure repeats of whole batches, one after another. A repeat is as many batches as fill `repeat_s`."""
    boundaries = [(clock.monotonic_ns(), 0)]
    start_ns, completed = boundaries[0]
    while True:
        async with _ClosedLoop(key, session, requests_per_worker=1) as loop:
            await loop.join()
        loop.check()
        completed += key.batch
        now_ns = clock.monotonic_ns()
        if now_ns - boundaries[-1][0] < ns_from_s(rule.repeat_s):
            continue
        boundaries.append((now_ns, completed))
        late = (now_ns - start_ns) / NS_PER_S > rule.cap_s
        repeats = wave_repeats(boundaries, session.joules)
        if half_width([r.joules / r.requests for r in repeats]) <= rule.within:
            return grid_point_of(key, repeats, rule.within)
        if late or len(boundaries) > rule.max_repeats:
            break
    # The counter updates some time after the energy that it counts was used.
    for _ in range(round(_COUNTER_TIMEOUT_S / _POLL_S)):
        repeats = wave_repeats(boundaries, session.joules)
        if len(repeats) == len(boundaries) - 1:
            return grid_point_of(key, repeats, rule.within)
        await asyncio.sleep(_POLL_S)
    raise LoadgenError(f"the energy counter did not update for {_COUNTER_TIMEOUT_S:g} s: see `loadgen meters`")
