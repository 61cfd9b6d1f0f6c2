import io
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from loadgen.errors import LoadgenError
from loadgen.report.format import seconds
from loadgen.report.run_facts import MARKS_LEGEND, failures
from loadgen.report.terminal import render_terminal
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import Distribution, KindOutput
from loadgen.results.verdict import CHECKS, Check, Status, Verdict
from support import sample_runs
from support.session_runs import agent_run


def printed(result: RunResult, width: int = 80, terminal: bool = False, folder: Path | None = None) -> str:
    out = io.StringIO()
    render_terminal(result, Console(file=out, width=width, force_terminal=terminal), folder)
    return out.getvalue()


@pytest.mark.parametrize(
    "make",
    [sample_runs.run, sample_runs.without_energy, sample_runs.without_completions, sample_runs.single, agent_run],
)
def test_eighty_columns_are_enough_and_a_file_gets_no_escapes(make) -> None:
    told = printed(make())
    assert max(len(line) for line in told.splitlines()) <= 80
    assert "\x1b" not in told
    assert "…" not in told and "None" not in told and "nan" not in told


def test_sessions_are_stated_where_there_are_some() -> None:
    assert "\nSessions\n" in printed(agent_run()) and "Sessions" not in printed(sample_runs.run())


def test_a_terminal_gets_the_same_words() -> None:
    assert "\x1b[" in printed(sample_runs.single(), terminal=True)


def test_every_account_is_listed_with_its_share() -> None:
    made = sample_runs.run()
    assert made.attribution is not None
    lines = {line.split("   ")[0].strip(" =+"): line for line in printed(made).splitlines() if line.endswith(" %")}
    for account in ("measured", "idle", "attributed", "unattributed"):
        assert f"{getattr(made.attribution, account + '_mj') / 1000:,.3f} J" in lines[account]
    assert "shapley" in printed(made) and "source simulated" in printed(made)


def test_workloads_are_apart_and_only_when_there_are_several() -> None:
    rows = [line.split() for line in printed(sample_runs.run(failing=0)).splitlines()]
    assert {row[1] for row in rows if row[:1] == ["TTFT"]} == {"chat"}
    assert sum(row[:1] == ["code"] for row in rows) == 1 + 5 + 1
    assert not any(row[:1] == ["chat"] for row in (line.split() for line in printed(sample_runs.single()).splitlines()))


@pytest.mark.parametrize("width", [80, 50, 40])
def test_no_figure_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    wide, narrow = (printed(sample_runs.run(num_requests=200), columns) for columns in (160, width))
    assert "…" not in narrow.partition("Latency")[2]
    assert max(map(len, narrow.splitlines())) <= width
    figures = re.compile(r"[-\d,.]+(?: [kmµ]?[sJ]| %)")
    tables = [text.partition("Latency")[2].partition("source")[0] for text in (wide, narrow)]
    assert sorted(figures.findall(tables[0])) == sorted(figures.findall(tables[1]))


def test_models_of_one_family_are_told_apart_in_a_narrow_column() -> None:
    made = sample_runs.single()
    assert made.summary is not None
    part = next(iter(made.summary.by_workload.values()))
    models = {"org/llama-3.1-8b-lora-sql": part, "org/llama-3.1-8b-lora-law": part}
    text = printed(replace(made, summary=msgspec.structs.replace(made.summary, by_model=models)))
    assert "llama…ora-sql" in text and "llama…ora-law" in text


def test_a_long_name_cuts_off_no_figure_at_eighty_columns() -> None:
    made = sample_runs.run()
    assert made.summary is not None
    models = dict(zip(("adapter-sql-1", "adapter-law-1"), made.summary.by_workload.values(), strict=True))
    text = printed(replace(made, summary=msgspec.structs.replace(made.summary, by_model=models)))
    assert "adapter-sql-1" in text and "…" not in text


def test_no_energy_gives_every_reason_and_no_zero() -> None:
    told = " ".join(printed(sample_runs.without_energy()).split())
    assert "Energy was not measured" in told and "ENERGY NOT VALID" not in told
    assert "libnvidia-ml.so.1 was not found" in told and "permission denied" in told
    assert " 0 J" not in told and "0.000 J" not in told


def test_energy_that_is_not_valid_keeps_its_numbers_beside_the_warning() -> None:
    made = sample_runs.single()
    assert made.summary is not None
    energy = msgspec.structs.replace(made.summary.energy, valid=False, reasons=["coverage 0.71: the meter had gaps"])
    told = printed(sample_runs.judged(replace(made, summary=msgspec.structs.replace(made.summary, energy=energy))))
    assert "ENERGY NOT VALID" in told and "coverage 0.71" in told and "measured" in told
    assert told.splitlines()[2] == "OK, with warnings"


@pytest.mark.parametrize(("r_squared", "is_shown"), [(0.34, True), (0.97, False), (None, False)])
def test_a_poor_fit_is_explained_by_its_notes(r_squared: float | None, is_shown: bool) -> None:
    made = sample_runs.single()
    assert made.summary is not None
    coefficients = {**(made.summary.energy.coefficients or {}), "r_squared": r_squared, "misfit": 0.01}
    energy = msgspec.structs.replace(
        made.summary.energy, coefficients=coefficients, fit_notes=["The windows hardly differed."]
    )
    text = printed(replace(made, summary=msgspec.structs.replace(made.summary, energy=energy)))
    assert ("The windows hardly differed." in text) is is_shown


