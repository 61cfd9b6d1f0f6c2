"""Energy series x records -> joules per request. Conserves energy to the millijoule.

An engine works in steps. Step s costs about c + sum(a_i): c is what it costs whoever is in it (weights read, launches,
static power), a_i is what member i adds (its prompt tokens, or one decoded token and the keys and values it reads).
The Shapley value of that game has a closed form, c / |members| + a_i, so that is what each member owes.

The path, one way:
    records -> Work (who was in which step, with how many tokens)
    Work x windows of the counter -> Coefficients (c and the a's, by non-negative least squares)
    Work x Coefficients -> what each member owes under the model
    windows -> each window's *measured* energy, split in proportion to what is owed in it
The model decides shares, never totals: whatever its error, the accounts sum to the counter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS, NS_PER_S, j_from_mj

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BURST_GAP_NS = 1 * NS_PER_MS
"""Chunks closer than this can be of one step: a server writes its streams one after another when a step ends."""

MIN_IDLE_S = 0.5
"""Less pure idle than this, and the idle power is not a measurement."""


class RequestEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """One line of attribution.jsonl. joules = prefill_joules + decode_joules, in whole millijoules."""

    index: int
    prefill_joules: float
    decode_joules: float
    joules: float


class Coefficients(msgspec.Struct, frozen=True, kw_only=True):
    """What the fit found. None where the run does not say."""

    step_j: float
    """c: one engine step, whoever is in it."""
    prefill_token_j: float
    prefill_context_j: float
    """Per prompt token and token of context before it: attention."""
    decode_token_j: float
    decode_context_j: float
    """Per decoded token and token of its context: keys and values read."""
    idle_w: float | None
    r_squared: float | None
    """Share of the windows' variance that the model explains; None when there was nothing to fit."""


class RunAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """Where every millijoule went: measured_mj == idle_mj + attributed_mj + unattributed_mj, exactly."""

    method: str
    start_ns: int
    end_ns: int
    measured_mj: int
    idle_mj: int
    attributed_mj: int
    unattributed_mj: int
    requests: list[RequestEnergy]
    coefficients: Coefficients | None = None

    def check(self) -> None:
        """The law, held before anything is printed."""
        whole = self.idle_mj + self.attributed_mj + self.unattributed_mj
        parts = sum(round(share.joules * 1000) for share in self.requests)
        if whole != self.measured_mj or parts != self.attributed_mj:
            raise AssertionError(
                f"energy is not conserved: {self.measured_mj} mJ measured, {whole} in accounts, {parts} in requests"
            )


@dataclass(frozen=True)
class Work:
    """Who did what when: S steps, M memberships (one request in one step), n requests.

    start_ns, end_ns: int64[S], in time order, not overlapping. step, request: int64[M], rows of the two.
    prefilling: bool[M], whether the member is in its prefill. prefill, decode: float64[M], tokens computed (a prompt
    that was cached has none). context: float64[M], mean number of tokens before those.
    unseen_ns: int64[k, 2], when a request was in flight that never got a chunk: it may have cost something.
    """

    start_ns: Ints
    end_ns: Ints
    step: Ints
    request: Ints
    prefilling: NDArray[np.bool_]
    prefill: Floats
    decode: Floats
    context: Floats
    unseen_ns: Ints

    @property
    def steps(self) -> int:
        return len(self.start_ns)


# -- records -> Work --------------------------------------------------------------------------------------------------


def work_of(records: Sequence[RequestRecord]) -> Work:
    """The engine's steps as a client sees them: every stream that was in a step gets its chunk when the step ends.

    The first chunk of a request closes its prefill, every later one is a decode step. Requests that got no chunk are in
    no step: what they may have cost stays with those that were.
    """
    counts = np.array([len(record.chunk_ns) for record in records], dtype=np.int64)
    request = np.repeat(np.arange(len(records)), counts)
    t_ns = np.array([t for record in records for t in record.chunk_ns], dtype=np.int64)
    first_row = np.cumsum(counts) - counts
    position = np.arange(len(t_ns)) - first_row[request]
    per_chunk = np.array([_tokens_per_chunk(record) for record in records])[request]
    prompt = np.array([float(record.input_tokens or 0) for record in records])[request]
    cached = np.array([float(record.cached_tokens or 0) for record in records])[request]
    is_first = position == 0

    step, end_ns = _steps(t_ns, request)
    sent_ns = np.array([record.sent_ns or 0 for record in records], dtype=np.int64)[request]
    start_ns = _starts(step, end_ns, request, is_first, sent_ns)
    return Work(
        start_ns=start_ns,
        end_ns=end_ns,
        step=step,
        request=request,
        prefilling=is_first,
        prefill=np.where(is_first, prompt - cached, 0.0),
        decode=np.where(is_first, 0.0, per_chunk),
        context=np.where(is_first, (prompt + cached) / 2, prompt + position * per_chunk),
        unseen_ns=_unseen(records),
    )


