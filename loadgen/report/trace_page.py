"""Page of a trace or bins, or of two side by side: length distributions and arrivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report import svg
from loadgen.report.format import count, number, percent, plural, seconds, tick_count, with_unit
from loadgen.report.markup import Markup, table, tag
from loadgen.report.page import header, render_page, section, tiles
from loadgen.report.run_figures import PERCENTILES, SHARE_AXIS, Shade, empty, figure, legend, shaded_table, share_curve
from loadgen.report.trace_facts import TraceFacts, format_fact
from loadgen.workload.trace_stats import RATE_PARTS, WINDOWS_S, Description

if TYPE_CHECKING:
    from loadgen.stats.distributions import Counts
    from loadgen.workload.token_bins import CountedPairs

HEIGHT = 200.0


def render_trace_page(traces: Sequence[TraceFacts], differences: dict[str, float | None]) -> str:
    """Render the page. `traces` are listed and drawn, `differences` compare two of them."""
    names = [str(facts["name"]) for facts, _ in traces]
    descriptions = [stats for _, stats in traces]
    title = " and ".join(names)
    sections = [
        _header(traces, title),
        section(
            "Lengths",
            legend(names) if len(names) > 1 else "",
            tag("div", _cdf("input", names, descriptions), _cdf("output", names, descriptions), class_="grid"),
            *(_joint(i, name, stats.pairs) for i, (name, stats) in enumerate(zip(names, descriptions, strict=True))),
        ),
    ]
    if any(stats.gaps_s for stats in descriptions):
        gaps_s = [stats.gaps_s for stats in descriptions]
        gaps = _shares("gaps", "Time between arrivals", "seconds", names, gaps_s, lambda s: f"{s:g} s")
        over_time = [_rate(i, str(facts["name"]), stats) for i, (facts, stats) in enumerate(traces) if stats.gaps_s]
        sections.append(
            section("Arrivals", *over_time, tag("div", gaps, _dispersion(names, descriptions), class_="grid"))
        )
    if differences:
        rows = [(DIFFERENCES[key], number(value)) for key, value in differences.items()]
        head = ("", "0: no difference")
        sections.append(section("Difference", table(head, rows, "Differences between the two")))
    every_key = dict.fromkeys(key for facts, _ in traces for key in facts if key != "name")
    keys = [key for key in every_key if not any(isinstance(facts.get(key), list) for facts, _ in traces)]
    facts_of = [(key.replace("_", " "), *(format_fact(facts.get(key), number) for facts, _ in traces)) for key in keys]
    sections.append(section("Facts", table(("", *names), facts_of, "Facts", class_="wrap")))
    return render_page(f"{title} · loadgen trace", sections, _STYLE)


_STYLE = ".wrap td { white-space: normal; overflow-wrap: anywhere; }"
"""Facts may be long (a command, an address): they wrap, so that those of two traces fit side by side."""


DIFFERENCES = {
    "ks_input": "Input tokens: Kolmogorov-Smirnov distance",
    "ks_output": "Output tokens: Kolmogorov-Smirnov distance",
    "ks_gap": "Time between arrivals: Kolmogorov-Smirnov distance",
    "spearman_difference": "Rank correlation of input with output: difference",
}


def _header(traces: Sequence[TraceFacts], title: str) -> Markup:
    kinds = " · ".join(
        f"{facts['name']}: {facts['kind']}, {plural(facts['requests'], 'request')}" for facts, _ in traces
    )
    rough = [f"{facts['name']}: {field} estimated" for facts, stats in traces for field in stats.estimated]
    parts = [tag("p", kinds, class_="soft")]
    if rough:
        parts.append(tag("p", "; ".join(rough) + ": the trace is too large to be kept in memory.", class_="soft"))
    if len(traces) == 1:
        parts.append(tiles(tile_rows(traces[0][0])))
    return header("loadgen trace", title, *parts)


def tile_rows(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the large numbers of one trace or of bins, which have no arrivals: name, value, note."""
    rows = [
        ("Input tokens", count(round(facts["input_p50"])), f"median; mean {number(facts['input_mean'])}"),
        ("Output tokens", count(round(facts["output_p50"])), f"median; mean {number(facts['output_mean'])}"),
        ("Rank correlation", number(facts["spearman"], 2), "of input with output, Spearman"),
        ("Requests", count(facts["requests"]), "counted in the bins" if "duration_s" not in facts else "in the trace"),
    ]
    if facts.get("duration_s") is not None:
        sessions = facts["sessions"]
        turns = f"{number(facts['turns_per_session_mean'])} turns on average" if sessions else "none named"
        rows += [
            ("Rate", with_unit(facts["mean_rps"], "/s"), f"over {seconds(facts['duration_s'])}"),
            ("Dispersion", number(facts["index_of_dispersion_60s"]), "of counts per minute; 1 is Poisson"),
            ("Sessions", count(sessions), turns),
            ("Prefix reuse", percent(facts["prefix_token_reuse"]), "of input tokens, by a cache that never evicts"),
        ]
    return rows


