"""Measure what a joint law is worth for two engines on one GPU, against the simulated engines' own accounts.

    python -m benchmarks.accuracy.two_engines [--seconds 300] [--seed 0] [--only TEXT] [--markdown]

Two simulated engines with their own queues and KV caches share one GPU and its counter, in virtual time. While both run
a step, each goes at a share of its speed: 1/2 where the driver gives the processes slices of time (the default), more
where kernels of both run at once (MPS). The power limit lowers it. The power that is drawn whatever runs is paid in
equal parts by the engines that run at that instant, the rest by the step that causes it. With slices of time a step
then costs what it costs alone. Not simulated: the cost of a switch between processes, caches that one engine takes from
the other, and which resource two steps compete for.

Beside the joint law stand one law over the requests of both engines, as if they were one, and division by output
tokens. Errors are |attributed - true| / true, per request and of each engine's sum.
"""

import argparse
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.attribution_oracle import IDLE_NS, TRACES, Z, record_of
from loadgen.attribution.beside_others import steps_beside_others
from loadgen.attribution.fit_quality import held_out_r_squared
from loadgen.attribution.shapley import RequestEnergy, attribute_energy, attribute_jointly
from loadgen.attribution.side_by_side import side_by_side
from loadgen.energy.series import EnergyDomain, EnergySample, series_by_domain
from loadgen.energy_model.hardware import Hardware, read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.simulator.cost_model import CostLaw, CounterOptions, Gpu, Load, SimulatedCounter, StepCost
from loadgen.simulator.engine import Engine, EngineOptions, Step, SubmittedRequest, Totals
from loadgen.simulator.engine import Sequence as Served
from loadgen.telemetry.engine_sample import EngineSample
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.schedule import build_schedule
from loadgen.workload.trace import read_trace

SAMPLE_NS = 500 * NS_PER_MS
SLICES, AT_ONCE = 0.5, 0.75
"""Speed of each engine while both run a step: with slices of time, and with kernels of both at once."""


@dataclass(frozen=True)
class EngineLoad:
    """One engine: its model and the requests/s of each trace."""

    model: str
    rates: dict[str, float]
    options: EngineOptions = EngineOptions()  # noqa: RUF009


@dataclass(frozen=True)
class Scenario:
    name: str
    engines: tuple[EngineLoad, EngineLoad]
    speed: float = SLICES
    hardware: str = "h200"


def scenarios() -> list[Scenario]:
    small, large = "llama-3.1-8b", "llama-3.1-70b"
    half = EngineOptions(kv_cache_tokens=300_000)
    pairs: list[tuple[str, EngineLoad, EngineLoad]] = []
    for rps in (1.0, 4.0):
        mix = EngineLoad(small, {"chat": rps / 2, "code": rps / 2}, half)
        chat, code = (EngineLoad(small, {kind: rps}, half) for kind in ("chat", "code"))
        pairs += [(f"8B mix {rps:.0f}/s twice", mix, mix), (f"8B chat {rps:.0f}/s + 8B code {rps:.0f}/s", chat, code)]
    for large_rps, small_rps in ((0.25, 1.0), (0.5, 4.0)):
        of_large, of_small = (
            EngineLoad(model, {"chat": rps / 2, "code": rps / 2}, half)
            for model, rps in ((large, large_rps), (small, small_rps))
        )
        pairs.append((f"70B mix {large_rps}/s + 8B mix {small_rps:.0f}/s", of_large, of_small))
    busy = EngineLoad(small, {"chat": 3.5, "code": 3.5}, half)
    pairs.append(("8B mix 7/s twice", busy, busy))
    for rps in (1.0, 4.0):
        mix = EngineLoad(small, {"chat": rps / 2, "code": rps / 2}, half)
        pairs.append((f"MoE mix {rps:.0f}/s + 8B mix {rps:.0f}/s", replace(mix, model="qwen3-30b-a3b"), mix))
    return [
        Scenario(f"{name}, {kind}", (first, second), speed)
        for kind, speed in (("slices of time", SLICES), ("at once", AT_ONCE))
        for name, first, second in pairs
    ]


class _Lane(Gpu):
    """An engine's view of the GPU: what a step would take and cost alone. The clock of the whole GPU moves it."""

    cost: StepCost

    def idle_until(self, t_ns: int) -> None:
        self.now_ns = t_ns

    def run(self, load: Load, law: CostLaw | None = None) -> StepCost:
        self.cost = (law or self.law).cost(load, self.temperature_c)
        self.now_ns += self.cost.duration_ns
        self.step_j += self.cost.joules
        return self.cost


