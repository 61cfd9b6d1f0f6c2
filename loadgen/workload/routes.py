"""The endpoint of each request of a schedule: that of its own words, or else the run's."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.record import UNSTREAMED, Endpoint

if TYPE_CHECKING:
    from loadgen.workload.schedule import Schedule, ScheduledRequest
    from loadgen.workload.words import WordsRef


def routed(schedule: Schedule, endpoint: Endpoint) -> Schedule:
    """Return the schedule of a run with that --endpoint: each request's words name theirs, and an answer that has no
    tokens has no length. LoadgenError: the endpoint does not take some request's words."""
    if endpoint not in UNSTREAMED and all(request.words is None for request in schedule.requests):
        return schedule
    return replace(schedule, requests=tuple(_routed(request, endpoint) for request in schedule.requests))


def endpoints_of(schedule: Schedule, endpoint: Endpoint) -> list[Endpoint]:
    """Return the endpoints that a schedule needs, the run's own first, then those of more requests."""
    uses = Counter(request.words.endpoint or endpoint if request.words else endpoint for request in schedule.requests)
    return sorted(uses, key=lambda name: (name != endpoint, -uses[name], name))


def _routed(request: ScheduledRequest, endpoint: Endpoint) -> ScheduledRequest:
    changes: dict[str, Any] = {}
    if (words := request.words) is not None:
        endpoint = _endpoint_of(words, endpoint)
        if endpoint != words.endpoint:
            changes["words"] = msgspec.structs.replace(words, endpoint=endpoint)
    if endpoint in UNSTREAMED:
        changes |= {"output_tokens": None, "natural": True}
    return msgspec.structs.replace(request, **changes) if changes else request


def _endpoint_of(words: WordsRef, endpoint: Endpoint) -> Endpoint:
    """Return the endpoint of words in a run with that --endpoint. LoadgenError: it does not take them.

    A body goes where it says, messages to chat or to responses, and a prompt to completions, responses or embeddings.
    """
    if words.is_body:
        if words.endpoint is None and endpoint not in ("responses", "embeddings"):
            raise LoadgenError(
                f"line {words.line}: responses and embeddings both take a body with an input: give the line a url, or "
                "the run an --endpoint"
            )
        return words.endpoint or endpoint
    if endpoint == "responses" or (endpoint == "embeddings" and words.endpoint == "completions"):
        return endpoint
    if endpoint in UNSTREAMED:
        kind = "messages" if words.endpoint == "chat" else "a prompt"
        raise LoadgenError(f"line {words.line}: {endpoint} does not take {kind}: give the line a body")
    return words.endpoint or endpoint
