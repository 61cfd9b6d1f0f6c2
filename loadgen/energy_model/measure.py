"""Measures joules per request for every bin at every batch size against a live server; resumes where it stopped.

Closed loop: as many requests in flight as the batch says, all of one length, each with a prompt of its own so that a
prefix cache has nothing to give. What a cell needs is decided by its own spread; what is left of the time, by the rest.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec
import numpy as np

from loadgen import clock
from loadgen.client.client import Client
from loadgen.client.openai_api import PATHS, Endpoint, payload
from loadgen.client.server_probe import ServerInfo
from loadgen.energy.meter import EnergyMeter
from loadgen.energy.sampler import Sampler
from loadgen.energy.series import EnergySample, align_to_counter_clock, series_by_domain
from loadgen.energy_model.energy_profile import GridPoint
from loadgen.energy_model.waves import RequestShape, grid_point_of, wave_boundaries, wave_repeats
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.stats.intervals import half_width
from loadgen.stats.nnls import nnls
from loadgen.units import NS_PER_S, ns_from_s
from loadgen.workload.prompts import Vocabulary, draws_of

LOOK_S = 0.05
COUNTER_WAIT_S = 10.0
CACHED_SHARE = 0.05
"""More of a prompt than this from the server's prefix cache, and the cell measured something else."""

Say = Callable[[str], None]


class Spot(NamedTuple):
    """One cell to measure."""

    lengths: RequestShape
    batch: int

    @property
    def name(self) -> str:
        return f"{self.lengths.input}x{self.lengths.output} at batch {self.batch}"


@dataclass(frozen=True)
class StoppingRule:
    """How much of it. Times are seconds per cell."""

    within: float = 0.03
    """Relative half width of the 95 % confidence interval that ends a cell."""
    repeat_s: float = 1.0
    """A repeat lasts at least this, so that the counter moves often in it."""
    max_repeats: int = 10
    cap_s: float = 60.0
    """After this a cell ends with the repeats it has (one at least)."""
    settle_s: float = 0.0
    """Load before the first cell, so that the GPU is as warm as it gets."""
    idle_s: float = 2.0
    static: bool = False
    """One whole batch at a time from its first send to its last answer, as arXiv 2504.17674 measures: no wave to fill
    the batch, so half the time, but the batch empties at the end of each."""
    budget_s: float | None = None
    """For all cells together: no cell is begun after it."""


def measurement_order(bins: Sequence[RequestShape], batches: Sequence[int], seed: int) -> list[Spot]:
    """Batches in the order given, so that what matters most comes first; within each, bins in a seeded random order,
    so that drift does not look like an effect of length."""
    rng = np.random.default_rng(seed)
    return [Spot(bins[int(i)], batch) for batch in batches for i in rng.permutation(len(bins))]


# -- the journal ------------------------------------------------------------------------------------------------------


def journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial.jsonl")


class _Header(msgspec.Struct, frozen=True):
    measured_on: dict[str, Any]
    """What must be the same for cells to belong to one profile: model, engine, domains, endpoint."""


def read_journal(path: Path, measured_on: dict[str, Any]) -> list[GridPoint]:
    """Cells of an earlier, interrupted run; half a last line is left out. LoadgenError when of another server."""
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        header = msgspec.json.decode(lines[0], type=_Header) if lines else None
        cells = [msgspec.json.decode(line, type=GridPoint) for line in lines[1:]]
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not the journal of a profile: {err}; remove it to start anew") from err
    if header is not None and header.measured_on != measured_on:
        raise LoadgenError(
            f"{path} holds cells measured on {header.measured_on}, this is {measured_on}: "
            "finish that profile, or remove the file to start anew"
        )
    return cells


