"""Simulated servers for `benchmarks.accuracy.search`: their probes in virtual time, and the truth from long grids.

    python -m benchmarks.accuracy.search_systems [--jobs 2]

measures the grids and writes them to search_truth.json beside this file, in about half an hour on one core. A grid goes
from the rate at which 0.4 % of the requests miss a limit to that at which 30 % do, in steps of about 0.35 in the logit
of that share; each rate has a run of 60,000 requests, of which the first 3,000 do not count, or three runs where less
than 3 % miss. The rate with a given share follows from a parabola through the logits nearby, and the load of fewest
joules per good request from that and a parabola through the logarithms of the power.
"""

import argparse
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.load_search.plan import PlannedProbe, is_hopeless
from loadgen.load_search.workload import Workload
from loadgen.results.probe_counts import Outcome, count
from loadgen.results.search_result import Probe
from loadgen.run.config import RunConfig
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.stats.arrays import Floats
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.load import Load
from loadgen.workload.words import stored_words

TRACES = Path(__file__).parents[2] / "traces"
TRUTH = Path(__file__).with_name("search_truth.json")
RUNS, RUN_REQUESTS, SKIPPED = 1, 60_000, 3_000
RARE_RUNS, RARE = 3, 0.03
"""Runs of a rate at which a smaller share misses: it is known less well."""
NEARBY = 1.3
"""Distance in the logit of the share within which rates say what share a neighbour has."""
LEAST_MISSED, MOST_MISSED, LOGIT_STEP = 0.004, 0.3, 0.35
LEAST_STEP = 0.005
"""Relative distance of rates between which there is none, however much the shares of two differ."""
ABORT_S = 5.0
"""Time in which a probe that was stopped early drains before its requests are aborted."""
START_S = 1.0
"""Time that a probe costs besides its sending and its drain."""


@dataclass(frozen=True)
class System:
    """A workload, a server and limits. `name` is unique."""

    workload: str
    hardware: str
    sequences: int
    ttft_ms: float
    tpot_ms: float
    parts: dict[str, int] = field(hash=False, default_factory=dict)
    """Shares of the traces; empty: the trace of the workload's name."""

    @property
    def name(self) -> str:
        return f"{self.workload} {self.hardware} {self.sequences} {self.ttft_ms:g} {self.tpot_ms:g}"

    @property
    def limits_ms(self) -> dict[str, float]:
        return {"ttft": self.ttft_ms, "tpot": self.tpot_ms}


SYSTEMS = (
    System("chat", "h200", 256, 300, 25),
    System("chat", "h200", 256, 1000, 60),
    System("chat", "h100", 64, 500, 50),
    System("code", "h200", 16, 500, 100),
    System("code", "h100", 256, 2000, 200),
    System("mix", "h100", 64, 500, 50, {"chat": 1, "code": 1}),
)


class Served(msgspec.Struct, frozen=True):
    """A run of a system: requests in the order in which they were sent."""

    outcomes: list[Outcome]
    ended_s: float
    counter_s: Floats
    joules: Floats

    def watts(self, from_s: float, until_s: float) -> float:
        low, high = np.interp([from_s, until_s], self.counter_s, self.joules)
        return float(high - low) / (until_s - from_s)


@cache
def _workload(system: System) -> Workload:
    streams = tuple(f"{name}={TRACES / name}.jsonl:{share}" for name, share in system.parts.items())
    trace = None if streams else str(TRACES / f"{system.workload}.jsonl")
    load = Load(trace=trace, streams=streams, arrival="poisson")
    with stored_words() as (words, _):
        config = RunConfig(base_url="http://simulated/v1", out=Path("unused"))
        return Workload(load, words, config, say=lambda line: None)


