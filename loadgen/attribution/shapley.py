"""Attribute the measured energy of a run to its requests, by Shapley values. Energy is conserved to the millijoule.

An engine works in steps. Step s costs about c + sum(a_i): c is independent of who is in it (weights read, launches,
static power), a_i is what member i adds (its prompt tokens, or one decoded token and the keys and values it reads).
The Shapley value of that game has a closed form, c / |members| + a_i, and that is each member's cost share.
A mixture of experts has one more term, the reads of the experts that its tokens chose (expert_reads.py); and where work
explains little of the windows, the time that steps take has a price (step_time.py).

Data flows one way:
    records -> EngineSteps (who was in which step, with how many tokens: engine_steps.py)
    EngineSteps x windows of the counter -> Coefficients (c and the a's, by non-negative least squares: window_fit.py)
    EngineSteps x Coefficients -> each member's cost share under the model
    windows -> each window's *measured* energy, split in proportion to the cost shares in it
The model decides shares, never totals: whatever its error, the accounts sum to the counter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
import numpy as np

from loadgen.attribution.beside_others import SharedSteps, steps_beside_others
from loadgen.attribution.cost_model import (
    Coefficients,
    cost_shares_of_engines,
    foreign_features,
    free_time,
    guessed_windows,
    overlap,
    sum_by,
    unseen_time,
)
from loadgen.attribution.fit_quality import FitQuality, fit_quality
from loadgen.attribution.law_estimates import LawEstimates, cache_errors_of_sum, cache_joules_of_run, law_estimates
from loadgen.attribution.other_methods import OtherMethod, request_shares_mj
from loadgen.attribution.output_kinds import decode_by_kind
from loadgen.attribution.step_time import fit_law
from loadgen.attribution.uncertainty import JoulesErrors, joules_errors
from loadgen.units import MJ_PER_J, NS_PER_S, energy_imbalance_mj, j_from_mj, mj_from_j

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import Bools, EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample

Method = Literal["shapley", OtherMethod]
METHODS: tuple[Method, ...] = get_args(Method)


class RequestEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """One line of attribution.jsonl. joules = prefill_joules + decode_joules, in whole millijoules."""

    index: int
    """Number of the request in the schedule."""
    prefill_joules: float | None
    """Energy of the prefill; None for methods without phases, and where the energy of its engine is not known."""
    decode_joules: float | None
    """Energy of the decode steps; None for methods without phases, and where the energy of its engine is not known."""
    joules: float | None
    """Energy attributed to the request. None if it is not known which of several engines served it, or what an engine
    that did used."""
    reasoning_joules: float | None = None
    """Part of `decode_joules` in which reasoning was generated, and in the next calls of tools; the rest is the
    answer's text. None when the kinds of the chunks are not known."""
    tools_joules: float | None = None
    """Part of `decode_joules` in which calls of tools were generated."""
    se_joules: float | None = None
    """Standard error: of the noise of the windows, of prefills, and of the misfit of the law (uncertainty.py)."""
    saved_joules: float | None = None
    """Joules that its cached prompt tokens would have cost by the fitted law (cache_saving.py). None when it is not
    known how many there were."""
    saved_se_joules: float | None = None
    """Standard error of saved_joules: that of the fitted prices."""
    recomputed_joules: float | None = None
    """Part of its joules, by the fitted law, for tokens that had been computed before: prompt tokens of earlier
    requests that the cache did not hold, and the context of a preempted stream. None when it is not known which."""
    recomputed_se_joules: float | None = None
    """Standard error of recomputed_joules: that of the fitted prices."""
    host_joules: float | None = None
    """Its stated share of the host's energy (host_share.py), which is not in `joules`. None where no meter counts the
    host beside the GPUs."""
    engine: str | None = None
    """Engine that served it, of several, or generated its answer; None where there is one, or it is not known."""
    prefill_engine: str | None = None
    """Engine that computed its prompt, where that is another."""
    engine_probability: float | None = None
    """Probability that these are its engines: 1 where a header or a span names them, less where the engines' counters
    had to tell. None where none is known, or there is one."""

    @property
    def known_mj(self) -> int:
        """Energy of the parts that are known, which is in the accounts."""
        parts = (self.prefill_joules, self.decode_joules) if self.joules is None else (self.joules,)
        return sum(mj_from_j(part) for part in parts if part is not None)


class SumErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Standard errors of the joules of several requests together. Those of single requests do not simply add up: what
    one gains another loses, and the law's misfit is common to all."""

    attributed_se_joules: float
    """Standard error of the attributed energy."""
    prefill_se_joules: float
    """Standard error of the part that prefills used."""
    decode_se_joules: float
    """Standard error of the part that decode steps used."""
    saved_se_joules: float | None = None
    """Standard error of the sum of `saved_joules`, over the requests for which it is known; None: for none."""
    recomputed_se_joules: float | None = None
    """Standard error of the sum of `recomputed_joules`, over the requests for which it is known; None: for none."""


class RunAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """The accounts of a run: measured_mj == idle_mj + attributed_mj + unattributed_mj, exactly."""

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
    fits: list[FitQuality] = []
    """One per energy domain: what its fit is worth."""
    sums: dict[str, SumErrors] = {}
    """Errors of the sums that the caller named; empty for methods without an error."""
    rejected_joules: float | None = None
    """Part of the requests' joules that rejected draft tokens added to decode steps. None when it is not known."""
    rejected_se_joules: float | None = None
    """Standard error of rejected_joules: that of the fitted price of a token."""
    engines: dict[str, RunAttribution] = {}
    """The accounts of each engine by its name, where there are several; this is their sum."""
    named_by: dict[str, int] = {}
    """Requests of one of several engines by the evidence that it served them."""

    @property
    def idle_w(self) -> float | None:
        """Idle power of all domains together; None where that of one is unknown."""
        watts = [fitted.idle_w for fitted in self.coefficients]
        return sum(power or 0.0 for power in watts) if watts and None not in watts else None

    def check(self) -> None:
        """Raise AssertionError unless energy is conserved; called before anything is printed."""
        off_mj = energy_imbalance_mj(self.measured_mj, self.attributed_mj, self.idle_mj, self.unattributed_mj)
        of_requests = sum(share.known_mj for share in self.requests)
        if off_mj or of_requests != self.attributed_mj:
            raise AssertionError(
                f"energy is not conserved: {self.measured_mj} mJ, {self.measured_mj - off_mj} in accounts, "
                f"{of_requests} of requests"
            )


def attribute_energy(
    series: Sequence[EnergySeries],
    records: Sequence[RequestRecord],
    start_ns: int,
    end_ns: int,
    *,
    engine: Sequence[EngineSample] = (),
    method: Method = "shapley",
    shared: SharedSteps | None = None,
    sums: Mapping[str, Ints] | None = None,
    reusable: Sequence[int | None] | None = None,
) -> RunAttribution:
    """Attribute the energy of every series between the counter's updates around [start, end].

    Energy before `start_ns` (idle with the model resident) takes part in the fit, not in the accounts. That of other
    clients' requests is unattributed. shared: the engine's steps, when the caller already has them. sums: name ->
    rows of records whose joules are added up, for the errors of those sums. reusable: tokens at the beginning of each
    prompt that an earlier request had computed, None where that is not known.
    """
    if method != "shapley":
        return _by_another_method(
            [domain.clip(start_ns, end_ns) for domain in series], records, start_ns, end_ns, method
        )
    shared = shared or steps_beside_others(records, engine)
    domains = _domains(series, records, start_ns, end_ns, shared, reusable)
    (idle_mj, unattributed_mj), [of_engine_mj] = _whole_mj(domains)
    of_engine_mj[0] += unattributed_mj
    result = _run_attribution(domains, 0, idle_mj, of_engine_mj, records, start_ns, end_ns, sums)
    result.check()
    return result


class JointAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """The accounts of engines that share GPUs: measured_mj == idle_mj + unattributed_mj + those of the engines."""

    measured_mj: int
    idle_mj: int
    """Energy of the time in which no engine ran a step: it is no engine's."""
    unattributed_mj: int
    """Energy while no engine ran a step that is known, and a request was in flight at one of them."""
    engines: list[RunAttribution]
    """One for each engine, of all records. It measures what its own requests used and those of its other clients, which
    are unattributed; its idle energy is 0."""
    sums: dict[str, SumErrors]
    """Errors of the sums that the caller named, over all engines, but for what caches saved. One counter and one fit
    are behind them: what one engine gains another loses."""

    def check(self) -> None:
        """Raise AssertionError unless energy is conserved, in each engine too."""
        of_engines_mj = sum(engine.measured_mj for engine in self.engines)
        off_mj = energy_imbalance_mj(self.measured_mj, of_engines_mj, self.idle_mj, self.unattributed_mj)
        if off_mj:
            raise AssertionError(f"energy is not conserved: {off_mj} of {self.measured_mj} mJ are in no account")
        for engine in self.engines:
            engine.check()


def attribute_jointly(
    series: Sequence[EnergySeries],
    records: Sequence[RequestRecord],
    start_ns: int,
    end_ns: int,
    *,
    shared: SharedSteps,
    sums: Mapping[str, Ints] | None = None,
    reusable: Sequence[int | None] | None = None,
) -> JointAttribution:
    """Attribute the energy of GPUs that several engines share, by a law with prices for each engine.

    The work of all engines together explains a window, and its measured energy is divided in proportion to the cost
    shares of the members of all. shared: `side_by_side` of the engines. The other arguments are as for
    `attribute_energy`.
    """
    domains = _domains(series, records, start_ns, end_ns, shared, reusable)
    (idle_mj, unattributed_mj), of_engines_mj = _whole_mj(domains)
    result = JointAttribution(
        measured_mj=sum(domain.measured_mj for domain in domains),
        idle_mj=idle_mj,
        unattributed_mj=unattributed_mj,
        engines=[
            _run_attribution(domains, number, 0, of_engine_mj, records, start_ns, end_ns, sums)
            for number, of_engine_mj in enumerate(of_engines_mj)
        ],
        sums={name: _joint_errors(domains, rows) for name, rows in (sums or {}).items()},
    )
    result.check()
    return result


def _whole_mj(domains: Sequence[_Domain]) -> tuple[tuple[int, int], list[Ints]]:
    """Return the energy of all domains in whole mJ -> ((idle, unattributed), that of each engine).

    The latter is int64[1 + 2n]: of other clients' requests, of the prefills and of the decodes of ours.
    """
    rest = [sum(domain.idle for domain in domains), sum(domain.unattributed for domain in domains)]
    by_engine = zip(*(domain.engines for domain in domains), strict=True)
    exact = [
        np.sum([np.concatenate(([own.foreign], own.prefill, own.decode)) for own in accounts], axis=0)
        for accounts in by_engine
    ]
    whole = round_to_sum(np.concatenate([rest, *exact]), sum(domain.measured_mj for domain in domains))
    return (int(whole[0]), int(whole[1])), np.split(whole[2:], len(exact))


def _run_attribution(
    domains: Sequence[_Domain],
    engine: int,
    idle_mj: int,
    of_engine_mj: Ints,
    records: Sequence[RequestRecord],
    start_ns: int,
    end_ns: int,
    sums: Mapping[str, Ints] | None,
) -> RunAttribution:
    """Return the accounts of one engine. of_engine_mj: as of `_whole_mj`."""
    accounts = [domain.engines[engine] for domain in domains]
    shares_mj = of_engine_mj[1:].reshape(2, len(records))
    rejected = [account.estimates.rejected for account in accounts if account.estimates.rejected is not None]
    return RunAttribution(
        method="shapley",
        start_ns=start_ns,
        end_ns=end_ns,
        measured_mj=idle_mj + int(of_engine_mj.sum()),
        idle_mj=idle_mj,
        attributed_mj=int(shares_mj.sum()),
        unattributed_mj=int(of_engine_mj[0]),
        requests=_request_energies(records, shares_mj, accounts),
        coefficients=[account.coefficients for account in accounts],
        fits=[account.quality for account in accounts],
        sums={name: _sum_errors(accounts, rows) for name, rows in (sums or {}).items()},
        rejected_joules=sum(joules for joules, _ in rejected) if rejected else None,
        rejected_se_joules=float(np.hypot.reduce([error for _, error in rejected])) if rejected else None,
    )


