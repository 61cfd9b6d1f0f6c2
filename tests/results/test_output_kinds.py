"""Tokens of each kind sum to the output's, and joules to those of decoding."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.shapley import RequestEnergy
from loadgen.record import Kind, RequestRecord
from loadgen.results.output_kinds import KINDS, output_kinds, tokens_by_kind
from loadgen.results.summary import KindOutput

Runs = list[tuple[Kind, int]] | None


def record(kinds: Runs, tokens: int | None, reasoning: int | None = None, **fields: Any) -> RequestRecord:
    usual: dict[str, Any] = {"index": 0, "workload": "w", "scheduled_ns": 0}
    return RequestRecord(kinds=kinds, output_tokens=tokens, reasoning_tokens=reasoning, **(usual | fields))


@pytest.mark.parametrize(
    ("kinds", "tokens", "reasoning", "by_kind"),
    [
        ([("answer", 3)], 3, None, {"answer": 3}),
        ([("answer", 3)], 9, None, {"answer": 9}),
        ([("reasoning", 2), ("answer", 1)], 3, None, {"reasoning": 2, "answer": 1}),
        ([("reasoning", 2), ("answer", 2)], 8, None, {"reasoning": 4, "answer": 4}),
        ([("reasoning", 2), ("answer", 2)], 8, 5, {"reasoning": 5, "answer": 3}),
        ([("reasoning", 2), ("answer", 1), ("tools", 1)], 9, 5, {"reasoning": 5, "answer": 2, "tools": 2}),
        ([("answer", 2)], 8, 6, {"reasoning": 6, "answer": 2}),
        ([("answer", 2)], 8, 8, {"reasoning": 8}),
        ([("reasoning", 2), ("answer", 2)], 4, 0, {"reasoning": 2, "answer": 2}),
        ([("reasoning", 3)], 5, 4, {"reasoning": 5}),
        ([("reasoning", 1), ("answer", 1), ("reasoning", 1)], 3, None, {"reasoning": 2, "answer": 1}),
        ([], 5, 3, {"reasoning": 3, "answer": 2}),
        ([], 5, None, {}),
        (None, 5, 3, {}),
        ([("answer", 2)], None, None, {}),
    ],
)
def test_the_servers_count_of_reasoning_stands_and_chunks_divide_the_rest(
    kinds: Runs, tokens: int | None, reasoning: int | None, by_kind: dict[Kind, int]
) -> None:
    assert tokens_by_kind(record(kinds, tokens, reasoning)) == by_kind


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 20)), min_size=1, max_size=6),
    st.integers(1, 500),
    st.none() | st.integers(0, 500),
)
def test_they_sum_to_the_output(kinds: list[tuple[Kind, int]], tokens: int, reasoning: int | None) -> None:
    counted = None if reasoning is None else min(reasoning, tokens)
    by_kind = tokens_by_kind(record(kinds, tokens, counted))
    assert sum(by_kind.values()) == tokens
    assert all(count >= 0 for count in by_kind.values())


def energy(index: int, decode: float | None, reasoning: float | None, tools: float | None) -> RequestEnergy:
    return RequestEnergy(
        index=index, prefill_joules=1.0, decode_joules=decode, joules=1.0 + (decode or 0), reasoning_joules=reasoning,
        tools_joules=tools,
    )  # fmt: skip


THINKER, TALKER = record([("reasoning", 3), ("answer", 1)], 4), record([("answer", 5)], 5, index=1)


def test_joules_of_the_kinds_sum_to_those_of_decoding() -> None:
    energies = {0: energy(0, 8.0, 6.0, 0.5), 1: energy(1, 10.0, 0.0, 0.0)}
    assert output_kinds([THINKER, TALKER], energies) == {
        "reasoning": KindOutput(requests=1, tokens=3, joules=6.0, joules_per_token=2.0),
        "answer": KindOutput(requests=2, tokens=6, joules=11.5, joules_per_token=11.5 / 6),
    }


def test_without_energy_or_phases_joules_are_unknown() -> None:
    for energies in ({}, {0: energy(0, None, None, None), 1: energy(1, None, None, None)}):
        kinds = output_kinds([THINKER, TALKER], energies)
        assert {kind: output.joules for kind, output in kinds.items()} == {"reasoning": None, "answer": None}


def test_reasoning_that_was_not_sent_has_tokens_and_no_known_joules() -> None:
    hidden = record([("answer", 2)], 8, 6, hidden_tokens=6)
    assert output_kinds([hidden], {0: energy(0, 2.0, 0.0, 0.0)}) == {
        "reasoning": KindOutput(requests=1, tokens=6),
        "answer": KindOutput(requests=1, tokens=2, joules=2.0, joules_per_token=1.0),
    }


def test_records_of_older_versions_have_no_kinds() -> None:
    assert output_kinds([record(None, 5)], {0: energy(0, 2.0, None, None)}) == {}