def _unseen(records: Sequence[RequestRecord]) -> Ints:
    intervals = [
        (record.sent_ns, record.finished_ns)
        for record in records
        if not record.chunk_ns and record.sent_ns is not None and record.finished_ns is not None
    ]
    return np.array(intervals, dtype=np.int64).reshape(-1, 2)


def _tokens_per_chunk(record: RequestRecord) -> float:
    """Tokens in each chunk after the first: more than one under speculative decoding."""
    later = len(record.chunk_ns) - 1
    return (record.output_tokens - 1) / later if later > 0 and record.output_tokens else 1.0


def _steps(t_ns: Ints, request: Ints) -> tuple[Ints, Ints]:
    """Chunk times -> (step of each chunk, end of each step).

    Chunks less than BURST_GAP_NS apart form a burst. A stream gets one chunk a step, so its k-th chunk inside a burst
    is of the burst's k-th step; a burst has several steps when the client was late to read.
    """
    if not len(t_ns):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(t_ns, kind="stable")
    burst_sorted = np.concatenate(([0], np.cumsum(np.diff(t_ns[order]) >= BURST_GAP_NS)))
    burst = np.empty_like(t_ns)
    burst[order] = burst_sorted
    nth = _occurrence(burst, request)
    key = burst * (int(nth.max()) + 1) + nth
    _, step = np.unique(key, return_inverse=True)
    end_ns = np.full(int(step.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(end_ns, step, t_ns)
    return _in_time_order(step.astype(np.int64), end_ns)


def _occurrence(burst: Ints, request: Ints) -> Ints:
    """How many chunks of the same stream came before each one in its burst. Rows of a request are in time order."""
    new = np.concatenate(([True], (burst[1:] != burst[:-1]) | (request[1:] != request[:-1])))
    run_start = np.maximum.accumulate(np.where(new, np.arange(len(burst)), 0))
    return np.arange(len(burst)) - run_start


def _in_time_order(step: Ints, end_ns: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(end_ns, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[step], end_ns[order]


def _starts(step: Ints, end_ns: Ints, request: Ints, is_first: NDArray[np.bool_], sent_ns: Ints) -> Ints:
    """A step starts when the one before ends, or, if nobody was being decoded, when its first newcomer was sent."""
    if not len(end_ns):
        return end_ns
    earliest = np.full(len(end_ns), np.iinfo(np.int64).max)
    np.minimum.at(earliest, step, np.where(is_first, sent_ns, 0))  # a member that is decoding was there already
    before = np.concatenate((np.zeros(1, np.int64), end_ns[:-1]))
    return np.asarray(np.minimum(np.maximum(before, earliest), end_ns), dtype=np.int64)


# -- Work x windows -> Coefficients -----------------------------------------------------------------------------------

COLUMNS = ("step_j", "prefill_token_j", "prefill_context_j", "decode_token_j", "decode_context_j")


def member_features(work: Work) -> Floats:
    """float64[M, 5]: what each member brings to each coefficient. The step itself is shared equally by its members."""
    size = np.bincount(work.step, minlength=work.steps)
    return np.stack(
        [
            1.0 / size[work.step],
            work.prefill,
            work.prefill * work.context,
            work.decode,
            work.decode * work.context,
        ],
        axis=1,
    )


def overlap(edges_ns: Ints, starts_ns: Ints, ends_ns: Ints) -> tuple[Ints, Ints, Floats]:
    """Intervals cut at window edges -> (interval, window, share of the interval), a row for every pair that overlaps.

    edges_ns: int64[W+1], increasing. Parts outside all windows are left out. An instant is in the window it falls in.
    """
    first = np.searchsorted(edges_ns, starts_ns, side="right") - 1
    last = np.searchsorted(edges_ns, np.maximum(ends_ns - 1, starts_ns), side="right") - 1
    pieces = last - first + 1
    interval = np.repeat(np.arange(len(starts_ns)), pieces)
    window = first[interval] + np.arange(len(interval)) - (np.cumsum(pieces) - pieces)[interval]
    inside = (window >= 0) & (window < len(edges_ns) - 1)
    interval, window = interval[inside], window[inside]
    length = np.maximum(ends_ns - starts_ns, 1)[interval]
    common = np.minimum(np.maximum(ends_ns, starts_ns + 1)[interval], edges_ns[window + 1]) - np.maximum(
        starts_ns[interval], edges_ns[window]
    )
    return interval, window, common / length


def fit(series: EnergySeries, work: Work) -> Coefficients:
    """Coefficients of the windows' energy on the work done in them, by non-negative least squares.

    Idle power is measured where no step overlaps, then held fixed: the busy windows of a loaded run say nothing of it.
    """
    energy_j = np.diff(series.mj) / 1000.0
    duration_s = np.diff(series.t_ns) / NS_PER_S
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    busy_s = np.bincount(window, share * (work.end_ns - work.start_ns)[step] / NS_PER_S, minlength=len(energy_j))
    idle = (busy_s == 0) & _known(series)
    idle_s = float(duration_s[idle].sum())
    idle_w = float(energy_j[idle].sum() / idle_s) if idle_s >= MIN_IDLE_S else None
    features = _window_features(work, step, window, share, len(energy_j))
    target = energy_j - (idle_w or 0.0) * np.maximum(duration_s - busy_s, 0.0)
    busy = ~idle & _known(series)
    values, r_squared = _nnls(features[busy], target[busy])
    return Coefficients(**dict(zip(COLUMNS, values.tolist(), strict=True)), idle_w=idle_w, r_squared=r_squared)


def _known(series: EnergySeries) -> NDArray[np.bool_]:
    """bool[W]: False for windows in which the counter restarted."""
    return np.ones(len(series) - 1, bool) if series.gap is None else ~series.gap[1:]


def _window_features(work: Work, step: Ints, window: Ints, share: Floats, windows: int) -> Floats:
    """float64[W, 5]: steps, tokens and token-contexts in each window. A step's work spreads evenly over its time."""
    per_step = _sum_by_step(work, member_features(work))
    return np.stack([np.bincount(window, share * column[step], minlength=windows) for column in per_step.T], axis=1)


def _sum_by_step(work: Work, rows: Floats) -> Floats:
    return np.stack([np.bincount(work.step, column, minlength=work.steps) for column in rows.T], axis=1)


def _nnls(a: Floats, b: Floats) -> tuple[Floats, float | None]:
    """argmin |a x - b| with x >= 0, and R^2. With five columns, trying every set of them is exact and quick."""
    columns = a.shape[1]
    if len(b) < 2 * columns:
        return np.zeros(columns), None
    scale = np.where(a.any(axis=0), np.abs(a).max(axis=0), 1.0)
    gram, moment, total = (a / scale).T @ (a / scale), (a / scale).T @ b, float(b @ b)
    best, best_error = np.zeros(columns), total
    for size in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), size)):
            x = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], moment[chosen], rcond=1e-10)[0]
            error = total - 2 * float(x @ moment[chosen]) + float(x @ gram[np.ix_(chosen, chosen)] @ x)
            if (x >= 0).all() and error < best_error * (1 - 1e-12):
                best, best_error = np.zeros(columns), error
                best[chosen] = x
    variance = float(((b - b.mean()) ** 2).sum())
    return best / scale, 1 - best_error / variance if variance > 0 else None


