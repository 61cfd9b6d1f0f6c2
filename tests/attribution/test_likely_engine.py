"""The engines' counters tell which of them served a request, as far as they can."""

import numpy as np
import pytest

from loadgen.attribution.likely_engine import engine_probabilities
from loadgen.telemetry.engine_sample import EngineSample
from loadgen.units import NS_PER_S
from support.attribution_runs import request


def counters(*rows: tuple[float, float, float]) -> list[EngineSample]:
    """Samples of (s, prompt tokens, output tokens)."""
    return [{"t_ns": t * NS_PER_S, "prompt_tokens": p, "generation_tokens": g} for t, p, g in rows]


FIRST = request(0, 100, [200, 1200, 2200], prompt=100)
SECOND = request(1, 1100, [1300, 1400, 1500, 2300], prompt=700)
A = counters((0, 0, 0), (1, 100, 1), (2, 100, 2), (3, 100, 3))
B = counters((0, 0, 0), (1, 0, 0), (2, 700, 3), (3, 700, 4))


def test_requests_apart_are_told_apart_for_sure() -> None:
    assert engine_probabilities([FIRST, SECOND], [A, B], [None, None]) == pytest.approx(np.eye(2), abs=1e-3)
    assert engine_probabilities([FIRST, SECOND], [B, A], [None, None]) == pytest.approx(np.eye(2)[::-1], abs=1e-3)


def test_requests_alike_at_the_same_time_are_as_likely_at_either() -> None:
    twins = [FIRST, request(1, 100, [200, 1200, 2200], prompt=100)]
    assert engine_probabilities(twins, [A, A], [None, None]) == pytest.approx(np.full((2, 2), 0.5))


def test_what_is_known_stands_and_tells_of_the_others() -> None:
    twins = [FIRST, request(1, 100, [200, 1200, 2200], prompt=100)]
    likely = engine_probabilities(twins, [A, A], [1, None])
    assert likely[0].tolist() == [0.0, 1.0]
    assert likely[1, 0] > 0.99


@pytest.mark.parametrize("engines", [[[], []], [A[:1], B[:1]]])
def test_without_counters_nothing_is_likely(engines: list[list[EngineSample]]) -> None:
    assert np.isnan(engine_probabilities([FIRST], engines, [None])).all()


def test_a_request_without_tokens_is_at_no_likely_engine() -> None:
    likely = engine_probabilities([FIRST, request(1, 100, [])], [A, B], [None, None])
    assert likely[0, 0] > 0.99
    assert np.isnan(likely[1]).all()


def test_tokens_of_other_clients_draw_no_request_to_an_engine() -> None:
    busy = counters((0, 0, 0), (1, 0, 0), (2, 9000, 900), (3, 9999, 999))
    assert engine_probabilities([FIRST], [A, busy], [None])[0, 0] > 0.99


def test_a_restart_of_an_engine_takes_nothing_from_what_it_counted_before() -> None:
    restarted = counters((0, 900, 90), (1, 1000, 91), (2, 0, 1), (3, 0, 2))
    assert engine_probabilities([FIRST], [restarted, B], [None])[0, 0] > 0.9


def test_an_engine_that_counts_nothing_has_what_no_other_can_have() -> None:
    likely = engine_probabilities([FIRST, SECOND], [A, []], [None, None])
    assert np.isnan(likely[0]).all()  # A can have it, and so can the other one
    assert likely[1, 1] > 0.9


def test_tokens_that_no_engine_counted_place_no_request() -> None:
    still = counters((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0))
    assert engine_probabilities([FIRST], [still, A], [None])[0, 1] > 0.99
    assert np.isnan(engine_probabilities([SECOND], [still, A], [None])).all()


def test_tokens_after_the_last_sample_are_not_taken_for_a_prompt_in_the_first_window() -> None:
    busy = counters((0, 0, 0), (1, 900, 0), (2, 900, 0), (3, 900, 0))
    late = request(0, 3100, [3200], prompt=100)
    assert np.isnan(engine_probabilities([late], [busy, B], [None])).all()