def _request_energies(
    records: Sequence[RequestRecord], shares_mj: Ints, accounts: Sequence[_Account]
) -> list[RequestEnergy]:
    """Return the joules of each request with their errors, over all domains. shares_mj: int64[2, n], prefill and
    decode."""
    variance = np.sum(
        [np.where(own.present, own.errors.of_requests()[: len(records)], 0.0) for own in accounts], axis=0
    )
    kinds_mj = kinds_of_whole(shares_mj[1], np.sum([account.kinds for account in accounts], axis=0))
    cache = cache_joules_of_run([account.estimates for account in accounts], len(records))
    columns = (*shares_mj.tolist(), *(kind.tolist() for kind in kinds_mj), np.sqrt(variance).tolist())
    estimates = zip(*([_rounded(value) for value in column.tolist()] for column in cache), strict=True)
    return [
        RequestEnergy(
            index=record.index,
            prefill_joules=j_from_mj(prefill),
            decode_joules=j_from_mj(decode),
            joules=j_from_mj(prefill + decode),
            reasoning_joules=None if record.kinds is None else j_from_mj(reasoning),
            tools_joules=None if record.kinds is None else j_from_mj(tools),
            se_joules=round(error, 6),
            saved_joules=saved,
            saved_se_joules=saved_error,
            recomputed_joules=again,
            recomputed_se_joules=again_error,
        )
        for record, prefill, decode, reasoning, tools, error, (saved, saved_error, again, again_error) in zip(
            records, *columns, estimates, strict=True
        )
    ]


def _rounded(joules: float) -> float | None:
    """Return joules to a microjoule; None for NaN, which is not known."""
    return None if math.isnan(joules) else round(joules, 6)


def _sum_errors(accounts: Sequence[_Account], rows: Ints) -> SumErrors:
    """Return the errors of the joules of these requests together, over all domains."""
    total, prefill, decode = _phase_errors(
        [account.errors for account in accounts], [rows[account.present[rows]] for account in accounts]
    )
    saved, again = cache_errors_of_sum([account.estimates for account in accounts], rows)
    return SumErrors(
        attributed_se_joules=total, prefill_se_joules=prefill, decode_se_joules=decode,
        saved_se_joules=saved, recomputed_se_joules=again,
    )  # fmt: skip


def _joint_errors(domains: Sequence[_Domain], rows: Ints) -> SumErrors:
    """Return the errors of the joules of these requests at all engines together, over all domains."""
    errors = [domain.engines[0].errors for domain in domains]  # those of the requests of all engines
    present = [np.any([own.present[rows] for own in domain.engines], axis=0) for domain in domains]
    total, prefill, decode = _phase_errors(errors, [rows[own] for own in present])
    return SumErrors(attributed_se_joules=total, prefill_se_joules=prefill, decode_se_joules=decode)


def _phase_errors(errors: Sequence[JoulesErrors], rows: Sequence[Ints]) -> tuple[float, float, float]:
    """Return the standard errors of the joules of these requests, of their prefills and of their decodes. rows: of each
    domain."""
    variances = [own.of_sum(of_domain) for own, of_domain in zip(errors, rows, strict=True)]
    total, prefill, decode = (
        float(np.sqrt(sum(variance[part] for variance in variances))) for part in ("all", "prefill", "decode")
    )
    return total, prefill, decode


@dataclass(frozen=True)
class _Account:
    """Energy of one engine in one domain over its requests. prefill, decode: float64[n], mJ. kinds: float64[n, 3],
    `decode` by KINDS. foreign: of other clients' requests, mJ. present: bool[n], the requests that are in its steps."""

    prefill: Floats
    decode: Floats
    kinds: Floats
    foreign: float
    present: Bools
    errors: JoulesErrors
    quality: FitQuality
    coefficients: Coefficients
    estimates: LawEstimates


@dataclass(frozen=True)
class _Domain:
    """Energy of one domain. idle, unattributed: mJ of no request, of which the latter may be of one."""

    measured_mj: int
    idle: float
    unattributed: float
    engines: list[_Account]


def _domains(
    series: Sequence[EnergySeries],
    records: Sequence[RequestRecord],
    start_ns: int,
    end_ns: int,
    shared: SharedSteps,
    reusable: Sequence[int | None] | None,
) -> list[_Domain]:
    """Return the accounts of each domain, over our requests and those of other clients."""
    everyone = [*records, *shared.foreign]
    known = len(everyone) - shared.inferred
    return [
        _shapley(domain, domain.clip(start_ns, end_ns), shared.steps, everyone, len(records), known, reusable)
        for domain in series
    ]