# ---------------------------------------------------------------- lengths


def _cdf(side: str, names: Sequence[str], descriptions: Sequence[Description]) -> Markup:
    groups = [stats.inputs if side == "input" else stats.outputs for stats in descriptions]
    return _shares(f"{side}-cdf", f"{side.capitalize()} tokens", "tokens", names, groups, tick_count)


def _shares(
    key: str,
    heading: str,
    unit: str,
    names: Sequence[str],
    groups: Sequence[Counts | None],
    label: Callable[[float], str],
) -> Markup:
    """Draw the share of requests at or below a value, on a logarithmic axis; zeros are below its low end."""
    positive = [g.values[g.values > 0] for g in groups if g is not None and np.any(g.values > 0)]
    if not positive:
        return empty(heading, "Every value is 0.")
    # Floats differ in their last places: no axis is drawn for a spread that small.
    low, high = min(float(v[0]) for v in positive), max(float(v[-1]) for v in positive)
    x = svg.log_axis(max(low, high / 1e7), high, label)
    marks = []
    for i, group in enumerate(groups):
        if group is not None:
            percentiles = [group.percentile(p) for p in PERCENTILES]
            titles = [f"{names[i]}: p{p} = {number(v)} {unit}" for p, v in zip(PERCENTILES, percentiles, strict=True)]
            shares = np.cumsum(group.counts) / group.counts.sum()
            marks.append(share_curve(group.values, shares, percentiles, titles, x, HEIGHT, i))
    summary = "; ".join(
        f"{name}: median {number(g.percentile(50))}, 99th percentile {number(g.percentile(99))} {unit}"
        for name, g in zip(names, groups, strict=True)
        if g is not None
    )
    picture = svg.plot(
        key, heading, f"{heading}, cumulative share of requests. {summary}", x, SHARE_AXIS, HEIGHT, marks
    )
    return figure(heading, "share of requests at or below", picture, f"{summary}. Dots at p50, p90, p99.")


def _joint(index: int, name: str, pairs: CountedPairs) -> Markup:
    """Draw shares of requests by powers of two; a row or column takes several where there would be more than 12."""
    rows, row_of = _powers(pairs.inputs)
    columns, column_of = _powers(pairs.outputs)
    cells = np.zeros((len(rows), len(columns)))
    np.add.at(cells, (row_of, column_of), pairs.counts / pairs.counts.sum())
    shade = Shade(max(float(cells[cells > 0].min()), 1e-4), float(cells.max()))
    heading = f"Input and output tokens of {name}"
    caption = f"{heading}: share of requests, by input (down) and output (across)"
    texts = [[(share, percent(share), "") if share else None for share in row] for row in cells.tolist()]
    box = shaded_table(f"{heading}, {index + 1}", caption, rows, columns, texts, shade)
    note = "Each row and column goes up to the number shown, and begins above the one before. Blank: no request."
    return figure(heading, "share of requests, shaded on a logarithmic scale", box, note, "wide")


