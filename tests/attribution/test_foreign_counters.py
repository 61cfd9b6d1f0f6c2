"""The requests of others that the engine's counters imply are those that there were."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.foreign_counters import LATE_NS, MAX_STREAMS, UNCOUNTED_NS, counted_records, reduced
from loadgen.record import RequestRecord
from support.attribution_runs import MS, request, request_ns


class Planted(NamedTuple):
    """A request in a planted run: the steps of its first and its last token, and its prompt."""

    first: int
    last: int
    prompt: int


def run(
    ours: Sequence[Planted], others: Sequence[Planted], steps: int, read_every: int = 100
) -> tuple[list[RequestRecord], list[dict[str, float]], list[int]]:
    """Return our records, the engine's samples and the ends of its steps: 5 ms, and 25 us a prompt token over 100."""
    prompts = [sum(life.prompt for life in (*ours, *others) if life.first == step) for step in range(steps)]
    end_ns = np.cumsum([5 * MS + max(tokens - 100, 0) * MS // 40 for tokens in prompts]).tolist()
    records = [
        request_ns(
            i, end_ns[life.first - 1] if life.first else 0,
            [end_ns[step] + LATE_NS for step in range(life.first, life.last + 1)], life.prompt,
        )
        for i, life in enumerate(ours)
    ]  # fmt: skip
    everyone = (*ours, *others)
    samples = []
    for step in range(0, steps, read_every):  # each is read in that step
        tokens = [min(max(step, life.first), life.last + 1) - life.first for life in everyone]
        counted = {
            "generation_tokens": sum(tokens),
            "prompt_tokens": sum(life.prompt for life in everyone if life.first < step),
            "iterations": step,
            "running": sum(life.first <= step <= life.last for life in everyone),
        }
        samples.append({name: float(value) for name, value in (("t_ns", end_ns[step] - 2 * MS), *counted.items())})
    return records, samples, end_ns


def lives_of(records: Sequence[RequestRecord], end_ns: Sequence[int]) -> list[Planted]:
    ends = np.array(end_ns) + LATE_NS
    return [
        Planted(
            int(np.argmin(np.abs(ends - record.chunk_ns[0]))),
            int(np.argmin(np.abs(ends - record.chunk_ns[-1]))),
            (record.input_tokens or 0) - (record.cached_tokens or 0),
        )
        for record in records
    ]


OURS = [Planted(0, 999, 50), *(Planted(15 + 40 * k, 30 + 40 * k, 800 + 100 * (k % 7)) for k in range(24))]
"""One stream that decodes all the time, and prompts of ours of many lengths."""
OTHERS = [Planted(150, 260, 1200), Planted(350, 420, 2500), Planted(370, 640, 700), Planted(720, 760, 3000)]


@pytest.mark.parametrize(("lacking", "steps_off"), [("", 2), ("iterations", 2), ("running", 70)])
def test_the_requests_of_others_are_found(lacking: str, steps_off: int) -> None:
    """Their prefills are in the right step and their prompts as long; they end in the right one if the engine shows
    how many are running."""
    records, samples, end_ns = run(OURS, OTHERS, 1000)
    samples = [{name: value for name, value in sample.items() if name != lacking} for sample in samples]
    foreign, _ = counted_records(records, engine_steps_of(records), samples)
    lives = lives_of(foreign, end_ns)
    assert [life.first for life in lives] == [life.first for life in OTHERS]
    assert [life.prompt for life in lives] == pytest.approx([life.prompt for life in OTHERS], rel=0.02)
    assert [life.last for life in lives] == pytest.approx([life.last for life in OTHERS], abs=steps_off)
    assert [record.index for record in foreign] == list(range(len(records), len(records) + len(foreign)))


def test_the_prompt_and_output_tokens_of_others_are_those_that_the_engine_counted() -> None:
    records, samples, _ = run(OURS, OTHERS, 1000)
    foreign, _ = counted_records(records, engine_steps_of(records), samples)
    prompts = sum((record.input_tokens or 0) - (record.cached_tokens or 0) for record in foreign)
    assert prompts == pytest.approx(sum(life.prompt for life in OTHERS), abs=len(OTHERS))
    output = sum(record.output_tokens or 0 for record in foreign)
    assert output == pytest.approx(sum(life.last - life.first + 1 for life in OTHERS), rel=0.02)


def test_without_others_there_are_none() -> None:
    records, samples, _ = run(OURS, [], 1000)
    foreign, guessed_ns = counted_records(records, engine_steps_of(records), samples)
    assert foreign == [] and not len(guessed_ns)


@pytest.mark.parametrize("name", ["generation_tokens", "prompt_tokens"])
def test_an_engine_that_does_not_count_tokens_implies_nobody(name: str) -> None:
    records, samples, _ = run(OURS, OTHERS, 1000)
    samples = [{key: value for key, value in sample.items() if key != name} for sample in samples]
    assert counted_records(records, engine_steps_of(records), samples)[0] == []


def test_prompts_whose_answers_have_no_tokens_imply_nobody() -> None:
    embedded = [
        msgspec.structs.replace(request(i, 20 * i, [20 * i + 15.0]), chunk_ns=[], output_tokens=None) for i in range(20)
    ]
    assert all(record.came_whole for record in embedded)
    start = {"t_ns": -1.0, "generation_tokens": 0.0, "prompt_tokens": 0.0, "iterations": 0.0, "running": 0.0}
    end = start | {"t_ns": 2e9, "prompt_tokens": 2000.0, "iterations": 20.0}
    assert counted_records(embedded, engine_steps_of(embedded), [start, end])[0] == []


@pytest.mark.parametrize(("more", "there"), [(0, False), (2, False), (3, True)])
def test_two_percent_more_tokens_than_ours_are_noise(more: int, there: bool) -> None:
    ours = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=10)
    start = {"t_ns": -1.0, "generation_tokens": 0.0, "prompt_tokens": 0.0}
    end = {"t_ns": 2e9, "generation_tokens": 100.0 + more, "prompt_tokens": 60.0}
    assert bool(counted_records([ours], engine_steps_of([ours]), [start, end])[0]) == there


@pytest.mark.parametrize(
    "counted",
    [
        {"prompt_tokens": 1030.0, "cached_tokens": 990.0},  # vLLM
        {"prompt_tokens": 1030.0, "cached_tokens": 990.0, "computed_tokens": 40.0},  # llama.cpp
        {"computed_tokens": 40.0},  # llama.cpp before it counted cached tokens
        {"prompt_tokens": 1030.0},  # LMDeploy: it counts 40 tokens, and our 990 that its usage calls cached
    ],
)
def test_cached_tokens_are_taken_off_once_whatever_the_engine_counts(counted: dict[str, float]) -> None:
    """10 of our 1,000 prompt tokens were computed; the other 30 that were are another client's."""
    ours = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=1000, cached=990)
    end = {"t_ns": 2e9, "generation_tokens": 300.0, "iterations": 150.0, **counted}
    engine = [dict.fromkeys(end, 0.0) | {"t_ns": -1.0}, end]
    foreign, _ = counted_records([ours], engine_steps_of([ours], engine), engine)
    assert sum((record.input_tokens or 0) - (record.cached_tokens or 0) for record in foreign) == 30


