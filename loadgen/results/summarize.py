"""A run folder's records and samples -> attribution and summary. Pure: the same folder gives the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.engine_steps import engine_steps_of
from loadgen.attribution.shapley import RequestEnergy, RunAttribution, align_phase, attribute_energy
from loadgen.energy.series import EnergySeries, align_to_counter_clock, series_by_domain
from loadgen.record import RequestRecord
from loadgen.results import metrics, timekeeping
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import (
    ArrivalCheck,
    Distribution,
    EnergySummary,
    Goodput,
    Instrument,
    Rate,
    SteadyState,
    Summary,
    WorkloadSummary,
)
from loadgen.units import NS_PER_S, j_from_mj
from loadgen.workload.arrivals import index_of_dispersion, realized_arrivals
from loadgen.workload.schedule import ArrivalSpec

MIN_TIME_COVERAGE = 0.99
MIN_TOKEN_COVERAGE = 0.95
AVERAGED = ("nvml-power-average", "nvml-power-usage")
"""Energy sources that see a mean over 1 s (Ampere and later), so that neighbours' joules mix."""
MAX_CACHED = 0.02
"""Chat templates are the same in every prompt: this much may be cached without any prompt being known."""
POWER_CAP = "power cap"
"""Why clocks are low when a GPU works at its limit, as it may under load. All other reasons are a machine's faults."""
MAX_HELD_BACK = 0.01
MIN_WINDOWS = 20
"""Fewer moves of the counter than this, and one step of it is over 5 % of the run."""


def analyse_run(result: RunResult) -> RunResult:
    """The same run with its attribution and summary made anew."""
    start_ns, end_ns = span(result)
    series = outermost_series(result)
    attribution = None
    if series:
        work = engine_steps_of(result.records, result.engine)
        series = [align_phase(align_to_counter_clock(one), work) for one in series]
        attribution = attribute_energy(series, result.records, start_ns, end_ns, work=work)
    summary = summarize(result, attribution, series, start_ns, end_ns)
    return replace(result, attribution=attribution, summary=summary)


def span(result: RunResult) -> tuple[int, int]:
    """The run: from the first scheduled instant to the end of the last request."""
    starts = [record.scheduled_ns for record in result.records if record.sent_ns is not None]
    ends = [record.finished_ns for record in result.records if record.finished_ns is not None]
    start_ns = min(starts, default=result.info.start_ns or 0)
    return start_ns, max(ends, default=start_ns)


def outermost_series(result: RunResult) -> list[EnergySeries]:
    """The domains whose joules add up to the run's: those that lie within no other."""
    inner = {domain.name for domain in result.info.domains if domain.within is not None}
    found = series_by_domain(result.energy)
    return [series for name, series in sorted(found.items()) if name not in inner and len(series) > 1]


def summarize(
    result: RunResult, attribution: RunAttribution | None, series: Sequence[EnergySeries], start_ns: int, end_ns: int
) -> Summary:
    records, duration_s = result.records, (end_ns - start_ns) / NS_PER_S
    lag = metrics.distribution_s(record.lag_ns for record in records)
    latency = _latency(records)
    checks = {asked.workload: _arrivals(result, asked) for asked in result.info.asked}
    arrivals = checks.get(None) or _all_arrivals(result, checks)
    energy = _energy(result, attribution, series, start_ns, end_ns)
    return Summary(
        run_id=result.info.run_id,
        duration_s=duration_s,
        stopped_by=result.info.stopped_by,
        requests=metrics.request_counts(records),
        rate=_rate(result),
        arrivals=arrivals,
        schedule_lag_s=lag,
        **latency,
        tokens=metrics.token_counts(records, duration_s),
        lengths=metrics.length_check([(item.input_tokens, item.output_tokens) for item in result.schedule], records),
        goodput=_goodput(result.info.config, records, duration_s),
        energy=energy,
        by_workload=_by_workload(result, attribution, checks, duration_s),
        instrument=_instrument(result, lag, latency["itl_s"].p50, duration_s, arrivals),
    )


class Latency(TypedDict):
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    response_s: Distribution


