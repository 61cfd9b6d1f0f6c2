"""Energy series x records -> joules per request. Conserves energy to the millijoule.

An engine works in steps. Step s costs about c + sum(a_i): c is what it costs whoever is in it (weights read, launches,
static power), a_i is what member i adds (its prompt tokens, or one decoded token and the keys and values it reads).
The Shapley value of that game has a closed form, c / |members| + a_i, so that is what each member owes.

The path, one way:
    records -> Work (who was in which step, with how many tokens; see work.py)
    Work x windows of the counter -> Coefficients (c and the a's, by non-negative least squares)
    Work x Coefficients -> what each member owes under the model
    windows -> each window's *measured* energy, split in proportion to what is owed in it
The model decides shares, never totals: whatever its error, the accounts sum to the counter.

The other methods are what other tools do; benchmarks/accuracy/attribution_oracle.py compares them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.engine_steps import EngineSample, EngineSteps, Memberships, engine_steps_of
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.stats.arrays import Floats, Ints
from loadgen.stats.nnls import nnls
from loadgen.units import NS_PER_MS, NS_PER_S, j_from_mj

Method = Literal["shapley", "output-tokens", "per-request", "residency", "whole-gpu"]
"""shapley: above. output-tokens: the run's joules per output token times a request's (ML.ENERGY). per-request: the
run's joules / requests (AIPerf). residency: each window shared equally by the requests in flight. whole-gpu: all that
the GPU used while a request was in flight (proposed for TGI): a joule counts once per request, so it is too much."""
METHODS: tuple[Method, ...] = get_args(Method)

MIN_WINDOWS = 50
"""Fewer windows do not find a counter's phase."""

MIN_IDLE_S = 0.5
"""Less pure idle than this, and the idle power is not a measurement."""

OUTLIER = 10.0
TRIMS = 3

ON_THE_WAY_NS = 500_000
"""How much later than its step's end a client sees a chunk, give or take: it shifts a request against the counter."""


class RequestEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """One line of attribution.jsonl. joules = prefill_joules + decode_joules, in whole millijoules."""

    index: int
    prefill_joules: float | None
    """None for methods that know no phases."""
    decode_joules: float | None
    joules: float
    se_joules: float | None = None
    """Standard error: of the fit, of the model's misfit per window, and of when the counter moved."""


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
    idle_se_w: float | None = None
    """Standard error of idle_w, from the spread of the idle windows."""
    r_squared: float | None = None
    """Share of the windows' variance that the model explains; None when there was nothing to fit."""
    misfit: float | None = None
    """Root mean square of (measured - model) / measured over busy windows, outliers left out."""
    outliers: int = 0
    """Windows the fit was not made on, because they were far off."""

    @property
    def values(self) -> Floats:
        return np.array([getattr(self, column) for column in COLUMNS])


COLUMNS = ("step_j", "prefill_token_j", "prefill_context_j", "decode_token_j", "decode_context_j")


class RunAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """Where every millijoule went: measured_mj == idle_mj + attributed_mj + unattributed_mj, exactly."""

    method: Method
    start_ns: int
    end_ns: int
    measured_mj: int
    idle_mj: int
    attributed_mj: int
    unattributed_mj: int
    requests: list[RequestEnergy]
    coefficients: list[Coefficients] = []
    """One per energy domain."""

    def check(self) -> None:
        """The law, held before anything is printed."""
        whole = self.idle_mj + self.attributed_mj + self.unattributed_mj
        parts = sum(round(share.joules * 1000) for share in self.requests)
        if whole != self.measured_mj or parts != self.attributed_mj:
            raise AssertionError(
                f"energy is not conserved: {self.measured_mj} mJ, {whole} in accounts, {parts} of requests"
            )


