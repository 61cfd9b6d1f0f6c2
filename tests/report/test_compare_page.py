import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest

from loadgen.report.comparability import Objection
from loadgen.report.compare import metrics
from loadgen.report.compare_page import change_text, label, render_compare_page
from loadgen.report.run_facts import HEADLINES, summary_of
from loadgen.results.difference import PATHS, Difference, Differences, find_differences
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.verdict import Check
from support import sample_runs


@cache
def run(num_requests: int = 500, rps: float = 4.0, seed: int = 1) -> RunResult:
    made = sample_runs.run(num_requests, rps, seed, failing=0.0)
    config = made.info.config | {"goodput": {"ttft": 50.0}}
    info = msgspec.structs.replace(made.info, seed=seed, requested_rps=rps, config=config)
    return analyse_run(replace(made, info=info))


def changed(result: RunResult, **info: Any) -> RunResult:
    return replace(result, info=msgspec.structs.replace(result.info, **info))


def page(runs: Mapping[str, RunResult], objections: tuple[Objection, ...] = ()) -> str:
    differences = {
        letter: find_differences(runs["A"], of, ("A", letter)) for letter, of in runs.items() if letter != "A"
    }
    return render_compare_page(runs, differences, objections)


PAIR = {"A": run(), "B": run(1000, 8.0, 2)}


def words(html: str) -> str:
    """The text of a page without its charts' data, its style and its script."""
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", without).split())


def test_every_difference_of_the_terminal_is_on_the_page_by_its_name() -> None:
    text = words(page(PAIR))
    shown = [path for path in metrics([[summary_of(of)] for of in PAIR.values()]) if path in PATHS]
    assert len(shown) > 25
    assert [path for path in shown if label(path) not in text] == []
    assert len({label(path) for path in PATHS}) == len(PATHS)


def test_the_first_words_say_what_changed_and_the_verdict_of_each_run() -> None:
    text = words(page(PAIR))
    head = text[: text.index("What was compared")]
    assert re.search(r"B differs from A in \d+ of \d+ numbers, by more than chance", head)
    assert "TTFA" not in text, "which is TTFT where nothing is reasoning"
    assert all(f"{letter}: {HEADLINES[summary_of(of).verdict.status]}" in head for letter, of in PAIR.items())
    assert "SIMULATED" in head
    same = words(page({"A": run(), "B": run()}))
    assert re.search(r"No difference of B from A was shown in \d+ numbers", same)
    assert "mixed.jsonl at 4 requests/s: A and B" in same


def test_what_differs_in_the_runs_is_marked_and_what_does_not_is_not() -> None:
    html = page(PAIR)
    assert '<th scope="row">seed ≠</th>' in html and "<mark>2</mark>" in html
    assert '<th scope="row">model</th>' in html and "<mark>llama" not in html


def test_objections_come_before_all_else() -> None:
    text = words(page(PAIR, (Objection("rate", "B was asked for another rate than A"),)))
    assert text.index("another rate than A") < text.index("B differs from A")
    assert "these words" not in words(page(PAIR, (Objection("failed", "these words are in the verdict"),)))
    mixed = words(page({"A": run(), "B": changed(run(), server={"simulated": False})}))
    assert "Simulated and measured runs are side by side" in mixed


