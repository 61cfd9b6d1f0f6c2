"""report.html: a run on one page that needs nothing but itself."""

from datetime import UTC, datetime
from importlib.resources import files
from string import Template
from typing import Any

from loadgen.attribution.shapley import RunAttribution
from loadgen.report import run_figures
from loadgen.report.format import UNKNOWN, clean, count, joules, number, percent, seconds, share, watts, with_unit
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.run_facts import (
    ERROR_MEANING,
    LATENCIES,
    arrival_lines,
    distribution,
    energy_reasons,
    failures,
    is_simulated,
    parts_of,
    remarks,
    server_line,
    stream_goodputs,
    summary_of,
    timekeeping,
    title,
    within,
)
from loadgen.results.run_folder import RunInfo, RunResult
from loadgen.results.summary import Distribution, EnergySummary, Goodput, Summary, WorkloadSummary
from loadgen.units import mj_from_j


def render_run_page(result: RunResult) -> str:
    """The whole page. Raises LoadgenError when the run has no summary."""
    summary = summary_of(result)
    page = Template(_packaged("page.html"))
    sections = [
        _header(result, summary),
        _tiles(summary),
        _energy(result, summary),
        _latency(result, summary),
        _load(result, summary),
        _failures(result),
        _provenance(result.info, summary),
    ]
    return page.substitute(
        title=tag("title", f"{title(result.info, summary)} · loadgen"), style=_packaged("page.css"), body=join(sections)
    )


def _packaged(name: str) -> str:
    return (files("loadgen.report") / name).read_text(encoding="utf-8")


def _section(heading: str, *parts: str) -> Markup:
    key = heading.lower().split()[0]
    return tag("section", tag("h2", heading, id=key), *parts, aria_labelledby=key)


def _header(result: RunResult, summary: Summary) -> Markup:
    info = result.info
    badge = tag("span", "SIMULATED", class_="badge") if is_simulated(info) else ""
    when = _wall_time(info, info.start_ns)
    meta = " · ".join(part for part in (when, seconds(summary.duration_s), f"run {clean(info.run_id)}") if part)
    simulated = "The server was simulated: joules and times are a model's, not a machine's." if badge else ""
    return tag(
        "header",
        tag("p", "loadgen report ", badge, class_="eyebrow"),
        tag("h1", title(info, summary)),
        tag("p", server_line(info)),
        tag("p", meta, class_="soft"),
        tag("p", simulated, class_="soft") if simulated else "",
        _verdict(result, summary),
    )


def _verdict(result: RunResult, summary: Summary) -> Markup:
    reasons, notes = energy_reasons(result), remarks(summary)
    has_joules = summary.energy.measured_joules is not None
    if (off := imbalance_mj(result.attribution)) != 0:
        reasons = [f"the accounts do not add up to what was measured: {off:+,} mJ", *reasons]
    if reasons:
        head = "Energy not valid" if has_joules else "No energy in this report"
    else:
        head = "Energy valid, with remarks" if notes else "Valid"
    said = [*reasons, *notes] or [
        "The energy accounts add up to what was measured, and nothing spoiled the measurement."
    ]
    if summary.instrument.kept_time is False:
        head = f"Times spoiled by the client itself. {head}"
    kind = "bad" if reasons or summary.instrument.kept_time is False else "fair" if notes else "good"
    return tag("div", tag("strong", head), tag("ul", *(tag("li", line) for line in said)), class_=f"verdict {kind}")


def _wall_time(info: RunInfo, t_ns: int | None) -> str:
    if t_ns is None:
        return ""
    wall_s = (info.anchor.wall_ns + t_ns - info.anchor.monotonic_ns) / 1e9
    return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


# ---------------------------------------------------------------- key numbers


