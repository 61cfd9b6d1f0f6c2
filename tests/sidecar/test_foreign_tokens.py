"""Other clients' tokens: what the engine counted in an interval beyond the spans', and nothing carried further."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.test_span_chunks import STEP_NS, UNSEEN_NS, engine, lengths
from loadgen.attribution.cost_model import step_features
from loadgen.attribution.span_steps import Phases, cadence_of, phases_of, slot_steps
from loadgen.sidecar.engine_progress import Intervals, Progress
from loadgen.sidecar.foreign_tokens import (
    EngineView,
    ForeignWork,
    counts_at_end,
    ended_tokens,
    engine_view,
    foreign_tokens,
    foreign_work,
    rebuilt_steps,
    spread_tokens,
    with_foreign,
)
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_S, ns_from_s, s_from_ns
from sidecar.test_ledger import span

EDGES = np.arange(5) * NS_PER_S
STEADY = Progress(EDGES, np.arange(5) * 10.0)
"""Ten iterations a second."""
TOKENS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=30)


class Counted(NamedTuple):
    """What an engine counted in four seconds."""

    generated: tuple[float, ...]
    prompts: tuple[float, ...] = (0, 0, 0, 0)
    missing: tuple[float, ...] = (0, 0, 0, 0, 0)
    announced: bool = True

    def intervals(self) -> Intervals:
        numbers = (np.array(column, dtype=np.float64) for column in (self.generated, self.prompts))
        return Intervals(EDGES, *numbers, np.zeros(4), np.array(self.missing, dtype=np.float64), self.announced)  # type: ignore[misc]


def phases(*spans_s: tuple[float, float, int]) -> Phases:
    """Spans as (start, end, output tokens); a prompt of 100 tokens is read in a tenth of the time."""
    return phases_of([span(str(k), start, end, output) for k, (start, end, output) in enumerate(spans_s)])


@pytest.mark.parametrize(
    ("engine", "spans", "foreign"),
    [
        ([100, 100], [0, 0], [100, 100]),
        ([100, 100], [50, 100], [50, 0]),
        ([100, 100], [100, 100], [0, 0]),
        ([0, 0], [50, 50], [0, 0]),
        ([120, 80], [100, 100], [0, 0]),  # the same tokens, counted an interval early
        ([80, 120], [100, 100], [0, 0]),  # or late
        ([100, 80, 140], [100, 100, 100], [0, 0, 20]),
        ([130, 70, 130], [100, 100, 100], [0, 0, 30]),  # what one interval lacks is settled once
        ([200, 100, 0], [100, 100, 100], [100, 0, 0]),  # two intervals apart: not the same tokens
        ([], [], []),
    ],
)
def test_what_the_engine_counted_beyond_spans_is_foreign_but_for_what_a_neighbour_lacks(
    engine: list[float], spans: list[float], foreign: list[float]
) -> None:
    assert foreign_tokens(np.array(engine, float), np.array(spans, float)).tolist() == foreign


@given(TOKENS)
def test_no_interval_has_more_foreign_tokens_than_the_engine_counted_in_it(rows: list[tuple[int, int]]) -> None:
    engine, spans = np.array(rows, dtype=np.float64).T
    foreign = foreign_tokens(engine, spans)
    assert ((foreign >= 0) & (foreign <= np.maximum(engine - spans, 0))).all()


@given(TOKENS, TOKENS, st.integers(0, 10_000))
def test_a_burst_without_spans_changes_nothing_from_the_second_interval_after_it(
    before: list[tuple[int, int]], after: list[tuple[int, int]], burst: int
) -> None:
    rows = [*before, (burst, 0), (0, 0), *after]
    quiet = [*before, (0, 0), (0, 0), *after]
    with_burst, without = (
        foreign_tokens(*np.array(table, dtype=np.float64).T)[-len(after) :] for table in (rows, quiet)
    )
    assert with_burst.tolist() == without.tolist()


def test_a_span_has_its_first_token_after_its_prefill_and_then_one_an_iteration() -> None:
    two_speeds = Progress(EDGES, np.array([0.0, 10, 40, 50, 60]))
    spans = phases_of([span("a", 0, 3, 41, first_token_ns=NS_PER_S)])
    assert spread_tokens(EDGES, spans, two_speeds).tolist() == [1, 30, 10, 0]
    assert ended_tokens(EDGES, spans).tolist() == [0, 0, 41, 0]


def test_tokens_at_a_sample_are_of_the_interval_that_it_ends_and_others_outside_are_left_out() -> None:
    spans = phases((0, 2, 3), (3, 4, 5), (3, 4.5, 7))
    assert ended_tokens(EDGES, spans).tolist() == [0, 3, 0, 5]


@pytest.mark.parametrize(
    ("counted", "foreign"),
    [
        (Counted((10, 10, 16, 10)), [0, 0, 0, 0]),  # nobody else was there
        (Counted((10, 10, 16, 10), prompts=(0, 0, 9, 0)), [0, 0, 6, 0]),
        (Counted((10, 10, 16, 10), missing=(0, 0, 1, 0, 0)), [0, 0, 6, 0]),
        (Counted((10, 10, 16, 10), missing=(0, 0, 0, 1, 0)), [0, 0, 6, 0]),
        (Counted((10, 10, 16, 10), missing=(1, 1, 0, 0, 1)), [0, 0, 0, 0]),
        (Counted((10, 10, 16, 10), announced=False), [0, 0, 6, 0]),
    ],
)
def test_an_interval_without_another_clients_prompt_or_request_has_no_foreign_token(
    counted: Counted, foreign: list[float]
) -> None:
    decoding = phases_of([span("a", -1, 5, 61, first_token_ns=-NS_PER_S, end_ns=5 * NS_PER_S)])
    progress = Progress(np.array([-1, 5]) * NS_PER_S, np.array([0.0, 60]))
    work = foreign_work(counted.intervals(), decoding, progress, at_end=False)
    assert work.spans.tolist() == pytest.approx([10, 10, 10, 10])
    assert work.foreign.tolist() == pytest.approx(foreign)


def test_prompts_are_counted_when_their_first_token_comes() -> None:
    work = foreign_work(
        Counted((0, 0, 0, 0), prompts=(150, 0, 30, 0)).intervals(), phases((0, 5, 2)), STEADY, at_end=False
    )
    assert work.prompts.tolist() == [50, 0, 30, 0]


@pytest.mark.parametrize(
    ("generated", "at_end"),
    [((10, 10, 10, 10), False), ((0, 0, 40, 0), True), ((10, 5, 0, 3), True), ((10, 5, 1, 0), False)],
)
def test_an_engine_whose_count_stands_still_while_spans_decode_counts_at_the_end(
    generated: tuple[float, ...], at_end: bool
) -> None:
    decoding = phases_of([span("a", 0, 3, 41, first_token_ns=0)])  # through three intervals of the four
    assert counts_at_end(Counted(generated).intervals(), decoding) is at_end


def test_a_span_counts_as_decoding_from_the_interval_after_its_first_token() -> None:
    """From 1 s on it decodes through two intervals, in which the engine counted nothing."""
    decoding = phases_of([span("a", 0.5, 3.5, 41, first_token_ns=NS_PER_S)])
    assert counts_at_end(Counted((9, 0, 0, 9)).intervals(), decoding)
    assert not counts_at_end(Counted((0, 9, 9, 0)).intervals(), decoding)


def test_an_engine_without_spans_is_taken_to_count_as_tokens_come() -> None:
    assert not counts_at_end(Counted((0, 0, 0, 0)).intervals(), phases())


def test_other_clients_are_members_of_our_steps_and_alone_in_the_others() -> None:
    """Ten iterations a second; one span decodes in the first half of each of two seconds."""
    ours = phases_of([span("a", 0, 0.5, 6, first_token_ns=0), span("b", 1, 1.5, 6, first_token_ns=NS_PER_S)])
    steps = slot_steps(ours, cadence_of(ours), 0, 4 * NS_PER_S, NS_PER_S // 10, np.zeros((0, 2), np.int64))
    intervals = Counted((0, 0, 0, 0), missing=(2, 2, 0, 0, 0)).intervals()
    work = ForeignWork(np.zeros(4), np.array([20.0, 5, 0, 10]), np.array([0.0, 0, 0, 300]))
    told = with_foreign(steps, EngineView(intervals, work, STEADY), at_end=False)
    assert told.iterations.sum() == pytest.approx(10)
    foreign = told.foreign
    assert foreign is not None and foreign.alone_ns is not None
    assert foreign.members.tolist() == pytest.approx([2, 0.5, 0, 1])
    assert foreign.steps.tolist() == pytest.approx([5, 5, 0, 10])
    assert (foreign.alone_ns / NS_PER_S).tolist() == pytest.approx([0.5, 0.5, 0, 1])
    assert foreign.decode.tolist() == [20, 5, 0, 10] and foreign.prefill.tolist() == [0, 0, 0, 300]
    at_end = with_foreign(steps, EngineView(intervals, work, STEADY), at_end=True).foreign
    assert at_end is not None
    assert at_end.decode.tolist() == pytest.approx([20, 10, 0, 10]), "a token an iteration for each request"


def test_without_other_clients_a_step_has_the_engines_iterations_and_nothing_else() -> None:
    ours = phases_of([span("a", 0, 1, 6, first_token_ns=0)])
    steps = slot_steps(ours, cadence_of(ours), 0, NS_PER_S, NS_PER_S // 5, np.zeros((0, 2), np.int64))
    view = EngineView(Counted((5, 0, 0, 0)).intervals(), ForeignWork(*np.zeros((3, 4))), STEADY)
    told = with_foreign(steps, view, at_end=False)
    assert told.foreign is None
    assert told.iterations.tolist() == pytest.approx([2, 2, 2, 2, 2])


@pytest.mark.parametrize(
    ("start_s", "end_s", "edges_s"),
    [(3, 5, [2, 3, 4, 5, 6]), (3.5, 4.5, [2, 3, 4, 5, 6]), (0, 1, [0, 1, 2]), (8.5, 9, [7, 8, 9]), (20, 30, [8, 9])],
)
def test_a_view_has_the_intervals_around_a_portion_and_one_more_on_either_side(
    start_s: float, end_s: float, edges_s: list[int]
) -> None:
    samples = [{"t_ns": second * NS_PER_S, "generation_tokens": float(second)} for second in range(10)]
    view = engine_view(samples, [], ns_from_s(start_s), ns_from_s(end_s), at_end=False)
    assert view is not None
    assert (view.intervals.edges_ns / NS_PER_S).tolist() == edges_s


def test_a_step_across_a_sample_is_in_both_intervals_by_its_time() -> None:
    ours = phases_of([span("a", 0.5, 1.5, 2, first_token_ns=NS_PER_S // 2)])
    steps = slot_steps(ours, cadence_of(ours), 0, 2 * NS_PER_S, 2 * NS_PER_S, np.zeros((0, 2), np.int64))
    assert steps.count == 1
    work = ForeignWork(np.zeros(4), np.full(4, 4.0), np.zeros(4))
    foreign = with_foreign(steps, EngineView(Counted((9, 9, 9, 9)).intervals(), work, STEADY), at_end=False).foreign
    assert foreign is not None and foreign.alone_ns is not None
    assert foreign.steps.tolist() == pytest.approx([5, 5, 10, 10])
    assert (foreign.alone_ns / NS_PER_S).tolist() == pytest.approx([0.5, 0.5, 1, 1])


def test_two_samples_are_enough_for_a_view() -> None:
    view = engine_view([{"t_ns": t, "generation_tokens": 5.0 * t} for t in (1, 2)], [], 1, 2, at_end=False)
    assert view is not None and view.work.foreign.tolist() == [5]


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [{"t_ns": 0, "generation_tokens": 1.0}],
        [{"t_ns": 0}, {"t_ns": 1}],
        [{"t_ns": 0, "generation_tokens": 1.0}, {"t_ns": 1, "generation_tokens": 1.0}, {"t_ns": 2}],  # no longer
    ],
)
def test_an_engine_that_does_not_count_tokens_has_no_view(samples: list[dict[str, float]]) -> None:
    assert engine_view(samples, [], 0, 1, at_end=False) is None


DECODING = [span("a", 0, 0.5, 6, first_token_ns=0), span("b", 1, 1.5, 6, first_token_ns=NS_PER_S)]
"""Ten iterations of a tenth of a second, in the first halves of two seconds."""
CONTEXT = 100 + 5 / 2
"""Mean tokens that an iteration of theirs reads: the prompt's, and half of the five that it makes one by one."""
PREFILLING = [span("c", 2, 2.9, 1, first_token_ns=ns_from_s(2.9))]


