"""The cost model of an engine step, and its fit to the energy that a counter measured.

Step s costs about c + sum(a_i), and e D for the experts that a mixture of them reads (expert_reads.py). c does not
depend on who is in it (weights read, launches, static power); a_i is what member i adds: its prompt tokens, or one
decoded token and the keys and values it reads. `Coefficients` holds c, e and the prices that make up the a's.
Non-negative least squares finds them from the energy of the counter's windows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.engine_steps import decoded_tokens
from loadgen.attribution.expert_reads import ExpertReads, member_computed, member_reads, step_computed, step_reads
from loadgen.stats.nnls import nnls
from loadgen.units import MJ_PER_J, NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps, Memberships
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats, Ints

MIN_WINDOWS = 50
"""Windows needed to find a counter's phase."""

MIN_IDLE_S = 0.5
"""Pure idle time needed for the idle power to be a measurement."""

_OUTLIER_RATIO = 10.0
"""A window whose residual is more than this many times the median residual is an outlier."""
_OUTLIER_PASSES = 3

DURATION_NS = 300_000
"""Uncertainty of a step's duration as a client sees it: both of its ends reach the client with a varying delay."""
LEAST_MISFIT = 0.002
"""Smallest relative error of a law that is believed."""

COLUMNS = ("step_j", "prefill_token_j", "prefill_context_j", "decode_token_j", "decode_context_j")
EXPERT_COLUMNS = ("expert_j", "computed_token_j")
"""Further columns, of steps that read experts."""
TIME_COLUMN = "busy_w"
"""The last column, of steps whose time has a price."""


