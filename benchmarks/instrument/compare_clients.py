"""loadgen and its peers, side by side: the server of known timing on one core, a client on the other, in turn.

    python -m benchmarks.instrument.compare_clients          every client that is installed, about 8 minutes
    python -m benchmarks.instrument.compare_clients --client loadgen --only burst,poisson --rounds 5
    python -m benchmarks.instrument.compare_clients --publish     the same; docs/benchmarks.md gets the table

What a client did is read from the server's log: when requests came, when tokens were written. What it says about a
request is compared with that, request by request, gap by gap.
"""

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from time import monotonic, monotonic_ns, strftime
from typing import Any

import numpy as np

from benchmarks.instrument import process_tree, results_table, timing_server
from benchmarks.instrument.clients import CLIENTS, Answers, Client, Load
from loadgen.stats.distributions import index_of_dispersion, ks_exponential

Numbers = dict[str, float]
TTFT_MS, ITL_MS, TOKENS = 50, 20, 150
LIFETIME_S = (TTFT_MS + (TOKENS - 1) * ITL_MS) / 1e3
HOPELESS_MS = 100.0
"""A client whose TTFT error has such a p99 is not asked for more streams."""
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Case:
    """One load, the server's options for it, and what to read from the run."""

    load: Load
    server: Sequence[str]
    read: "Callable[[Run], Numbers]"


@dataclass(frozen=True)
class Run:
    """What one client did with one load."""

    log: timing_server.Log
    usage: process_tree.Usage
    started_ns: int
    answers: Answers

    @property
    def span_ns(self) -> tuple[int, int]:
        """From the first request's arrival to the last one's end."""
        return int(self.log.requests["arrived_ns"].min()), int(self.log.requests["ended_ns"].max())


def common(run: Run) -> Numbers:
    start, end = run.span_ns
    events = int(run.log.requests["events"].sum())
    return {
        "start_s": (start - run.started_ns) / 1e9,
        "rss_mb": float(run.usage.rss_bytes.max()) / 1e6,
        "cpu_s_per_million_events": run.usage.cpu_between_s(start, end) / events * 1e6,
        "requests": len(run.log.requests),
    }


def throughput(run: Run) -> Numbers:
    start, end = run.span_ns
    wall_s = (end - start) / 1e9
    events = int(run.log.requests["events"].sum())
    return {"events_per_s": events / wall_s, "requests_per_s": len(run.log.requests) / wall_s}


def timing(run: Run) -> Numbers:
    """What the client said minus the truth, ms, of requests that came once the first ones were about to end."""
    settled = run.log.only(run.log.requests["arrived_ns"] > run.span_ns[0] + LIFETIME_S * 1e9)
    return {
        "server_late_ms_p99": float(np.percentile(settled.requests["late_max_ns"], 99)) / 1e6,
        "answered": float(np.mean([_answer(run.answers, row) is not None for row in settled.requests])),
        **errors_ms(settled, run.answers),
    }


def errors_ms(log: timing_server.Log, answers: Answers) -> Numbers:
    """Percentiles of TTFT error (signed), and of the errors of gaps and of their mean in each request (absolute)."""
    ttft, gaps, tpot = [], [], []
    for row in log.requests:
        said, wrote = _answer(answers, row), log.writes_of(row)
        if said is None:
            continue
        ttft.append(said.ttft_ns - int(wrote[0] - row["arrived_ns"]))
        if said.tpot_ns is not None:
            tpot.append(abs(said.tpot_ns - np.diff(wrote).mean()))
        if said.gaps_ns is not None and len(said.gaps_ns) == len(wrote) - 1:
            gaps.append(np.abs(said.gaps_ns - np.diff(wrote)))
    parts = {"ttft": ttft, "itl": np.concatenate(gaps) if gaps else [], "tpot": tpot}
    return {
        f"{name}_error_ms_p{q}": float(np.percentile(values, q)) / 1e6
        for name, values in parts.items()
        if len(values)
        for q in (50, 99)
    }


