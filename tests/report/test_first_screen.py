"""The first screen of a run's page answers what is asked first, and strikes what supports no claim."""

from dataclasses import replace

import msgspec
import pytest

from loadgen.report.first_screen import command_line, first_screen
from loadgen.report.markup import join
from loadgen.report.run_facts import energy_note, error_of, failed_kinds, invalid_by, limit_lines, limits_text
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import EnergySummary, Goodput, Latency, RequestCounts, Summary
from loadgen.results.verdict import CHECKS, Check, Verdict
from report.test_run_page import Page
from support import sample_runs


def changed(**changes: object) -> RunResult:
    made = sample_runs.run(num_requests=40, failing=0)
    assert made.summary is not None
    return replace(made, summary=msgspec.structs.replace(made.summary, **changes))


def text_of(result: RunResult) -> str:
    return Page(join(first_screen(result))).text


def summary_of(result: RunResult) -> Summary:
    assert result.summary is not None
    return result.summary


def test_the_questions_of_a_serving_engineer_are_answered_in_their_order() -> None:
    text = text_of(changed())
    asked = ("Requests completed", "Request rate", "Output", "Goodput", "(TTFT)", "(TPOT)", "(E2E)", "Energy per")
    places = [text.index(name) for name in asked]
    assert places == sorted(places)
    assert "40 of 40 none failed" in text


def test_p99_is_as_large_as_the_median() -> None:
    made = changed()
    values = [name for name, attrs in Page(join(first_screen(made))).elements if (name, attrs) == ("dd", {})]
    latencies = text_of(made).partition("(TTFT)")[2].partition("Energy per")[0]
    assert latencies.count("p50 ") == latencies.count("p99 ") == 3
    assert len(values) == 1 + 2 + 1 + 1 + 3 * 2 + 3


def test_failures_are_counted_by_kind_the_most_frequent_first() -> None:
    counts = RequestCounts(
        scheduled=9, sent=8, completed=3, failed=6, by_error={"http": 2, "not_sent": 1, "timeout": 3, "connect": 0}
    )
    assert failed_kinds(counts) == "3 timeout, 2 http, 1 not sent"
    assert "3 of 9 6 failed: 3 timeout, 2 http, 1 not sent" in text_of(changed(requests=counts))


def latency(p50: float, p99: float, failed: int = 0, **with_failures: float | None) -> Latency:
    return Latency(count=9, p50=p50, p99=p99, left_out=failed, **with_failures)


@pytest.mark.parametrize(
    ("spread", "text", "is_met"),
    [
        (latency(0.1, 0.2), "limit 200 ms: met", True),
        (latency(0.1, 0.21), "limit 200 ms: p50 met, p99 missed", False),
        (latency(0.3, 0.4), "limit 200 ms: missed", False),
        (latency(0.1, 0.2, 1, p50_with_failures=0.1, p99_with_failures=0.2), "limit 200 ms: met", True),
        (
            latency(0.1, 0.2, 1, p50_with_failures=0.1),
            "limit 200 ms: p50 met, p99 missed, failed requests counted",
            False,
        ),
        (latency(0.1, 0.2, 9), "limit 200 ms: missed, failed requests counted", False),
        (Latency(count=0), "limit 200 ms: not known", None),
    ],
)
def test_a_limit_is_met_when_99_of_100_requests_meet_it(spread: Latency, text: str, is_met: bool | None) -> None:
    good = Goodput(slo_ms={"ttft": 200.0}, good=1, ratio=0.5, rps=1.0)
    made = changed(ttft_s=spread, goodput=good)
    assert [tuple(line) for line in limit_lines(summary_of(made), "ttft_s")] == [(text, is_met)]
    assert limit_lines(summary_of(made), "tpot_s") == []
    assert f"{text} Time per" in text_of(made)


def test_the_share_of_requests_within_a_limit_is_stated_where_it_was_counted() -> None:
    good = Goodput(slo_ms={"ttft": 200.0}, good=30, ratio=0.75, rps=1.0, met={"ttft": 30})
    made = changed(ttft_s=latency(0.1, 0.3), goodput=good)
    (line,) = limit_lines(summary_of(made), "ttft_s")
    assert line.text == "limit 200 ms: p50 met, p99 missed; 75.0 % within"


def test_limits_of_streams_stand_under_their_names_and_a_run_without_limits_says_so() -> None:
    made = changed()
    own = msgspec.structs.replace(summary_of(made).goodput, slo_ms={})
    lines = limit_lines(summary_of(changed(goodput=own)), "tpot_s")
    assert [line.text.partition(":")[0] for line in lines] == ["chat", "code"]
    assert limits_text({"ttft": 200.0, "e2el": 5000.0, "x": 1.0}) == "TTFT ≤ 200 ms, E2E ≤ 5.00 s, x ≤ 1.00 ms"
    assert "no limits were set" in text_of(changed(goodput=None))


def test_joules_have_the_relative_error_of_the_attributed_total() -> None:
    energy = EnergySummary(valid=True, reasons=[], attributed_joules=200.0, attributed_se_joules=4.0)
    assert error_of(50.0, energy) == "± 1.00 J: standard error of the measurement"
    assert error_of(None, energy) == ""
    assert error_of(50.0, msgspec.structs.replace(energy, attributed_se_joules=None)) == ""


def test_energy_that_was_not_measured_is_one_neutral_line() -> None:
    text = text_of(sample_runs.without_energy())
    assert "Energy was not measured: nvml: libnvidia-ml.so.1 was not found" in text
    assert "Energy per" not in text and " J" not in text


@pytest.mark.parametrize(
    ("row", "is_valid", "invalid"),
    [
        ("energy", True, None),
        ("energy", False, "energy"),
        ("energy.mean_watts", False, "energy"),
        ("ttft_s", True, "token counts"),
        ("rate", True, None),
    ],
)
def test_a_number_that_supports_no_claim_is_struck_and_names_its_check(
    row: str, is_valid: bool, invalid: str | None
) -> None:
    checks = [Check(name=name, status="ok") for name in CHECKS]
    checks[CHECKS.index("token_counts")] = Check(name="token_counts", status="failed", reason="x", rows=["ttft_s"])
    energy = msgspec.structs.replace(summary_of(changed()).energy, valid=is_valid)
    made = changed(verdict=Verdict.of(checks), energy=energy)
    assert invalid_by(summary_of(made), row) == invalid
    html = join(first_screen(made))
    assert html.count("<s>") == 2 + (0 if is_valid else 3)
    assert "not valid: see &quot;token counts&quot; in the verdict" in html


def test_a_law_that_explains_nothing_strikes_what_it_decides_and_no_total() -> None:
    energy = msgspec.structs.replace(summary_of(changed()).energy, valid=False, totals_valid=True)
    made = changed(energy=energy)
    assert invalid_by(summary_of(made), "energy.joules_per_request") == "energy"
    assert invalid_by(summary_of(made), "energy.mean_watts") is None
    html = join(first_screen(made))
    assert "the energy of single requests is not valid" in html and "<s>" not in html
    assert energy_note(summary_of(made)) == "ENERGY OF REQUESTS NOT VALID: see the verdict; totals are"


def test_the_command_is_quoted_for_a_shell_and_left_out_where_it_is_not_known() -> None:
    info = sample_runs.single().info
    assert command_line(info) == ""
    words = ["loadgen", "replay", "my chat.jsonl", "--header", "X:[redacted]", "<b>"]
    made = command_line(msgspec.structs.replace(info, command=words))
    assert "loadgen replay 'my chat.jsonl' --header 'X:[redacted]' '<b>'" in Page(made).text
    assert "<b>" not in made