def test_work_without_us_is_guessed_where_no_step_of_ours_is() -> None:
    """We are away from step 301 to 599, and others are there."""
    ours = [Planted(0, 300, 50), *OURS[1:7], Planted(600, 999, 50), *OURS[16:]]
    records, samples, end_ns = run(ours, [Planted(250, 660, 1200)], 1000)
    foreign, guessed_ns = counted_records(records, engine_steps_of(records), samples)
    alone = guessed_ns[1:-1]
    assert alone[0, 0] == pytest.approx(end_ns[300] + LATE_NS, abs=MS)
    assert alone[-1, 1] == pytest.approx(end_ns[599], abs=6 * MS)
    assert (guessed_ns[1:, 0] >= guessed_ns[:-1, 1]).all()
    assert lives_of(foreign, end_ns)[0].first == 250
    assert sum(record.output_tokens or 0 for record in foreign) == pytest.approx(411, rel=0.02)


def test_a_request_of_others_does_not_begin_before_a_rest() -> None:
    """Nobody is there for two seconds after step 499. Then a stranger is, and a step later we are again."""
    ours = [Planted(0, 499, 50), Planted(501, 999, 50), *OURS[1:13], *OURS[14:]]
    records, samples, end_ns = run(ours, [Planted(500, 660, 1200)], 1000)
    rest_ns, later_ns = end_ns[499] + LATE_NS, 2000 * MS
    moved = [
        request_ns(i, record.sent_ns + later_ns, [t + later_ns for t in record.chunk_ns], record.input_tokens or 0)
        if (record.sent_ns or 0) >= end_ns[499]
        else record
        for i, record in enumerate(records)
    ]
    before = [sample for sample in samples if sample["t_ns"] < rest_ns]
    after = [sample | {"t_ns": sample["t_ns"] + later_ns} for sample in samples if sample["t_ns"] >= rest_ns]
    silent = {"generation_tokens": after[0]["generation_tokens"], "running": 0.0} | {"t_ns": 0.0}
    resting = [after[0] | silent | {"t_ns": rest_ns + k * 500.0 * MS} for k in range(1, 4)]
    foreign, _ = counted_records(moved, engine_steps_of(moved), [*before, *resting, *after])
    [stranger] = [record for record in foreign if not record.cached_tokens]
    assert (stranger.sent_ns or 0) >= rest_ns + 1500 * MS


