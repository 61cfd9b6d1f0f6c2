"""Prompt tokens that an earlier request had too, by the plan: what a prefix cache without end would hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.workload.schedule import ScheduledRequest


def reusable_tokens(
    schedule: Sequence[ScheduledRequest],
    records: Sequence[RequestRecord],
    warmed: Sequence[ScheduledRequest] = (),
) -> list[int | None]:
    """Return for each request how many tokens its prompt begins with that requests which were sent before had: blocks,
    of the last one as much as the prompt had, and the text that the turns of a session open with.

    A server computes prompts in the order in which they come, so that those are in its cache, if it has not evicted
    them. None for a request that was not sent, and for one with words of its own: which of them it has in common with
    others is not planned. `warmed` are the requests that were sent before the run.
    """
    computed = _Computed()
    for request in warmed:
        computed.add(request)
    reusable: list[int | None] = [None] * len(records)
    sent = [(record.sent_ns, row) for row, record in enumerate(records) if record.sent_ns is not None]
    for _, row in sorted(sent):
        request, record = schedule[row], records[row]
        if request.words is None and (request.live is msgspec.UNSET or not request.live):
            reusable[row] = computed.tokens_of(request)
        if record.first_token_ns is not None or record.came_whole:
            computed.add(request)
    return reusable


class _Computed:
    """Blocks and texts that have been computed."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        """Block -> how many tokens of it: a prompt may end within its last one."""
        self._texts: dict[int, int] = {}

    def add(self, request: ScheduledRequest) -> None:
        ends = request.text_tokens
        for block in request.prefix_ids:
            size = request.block_tokens
            whole = size if request.input_tokens is None else min(size, max(request.input_tokens - ends, 0))
            self._blocks[block] = max(self._blocks.get(block, 0), whole)
            ends += size
        if request.text_id is not None:
            self._texts[request.text_id] = max(request.text_tokens, self._texts.get(request.text_id, 0))

    def tokens_of(self, request: ScheduledRequest) -> int:
        tokens = 0
        if request.text_id is not None:
            tokens = min(request.text_tokens, self._texts.get(request.text_id, 0))
        if tokens < request.text_tokens:
            return tokens
        for block in request.prefix_ids:
            known = min(self._blocks.get(block, 0), request.block_tokens)
            tokens += known
            if known < request.block_tokens:
                break
        return min(tokens, request.input_tokens or tokens)
