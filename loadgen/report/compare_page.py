"""The page of a comparison: runs side by side, what differs between them, and by how much with what certainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from loadgen.report.charts.figure import figure
from loadgen.report.compare import (
    BOUNDARY_METRICS,
    compare_runs,
    interval_notes,
    metrics,
    pair_notes,
    quantity,
    ratio,
    signed,
)
from loadgen.report.compare_charts import distributions, over_one_time
from loadgen.report.first_screen import start_time
from loadgen.report.format import UNKNOWN, clean, number, plural, seconds
from loadgen.report.latencies import LATENCIES
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import header, render_page, section, verdict_box
from loadgen.report.run_facts import (
    BOXES,
    HEADLINES,
    ending,
    is_invalid,
    is_simulated,
    summary_of,
    title,
    verdict_remarks,
)
from loadgen.results.run_statistics import limits_of

if TYPE_CHECKING:
    from loadgen.report.comparability import Objection
    from loadgen.results.difference import Difference, Differences
    from loadgen.results.run_folder import RunResult

HIGHER_IS_BETTER = ("goodput.ratio", "goodput.rps", "tokens.output_per_s")
NEUTRAL = ("energy.mean_watts",)
"""Numbers of which neither direction is the better one."""
_STYLE = """
.interval { display: block; width: 100%; min-width: 140px; height: 18px; overflow: visible; --c: var(--soft); }
.interval.better { --c: var(--good); } .interval.worse { --c: var(--bad); } .interval.other { --c: var(--s0); }
.interval line { stroke: var(--c); stroke-width: 2; } .interval circle { fill: var(--c); }
.interval line.zero { stroke: var(--ink); stroke-width: 1; opacity: 0.35; }
.differences td:last-child { width: 24%; min-width: 150px; }
mark { background: none; color: inherit; font-weight: 640; border-bottom: 2px solid var(--fair); }
.provenance td { white-space: normal; overflow-wrap: anywhere; }
@media screen and (max-width: 760px) { .differences td:last-child { grid-column: 1 / -1; width: auto; } }
"""


def render_compare_page(
    runs: Mapping[str, RunResult], differences: Mapping[str, Differences], objections: Sequence[Objection]
) -> str:
    """Return the page. `runs` are by letter, and `differences` are those of each later run from the first."""
    names = [f"{letter}: {title(run.info, summary_of(run))}" for letter, run in runs.items()]
    sections = [
        _header(runs, differences, objections),
        section("What was compared", _provenance(runs)),
        *(_differences(letter, runs, found) for letter, found in differences.items()),
    ]
    if charts := distributions(runs):
        sections.append(section("Distributions", tag("div", *map(figure, charts), class_="grid")))
    if charts := over_one_time(runs):
        note = "Second 0 is when the first request of each run was due."
        sections.append(section("Over time", tag("p", note, class_="soft"), *map(figure, charts)))
    return render_page(f"{' and '.join(runs)} · {'; '.join(names)} · loadgen compare", sections, _STYLE)


def label(path: str) -> str:
    """Return the name of a number as every view calls it: "TTFT p99", "energy per request p50"."""
    field, _, statistic = path.rpartition(".")
    for name, short, _ in LATENCIES:
        if field == name:
            return f"{short} {statistic}"
    return {
        "goodput.ratio": "Goodput, share of requests",
        "goodput.rps": "Goodput, requests/s",
        "tokens.output_per_s": "Output tokens/s",
        "energy.joules_per_output_token": "Energy per output token",
        "energy.mean_watts": "Mean power, W",
        "energy.host.measured_joules": "Energy of the host",
        "energy.boundary.total_joules": "Total of what is included",
        "energy.boundary.co2e_grams": "CO2e of the total",
        "energy.boundary.cost": "Cost of the total",
        "energy.boundary.cost_per_million_output_tokens": "Cost per million output tokens",
    }.get(path, f"Energy per request {statistic}")


# ---------------------------------------------------------------- the first screen


def _header(
    runs: Mapping[str, RunResult], differences: Mapping[str, Differences], objections: Sequence[Objection]
) -> Markup:
    boxes = []
    # The reasons why a run failed stand in its own verdict below.
    if warnings := [objection.text for objection in objections if objection.kind != "failed"]:
        boxes.append(verdict_box("bad", "More differs than what is compared", warnings))
    if len({is_simulated(run.info) for run in runs.values()}) > 1:
        boxes.append(verdict_box("bad", "Simulated and measured runs are side by side", []))
    boxes += [_changes(letter, runs, found) for letter, found in differences.items()]
    for letter, run in runs.items():
        summary = summary_of(run)
        lines = [remark.text for remark in verdict_remarks(summary)]
        boxes.append(
            verdict_box(BOXES[summary.verdict.status], f"{letter}: {HEADLINES[summary.verdict.status]}", lines)
        )
    titles = {letter: title(run.info, summary_of(run)) for letter, run in runs.items()}
    heading = "; ".join(f"{letter}: {name}" for letter, name in titles.items())
    if len(set(titles.values())) == 1:
        heading = f"{titles['A']}: {' and '.join(runs)}"
    return header("loadgen compare", heading, *boxes, simulated=any(is_simulated(run.info) for run in runs.values()))


def _changes(letter: str, runs: Mapping[str, RunResult], found: Differences) -> Markup:
    """Return the numbers of the table whose interval excludes 0, the largest relative changes first; none that is not
    valid."""
    valid = [row for row in _rows(letter, runs, found) if not is_invalid([runs["A"], runs[letter]], row.path)]
    with_interval = [row for row in valid if row.half_width is not None]
    shown = sorted((row for row in with_interval if row.excludes_zero), key=lambda row: -abs(relative(row) or 0))
    lines = [f"{label(row.path)}: {change_text(row)}" for row in shown[:6]]
    if len(shown) > len(lines):
        lines.append(f"{plural(len(shown) - len(lines), 'more number')} in the table")
    if not with_interval:
        return verdict_box("fair", f"No interval of {letter}−A could be given: see the reasons", [])
    head = f"{letter} differs from A in {len(shown)} of {len(with_interval)} numbers, by more than chance"
    if not shown:
        head = f"No difference of {letter} from A was shown in {plural(len(with_interval), 'number')}"
    return verdict_box("fair" if shown else "good", head, lines)


def relative(row: Difference) -> float | None:
    """Return the difference over the first run's value; None where that is 0 or unknown."""
    return None if row.difference is None or not row.a else row.difference / abs(row.a)