def attribute_energy(
    series: Sequence[EnergySeries],
    records: Sequence[RequestRecord],
    start_ns: int,
    end_ns: int,
    *,
    engine: Sequence[EngineSample] = (),
    method: Method = "shapley",
    work: EngineSteps | None = None,
) -> RunAttribution:
    """The energy of every series between the counter's moves around [start, end]. work: of these records, if at hand.

    What lies before `start_ns` (idle with the model resident) takes part in the fit, not in the accounts.
    """
    if method != "shapley":
        return _by_another_method(series, records, start_ns, end_ns, method)
    work = work or engine_steps_of(records, engine)
    accounts = [_shapley(whole, whole.clip(start_ns, end_ns), work, len(records)) for whole in series]
    measured_mj = sum(account.measured_mj for account in accounts)
    exact = [np.concatenate(([a.idle, a.unattributed], a.prefill, a.decode)) for a in accounts]
    variance = np.sum([account.variance for account in accounts], axis=0)
    whole_mj = round_to_sum(np.sum(exact, axis=0), measured_mj)
    shares = whole_mj[2:].reshape(2, len(records))
    result = RunAttribution(
        method=method,
        start_ns=start_ns,
        end_ns=end_ns,
        measured_mj=measured_mj,
        idle_mj=int(whole_mj[0]),
        attributed_mj=int(shares.sum()),
        unattributed_mj=int(whole_mj[1]),
        requests=[
            RequestEnergy(
                index=record.index,
                prefill_joules=j_from_mj(prefill),
                decode_joules=j_from_mj(decode),
                joules=j_from_mj(prefill + decode),
                se_joules=round(error, 6),
            )
            for record, prefill, decode, error in zip(
                records, *shares.tolist(), np.sqrt(variance).tolist(), strict=True
            )
        ],
        coefficients=[account.coefficients for account in accounts],
    )
    result.check()
    return result


@dataclass(frozen=True)
class _Account:
    """One domain's energy over requests. prefill, decode: float64[n], mJ. variance: float64[n], J^2."""

    prefill: Floats
    decode: Floats
    variance: Floats
    idle: float
    unattributed: float
    measured_mj: int
    coefficients: Coefficients


def _shapley(whole: EnergySeries, clipped: EnergySeries, work: EngineSteps, requests: int) -> _Account:
    coefficients, covariance = fit_with_covariance(whole, work)
    owed = owed_by(work, coefficients)
    others = foreign_features(work, clipped.t_ns) @ coefficients.values
    if not owed.any():  # nothing could be fitted: a step costs the mean power over its time, whoever does what in it
        length_s = np.maximum(work.end_ns - work.start_ns, 1)[work.step] / NS_PER_S
        owed = next(feature_columns(work)) * length_s * _mean_watts(whole)
    member_mj, idle, lost = split_energy(clipped, work, owed, coefficients.idle_w, others)
    total = np.bincount(work.request, member_mj, minlength=requests).astype(np.float64)
    first = np.bincount(work.request[work.prefilling], member_mj[work.prefilling], minlength=requests)
    prefill = np.minimum(first, total)
    variance = _variance(clipped, work, owed, total / 1000, covariance, coefficients.misfit)
    return _Account(prefill, total - prefill, variance, idle, lost, clipped.total_mj, coefficients)


def _mean_watts(series: EnergySeries) -> float:
    return series.total_mj / 1000 / max(float(series.t_ns[-1] - series.t_ns[0]) / NS_PER_S, 1e-9)


# -- Work x windows -> Coefficients ----------------------------------------------------------------------------------


def feature_columns(work: EngineSteps) -> Iterator[Floats]:
    """float64[M], once per coefficient: what each member brings to it. A step itself is shared equally by its members,
    other clients' streams among them."""
    size = np.bincount(work.step, minlength=work.steps) + _foreign_members(work)
    yield (work.iterations / size)[work.step]
    for tokens in (work.prefill, work.decode):
        yield tokens.astype(np.float64)
        product: Floats = tokens.astype(np.float64)
        product *= work.context
        yield product
        del product


def member_features(work: EngineSteps) -> Floats:
    """float64[M, 5]: `feature_columns` side by side."""
    return np.stack(list(feature_columns(work)), axis=1)


def owed_by(work: EngineSteps, coefficients: Coefficients) -> Floats:
    """float64[M], joules: what each member owes under the model."""
    owed = np.zeros(len(work.step))
    for column, value in zip(feature_columns(work), coefficients.values, strict=True):
        column *= value
        owed += column
    return owed


def _foreign_members(work: EngineSteps) -> Floats:
    """float64[S]: streams of others in each of our steps."""
    if work.foreign is None:
        return np.zeros(work.steps)
    interval = np.searchsorted(work.foreign.edges_ns, work.end_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(work.foreign.members))
    return np.where(inside, work.foreign.members[np.clip(interval, 0, len(work.foreign.members) - 1)], 0.0)


