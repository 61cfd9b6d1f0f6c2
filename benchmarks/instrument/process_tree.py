"""CPU time and memory of a process and its children while it runs, as /proc has them. Linux."""

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

import numpy as np

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PERIOD_S = 0.2


@dataclass(frozen=True)
class Usage:
    """A row a sample: when, CPU seconds so far, resident bytes."""

    at_ns: np.ndarray
    cpu_s: np.ndarray
    rss_bytes: np.ndarray

    def cpu_between_s(self, start_ns: int, end_ns: int) -> float:
        start, end = np.interp([start_ns, end_ns], self.at_ns, self.cpu_s)
        return float(end - start)


def run(process: "subprocess.Popen[bytes]", timeout_s: float) -> Usage:
    """Watches it to its end. A child that ends before the process takes its share with it; clients' workers do not."""
    rows: list[tuple[int, float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(PERIOD_S if rows else 0):
            if sample := _sample(process.pid):
                rows.append(sample)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        process.wait(timeout_s)
    finally:
        ended.set()
        watcher.join()
    at, cpu, rss = zip(*rows, strict=True)
    return Usage(np.array(at), np.maximum.accumulate(cpu), np.array(rss))


def _sample(root: int) -> tuple[int, float, int] | None:
    parents: dict[int, int] = {}
    used: dict[int, tuple[float, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
        except OSError:  # it ended while we looked
            continue
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) * TICK_S, int(fields[21]) * PAGE_BYTES
    ours = [used[pid] for pid in used if _descends(pid, root, parents)]
    return (monotonic_ns(), sum(cpu for cpu, _ in ours), sum(rss for _, rss in ours)) if ours else None


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root
