"""Measure the grid points of an energy profile, one after another, against a live server.

Closed loop: as many requests are in flight as the batch says, all of one length, each with its own prompt so that a
prefix cache has nothing to reuse. The spread of the repeats decides how long a grid point is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loadgen import clock
from loadgen.energy.sampler import Sampler
from loadgen.energy.series import accelerators
from loadgen.energy_model.profiling_plan import seconds_remaining
from loadgen.energy_model.waves import grid_point_of, wave_boundaries, wave_repeats
from loadgen.errors import LoadgenError
from loadgen.stats.intervals import half_width
from loadgen.telemetry.engine_metrics import EnginePoller
from loadgen.telemetry.engine_sample import EngineSample, cached_share
from loadgen.units import NS_PER_S, ns_from_s

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy_model.energy_profile import GridKey, GridPoint
    from loadgen.energy_model.profiling_plan import StoppingRule
    from loadgen.energy_model.profiling_session import ProfilingSession
    from loadgen.record import RequestRecord

_POLL_S = 0.05
_COUNTER_TIMEOUT_S = 10.0
_MAX_CACHED_SHARE = 0.05
"""Largest share of prompt tokens from the server's prefix cache at which the energy is still that of whole prompts."""


async def measure_grid(
    keys: Sequence[GridKey],
    session: ProfilingSession,
    meter: EnergyMeter,
    rule: StoppingRule,
    keep: Callable[[GridPoint], None],
    progress: Callable[[str], None],
) -> tuple[list[GridPoint], float | None]:
    """Return (the points measured before the time ran out, idle watts). `keep` gets each point when it is measured."""
    measured = accelerators(meter.domains)
    session.nested_domains = frozenset(domain.name for domain in meter.domains if domain not in measured)
    sampler = Sampler(meter, session.samples.extend)
    sampler.start()
    points: list[GridPoint] = []
    durations: list[tuple[GridKey, float]] = []
    try:
        if rule.idle_s > 0:
            progress(f"measuring idle power for {rule.idle_s:g} s")
        idle_w = await session.idle_w(rule.idle_s)
        if rule.settle_s > 0 and keys:  # with the load of the middle grid point
            progress(f"loading the server for {rule.settle_s:g} s before the first of {len(keys)} cells")
            by_load = sorted(keys, key=lambda key: (key.batch, key.input * key.output))
            await settle(by_load[len(keys) // 2], session, rule.settle_s)
        start_ns = clock.monotonic_ns()
        for i, key in enumerate(keys):
            point_start_ns = clock.monotonic_ns()
            if rule.budget_s is not None and (point_start_ns - start_ns) / NS_PER_S >= rule.budget_s:
                progress(
                    f"the budget of {rule.budget_s:g} s is used up; "
                    f"{len(keys) - i} of {len(keys)} cells are not measured"
                )
                break
            point = await measure_grid_point(key, session, rule)
            durations.append((key, (clock.monotonic_ns() - point_start_ns) / NS_PER_S))
            points.append(point)
            keep(point)
            del session.samples[: -1000 * len(meter.domains)]
            progress(f"[{i + 1}/{len(keys)}] {_point_line(point, seconds_remaining(durations, keys[i + 1 :]))}")
    finally:
        await asyncio.to_thread(sampler.stop)
    return points, idle_w


def _point_line(point: GridPoint, remaining_s: float | None) -> str:
    spread = f" ±{point.stderr / point.joules_per_request:.1%}" if point.stderr is not None else ""
    wide = "" if point.settled else " (wider than requested)"
    remaining = f", about {remaining_s:.0f} s remaining" if remaining_s is not None else ""
    return (
        f"{point.key}: {point.joules_per_request:.4g} J/request{spread}{wide}, "
        f"{point.repeats} repeats in {point.duration_s:.1f} s{remaining}"
    )


async def settle(key: GridKey, session: ProfilingSession, seconds: float) -> None:
    """Apply the load of a grid point for `seconds` without measuring it."""
    async with _ClosedLoop(key, session):
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
        self._has_ended = False

    async def __aenter__(self) -> _ClosedLoop:
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.key.batch)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._has_ended = True  # a request that was complete at its cancellation does not raise
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def join(self) -> None:
        """Wait until every worker has completed its last request."""
        await asyncio.gather(*self._workers)

    async def _work(self) -> None:
        sent = 0
        while self.failed is None and not self._has_ended and sent != self.requests_per_worker:
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
    engine: list[EngineSample] = []
    poller = EnginePoller(session.server.root_url, engine.append, owner=session.server.engine)
    await asyncio.to_thread(poller.read_now)
    point = await (_measure_static if rule.static else _measure_waves)(key, session, rule)
    await asyncio.to_thread(poller.read_now)
    if (share := cached_share(engine)) is not None and share > _MAX_CACHED_SHARE:
        raise LoadgenError(
            f"{key}: {share:.0%} of the prompt tokens came from the server's prefix cache by its own counters, "
            "although every prompt is new: start the server without prefix caching, and leave it to this client"
        )
    return point


async def _measure_waves(key: GridKey, session: ProfilingSession, rule: StoppingRule) -> GridPoint:
    start_ns = clock.monotonic_ns()
    async with _ClosedLoop(key, session) as loop:
        while True:
            await asyncio.sleep(_POLL_S)
            loop.check()
            boundaries = wave_boundaries(sorted(loop.finished_ns), key.batch, 1, ns_from_s(rule.repeat_s))
            repeats = wave_repeats(boundaries, session.joules)
            spread = half_width([r.joules / r.requests for r in repeats])
            now_ns = clock.monotonic_ns()
            late = (now_ns - start_ns) / NS_PER_S > rule.cap_s
            if repeats and (spread <= rule.within or len(repeats) >= rule.max_repeats or late):
                return grid_point_of(key, repeats, rule.within)
            if not repeats and len(boundaries) > 1 and now_ns - boundaries[1][0] > ns_from_s(_COUNTER_TIMEOUT_S):
                raise _counter_stopped()


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
    raise _counter_stopped()


def _counter_stopped() -> LoadgenError:
    return LoadgenError(f"the energy counter did not update for {_COUNTER_TIMEOUT_S:g} s: see `loadgen meters`")
