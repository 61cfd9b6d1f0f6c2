"""Runs against several simulated engines in virtual time, with what each request truly cost at each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np

from loadgen.clock import Anchor
from loadgen.energy.named_engine import NamedEngine
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.stats.arrays import Floats
from loadgen.telemetry.engine_sample import summed_samples
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.schedule import ScheduledRequest
from support import sample_runs
from support.attribution_runs import request_ns

_BLOCK = 16
_TRANSFER_NS = 10 * NS_PER_MS
_BEGIN_NS = 20 * NS_PER_S
"""Instant before which the generating engine is given its prompts."""


class Fleet(NamedTuple):
    """truth: float64[n] by engine, joules of each request there. served_by: of each request, the engine of its
    answer."""

    result: RunResult
    truth: dict[str, Floats]
    served_by: list[str]


def replicas(requests: int = 160, rps: float = 8.0, seed: int = 3, names: Sequence[str] = ("a", "b")) -> Fleet:
    """Replicas, each of which gets its share of the requests by chance, and says so in a response header."""
    rng = np.random.default_rng(seed)
    arrivals = _arrivals(rng, requests, rps)
    served_by = [names[int(k)] for k in rng.integers(0, len(names), requests)]
    runs: dict[str, SimulatedRun] = {}
    records: dict[int, RequestRecord] = {}
    truth = {name: np.zeros(requests) for name in names}
    for name in names:
        rows = [row for row, own in enumerate(served_by) if own == name]
        runs[name] = run = _simulated([arrivals[row] for row in rows])
        for row, request in zip(rows, run.requests, strict=True):
            record = request_ns(row, request.arrival_ns, list(request.token_ns), request.input_tokens)
            records[row] = msgspec.structs.replace(record, engines=[name])
            truth[name][row] = request.prefill_j + request.decode_j
    engines = [NamedEngine(name=name, url=f"http://{name}", gpus=(str(k),)) for k, name in enumerate(runs)]
    return Fleet(_result(engines, runs, [records[row] for row in range(requests)]), truth, served_by)


def disaggregated(requests: int = 120, rps: float = 6.0, seed: int = 4) -> Fleet:
    """An engine that computes prompts, and one that generates, to which keys and values take 10 ms. The latter is given
    them by an earlier request of each prompt, before the run."""
    rng = np.random.default_rng(seed)
    arrivals = _arrivals(rng, requests, rps)
    computed = _simulated([arrival._replace(output_tokens=1) for arrival in arrivals])
    blocks = [tuple((row, k) for k in range(arrival.input_tokens // _BLOCK)) for row, arrival in enumerate(arrivals)]
    warm = [SubmittedRequest(0, a.input_tokens, 1, own) for a, own in zip(arrivals, blocks, strict=True)]
    handed = [
        SubmittedRequest(done.token_ns[-1] + _TRANSFER_NS, arrival.input_tokens, arrival.output_tokens, own)
        for done, arrival, own in zip(computed.requests, arrivals, blocks, strict=True)
    ]
    generated = _simulated([*warm, *handed])
    answers = generated.requests[requests:]
    records = [
        msgspec.structs.replace(
            request_ns(row, arrival.arrival_ns, list(answer.token_ns), arrival.input_tokens), engines=["p", "d"]
        )
        for row, (arrival, answer) in enumerate(zip(arrivals, answers, strict=True))
    ]
    engines = [
        NamedEngine(name="p", url="http://p", gpus=("0",), role="prefill"),
        NamedEngine(name="d", url="http://d", gpus=("1",), role="decode"),
    ]
    result = _result(engines, {"p": computed, "d": generated}, records)
    ahead_ns, run_id = result.info.anchor.offset_ns, result.info.run_id
    spans = [
        EngineSpan(
            id=f"{run_id}-{row}", arrival_ns=request.arrival_ns + ahead_ns, prefill_ns=request.arrival_ns + ahead_ns,
            first_token_ns=request.token_ns[0] + ahead_ns, end_ns=request.token_ns[-1] + ahead_ns,
            input_tokens=request.input_tokens, output_tokens=request.output_tokens, engine=name,
        )
        for name, of_engine in (("p", computed.requests), ("d", answers))
        for row, request in enumerate(of_engine)
    ]  # fmt: skip
    truth = {
        name: np.array([request.prefill_j + request.decode_j for request in of_engine])
        for name, of_engine in (("p", computed.requests), ("d", answers))
    }
    return Fleet(replace(result, spans=spans), truth, ["d"] * requests)


def _arrivals(rng: np.random.Generator, requests: int, rps: float) -> list[SubmittedRequest]:
    instants = (np.cumsum(rng.exponential(NS_PER_S / rps, requests)) + _BEGIN_NS + NS_PER_S).astype(np.int64)
    lengths = zip(rng.integers(200, 3000, requests), rng.integers(20, 200, requests), strict=True)
    return [SubmittedRequest(int(t_ns), int(i), int(o)) for t_ns, (i, o) in zip(instants, lengths, strict=True)]


def _simulated(arrivals: list[SubmittedRequest]) -> SimulatedRun:
    options = EngineOptions(prefix_caching=any(arrival.block_hashes for arrival in arrivals))
    return simulate(arrivals, read_hardware("h200"), read_model("llama-3.1-8b"), options, tail_ns=NS_PER_S)


def _result(
    engines: list[NamedEngine], runs: Mapping[str, SimulatedRun], records: Sequence[RequestRecord]
) -> RunResult:
    """Return the run as it is read from its folder. What came before _BEGIN_NS is in none of it."""
    run = sample_runs.run(1)
    end_ns = max(simulated.end_ns for simulated in runs.values())
    samples = {
        engine.name: [dict(sample) for sample in runs[engine.name].engine[::5] if sample["t_ns"] >= _BEGIN_NS]
        for engine in engines
    }
    energy = [
        EnergySample(sample.t_ns, f"gpu:{k}", sample.joules)
        for k, engine in enumerate(engines)
        for sample in runs[engine.name].counter
        if sample.t_ns >= _BEGIN_NS
    ]
    info = msgspec.structs.replace(
        run.info,
        engines=engines,
        domains=[EnergyDomain(name=f"gpu:{k}", source="simulated", period_s=0.1) for k in range(len(engines))],
        start_ns=_BEGIN_NS + NS_PER_S,
        end_ns=end_ns,
        anchor=Anchor(10**18, 0),
    )
    schedule = [
        ScheduledRequest(
            index=record.index,
            offset_ns=record.scheduled_ns - _BEGIN_NS - NS_PER_S,
            workload=record.workload,
            input_tokens=record.input_tokens,
            output_tokens=record.output_tokens,
        )
        for record in records
    ]
    whole = summed_samples(list(samples.values()))
    return RunResult(info, schedule, list(records), energy, whole, None, None, engines=samples)


def sharing(fleet: Fleet) -> Fleet:
    """Return the same engines on one GPU, whose counter has the joules of both."""
    result = fleet.result
    t_ns = np.unique([sample.t_ns for sample in result.energy])
    joules = [
        np.interp(t_ns, *zip(*((s.t_ns, s.joules) for s in result.energy if s.domain == domain.name), strict=True))
        for domain in result.info.domains
    ]
    energy = [EnergySample(int(t), "gpu:0", float(j)) for t, j in zip(t_ns, np.sum(joules, axis=0), strict=True)]
    engines = [msgspec.structs.replace(engine, gpus=("0",)) for engine in result.info.engines]
    info = msgspec.structs.replace(result.info, engines=engines, domains=result.info.domains[:1])
    return fleet._replace(result=replace(result, info=info, energy=energy))