def change_text(row: Difference) -> str:
    """Return a change in per cent with half its interval, such as "+12.3 % ± 4.1 %"."""
    change = relative(row)
    if change is None or row.a is None:
        return UNKNOWN
    half = "" if row.half_width is None else f" ± {_percents(row.half_width / abs(row.a))} %"
    return f"{'+' if change > 0 else '−' if change < 0 else ''}{_percents(abs(change))} %{half}"


def _percents(ratio: float) -> str:
    return number(100 * ratio, 2) if ratio < 0.1 else f"{100 * ratio:,.0f}"


# ---------------------------------------------------------------- what was compared


def _gpus(run: RunResult) -> str:
    return ", ".join(str(name) for name in run.info.host.get("gpus") or ())


_FACTS: tuple[tuple[str, Callable[[RunResult], Any]], ...] = (
    ("loadgen", lambda run: run.info.loadgen_version),
    ("engine", lambda run: run.info.server.get("engine")),
    ("model", lambda run: run.info.server.get("model")),
    ("server", lambda run: run.info.server.get("base_url")),
    ("trace", lambda run: PurePath(str(run.info.config.get("trace") or "")).name),
    ("requests", lambda run: len(run.schedule)),
    ("requested rate", lambda run: run.info.requested_rps and f"{number(run.info.requested_rps)} /s"),
    ("arrivals", lambda run: ", ".join(f"{clean(spec.process)}" for spec in run.info.asked)),
    ("seed", lambda run: run.info.seed),
    ("schedule", lambda run: run.info.schedule_sha256[:12]),
    ("limits", lambda run: _limits(run)),
    ("GPU", _gpus),
    ("energy source", lambda run: ", ".join(f"{domain.name} {domain.source}" for domain in run.info.domains)),
    ("client host", lambda run: run.info.host.get("hostname")),
)
"""Facts of a run that ought to be the same but for what is compared."""


def _limits(run: RunResult) -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{metric} {limit:g} ms" for metric, limit in limits.items())
        for name, limits in limits_of(run).items()
        if limits
    )


def _provenance(runs: Mapping[str, RunResult]) -> Markup:
    """Return the facts of each run; what differs from the first run is marked."""
    summaries = [summary_of(run) for run in runs.values()]
    rows: list[tuple[str, ...]] = [
        ("run", *(clean(run.info.run_id) for run in runs.values())),
        ("started", *(start_time(run.info) or UNKNOWN for run in runs.values())),
        ("ended", *map(ending, summaries)),
        ("duration", *(seconds(summary.duration_s) for summary in summaries)),
        ("completed", *(f"{s.requests.completed:,} of {s.requests.scheduled:,}" for s in summaries)),
    ]
    for name, read in _FACTS:
        texts = [UNKNOWN if (value := read(run)) in (None, "") else clean(value, 200) for run in runs.values()]
        cells = [text if text == texts[0] else tag("mark", text) for text in texts]
        rows.append((f"{name} ≠" if len(set(texts)) > 1 else name, *cells))
    note = tag("p", "≠ differs, and what differs from A is underlined.", class_="soft")
    return join([table(("", *runs), rows, "What was compared", class_="provenance"), note])


# ---------------------------------------------------------------- differences


