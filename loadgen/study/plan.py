"""The runs of a study, in the order of running, and the schedule of each. They follow from the file and its seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload import stream_schedule, streams
from loadgen.workload.length_source import source_path
from loadgen.workload.schedule import Arrival, Schedule, ScheduledRequest, build_schedule, stable_hash63
from loadgen.workload.sources import read_independent
from loadgen.workload.trace import Trace, TraceRequest

if TYPE_CHECKING:
    from loadgen.study.spec import Study, WorkloadSpec


@dataclass(frozen=True)
class StudyRun:
    """One run of the plan: a closed loop at `batch`, or an open loop at `rps`."""

    server: str
    model: str | None
    workload: str
    batch: int | None
    rps: float | None
    repeat: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        load = f"b{self.batch}" if self.batch is not None else f"{self.rps:g}rps"
        model = (self.model or "").rstrip("/").rsplit("/", 1)[-1]
        parts = [self.server, model, self.workload, load, f"r{self.repeat}"]
        return "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts if part)


def plan_runs(study: Study) -> list[StudyRun]:
    """Return every run in the order of running: repeat by repeat; in each, servers at random, and their runs too.

    A repeat is a fresh start of the server, so that chance effects of one start do not pass for properties of the
    server. Unless `restart` is off: then it is server by server, and each server's runs repeat by repeat.
    """
    rng = np.random.default_rng(study.seed)
    runs: list[StudyRun] = []
    for repeats in [[r] for r in range(study.repeats)] if study.restart else [range(study.repeats)]:
        blocks: dict[str, list[StudyRun]] = {}
        for label, server in study.servers.items():
            models: list[str | None] = [*(server.models or study.models)] or [server.model]
            for model, workload in product(models, study.workloads_of(server)):
                for batch, rps in study.loads_of(server, workload):
                    run = StudyRun(label, model, workload, batch, rps, 0)
                    blocks.setdefault(start_key(study, run), []).append(run)
        order = list(blocks.values())
        for index in rng.permutation(len(order)):
            for repeat in repeats:
                runs += [replace(order[index][i], repeat=repeat) for i in rng.permutation(len(order[index]))]
    return runs


def start_key(study: Study, run: StudyRun) -> str:
    """Return what decides whether one start of a server serves two runs: server, model and engine options."""
    return repr((run.server, run.model, sorted(study.servers[run.server].options_of_batch(run.batch).items())))


# ---------------------------------------------------------------- schedules


def schedule_of(study: Study, run: StudyRun, folder: Path) -> Schedule:
    """Return the schedule of a run; `folder` is the study file's.

    A closed loop has every request due at once, and admits `batch` of them; an open one draws its instants. Every
    server gets the same schedule in the same repeat. No two other runs share a prompt: otherwise a server's prefix
    cache would hold prompts of an earlier run.
    """
    workload = study.workloads[run.workload]
    seed = stable_hash63(f"{study.seed}/{run.workload}/{run.batch}/{run.rps}/{run.repeat}") % 2**32
    duration_s = study.duration_s if workload.duration_s is None else workload.duration_s
    if workload.streams:
        assert run.rps is not None
        return stream_schedule.schedule_streams(
            scaled_streams(_trace_path(workload, folder), run.rps), seed=seed, duration_s=duration_s, num_requests=None
        )
    if workload.trace is not None:
        trace = read_independent(_trace_path(workload, folder), "give the trace to a stream of a TOML file")
    else:
        assert workload.input is not None and workload.output is not None
        request = TraceRequest(
            arrival_s=0.0, input_tokens=workload.input, output_tokens=workload.output, workload=run.workload
        )
        trace = Trace(run.workload, (request,), "")
    arrival, burstiness = study.arrival_of(run.workload)
    if run.rps is None:
        return closed_loop_schedule(study, trace, run.batch or 1, seed)
    assert arrival is not None
    if arrival == "trace":
        return build_schedule(trace, seed=seed, rps=run.rps, duration_s=duration_s)
    return open_loop_schedule(trace, seed, run.rps, arrival, burstiness, duration_s)


def _trace_path(workload: WorkloadSpec, folder: Path) -> Path:
    assert workload.trace is not None
    beside = folder / workload.trace
    return beside if beside.exists() else source_path(workload.trace)


def scaled_streams(path: Path, rps: float) -> streams.Streams:
    """Read the file's streams and scale their rates by one factor, so that they add up to `rps`."""
    by_name = streams.read_streams(path)
    rates = [stream.rps for stream in by_name.values()]
    if None in rates:
        raise LoadgenError(f"{path}: a study sets the rate, so every stream needs an rps to share it by")
    factor = rps / sum(rate or 0.0 for rate in rates)
    return {name: msgspec.structs.replace(s, rps=(s.rps or 0.0) * factor) for name, s in by_name.items()}


def closed_loop_schedule(study: Study, trace: Trace, batch: int, seed: int) -> Schedule:
    """Return whole rounds of `batch` requests, all due at once."""
    count = max(study.min_requests, batch * study.rounds)
    requests = tuple(
        ScheduledRequest(
            index=i,
            offset_ns=0,
            workload=request.workload,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
        )
        for i, request in enumerate(even_sample(trace, -(-count // batch) * batch, seed).requests)
    )
    return Schedule(requests, "constant", None, seed)


def open_loop_schedule(
    trace: Trace, seed: int, rps: float, arrival: Arrival, burstiness: float, duration_s: float
) -> Schedule:
    """Return exactly rps x duration requests, so that their number adds no noise to joules per token.

    The gaps of one more request are drawn, and scaled so that it comes at the end. For a Poisson process that is the
    process itself, given its count: gaps over their sum are the spacings of uniform instants (Pyke 1965).
    """
    count = max(1, round(rps * duration_s))
    sample = even_sample(trace, count, seed)
    drawn = build_schedule(sample, seed=seed, rps=rps, arrival=arrival, burstiness=burstiness, num_requests=count + 1)
    scale = duration_s * NS_PER_S / drawn.requests[-1].offset_ns
    requests = tuple(
        msgspec.structs.replace(request, offset_ns=round(request.offset_ns * scale))
        for request in drawn.requests[:count]
    )
    return replace(drawn, requests=requests)


def even_sample(trace: Trace, count: int, seed: int) -> Trace:
    """Return `count` requests of the trace in random order, evenly spaced over its output lengths.

    Each occurs equally often to within one, so a few requests have nearly the mean lengths of many. A trace with
    sessions or shared prefixes keeps its order, and is taken from the top.
    """
    repetitions, remainder = divmod(count, len(trace.requests))
    if any(request.session_id or request.prefix_ids for request in trace.requests):
        chosen = [*trace.requests * repetitions, *trace.requests[:remainder]]
        return Trace(trace.name, tuple(chosen), trace.sha256)
    ordered = sorted(trace.requests, key=lambda request: (request.output_tokens, request.input_tokens))
    chosen = ordered * repetitions + [ordered[(2 * i + 1) * len(ordered) // (2 * remainder)] for i in range(remainder)]
    order = np.random.default_rng([seed, 1]).permutation(count)
    return Trace(trace.name, tuple(chosen[i] for i in order), trace.sha256)