def foreign_features(work: EngineSteps, edges_ns: Ints) -> Floats:
    """float64[W, 5]: what others bring to each coefficient in each window, where the engine's counters place it."""
    windows = max(len(edges_ns) - 1, 0)
    foreign = work.foreign
    if foreign is None or not windows:
        return np.zeros((windows, len(COLUMNS)))
    rows = np.stack(
        [
            foreign.steps,
            foreign.prefill,
            np.zeros_like(foreign.steps),
            foreign.decode,
            foreign.decode * foreign.context,
        ],
        axis=1,
    )
    interval, window, share = overlap(edges_ns, foreign.edges_ns[:-1], foreign.edges_ns[1:])
    spread = [np.bincount(window, share * column[interval], minlength=windows) for column in rows.T]
    members = _foreign_members(work)
    size = np.bincount(work.step, minlength=work.steps) + members
    step, window, share = overlap(edges_ns, work.start_ns, work.end_ns)
    spread[0] += np.bincount(window, share * (work.iterations * members / size)[step], minlength=windows)
    spread[1] += np.bincount(window, share * foreign.prefill_in_step[step], minlength=windows)
    return np.stack(spread, axis=1)


def overlap(edges_ns: Ints, starts_ns: Ints, ends_ns: Ints) -> tuple[Ints, Ints, Floats]:
    """Intervals cut at window edges -> (interval, window, share of the interval), a row for every pair that overlaps.

    edges_ns: int64[W+1], increasing. Parts outside all windows are left out. An interval of no length is in the window
    it falls in.
    """
    first = np.searchsorted(edges_ns, starts_ns, side="right") - 1
    last = np.searchsorted(edges_ns, np.maximum(ends_ns - 1, starts_ns), side="right") - 1
    pieces = last - first + 1
    interval = np.repeat(np.arange(len(starts_ns)), pieces)
    window = first[interval] + np.arange(len(interval)) - (np.cumsum(pieces) - pieces)[interval]
    inside = (window >= 0) & (window < len(edges_ns) - 1)
    interval, window = interval[inside], window[inside]
    ends_ns = np.maximum(ends_ns, starts_ns + 1)
    common = np.minimum(ends_ns[interval], edges_ns[window + 1]) - np.maximum(starts_ns[interval], edges_ns[window])
    return interval, window, common / (ends_ns - starts_ns)[interval]


def fit_coefficients(series: EnergySeries, work: EngineSteps) -> Coefficients:
    """Coefficients of the windows' energy on the work done in them, by non-negative least squares.

    Idle power is measured where no step overlaps, then held fixed: the busy windows of a loaded run say nothing of it.
    """
    return fit_with_covariance(series, work)[0]


def step_features(work: EngineSteps) -> Floats:
    """float64[S, 5]: what each step brings to each coefficient. Passes over every membership: make it once per run."""
    return _sum_by(work.step, feature_columns(work), work.steps)


def fit_with_covariance(
    series: EnergySeries, work: EngineSteps, per_step: Floats | None = None
) -> tuple[Coefficients, Floats]:
    """The coefficients and their covariance, float64[5, 5]: zero in rows that the fit left at zero.

    per_step: `step_features` of the same work, if at hand.
    """
    energy_j = np.diff(series.mj) / 1000.0
    duration_s = np.diff(series.t_ns) / NS_PER_S
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    busy_s = np.bincount(window, share * (work.end_ns - work.start_ns)[step], minlength=len(energy_j)) / NS_PER_S
    others = foreign_features(work, series.t_ns)
    idle = (busy_s == 0) & ~others.any(axis=1) & _known(series)
    idle_s = float(duration_s[idle].sum())
    idle_w = float(energy_j[idle].sum() / idle_s) if idle_s >= MIN_IDLE_S else None
    watts = energy_j[idle] / duration_s[idle]
    per_step = step_features(work) if per_step is None else per_step
    features = _sum_by(window, (share * column[step] for column in per_step.T), len(energy_j)) + others
    target = energy_j - (idle_w or 0.0) * np.maximum(duration_s - busy_s, 0.0)
    busy = ~idle & _known(series)
    values, error, kept = _trimmed(features, target, busy)
    coefficients = Coefficients(
        **dict(zip(COLUMNS, values.tolist(), strict=True)),
        idle_w=idle_w,
        idle_se_w=float(watts.std(ddof=1) / np.sqrt(len(watts))) if idle_w is not None and len(watts) > 1 else None,
        r_squared=_r_squared(target[kept], error),
        misfit=_misfit(energy_j[kept], target[kept] - features[kept] @ values) if error is not None else None,
        outliers=int(busy.sum() - kept.sum()),
    )
    return coefficients, _covariance(features[kept], values, error)


