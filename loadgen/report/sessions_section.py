"""The sessions of a run on its page: their cost, where their time went, and what a turn costs by its depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report import svg
from loadgen.report.format import UNKNOWN, clean, count, joules, percent, plural, seconds, share, tick_seconds
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import definitions, folded, section, stacked_bar
from loadgen.report.run_facts import with_error
from loadgen.report.session_facts import session_facts, turns_text
from loadgen.results.session_accounts import Phase, PhaseKind, phases_of
from loadgen.results.summarize import span
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.results.session_accounts import Account, SessionAccount
    from loadgen.results.summary import CacheEnergy, DepthCost, SessionSummary
    from loadgen.stats.arrays import Floats

MAX_ROWS = 40
"""Sessions that the timeline draws."""
LISTED = 10
"""Sessions that the table lists."""
ROW = 20
"""Height of a row of the timeline in CSS pixels."""
GRAIN = 2
"""Places in a unit of the drawing that a phase may begin at; shorter phases are drawn as long as one of them."""
NAME_LETTERS = 12
"""Letters of a session's name that fit beside the timeline."""
KINDS: tuple[tuple[PhaseKind, str], ...] = (
    ("tool", "tools, or a user who thinks"),
    ("waiting", "waiting for the client"),
    ("model", "model: a request is in flight"),
)


def sessions_section(result: RunResult) -> list[Markup]:
    """Return the section, in a list; empty where no session has several requests."""
    sessions = result.summary.sessions if result.summary else None
    if sessions is None:
        return []
    parts = [
        definitions((label.capitalize(), text) for label, text in session_facts(sessions)),
        timeline(result),
        costliest_table(result.sessions),
        depth_table(sessions),
    ]
    return [section("Sessions", *parts)]


def costliest(accounts: Sequence[SessionAccount], number: int) -> list[SessionAccount]:
    """Return the sessions with the most joules, or without energy those that lasted longest, the first first. Those of
    which nothing was sent are left out."""
    sent = [account for account in accounts if account.start_s is not None]
    return sorted(sent, key=lambda account: (-(account.joules or 0.0), -(account.duration_s or 0.0)))[:number]


# ---------------------------------------------------------------- timeline


def timeline(result: RunResult) -> Markup:
    """Return the phases of the costliest sessions over time, one session in a row, with its joules."""
    shown = sorted(costliest(result.sessions, MAX_ROWS), key=lambda account: account.start_s or 0.0)
    if not shown:
        return Markup()
    start_ns, end_ns = span(result)
    x = svg.linear_axis(0.0, (end_ns - start_ns) / NS_PER_S, tick_seconds)
    height = ROW * len(shown)
    centres = [ROW * (row + 0.5) for row in range(len(shown))]
    y = svg.Axis(
        0, height, False, tuple((height - at, short_name(a.session)) for at, a in zip(centres, shown, strict=True))
    )
    phases = _phases(result, shown)
    marks = [
        _row(account, phases[account.session], x, at, start_ns) for account, at in zip(shown, centres, strict=True)
    ]
    words = [_label(account, x, at) for account, at in zip(shown, centres, strict=True)]
    text = f"{plural(len(shown), 'session')}: " + "; ".join(_row_text(account) for account in shown[:LISTED])
    heading = "Sessions over time"
    sent = sum(account.start_s is not None for account in result.sessions)
    which = f"The {len(shown)} costliest of {count(sent)} sessions, in" if sent > len(shown) else "In"
    caption = (
        f"{which} order of their first request; beside each its joules. A session is waiting where a request is due "
        "and was not sent: the client was late, or held it back. Sub-agents count as their session."
    )
    keys = (tag("li", tag("i", class_=f"key phase-{kind}"), tag("span", words)) for kind, words in reversed(KINDS))
    return tag(
        "figure",
        tag("h3", heading),
        tag("ul", *keys, class_="legend"),
        svg.plot("sessions-over-time", heading, text, x, y, height, marks, words),
        tag("p", "time since the run's first scheduled instant", class_="unit x"),
        tag("figcaption", caption),
        class_="wide sessions",
    )


def _phases(result: RunResult, accounts: Iterable[SessionAccount]) -> dict[str, list[Phase]]:
    """Return the phases of these sessions, by name."""
    records: dict[str, list[RequestRecord]] = {account.session: [] for account in accounts}
    for request, record in zip(result.schedule, result.records, strict=True):
        if request.session_id in records:
            records[request.session_id].append(record)
    return {name: phases_of(part) for name, part in records.items()}


def _row(account: SessionAccount, phases: Sequence[Phase], x: svg.Axis, y: float, start_ns: int) -> Markup:
    """Return a line of a session for each kind of phase, those of the model on top."""
    lines = []
    for kind, _ in KINDS:
        ends_s = np.array([[p.start_ns - start_ns, p.end_ns - start_ns] for p in phases if p.kind == kind]) / NS_PER_S
        if len(ends_s):
            path = "".join(f"M{begin:g} {y:g}H{end:g}" for begin, end in _merged(x.at(ends_s) * svg.WIDTH))
            lines.append(tag("path", d=path, class_=f"phase phase-{kind}"))
    return tag("g", tag("title", _row_text(account)), *lines)


def _merged(places: Floats) -> list[tuple[float, float]]:
    """Return these stretches, (begin, end) in order, on a grid of GRAIN places a unit; those that touch are one."""
    merged: list[tuple[float, float]] = []
    for begin, end in np.rint(places * GRAIN).tolist():
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, max(end, begin + 1)))
    return [(begin / GRAIN, end / GRAIN) for begin, end in merged]


