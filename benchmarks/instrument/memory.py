"""Peak memory of the analysis and report of runs of many requests, made up, each in a process of its own.

    python -m benchmarks.instrument.memory --requests 1000000 --tokens 4
    python -m benchmarks.instrument.memory --requests 20000 --tokens 100

The rest of a run holds no more than the schedule and what is in flight; the peak memory in the table of bench.py is
that of whole runs.
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
    """Every request takes 50 ms to its first token and 20 ms to each next one."""
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
    """Of a process that analysed a run, in bytes."""

    before: int
    """With everything imported and nothing read."""
    peak: int


def finish(folder: Path) -> None:
    from loadgen.report.write import finish

    before = own_max_rss_bytes()
    finish(folder)
    print(before, own_max_rss_bytes())


def peak_of(requests: int, tokens: int) -> Peak:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), requests, tokens)
        said = subprocess.run([sys.executable, __file__, "--finish", name], check=True, capture_output=True, text=True)
    found = Peak(*map(int, said.stdout.split()))
    told = f"{found.before / 1e6:,.0f} MB before, {found.peak / 1e6:,.0f} MB at most"
    print(f"{requests:,} requests of {tokens} tokens: {told}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--finish", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.finish:
        finish(asked.finish)
        return
    half, whole = (peak_of(requests, asked.tokens) for requests in (asked.requests // 2, asked.requests))
    print(f"{(whole.peak - half.peak) / (asked.requests - asked.requests // 2):,.0f} bytes for each further request")


if __name__ == "__main__":
    main()
