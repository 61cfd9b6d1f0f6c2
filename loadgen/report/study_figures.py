"""The charts of a study: attainment, latency and energy over the load, latency against throughput, and power."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Limit, Series, Unit, value_text
from loadgen.report.format import UNKNOWN, watts
from loadgen.report.study_text import METRICS, PER_TOKEN, interval_text, limits_text, load_text, share_text
from loadgen.stats.intervals import Interval, pareto

if TYPE_CHECKING:
    from loadgen.results.study_table import Group, StudyInfo
    from loadgen.stats.arrays import Floats

HEIGHT = 240
MAX_LIMIT = 5.0
"""Ratio of a limit to the largest value from which on it is not on the axis."""
MAX_RATIO = 10.0
"""Ratio of the values on an axis from which on it is logarithmic."""
_MAX_TICKS = 8
_P99_FIELDS = {"ttft": "ttft_p99_s", "tpot": "tpot_p99_s", "e2el": "e2e_p99_s"}


@dataclass(frozen=True)
class Curve:
    """The configurations of one server and model over one kind of load, in the colour that they have in every chart."""

    name: str
    colour: int
    groups: tuple[Group, ...]
    """Configurations in the order of the load."""


def curves(configurations: Sequence[Group]) -> list[Curve]:
    """Return the configurations by server, model and kind of load."""
    by_key: dict[tuple[str, str, bool], list[Group]] = {}
    for group in configurations:
        by_key.setdefault((group.key.server, group.key.model, group.key.rps is None), []).append(group)
    models, kinds = len({model for _, model, _ in by_key}) > 1, len({closed for _, _, closed in by_key}) > 1
    found = []
    for colour, key in enumerate(sorted(by_key)):
        server, model, closed = key
        kind = "in batches" if closed else "at rates"
        name = ", ".join([server, *([model] if models else []), *([kind] if kinds else [])])
        found.append(Curve(name, colour, tuple(sorted(by_key[key], key=lambda group: group.load))))
    return found


def select(among: Sequence[Curve], keep: Callable[[Group], bool]) -> list[Curve]:
    """Return the curves with those of their groups that are kept; a curve without any is left out."""
    kept = [replace(curve, groups=tuple(group for group in curve.groups if keep(group))) for curve in among]
    return [curve for curve in kept if curve.groups]


def by_workload(among: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    """Return the curves of each workload, by name."""
    names = sorted({group.key.workload for curve in among for group in curve.groups})
    return [(name, select(among, lambda group, name=name: group.key.workload == name)) for name in names]  # type: ignore[misc]


def by_load_kind(among: Sequence[Curve]) -> list[tuple[bool, list[Curve]]]:
    """Return (True, the curves over rates) and (False, those over batches)."""
    return [
        (is_rate, [curve for curve in among if (curve.groups[0].key.rps is not None) == is_rate])
        for is_rate in (True, False)
    ]


# ---------------------------------------------------------------- a quantity over the load


@dataclass(frozen=True)
class Measure:
    """A quantity that is drawn over the load."""

    key: str
    title: str
    """Name of the quantity, for the heading and the y axis."""
    unit: Unit
    caption: str
    interval: Callable[[Group], Interval | None]
    low: float | None = None
    high: float | None = None
    marks_least: bool = False
    """Write the value beside the least of each curve."""

    def text(self, value: float | None) -> str:
        return UNKNOWN if value is None else value_text(value, self.unit)


ENERGY_PER_TOKEN = Measure(
    "joules-per-token",
    "Joules per output token",
    "J",
    "Measured energy of the whole run, idle included, over its output tokens.",
    lambda group: group.interval(PER_TOKEN),
    marks_least=True,
)
ENERGY_PER_GOOD = Measure(
    "joules-per-good-request",
    "Joules per request within the limits",
    "J",
    "Measured energy of the whole run, idle included, over the requests that met every limit. A load with a repeat "
    "without any such request is left out.",
    lambda group: group.joules_per_good_request,
    marks_least=True,
)
ATTAINMENT = Measure(
    "attainment",
    "Requests within every limit",
    "share",
    "Share of all requests that completed within every limit; failed requests are misses.",
    lambda group: group.interval("goodput_ratio"),
    low=0.0,
    high=1.0,
)


def load_charts(among: Sequence[Curve], measure: Measure, limits: tuple[Limit, ...] = ()) -> list[Chart]:
    """Return one chart for each workload that ran at several rates, and one for each in several batches."""
    charts = []
    for is_rate, measured in by_load_kind(select(among, lambda group: measure.interval(group) is not None)):
        for place, (workload, chosen) in enumerate(by_workload(measured)):
            if len({group.load for curve in chosen for group in curve.groups}) > 1:
                key = f"{measure.key}-{'rate' if is_rate else 'batch'}-{place}"
                charts.append(_load_chart(key, workload, chosen, is_rate, measure, limits))
    return charts


def _load_chart(
    key: str, workload: str, chosen: Sequence[Curve], is_rate: bool, measure: Measure, limits: tuple[Limit, ...]
) -> Chart:
    loads = sorted({group.load for curve in chosen for group in curve.groups})
    intervals = [interval for curve in chosen for group in curve.groups if (interval := measure.interval(group))]
    series = tuple(one for curve in chosen for one in _load_series(curve, measure))
    has_bars = any(interval.low is not None for interval in intervals)
    bars = "Bars: 95 % interval of the repeats; an arrowhead marks one that reaches beyond the picture."
    return Chart(
        key,
        f"{workload}: {measure.title[0].lower()}{measure.title[1:]} by {'rate' if is_rate else 'batch'}",
        Axis(
            "Requests per second" if is_rate else "Requests in flight",
            log=True,
            low=loads[0] / 1.15,  # room for the outermost marks
            high=loads[-1] * 1.15,
            ticks=tuple(loads[:: -(-len(loads) // _MAX_TICKS)]),
            whole=not is_rate,
        ),
        load_axis(intervals, measure),
        series,
        "; ".join(hint for one in series for hint in one.hints or ()),
        f"{measure.caption} {bars}" if has_bars else measure.caption,
        limits,
        height=HEIGHT,
        wide=True,
    )


def load_axis(intervals: Sequence[Interval], measure: Measure) -> Axis:
    """Return an axis with room for the bars, up to half or twice the extreme means; longer bars are cut."""
    if measure.high is not None:
        return Axis(measure.title, measure.unit, low=measure.low, high=measure.high)
    means = [interval.mean for interval in intervals]
    ends = [end for i in intervals for end in (i.mean, i.low, i.high) if end is not None]
    is_log = max(means) > MAX_RATIO * min(means) > 0
    low, high = max(min(ends), min(means) / 2), min(max(ends), 2 * max(means))
    return _spacious(Axis(measure.title, measure.unit, is_log), low, high)


def _spacious(axis: Axis, low: float, high: float) -> Axis:
    """Return the axis with its ends so far beyond the values that dots and labels have room; a linear one from 0."""
    return replace(axis, low=low / 1.3, high=high * 1.5) if axis.log else replace(axis, low=0.0, high=high * 1.1)


def _load_series(curve: Curve, measure: Measure) -> tuple[Series, Series]:
    """Return a curve and its dots, with their bars."""
    intervals = [interval for group in curve.groups if (interval := measure.interval(group)) is not None]
    loads, means = np.array([group.load for group in curve.groups]), np.array([i.mean for i in intervals])
    low, high = (
        np.array([nan if end is None else end for end in ends])
        for ends in zip(*((i.low, i.high) for i in intervals), strict=True)
    )
    hints = [
        f"{curve.name}, {load_text(group)}: {interval_text(interval, measure.text)}"
        for group, interval in zip(curve.groups, intervals, strict=True)
    ]
    least = int(means.argmin()) if measure.marks_least else -1
    labels = [f"least: {measure.text(mean)}" if i == least else "" for i, mean in enumerate(means.tolist())]
    return (
        Series(curve.name, loads, means, "line", curve.colour),
        Series(curve.name, loads, means, "dots", curve.colour, low, high, hints, labels),
    )


def attainment_charts(among: Sequence[Curve], study: StudyInfo) -> list[Chart]:
    """Return the share of requests within every limit over the load, with a line at the wanted share."""
    caption = f"{ATTAINMENT.caption} Limits: {limits_text(study.limits_ms)}."
    line = Limit(study.wanted, f"{share_text(study.wanted)} wanted")
    return load_charts(among, replace(ATTAINMENT, caption=caption), (line,))


# ---------------------------------------------------------------- two quantities against each other


@dataclass(frozen=True)
class Quantity:
    """A field of Row with its axis."""

    field: str
    axis: Axis


TOKENS = Quantity("output_tokens_per_s", Axis("Output tokens/s", "tokens/s"))
ENERGY = Quantity(PER_TOKEN, Axis("Joules per output token", "J"))


def throughput_charts(among: Sequence[Curve], limits_ms: Mapping[str, float]) -> list[Chart]:
    """Return p99 of TTFT, TPOT, and E2E where it has a limit, over throughput: a chart for each workload and metric."""
    charts = []
    for place, (workload, of_workload) in enumerate(by_workload(among)):
        tokens = any(group.values("output_tokens_per_s") for curve in of_workload for group in curve.groups)
        for metric, field in _P99_FIELDS.items():
            if metric == "e2el" and metric not in limits_ms:
                continue
            chart = _scatter(
                f"throughput-{metric}-{place}",
                f"{workload}: {METRICS[metric]} p99 against throughput",
                of_workload,
                TOKENS if tokens else Quantity("completed_per_s", Axis("Requests served", "1/s")),
                Quantity(field, Axis(f"{METRICS[metric]} p99", "s")),
                "Each dot is a load: means over its repeats.",
                _latency_limit(metric, limits_ms, "y"),
            )
            if chart is not None:
                charts.append(with_far_limits(chart))
    return charts


def _latency_limit(metric: str, limits_ms: Mapping[str, float], of: Literal["x", "y"]) -> tuple[Limit, ...]:
    limit = limits_ms.get(metric)
    return () if limit is None else (Limit(limit / 1e3, f"{METRICS[metric]} ≤ {limit:g} ms", of),)


def _scatter(
    key: str,
    title: str,
    among: Sequence[Curve],
    x: Quantity,
    y: Quantity,
    caption: str,
    limits: tuple[Limit, ...] = (),
    has_lines: bool = True,
) -> Chart | None:
    """Return one quantity over another. None where fewer than two configurations have both."""
    known = select(among, lambda group: group.mean(x.field) is not None and group.mean(y.field) is not None)
    if sum(len(curve.groups) for curve in known) < 2:
        return None
    series = []
    for curve in known:
        across, up = (np.array([group.mean(of.field) or 0.0 for group in curve.groups]) for of in (x, y))
        hints = [
            f"{curve.name}, {load_text(group)}: {value_text(h, x.axis.unit)}, {value_text(v, y.axis.unit)}"
            for group, h, v in zip(curve.groups, across, up, strict=True)
        ]
        labels = [load_text(group) for group in curve.groups]
        if has_lines:
            series.append(Series(curve.name, across, up, "line", curve.colour))
        series.append(Series(curve.name, across, up, "dots", curve.colour, hints=hints, labels=labels))
    return Chart(
        key,
        title,
        scaled(x.axis, [one.x for one in series], [limit.value for limit in limits if limit.of == "x"]),
        scaled(y.axis, [one.y for one in series], [limit.value for limit in limits if limit.of == "y"]),
        tuple(series),
        "; ".join(hint for one in series for hint in one.hints or ()),
        caption,
        limits,
        height=HEIGHT,
        wide=True,
    )


def with_far_limits(chart: Chart) -> Chart:
    """Return the chart with the limits that lie beyond its axes in its caption instead of in the picture."""
    far = [limit for limit in chart.limits if limit.value > ((chart.y if limit.of == "y" else chart.x).high or inf)]
    if not far:
        return chart
    caption = " ".join([chart.caption, *(f"The limit {limit.name} lies far beyond these values." for limit in far)])
    return replace(chart, caption=caption, limits=tuple(limit for limit in chart.limits if limit not in far))


def scaled(axis: Axis, arrays: Sequence[Floats], limits: Sequence[float]) -> Axis:
    """Return a logarithmic axis where the values are far apart, else one from 0; with the limits that are not far."""
    low, high = min(float(values.min()) for values in arrays), max(float(values.max()) for values in arrays)
    high = max([high, *(limit for limit in limits if limit < MAX_LIMIT * high)])
    return _spacious(replace(axis, log=high > MAX_RATIO * low > 0), low, high)


def front_charts(among: Sequence[Curve], limits_ms: Mapping[str, float]) -> list[Chart]:
    """Return energy against a latency: the first of TPOT, TTFT and E2E with a limit, else TPOT; one a workload."""
    metric = next((name for name in ("tpot", "ttft", "e2el") if name in limits_ms), "tpot")
    latency = Quantity(_P99_FIELDS[metric], Axis(f"{METRICS[metric]} p99", "s"))
    known = select(among, lambda group: bool(group.mean(latency.field)) and bool(group.mean(PER_TOKEN)))
    charts = []
    for place, (workload, chosen) in enumerate(by_workload(known)):
        title = f"{workload}: energy against {METRICS[metric]}"
        limits = _latency_limit(metric, limits_ms, "x")
        chart = _scatter(f"front-{place}", title, chosen, latency, ENERGY, "", limits, has_lines=False)
        groups = [group for curve in chosen for group in curve.groups]
        if chart is not None and len(groups) > 2:
            charts.append(_with_front(chart, groups, latency.field))
    return charts


def _with_front(chart: Chart, groups: Sequence[Group], latency: str) -> Chart:
    """Return the chart with the Pareto front: the configurations that no other beats in both."""
    points = [(group.mean(latency) or 0.0, group.mean(PER_TOKEN) or 0.0) for group in groups]
    front = pareto(points)
    names = "; ".join(f"{groups[i].key.server} {load_text(groups[i])}" for i in front)
    x, y = (np.array([points[i][axis] for i in front]) for axis in (0, 1))
    caption = f"The Pareto front has the settings that no other beats in both: {names}."
    line = Series("Pareto front", x, y, "line", "soft")
    return with_far_limits(replace(chart, series=(line, *chart.series), caption=caption))


def power_charts(among: Sequence[Curve]) -> list[Chart]:
    """Return watts over tokens per second: power falls less than the load."""
    power = Quantity("mean_watts", Axis("Mean power", "W"))
    charts = []
    for place, (workload, chosen) in enumerate(by_workload(among)):
        title, caption = f"{workload}: power against throughput", "Each dot is a load: means over its repeats."
        limits: tuple[Limit, ...] = ()
        if idle := [value for curve in chosen for group in curve.groups for value in group.values("idle_watts")]:
            limits = (Limit(fmean(idle), f"idle: {watts(fmean(idle))}"),)
            caption += " Idle: with the model resident, before the runs."
        chart = _scatter(f"power-{place}", title, chosen, TOKENS, power, caption, limits)
        if chart is not None:
            charts.append(chart)
    return charts
