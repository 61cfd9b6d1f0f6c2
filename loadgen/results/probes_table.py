"""The table of a search's probes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.results.table import Column, Table

if TYPE_CHECKING:
    from loadgen.results.search_result import Probe, SearchResult

PROBE_COLUMNS = (
    Column("setting", "string", None, "Engine options of its server; empty where the search varies none."),
    Column("name", "string", None, "Folder of its run, below `probes` of the search's folder."),
    Column("number", "int64", None, "Number of the probe of its setting, from 0."),
    Column("stage", "string", None, "Reason for which it was made: see `Probe.stage` in search.json."),
    Column("rate_rps", "float64", "1/s", "Planned rate."),
    Column("seed", "int64", None, "Seed of its arrivals and prompts."),
    Column("planned_s", "float64", "s", "Time in which requests were to be sent."),
    Column("wall_s", "float64", "s", "Time that it took of the budget, with its start and its drain."),
    Column("counted_s", "float64", "s", "Time whose requests are counted: between the fill and the drain."),
    Column("stopped_early", "bool", None, "True if it ended before its time: far too many requests missed a limit."),
    Column("overloaded", "bool", None, "True if most requests missed: its counts depend on its duration."),
    Column("requests", "int64", "requests", "Requests of the counted time; those below are of them."),
    Column("good", "int64", "requests", "Requests that met every limit."),
    Column("failed", "int64", "requests", "Requests that failed, and so missed every limit."),
    Column("unfinished", "int64", "requests", "Requests that the end of the run cut off undecided: not counted."),
    Column("met_ttft", "int64", "requests", "Requests that met the limit on TTFT; null without one."),
    Column("met_tpot", "int64", "requests", "Requests that met the limit on TPOT; null without one."),
    Column("met_e2el", "int64", "requests", "Requests that met the limit on E2E latency; null without one."),
    Column("good_rps", "float64", "1/s", "Good requests per second, at the planned rate."),
    Column("ttft_p50_s", "float64", "s", "TTFT, median."),
    Column("ttft_p99_s", "float64", "s", "TTFT, percentile 99."),
    Column("tpot_p50_s", "float64", "s", "TPOT, median."),
    Column("tpot_p99_s", "float64", "s", "TPOT, percentile 99."),
    Column("e2e_p50_s", "float64", "s", "E2E latency, median."),
    Column("e2e_p99_s", "float64", "s", "E2E latency, percentile 99."),
    Column("output_tokens", "int64", "tokens", "Output tokens of the counted requests."),
    Column("watts", "float64", "W", "Mean power of the counted time; null without a meter."),
    Column("joules_per_good_request", "float64", "J", "Power over good requests per second."),
    Column("joules_per_output_token", "float64", "J", "Energy of the counted time over its output tokens."),
)
"""Columns of a search's probes: one row for each, setting by setting, in the order in which they were made."""


def probes_table(result: SearchResult) -> Table:
    """Return one row for each probe."""
    rows = [_row(setting.name, probe) for setting in result.settings for probe in setting.probes]
    return Table(PROBE_COLUMNS, {column.name: [row[column.name] for row in rows] for column in PROBE_COLUMNS})


def _row(setting: str, probe: Probe) -> dict[str, Any]:
    held = {"setting": setting} | {f"met_{limit}": probe.met.get(limit) for limit in ("ttft", "tpot", "e2el")}
    return held | {column.name: getattr(probe, column.name) for column in PROBE_COLUMNS if column.name not in held}
