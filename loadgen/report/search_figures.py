"""The charts of a search over the rate: attainment, throughput, latencies and joules; and how the budget was spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import nan
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Colour, Limit, Series, Unit, value_text
from loadgen.report.search_text import (
    attained,
    duration_text,
    estimate_text,
    good_request,
    is_lower_bound,
    per_second,
    probe_note,
    ranked,
)
from loadgen.report.study_figures import HEIGHT, scaled, with_far_limits
from loadgen.report.study_text import METRICS, limits_text, share_text
from loadgen.results.best_setting import front, points
from loadgen.results.miss_curve import BANDWIDTH, USUAL_MISSED, MissCurve, miss_curve
from loadgen.results.search_answer import power_near, sought_rate
from loadgen.results.search_result import Estimate

if TYPE_CHECKING:
    from loadgen.results.search_result import Probe, SearchResult, SettingResult
    from loadgen.stats.arrays import Floats

MAX_DRAWN = 6
"""Most settings in a chart, which tells them apart by their colours."""
OVERLOADED = "overloaded"
_FIELDS = {"ttft": "ttft", "tpot": "tpot", "e2el": "e2e"}
_CLOSE_RATES = 1.5
"""Ratio of the ends of the close-up to the rate."""
_CLOSE_MISSES = 6
"""Height of the close-up in times the share that may miss."""
_CLOSE_COSTS = 1.8
"""Highest cost of the close-up in times the least one."""
_CLOSE_FROM = 0.8
"""Smallest wanted share that has a close-up."""
_POINTS = 60


@dataclass(frozen=True)
class Curve:
    """A setting with counted requests, in the colour that it has in every chart."""

    name: str
    colour: int
    setting: SettingResult
    probes: tuple[Probe, ...]
    """Probes with counted requests, by rate."""
    fit: MissCurve

    def rates(self) -> Floats:
        """Return the rates at which the curve is drawn: near the one that it was fitted around, between the probes."""
        reach = np.exp(BANDWIDTH)
        low = max(self.probes[0].rate_rps, self.fit.rate_rps / reach)
        high = min(self.probes[-1].rate_rps, self.fit.rate_rps * reach)
        return np.geomspace(low, high, _POINTS) if low < high else np.array([])

    def good_share(self, rates: Floats) -> Floats:
        return np.array([1 - self.fit.share_at(rate) for rate in rates.tolist()])

    def good_rps(self, rates: Floats) -> Floats:
        return rates * self.good_share(rates)

    def line(self, value: Callable[[Floats], Floats]) -> Series:
        """Return a quantity of the rate as a line."""
        rates = self.rates()
        return Series(self.name, rates, value(rates), "line", self.colour)


def curves(result: SearchResult) -> list[Curve]:
    """Return the settings with counted requests, the best first."""
    missed = USUAL_MISSED if result.attainment is None else 1 - result.attainment
    counted = (
        (setting, tuple(sorted((p for p in setting.probes if p.requests), key=lambda probe: probe.rate_rps)))
        for setting in ranked(result)
    )
    drawn = [(setting, probes) for setting, probes in counted if probes][:MAX_DRAWN]
    return [
        Curve(setting.name or "probes", colour, setting, probes, miss_curve(probes, missed))
        for colour, (setting, probes) in enumerate(drawn)
    ]


def _bounded(among: Sequence[Curve], result: SearchResult) -> list[Curve]:
    """Return the curves whose place is known, from rates that held and rates that did not."""
    return [
        curve
        for curve in among
        if (rate := curve.setting.target(result.objective)) is not None and not is_lower_bound(rate)
    ]


# ---------------------------------------------------------------- parts of a chart


@dataclass(frozen=True)
class Mark:
    """A value of a probe, as a dot."""

    name: str
    """Name of the series."""
    colour: Colour
    x: float
    y: float
    hint: str


def _mark(name: str, colour: Colour, curve: Curve, probe: Probe, y: float, unit: Unit) -> Mark:
    """Return the dot of a probe. Those of overloaded probes are a series of their own."""
    note = probe_note(probe)
    subject = f"probe {probe.number}" if curve.name == "probes" else f"{curve.name}, probe {probe.number}"
    quantity = f"{name} " if name != curve.name else ""
    hint = f"{subject} at {per_second(probe.rate_rps)}: {quantity}{value_text(y, unit)}{f' ({note})' if note else ''}"
    return Mark(*((OVERLOADED, "bad") if probe.overloaded else (name, colour)), probe.rate_rps, y, hint)


def _marks(among: Sequence[Curve], value: Callable[[Probe], float | None], unit: Unit) -> list[Mark]:
    return [
        _mark(curve.name, curve.colour, curve, probe, y, unit)
        for curve in among
        for probe in curve.probes
        if (y := value(probe)) is not None
    ]


def _dots(marks: Sequence[Mark]) -> list[Series]:
    """Return the marks as series, that of the overloaded probes last."""
    names = sorted(dict.fromkeys(mark.name for mark in marks), key=lambda name: name == OVERLOADED)
    series = []
    for name in names:
        chosen = [mark for mark in marks if mark.name == name]
        x, y = (np.array([getattr(mark, axis) for mark in chosen]) for axis in ("x", "y"))
        series.append(Series(name, x, y, "dots", chosen[0].colour, hints=[mark.hint for mark in chosen]))
    return series


def _interval(name: str, curve: Curve, rate: Estimate, y: Estimate, axis: Axis) -> list[Series]:
    """Return a dot at an estimated rate with the interval of y, and a broad line along that of the rate, which reaches
    the edge of the chart where its end is unknown."""
    across = np.array([axis.low if rate.low is None else rate.low, axis.high if rate.high is None else rate.high])
    low, high = (np.array([nan if end is None else end]) for end in (y.low, y.high))
    subject = "" if curve.name == "probes" else f"{curve.name}: "
    hint = f"{subject}{estimate_text(rate, unit=' requests/s')}"
    label = f"{'at least ' if is_lower_bound(rate) else ''}{value_text(rate.value, '')}/s"
    dot = np.array([rate.value]), np.array([y.value])
    return [
        Series(name, np.clip(across, axis.low, axis.high), np.full(2, y.value), "line", curve.colour, band=True),
        Series(name, *dot, "dots", "ink", low, high, [hint], [label]),
    ]


def _rates_axis(among: Sequence[Curve]) -> Axis:
    """Return the axis of the rates, with room for the outermost dots."""
    rates = [probe.rate_rps for curve in among for probe in curve.probes]
    return Axis("Requests per second", log=True, low=min(rates) / 1.2, high=max(rates) * 1.2)


def _chart(
    key: str, title: str, x: Axis, y: Axis, series: Sequence[Series], caption: str = "",
    limits: tuple[Limit, ...] = (), wide: bool = True,
) -> Chart:  # fmt: skip
    text = "; ".join(hint for part in series for hint in part.hints or ())
    drawn = tuple(part for part in series if len(part.x))
    return Chart(key, title, x, y, drawn, text, caption, limits, height=HEIGHT, wide=wide)


# ---------------------------------------------------------------- attainment and throughput


def attainment_charts(among: Sequence[Curve], result: SearchResult) -> list[Chart]:
    """Return the share of good requests over the rate with the curve and the rate's interval, and a close-up."""
    wanted, x = result.attainment, _rates_axis(among)
    name = f"{share_text(result.confidence)} interval of the rate"
    lines = [curve.line(curve.good_share) for curve in _bounded(among, result)]
    bands = []
    for curve in among if wanted is not None else ():
        if curve.setting.rate is not None and wanted is not None:
            bands += _interval(name, curve, curve.setting.rate, Estimate(value=wanted, low=None, high=None), x)
    marks = _marks(among, attained, "share")
    series = [*lines, *_dots(marks), *bands]
    within = f"within {limits_text(result.limits_ms)}" if result.limits_ms else "completed"
    caption = f"Good: {within}; failed requests are misses. Each dot is a probe."
    if lines:
        caption += " The curve is fitted to the probes near the rate, and drawn there."
    if any(mark.name == OVERLOADED for mark in marks):
        caption += (
            " A probe is overloaded if it was ended early or most of its requests missed: the server may have had no "
            "steady state, so it counts little."
        )
    limits = () if wanted is None else (Limit(wanted, f"{share_text(wanted)} wanted"),)
    axis = Axis("Good requests", "share", low=0.0, high=1.0)
    whole = _chart("attainment", "Share of good requests", x, axis, series, caption, limits)
    if wanted is None or wanted < _CLOSE_FROM:
        return [whole]
    low = max(0.0, 1 - _CLOSE_MISSES * (1 - wanted))
    rates = [curve.setting.rate for curve in _bounded(among, result)]
    return [whole, *_close_up(whole, "attainment-close", "Close to the limit", rates, replace(axis, low=low))]


