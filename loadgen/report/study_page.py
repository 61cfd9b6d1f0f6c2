"""A study on one page: which setting to choose, where its limits break, what it costs, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.report.charts.figure import figure
from loadgen.report.format import plural
from loadgen.report.markup import Markup, tag
from loadgen.report.page import header, render_page, section, verdict_box
from loadgen.report.run_facts import SIMULATED
from loadgen.report.study_figures import (
    ENERGY_PER_GOOD,
    ENERGY_PER_TOKEN,
    attainment_charts,
    curves,
    front_charts,
    load_charts,
    power_charts,
    throughput_charts,
)
from loadgen.report.study_tables import (
    arrivals_table,
    boundary_table,
    failed_table,
    limits_table,
    origin,
    overview_table,
    reductions_table,
    runs_table,
    shares_table,
)
from loadgen.report.study_text import PER_TOKEN, findings, reason_text
from loadgen.results.study_table import Group, Row, StudyInfo, groups


def render_study_page(study: StudyInfo, rows: Sequence[Row]) -> str:
    """Return the whole page; partial while the study is running."""
    configurations = groups(rows)
    sections = [_header(study, rows)]
    if configurations:
        sections += _sections(configurations, study)
    runs = runs_table(configurations, study) if configurations else []
    runs += [failed_table(study)] if study.failed else []
    if runs:
        sections.append(section("Every run", *runs))
    sections.append(section("How it was measured", origin(rows, study)))
    return render_page(f"{study.title} · loadgen study", sections)


def _sections(configurations: Sequence[Group], study: StudyInfo) -> list[Markup]:
    """Return the answers, in the order in which they are looked for."""
    drawn = curves(configurations)
    found = [tag("li", sentence) for sentence in findings(configurations, study)]
    attained = [figure(chart) for chart in attainment_charts(drawn, study)] if study.limits_ms else []
    latency = [figure(chart) for chart in throughput_charts(drawn, study.limits_ms)]
    processes = {group.rows[0].arrival for group in configurations if group.rows[0].arrival is not None}
    power = [figure(chart) for chart in power_charts(drawn)]
    has_energy = any(group.values(PER_TOKEN) for group in configurations)
    parts = [
        ("Findings", [tag("ul", *found, class_="findings")] if found else []),
        ("Limits", [*attained, limits_table(configurations, study)] if study.limits_ms else []),
        ("Latency and throughput", latency),
        ("Energy", _energy(configurations, study) if has_energy else []),
        (
            "Reduction against the baseline",
            [reductions_table(configurations, study.baseline)] if study.baseline and has_energy else [],
        ),
        ("Arrivals", [arrivals_table(configurations)] if len(processes) > 1 else []),
        ("Power", power),
    ]
    return [section(heading, *content) for heading, content in parts if content]


def _energy(configurations: Sequence[Group], study: StudyInfo) -> list[Markup]:
    drawn = curves(configurations)
    charts = [
        *(load_charts(drawn, ENERGY_PER_GOOD) if study.limits_ms else []),
        *load_charts(drawn, ENERGY_PER_TOKEN),
        *front_charts(drawn, study.limits_ms),
    ]
    tables = [shares_table(configurations), boundary_table(configurations)]
    return [*(figure(chart) for chart in charts), overview_table(configurations), *(made for made in tables if made)]


def _header(study: StudyInfo, rows: Sequence[Row]) -> Markup:
    gpus = sorted({row.gpu for row in rows if row.gpu})
    to_go = [f"{plural(study.remaining, 'run')} to go"] if study.remaining else []
    no_energy = ["no energy measured"] if rows and all(row.measured_joules is None for row in rows) else []
    meta = " · ".join([plural(len(rows), "run"), *to_go, *gpus, *no_energy])
    reasons = _remarks(study, rows, gpus)
    kind = "bad" if study.failed else "fair" if reasons else "good"
    valid = "Every run so far is valid" if study.remaining else "Every run is valid"
    return header(
        "loadgen study",
        study.title,
        tag("p", study.description),
        tag("p", meta, class_="soft"),
        verdict_box(kind, "With failed runs" if study.failed else "With remarks" if reasons else valid, reasons),
        simulated=any(row.simulated for row in rows),
    )


def _remarks(study: StudyInfo, rows: Sequence[Row], gpus: Sequence[str]) -> list[str]:
    """Return what a reader must see before the numbers."""
    failed: dict[str, list[str]] = {}
    for name, reason in sorted(study.failed.items()):
        failed.setdefault(reason_text(reason), []).append(name)
    remarks = [
        f"{names[0] if len(names) == 1 else plural(len(names), 'run')} failed: {reason}"
        for reason, names in failed.items()
    ]
    if doubtful := sum(row.measured_joules is not None and not row.energy_valid for row in rows):
        remarks.append(f"{plural(doubtful, 'run')} with energy that is not valid: see the reports of these runs")
    if warned := sum(row.verdict in ("warning", "failed") for row in rows):
        remarks.append(f"{plural(warned, 'run')} with a remark in the verdict: see the table of every run")
    if len(gpus) > 1:
        remarks.append("Not all runs were on the same GPUs: the comparisons include the differences between these.")
    if any(row.simulated for row in rows):
        remarks.append(SIMULATED)
    return remarks
