"""Standard errors of attributed joules, from what a run's own windows show of the fitted law's errors.

A window's residual is what the counter said beyond the law. Its variance has three components:

* noise, in proportion to the window's energy: the counter's, and the instants of steps. A request has the noise of each
  window in proportion to its share of the window's energy. Neighbouring windows have some of it in common, or one has
  what the other lacks: their covariance is added, that of one lag in Newey and West (Econometrica 55, 1987).
* prefills: windows with prefills are further off, by the same for each one. That error is charged to the prefill's
  request, or to the others in the window.
* the law's misfit: what windows of like composition (the shares that the law gives to steps, prompts, decoded tokens)
  have in common in their residuals. It does not average out. It makes the coefficients wrong, as if all of the run were
  MISFIT_WINDOWS windows, and each request by what it uses of them.

What no window shows is added: the delay of the chunks, which moves both ends of a request; beside other clients whose
requests are inferred from the engine's counters, INFERRED of their work; and, because windows show what a step costs
and not for whom, DIVISION of the way from the law's division of what members add to a step to one by their tokens, and
EXPERT_DIVISION of that to an equal one of the experts that it reads. Power that is drawn as long as a step lasts can be
its members' by what made it longer, or by what they compute.

The first two are the random-coefficient model of Hildreth and Houck (J. Am. Stat. Assoc. 63, 1968): the squared
residuals regressed on the squared features. The third is the lack of fit by near replicates (Daniel and Wood, Fitting
Equations to Data, 1971), with an effective sample size, as that of correlated observations (Bayley and Hammersley,
J. R. Stat. Soc. Suppl. 8, 1946).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np

from loadgen.attribution.cost_model import columns_of, feature_column, foreign_features, free_time, overlap, sum_by
from loadgen.attribution.engine_steps import decoded_tokens
from loadgen.stats.nnls import nnls
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.cost_model import Coefficients
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.attribution.window_fit import Fit
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats, Ints

CHUNK_DELAY_NS = 500_000
"""Uncertainty of the delay from a step's end to its chunk at the client: it shifts a request against the counter."""

DIVISION = 0.03
"""Uncertainty of the division of what the members of a step add to it, as a part of the way from the law's division to
one in proportion to computed tokens. Chosen as below."""

EXPERT_DIVISION = 0.12
"""Uncertainty of the division of the experts that a step reads, as a part of the way from the law's division to an
equal one: windows show what is read, not for whom. Chosen as below."""

INFERRED = 0.15
"""Relative error, in a window, of other clients' work that is inferred from the engine's counters. Chosen as below."""

MISFIT_WINDOWS, MISFIT_WINDOWS_OF_SUMS = 7.0, 1.0
"""Independent windows that all of a run's are worth for the law's misfit, in a request's joules and in those of many.
Chosen so that 1.96 standard errors hold 95 % on average over the rows of benchmarks/accuracy/attribution_oracle.py;
nothing else is chosen. What misfit does to single requests has either sign; in a sum of requests alike it adds up."""

PREFILL_OWN = 0.5
"""Part of the variance of windows with prefills that is the prefills' own. The rest is misplaced: one window has what
the next one lacks, and the request is in both. Chosen as above."""

MIN_WINDOWS = 50
"""Windows needed to tell the components apart; with fewer, all of the residual counts as each of them."""

_REPLICATES = 8
"""Windows of like composition that are compared: at least so many, and fewer than twice as many."""

_DRIFT_WINDOWS = 50
"""The residual's own mean over this many windows to either side is no noise."""

_CHUNK_ROWS = 1 << 21
"""Memberships that are summed at a time: a run can have 20 million."""

Part = Literal["all", "prefill", "decode"]