def _powers(lengths: Any) -> tuple[list[str], Any]:
    exponent = np.ceil(np.log2(lengths)).astype(int)
    low, high = int(exponent.min()), int(exponent.max())
    stride = -(-(high - low + 1) // 12)
    tops = range(high - (high - low) // stride * stride, high + 1, stride)
    return [f"{2**k:,}" for k in tops], np.searchsorted(np.array(tops), exponent)


# ---------------------------------------------------------------- arrivals


def _rate(index: int, name: str, stats: Description) -> Markup:
    heading = f"Arrival rate of {name}"
    if stats.rates_rps is None or stats.duration_s is None:
        return empty(heading, "All requests arrive at one instant.")
    unit_s, unit = next(
        (s, u) for s, u in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")) if stats.duration_s > 3 * s or s == 1
    )
    edges = np.linspace(0, stats.duration_s, RATE_PARTS + 1)
    rates = np.array(stats.rates_rps)
    x = svg.linear_axis(0, stats.duration_s / unit_s, lambda t: f"{t:,g} {unit}", 6)
    y = svg.linear_axis(0, float(rates.max()) * 1.04, lambda r: f"{r:,g}", 4)
    line = tag("g", svg.steps(x.at(edges / unit_s), y.at(rates), 150), class_=f"s{index % 6}")
    titles = [
        f"{number(a / unit_s)} to {number(b / unit_s)} {unit}: {number(r)} requests/s"
        for a, b, r in zip(edges.tolist(), edges[1:].tolist(), rates.tolist(), strict=False)
    ]
    strips = svg.bands(x.at(edges / unit_s), 150, titles)
    summary = (
        f"Requests per second in {RATE_PARTS} equal parts: lowest {number(rates.min())}, highest {number(rates.max())}."
    )
    picture = svg.plot(f"rate-{index}", heading, summary, x, y, 150, [line, strips])
    return figure(heading, "requests/s", picture, summary, "wide")


def _dispersion(names: Sequence[str], descriptions: Sequence[Description]) -> Markup:
    heading = "Index of dispersion"
    points = [[(w, d) for w, d in zip(WINDOWS_S, stats.dispersion, strict=True) if d] for stats in descriptions]
    if not any(points):
        return empty(heading, "The trace is too short: it needs two windows of a second.")
    values = [d for windows in points for _, d in windows] + [1.0]
    x = svg.log_axis(WINDOWS_S[0], WINDOWS_S[-1], lambda w: f"{w:,g} s")
    y = svg.log_axis(min(values), max(values), lambda v: f"{v:,g}", gap=0.12)
    ends = np.array([float(WINDOWS_S[0]), float(WINDOWS_S[-1])])
    poisson = svg.steps(x.at(ends), y.at(np.array([1.0])), HEIGHT, stroke_dasharray="4 4")
    marks = [tag("g", poisson, class_="flying")]
    for i, (name, windows) in enumerate(zip(names, points, strict=True)):
        widths, level = np.array([w for w, _ in windows], float), np.array([d for _, d in windows])
        titles = [f"{name}: {number(d)} in windows of {seconds(w)}" for w, d in windows]
        marks.append(
            tag("g", svg.dots(x.at(widths), y.at(level), HEIGHT, titles, class_="dot mark"), class_=f"s{i % 6}")
        )
    text = "; ".join(
        f"{name}: " + ", ".join(f"{number(d)} at {seconds(w)}" for w, d in windows)
        for name, windows in zip(names, points, strict=True)
        if windows
    )
    picture = svg.plot("dispersion", heading, f"Variance over mean of the counts. {text}", x, y, HEIGHT, marks)
    note = "Dashed: 1, a Poisson process. Rising with the window: the rate itself changes."
    return figure(heading, "variance / mean of the counts, by length of window", picture, note)
