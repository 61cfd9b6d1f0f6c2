"""The cost of sending: CPU time, memory and waiting time of a process, and the delay of its event loop."""

from __future__ import annotations

import asyncio
import gc
import resource
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from loadgen.clock import monotonic_ns
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import StampedBy

LOOP_PERIOD_S = 0.02


@dataclass(frozen=True)
class SendingCost:
    """The cost of sending a schedule, or a share of it."""

    cpu_s: float
    max_rss_bytes: int
    late_ns: array[int] = field(default_factory=lambda: array("q"))
    """Delay of the event loop's wake-ups, in nanoseconds, one value every 20 ms."""
    waited_s: float | None = None
    """Time that the loop was ready to run while others had the cores; None where the system does not count it."""
    stamped_by: StampedBy | None = None
    """The source of arrival times; None when nothing arrived."""
    spans: dict[str, Any] | None = None
    """Spans sent and lost; None when no sidecar receives them."""


class ProcessMeter:
    """Measures this process while its block runs."""

    def __enter__(self) -> Self:
        self._cpu_s, self._waited_s = own_cpu_s(), own_wait_s()
        self._late_ns: array[int] = array("q")
        self._watcher = asyncio.create_task(_watch_loop(self._late_ns))
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._watcher.cancel()

    def cost(self, stamped_by: StampedBy | None, spans: dict[str, Any] | None) -> SendingCost:
        """Return the cost since the block began."""
        return SendingCost(
            cpu_s=own_cpu_s() - self._cpu_s,
            max_rss_bytes=own_max_rss_bytes(),
            late_ns=self._late_ns,
            waited_s=None if self._waited_s is None else (own_wait_s() or 0.0) - self._waited_s,
            stamped_by=stamped_by,
            spans=spans,
        )


async def _watch_loop(late_ns: array[int]) -> None:
    """Append how late the loop wakes up. It stamps late what it keeps waiting. Timers round up to 1 ms."""
    while True:
        due_ns = monotonic_ns() + round(LOOP_PERIOD_S * NS_PER_S)
        await asyncio.sleep(LOOP_PERIOD_S)
        late_ns.append(max(0, monotonic_ns() - due_ns))


@contextmanager
def no_collections() -> Iterator[None]:
    """Turn garbage collection off: its pauses land in timestamps. Records form no cycles, so nothing piles up."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def own_wait_s(schedstat: Path = Path("/proc/self/schedstat")) -> float | None:
    """Return the time that the main thread was ready to run without a core; Linux counts it."""
    try:
        return int(schedstat.read_text().split()[1]) / NS_PER_S
    except (OSError, IndexError, ValueError):
        return None


def own_max_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def merge_costs(costs: Iterable[SendingCost]) -> SendingCost:
    """Return the cost of several processes together: sums, but the longest wait and the worse source of stamps.

    The sum of peak memories is an upper bound: the peaks may have been at different moments.
    """
    parts = list(costs)
    late_ns: array[int] = array("q")
    for part in parts:
        late_ns.extend(part.late_ns)
    spans = [part.spans for part in parts if part.spans is not None]
    merged_spans = {
        "sent": sum(report["sent"] for report in spans),
        "lost": sum(report["lost"] for report in spans),
        "last_error": next((report["last_error"] for report in spans if report["last_error"]), None),
    }
    sources = {part.stamped_by for part in parts}
    return SendingCost(
        cpu_s=sum(part.cpu_s for part in parts),
        max_rss_bytes=sum(part.max_rss_bytes for part in parts),
        late_ns=late_ns,
        waited_s=max((part.waited_s for part in parts if part.waited_s is not None), default=None),
        stamped_by="reading" if "reading" in sources else "kernel" if "kernel" in sources else None,
        spans=merged_spans if spans else None,
    )
