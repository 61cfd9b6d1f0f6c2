"""Compare loadgen and its peers: the server of known timing runs on one core and each client in turn on another.

    python -m benchmarks.instrument.compare_clients          every installed client, about 8 minutes
    python -m benchmarks.instrument.compare_clients --client loadgen --only burst,poisson --rounds 5
    python -m benchmarks.instrument.compare_clients --publish     also write the table into docs/results/benchmarks.md
    python -m benchmarks.instrument.compare_clients --client loadgen --before ../before     two versions, in turn

The server's log says when requests arrived and when tokens were written. The times that a client reports are compared
with it, request by request and gap by gap.
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
BEFORE, KEEPING = "before", "keep-answers"
"""Name of the loadgen of another checkout."""
TTFT_MS, ITL_MS, TOKENS = 50, 20, 150
LIFETIME_S = (TTFT_MS + (TOKENS - 1) * ITL_MS) / 1e3
ABANDON_MS = 100.0
"""A client whose TTFT error has a p99 above this is not run with more streams."""
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Case:
    """One load, the server's options for it, and the function that computes the numbers of a run."""

    load: Load
    server: Sequence[str]
    read: "Callable[[Run], Numbers]"


@dataclass(frozen=True)
class Run:
    """The log, the resource usage and the reported times of one client under one load."""

    log: timing_server.Log
    usage: process_tree.Usage
    started_ns: int
    answers: Answers

    @property
    def span_ns(self) -> tuple[int, int]:
        """Return the first request's arrival and the last request's end."""
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
    """Return the client's errors in ms for the requests that arrived after the first lifetime, when load is steady."""
    settled = run.log.only(run.log.requests["arrived_ns"] > run.span_ns[0] + LIFETIME_S * 1e9)
    return {
        "server_late_ms_p99": float(np.percentile(settled.requests["late_max_ns"], 99)) / 1e6,
        "answered": float(np.mean([_answer(run.answers, row) is not None for row in settled.requests])),
        **errors_ms(settled, run.answers),
    }


