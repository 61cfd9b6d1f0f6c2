"""The sessions of a run in words, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, count, joules, percent, plural, seconds, share

if TYPE_CHECKING:
    from loadgen.results.summary import DepthCost, Distribution, SessionSummary


def session_facts(sessions: SessionSummary) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of each line, the most general first; lines of what is not known are left out."""
    done = f"{count(sessions.completed)} of {plural(sessions.sessions, 'session')} completed"
    agents = sessions.tasks - sessions.sessions
    beside = f", {plural(agents, 'sub-agent')} beside them" if agents > 0 else ""
    number = sessions.session_requests
    each = f"{count(sessions.requests)} requests, p50 {number.p50:,.4g} and max {number.max:,.4g} in a session{beside}"
    yield "sessions", f"{done}; {each}"
    if sessions.goodput is not None:
        yield "goodput", f"{percent(sessions.goodput)} of the sessions met the limits with every request"
    yield "last answer", time_text(sessions)
    yield "tokens", tokens_text(sessions)
    if sessions.joules_per_session is not None:
        yield "energy", energy_text(sessions)
        yield "by turn", depth_text(sessions.by_depth)


def time_text(sessions: SessionSummary) -> str:
    """Return the time to the last answer, and what it was spent on."""
    last = sessions.time_to_last_answer_s
    text = f"p50 {seconds(last.p50)}, p90 {seconds(last.p90)} after the first request of a session"
    parts = (("model", sessions.model_s), ("tools", sessions.tool_s), ("waiting", sessions.waiting_s))
    total = sum(part or 0.0 for _, part in parts)
    spent = ", ".join(f"{name} {share(part, total)}" for name, part in parts)
    return f"{text}; {spent}" if total else text


def tokens_text(sessions: SessionSummary) -> str:
    cached = "" if sessions.cached_share is None else f", {percent(sessions.cached_share)} of them cached"
    return f"{count(sessions.input_tokens)} in{cached}; {count(sessions.output_tokens)} out"


def energy_text(sessions: SessionSummary) -> str:
    """Return the joules of all sessions, and of a session, a task and a turn."""
    parts = [f"{joules(sessions.joules)} in all"]
    spread = (
        ("session", sessions.joules_per_session),
        ("task", sessions.joules_per_task),
        ("turn", sessions.joules_per_turn),
    )
    shown = [(name, values) for name, values in spread if name != "task" or sessions.tasks > sessions.sessions]
    parts += [f"a {name} {p50_p90(values)}" for name, values in shown if values is not None and values.count]
    return "; ".join(parts)


def p50_p90(values: Distribution) -> str:
    return f"p50 {joules(values.p50)}, p90 {joules(values.p90)}"


def depth_text(depths: list[DepthCost]) -> str:
    """Return the mean joules of a turn by its depth."""
    known = (
        (depth, depth.joules_per_turn) for depth in depths if depth.joules_per_turn and depth.joules_per_turn.count
    )
    return ", ".join(f"{turns_text(depth)}: {joules(spread.mean)}" for depth, spread in known) or UNKNOWN


def turns_text(depth: DepthCost) -> str:
    """Return the turns of a bin, such as "turns 4–7"."""
    return "turn 1" if depth.last_turn == 1 else f"turns {depth.first_turn}–{depth.last_turn}"