# -- windows x shares -> accounts -------------------------------------------------------------------------------------


def attribute(
    series: Sequence[EnergySeries], records: Sequence[RequestRecord], start_ns: int, end_ns: int
) -> RunAttribution:
    """The energy of every series between the counter's moves around [start, end], by the `shapley` method.

    What lies before `start_ns` (idle with the model resident) takes part in the fit, not in the accounts.
    """
    work = work_of(records)
    features = member_features(work)
    prefill_mj, decode_mj = np.zeros(len(records)), np.zeros(len(records))
    idle_mj = unattributed_mj = 0.0
    measured_mj = 0
    coefficients = None
    for whole in series:
        coefficients = fit(whole, work)
        clipped = whole.clip(start_ns, end_ns)
        owed = features @ np.array([getattr(coefficients, column) for column in COLUMNS])
        if not owed.any():  # nothing could be fitted: share each step by time alone
            owed = features[:, 0] * np.maximum(work.end_ns - work.start_ns, 1)[work.step] / NS_PER_S
        member_mj, idle, lost = split(clipped, work, owed, coefficients.idle_w)
        prefill_mj += np.bincount(work.request, np.where(work.prefilling, member_mj, 0.0), minlength=len(records))
        decode_mj += np.bincount(work.request, np.where(work.prefilling, 0.0, member_mj), minlength=len(records))
        idle_mj, unattributed_mj, measured_mj = idle_mj + idle, unattributed_mj + lost, measured_mj + clipped.total_mj
    whole_mj = round_to_sum(np.concatenate(([idle_mj, unattributed_mj], prefill_mj, decode_mj)), measured_mj)
    idle_out, lost_out, shares = int(whole_mj[0]), int(whole_mj[1]), whole_mj[2:]
    result = RunAttribution(
        method="shapley",
        start_ns=start_ns,
        end_ns=end_ns,
        measured_mj=measured_mj,
        idle_mj=idle_out,
        attributed_mj=int(shares.sum()),
        unattributed_mj=lost_out,
        requests=[
            _request_energy(record.index, int(prefill), int(decode))
            for record, prefill, decode in zip(records, shares[: len(records)], shares[len(records) :], strict=True)
        ],
        coefficients=coefficients if len(series) == 1 else None,
    )
    result.check()
    return result