def _trimmed(a: Floats, b: Floats, rows: NDArray[np.bool_]) -> tuple[Floats, float | None, NDArray[np.bool_]]:
    """Least squares without outliers: -> (x, residual sum of squares, the rows it rests on).

    A client that slept for half a second saw its chunks late and all at once: the windows beside that are no evidence.
    A row is left out when its residual is over OUTLIER times the median residual.
    """
    kept = rows
    for _ in range(TRIMS):
        x, error = _nnls(a[kept], b[kept])
        if error is None:
            break
        residual = np.abs(b - a @ x)
        kept = rows & (residual <= OUTLIER * max(float(np.median(residual[rows])), 1e-9 * float(np.abs(b).max())))
    x, error = _nnls(a[kept], b[kept])
    return x, error, kept


PHASES_NS = range(-30 * NS_PER_MS, 31 * NS_PER_MS, 3 * NS_PER_MS)
"""How far a polled counter's clock may be off: a poll a few times a period sees a move that late."""


def align_phase(series: EnergySeries, work: EngineSteps) -> EnergySeries:
    """A polled counter's series, shifted to where its windows follow best from the work done in them.

    Its clock's period is known to microseconds after a minute, its phase only to a fraction of a poll; but 10 ms of
    100 move a tenth of every prefill into the wrong window. Only for counters whose moves are uncertain (slack > 0).
    """
    if len(series) < MIN_WINDOWS or series.slack_ns is None or not series.slack_ns.any() or not work.steps:
        return series
    best, least, per_step = series, np.inf, step_features(work)
    for shift in PHASES_NS:
        moved = EnergySeries(series.domain, series.t_ns + shift, series.mj, series.slack_ns, series.gap)
        found, _ = fit_with_covariance(moved, work, per_step)
        if found.misfit is not None and found.r_squared is not None and 1 - found.r_squared < least:
            best, least = moved, 1 - found.r_squared
    return best


def _known(series: EnergySeries) -> NDArray[np.bool_]:
    """bool[W]: False for windows in which the counter restarted."""
    return np.ones(len(series) - 1, bool) if series.gap is None else ~series.gap[1:]


def _sum_by(group: Ints | Memberships, columns: Iterable[Floats], groups: int) -> Floats:
    """float64[groups, columns]: each column's sum over each group."""
    return np.stack([np.bincount(group, column, minlength=groups) for column in columns], axis=1)


def _nnls(a: Floats, b: Floats) -> tuple[Floats, float | None]:
    """`nnls`; the error is None when there are too few rows to say anything."""
    return nnls(a, b) if len(b) >= 2 * a.shape[1] else (np.zeros(a.shape[1]), None)


def _r_squared(b: Floats, error: float | None) -> float | None:
    variance = float(((b - b.mean()) ** 2).sum()) if len(b) else 0.0
    return 1 - error / variance if error is not None and variance > 0 else None


def _misfit(energy_j: Floats, residual_j: Floats) -> float | None:
    some = energy_j > 0
    return float(np.sqrt(np.mean((residual_j[some] / energy_j[some]) ** 2))) if some.any() else None


def _covariance(a: Floats, x: Floats, error: float | None) -> Floats:
    """sigma^2 (A^T A)^-1 of the columns in use, sigma^2 from the residual."""
    used = np.flatnonzero(x > 0)
    covariance = np.zeros((len(x), len(x)))
    if error is not None and len(used) and len(a) > len(used):
        block = a[:, used]
        covariance[np.ix_(used, used)] = np.linalg.pinv(block.T @ block) * error / (len(a) - len(used))
    return covariance


# -- windows x shares -> accounts ------------------------------------------------------------------------------------


