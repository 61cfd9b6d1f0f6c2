"""Prompts in the steps that computed them, by spans that an engine with a budget of tokens would send."""

import numpy as np
import pytest

from loadgen.attribution.cost_model import step_features
from loadgen.attribution.span_chunks import MIN_BOUNDARIES, crossings_of, prefill_progress
from loadgen.attribution.span_steps import Phases, cadence_of, slot_steps
from loadgen.units import NS_PER_MS

STEP_NS = 100 * NS_PER_MS
UNSEEN_NS = np.zeros((0, 2), np.int64)


def engine(lengths: list[int], budget: int, streams: int = 0) -> tuple[Phases, list[int]]:
    """Return the phases of prompts that an engine computes in order, beside streams that decode all the time, and the
    tokens of prompts in each of its steps, of 100 ms."""
    rows: list[tuple[int, int, bool, float]] = []
    steps: list[int] = []
    room = 0
    for tokens in lengths:
        if room == 0:
            steps.append(0)
            room = budget - streams
        begin, waiting = len(steps) - 1, tokens
        while waiting:
            if room == 0:
                steps.append(0)
                room = budget - streams
            part = min(waiting, room)
            steps[-1] += part
            room, waiting = room - part, waiting - part
        rows.append((begin * STEP_NS, len(steps) * STEP_NS, True, tokens))
    rows += [(0, len(steps) * STEP_NS, False, len(steps))] * streams
    start_ns, end_ns, prefilling, done = (np.array(column) for column in zip(*rows, strict=True))
    context = np.zeros(len(rows))
    return Phases(np.arange(len(rows)), start_ns, end_ns, prefilling, done.astype(float), context), steps


def prompts_by_step(phases: Phases, true: list[int], from_step: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the prompt tokens in each step that spans show: spread evenly, by room, and in truth."""
    from_ns, end_ns = from_step * STEP_NS, len(true) * STEP_NS
    cadence = cadence_of(phases)
    progress = prefill_progress(phases, cadence, from_ns, end_ns)
    even, full = (slot_steps(phases, cadence, from_ns, end_ns, STEP_NS, UNSEEN_NS, None, p) for p in (None, progress))
    assert (even.start_ns == full.start_ns).all()
    seen = np.add.reduceat(true, full.start_ns // STEP_NS)
    return step_features(even)[:, 1], step_features(full)[:, 1], seen


def lengths(seed: int = 0, low: int = 200, high: int = 3000) -> list[int]:
    return np.random.default_rng(seed).integers(low, high, 150).tolist()


@pytest.mark.parametrize("budget", [2048, 8192])
@pytest.mark.parametrize("streams", [0, 100])
@pytest.mark.parametrize("high", [3000, 6000])
def test_a_prompt_that_crosses_a_boundary_is_in_the_steps_that_had_room_for_it(
    budget: int, streams: int, high: int
) -> None:
    """Some of these prompts take three steps of the smaller budget."""
    phases, true = engine(lengths(high=high), budget, streams)
    even, full, seen = prompts_by_step(phases, true)
    assert full == pytest.approx(seen, abs=2)
    assert np.abs(even - seen).max() > 100, "else there is nothing to find"


@pytest.mark.parametrize("from_step", [5, 30])
def test_steps_before_the_time_that_is_looked_at_need_not_be_known(from_step: int) -> None:
    """Of the prompt that crosses its beginning nobody knows how much was done, until a step shows that it was less."""
    phases, true = engine(lengths(), 2048)
    known = phases.end_ns > from_step * STEP_NS
    late = Phases(*(column[known] for column in phases))
    even, full, seen = prompts_by_step(late, true, from_step)
    assert np.mean(np.abs(full - seen) > 5) < 0.1 and np.mean(np.abs(even - seen) > 5) > 0.3


def test_all_tokens_of_a_prompt_are_somewhere() -> None:
    phases, true = engine(lengths(), 8192)
    _, full, _ = prompts_by_step(phases, true)
    assert full.sum() == pytest.approx(phases.tokens.sum(), rel=1e-6)


@pytest.mark.parametrize("budget", [3000, 9000])
def test_a_budget_that_nobody_sets_is_not_guessed(budget: int) -> None:
    phases, true = engine(lengths(low=50, high=400), budget)
    cadence = cadence_of(phases)
    assert prefill_progress(phases, cadence, 0, len(true) * STEP_NS) is None


def test_steps_with_room_for_prompts_that_cross_them_have_no_budget() -> None:
    """Other clients' prompts were in these steps: a step is as empty as it is long ago that it was full."""
    phases, true = engine(lengths(), 2048)
    strangers = np.random.default_rng(1).random(len(phases.tokens)) < 0.5
    own = Phases(*(column[~strangers] for column in phases))
    assert prefill_progress(own, cadence_of(own), 0, len(true) * STEP_NS) is None


def test_a_boundary_that_several_prompts_cross_is_no_evidence_for_any_of_them() -> None:
    """Spans whose instants are not exact may overlap."""
    edges_ns = STEP_NS * np.arange(1, 4)
    crossing = Phases(np.arange(2), np.array([0, STEP_NS]), np.array([3, 4]) * STEP_NS, np.ones(2, bool),
                      np.full(2, 3000.0), np.zeros(2))  # fmt: skip
    assert crossings_of(crossing, np.arange(2), edges_ns).owner.tolist() == [0, -1, 1]


def test_few_boundaries_and_none_tell_no_budget() -> None:
    phases, true = engine([1000] * MIN_BOUNDARIES, 2048)
    assert prefill_progress(phases, cadence_of(phases), 0, len(true) * STEP_NS) is None
    apart, true = engine([2048] * 100, 2048)
    assert prefill_progress(apart, cadence_of(apart), 0, len(true) * STEP_NS) is None
    nothing = Phases(*(column[:0] for column in phases))
    assert prefill_progress(nothing, cadence_of(nothing), 0, STEP_NS) is None
