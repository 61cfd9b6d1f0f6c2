"""A run or a comparison as Markdown, for a comment or the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from loadgen.report.compare import (
    MEANING,
    compare_runs,
    describe,
    half_width,
    interval_notes,
    letters,
    metrics,
    pair_notes,
    quantity,
    signed,
)
from loadgen.report.format import clean, joules, percent, seconds, with_unit
from loadgen.report.run_facts import HEADLINES, SIMULATED, is_simulated, summary_of, title, verdict_remarks

if TYPE_CHECKING:
    from loadgen.report.compare import Runs
    from loadgen.report.gates import Outcome
    from loadgen.results.difference import Differences
    from loadgen.results.run_folder import RunResult

HEADLINE_METRICS = (
    "requests.failed",
    "goodput.ratio",
    "tokens.output_per_s",
    "ttft_s.p50",
    "ttft_s.p99",
    "tpot_s.p50",
    "tpot_s.p99",
    "energy.joules_per_request.p50",
    "energy.joules_per_output_token",
    "energy.mean_watts",
)
"""Numbers that a reader sees without unfolding, besides those of the gates."""

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|~&@!"})


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no mention of a user, no link."""
    return clean(text, 2_000).translate(_SPECIAL).replace("://", ":&#47;&#47;")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def run_markdown(result: RunResult) -> str:
    """Return a run's verdict with its reasons, and its headline numbers."""
    summary = summary_of(result)
    energy, requests = summary.energy, summary.requests
    rows = [
        ("completed", f"{requests.completed:,} of {requests.scheduled:,}; {requests.failed:,} failed"),
        ("requests sent", with_unit(summary.rate.achieved_rps, "/s")),
        ("output", with_unit(summary.tokens.output_per_s, "tokens/s")),
        *([("goodput", percent(summary.goodput.ratio))] if summary.goodput else []),
        *(
            (f"{name} p50 · p99", f"{seconds(spread.p50)} · {seconds(spread.p99)}")
            for name, spread in (("TTFT", summary.ttft_s), ("TPOT", summary.tpot_s), ("E2E", summary.e2e_s))
        ),
        ("energy per output token", joules(energy.joules_per_output_token)),
        ("energy per request, p50", joules(energy.joules_per_request.p50 if energy.joules_per_request else None)),
    ]  # fmt: skip
    if (sessions := summary.sessions) is not None:
        spread = sessions.joules_per_session
        done = f"{sessions.completed:,} of {sessions.sessions:,} completed"
        rows += [
            ("sessions", f"{done}; last answer p50 {seconds(sessions.time_to_last_answer_s.p50)}"),
            ("energy per session, p50", joules(spread.p50 if spread else None)),
        ]
    lines = [f"### {escaped(title(result.info, summary))}: {HEADLINES[summary.verdict.status]}", ""]
    lines += [f"* {escaped(remark.text)}" for remark in verdict_remarks(summary)]
    if is_simulated(result.info):
        lines.append(f"* {SIMULATED}")
    return "\n".join([*lines, "", *_table(("", ""), rows), ""])


def comparison_markdown(sides: Sequence[Runs], outcomes: Sequence[Outcome], differences: Sequence[Differences]) -> str:
    """Return the outcomes of the gates and, for each later side, its headline numbers beside the first's; the others
    are folded."""
    failed = sum(outcome.failed for outcome in outcomes)
    head = (
        f"{failed:,} of {len(outcomes):,} gates failed" if failed else "every gate passed" if outcomes else "no gates"
    )
    lines = [f"### loadgen compare: {head}", ""]
    lines += [f"* {'❌' if outcome.failed else '✅'} {escaped(describe(outcome))}" for outcome in outcomes]
    names, of_sides = letters(len(sides)), [[summary_of(run) for run in side] for side in sides]
    for letter, side in zip(names, sides, strict=True):
        runs = ", ".join(escaped(summary_of(run).run_id) for run in side)
        simulated = " (simulated)" if is_simulated(side[0].info) else ""
        lines.append(f"* {letter}: {escaped(title(side[0].info, summary_of(side[0])))}, {runs}{simulated}")
    shown_first = dict.fromkeys([*HEADLINE_METRICS, *(outcome.gate.path for outcome in outcomes)])
    for letter, later, later_runs, found in zip(names[1:], of_sides[1:], sides[1:], differences, strict=True):
        pair_of_sides = [of_sides[0], later]
        cells = compare_runs(pair_of_sides, list(dict.fromkeys([*metrics(pair_of_sides), *shown_first])))
        rows = {
            path: [
                f"`{path}`", *(quantity(path, cell.value) for cell in pair), signed(path, pair[1].difference),
                half_width(found.rows.get(path)).strip().replace("*", "\\*"),
            ]
            for path, pair in cells.items()
            if any(cell.value is not None for cell in pair)
        }  # fmt: skip
        top = ("", "A", letter, f"{letter}−A", "±")
        lines += ["", *_table(top, [row for path, row in rows.items() if path in shown_first]), ""]
        for note in pair_notes(sides[0], later_runs, letter, paired=found.paired):
            lines += [escaped(note), ""]
        lines += ["<details><summary>All numbers</summary>", ""]
        lines += [*_table(top, rows.values()), "", escaped(MEANING.format(letter)), ""]
        lines += [f"* {escaped(note)}" for note in interval_notes(found, list(cells), letter)]
        lines += ["", "</details>"]
    return "\n".join([*lines, ""])
