"""The first screen of a run's page: the verdict, rates, latencies against their limits, joules, and the command."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, clean, count, joules, percent, seconds, watts, with_unit
from loadgen.report.latencies import LATENCIES
from loadgen.report.markup import Markup, tag
from loadgen.report.page import command_box, header, tile, verdict_box
from loadgen.report.run_facts import (
    BOXES,
    HEADLINES,
    MARKS_LEGEND,
    SIMULATED,
    energy_note,
    error_of,
    failed_kinds,
    invalid_by,
    is_simulated,
    limit_lines,
    limits_text,
    mark,
    server_line,
    summary_of,
    title,
    verdict_remarks,
)
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.summary import Latency, Summary


def first_screen(result: RunResult) -> list[Markup]:
    """Return the header with the verdict, the tiles, and the command."""
    summary = summary_of(result)
    tiles = [
        tag("dl", *_serving_tiles(summary), class_="tiles"),
        tag("dl", *_latency_tiles(summary), class_="tiles three"),
        _energy_tiles(summary),
    ]
    is_marked = any(" !</dt>" in part or " !!</dt>" in part for part in tiles)
    legend = tag("p", MARKS_LEGEND, class_="note") if is_marked else Markup()
    return [_header(result.info, summary), *tiles, legend, command_line(result.info)]


def _header(info: RunInfo, summary: Summary) -> Markup:
    """Return the run in a few lines, and its verdict with every reason."""
    status = summary.verdict.status
    lines = [remark.text for remark in verdict_remarks(summary)] or ["Every check that applies to this run passed."]
    facts = [start_time(info), seconds(summary.duration_s), f"run {clean(info.run_id)}"]
    if is_simulated(info):
        facts.append(SIMULATED)
    return header(
        "loadgen report",
        title(info, summary),
        tag("p", server_line(info)),
        tag("p", " · ".join(fact for fact in facts if fact), class_="soft"),
        verdict_box(BOXES[status], HEADLINES[status], lines),
        simulated=is_simulated(info),
    )


def start_time(info: RunInfo) -> str:
    """Return the start of the run by the wall clock; empty when it never started."""
    if info.start_ns is None:
        return ""
    wall_s = (info.start_ns + info.anchor.offset_ns) / NS_PER_S
    return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def command_line(info: RunInfo) -> Markup:
    """Return the command that made the run, to copy; empty where none was recorded."""
    return command_box(shlex.join(info.command)) if info.command else Markup()


# ---------------------------------------------------------------- tiles


def _serving_tiles(summary: Summary) -> list[Markup]:
    """Return completed requests, rate, output and goodput."""
    requests, rate, tokens, good = summary.requests, summary.rate, summary.tokens, summary.goodput
    failed = tag("span", f"{count(requests.failed)} failed: {failed_kinds(requests)}", class_="missed")
    served = summary.server.served_rps if summary.server else None
    requested = "no rate was requested" if rate.requested_rps is None else f"{rate.requested_rps:.4g} /s requested"
    sent = [("offered", with_unit(rate.achieved_rps, "/s")), ("served", with_unit(served, "/s"))]
    written = f"{count(tokens.output)} tokens out, {count(tokens.input)} in" if tokens.output is not None else ""
    return [
        tile(
            "Requests completed" + mark(summary, "requests"),
            [("", f"{count(requests.completed)} of {count(requests.scheduled)}")],
            [failed if requests.failed else "none failed"],
        ),
        tile("Request rate" + mark(summary, "rate"), sent, [requested]),
        tile(
            "Output" + mark(summary, "tokens.output"),
            [("", with_unit(tokens.output_per_s, "tokens/s"))],
            [written],
            invalid_by(summary, "tokens.output"),
        ),
        tile(
            "Goodput",
            [("", UNKNOWN if good is None else with_unit(good.rps, "/s"))],
            ["no limits were set" if good is None else f"{percent(good.ratio)} within {limits_text(good.slo_ms)}"],
        ),
    ]


def _latency_tiles(summary: Summary) -> list[Markup]:
    """Return TTFT, TPOT and E2E at p50 and p99, beside their limits."""
    tiles = []
    for field, short, words in LATENCIES:
        if field in ("ttft_s", "tpot_s", "e2e_s"):
            spread: Latency = getattr(summary, field)
            limits = [
                tag("span", line.text, class_=None if line.is_met is None else "met" if line.is_met else "missed")
                for line in limit_lines(summary, field)
            ]
            values = [("p50", seconds(spread.p50)), ("p99", seconds(spread.p99))]
            invalid = invalid_by(summary, field)
            name = f"{words} ({short}){mark(summary, field)}"
            tiles.append(tile(name, values, limits or ["no limit was set"], invalid))
    return tiles


def _energy_tiles(summary: Summary) -> Markup:
    """Return joules per request and per output token with their errors, and the power; a line where none was
    measured."""
    energy, per_request = summary.energy, summary.energy.joules_per_request
    if energy.measured_joules is None:
        return tag("p", energy_note(summary) or "", class_="soft")
    invalid, touched = invalid_by(summary, "energy"), mark(summary, "energy")
    mean, of_token = per_request.mean if per_request else None, energy.joules_per_output_token
    spread = f"mean; p50 {joules(per_request.p50)}, p99 {joules(per_request.p99)}" if per_request and mean else ""
    if invalid_by(summary, "energy.joules_per_request") and not invalid:
        spread = "mean; the energy of single requests is not valid"
    of_any = "" if energy.joules_per_token is None else f"{joules(energy.joules_per_token)} per token, with prompts"
    idle = f"idle {watts(energy.idle_watts)}; {joules(energy.measured_joules)} in all"
    numbers = [
        ("Energy per request", joules(mean), [error_of(mean, energy), spread]),
        ("Energy per output token", joules(of_token), [error_of(of_token, energy), of_any]),
        ("Mean power", watts(energy.mean_watts), [idle]),
    ]
    tiles = [tile(name + touched, [("", value)], notes, invalid) for name, value, notes in numbers]
    return tag("dl", *tiles, class_="tiles three")
