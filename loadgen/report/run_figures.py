"""The plots of a run, each with a caption that states how it was drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loadgen.energy.series import outermost
from loadgen.report import svg
from loadgen.report.charts.shaded import Shade, shaded_table
from loadgen.report.format import count, joules, number, percent, plural, seconds, tick_joules, tick_seconds, watts
from loadgen.report.markup import Markup, join, tag
from loadgen.results.energy_summary import aligned_series
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats, Ints

MAX_POINTS = 2_000
"""Points of one series that a plot draws at most, thinned by a rule that its caption states."""
RANKS = 1_000
BANDS = 200
LAG_FLOOR_S = 1e-5
PERCENTILES = (50, 90, 99)
SHARE_AXIS = svg.Axis(0, 1, False, tuple((p, f"{100 * p:g} %") for p in (0, 0.25, 0.5, 0.75, 0.9, 0.99)))


@dataclass(frozen=True)
class Steps:
    """value[i] holds from t_s[i] to t_s[i + 1]; seconds count from the start of the run."""

    t_s: Floats
    value: Floats

    def at(self, t_s: Floats) -> Floats:
        """Return the values at some instants; 0 before the first step and from the end of the last."""
        index = np.searchsorted(self.t_s, t_s, "right") - 1
        inside = (index >= 0) & (index < len(self.value))
        return np.where(inside, np.append(self.value, 0.0)[np.where(inside, index, -1)], 0.0)


def start_ns(result: RunResult) -> int:
    if result.info.start_ns is not None:
        return result.info.start_ns
    return min((r.scheduled_ns for r in result.records), default=0)


def workloads(result: RunResult) -> list[str]:
    """Return the workloads in the order of their colours."""
    return sorted({r.workload for r in result.records} | {s.workload for s in result.schedule})


def legend(names: list[str]) -> Markup:
    if not names:
        return Markup()
    items = (tag("li", svg.swatch(i), " ", tag("span", name)) for i, name in enumerate(names))
    return tag("ul", *items, class_="legend")


def figure(heading: str, unit: str, picture: str, caption: str, class_: str | None = None) -> Markup:
    return tag(
        "figure",
        tag("h3", heading),
        tag("p", unit, class_="unit") if unit else "",
        picture,
        tag("figcaption", caption),
        class_=class_,
    )


def empty(heading: str, why: str) -> Markup:
    return tag("figure", tag("h3", heading), tag("p", why, class_="empty"))


def by_rank(n: int, limit: int) -> Ints:
    """Return up to `limit` evenly spaced ranks out of 0..n-1, with the first and the last."""
    if n <= limit:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, limit).round().astype(np.int64))


def by_extremes(values: Floats, limit: int) -> Ints:
    """Return the indices of the lowest and highest value of each of limit/2 equal runs of neighbours: spikes stay."""
    n = len(values)
    if n <= limit:
        return np.arange(n)
    cuts = np.linspace(0, n, limit // 2 + 1).astype(np.int64)
    pairs = [(a + int(values[a:b].argmin()), a + int(values[a:b].argmax())) for a, b in itertools.pairwise(cuts)]
    return np.unique(np.array(pairs, dtype=np.int64))


def share_curve(
    values: Floats,
    shares: Floats,
    percentiles: Sequence[float],
    titles: Sequence[str],
    x: svg.Axis,
    height: float,
    index: int,
) -> Markup:
    """Return series `index`: a step curve of the share at or below each value, from (lowest, 0) up to (highest, 1).

    values, shares: ascending, drawn at up to RANKS of them. percentiles: the values at PERCENTILES, where the dots are;
    `titles` are their tooltips.
    """
    kept = by_rank(len(values), RANKS)
    places = x.at(values[kept])
    # A step curve needs an end: from each value to the next it stays at that value's share.
    curve = svg.steps(
        np.concatenate([places[:1], places, places[-1:]]),
        SHARE_AXIS.at(np.concatenate([[0.0], shares[kept]])),
        height,
        stroke_dasharray=svg.DASHES[index % len(svg.DASHES)],
    )
    dotted = SHARE_AXIS.at(np.array(PERCENTILES) / 100)
    dots = svg.dots(x.at(np.array(percentiles)), dotted, height, titles, class_="dot mark")
    return tag("g", curve, dots, class_=f"s{index % 6}")


# ---------------------------------------------------------------- latency


def latency(result: RunResult, key: str, heading: str) -> Markup:
    """Return the distribution of "ttft", "tpot", "e2e" or "response": the property KEY_ns of a record."""
    groups: dict[str, Floats] = {}
    for name in workloads(result):
        durations = (getattr(r, f"{key}_ns") for r in result.records if r.ok and r.workload == name)
        groups[name] = np.sort(np.array([ns for ns in durations if ns is not None], dtype=float)) / NS_PER_S
    latencies_s = np.concatenate([*groups.values(), np.array([])])
    positive = latencies_s[latencies_s > 0]
    if not len(positive):
        return empty(heading, "No completed request has it.")
    x = svg.log_axis(float(positive.min()), float(positive.max()), tick_seconds)
    marks = []
    for i, (name, values) in enumerate(groups.items()):
        if len(values):
            percentiles = [float(value) for value in np.percentile(values, PERCENTILES)]
            titles = [f"{name}: p{p} = {seconds(value)}" for p, value in zip(PERCENTILES, percentiles, strict=True)]
            shares = np.arange(1, len(values) + 1) / len(values)
            marks.append(share_curve(values, shares, percentiles, titles, x, 190, i))
    counts = ", ".join(f"{count(len(values))} {name}" for name, values in groups.items())
    thinned = any(len(values) > RANKS for values in groups.values())
    rule = f" Drawn at {RANKS:,} evenly spaced ranks, lowest and highest included." if thinned else ""
    text = f"{heading}, cumulative share of requests on a logarithmic axis. " + "; ".join(
        f"{name}: median {seconds(float(np.median(v)))}, 99th percentile {seconds(float(np.percentile(v, 99)))}"
        for name, v in groups.items()
        if len(v)
    )
    picture = svg.plot(key, heading, text, x, SHARE_AXIS, 190, marks)
    return figure(heading, "share of requests at or below", picture, f"{counts}; dots at p50, p90, p99.{rule}")


# ---------------------------------------------------------------- over time


def over_time(result: RunResult) -> Markup:
    """Return power above requests in flight, on one time axis."""
    power, flying = power_steps(result), in_flight(result)
    lasts = [s.t_s[-1] for s in (power, flying) if len(s.value)]
    if not lasts:
        return empty("Power and requests in flight", "Nothing was sent and no energy was read.")
    first_s = min(float(s.t_s[0]) for s in (power, flying) if len(s.value))
    x = _time_axis(first_s, float(max(lasts)))
    upper = power_plot(power, flying, x) if len(power.value) else tag("p", "No energy was read.", class_="empty")
    lower = in_flight_plot(flying, x) if len(flying.value) else tag("p", "Nothing was sent.", class_="empty")
    thinned = [
        f"{name}: of {len(s.value):,} points, the lowest and the highest in each of {MAX_POINTS // 2:,} equal "
        "groups of neighbours."
        for name, s in (("Power", power), ("In flight", flying))
        if len(s.value) > MAX_POINTS
    ]
    counters = len(outermost(result.info.domains))
    several = " Several counters are added, each interpolated between its updates." if counters > 1 else ""
    windows = f"One step is one window between two updates of the counter.{several}" if len(power.value) else ""
    caption = " ".join([windows, *thinned])
    parts = join([upper, tag("p", "requests in flight", class_="unit"), lower])
    return figure("Power and requests in flight", "W" if len(power.value) else "", parts, caption, "wide")


def _time_axis(first_s: float, last_s: float) -> svg.Axis:
    """Return an axis that begins at the run's start or earlier, with fewer labels where they are long."""
    return svg.linear_axis(min(first_s, 0), last_s, lambda t_s: f"{t_s:,g} s", 6 if last_s < 1_000 else 5)


