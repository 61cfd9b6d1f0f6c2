"""What a pair of runs with and without prefix caching says that the cache saved."""

import msgspec
import pytest

from loadgen.report.cache_difference import cache_difference, saved_between
from loadgen.results.summary import CacheEnergy, Summary
from support import sample_runs
from support.session_runs import analysed, turn


def run(
    cached: int | None, attributed: float | None, saved: float | None = None, error: float | None = None
) -> Summary:
    made = sample_runs.run(10).summary
    assert made is not None
    energy = msgspec.structs.replace(
        made.energy,
        attributed_joules=attributed,
        measured_joules=None if attributed is None else attributed + 50,
        cache=CacheEnergy(saved_joules=saved, saved_se_joules=error),
    )
    return msgspec.structs.replace(
        made, energy=energy, tokens=msgspec.structs.replace(made.tokens, input=1000, cached=cached)
    )


def test_the_measured_difference_is_beside_that_of_the_law() -> None:
    text = cache_difference([run(0, 300.0, 0.0, 0.0)], [run(800, 200.0, 95.0, 3.0)], "B")
    assert text == (
        "Saved by the prefix cache: 80.0 % of the prompt tokens were cached in B, 0.0 % in A. Measured, the requests "
        "of B used 100 J less than those of A, and the counter 100 J less; by the law of B the cache saved 95.0 J "
        "± 3.00 J, 95.0 % of the measured difference."
    )


def test_the_order_of_the_runs_does_not_matter() -> None:
    text = cache_difference([run(800, 200.0, 95.0, 3.0)], [run(0, 300.0, 0.0, 0.0)], "C") or ""
    assert "80.0 % of the prompt tokens were cached in A, 0.0 % in C" in text and "of A used 100 J less" in text


def test_where_both_have_a_cache_the_law_gives_the_difference_of_what_it_saved() -> None:
    text = cache_difference([run(200, 260.0, 30.0, 3.0)], [run(800, 200.0, 95.0, 4.0)], "B") or ""
    assert "the cache saved 65.0 J ± 5.00 J" in text


def test_a_side_that_counts_no_cached_tokens_is_named() -> None:
    text = cache_difference([run(None, 300.0)], [run(800, 200.0, 95.0, 3.0)], "B") or ""
    assert "0.0 % in A (A counts none)" in text and "the cache saved 95.0 J" in text


def test_a_cache_that_costs_more_is_said_to() -> None:
    text = cache_difference([run(0, 200.0, 0.0, 0.0)], [run(800, 210.0, 95.0, 3.0)], "B") or ""
    assert "of B used 10.0 J more than those of A" in text and "of the measured difference" not in text


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (run(None, 300.0), run(None, 200.0)),
        (run(795, 300.0, 95.0), run(800, 200.0, 95.0)),
        (run(0, None), run(800, None)),
        (run(0, 300.0, 0.0), run(800, 200.0, None)),
    ],
    ids=["not counted", "cached alike", "no energy", "no law"],
)
def test_there_is_no_sentence_where_nothing_can_be_said(a: Summary, b: Summary) -> None:
    assert cache_difference([a], [b], "B") is None


def test_runs_that_did_not_answer_the_same_requests_are_compared_over_those_that_both_answered() -> None:
    """Three turns of a session; the run without caching was ended before the third."""
    times = ((0.0, 1.0), (2.0, 3.0), (4.0, 5.0))
    cached = analysed([turn(i, "a", *time, cached=800 * (i > 0)) for i, time in enumerate(times)])
    whole = [turn(i, "a", *time, cached=0) for i, time in enumerate(times)]
    request, record = whole[-1]
    unsent = msgspec.structs.replace(
        record, sent_ns=None, first_token_ns=None, last_token_ns=None, finished_ns=None, chunk_ns=[],
        input_tokens=None, cached_tokens=None, output_tokens=None, error="not_sent",
    )  # fmt: skip
    text = saved_between([analysed([*whole[:-1], (request, unsent)])], [cached], "B") or ""
    assert text.startswith("Saved by the prefix cache over the 2 requests that both answered: 40.0 % of the prompt")
    assert "and the counter" not in text
    assert "53.3 %" in (saved_between([analysed(whole)], [cached], "B") or "")
