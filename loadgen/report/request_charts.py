"""The charts of a run's requests: distributions of their latencies, and one dot for each of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Limit, Series, value_text
from loadgen.report.charts.distribution import distribution
from loadgen.report.format import plural, seconds
from loadgen.report.run_limits import latency_limits, workloads
from loadgen.report.time_charts import GROUP
from loadgen.results.drawn_requests import EXTREMES
from loadgen.results.metrics import came_in_one_piece, token_gaps_ns
from loadgen.results.summarize import span
from loadgen.results.timekeeping import MAX_LATE_P99_S
from loadgen.stats.distributions import curve_of_sample
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult

LAG_FLOOR_S = 1e-5
WHOLE = ("e2e", "response")
"""Latencies that an answer in one piece has too: it has no times of tokens."""


def latency(result: RunResult, key: str, title: str) -> Chart:
    """Return the distribution of "ttft", "ttfa", "tpot", "itl", "e2e" or "response" of each workload."""
    curves = {}
    for name in workloads(result):
        records = [record for record in result.records if record.ok and record.workload == name]
        if key not in WHOLE:
            records = [record for record in records if not came_in_one_piece(record)]
        if key == "itl":
            values_ns = token_gaps_ns(records)
        else:
            known = (getattr(record, f"{key}_ns") for record in records)
            values_ns = np.fromiter((ns for ns in known if ns is not None), dtype=np.float64)
        if (curve := curve_of_sample(values_ns / NS_PER_S)) is not None:
            curves[name] = curve
    limits = latency_limits(result, key, "x")
    of = "gap" if key == "itl" else "request"
    return distribution(key, title, Axis(title, "s", log=True), curves, of=of, limits=limits)


def ttft_by_input(result: RunResult, drawn: Sequence[int]) -> Chart:
    """Return TTFT against the tokens of the prompt. `drawn`: the requests that have a dot, as in the next two."""
    points = {
        record.index: (record.input_tokens, record.ttft_ns / NS_PER_S)
        for record in result.records
        if record.ok and record.input_tokens and record.ttft_ns is not None and not came_in_one_piece(record)
    }
    x, y = Axis("input tokens", "tokens", log=True), Axis("TTFT", "s", log=True)
    limits = latency_limits(result, "ttft", "y")
    return _dots(result, drawn, "ttft-input", "TTFT against input length", x, y, points, limits=limits)


def joules_by_tokens(result: RunResult, drawn: Sequence[int]) -> Chart:
    """Return attributed joules against the tokens of prompt and answer."""
    shares = result.shares
    points = {
        record.index: (tokens, share.joules)
        for record in result.records
        if record.ok and record.input_tokens is not None and record.output_tokens is not None
        if (tokens := record.input_tokens + record.output_tokens)
        if (share := shares.get(record.index)) and share.joules
    }
    x, y = Axis("input + output tokens", "tokens", log=True), Axis("J per request", "J", log=True)
    return _dots(result, drawn, "joules-tokens", "Energy against tokens", x, y, points)


def schedule_lag(result: RunResult, drawn: Sequence[int], x: Axis) -> Chart:
    """Return the lag of requests against when they were due, on the axis of the charts over time."""
    start_ns, _ = span(result)
    points = {
        record.index: ((record.scheduled_ns - start_ns) / NS_PER_S, max(record.lag_ns / NS_PER_S, LAG_FLOOR_S))
        for record in result.records
        if record.lag_ns is not None
    }
    y = Axis("sent − scheduled", "s", log=True)
    early = sum(ns is not None and ns / NS_PER_S < LAG_FLOOR_S for ns in (record.lag_ns for record in result.records))
    note = f"Lags under {seconds(LAG_FLOOR_S)} are drawn there." if early else ""
    limits = (Limit(MAX_LATE_P99_S, f"limit of p99: {seconds(MAX_LATE_P99_S)}"),)
    title = "Schedule lag: how late the client sent"
    return _dots(result, drawn, "lag", title, x, y, points, limits=limits, group=GROUP, note=note)


def _dots(
    result: RunResult,
    drawn: Sequence[int],
    key: str,
    title: str,
    x: Axis,
    y: Axis,
    points: Mapping[int, tuple[float, float]],
    *,
    limits: tuple[Limit, ...] = (),
    group: str | None = None,
    note: str = "",
) -> Chart:
    """Return one dot for each drawn request of `points` (index -> x, y), coloured by workload."""
    drawn = [index for index in drawn if index in points]
    workload_of = {record.index: record.workload for record in result.records}
    series = []
    for colour, name in enumerate(workloads(result)):
        own = [index for index in drawn if workload_of[index] == name]
        if own:
            across, up = np.array([points[index] for index in own], dtype=np.float64).T
            series.append(Series(name, across, up, "dots", colour, requests=own))
    values = np.array([point[1] for point in points.values()] or [np.nan])
    counted = plural(len(points), "request")
    if len(drawn) < len(points):
        extremes = f"the {EXTREMES} highest and lowest of TTFT, TPOT, E2E, schedule lag and joules"
        caption = f"{len(drawn):,} of {counted}: {extremes}, and others at even distances."
    else:
        caption = f"{counted}."
    spread = ", ".join(
        f"{word} {value_text(float(value), y.unit)}"
        for word, value in zip(("lowest", "median", "highest"), np.quantile(values, (0, 0.5, 1)), strict=True)
    )
    return Chart(
        key,
        title,
        x,
        y,
        tuple(series),
        text=f"{title}. {counted}: {spread}.",
        caption=f"{caption}{note and ' ' + note}",
        limits=limits,
        group=group,
        height=150 if group else 260,
        wide=group is not None,
    )