def split_energy(
    series: EnergySeries, work: EngineSteps, owed: Floats, idle_w: float | None, others_owed: Floats | None = None
) -> tuple[Floats, float, float]:
    """Each window's measured energy, in proportion to what is owed in it -> (mJ per member, idle mJ, unattributed mJ).

    owed: float64[M], joules under the model. others_owed: float64[W], what other clients owe in each window: theirs is
    unattributed. The time of a window that no step covers owes idle power. A window in which nobody owes anything is
    idle, unless a request was in flight that we never saw a chunk of: then nobody knows whose it is.
    """
    windows = len(series) - 1
    if windows < 1:
        return np.zeros(len(owed)), 0.0, 0.0
    energy_mj = np.diff(series.mj).astype(np.float64)
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    per_step_owed = np.bincount(work.step, owed, minlength=work.steps)
    owed_in_window = np.bincount(window, share * per_step_owed[step], minlength=windows).astype(np.float64)
    if others_owed is not None:
        owed_in_window = owed_in_window + others_owed
    idle_owed = _idle_owed(series, work, step, window, share, idle_w)
    total_owed = owed_in_window + idle_owed
    used = (total_owed > 0) & (owed_in_window > 0)
    per_owed = np.divide(energy_mj, total_owed, out=np.zeros(windows), where=used)
    per_step = np.bincount(step, share * per_owed[window], minlength=work.steps)
    member_mj = owed * per_step[work.step]
    _, unseen, _ = overlap(series.t_ns, work.unseen_ns[:, 0], work.unseen_ns[:, 1])
    nobodys = np.bincount(unseen, minlength=windows) > 0
    idle_mj = float(np.where(used, idle_owed * per_owed, np.where(nobodys, 0.0, energy_mj)).sum())
    return member_mj, idle_mj, float(energy_mj.sum() - idle_mj - member_mj.sum())


def _idle_owed(
    series: EnergySeries, work: EngineSteps, step: Ints, window: Ints, share: Floats, idle_w: float | None
) -> Floats:
    """float64[W], joules: idle power over the time that no step covers. Other clients' steps count as covered."""
    windows = len(series) - 1
    busy_ns = np.bincount(window, share * (work.end_ns - work.start_ns)[step], minlength=windows)
    free_ns = np.maximum(np.diff(series.t_ns) - busy_ns, 0.0)
    if work.foreign is not None:
        free_ns = np.where(foreign_features(work, series.t_ns).any(axis=1), 0.0, free_ns)
    return (idle_w or 0.0) * free_ns / NS_PER_S


def round_to_sum(values: Floats, total: int) -> Ints:
    """Whole numbers nearest to `values` that sum to `total`: the largest remainders are rounded up."""
    floors = np.floor(values).astype(np.int64)
    missing = total - int(floors.sum())
    order = np.argsort(floors - values, kind="stable")
    np.add.at(floors, np.resize(order if missing > 0 else order[::-1], abs(missing)), np.sign(missing))
    return floors


# -- standard errors -------------------------------------------------------------------------------------------------


def _variance(
    series: EnergySeries, work: EngineSteps, owed: Floats, joules: Floats, covariance: Floats, misfit: float | None
) -> Floats:
    """float64[n], J^2: of each request's joules, as the sum of three independent parts.

    The fit: g' Cov g, with g the derivative of the request's joules by the coefficients (windows stay what they are:
    what one request gains, the others in the window lose). The misfit: the model's relative error of a window, on what
    the request does not own whole, misfit * joules * (1 - share): not less for many windows, because a law that is
    wrong for a request is wrong in all of them. The ends: the request's mean power, times how
    uncertain its two instants are against the counter's (uniform in its slack and the way of a chunk to the client).
    """
    requests = len(joules)
    if len(series) < 2 or not len(owed):
        return np.zeros(requests)
    gradient = _gradient(series, work, owed, requests)
    from_fit = np.einsum("ni,ij,nj->n", gradient, covariance, gradient)
    begin = np.full(requests, np.iinfo(np.int64).max)
    end = np.zeros(requests, np.int64)
    np.minimum.at(begin, work.request, work.start_ns[work.step])
    np.maximum.at(end, work.request, work.end_ns[work.step])
    begin = np.minimum(begin, end)
    period_ns = float(np.median(np.diff(series.t_ns)))
    at_ends = np.interp([begin, end], series.t_ns, series.mj / 1000)
    share = np.divide(joules, at_ends[1] - at_ends[0], out=np.ones(requests), where=at_ends[1] > at_ends[0])
    spread = (misfit or 0.0) * joules * np.clip(1 - share, 0, 1)
    slack_ns = ON_THE_WAY_NS + (0.0 if series.slack_ns is None else float(np.median(series.slack_ns)))
    length_ns = np.maximum(end - begin, period_ns)
    at_edges = joules / length_ns * slack_ns * np.sqrt(2 / 3)
    return np.asarray(np.maximum(from_fit, 0) + spread**2 + at_edges**2)


