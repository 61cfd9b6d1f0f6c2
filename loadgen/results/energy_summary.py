"""The energy of a run in numbers: totals with their errors, the steady state, and the reasons not to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import msgspec
import numpy as np

from loadgen.attribution.fit_quality import held_out_r_squared
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.meter import LEFT_OUT
from loadgen.energy.series import EnergySeries, accelerators
from loadgen.results import metrics
from loadgen.results.fit_notes import explains_nothing, fit_notes
from loadgen.results.summary import CacheEnergy, Distribution, EnergySummary, SteadyState
from loadgen.telemetry.engine_sample import counter_values
from loadgen.units import MJ_PER_J, NS_PER_S, energy_imbalance_mj, j_from_mj, mj_from_j

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy, RunAttribution, SumErrors
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult

MIN_TIME_COVERAGE = 0.99
_MIN_TOKEN_COVERAGE = 0.95
_AVERAGED_SOURCES = {
    "nvml-power-average": "1 s",
    "nvml-power-usage": "1 s",
    "hwmon-power-average": "more than 0.1 s, or a time that is not known",
    "redfish-power": "up to minutes",
}
"""Energy sources that report a mean over a longer time, and that time: it mixes the joules of neighbouring requests.
NVML's is 1 s on Ampere and later."""
_POWER_CAP = "power cap"
"""Reason for low clocks when a GPU works at its limit, as it may under load. All other reasons are faults."""
_MAX_THROTTLED = 0.01
_MIN_UPDATES = 20
"""Least updates of the counter in a run: with fewer, one step of it is over 5 % of the run."""


class EnergyShares(TypedDict, total=False):
    """The energy fields that a workload and the whole run have in common."""

    attributed_joules: float
    prefill_joules: float
    decode_joules: float
    joules_per_request: Distribution
    joules_per_output_token: float | None
    joules_per_token: float | None
    attributed_se_joules: float | None
    prefill_se_joules: float | None
    decode_se_joules: float | None
    cache: CacheEnergy | None


def outermost_series(result: RunResult) -> list[EnergySeries]:
    """Return the series whose joules add up to the run's: the GPUs', or without a GPU those of the domains that lie
    within no other."""
    outer = {domain.name for domain in accelerators(result.info.domains)}
    return [series for name, series in sorted(result.series.items()) if name in outer and len(series) > 1]


def aligned_series(result: RunResult) -> list[EnergySeries]:
    """Return these series with their updates at the ticks of the counters' own clocks, where those have one."""
    return [align_to_counter_clock(series) for series in outermost_series(result)]


def energy_shares(
    records: Sequence[RequestRecord],
    shares: Mapping[int, RequestEnergy],
    errors: SumErrors | None = None,
    *,
    prompts_counted: bool = True,
) -> EnergyShares:
    """Sum the energy of `records`; `shares` are by request index. Empty without an energy source.

    errors: of these sums; None for methods without phases. prompts_counted: False when the server's counts of prompts
    are none; joules per token are then unknown.
    """
    if not shares:
        return {}
    energies = [shares[record.index] for record in records]
    attributed = [
        (energy.joules, record) for energy, record in zip(energies, records, strict=True) if energy.joules is not None
    ]
    joules = sum_joules(spent for spent, _ in attributed) or 0.0
    output_tokens = sum(record.output_tokens or 0 for _, record in attributed)
    prompts_known = prompts_counted and all(
        record.input_tokens is not None for record in records if record.ok or record.output_tokens is not None
    )
    tokens = output_tokens + sum(record.input_tokens or 0 for _, record in attributed)
    return {
        "attributed_joules": j_from_mj(sum(energy.known_mj for energy in energies)),
        "prefill_joules": sum_joules(energy.prefill_joules for energy in energies) or 0.0,
        "decode_joules": sum_joules(energy.decode_joules for energy in energies) or 0.0,
        "joules_per_request": metrics.distribution(spent for spent, record in attributed if record.ok),
        "joules_per_output_token": joules / output_tokens if output_tokens else None,
        "joules_per_token": joules / tokens if tokens and prompts_known else None,
        "attributed_se_joules": round(errors.attributed_se_joules, 6) if errors else None,
        "prefill_se_joules": round(errors.prefill_se_joules, 6) if errors else None,
        "decode_se_joules": round(errors.decode_se_joules, 6) if errors else None,
        "cache": cache_energy(energies, errors),
    }


