"""Measure the time and memory of attribution: 100,000 requests, 20 million tokens, half an hour of counter updates.

    python -m benchmarks.accuracy.attribution_speed [--requests 100000] [--tokens 200]

The run is made up (lockstep streams on a 10 ms step, a counter that updates every 100 ms); only its size matters.
"""

import argparse
import resource
import time

import numpy as np

from loadgen.attribution.shapley import attribute_energy
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS

STEP_NS = 10 * NS_PER_MS


def made_up(requests: int, tokens: int, rng: np.random.Generator) -> tuple[list[RequestRecord], EnergySeries]:
    """Make streams that start at random steps, 60 per second, and get one chunk per step."""
    begins = np.sort(rng.integers(0, requests * 100 // 60, requests))
    records = []
    for index, begin in enumerate(begins.tolist()):
        chunks = ((begin + np.arange(1, tokens + 1)) * STEP_NS + rng.integers(0, 500_000)).tolist()
        records.append(
            RequestRecord(
                index=index,
                workload="chat",
                scheduled_ns=chunks[0],
                sent_ns=chunks[0] - STEP_NS + 1,
                first_token_ns=chunks[0],
                last_token_ns=chunks[-1],
                finished_ns=chunks[-1],
                chunk_ns=chunks,
                input_tokens=500,
                output_tokens=tokens,
                cached_tokens=0,
                token_source="usage",
            )
        )
    moves = np.arange(0, records[-1].chunk_ns[-1] + 200 * NS_PER_MS, 100 * NS_PER_MS)
    return records, EnergySeries("gpu:0", moves, np.cumsum(rng.integers(40_000, 70_000, len(moves))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    records, series = made_up(options.requests, options.tokens, np.random.default_rng(0))
    rss_before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    result = attribute_energy([series], records, int(series.t_ns[0]), int(series.t_ns[-1]))
    took = time.perf_counter() - start
    rss_peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.requests:,} requests, {options.requests * options.tokens:,} tokens, {len(series):,} windows")
    print(
        f"attribution {took:.1f} s; peak memory {rss_peak_mib:.0f} MiB, of which the records {rss_before_mib:.0f} MiB"
    )
    accounted = result.idle_mj + result.attributed_mj + result.unattributed_mj
    print(f"{result.measured_mj:,} mJ measured, {accounted:,} accounted for")


if __name__ == "__main__":
    main()
