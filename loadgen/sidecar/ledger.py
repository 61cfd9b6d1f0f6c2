"""The live ledger: every millijoule that the meter counted, in exactly one account, once its owners are known.

Energy is committed up to a watermark (watermark.py), once, by the functions that also analyse a run folder, and never
changed afterwards. All counters are as of that instant, so at every moment
attributed + idle + unattributed == energy of the GPUs,  in whole millijoules.

Nothing here reads a clock, and everything is bounded by number, by time, or by both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile, islice, pairwise, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.cost_model import cost_shares, overlap
from loadgen.attribution.shapley import round_to_sum, split_energy
from loadgen.attribution.span_steps import first_token_of, phases_of
from loadgen.energy.counter_clock import align_portion
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries, accelerators
from loadgen.sidecar.accounts import MAX_LABEL_VALUES, Account, AccountKey, Accounts, OpenRequest
from loadgen.sidecar.foreign_energy import foreign_cost, prior_prices
from loadgen.sidecar.foreign_tokens import EngineView, counts_at_end, engine_view, rebuilt_steps
from loadgen.sidecar.live_fit import LiveFit, fit_live
from loadgen.sidecar.span_join import SpanJoin
from loadgen.sidecar.watermark import (
    EDGE_NS,
    AllowedLateness,
    SpanTimes,
    complete_until,
    give_up_ns,
    queue_length,
)
from loadgen.telemetry.engine_sample import PROMPT_COUNTERS, EngineSample, counter_growth, sample_times
from loadgen.units import NS_PER_S, energy_imbalance_mj, mj_from_j, ns_from_s, s_from_ns

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan, SpanLabels

FUTURE_NS = 2 * NS_PER_S
"""A span that ends later than this from now is from another clock."""
MIN_COMMIT_NS = 2 * NS_PER_S
"""Energy is committed in portions of at least this duration."""
HISTORY_NS = 60 * NS_PER_S
"""The fit looks back this far."""
FIT_REQUESTS = 2000
FIRST_FIT_NS = 5 * NS_PER_S
"""Refit when the history has doubled, at least this long and at most HISTORY_NS after the previous fit. Without
other clients the fit decides shares only."""
FOREIGN_SHARE = 0.02
"""Tokens of other clients, relative to those of spans, beyond which the fit is made again every FIRST_FIT_NS."""
COVERAGE_NS = 300 * NS_PER_S
"""Coverage is that of committed energy this far back."""
REPORTING_NS = 600 * NS_PER_S
"""Clients that sent a span within this time send one of each of their requests."""
VIEW_NS = NS_PER_S
"""The engine's counters are looked at from this long before a portion on: two of their intervals are in it."""
CLOCK_UPDATES = 200
"""Updates of a counter before a portion that show, with those in it, when it really updates."""
COMMIT_ROWS, COMMIT_ROWS_PER_S, MOST_COMMIT_ROWS = 10_000, 2_000, 35_000
"""Rows of the work of a portion: at the least, of each second, and at the most."""
FIT_ROWS = 20_000
"""Rows of the work that prices are fitted to, at the most, unless the phases are too many for it."""
MAX_OPEN = 20_000
"""Requests that are not closed yet."""
MAX_FIRST_TOKENS = 20_000
"""Traces whose first token is remembered."""
MAX_SAMPLES = 20_000
"""Points per domain, and engine samples: half an hour of each."""

DROP_REASONS = {
    "malformed": "not a protobuf trace export, or times or counts that contradict themselves",
    "not_a_request": "another kind of span, an engine's start-up for example",
    "oversized": "the body that carried it was over the limit (counted once a body)",
    "late": "its whole time was committed before it arrived, or the sidecar was not measuring yet",
    "duplicate": "the same request was reported before",
    "future": "it ends in the future: the sender's clock is wrong",
    "overflow": "more open requests than are kept",
    "no_engine": "it names none of several engines, and no span or counter says which one its request ran at",
}
"""Reasons for dropping a span, and what each means. No others are exported."""


class DomainEnergy(NamedTuple):
    """One domain's energy: committed, and counted by the meter but still pending."""

    domain: EnergyDomain
    committed_mj: int
    pending_mj: int