@dataclass(frozen=True)
class ErrorModel:
    """Variance components of one domain.

    noise: relative variance of a window's energy. prefill_j2: variance per prefill in a window, J^2. covariance,
    covariance_of_sums: float64[K, K], of the coefficients. windows: what they are based on; 0 without a fit. single,
    misfit: relative variance of a window's residual, and the part of it that windows of like composition share. serial:
    correlation of the noise of neighbouring windows, at least -1/2: that of noise which only moves between them.
    """

    noise: float
    prefill_j2: float
    covariance: Floats
    covariance_of_sums: Floats
    windows: int
    single: float
    misfit: float
    serial: float = 0.0

    def of_prices(self, columns: list[int]) -> Self:
        """Return the components with the covariances of these prices only."""
        block = np.ix_(columns, columns)
        return replace(self, covariance=self.covariance[block], covariance_of_sums=self.covariance_of_sums[block])

    @classmethod
    def unknown(cls, coefficients: int) -> Self:
        """Return the components of a domain without a fit of so many coefficients."""
        nothing = np.zeros((coefficients, coefficients))
        return cls(0.0, 0.0, nothing, nothing, 0, 0.0, 0.0)


def error_model(fit: Fit, series: EnergySeries, steps: EngineSteps) -> ErrorModel:
    """Estimate the components from the residuals of the windows that the fit is based on."""
    values = fit.values
    positive = fit.energy_j > 0
    energy_j, features = fit.energy_j[positive], fit.features[positive]
    count = len(energy_j)
    if not count:
        return ErrorModel.unknown(len(values))
    residual = (fit.target_j[positive] - features @ values) / energy_j
    single = noise = misfit = float(np.mean(residual**2))
    prefill_j2 = serial = 0.0
    used = np.flatnonzero(values > 0)
    costs_j = features[:, used] * values[used]
    if count >= MIN_WINDOWS:
        misfit = lack_of_fit(residual, costs_j / np.maximum(costs_j.sum(axis=1, keepdims=True), 1e-9))
        prefills = np.bincount(_window_of(series, steps)[steps.step[steps.prefilling]], minlength=len(fit.kept))
        squared = np.stack([np.ones(count), prefills[fit.kept][positive] / energy_j**2], axis=1)
        driftless = _without_drift(residual)
        noise, prefill_j2 = nnls(squared, driftless**2)[0].tolist()
        next_to = np.diff(np.flatnonzero(fit.kept)[positive]) == 1
        together = float(np.mean((driftless[1:] * driftless[:-1])[next_to])) if next_to.any() else 0.0
        serial = max(together / max(float(np.mean(driftless**2)), 1e-30), -0.5)
    scaled = costs_j / energy_j[:, None]
    gram = scaled.T @ scaled / count
    covariances = np.zeros((2, len(values), len(values)))
    for covariance, windows in zip(covariances, (MISFIT_WINDOWS, MISFIT_WINDOWS_OF_SUMS), strict=True):
        # No price is more uncertain than itself: the identity is that bound, where the windows do not determine it.
        precision = gram / max(noise / count + misfit / windows, 1e-12) + np.eye(len(used))
        covariance[np.ix_(used, used)] = np.linalg.inv(precision) * np.outer(values[used], values[used])
    return ErrorModel(noise, prefill_j2, covariances[0], covariances[1], count, single, misfit, serial)


def lack_of_fit(residual: Floats, composition: Floats) -> float:
    """Return the mean product of the residuals of different windows of like composition: at least 0.

    Windows are halved at the median of the column that differs most among them, until fewer than twice _REPLICATES are
    left. composition: float64[n, columns].
    """
    products, pairs, parts = 0.0, 0, [np.arange(len(residual))]
    while parts:
        part = parts.pop()
        if len(part) < 2 * _REPLICATES:
            products += float(residual[part].sum() ** 2 - (residual[part] ** 2).sum())
            pairs += len(part) * (len(part) - 1)
            continue
        column = composition[part, int(np.argmax(composition[part].std(axis=0)))]
        ordered, half = part[np.argsort(column, kind="stable")], len(part) // 2
        parts += [ordered[:half], ordered[half:]]
    return max(products / pairs, 0.0) if pairs else 0.0