@pytest.mark.parametrize(
    ("ours", "missing", "alone_s", "context"),
    [
        (DECODING, (0, 0, 0, 0, 0), [0.2, 0.5, 0, 0.4], CONTEXT),  # a tenth of a second each, and no more than is free
        (DECODING, (1, 0, 0, 0, 1), [0.2, 0.5, 0, 0.4], CONTEXT),
        (DECODING, (0, 1, 0, 1, 0), [0.2, 0.5, 0, 0.4], CONTEXT),
        (DECODING, (1, 1, 0, 1, 1), [0.5, 0.5, 0, 1], CONTEXT),  # a request of theirs throughout: all that is free
        ([*DECODING, *PREFILLING], (0, 0, 0, 0, 0), [0.2, 0.5, 0, 0.4], CONTEXT),  # a prefill is no measure
        (PREFILLING, (0, 0, 0, 0, 0), [1, 1, 0, 1], 0),  # without a measure: all that is free
    ],
)
def test_other_clients_iterations_alone_last_as_long_as_those_in_which_spans_only_decode(
    ours: list[RequestSpan], missing: tuple[float, ...], alone_s: list[float], context: float
) -> None:
    """Beside the spans' the engine ran 2, 20, 0 and 4 iterations. In the last interval others had only prompts."""
    progress = Progress((np.array([0, 0.5, 1, 1.5, 2, 3, 4]) * NS_PER_S).astype(np.int64),
                        np.array([0.0, 5, 7, 12, 32, 32, 36]))  # fmt: skip
    steps = slot_steps(
        phases_of(ours), cadence_of(phases_of(ours)), 0, 4 * NS_PER_S, NS_PER_S // 10, np.zeros((0, 2), np.int64)
    )
    work = ForeignWork(np.zeros(4), np.array([2.0, 20, 0, 0]), np.array([0.0, 0, 0, 300]))
    view = EngineView(Counted((0, 0, 0, 0), missing=missing).intervals(), work, progress)
    foreign = with_foreign(steps, view, at_end=False).foreign
    assert foreign is not None and foreign.alone_ns is not None
    assert (foreign.alone_ns / NS_PER_S).tolist() == pytest.approx(alone_s)
    assert foreign.context == pytest.approx(context), "the mean of steps that decode"


