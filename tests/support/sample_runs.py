"""Synthetic, seeded, realistic runs: what the views are tested on and looked at with."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from loadgen.attribution.shapley import RequestEnergy, RunAttribution
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.results.checks import judge
from loadgen.results.metrics import PERCENTILES
from loadgen.results.run_folder import RunInfo, RunResult
from loadgen.results.summary import (
    Distribution,
    EnergySummary,
    Goodput,
    Instrument,
    Latency,
    LengthCheck,
    Rate,
    RequestCounts,
    Summary,
    TokenCounts,
    WorkloadSummary,
)
from loadgen.workload.schedule import ScheduledRequest

START_NS = 5_000_000_000_000
FAILURES = (
    ("http", 503, "503 Service Unavailable: <html><script>alert(1)</script> overloaded"),
    ("timeout", None, "no complete answer after 60 s"),
    ("truncated", 200, "stream ended after 41 chunks, no finish_reason"),
    ("server", 200, 'error event: {"message": "CUDA out of memory", "type": "internal"}'),
    ("connect", None, "connection refused by 127.0.0.1:8000"),
)


def run(num_requests: int = 400, rps: float = 4.0, seed: int = 7, failing: float = 0.03) -> RunResult:
    """Chat and code, 3 to 1, Poisson; a 100 ms counter; energy shared by work."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum(rng.exponential(1e9 / rps, num_requests)).astype(np.int64)
    code = rng.random(num_requests) < 0.25
    inputs = np.clip(rng.lognormal(np.where(code, 7.4, 6.6), np.where(code, 0.8, 1.0)), 4, 8000).astype(int)
    outputs = np.clip(rng.lognormal(np.where(code, 3.0, 5.1), np.where(code, 0.8, 0.7)), 1, 1500).astype(int)
    schedule = [
        ScheduledRequest(
            index=i,
            offset_ns=int(offsets[i]),
            workload="code" if code[i] else "chat",
            input_tokens=int(inputs[i]),
            output_tokens=int(outputs[i]),
        )
        for i in range(num_requests)
    ]
    records = [_record(request, rng, rng.random() < failing) for request in schedule]
    end_ns = max([r.finished_ns or 0 for r in records] + [START_NS + 1_000_000_000])
    energy = _energy(records, end_ns, rng)
    info = _info(end_ns)
    attribution = _attribution(records, energy, end_ns, rng)
    return with_summary(RunResult(info, schedule, records, energy, [], attribution, None), rps)


def without_energy() -> RunResult:
    """No meter was found."""
    reasons = ["nvml: libnvidia-ml.so.1 was not found", "rapl: /sys/class/powercap cannot be read: permission denied"]
    made = run()
    info = msgspec.structs.replace(made.info, domains=[], energy_reasons=reasons)
    return with_summary(replace(made, info=info, energy=[], attribution=None), 4.0)


def without_completions() -> RunResult:
    """Every request was refused."""
    made = run(num_requests=20)
    records = [
        msgspec.structs.replace(
            r,
            first_token_ns=None,
            last_token_ns=None,
            chunk_ns=[],
            input_tokens=None,
            output_tokens=None,
            error="connect",
            detail="refused",
        )
        for r in made.records
    ]
    assert made.attribution is not None
    whole = made.attribution
    idle = msgspec.structs.replace(whole, idle_mj=whole.measured_mj, attributed_mj=0, unattributed_mj=0, requests=[])
    return with_summary(replace(made, records=records, attribution=idle), 4.0)


def single() -> RunResult:
    return run(num_requests=1, failing=0)


def held_up(made: RunResult, indices: range, by_ns: int = 5_000_000_000) -> RunResult:
    """Return the run with the first tokens of these requests later."""
    records = [
        msgspec.structs.replace(record, first_token_ns=(record.first_token_ns or 0) + by_ns)
        if record.index in indices and record.ok
        else record
        for record in made.records
    ]
    return replace(made, records=records)


def _record(request: ScheduledRequest, rng: np.random.Generator, fails: bool) -> RequestRecord:
    scheduled = START_NS + request.offset_ns
    sent = scheduled + int(rng.lognormal(-1.5, 0.6) * 1e6)
    ttft = int((0.02 + request.input_tokens / 40_000) * rng.lognormal(0, 0.25) * 1e9)
    tpot = int(0.012 * rng.lognormal(0, 0.2) * 1e9)
    base = {"index": request.index, "workload": request.workload, "scheduled_ns": scheduled, "sent_ns": sent}
    if fails:
        kind, status, detail = FAILURES[int(rng.integers(len(FAILURES)))]
        finished = sent + int(rng.exponential(0.5) * 1e9)
        return RequestRecord(**base, finished_ns=finished, status=status, error=kind, detail=detail)
    chunks = [sent + ttft + k * tpot for k in range(request.output_tokens)]
    return RequestRecord(
        **base,
        first_token_ns=chunks[0],
        last_token_ns=chunks[-1],
        finished_ns=chunks[-1] + 900_000,
        chunk_ns=chunks,
        input_tokens=request.input_tokens + int(rng.integers(0, 2)),
        output_tokens=request.output_tokens,
        token_source="usage",
        status=200,
        finish_reason="length",
    )