def _without_drift(residual: Floats) -> Floats:
    """Return the residuals without their running mean."""
    half = min(_DRIFT_WINDOWS, (len(residual) - 1) // 2)
    sums = np.concatenate(([0.0], np.cumsum(residual)))
    begin = np.maximum(np.arange(len(residual)) - half, 0)
    end = np.minimum(np.arange(len(residual)) + half + 1, len(residual))
    return np.asarray(residual - (sums[end] - sums[begin]) / (end - begin))


class RequestWindows(NamedTuple):
    """A row for every request (or other group) and every window from its first to its last step."""

    request: Ints
    window: Ints
    prefill_j: Floats
    decode_j: Floats
    prefills: Floats
    """Prefills of the request in the window."""


def request_windows(series: EnergySeries, steps: EngineSteps, member_j: Floats, requests: int) -> RequestWindows:
    """Sum the joules of the members by request and window; a step is in the window in which it ends.

    A step over several windows counts by the root of its squared shares in them: the noise of the windows that it
    lasts averages out. Steps outside all windows have no energy.
    """
    step, _, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    length = np.sqrt(np.bincount(step, share**2, minlength=steps.count))
    of_step = _window_of(series, steps)
    last = np.zeros(requests, np.int64)
    first = np.full(requests, len(series), np.int64)
    for rows in _slices(len(member_j)):
        np.minimum.at(first, steps.request[rows], of_step[steps.step[rows]])
        np.maximum.at(last, steps.request[rows], of_step[steps.step[rows]])
    counts = np.maximum(last - first + 1, 0)
    offset = np.cumsum(counts) - counts - first
    size = int(counts.sum())
    sums = np.zeros((3, size))
    for rows in _slices(len(member_j)):
        prefilling = steps.prefilling[rows]
        key = offset[steps.request[rows]] + of_step[steps.step[rows]]
        joules = member_j[rows] * length[steps.step[rows]]
        sums[0] += np.bincount(key, np.where(prefilling, joules, 0.0), minlength=size)
        sums[1] += np.bincount(key, np.where(prefilling, 0.0, joules), minlength=size)
        sums[2] += np.bincount(key[prefilling], minlength=size)
    request = np.repeat(np.arange(requests), counts)
    return RequestWindows(request, np.arange(size) - offset[request], *sums)


def _window_of(series: EnergySeries, steps: EngineSteps) -> Ints:
    """Return int64[S]: the window in which each step ends, or the nearest one."""
    return np.clip(np.searchsorted(series.t_ns, steps.end_ns - 1, side="right") - 1, 0, max(len(series) - 2, 0))


def _slices(rows: int) -> list[slice]:
    return [slice(begin, begin + _CHUNK_ROWS) for begin in range(0, rows, _CHUNK_ROWS)]


def variance_of_ends(series: EnergySeries, steps: EngineSteps, joules: Floats, windows: int) -> Floats:
    """Return float64[n], J^2: what the uncertainty of a request's two instants against the counter's is worth.

    Each is uniform in CHUNK_DELAY_NS, so sqrt(2/3) of it, times the request's mean power. With fewer than MIN_WINDOWS
    windows in the fit, the counter's slack is added: otherwise that is in the noise.
    """
    begin = np.full(len(joules), np.iinfo(np.int64).max)
    end = np.zeros(len(joules), np.int64)
    np.minimum.at(begin, steps.request, steps.start_ns[steps.step])
    np.maximum.at(end, steps.request, steps.end_ns[steps.step])
    period_ns = float(np.median(np.diff(series.t_ns)))
    of_counter = 0.0 if series.slack_ns is None or windows >= MIN_WINDOWS else float(np.median(series.slack_ns))
    slack_ns = CHUNK_DELAY_NS + of_counter
    length_ns = np.maximum(end - np.minimum(begin, end), period_ns)
    return np.asarray((joules / length_ns * slack_ns) ** 2 * 2 / 3)


def joules_gradient(
    series: EnergySeries, steps: EngineSteps, shares: Floats, requests: int, foreign: Floats, values: Floats,
    idle_j: Floats,
) -> Floats:  # fmt: skip
    """Return float64[n, 2, K]: d joules_i / d coefficient of prefill and decode, for joules_i = sum_w E_w s_iw / s_w.

    E_w is the energy of window w, s_iw the cost shares of request i in it and s_w those of all requests, of other
    clients and of idle time. With x_iw the feature of the coefficient, the derivative is sum_w E_w / s_w (x_iw - s_iw
    x_w / s_w). foreign: float64[W, K], features of other clients. idle_j: float64[W], joules of idle time.
    """
    windows = len(series) - 1
    energy_j = np.diff(series.mj) / MJ_PER_J
    step, window, overlap_share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    shares_by_step = sum_by(steps.step, shares, steps.count)
    total = np.bincount(window, overlap_share * shares_by_step[step], minlength=windows) + foreign @ values + idle_j
    rate = np.divide(energy_j, total, out=np.zeros(windows), where=total > 0)
    step_rate = np.bincount(step, overlap_share * rate[window], minlength=steps.count)
    prefilling = np.flatnonzero(steps.prefilling)
    gradient = np.zeros((requests, 2, len(values)))
    for k, column in enumerate(columns_of(steps)):
        feature = feature_column(steps, column)
        by_step = sum_by(steps.step, feature, steps.count)
        in_window = np.bincount(window, overlap_share * by_step[step], minlength=windows) + foreign[:, k]
        mean = rate * in_window / np.where(total > 0, total, 1.0)
        step_mean = np.bincount(step, overlap_share * mean[window], minlength=steps.count).astype(np.float64)
        for rows in _slices(len(feature)):  # arrays of M rows: no second one beside the feature
            feature[rows] *= step_rate[steps.step[rows]]
            feature[rows] -= step_mean[steps.step[rows]] * shares[rows]
        gradient[:, 0, k] = np.bincount(steps.request[prefilling], feature[prefilling], minlength=requests)
        gradient[:, 1, k] = sum_by(steps.request, feature, requests) - gradient[:, 0, k]
        del feature  # arrays of M rows: the next column is made before this name is reused
    return gradient


def equal_experts(
    series: EnergySeries, steps: EngineSteps, shares: Floats, expert_j: float, requests: int,
    measured: Floats | None = None,
) -> Floats:  # fmt: skip
    """Return float64[n, 2], joules: what prefill and decode of each request would gain if the members of a step had
    equal parts of the experts that it reads. 0 for a dense model. measured: as for `divided_by_tokens`."""
    gains = np.zeros((requests, 2))
    if steps.experts is None or not expert_j:
        return gains
    price = expert_j * (measured_per_share(series, steps, shares) if measured is None else measured)
    part = feature_column(steps, "expert_j")
    equal = np.bincount(steps.step, part, minlength=steps.count) / np.bincount(steps.step, minlength=steps.count)
    gain = equal[steps.step]
    gain -= part
    gain *= price[steps.step]
    for phase, rows in enumerate((steps.prefilling, ~steps.prefilling)):
        gains[:, phase] = np.bincount(steps.request[rows], gain[rows], minlength=requests)
    return gains


def divided_by_tokens(
    series: EnergySeries, steps: EngineSteps, shares: Floats, coefficients: Coefficients, requests: int,
    measured: Floats | None = None,
) -> Floats:  # fmt: skip
    """Return float64[n], joules: what each request would gain if what the members of a step add to it, beside the step
    itself and its reads of experts, were divided in proportion to their computed tokens.

    shares: float64[M], under the law. measured: float64[S], `measured_per_share`, where other steps are in the windows.
    """
    own = feature_column(steps, "step_j")
    own *= -coefficients.step_j
    own += shares
    if steps.experts is not None:
        own -= (coefficients.expert_j or 0.0) * feature_column(steps, "expert_j")
    decoded = decoded_tokens(steps.decode, steps.speculation)
    tokens = sum_by(steps.step, decoded, steps.count) + sum_by(steps.step, steps.prefill, steps.count)
    by_step = sum_by(steps.step, own, steps.count)
    per_token = np.divide(by_step, tokens, out=np.zeros(steps.count), where=tokens > 0)
    if measured is None:
        measured = measured_per_share(series, steps, shares)
    for rows in _slices(len(own)):
        step, computed = steps.step[rows], decoded[rows] + steps.prefill[rows]
        own[rows] = (per_token[step] * computed - own[rows]) * measured[step]
    return sum_by(steps.request, own, requests)


def other_divisions(
    series: EnergySeries, steps: EngineSteps, shares: Floats, fit: Fit, requests: int
) -> tuple[Floats, Floats]:
    """Return the `equal_experts` and the `divided_by_tokens` of the requests of all engines."""
    measured = measured_per_share(series, steps, shares)
    division, by_tokens = np.zeros((requests, 2)), np.zeros(requests)
    for (engine, rows, place), (law, _) in zip(steps.members_of_engines, fit.engines, strict=True):
        own, by_step = shares[rows], measured[place]
        division += equal_experts(series, engine, own, law.expert_j or 0.0, requests, by_step)
        by_tokens += divided_by_tokens(series, engine, own, law, requests, by_step)
    return division, by_tokens


def measured_per_share(series: EnergySeries, steps: EngineSteps, shares: Floats) -> Floats:
    """Return float64[S]: the measured energy of the windows that a step is in, per joule of the shares in them."""
    energy_j = np.diff(series.mj) / MJ_PER_J
    step, window, overlap_share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    total = sum_by(window, overlap_share * sum_by(steps.step, shares, steps.count)[step], len(energy_j))
    rate = np.divide(energy_j, total, out=np.zeros(len(energy_j)), where=total > 0)
    return sum_by(step, overlap_share * rate[window], steps.count)


@dataclass(frozen=True)
class JoulesErrors:
    """The parts that the variance of any request's joules, and of any sum of them, is made of.

    energy_j: float64[W]. prefills: float64[W], of all requests. inferred_j: float64[W], of other clients' requests that
    are inferred from the engine's counters. gradient: float64[n, 2, K]. division: float64[n, 2], `equal_experts`.
    by_tokens: float64[n], `divided_by_tokens`. ends: float64[n], J^2.
    """

    model: ErrorModel
    rows: RequestWindows
    energy_j: Floats
    prefills: Floats
    inferred_j: Floats
    gradient: Floats
    division: Floats
    by_tokens: Floats
    ends: Floats

    def of_requests(self) -> Floats:
        """Return float64[n], J^2: the variance of each request's joules."""
        return self.of_windows() + self.of_law()

    def of_windows(self) -> Floats:
        """Return float64[n], J^2: what the noise of windows, prefills and the instants of requests are worth.

        Of a prefill's error e in a window, its request lacks e (1 - p) and another has e p too much, with p the share
        of the request in the window's energy.
        """
        joules, own, owned = self._shares(self.rows, "all")
        by_prefills = own * (1 - owned) ** 2 + (self.prefills[self.rows.window] - own) * owned**2
        inferred_j2 = (INFERRED * owned * self.inferred_j[self.rows.window]) ** 2
        variance = self._noise(self.rows, joules) + PREFILL_OWN * self.model.prefill_j2 * by_prefills + inferred_j2
        by_windows = sum_by(self.rows.request, variance, len(self.gradient))
        few = self.model.windows < MIN_WINDOWS  # then all of the residual is each component, the ends among them
        return np.asarray(np.maximum(by_windows, self.ends) if few else by_windows + self.ends)

    def of_law(self) -> Floats:
        """Return float64[n], J^2: what the law's misfit and its division of a step are worth."""
        gradient = self.gradient.sum(axis=1)
        by_misfit = np.einsum("ni,ij,nj->n", gradient, self.model.covariance, gradient)
        divided = (DIVISION * self.by_tokens) ** 2 + (EXPERT_DIVISION * self.division.sum(axis=1)) ** 2
        return np.asarray(by_misfit + divided)

    def _noise(self, rows: RequestWindows, joules: Floats) -> Floats:
        """Return float64[rows], J^2: the variance of the noise of each row, and its covariance with the next one's."""
        following = np.zeros(len(joules))
        following[:-1] = np.where(rows.request[1:] == rows.request[:-1], joules[1:], 0.0)
        return np.asarray(self.model.noise * joules * (joules + 2 * self.model.serial * following))

    def of_sum(self, requests: Ints) -> dict[Part, float]:
        """Return the variance of the joules of these requests together, and of their prefills and decodes, J^2.

        In a sum the error of prefills is one for all of them, as the misfit is.
        """
        rows = self._together(requests)
        gradient, division = self.gradient[requests].sum(axis=0), self.division[requests].sum(axis=0)
        by_part: dict[Part, Floats] = {"all": gradient.sum(axis=0), "prefill": gradient[0], "decode": gradient[1]}
        experts_j: dict[Part, float] = {"all": division.sum(), "prefill": division[0], "decode": division[1]}
        variances: dict[Part, float] = {}
        for part, slope in by_part.items():
            joules, own, owned = self._shares(rows, part)
            prefills = float((own * (1 - owned) - (self.prefills[rows.window] - own) * owned).sum())
            variances[part] = (
                float(self._noise(rows, joules).sum())
                + float(((INFERRED * owned * self.inferred_j[rows.window]) ** 2).sum())
                + self.model.prefill_j2 * prefills**2
                + float(slope @ self.model.covariance_of_sums @ slope)
                + (EXPERT_DIVISION * float(experts_j[part])) ** 2
            )
        return variances

    def _together(self, requests: Ints) -> RequestWindows:
        """Return the rows of one group of requests, from the first of its windows to the last.

        It takes the time of the group's own rows: a run of sessions has thousands of groups.
        """
        begin, end = (np.searchsorted(self.rows.request, requests, side) for side in ("left", "right"))
        counts = end - begin
        chosen = np.arange(int(counts.sum())) + np.repeat(begin - (np.cumsum(counts) - counts), counts)
        window = self.rows.window[chosen]
        first = int(window.min()) if len(window) else 0
        sums = [np.bincount(window - first, column[chosen]).astype(np.float64) for column in self.rows[2:]]
        return RequestWindows(np.zeros(len(sums[0]), np.int64), first + np.arange(len(sums[0])), *sums)

    def _shares(self, rows: RequestWindows, part: Part) -> tuple[Floats, Floats, Floats]:
        """Return the joules, the prefills and the share of the window's energy that each row has in a part."""
        joules = {"all": rows.prefill_j + rows.decode_j, "prefill": rows.prefill_j, "decode": rows.decode_j}[part]
        energy_j = self.energy_j[rows.window]
        owned = np.clip(np.divide(joules, energy_j, out=np.ones(len(joules)), where=energy_j > 0), 0, 1)
        return joules, np.zeros(len(joules)) if part == "decode" else rows.prefills, owned


def joules_errors(
    fit: Fit, series: EnergySeries, clipped: EnergySeries, steps: EngineSteps, shares: Floats, member_j: Floats,
    requests: int, known: int,
) -> JoulesErrors:  # fmt: skip
    """Return the errors of a domain's joules. series: all that the fit is of. clipped: the part that was split.

    shares, member_j: float64[M], under the law and of the split. known: the first requests, which are not inferred.
    """
    values, idle_w = fit.values, fit.coefficients.idle_w or 0.0
    joules = sum_by(steps.request, member_j, requests)
    if len(clipped) < 2 or not len(shares):
        model, none, gradient = ErrorModel.unknown(len(values)), np.zeros(0), np.zeros((requests, 2, len(values)))
        rows = RequestWindows(np.zeros(0, np.int64), np.zeros(0, np.int64), none, none, none)
        zeros = np.zeros(requests)
        return JoulesErrors(model, rows, none, none, none, gradient, np.zeros((requests, 2)), zeros, zeros)
    rows = request_windows(clipped, steps, member_j, requests)
    inferred = rows.request >= known
    inferred_j = (rows.prefill_j + rows.decode_j)[inferred]
    model = error_model(fit, series, steps)
    division, by_tokens = other_divisions(clipped, steps, shares, fit, requests)
    return JoulesErrors(
        model=model,
        rows=rows,
        energy_j=np.diff(clipped.mj) / MJ_PER_J,
        prefills=np.bincount(rows.window, rows.prefills, minlength=len(clipped) - 1).astype(np.float64),
        inferred_j=np.bincount(rows.window[inferred], inferred_j, minlength=len(clipped) - 1).astype(np.float64),
        gradient=joules_gradient(
            clipped, steps, shares, requests, foreign_features(steps, clipped.t_ns), values,
            idle_w * free_time(steps, clipped.t_ns) / NS_PER_S,
        ),
        division=division,
        by_tokens=by_tokens,
        ends=variance_of_ends(clipped, steps, joules, model.windows),
    )  # fmt: skip