def _shapley(
    series: EnergySeries,
    clipped: EnergySeries,
    steps: EngineSteps,
    records: Sequence[RequestRecord],
    own: int,
    known: int,
    reusable: Sequence[int | None] | None,
) -> _Domain:
    """Fit the model on all of a domain's series and split the clipped part by it.

    The first `own` records are ours, the first `known` are not inferred; what the others used is unattributed. When
    nothing could be fitted, a step costs the domain's mean power over its duration, whatever is done in it.
    """
    steps, fit = fit_law(series, steps)
    idle_w = fit.coefficients.idle_w
    length_s = max(float(series.t_ns[-1] - series.t_ns[0]) / NS_PER_S, 1e-9)
    laws = [coefficients for coefficients, _ in fit.engines]
    shares = cost_shares_of_engines(steps, laws, fallback_w=series.total_mj / MJ_PER_J / length_s)
    foreign = foreign_features(steps, clipped.t_ns) @ fit.values
    foreign += beyond_law(clipped, steps, shares, idle_w, own)
    member_mj, idle, unattributed = split_energy(clipped, steps, shares, idle_w, foreign)
    member_j = np.divide(member_mj, MJ_PER_J, out=member_mj)  # a run has millions of members: no second array
    errors = joules_errors(fit, series, clipped, steps, shares, member_j, len(records), known)
    accounts = []
    for (engine, rows, _), (coefficients, columns) in zip(steps.members_of_engines, fit.engines, strict=True):
        model = errors.model.of_prices(columns)
        quality = fit_quality(fit, coefficients, model)
        estimates = law_estimates(engine, shares[rows], member_j[rows], coefficients, model, records[:own], reusable)
        accounts.append(_account(engine, member_j[rows], records, own, errors, quality, coefficients, estimates))
    return _Domain(clipped.total_mj, idle, unattributed, accounts)


def _account(
    steps: EngineSteps,
    member_j: Floats,
    records: Sequence[RequestRecord],
    own: int,
    errors: JoulesErrors,
    quality: FitQuality,
    coefficients: Coefficients,
    estimates: LawEstimates,
) -> _Account:
    """Sum the energy of one engine's members by request. member_j: float64[M]. own: as for `_shapley`."""
    requests, prefilling = len(records), steps.prefilling
    total = sum_by(steps.request, member_j, requests) * MJ_PER_J
    prefill = sum_by(steps.request[prefilling], member_j[prefilling], requests) * MJ_PER_J
    prefill = np.minimum(prefill, total)  # rounding makes no decode negative
    return _Account(
        prefill=prefill[:own],
        decode=(total - prefill)[:own],
        kinds=decode_by_kind(records, steps, member_j)[:own],
        foreign=float(total[own:].sum()),
        present=np.bincount(steps.request, minlength=requests)[:own] > 0,
        errors=errors,
        quality=quality,
        coefficients=coefficients,
        estimates=estimates,
    )