class EnergyShare(TypedDict, total=False):
    attributed_joules: float
    prefill_joules: float
    decode_joules: float
    joules_per_request: Distribution
    joules_per_output_token: float | None
    joules_per_token: float | None


def _latency(records: Sequence[RequestRecord]) -> Latency:
    """Over completed requests only: a request that failed fast is not a fast request."""
    done = [record for record in records if record.ok]
    return {
        "ttft_s": metrics.distribution_s(record.ttft_ns for record in done),
        "tpot_s": metrics.distribution_s(record.tpot_ns for record in done),
        "itl_s": metrics.inter_token_s(done),
        "e2e_s": metrics.distribution_s(record.e2e_ns for record in done),
        "response_s": metrics.distribution_s(record.response_ns for record in done),
    }


def _rate(result: RunResult) -> Rate:
    """Achieved: gaps per second between the first and the last request sent."""
    sent = np.sort(
        np.array([record.sent_ns for record in result.records if record.sent_ns is not None], dtype=np.int64)
    )
    offsets_s = (sent - sent[0]) / NS_PER_S if len(sent) else np.zeros(0)
    spread_s = float(offsets_s[-1]) if len(sent) > 1 else 0.0
    return Rate(
        requested_rps=result.info.requested_rps,
        achieved_rps=(len(sent) - 1) / spread_s if spread_s > 0 else None,
        index_of_dispersion=index_of_dispersion(offsets_s, 1.0) if spread_s >= 10 else None,
    )


def _arrivals(result: RunResult, asked: ArrivalSpec) -> ArrivalCheck:
    """One stream's, against its process."""
    starts = [r for r in result.schedule if r.after is None and asked.workload in (None, r.workload)]
    scheduled = np.array([request.offset_ns for request in starts], dtype=np.int64) / NS_PER_S
    sent = _sent_s(result, {request.index for request in starts})
    law = (asked.process, asked.rate_rps, asked.burstiness, asked.shape)
    check = ArrivalCheck(
        of="sessions" if asked.sessions else "requests",
        process=asked.process,
        asked_rps=asked.rate_rps,
        scheduled=realized_arrivals(scheduled, *law),
        sent=realized_arrivals(sent, *law, planned=scheduled),
        as_asked=None,
        verdict="not judged: --max-concurrency closed the loop",
    )
    return check if result.info.config.get("max_concurrency") else _judged(check)


def _judged(check: ArrivalCheck) -> ArrivalCheck:
    for when, found in (("as scheduled", check.scheduled), ("as sent", check.sent)):
        if found.faults:
            verdict = f"not as asked, {when}: {'; '.join(found.faults)}"
            return msgspec.structs.replace(check, as_asked=False, verdict=verdict)
    if check.sent.rate is None:
        return msgspec.structs.replace(check, verdict=f"too few {check.of} to tell ({check.sent.count})")
    return msgspec.structs.replace(check, as_asked=True, verdict="as asked")


def _all_arrivals(result: RunResult, checks: Mapping[str | None, ArrivalCheck]) -> ArrivalCheck | None:
    """Several streams together: no process of its own, and as asked when each of them is."""
    if not checks:
        return None
    planned = np.array([request.offset_ns for request in result.schedule], dtype=np.int64) / NS_PER_S
    sent = _sent_s(result, {request.index for request in result.schedule})
    verdicts = [check.as_asked for check in checks.values()]
    return ArrivalCheck(
        of="requests",
        process=None,
        asked_rps=result.info.requested_rps,
        scheduled=realized_arrivals(planned, "several", None),
        sent=realized_arrivals(sent, "several", None),
        as_asked=False if False in verdicts else None if None in verdicts else True,
        verdict="; ".join(f"{name}: {check.verdict}" for name, check in checks.items()),
    )


def _sent_s(result: RunResult, indices: set[int]) -> NDArray[np.float64]:
    """From the run's start on, in order."""
    sent = [record.sent_ns for record in result.records if record.sent_ns is not None and record.index in indices]
    return np.sort((np.array(sent, dtype=np.int64) - (result.info.start_ns or 0)) / NS_PER_S)