@contextmanager
def journal(
    path: Path, measured_on: dict[str, Any], cells: Sequence[GridPoint]
) -> Iterator[Callable[[GridPoint], None]]:
    """Appends each cell as it is measured."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            _append(file, _Header(measured_on))
            for cell in cells:
                _append(file, cell)
            yield lambda cell: _append(file, cell)
    except OSError as err:
        raise LoadgenError(f"cannot write {path}: {err.strerror or err}") from err


def _append(file: TextIO, line: msgspec.Struct) -> None:
    file.write(msgspec.json.encode(line).decode() + "\n")
    file.flush()


# -- how long it takes ------------------------------------------------------------------------------------------------


def seconds_left(done: Sequence[tuple[Spot, float]], left: Sequence[Spot]) -> float | None:
    """From the seconds of the cells done: t = t0 + p x (input x batch) + d x output, all at least 0. None at first."""
    if not done:
        return None
    seconds = np.array([s for _, s in done])
    parameters, _ = nnls(_time_features([spot for spot, _ in done]), seconds)
    return float((_time_features(left) @ parameters).sum()) if left else 0.0


def _time_features(spots: Sequence[Spot]) -> Any:
    rows = [(1.0, s.lengths.input * s.batch, s.lengths.output) for s in spots]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A server, and the meter beside it."""

    client: Client
    server: ServerInfo
    endpoint: Endpoint
    extra: dict[str, Any]
    vocabulary: Vocabulary
    seed: int
    samples: list[EnergySample] = field(default_factory=list)
    inner: frozenset[str] = frozenset()
    """Domains that lie within another one."""
    sent: int = 0

    async def request(self, lengths: RequestShape) -> RequestRecord:
        """One request with a prompt that no other one of this bench has."""
        self.sent += 1
        index = self.sent
        prompt = self.vocabulary.prompt(lengths.input, draws_of(self.seed, index))
        body = payload(self.endpoint, self.server.model, prompt, lengths.output, self.server.dialect, self.extra)
        return await self.client.post(
            PATHS[self.endpoint],
            body,
            index=index,
            workload="profile",
            scheduled_ns=clock.monotonic_ns(),
            request_id=f"loadgen-profile-{self.seed}-{index}",
        )

    def joules(self, start_ns: int, end_ns: int) -> float | None:
        """Of all domains, those within another left out; None where one of them does not cover the interval."""
        outer = [sample for sample in self.samples if sample.domain not in self.inner]
        every = map(align_to_counter_clock, series_by_domain(outer).values())
        each = [series.energy_mj(start_ns, end_ns) for series in every]
        known = [mj for mj in each if mj is not None]
        return sum(known) / 1000 if known and len(known) == len(each) else None


async def measure_profile(
    spots: Sequence[Spot],
    bench: Bench,
    meter: EnergyMeter,
    effort: StoppingRule,
    keep: Callable[[GridPoint], None],
    say: Say,
) -> tuple[list[GridPoint], float | None]:
    """(the cells measured before the time ran out, idle watts). Each is handed to `keep` as soon as it is there."""
    bench.inner = frozenset(domain.name for domain in meter.domains if domain.within is not None)
    sampler = Sampler(meter, bench.samples.extend)
    sampler.start()
    cells: list[GridPoint] = []
    done: list[tuple[Spot, float]] = []
    try:
        idle_w = await _idle(bench, effort.idle_s)
        await _settle(bench, spots, effort.settle_s)
        start_ns = clock.monotonic_ns()
        for i, spot in enumerate(spots):
            elapsed_s = (clock.monotonic_ns() - start_ns) / NS_PER_S
            if effort.budget_s is not None and elapsed_s >= effort.budget_s:
                say(f"the {effort.budget_s:g} s are used up; {len(spots) - i} of {len(spots)} cells are not measured")
                break
            began_ns = clock.monotonic_ns()
            cell = await measure_cell(spot, bench, effort)
            done.append((spot, (clock.monotonic_ns() - began_ns) / NS_PER_S))
            cells.append(cell)
            keep(cell)
            del bench.samples[: -1000 * len(meter.domains)]
            say(_line(i, len(spots), cell, seconds_left(done, spots[i + 1 :])))
    finally:
        await asyncio.to_thread(sampler.stop)
    return cells, idle_w


def _line(i: int, count: int, cell: GridPoint, left_s: float | None) -> str:
    spread = f" ±{cell.stderr / cell.joules_per_request:.1%}" if cell.stderr is not None else ""
    wide = "" if cell.settled else " (wider than asked)"
    left = f", about {left_s:.0f} s left" if left_s is not None else ""
    return (
        f"[{i + 1}/{count}] {cell.input}x{cell.output} at batch {cell.batch}: {cell.joules_per_request:.4g} J/request"
        f"{spread}{wide}, {cell.repeats} repeats in {cell.duration_s:.1f} s{left}"
    )


async def _idle(bench: Bench, seconds: float) -> float | None:
    """Watts over `seconds` of doing nothing; None when no two moves of the counter lie in it."""
    if seconds <= 0:
        return None
    await asyncio.sleep(seconds)
    outer = [s for s in bench.samples if s.domain not in bench.inner]
    watts = [
        series.total_mj / 1000 / ((series.t_ns[-1] - series.t_ns[0]) / NS_PER_S)
        for series in series_by_domain(outer).values()
        if len(series) > 1
    ]
    return float(sum(watts)) if watts else None