def test_prompts_alone_are_other_clients_too() -> None:
    steps = slot_steps(phases(), cadence_of(phases()), 0, 4 * NS_PER_S, NS_PER_S, np.zeros((0, 2), np.int64))
    work = ForeignWork(np.zeros(4), np.zeros(4), np.array([0.0, 0, 0, 300]))
    foreign = with_foreign(steps, EngineView(Counted((0, 0, 0, 0)).intervals(), work, STEADY), at_end=False).foreign
    assert foreign is not None and foreign.steps.tolist() == [0, 0, 0, 10]


@pytest.mark.parametrize("chunked", [False, True])
def test_prompts_are_in_the_steps_that_had_room_for_them_where_that_is_asked_for(chunked: bool) -> None:
    prefills, tokens = engine(lengths(), 2048)
    spans = [
        span(str(k), s_from_ns(start_ns), s_from_ns(end_ns), 1, first_token_ns=end_ns, input_tokens=prompt)
        for k, (start_ns, end_ns, prompt) in enumerate(
            zip(prefills.start_ns.tolist(), prefills.end_ns.tolist(), prefills.tokens.tolist(), strict=True)
        )
    ]
    steps = rebuilt_steps(
        spans, None, 0, len(tokens) * STEP_NS, UNSEEN_NS, 10_000, at_end=False, chunked=chunked
    )  # fmt: skip
    off = np.abs(step_features(steps)[:, 1] - np.add.reduceat(tokens, steps.start_ns // STEP_NS))
    assert (off.max() < 2) == chunked