class _Shared(Gpu):
    """The GPU itself, whose counter counts what both engines do."""

    def draw(self, until_ns: int, joules: float, capped: bool) -> None:
        self.step_j += joules
        self._spend(until_ns, joules, capped)


@dataclass
class _Running:
    """A step that is not over. Durations in seconds as if it ran alone."""

    step: Step
    cost: StepCost
    before_j: list[float]
    """Shares of its members before it."""
    static_w: float
    left_s: float
    paid_static_j: float = 0.0

    @property
    def alone_s(self) -> float:
        return self.step.duration_ns / NS_PER_S

    @property
    def dynamic_w(self) -> float:
        return (self.cost.joules - self.static_w * self.alone_s) / self.alone_s


@dataclass
class _Process:
    """One engine, what is still to arrive, and what has come out of it."""

    engine: Engine
    pending: deque[Served]
    served: list[Served]
    token_ns: dict[int, list[int]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    samples: list[EngineSample] = field(default_factory=list)
    running: _Running | None = None

    def start(self, now_ns: int, temperature_c: float) -> None:
        """Start a step at this instant if there is work."""
        while self.pending and self.pending[0].arrival_ns <= now_ns:
            self.engine.add(self.pending.popleft())
        self.engine.gpu.now_ns, self.engine.gpu.temperature_c = now_ns, temperature_c
        queues = self.engine.scheduler
        before = {id(seq): (seq.prefill_j, seq.decode_j) for seq in (*queues.running, *queues.waiting)}
        step = self.engine.step(now_ns)
        if step is None:
            return
        lane = self.engine.gpu
        assert isinstance(lane, _Lane)
        before_j = [before[id(seq)][0] for seq, _ in step.prefills] + [before[id(seq)][1] for seq in step.decodes]
        self.running = _Running(
            step, lane.cost, before_j, lane.law.static_w(temperature_c), step.duration_ns / NS_PER_S
        )

    def end(self, now_ns: int) -> None:
        """End the running step, and correct its members' shares by what it paid of the static power."""
        assert self.running is not None
        step, self.running = self.running.step, _correct(self.running, self.engine.gpu.law)
        for seq in step.emitted:
            self.token_ns.setdefault(id(seq), []).append(now_ns)
        self.totals.add(step)
        if not self.samples or now_ns >= self.samples[-1]["t_ns"] + SAMPLE_NS:
            waiting, running = len(self.engine.scheduler.waiting), len(step.decodes) + len(step.prefills)
            self.samples.append({"t_ns": now_ns, **asdict(self.totals), "running": running, "waiting": waiting})


def _correct(running: _Running, law: CostLaw) -> None:
    """Give the members of a step what it paid of the static power, in proportion to what each would have paid of it.

    Of its cost alone, as the simulator divides it, the equal parts contain the static power over the time that reading
    the weights takes, and the rest of it is in proportion to the members' own work.
    """
    step, cost = running.step, running.cost
    members = [(seq, "prefill_j") for seq, _ in step.prefills] + [(seq, "decode_j") for seq in step.decodes]
    static_j = running.static_w * running.alone_s
    equal_static_j = cost.equal_j * len(members) - law.hardware.joules_per_byte * law.dense_bytes
    own_j = [
        getattr(seq, phase) - before_j - cost.equal_j
        for (seq, phase), before_j in zip(members, running.before_j, strict=True)
    ]
    per_own = (static_j - equal_static_j) / sum(own_j)
    change = running.paid_static_j / static_j - 1
    for (seq, phase), of_own_j in zip(members, own_j, strict=True):
        of_static_j = equal_static_j / len(members) + per_own * of_own_j
        setattr(seq, phase, getattr(seq, phase) + change * of_static_j)


class Truth(NamedTuple):
    """Cost of a request, and the instants of its tokens, as `record_of` needs them."""

    arrival_ns: int
    token_ns: list[int]
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    joules: float


class SharedRun(NamedTuple):
    """A run of two engines. requests, engines: of each engine."""

    requests: list[list[Truth]]
    engines: list[list[EngineSample]]
    counter: list[EnergySample]
    step_j: float
    """Joules that the GPU drew while a step ran."""
    busy_both: float
    """Share of the time with a step in which both engines ran one."""


def serve(
    loads: Sequence[tuple[EngineLoad, Sequence[SubmittedRequest]]], hardware: Hardware, speed: float, seed: int
) -> SharedRun:
    """Serve the requests of all engines on one GPU until all are complete."""
    rng = np.random.default_rng(seed)
    counter = CounterOptions()
    processes = []
    for load, arrivals in loads:
        engine = Engine(hardware, read_model(load.model), load.options, counter, rng=rng)
        engine.gpu = _Lane(engine.gpu.law, engine.gpu.counter, 0)
        served = [Served(*arrival) for arrival in arrivals]
        processes.append(_Process(engine, deque(sorted(served, key=lambda seq: seq.arrival_ns)), served))
    gpu = _Shared(CostLaw(hardware, read_model(loads[0][0].model)), SimulatedCounter("gpu:0", 0, counter, rng), 0)
    both_ns = busy_ns = 0
    while True:
        for process in processes:
            if process.running is None:
                process.start(gpu.now_ns, gpu.temperature_c)
        running = [process.running for process in processes if process.running is not None]
        arrivals_ns = [p.pending[0].arrival_ns for p in processes if p.running is None and p.pending]
        if not running:
            if not arrivals_ns:
                break
            gpu.idle_until(min(arrivals_ns))
            continue
        began_ns = gpu.now_ns
        _advance(gpu, running, min(arrivals_ns, default=None), speed)
        busy_ns += gpu.now_ns - began_ns
        both_ns += (gpu.now_ns - began_ns) * (len(running) > 1)
        for process in processes:
            if process.running is not None and process.running.left_s < 1e-9:
                process.end(gpu.now_ns)
    gpu.idle_until(gpu.now_ns + IDLE_NS // 4)
    requests = [
        [
            Truth(
                seq.arrival_ns, process.token_ns[id(seq)], seq.input_tokens, seq.emitted, seq.cached_tokens,
                seq.prefill_j + seq.decode_j,
            )
            for seq in process.served
        ]
        for process in processes
    ]  # fmt: skip
    engines = [process.samples for process in processes]
    return SharedRun(requests, engines, list(gpu.counter.samples), gpu.step_j, both_ns / busy_ns)


def _advance(gpu: _Shared, running: list[_Running], arrival_ns: int | None, speed: float) -> None:
    """Run the steps until the first of them ends, or until the next arrival at an engine without a step."""
    static_w, limit_w = gpu.law.static_w(gpu.temperature_c), gpu.law.hardware.limit_w
    dynamic_w = sum(step.dynamic_w for step in running)
    rate = min(1.0 if len(running) == 1 else speed, (limit_w - static_w) / dynamic_w)
    until_ns = gpu.now_ns + max(math.ceil(min(step.left_s for step in running) / rate * NS_PER_S), 1)
    if arrival_ns is not None:
        until_ns = min(until_ns, max(arrival_ns, gpu.now_ns + 1))
    seconds = (until_ns - gpu.now_ns) / NS_PER_S
    for step in running:
        step.left_s -= rate * seconds
        step.paid_static_j += static_w * seconds / len(running)
    power_w = static_w + rate * dynamic_w
    gpu.draw(until_ns, power_w * seconds, power_w > limit_w * (1 - 1e-6))


def played(scenario: Scenario, seconds: float, seed: int) -> tuple[list[RequestRecord], list[int], SharedRun]:
    """Return the records of both engines' requests by arrival, the engine of each one, and the run."""
    loads = [
        (load, _arrivals(load.rates, seconds, seed + 100_000 * number)) for number, load in enumerate(scenario.engines)
    ]
    run = serve(loads, read_hardware(scenario.hardware), scenario.speed, seed)
    rng = np.random.default_rng(seed)
    by_arrival = sorted(
        ((truth, number) for number, requests in enumerate(run.requests) for truth in requests),
        key=lambda request: request[0].arrival_ns,
    )
    records = [record_of(row, f"engine {number}", truth, rng) for row, (truth, number) in enumerate(by_arrival)]
    run = run._replace(requests=[[truth for truth, of in by_arrival if of == number] for number in range(len(loads))])
    return records, [number for _, number in by_arrival], run


def _arrivals(rates: dict[str, float], seconds: float, seed: int) -> list[SubmittedRequest]:
    return [
        SubmittedRequest(IDLE_NS + request.offset_ns, request.input_tokens, request.output_tokens)
        for row, (kind, rps) in enumerate(rates.items())
        for request in build_schedule(
            read_trace(TRACES / f"{kind}.jsonl"), seed=seed + 1000 * row, rps=rps, arrival="poisson",
            duration_s=seconds,
        ).requests
    ]  # fmt: skip


def _unanswered(record: RequestRecord) -> RequestRecord:
    """Return the record as an engine that did not serve it sees it."""
    return RequestRecord(index=record.index, workload=record.workload, scheduled_ns=record.scheduled_ns)


def rows_of(scenario: Scenario, seconds: float, seed: int) -> dict[str, Any]:
    """Return the errors of each method in a scenario."""
    records, engine_of, run = played(scenario, seconds, seed)
    domain = EnergyDomain(name="gpu:0", source="simulated", limit_w=read_hardware(scenario.hardware).limit_w)
    series = list(series_by_domain(run.counter, [domain]).values())
    start, end = min(record.sent_ns or 0 for record in records), max(record.finished_ns or 0 for record in records)
    engines = [
        steps_beside_others(
            [r if of == n else _unanswered(r) for r, of in zip(records, engine_of, strict=True)], samples
        )
        for n, samples in enumerate(run.engines)
    ]
    rows = [np.flatnonzero(np.array(engine_of) == number) for number in range(len(engines))]
    shared = side_by_side(engines, len(records))
    joint = attribute_jointly(series, records, start, end, shared=shared, sums={"own": np.arange(len(records))})
    truth = np.zeros(len(records))
    for own, requests in zip(rows, run.requests, strict=True):
        truth[own] = [request.joules for request in requests]
    shares = [joint.engines[of].requests[row] for row, of in enumerate(engine_of)]
    one_law = attribute_energy(series, records, start, end).requests
    by_tokens = attribute_energy(series, records, start, end, method="output-tokens").requests
    se = np.array([share.se_joules or 0.0 for share in shares])
    off = [abs(engine.attributed_mj / 1000 - truth[own].sum()) for engine, own in zip(joint.engines, rows, strict=True)]
    return {
        "scenario": scenario.name,
        "requests": len(records),
        "busy_both": run.busy_both,
        "joint": _errors(shares, truth, rows),
        "one law": _errors(one_law, truth, rows),
        "output-tokens": _errors(by_tokens, truth, rows),
        "covered": float(np.mean(np.abs(_joules(shares) - truth) <= Z * se)),
        "half_width": float(np.median(Z * se / truth)),
        "sums_held": sum(
            o <= Z * engine.sums["own"].attributed_se_joules for o, engine in zip(off, joint.engines, strict=True)
        ),
        "at_limit": float(np.mean(series[0].at_limit)),
        "held_out": held_out_r_squared(joint.engines[0].fits),
    }


def _joules(shares: Sequence[RequestEnergy]) -> np.ndarray:
    return np.array([share.joules for share in shares])


def _errors(shares: Sequence[RequestEnergy], truth: np.ndarray, rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the errors of requests, and the relative error of each engine's sum."""
    joules = _joules(shares)
    median, p90, p99 = np.percentile(np.abs(joules - truth) / truth, [50, 90, 99]).tolist()
    sums = [float(joules[own].sum() / truth[own].sum() - 1) for own in rows]
    return {"median": median, "p90": p90, "p99": p99, "engines": sums}


METHODS = ("joint", "one law", "output-tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/concepts/attribution.md")
    options = parser.parse_args()
    chosen = [scenario for scenario in scenarios() if options.only in scenario.name]
    print(f"simulated, {options.seconds:.0f} s each, seed {options.seed}: per request median / p90 / p99; each engine")
    with ProcessPoolExecutor() as pool:
        rows = []
        for row in pool.map(partial(rows_of, seconds=options.seconds, seed=options.seed), chosen):
            rows.append(row)
            held_out = "-" if row["held_out"] is None else f"{row['held_out']:.3f}"
            print(
                f"\n{row['scenario']}  ({row['requests']} requests, both busy {row['busy_both']:.0%} of the busy time,"
                f" at the limit {row['at_limit']:.0%}, held-out R² {held_out}, 95 % interval: holds"
                f" {row['covered']:.1%}, ± {row['half_width']:.1%}, {row['sums_held']} of 2 engines)"
            )
            for method in METHODS:
                print(f"  {method:14} {_cells(row[method])}", flush=True)
    if options.markdown:
        print("\n".join(["", *table(rows)]))


def _cells(errors: dict[str, Any]) -> str:
    return f"{_of_requests(errors)} %; {_of_engines(errors)} %"


def _of_requests(errors: dict[str, Any]) -> str:
    return " / ".join(f"{100 * errors[name]:.1f}" for name in ("median", "p90", "p99"))


def _of_engines(errors: dict[str, Any]) -> str:
    return ", ".join(f"{100 * of:+.1f}" for of in errors["engines"])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of the documentation."""
    lines = [
        "| engines | requests | both busy | **joint law** | each engine | 95 % interval holds | one law | each engine |"
        " output-tokens | each engine |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        cells = [
            row["scenario"], f"{row['requests']:,}", f"{row['busy_both']:.0%}", f"**{_of_requests(row['joint'])}** %",
            f"{_of_engines(row['joint'])} %", f"{row['covered']:.0%}, ± {100 * row['half_width']:.1f} %",
        ]  # fmt: skip
        for method in METHODS[1:]:
            cells += [f"{100 * row[method]['median']:.0f} %", f"{_of_engines(row[method])} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