def errors_ms(log: timing_server.Log, answers: Answers) -> Numbers:
    """Return percentiles of the TTFT error (signed), the gap error and the TPOT error (absolute)."""
    ttft, gaps, tpot = [], [], []
    for row in log.requests:
        answer, wrote = _answer(answers, row), log.writes_of(row)
        if answer is None:
            continue
        ttft.append(answer.ttft_ns - int(wrote[0] - row["arrived_ns"]))
        if answer.tpot_ns is not None:
            tpot.append(abs(answer.tpot_ns - np.diff(wrote).mean()))
        if answer.gaps_ns is not None and len(answer.gaps_ns) == len(wrote) - 1:
            gaps.append(np.abs(answer.gaps_ns - np.diff(wrote)))
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
    arrival_s = run.log.arrivals_s()
    gaps = np.diff(arrival_s)
    distance, critical = ks_exponential(gaps)
    return {
        "rate_per_s": len(gaps) / float(arrival_s[-1]),
        "ks": distance,
        "ks_critical": critical,
        "dispersion_1s": index_of_dispersion(arrival_s, 1.0) or float("nan"),
        "dispersion_250ms": index_of_dispersion(arrival_s, 0.25) or float("nan"),
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
"""Cases in the order in which they are run: the most informative ones first, in case time runs out."""


def run_case(client: Client, case: Case, binary: Path) -> Run:
    """Run one client under one load. Raise RuntimeError with its last output when it fails or does not end in time."""
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
        return Run(log.only(log.requests["events"] > 0), usage, started_ns, client.answers(folder))


def _watched(command: Sequence[str], env: dict[str, str], folder: Path) -> process_tree.Usage:
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder, process_group=0,
            env=os.environ | {"PYTHONPATH": str(timing_server.SOURCE.parents[2])} | env,
        )  # fmt: skip
        try:
            usage = process_tree.run(process, TIMEOUT_S)
        except subprocess.TimeoutExpired as err:
            raise RuntimeError(f"not finished after {TIMEOUT_S:.0f} s") from err
        finally:
            _end(process)
    if process.returncode:
        lines = (folder / "output").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit status {process.returncode}: {lines[-1] if lines else 'no output'}"[:300])
    return usage


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the whole process group, workers included."""
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
        return {key: statistics.median(numbers[key] for numbers in self.rounds if key in numbers) for key in keys}

    def ratios(self, own: "Cell") -> dict[str, tuple[float, float, float]]:
        """Return (lowest, median, highest) ratio to `own` within rounds: a change of machine speed affects both."""
        pairs = list(zip(self.rounds, own.rounds, strict=False))  # a client has fewer rounds when time runs out
        ratios = {key: sorted(a[key] / b[key] for a, b in pairs if b.get(key)) for key in results_table.RATIOS}
        return {key: (all_[0], statistics.median(all_), all_[-1]) for key, all_ in ratios.items() if all_}


def measure(
    names: Sequence[str], clients: Sequence[str], rounds: int, minutes: float, binary: Path
) -> results_table.Results:
    """Return case -> client -> medians and ratios to loadgen, over as many rounds as there is time for."""
    deadline = monotonic() + minutes * 60
    cells: dict[tuple[str, str], Cell] = {}
    took: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for name, client in product(names, clients):
            key = name, client
            cell = cells.get(key, Cell([]))
            if cell.failure or _too_late(cells, name, client):
                continue
            start_s = monotonic()
            if start_s + took.get(key, 0.0) > deadline:
                cells[key] = cell if cell.rounds else Cell([], results_table.NO_TIME)
                continue
            cells[key] = _add_round(cell, client, name, binary)
            took[key] = monotonic() - start_s
            _print_round(name, client, cells[key], took[key])
    return {
        name: {
            client: _summary(cell, cells.get((name, results_table.LOADGEN)))
            for (of, client), cell in cells.items()
            if of == name
        }
        for name in names
    }


def _summary(cell: Cell, own: Cell | None) -> dict[str, Any]:
    if not cell.rounds:
        return {"failure": cell.failure}
    ratios = {"ratios": cell.ratios(own)} if own and own is not cell else {}
    return cell.medians() | {"rounds": len(cell.rounds)} | ratios


def _add_round(cell: Cell, client: str, name: str, binary: Path) -> Cell:
    try:
        run = run_case(CLIENTS[client], CASES[name], binary)
        return Cell([*cell.rounds, common(run) | CASES[name].read(run)])
    except (RuntimeError, ValueError, KeyError, OSError) as err:
        return Cell(cell.rounds, f"{type(err).__name__}: {err}")


def _too_late(cells: dict[tuple[str, str], Cell], name: str, client: str) -> bool:
    """Return True when the client already had a TTFT error above ABANDON_MS with fewer streams."""
    if not name.startswith("paced-"):
        return False
    fewer = [of for of in CASES if of.startswith("paced-") and int(of[6:]) < int(name[6:])]
    measured = [cells[of, client] for of in fewer if (of, client) in cells]
    return any(cell.medians().get("ttft_error_ms_p99", 0.0) > ABANDON_MS for cell in measured)


def _print_round(name: str, client: str, cell: Cell, seconds: float) -> None:
    numbers = cell.rounds[-1] if cell.rounds else {}
    text = cell.failure or "  ".join(f"{key} {value:,.3f}" for key, value in numbers.items())
    print(f"{seconds:5.1f} s  {name:10} {client:14} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated cases: " + ", ".join(CASES))
    parser.add_argument("--client", action="append", choices=list(CLIENTS), help="repeatable; default: all installed")
    parser.add_argument("--rounds", type=int, default=3, help="rounds at most (default 3)")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no run later than this (default 8)")
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help="a checkout whose loadgen is run in turn with this"
    )
    parser.add_argument("--keep-answers", action="store_true", help="also run loadgen with this option, in turn")
    parser.add_argument("--publish", action="store_true", help="write the results into docs/")
    options = parser.parse_args()
    names = options.client or list(CLIENTS)
    if options.before:
        CLIENTS[BEFORE] = replace(
            CLIENTS[results_table.LOADGEN], env={"PYTHONPATH": str(options.before.resolve(strict=True))}
        )
        names.append(BEFORE)
    if options.keep_answers:
        own = CLIENTS[results_table.LOADGEN]
        CLIENTS[KEEPING] = replace(own, command=lambda *load: [*own.command(*load), "--keep-answers"])
        names.append(KEEPING)
    missing = {name: reason for name in names if (reason := CLIENTS[name].missing())}
    clients = [name for name in names if name not in missing]
    cases = options.only.split(",") if options.only else list(CASES)
    compileall.compile_dir(
        str(timing_server.SOURCE.parents[2] / "loadgen"), quiet=1
    )  # pip compiles the peers' bytecode too
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(cases, clients, options.rounds, options.minutes, timing_server.build(Path(folder)))
    command = "python -m benchmarks.instrument.compare_clients " + " ".join(sys.argv[1:])
    results = {"measured": strftime("%Y-%m-%d"), "command": command.strip(), **results_table.machine(clients)}
    results |= {"missing": missing, "cases": measured}
    print(results_table.markdown(results))
    if options.publish:
        results_table.publish(results)


if __name__ == "__main__":
    main()