def _tiles(summary: Summary) -> Markup:
    energy, rate = summary.energy, summary.rate
    per_request = energy.joules_per_request
    asked = f"of {rate.requested_rps:.4g}/s asked" if rate.requested_rps is not None else "none asked"
    tiles = [
        ("Energy per request", joules(per_request.p50 if per_request else None), "median, attributed"),
        ("Energy per output token", joules(energy.joules_per_output_token), "attributed"),
        (
            "Mean power",
            watts(energy.mean_watts),
            "not measured" if energy.idle_watts is None else f"{watts(energy.idle_watts)} idle",
        ),
        ("Requests sent", with_unit(rate.achieved_rps, "/s"), asked),
        ("Time to first token", seconds(summary.ttft_s.p50), f"median; p99 {seconds(summary.ttft_s.p99)}"),
        ("Time per output token", seconds(summary.tpot_s.p50), f"median; p99 {seconds(summary.tpot_s.p99)}"),
        ("Output", with_unit(summary.tokens.output_per_s, "tokens/s"), f"{count(summary.tokens.output)} tokens"),
        (
            "Completed",
            count(summary.requests.completed),
            f"of {count(summary.requests.scheduled)}; {count(summary.requests.failed)} failed",
        ),
    ]
    return tag("dl", *(_tile(*tile) for tile in tiles), class_="tiles")


def _tile(name: str, value: str, note: str) -> Markup:
    figure, _, unit = value.partition(" ")
    large = tag("dd", figure, " ", tag("span", unit)) if unit else tag("dd", figure)
    return tag("div", tag("dt", name), large, tag("dd", note, class_="note"))


# ---------------------------------------------------------------- energy


def _energy(result: RunResult, summary: Summary) -> Markup:
    if summary.energy.measured_joules is None:
        why = "Nothing measured the energy of this run, so nothing is said about it. The reasons are at the top."
        return _section("Energy", tag("p", why), run_figures.over_time(result))
    found = result.attribution
    if found is None:
        told = f"{joules(summary.energy.measured_joules)} were measured, and nothing was attributed to requests."
        return _section("Energy", tag("p", told), run_figures.over_time(result))
    parts = [_ledger(found, summary.energy), _shares(summary), _fit(summary.energy), run_figures.over_time(result)]
    parts += [
        run_figures.legend(run_figures.workloads(result)),
        run_figures.scatter(result),
        run_figures.heat_map(result),
    ]
    return _section("Energy", *parts)


def accounts_mj(found: RunAttribution) -> dict[str, int]:
    """Account -> whole millijoules; prefill and decode are summed over the requests, not taken from a total."""
    return {
        "prefill": sum(mj_from_j(request.prefill_joules or 0.0) for request in found.requests),
        "decode": sum(mj_from_j(request.decode_joules or 0.0) for request in found.requests),
        "idle": found.idle_mj,
        "unattributed": found.unattributed_mj,
    }


def imbalance_mj(found: RunAttribution | None) -> int:
    """Measured less the sum of the accounts: anything but 0 is a fault of ours. 0 when nothing was attributed."""
    return 0 if found is None else found.measured_mj - sum(accounts_mj(found).values())


def _ledger(found: RunAttribution, energy: EnergySummary) -> Markup:
    measured, accounts = found.measured_mj, accounts_mj(found)
    rows = [
        [join([tag("i", class_=f"key {name}"), " ", name]), f"{mj:,}", joules(mj / 1e3), share(mj, measured)]
        for name, mj in accounts.items()
    ]
    off = imbalance_mj(found)
    total = "= measured" if off == 0 else f"measured ({off:+,} mJ off)"
    rows.append([total, f"{measured:,}", joules(measured / 1e3), share(measured, measured)])
    text = ", ".join(f"{name} {share(mj, measured)}" for name, mj in accounts.items())
    bar = _bar([(name, mj, f"{name}: {mj:,} mJ, {share(mj, measured)}") for name, mj in accounts.items()], text)
    how = (
        f"Source: {energy.source or 'unknown'}. Method: {energy.method or 'unknown'}."
        f" Over {seconds(energy.duration_s)}, mean {watts(energy.mean_watts)}. Coverage {percent(energy.coverage)}."
    )
    listed = table(["account", "mJ", "energy", "share"], rows, "Where every millijoule went", "ledger")
    return tag("figure", tag("h3", "Where the energy went"), bar, listed, tag("figcaption", how), class_="wide")


def _bar(parts: list[tuple[str, float, str]], text: str) -> Markup:
    """A flat stack; every part keeps its share of the width."""
    whole = sum(max(value, 0) for _, value, _ in parts) or 1
    left, marks = 0.0, []
    for name, value, told in parts:
        width = 100 * max(value, 0) / whole
        box = {"x": f"{left:.3f}%", "width": f"{width:.3f}%", "height": "100%"}
        hatch = tag("rect", **box, fill="url(#hatch)") if name == "unattributed" else ""
        marks.append(tag("g", tag("title", told), tag("rect", **box, class_=f"account {name}"), hatch))
        left += width
    return tag("svg", *marks, class_="bar", role="img", aria_label=text)


