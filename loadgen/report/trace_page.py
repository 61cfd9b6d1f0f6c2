"""Page of a trace or bins, or of two side by side: length distributions and arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Limit, Series
from loadgen.report.charts.distribution import distribution
from loadgen.report.charts.figure import figure
from loadgen.report.charts.shaded import Shade, shaded_table
from loadgen.report.format import count, number, percent, plural, seconds, with_unit
from loadgen.report.markup import Markup, table, tag
from loadgen.report.page import header, render_page, section, tile
from loadgen.report.trace_facts import ALIKE, DIFFERENCES, MEANINGS, TraceFacts, fact_name, format_fact
from loadgen.stats.distributions import curve_of_counts
from loadgen.workload.trace_stats import RATE_PARTS, WINDOWS_S, Description

if TYPE_CHECKING:
    from loadgen.stats.distributions import Counts
    from loadgen.workload.token_bins import CountedPairs


def render_trace_page(traces: Sequence[TraceFacts], differences: dict[str, float | None]) -> str:
    """Render the page. `traces` are listed and drawn, `differences` compare two of them."""
    names = _labels(traces)
    descriptions = [stats for _, stats in traces]
    title = " and ".join(str(facts["name"]) for facts, _ in traces)
    cdfs = (
        _shares(
            f"{side}-tokens", f"{side.capitalize()} tokens", Axis(f"{side} tokens", "tokens", log=True), names, groups
        )
        for side, groups in (("input", [d.inputs for d in descriptions]), ("output", [d.outputs for d in descriptions]))
    )
    sections = [
        _header(traces, title),
        section(
            "Lengths",
            tag("div", *cdfs, class_="grid"),
            *(_joint(i, name, stats.pairs) for i, (name, stats) in enumerate(zip(names, descriptions, strict=True))),
        ),
    ]
    if any(stats.gaps_s for stats in descriptions):
        gaps = _shares(
            "gaps",
            "Time between arrivals",
            Axis("time between arrivals", "s", log=True),
            names,
            [stats.gaps_s for stats in descriptions],
        )
        rates = [_rate(i, names[i], stats) for i, stats in enumerate(descriptions) if stats.gaps_s]
        both = tag("div", gaps, _dispersion(names, descriptions), class_="grid")
        sections.append(section("Arrivals", *rates, both))
    if differences:
        rows = [(DIFFERENCES[key], number(value)) for key, value in differences.items()]
        listed = table(("of", "difference"), rows, "Differences between the two")
        sections.append(section("Difference", listed, tag("p", ALIKE, class_="soft")))
    sections.append(section("Facts", *_facts(names, [facts for facts, _ in traces])))
    return render_page(f"{title} · loadgen trace", sections, _STYLE)


_STYLE = ".wrap td { white-space: normal; overflow-wrap: anywhere; }"
"""Facts may be long (a command, an address): they wrap, so that those of two traces fit side by side."""


def _labels(traces: Sequence[TraceFacts]) -> list[str]:
    """Return the names of the traces; equal ones are numbered, as curves of one name belong together."""
    names = [str(facts["name"]) for facts, _ in traces]
    return names if len(set(names)) == len(names) else [f"{name} ({i})" for i, name in enumerate(names, 1)]


def _facts(names: Sequence[str], facts: Sequence[dict[str, Any]]) -> list[Markup]:
    """Return the facts as a table, and the names of those that are unknown of every trace."""
    keys = [key for key in dict.fromkeys(key for of_one in facts for key in of_one) if key != "name"]
    keys = [key for key in keys if not any(isinstance(of_one.get(key), list) for of_one in facts)]
    known = [key for key in keys if any(of_one.get(key) is not None for of_one in facts)]
    rows = [(fact_name(key), *(format_fact(of_one.get(key), number) for of_one in facts)) for key in known]
    unknown = ", ".join(fact_name(key) for key in keys if key not in known)
    notes = [MEANINGS, f"Unknown: {unknown}." if unknown else ""]
    return [
        table(("fact", *names), rows, "Every known fact", class_="wrap"),
        *(tag("p", n, class_="soft") for n in notes if n),
    ]


def _header(traces: Sequence[TraceFacts], title: str) -> Markup:
    kinds = " · ".join(
        f"{facts['name']}: {facts['kind']}, {plural(facts['requests'], 'request')}" for facts, _ in traces
    )
    rough = [f"{facts['name']}: {field} estimated" for facts, stats in traces for field in stats.estimated]
    parts = [tag("p", kinds, class_="soft")]
    if rough:
        parts.append(tag("p", "; ".join(rough) + ": the trace is too large to be kept in memory.", class_="soft"))
    if len(traces) == 1:
        tiles = [tile(name, [("", value)], [note]) for name, value, note in tile_rows(traces[0][0])]
        parts.append(tag("dl", *tiles, class_="tiles"))
    return header("loadgen trace", title, *parts)


def tile_rows(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the large numbers of one trace or of bins, which have no arrivals: name, value, note."""
    rows = [
        ("Input tokens", count(round(facts["input_p50"])), f"median; mean {number(facts['input_mean'])}"),
        ("Output tokens", count(round(facts["output_p50"])), f"median; mean {number(facts['output_mean'])}"),
        ("Requests", count(facts["requests"]), "counted in the bins" if "duration_s" not in facts else "in the trace"),
        ("Input with output", number(facts["spearman"], 2), "rank correlation: 1 rise together, 0 unrelated"),
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


def _shares(key: str, heading: str, x: Axis, names: Sequence[str], groups: Sequence[Counts | None]) -> Markup:
    """Draw the share of requests at or below a value, on a logarithmic axis; zeros are below its low end."""
    curves = {name: curve_of_counts(group) for name, group in zip(names, groups, strict=True) if group is not None}
    return figure(distribution(key, heading, x, curves, of="gap" if key == "gaps" else "request"))


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
    unit = tag("p", "share of requests, shaded on a logarithmic scale", class_="unit")
    return tag("figure", tag("h3", heading), unit, box, tag("figcaption", note), class_="wide")


def _powers(lengths: Any) -> tuple[list[str], Any]:
    exponent = np.ceil(np.log2(lengths)).astype(int)
    low, high = int(exponent.min()), int(exponent.max())
    stride = -(-(high - low + 1) // 12)
    tops = range(high - (high - low) // stride * stride, high + 1, stride)
    return [f"{2**k:,}" for k in tops], np.searchsorted(np.array(tops), exponent)


# ---------------------------------------------------------------- arrivals


def _rate(index: int, name: str, stats: Description) -> Markup:
    """Draw the requests per second in RATE_PARTS equal parts of the trace."""
    heading = f"Arrival rate of {name}"
    if stats.rates_rps is None or stats.duration_s is None:
        return tag("figure", tag("h3", heading), tag("p", "All requests arrive at one instant.", class_="empty"))
    unit_s, unit = next(
        (s, u) for s, u in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")) if stats.duration_s > 3 * s or s == 1
    )
    edges = np.linspace(0, stats.duration_s, RATE_PARTS + 1) / unit_s
    rates = np.array(stats.rates_rps)
    note = (
        f"Requests per second in {RATE_PARTS} equal parts: lowest {number(rates.min())}, highest {number(rates.max())}."
    )
    chart = Chart(
        f"rate-{index}",
        heading,
        Axis(f"time since the first request ({unit})", low=0.0, high=float(edges[-1])),
        Axis("requests", "1/s", low=0.0),
        (Series(name, edges, rates, "steps", index),),
        text=note,
        caption=note,
        wide=True,
        height=150,
    )
    return figure(chart)


def _dispersion(names: Sequence[str], descriptions: Sequence[Description]) -> Markup:
    """Draw the variance over the mean of the counts in windows of several lengths."""
    heading = "Index of dispersion"
    series, texts = [], []
    for i, (name, stats) in enumerate(zip(names, descriptions, strict=True)):
        windows = [(w, d) for w, d in zip(WINDOWS_S, stats.dispersion, strict=True) if d]
        if windows:
            widths, levels = np.array(windows, dtype=float).T
            series.append(Series(name, widths, levels, "dots", i))
            texts.append(f"{name}: " + ", ".join(f"{number(d)} at {seconds(w)}" for w, d in windows))
    if not series:
        why = "The trace is too short: it needs two windows of a second."
        return tag("figure", tag("h3", heading), tag("p", why, class_="empty"))
    chart = Chart(
        "dispersion",
        heading,
        Axis("length of a window", "s", log=True, low=WINDOWS_S[0], high=WINDOWS_S[-1], ticks=WINDOWS_S),
        Axis("variance / mean of the counts", log=True),
        tuple(series),
        text=f"Variance over mean of the counts. {'; '.join(texts)}",
        caption="1: a Poisson process. Rising with the window: the rate itself changes.",
        limits=(Limit(1.0, "Poisson"),),
    )
    return figure(chart)
