"""Measure how often the verdict calls a server saturated, at loads below and above its capacity.

    python -m benchmarks.accuracy.saturation [--seeds 4] [--json FILE]

Every run is simulated, in virtual time: an engine of 16 or 256 sequences, prompts and answers of the shipped traces in
random order, Poisson, gamma (shape 0.25) and constant arrivals, 15 and 60 seconds. Capacity is the rate at which the
engine completes requests when far too many come (the middle 60 % of them). Runs of fewer than 40 requests are left out.
"""

import argparse
import json
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.results.saturation import MIN_REQUESTS, Saturation, find_saturation
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.stats.arrays import Floats
from loadgen.units import NS_PER_S
from loadgen.workload.arrivals import Process, offsets
from loadgen.workload.trace import Trace, read_trace

TRACES = Path(__file__).parents[2] / "traces"
LOADS = (0.2, 0.5, 0.8, 0.9, 0.95, 1.1, 1.3, 1.5, 2.0, 3.0)
ARRIVALS: tuple[Process, ...] = ("poisson", "gamma", "constant")
DURATIONS_S = (15, 60)
ENGINES = (16, 256)
OVERLOAD_RPS, OVERLOAD_S = 2000, 2


def served(trace: Trace, sequences: int, sent_s: Floats, seed: int) -> tuple[Floats, Floats]:
    """Return the first and the last token of requests sent at these instants, in seconds."""
    order = np.random.default_rng(seed).permutation(len(trace.requests))
    picks = (trace.requests[i] for i in np.resize(order, len(sent_s)))
    requests = [
        SubmittedRequest(round(t * NS_PER_S), pick.input_tokens, pick.output_tokens)
        for t, pick in zip(sent_s.tolist(), picks, strict=True)
    ]
    counter = CounterOptions(period_ns=NS_PER_S)
    options = EngineOptions(max_num_seqs=sequences)
    run = simulate(requests, read_hardware("h200"), read_model("llama-3.1-8b"), options, counter)
    tokens = [(request.token_ns[0], request.token_ns[-1]) for request in run.requests]
    first_s, last_s = np.array(tokens, dtype=np.float64).T / NS_PER_S
    return first_s, last_s


def capacity_rps(trace: Trace, sequences: int) -> float:
    sent_s = offsets("poisson", OVERLOAD_RPS, np.random.default_rng(0), duration_s=OVERLOAD_S)
    _, ended_s = served(trace, sequences, sent_s, 0)
    low, high = np.quantile(ended_s, [0.2, 0.8])
    return 0.6 * len(ended_s) / float(high - low)


def verdict(sent_s: Floats, begun_s: Floats, ended_s: Floats) -> Saturation | None:
    return find_saturation(sent_s, begun_s, "begun") or find_saturation(sent_s, ended_s, "answered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: defaultdict[tuple[float, int], list[Saturation | None]] = defaultdict(list)
    for name, sequences in product(("chat", "code"), ENGINES):
        trace = read_trace(TRACES / f"{name}.jsonl")
        capacity = capacity_rps(trace, sequences)
        print(f"{name}, {sequences} sequences: {capacity:.1f} requests/s", flush=True)
        for load, process, duration_s, seed in product(LOADS, ARRIVALS, DURATIONS_S, range(args.seeds)):
            rng = np.random.default_rng([seed, sequences])
            sent_s = offsets(process, load * capacity, rng, burstiness=0.25, duration_s=duration_s)
            if len(sent_s) >= MIN_REQUESTS:
                found[load, duration_s].append(verdict(sent_s, *served(trace, sequences, sent_s, seed)))
    print(f"\n{'load':>5} {'seconds':>8} {'runs':>5} {'saturated':>10} {'from (median)':>14}")
    for (load, duration_s), runs in sorted(found.items()):
        saturated = [run for run in runs if run is not None]
        since = f"{median(run.from_s for run in saturated):.1f} s" if saturated else "-"
        print(f"{load:5.2f} {duration_s:8d} {len(runs):5d} {len(saturated) / len(runs):10.1%} {since:>14}")
    if args.json:
        rows = [
            {"load": load, "seconds": seconds, "runs": len(runs), "saturated": sum(run is not None for run in runs)}
            for (load, seconds), runs in sorted(found.items())
        ]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
