"""The cost model of an engine step: what its members bring to each price, and what they cost.

Step s costs about c + sum(a_i), and e D for the experts that a mixture of them reads (expert_reads.py). c does not
depend on who is in it (weights read, launches, static power); a_i is what member i adds: its prompt tokens, or one
decoded token and the keys and values it reads. `Coefficients` holds c, e and the prices that make up the a's;
window_fit.py finds them from the energy that a counter measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.engine_steps import decoded_tokens
from loadgen.attribution.expert_reads import ExpertReads, member_computed, member_reads, step_computed, step_reads
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps, Memberships, Narrow
    from loadgen.stats.arrays import Floats, Ints

COLUMNS = ("step_j", "prefill_token_j", "prefill_context_j", "decode_token_j", "decode_context_j")
EXPERT_COLUMNS = ("expert_j", "computed_token_j")
"""Further columns, of steps that read experts."""
TIME_COLUMN = "busy_w"
"""The last column, of steps whose time has a price."""


_ROWS_AT_ONCE = 1 << 21


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


def columns_of(steps: EngineSteps) -> tuple[str, ...]:
    """Return the columns of the features of steps, K of them: COLUMNS, EXPERT_COLUMNS if they read experts, and
    TIME_COLUMN if their time has a price.

    Those of engines that share a GPU are numbered, as in "0:step_j"; the time of the GPU has one price for all.
    """
    if steps.parts:
        columns = [f"{n}:{c}" for n, part in enumerate(steps.parts) for c in columns_of(replace(part.steps, pace=None))]
        return (*columns, *((TIME_COLUMN,) if steps.parts[0].steps.pace is not None else ()))
    return _columns(steps.experts is not None, steps.pace is not None)


def columns_of_engines(steps: EngineSteps) -> list[list[int]]:
    """Return, for each engine, which of the columns of all its own are."""
    names = columns_of(steps)
    if not steps.parts:
        return [list(range(len(names)))]
    return [
        [names.index(name if name == TIME_COLUMN else f"{number}:{name}") for name in columns_of(engine)]
        for number, engine in enumerate(steps.engines)
    ]


def _columns(experts: bool, time: bool) -> tuple[str, ...]:
    return (*COLUMNS, *(EXPERT_COLUMNS if experts else ()), *((TIME_COLUMN,) if time else ()))


def feature_column(steps: EngineSteps, column: str) -> Floats:
    """Return what each member brings to one coefficient: a new float64[M], which belongs to the caller.

    A step itself is shared equally by its members, other clients' streams among them. M is as large as the run's
    output, so callers that need all columns take them one at a time (`member_features` holds them all).
    """
    if steps.parts:
        of_all = np.zeros(len(steps.step))
        number, _, own_column = column.rpartition(":")
        for part in [steps.parts[int(number)]] if number else steps.parts:
            of_all[part.rows] = feature_column(part.steps, own_column)
        return of_all
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
    by_step = sum_by(steps.step, parts, steps.count)
    parts *= np.divide(steps.seconds, by_step, out=np.zeros(steps.count), where=by_step > 0)[steps.step]
    return parts


def member_features(steps: EngineSteps) -> Floats:
    """Return float64[M, K]: the `feature_column` of every coefficient, side by side."""
    return np.stack([feature_column(steps, column) for column in columns_of(steps)], axis=1)


def step_features(steps: EngineSteps) -> Floats:
    """Return float64[S, K]: what each step brings to each coefficient. It passes over every membership K times."""
    return np.stack([sum_by(steps.step, feature_column(steps, c), steps.count) for c in columns_of(steps)], axis=1)


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
    unpriced = sum_by(steps.step, shares, steps.count) == 0
    if unpriced.any():
        length_s = np.maximum(steps.end_ns - steps.start_ns, 1) / NS_PER_S
        shares += feature_column(steps, "step_j") * (np.where(unpriced, length_s, 0.0) * fallback_w)[steps.step]
    return shares


def cost_shares_of_engines(steps: EngineSteps, laws: Sequence[Coefficients], fallback_w: float) -> Floats:
    """Return the `cost_shares` of the members of all engines, by the law of each."""
    if not steps.parts:
        return cost_shares(steps, laws[0], fallback_w)
    shares = np.zeros(len(steps.step))
    for part, law in zip(steps.parts, laws, strict=True):
        shares[part.rows] = cost_shares(part.steps, law, fallback_w)
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
    if steps.parts:
        of_all = np.zeros((windows, len(columns_of(steps))))
        for engine, own in zip(steps.engines, columns_of_engines(steps), strict=True):
            of_all[:, own] += foreign_features(engine, edges_ns)
        return of_all
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
    features = [sum_by(window, share * column[interval], windows) for column in columns]
    members = foreign_members(steps)
    size = np.bincount(steps.step, minlength=steps.count) + members
    step, window, share = overlap(edges_ns, steps.start_ns, steps.end_ns)
    features[0] += sum_by(window, share * (steps.iterations * members / size)[step], windows)
    if steps.experts is not None:
        totals = (step_reads(steps, steps.experts, members), step_computed(steps, steps.experts, members))
        for k, (column, total) in enumerate(zip(EXPERT_COLUMNS, totals, strict=True), len(COLUMNS)):
            theirs = total - sum_by(steps.step, feature_column(steps, column), steps.count)
            features[k] += sum_by(window, share * theirs[step], windows)
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
    starts_ns, ends_ns = busy_spans(steps)
    span, window, share = overlap(edges_ns, starts_ns, ends_ns)
    free_ns = np.maximum(np.diff(edges_ns) - sum_by(window, share * (ends_ns - starts_ns)[span], windows), 0.0)
    for engine in steps.engines:
        free_ns = _without_foreign(engine, edges_ns, free_ns)
    return free_ns


def _without_foreign(steps: EngineSteps, edges_ns: Ints, free_ns: Floats) -> Floats:
    """Return free time without that in which only other clients ran."""
    foreign = steps.foreign
    if foreign is None:
        return free_ns
    if foreign.alone_ns is None:
        return np.where(foreign_features(steps, edges_ns).any(axis=1), 0.0, free_ns)
    interval, window, share = overlap(edges_ns, foreign.edges_ns[:-1], foreign.edges_ns[1:])
    return np.maximum(free_ns - sum_by(window, share * foreign.alone_ns[interval], len(free_ns)), 0.0)


def busy_spans(steps: EngineSteps) -> tuple[Ints, Ints]:
    """Return when the spans begin and end in which steps ran: each step, or what the steps of several engines cover."""
    if not steps.parts or not steps.count:
        return steps.start_ns, steps.end_ns
    order = np.argsort(steps.start_ns, kind="stable")
    starts_ns, until_ns = steps.start_ns[order], np.maximum.accumulate(steps.end_ns[order])
    begins = np.concatenate(([True], starts_ns[1:] > until_ns[:-1]))
    return starts_ns[begins], until_ns[np.concatenate((begins[1:], [True]))]


def unseen_time(steps: EngineSteps, edges_ns: Ints) -> Floats:
    """Return float64[W], ns: how long in each window the work of a request in flight is unknown."""
    interval, window, share = overlap(edges_ns, steps.unseen_ns[:, 0], steps.unseen_ns[:, 1])
    length_ns = (steps.unseen_ns[:, 1] - steps.unseen_ns[:, 0]).astype(np.float64)
    return sum_by(window, share * length_ns[interval], max(len(edges_ns) - 1, 0))


def guessed_windows(steps: EngineSteps, edges_ns: Ints) -> NDArray[np.bool_]:
    """Return bool[W]: whether other clients worked in each window at instants that are guessed."""
    _, window, share = overlap(edges_ns, steps.guessed_ns[:, 0], steps.guessed_ns[:, 1])
    return sum_by(window, share, max(len(edges_ns) - 1, 0)) > 0


def sum_by(group: Ints | Memberships, values: Floats | Narrow, groups: int) -> Floats:
    """Return float64[groups]: the sum of the values in each group. numpy widens both arrays, a part of them at a time
    here: a run can have 20 million memberships."""
    sums = np.zeros(groups)
    for begin in range(0, len(group), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        sums += np.bincount(group[rows], values[rows], minlength=groups)
    return sums