def split_energy(
    series: EnergySeries, steps: EngineSteps, shares: Floats, idle_w: float | None, foreign_j: Floats | None = None
) -> tuple[Floats, float, float]:
    """Split each window's measured energy by the cost shares in it -> (mJ per member, idle mJ, unattributed mJ).

    Member i gets sum_w E_w s_iw / (s_w + f_w + p u_w): E_w is the energy of window w, s_iw and s_w the cost shares of
    the member and of all members in it, f_w those of other clients, p the idle power and u_w the time that no step
    covers. What f_w takes is unattributed, what p u_w takes is idle, except while a request was in flight: then it is
    unattributed.

    shares: float64[M], joules under the model. foreign_j: float64[W], cost shares of other clients in each window. A
    window without cost shares is idle, but while a request was in flight only what the idle power explains beside it:
    whether that request used the rest cannot be told, so it is unattributed.
    """
    windows = len(series) - 1
    if windows < 1:
        return np.zeros(len(shares)), 0.0, 0.0
    energy_mj = np.diff(series.mj).astype(np.float64)
    step, window, overlap_share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    step_j = sum_by(steps.step, shares, steps.count)
    active_j = np.bincount(window, overlap_share * step_j[step], minlength=windows).astype(np.float64)
    if foreign_j is not None:
        active_j = active_j + foreign_j
    free_ns = free_time(steps, series.t_ns)
    idle_j = (idle_w or 0.0) * free_ns / NS_PER_S
    total_j = active_j + idle_j
    used = active_j > 0
    mj_per_share = np.divide(energy_mj, total_j, out=np.zeros(windows), where=used)
    per_step = np.bincount(step, overlap_share * mj_per_share[window], minlength=steps.count)
    member_mj = shares * per_step[steps.step]
    unseen_ns = np.minimum(unseen_time(steps, series.t_ns), free_ns)
    explained_mj = np.minimum((idle_w or 0.0) * (free_ns - unseen_ns) / NS_PER_S * MJ_PER_J, energy_mj)
    idle_share = 1 - np.divide(unseen_ns, free_ns, out=np.zeros(windows), where=free_ns > 0)
    alone_mj = np.where(unseen_ns > 0, explained_mj, energy_mj)
    idle_mj = float(np.where(used, idle_j * mj_per_share * idle_share, alone_mj).sum())
    return member_mj, idle_mj, float(energy_mj.sum() - idle_mj - member_mj.sum())


def beyond_law(series: EnergySeries, steps: EngineSteps, shares: Floats, idle_w: float | None, own: int) -> Floats:
    """Return float64[W], joules: what other clients cost in each window beyond their cost shares, or less than those.

    Where their work is guessed (`guessed_ns`), the law is trusted for the first `own` requests alone, and what the
    counter has beyond that is the others'. Elsewhere it is 0.
    """
    guessed = guessed_windows(steps, series.t_ns)
    if not guessed.any():  # most runs: no array of a run's members for nothing
        return np.zeros(len(guessed))
    step, window, overlap_share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    others = steps.request >= own
    sums = []
    for members in (~others, others):
        step_j = np.bincount(steps.step[members], shares[members], minlength=steps.count)
        sums.append(np.bincount(window, overlap_share * step_j[step], minlength=max(len(series) - 1, 0)))
    idle_j = (idle_w or 0.0) * free_time(steps, series.t_ns) / NS_PER_S
    rest_j = np.diff(series.mj) / MJ_PER_J - idle_j - sums[0] - sums[1]
    return np.where(guessed, np.maximum(rest_j, -sums[1]), 0.0)


def kinds_of_whole(decode_mj: Ints, kinds: Floats) -> tuple[Ints, Ints]:
    """Return the whole millijoules of reasoning and of calls of tools in `decode_mj`, in proportion to `kinds`."""
    total = kinds.sum(axis=1)
    scale = np.divide(decode_mj, total, out=np.zeros(len(total)), where=total > 0)
    reasoning, _, tools = (np.rint(column * scale).astype(np.int64) for column in kinds.T)
    return reasoning, np.minimum(tools, decode_mj - reasoning)


def round_to_sum(values: Floats, total: int) -> Ints:
    """Return whole numbers nearest to `values` that sum to `total`: the largest remainders are rounded up first."""
    floors = np.floor(values).astype(np.int64)
    missing = total - int(floors.sum())
    order = np.argsort(np.sign(missing) * (floors - values), kind="stable")
    np.add.at(floors, np.resize(order, abs(missing)), np.sign(missing))
    return floors


def _by_another_method(
    clipped: Sequence[EnergySeries], records: Sequence[RequestRecord], start_ns: int, end_ns: int, method: OtherMethod
) -> RunAttribution:
    """Build the accounts from the shares of one of the other methods: what they leave over is idle."""
    measured_mj = sum(domain.total_mj for domain in clipped)
    shares_mj = request_shares_mj(clipped, records, method)
    rounded_mj = np.rint(shares_mj).astype(np.int64)
    if method != "whole-gpu":
        idle = max(measured_mj - float(shares_mj.sum()), 0.0)
        rounded_mj = round_to_sum(np.append(shares_mj, idle), measured_mj)[:-1]
    attributed_mj = int(rounded_mj.sum())
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
            for record, share in zip(records, rounded_mj.tolist(), strict=True)
        ],
    )