def slo_of(config: dict[str, Any], workload: str) -> dict[str, float]:
    """The limits in ms for a workload: its stream's own, or the run's."""
    own: dict[str, float] = config.get("streams", {}).get(workload, {}).get("goodput") or {}
    return own or config.get("goodput") or {}


def _goodput(config: dict[str, Any], records: Sequence[RequestRecord], duration_s: float) -> Goodput | None:
    """Each request by the limits of its workload; those without any are left out."""
    groups: dict[str, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(record.workload, []).append(record)
    slos = {name: slo_of(config, name) for name in groups}
    counted = [metrics.goodput(group, slos[name], duration_s) for name, group in groups.items() if slos[name]]
    if not counted:
        return None
    good, scheduled = sum(one.good for one in counted), sum(len(groups[name]) for name in groups if slos[name])
    return Goodput(
        slo_ms=counted[0].slo_ms if all(slo == counted[0].slo_ms for slo in slos.values()) else {},
        good=good,
        ratio=good / scheduled,
        rps=good / duration_s if duration_s > 0 else None,
    )


def _by_workload(
    result: RunResult,
    attribution: RunAttribution | None,
    checks: Mapping[str | None, ArrivalCheck],
    duration_s: float,
) -> dict[str, WorkloadSummary]:
    shares = {share.index: share for share in attribution.requests} if attribution else {}
    groups: dict[str, list[RequestRecord]] = {}
    for record in result.records:
        groups.setdefault(record.workload, []).append(record)
    return {
        name: _workload(group, shares, checks.get(name), result.info.config, duration_s)
        for name, group in sorted(groups.items())
    }


def _workload(
    records: Sequence[RequestRecord],
    shares: dict[int, RequestEnergy],
    arrivals: ArrivalCheck | None,
    config: dict[str, Any],
    duration_s: float,
) -> WorkloadSummary:
    return WorkloadSummary(
        requests=metrics.request_counts(records),
        **_latency(records),
        tokens=metrics.token_counts(records, duration_s),
        goodput=_goodput(config, records, duration_s),
        arrivals=arrivals,
        **_energy_of(records, shares),
    )


def _energy_of(records: Sequence[RequestRecord], shares: dict[int, RequestEnergy]) -> EnergyShare:
    """The energy fields that a workload and the whole run have in common. Empty without an energy source."""
    if not shares:
        return {}
    mine = [shares[record.index] for record in records]
    joules = _sum(share.joules for share in mine)
    output = sum(record.output_tokens or 0 for record in records)
    every = output + sum(record.input_tokens or 0 for record in records)
    return {
        "attributed_joules": joules,
        "prefill_joules": _sum(share.prefill_joules for share in mine),
        "decode_joules": _sum(share.decode_joules for share in mine),
        "joules_per_request": metrics.distribution(
            share.joules for share, record in zip(mine, records, strict=True) if record.ok
        ),
        "joules_per_output_token": joules / output if output else None,
        "joules_per_token": joules / every if every else None,
    }


def _sum(joules: Iterable[float | None]) -> float:
    """Of whole millijoules, without drift."""
    return j_from_mj(sum(round(value * 1000) for value in joules if value is not None))


def _energy(
    result: RunResult, attribution: RunAttribution | None, series: Sequence[EnergySeries], start_ns: int, end_ns: int
) -> EnergySummary:
    if attribution is None:
        reasons = result.info.energy_reasons or ["no energy was measured"]
        return EnergySummary(valid=False, reasons=reasons)
    clipped = [one.clip(start_ns, end_ns) for one in series]
    duration_s = max(float(one.t_ns[-1] - one.t_ns[0]) / NS_PER_S for one in clipped)
    in_time = min(_time_coverage(one, start_ns, end_ns) for one in clipped)
    in_tokens = token_coverage(result)
    shares = {share.index: share for share in attribution.requests}
    idle = [found.idle_w for found in attribution.coefficients]
    idle_w = sum(watts for watts in idle if watts is not None) if idle and None not in idle else None
    reasons = list(_energy_reasons(clipped, in_time, in_tokens, idle_w))
    if averaged := sorted({domain.source for domain in result.info.domains if domain.source in AVERAGED}):
        reasons.append(f"the source ({', '.join(averaged)}) is power averaged over 1 s: too slow for single requests")
    reasons += _held_back(result)
    return EnergySummary(
        valid=not reasons,
        reasons=reasons,
        source=", ".join(sorted({domain.source for domain in result.info.domains})) or None,
        method=attribution.method,
        duration_s=duration_s,
        measured_joules=j_from_mj(attribution.measured_mj),
        measured_se_joules=_measured_se(clipped),
        attributed_se_joules=_attributed_se(attribution, _measured_se(clipped)),
        steady=_steady(result.records, series, start_ns),
        idle_joules=j_from_mj(attribution.idle_mj),
        unattributed_joules=j_from_mj(attribution.unattributed_mj),
        coverage=in_time * (1.0 if in_tokens is None else min(in_tokens, 1.0)),
        mean_watts=j_from_mj(attribution.measured_mj) / duration_s if duration_s > 0 else None,
        idle_watts=idle_w,
        coefficients=msgspec.to_builtins(attribution.coefficients[0]) if len(attribution.coefficients) == 1 else None,
        **_energy_of(result.records, shares),
    )


def _measured_se(clipped: Sequence[EnergySeries]) -> float:
    """Power at both ends of each series, times when its first and last move may have been: uniform in their slack."""
    variance = 0.0
    for one in clipped:
        watts = np.diff(one.mj)[[0, -1]] / 1000 / (np.diff(one.t_ns)[[0, -1]] / NS_PER_S)
        slack_s = np.zeros(2) if one.slack_ns is None else one.slack_ns[[0, -1]] / NS_PER_S
        variance += float(((watts * slack_s) ** 2 / 3).sum())
    return float(np.sqrt(variance))


def _attributed_se(attribution: RunAttribution, measured_se: float) -> float | None:
    """With the idle power's error, over the time that the idle account stands for."""
    parts = [(found.idle_w, found.idle_se_w) for found in attribution.coefficients]
    if len(parts) != 1 or parts[0][0] is None or parts[0][1] is None:
        return None
    idle_w, idle_se_w = parts[0]
    assert idle_w is not None
    assert idle_se_w is not None
    idle_se = idle_se_w * j_from_mj(attribution.idle_mj) / idle_w if idle_w > 0 else 0.0
    return float(np.hypot(measured_se, idle_se))


def _steady(records: Sequence[RequestRecord], series: Sequence[EnergySeries], start_ns: int) -> SteadyState | None:
    done = [record for record in records if record.first_token_ns is not None and record.finished_ns is not None]
    firsts = np.sort(np.array([record.first_token_ns for record in done], dtype=np.int64))
    ends = np.sort(np.array([record.finished_ns for record in done], dtype=np.int64))
    sent = np.sort(np.array([record.sent_ns for record in done], dtype=np.int64))
    if not len(done):
        return None
    most = int(np.max(np.arange(1, len(sent) + 1) - np.searchsorted(ends, sent)))
    if len(done) <= 2 * most:
        return None
    begin, end = int(firsts[most - 1]), int(ends[len(done) - most - 1])
    joules = [one.energy_mj(begin, end) for one in series]
    if end <= begin or None in joules:
        return None
    inside = sum(_tokens_in(record, begin, end) for record in done)
    total = sum(value or 0.0 for value in joules) / 1000
    return SteadyState(
        start_s=(begin - start_ns) / NS_PER_S,
        end_s=(end - start_ns) / NS_PER_S,
        joules=total,
        output_tokens=round(inside),
        joules_per_output_token=total / inside if inside else None,
    )


def _tokens_in(record: RequestRecord, begin_ns: int, end_ns: int) -> float:
    """Output tokens that came in [begin, end): the chunks' share of the request's tokens."""
    first, last = np.searchsorted(record.chunk_ns, [begin_ns, end_ns])
    return float(last - first) / len(record.chunk_ns) * (record.output_tokens or 0)


def _time_coverage(series: EnergySeries, start_ns: int, end_ns: int) -> float:
    """Share of [start, end] whose energy the series knows."""
    seen = min(int(series.t_ns[-1]), end_ns) - max(int(series.t_ns[0]), start_ns) - series.unknown_ns
    return max(0.0, seen / (end_ns - start_ns)) if end_ns > start_ns else 0.0


def token_coverage(result: RunResult) -> float | None:
    """Our output tokens / the engine's, while we ran; None when the engine does not say."""
    values = [sample["generation_tokens"] for sample in result.engine if "generation_tokens" in sample]
    if len(values) < 2 or values[-1] <= values[0]:
        return None
    ours = sum(record.output_tokens or 0 for record in result.records)
    return ours / float(values[-1] - values[0])


def _energy_reasons(
    clipped: Sequence[EnergySeries], in_time: float, in_tokens: float | None, idle_w: float | None
) -> Iterable[str]:
    if in_time < MIN_TIME_COVERAGE:
        yield f"the energy source covers {in_time:.1%} of the run's time"
    if in_tokens is not None and in_tokens < MIN_TOKEN_COVERAGE:
        yield f"only {in_tokens:.1%} of the engine's output tokens were ours: its energy is shared with other clients"
    if min(len(one) for one in clipped) < MIN_WINDOWS:
        yield f"the run is shorter than {MIN_WINDOWS} moves of the energy counter"
    if idle_w is None:
        yield "the server was never idle: idle power is unknown and is in the requests' joules"


def _held_back(result: RunResult) -> Iterable[str]:
    """A GPU whose clocks were held down by heat or by a fault is not the GPU that others have."""
    looked = (result.info.instrument.get("sampler") or {}).get("held_back") or {}
    for domain, shares in sorted(looked.items()):
        for why, share in sorted(shares.items()):
            if why != POWER_CAP and share > MAX_HELD_BACK:
                yield f"{domain} was throttled: {why} in {share:.0%} of the looks at its clocks"


def _cached_share(result: RunResult) -> float:
    """Cached / all prompt tokens; 0 when the trace asks for shared prefixes, or nobody says."""
    if any(request.prefix_ids or request.text_tokens for request in result.schedule):
        return 0.0
    prompt = sum(record.input_tokens or 0 for record in result.records)
    return sum(record.cached_tokens or 0 for record in result.records) / prompt if prompt else 0.0


def _instrument(
    result: RunResult, lag: Distribution, itl_s: float | None, duration_s: float, arrivals: ArrivalCheck | None
) -> Instrument:
    own = result.info.instrument
    delay = own.get("loop_delay_s")
    loop_delay = msgspec.convert({"count": 0} | delay, Distribution) if delay else None
    processes = own.get("processes") or []
    waited_s = own.get("waited_s")
    waited = waited_s / duration_s if waited_s is not None and duration_s > 0 else None
    late = {"lag": lag, "loop_delay": timekeeping.loop_delay_that_tells(loop_delay, own.get("stamped_by"), itl_s)}
    verdicts = timekeeping.faults(processes, waited, **late)
    if arrivals and arrivals.as_asked is False:
        verdicts.append(f"requests did not come as they should: {arrivals.verdict}")
    if (cached := _cached_share(result)) > MAX_CACHED:
        verdicts.append(
            f"{cached:.0%} of the prompt tokens came from the server's prefix cache, though no prompt shares a prefix: "
            "an earlier run with this --seed filled it; use another"
        )
    if result.info.config.get("max_concurrency"):
        verdicts.append("--max-concurrency closed the loop: the server's slowness delayed later requests")
    return Instrument(
        kept_time=timekeeping.kept_time(processes, **late),
        loop_delay_s=loop_delay,
        waited_s=waited_s,
        stamped_by=own.get("stamped_by"),
        compiled=own.get("compiled"),
        cpu_s=own.get("cpu_s"),
        max_rss_bytes=own.get("max_rss_bytes"),
        sampler_period_s=own.get("sampler_period_s"),
        verdicts=verdicts,
    )