def cache_energy(energies: Sequence[RequestEnergy], errors: SumErrors | None) -> CacheEnergy | None:
    """Return the energy that the prefix cache saved these requests together; None where it is known for none of them.

    errors: of these sums.
    """
    saved = metrics.sum_known(energy.saved_joules for energy in energies)
    again = metrics.sum_known(energy.recomputed_joules for energy in energies)
    if saved is None and again is None:
        return None
    return CacheEnergy(
        saved_joules=_rounded(saved),
        saved_se_joules=_rounded(errors.saved_se_joules) if errors else None,
        recomputed_joules=_rounded(again),
        recomputed_se_joules=_rounded(errors.recomputed_se_joules) if errors else None,
    )


def _rounded(joules: float | None) -> float | None:
    return None if joules is None else round(joules, 6)


def sum_joules(joules: Iterable[float | None]) -> float | None:
    """Sum the known values as whole millijoules; None when none is known."""
    total_mj = metrics.sum_known(None if value is None else mj_from_j(value) for value in joules)
    return None if total_mj is None else j_from_mj(total_mj)


def summarize_energy(
    result: RunResult,
    attribution: RunAttribution | None,
    series: Sequence[EnergySeries],
    start_ns: int,
    end_ns: int,
    *,
    prompts_counted: bool,
) -> EnergySummary:
    """Return the energy of the run between two instants; `series` are those that were attributed."""
    if attribution is None:
        reasons = result.info.energy_reasons or ["no energy was measured"]
        return EnergySummary(valid=False, reasons=reasons)
    clipped = [whole.clip(start_ns, end_ns) for whole in series]
    duration_s = max(float(domain.t_ns[-1] - domain.t_ns[0]) / NS_PER_S for domain in clipped)
    if duration_s <= 0:
        return EnergySummary(valid=False, reasons=["the energy source was not read while requests ran"])
    least = min(clipped, key=lambda domain: time_coverage(domain, start_ns, end_ns))
    in_time = time_coverage(least, start_ns, end_ns)
    in_tokens = token_coverage(result)
    updates, idle_w = min(len(domain) for domain in clipped), attribution.idle_w
    reasons = list(invalid_reasons(result, updates, in_time, in_tokens, idle_w, domain=least.domain))
    reasons += few_placed(result, attribution)
    held_out, at_limit = held_out_r_squared(attribution.fits), at_limit_share(clipped)
    capped = at_power_limit(result) if at_limit is None else at_limit
    totals_valid = not reasons
    if held_out is not None and held_out < 0:
        reasons.append(explains_nothing(held_out, capped, attribution.fits))
    measured_se = measured_se_joules(clipped)
    of_requests = {share.index: share for share in attribution.requests}
    shares = energy_shares(result.records, of_requests, attribution.sums.get("all"), prompts_counted=prompts_counted)
    shares["attributed_se_joules"] = attributed_se_joules(attribution, measured_se)
    return EnergySummary(
        valid=not reasons,
        totals_valid=totals_valid,
        reasons=reasons,
        source=", ".join(sorted({domain.source for domain in accelerators(result.info.domains)})) or None,
        method=attribution.method,
        came_whole=sum(record.came_whole for record in result.records),
        duration_s=duration_s,
        measured_joules=j_from_mj(attribution.measured_mj),
        measured_se_joules=measured_se,
        steady=steady_state(result.records, series, start_ns),
        idle_joules=j_from_mj(attribution.idle_mj),
        unattributed_joules=j_from_mj(attribution.unattributed_mj),
        coverage=in_time * (1.0 if in_tokens is None else min(in_tokens, 1.0)),
        mean_watts=j_from_mj(attribution.measured_mj) / duration_s,
        idle_watts=idle_w,
        capped_share=capped_share(clipped),
        at_limit_share=at_limit,
        coefficients=msgspec.to_builtins(attribution.coefficients[0]) if len(attribution.coefficients) == 1 else None,
        coefficients_se=attribution.fits[0].se if len(attribution.fits) == 1 else None,
        held_out_r_squared=held_out,
        fit_notes=fit_notes(held_out, capped, attribution.fits),
        **shares,
    )


def accounts_mj(attribution: RunAttribution) -> dict[str, int]:
    """Return account -> whole millijoules; prefill and decode are summed over the requests, not taken from a total."""
    return {
        "prefill": sum(mj_from_j(request.prefill_joules or 0.0) for request in attribution.requests),
        "decode": sum(mj_from_j(request.decode_joules or 0.0) for request in attribution.requests),
        "idle": attribution.idle_mj,
        "unattributed": attribution.unattributed_mj,
    }


