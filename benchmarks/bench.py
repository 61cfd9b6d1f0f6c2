"""The instrument's own speed and truth: server on one core, client on another, in turn.

    python benchmarks/bench.py --server-source S.c
    python benchmarks/bench.py --server-source S.c --only burst,poisson --rounds 5

What a client did is read from the server's log, never from the client; only TTFT errors need the client's own numbers.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

import numpy as np
import truth
from clients import CLIENTS, Client, Load

from loadgen.arrivals import index_of_dispersion, ks_exponential

Numbers = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One load, the server's options for it, and what to read from the run."""

    load: Load
    server: Sequence[str]
    read: "Callable[[Run], Numbers]"


@dataclass(frozen=True)
class Run:
    """What one client did with one load."""

    load: Load
    log: np.ndarray
    cpu_s: float
    max_rss_bytes: int
    started_ns: int
    ttft_ns: dict[bytes, int] | None
    """By request id, where the client says it."""


def throughput(run: Run) -> Numbers:
    wall_s = (run.log["t_end"].max() - run.log["t_rx"].min()) / 1e9
    events = int(run.log["ev_sent"].sum())
    return {
        "events/s": events / wall_s,
        "requests/s": len(run.log) / wall_s,
        "CPU s per 1M events": run.cpu_s / events * 1e6,
    }


def timing(run: Run) -> Numbers:
    """TTFT error: the client's TTFT minus first token written - request received, request by request."""
    events = int(run.log["ev_sent"].sum())
    found: Numbers = {
        "CPU s per 1M events": run.cpu_s / events * 1e6,
        "server's own lateness, ms p99": float(np.percentile(run.log["t_first"] - run.log["t_int_first"], 99)) / 1e6,
    }
    if run.ttft_ns:
        errors = [
            run.ttft_ns[row["xrid"]] - int(row["t_first"] - row["t_rx"])
            for row in run.log
            if row["xrid"] in run.ttft_ns
        ]
        found |= {f"TTFT error, ms p{q}": float(np.percentile(errors, q)) / 1e6 for q in (50, 99)}
    return found


def schedule(run: Run) -> Numbers:
    at = truth.arrivals_s(run.log)
    gaps = np.diff(at)
    distance, critical = ks_exponential(gaps)
    return {
        "rate/s": len(gaps) / float(at[-1]),
        "KS": distance,
        "KS critical 5 %": critical,
        "dispersion 1 s": index_of_dispersion(at, 1.0) or float("nan"),
        "dispersion 0.25 s": index_of_dispersion(at, 0.25) or float("nan"),
        "lag-1 autocorrelation": float(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]),
    }


def memory(run: Run) -> Numbers:
    return {"peak RSS MB": run.max_rss_bytes / 1e6, "requests": len(run.log)}


def startup(run: Run) -> Numbers:
    return {
        "launch to first request s": (int(run.log["t_rx"].min()) - run.started_ns) / 1e9,
        "peak RSS MB": run.max_rss_bytes / 1e6,
        "CPU s": run.cpu_s,
    }


def paced(streams: int, seconds: float = 10.0) -> Case:
    """A mean of `streams` at once: 250 tokens at 20 ms after a TTFT of 50 ms."""
    rate = streams / (0.05 + 249 * 0.02)
    return Case(
        Load(requests=round(rate * seconds), tokens=250, rate=rate), ("--ttft-ms", "50", "--itl-ms", "20"), timing
    )


CASES: dict[str, Case] = {
    "startup": Case(Load(requests=1, tokens=1, rate=100.0), ("--burst",), startup),
    "burst": Case(Load(requests=4000, tokens=200, streams=64), ("--burst",), throughput),
    "lone": Case(Load(requests=2000, tokens=200, streams=64), ("--burst-write", "1"), throughput),
    "one-token": Case(Load(requests=20000, tokens=1, streams=64), ("--burst",), throughput),
    **{f"paced-{streams}": paced(streams) for streams in (50, 200, 500, 1000)},
    "poisson": Case(
        Load(requests=8000, tokens=4, rate=400.0, poisson=True), ("--ttft-ms", "20", "--itl-ms", "5"), schedule
    ),
    "memory": Case(Load(requests=20000, tokens=100, streams=64), ("--burst",), memory),
}


def run_case(client: Client, case: Case, binary: Path, cores: tuple[int | None, int | None]) -> Run:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with truth.truthserver(binary, folder / "log", cores[0], *case.server) as url:
            command = truth.pinned(cores[1], client.command(url, case.load, folder))
            with (folder / "said").open("wb") as said:
                started_ns = monotonic_ns()
                process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=os.environ | client.env)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError((folder / "said").read_text(errors="replace")[-600:])
        log = truth.read(folder / "log")
        ids = client.ttft_ns(folder) if client.ttft_ns else None
        return Run(case.load, log, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, started_ns, ids)


def measure(names: Sequence[str], clients: Sequence[str], rounds: int, binary: Path) -> dict[str, dict[str, Numbers]]:
    """case -> client -> medians over the rounds; the clients take turns within a round."""
    cores = truth.spread_over_cores()
    found: dict[str, dict[str, Numbers]] = {}
    for name in names:
        rows: dict[str, list[Numbers]] = {client: [] for client in clients}
        for _ in range(rounds):
            for client in clients:
                try:
                    run = run_case(CLIENTS[client], CASES[name], binary, cores)
                    rows[client].append(CASES[name].read(run))
                except (RuntimeError, ValueError, subprocess.SubprocessError) as err:
                    print(f"{name} {client}: {err}", file=sys.stderr)
        found[name] = {client: _medians(values) for client, values in rows.items() if values}
        for client, numbers in found[name].items():
            print(
                f"{name:12} {client:14} " + "  ".join(f"{key} {value:,.3f}" for key, value in numbers.items()),
                flush=True,
            )
    return found


def _medians(rows: Sequence[Numbers]) -> Numbers:
    return {key: statistics.median(row[key] for row in rows if key in row) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases, with commas between: " + ", ".join(CASES))
    parser.add_argument("--client", action="append", choices=sorted(CLIENTS), help="repeatable; default: loadgen")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server-source", type=Path, required=True, help="C file of a server as in truth.py")
    parser.add_argument("--json", type=Path, help="also write the medians here")
    asked = parser.parse_args()
    clients = asked.client or ["loadgen"]
    for client in clients:
        if not CLIENTS[client].installed():
            print(f"{client}: not installed, left out", file=sys.stderr)
    clients = [client for client in clients if CLIENTS[client].installed()]
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        binary = truth.build(asked.server_source, Path(folder))
        found = measure(asked.only.split(",") if asked.only else list(CASES), clients, asked.rounds, binary)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
