"""A search on one page: the answer with its interval, the curves over the rate, and how the budget was spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from loadgen.report.charts.figure import figure
from loadgen.report.format import UNKNOWN, interval_text, joules, number, percent, plural, seconds, watts
from loadgen.report.markup import Markup, table, tag
from loadgen.report.page import command_box, definitions, folded, header, render_page, section, tile, verdict_box
from loadgen.report.replica_text import HEAD, replica_rows
from loadgen.report.run_facts import BOXES
from loadgen.report.search_figures import (
    MAX_DRAWN,
    attainment_charts,
    budget_chart,
    curves,
    energy_charts,
    front_chart,
    latency_charts,
    throughput_chart,
)
from loadgen.report.search_text import (
    STAGES,
    answer,
    attained,
    best_setting,
    duration_text,
    estimate_text,
    good_request,
    has_energy,
    is_lower_bound,
    outcome_text,
    probe_note,
    ranked,
    rate_text,
)
from loadgen.report.study_text import METRICS, limits_text, share_text
from loadgen.results.search_result import SettingResult

if TYPE_CHECKING:
    from loadgen.report.search_figures import Curve
    from loadgen.results.search_result import Estimate, PresentLoad, Probe, SearchResult

METHOD = (
    "Short probes bracket the rate; longer ones a little below and above the estimate refine it. A curve of the share "
    "of missed requests, which rises faster and faster towards the capacity, is fitted to their counts. The interval "
    "allows for slow requests that come together, by the variance of consecutive blocks. docs/concepts/search.md "
    "describes the method."
)


def render_search_page(result: SearchResult) -> str:
    """Return the whole page; partial while the search is running."""
    among = curves(result)
    sections = [_header(result), _tiles(result)]
    if len(result.settings) > 1:
        sections.append(section("Settings", *_settings(among, result)))
    if among:
        sections += _curves(among, result)
    if result.present is not None and result.present.costs:
        sections.append(section("Your load on fewer replicas", *_replicas(result.present)))
    if any(setting.probes for setting in result.settings):
        sections.append(section("How the budget was spent", *_spending(result)))
    sections.append(section("How it was measured", _origin(result)))
    return render_page(f"{_title(result)} · loadgen search", sections)


def _title(result: SearchResult) -> str:
    what = "the largest rate within the limits" if result.objective == "rate" else "the rate of fewest joules"
    return f"{result.trace or 'Search'}: {what}"


def _header(result: SearchResult) -> Markup:
    outcome = answer(result)
    facts = [fact for fact in (result.model, result.engine) if fact]
    return header(
        "loadgen search",
        _title(result),
        tag("p", " · ".join(facts), class_="soft") if facts else "",
        verdict_box(BOXES[outcome.status], outcome.head, outcome.sentences),
        simulated=result.simulated,
    )


def _tiles(result: SearchResult) -> Markup:
    """Return the rate, the joules and the time as large numbers: of the best setting, where there are several."""
    best = best_setting(result) or SettingResult(name="")
    sure = f"at {share_text(result.confidence)} confidence"
    cost, cost_rate = best.least_joules, estimate_text(best.least_joules_rate, unit=" requests/s")
    if cost is not None:
        notes = [f"{interval_text(cost, joules)} {sure}", f"at {cost_rate}"]
    else:
        notes = ["unknown" if has_energy(result) else "no energy was measured"]
    probes = [probe for setting in result.settings for probe in setting.probes]
    requests = plural(sum(probe.requests for probe in probes), "request")
    if result.attainment is None:
        rate = _rate_tile("Rate of fewest joules", best.least_joules_rate, sure)
    else:
        rate = _rate_tile(f"Largest rate within the limits for {share_text(result.attainment)}", best.rate, sure)
    tiles = [
        rate,
        tile(f"Fewest joules per {good_request(result)}", [("", joules(None if cost is None else cost.value))], notes),
        tile(
            "Time",
            [("", f"{number(result.spent_s / 60)} min")],
            [f"of {duration_text(result.budget_s)}", f"{plural(len(probes), 'probe')}, {requests} counted"],
        ),
    ]
    return tag("dl", *tiles, class_="tiles three")


def _rate_tile(name: str, rate: Estimate | None, sure: str) -> Markup:
    if rate is None:
        return tile(name, [("", UNKNOWN)], ["unknown"])
    is_bound = is_lower_bound(rate)
    note = "no higher rate is known to miss the limits" if is_bound else f"{interval_text(rate)} {sure}"
    return tile(name, [("at least" if is_bound else "", f"{number(rate.value)} requests/s")], [note])


# ---------------------------------------------------------------- curves and settings


def _curves(among: Sequence[Curve], result: SearchResult) -> list[Markup]:
    latencies = [figure(chart) for chart in latency_charts(among, result)]
    energy = [figure(chart) for chart in energy_charts(among, result)]
    parts = [
        ("Limits", [figure(chart) for chart in attainment_charts(among, result)]),
        ("Throughput", [figure(throughput_chart(among, result))]),
        ("Latency", [tag("div", *latencies, class_="grid")] if latencies else []),
        ("Energy", energy),
    ]
    return [section(heading, *content) for heading, content in parts if content]


def _settings(among: Sequence[Curve], result: SearchResult) -> list[Markup]:
    """Return the rate and the cost of each setting with its outcome, and the Pareto front of all probes."""
    energy = has_energy(result)
    head = ["setting", "outcome", "requests/s", "limit that binds"]
    head += [f"J per {good_request(result)}", "at requests/s"] if energy else []
    rows = [
        [
            setting.name,
            outcome_text(setting, result),
            estimate_text(setting.rate),
            ", ".join(METRICS.get(limit, limit) for limit in setting.binding) or UNKNOWN,
            *(
                [estimate_text(setting.least_joules, joules), estimate_text(setting.least_joules_rate)]
                if energy
                else []
            ),
            str(len(setting.probes)),
            duration_text(setting.spent_s),
        ]
        for setting in ranked(result)
    ]
    note = f"Intervals at {share_text(result.confidence)} confidence."
    if sum(bool(setting.probes) for setting in result.settings) > MAX_DRAWN:
        note += f" The charts show the best {MAX_DRAWN}."
    listed = table([*head, "probes", "time"], rows, "Settings")
    reasons = [(setting.name, setting.reason) for setting in ranked(result) if setting.reason]
    front = front_chart(among, result)
    return [
        tag("figure", listed, tag("figcaption", note), class_="wide"),
        *([definitions(reasons)] if reasons else []),
        *([figure(front)] if front else []),
    ]


# ---------------------------------------------------------------- the budget and the origin


def _replicas(load: PresentLoad) -> list[Markup]:
    """Return what the load of today costs on each number of replicas."""
    rest = "draw their idle power" if load.keep_idle else "are switched off"
    note = (
        f"{number(load.now_rps)} requests/s, shared evenly. Replicas at rest {rest}. The power at a rate is a parabola "
        "in its logarithm, fitted to the probes in which the server kept up; beyond them it is unknown."
    )
    listed = table(HEAD, replica_rows(load), "Joules per good request by replicas")
    return [tag("figure", listed, tag("figcaption", note), class_="wide")]


def _spending(result: SearchResult) -> list[Markup]:
    """Return the time by stage, and each probe with a link to its report."""
    several = len(result.settings) > 1
    chart = None if several else budget_chart(result.settings[0], result)
    parts = [figure(chart)] if chart else []
    parts.append(_stages_table(result))
    for setting in ranked(result):
        if setting.probes:
            listed = _probes_table(setting, result)
            parts.append(folded(setting.name, listed) if several else listed)
    reasons = [
        (f"{setting.name} probe {probe.number}".strip(), "; ".join(probe.reasons))
        for setting in result.settings
        for probe in setting.probes
        if probe.reasons
    ]
    if reasons:
        parts.append(
            tag("details", tag("summary", f"Remarks on {plural(len(reasons), 'probe')}"), definitions(reasons))
        )
    return parts


def _stages_table(result: SearchResult) -> Markup:
    probes = [probe for setting in result.settings for probe in setting.probes]
    by_stage = [(name, [probe for probe in probes if probe.stage == stage]) for stage, name in STAGES.items()]
    rows = [_stage_row(name, of, result) for name, of in by_stage if of]
    between_s = result.spent_s - sum(probe.wall_s for probe in probes)
    if between_s >= 1:
        rows.append(["between them", UNKNOWN, UNKNOWN, duration_text(between_s), percent(between_s / result.budget_s)])
    note = "Between them: starts of the server, the warm-up, and the measurement of its idle power."
    listed = table(["stage", "probes", "requests counted", "time", "of the budget"], rows, "Time by stage")
    return tag("figure", listed, tag("figcaption", note) if between_s >= 1 else "", class_="wide")


def _stage_row(name: str, probes: Sequence[Probe], result: SearchResult) -> list[str]:
    time_s = sum(probe.wall_s for probe in probes)
    requests = sum(probe.requests for probe in probes)
    return [name, str(len(probes)), f"{requests:,}", duration_text(time_s), percent(time_s / result.budget_s)]


def _probes_table(setting: SettingResult, result: SearchResult) -> Markup:
    energy, e2e = has_energy(result), "e2el" in result.limits_ms
    head = ["probe", "stage", "requests/s", "requests", "good", "TTFT p99", "TPOT p99", *(["E2E p99"] if e2e else [])]
    rows = [
        [
            tag("a", f"{probe.number}", href=f"probes/{quote(probe.name)}/report.html"),
            STAGES[probe.stage],
            rate_text(probe.rate_rps),
            f"{probe.requests:,}",
            percent(attained(probe)),
            seconds(probe.ttft_p99_s),
            seconds(probe.tpot_p99_s),
            *([seconds(probe.e2e_p99_s)] if e2e else []),
            *([joules(probe.joules_per_good_request), joules(probe.joules_per_output_token)] if energy else []),
            duration_text(probe.wall_s),
            probe_note(probe) or UNKNOWN,
        ]
        for probe in setting.probes
    ]
    head += ["J per good", "J/token"] if energy else []
    note = (
        "Requests: those of the counted time, after the server has filled. The number of a probe leads to its report."
    )
    listed = table([*head, "time", "note"], rows, f"Probes {setting.name}".strip())
    return tag("figure", listed, tag("figcaption", note), class_="wide")


def _origin(result: SearchResult) -> Markup:
    """Return what somebody needs to judge the measurement, and to make it again."""
    probes = [probe for setting in result.settings for probe in setting.probes]
    seeds = sorted({probe.seed for probe in probes})
    started = (result.started or "").replace("T", " ").removesuffix("+00:00").removesuffix("Z")
    idle = [
        f"{setting.name} {watts(setting.idle_watts)}".strip()
        for setting in result.settings
        if setting.idle_watts is not None
    ]
    limits = limits_text(result.limits_ms) if result.limits_ms else ""
    wanted = "" if result.attainment is None else f"{share_text(result.attainment)} of the requests"
    ends = f"the search ends when it is {share_text(result.width)} of the rate wide"
    facts = [
        ("Workload", result.trace),
        ("Model", result.model or ""),
        ("Engine", result.engine or ""),
        ("Limits", limits),
        ("Wanted", wanted),
        ("Interval", f"{share_text(result.confidence)} confidence; {ends}"),
        ("Budget", duration_text(result.budget_s)),
        ("Arrivals", "open loop: requests are sent when they are due, whatever the server does"),
        ("Seeds", f"{seeds[0]} to {seeds[-1]}: one for each probe" if len(seeds) > 1 else ", ".join(map(str, seeds))),
        ("Idle power", f"{', '.join(idle)}, with the model resident" if idle else ""),
        ("Method", METHOD),
        ("Resume", "the command below goes on with the search" if result.command else ""),
        ("Started", f"{started} UTC" if started else ""),
        ("loadgen", result.loadgen_version or ""),
    ]
    listed = definitions((name, text) for name, text in facts if text)
    if result.command is None:
        return listed
    return tag("div", listed, command_box(result.command))
