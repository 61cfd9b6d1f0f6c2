"""The energy of decoding goes to the kind of the chunk that ended each step, to the millijoule."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.output_kinds import KINDS, decode_by_kind
from loadgen.attribution.shapley import attribute_energy, kinds_of_whole
from loadgen.energy.series import EnergySeries
from loadgen.record import Kind, RequestRecord
from support.attribution_runs import MS, request, runs, with_tail


def of_kinds(record: RequestRecord, *kinds: tuple[Kind, int]) -> RequestRecord:
    return msgspec.structs.replace(record, kinds=list(kinds))


def divided(*records: RequestRecord) -> list[list[float]]:
    """Return [reasoning, answer, tools] of each request, if each decode membership has cost 1 mJ."""
    steps = engine_steps_of(records)
    return decode_by_kind(records, steps, np.ones(len(steps.step))).tolist()


def test_a_step_is_of_the_kind_of_the_chunk_that_ends_it() -> None:
    thinker = of_kinds(request(0, 0, [10, 20, 30, 40, 50, 60]), ("reasoning", 2), ("tools", 1), ("answer", 3))
    talker = of_kinds(request(1, 5, [12, 22, 32]), ("answer", 3))
    unknown = request(2, 5, [14, 24])
    silent = of_kinds(request(3, 5, []))
    assert divided(thinker, talker, unknown, silent) == [[1, 3, 1], [0, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert divided(silent, unknown, talker, thinker) == [[0, 0, 0], [0, 0, 0], [0, 2, 0], [1, 3, 1]]


def test_tokens_without_a_chunk_after_the_last_are_of_its_kind() -> None:
    tailed = with_tail(request(0, 0, [10, 20, 30]), 3, 60)
    alone, mixed = (of_kinds(tailed, *kinds) for kinds in ([("tools", 3)], [("reasoning", 2), ("tools", 1)]))
    (whole,) = divided(alone)
    assert whole[2] > 2 and whole[:2] == [0, 0]
    assert divided(mixed) == [[1, 0, whole[2] - 1]]


@given(runs(), st.data())
def test_parts_are_whole_and_within_the_decode(
    run: tuple[list[EnergySeries], list[RequestRecord]], data: st.DataObject
) -> None:
    series, records = run
    splits = [
        data.draw(st.lists(st.sampled_from(KINDS), min_size=len(r.chunk_ns), max_size=len(r.chunk_ns))) for r in records
    ]
    records = [of_kinds(record, *((kind, 1) for kind in split)) for record, split in zip(records, splits, strict=True)]
    result = attribute_energy(series, records, 0, 4000 * MS)
    assert result.attributed_mj == attribute_energy(series, run[1], 0, 4000 * MS).attributed_mj
    for share, split in zip(result.requests, splits, strict=True):
        parts = (share.reasoning_joules, share.tools_joules)
        assert all(part is not None and part >= 0 for part in parts)
        reasoning, tools = (round((part or 0) * 1000) for part in parts)
        assert reasoning + tools <= round((share.decode_joules or 0) * 1000)
        decoded = {*split[1:], *split[-1:]}  # tokens may follow the last chunk
        assert "reasoning" in decoded or reasoning == 0
        assert "tools" in decoded or tools == 0


def test_the_parts_of_a_request_of_unknown_kinds_are_unknown() -> None:
    series = EnergySeries("gpu:0", np.array([0, 100 * MS]), np.array([0, 1000]))
    (share,) = attribute_energy([series], [request(0, 0, [10, 20])], 0, 100 * MS).requests
    assert (share.reasoning_joules, share.tools_joules) == (None, None)


@pytest.mark.parametrize(
    ("decode", "kinds", "parts"),
    [(10, [1, 1, 2], (2, 5)), (3, [1, 0, 1], (2, 1)), (0, [0, 0, 0], (0, 0)), (5, [0, 2, 0], (0, 0))],
)
def test_whole_parts_are_in_proportion(decode: int, kinds: list[float], parts: tuple[int, int]) -> None:
    reasoning, tools = kinds_of_whole(np.array([decode]), np.array([kinds], dtype=float))
    assert (reasoning[0], tools[0]) == parts