def test_nothing_is_known_of_others_before_the_first_and_after_the_last_read() -> None:
    records, samples, _ = run(OURS, OTHERS, 1000)
    _, guessed_ns = counted_records(records, engine_steps_of(records), samples)
    reads_ns = [int(sample["t_ns"]) + LATE_NS for sample in samples]
    assert (guessed_ns[0, 1], guessed_ns[-1, 0]) == (reads_ns[0], reads_ns[-1])
    assert (guessed_ns[0, 0], guessed_ns[-1, 1]) == (reads_ns[0] - UNCOUNTED_NS, reads_ns[-1] + UNCOUNTED_NS)


def test_an_engine_page_with_absurd_numbers_costs_little() -> None:
    ours = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=10)
    names = ("generation_tokens", "prompt_tokens", "iterations", "running")
    engine = [{"t_ns": -1.0, **dict.fromkeys(names, 0.0)}, {"t_ns": 2e9, **dict.fromkeys(names, 1e15)}]
    foreign, _ = counted_records([ours], engine_steps_of([ours]), engine)
    assert sum(len(record.chunk_ns) for record in foreign) <= MAX_STREAMS * 2_000


positive = st.lists(st.tuples(st.floats(0, 1e4), st.floats(0.1, 1e6)), min_size=1, max_size=8)


@given(positive, st.floats(0, 1e5))
def test_reduced_values_have_the_sum_and_are_no_larger(pairs: list[tuple[float, float]], total: float) -> None:
    values, variance = np.array(pairs).T
    result = reduced(values, variance, total)
    assert ((result >= 0) & (result <= values)).all()
    assert result.sum() == pytest.approx(min(values.sum(), total), abs=1e-6 * values.sum() + 1e-9)


def test_what_is_too_much_is_taken_off_in_proportion_to_the_variance() -> None:
    assert reduced(np.array([100.0, 100.0, 5.0]), np.array([1.0, 3.0, 9.0]), 160.0).tolist() == pytest.approx(
        [90, 70, 0]
    )
