"""The tables of a study: configurations, limits, reductions, arrivals, shares of the energy, runs, and their origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from loadgen.report.format import UNKNOWN, joules, number, percent, plural, seconds, watts, with_unit
from loadgen.report.markup import Markup, table, tag
from loadgen.report.page import command_box, definitions, stacked_bar
from loadgen.report.study_text import (
    METRICS,
    NO_INTERVAL,
    PER_TOKEN,
    interval_text,
    limits_text,
    load_text,
    percents,
    reason_text,
    share_text,
)
from loadgen.results.study_table import Group, Row, StudyInfo, reduction_between

_ACCOUNTS = ("prefill", "decode", "idle", "unattributed")
_BEYOND: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "host_joules": ("host", joules),
    "total_joules": ("total", joules),
    "co2e_grams": ("CO2e, g", number),
    "cost": ("cost", number),
}
"""Name and format of each column beyond the GPUs' energy."""


def _captioned(listed: Markup, note: str, *above: Markup) -> Markup:
    """Return a table with its note, which explains intervals that are unknown where there are such."""
    if NO_INTERVAL in listed:
        note += f" {NO_INTERVAL}: so few and so different repeats support no 95 % interval."
    return tag("figure", *above, listed, tag("figcaption", note), class_="wide")


def _varying(configurations: Sequence[Group]) -> list[str]:
    """Return the parts of a configuration's name: server, and model and workload where there are several."""
    parts = (part for part in ("model", "workload") if len({getattr(g.key, part) for g in configurations}) > 1)
    return ["server", *parts]


def _named(group: Group, parts: Iterable[str]) -> list[str]:
    return [*(getattr(group.key, part) for part in parts), load_text(group)]


def _mean_head(name: str, configurations: Sequence[Group]) -> str:
    """Return the head of a column of means, which have intervals where there are repeats."""
    return f"{name} [95 %]" if any(len(group.rows) > 1 for group in configurations) else name


# ---------------------------------------------------------------- limits and energy


def limits_table(configurations: Sequence[Group], study: StudyInfo) -> Markup:
    """Return how many requests of each configuration were within the limits, and what each of these cost."""
    parts = _varying(configurations)
    known = {limit for group in configurations for limit in group.attainment.by_limit}
    several = [metric for metric in METRICS if metric in known] if len(known) > 1 else []
    rows = [
        [
            *_named(group, parts),
            interval_text(group.interval("goodput_ratio"), percent),
            *(percent(group.mean(f"{metric}_met_ratio")) for metric in several),
            number(group.mean("good_per_s")),
            interval_text(group.joules_per_good_request),
            seconds(group.mean("ttft_p99_s")),
            seconds(group.mean("tpot_p99_s")),
        ]
        for group in configurations
    ]
    head = [
        *(*parts, "load", _mean_head("within limits", configurations)),
        *(f"{METRICS[metric]} alone" for metric in several),
        *("within limits/s", _mean_head("J each", configurations), "TTFT p99", "TPOT p99"),
    ]
    note = (
        f"Limits: {limits_text(study.limits_ms)}; wanted: {share_text(study.wanted)} of the requests. Failed requests "
        "are misses. J each: all the energy of the run over the requests within the limits."
    )
    return _captioned(table(head, rows, "Requests within limits"), note)


def overview_table(configurations: Sequence[Group]) -> Markup:
    """Return energy, power and speed of every configuration, with the spread of its repeats."""
    parts = _varying(configurations)
    head = [*parts, "load", "runs", _mean_head("J/output token", configurations), "spread", "W", "tokens/s", "× ideal"]
    rows = [
        [
            *_named(group, parts),
            str(len(group.rows)),
            interval_text(group.interval(PER_TOKEN)),
            percent(relative_range(group.values(PER_TOKEN))),
            watts(group.mean("mean_watts")),
            number(group.mean("output_tokens_per_s")),
            with_unit(group.mean("measured_over_idealized"), "×"),
        ]
        for group in configurations
    ]
    note = (
        "Spread: (largest − smallest) / mean of the repeats. × ideal: the measured energy, in times the energy of the "
        "arithmetic alone at the GPU's peak rate and power limit."
    )
    return _captioned(table(head, rows, "Every configuration"), note, tag("h3", "Every configuration"))


def relative_range(values: Sequence[float]) -> float | None:
    """Return (largest - smallest) / mean; None of fewer than two values."""
    return (max(values) - min(values)) / (sum(values) / len(values)) if len(values) > 1 else None