def _energy(records: list[RequestRecord], end_ns: int, rng: np.random.Generator) -> list[EnergySample]:
    """Idle 127 W, and more with every request in flight; one point every 100 ms, quantised to a millijoule."""
    t = np.arange(START_NS - 300_000_000, end_ns + 400_000_000, 100_000_000)
    sent = np.sort([r.sent_ns or 0 for r in records])
    done = np.sort([r.finished_ns or end_ns for r in records])
    flying = np.searchsorted(sent, t) - np.searchsorted(done, t)
    watts = (127 + 420 * (1 - np.exp(-flying / 3))) * rng.normal(1, 0.02, len(t))
    joules = np.round(8_000 + np.cumsum(watts * 0.1), 3)
    return [EnergySample(int(at), "gpu:0", float(j)) for at, j in zip(t, joules, strict=True)]


def _attribution(
    records: list[RequestRecord], energy: list[EnergySample], end_ns: int, rng: np.random.Generator
) -> RunAttribution:
    inside = [s for s in energy if START_NS - 100_000_000 <= s.t_ns <= end_ns + 100_000_000]
    measured = round(inside[-1].joules * 1000) - round(inside[0].joules * 1000)
    idle, unattributed = round(measured * 0.19), round(measured * 0.004)
    done = [r for r in records if r.ok]
    work = np.array([[0.004 * (r.input_tokens or 0), 0.12 * (r.output_tokens or 0)] for r in done]).reshape(-1, 2)
    work *= rng.lognormal(0, 0.25, (len(done), 1))
    parts = np.floor(work / max(work.sum(), 1e-9) * (measured - idle - unattributed)).astype(int)
    attributed = int(parts.sum())
    return RunAttribution(
        method="shapley",
        start_ns=inside[0].t_ns,
        end_ns=inside[-1].t_ns,
        measured_mj=measured,
        idle_mj=idle,
        attributed_mj=attributed,
        unattributed_mj=measured - idle - attributed,
        requests=[
            RequestEnergy(
                index=r.index,
                prefill_joules=int(p) / 1000,
                decode_joules=int(d) / 1000,
                joules=(int(p) + int(d)) / 1000,
            )
            for r, (p, d) in zip(done, parts, strict=True)
        ],
    )


def _info(end_ns: int) -> RunInfo:
    return RunInfo(
        run_id="20260314-150926-chat",
        loadgen_version="0.1.0",
        config={"trace": "traces/mixed.jsonl", "rps": 4.0, "arrival": "trace", "timeout": 60.0, "header": []},
        seed=7,
        requested_rps=4.0,
        schedule_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        anchor=Anchor(1_773_500_966_000_000_000, START_NS - 2_000_000_000),
        host={"hostname": "bench-1", "cpu": "AMD EPYC 9654", "gpus": ["NVIDIA H200"], "kernel": "6.8.0"},
        versions={"python": "3.12.4", "aiohttp": "3.11.2", "numpy": "2.1.0"},
        server={
            "base_url": "http://127.0.0.1:8000/v1",
            "model": "llama-3.1-8b",
            "engine": "loadgen sim",
            "simulated": True,
        },
        domains=[EnergyDomain(name="gpu:0", source="simulated", period_s=0.1)],
        start_ns=START_NS,
        end_ns=end_ns,
        stopped_by="completed",
    )


def with_summary(result: RunResult, rps: float | None) -> RunResult:
    """`result` with the summary that its own records and attribution give."""
    records = result.records
    duration = ((result.info.end_ns or 0) - START_NS) / 1e9
    names = sorted({r.workload for r in records})
    everything = _part(records, result.attribution, duration)
    summary = Summary(
        run_id=result.info.run_id,
        duration_s=duration,
        stopped_by=result.info.stopped_by,
        rate=Rate(
            requested_rps=rps,
            achieved_rps=everything.requests.sent / duration,
            index_of_dispersion=_dispersion(records),
        ),
        schedule_lag_s=_spread(records, lambda r: r.lag_ns),
        lengths=_lengths(result),
        energy=_energy_summary(result, everything),
        by_workload={
            name: _part([r for r in records if r.workload == name], result.attribution, duration) for name in names
        },
        instrument=Instrument(
            cpu_s=4.2,
            max_rss_bytes=91_000_000,
            sampler_period_s=0.1,
            verdicts=[],
        ),
        **{
            field: getattr(everything, field)
            for field in ("requests", "ttft_s", "tpot_s", "itl_s", "e2e_s", "response_s", "tokens", "goodput")
        },
    )
    return judged(replace(result, summary=summary))


def judged(result: RunResult) -> RunResult:
    """Return `result` with the verdict that its summary and its records give."""
    assert result.summary is not None
    verdict = judge(result, result.summary)
    instrument = msgspec.structs.replace(result.summary.instrument, verdicts=verdict.reasons)
    return replace(result, summary=msgspec.structs.replace(result.summary, verdict=verdict, instrument=instrument))


