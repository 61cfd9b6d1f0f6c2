"""A step that took longer than its work, while a prompt waited and the engine preempted, computed that prompt."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.lost_prefills import LEAST_TOKENS, lost_prefills, unexplained_tokens
from loadgen.attribution.step_lengths import LengthLaw, Piece, PrefillQueue
from loadgen.telemetry.engine_sample import EngineSample

LAW = LengthLaw(base_ns=50.0, token_ns=2.0, pair_ns=0.0, stream_ns=1.0, read_ns=0.0)
BUDGET = 2000


def waiting(unexplained: float, sent: tuple[int, int] = (0, 1)) -> tuple[PrefillQueue, list[Piece]]:
    """Ten steps of four streams. Two prompts end in step 8; step 3 takes as long as `unexplained` tokens more."""
    pieces = [Piece(0, 8, 900.0), Piece(1, 8, 700.0)]
    length = np.full(10, 50.0 + 4)
    length[8] += 2 * 1600
    length[3] += 2 * unexplained
    start_ns = (np.cumsum(length) - length).astype(np.int64)
    columns = (np.array([0, 1]), np.array(sent), np.array([8, 8], np.int32), np.array([900, 700], np.float32))
    return PrefillQueue(*columns, np.zeros(2, np.float32), start_ns, length, np.full(10, 4.0), np.zeros(10)), pieces


def counted(*preemptions: int) -> list[EngineSample]:
    """The counter of preemptions, read every 100 ns."""
    return [{"t_ns": 100 * k, "preemptions": count} for k, count in enumerate(preemptions)]


@pytest.mark.parametrize(
    ("unexplained", "lost"),
    [
        (0.0, []),
        (LEAST_TOKENS / 2, []),
        (600.0, [(0, 3, 600)]),
        (900.0, [(0, 3, 900)]),
        (1400.0, [(0, 3, 900), (1, 3, 500)]),
        (5000.0, [(0, 3, 900), (1, 3, 700)]),  # no more than there are
    ],
)
def test_the_first_prompts_that_wait_were_begun_in_a_step_that_is_too_long(
    unexplained: float, lost: list[tuple[int, int, float]]
) -> None:
    queue, pieces = waiting(unexplained)
    found = lost_prefills(queue, pieces, LAW, BUDGET, counted(0, 0, 0, 1, 2, 2))
    assert found == [Piece(*piece) for piece in lost]


@pytest.mark.parametrize("counters", [[], counted(0, 0, 0, 0), counted(3, 3, 3, 3), counted(0, 5, 5, *[5] * 200)])
def test_nothing_is_lost_where_the_engine_counts_no_preemption(counters: list[EngineSample]) -> None:
    """In the last case it preempted before the step began."""
    queue, pieces = waiting(600.0)
    assert lost_prefills(queue, pieces, LAW, BUDGET, counters) == []


def test_a_prompt_that_was_not_sent_yet_is_not_lost() -> None:
    queue, pieces = waiting(600.0, sent=(100_000, 1))
    assert lost_prefills(queue, pieces, LAW, BUDGET, counted(0, 0, 0, 1)) == [Piece(1, 3, 600.0)]


def test_a_step_in_which_no_stream_decodes_shows_nothing() -> None:
    queue, pieces = waiting(600.0)
    assert np.flatnonzero(unexplained_tokens(queue, pieces, LAW)).tolist() == [3]
    assert not unexplained_tokens(replace(queue, decoding=np.zeros(10)), pieces, LAW).any()
