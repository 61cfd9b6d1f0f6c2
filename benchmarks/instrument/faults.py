"""Inject every fault alone and all together; each scheduled request must get one record of the right kind.

    python -m benchmarks.instrument.faults [--requests 20000] [--rate 500] [--share 0.05] [--pairs 4]

The server's log lists the faults injected into each request; loadgen's records must agree, else the exit status is 1.
Runs with all faults alternate with runs without any: the timing of requests without a fault must not suffer. Their TTFT
errors are compared as a ratio of medians over the pairs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import strftime

import numpy as np

from benchmarks.instrument import results_table, timing_server
from benchmarks.instrument.clients import CLIENTS, Load
from benchmarks.instrument.compare_clients import errors_ms
from loadgen.record import RequestRecord
from loadgen.results import run_folder

TTFT_MS, ITL_MS, TOKENS = 20, 5, 20
OPTIONS = ("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS), "--stall-ms", "300", "--spare", "loadgen-")
HTTP = ("500", "503", "429")
SERVER = {"donealone", "empty", "errchunk", "choiceerr", "eventerr", "abort"}


@dataclass(frozen=True)
class Outcome:
    records: int
    wrong: list[str]
    kinds: Counter[str]
    healthy_ms: dict[str, float]
    """Result of `errors_ms` for the requests without a fault."""


def expected(faults: set[str]) -> set[str | None]:
    """Return the kinds of error that a request with these faults may end with; None is no error.

    All faults of a request act on the same event.
    """
    if faults & set(HTTP):
        return {"http"}
    if faults & SERVER:
        return {"server"}
    if "doneearly" in faults:  # there may be no event before it
        return {"truncated", "server"}
    if faults & {"close", "reset"}:  # half of the time the event arrives whole, and is then read before the end
        return {"truncated", "protocol"} if "badjson" in faults else {"truncated"}
    return {"protocol"} if "badjson" in faults else {None}


def complaints(record: RequestRecord, row: np.void) -> list[str]:
    """Return the contradictions between a request's record and what the server did to it."""
    faults = faults_of(row)
    problems = []
    if record.error not in expected(faults):
        problems.append(f"{record.index}: {sorted(faults)} became {record.error} ({record.detail})")
    if record.status != row["status"]:
        problems.append(f"{record.index}: status {row['status']} became {record.status}")
    if record.error is None:
        chunks, wanted = len(record.chunk_ns), int(row["events"])
        source = "chunks" if faults & {"nousage", "zerousage"} else "usage"
        if source == "chunks":  # only a count tells that events without text are tokens
            wanted -= ("emptydelta" in faults) + (wanted - max(wanted // 2, 1) if "textless" in faults else 0)
        if chunks != wanted or record.token_source != source:
            problems.append(f"{record.index}: {sorted(faults)}: {chunks} of {wanted} chunks, by {record.token_source}")
    return problems


def faults_of(row: np.void) -> set[str]:
    return {name for i, name in enumerate(timing_server.FAULTS) if int(row["flags"]) >> i & 1}


def run(binary: Path, load: Load, faults: Sequence[str], seed: int = 0) -> Outcome:
    """Run loadgen once. Raise when it does not end, fails or prints a traceback."""
    cores = timing_server.spread_over_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = [option for fault in faults for option in ("--fault", fault)]
        with timing_server.started(binary, folder / "log", cores[0], *OPTIONS, "--seed", str(seed), *options) as url:
            command = timing_server.pinned(cores[1], CLIENTS["loadgen"].command(url, load, folder))
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 3 * load.seconds, check=False)
        if "Traceback" in done.stderr + done.stdout or done.returncode not in (0, 1):
            raise SystemExit(f"exit status {done.returncode}: {done.stderr[-2000:]}")
        log = timing_server.read(folder / "log")
        return judge(load, log, run_folder.read_run(folder / "run"), CLIENTS["loadgen"].answers(folder))


def judge(load: Load, log: timing_server.Log, result: run_folder.RunResult, answers: dict) -> Outcome:
    rows = {bytes(row["request_id"]): row for row in log.requests}
    wrong = []
    if sorted(record.index for record in result.records) != list(range(load.requests)):
        wrong.append(f"{len(result.records)} records for {load.requests} requests")
    if len(rows) != len(log.requests):
        wrong.append(f"{len(log.requests) - len(rows)} requests were sent twice")
    for record in result.records:
        row = rows.get(f"{result.info.run_id}-{record.index}".encode())
        wrong += complaints(record, row) if row is not None else [f"{record.index}: never arrived"]
    healthy = log.only((log.requests["flags"] & timing_server.ANY_FAULT == 0) & (log.requests["events"] > 0))
    kinds = Counter(record.error or "none" for record in result.records)
    return Outcome(len(result.records), wrong, kinds, errors_ms(healthy, answers))


def table_row(name: str, outcome: Outcome) -> str:
    """Return a row of the table; print it with the first contradictions."""
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in outcome.kinds.most_common())
    row = f"| {name} | {outcome.records:,} | {len(outcome.wrong)} | {kinds} |"
    print("\n    ".join([row, *outcome.wrong[:5]]), file=sys.stderr, flush=True)
    return row


def compared(pairs: list[tuple[Outcome, Outcome]]) -> Iterator[str]:
    for q in (50, 99):
        key = f"ttft_error_ms_p{q}"
        calm, among = (statistics.median(pair[i].healthy_ms[key] for pair in pairs) for i in (0, 1))
        ratio = among / calm
        yield f"* TTFT error of healthy requests, p{q}: {among:.3f} ms among faults, {calm:.3f} without: {ratio:.2f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="with all faults at once (default 20000)")
    parser.add_argument("--pairs", type=int, default=4, help="number of runs that these are spread over (default 4)")
    parser.add_argument("--rate", type=float, default=500.0, help="requests per second, Poisson (default 500)")
    parser.add_argument(
        "--share", type=float, default=0.05, help="share of requests that get each fault when mixed (default 0.05)"
    )
    parser.add_argument(
        "--each", type=int, default=1000, help="requests per single fault, half of them with it (default 1000)"
    )
    parser.add_argument("--publish", action="store_true", help="write the table into docs/results/benchmarks.md")
    options = parser.parse_args()
    alone = Load(options.each, TOKENS, rate=options.rate)
    mixed = Load(options.requests // options.pairs, TOKENS, rate=options.rate)
    pairs, rows, wrong = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        binary = timing_server.build(Path(folder))
        for name in timing_server.FAULTS:
            outcome = run(binary, alone, [f"{name}=0.5"])
            rows.append(table_row(name, outcome))
            wrong += len(outcome.wrong)
        for seed in range(options.pairs):
            calm = run(binary, mixed, [])
            among = run(binary, mixed, [f"{name}={options.share}" for name in timing_server.FAULTS], seed)
            rows.append(table_row(f"all, seed {seed}", among))
            pairs.append((calm, among))
            wrong += len(among.wrong) + len(calm.wrong)
    head = (
        f"Measured {strftime('%Y-%m-%d')} with `{' '.join(['python -m benchmarks.instrument.faults', *sys.argv[1:]])}`."
    )
    table = ["| fault | records | wrong | ended with |", "|---|---|---|---|", *rows]
    page = "\n".join([head, "", *table, "", *compared(pairs)])
    print(page)
    if options.publish:
        results_table.write_part("faults", page)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