def _shares(summary: Summary) -> Markup:
    """Prefill and decode of each workload, as bars and as numbers."""
    rows = [
        _share_row(name, part if isinstance(part, WorkloadSummary) else part.energy) for name, part in parts_of(summary)
    ]
    head = ["requests of", "prefill · decode", "J/request p50", "p90", "p99", "J/output token", "J/token"]
    listed = table(head, rows, "Attributed energy by workload")
    note = "Prefill and decode as a client sees them: until the first token, and after it. Idle belongs to no workload."
    return tag("figure", tag("h3", "Who used it"), listed, tag("figcaption", note), class_="wide")


def _share_row(name: str, part: EnergySummary | WorkloadSummary) -> list[str]:
    prefill, decode = part.prefill_joules, part.decode_joules
    spread: Distribution = part.joules_per_request or Distribution(count=0)
    bar: str = UNKNOWN
    if prefill is not None and decode is not None and prefill + decode > 0:
        told = f"prefill {joules(prefill)} ({share(prefill, prefill + decode)}), decode {joules(decode)}"
        bar = _bar([("prefill", prefill, told), ("decode", decode, told)], told)
        bar = join([bar, tag("small", f"{joules(prefill)} · {joules(decode)}")])
    quantiles = [joules(value) for value in (spread.p50, spread.p90, spread.p99)]
    return [name, bar, *quantiles, joules(part.joules_per_output_token), joules(part.joules_per_token)]


FITTED = {
    "step_j": "one engine step",
    "prefill_token_j": "a prompt token",
    "prefill_context_j": "a prompt token, per token before it",
    "decode_token_j": "a decoded token",
    "decode_context_j": "a decoded token, per token of its context",
    "idle_w": "idle power",
    "idle_se_w": "its standard error",
    "r_squared": "R² of the fit",
    "misfit": "error of a window",
    "outliers": "windows left out",
}


def _fit(energy: EnergySummary) -> Markup:
    """What decided the shares; nothing where nothing was fitted."""
    if not energy.coefficients:
        return Markup()
    rows = [(FITTED.get(name, name), _fitted(name, value)) for name, value in energy.coefficients.items()]
    note = "Fitted to this run's windows. It decides the shares of a window; the counter decides what is shared."
    return tag("figure", tag("h3", "What the split assumes"), _definitions(rows), tag("figcaption", note))


def _fitted(name: str, value: float | None) -> str:
    match name.rpartition("_")[2]:
        case "j":
            return joules(value)
        case "w":
            return watts(value)
        case "outliers":
            return count(None if value is None else int(value))
        case "misfit":
            return percent(value)
    return number(value)


# ---------------------------------------------------------------- latency, load, failures


def _latency(result: RunResult, summary: Summary) -> Markup:
    plots = [
        run_figures.latency(result, field.removesuffix("_s"), words)
        for field, _, words in LATENCIES
        if field != "itl_s"
    ]
    parts = parts_of(summary)
    head = ["", "requests of", "count", "mean", "p50", "p90", "p95", "p99", "max"]
    rows = [
        [short, name, *_spread_cells(distribution(part, field))]
        for field, short, _ in LATENCIES
        for name, part in parts
    ]
    listed = table(head, rows, "Latency of completed requests", "latency")
    return _section(
        "Latency", run_figures.legend(run_figures.workloads(result)), tag("div", *plots, class_="grid"), listed
    )


def _spread_cells(spread: Distribution) -> list[str]:
    values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max)
    return [count(spread.count), *(seconds(value) for value in values)]


def _load(result: RunResult, summary: Summary) -> Markup:
    head = ["requests of", "scheduled", "sent", "completed", "failed", "input tokens", "output tokens", "output/s"]
    parts = parts_of(summary)
    rows = [
        [
            name,
            *(count(getattr(part.requests, field)) for field in ("scheduled", "sent", "completed", "failed")),
            count(part.tokens.input),
            count(part.tokens.output),
            number(part.tokens.output_per_s),
        ]
        for name, part in parts
    ]
    return _section(
        "Load and timekeeping",
        table(head, rows, "Requests and tokens"),
        _definitions(_load_facts(summary)),
        run_figures.lag(result),
    )


