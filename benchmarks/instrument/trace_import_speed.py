"""Measure the rows per second that `loadgen trace` imports, fits and shows, and its peak memory.

    python -m benchmarks.instrument.trace_import_speed --rows 27e6 --folder /tmp/rows

The CSV is made like Azure's of 2024 (27 million rows are its week). It is imported to JSONL, .zst and .gz, and each
command runs on each file as a child process. Printed: rows/s of wall time, rows per second of processor time (which
other work on the machine affects less), and the child's peak resident memory.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PART = 500_000
WEEK_RPS = 44.6
"""Rate at which a week has 27 million requests."""


def make(path: Path, rows: int) -> None:
    """Write Poisson arrivals and log-normal lengths in the format of AzureLLMInferenceTrace_conv_1week.csv.

    Timestamps have microseconds and end in +00:00.
    """
    rng = np.random.default_rng(0)
    start, last_us = np.datetime64("2024-05-10T00:00:00", "us"), 0
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for done in range(0, rows, PART):
            size = min(PART, rows - done)
            at_us = last_us + np.cumsum(rng.exponential(1e6 / WEEK_RPS, size)).astype(np.int64)
            last_us = int(at_us[-1])
            inputs = np.clip(rng.lognormal(6.8, 1.1, size), 1, 8000).astype(int)
            outputs = np.clip(rng.lognormal(4.6, 1.0, size), 1, 1500).astype(int)
            stamps = np.datetime_as_string(start + at_us.astype("m8[us]")).tolist()
            lines = zip(stamps, inputs.tolist(), outputs.tolist(), strict=True)
            file.write("".join(f"{s[:10]} {s[11:]}+00:00,{i},{o}\n" for s, i, o in lines))


def measure(rows: int, *args: object) -> None:
    command = ["trace", *map(str, args)]
    start_s = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "loadgen", *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - start_s
    if status:
        raise SystemExit(f"loadgen {' '.join(command)} failed")
    processor_s = used.ru_utime + used.ru_stime
    words = " ".join(Path(word).name for word in command)
    print(
        f"{words:58} {rows / wall_s / 1e6:6.2f} M rows/s {rows / processor_s / 1e6:6.2f} M rows/processor s "
        f"{used.ru_maxrss / 1024:5.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=27e6)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made; 4 GB for 27e6 rows")
    parser.add_argument("--make", action="store_true", help="make the CSV and stop")
    options = parser.parse_args()
    rows, folder = int(options.rows), options.folder
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "azure.csv"
    if options.make:
        make(source, rows)
        return
    # A child makes it: a process's peak memory includes that of its parent at the time of the fork.
    subprocess.run([sys.executable, *sys.argv, "--make"], check=True)
    for name in ("t.jsonl", "t.jsonl.zst", "t.jsonl.gz"):
        measure(rows, "import", source, "--out", folder / name, "--overwrite")
    for path in (source, *(folder / name for name in ("t.jsonl", "t.jsonl.zst", "t.jsonl.gz"))):
        measure(rows, "fit", path, "--out", folder / "bins.json", "--overwrite")
        measure(rows, "show", path, "--json")


if __name__ == "__main__":
    main()