def shares_table(configurations: Sequence[Group]) -> Markup | None:
    """Return where the energy of each configuration went; None where nothing is attributed."""
    rows, parts = [], _varying(configurations)
    for group in configurations:
        means = {name: group.mean(f"{name}_joules") for name in _ACCOUNTS}
        known = {name: value for name, value in means.items() if value is not None}
        total = sum(known.values())
        if total <= 0:
            continue
        percents_of = {name: percent(value / total) for name, value in known.items()}
        text = ", ".join(f"{name} {share}" for name, share in percents_of.items())
        bar = stacked_bar([(name, value, f"{name} {percents_of[name]}") for name, value in known.items()], text)
        rows.append([*_named(group, parts), bar, *(percents_of.get(name, UNKNOWN) for name in _ACCOUNTS)])
    if not rows:
        return None
    keys = [tag("span", tag("span", class_=f"key {name}"), name) for name in _ACCOUNTS]
    note = "Means over the repeats. Prefill and decode as a client sees them: until the first token, and after it."
    listed = table([*parts, "load", "", *keys], rows, "Prefill and decode")
    return _captioned(listed, note, tag("h3", "Where the energy went"))


def boundary_table(configurations: Sequence[Group]) -> Markup | None:
    """Return the energy, CO2e and cost of each configuration beyond the GPUs'; None where none of it is known."""
    known = {name for group in configurations for name in _BEYOND if group.values(name)}
    is_more = any(group.mean("total_joules") != group.mean("measured_joules") for group in configurations)
    if not known or (known == {"total_joules"} and not is_more):
        return None
    parts, shown = _varying(configurations), [name for name in _BEYOND if name in known]
    rows = [
        [*_named(group, parts), *(interval_text(group.interval(name), _BEYOND[name][1]) for name in shown)]
        for group in configurations
    ]
    head = [*parts, "load", *(_mean_head(_BEYOND[name][0], configurations) for name in shown)]
    note = (
        "Means over the repeats, of a whole run each. Total: the GPUs, the host and the chassis where they are "
        "measured, and the overhead of the stated PUE. CO2e and cost are of the total."
    )
    return _captioned(table(head, rows, "Energy beyond the GPUs"), note, tag("h3", "Beyond the GPUs"))


# ---------------------------------------------------------------- comparisons


def reductions_table(configurations: Sequence[Group], baseline: str) -> Markup:
    """Compare each configuration with the baseline's at the same workload and load."""
    bases = {g.key[1:]: g for g in configurations if g.key.server == baseline and g.values(PER_TOKEN)}
    by_load = {g.key[2:]: g for g in bases.values()}
    rows, parts = [], _varying(configurations)
    for group in configurations:
        base = bases.get(group.key[1:]) or by_load.get(group.key[2:])
        if base is None or group.key.server == baseline or not group.values(PER_TOKEN):
            continue
        saved = percents(reduction_between(base, group, PER_TOKEN))
        rows.append([*_named(group, parts), saved, *(interval_text(g.interval(PER_TOKEN)) for g in (base, group))])
    if not rows:
        why = f"No configuration has a counterpart of {baseline} at the same workload and load yet."
        return tag("p", why, class_="empty")
    head = [*parts, "load", _mean_head("less energy", configurations), f"J/output token, {baseline}", "this"]
    note = (
        f"1 − this / {baseline}, J per output token at the same workload and load. Intervals on logarithms: "
        "Welch's, or of pairs where both saw the same arrivals."
    )
    return _captioned(table(head, rows, "Reduction"), note)


