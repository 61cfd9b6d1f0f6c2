"""Replay files of every format with words, and hold the hash of each body that arrives against the one that was due.

    python -m benchmarks.accuracy.bodies                    10,000 requests of each format, about 2 minutes
    python -m benchmarks.accuracy.bodies --only body,csv --requests 500

`body_files.py` says what "as given" means for each kind of file.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from benchmarks.accuracy import body_files
from benchmarks.instrument import timing_server
from loadgen.results.run_folder import read_lines
from loadgen.workload.schedule import ScheduledRequest

Replay = Callable[[list[str]], None]
"""Runs `loadgen` with these arguments."""


class Arrived(NamedTuple):
    """Bodies of a file that were due, and what became of them."""

    due: list[bytes]
    hashes: list[str | None]
    """SHA-256 of the body that arrived for each; None: none did."""

    def different(self) -> list[int]:
        """Return the bodies that did not arrive as they were due."""
        return [i for i, (body, arrived) in enumerate(zip(*self, strict=True)) if sha256(body).hexdigest() != arrived]


def replay(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "loadgen", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"loadgen {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1:]}")


def arrived(
    name: str, requests: int, server: Path | Sequence[str], folder: Path, run: Replay = replay, seed: int = 0
) -> Arrived:
    """Write a file of the format, replay it against a timing server, and return what arrived there."""
    path, due = body_files.write(folder, name, requests, seed)
    out, log = folder / f"{name}-run", folder / f"{name}.log"
    options = ("--itl-ms", "0", "--ttft-ms", "0", "--hash-bodies")
    with timing_server.started(server, log, None, *options) as url:
        run([
            "replay", str(path), "--base-url", f"{url}/v1", "--rps", "1e6", "--arrival", "constant",
            "--max-concurrency", "32", "--energy", "none", "--ui", "none", "--out", str(out),
        ])  # fmt: skip
    schedule = list(read_lines(out / "schedule.jsonl", ScheduledRequest))
    offsets = sorted({request.words.offset for request in schedule if request.words})
    position = {offset: i for i, offset in enumerate(offsets)}
    seen = timing_server.read(log)
    hashes: list[str | None] = [None] * len(due)
    for row, hashed in zip(seen.requests, seen.bodies or [], strict=True):
        words = schedule[int(bytes(row["request_id"]).rpartition(b"-")[2])].words
        assert words is not None
        hashes[position[words.offset]] = hashed
    return Arrived(due, hashes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated formats: " + ", ".join(body_files.FORMATS))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    print(f"{'format':20} {'requests':>9} {'as given':>9} {'MB':>6} {'s':>5}")
    for name in options.only.split(",") if options.only else body_files.FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            start_s = perf_counter()
            binary = timing_server.build(Path(folder))
            result = arrived(name, options.requests, binary, Path(folder), seed=options.seed)
        different, size = result.different(), sum(map(len, result.due)) / 1e6
        counts = f"{len(result.due):9,} {len(result.due) - len(different):9,} {size:6.1f}"
        print(f"{name:20} {counts} {perf_counter() - start_s:5.1f}", flush=True)
        for i in different[:3]:
            state = "arrived otherwise" if result.hashes[i] else "did not arrive"
            print(f"  {state}: request {i}: {result.due[i][:2000].decode()}", flush=True)
        failed += len(different)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