def _part(records: list[RequestRecord], attribution: RunAttribution | None, duration_s: float) -> WorkloadSummary:
    done = [r for r in records if r.ok]
    errors = [r.error for r in records if r.error]
    ours = {r.index for r in done}
    shares = [e for e in attribution.requests if e.index in ours] if attribution else []
    tokens_in, tokens_out = sum(r.input_tokens or 0 for r in done), sum(r.output_tokens or 0 for r in done)
    total = sum(e.joules for e in shares)
    good = sum((r.ttft_ns or 0) <= 200e6 and (r.tpot_ns or 0) <= 50e6 for r in done)
    return WorkloadSummary(
        requests=RequestCounts(
            scheduled=len(records),
            sent=len(records),
            completed=len(done),
            failed=len(errors),
            by_error={kind: errors.count(kind) for kind in sorted(set(errors))},
        ),
        ttft_s=_spread(done, lambda r: r.ttft_ns, len(errors)),
        tpot_s=_spread(done, lambda r: r.tpot_ns, len(errors)),
        itl_s=_values([gap / 1e9 for r in done for gap in np.diff(r.chunk_ns)]),
        e2e_s=_spread(done, lambda r: r.e2e_ns, len(errors)),
        response_s=_spread(done, lambda r: r.response_ns, len(errors)),
        tokens=TokenCounts(
            input=tokens_in,
            output=tokens_out,
            input_per_s=tokens_in / duration_s,
            output_per_s=tokens_out / duration_s,
        ),
        goodput=Goodput(
            slo_ms={"ttft": 200.0, "tpot": 50.0},
            good=good,
            ratio=good / len(records) if records else None,
            rps=good / duration_s,
        ),
        attributed_joules=total if shares else None,
        prefill_joules=sum(e.prefill_joules for e in shares) if shares else None,
        decode_joules=sum(e.decode_joules for e in shares) if shares else None,
        joules_per_request=_values([e.joules for e in shares]) if shares else None,
        joules_per_output_token=total / tokens_out if shares else None,
        joules_per_token=total / (tokens_in + tokens_out) if shares else None,
    )


def _energy_summary(result: RunResult, everything: WorkloadSummary) -> EnergySummary:
    found = result.attribution
    if found is None:
        return EnergySummary(valid=False, reasons=result.info.energy_reasons or ["no energy was measured"])
    duration_s = (found.end_ns - found.start_ns) / 1e9
    return EnergySummary(
        valid=True,
        reasons=[],
        source="simulated",
        method=found.method,
        duration_s=duration_s,
        measured_joules=found.measured_mj / 1000,
        idle_joules=found.idle_mj / 1000,
        attributed_joules=found.attributed_mj / 1000,
        unattributed_joules=found.unattributed_mj / 1000,
        coverage=1.0,
        mean_watts=found.measured_mj / 1000 / duration_s,
        idle_watts=127.0,
        **{
            field: getattr(everything, field)
            for field in (
                "joules_per_request",
                "joules_per_output_token",
                "joules_per_token",
                "prefill_joules",
                "decode_joules",
            )
        },
    )


def _lengths(result: RunResult) -> LengthCheck | None:
    done = [(s, r) for s, r in zip(result.schedule, result.records, strict=True) if r.ok]
    if not done:
        return None
    return LengthCheck(
        count=len(done),
        input_asked=sum(s.input_tokens for s, _ in done),
        input_counted=sum(r.input_tokens or 0 for _, r in done),
        input_max_off=max(abs(s.input_tokens - (r.input_tokens or 0)) for s, r in done),
        output_asked=sum(s.output_tokens for s, _ in done),
        output_counted=sum(r.output_tokens or 0 for _, r in done),
        output_max_off=0,
    )


def _spread(
    records: list[RequestRecord], value_ns: Callable[[RequestRecord], float | None], failed: int = 0
) -> Latency:
    values = sorted(ns / 1e9 for r in records if (ns := value_ns(r)) is not None)
    ranks = {name: share * (len(values) + failed - 1) for name, share in PERCENTILES.items()}
    reached = {
        name: float(np.interp(r, range(len(values)), values)) for name, r in ranks.items() if 0 <= r <= len(values) - 1
    }
    plain = {field: getattr(_values(values), field) for field in Distribution.__struct_fields__}
    return Latency(**plain, left_out=failed, **{f"{name}_with_failures": v for name, v in reached.items()})


def _values(values: list[float]) -> Distribution:
    if not values:
        return Distribution(count=0)
    return Distribution(
        count=len(values),
        mean=float(np.mean(values)),
        std=float(np.std(values)),
        min=float(min(values)),
        max=float(max(values)),
        **{name: float(np.quantile(values, share)) for name, share in PERCENTILES.items()},
    )


def _dispersion(records: list[RequestRecord]) -> float | None:
    seconds = np.bincount([((r.sent_ns or START_NS) - START_NS) // 1_000_000_000 for r in records])
    return float(seconds.var() / seconds.mean()) if len(seconds) > 2 else None
