"""Measure how often the engines' counters name the engine that served a request, where nothing else does.

    python -m benchmarks.accuracy.likely_engine [--requests 400] [--seeds 5]

Simulated replicas in virtual time, chat-like lengths, Poisson arrivals; each request goes to one of them by chance. The
counters are read twice a second, as by `loadgen replay`. `placed` is the share of the requests for which an engine is
likelier than not, `right` the share of these that were there, `sure` the mean of their stated probability.
"""

import argparse

import numpy as np

from loadgen.attribution.likely_engine import engine_probabilities
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.results.engine_parts import LIKELY
from loadgen.simulator.engine import SubmittedRequest, simulate
from loadgen.units import NS_PER_MS, NS_PER_S

PERIOD_MS, SAMPLE_MS = 500, 100


def outcomes(rps: float, replicas: int, requests: int, seed: int) -> tuple[float, float, float]:
    """Return the share of requests that are placed, the share of these that were there, and the mean of their stated
    probability."""
    rng = np.random.default_rng(seed)
    instants = (np.cumsum(rng.exponential(NS_PER_S / rps, requests)) + NS_PER_S).astype(np.int64)
    prompts = np.clip(rng.lognormal(6.6, 1.0, requests), 10, 8000).astype(np.int64)
    answers = np.clip(rng.lognormal(5.1, 0.7, requests), 2, 1500).astype(np.int64)
    truth = rng.integers(0, replicas, requests)
    records: dict[int, RequestRecord] = {}
    engines = []
    for engine in range(replicas):
        rows = np.flatnonzero(truth == engine).tolist()
        submitted = [SubmittedRequest(int(instants[row]), int(prompts[row]), int(answers[row])) for row in rows]
        run = simulate(submitted, read_hardware("h200"), read_model("llama-3.1-8b"), tail_ns=NS_PER_S)
        phase = int(rng.integers(0, PERIOD_MS // SAMPLE_MS))
        engines.append(run.engine[phase :: PERIOD_MS // SAMPLE_MS])
        for row, request in zip(rows, run.requests, strict=True):
            chunk_ns = [t_ns + NS_PER_MS for t_ns in request.token_ns]
            records[row] = RequestRecord(
                index=row, workload="chat", scheduled_ns=request.arrival_ns, sent_ns=request.arrival_ns,
                first_token_ns=chunk_ns[0], last_token_ns=chunk_ns[-1], finished_ns=chunk_ns[-1], chunk_ns=chunk_ns,
                input_tokens=request.input_tokens, output_tokens=request.output_tokens, token_source="usage",
            )  # fmt: skip
    likely = engine_probabilities([records[row] for row in range(requests)], engines, [None] * requests)
    placed = likely.max(axis=1) > LIKELY  # False for NaN
    right = likely.argmax(axis=1) == truth
    return float(placed.mean()), float(right[placed].mean()), float(likely.max(axis=1)[placed].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print("replicas  rate/s  placed   right    sure")
    for replicas in (2, 4):
        for rps in (1.0, 4.0, 8.0, 20.0):
            runs = [outcomes(rps, replicas, options.requests, seed) for seed in range(options.seeds)]
            placed, right, sure = np.mean(runs, axis=0)
            print(f"{replicas:8}  {rps:6.0f}  {placed:6.1%}  {right:6.1%}  {sure:6.1%}", flush=True)


if __name__ == "__main__":
    main()