def _differences(letter: str, runs: Mapping[str, RunResult], found: Differences) -> Markup:
    """Return the table of all differences of one run from the first, each with its interval drawn."""
    rows = _rows(letter, runs, found)
    reach = _reach(rows)
    head = (
        "",
        "A",
        letter,
        f"{letter}−A",
        "95 % interval",
        "change from A",
        f"−{reach:.0%} to +{reach:.0%}".replace("%", " %"),
    )
    cells = []
    for row in rows:
        change = (signed(row.path, row.difference), _ends(row), change_text(row))
        valid = not is_invalid([runs["A"], runs[letter]], row.path)
        cells.append(
            (
                label(row.path),
                *(_value(row.path, value, runs[of]) for value, of in ((row.a, "A"), (row.b, letter))),
                *(change if valid else map(_struck, change)),
                _picture(row, reach) if valid else "not valid",
            )
        )
    meaning = (
        f"The dot is {letter}−A as a share of A, and the line is its 95 % interval. Half of the interval, the number "
        "behind ±, is the smallest change that these two runs could have shown. Of numbers that did not change, 1 in "
        "20 has an interval without 0 by chance."
    )
    shown = [row.path for row in rows]
    notes = [tag("p", line) for line in (meaning, *interval_notes(found, shown, letter, label))]
    return section(
        f"Differences of {letter} from A" if len(runs) > 2 else "Differences",
        table(head, cells, f"Differences of {letter} from A", class_="differences"),
        _boundary(letter, runs),
        *(tag("p", line) for line in pair_notes([runs["A"]], [runs[letter]], letter, paired=found.paired)),
        tag("div", *notes, class_="soft"),
    )


def _boundary(letter: str, runs: Mapping[str, RunResult]) -> Markup:
    """Return the numbers beyond the accelerators' energy that both runs know; empty without any."""
    a, b = [summary_of(runs["A"])], [summary_of(runs[letter])]
    shown = [path for path in metrics([a, b]) if path in BOUNDARY_METRICS]
    rows = []
    for path, (of_a, of_b) in compare_runs([a, b], shown).items():
        change = (signed(path, of_b.difference), ratio(of_b.ratio))
        if is_invalid([runs["A"], runs[letter]], path):
            change = (_struck(change[0]), _struck(change[1]))
        values = (_value(path, of_a.value, runs["A"]), _value(path, of_b.value, runs[letter]))
        rows.append((label(path), *values, *change))
    if not rows:
        return join([])
    head = ("with the host, the facility, CO2e and cost", "A", letter, f"{letter}−A", f"{letter}/A")
    return table(head, rows, "Energy beyond the accelerators")


def _rows(letter: str, runs: Mapping[str, RunResult], found: Differences) -> list[Difference]:
    """Return the differences of the table: without those of numbers that the terminal leaves out too."""
    shown = metrics([[summary_of(runs["A"])], [summary_of(runs[letter])]])
    return [row for path, row in found.rows.items() if path in shown]


def _value(path: str, value: float | None, run: RunResult) -> str:
    """Return a number of a run, struck where a check says that it supports no claim."""
    text = quantity(path, value)
    return _struck(text) if is_invalid([run], path) else text


def _struck(text: str) -> str:
    """Return a text that is struck; what is unknown stays as it is."""
    return text if text == UNKNOWN else tag("s", tag("span", "not valid: ", class_="spoken"), text)


def _ends(row: Difference) -> str:
    if row.interval is None:
        return UNKNOWN
    return " to ".join(signed(row.path, end) for end in row.interval)


def _reach(rows: Sequence[Difference]) -> float:
    """Return the relative change at the ends of the drawn scale: the furthest end of an interval, 100 % at most."""
    ends = [max(abs(end) for end in row.interval) / abs(row.a) for row in rows if row.interval is not None and row.a]
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    return next((step for step in steps if max(ends, default=0.0) <= step), 1.0)


def _picture(row: Difference, reach: float) -> Markup | str:
    """Return the difference as a dot and its interval as a bar, around a rule at 0; beyond the scale they are cut."""
    change = relative(row)
    if change is None or row.interval is None or not row.a:
        return UNKNOWN

    def at(ratio: float) -> str:
        return f"{50 + 50 * max(-1.0, min(1.0, ratio / reach)):.2f}%"

    low, high = (end / abs(row.a) for end in row.interval)
    direction, kind = "no difference shown", ""
    if row.excludes_zero:
        direction = "higher" if change > 0 else "lower"
        good = (change > 0) == (row.path in HIGHER_IS_BETTER)
        kind = " other" if row.path in NEUTRAL else " better" if good else " worse"
    drawn = tag(
        "svg",
        tag("line", x1="50%", x2="50%", y1="0", y2="100%", class_="zero"),
        tag("line", x1=at(low), x2=at(high), y1="50%", y2="50%"),
        tag("circle", cx=at(change), cy="50%", r="4"),
        class_=f"interval{kind}",
        role="img",
        aria_label=f"{label(row.path)}: {change_text(row)}, {direction}",
    )
    return join([drawn, tag("small", direction)])
