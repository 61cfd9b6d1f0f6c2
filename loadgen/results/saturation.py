"""Did the server keep up: the rate of requests that came against the rate of those that it began to answer. Pure.

A server that keeps up leaves no more requests waiting at the end of the load than before, apart from chance. One that
does not leaves ever more: their number grows until the load ends. Three things together are called saturation:

1. The number of waiting requests grows. The time from the first to the last request sent is cut into 20 equal blocks
   (fewer when there are few requests). From the mean number in each block to that in the next, over the last 8 growths
   or more, the mean growth is above 0 by Student's one-sided t at 1 %: the method of batch means (Law and Kelton,
   Simulation Modeling and Analysis, 9.5.3). A burst is one block of much growth beside others of little, which makes
   the standard error large.
2. It grows by 10 requests or more.
3. Requests wait longer: the median wait of the last tenth of these requests is at least twice that of the first tenth.
   While a server fills up, requests in flight become more and none waits longer.

A request waits until its first token. A server that begins every answer at once and is slow with all of them leaves
none waiting, so the rule is applied to whole answers too. Answers take longer in a server that has only just filled up,
so there the last must take three times as long as the first.

It begins at the instant t that maximizes (waiting at the end - waiting at t) / sqrt(requests sent + begun since t): the
growth in standard errors of the difference of two Poisson counts. A number that is level until t and rises from there
has its maximum at t, as Page's CUSUM has (E. S. Page, Biometrika 41, 1954). `python -m benchmarks.accuracy.saturation`
measures how often the rule is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from loadgen.results.summary import Saturation, ServerLoad, Stage
from loadgen.results.verdict import Check
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary
    from loadgen.stats.arrays import Floats

MIN_REQUESTS = 40
"""Fewest requests that are judged."""
_BLOCKS = 20
_REQUESTS_PER_BLOCK = 4
_MIN_BLOCKS = 8
_LOOKS = 10
"""Instants of a block at which waiting requests are counted: an engine takes them in groups, at its steps."""
_MIN_GROWTH = 10
_MIN_SLOWDOWN = {"begun": 2.0, "answered": 3.0}
_T99 = (2.998, 2.896, 2.821, 2.764, 2.718, 2.681, 2.650, 2.624, 2.602, 2.583, 2.567, 2.552)
"""99 % quantiles of Student's t with 7 to 18 degrees of freedom."""


def server_load(result: RunResult, start_ns: int) -> ServerLoad | None:
    """Return how the server coped with the requests that were sent; None if none was. `start_ns`: second 0."""
    records = [record for record in result.records if record.sent_ns is not None]
    if not records:
        return None
    sent_s = _seconds((record.sent_ns for record in records), start_ns)
    begun_s = _seconds((record.first_token_ns or record.finished_ns for record in records), start_ns)
    ended_s = _seconds((record.finished_ns for record in records), start_ns)
    completed_s = ended_s[[record.ok for record in records]]
    span_s = float(np.ptp(completed_s)) if len(completed_s) else 0.0
    end_s = ended_s[np.isfinite(ended_s)]
    sent_sorted_s = np.sort(sent_s)
    waiting = np.arange(1, len(sent_s) + 1) - _counted(np.sort(begun_s), sent_sorted_s)
    counts = {name: [s[name] for s in result.engine if name in s] for name in ("running", "waiting")}
    saturation = None
    if not result.info.config.get("max_concurrency"):
        saturation = find_saturation(sent_s, begun_s, "begun") or find_saturation(sent_s, ended_s, "answered")
    return ServerLoad(
        served_rps=(len(completed_s) - 1) / span_s if span_s > 0 else None,
        waiting_max=int(waiting.max()),
        engine_running_max=max(counts["running"], default=None),
        engine_waiting_max=max(counts["waiting"], default=None),
        drain_s=max(0.0, float(end_s.max() - sent_s.max())) if len(end_s) else None,
        saturation=saturation,
    )


