"""The charts of a run over time: one time axis, in the order in which an engineer looks for a cause."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Limit, Series, value_text
from loadgen.report.format import number, tick_seconds, watts
from loadgen.report.run_limits import latency_limits

if TYPE_CHECKING:
    from loadgen.report.charts.chart import Colour
    from loadgen.results.over_time import OverTime
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats
    from loadgen.stats.time_bins import TimeBins

    Row = tuple[str, Floats, Colour]
    """Name, one value per bin, colour."""

HEIGHT = 100
GROUP = "time"
OF_ENGINE = "The engine's own readings, averaged; they count all its clients."
OF_SENT = (
    "Completed requests, by when they were sent. With fewer than 100 in a bin, p99 is near the slowest of them; a bin "
    "without any is blank."
)
OF_OUTPUT = "Tokens of an answer count evenly at its chunks; those of reasoning that was not sent, over the TTFT."


def time_axis(bins: TimeBins) -> Axis:
    """Return the axis that all charts of the group share."""
    edges_s = bins.edges_s
    return Axis("time since the first request was due", "s", low=float(edges_s[0]), high=float(edges_s[-1]))


def time_charts(result: RunResult, made: OverTime) -> list[Chart]:
    """Return the charts that there are values for."""
    load = result.summary.server if result.summary else None
    onset = (
        (Limit(load.saturation.from_s, "the server falls behind", "x"),) if load is not None and load.saturation else ()
    )
    charts = [*_load(made), *_latencies(result, made), *_in_flight(made), *_engine(made), *_energy(result, made)]
    return [replace(chart, limits=(*chart.limits, *onset)) for chart in charts if chart.series]


def time_note(made: OverTime) -> str:
    """Return the rules that all these charts have in common, and what is not drawn."""
    note = f"Each step is a bin of {tick_seconds(made.bins.width_s)}. Second 0 is when the first request was due."
    engine = {"running requests": made.running, "waiting requests": made.waiting, "KV-cache use": made.kv_cache_usage}
    engine |= {"preemptions": made.preemptions, "prefix-cache hits": made.cached_share}
    unknown = [name for name, values in engine.items() if not np.isfinite(values).any()]
    if unknown:
        note += f" Not reported by the server, and not drawn: {', '.join(unknown)}."
    none = {"preemptions": "The engine preempted no request.", "prefix-cache hits": "No prompt token was cached."}
    return " ".join(
        [note, *(text for name, text in none.items() if name not in unknown and not _above_0(engine[name]))]
    )


def _load(made: OverTime) -> list[Chart]:
    width_s = made.bins.width_s
    rates: list[Row] = [
        ("offered", made.scheduled / width_s, "soft"),
        ("sent", made.sent / width_s, 0),
        ("completed", made.completed / width_s, 1),
    ]
    output: list[Row] = [("output", made.output_tokens / width_s, 0)]
    prompts: list[Row] = [("input", made.input_tokens / width_s, 0)]
    y = Axis("tokens/s", "tokens/s")
    return [
        _chart(
            made,
            "rate",
            "Request rate",
            Axis("requests", "1/s"),
            rates,
            "Offered, in grey: due by the schedule.",
        ),
        _chart(made, "output", "Output tokens", y, output, OF_OUTPUT),
        _chart(made, "input", "Input tokens", y, prompts, "Prompts, when the first token of their answer arrived."),
    ]


def _latencies(result: RunResult, made: OverTime) -> list[Chart]:
    charts = []
    for key, title, spread in (("ttft", "TTFT", made.ttft_s), ("tpot", "TPOT", made.tpot_s)):
        rows: list[Row] = [("p50", spread.p50, 0), ("p99", spread.p99, 1)]
        limits = latency_limits(result, key, "y")
        charts.append(_chart(made, f"{key}-time", f"{title} over time", Axis(title, "s"), rows, OF_SENT, limits))
    errors: list[Row] = [
        (kind, failed / made.bins.width_s, colour) for colour, (kind, failed) in enumerate(made.failed.items())
    ]
    counts = ", ".join(f"{failed.sum():,.0f} {kind}" for kind, failed in made.failed.items())
    caption = f"When they failed: {counts}."
    return [*charts, _chart(made, "errors", "Failed requests", Axis("requests", "1/s"), errors, caption)]


def _in_flight(made: OverTime) -> list[Chart]:
    rows: list[Row] = [("sent and not ended", made.in_flight, 0), ("running in the engine", made.running, 1)]
    waiting: list[Row] = [("waiting", made.waiting, 0)]
    y = Axis("requests", whole=True)
    caption = "Averaged over each bin."
    if np.isfinite(made.running).any():
        caption += f" Running: {OF_ENGINE[0].lower()}{OF_ENGINE[1:]}"
    return [
        _chart(made, "in-flight", "Requests in flight", y, rows, caption),
        _chart(made, "waiting", "Waiting in the engine's queue", y, waiting, OF_ENGINE),
    ]


def _engine(made: OverTime) -> list[Chart]:
    cache: list[Row] = [("KV cache", made.kv_cache_usage, 0)]
    hits: list[Row] = [("prefix-cache hits", made.cached_share, 0)]
    preempted: list[Row] = [("preemptions", made.preemptions / made.bins.width_s, 0)]
    share = Axis("share of the prompt tokens", "share")
    charts = [_chart(made, "kv-cache", "KV-cache use", Axis("share of the KV cache", "share"), cache, OF_ENGINE)]
    if _above_0(made.cached_share):
        charts.append(_chart(made, "cache-hits", "Prefix-cache hits", share, hits, "Prompt tokens that were cached."))
    if _above_0(made.preemptions):
        y = Axis("preemptions", "1/s")
        charts.append(_chart(made, "preemptions", "Preemptions", y, preempted, "By the engine's counter."))
    return charts


def _energy(result: RunResult, made: OverTime) -> list[Chart]:
    power: list[Row] = [("power", made.watts, 0)]
    idle_w = result.summary.energy.idle_watts if result.summary else None
    idle = () if idle_w is None else (Limit(idle_w, f"idle {watts(idle_w)}"),)
    costs: list[Row] = [("energy per output token", made.joules_per_output_token, 0)]
    y = Axis("J per output token", "J")
    return [
        _chart(made, "power", "Power", Axis("power", "W"), power, "Mean of each bin.", idle),
        _chart(made, "token-joules", "Energy per output token", y, costs, "All measured energy, idle included."),
    ]


def _above_0(values: Floats) -> bool:
    return bool((np.nan_to_num(values) > 0).any())


def _chart(
    made: OverTime, key: str, title: str, y: Axis, rows: list[Row], caption: str, limits: tuple[Limit, ...] = ()
) -> Chart:
    """Return a chart of the rows that have a value, from 0 up."""
    known = [row for row in rows if np.isfinite(row[1]).any()]
    edges_s, middle_s = made.bins.edges_s, made.bins.middle_s
    texts = []
    for name, values, _ in known:
        top = int(np.nanargmax(values))
        texts.append(f"{name}: at most {value_text(float(values[top]), y.unit)}, at {number(float(middle_s[top]))} s")
    return Chart(
        key,
        title,
        time_axis(made.bins),
        replace(y, low=0.0),
        tuple(Series(name, edges_s, values, "steps", colour, band=colour == "soft") for name, values, colour in known),
        text=f"{title}. {'; '.join(texts)}.",
        caption=caption,
        limits=limits,
        group=GROUP,
        height=HEIGHT,
        wide=True,
    )