async def _settle(bench: Bench, spots: Sequence[Spot], seconds: float) -> None:
    """Requests of the middle cell for `seconds`, not measured."""
    if seconds <= 0 or not spots:
        return
    spot = sorted(spots, key=lambda s: (s.batch, s.lengths.input * s.lengths.output))[len(spots) // 2]
    async with _Loop(spot, bench):
        await asyncio.sleep(seconds)


class _Loop:
    """Closed loop of one cell for the time of the block; `finished_ns` grows in order."""

    def __init__(self, spot: Spot, bench: Bench, limit: int | None = None) -> None:
        """limit: requests that each of the workers sends; None is no end."""
        self.spot, self.bench, self.limit = spot, bench, limit
        self.finished_ns: list[int] = []
        self.failed: RequestRecord | None = None
        self.cached = self.asked = 0
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "_Loop":
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.spot.batch)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def ended(self) -> None:
        """Every worker has sent its last and has its answer."""
        await asyncio.gather(*self._workers)

    async def _work(self) -> None:
        done = 0
        while self.failed is None and done != self.limit:
            done += 1
            record = await self.bench.request(self.spot.lengths)
            if record.error == "cancelled":
                return
            if record.error:
                self.failed = record
                return
            assert record.finished_ns is not None
            self.finished_ns.append(record.finished_ns)
            self.asked += record.input_tokens or 0
            self.cached += record.cached_tokens or 0


async def measure_cell(spot: Spot, bench: Bench, effort: StoppingRule) -> GridPoint:
    """Until the repeats agree, or there are enough of them, or it takes too long. Raises LoadgenError."""
    if effort.static:
        return await _measure_static(spot, bench, effort)
    least_ns = ns_from_s(effort.repeat_s)
    start_ns = clock.monotonic_ns()
    async with _Loop(spot, bench) as loop:
        while True:
            await asyncio.sleep(LOOK_S)
            _check(loop)
            edges = wave_boundaries(sorted(loop.finished_ns), spot.batch, 1, least_ns)
            measured = wave_repeats(edges, bench.joules)
            spread = half_width([r.joules / r.requests for r in measured])
            late = (clock.monotonic_ns() - start_ns) / NS_PER_S > effort.cap_s
            if measured and (spread <= effort.within or len(measured) >= effort.max_repeats or late):
                return grid_point_of(spot.lengths, spot.batch, measured, effort.within)


async def _measure_static(spot: Spot, bench: Bench, effort: StoppingRule) -> GridPoint:
    """Repeats of whole batches, one after another. A repeat is as many of them as fill `repeat_s`."""
    edges = [(clock.monotonic_ns(), 0)]
    start_ns, completed = edges[0]
    while True:
        async with _Loop(spot, bench, limit=1) as loop:
            await loop.ended()
        _check(loop)
        completed += spot.batch
        now_ns = clock.monotonic_ns()
        if now_ns - edges[-1][0] < ns_from_s(effort.repeat_s):
            continue
        edges.append((now_ns, completed))
        late = (now_ns - start_ns) / NS_PER_S > effort.cap_s
        measured = wave_repeats(edges, bench.joules)
        if half_width([r.joules / r.requests for r in measured]) <= effort.within:
            return grid_point_of(spot.lengths, spot.batch, measured, effort.within)
        if late or len(edges) > effort.max_repeats:
            await _until(lambda: len(wave_repeats(edges, bench.joules)) == len(edges) - 1)
            return grid_point_of(spot.lengths, spot.batch, wave_repeats(edges, bench.joules), effort.within)


async def _until(there: Callable[[], bool]) -> None:
    """The counter moves some time after what it counts."""
    for _ in range(round(COUNTER_WAIT_S / LOOK_S)):
        if there():
            return
        await asyncio.sleep(LOOK_S)
    raise LoadgenError(f"the energy counter did not move for {COUNTER_WAIT_S:g} s: see `loadgen meters`")


def _check(loop: _Loop) -> None:
    if loop.failed is not None:
        raise LoadgenError(f"a request of {loop.spot.name} failed ({loop.failed.error}): {loop.failed.detail}")
    if loop.cached > CACHED_SHARE * loop.asked and loop.asked:
        raise LoadgenError(
            f"{loop.spot.name}: the server took {loop.cached} of {loop.asked} prompt tokens from its prefix cache, "
            "though every prompt is new: start it without prefix caching"
        )
