"""Which requests were slow and which cost most, with the reasons that the numbers give: a section of a run's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report.format import UNKNOWN, clean, joules, seconds
from loadgen.report.markup import Markup, join, json_data, table, tag
from loadgen.report.page import folded, section
from loadgen.report.request_words import span_text, trait_value, traits_rows, why, why_costly, why_slow
from loadgen.results.extremes import costliest, largest, slowest
from loadgen.results.request_columns import RequestColumns, request_columns
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.extremes import Extremes
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary
    from loadgen.stats.arrays import Floats, Ints

ROWS = 10
"""Requests that a table lists."""
MAX_CHUNKS = 200
"""Chunks that the timeline of one request draws; of more, so many evenly spaced ones with the first and the last."""
WIDTH = 300
"""Width of a timeline in the units of its drawing."""


def requests_section(result: RunResult, summary: Summary, drawn: Iterable[int] = ()) -> list[Markup]:
    """Return the section, in a list; empty where no request completed. `drawn`: requests that a click may choose."""
    columns = request_columns(result)
    if not len(columns.index):
        return []
    by_ttft, by_e2e, by_joules = (largest(v, ROWS) for v in (columns.ttft_s, columns.e2e_s, columns.joules))
    records = {record.index: record for record in result.records}
    parts = [
        *_why_slow(columns, summary),
        _request_table("Slowest by TTFT", columns, by_ttft, "ttft_s", records),
        _request_table("Slowest by E2E", columns, by_e2e, "e2e_s", records),
        *_why_costly(columns),
        *([_request_table("Costliest by joules", columns, by_joules, "joules", records)] if len(by_joules) else []),
        tag("p", _CAPTION, class_="soft"),
    ]
    listed = np.unique(np.concatenate([by_ttft, by_e2e, by_joules]))
    chosen = sorted({*columns.index[listed].tolist(), *drawn})
    data = request_data(columns, chosen, listed, records)
    return [section("Which requests", *parts), json_data(data, id_="requests")]


_CAPTION = (
    "Completed requests. In flight: other requests in flight when it was sent. Queue: requests in the engine's own "
    "queue, by the last reading before. ± is one standard error of the attribution. The timelines of a table have one "
    "scale, from the instant each request was sent: the line is its wait for the first token, each dot is a chunk, and "
    f"of more than {MAX_CHUNKS} chunks {MAX_CHUNKS} evenly spaced ones are drawn. Why: where a request is far from the "
    "median of all and among the tenth that is farthest; - where nothing stands out. What stands out is a lead, no "
    "proof of a cause."
)


# ---------------------------------------------------------------- what they have in common


def _why_slow(columns: RequestColumns, summary: Summary) -> list[Markup]:
    found = slowest(columns)
    if found is None:
        return [tag("p", "Too few requests have a TTFT to compare the slowest with the others.", class_="soft")]
    asked = f"Why is TTFT p99 {seconds(summary.ttft_s.p99)}? The median is {seconds(summary.ttft_s.p50)}. "
    return [_common("What the slowest requests have in common", "slowest", asked + why_slow(found), found, columns)]


def _why_costly(columns: RequestColumns) -> list[Markup]:
    found = costliest(columns)
    if found is None:
        return []
    sentence = why_costly(columns, found)
    return [_common("Which requests cost most, and why", "costliest", sentence, found, columns)]


def _common(heading: str, name: str, sentence: str, found: Extremes, columns: RequestColumns) -> Markup:
    """Return a sentence, the table behind it, and a link that zooms the charts to where these requests were sent."""
    link = Markup()
    if found.window is not None:
        from_s, to_s = found.window.from_s, found.window.to_s
        margin_s = max(1.0, (to_s - from_s) / 10)
        link = tag(
            "a",
            f"Show {span_text(from_s, to_s)} in the charts over time",
            href="#over-time",
            class_="zoom-to",
            data_from=f"{max(0.0, from_s - margin_s):.3f}",
            data_to=f"{to_s + margin_s:.3f}",
        )
    span = span_text(float(columns.sent_s.min()), float(columns.sent_s.max()))
    head = ["median", f"{name} {len(found.rows)}", f"all {found.of:,}", "stands out"]
    rows = traits_rows(found, span)
    return tag(
        "figure", tag("h3", heading), tag("p", sentence), tag("p", link) if link else "",
        table(head, rows, heading, "common"), class_="wide",
    )  # fmt: skip


# ---------------------------------------------------------------- tables


def _request_table(
    heading: str, columns: RequestColumns, rows: Ints, by: str, records: dict[int, RequestRecord]
) -> Markup:
    """Return these requests, the largest first, each with its timeline."""
    longest_s = float(np.nanmax(columns.e2e_s[rows])) if len(rows) else 0.0
    chosen = [records[int(columns.index[row])] for row in rows]
    several = len({record.workload for record in records.values()}) > 1
    cells = [
        [
            f"#{record.index}",
            *([clean(record.workload)] if several else []),
            _text(columns.sent_s[row], lambda value: f"{value:,.2f} s"),
            _tokens(columns.input_tokens[row], columns.cached_tokens[row]),
            trait_value("output_tokens", columns.output_tokens[row]),
            *(_text(values[row], seconds) for values in (columns.ttft_s, columns.tpot_s, columns.e2e_s)),
            f"{columns.in_flight[row]:,.0f}",
            trait_value("queue", columns.queue[row]),
            _energy(columns, row),
            timeline(record, longest_s),
            why(columns, int(row), by),
        ]
        for row, record in zip(rows, chosen, strict=True)
    ]
    head = ["request", *(["workload"] if several else []), "sent at", "input", "output", "TTFT", "TPOT", "E2E"]
    head += ["in flight", "queue", "energy", "chunks", "why"]
    listed = table(head, cells, heading, "requests", requests=[record.index for record in chosen])
    return folded(heading, listed)


def _text(value: float, text: Any) -> str:
    return str(text(float(value))) if np.isfinite(value) else UNKNOWN


def _tokens(tokens: float, cached: float) -> Markup:
    """Return the tokens of a prompt, and how many of them were cached where the server says so."""
    small = tag("small", f" {cached:,.0f} cached") if np.isfinite(cached) else ""
    return join([trait_value("input_tokens", tokens), small])


def _energy(columns: RequestColumns, row: int) -> Markup:
    """Return the joules of a request with their standard error, and those of prefill and decode."""
    spent, error = columns.joules[row], columns.se_joules[row]
    if not np.isfinite(spent):
        return join([UNKNOWN])
    phases = ", ".join(
        f"{name} {joules(float(values[row]))}"
        for name, values in (("prefill", columns.prefill_joules), ("decode", columns.decode_joules))
        if np.isfinite(values[row])
    )
    text = f"{joules(float(spent))} ± {joules(float(error))}" if np.isfinite(error) else joules(float(spent))
    return join([text, tag("small", f" {phases}")])


def chunk_offsets_s(record: RequestRecord) -> Floats:
    """Return the seconds from the instant a request was sent to each of its chunks, MAX_CHUNKS at most."""
    offsets = (np.array(record.chunk_ns, dtype=np.float64) - float(record.sent_ns or 0)) / NS_PER_S
    if len(offsets) > MAX_CHUNKS:
        offsets = offsets[np.linspace(0, len(offsets) - 1, MAX_CHUNKS).round().astype(np.int64)]
    return offsets


def timeline(record: RequestRecord, longest_s: float) -> Markup:
    """Return the chunks of a request as dots on a line of `longest_s` seconds, after a line for the first wait."""
    offsets_s = chunk_offsets_s(record)
    if not len(offsets_s) or longest_s <= 0:
        return join([UNKNOWN])
    places = np.unique((offsets_s / longest_s * WIDTH).round().astype(np.int64))
    text = f"{len(record.chunk_ns):,} chunks from {seconds(float(offsets_s[0]))} to {seconds(float(offsets_s[-1]))}"
    return tag(
        "svg",
        tag("title", text),
        tag("path", d=f"M0 5H{places[0]}", class_="wait"),
        tag("path", d="".join(f"M{place} 5h.01" for place in places), class_="chunk"),
        viewBox=f"0 0 {WIDTH} 10",
        preserveAspectRatio="none",
        class_="timeline",
        role="img",
        aria_label=text,
    )


# ---------------------------------------------------------------- data


def request_data(
    columns: RequestColumns, chosen: Iterable[int], with_chunks: Ints, records: dict[int, RequestRecord]
) -> dict[str, Any]:
    """Return what the page's script shows of a request that is chosen: named columns, and a row for each request.

    Rows of requests without a timeline end before its column. Of a request that failed only its outcome and the
    instants of its sending are stated.
    """
    named: Sequence[tuple[str, str, Floats]] = (
        ("sent at", "s", columns.sent_s),
        ("sent late by the client", "s", columns.lag_s),
        ("TTFT", "s", columns.ttft_s),
        ("TPOT", "s", columns.tpot_s),
        ("E2E", "s", columns.e2e_s),
        ("input tokens", "", columns.input_tokens),
        ("cached tokens", "", columns.cached_tokens),
        ("output tokens", "", columns.output_tokens),
        ("in flight when sent", "", columns.in_flight),
        ("engine's queue when sent", "", columns.queue),
        ("energy", "J", columns.joules),
        ("standard error of the energy", "J", columns.se_joules),
        ("prefill", "J", columns.prefill_joules),
        ("decode", "J", columns.decode_joules),
    )
    known = [column for column in named if np.isfinite(column[2]).any()]
    timed, row_of = set(with_chunks.tolist()), {int(index): row for row, index in enumerate(columns.index)}
    start_ns = (records[int(columns.index[0])].sent_ns or 0) - columns.sent_s[0] * NS_PER_S
    listed: list[list[Any]] = []
    for index in chosen:
        record = records.get(index)
        if record is None or record.sent_ns is None:
            continue
        row = row_of.get(index)
        if row is None:
            sending = [(record.sent_ns - start_ns) / NS_PER_S, (record.lag_ns or 0) / NS_PER_S]
            values = [_rounded(value) for value in (*sending, *[np.nan] * (len(known) - 2))]
        else:
            values = [_rounded(column[row]) for _, _, column in known]
        chunks_ms = [(chunk_offsets_s(record) * 1e3).round(1).tolist()] if row in timed else []
        listed.append([index, clean(record.workload), record.error or "completed", *values, *chunks_ms])
    heads = [("request", ""), ("workload", ""), ("outcome", ""), *((name, unit) for name, unit, _ in known)]
    return {"columns": [{"name": name, "unit": unit} for name, unit in (*heads, ("chunks", "ms"))], "rows": listed}


def _rounded(value: float) -> float | None:
    """Return a value with four significant digits; whole numbers as they are."""
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.4g}")
