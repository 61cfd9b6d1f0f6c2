"""The slowest and the costliest requests, and what they have in common: on runs whose cause is known."""

import math

import numpy as np
import pytest

from loadgen.report.request_words import why, why_costly, why_slow
from loadgen.results.extremes import Extremes, costliest, largest, share_of_largest, slowest
from loadgen.results.request_columns import RequestColumns
from loadgen.stats.arrays import Floats

N = 1_000


def columns(n: int = N, **changes: Floats) -> RequestColumns:
    """A quiet run of n requests, one a second, all alike but for small chance; with these columns instead."""
    rng = np.random.default_rng(1)
    quiet: dict[str, Floats] = {
        "sent_s": np.arange(n, dtype=float),
        "ttft_s": rng.uniform(0.04, 0.05, n),
        "tpot_s": np.full(n, 0.01),
        "e2e_s": np.full(n, 1.0),
        "lag_s": np.full(n, 1e-4),
        "input_tokens": rng.integers(480, 520, n).astype(float),
        "cached_tokens": np.full(n, 400.0),
        "output_tokens": np.full(n, 100.0),
        "in_flight": np.full(n, 4.0),
        "mean_in_flight": np.full(n, 5.0),
        "waiting": np.zeros(n),
        "queue": np.zeros(n),
        "preemptions": np.zeros(n),
        "joules": rng.uniform(50, 55, n),
        "se_joules": np.full(n, 1.0),
        "prefill_joules": np.full(n, 10.0),
        "decode_joules": np.full(n, 40.0),
    }
    return RequestColumns(index=np.arange(n) * 2, **{**quiet, **changes})


def at(rows: list[int] | range, value: float, usual: float = 0.0, n: int = N) -> Floats:
    values = np.full(n, usual, dtype=float)
    values[list(rows)] = value
    return values


def found(made: RequestColumns) -> Extremes:
    slow = slowest(made)
    assert slow is not None
    return slow


def standing(extremes: Extremes) -> set[str]:
    return {trait.name for trait in extremes.traits if trait.stands_out}


BURST = range(420, 430)
SPREAD = range(0, N, 100)
SLOW_BURST, SLOW_SPREAD = at(BURST, 2.0, 0.05), at(SPREAD, 2.0, 0.05)


@pytest.mark.parametrize(
    ("made", "traits", "sentence"),
    [
        (
            columns(ttft_s=SLOW_BURST, queue=at(BURST, 33), waiting=at(BURST, 40)),
            {"queue", "waiting"},
            "8 of the 10 slowest were sent between 420.00 and 427.00 s, while up to 33 requests waited in the "
            "engine's queue.",
        ),
        (
            columns(ttft_s=SLOW_BURST, queue=at([], 0, math.nan), waiting=at(BURST, 40)),
            {"waiting"},
            "8 of the 10 slowest were sent between 420.00 and 427.00 s, while up to 40 other requests waited for a "
            "first token.",
        ),
        (
            columns(ttft_s=SLOW_SPREAD, input_tokens=at(SPREAD, 8192, 500)),
            {"input_tokens", "cached_share"},
            "The 10 slowest had long prompts (median 8,192 tokens, of all requests 500) and had little of their "
            "prompts cached (median 4.9 %, of all requests 80.0 %).",
        ),
        (
            columns(ttft_s=SLOW_SPREAD, cached_tokens=at(SPREAD, 0, 400)),
            {"cached_share"},
            "The 10 slowest had little of their prompts cached (median 0.0 %, of all requests",
        ),
        (
            columns(ttft_s=SLOW_SPREAD, lag_s=at(SPREAD, 0.3, 1e-4)),
            {"lag_s"},
            "The 10 slowest were sent late by the client (median 300 ms, of all requests 100 µs).",
        ),
        (
            columns(ttft_s=SLOW_SPREAD, lag_s=at(SPREAD, 0.012, 1e-4)),
            {"lag_s"},
            "The 10 slowest have nothing in common that the recorded numbers show.",
        ),
        (
            columns(ttft_s=SLOW_SPREAD, preemptions=at(SPREAD, 3)),
            {"preemptions"},
            "The 10 slowest ran while the engine preempted requests (median 3, of all requests 0).",
        ),
        (
            columns(ttft_s=SLOW_BURST),
            set(),
            "8 of the 10 slowest were sent between 420.00 and 427.00 s.",
        ),
        (
            columns(ttft_s=SLOW_SPREAD),
            set(),
            "The 10 slowest have nothing in common that the recorded numbers show.",
        ),
        (columns(), set(), "There is little to explain: the TTFT of the 10 slowest begins at 1.1"),
    ],
    ids=[
        "queue",
        "queue seen by the client",
        "long prompts",
        "cold",
        "client",
        "client hardly",
        "preempted",
        "burst",
        "none",
        "alike",
    ],
)
def test_the_cause_of_a_slow_tail_is_found(made: RequestColumns, traits: set[str], sentence: str) -> None:
    slow = found(made)
    assert standing(slow) == traits
    assert why_slow(slow).startswith(sentence)