def _close_up(chart: Chart, key: str, title: str, rates: Sequence[Estimate | None], y: Axis) -> list[Chart]:
    """Return the part of a chart around these rates, on linear axes; none where no probe is there."""
    middles = [rate.value for rate in rates if rate is not None]
    if not middles:
        return []
    x = Axis(chart.x.title, low=min(middles) / _CLOSE_RATES, high=max(middles) * _CLOSE_RATES)
    series = [_inside(part, x, y) for part in chart.series]
    if not any(len(part.x) for part in series if part.kind == "dots" and part.labels is None):
        return []
    caption = "The same probes and curve, without those that lie beyond the picture."
    return [_chart(key, title, x, y, series, caption, chart.limits)]


def _inside(series: Series, x: Axis, y: Axis) -> Series:
    """Return the marks of a series between the ends of both axes; a band is cut at them."""
    if series.band:
        return replace(series, x=np.clip(series.x, x.low, x.high))
    assert x.low is not None and x.high is not None and y.low is not None and y.high is not None
    across, up = (series.x >= x.low) & (series.x <= x.high), (series.y >= y.low) & (series.y <= y.high)
    inside = np.flatnonzero(across & up)
    hints, labels = (texts and [texts[i] for i in inside.tolist()] for texts in (series.hints, series.labels))
    low, high = (ends if ends is None else ends[inside] for ends in (series.low, series.high))
    return replace(series, x=series.x[inside], y=series.y[inside], low=low, high=high, hints=hints, labels=labels)