def power_steps(result: RunResult) -> Steps:
    """Return the watts in each window between two updates of the counter; their sum if there are several counters."""
    series = aligned_series(result)
    if not series:
        return Steps(np.array([]), np.array([]))
    low, high = max(s.t_ns[0] for s in series), min(s.t_ns[-1] for s in series)
    t_ns = np.unique(np.concatenate([s.t_ns for s in series]))
    t_ns = t_ns[(t_ns >= low) & (t_ns <= high)]
    total_j = np.sum([np.interp(t_ns, s.t_ns, s.mj) for s in series], axis=0) / MJ_PER_J
    return Steps((t_ns - start_ns(result)) / NS_PER_S, np.diff(total_j) / (np.diff(t_ns) / NS_PER_S))


def in_flight(result: RunResult) -> Steps:
    """Return the number of requests sent and not finished. One without an end is in flight until the end of the run."""
    sent = [r for r in result.records if r.sent_ns is not None]
    if not sent:
        return Steps(np.array([]), np.array([]))
    last = max([r.finished_ns or 0 for r in sent] + [r.sent_ns or 0 for r in sent] + [result.info.end_ns or 0])
    begins = np.array([r.sent_ns for r in sent], dtype=np.int64)
    ends = np.array([last if r.finished_ns is None else r.finished_ns for r in sent], dtype=np.int64)
    t_ns = np.unique(np.concatenate([[start_ns(result)], begins, ends]))
    level = np.searchsorted(np.sort(begins), t_ns, "right") - np.searchsorted(np.sort(ends), t_ns, "right")
    return Steps((t_ns - start_ns(result)) / NS_PER_S, level[:-1].astype(float))


