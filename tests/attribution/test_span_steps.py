"""Steps rebuilt from the phases in spans, by hand, in milliseconds."""

import numpy as np
import pytest

from loadgen.attribution.span_steps import (
    LONGEST_PREFILL_NS,
    LONGEST_SLOT_NS,
    SHORTEST_SLOT_NS,
    Phases,
    cadence_of,
    fewer_edges,
    first_token_of,
    phases_of,
    slot_edges,
    slot_steps,
)
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_MS

MS = NS_PER_MS


def phases(*rows: tuple[float, float, bool, float]) -> Phases:
    """Rows as (start ms, end ms, prefilling, tokens), each of its own request, after a context of 100 tokens."""
    return Phases(
        request=np.arange(len(rows)),
        start_ns=np.array([round(start * MS) for start, _, _, _ in rows], dtype=np.int64),
        end_ns=np.array([round(end * MS) for _, end, _, _ in rows], dtype=np.int64),
        prefilling=np.array([prefilling for _, _, prefilling, _ in rows], dtype=bool),
        tokens=np.array([tokens for _, _, _, tokens in rows], dtype=np.float64),
        context=np.full(len(rows), 100.0),
    )


def edges_of(rows: Phases, slot_ns: int) -> tuple[np.ndarray, np.ndarray]:
    return slot_edges(rows, cadence_of(rows), slot_ns)


def edges_ms(*rows: tuple[float, float, bool, float]) -> list[float]:
    return (edges_of(phases(*rows), 20 * MS)[0] / MS).tolist()


def span(
    prefill: int, first: int | None, end: int, tokens: int | None, prompt: int | None = None, cached: int | None = None
) -> RequestSpan:
    return RequestSpan(
        key="a", request_id=None, client=False, start_ns=0, prefill_ns=prefill, first_token_ns=first, end_ns=end,
        input_tokens=prompt, output_tokens=tokens, cached_tokens=cached, model=None, workload=None, ok=True,
    )  # fmt: skip


SPANS = [
    span(10, 20, 100, 5, prompt=50, cached=10),
    span(30, 40, 90, None, prompt=70),
    span(30, 40, 90, 0, prompt=70),
    span(100, None, 150, 1, prompt=80),  # a whole answer of one token: all of it is prefill
    span(200, None, 300, 4),  # no stream: the prefill lasts as long as each of four tokens
    span(400, 390, 500, 2, prompt=5, cached=9),  # clocks that disagree
]


def test_the_phases_of_requests_by_hand() -> None:
    assert list(zip(*(column.tolist() for column in phases_of(SPANS)), strict=True)) == [
        (0, 10, 20, True, 40, 10),
        (3, 100, 150, True, 80, 0),
        (4, 200, 225, True, 50, 0),  # at the 120 tokens in 60 ns of the others
        (5, 390, 390, True, 0, 9),
        (0, 20, 100, False, 4, 50),
        (4, 225, 300, False, 3, 50),
        (5, 390, 500, False, 1, 5),
    ]
    assert [first_token_of(request) for request in SPANS] == [20, None, None, 150, 225, 390]


@pytest.mark.parametrize(
    ("prompts", "prefills_ms", "tokens"),
    [
        ([None, None], [30, 60], [30, 60]),
        ([100, None], [50, 30], [100, 60]),
        ([100, 300, None], [50, 50, 10], [100, 300, 40]),
        ([0, None], [0, 5], [0, 5]),
        ([7, 9], [1, 0], [7, 9]),
    ],
)
def test_a_prompt_of_unknown_length_counts_by_the_time_of_its_prefill(
    prompts: list[int | None], prefills_ms: list[int], tokens: list[float]
) -> None:
    requests = [
        span(10 * MS, (10 + length) * MS, 500 * MS, 1, prompt=prompt)
        for prompt, length in zip(prompts, prefills_ms, strict=True)
    ]
    assert phases_of(requests).tokens.tolist() == pytest.approx(tokens)


def test_a_decode_is_cut_into_slots_between_prefills_and_has_a_token_in_each() -> None:
    """Of its ten tokens nine came in 90 ms without a prefill, and one with it, however long that took."""
    edges, progress = edges_of(phases((0, 10, True, 50), (10, 120, False, 10), (50, 70, True, 30)), 20 * MS)
    assert (edges / MS).tolist() == [0, 10, 30, 50, 70, 95, 120]
    assert (progress / MS).tolist() == pytest.approx([0, 10, 30, 50, 60, 85, 110])