def throughput_chart(among: Sequence[Curve], result: SearchResult) -> Chart:
    """Return good requests per second over the rate: they grow with it until the limits break."""
    x = _rates_axis(among)
    lines = [curve.line(curve.good_rps) for curve in _bounded(among, result)]
    dots = _dots(_marks(among, lambda probe: probe.good_rps, "1/s"))
    high = 1.15 * max(float(part.y.max(initial=0.0)) for part in (*lines, *dots)) or 1.0
    sent = np.geomspace(x.low or 1.0, min(x.high or 1.0, high), _POINTS)
    series = [*lines, *dots, Series("all of those sent", sent, sent, "line", "soft")]
    return _chart(
        "good-requests", "Good requests per second", x, Axis("Good requests", "1/s", low=0.0, high=high), series
    )


# ---------------------------------------------------------------- latencies


def latency_charts(among: Sequence[Curve], result: SearchResult) -> list[Chart]:
    """Return TTFT, TPOT, and E2E where it has a limit, over the rate: p50 and p99, of several settings p99 alone."""
    charts = []
    shares = ("p99",) if len(among) > 1 else ("p50", "p99")
    for metric, field in _FIELDS.items():
        marks = [
            _mark(curve.name if len(among) > 1 else share, curve.colour + colour, curve, probe, y, "s")
            for colour, share in enumerate(shares)
            for curve in among
            for probe in curve.probes
            if (y := attrgetter(f"{field}_{share}_s")(probe)) is not None
        ]
        if not marks or (metric == "e2el" and metric not in result.limits_ms):
            continue
        limit = result.limits_ms.get(metric)
        limits = () if limit is None else (Limit(limit / 1e3, f"{METRICS[metric]} ≤ {limit:g} ms"),)
        title, dots = f"{METRICS[metric]} {' and '.join(shares)}", _dots(marks)
        y = scaled(Axis(METRICS[metric], "s"), [part.y for part in dots], [line.value for line in limits])
        chart = _chart(f"latency-{metric}", title, _rates_axis(among), y, dots, limits=limits, wide=False)
        charts.append(with_far_limits(chart))
    return charts


# ---------------------------------------------------------------- joules