def _gradient(series: EnergySeries, work: EngineSteps, owed: Floats, requests: int) -> Floats:
    """float64[n, 5]: d joules_i / d coefficient, for joules_i = sum_w E_w owed_iw / owed_w."""
    windows = len(series) - 1
    energy_j = np.diff(series.mj) / 1000
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    owed_by_step = np.bincount(work.step, owed, minlength=work.steps)
    total = np.bincount(window, share * owed_by_step[step], minlength=windows)
    rate = np.divide(energy_j, total, out=np.zeros(windows), where=total > 0)
    step_rate = np.bincount(step, share * rate[window], minlength=work.steps)
    rows = []
    for column in feature_columns(work):
        in_window = np.bincount(
            window, share * np.bincount(work.step, column, minlength=work.steps)[step], minlength=windows
        )
        mean = rate * in_window / np.where(total > 0, total, 1.0)
        step_mean = np.bincount(step, share * mean[window], minlength=work.steps).astype(np.float64)
        column *= step_rate[work.step]
        loss = step_mean[work.step]
        loss *= owed
        column -= loss
        del loss
        rows.append(np.bincount(work.request, column, minlength=requests))
    return np.stack(rows, axis=1)


# -- what others do --------------------------------------------------------------------------------------------------


def _by_another_method(
    series: Sequence[EnergySeries], records: Sequence[RequestRecord], start_ns: int, end_ns: int, method: Method
) -> RunAttribution:
    clipped = [one.clip(start_ns, end_ns) for one in series]
    measured_mj = sum(one.total_mj for one in clipped)
    match method:
        case "output-tokens":
            shares_mj = _in_proportion(measured_mj, [float(record.output_tokens or 0) for record in records])
        case "per-request":
            shares_mj = _in_proportion(measured_mj, [float(record.sent_ns is not None) for record in records])
        case "residency":
            shares_mj = np.sum([_residency(one, records) for one in clipped], axis=0)
        case _:
            shares_mj = np.sum([_whole_gpu(one, records) for one in clipped], axis=0)
    whole_mj = np.rint(shares_mj).astype(np.int64)
    if method != "whole-gpu":
        left = max(measured_mj - float(shares_mj.sum()), 0.0)
        whole_mj = round_to_sum(np.append(shares_mj, left), measured_mj)[:-1]
    attributed_mj = int(whole_mj.sum())
    return RunAttribution(
        method=method,
        start_ns=start_ns,
        end_ns=end_ns,
        measured_mj=measured_mj,
        idle_mj=max(measured_mj - attributed_mj, 0),
        attributed_mj=attributed_mj,
        unattributed_mj=0,
        requests=[
            RequestEnergy(index=record.index, prefill_joules=None, decode_joules=None, joules=j_from_mj(share))
            for record, share in zip(records, whole_mj.tolist(), strict=True)
        ],
    )


def _in_proportion(total_mj: int, weights: list[float]) -> Floats:
    whole = sum(weights)
    return np.array(weights) * (total_mj / whole) if whole > 0 else np.zeros(len(weights))


def _flights(records: Sequence[RequestRecord]) -> tuple[Ints, Ints]:
    """When each request was in flight; nothing for those that were not."""
    sent = [record.sent_ns or 0 for record in records]
    ends = [record.finished_ns or 0 if record.sent_ns is not None else 0 for record in records]
    return np.array(sent, dtype=np.int64), np.maximum(np.array(ends, dtype=np.int64), sent)


def _residency(series: EnergySeries, records: Sequence[RequestRecord]) -> Floats:
    sent, ends = _flights(records)
    windows = len(series) - 1
    request, window, share = overlap(series.t_ns, sent, ends)
    time = share * (ends - sent)[request]
    in_window = np.bincount(window, time, minlength=windows).astype(np.float64)
    rate = np.divide(np.diff(series.mj).astype(np.float64), in_window, out=np.zeros(windows), where=in_window > 0)
    return np.bincount(request, time * rate[window], minlength=len(records)).astype(np.float64)


def _whole_gpu(series: EnergySeries, records: Sequence[RequestRecord]) -> Floats:
    sent, ends = _flights(records)
    at_start, at_end = np.interp([sent, ends], series.t_ns, series.mj)
    return np.asarray(at_end - at_start)