@dataclass(frozen=True)
class Snapshot:
    """The ledger at one moment, as a scrape shows it."""

    domains: tuple[DomainEnergy, ...]
    accounts: Mapping[AccountKey, Account]
    idle_mj: int
    unattributed_mj: int
    dropped: Mapping[str, int]
    merged: int
    partial: int
    open_requests: int
    lag_s: float
    """Time from the watermark to now."""
    coverage: float | None
    """Output tokens with a span / the engine's, over the last five minutes committed."""
    foreign_tokens: int | None
    """Is None if the engine has no count."""
    labels: tuple[str, ...] = ()
    """Names of the labels of the user's choosing."""

    def check(self) -> None:
        """Raise AssertionError unless energy is conserved; called before anything is shown."""
        committed_mj = sum(domain.committed_mj for domain in self.domains)
        attributed_mj = sum(account.prefill_mj + account.decode_mj for account in self.accounts.values())
        if off_mj := energy_imbalance_mj(committed_mj, attributed_mj, self.idle_mj, self.unattributed_mj):
            raise AssertionError(
                f"energy is not conserved: {committed_mj} mJ committed, {committed_mj - off_mj} mJ in accounts"
            )


class SettledEntry(NamedTuple):
    """A request to which no more energy is committed, and the account that it is counted in."""

    entry: OpenRequest
    account: AccountKey


class _EnergyPoint(NamedTuple):
    t_ns: int
    mj: int
    gap: bool
    slack_ns: int = 0
    capped_ns: int | None = None


class _Domain:
    """One domain's cumulative millijoules: committed points that the fit still looks at, then pending ones."""

    def __init__(self, domain: EnergyDomain) -> None:
        self.domain = domain
        self.points: deque[_EnergyPoint] = deque(maxlen=MAX_SAMPLES)
        self.start_mj = 0
        self.committed = _EnergyPoint(0, 0, gap=False)

    def add(self, sample: EnergySample) -> None:
        point = _EnergyPoint(sample.t_ns, mj_from_j(sample.joules), sample.gap, sample.slack_ns, sample.capped_ns)
        if not self.points:
            self.start_mj, self.committed = point.mj, point
        elif point.t_ns <= self.points[-1].t_ns:
            return
        self.points.append(point)

    def pending(self, end_ns: int) -> list[_EnergyPoint]:
        """The newest committed point and those after it, up to `end_ns`."""
        newest = takewhile(lambda point: point.t_ns >= self.committed.t_ns, reversed(self.points))
        return [point for point in newest if point.t_ns <= end_ns][::-1]

    def forget(self, before_ns: int) -> None:
        while len(self.points) > 1 and self.points[1].t_ns < min(before_ns, self.committed.t_ns):
            self.points.popleft()

    def energy(self) -> DomainEnergy:
        counted_mj = self.points[-1].mj if self.points else 0
        return DomainEnergy(self.domain, self.committed.mj - self.start_mj, counted_mj - self.committed.mj)

    def portion(self, points: Sequence[_EnergyPoint]) -> EnergySeries:
        """The newest points, which those before them help to place in time."""
        older = dropwhile(lambda point: point.t_ns >= points[0].t_ns, reversed(self.points))
        before = list(islice(older, CLOCK_UPDATES))
        return align_portion(self.series([*reversed(before), *points]), len(before))

    def series(self, points: Sequence[_EnergyPoint]) -> EnergySeries:
        t_ns, mj, gap, slack_ns, counted = zip(*points, strict=True)
        capped_ns = None if None in counted else np.array(counted)
        return EnergySeries(
            self.domain.name, np.array(t_ns), np.array(mj), np.array(slack_ns), np.array(gap, dtype=np.bool_),
            capped_ns, self.domain.limit_w,
        )  # fmt: skip