def _load_facts(summary: Summary) -> list[tuple[str, str]]:
    rate, lag, good, lengths = summary.rate, summary.schedule_lag_s, summary.goodput, summary.lengths
    facts = [
        ("Rate", f"{with_unit(rate.achieved_rps, '/s')} sent, {with_unit(rate.requested_rps, '/s')} asked"),
        ("Index of dispersion", f"{number(rate.index_of_dispersion)} at 1 s (1: Poisson, 0: constant)"),
        *((f"Arrivals of {name}" if name else "Arrivals", told) for name, told in arrival_lines(summary)),
        ("Schedule lag", f"p50 {seconds(lag.p50)}, p99 {seconds(lag.p99)}, max {seconds(lag.max)}"),
        ("This client", timekeeping(summary)),
    ]
    if good is not None:
        facts.append(("Goodput", _good(good)))
    facts += [(f"Goodput of {name}", _good(part)) for name, part in stream_goodputs(summary)]
    if lengths is not None:
        facts.append(("Input tokens", _asked(lengths.input_asked, lengths.input_counted, lengths.input_max_off)))
        facts.append(("Output tokens", _asked(lengths.output_asked, lengths.output_counted, lengths.output_max_off)))
    return facts


def _good(good: Goodput) -> str:
    return f"{with_unit(good.rps, '/s')}, {percent(good.ratio)} of requests met {within(good)}"


def _asked(asked: int, counted: int, off: int | None) -> str:
    return f"{asked:,} asked, {counted:,} counted by the server; worst request off by {count(off)}"


def _failures(result: RunResult) -> Markup:
    rows = [
        [
            kind,
            ERROR_MEANING[kind],
            count(number_of),
            UNKNOWN if example.status is None else str(example.status),
            f"#{example.index}: {clean(example.detail, 240)}" if example.detail else UNKNOWN,
        ]
        for kind, number_of, example in failures(result.records)
    ]
    if not rows:
        return _section("Failures", tag("p", "No request failed."))
    head = ["kind", "meaning", "requests", "status", "an example"]
    return _section("Failures", table(head, rows, "Failed requests by kind", "failures"))


# ---------------------------------------------------------------- provenance


def _provenance(info: RunInfo, summary: Summary) -> Markup:
    instrument = summary.instrument
    rss = None if instrument.max_rss_bytes is None else instrument.max_rss_bytes / 1e6
    run = {
        "run id": info.run_id,
        "loadgen": info.loadgen_version,
        "started": _wall_time(info, info.start_ns),
        "ended by": info.stopped_by or UNKNOWN,
        "seed": info.seed,
        "schedule sha256": info.schedule_sha256,
        "clock anchor": f"wall {info.anchor.wall_ns} ns = monotonic {info.anchor.monotonic_ns} ns",
        "client CPU time": seconds(instrument.cpu_s),
        "client memory": with_unit(rss, "MB"),
        "energy counter polled every": seconds(instrument.sampler_period_s),
    }
    domains = {
        d.name: f"{d.source}, every {seconds(d.period_s)}" + (f", within {d.within}" if d.within else "")
        for d in info.domains
    }
    boxes = [("Run", run), ("Options", info.config), ("Server", info.server), ("Host", info.host)]
    boxes += [("Versions", info.versions), ("Energy domains", domains)]
    parts = [tag("div", tag("h3", name), _definitions(_flat(facts))) for name, facts in boxes if facts]
    return _section("Provenance", tag("div", *parts, class_="grid"))


def _flat(facts: Any) -> list[tuple[str, str]]:
    """Dotted keys; lists joined; what is unknown or empty is "-"."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{clean(key)}.{inner}", text) for inner, text in _flat(value)]
        elif isinstance(value, list | tuple):
            rows.append((clean(key), ", ".join(clean(item) for item in value) or UNKNOWN))
        else:
            rows.append((clean(key), UNKNOWN if value is None or value == "" else clean(value)))
    return rows


def _definitions(rows: list[tuple[str, str]]) -> Markup:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in rows), class_="facts")
