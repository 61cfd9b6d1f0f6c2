"""Sessions: conversations of a trace, or threaded through the lengths of a workload; the think times between their
turns; and the history that a turn is sent with."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload.routes import routed

if TYPE_CHECKING:
    from loadgen.record import Endpoint
    from loadgen.stats.arrays import Floats
    from loadgen.workload.schedule import Schedule
    from loadgen.workload.trace import TraceRequest

History = Literal["recorded", "live"]
"""The answers that a turn's messages hold: those of the trace, or those that were received in this run."""

NEW_TOKENS = 8
"""Fewest tokens that a turn adds to the turns before it."""

_HALVINGS = 14
"""Steps of the search for the probability that begins a session: to 1 part in 16,384."""


def are_conversations(requests: Sequence[TraceRequest]) -> bool:
    """Return whether these are words in sessions of several turns, each of which waits for the answer before it."""
    ids = [request.session_id for request in requests if request.words is not None and request.session_id is not None]
    return len(set(ids)) < len(ids)


def settle_history(schedule: Schedule, wanted: History | None, endpoint: Endpoint = "chat") -> tuple[Schedule, History]:
    """Return the schedule with the history that its turns are sent with: `wanted`, or live if a turn has only its new
    messages. `endpoint` is the run's.

    LoadgenError: a turn cannot be sent with that history.
    """
    schedule = routed(schedule, endpoint)
    turns = [(request, request.words) for request in schedule.requests if request.words is not None]
    by_index = {request.index: request for request in schedule.requests}
    before = {
        request.index: [by_index[i] for i in request.parents if by_index[i].session_id == request.session_id]
        for request, _ in turns
    }
    history = wanted or ("live" if any(words.continues for _, words in turns) else "recorded")
    for request, words in turns:
        if words.continues and not before[request.index]:
            raise LoadgenError(f"line {words.line} continues a session, and no line before it is of that session")
        if words.continues and history == "recorded":
            raise LoadgenError(f"--history recorded: line {words.line} has only its new messages; use --history live")
        if history == "live" and before[request.index]:
            for turn in (words, *(other.words for other in before[request.index])):
                if turn is not None and turn.endpoint != "chat":
                    line = f"line {turn.line}"
                    raise LoadgenError(f"--history live: {line} has no messages that an answer could be put into")
    if wanted == "live" and not any(before.values()):
        raise LoadgenError("--history live: no session has a second turn that has words of its own")
    if history == "recorded":
        return schedule, history
    requests = tuple(
        msgspec.structs.replace(request, live=True, input_tokens=None) if before.get(request.index) else request
        for request in schedule.requests
    )
    return replace(schedule, requests=requests), history


def group_sessions(
    name: str, requests: Sequence[TraceRequest], turns: float | Literal["trace"] | None, rng: np.random.Generator
) -> list[list[TraceRequest]]:
    """Return the turns of each session of stream `name`, in order.

    Without `turns` every request is a session of its own; "trace" takes the sessions of the trace; a number threads
    sessions of that mean. Sessions are in order of their first turn; threaded ones are in random order, and their first
    turns get the arrivals that are found there in order of time.
    """
    if turns is None:
        return [[request] for request in requests]
    if turns == "trace":
        groups: dict[str, list[TraceRequest]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.session_id or f"\0{i}", []).append(request)
        return list(groups.values())
    if any(request.prefix_ids or request.session_id for request in requests):
        raise LoadgenError(f'stream {name}: the trace says itself what belongs together; use turns = "trace", or none')
    lengths = [(r.input_tokens, r.output_tokens) for r in requests if r.input_tokens and r.output_tokens]
    if len(lengths) < len(requests) or requests[0].words:
        raise LoadgenError(f'stream {name}: turns are threaded through made-up prompts; use turns = "trace", or none')
    rows = thread_sessions(lengths, turns, rng)
    starts_s = sorted(requests[session[0]].arrival_s for session in rows)
    order = rng.permutation(len(rows))
    sessions = [[requests[row] for row in rows[i]] for i in order]
    return [
        [msgspec.structs.replace(session[0], arrival_s=start_s), *session[1:]]
        for start_s, session in zip(starts_s, sessions, strict=True)
    ]