def energy_charts(among: Sequence[Curve], result: SearchResult) -> list[Chart]:
    """Return joules per good request and per output token over the rate; none where no energy was measured."""
    charts, x = [], _rates_axis(among)
    if per_good := _dots(_marks(among, lambda probe: probe.joules_per_good_request, "J")):
        name = f"{share_text(result.confidence)} intervals of the minimum"
        series = [line for curve in _bounded(among, result) if (line := _cost_line(curve)) is not None] + per_good
        for curve in among:
            rate, cost = curve.setting.least_joules_rate, curve.setting.least_joules
            if rate is not None and cost is not None:
                series += _interval(name, curve, rate, cost, x)
        title = f"Joules per {good_request(result)}"
        y = scaled(Axis(title, "J"), [part.y for part in series if part.kind == "dots"], ())
        caption = (
            "Mean power of the counted time over good requests per second. The curve has the fitted power and the "
            "fitted share of good requests."
        )
        whole = _chart("joules-per-good-request", title, x, y, series, caption)
        rates = [curve.setting.least_joules_rate for curve in among]
        costs = [cost.value for curve in among if (cost := curve.setting.least_joules) is not None]
        near = Axis(title, "J", low=0.8 * min(costs, default=0.0), high=_CLOSE_COSTS * max(costs, default=0.0))
        charts += [whole, *_close_up(whole, "joules-close", "Close to the minimum", rates, near)]
    if per_token := _dots(_marks(among, lambda probe: probe.joules_per_output_token, "J")):
        y = scaled(Axis("Joules per output token", "J"), [part.y for part in per_token], ())
        caption = "Energy of the counted time over the output tokens of its requests, good or not."
        charts.append(_chart("joules-per-token", "Joules per output token", x, y, per_token, caption))
    return charts


def _cost_line(curve: Curve) -> Series | None:
    """Return joules per good request by the fits; unknown where most requests miss."""
    power = power_near(curve.probes, curve.fit.rate_rps)
    if power is None:
        return None

    def cost(rates: Floats) -> Floats:
        good = curve.good_share(rates)
        return power.at(rates) / rates / np.where(good > 0.5, good, nan)

    return curve.line(cost)


def front_chart(among: Sequence[Curve], result: SearchResult) -> Chart | None:
    """Return joules per good request against good requests per second, with the probes that no other beats in both.

    None of a single setting, and where fewer than three probes have both.
    """
    measured = points([curve.setting for curve in among])
    if len(among) < 2 or len(measured) < 3:
        return None
    by_name = {curve.setting.name: curve for curve in among}
    marks = []
    for point in measured:
        curve, cost = by_name[point.setting], point.joules_per_good_request
        marks.append(replace(_mark(curve.name, curve.colour, curve, point.probe, cost, "J"), x=point.good_rps))
    dots, best = _dots(marks), front(measured)
    x, y = (np.array([getattr(point, field) for point in best]) for field in ("good_rps", "joules_per_good_request"))
    line = Series("Pareto front", x, y, "line", "soft")
    names = "; ".join(f"{point.setting} at {per_second(point.probe.rate_rps)}" for point in best)
    across = scaled(Axis("Good requests", "1/s"), [part.x for part in dots], ())
    down = scaled(Axis(f"Joules per {good_request(result)}", "J"), [part.y for part in dots], ())
    title = f"Joules per {good_request(result)} against good requests per second"
    caption = f"The Pareto front has the probes that no other beats in both: {names}."
    return _chart("front", title, across, down, [line, *dots], caption)


# ---------------------------------------------------------------- the budget


def budget_chart(setting: SettingResult, result: SearchResult) -> Chart | None:
    """Return the rate of each probe over the time of the search, with the estimate after each refining probe.

    None for fewer than two probes.
    """
    if len(setting.probes) < 2:
        return None
    ends_s = list(accumulate(probe.wall_s for probe in setting.probes))
    rates = np.array([probe.rate_rps for probe in setting.probes])
    series = [Series("rate of the probe", np.array([0.0, *ends_s]), rates, "steps", 0)]
    estimates = [
        (end_s, sought_rate(setting.probes[:count], result.objective, result.attainment, result.confidence).estimate)
        for count, (probe, end_s) in enumerate(zip(setting.probes, ends_s, strict=True), 1)
        if probe.stage == "refine" and any(earlier.requests for earlier in setting.probes[:count])
    ]
    if estimates:
        values, low, high = (
            np.array([nan if (end := getattr(estimate, name)) is None else end for _, estimate in estimates])
            for name in ("value", "low", "high")
        )
        hints = [f"after {duration_text(s)}: {estimate_text(made, unit=' requests/s')}" for s, made in estimates]
        places = np.array([end_s for end_s, _ in estimates])
        series.append(Series("estimate after it, with its interval", places, values, "dots", 1, low, high, hints))
    x = Axis("Time of the search", "s", low=0.0)
    y = Axis("Requests per second", log=True, low=float(rates.min()) / 1.3, high=float(rates.max()) * 1.3)
    caption = "An arrowhead marks an interval that reaches beyond the picture." if estimates else ""
    return _chart("budget", "The rates that were tried", x, y, series, caption)