def imbalance_mj(attribution: RunAttribution | None) -> int:
    """Return measured minus the sum of the accounts; anything but 0 is a bug. 0 when nothing was attributed."""
    if attribution is None:
        return 0
    accounts = accounts_mj(attribution)
    attributed_mj = accounts["prefill"] + accounts["decode"]
    return energy_imbalance_mj(attribution.measured_mj, attributed_mj, accounts["idle"], accounts["unattributed"])


def time_coverage(series: EnergySeries, start_ns: int, end_ns: int) -> float:
    """Return the share of [start, end] whose energy the series knows."""
    known_ns = min(int(series.t_ns[-1]), end_ns) - max(int(series.t_ns[0]), start_ns) - series.unknown_ns
    return max(0.0, known_ns / (end_ns - start_ns)) if end_ns > start_ns else 0.0


def token_coverage(result: RunResult) -> float | None:
    """Return this client's output tokens / the engine's, during the run; None when the engine does not report any."""
    values = counter_values(result.engine, "generation_tokens")
    if values is None or values[-1] <= values[0]:
        return None
    return sum(record.output_tokens or 0 for record in result.records) / float(values[-1] - values[0])


def invalid_reasons(
    result: RunResult,
    updates: int,
    in_time: float,
    in_tokens: float | None,
    idle_w: float | None,
    *,
    domain: str | None = None,
) -> Iterator[str]:
    """Yield the reasons why the energy supports no claim.

    updates: of the counter that was updated least often. in_time, in_tokens: shares of the run's time and of the
    engine's output tokens that are covered; None when the engine does not report its tokens. domain: the one with the
    least of the time.
    """
    for note in result.info.energy_notes:
        if LEFT_OUT in note:
            yield f"{note}; its joules are in no total (--gpu names the GPUs that the server uses)"
    samples = Counter(sample.domain for sample in result.energy)
    if silent := [domain.name for domain in accelerators(result.info.domains) if samples[domain.name] < 2]:
        yield f"{', '.join(silent)} gave no energy"
    if in_time < MIN_TIME_COVERAGE:
        of_engine = f" of {domain}" if domain and result.info.engines else ""
        yield f"the energy source{of_engine} covers {in_time:.1%} of the run's time"
    if in_tokens is not None and in_tokens < _MIN_TOKEN_COVERAGE:
        # A request in flight without an instant of sending lost its record, and the tokens may be its own.
        is_killed = any(record.error == "cancelled" and record.sent_ns is None for record in result.records)
        why = (
            "are recorded: the run was killed before its end"
            if is_killed
            else "were ours: its energy is shared with other clients"
        )
        yield f"only {in_tokens:.1%} of the engine's output tokens {why}"
    if updates < _MIN_UPDATES:
        yield f"the run is shorter than {_MIN_UPDATES} moves of the energy counter"
    if idle_w is None:
        yield "the server was never idle: idle power is unknown and is in the requests' joules"
    sources = {domain.source for domain in accelerators(result.info.domains)}
    if averaged := sorted(sources.intersection(_AVERAGED_SOURCES)):
        length = ", ".join(sorted({_AVERAGED_SOURCES[source] for source in averaged}))
        yield f"the source ({', '.join(averaged)}) is power averaged over {length}: too slow for single requests"
    # A GPU whose clocks were held down by heat or by a fault is not the GPU that others have.
    throttled = (result.info.instrument.get("sampler") or {}).get("held_back") or {}
    for domain, shares in sorted(throttled.items()):
        for cause, share in sorted(shares.items()):
            if cause != _POWER_CAP and share > _MAX_THROTTLED:
                yield f"{domain} was throttled: {cause} in {share:.0%} of the readings of its clocks"


def few_placed(result: RunResult, attribution: RunAttribution) -> list[str]:
    """Return the reason why the energy supports no claim, where it is not known of too many answers which of several
    engines they are of."""
    answered = [share.engine for share, record in zip(attribution.requests, result.records, strict=True) if record.ok]
    unplaced = answered.count(None)
    if not result.info.engines or unplaced <= (1 - _MIN_TOKEN_COVERAGE) * len(answered):
        return []
    return [f"nothing says which engine served {unplaced:,} of {len(answered):,} requests"]


def at_power_limit(result: RunResult) -> float:
    """Return the largest share of the readings of a GPU's clocks in which its power was at the limit."""
    throttled = (result.info.instrument.get("sampler") or {}).get("held_back") or {}
    return max((shares.get(_POWER_CAP, 0.0) for shares in throttled.values()), default=0.0)