def arrivals_table(configurations: Sequence[Group]) -> Markup:
    """Compare open loops by their arrival process."""
    rows = [
        [
            group.key.workload,
            group.key.server,
            group.rows[0].arrival or UNKNOWN,
            load_text(group),
            interval_text(group.interval(PER_TOKEN)),
            watts(group.mean("mean_watts")),
            *(seconds(group.mean(field)) for field in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")),
        ]
        for group in sorted(
            (group for group in configurations if group.key.rps is not None),
            key=lambda group: (group.key.rps or 0, group.key.server, group.key.workload),
        )
    ]
    head = ["workload", "server", "arrivals", "load", _mean_head("J/output token", configurations), "W"]
    note = "After gamma, its burstiness: 1 is Poisson, smaller is burstier. Latencies: means over the repeats."
    return _captioned(table([*head, "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99"], rows, "Arrivals"), note)


# ---------------------------------------------------------------- runs


def runs_table(configurations: Sequence[Group], study: StudyInfo) -> list[Markup]:
    """Return every run that is done, with a link to its report, and what its verdict remarks."""
    rows = [_run_row(row, load_text(group), study) for group in configurations for row in group.rows]
    within = ["within limits"] if study.limits_ms else []
    head = ["run", "load", "verdict", "requests", "served/s", "TTFT p99", "TPOT p99", *within, "J/output token"]
    note = "Served: requests that completed, per second of the run. Struck: the energy of this run is not valid."
    return [_captioned(table(head, rows, "Every run"), note), *_remarks(configurations)]


def _remarks(configurations: Sequence[Group]) -> list[Markup]:
    """Return the reasons of the verdicts that are not ok, to open."""
    remarks = [(row.cell, row.remarks) for group in configurations for row in group.rows if row.remarks is not None]
    if not remarks:
        return []
    return [tag("details", tag("summary", f"Remarks on {plural(len(remarks), 'run')}"), definitions(remarks))]


def _run_row(row: Row, load: str, study: StudyInfo) -> list[str]:
    energy = joules(row.joules_per_output_token)
    return [
        _linked(row.cell, study),
        load,
        row.verdict or UNKNOWN,
        f"{row.requests:,}",
        number(row.completed_per_s),
        seconds(row.ttft_p99_s),
        seconds(row.tpot_p99_s),
        *([percent(row.goodput_ratio)] if study.limits_ms else []),
        energy if row.energy_valid else tag("s", energy),
    ]


def _linked(name: str, study: StudyInfo) -> Markup:
    """Return the name of a run, as a link where it has a report."""
    return tag("a", name, href=f"runs/{name}/report.html") if name in study.pages else tag("span", name)


def failed_table(study: StudyInfo) -> Markup:
    """Return the runs that failed, each with the reason."""
    rows = [[_linked(name, study), reason_text(reason)] for name, reason in sorted(study.failed.items())]
    note = "They are in no other table and in no figure. The same command tries them again."
    listed = table(["run", "reason"], rows, "Failed runs", class_="reasons")
    return _captioned(listed, note, tag("h3", "Failed runs"))


# ---------------------------------------------------------------- how it was measured


def origin(rows: Sequence[Row], study: StudyInfo) -> Markup:
    """Return what somebody needs to judge the measurement, and to make it again."""
    dates = sorted(row.started for row in rows if row.started is not None)
    facts = [
        ("loadgen", _values(rows, lambda row: row.loadgen_version)),
        ("Runs", _period(len(rows), dates)),
        ("Model", _values(rows, lambda row: row.model)),
        ("GPU", _values(rows, lambda row: row.gpu)),
        *((f"Engine, {server}", _engine(of)) for server, of in _by_server(rows).items()),
        *((f"Workload, {name}", text) for name, text in study.workloads.items()),
        ("Arrivals", _values(rows, lambda row: row.arrival)),
        ("Seed", "" if study.seed is None else f"{study.seed}; the seed of each run is in results.csv"),
        ("Study", "" if study.file is None else f"{study.file}, SHA-256 {study.sha256}"),
    ]
    listed = definitions((name, text) for name, text in facts if text)
    if study.command is None:
        return listed
    return tag("div", listed, command_box(study.command))


def _values(rows: Iterable[Row], of: Callable[[Row], str | None]) -> str:
    """Return the different values of the runs."""
    return "; ".join(sorted({value for row in rows if (value := of(row)) is not None}))


def _by_server(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    servers: dict[str, list[Row]] = {}
    for row in rows:
        servers.setdefault(row.server, []).append(row)
    return dict(sorted(servers.items()))


def _engine(rows: Sequence[Row]) -> str:
    """Return the engine of one server with its options."""
    parts = (_values(rows, lambda row: row.engine), _values(rows, lambda row: row.engine_options))
    return ": ".join(part for part in parts if part)


def _period(num_runs: int, dates: Sequence[str]) -> str:
    if not dates:
        return plural(num_runs, "run")
    first, last = (date.replace("T", " ").removesuffix("+00:00") for date in (dates[0], dates[-1]))
    return f"{plural(num_runs, 'run')}, the first began on {first} UTC, the last on {last} UTC"