class Coefficients(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the fit of one energy domain. None where the run does not determine a value."""

    step_j: float
    """c: one engine step, whoever is in it."""
    prefill_token_j: float
    prefill_context_j: float
    """Price of a prompt token and a token of context before it: attention."""
    decode_token_j: float
    decode_context_j: float
    """Price of a decoded token and a token of its context: keys and values read."""
    expert_j: float | None = None
    """e: a step that reads all experts of a mixture; None where nothing indicates that there are experts."""
    computed_token_j: float | None = None
    """Price of a token that is computed after the experts have been read."""
    busy_w: float | None = None
    """Price of the time that steps take, beside that of their work; None where it has none."""
    expert_chosen_share: float | None = None
    """Mean probability with which a token chooses an expert."""
    expert_spread: float | None = None
    """Standard deviation of the logarithm of that probability over the experts."""
    expert_hidden_tokens: float | None = None
    """Tokens that are computed while all experts are read."""
    idle_w: float | None
    idle_se_w: float | None = None
    """Standard error of idle_w, from the spread of the idle windows."""
    r_squared: float | None = None
    """Share of the windows' variance that the model explains; None when there was nothing to fit."""
    misfit: float | None = None
    """Root mean square of (measured - model) / measured over busy windows, outliers excluded."""
    outliers: int = 0
    """Windows excluded from the fit because their residual was far above the median."""

    @property
    def values(self) -> Floats:
        """float64[K], in the order of `columns`."""
        return np.array([getattr(self, column) or 0.0 for column in self.columns])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the prices, those of the columns of the steps that these are the coefficients of."""
        return _columns(self.experts is not None, self.busy_w is not None)

    @property
    def experts(self) -> ExpertReads | None:
        """Reads of experts that the steps were assumed to make."""
        if self.expert_chosen_share is None or self.expert_spread is None:
            return None
        return ExpertReads(self.expert_chosen_share, self.expert_spread, self.expert_hidden_tokens)


# -- features of members and steps -----------------------------------------------------------------------------------


def columns_of(steps: EngineSteps) -> tuple[str, ...]:
    """Return the columns of the features of steps, K of them: COLUMNS, EXPERT_COLUMNS if they read experts, and
    TIME_COLUMN if their time has a price."""
    return _columns(steps.experts is not None, steps.pace is not None)


def _columns(experts: bool, time: bool) -> tuple[str, ...]:
    return (*COLUMNS, *(EXPERT_COLUMNS if experts else ()), *((TIME_COLUMN,) if time else ()))


def feature_column(steps: EngineSteps, column: str) -> Floats:
    """Return what each member brings to one coefficient: a new float64[M], which belongs to the caller.

    A step itself is shared equally by its members, other clients' streams among them. M is as large as the run's
    output, so callers that need all columns take them one at a time (`member_features` holds them all).
    """
    if column == "step_j":
        size = np.bincount(steps.step, minlength=steps.count) + foreign_members(steps)
        return np.asarray((steps.iterations / size)[steps.step])
    if column in EXPERT_COLUMNS and steps.experts is not None:
        member_part = member_reads if column == "expert_j" else member_computed
        return member_part(steps, steps.experts, foreign_members(steps))
    if column == TIME_COLUMN and steps.pace is not None:
        return member_seconds(steps, steps.pace)
    tokens = steps.prefill if column.startswith("prefill") else decoded_tokens(steps.decode, steps.speculation)
    feature: Floats = tokens.astype(np.float64)
    if column.endswith("context_j"):
        feature *= steps.context
    return feature


def member_seconds(steps: EngineSteps, pace: tuple[float, ...]) -> Floats:
    """Return float64[M]: each member's part of the duration of its step, in proportion to what its work takes by the
    pace. What a step takes whoever is in it is shared equally, as its energy is."""
    untimed = replace(steps, pace=None)
    parts = np.zeros(len(steps.step))
    for column, seconds in zip(columns_of(untimed), pace, strict=True):
        if seconds:
            parts += seconds * feature_column(untimed, column)
    by_step = _sum_by(steps.step, parts, steps.count)
    length_s = (steps.end_ns - steps.start_ns) / NS_PER_S
    parts *= np.divide(length_s, by_step, out=np.zeros(steps.count), where=by_step > 0)[steps.step]
    return parts


def member_features(steps: EngineSteps) -> Floats:
    """Return float64[M, K]: the `feature_column` of every coefficient, side by side."""
    return np.stack([feature_column(steps, column) for column in columns_of(steps)], axis=1)


def step_features(steps: EngineSteps) -> Floats:
    """Return float64[S, K]: what each step brings to each coefficient. It passes over every membership K times."""
    return np.stack([_sum_by(steps.step, feature_column(steps, c), steps.count) for c in columns_of(steps)], axis=1)


def cost_shares(steps: EngineSteps, coefficients: Coefficients | None, fallback_w: float = 1.0) -> Floats:
    """Return float64[M], joules: c / |B| + e d_i + a_i, the Shapley value of member i in a step with members B.

    A step that the coefficients price at nothing, as every step is without coefficients, costs `fallback_w` over its
    duration, in equal parts: what was measured while it ran is its members', and not idle.
    """
    shares = np.zeros(len(steps.step))
    if coefficients is not None:
        for column, price in zip(columns_of(steps), coefficients.values, strict=True):
            feature = feature_column(steps, column)
            feature *= price
            shares += feature
            del feature  # two columns of M rows at a time are enough
    unpriced = np.bincount(steps.step, shares, minlength=steps.count) == 0
    if unpriced.any():
        length_s = np.maximum(steps.end_ns - steps.start_ns, 1) / NS_PER_S
        shares += feature_column(steps, "step_j") * (np.where(unpriced, length_s, 0.0) * fallback_w)[steps.step]
    return shares


def foreign_members(steps: EngineSteps) -> Floats:
    """Return float64[S]: other clients' streams in each of our steps."""
    if steps.foreign is None:
        return np.zeros(steps.count)
    interval = np.searchsorted(steps.foreign.edges_ns, steps.end_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(steps.foreign.members))
    return np.where(inside, steps.foreign.members[np.clip(interval, 0, len(steps.foreign.members) - 1)], 0.0)


def foreign_features(steps: EngineSteps, edges_ns: Ints) -> Floats:
    """Return float64[W, K]: what other clients bring to each coefficient in each window, placed by engine counters."""
    windows = max(len(edges_ns) - 1, 0)
    foreign = steps.foreign
    if foreign is None or not windows:
        return np.zeros((windows, len(columns_of(steps))))
    decode = foreign.decode
    if steps.speculation is not None:
        decode = decode * (steps.speculation.computed / steps.speculation.emitted)
    columns = [foreign.steps, foreign.prefill, np.zeros_like(foreign.steps), decode, decode * foreign.context]
    if steps.experts is not None:
        columns += [foreign.steps * steps.experts.share(foreign.members), np.zeros_like(foreign.steps)]
    interval, window, share = overlap(edges_ns, foreign.edges_ns[:-1], foreign.edges_ns[1:])
    features = [_sum_by(window, share * column[interval], windows) for column in columns]
    members = foreign_members(steps)
    size = np.bincount(steps.step, minlength=steps.count) + members
    step, window, share = overlap(edges_ns, steps.start_ns, steps.end_ns)
    features[0] += _sum_by(window, share * (steps.iterations * members / size)[step], windows)
    if steps.experts is not None:
        totals = (step_reads(steps, steps.experts, members), step_computed(steps, steps.experts, members))
        for k, (column, total) in enumerate(zip(EXPERT_COLUMNS, totals, strict=True), len(COLUMNS)):
            theirs = total - _sum_by(steps.step, feature_column(steps, column), steps.count)
            features[k] += _sum_by(window, share * theirs[step], windows)
    return np.stack(features, axis=1)


def overlap(edges_ns: Ints, starts_ns: Ints, ends_ns: Ints) -> tuple[Ints, Ints, Floats]:
    """Cut intervals at window edges -> (interval, window, share of the interval), a row for every pair that overlaps.

    edges_ns: int64[W+1], increasing. Parts outside all windows are left out. An interval of no length is in the window
    it falls in.
    """
    start_window = np.searchsorted(edges_ns, starts_ns, side="right") - 1
    end_window = np.searchsorted(edges_ns, np.maximum(ends_ns - 1, starts_ns), side="right") - 1
    pieces = end_window - start_window + 1
    interval = np.repeat(np.arange(len(starts_ns)), pieces)
    window = start_window[interval] + np.arange(len(interval)) - (np.cumsum(pieces) - pieces)[interval]
    inside = (window >= 0) & (window < len(edges_ns) - 1)
    interval, window = interval[inside], window[inside]
    ends_ns = np.maximum(ends_ns, starts_ns + 1)
    common = np.minimum(ends_ns[interval], edges_ns[window + 1]) - np.maximum(starts_ns[interval], edges_ns[window])
    return interval, window, common / (ends_ns - starts_ns)[interval]


def free_time(steps: EngineSteps, edges_ns: Ints) -> Floats:
    """Return float64[W], ns: how long no step ran in each window, of ours or of other clients."""
    windows = max(len(edges_ns) - 1, 0)
    step, window, share = overlap(edges_ns, steps.start_ns, steps.end_ns)
    free_ns = np.maximum(
        np.diff(edges_ns) - _sum_by(window, share * (steps.end_ns - steps.start_ns)[step], windows), 0.0
    )
    foreign = steps.foreign
    if foreign is None:
        return free_ns
    if foreign.alone_ns is None:
        return np.where(foreign_features(steps, edges_ns).any(axis=1), 0.0, free_ns)
    interval, window, share = overlap(edges_ns, foreign.edges_ns[:-1], foreign.edges_ns[1:])
    return np.maximum(free_ns - _sum_by(window, share * foreign.alone_ns[interval], windows), 0.0)


def unseen_time(steps: EngineSteps, edges_ns: Ints) -> Floats:
    """Return float64[W], ns: how long in each window the work of a request in flight is unknown."""
    interval, window, share = overlap(edges_ns, steps.unseen_ns[:, 0], steps.unseen_ns[:, 1])
    length_ns = (steps.unseen_ns[:, 1] - steps.unseen_ns[:, 0]).astype(np.float64)
    return _sum_by(window, share * length_ns[interval], max(len(edges_ns) - 1, 0))


def guessed_windows(steps: EngineSteps, edges_ns: Ints) -> NDArray[np.bool_]:
    """Return bool[W]: whether other clients worked in each window at instants that are guessed."""
    _, window, share = overlap(edges_ns, steps.guessed_ns[:, 0], steps.guessed_ns[:, 1])
    return _sum_by(window, share, max(len(edges_ns) - 1, 0)) > 0


def _sum_by(group: Ints | Memberships, values: Floats, groups: int) -> Floats:
    """Return float64[groups]: the sum of the values in each group."""
    return np.bincount(group, values, minlength=groups).astype(np.float64, copy=False)


# -- the fit ---------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Windows, and steps at the power limit, in time order."""

    features: Floats
    energy_j: Floats
    weights: Floats
    """Reciprocal of each row's uncertainty, 1/J."""


class Fit(NamedTuple):
    """The coefficients of a domain and the windows that they are based on: n of them, K coefficients.

    features: float64[n, K]. target_j: float64[n], energy without that of idle time. energy_j: float64[n], measured.
    kept: bool[W], which windows of the series these are. Without a fit n is 0. rows: what the coefficients are fitted
    to where the power limit held in some windows; None: the windows.
    """

    coefficients: Coefficients
    features: Floats
    target_j: Floats
    energy_j: Floats
    kept: NDArray[np.bool_]
    rows: Rows | None = None


def fit_coefficients(series: EnergySeries, steps: EngineSteps, per_step: Floats | None = None) -> Coefficients:
    """Return the coefficients of `fit_windows`."""
    return fit_windows(series, steps, per_step).coefficients


class WindowWork(NamedTuple):
    """Work and energy of the W windows of a counter. features: float64[W, K]. target: float64[W], joules without those
    of the time that no step covers. busy: the windows to fit."""

    features: Floats
    target: Floats
    busy: NDArray[np.bool_]
    energy_j: Floats
    idle_w: float | None
    idle_se_w: float | None


def window_work(series: EnergySeries, steps: EngineSteps, per_step: Floats) -> WindowWork:
    """Return what was done in each window, and the idle power, which is measured in windows without a step or request.

    per_step: `step_features` of the same steps.
    """
    energy_j = np.diff(series.mj) / 1000.0
    duration_s = np.diff(series.t_ns) / NS_PER_S
    step, window, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    busy_s = np.bincount(window, share * (steps.end_ns - steps.start_ns)[step], minlength=len(energy_j)) / NS_PER_S
    foreign = foreign_features(steps, series.t_ns)
    measured = np.ones(len(energy_j), bool) if series.gap is None else ~series.gap[1:]  # False: the counter restarted
    is_busy = (busy_s > 0) | foreign.any(axis=1)
    guessed = guessed_windows(steps, series.t_ns)
    idle = ~is_busy & ~guessed & (unseen_time(steps, series.t_ns) == 0) & measured
    idle_s = float(duration_s[idle].sum())
    idle_w = float(energy_j[idle].sum() / idle_s) if idle_s >= MIN_IDLE_S else None
    watts = energy_j[idle] / duration_s[idle]
    columns = [_sum_by(window, share * column[step], len(energy_j)) for column in per_step.T]
    target = energy_j - (idle_w or 0.0) * free_time(steps, series.t_ns) / NS_PER_S
    idle_se_w = float(watts.std(ddof=1) / np.sqrt(len(watts))) if idle_w is not None and len(watts) > 1 else None
    busy = is_busy & measured
    if (busy & ~guessed).sum() >= MIN_WINDOWS:
        busy &= ~guessed
    return WindowWork(np.stack(columns, axis=1) + foreign, target, busy, energy_j, idle_w, idle_se_w)


def fit_windows(series: EnergySeries, steps: EngineSteps, per_step: Floats | None = None) -> Fit:
    """Regress the windows' energy on the work done in them, by non-negative least squares.

    Idle power is measured where no step overlaps and no request was in flight, then held fixed: a loaded run's busy
    windows do not determine it. Windows in which the work of other clients is guessed are no evidence, unless the rest
    are too few; windows at the power limit are replaced by their steps. per_step: `step_features` of the same steps,
    when the caller already has them.
    """
    per_step = step_features(steps) if per_step is None else per_step
    features, target, busy, energy_j, idle_w, idle_se_w = window_work(series, steps, per_step)
    values, error, kept = fit_without_outliers(features, target, busy)
    outliers = int(busy.sum() - kept.sum())
    r_squared = misfit = None
    if error is None:
        kept = np.zeros(len(kept), bool)
    else:
        variance = float(((target[kept] - target[kept].mean()) ** 2).sum())
        r_squared = 1 - error / variance if variance > 0 else None
        misfit = _misfit(target[kept] - features[kept] @ values, energy_j[kept])
    prices = dict(zip(columns_of(steps), values.tolist(), strict=True))
    if steps.experts is not None:
        prices |= {f"expert_{name}": value for name, value in msgspec.structs.asdict(steps.experts).items()}
    coefficients = Coefficients(
        **prices,
        idle_w=idle_w,
        idle_se_w=idle_se_w,
        r_squared=r_squared,
        misfit=misfit,
        outliers=outliers,
    )
    fit = Fit(coefficients, features[kept], target[kept], energy_j[kept], kept)
    rows = rows_at_limit(series, steps, per_step, fit)
    return fit if rows is None else _refitted(fit, rows)


def rows_at_limit(series: EnergySeries, steps: EngineSteps, per_step: Floats, windows: Fit) -> Rows | None:
    """Return the rows to fit instead of `windows`, the fit of all windows; None where the power limit held in none, and
    where that is not known.

    At the limit a window's energy is the limit times its length, whatever is done in it. But its power is constant, so
    a step's energy follows from its duration: the time is what identifies the work. A row's variance has the law's
    relative misfit in it, and a step's that of its duration. The work of other clients is in no step's features: beside
    them the windows are all there is.
    """
    at_limit = series.at_limit
    if at_limit is None or not at_limit.any() or windows.coefficients.misfit is None or steps.foreign is not None:
        return None
    limited = at_limit & windows.kept
    step, window, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    inside = np.bincount(step, share * limited[window], minlength=steps.count) > 1 - 1e-9
    begin_mj, end_mj = np.interp([steps.start_ns[inside], steps.end_ns[inside]], series.t_ns, series.mj)
    others = ~limited[windows.kept]
    energy_j = np.concatenate((windows.target_j[others], (end_mj - begin_mj) / MJ_PER_J))
    duration_j = np.zeros(len(energy_j))
    duration_j[int(others.sum()) :] = (series.limit_w or 0.0) * DURATION_NS / NS_PER_S
    misfit = max(windows.coefficients.misfit, LEAST_MISFIT)
    weights = 1 / np.hypot(duration_j, misfit * np.maximum(energy_j, 1.0))
    features = np.concatenate((windows.features[others], per_step[inside]))
    begins_ns = np.concatenate((series.t_ns[:-1][windows.kept][others], steps.start_ns[inside]))
    order = np.argsort(begins_ns, kind="stable")
    return Rows(features[order], energy_j[order], weights[order])


def _refitted(windows: Fit, rows: Rows) -> Fit:
    """Return the fit with the coefficients of other rows; its windows stay what they are."""
    values, _ = nnls(rows.features * rows.weights[:, None], rows.energy_j * rows.weights)
    variance = float(((rows.energy_j - rows.energy_j.mean()) ** 2).sum())
    error = float(((rows.energy_j - rows.features @ values) ** 2).sum())
    coefficients = msgspec.structs.replace(
        windows.coefficients,
        **dict(zip(windows.coefficients.columns, values.tolist(), strict=True)),
        r_squared=1 - error / variance if variance > 0 else None,
        misfit=_misfit(windows.target_j - windows.features @ values, windows.energy_j),
    )
    return windows._replace(coefficients=coefficients, rows=rows)


def _misfit(residual_j: Floats, energy_j: Floats) -> float | None:
    nonzero = energy_j > 0
    return float(np.sqrt(np.mean((residual_j[nonzero] / energy_j[nonzero]) ** 2))) if nonzero.any() else None


def fit_without_outliers(
    a: Floats, b: Floats, rows: NDArray[np.bool_]
) -> tuple[Floats, float | None, NDArray[np.bool_]]:
    """Fit least squares without outliers -> (x, residual sum of squares, the rows it is based on).

    A client that slept for half a second saw its chunks late and all at once: the windows beside that are no evidence.
    A row is excluded when its residual is over _OUTLIER_RATIO times the median residual. The residual sum of squares is
    None, and x is 0, when there are fewer than two rows per column.
    """
    enough, kept = 2 * a.shape[1], rows
    for _pass in range(_OUTLIER_PASSES):
        if kept.sum() < enough:
            break
        x, _ = nnls(a[kept], b[kept])
        residual = np.abs(b - a @ x)
        floor = 1e-9 * float(np.abs(b).max())
        kept = rows & (residual <= _OUTLIER_RATIO * max(float(np.median(residual[rows])), floor))
    if kept.sum() < enough:
        return np.zeros(a.shape[1]), None, kept
    return *nnls(a[kept], b[kept]), kept


PHASES_NS = range(-30 * NS_PER_MS, 31 * NS_PER_MS, 3 * NS_PER_MS)
"""Shifts that are tried: a counter polled a few times a period is seen to update up to this late."""


def align_phase(series: EnergySeries, steps: EngineSteps) -> EnergySeries:
    """Shift a polled counter's series to where the model explains most of the variance of its windows.

    The period of its clock is known to microseconds after a minute, its phase only to a fraction of a poll; but 10 ms
    of 100 move a tenth of every prefill into the wrong window. Returns the series itself unless its update times are
    uncertain (slack > 0) and it has MIN_WINDOWS windows.
    """
    if len(series) < MIN_WINDOWS or series.slack_ns is None or not series.slack_ns.any() or not steps.count:
        return series
    aligned, unexplained, per_step = series, np.inf, step_features(steps)
    for shift in PHASES_NS:
        shifted = replace(series, t_ns=series.t_ns + shift)
        fit = fit_coefficients(replace(shifted, capped_ns=None), steps, per_step)  # by windows: steps have no phase
        if fit.misfit is not None and fit.r_squared is not None and 1 - fit.r_squared < unexplained:
            aligned, unexplained = shifted, 1 - fit.r_squared
    return aligned
