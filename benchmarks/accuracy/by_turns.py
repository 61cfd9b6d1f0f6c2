"""Measure disaggregated and aggregated serving on one GPU, which plays each GPU of a pair in turn.

    vllm serve MODEL --gpu-memory-utilization 0.93 --enable-prompt-tokens-details    with prefix caching, its default
    python -m benchmarks.accuracy.by_turns FOLDER [--base-url URL] [--rps 4 --rps 14] [--duration 45] > by-turns.json

For each load there are five runs in FOLDER, of the same arrivals and lengths:

    loadRATE-half0, -half1    every second request, as a router would give it to one of two replicas
    loadRATE-prefill          all prompts, with answers of one token
    loadRATE-decode           all requests, each when its prefill was done; the engine has its prompt in the cache
    loadRATE-whole            all requests

Prompts repeat only from the prefills to the decodes. The engine has to have room for all prompts of a load in its
cache, and computes the last block of a prompt again where it is not full. No keys and values are transferred. Runs that
are in FOLDER are not made again. The sums of all runs there are printed.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import loadgen
from benchmarks.accuracy.several_engines import condense
from loadgen.results.run_folder import read_run
from loadgen.workload.load import Load, planned_schedule
from loadgen.workload.prompts import BLOCK_TOKENS
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.words import WordsFile

MIX = {"chat": 0.75, "code": 0.25}
SEED = 1
PRINTED = (
    "engine_version",
    "devices",
    "duration_s",
    "requests",
    "completed",
    "tokens",
    "latency_ms",
    "gpus",
    "engines",
)


def requests_of(rps: float, duration_s: float) -> Sequence[ScheduledRequest]:
    """Return the arrivals and lengths of a load of conversations and code."""
    streams = tuple(f"{name}:{share * rps:g}" for name, share in MIX.items())
    load = Load(streams=streams, duration_s=duration_s, seed=SEED)
    with tempfile.TemporaryFile() as words:
        schedule, _ = planned_schedule(load, WordsFile(words), None, say=print)
    return schedule.requests


def lines_of(requests: Sequence[ScheduledRequest]) -> list[dict[str, Any]]:
    """Return the requests as lines of a trace, whose prompts depend on their ids and on the seed of a run alone."""
    lines, block = [], 0
    for request in requests:
        assert request.input_tokens
        blocks = -(-request.input_tokens // BLOCK_TOKENS)
        lines.append({
            "timestamp": request.offset_ns / 1e6, "workload": request.workload, "input_length": request.input_tokens,
            "output_length": request.output_tokens, "hash_ids": list(range(block, block + blocks)),
        })  # fmt: skip
        block += blocks
    return lines


def after_prefill(lines: Sequence[dict[str, Any]], ttft_s: Sequence[float]) -> list[dict[str, Any]]:
    """Return the requests in the order in which their prefills were done, at these instants."""
    done = [line | {"timestamp": line["timestamp"] + wait * 1e3} for line, wait in zip(lines, ttft_s, strict=True)]
    return sorted(done, key=lambda line: line["timestamp"])


def measure(folder: Path, rps: float, duration_s: float, **options: Any) -> None:
    """Make the runs of a load that are not there. ValueError if a prefill failed."""

    def run(name: str, lines: Sequence[dict[str, Any]], seed: int) -> loadgen.Run:
        out = folder / f"load{rps:g}-{name}"
        if (out / "summary.json").exists():
            return loadgen.read(out)
        return loadgen.replay(lines, seed=seed, out=out, ui="plain", idle_s=5.0, **options)

    lines = lines_of(requests_of(rps, duration_s))
    for half in (0, 1):
        run(f"half{half}", lines[half::2], half)
    run("whole", lines, 2)
    prefills = run("prefill", [line | {"output_length": 1} for line in lines], 3)
    waits_s = prefills.requests["ttft_s"]
    if np.isnan(waits_s).any():
        raise ValueError(f"{prefills.path}: a prefill failed, so that its decode has no instant")
    run("decode", after_prefill(lines, waits_s.tolist()), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--rps", type=float, action="append", default=[])
    parser.add_argument("--duration", type=float, default=45.0)
    options = parser.parse_args()
    url = options.base_url
    for rps in options.rps:
        engine = f"a={url.removesuffix('/v1')},gpus=0"
        measure(options.folder, rps, options.duration, base_url=url, energy="nvml", engines=[engine])
    lines = []
    for file in sorted(options.folder.glob("load*/run.json")):
        run = condense(read_run(file.parent))
        lines.append(f"{json.dumps(file.parent.name)}: {json.dumps({field: run[field] for field in PRINTED})}")
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