def _answer(answers: Answers, row: np.void) -> "object | None":
    return answers.get(bytes(row["request_id"])) or answers.get(int(row["seq"]))


def schedule(run: Run) -> Numbers:
    at = run.log.arrivals_s()
    gaps = np.diff(at)
    distance, critical = ks_exponential(gaps)
    return {
        "rate_per_s": len(gaps) / float(at[-1]),
        "ks": distance,
        "ks_critical": critical,
        "dispersion_1s": index_of_dispersion(at, 1.0) or float("nan"),
        "dispersion_250ms": index_of_dispersion(at, 0.25) or float("nan"),
        "lag1": float(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]),
    }


def paced(streams: int, seconds: float = 7.0) -> Case:
    rate = round(streams / LIFETIME_S, 3)
    load = Load(requests=round(rate * seconds), tokens=TOKENS, rate=rate, lasts_s=LIFETIME_S)
    return Case(load, ("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS)), timing)


CASES: dict[str, Case] = {
    "burst": Case(Load(requests=6000, tokens=200, streams=64), ("--burst",), throughput),
    "one-token": Case(Load(requests=20000, tokens=1, streams=64), ("--burst",), throughput),
    "paced-500": paced(500),
    "poisson": Case(
        Load(requests=4800, tokens=4, rate=400.0, lasts_s=0.035), ("--ttft-ms", "20", "--itl-ms", "5"), schedule
    ),
    "paced-1000": paced(1000),
    "paced-200": paced(200),
    "lone": Case(Load(requests=2000, tokens=200, streams=64), ("--burst-write", "1"), throughput),
    "paced-50": paced(50),
}
"""In the order in which they are run: what tells most comes before time is up."""


def run_case(client: Client, case: Case, binary: Path) -> Run:
    """RuntimeError with its last words when the client fails or does not end in time."""
    cores = timing_server.spread_over_cores()
    load = (
        case.load if case.load.rate else replace(case.load, requests=max(128, round(case.load.requests * client.share)))
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with timing_server.started(binary, folder / "log", cores[0], *case.server) as url:
            command = timing_server.pinned(cores[1], client.command(url, load, folder))
            started_ns, usage = monotonic_ns(), _watched(command, client.env, folder)
        log = timing_server.read(folder / "log", client.prefix)
        if not len(log.requests):
            raise RuntimeError("no request arrived")
        return Run(log.only(log.requests["events"] > 0), usage, started_ns, client.said(folder))


def _watched(command: Sequence[str], env: dict[str, str], folder: Path) -> process_tree.Usage:
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder, process_group=0,
            env=os.environ | {"PYTHONPATH": str(timing_server.SOURCE.parents[1])} | env,
        )  # fmt: skip
        try:
            usage = process_tree.run(process, TIMEOUT_S)
        except subprocess.TimeoutExpired as err:
            raise RuntimeError(f"not done after {TIMEOUT_S:.0f} s") from err
        finally:
            _end(process)
    if process.returncode:
        lines = (folder / "said").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit status {process.returncode}: {lines[-1] if lines else 'silent'}"[:300])
    return usage


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Its whole group, workers too."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


@dataclass(frozen=True)
class Cell:
    """All rounds of one client with one load."""

    rounds: list[Numbers]
    failure: str | None = None

    def medians(self) -> Numbers:
        keys = self.rounds[0] if self.rounds else {}
        return {key: statistics.median(one[key] for one in self.rounds if key in one) for key in keys}

    def ratios(self, ours: "Cell") -> dict[str, tuple[float, float, float]]:
        """To ours of the same round: least, median, greatest. A machine whose speed changes does so for both."""
        pairs = list(zip(self.rounds, ours.rounds, strict=False))  # the slower client has fewer when time is up
        found = {key: sorted(a[key] / b[key] for a, b in pairs if b.get(key)) for key in results_table.RATIOS}
        return {key: (all_[0], statistics.median(all_), all_[-1]) for key, all_ in found.items() if all_}


def measure(
    names: Sequence[str], clients: Sequence[str], rounds: int, minutes: float, binary: Path
) -> results_table.Found:
    """case -> client -> medians and ratios to ours, in rounds over everything for as long as there is time."""
    deadline = monotonic() + minutes * 60
    cells: dict[tuple[str, str], Cell] = {}
    took: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for name, client in product(names, clients):
            key = name, client
            cell = cells.get(key, Cell([]))
            if cell.failure or _hopeless(cells, name, client):
                continue
            began = monotonic()
            if began + took.get(key, 0.0) > deadline:
                cells[key] = cell if cell.rounds else Cell([], results_table.NO_TIME)
                continue
            cells[key] = _one_more(cell, client, name, binary)
            took[key] = monotonic() - began
            _tell(name, client, cells[key], took[key])
    return {
        name: {
            client: _found(cell, cells.get((name, results_table.OURS)))
            for (of, client), cell in cells.items()
            if of == name
        }
        for name in names
    }


def _found(cell: Cell, ours: Cell | None) -> dict[str, Any]:
    if not cell.rounds:
        return {"failure": cell.failure}
    ratios = {"ratios": cell.ratios(ours)} if ours and ours is not cell else {}
    return cell.medians() | {"rounds": len(cell.rounds)} | ratios


def _one_more(cell: Cell, client: str, name: str, binary: Path) -> Cell:
    try:
        run = run_case(CLIENTS[client], CASES[name], binary)
        return Cell([*cell.rounds, common(run) | CASES[name].read(run)])
    except (RuntimeError, ValueError, KeyError, OSError) as err:
        return Cell(cell.rounds, f"{type(err).__name__}: {err}")


def _hopeless(cells: dict[tuple[str, str], Cell], name: str, client: str) -> bool:
    """Whether it was too late by far with fewer streams already."""
    if not name.startswith("paced-"):
        return False
    fewer = [of for of in CASES if of.startswith("paced-") and int(of[6:]) < int(name[6:])]
    found = [cells[of, client] for of in fewer if (of, client) in cells]
    return any(cell.medians().get("ttft_error_ms_p99", 0.0) > HOPELESS_MS for cell in found)


def _tell(name: str, client: str, cell: Cell, seconds: float) -> None:
    numbers = cell.rounds[-1] if cell.rounds else {}
    text = cell.failure or "  ".join(f"{key} {value:,.3f}" for key, value in numbers.items())
    print(f"{seconds:5.1f} s  {name:10} {client:14} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases, with commas between: " + ", ".join(CASES))
    parser.add_argument("--client", action="append", choices=list(CLIENTS), help="repeatable; default: all installed")
    parser.add_argument("--rounds", type=int, default=3, help="at most (default 3)")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing past this (default 8)")
    parser.add_argument("--publish", action="store_true", help="write the results into docs/")
    asked = parser.parse_args()
    missing = {name: why for name in asked.client or CLIENTS if (why := CLIENTS[name].missing())}
    clients = [name for name in asked.client or CLIENTS if name not in missing]
    cases = asked.only.split(",") if asked.only else list(CASES)
    compileall.compile_dir(
        str(timing_server.SOURCE.parents[2] / "loadgen"), quiet=1
    )  # as pip does, for the peers as well
    with tempfile.TemporaryDirectory() as folder:
        found = measure(cases, clients, asked.rounds, asked.minutes, timing_server.build(Path(folder)))
    command = "python -m benchmarks.instrument.compare_clients " + " ".join(sys.argv[1:])
    results = {"measured": strftime("%Y-%m-%d"), "command": command.strip(), **results_table.machine(clients)}
    results |= {"missing": missing, "cases": found}
    print(results_table.markdown(results))
    if asked.publish:
        results_table.publish(results)


if __name__ == "__main__":
    main()
