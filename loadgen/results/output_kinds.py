"""Tokens and energy of each kind of output: reasoning, the answer's text, calls of tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from loadgen.record import Kind
from loadgen.results.summary import KindOutput
from loadgen.units import MJ_PER_J, j_from_mj

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy
    from loadgen.record import RequestRecord

KINDS: tuple[Kind, ...] = get_args(Kind)


def tokens_by_kind(record: RequestRecord) -> dict[Kind, int]:
    """Return the output tokens of each kind that the record has; they sum to its output tokens.

    The server's count of reasoning stands unless it is zero beside chunks of reasoning. The other tokens are in
    proportion to the chunks. Empty when the kinds or the tokens are not known.
    """
    tokens = record.output_tokens
    if record.kinds is None or not tokens:
        return {}
    counted = record.reasoning_tokens or 0
    if len(record.kinds) == 1 and not counted:
        return {record.kinds[0][0]: tokens}
    chunks: Counter[Kind] = Counter()
    for kind, count in record.kinds:
        chunks[kind] += count
    others: dict[Kind, int] = {kind: count for kind, count in chunks.items() if kind != "reasoning"}
    if not counted or (chunks and not others):
        return _shared(tokens, chunks)
    counts: dict[Kind, int] = {"reasoning": counted, **_shared(tokens - counted, others or {"answer": 1})}
    return {kind: count for kind, count in counts.items() if count}


def _shared(tokens: int, weights: Mapping[Kind, int]) -> dict[Kind, int]:
    """Return whole numbers of tokens in proportion to the weights; they sum to `tokens`."""
    total = sum(weights.values())
    ends = [round(tokens * weight / total) for weight in accumulate(weights.values())] if total else []
    return {kind: end - start for kind, start, end in zip(weights, [0, *ends], ends, strict=False)}


def output_kinds(records: Sequence[RequestRecord], energies: Mapping[int, RequestEnergy]) -> dict[Kind, KindOutput]:
    """Return the output of each kind that these requests have; `energies` are by request index."""
    requests: Counter[Kind] = Counter()
    tokens: Counter[Kind] = Counter()
    spent_mj: Counter[Kind] = Counter()
    unknown = set(KINDS) if not energies else set()
    for record in records:
        counts = tokens_by_kind(record)
        requests.update(counts.keys())
        tokens.update(counts)
        if record.hidden_tokens:
            unknown.add("reasoning")
        energy = energies.get(record.index)
        if energy is None or energy.decode_joules is None:
            unknown.update(counts)
        elif energy.reasoning_joules is not None and energy.tools_joules is not None:
            parts = (energy.decode_joules, energy.reasoning_joules, energy.tools_joules)
            decode_mj, reasoning_mj, tools_mj = (round(joules * MJ_PER_J) for joules in parts)
            spent_mj["reasoning"] += reasoning_mj
            spent_mj["tools"] += tools_mj
            spent_mj["answer"] += decode_mj - reasoning_mj - tools_mj
    return {
        kind: KindOutput(
            requests=requests[kind],
            tokens=tokens[kind],
            joules=None if kind in unknown else j_from_mj(spent_mj[kind]),
            joules_per_token=None if kind in unknown or not tokens[kind] else j_from_mj(spent_mj[kind]) / tokens[kind],
        )
        for kind in KINDS
        if requests[kind]
    }
