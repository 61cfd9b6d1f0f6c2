"""The watermark: the instant up to which energy may be committed. Pure.

Spans arrive when requests end, so the energy of an instant has to wait for the requests that were running at it. It is
complete when as many spans cover the instant as the engine had requests in its queue; an engine that does not say, or
clients that send no spans, are waited for as long as the allowed lateness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.stats.arrays import Ints
from loadgen.telemetry.engine_sample import EngineSample, sample_times
from loadgen.units import NS_PER_MS, ns_from_s

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan

EDGE_NS = 100 * NS_PER_MS
"""An engine's gauge and a span may disagree by this much on when a request began or ended."""


@dataclass(frozen=True)
class AllowedLateness:
    """Limits of the time that energy waits for spans."""

    min_s: float = 6.0
    """Exporters send in batches: vLLM's every 5 s."""
    blind_s: float = 30.0
    """Wait where the engine does not report its queue, or its requests send no spans."""
    max_s: float = 600.0


class SpanTimes(NamedTuple):
    """Starts and ends of spans, each sorted on its own."""

    start_ns: Ints
    end_ns: Ints

    @classmethod
    def of(cls, requests: Iterable[RequestSpan]) -> SpanTimes:
        spans = list(requests)  # two arrays of numbers take half the time of one of pairs
        start_ns = np.array([span.start_ns for span in spans], dtype=np.int64)
        end_ns = np.array([span.end_ns for span in spans], dtype=np.int64)
        return cls(np.sort(start_ns), np.sort(end_ns))

    def covering(self, from_ns: Ints, to_ns: Ints, edge_ns: int = EDGE_NS) -> Ints:
        """int64[k]: number of spans that touch each interval [from, to], give or take edge_ns."""
        started = np.searchsorted(self.start_ns - edge_ns, to_ns, side="right")
        ended = np.searchsorted(self.end_ns + edge_ns, from_ns, side="left")
        return started - ended

    def most_around(self, t_ns: Ints, edge_ns: int = EDGE_NS) -> Ints:
        """int64[k]: the most spans at once at an instant that is at most edge_ns from each of t_ns."""
        if not len(self.start_ns):
            return np.zeros(len(t_ns), np.int64)
        at_starts = self.covering(self.start_ns, self.start_ns, 0)
        first, last = (np.searchsorted(self.start_ns, t_ns + edge_ns * sign, side="right") for sign in (-1, 1))
        bounds = np.stack((first, last), axis=1).ravel()
        within = np.maximum.reduceat(np.append(at_starts, 0), bounds)[::2]
        return np.maximum(self.covering(t_ns - edge_ns, t_ns - edge_ns, 0), np.where(first < last, within, 0))


def queue_length(sample: EngineSample) -> float | None:
    """Return the requests that the engine reports, running and waiting; None if it does not show those that run."""
    return sample["running"] + sample.get("waiting", 0.0) if "running" in sample else None


def complete_until(samples: Sequence[EngineSample], spans: SpanTimes) -> int:
    """The latest of these samples up to which, without a break, spans cover the queue; 0 when there is none."""
    times = sample_times(samples)
    complete_ns = 0
    for t_ns, sample, covering in zip(times.tolist(), samples, spans.most_around(times).tolist(), strict=True):
        if (length := queue_length(sample)) is None or length > covering:
            break
        complete_ns = t_ns
    return complete_ns


def give_up_ns(now_ns: int, lateness: AllowedLateness, longest_ns: int) -> int:
    """The instant whose missing spans are waited for no longer. longest_ns: duration of the longest request seen."""
    blind_ns = max(ns_from_s(lateness.blind_s), 2 * longest_ns)
    return now_ns - min(blind_ns, ns_from_s(lateness.max_s))
