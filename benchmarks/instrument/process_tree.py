"""Sample the CPU time and memory of a process and its descendants from /proc. Linux only."""

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
    """One row per sample: time, CPU seconds so far, resident bytes."""

    t_ns: np.ndarray
    cpu_s: np.ndarray
    rss_bytes: np.ndarray

    def cpu_between_s(self, start_ns: int, end_ns: int) -> float:
        start, end = np.interp([start_ns, end_ns], self.t_ns, self.cpu_s)
        return float(end - start)


def run(process: "subprocess.Popen[bytes]", timeout_s: float) -> Usage:
    """Sample the process until it ends. The CPU time of a child that ends earlier is lost; clients' workers do not."""
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
    times_ns, cpu, rss = zip(*rows, strict=True)
    return Usage(np.array(times_ns), np.maximum.accumulate(cpu), np.array(rss))


def _sample(root: int) -> tuple[int, float, int] | None:
    parents: dict[int, int] = {}
    used: dict[int, tuple[float, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
        except OSError:  # the process has ended since the listing
            continue
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) * TICK_S, int(fields[21]) * PAGE_BYTES
    members = [used[pid] for pid in used if _descends(pid, root, parents)]
    return (monotonic_ns(), sum(cpu for cpu, _ in members), sum(rss for _, rss in members)) if members else None


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root
