"""Markdown for CI: the verdict, the gates, and text that stays text."""

import pytest

from loadgen.report.gates import check_gate, parse_gate
from loadgen.report.markdown import comparison_markdown, escaped, run_markdown
from loadgen.results.difference import find_differences
from loadgen.results.summarize import analyse_run
from loadgen.results.summary_paths import known_paths
from support import sample_runs
from support.session_runs import agent_run


def test_a_run_has_its_verdict_its_reasons_and_a_table() -> None:
    made = run_markdown(analyse_run(sample_runs.run(num_requests=40, failing=0.3)))
    head, _, *rest = made.splitlines()
    assert head.startswith("### ") and head.endswith(": FAILED")
    assert rest[0].startswith("* failures: ") and "more than the limit of 1%" in rest[0]
    assert {line.count("|") for line in rest if line.startswith("|")} == {3}


def test_a_run_of_sessions_has_what_one_took_and_cost() -> None:
    made = run_markdown(agent_run())
    assert "| sessions | 6 of 6 completed; last answer p50 " in made and "| energy per session, p50 | " in made
    assert "session" not in run_markdown(analyse_run(sample_runs.run(num_requests=10)))


def test_a_comparison_has_each_gate_with_its_outcome_and_whole_tables() -> None:
    runs = [analyse_run(sample_runs.run(seed=seed)) for seed in (1, 2)]
    sides = [[run] for run in runs]
    summaries = [[run.summary for run in side if run.summary] for side in sides]
    paths = known_paths([summary for side in summaries for summary in side])
    gates = [parse_gate(text, paths) for text in ("ttft_s.p99>0.1ms", "requests.failed>500")]
    differences = [find_differences(*runs, ("A", "B"))]
    outcomes = [outcome for gate in gates for outcome in check_gate(gate, summaries, differences, False)]
    made = comparison_markdown(sides, outcomes, differences)
    assert made.startswith("### loadgen compare: 1 of 2 gates failed\n")
    assert "* ❌ FAILED ttft\\_s.p99" in made and "* ✅ passed requests.failed" in made
    assert {line.count("|") for line in made.splitlines() if line.startswith("|")} == {6}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>|x|", "\\<script\\>\\|x\\|"),
        ("[a](javascript:1) @all", "\\[a\\](javascript:1) \\@all"),
        ("![a](b)", "\\!\\[a\\](b)"),
        ("`a` *b* #1", "\\`a\\` \\*b\\* \\#1"),
        ("see https://a.b", "see https:&#47;&#47;a.b"),
        ("a\n# b\x1b[31m", "a \\# b \\[31m"),
    ],
)
def test_text_is_no_markup_no_mention_and_no_link(text: str, shown: str) -> None:
    assert escaped(text) == shown