def thread_sessions(lengths: Sequence[tuple[int, int]], mean_turns: float, rng: np.random.Generator) -> list[list[int]]:
    """Thread every (input, output) pair, by index, into exactly one session; sessions have `mean_turns` on average.

    The input of a turn contains the input and output of the turn before it, and is longer by at least NEW_TOKENS. From
    the shortest input up, each pair continues a random session that fits into it, or begins a session, with a
    probability that is found by bisection. So the lengths of the workload stay exactly what they were.
    LoadgenError when so many turns do not fit into these lengths.
    """
    draws = rng.random((len(lengths), 2))
    fewest = _thread(lengths, 0.0, draws)
    if len(fewest) * mean_turns > len(lengths) * 1.005:
        limit = len(lengths) / len(fewest)
        raise LoadgenError(f"{mean_turns:g} turns a session: these lengths hold {limit:.3g} in the mean at most")
    low, high, sessions = 0.0, 1.0, fewest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        sessions = _thread(lengths, middle, draws)
        low, high = (middle, high) if len(sessions) * mean_turns < len(lengths) else (low, middle)
    return sessions


def _thread(lengths: Sequence[tuple[int, int]], begin_probability: float, draws: Floats) -> list[list[int]]:
    """Thread sessions with two uniform draws per pair: does it begin a session, and else which one does it continue."""
    sessions: list[list[int]] = []
    ends: list[tuple[int, int]] = []  # (tokens so far, session), sorted
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        input_tokens, output_tokens = lengths[row]
        fitting = bisect_left(ends, (input_tokens - NEW_TOKENS + 1, -1))
        begin_draw, session_draw = draws[row]
        if fitting and begin_draw >= begin_probability:
            _, session = ends.pop(int(session_draw * fitting))
            sessions[session].append(row)
        else:
            session = len(sessions)
            sessions.append([row])
        insort(ends, (input_tokens + output_tokens, session))
    return sessions


def text_numbers(turns: Sequence[TraceRequest]) -> list[int]:
    """Number the texts of a session: one per turn, from 0, with a new number where the trace cut the history off."""
    lengths = [(turn.input_tokens or 0, turn.output_tokens or 0) for turn in turns]
    cut = [inputs <= sum(previous) for previous, (inputs, _) in pairwise(lengths)]
    return [0, *accumulate(map(int, cut))]


def waits_ns(think: str | None, turns: Sequence[TraceRequest], rng: np.random.Generator) -> list[int]:
    """Return how long each turn of a session waits for its user after the answer before it.

    By default it does not wait; "trace" is the time between the turns' timestamps; see `think_times_ns` for laws.
    """
    match think:
        case None:
            return [0] * len(turns)
        case "trace":
            gaps_s = [after.arrival_s - before.arrival_s for before, after in pairwise(turns)]
            return [0, *(round(gap_s * NS_PER_S) for gap_s in gaps_s)]
        case law:
            return [0, *think_times_ns(law, len(turns) - 1, rng)]


def think_times_ns(law: str, count: int, rng: np.random.Generator) -> list[int]:
    """Draw `count` think times in ns from exponential:MEAN, constant:MEAN or lognormal:MEAN:SIGMA (in seconds).

    SIGMA is the standard deviation of the logarithm, whose mean is ln MEAN - SIGMA**2 / 2.
    """
    kind, *numbers = law.split(":")
    try:
        mean_s, *parameters = map(float, numbers)
    except ValueError:
        mean_s, parameters = math.nan, []
    if not (math.isfinite(mean_s) and mean_s >= 0 and all(math.isfinite(x) and x >= 0 for x in parameters)):
        kind = ""
    match kind, parameters:
        case "constant", []:
            drawn_s = np.full(count, mean_s)
        case "exponential", []:
            drawn_s = rng.exponential(mean_s, count)
        case "lognormal", [sigma] if mean_s > 0:
            drawn_s = rng.lognormal(math.log(mean_s) - sigma**2 / 2, sigma, count)
        case _:
            raise LoadgenError(
                f"think {law!r}: expected constant:SECONDS, exponential:MEAN, lognormal:MEAN:SIGMA (seconds) or trace"
            )
    return [int(ns) for ns in np.rint(drawn_s * NS_PER_S).astype(np.int64)]