@pytest.mark.parametrize(("first", "second", "edges"), [
    ((0, 10), (30, 40), [0, 10, 30, 40]),
    ((0, 10), (10, 40), [0, 10, 40]),  # they touch
    ((0, 30), (20, 40), [0, 20, 30, 40]),  # they overlap
    ((0, 40), (10, 20), [0, 10, 20, 40]),  # one lies in the other
    ((10, 20), (0, 40), [0, 10, 20, 40]),
    ((0, 10), (9, 40), [0, 9, 40]),  # a boundary closer than a slot to another is the same
    ((0, 10), (8, 40), [0, 8, 10, 40]),
    ((0, 40), (1, 39), [0, 40]),
    ((0, 40), (3, 37), [0, 3, 37, 40]),
    ((0, 10), (11, 40), [0, 10, 11, 40]),
])  # fmt: skip
def test_a_step_begins_where_a_prefill_begins_or_ends(
    first: tuple[float, float], second: tuple[float, float], edges: list[float]
) -> None:
    assert edges_ms((*first, True, 5), (*second, True, 5)) == edges


def test_a_step_beside_prefills_ends_where_an_answer_ends() -> None:
    assert edges_ms((0, 10, True, 5), (5, 30, True, 5), (20, 40, True, 5)) == [0, 5, 10, 20, 30, 40]
    assert edges_ms((0, 50, True, 5), (0, 20, False, 1)) == [0, 20, 50]


def test_a_prefill_of_no_length_stalls_no_one() -> None:
    edges, progress = edges_of(phases((0, 40, False, 4), (20, 20, True, 0)), 20 * MS)
    assert (edges / MS).tolist() == (progress / MS).tolist() == [0, 20, 40]


def test_phases_of_no_length_are_no_slot() -> None:
    rows = phases((7, 7, True, 5))
    assert edges_ms((7, 7, True, 5)) == [7]
    assert slot_steps(rows, cadence_of(rows), 0, 10 * MS, 20 * MS, np.zeros((0, 2), np.int64)).count == 0


@pytest.mark.parametrize("start_ms", [0, 1000])
@pytest.mark.parametrize(("over_ns", "stalled"), [(0, True), (1, False)])
def test_a_longer_prefill_does_not_stall_the_others(over_ns: int, stalled: bool, start_ms: int) -> None:
    length_ns = LONGEST_PREFILL_NS + over_ns
    _, progress = edges_of(phases((start_ms, start_ms + length_ns / MS, True, 5)), 20 * MS)
    assert progress[-1] == pytest.approx(LONGEST_SLOT_NS if stalled else length_ns)


def test_no_phase_is_no_slot() -> None:
    edges, progress = edges_of(phases(), 20 * MS)
    assert edges.tolist() == [0] and progress.tolist() == [0]


def test_slots_hold_the_tokens_of_their_time() -> None:
    """Two slots of 20 ms before the prefill, two of 25 ms after it; a token beside it."""
    rows = phases((0, 10, True, 50), (10, 110, False, 10), (50, 60, True, 30))
    steps = slot_steps(rows, cadence_of(rows), 0, 110 * MS, 20 * MS, np.zeros((0, 2), np.int64))
    assert (steps.start_ns / MS).tolist() == [0, 10, 30, 50, 60, 85]
    assert (steps.end_ns / MS).tolist() == [10, 30, 50, 60, 85, 110]
    decoding = steps.request == 1
    assert steps.step[decoding].tolist() == [1, 2, 3, 4, 5]
    assert steps.decode[decoding].tolist() == pytest.approx([2, 2, 1, 2.5, 2.5])
    assert steps.context[decoding].tolist() == pytest.approx([101, 103, 104.5, 106.25, 108.75])
    assert steps.prefill[~decoding].tolist() == pytest.approx([50, 30])
    assert steps.step[~decoding].tolist() == [0, 3]


def test_a_phase_brings_its_part_to_the_time_that_it_is_cut_to() -> None:
    rows = phases((1000, 1010, True, 50), (1010, 1110, False, 10), (1050, 1060, True, 30))
    steps = slot_steps(rows, cadence_of(rows), 1020 * MS, 1055 * MS, 20 * MS, np.zeros((0, 2), np.int64))
    assert (steps.start_ns / MS).tolist() == [1020, 1030, 1050]
    assert (steps.end_ns / MS).tolist() == [1030, 1050, 1055]
    assert steps.request.tolist() == [1, 1, 1, 2]
    assert steps.step.tolist() == [0, 1, 2, 2]
    assert steps.decode.tolist() == pytest.approx([1, 2, 0.5, 0])
    assert steps.prefill.tolist() == pytest.approx([0, 0, 0, 15])
    assert steps.context.tolist() == pytest.approx([101.5, 103, 104.25, 107.5])


def test_a_decode_goes_on_with_the_iterations_of_the_engine_where_those_are_known() -> None:
    """Three of four iterations run in the first half of its 100 ms."""
    rows, unseen_ns = phases((0, 100, False, 8)), np.zeros((0, 2), np.int64)

    def iterations(t_ns: np.ndarray) -> np.ndarray:
        return np.interp(t_ns, [0, 50 * MS, 100 * MS], [0, 3, 4])

    steps = slot_steps(rows, cadence_of(rows), 0, 100 * MS, 50 * MS, unseen_ns, iterations)
    assert steps.decode.tolist() == pytest.approx([6, 2])


