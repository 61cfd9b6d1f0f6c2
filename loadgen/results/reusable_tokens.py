"""Prompt tokens that a server had computed for an earlier request, by the plan: what a cache without end would hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.workload.schedule import ScheduledRequest


def reusable_tokens(schedule: Sequence[ScheduledRequest], records: Sequence[RequestRecord]) -> list[int | None]:
    """Return for each request how many tokens its prompt begins with that earlier requests had computed when it was
    sent: whole blocks, and the text that the turns of a session open with.

    A prompt counts as computed from its first token on. None for a request that was not sent, and for one with words of
    its own: which of them it has in common with others is not planned.
    """
    computed = _Computed()
    computed_at = sorted(
        (instant_ns, row) for row, record in enumerate(records) if (instant_ns := _computed_ns(record)) is not None
    )
    sent_at = sorted((record.sent_ns, row) for row, record in enumerate(records) if record.sent_ns is not None)
    reusable: list[int | None] = [None] * len(records)
    done = 0
    for sent_ns, row in sent_at:
        while done < len(computed_at) and computed_at[done][0] <= sent_ns:
            computed.add(schedule[computed_at[done][1]])
            done += 1
        request = schedule[row]
        if request.words is None and (request.live is msgspec.UNSET or not request.live):
            reusable[row] = computed.tokens_of(request)
    return reusable


def _computed_ns(record: RequestRecord) -> int | None:
    """Return the first instant at which the whole prompt is known to have been computed."""
    return record.finished_ns if record.came_whole else record.first_token_ns


class _Computed:
    """Blocks and texts that have been computed."""

    def __init__(self) -> None:
        self._blocks: set[int] = set()
        self._texts: dict[int, int] = {}

    def add(self, request: ScheduledRequest) -> None:
        self._blocks.update(request.prefix_ids)
        if request.text_id is not None:
            self._texts[request.text_id] = max(request.text_tokens, self._texts.get(request.text_id, 0))

    def tokens_of(self, request: ScheduledRequest) -> int:
        tokens = 0
        if request.text_id is not None:
            tokens = min(request.text_tokens, self._texts.get(request.text_id, 0))
        if tokens < request.text_tokens:
            return tokens
        for block in request.prefix_ids:
            if block not in self._blocks:
                break
            tokens += request.block_tokens
        return min(tokens, request.input_tokens or tokens)