def split(series: EnergySeries, work: Work, owed: Floats, idle_w: float | None) -> tuple[Floats, float, float]:
    """Each window's measured energy, in proportion to what is owed in it -> (mJ per member, idle mJ, unattributed mJ).

    The time of a window that no step covers owes idle power. A window in which nobody owes anything is idle, unless a
    request was in flight that we never saw a chunk of: then nobody knows whose it is.
    """
    windows = len(series) - 1
    if windows < 1:
        return np.zeros(len(owed)), 0.0, 0.0
    energy_mj = np.diff(series.mj).astype(np.float64)
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    owed_by_step = np.bincount(work.step, owed, minlength=work.steps)
    owed_in_window = np.bincount(window, share * owed_by_step[step], minlength=windows)
    busy_ns = np.bincount(window, share * (work.end_ns - work.start_ns)[step], minlength=windows)
    idle_owed = (idle_w or 0.0) * np.maximum(np.diff(series.t_ns) - busy_ns, 0.0) / NS_PER_S
    total_owed = owed_in_window + idle_owed
    per_owed = np.divide(energy_mj, total_owed, out=np.zeros(windows), where=(total_owed > 0) & (owed_in_window > 0))
    per_step = np.bincount(step, share * per_owed[window], minlength=work.steps)
    member_mj = owed * per_step[work.step]
    _, unseen, _ = overlap(series.t_ns, work.unseen_ns[:, 0], work.unseen_ns[:, 1])
    idle_if_unowed = np.where(np.bincount(unseen, minlength=windows) > 0, 0.0, energy_mj)
    idle_mj = float(np.where(owed_in_window > 0, idle_owed * per_owed, idle_if_unowed).sum())
    return member_mj, idle_mj, float(energy_mj.sum() - idle_mj - member_mj.sum())


def round_to_sum(values: Floats, total: int) -> Ints:
    """Whole numbers nearest to `values` that sum to `total`: the largest remainders are rounded up."""
    floors = np.floor(values).astype(np.int64)
    missing = total - int(floors.sum())
    order = np.argsort(floors - values, kind="stable")
    np.add.at(floors, np.resize(order if missing > 0 else order[::-1], abs(missing)), np.sign(missing))
    return floors


def _request_energy(index: int, prefill_mj: int, decode_mj: int) -> RequestEnergy:
    return RequestEnergy(
        index=index,
        prefill_joules=j_from_mj(prefill_mj),
        decode_joules=j_from_mj(decode_mj),
        joules=j_from_mj(prefill_mj + decode_mj),
    )
