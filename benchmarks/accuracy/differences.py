"""Measure how often `loadgen compare` reports a difference between two runs that have none.

    python -m benchmarks.accuracy.differences [--pairs 60] [--workers 1] [--json FILE]

Every run is simulated, in virtual time: an engine of 16 sequences, prompts and answers of the shipped code trace,
Poisson and gamma (shape 0.25) arrivals at 0.3, 0.6 and 0.9 of its capacity. The runs of a pair have arrivals and
requests of their own (independent), or the same schedule, of which each sends every request up to 10 ms late at random
(paired). A right 95 % interval excludes zero in 5 % of such pairs. The numbers of one pair depend on one another.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.accuracy.saturation import TRACES, capacity_rps
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.results.difference import Differences, differences_of_repeats, find_differences
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
    *(Case("poisson", load, requests, False) for load in (0.3, 0.6, 0.9) for requests in (200, 2000)),
    Case("gamma", 0.6, 200, False),
    Case("poisson", 0.9, 200, True),
]
REPEATS = 3
"""Runs on each side of a comparison of repeats."""
DRAWS = 200
"""Comparisons of repeats, which are drawn from the same runs."""


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


def pairs_of(case: Case, count: int) -> list[tuple[RunResult, RunResult]]:
    """Return `count` pairs of runs of the same engine under the same kind of load.

    Independent runs stand in a ring, each beside the next, so that a run is in two pairs; those of a paired case share
    their schedule.
    """
    seeds = range(1000 * case.requests, 1000 * case.requests + count)
    if case.paired:
        return [(simulated_run(case, seed, 2 * seed), simulated_run(case, seed, 2 * seed + 1)) for seed in seeds]
    runs = [simulated_run(case, seed, seed) for seed in seeds]
    return list(zip(runs, runs[1:] + runs[:1], strict=True))


def repeats_of(case: Case, pairs: Sequence[tuple[RunResult, RunResult]]) -> Iterator[Differences]:
    """Yield the differences of REPEATS runs from as many others, drawn from all of them, DRAWS times."""
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        chosen = [pairs[i] for i in rng.choice(len(pairs), REPEATS if case.paired else 2 * REPEATS, replace=False)]
        firsts = [first for first, _ in chosen]
        sides = (firsts, [second for _, second in chosen]) if case.paired else (firsts[:REPEATS], firsts[REPEATS:])
        yield differences_of_repeats(*sides)


GROUPS = ("mean", "p50", "p90", "p99", "ratios and rates")


def group_of(path: str) -> str:
    """Return the column of the table that a number belongs to."""
    statistic = path.rpartition(".")[2]
    return statistic if statistic in GROUPS else GROUPS[-1]


def percents(outcomes: Sequence[bool | None]) -> str:
    """Return the share of the intervals that exclude zero, and how many there were."""
    given = [outcome for outcome in outcomes if outcome is not None]
    return f"{sum(given) / len(given):.1%} of {len(given):,}" if given else "-"


Outcomes = dict[str, list[bool | None]]
"""Answers to whether the intervals of a number exclude zero, by its path; None where there is no interval."""


def outcomes_of(found: Iterable[Differences]) -> Outcomes:
    outcomes: Outcomes = defaultdict(list)
    for result in found:
        for path, row in result.rows.items():
            if row.difference is not None and not path.startswith("ttfa"):
                outcomes[path].append(row.excludes_zero if row.half_width is not None else None)
    return outcomes


def measured(case: Case, count: int) -> dict[str, Outcomes]:
    """Return the outcomes of a case with one run a side, and with several."""
    pairs = pairs_of(case, count)
    return {
        "one run a side": outcomes_of(find_differences(*pair) for pair in pairs),
        f"{REPEATS} runs a side": outcomes_of(repeats_of(case, pairs)),
    }


def row_of(case: Case, sides: str, by_path: Outcomes) -> str:
    groups: Outcomes = defaultdict(list)
    for path, outcomes in by_path.items():
        groups[group_of(path)] += outcomes
    every = [outcome for outcomes in by_path.values() for outcome in outcomes]
    how = "paired" if case.paired else "independent"
    kind = f"{case.process}, load {case.load}, {case.requests:,} requests, {how}, {sides}"
    cells = [percents(groups[group]) for group in GROUPS]
    return f"| {kind} | {' | '.join(cells)} | {percents(every)} | {every.count(None) / len(every):.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"| runs | {' | '.join(GROUPS)} | all | no interval |\n|---|{'---:|' * (len(GROUPS) + 2)}")
    rows = []
    with ProcessPoolExecutor(args.workers) as workers:
        for case, by_sides in zip(CASES, workers.map(measured, CASES, [args.pairs] * len(CASES)), strict=True):
            for sides, by_path in by_sides.items():
                print(row_of(case, sides, by_path), flush=True)
                rows.append(asdict(case) | {"sides": sides, "excludes_zero": by_path})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
