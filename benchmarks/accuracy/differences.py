"""Measure how often `loadgen compare` reports a difference between two runs that have none.

    python -m benchmarks.accuracy.differences [--pairs 30] [--json FILE]

Every run is simulated, in virtual time: an engine of 16 sequences, prompts and answers of the shipped code trace,
Poisson and gamma (shape 0.25) arrivals at 0.5 and 0.9 of its capacity. The runs of a pair have arrivals and requests of
their own (independent), or the same schedule, of which each sends every request up to 10 ms late at random (paired). A
right 95 % interval excludes zero in 5 % of such pairs. Pairs are independent; the numbers of one pair are not.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.accuracy.saturation import TRACES, capacity_rps
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.results.difference import Differences, find_differences
from loadgen.results.run_folder import RunInfo, RunResult
from loadgen.results.summarize import analyse_run
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.arrivals import Process, offsets
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.trace import Trace, read_trace

SEQUENCES = 16
START_NS = 10 * NS_PER_S
"""Instant of the first request: the engine idles before, and the fit sees its idle power."""
LATEST_NS = 10 * NS_PER_MS
LIMITS_MS = {"ttft": 60.0, "tpot": 20.0}


@dataclass(frozen=True)
class Case:
    """A kind of run: `requests` of them at `load` times the capacity of the engine."""

    process: Process
    load: float
    requests: int
    paired: bool


CASES = [
    Case(process, load, requests, paired)
    for process, load, requests, paired in product(("poisson", "gamma"), (0.5, 0.9), (200, 1000), (False, True))
]


@cache
def trace_and_capacity() -> tuple[Trace, float]:
    trace = read_trace(TRACES / "code.jsonl")
    return trace, capacity_rps(trace, SEQUENCES)


def simulated_run(case: Case, seed: int, late_seed: int, power: float = 1.0) -> RunResult:
    """Return an analysed run; `seed` makes its schedule, `late_seed` the lateness of each request, and the counter runs
    `power` times as fast."""
    trace, capacity = trace_and_capacity()
    rng = np.random.default_rng(seed)
    seconds = case.requests / (case.load * capacity)
    sent_s = offsets(case.process, case.load * capacity, rng, burstiness=0.25, duration_s=2 * seconds)[: case.requests]
    picks = [trace.requests[i] for i in rng.integers(0, len(trace.requests), len(sent_s))]
    schedule = [
        ScheduledRequest(
            index=i,
            offset_ns=round(t * NS_PER_S),
            workload="code",
            input_tokens=pick.input_tokens,
            output_tokens=pick.output_tokens,
        )
        for i, (t, pick) in enumerate(zip(sent_s.tolist(), picks, strict=True))
    ]
    late_ns = np.random.default_rng(late_seed).integers(0, LATEST_NS, len(schedule)).tolist()
    sent = [START_NS + request.offset_ns + late for request, late in zip(schedule, late_ns, strict=True)]
    arrivals = [SubmittedRequest(t, pick.input_tokens, pick.output_tokens) for t, pick in zip(sent, picks, strict=True)]
    options = EngineOptions(max_num_seqs=SEQUENCES)
    run = simulate(arrivals, read_hardware("h200"), read_model("llama-3.1-8b"), options, tail_ns=NS_PER_S)
    records = [
        RequestRecord(
            index=request.index,
            workload="code",
            scheduled_ns=START_NS + request.offset_ns,
            sent_ns=at,
            first_token_ns=done.token_ns[0],
            last_token_ns=done.token_ns[-1],
            finished_ns=done.token_ns[-1],
            chunk_ns=done.token_ns,
            input_tokens=done.input_tokens,
            output_tokens=done.output_tokens,
            token_source="usage",
            status=200,
        )
        for request, at, done in zip(schedule, sent, run.requests, strict=True)
    ]
    info = RunInfo(
        run_id=f"{seed}-{late_seed}",
        loadgen_version="",
        config={"goodput": LIMITS_MS},
        seed=seed,
        requested_rps=case.load * capacity,
        schedule_sha256=str(seed),
        anchor=Anchor(0, 0),
        host={},
        versions={},
        server={"simulated": True},
        domains=[EnergyDomain(name="gpu:0", source="simulated", period_s=0.1)],
        start_ns=START_NS,
        end_ns=run.end_ns,
        stopped_by="completed",
    )
    counter = [msgspec.structs.replace(sample, joules=sample.joules * power) for sample in run.counter]
    return analyse_run(RunResult(info, schedule, records, counter, [], None, None))


def differences(case: Case, pair: int) -> Differences:
    """Return the differences of two runs of the same engine under the same kind of load."""
    seeds = (pair, pair) if case.paired else (2 * pair, 2 * pair + 1)
    runs = [
        simulated_run(case, seed, late_seed) for seed, late_seed in zip(seeds, (2 * pair, 2 * pair + 1), strict=True)
    ]
    return find_differences(*runs)


GROUPS = ("mean", "p50", "p90", "p99", "ratios and rates")


def group_of(path: str) -> str:
    """Return the column of the table that a number belongs to."""
    statistic = path.rpartition(".")[2]
    return statistic if statistic in GROUPS else GROUPS[-1]


def percents(outcomes: Sequence[bool | None]) -> str:
    """Return the share of the intervals that exclude zero, and how many there were."""
    given = [outcome for outcome in outcomes if outcome is not None]
    return f"{sum(given) / len(given):.1%} of {len(given):,}" if given else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs = [(case, pair) for case in CASES for pair in range(args.pairs)]
    with ProcessPoolExecutor() as workers:
        found = list(workers.map(differences, *zip(*jobs, strict=True), chunksize=4))
    outcomes: dict[Case, dict[str, list[bool | None]]] = {case: defaultdict(list) for case in CASES}
    for (case, _), result in zip(jobs, found, strict=True):
        for path, row in result.rows.items():
            if row.difference is not None and not path.startswith("ttfa"):
                outcomes[case][path].append(row.excludes_zero if row.half_width is not None else None)
    print(f"| runs | {' | '.join(GROUPS)} | all | no interval |\n|---|{'---:|' * (len(GROUPS) + 2)}")
    for case, by_path in outcomes.items():
        groups: dict[str, list[bool | None]] = defaultdict(list)
        for path, of_pairs in by_path.items():
            groups[group_of(path)] += of_pairs
        every = [outcome for of_pairs in by_path.values() for outcome in of_pairs]
        how = "paired" if case.paired else "independent"
        kind = f"{case.process}, load {case.load}, {case.requests:,} requests, {how}"
        cells = [percents(groups[group]) for group in GROUPS]
        print(f"| {kind} | {' | '.join(cells)} | {percents(every)} | {every.count(None) / len(every):.0%} |")
    if args.json:
        rows = [asdict(case) | {"excludes_zero": by_path} for case, by_path in outcomes.items()]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
