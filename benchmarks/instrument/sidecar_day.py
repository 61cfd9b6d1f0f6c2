"""Keep a sidecar's ledger for a day at 100 requests/s in virtual time: its memory, its CPU time, its files.

    python -m benchmarks.instrument.sidecar_day [--hours 24] [--rps 100] [--json FILE]

Ten simulated minutes are repeated with shifted clocks and new ids, and go into the real Ledger, Settlement and
LedgerWriter, a tick a second, without sockets: parsing and HTTP are in sidecar_cost. The CPU time is that of the
process in these calls, its writing thread among it; making the spans is not counted. At the end `loadgen bill` sums the
folder in a process of its own. A day of ledger needs 4 GB of disk: it is in a temporary folder, and deleted.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.accuracy.virtual_sidecar import (
    ENGINE_PERIOD_NS,
    MODEL,
    Received,
    VirtualSidecar,
    seconds_of,
    spans_of,
)
from benchmarks.instrument.sidecar_cost import INPUT_TOKENS, resident_mb
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.units import NS_PER_S

OUTPUT_TOKENS = 150
RECORDED_S = 600
"""Simulated time that is repeated; its last seconds run empty."""
QUIET_S = 15
MARKS_H = (0.1, 1, 6, 24)
"""Hours at which the memory is noted; the end is noted too."""
COUNTERS = ("generation_tokens", "prompt_tokens", "iterations", "cached_tokens")


@dataclass
class Day:
    """Measurements so far."""

    hours: float = 0.0
    requests: int = 0
    cpu_s: float = 0.0
    """CPU time of the ledger's calls."""
    resident_mb: dict[str, float] = field(default_factory=dict)
    """Resident memory, by hour."""
    folder_gb: float = 0.0
    files: int = 0
    counter_j: float = 0.0
    bill_s: float | None = None
    bill_mb: float | None = None
    billed_requests: int | None = None
    billed_j: float | None = None

    @property
    def share(self) -> float:
        """CPU seconds per simulated second."""
        return self.cpu_s / (3600 * self.hours)


def recorded(rps: float) -> list[tuple[int, Received]]:
    """Return the seconds of RECORDED_S: requests with Poisson arrivals and lengths spread around the means."""
    rng = np.random.default_rng(0)
    at_s = np.cumsum(rng.exponential(1 / rps, round(rps * (RECORDED_S - QUIET_S))))
    lengths = (np.maximum(rng.gamma(4, mean / 4, len(at_s)), 1).astype(int) for mean in (INPUT_TOKENS, OUTPUT_TOKENS))
    arrivals = [
        SubmittedRequest(int(at * NS_PER_S), *map(int, of)) for at, *of in zip(at_s.tolist(), *lengths, strict=True)
    ]
    run = simulate(
        arrivals, read_hardware("h200"), read_model(MODEL), EngineOptions(max_num_seqs=1024),
        engine_period_ns=ENGINE_PERIOD_NS, tail_ns=2 * QUIET_S * NS_PER_S,
    )  # fmt: skip
    tenants = [f"tenant-{number % 20}" for number in range(len(arrivals))]
    return list(seconds_of(run.counter, run.engine, spans_of(run, tenants), RECORDED_S * NS_PER_S))


def repeated(seconds: list[tuple[int, Received]], hours: float) -> Iterator[tuple[int, Received]]:
    """Yield the seconds of so many hours: clocks go on, counters go on, each request has an id of its own."""
    last = [received for _, received in seconds]
    joules = max(sample.joules for received in last for sample in received.energy)
    totals = next(dict(received.engine[-1]) for received in reversed(last) if received.engine)
    for turn in range(round(hours * 3600 / RECORDED_S)):
        ahead_ns = turn * RECORDED_S * NS_PER_S
        more = {name: turn * totals[name] for name in COUNTERS}
        for now_ns, (energy, engine, spans) in seconds:
            yield now_ns + ahead_ns, Received(
                [
                    msgspec.structs.replace(sample, t_ns=sample.t_ns + ahead_ns, joules=sample.joules + turn * joules)
                    for sample in energy
                    if turn == 0 or sample.t_ns > 0
                ],
                [
                    {**sample, "t_ns": sample["t_ns"] + ahead_ns, **{name: sample[name] + more[name] for name in more}}
                    for sample in engine
                ],
                [
                    msgspec.structs.replace(
                        span.moved(lambda t_ns, ahead_ns=ahead_ns: t_ns + ahead_ns),
                        key=f"{turn}-{span.key}", request_id=f"{turn}-{span.key}",
                        trace_id=turn.to_bytes(4) + span.trace_id[4:],
                    )
                    for span in spans
                ],
            )  # fmt: skip