def power_plot(power: Steps, flying: Steps, x: svg.Axis) -> Markup:
    """Return power over time, with up to BANDS strips whose tooltips hold mean power and the requests in flight."""
    y = svg.linear_axis(0, float(power.value.max()) * 1.04, lambda w: f"{w:,g}", 4)
    edges = np.linspace(power.t_s[0], power.t_s[-1], min(BANDS, len(power.value)) + 1)
    cumulative = np.concatenate([[0], np.cumsum(power.value * np.diff(power.t_s))])
    mean_w = np.diff(np.interp(edges, power.t_s, cumulative)) / np.diff(edges)
    levels = flying.at((edges[:-1] + edges[1:]) / 2)
    titles = [
        f"{number(float(a))} to {number(float(b))} s: {watts(float(w))}, {level:.0f} in flight"
        for a, b, w, level in zip(edges, edges[1:], mean_w, levels, strict=False)
    ]
    text = f"Mean power per counter window: lowest {watts(power.value.min())}, highest {watts(power.value.max())}."
    marks = [_curve(power, x, y, 170, "power"), svg.bands(x.at(edges), 170, titles)]
    return svg.plot("power", "Power over time", text, x, y, 170, marks, x_labels=False)


def in_flight_plot(flying: Steps, x: svg.Axis) -> Markup:
    """Return the number of requests in flight over time."""
    top = float(max(flying.value.max(), 1))
    # Whole requests: no tick between two of them.
    y = svg.linear_axis(0, top * 1.04 if top > 2 else top, lambda n: f"{n:,g}" if n == int(n) else "", 3)
    text = f"Requests in flight over time: at most {flying.value.max():,.0f}."
    return svg.plot("inflight", "Requests in flight", text, x, y, 90, [_curve(flying, x, y, 90, "flying")])


def _curve(steps: Steps, x: svg.Axis, y: svg.Axis, height: float, class_: str) -> Markup:
    kept = by_extremes(steps.value, MAX_POINTS)
    edges = np.append(steps.t_s[kept], steps.t_s[-1])
    return tag("g", svg.steps(x.at(edges), y.at(steps.value[kept]), height), class_=class_)


# ---------------------------------------------------------------- energy by request


@dataclass(frozen=True)
class Point:
    """One completed request whose energy and lengths are all known."""

    index: int
    workload: str
    input_tokens: int
    output_tokens: int
    prefill_j: float
    decode_j: float
    joules: float


def points(result: RunResult) -> list[Point]:
    """Return the points sorted by joules. Failed requests have energy too, but no lengths to set it against."""
    if result.attribution is None:
        return []
    records = {r.index: r for r in result.records if r.ok}
    unsorted = [
        Point(
            e.index,
            r.workload,
            r.input_tokens,
            r.output_tokens,
            e.prefill_joules or 0.0,
            e.decode_joules or 0.0,
            e.joules,
        )
        for e in result.attribution.requests
        if (r := records.get(e.index)) and r.input_tokens is not None and r.output_tokens is not None
    ]
    return sorted(unsorted, key=lambda p: p.joules)


def scatter(result: RunResult) -> Markup:
    """Return joules against input + output tokens."""
    heading = "Joules per request against its tokens"
    drawable = [p for p in points(result) if p.joules > 0 and p.input_tokens + p.output_tokens > 0]
    if not drawable:
        return empty(heading, "No completed request has attributed energy.")
    tokens = np.array([p.input_tokens + p.output_tokens for p in drawable], dtype=float)
    energy = np.array([p.joules for p in drawable])
    x = svg.log_axis(tokens.min(), tokens.max(), lambda n: f"{n:,g}")
    y = svg.log_axis(energy[0], energy[-1], tick_joules, gap=0.06)
    kept = by_rank(len(drawable), MAX_POINTS)
    marks = []
    for series, name in enumerate(workloads(result)):
        chosen = [i for i in kept if drawable[i].workload == name]
        titles = (
            f"request {p.index}, {p.workload}: {p.input_tokens:,} in, {p.output_tokens:,} out, {joules(p.joules)}"
            f" ({percent(p.prefill_j / p.joules)} prefill)"
            for p in (drawable[i] for i in chosen)
        )
        class_ = f"dot d{series % 2} s{series % 6} cloud"
        marks.append(svg.dots(x.at(tokens[chosen]), y.at(energy[chosen]), 320, titles, class_=class_))
    rule = (
        f" {len(kept):,} of {len(drawable):,} drawn: evenly spaced ranks of joules."
        if len(kept) < len(drawable)
        else ""
    )
    text = f"{len(drawable)} requests from {joules(energy[0])} to {joules(energy[-1])}, both axes logarithmic."
    picture = svg.plot("scatter", heading, text, x, y, 320, marks)
    return figure(
        heading, "J, against input + output tokens", picture, f"{plural(len(drawable), 'request')}.{rule}", "wide"
    )