def find_saturation(sent_s: Floats, left_s: Floats, until: Stage) -> Saturation | None:
    """Return when requests began to pile up until the load ended, by the rule of this module; None if they did not.

    left_s: the instant at which each request stopped waiting, `inf` if it never did.
    """
    order = np.argsort(sent_s, kind="stable")
    sent_s, left_s = sent_s[order], left_s[order]
    count, last_s = len(sent_s), float(sent_s[-1]) if len(sent_s) else 0.0
    if count < MIN_REQUESTS or last_s <= sent_s[0]:
        return None
    blocks = min(_BLOCKS, count // _REQUESTS_PER_BLOCK)
    instants_s = np.linspace(sent_s[0], last_s, _LOOKS * blocks + 1)[1:]
    left_sorted_s = np.sort(left_s)
    waiting = _counted(sent_s, instants_s) - _counted(left_sorted_s, instants_s)
    means = waiting.reshape(blocks, _LOOKS).mean(axis=1)
    if not any(_grows(np.diff(means[start:])) for start in range(blocks - _MIN_BLOCKS)):
        return None
    starts_s = sent_s[sent_s <= instants_s[-_LOOKS * _MIN_BLOCKS]]
    already_sent, already_left = np.arange(len(starts_s)), _counted(left_sorted_s, starts_s)
    growths = waiting[-1] - (already_sent - already_left)
    passed = (count - already_sent) + (count - waiting[-1] - already_left)
    first = int(np.argmax(growths / np.sqrt(passed)))
    from_s, growth = float(starts_s[first]), int(growths[first])
    waits_s = left_s[first:] - sent_s[first:]
    tenth = len(waits_s) // 10 or 1
    before_s, after_s = float(np.median(waits_s[:tenth])), float(np.median(waits_s[-tenth:]))
    if growth < _MIN_GROWTH or not after_s >= _MIN_SLOWDOWN[until] * before_s:
        return None
    return Saturation(
        until=until,
        from_s=from_s,
        came_rps=(count - first) / (last_s - from_s),
        served_rps=(count - first - growth) / (last_s - from_s),
        waiting_before=int(waiting[-1]) - growth,
        waiting_after=int(waiting[-1]),
        wait_before_s=before_s,
        wait_after_s=after_s if math.isfinite(after_s) else None,
    )


def _grows(growth: Floats) -> bool:
    """Return whether the mean of these blocks is above 0 by Student's one-sided t at 1 %."""
    standard_error = float(growth.std(ddof=1)) / math.sqrt(len(growth))
    return bool(growth.mean() > _T99[len(growth) - _MIN_BLOCKS] * standard_error)


def _counted(sorted_s: Floats, instants_s: Floats) -> Floats:
    """Return how many of the sorted instants are at or before each of the others."""
    return np.searchsorted(sorted_s, instants_s, side="right").astype(np.float64)


def _seconds(instants_ns: Iterable[int | None], start_ns: int) -> Floats:
    return np.array([math.inf if ns is None else (ns - start_ns) / NS_PER_S for ns in instants_ns], dtype=np.float64)


def check_server(result: RunResult, summary: Summary) -> Check:
    """Return whether the server kept up with the requests that came."""
    load = summary.server
    if result.info.config.get("max_concurrency"):
        return Check(name="server", status=None, reason=None)
    if load is None or summary.requests.sent < MIN_REQUESTS:
        return Check(name="server", status=None)
    if (found := load.saturation) is None:
        return Check(name="server", status="ok")
    stage = {"begun": "first token", "answered": "whole answer"}[found.until]
    after = "for ever" if found.wait_after_s is None else f"{found.wait_after_s:.3g} s"
    parts = [
        f"the server could not keep up from {found.from_s:.1f} s on: {found.came_rps:.3g} requests/s came, "
        f"{found.served_rps:.3g}/s were {found.until}",
        f"{found.waiting_before:,} waited then and {found.waiting_after:,} when the last was sent",
        f"the median wait for the {stage} rose from {found.wait_before_s:.3g} s to {after}",
    ]
    if load.engine_waiting_max:
        parts.append(f"the engine's own queue held up to {load.engine_waiting_max:,.0f}")
    if load.drain_s is not None:
        parts.append(f"the last answer ended {load.drain_s:.1f} s after the last request was sent")
    rows = ["ttft_s", "e2e_s", "response_s"] if found.until == "begun" else ["e2e_s", "response_s"]
    return Check(name="server", status="warning", reason="; ".join(parts), rows=rows)