async def kept(day: Day, folder: Path, options: argparse.Namespace) -> None:
    """Keep the ledger in a folder, and note what it takes."""
    sidecar = VirtualSidecar(folder)
    marks = [mark for mark in MARKS_H if mark < options.hours]
    for now_ns, received in repeated(recorded(options.rps), options.hours):
        start_s = time.process_time()
        snapshot = await sidecar.tick(now_ns, received)
        day.cpu_s += time.process_time() - start_s
        day.requests += len(received.spans)
        day.hours = now_ns / NS_PER_S / 3600
        if marks and day.hours >= marks[0]:
            day.resident_mb[f"{marks.pop(0):g}"] = round(resident_mb(os.getpid()), 1)
            noted(day, folder, options)
    day.counter_j = sum(domain.committed_mj for domain in snapshot.domains) / 1000
    sidecar.settlement.close()
    day.resident_mb[f"{day.hours:g}"] = round(resident_mb(os.getpid()), 1)
    noted(day, folder, options)


def noted(day: Day, folder: Path, options: argparse.Namespace) -> None:
    """Print what is known, and save it."""
    sizes = [path.stat().st_size for path in folder.glob("*.jsonl")]
    day.folder_gb, day.files = sum(sizes) / 1e9, len(sizes)
    memory = ", ".join(f"{mb:.0f} MB at {hour} h" for hour, mb in day.resident_mb.items())
    print(
        f"{day.hours:g} h, {day.requests:,} requests: {100 * day.share:.2f} % of a core, {memory}; "
        f"{day.folder_gb:.2f} GB in {day.files} files",
        flush=True,
    )
    if options.json:
        options.json.write_text(json.dumps(asdict(day) | {"core_share": day.share}, indent=1) + "\n")


def billed(day: Day, folder: Path) -> None:
    """Sum the folder with the command, in a process of its own."""
    start_s, day.bill_mb = time.monotonic(), 0.0
    command = [sys.executable, "-m", "loadgen", "bill", str(folder), "--by", "tenant", "--json"]
    with tempfile.TemporaryFile() as output, subprocess.Popen(command, stdout=output) as child:
        while child.poll() is None:
            with suppress(OSError, StopIteration):  # it has just ended
                day.bill_mb = max(day.bill_mb, resident_mb(child.pid))
            time.sleep(0.05)
        output.seek(0)
        lines = json.load(output)["lines"]
    day.bill_s = round(time.monotonic() - start_s, 1)
    day.billed_requests = sum(line["requests"] or 0 for line in lines)
    day.billed_j = sum(line["energy_mj"] for line in lines) / 1000
    print(
        f"loadgen bill: {day.bill_s:.0f} s, {day.bill_mb:.0f} MB; {day.billed_requests:,} requests, "
        f"{day.billed_j:,.3f} J of the counter's {day.counter_j:,.3f} J"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--rps", type=float, default=100.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="folder in which the temporary one is made")
    options = parser.parse_args()
    needed_gb = 4.5 * options.hours / 24 * options.rps / 100
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if shutil.disk_usage(name).free < needed_gb * 1e9:
            sys.exit(f"{name}: the ledger needs {needed_gb:.1f} GB")
        day, folder = Day(), Path(name)
        asyncio.run(kept(day, folder, options))
        billed(day, folder)
        noted(day, folder, options)


if __name__ == "__main__":
    main()