def _label(account: SessionAccount, x: svg.Axis, y: float) -> Markup:
    """Return the joules of a session, behind the end of its row."""
    end = float(x.at(np.array([(account.start_s or 0.0) + (account.duration_s or 0.0)]))[0])
    text = "" if account.joules is None else joules(account.joules)
    return tag("text", text, x=f"{100 * end:.2f}%", y=f"{y:g}", dx="6", dy="0.35em", class_="label")


def _row_text(account: SessionAccount) -> str:
    spent = "" if account.joules is None else f", {with_error(account.joules, account.se_joules)}"
    return (
        f"{clean(account.session, 80)}: {plural(account.requests, 'request')} in {seconds(account.duration_s)}, "
        f"{phase_shares(account)}{spent}"
    )


def phase_shares(account: Account) -> str:
    """Return the shares of a session's time, such as "model 12.0 %, tools 87.0 %, waiting 1.0 %"."""
    parts = (("model", account.model_s), ("tools", account.tool_s), ("waiting", account.waiting_s))
    return ", ".join(f"{name} {share(part, account.duration_s)}" for name, part in parts)


def short_name(name: str) -> str:
    """Return a name that fits beside its row. The end of a long one tells sessions apart."""
    text = clean(name)
    return text if len(text) <= NAME_LETTERS else f"…{text[1 - NAME_LETTERS :]}"


# ---------------------------------------------------------------- tables


def costliest_table(accounts: Sequence[SessionAccount]) -> Markup:
    """Return the costliest sessions with their tokens, their time and their joules."""
    several = len({account.workload for account in accounts}) > 1
    has_cache = any(account.cache is not None for account in accounts)
    rows = [
        [
            clean(account.session, 80),
            *([clean(account.workload)] if several else []),
            _requests(account),
            join([count(account.input_tokens), _small(account.cached_share, "cached")]),
            count(account.output_tokens),
            seconds(account.duration_s),
            *(share(part, account.duration_s) for part in (account.model_s, account.tool_s, account.waiting_s)),
            _energy(account),
            *([_cache(account.cache)] if has_cache else []),
        ]
        for account in costliest(accounts, LISTED)
    ]
    head = ["session", *(["workload"] if several else []), "requests", "input", "output", "last answer"]
    head += ["model", "tools", "waiting", "energy", *(["cache saved"] if has_cache else [])]
    by = "Costliest sessions" if any(account.joules is not None for account in accounts) else "Longest sessions"
    caption = (
        "Last answer: from the first request of the session to the end of its last answer; the next three are its "
        "shares. ± is one standard error of the fitted law, by which the cache saved what the cached tokens would have "
        "cost. Again: energy of tokens that had been computed before. All sessions, with their tasks, are in "
        "sessions.jsonl."
    )
    return folded(by, tag("figure", table(head, rows, by, "requests sessions"), tag("figcaption", caption)))


def _requests(account: SessionAccount) -> Markup:
    failed, agents = account.requests - account.completed, len(account.tasks) - 1
    notes = [f" {failed:,} failed"] if failed else []
    notes += [f" {plural(agents, 'sub-agent')}"] if agents else []
    return join([count(account.requests), *(tag("small", note) for note in notes)])


def _small(ratio: float | None, what: str) -> Markup:
    return Markup() if ratio is None else tag("small", f" {percent(ratio)} {what}")


def _energy(account: Account) -> Markup:
    if account.joules is None:
        return join([UNKNOWN])
    phases = f" prefill {joules(account.prefill_joules)}, decode {joules(account.decode_joules)}"
    return join([with_error(account.joules, account.se_joules), tag("small", phases)])


def _cache(cache: CacheEnergy | None) -> Markup:
    """Return what the cache saved, and what was used for tokens computed before."""
    if cache is None:
        return join([UNKNOWN])
    again = tag("small", f" again {joules(cache.recomputed_joules)}") if cache.recomputed_joules is not None else ""
    return join([with_error(cache.saved_joules, cache.saved_se_joules), again])


def depth_table(sessions: SessionSummary) -> Markup:
    """Return the cost of a turn by its depth, as bars of prefill and decode and as numbers."""
    has_cache = any(depth.cache is not None for depth in sessions.by_depth)
    rows = [
        [*_depth_row(depth), *([joules(depth.cache.saved_joules if depth.cache else None)] if has_cache else [])]
        for depth in sessions.by_depth
    ]
    head = [
        "",
        "prefill · decode",
        "requests",
        "input a turn",
        "cached",
        "output a turn",
        "J/turn mean",
        "p90",
        "energy",
        *(["cache saved"] if has_cache else []),
    ]
    caption = (
        "A turn is a request by its number within its task. Input and output are the means of a turn that was sent. "
        "J/turn is of completed requests; energy is of all requests of these turns, ± one standard error."
    )
    made = table(head, rows, "Cost by the turn of a session")
    return tag("figure", tag("h3", "Cost by turn"), made, tag("figcaption", caption), class_="wide")


def _depth_row(depth: DepthCost) -> list[str]:
    prefill, decode, spread = depth.prefill_joules, depth.decode_joules, depth.joules_per_turn
    bar: str = UNKNOWN
    if prefill is not None and decode is not None and prefill + decode > 0:
        text = f"prefill {joules(prefill)} ({share(prefill, prefill + decode)}), decode {joules(decode)}"
        bar = stacked_bar([("prefill", prefill, text), ("decode", decode, text)], text)
    return [
        turns_text(depth),
        bar,
        count(depth.requests),
        _each(depth.input_tokens, depth.sent),
        percent(depth.cached_share),
        _each(depth.output_tokens, depth.sent),
        joules(spread.mean if spread else None),
        joules(spread.p90 if spread else None),
        with_error(depth.joules, depth.se_joules),
    ]


def _each(tokens: int | None, sent: int) -> str:
    return UNKNOWN if tokens is None or not sent else f"{tokens / sent:,.0f}"