def judged_as(status: Status | None, reason: str | None, *rows: str) -> RunResult:
    """A run with one request, whose `lengths` check alone has something to say."""
    made = sample_runs.single()
    assert made.summary is not None
    checks = [Check(name=n, status="ok" if n != "lengths" else status) for n in CHECKS]
    checks[CHECKS.index("lengths")] = Check(name="lengths", status=status, reason=reason, rows=[*rows])
    return replace(made, summary=msgspec.structs.replace(made.summary, verdict=Verdict.of(checks)))


@pytest.mark.parametrize(
    ("status", "reason", "head", "mark"),
    [
        ("ok", None, "OK", ""),
        (None, "no length was counted", "OK", ""),
        ("warning", "answers were short", "OK, with warnings", " !"),
        ("failed", "answers were short", "FAILED", " !!"),
    ],
)
def test_the_verdict_is_the_headline_and_its_reason_stands_below_it_and_its_rows_are_marked(
    status: Status | None, reason: str | None, head: str, mark: str
) -> None:
    lines = printed(judged_as(status, reason, "e2e_s", "tokens.output")).splitlines()
    assert lines[2] == head
    assert (lines[3] == f"- lengths: {reason}") is (reason is not None)
    rows = [" ".join(line.split()) for line in lines]
    for label in (f"E2E{mark} all 1 ", f"tokens out{mark} ", "TTFT all 1 ", "tokens in "):
        assert any(row.startswith(label) for row in rows), label
    assert any(MARKS_LEGEND in line for line in lines) is bool(mark)


def test_latencies_say_what_they_leave_out_and_how_they_look_with_it() -> None:
    made = sample_runs.run()
    assert made.summary is not None
    lines = [" ".join(line.split()) for line in printed(made).splitlines()]
    failed = made.summary.requests.failed
    assert f"{failed} of 400 left out: failed. Rows + failed count them as infinitely late (∞)." in lines
    ttft = made.summary.ttft_s
    row = next(i for i, line in enumerate(lines) if line.startswith("TTFT")) + 2  # after chat and code
    assert f"all {400 - failed} of 400" in lines[row] and seconds(ttft.p99) in lines[row]
    assert lines[row + 1] == f"+ failed 400 ∞ {seconds(ttft.p50_with_failures)} {seconds(ttft.p90_with_failures)} ∞ ∞"
    assert "left out" not in printed(sample_runs.run(failing=0)) and "∞" not in printed(sample_runs.run(failing=0))


@pytest.mark.parametrize(
    ("kept", "says"), [(True, "timing valid"), (False, "TIMING UNRELIABLE"), (None, "timing not verified")]
)
def test_whether_the_timing_is_valid_is_shown(kept: bool | None, says: str) -> None:
    told = printed(with_timekeeping(kept))
    assert says in next(line for line in told.splitlines() if line.startswith("  client"))
    assert "event loop late p50 300 µs" in " ".join(told.split())


def with_timekeeping(kept: bool | None) -> RunResult:
    made = sample_runs.single()
    assert made.summary is not None
    delay = Distribution(count=9, p50=0.0003, p99=0.02)
    instrument = msgspec.structs.replace(made.summary.instrument, kept_time=kept, loop_delay_s=delay)
    return replace(made, summary=msgspec.structs.replace(made.summary, instrument=instrument))


def test_simulated_is_in_the_first_lines() -> None:
    assert "SIMULATED" in "".join(printed(sample_runs.single()).splitlines()[:3])


def test_where_things_are() -> None:
    told = printed(sample_runs.single(), folder=Path("runs/demo"))
    assert "runs/demo/report.html" in told
    assert "report.html" not in printed(sample_runs.single())


def test_names_are_words_not_markup_or_escapes() -> None:
    made = sample_runs.single()
    info = msgspec.structs.replace(made.info, server={"model": "[red]m[/red]\x1b[2J[/nonsense]"})
    assert "[red]m[/red] [2J[/nonsense]" in printed(replace(made, info=info), terminal=True)


def test_a_run_without_a_summary_is_an_error_in_one_line() -> None:
    with pytest.raises(LoadgenError, match="no summary"):
        printed(replace(sample_runs.single(), summary=None))


def test_failures_are_counted_by_kind_with_an_example_that_has_a_detail() -> None:
    made = sample_runs.run()
    rows = failures(made.records)
    assert made.summary is not None
    assert {kind: n for kind, n, _ in rows} == made.summary.requests.by_error
    assert [n for _, n, _ in rows] == sorted((n for _, n, _ in rows), reverse=True)
    assert all(example.error == kind and example.detail for kind, _, example in rows)


def test_kinds_of_output_fit_into_eighty_columns() -> None:
    result = sample_runs.run()
    assert result.summary is not None
    kinds = {"reasoning": KindOutput(requests=10, tokens=300, joules=60.0, joules_per_token=0.2)}
    text = printed(replace(result, summary=msgspec.structs.replace(result.summary, output_kinds=kinds)))
    assert "Output by kind" in text and "reasoning" in text and "TTFA" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Output by kind" not in printed(result)
