"""Measure the peak memory of the analysis and report of large made-up runs, each in a process of its own.

    python -m benchmarks.instrument.memory --requests 1000000 --tokens 4
    python -m benchmarks.instrument.memory --requests 20000 --tokens 100

While a run lasts, it holds only the schedule and the requests in flight; the table of compare_clients has the peak
memory of whole runs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.clock import Anchor
from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunInfo
from loadgen.run.process_stats import own_max_rss_bytes
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import ScheduledRequest

GAP_NS = 100_000
START_NS = 10**15


def write(folder: Path, requests: int, tokens: int) -> None:
    """Write a run folder whose requests take 50 ms to the first token and 20 ms to each next one."""
    encode = msgspec.json.Encoder().encode
    info = RunInfo(
        run_id="memory", loadgen_version="0", config={}, seed=0, requested_rps=1e9 / GAP_NS, schedule_sha256="",
        anchor=Anchor(0, 0), host={}, versions={}, server={"base_url": "", "model": "m"}, domains=[],
        start_ns=START_NS, stopped_by="completed",
    )  # fmt: skip
    (folder / "run.json").write_bytes(encode(info))
    with (folder / "schedule.jsonl").open("wb") as plan, (folder / "records.jsonl").open("wb") as records:
        for index in range(requests):
            plan.write(encode(_scheduled(index, tokens)) + b"\n")
            records.write(encode(_record(index, tokens)) + b"\n")


def _scheduled(index: int, tokens: int) -> ScheduledRequest:
    return ScheduledRequest(
        index=index, offset_ns=index * GAP_NS, workload="chat", input_tokens=1000 + index % 1000, output_tokens=tokens
    )


def _record(index: int, tokens: int) -> RequestRecord:
    at_ns = START_NS + index * GAP_NS
    sent_ns = at_ns + index % 1000 * 1000
    chunk_ns = [sent_ns + (50 + 20 * i) * NS_PER_MS for i in range(tokens)]
    return RequestRecord(
        index=index, workload="chat", scheduled_ns=at_ns, sent_ns=sent_ns, first_token_ns=chunk_ns[0],
        last_token_ns=chunk_ns[-1], finished_ns=chunk_ns[-1] + 1000, chunk_ns=chunk_ns,
        input_tokens=1000 + index % 1000, output_tokens=tokens, token_source="usage", status=200,
        finish_reason="length",
    )  # fmt: skip


class Peak(NamedTuple):
    """Memory of a process that analysed a run, in bytes."""

    imported: int
    """Peak after the imports, before anything was read."""
    peak: int


def analyse(folder: Path) -> None:
    from loadgen.report.write import finish

    imported_bytes = own_max_rss_bytes()
    finish(folder)
    print(imported_bytes, own_max_rss_bytes())


def peak_of(requests: int, tokens: int) -> Peak:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), requests, tokens)
        process = subprocess.run(
            [sys.executable, __file__, "--finish", name], check=True, capture_output=True, text=True
        )
    measured = Peak(*map(int, process.stdout.split()))
    text = f"{measured.imported / 1e6:,.0f} MB before, {measured.peak / 1e6:,.0f} MB at most"
    print(f"{requests:,} requests of {tokens} tokens: {text}")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--finish", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.finish:
        analyse(options.finish)
        return
    half, full = (peak_of(requests, options.tokens) for requests in (options.requests // 2, options.requests))
    print(f"{(full.peak - half.peak) / (options.requests - options.requests // 2):,.0f} bytes for each further request")


if __name__ == "__main__":
    main()