class Ledger:
    """Add samples and spans, `commit` now and then, `snapshot` at will. Times are monotonic ns of one clock."""

    def __init__(
        self,
        domains: Iterable[EnergyDomain],
        *,
        lateness: AllowedLateness | None = None,
        model: str | None = None,
        labels: Iterable[str] = (),
        label_values: int = MAX_LABEL_VALUES,
        shown: dict[str, set[str] | frozenset[str]] | None = None,
        accounts: Iterable[AccountKey] = (),
        since_ns: int = 0,
        role: Literal["prefill", "decode"] | None = None,
    ) -> None:
        """model: of spans that name none. labels: names of labels by which requests are counted too, of which
        `label_values` values are shown. shown: values of labels that are shown already. accounts: those that are always
        shown. since_ns: spans that end before are late, a former sidecar had them. role: the phase of its requests that
        alone runs at the engine."""
        self._role = role
        self._lateness = lateness or AllowedLateness()
        self._domains: dict[str, _Domain] = {}
        self.take_domains(domains)
        self._samples: deque[EngineSample] = deque(maxlen=MAX_SAMPLES)
        self._open: dict[str, OpenRequest] = {}
        self._closed: deque[RequestSpan] = deque(maxlen=MAX_OPEN)
        """Requests in the order of their ends."""
        self._join = SpanJoin(self._open)
        self._first_tokens: OrderedDict[bytes, int] = OrderedDict()
        """Trace -> its earliest token; 0 once a request has it."""
        self._accounts = Accounts(model, labels, label_values, shown, accounts)
        self._idle_mj = self._unattributed_mj = 0
        self._fitted: LiveFit | None = None
        self.settled: list[SettledEntry] = []
        """Requests that the newest `commit` closed, in the order of their ends."""
        self._idle_w: float | None = None
        self._refit_ns = 0
        self._watermark_ns = since_ns
        self.measured_since_ns: int | None = None
        """Instant of the first energy sample."""
        self._longest_ns = 0
        self._fitted_ns = 0
        self._at_end = False
        """True if the engine counts a request's tokens when it ends."""
        self._foreign_tokens: float | None = None
        self._coverage: deque[tuple[int, float, float]] = deque()
        """t_ns, tokens of spans and of the engine, of each commit."""
        self.dropped: Counter[str] = Counter()
        self._merged = self._partial = 0
        self._reported_ns = -REPORTING_NS
        """Instant of a client's newest span."""

    @property
    def sources(self) -> list[str]:
        """The domains whose energy the accounts have, with the origin of their joules."""
        return [f"{name} ({domain.domain.source})" for name, domain in self._domains.items()]

    def take_domains(self, domains: Iterable[EnergyDomain]) -> None:
        """Take the domains whose energy the accounts have: none until their source is known."""
        self._domains = {domain.name: _Domain(domain) for domain in accelerators(domains)}

    def name_model(self, model: str) -> None:
        """Name the model of spans that name none, from now on."""
        self._accounts.model = model

    # -- in ----------------------------------------------------------------------------------------------------

    def add_energy(self, samples: Iterable[EnergySample]) -> None:
        for sample in samples:
            if sample.domain in self._domains:
                if self.measured_since_ns is None:
                    self.measured_since_ns = sample.t_ns
                    self._watermark_ns = max(self._watermark_ns, sample.t_ns)  # before it nothing was measured
                    for entry in self._open.values():
                        self._partial += entry.whole and entry.request.start_ns < sample.t_ns
                        entry.whole &= entry.request.start_ns >= sample.t_ns
                self._domains[sample.domain].add(sample)

    @property
    def engine_samples(self) -> Sequence[EngineSample]:
        """The engine's counters, lately."""
        return tuple(self._samples)

    def add_engine_sample(self, sample: EngineSample) -> None:
        if self._role == "decode":
            sample = {**sample, **dict.fromkeys(PROMPT_COUNTERS & sample.keys(), 0.0)}
        if not self._samples or sample["t_ns"] > self._samples[-1]["t_ns"]:
            self._samples.append(sample)

    def add_span(self, request: RequestSpan, now_ns: int, *, copy: bool = False) -> None:
        """Take a span of a request that ended. A late one, a duplicate or one too many is counted and dropped.

        copy: the span counts in another engine's ledger; if it comes too late for this one, that is not counted.
        """
        self._reported_ns = now_ns if request.client else self._reported_ns
        request = self._with_first_token(request)
        if self._accounts.labels.names:
            request = msgspec.structs.replace(request, labels=self._accounts.labels.bounded(request.labels))
        outcome = self._join.add(request)
        if outcome == "merged":
            self._merged += 1
        elif outcome in DROP_REASONS:
            self.dropped[outcome] += not copy
        elif outcome == "added":
            return
        elif request.end_ns > now_ns + FUTURE_NS:
            self.dropped["future"] += 1
        elif request.end_ns <= self._watermark_ns:
            self.dropped["late"] += not copy
            self._join.remember((request,))
        elif len(self._open) >= MAX_OPEN:
            self.dropped["overflow"] += 1
        else:
            whole = request.start_ns >= self._watermark_ns
            self._partial += not whole
            self._longest_ns = max(self._longest_ns, request.end_ns - request.start_ns)
            self._join.open(request).whole = whole
            self._accounts.open(request)

    def add_labels(self, spans: Iterable[SpanLabels]) -> None:
        """Take labels of spans that are no requests, for the requests of their traces that were not charged yet."""
        for span in spans:
            self._accounts.labels.add(span)

    def add_first_tokens(self, first_tokens: Iterable[tuple[bytes, int]]) -> None:
        """Take instants of tokens, by trace, of an engine whose span of a request does not say when its first came.

        They arrive before that span, which ends later. The earliest of a trace counts.
        """
        for trace_id, t_ns in first_tokens:
            self._first_tokens[trace_id] = min(t_ns, self._first_tokens.get(trace_id, t_ns))
            if len(self._first_tokens) > MAX_FIRST_TOKENS:
                self._first_tokens.popitem(last=False)

    def _with_first_token(self, request: RequestSpan) -> RequestSpan:
        """Return an engine's span with the first token of its trace: that of the first request in it alone."""
        if request.client or request.first_token_ns is not None:
            return request
        first_ns = self._first_tokens.get(request.trace_id, 0)
        if not request.prefill_ns <= first_ns <= request.end_ns:
            return request
        self._first_tokens[request.trace_id] = 0  # of a second request in the trace it would be false
        return msgspec.structs.replace(request, first_token_ns=first_ns)

    # -- commit ------------------------------------------------------------------------------------------------

    def watermark(self, now_ns: int) -> int:
        """The instant up to which every request is known, or has been waited for long enough. Never goes back."""
        give_up = give_up_ns(now_ns, self._lateness, self._longest_ns)
        after_ns, until_ns = max(give_up, self._watermark_ns), now_ns - ns_from_s(self._lateness.min_s)
        samples = [sample for sample in self._samples if after_ns < sample["t_ns"] <= until_ns]
        complete_ns = complete_until(samples, self._span_times(samples))
        return max(self._watermark_ns, give_up, min(complete_ns, self._unreported_ns(now_ns)))

    def _latest_watermark(self, now_ns: int) -> int:
        """The watermark if every request that ran is known: to find it takes no look at them."""
        give_up = give_up_ns(now_ns, self._lateness, self._longest_ns)
        return max(self._watermark_ns, give_up, now_ns - ns_from_s(self._lateness.min_s))

    def _unreported_ns(self, now_ns: int) -> int:
        """The beginning of the first request whose client has yet to report, at an engine that only computes prompts.

        A client reports when another engine has generated its output: until then nothing says whose energy it is.
        """
        if self._role != "prefill" or now_ns > self._reported_ns + REPORTING_NS:
            return now_ns
        entries = (entry for entry in self._open.values() if not any(part.client for part in entry.parts))
        return min((entry.request.start_ns for entry in entries), default=now_ns)

    def _span_times(self, samples: Sequence[EngineSample]) -> SpanTimes:
        """Spans that may cover one of these samples."""
        if not samples:
            return SpanTimes.of(())
        first_ns = samples[0]["t_ns"] - EDGE_NS
        closed = takewhile(lambda request: request.end_ns >= first_ns, reversed(self._closed))
        return SpanTimes.of([*(entry.request for entry in self._open.values()), *closed])

    def commit(self, now_ns: int) -> bool:
        """Commit the energy up to the watermark if that is a portion worth the work; return whether it was."""
        self.settled = []
        committed_ns = min((domain.committed.t_ns for domain in self._domains.values()), default=0)
        if self._latest_watermark(now_ns) < committed_ns + MIN_COMMIT_NS:
            return False
        watermark_ns = self.watermark(now_ns)
        pending = {name: domain.pending(watermark_ns) for name, domain in self._domains.items()}
        pending = {name: points for name, points in pending.items() if len(points) > 1}
        if not pending:
            if self._domains:  # else no energy can come for what is before the watermark
                watermark_ns = max(self._watermark_ns, now_ns - ns_from_s(self._lateness.max_s))
            self._watermark_ns = watermark_ns
            self._close(self._watermark_ns)
            return False
        start_ns = min(points[0].t_ns for points in pending.values())
        end_ns = max(points[-1].t_ns for points in pending.values())
        if end_ns - start_ns < MIN_COMMIT_NS:
            return False
        self._charge(pending, start_ns, end_ns, now_ns)
        self._watermark_ns = max(self._watermark_ns, end_ns)
        self._close(end_ns)
        before_ns = end_ns - HISTORY_NS
        for domain in self._domains.values():
            domain.forget(before_ns)
        while self._closed and self._closed[0].end_ns < before_ns:
            self._closed.popleft()
        while len(self._samples) > 1 and self._samples[1]["t_ns"] < min(before_ns, self._watermark_ns):
            self._samples.popleft()
        return True

    def _charge(self, pending: Mapping[str, Sequence[_EnergyPoint]], start_ns: int, end_ns: int, now_ns: int) -> None:
        """Split the pending energy of all domains over requests, idle and unattributed, in whole millijoules."""
        entries = [entry for entry in self._open.values() if entry.request.start_ns < end_ns]
        requests = self._at_engine(entry.request for entry in entries)
        for name in pending:
            self._fit(name, end_ns, now_ns)
        engine = self._engine(requests, start_ns, end_ns)
        unseen_ns, max_rows = self._unseen_in(requests, start_ns, end_ns), commit_rows(end_ns - start_ns)
        steps = rebuilt_steps(requests, engine, start_ns, end_ns, unseen_ns, max_rows, at_end=self._at_end)
        foreign = 0.0 if steps.foreign is None else float(steps.foreign.decode.sum())
        if foreign > FOREIGN_SHARE * float(steps.decode.sum()) and now_ns >= self._fitted_ns + FIRST_FIT_NS:
            self._refit_ns = 0  # beside other clients the prices decide the total, not only the shares
            for name in pending:
                self._fit(name, end_ns, now_ns)
        if engine is not None:
            self._count_tokens(engine, start_ns, end_ns)
        idle_mj = unattributed_mj = 0.0
        prefill_mj, decode_mj = np.zeros(len(entries)), np.zeros(len(entries))
        windows_j2, law_j = np.zeros(len(entries)), np.zeros(len(entries))
        total_mj = 0
        for name, points in pending.items():
            series = self._domains[name].portion(points)
            prices = self._fitted.prices if self._fitted else prior_prices(series, steps, self._idle_w)
            costs = cost_shares(steps, prices, self._idle_w or 1.0)
            foreign_j = foreign_cost(series, steps, prices, costs, self._idle_w)
            member_mj, idle, unattributed = split_energy(series, steps, costs, self._idle_w, foreign_j)
            prefill_mj += np.bincount(steps.request, np.where(steps.prefilling, member_mj, 0.0), minlength=len(entries))
            decode_mj += np.bincount(steps.request, np.where(steps.prefilling, 0.0, member_mj), minlength=len(entries))
            if self._fitted is not None:
                errors = self._fitted.errors.of_portion(series, steps, costs, member_mj, foreign_j, len(entries))
                windows_j2 += errors.windows_j2
                law_j += errors.law_j
            idle_mj += idle
            unattributed_mj += unattributed
            total_mj += series.total_mj
            self._domains[name].committed = points[-1]
            for gap_start, gap_end in gaps(points):
                for entry in entries:
                    entry.whole &= not (entry.request.start_ns < gap_end and gap_start < entry.request.end_ns)
        if self._role == "prefill":
            prefill_mj, decode_mj = prefill_mj + decode_mj, np.zeros(len(entries))
        elif self._role == "decode":
            prefill_mj, decode_mj = np.zeros(len(entries)), prefill_mj + decode_mj
        exact_mj = np.concatenate(([idle_mj, unattributed_mj], prefill_mj, decode_mj))
        parts_mj = round_to_sum(np.maximum(exact_mj, 0.0), total_mj)
        self._idle_mj += int(parts_mj[0])
        self._unattributed_mj += int(parts_mj[1])
        with_steps = np.bincount(steps.request, minlength=len(entries)) > 0
        shares_mj = parts_mj[2:].reshape(2, -1).tolist()
        rows = zip(entries, with_steps, *shares_mj, windows_j2.tolist(), law_j.tolist(), strict=True)
        for entry, measured, prefill, decode, variance_j2, error_j in rows:
            if measured:  # the energy of a request without tokens is unknown
                self._accounts.charge(entry, prefill, decode)
                entry.add_errors(variance_j2 if self._fitted else None, error_j)

    def _engine(self, requests: Sequence[RequestSpan], start_ns: int, end_ns: int) -> EngineView | None:
        """The engine around [start, end], and since the earliest of these requests began."""
        since_ns = min([start_ns, *(request.start_ns for request in requests)]) - VIEW_NS
        recent, _ = self._recent_requests(end_ns, since_ns)
        first = max(bisect_left(self._samples, since_ns, key=itemgetter("t_ns")) - 1, 0)
        return engine_view(list(islice(self._samples, first, None)), recent, start_ns, end_ns, at_end=self._at_end)

    def _count_tokens(self, engine: EngineView, start_ns: int, end_ns: int) -> None:
        """Count the tokens of spans, of others and of the engine in [start, end]."""
        intervals, work, _ = engine
        interval, _, share = overlap(np.array([start_ns, end_ns]), intervals.edges_ns[:-1], intervals.edges_ns[1:])
        columns = (work.spans, work.foreign, intervals.generated)
        spans, foreign, generated = (float((column[interval] * share).sum()) for column in columns)
        self._foreign_tokens = (self._foreign_tokens or 0.0) + foreign
        self._coverage.append((end_ns, spans, generated))
        while self._coverage[0][0] < end_ns - COVERAGE_NS:
            self._coverage.popleft()

    def _unseen_in(self, requests: Sequence[RequestSpan], start_ns: int, end_ns: int) -> NDArray[np.int64]:
        """The `_unseen` of the samples in [start, end], and of the one on either side."""
        first = max(bisect_right(self._samples, start_ns, key=itemgetter("t_ns")) - 1, 0)
        end = bisect_left(self._samples, end_ns, key=itemgetter("t_ns")) + 1
        return self._unseen(requests, list(islice(self._samples, first, end)))

    def _unseen(self, requests: Sequence[RequestSpan], samples: Sequence[EngineSample]) -> NDArray[np.int64]:
        """int64[k, 2]: intervals with a request whose work is unknown: a span without tokens, or no span at all."""
        intervals = [(request.start_ns, request.end_ns) for request in requests if first_token_of(request) is None]
        times, spans = sample_times(samples), self._span_times(samples)
        missing = np.array([queue_length(sample) or 0.0 for sample in samples]) > spans.most_around(times)
        covering = spans.covering(times[:-1], times[1:])
        for k, tokens in enumerate(counter_growth(samples, "generation_tokens")):
            if missing[k] or missing[k + 1] or (covering[k] == 0 and tokens > 0):
                intervals.append((int(times[k]), int(times[k + 1])))
        return np.array(intervals, dtype=np.int64).reshape(-1, 2)

    def _fit(self, name: str, end_ns: int, now_ns: int) -> None:
        """Fit one domain's prices, which stand for all: an engine's GPUs work alike.

        The fit is to committed energy alone: beyond it, who has sent no span yet looks like another client.
        """
        if self._fitted and now_ns < self._refit_ns:
            return
        domain = self._domains[name]
        requests, since_ns = self._recent_requests(end_ns)
        points = [point for point in domain.points if since_ns <= point.t_ns <= end_ns]
        if len(points) < 3:
            return
        self._fitted_ns = now_ns
        self._refit_ns = now_ns + min(max(end_ns - domain.points[0].t_ns, FIRST_FIT_NS), HISTORY_NS)
        engine = self._engine(requests, points[0].t_ns, end_ns)
        if engine and self._at_end != (at_end := counts_at_end(engine.intervals, phases_of(requests))):
            self._at_end = at_end
            engine = self._engine(requests, points[0].t_ns, end_ns)
        start_ns = points[0].t_ns
        unseen_ns = self._unseen_in(requests, start_ns, end_ns)
        steps = rebuilt_steps(
            requests, engine, start_ns, end_ns, unseen_ns, FIT_ROWS, at_end=self._at_end, chunked=True
        )
        fit = fit_live(domain.series(points), steps)
        self._idle_w = self._idle_w if fit.prices.idle_w is None else fit.prices.idle_w
        if fit.prices.r_squared is not None and fit.prices.values.any():
            self._fitted = fit

    def _recent_requests(self, end_ns: int, since_ns: int = 0) -> tuple[list[RequestSpan], int]:
        """Requests for the fit, at the most those that ended after `since_ns`, and the instant from which on they are
        all that ran."""
        late = takewhile(lambda request: request.end_ns >= since_ns, reversed(self._closed))
        closed = list(islice(late, FIT_REQUESTS + 1))
        since_ns = max(since_ns, end_ns - HISTORY_NS)
        if len(closed) > FIT_REQUESTS:
            since_ns = max(since_ns, closed.pop().end_ns)
        return self._at_engine(chain((entry.request for entry in self._open.values()), closed)), since_ns

    def _at_engine(self, requests: Iterable[RequestSpan]) -> list[RequestSpan]:
        """Return requests as the engine had them: one that only decodes gets their prompts computed."""
        if self._role != "decode":
            return list(requests)
        return [
            msgspec.structs.replace(request, input_tokens=tokens, cached_tokens=tokens)
            for request in requests
            for tokens in [request.input_tokens or 0]
        ]

    def _close(self, end_ns: int) -> None:
        """Close requests that ended by `end_ns`: no energy can be committed to them any more."""
        ended = [(entry.request.end_ns, key) for key, entry in self._open.items() if entry.request.end_ns <= end_ns]
        for _, key in sorted(ended):
            entry = self._join.close(key)
            self._closed.append(entry.request)
            self.settled.append(SettledEntry(entry, self._accounts.key_of(entry.request)))
            if self._role is None:
                self._accounts.close(entry)
        self._accounts.end_sessions(end_ns)

    def count(self, entry: OpenRequest) -> None:
        """Count a request of which one phase alone ran here, with what it used at both engines."""
        if self._role is not None:
            self._accounts.close(entry)

    # -- out ---------------------------------------------------------------------------------------------------

    @property
    def committed_ns(self) -> int:
        """The watermark of the newest commit: what ended before it is settled."""
        return self._watermark_ns

    def open_mj(self) -> int:
        """Energy committed to requests that have not settled."""
        return sum(entry.prefill_mj + entry.decode_mj for entry in self._open.values())

    def is_open(self, key: str) -> bool:
        """Return True if a span of the request arrived, and its energy may still grow."""
        return self._join.is_open(key)

    def snapshot(self, now_ns: int) -> Snapshot:
        span_tokens, engine_tokens = (sum(row[column] for row in self._coverage) for column in (1, 2))
        snapshot = Snapshot(
            domains=tuple(domain.energy() for domain in self._domains.values()),
            accounts=self._accounts.freeze(),
            idle_mj=self._idle_mj,
            unattributed_mj=self._unattributed_mj,
            dropped={reason: self.dropped[reason] for reason in DROP_REASONS},
            merged=self._merged,
            partial=self._partial,
            open_requests=len(self._open),
            lag_s=s_from_ns(now_ns - self._watermark_ns) if self._watermark_ns else 0.0,
            coverage=min(span_tokens / engine_tokens, 1.0) if engine_tokens > 0 else None,
            foreign_tokens=None if self._foreign_tokens is None else round(self._foreign_tokens),
            labels=self._accounts.labels.names,
        )
        snapshot.check()
        return snapshot


def commit_rows(length_ns: int) -> int:
    """Return how many rows the work of a portion may have; steps are joined where it would be more.

    A portion is long where requests are long. Its steps must not be joined for that: who is in a joined step for a part
    of it has the share of a member.
    """
    return min(max(COMMIT_ROWS, COMMIT_ROWS_PER_S * length_ns // NS_PER_S), MOST_COMMIT_ROWS)


def gaps(points: Sequence[_EnergyPoint]) -> list[tuple[int, int]]:
    """Return start and end of the windows whose energy is unknown."""
    return [(start.t_ns, end.t_ns) for start, end in pairwise(points) if end.gap]