def test_the_slowest_are_one_in_a_hundred_or_ten_or_a_tenth_and_none_of_too_few() -> None:
    sizes = {n: len(found(columns(n)).rows) for n in (20, 90, 400, 1_000, 5_001)}
    assert sizes == {20: 2, 90: 9, 400: 10, 1_000: 10, 5_001: 51}
    assert slowest(columns(19)) is None
    assert slowest(columns(ttft_s=np.full(N, math.nan))) is None


def test_requests_without_the_value_are_not_compared() -> None:
    ttft = np.where(np.arange(N) < 500, 0.05, math.nan)
    assert found(columns(ttft_s=ttft)).of == 500


@pytest.mark.parametrize("seed", range(20))
def test_chance_makes_no_cause_and_seldom_a_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = columns(
        ttft_s=rng.lognormal(-3, 1, N), queue=rng.integers(0, 5, N).astype(float), in_flight=rng.uniform(3, 9, N)
    )
    assert standing(found(made)) <= {"queue"}
    assert found(made).window is None


def test_dear_requests_are_explained_by_their_lengths_and_by_running_alone() -> None:
    long = at(SPREAD, 400.0, 50.0)
    made = columns(joules=long, output_tokens=at(SPREAD, 1024, 100), mean_in_flight=at(SPREAD, 1.0, 5.0))
    costly = costliest(made)
    assert costly is not None and standing(costly) == {"output_tokens", "mean_in_flight"}
    assert why_costly(made, costly) == (
        "The costliest 1 % of the requests have 7.5 % of the attributed energy, the costliest 10 % have 15.9 %. "
        "The 10 costliest had long answers (median 1,024 tokens, of all requests 100) and ran with fewer others, so "
        "that each engine step served fewer (median 1, of all requests 5)."
    )
    alike = costliest(columns())
    assert alike is not None and "no request is far from the median" in why_costly(columns(), alike)
    assert costliest(columns(joules=np.full(N, math.nan))) is None


def test_shares_of_the_largest_add_up_and_are_unknown_of_nothing() -> None:
    values = np.array([1.0, math.nan, 7.0, 2.0])
    assert share_of_largest(values, 0.01) == 0.7 and share_of_largest(values, 1) == 1
    assert math.isnan(share_of_largest(np.array([math.nan]), 0.1))


def test_the_largest_come_first_and_the_unknown_never() -> None:
    assert largest(np.array([1.0, math.nan, 3.0, 3.0]), 3).tolist() == [2, 3, 0]
    assert largest(np.array([math.nan]), 3).tolist() == []


@pytest.mark.parametrize(
    ("changes", "by", "reason"),
    [
        ({}, "ttft_s", "-"),
        ({"queue": at([7], 33), "waiting": at([7], 35)}, "ttft_s", "sent while 33 waited in the engine's queue"),
        ({"waiting": at([7], 35), "in_flight": at([7], 80, 4)}, "ttft_s", "sent while 35 waited for a first token"),
        ({"input_tokens": at([7], 8192, 500), "cached_tokens": at([7], 8000, 500)}, "ttft_s", "8,192 prompt tokens"),
        ({"cached_tokens": at([7], 0, 400)}, "ttft_s", "no cached prefix"),
        ({"lag_s": at([7], 0.012, 1e-4)}, "ttft_s", "the client sent it 12.0 ms late"),
        ({"lag_s": at([7], 0.012, 1e-4)}, "e2e_s", "-"),
        ({"output_tokens": at([7], 1024, 100)}, "e2e_s", "1,024 output tokens"),
        ({"output_tokens": at([7], 1024, 100)}, "ttft_s", "-"),
        ({"mean_in_flight": at([7], 1.2, 5)}, "joules", "its steps served fewer: 1.20 in flight on average"),
        ({"preemptions": at([7], 1)}, "ttft_s", "1 preemption in the engine meanwhile"),
        ({"queue": at([7], math.nan)}, "ttft_s", "-"),
    ],
)
def test_a_request_stands_out_for_a_reason_or_for_none(changes: dict[str, Floats], by: str, reason: str) -> None:
    assert why(columns(**changes), 7, by) == reason