def test_a_phase_that_ends_where_the_time_begins_is_in_no_step() -> None:
    rows = phases((0, 30, False, 3), (0, 100, False, 10), (80, 90, True, 5))
    steps = slot_steps(rows, cadence_of(rows), 30 * MS, 80 * MS, 20 * MS, np.zeros((0, 2), np.int64))
    assert steps.request.tolist() == [1] * steps.count


def test_a_long_prefill_is_spread_evenly_over_its_slots() -> None:
    rows = phases((1000, 2200, True, 120))
    steps = slot_steps(rows, cadence_of(rows), 1050 * MS, 1350 * MS, 100 * MS, np.zeros((0, 2), np.int64))
    assert (steps.end_ns / MS).tolist() == [1100, 1200, 1300, 1350]
    assert steps.prefill.tolist() == pytest.approx([5, 10, 10, 5])
    assert steps.context.tolist() == pytest.approx([107.5, 115, 125, 132.5])


@pytest.mark.parametrize(("tokens", "slot_ns"), [
    (10, 10 * MS),
    (1000, SHORTEST_SLOT_NS),
    (0.5, LONGEST_SLOT_NS),
])  # fmt: skip
def test_a_slot_is_the_time_of_a_decode_step_within_limits(tokens: float, slot_ns: int) -> None:
    assert cadence_of(phases((900, 1000, True, 1), (1000, 1100, False, tokens))).step_ns == slot_ns


def test_a_slot_is_the_longest_where_nothing_is_decoded() -> None:
    assert cadence_of(phases((0, 100, True, 50))).step_ns == LONGEST_SLOT_NS


@pytest.mark.parametrize(("tokens", "prefill", "step_ms"), [
    (10, (1020, 1060), 60 / 9),  # one token comes with the prefill, the others in 60 ms
    (10, (1010, 1085), 25 / 9),  # a quarter of its time is outside
    (10, (1010, 1086), 10),  # less than that: all of its time counts
    (2, (1020, 1060), 60),
    (1.5, (1020, 1060), 100 / 1.5),  # less than a token is outside
])  # fmt: skip
def test_a_step_lasts_as_long_as_a_token_takes_beside_no_prefill(
    tokens: float, prefill: tuple[float, float], step_ms: float
) -> None:
    rows = phases((*prefill, True, 5), (1000, 1100, False, tokens))
    assert cadence_of(rows).step_ns == pytest.approx(step_ms * MS)


def test_prefills_that_overlap_are_one_stretch() -> None:
    cadence = cadence_of(phases((10, 20, True, 5), (30, 70, True, 5), (50, 60, True, 5), (65, 80, True, 5)))
    assert (cadence.starts_ns // MS).tolist() == [10, 30]
    assert (cadence.ends_ns // MS).tolist() == [20, 80]


@pytest.mark.parametrize(("max_rows", "edges"), [
    (12, [0, 10, 20, 30, 40, 50, 60, 70, 80]),  # seven cuts of one phase, three of the other: 12 rows
    (11, [0, 10, 20, 40, 50, 70, 80]),  # seven of ten cuts, beside two rows for each phase
    (8, [0, 20, 40, 70, 80]),
    (4, [0, 80]),  # two rows for each phase are so many: one is left for cuts
])  # fmt: skip
def test_edges_are_left_out_evenly_until_the_rows_fit(max_rows: int, edges: list[int]) -> None:
    begin, end = np.array([0, 35]), np.array([80, 65])
    assert fewer_edges(np.arange(0, 90, 10), begin, end, max_rows).tolist() == edges


def a_busy_second(seed: int) -> Phases:
    """200 requests of 2 to 80 tokens, each after its prefill."""
    rng = np.random.default_rng(seed)
    begin, prefill, decode = rng.uniform(0, 1000, 200), rng.uniform(0, 30, 200), rng.uniform(20, 800, 200)
    prefills = [(b, b + p, True, 50.0) for b, p in zip(begin, prefill, strict=True)]
    decodes = [(b + p, b + p + d, False, d / 10) for b, p, d in zip(begin, prefill, decode, strict=True)]
    return phases(*prefills, *decodes)


@pytest.mark.parametrize("max_rows", [1200, 2000, 5000, 100_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_limited_and_no_token_is_lost_for_that(seed: int, max_rows: int) -> None:
    """400 phases: a limit of 1,200 leaves 400 rows for cuts. The whole time, and 300 ms of it."""
    rows, unseen_ns = a_busy_second(seed), np.zeros((0, 2), np.int64)
    cadence = cadence_of(rows)
    for start_ns, end_ns in ((0, 3000 * MS), (400 * MS, 700 * MS)):
        cut = (rows, cadence, start_ns, end_ns, int(cadence.step_ns), unseen_ns)
        limited, whole = slot_steps(*cut, max_rows=max_rows), slot_steps(*cut)
        assert len(limited.step) <= max_rows
        for column in ("prefill", "decode"):
            of_requests = (np.bincount(x.request, getattr(x, column), minlength=400) for x in (limited, whole))
            np.testing.assert_allclose(*of_requests, rtol=1e-4, atol=1e-4)