def capped_share(clipped: Sequence[EnergySeries]) -> float | None:
    """Return the share of the time, over all GPUs that count it, in which the power limit held the clocks down."""
    counted = [(series.capped_ns, series.t_ns) for series in clipped if series.capped_ns is not None]
    total_ns = sum(int(t_ns[-1] - t_ns[0]) for _, t_ns in counted)
    held_ns = sum(int(np.maximum(np.diff(capped_ns), 0).sum()) for capped_ns, _ in counted)
    return min(held_ns / total_ns, 1.0) if total_ns > 0 else None


def at_limit_share(clipped: Sequence[EnergySeries]) -> float | None:
    """Return the share of the time, over all GPUs where it is known, in windows at the power limit."""
    known = [(series.at_limit, np.diff(series.t_ns)) for series in clipped if series.at_limit is not None]
    total_ns = sum(int(length_ns.sum()) for _, length_ns in known)
    return sum(int(length_ns[held].sum()) for held, length_ns in known) / total_ns if total_ns > 0 else None


def measured_se_joules(clipped: Sequence[EnergySeries]) -> float | None:
    """Return the standard error of the measured joules; None when a series has no two updates to measure between.

    It is the power at both ends of each series times the uncertainty of the instants of its first and last update,
    which are uniform within their timestamp uncertainty u: variance (P u)^2 / 3.
    """
    if any(len(series) < 2 for series in clipped):
        return None
    variance = 0.0
    for series in clipped:
        watts = np.diff(series.mj)[[0, -1]] / MJ_PER_J / (np.diff(series.t_ns)[[0, -1]] / NS_PER_S)
        uncertainty_s = np.zeros(2) if series.slack_ns is None else series.slack_ns[[0, -1]] / NS_PER_S
        variance += float(((watts * uncertainty_s) ** 2 / 3).sum())
    return float(np.sqrt(variance))


def attributed_se_joules(attribution: RunAttribution, measured_se: float | None) -> float | None:
    """Return the standard error of the attributed joules: with the idle power's error, over the time at idle power.

    None when there are several fits, or when the idle power, its error or that of the measured joules is unknown.
    """
    if len(attribution.coefficients) != 1:
        return None
    idle_w, idle_se_w = attribution.coefficients[0].idle_w, attribution.coefficients[0].idle_se_w
    if idle_w is None or idle_se_w is None or measured_se is None:
        return None
    idle_se = idle_se_w * j_from_mj(attribution.idle_mj) / idle_w if idle_w > 0 else 0.0
    return float(np.hypot(measured_se, idle_se))


def steady_state(records: Sequence[RequestRecord], series: Sequence[EnergySeries], start_ns: int) -> SteadyState | None:
    """Return the run without its ramp and drain (see SteadyState); None when it is too short to have one."""
    answered = [record for record in records if record.first_token_ns is not None and record.finished_ns is not None]
    if not answered:
        return None
    first_tokens = np.sort(np.array([record.first_token_ns for record in answered], dtype=np.int64))
    ends = np.sort(np.array([record.finished_ns for record in answered], dtype=np.int64))
    sent = np.sort(np.array([record.sent_ns for record in answered], dtype=np.int64))
    peak = int(np.max(np.arange(1, len(sent) + 1) - np.searchsorted(ends, sent)))
    if len(answered) <= 2 * peak:
        return None
    begin_ns, end_ns = int(first_tokens[peak - 1]), int(ends[len(answered) - peak - 1])
    energies_mj = [domain.energy_mj(begin_ns, end_ns) for domain in series]
    if end_ns <= begin_ns or None in energies_mj:
        return None
    # A request's tokens are spread evenly over its chunks; those of chunks in [begin, end) count.
    bounds = [np.searchsorted(record.chunk_ns, [begin_ns, end_ns]) for record in answered]
    tokens = sum(
        float(end - begin) / len(record.chunk_ns) * (record.output_tokens or 0)
        for record, (begin, end) in zip(answered, bounds, strict=True)
    )
    joules = sum(energy or 0.0 for energy in energies_mj) / MJ_PER_J
    return SteadyState(
        start_s=(begin_ns - start_ns) / NS_PER_S,
        end_s=(end_ns - start_ns) / NS_PER_S,
        joules=joules,
        output_tokens=round(tokens),
        joules_per_output_token=joules / tokens if tokens else None,
    )
