"""The live books: every millijoule that the meter counted, in exactly one account, as soon as its owners are known.

Spans arrive when requests end, so energy is held back until everyone who was there has been heard of: at each instant
the engine says how many requests it holds, and when that many spans cover the instant, it is complete. What is
complete is settled once, by the same functions as a run folder, and never touched again. All counters are as of that
frontier, so at every moment  attributed + idle + unattributed == energy of the GPUs,  in whole millijoules.

Nothing here asks what time it is, and everything is bounded: by number, by time, or both.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, takewhile
from typing import NamedTuple

import msgspec
import numpy as np

from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.shapley import (
    COLUMNS,
    Coefficients,
    fit_coefficients,
    member_features,
    round_to_sum,
    split_energy,
)
from loadgen.attribution.span_steps import Phases, first_token_of, output_by_interval, phases_of, slot_for, slot_steps
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries
from loadgen.stats.arrays import Floats, Ints
from loadgen.telemetry.engine_metrics import EngineSample
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_MS, NS_PER_S, mj_from_j

EDGE_NS = 100 * NS_PER_MS
"""An engine's gauge and a span may disagree by this much on when a request began or ended."""
FUTURE_NS = 2 * NS_PER_S
"""A span that ends later than this from now is from another clock."""
SETTLE_NS = 2 * NS_PER_S
"""Energy is settled in portions of at least this."""
HISTORY_NS = 60 * NS_PER_S
"""How far back the fit looks."""
FIT_REQUESTS = 2000
FIRST_FIT_NS = 5 * NS_PER_S
"""A fit is made anew after as long again as there was to look back on: soon at first, then once a minute. It decides
shares only."""
COVERAGE_NS = 300 * NS_PER_S
"""Over how long coverage is told."""
SETTLE_ROWS = 10_000
FIT_ROWS = 20_000
MAX_OPEN = 20_000
MAX_KNOWN = 100_000
"""Requests not settled yet, and keys remembered to tell duplicates."""
MAX_POINTS = 20_000
"""Points a domain, engine samples: half an hour of each."""
MAX_LABELS = 50
"""Pairs of model and workload; requests of any more are added up under `other`."""

REASONS = ("malformed", "not_a_request", "oversized", "late", "duplicate", "future", "overflow")
"""Why a span is dropped. No others are exported."""

ENERGY_BOUNDS_J = tuple(base * 10.0**k for k in range(-1, 6) for base in (1, 2, 5))[:19]
TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
DURATION_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)

Label = tuple[str, str]
"""Model, workload."""


@dataclass(frozen=True)
class AllowedLateness:
    """How long energy is held back, at least, without an engine's page, and at most."""

    least_s: float = 6.0
    """Exporters send in batches: vLLM's every 5 s."""
    blind_s: float = 30.0
    """Where the engine does not say what it holds, or its requests send no spans."""
    most_s: float = 600.0


class Exemplar(NamedTuple):
    request_id: str
    value: float


class Histogram:
    """Counts per bucket, cumulated when read; and the last request in each."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, request_id: str | None) -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if request_id is not None:
            self.exemplars[bucket] = Exemplar(request_id[:64], value)

    def frozen(self) -> "FrozenHistogram":
        return FrozenHistogram(tuple(self.bounds), tuple(self.counts), tuple(self.exemplars), self.sum)


class FrozenHistogram(NamedTuple):
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    exemplars: tuple[Exemplar | None, ...]
    sum: float


@dataclass
class Account:
    """What one pair of model and workload has had so far. Written when something is settled."""

    prefill_mj: int = 0
    decode_mj: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    completed: int = 0
    failed: int = 0
    energy_mj: int = 0
    """Of requests that are closed: the energy histogram's sum."""
    energy: Histogram = field(default_factory=lambda: Histogram(ENERGY_BOUNDS_J))
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS_S))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))


class FrozenAccount(NamedTuple):
    prefill_mj: int
    decode_mj: int
    input_tokens: int
    output_tokens: int
    completed: int
    failed: int
    energy: FrozenHistogram
    ttft: FrozenHistogram
    duration: FrozenHistogram