@dataclass(frozen=True)
class Heat:
    """Mean joules per request by (input, output) tokens. A cell [low, high) without a request is None, not 0."""

    input_edges: list[int]
    output_edges: list[int]
    cells: list[list[tuple[int, float] | None]]


def heat(points: list[Point]) -> Heat | None:
    """Return cells between powers of two; of four or more if there would be more than eight rows or columns."""
    if not points:
        return None
    inputs = np.array([p.input_tokens for p in points])
    outputs = np.array([p.output_tokens for p in points])
    energy = np.array([p.joules for p in points])
    rows, columns = _edges(inputs), _edges(outputs)
    row, column = (np.searchsorted(e, v, "right") - 1 for e, v in ((rows, inputs), (columns, outputs)))
    shape = (len(rows) - 1, len(columns) - 1)
    place = row * shape[1] + column
    counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(place, weights=energy, minlength=shape[0] * shape[1]).reshape(shape)
    cells = [
        [(int(n), float(j / n)) if n else None for n, j in zip(ns, js, strict=True)]
        for ns, js in zip(counts, sums, strict=True)
    ]
    return Heat(rows, columns, cells)


def _edges(tokens: NDArray[np.int64]) -> list[int]:
    low, high = int(max(tokens.min(), 1)).bit_length() - 1, int(max(tokens.max(), 1)).bit_length()
    stride = max(1, -(-(high - low) // 8))
    exponents = [*range(low, high, stride), low + stride * -(-(high - low) // stride)]
    edges = [2**e for e in exponents]
    return [0, *edges[1:]] if tokens.min() == 0 else edges


def heat_map(result: RunResult) -> Markup:
    heading = "Mean joules per request by length"
    grid = heat(points(result))
    if grid is None:
        return empty(heading, "No completed request has attributed energy.")
    means = [cell[1] for row in grid.cells for cell in row if cell and cell[1] > 0]
    shade = Shade(min(means, default=1), max(means, default=1))
    cells = [[cell and (cell[1], joules(cell[1]), f"{cell[0]:,}") for cell in row] for row in grid.cells]
    table_caption = "Mean joules per request, by input tokens (down) and output tokens (across)"
    box = shaded_table(heading, table_caption, _ranges(grid.input_edges), _ranges(grid.output_edges), cells, shade)
    caption = "Rows: input tokens. Columns: output tokens. Small: how many requests. Blank: no request."
    return figure(heading, "J, shaded on a logarithmic scale", box, caption, "wide")


def _ranges(edges: list[int]) -> list[str]:
    pairs = itertools.pairwise(edges)
    return [f"{a:,}" if b == a + 1 else f"{a:,}–{b - 1:,}" for a, b in pairs]


# ---------------------------------------------------------------- the client


def lag(result: RunResult) -> Markup:
    heading = "How late the client sent"
    sent = np.fromiter(
        ((r.scheduled_ns, r.lag_ns) for r in result.records if r.lag_ns is not None), np.dtype((np.int64, 2))
    )
    if not len(sent):
        return empty(heading, "Nothing was sent.")
    at_ns, lag_ns = sent[np.lexsort((sent[:, 1], sent[:, 0]))].T
    t_s, lag_s = (at_ns - start_ns(result)) / NS_PER_S, lag_ns / NS_PER_S
    kept = by_extremes(lag_s, MAX_POINTS)
    x = _time_axis(float(t_s[0]), float(t_s[-1]))
    y = svg.log_axis(max(float(lag_s.min()), LAG_FLOOR_S), max(float(lag_s.max()), 1e-3), tick_seconds, gap=0.11)
    marks = [svg.dots(x.at(t_s[kept]), y.at(lag_s[kept]), 150, None, class_="dot lag")]
    rule = (
        f" The lowest and the highest in each of {MAX_POINTS // 2:,} equal groups of neighbours are drawn."
        if len(kept) < len(t_s)
        else ""
    )
    floor = f" Lags under {seconds(LAG_FLOOR_S)} are drawn there." if lag_s.min() < LAG_FLOOR_S else ""
    middle, highest = seconds(float(np.median(lag_s))), seconds(float(lag_s.max()))
    text = f"Schedule lag of {len(sent)} requests: median {middle}, highest {highest}."
    picture = svg.plot("lag", heading, text, x, y, 150, marks)
    return figure(
        heading, "sent − scheduled, against time", picture, f"{plural(len(sent), 'request')}.{rule}{floor}", "wide"
    )