def serve(system: System, rate_rps: float, duration_s: float, seed: int) -> Served:
    """Serve the requests that the search sends at this rate."""
    sent = _workload(system).requests(rate_rps, duration_s, seed).schedule.requests
    submitted = [
        SubmittedRequest(request.offset_ns, request.input_tokens or 1, request.output_tokens or 1) for request in sent
    ]
    run = simulate(
        submitted,
        read_hardware(system.hardware),
        read_model("llama-3.1-8b"),
        EngineOptions(max_num_seqs=system.sequences),
        CounterOptions(period_ns=NS_PER_S // 10),
        engine_period_ns=60 * NS_PER_S,
    )
    return Served(
        outcomes=list(_outcomes(system, run)),
        ended_s=max((request.token_ns[-1] for request in run.requests), default=0) / NS_PER_S,
        counter_s=np.array([sample.t_ns for sample in run.counter]) / NS_PER_S,
        joules=np.array([sample.joules for sample in run.counter]),
    )


def _outcomes(system: System, run: SimulatedRun) -> Iterator[Outcome]:
    for request in run.requests:
        first_ns, last_ns, tokens = request.token_ns[0], request.token_ns[-1], len(request.token_ns)
        ttft_ms = (first_ns - request.arrival_ns) / NS_PER_MS
        tpot_ms = (last_ns - first_ns) / NS_PER_MS / max(1, tokens - 1)
        met = {name for name, ms in (("ttft", ttft_ms), ("tpot", tpot_ms)) if ms <= system.limits_ms[name]}
        decided_ns = last_ns - request.arrival_ns
        yield Outcome(
            sent_s=request.arrival_ns / NS_PER_S,
            met=frozenset(met),
            is_good=len(met) == 2,
            has_failed=False,
            decision_s=decided_ns / NS_PER_S if "ttft" in met else system.ttft_ms * NS_PER_MS / NS_PER_S,
        )


def probe(system: System, planned: PlannedProbe, attainment: float) -> Probe:
    """Return a probe as the search's runner makes it: it ends early when it is hopeless."""
    served = serve(system, planned.rate_rps, planned.duration_s, planned.seed)
    sending_s, missed = planned.duration_s, 0
    decided = sorted((outcome.sent_s + outcome.decision_s, outcome.is_good) for outcome in served.outcomes)
    stopped_early = False
    for ended, (t_s, is_good) in enumerate(decided, 1):
        missed += not is_good
        if t_s >= planned.duration_s:
            break
        if is_hopeless(ended, missed, planned.stage, attainment):
            stopped_early, sending_s = True, t_s
            break
    outcomes = [outcome for outcome in served.outcomes if outcome.sent_s < sending_s]
    counts = count(outcomes, sending_s, planned.stage, stopped_early=stopped_early)
    until_s = min(served.ended_s, sending_s + ABORT_S) if stopped_early else max(served.ended_s, sending_s)
    return Probe(
        name=f"probes/{planned.number:03}",
        number=planned.number,
        rate_rps=planned.rate_rps,
        seed=planned.seed,
        stage=planned.stage,
        planned_s=planned.duration_s,
        wall_s=until_s + START_S,
        stopped_early=stopped_early,
        watts=served.watts(counts.from_s, counts.until_s),
        **counts._asdict(),
    )


class GridPoint(msgspec.Struct, frozen=True, array_like=True):
    rate_rps: float
    requests: int
    missed: int
    missed_ttft: int
    watts: float

    @property
    def logit(self) -> float:
        return math.log((self.missed + 0.5) / (self.requests - self.missed + 0.5))


class Truth:
    """The curves of a system from its long grid."""

    def __init__(self, points: list[GridPoint]) -> None:
        rates, requests, missed, _, self._watts = np.array([msgspec.structs.astuple(point) for point in points]).T
        self._log_rates, self._missed = np.log(rates), missed
        self._logits = np.log((missed + 0.5) / (requests - missed + 0.5))

    def rate_rps(self, attainment: float) -> float:
        """Return the rate at which this share is good."""
        sought = math.log((1 - attainment) / attainment)
        log_rates, logits = self._near(sought)
        return math.exp(log_rates[np.argmin(np.abs(logits - sought))])

    @property
    def least_joules_rps(self) -> float:
        log_joules = np.log(self._watts) - self._log_rates + np.logaddexp(0, self._logits)
        log_rates, logits = self._near(float(self._logits[np.argmin(log_joules)]))
        log_watts = np.polynomial.Polynomial.fit(self._log_rates, np.log(self._watts), 2)(log_rates)
        return math.exp(log_rates[np.argmin(log_watts - log_rates + np.logaddexp(0, logits))])

    def _near(self, logit: float) -> tuple[Floats, Floats]:
        """Return many rates and their logits, by a parabola through those of the grid that are near this one."""
        near = np.abs(self._logits - logit) < NEARBY
        log_rates, logits = self._log_rates[near], self._logits[near]
        middle = float(log_rates.mean())
        fit = np.polynomial.Polynomial.fit(
            log_rates - middle, logits, min(2, len(logits) - 1), w=np.sqrt(self._missed[near])
        )
        fine = np.linspace(log_rates[0], log_rates[-1], 20_000)
        return fine, np.asarray(fit(fine - middle))


@cache
def read_truth() -> dict[str, Truth]:
    return {name: Truth(points) for name, points in read_grids().items()}


def read_grids() -> dict[str, list[GridPoint]]:
    return msgspec.json.decode(TRUTH.read_bytes(), type=dict[str, list[GridPoint]]) if TRUTH.exists() else {}


def grid_point(system: System, rate_rps: float, runs: Sequence[int], requests: int, skipped: int) -> GridPoint:
    outcomes, watts = list[Outcome](), list[float]()
    for run in runs:
        seed = zlib.crc32(f"{run} {rate_rps:.6f} {system.name}".encode())
        served = serve(system, rate_rps, requests / rate_rps, seed)
        outcomes += served.outcomes[skipped:]
        watts.append(served.watts(served.outcomes[skipped].sent_s, served.outcomes[-1].sent_s))
    return GridPoint(
        rate_rps=round(rate_rps, 5),
        requests=len(outcomes),
        missed=sum(not outcome.is_good for outcome in outcomes),
        missed_ttft=sum("ttft" not in outcome.met for outcome in outcomes),
        watts=round(float(np.mean(watts)), 2),
    )


def long_grid(system: System) -> list[GridPoint]:
    """Return the grid, from a rate at which few enough requests miss upwards."""

    def share(rate_rps: float, scale: int) -> float:
        point = grid_point(system, rate_rps, range(1), RUN_REQUESTS // scale, SKIPPED // scale)
        return point.missed / point.requests

    low, high = 0.1, 200.0
    while high / low > 1.03:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if share(middle, 4) < LEAST_MISSED else (low, middle)
    points, rate, step = list[GridPoint](), low, 0.05
    while not points or points[-1].missed < MOST_MISSED * points[-1].requests:
        points.append(grid_point(system, rate, range(RUNS), RUN_REQUESTS, SKIPPED))
        if len(points) > 1:
            step *= min(1.5, LOGIT_STEP / max(0.01, points[-1].logit - points[-2].logit))
        step = min(max(step, 0.01), 0.12)
        rate *= math.exp(step)
    while wide := [pair for pair in pairwise(points) if _is_wide(*pair)]:
        rates = [math.sqrt(low.rate_rps * high.rate_rps) for low, high in wide]
        points += [grid_point(system, rate, range(RUNS), RUN_REQUESTS, SKIPPED) for rate in rates]
        points.sort(key=lambda point: point.rate_rps)
    return [_surer(system, point) for point in points]


def _is_wide(low: GridPoint, high: GridPoint) -> bool:
    return abs(high.logit - low.logit) > 2 * LOGIT_STEP and high.rate_rps > (1 + LEAST_STEP) * low.rate_rps


def _surer(system: System, point: GridPoint) -> GridPoint:
    """Return the point with more runs if few requests miss."""
    if point.missed > RARE * point.requests:
        return point
    more = grid_point(system, point.rate_rps, range(RUNS, RARE_RUNS), RUN_REQUESTS, SKIPPED)
    requests = point.requests + more.requests
    return GridPoint(
        rate_rps=point.rate_rps,
        requests=requests,
        missed=point.missed + more.missed,
        missed_ttft=point.missed_ttft + more.missed_ttft,
        watts=round((point.watts * point.requests + more.watts * more.requests) / requests, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure the grids that are known, too")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    grids = {} if args.again else read_grids()
    systems = [system for system in SYSTEMS if system.name not in grids]
    with ProcessPoolExecutor(args.jobs) as executor:
        for system, grid in zip(systems, executor.map(long_grid, systems), strict=True):
            grids[system.name] = grid
            TRUTH.write_bytes(msgspec.json.format(msgspec.json.encode(grids), indent=1))
            print(system.name, f"{len(grid)} rates", flush=True)


if __name__ == "__main__":
    main()