class DomainBooks(NamedTuple):
    """One domain: settled, and counted by the meter but still held."""

    domain: EnergyDomain
    settled_mj: int
    pending_mj: int


@dataclass(frozen=True)
class Snapshot:
    """The books at one moment. What a scrape reads."""

    domains: tuple[DomainBooks, ...]
    accounts: Mapping[Label, FrozenAccount]
    idle_mj: int
    unattributed_mj: int
    dropped: Mapping[str, int]
    merged: int
    partial: int
    open_requests: int
    held_s: float
    """From the frontier to now."""
    coverage: float | None
    """Output tokens with a span / the engine's, over the last five minutes settled."""
    foreign_tokens: int

    def check(self) -> None:
        """The law, held before anything is shown."""
        booked = self.idle_mj + self.unattributed_mj + sum(a.prefill_mj + a.decode_mj for a in self.accounts.values())
        settled = sum(books.settled_mj for books in self.domains)
        if booked != settled:
            raise AssertionError(f"energy is not conserved: {settled} mJ settled, {booked} mJ in accounts")


class _Points:
    """One domain's cumulative millijoules: those settled that the fit still looks at, then those that are held."""

    def __init__(self, domain: EnergyDomain) -> None:
        self.domain = domain
        self.points: deque[tuple[int, int, bool]] = deque(maxlen=MAX_POINTS)
        self.first_mj: int | None = None
        self.settled_ns = 0
        self.settled_at_mj = 0

    def add(self, sample: EnergySample) -> None:
        mj = mj_from_j(sample.joules)
        if self.first_mj is None:
            self.first_mj = self.settled_at_mj = mj
            self.settled_ns = sample.t_ns
        elif sample.t_ns <= self.points[-1][0]:
            return
        self.points.append((sample.t_ns, mj, sample.gap))

    def held(self, end_ns: int) -> list[tuple[int, int, bool]]:
        """The last settled point and those after it, up to `end_ns`."""
        return [point for point in self.points if self.settled_ns <= point[0] <= end_ns]

    def settle(self, t_ns: int, mj: int) -> None:
        self.settled_ns, self.settled_at_mj = t_ns, mj

    def forget(self, before_ns: int) -> None:
        while len(self.points) > 1 and self.points[1][0] < min(before_ns, self.settled_ns):
            self.points.popleft()

    def books(self) -> DomainBooks:
        if self.first_mj is None:
            return DomainBooks(self.domain, 0, 0)
        return DomainBooks(self.domain, self.settled_at_mj - self.first_mj, self.points[-1][1] - self.settled_at_mj)


def _series(name: str, points: Sequence[tuple[int, int, bool]]) -> EnergySeries:
    t_ns, mj, gap = zip(*points, strict=True)
    return EnergySeries(name, np.array(t_ns), np.array(mj), None, np.array(gap, dtype=np.bool_))


class _Open:
    """A request and what has been settled on it so far."""

    __slots__ = ("decode_mj", "prefill_mj", "request", "touched")

    def __init__(self, request: RequestSpan) -> None:
        self.request = request
        self.prefill_mj = self.decode_mj = 0
        self.touched = False


class _Tokens:
    """Which share of what an engine did between two looks at its page was not ours.

    The engine's count and the spans' even spread disagree a little at every look and agree over time, so the difference
    is carried along, and only what goes beyond the tokens of two looks is foreign.
    """

    def __init__(self) -> None:
        self.carried = 0.0
        self.foreign = 0.0
        self.recent: deque[float] = deque(maxlen=120)

    def share(self, engine: float, ours: float) -> float:
        self.recent.append(engine)
        slack = 2 * max(self.recent)
        self.carried += engine - ours
        foreign = min(max(self.carried - slack, 0.0), engine)
        self.carried = max(self.carried - foreign, -slack)
        self.foreign += foreign
        return foreign / engine if engine > 0 else 0.0