@pytest.mark.parametrize(
    ("path", "difference", "half", "kind", "said"),
    [
        ("ttft_s.p99", 0.02, 0.01, "worse", "TTFT p99: +20 % ± 10 %, higher"),
        ("ttft_s.p99", -0.02, 0.01, "better", "TTFT p99: −20 % ± 10 %, lower"),
        ("ttft_s.p99", 0.02, 0.03, "", "TTFT p99: +20 % ± 30 %, no difference shown"),
        ("goodput.rps", 0.02, 0.01, "better", "Goodput, requests/s: +20 % ± 10 %, higher"),
        ("goodput.rps", -9.0, 0.01, "worse", "Goodput, requests/s: −9,000 % ± 10 %, lower"),
        ("energy.mean_watts", 0.02, 0.01, "other", "Mean power, W: +20 % ± 10 %, higher"),
    ],
)
def test_an_interval_is_drawn_within_the_scale_and_said_in_words(
    path: str, difference: float, half: float, kind: str, said: str
) -> None:
    row = Difference(path=path, a=0.1, b=0.1 + difference, difference=difference, half_width=half)
    html = render_compare_page(PAIR, {"B": Differences(paired=False, rows={path: row})}, ())
    (drawn,) = re.findall(r'<svg class="interval([^"]*)" role="img" aria-label="([^"]*)">(.*?)</svg>', html)
    assert (drawn[0].strip(), drawn[1]) == (kind, said)
    places = [float(place) for place in re.findall(r'(?:x1|x2|cx)="([\d.]+)%"', drawn[2])]
    assert len(places) == 5 and all(0 <= place <= 100 for place in places)


def test_distributions_and_times_of_both_runs_share_a_chart_and_the_page_needs_nothing_else() -> None:
    html = page(PAIR)
    for key in ("of-ttft", "of-tpot", "of-e2e", "of-energy-per-request", "ttft-p50", "ttft-p99", "output", "power"):
        assert f'id="{key}"' in html
    assert html.count('<script type="application/json">') >= 8
    assert not re.search(r'(?:src|href)="(?!#)', html)


def test_a_number_that_supports_no_claim_is_struck() -> None:
    summary = summary_of(run())
    failed = Check(name="energy", status="failed", reason="half of it is missing", rows=["energy"])
    checks = [failed if check.name == "energy" else check for check in summary.verdict.checks]
    verdict = msgspec.structs.replace(summary.verdict, status="failed", checks=checks)
    invalid = replace(run(), summary=msgspec.structs.replace(summary, verdict=verdict))
    html, struck = page({"A": run(), "B": invalid}), [path for path in PATHS if path.startswith("energy")]
    for heading in ("B", "B−A", "change from A"):
        assert html.count(f'<td data-label="{heading}"><s>') == len(struck)
    assert '<td data-label="95 % interval"><s>' in html and '<td data-label="A"><s>' not in html
    assert html.count("not valid</td>") == len(struck), "and it is not drawn"
    assert html.count("<s>") == page({"A": invalid, "B": run()}).count("<s>"), "whichever of the two is not valid"
    assert "<s>" not in page({"A": run(), "B": run()})


def test_hostile_names_are_text() -> None:
    hostile = changed(run(), server={"model": "<img src=x onerror=alert(1)>", "simulated": True}, run_id="<script>")
    html = page({"A": run(), "B": hostile}, (Objection("model", "<b>model</b>"),))
    assert "<img" not in html and "<b>" not in html and "&lt;img" in html


def test_runs_without_energy_or_completions_have_a_page() -> None:
    for other in (sample_runs.without_energy(), sample_runs.without_completions(), sample_runs.single()):
        html = page({"A": run(), "B": analyse_run(other)})
        assert "What was compared" in html and "Differences" in html


def test_three_runs_have_a_section_of_differences_for_each_later_one() -> None:
    text = words(page(PAIR | {"C": run(400, 4.0, 3)}))
    assert "Differences of B from A" in text and "Differences of C from A" in text


@pytest.mark.parametrize(
    ("a", "difference", "half", "text"),
    [
        (2.0, 0.2, 0.1, "+10 % ± 5.0 %"),
        (2.0, -0.002, None, "−0.10 %"),
        (2.0, 0.0, 0.0, "0 % ± 0 %"),
        (0.0, 1.0, 0.5, "-"),
        (None, None, None, "-"),
        (1.0, 24.0, 1.0, "+2,400 % ± 100 %"),
    ],
)
def test_a_change_is_in_per_cent_of_the_first_run(
    a: float | None, difference: float | None, half: float | None, text: str
) -> None:
    assert change_text(Difference(path="x", a=a, b=None, difference=difference, half_width=half)) == text