class Ledger:
    """Feed it samples and spans, `settle` now and then, `snapshot` at will. Times are monotonic ns of one clock."""

    def __init__(
        self, domains: Iterable[EnergyDomain], *, hold: AllowedLateness | None = None, model: str | None = None
    ) -> None:
        self._hold = hold or AllowedLateness()
        self.model = model
        """Of spans that name none."""
        self._points = {domain.name: _Points(domain) for domain in domains if domain.within is None}
        self._engine: deque[EngineSample] = deque(maxlen=MAX_POINTS)
        self._open: dict[str, _Open] = {}
        self._closed: deque[RequestSpan] = deque(maxlen=MAX_OPEN)
        """In the order of their ends."""
        self._known: OrderedDict[str, None] = OrderedDict()
        self._accounts: dict[Label, Account] = {}
        self._idle_mj = self._unattributed_mj = 0
        self._coefficients: Coefficients | None = None
        self._idle_w: float | None = None
        self._fit_again_ns = 0
        self._frontier_ns = 0
        self._longest_ns = 0
        self._tokens = _Tokens()
        self._covered: deque[tuple[int, float, float]] = deque()
        """t_ns, our tokens and the engine's, of each settled portion."""
        self.dropped: Counter[str] = Counter()
        self._merged = self._partial = 0

    # -- in ----------------------------------------------------------------------------------------------------

    def energy(self, samples: Iterable[EnergySample]) -> None:
        for sample in samples:
            if sample.domain in self._points:
                self._points[sample.domain].add(sample)

    def engine(self, sample: EngineSample) -> None:
        if not self._engine or sample.t_ns > self._engine[-1].t_ns:
            self._engine.append(sample)

    def span(self, request: RequestSpan, now_ns: int) -> None:
        """A request that ended. Counted and dropped when it comes too late, twice, or in too great numbers."""
        if (twin := self._open.get(request.key)) is not None:
            self._meet(twin, request)
        elif request.key in self._known:
            self.dropped["duplicate"] += 1
        elif request.end_ns > now_ns + FUTURE_NS:
            self.dropped["future"] += 1
        elif request.end_ns <= self._frontier_ns:
            self.dropped["late"] += 1
            self._remember(request.key)
        elif len(self._open) >= MAX_OPEN:
            self.dropped["overflow"] += 1
        else:
            self._partial += request.start_ns < self._frontier_ns
            self._longest_ns = max(self._longest_ns, request.end_ns - request.start_ns)
            self._open[request.key] = _Open(request)
            self._account(request)  # shown at 0 first: a counter that starts elsewhere has no rate

    def _meet(self, twin: _Open, request: RequestSpan) -> None:
        """The client's and the engine's span of one request are one: the engine's times, the client's workload."""
        if twin.request.client == request.client or twin.touched:
            self.dropped["duplicate"] += 1
            return
        client, engine = (request, twin.request) if request.client else (twin.request, request)
        twin.request = msgspec.structs.replace(
            engine,
            workload=client.workload or engine.workload,
            model=engine.model or client.model,
            input_tokens=_either(engine.input_tokens, client.input_tokens),
            output_tokens=_either(engine.output_tokens, client.output_tokens),
            cached_tokens=_either(engine.cached_tokens, client.cached_tokens),
            ok=client.ok and engine.ok,
        )
        self._merged += 1

    def _remember(self, key: str) -> None:
        self._known[key] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    # -- the watermark -----------------------------------------------------------------------------------------

    def frontier(self, now_ns: int) -> int:
        """Up to when everyone is known who was there, or has had long enough to be."""
        hold = self._hold
        blind_ns = max(round(hold.blind_s * NS_PER_S), 2 * self._longest_ns)
        given_up_ns = now_ns - min(blind_ns, round(hold.most_s * NS_PER_S))
        latest_ns = now_ns - round(hold.least_s * NS_PER_S)
        complete_ns = self._complete_until(given_up_ns, latest_ns)
        return max(self._frontier_ns, given_up_ns, complete_ns)

    def _complete_until(self, after_ns: int, until_ns: int) -> int:
        """The last look of an unbroken row at which as many spans are there as the engine says it has requests."""
        after_ns = max(after_ns, self._frontier_ns)
        looks = [sample for sample in self._engine if after_ns < sample.t_ns <= until_ns]
        if not looks:
            return 0
        times = np.array([sample.t_ns for sample in looks], dtype=np.int64)
        covering = self._covering(times, times)
        complete_ns = 0
        for sample, spans in zip(looks, covering.tolist(), strict=True):
            if _holds(sample) > spans:
                break
            complete_ns = sample.t_ns
        return complete_ns

    def _covering(self, from_ns: Ints, to_ns: Ints) -> Ints:
        """How many spans touch each interval."""
        if not len(from_ns):
            return np.zeros(0, np.int64)
        first_ns = int(from_ns[0]) - EDGE_NS
        requests = [entry.request for entry in self._open.values()]
        requests += takewhile(lambda request: request.end_ns >= first_ns, reversed(self._closed))
        starts = np.sort(np.array([request.start_ns for request in requests], dtype=np.int64)) - EDGE_NS
        ends = np.sort(np.array([request.end_ns for request in requests], dtype=np.int64)) + EDGE_NS
        return np.searchsorted(starts, to_ns, side="right") - np.searchsorted(ends, from_ns, side="left")

    # -- settling ----------------------------------------------------------------------------------------------

    def settle(self, now_ns: int) -> bool:
        """Books what has become complete, if that is a portion worth the work; whether anything was booked."""
        frontier_ns = self.frontier(now_ns)
        held = {name: points.held(frontier_ns) for name, points in self._points.items() if points.first_mj is not None}
        held = {name: points for name, points in held.items() if len(points) > 1}
        if not held:
            self._close(now_ns - round(self._hold.most_s * NS_PER_S))
            return False
        start_ns = min(points[0][0] for points in held.values())
        end_ns = max(points[-1][0] for points in held.values())
        if end_ns - start_ns < SETTLE_NS:
            return False
        self._book(held, start_ns, end_ns, now_ns)
        self._frontier_ns = max(self._frontier_ns, end_ns)
        self._close(end_ns)
        self._forget(end_ns)
        return True

    def _book(
        self, held: Mapping[str, Sequence[tuple[int, int, bool]]], start_ns: int, end_ns: int, now_ns: int
    ) -> None:
        entries = [entry for entry in self._open.values() if entry.request.start_ns < end_ns]
        phases = phases_of([entry.request for entry in entries])
        slot_ns = slot_for(phases, start_ns, end_ns, SETTLE_ROWS)
        unseen = self._unseen([entry.request for entry in entries], start_ns, end_ns)
        work = slot_steps(phases, start_ns, end_ns, slot_ns, unseen)
        foreign = self._foreign(work, phases, start_ns, end_ns)
        prefill_mj, decode_mj = np.zeros(len(entries)), np.zeros(len(entries))
        idle_mj = lost_mj = 0.0
        total_mj = 0
        for name, points in held.items():
            series = _series(name, points)
            coefficients = self._fit(name, end_ns, now_ns)
            owed = _owed(work, coefficients)
            member_mj, idle, lost = split_energy(series, work, owed, self._idle_w)
            theirs = member_mj * foreign[work.step]
            ours = member_mj - theirs
            prefill_mj += np.bincount(work.request, np.where(work.prefilling, ours, 0.0), minlength=len(entries))
            decode_mj += np.bincount(work.request, np.where(work.prefilling, 0.0, ours), minlength=len(entries))
            idle_mj, lost_mj, total_mj = (
                idle_mj + idle,
                lost_mj + lost + float(theirs.sum()),
                total_mj + series.total_mj,
            )
            self._points[name].settle(points[-1][0], points[-1][1])
        values = np.maximum(np.concatenate(([idle_mj, lost_mj], prefill_mj, decode_mj)), 0.0)
        whole = np.maximum(round_to_sum(values, total_mj), 0)
        whole[1] += total_mj - int(whole.sum())
        self._idle_mj += int(whole[0])
        self._unattributed_mj += int(whole[1])
        shares = whole[2:].tolist()
        for entry, prefill, decode in zip(entries, shares[: len(entries)], shares[len(entries) :], strict=True):
            self._charge(entry, prefill, decode)

    def _charge(self, entry: _Open, prefill_mj: int, decode_mj: int) -> None:
        entry.touched = True
        entry.prefill_mj += prefill_mj
        entry.decode_mj += decode_mj
        account = self._account(entry.request)
        account.prefill_mj += prefill_mj
        account.decode_mj += decode_mj

    def _fit(self, name: str, end_ns: int, now_ns: int) -> Coefficients | None:
        """One domain's coefficients stand for all: they decide shares only, and the GPUs of an engine work alike."""
        if self._coefficients and now_ns < self._fit_again_ns:
            return self._coefficients
        requests, since_ns = self._lately(end_ns)
        points = [point for point in self._points[name].points if since_ns <= point[0] <= end_ns]
        if len(points) < 3:
            return self._coefficients
        age_ns = end_ns - self._points[name].points[0][0]
        self._fit_again_ns = now_ns + min(max(age_ns, FIRST_FIT_NS), HISTORY_NS)
        phases = phases_of(requests)
        slot_ns = slot_for(phases, points[0][0], end_ns, FIT_ROWS)
        work = slot_steps(phases, points[0][0], end_ns, slot_ns, np.zeros((0, 2), np.int64))
        found = fit_coefficients(_series(name, points), work)
        self._idle_w = self._idle_w if found.idle_w is None else found.idle_w
        if found.r_squared is not None:
            self._coefficients = found
        return self._coefficients

    def _lately(self, end_ns: int) -> tuple[list[RequestSpan], int]:
        """Requests for the fit, and the instant from which on they are all that were there."""
        closed = list(islice(reversed(self._closed), FIT_REQUESTS + 1))
        since_ns = end_ns - HISTORY_NS
        if len(closed) > FIT_REQUESTS:
            since_ns = max(since_ns, closed.pop().end_ns)
        return [entry.request for entry in self._open.values()] + closed, since_ns

    def _unseen(self, requests: Sequence[RequestSpan], start_ns: int, end_ns: int) -> Ints:
        """int64[k, 2]: when someone was there whose work is not known, by a span without tokens or by the engine."""
        intervals = [(r.start_ns, r.end_ns) for r in requests if first_token_of(r) is None]
        looks = self._looks(start_ns, end_ns)
        times = np.array([look.t_ns for look in looks], dtype=np.int64)
        missing = np.array([_holds(look) for look in looks]) > self._covering(times, times)
        told = self._covering(times[:-1], times[1:])
        for k, (a, b) in enumerate(pairwise(looks)):
            if missing[k] or missing[k + 1] or (told[k] == 0 and _made(a, b) > 0):
                intervals.append((a.t_ns, b.t_ns))
        return np.array(intervals, dtype=np.int64).reshape(-1, 2)

    def _looks(self, start_ns: int, end_ns: int) -> list[EngineSample]:
        """The looks inside, and the one on either side."""
        looks = list(self._engine)
        times = [look.t_ns for look in looks]
        first = max(int(np.searchsorted(times, start_ns, side="right")) - 1, 0)
        last = int(np.searchsorted(times, end_ns, side="left")) + 1
        return looks[first:last]

    def _foreign(self, work: EngineSteps, phases: Phases, start_ns: int, end_ns: int) -> Floats:
        """float64[S]: the share of each step that others had, by the tokens the engine made and nobody told of."""
        looks = self._looks(start_ns, end_ns)
        shares = np.zeros(work.steps)
        if len(looks) < 2:
            return shares
        times = np.array([look.t_ns for look in looks], dtype=np.int64)
        inner = times[(times > start_ns) & (times < end_ns)]
        edges = np.concatenate(([start_ns], inner, [end_ns]))
        total = np.cumsum([0.0, *(_made(a, b) for a, b in pairwise(looks))])
        made = np.diff(np.interp(edges, times, total)).tolist()
        ours = output_by_interval(phases, edges)
        foreign = np.array([self._tokens.share(all_, own) for all_, own in zip(made, ours.tolist(), strict=True)])
        interval = np.searchsorted(edges, (work.start_ns + work.end_ns) // 2, side="right") - 1
        inside = (interval >= 0) & (interval < len(made))
        shares[inside] = foreign[interval[inside]]
        self._cover(end_ns, float(ours.sum()), sum(made))
        return shares

    def _cover(self, t_ns: int, ours: float, engine: float) -> None:
        self._covered.append((t_ns, ours, engine))
        while self._covered and self._covered[0][0] < t_ns - COVERAGE_NS:
            self._covered.popleft()

    def _close(self, end_ns: int) -> None:
        """Requests that ended before the frontier are done: nothing more can be booked on them."""
        ended = [(entry.request.end_ns, key) for key, entry in self._open.items() if entry.request.end_ns <= end_ns]
        for _, key in sorted(ended):
            entry = self._open.pop(key)
            self._remember(key)
            self._closed.append(entry.request)
            self._count(self._account(entry.request), entry)

    def _count(self, account: Account, entry: _Open) -> None:
        request, energy_mj = entry.request, entry.prefill_mj + entry.decode_mj
        account.completed += request.ok
        account.failed += not request.ok
        account.input_tokens += request.input_tokens or 0
        account.output_tokens += request.output_tokens or 0
        if entry.touched:  # else the meter was away all its time: its energy is unknown, not 0
            account.energy_mj += energy_mj
            account.energy.observe(energy_mj / 1000, request.request_id)
            account.energy.sum = account.energy_mj / 1000
        if request.ok:
            account.duration.observe((request.end_ns - request.start_ns) / NS_PER_S, request.request_id)
        if request.ok and request.first_token_ns is not None:
            account.ttft.observe((request.first_token_ns - request.start_ns) / NS_PER_S, request.request_id)

    def _account(self, request: RequestSpan) -> Account:
        """A closed set of labels: whatever clients call themselves, there is an end to it."""
        label = (request.model or self.model or "unknown", request.workload or "unlabelled")
        if (account := self._accounts.get(label)) is not None:
            return account
        if len(self._accounts) >= MAX_LABELS:
            label = ("other", "other")
        return self._accounts.setdefault(label, Account())

    def _forget(self, end_ns: int) -> None:
        before_ns = end_ns - HISTORY_NS
        for points in self._points.values():
            points.forget(before_ns)
        while self._closed and self._closed[0].end_ns < before_ns:
            self._closed.popleft()
        while len(self._engine) > 1 and self._engine[1].t_ns < min(before_ns, self._frontier_ns):
            self._engine.popleft()

    # -- out ---------------------------------------------------------------------------------------------------

    def snapshot(self, now_ns: int) -> Snapshot:
        ours, engine = (sum(row[k] for row in self._covered) for k in (1, 2))
        snapshot = Snapshot(
            domains=tuple(points.books() for points in self._points.values()),
            accounts={label: _frozen(account) for label, account in self._accounts.items()},
            idle_mj=self._idle_mj,
            unattributed_mj=self._unattributed_mj,
            dropped={reason: self.dropped[reason] for reason in REASONS},
            merged=self._merged,
            partial=self._partial,
            open_requests=len(self._open),
            held_s=(now_ns - self._frontier_ns) / NS_PER_S if self._frontier_ns else 0.0,
            coverage=min(ours / engine, 1.0) if engine > 0 else None,
            foreign_tokens=round(self._tokens.foreign),
        )
        snapshot.check()
        return snapshot


def _either(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def _holds(sample: EngineSample) -> float:
    """Requests that the engine says it has."""
    return sample.values.get("running", 0.0) + sample.values.get("waiting", 0.0)


def _made(earlier: EngineSample, later: EngineSample) -> float:
    """Output tokens between two looks. A count that went down started again from zero: the engine did."""
    before, after = (sample.values.get("generation_tokens", 0.0) for sample in (earlier, later))
    return after - before if after >= before else after


def _owed(work: EngineSteps, coefficients: Coefficients | None) -> Floats:
    """Joules per member under the fit; before there is one, each step's time, equally."""
    features = member_features(work)
    if coefficients is not None:
        owed = features @ np.array([getattr(coefficients, column) for column in COLUMNS])
        if owed.any():
            return np.asarray(owed)
    return np.asarray(features[:, 0] * np.maximum(work.end_ns - work.start_ns, 1)[work.step] / NS_PER_S)


def _frozen(account: Account) -> FrozenAccount:
    return FrozenAccount(
        account.prefill_mj,
        account.decode_mj,
        account.input_tokens,
        account.output_tokens,
        account.completed,
        account.failed,
        account.energy.frozen(),
        account.ttft.frozen(),
        account.duration.frozen(),
    )
